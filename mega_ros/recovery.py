"""From an image to people in the camera frame. The node, the replay, the viewer and the benchmark call this module.

Camera frame: REP-103 optical (x right, y down, z forward), metres. P people, Q samples, V vertices, J joints.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from mega_model.core import metrics
from mega_model.core.cameras import Camera
from mega_model.core.detection import SMALLEST, in_image, keypoints_of
from mega_model.core.errors import InputError, numbers, shown, whole_numbers
from mega_model.core.fit import Bends, FittedPeople, fit_people, limb_shares, widened
from mega_model.core.geometry import (
    Pyramid,
    box_squares,
    crop_images,
    crop_translation,
    in_crops,
    intrinsics_from_fov,
    place,
)
from mega_model.core.regions import Cameras, last_cameras
from mega_model.core.topology import LIMBS, SMPL_JOINTS, Topology

from .bundle import MOST_SAMPLES, TOPOLOGY, Bundle, BundleError
from .detect import Detector, find_people
from .engines import OnnxEngine, Provider

FOV_DEFAULT = np.radians(60.0)
"""Radians over the larger image side: assumed where no intrinsics are known."""

FARTHEST = 100.0
"""Metres. At 100 m and an ordinary focal length of 600 pixels, a person has 10 pixels: too few to be found. If somebody
seems to be farther away, the intrinsics are wrong."""
ROTATIONS = 0, 90, 180, 270
"""Degrees, see `Recovery.run`."""
PELVIS = SMPL_JOINTS.index("pelvis")


@dataclass(frozen=True, eq=False)
class People:
    """The people in one image, in the camera frame."""

    vertices: np.ndarray
    """float32 [P, V, 3], metres: the expected mesh of each person."""
    sigma: np.ndarray
    """float32 [P, V], metres: calibrated uncertainty of each vertex, see `Recovery.run`."""
    joints: np.ndarray
    """float32 [P, J, 3], metres."""
    joints_sigma: np.ndarray
    """float32 [P, J], metres: calibrated uncertainty of each joint."""
    ids: np.ndarray
    """uint32 [P]."""
    boxes: np.ndarray
    """float32 [P, 4]: x0, y0, x1, y1, pixels."""
    scores: np.ndarray
    """float32 [P]: the detector's scores; 1 for boxes that the caller gave."""
    distance: np.ndarray
    """float32 [P]: Mahalanobis distance of the image features from those of the training set. About 1 is usual; above
    2, the image is unlike the training set. NaN if the bundle does not give it."""
    samples: np.ndarray
    """float32 [P, Q, V, 3], metres: other meshes that the image may show, fitted to it as `vertices` are. Q is 0 unless
    they are kept, see `Recovery.run`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: np.ndarray | slice) -> People:
        """A selection of people. `index`: a mask [P], indices or a slice."""
        return People(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class CropOutputs:
    """What the graphs gave for the last crops of P people, and the cameras of these crops."""

    crop_intrinsics: np.ndarray
    """[P, 3, 3], see `square_cameras`."""
    crop_from_camera: np.ndarray
    """[P, 3, 3], see `square_cameras`."""
    features: dict[str, np.ndarray]
    """The backbone's outputs."""
    limbs: np.ndarray
    """float32 [P, 12, 3]: the detector's keypoints of arms and legs in crop coordinates; score 0 if unknown."""
    deterministic: dict[str, np.ndarray]
    """The deterministic graph's outputs."""

    def __getitem__(self, people: np.ndarray) -> CropOutputs:
        """Those of some people: indices."""
        features = {name: array[people] for name, array in self.features.items()}
        out = {name: array if name == "modes" else array[people] for name, array in self.deterministic.items()}
        return CropOutputs(
            self.crop_intrinsics[people], self.crop_from_camera[people], features, self.limbs[people], out
        )


@dataclass(frozen=True, eq=False)
class Observation:
    """The people in one image before they have ids. Their samples' noise depends on these, and nothing else."""

    people: People
    """With ids 0 to P-1, without samples; also those who will be left out."""
    good: np.ndarray
    """bool [P]: who will not be left out."""
    outputs: CropOutputs | None
    """What samples are made of; None if nobody is there."""


class Recovery:
    """A loaded bundle. `run` recovers the people in an image; several threads may call it at once.

    Its attributes are `bundle`, `topology`, `detector` (None if the bundle has none), `backend` and `why`, see `load`.
    Between processes it travels as the path of its bundle, which each process loads once.
    """

    def __init__(self, bundle: Bundle, provider: Provider = "auto") -> None:
        self.bundle = bundle
        self._provider: Provider = provider
        try:
            self.topology = Topology.load(bundle.folder / TOPOLOGY)
        except InputError as error:
            raise BundleError(f"{error}; export the bundle again") from None
        outputs = bundle.graphs["deterministic"].outputs
        for what, points, name in (
            ("vertices", self.topology.template, "vertices"),
            ("joints", self.topology.joint_names, "joints_sigma"),
        ):
            expected = outputs[name].shape[1:2] if name in outputs else (len(points),)
            if (len(points),) != expected:
                raise BundleError(
                    f"{bundle.folder / TOPOLOGY}: {len(points)} {what}, the manifest says {list(outputs[name].shape)} "
                    f"for {name}; export the bundle again"
                )
        self._backbone = OnnxEngine(bundle, "backbone", provider)
        self._deterministic = OnnxEngine(bundle, "deterministic", provider)
        self._sampler = OnnxEngine(bundle, "sampler", provider)
        self.detector = Detector(bundle, provider) if "detector" in bundle.graphs else None
        self._detects_keypoints = "detector" in bundle.graphs and "keypoints" in bundle.graphs["detector"].outputs
        self._predicts_errors = "sigma" in bundle.graphs["deterministic"].outputs
        template = self.topology.template
        joints = self.topology.joints(template)
        self._limb_shares = limb_shares(template, joints), limb_shares(joints, joints)
        self.backend, self.why = self._sampler.backend, self._sampler.why
        self._bends: Bends | None = None
        """Of the modes, which the deterministic graph gives: always the same."""
        self._crop_seconds = 0.0

    @classmethod
    def load(cls, name: str | Path = "default", *, provider: Provider = "auto") -> Recovery:
        """`name` is "default" (the embedded bundle) or a folder; `provider` is "auto", "tensorrt", "cuda" or "cpu".

        `recovery.backend` says what was taken, `recovery.why` why "auto" did not take what comes before it.
        Raises BundleError, or InputError if the provider is not available; both have one line.
        """
        return cls(Bundle.load(name), provider)

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded_once, (self.bundle.folder, self._provider)

    def seconds(self) -> dict[str, float]:
        """What cutting crops and running graphs took in all runs so far.

        `sampling`: the part of `infer` that the sampler took. `infer_cpu`: of all cores together.
        """
        engines = [self._backbone, self._deterministic, self._sampler]
        engines += [self.detector.engine] if self.detector else []
        return {
            "crop": self._crop_seconds,
            "infer": sum(engine.seconds for engine in engines),
            "sampling": self._sampler.seconds,
            "infer_cpu": sum(engine.cpu_seconds for engine in engines),
        }

    def run(
        self,
        image: np.ndarray,
        K: ArrayLike | Camera | None = None,
        boxes: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        samples: int | None = None,
        seed: int = 0,
        keypoints: ArrayLike | None = None,
        rotate: int = 0,
        keep_samples: bool = False,
    ) -> People:
        """People in an image.

        image: uint8 [H, W, 3] BGR. K: [3, 3] intrinsics in pixels, if the image has no distortion, or a `Camera`; None
        assumes a field of view of 60 degrees.
        boxes: [P, 4] x0, y0, x1, y1 in pixels, each at least partly in the image, and its centre less than 90 degrees
        off the axis; None asks the bundle's detector.
        ids: [P], whole numbers of 32 bits without sign, default 0 to P-1.
        keypoints: [P, 17, 3] x, y in pixels and score: COCO's keypoints of the people in the given boxes, as
        `detector.find` gives them. They place the only crop, and meshes are fitted to them and to the landmarks. None
        asks the bundle's detector.
        samples: Q, 0 to 1000; None takes the bundle's value. seed: a whole number from 0 on. The noise depends only on
        seed and id, so a person's sigma does not depend on the other people in the image.
        rotate: 0, 90, 180 or 270, degrees, clockwise, by which the image must be turned so that people are upright.
        Boxes, keypoints and people stay those of the image as it is.
        keep_samples: whether people have their samples. Otherwise samples are only drawn if sigma needs them.

        sigma is the expected error of each vertex, an output of the deterministic graph, with the distance between mesh
        and landmarks or keypoints added in quadrature, times calibration.scale. If the graph lacks this output, it is
        calibration.scale * sqrt(mean_q |x_q - mean_x|^2), and NaN for Q < 2.
        People with non-finite outputs, behind the camera or farther away than 100 m are left out, so there may be fewer
        people than boxes. Feet below a camera that looks up, for example, may lie behind its plane, at negative z.
        Raises InputError that names the argument.
        """
        observation = self.observe(image, K, boxes, keypoints, rotate)
        ids = np.arange(len(observation.people)) if ids is None else ids
        return self.identified(observation, ids, samples, seed, keep_samples)

    def observe(
        self,
        image: np.ndarray,
        K: ArrayLike | Camera | None = None,
        boxes: ArrayLike | None = None,
        keypoints: ArrayLike | None = None,
        rotate: int = 0,
        tiles: bool = True,
    ) -> Observation:
        """The first part of `run`: people whose ids are not known yet, for example because they depend on meshes.

        tiles: whether the bundle's detector searches the image's tiles, too, see `find_people`; `run` does.
        """
        image = checked_image(image)
        height, width = image.shape[:2]
        if K is None:
            K = intrinsics_from_fov(width, height, FOV_DEFAULT)
        camera = _checked_camera(K, width, height)
        must_be_rotation(rotate)
        if boxes is None:
            if self.detector is None:
                raise InputError(f"boxes: the bundle {self.bundle.name} has no detector, so they must be given")
            if keypoints is not None:
                raise InputError("keypoints: are those of given boxes, so boxes must be given, too")
            found, scores, points = find_people(self.detector, image, self.detector.threshold, rotate, tiles)
            seen = in_view(found, camera)
            found, scores = found[seen], scores[seen]
            points = None if points is None else points[seen]
        else:
            found = _checked_boxes(boxes, camera, width, height)
            if keypoints is None:
                points = self._detected(image, found, rotate, tiles)
            else:
                points = _checked_keypoints(keypoints, len(found))
            scores = np.ones(len(found), np.float32)
        if not len(found):
            return Observation(self._nobody(), np.zeros(0, bool), None)
        outputs = self._infer(image, camera, found, points, rotate)
        vertices, residuals = (
            array[:, 0] for array in self._placed(outputs.deterministic["vertices"][:, None], outputs)
        )
        sigma, joints_sigma = self._predicted_sigma(outputs.deterministic, residuals)
        people = People(
            vertices,
            sigma,
            self.topology.joints(vertices),
            joints_sigma,
            np.arange(len(found), dtype=np.uint32),
            found,
            scores,
            outputs.deterministic.get("distance", np.full(len(found), np.nan, np.float32)),
            np.zeros((len(found), 0, *vertices.shape[1:]), np.float32),
        )
        # along the crop's axis: a part of somebody near, or beside a wide lens, may be behind the camera's plane
        depth = np.einsum("pvi,pi->pv", vertices, outputs.crop_from_camera[:, 2])
        in_front = (depth > 0) & (depth < FARTHEST) & (vertices.mean(axis=1) > 0)[:, 2:]
        good = in_front.all(axis=1)  # not where a vertex is NaN
        if self._predicts_errors:
            good &= np.isfinite(sigma).all(axis=1)
        return Observation(people, good, outputs)

    def identified(
        self,
        observation: Observation,
        ids: ArrayLike,
        samples: ArrayLike | None = None,
        seed: int = 0,
        keep_samples: bool = False,
    ) -> People:
        """The second part of `run`: people with their ids [P] and samples, without those who are left out.

        samples: as for `run`; or a number for each person [P], then they cannot be kept.
        """
        people, good, outputs = observation.people, observation.good.copy(), observation.outputs
        given = whole_numbers("samples", self.bundle.sampling.samples if samples is None else samples, MOST_SAMPLES)
        if given.shape not in ((), (len(people),)):
            raise InputError(f"samples: must be one number, or {len(people)}, one per box, it is {shown(samples)}")
        if not isinstance(seed, Integral) or seed < 0:
            raise InputError(f"seed: must be a whole number from 0 on, it is {shown(seed)}")
        if keep_samples and given.ndim:
            raise InputError("samples: a number per person cannot be kept with keep_samples; give one number for all")
        counts = np.broadcast_to(given, len(people))
        ids = _checked_ids(ids, len(people))
        people = replace(
            people, ids=ids.astype(np.uint32), sigma=people.sigma.copy(), joints_sigma=people.joints_sigma.copy()
        )
        if keep_samples:
            shape = len(people), int(given), *people.vertices.shape[1:]
            people = replace(people, samples=np.zeros(shape, np.float32))
        scale = np.float32(self.bundle.calibration.scale)
        for count in np.unique(counts).tolist():
            which = np.flatnonzero(counts == count)
            for_sigma = count >= 2 and not self._predicts_errors
            if outputs and (for_sigma or (keep_samples and count)):
                meshes = self._sampled(outputs[which], ids[which], count, seed)
                good[which] &= np.isfinite(meshes).all(axis=(1, 2, 3))
                if for_sigma:
                    people.sigma[which] = scale * metrics.spread(meshes)
                    people.joints_sigma[which] = scale * metrics.spread(self.topology.joints(meshes))
                if keep_samples:
                    people.samples[which] = meshes
        return people[good]

    def _nobody(self) -> People:
        vertices, joints = len(self.topology.template), len(self.topology.joint_names)
        sizes = (vertices, 3), (vertices,), (joints, 3), (joints,), (), (4,), (), (), (0, vertices, 3)
        types = (np.float32,) * 4 + (np.uint32,) + (np.float32,) * 4
        return People(*(np.zeros((0, *size), kind) for size, kind in zip(sizes, types)))

    def _detected(self, image: np.ndarray, boxes: np.ndarray, rotate: int, tiles: bool) -> np.ndarray | None:
        """The detector's keypoints [P, 17, 3] of the people in boxes [P, 4]; score 0 for those it does not find.

        tiles: whether it searches the image's tiles if somebody is missing.
        """
        if self.detector is None or not self._detects_keypoints or not len(boxes):
            return None
        keypoints = keypoints_of(boxes, find_people(self.detector, image, self.detector.threshold, rotate, tiles=False))
        if tiles and not keypoints.any(axis=(1, 2)).all():
            keypoints = keypoints_of(boxes, find_people(self.detector, image, self.detector.threshold, rotate))
        return keypoints

    def _infer(
        self, image: np.ndarray, camera: Camera, boxes: np.ndarray, keypoints: np.ndarray | None, rotate: int
    ) -> CropOutputs:
        """The graphs on each person's last crop, see `last_cameras`."""
        crop, pyramid = self.bundle.crop, Pyramid(image)

        def run_backbone(cameras: Cameras) -> dict[str, np.ndarray]:
            start = time.perf_counter()
            crops = crop_images(pyramid, camera, *cameras, crop.size)
            crops = cv2.cvtColor(crops.reshape(-1, crop.size, 3), cv2.COLOR_BGR2RGB).reshape(crops.shape)
            self._crop_seconds += time.perf_counter() - start
            return self._backbone.run(crops=crops)

        squares = box_squares(boxes, crop.margin, -np.radians(rotate))
        cameras = last_cameras(
            squares, keypoints, camera, crop.size, crop.passes, lambda _, cameras: run_backbone(cameras)["landmarks"]
        )
        features = run_backbone(cameras)
        limbs = np.zeros((len(boxes), len(LIMBS), 3), np.float32)
        if keypoints is not None:
            limbs = in_crops(keypoints[:, -len(LIMBS) :], camera, *cameras).astype(np.float32)
        given = {**features, "keypoints": limbs}
        out = self._deterministic.run(**{name: given[name] for name in self.bundle.graphs["deterministic"].inputs})
        return CropOutputs(*cameras, features, limbs, out)

    def _placed(self, meshes: np.ndarray, outputs: CropOutputs) -> tuple[np.ndarray, np.ndarray]:
        """Meshes [P, Q, V, 3] of the decoder -> float32 [P, Q, V, 3] in the camera frame, and residuals [P, Q, 12].

        If the bundle has modes, each is fitted to landmarks and keypoints; residuals are those of `FittedPeople`.
        """
        out, intrinsics = outputs.deterministic, outputs.crop_intrinsics
        rotation, camera = out["rotation"][:, None], out["camera"][:, None]
        focal = (intrinsics[:, 0, 0] / intrinsics[:, 0, 2])[:, None]
        if "modes" in out:
            landmarks, limbs = outputs.features["landmarks"][:, None], outputs.limbs[:, None]
            self._bends = self._bends or Bends.of(self.topology.joint_regressor, out["modes"])
            fitted = fit_people(meshes, rotation, camera, focal, landmarks, limbs, self._bends)
        else:
            nothing = np.zeros((*meshes.shape[:2], len(LIMBS)))
            fitted = FittedPeople(meshes, rotation, crop_translation(camera, focal), nothing)
        placed = place(fitted.vertices, fitted.body_to_crop, fitted.translation, outputs.crop_from_camera[:, None])
        return placed.astype(np.float32), fitted.residuals

    def _predicted_sigma(self, out: dict[str, np.ndarray], residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [P, V] and [P, J]; NaN if the bundle has no error head."""
        if not self._predicts_errors:
            shapes = ((len(residuals), len(points)) for points in (self.topology.template, self.topology.joint_names))
            sigma, joints_sigma = (np.full(shape, np.nan, np.float32) for shape in shapes)
            return sigma, joints_sigma
        scale = np.float32(self.bundle.calibration.scale)
        of_vertices, of_joints = self._limb_shares
        sigma = widened(out["sigma"], residuals, of_vertices).astype(np.float32)
        joints_sigma = widened(out["joints_sigma"], residuals, of_joints).astype(np.float32)
        return scale * sigma, scale * joints_sigma

    def _sampled(self, outputs: CropOutputs, ids: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """float32 [P, Q, V, 3] in the camera frame."""
        uniforms = np.stack([self._uniforms(seed, int(person), samples) for person in ids])
        given = {
            name: outputs.deterministic[name]
            for name in self.bundle.graphs["sampler"].inputs
            if name in outputs.deterministic
        }
        return self._placed(self._sampler.run(**given, uniforms=uniforms)["vertices"], outputs)[0]

    def _uniforms(self, seed: int, person: int, samples: int) -> np.ndarray:
        """Noise of one person: float32 [Q, T, N, 2], open interval (0, 1). The first samples do not depend on Q."""
        shape = (int(size) for size in self.bundle.graphs["sampler"].inputs["uniforms"].shape[2:])
        uniforms = np.random.default_rng([seed, person]).random((samples, *shape), np.float32)
        return np.maximum(uniforms, np.float32(2**-25))  # NumPy's interval includes 0, whose Gumbel noise is infinite


@cache
def _loaded_once(folder: Path, provider: Provider) -> Recovery:
    return Recovery.load(folder, provider=provider)


def checked_image(image: object) -> np.ndarray:
    """uint8 [H, W, 3], contiguous. Raises InputError for anything else."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: must be a uint8 array [H, W, 3] (BGR), it is {what}")
    if not image.size:
        raise InputError(f"image: is empty, its shape is {image.shape}")
    return np.ascontiguousarray(image)


def must_be_rotation(rotate: object) -> None:
    """Raises InputError for an angle that `Recovery.run` does not take."""
    if not isinstance(rotate, Integral) or rotate not in ROTATIONS:
        raise InputError(f"rotate: must be one of {', '.join(map(str, ROTATIONS))} degrees, it is {shown(rotate)}")


def in_view(boxes: np.ndarray, camera: Camera) -> np.ndarray:
    """bool [P]: boxes [P, 4] whose centre the lens sees, less than 90 degrees off its axis."""
    return np.isfinite(camera.rays((boxes[:, :2] + boxes[:, 2:]) / 2)).all(axis=-1)


def _checked_camera(K: ArrayLike | Camera, width: int, height: int) -> Camera:
    camera = Camera.of(K)
    camera.must_fit(width, height)
    return camera


def _checked_boxes(given: ArrayLike, camera: Camera, width: int, height: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite, which is refused below
        boxes = numbers("boxes", given).astype(np.float32)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes: must have shape [P, 4], it is {list(boxes.shape)}")
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(f"boxes: number {first} is {boxes[first].tolist()}, not finite x0 < x1, y0 < y1")
    seen = in_image(boxes, width, height)
    if not seen.all():
        first = int(np.argmin(seen))
        raise InputError(
            f"boxes: number {first} is {boxes[first].tolist()}, of which an image of {width} x {height} pixels shows "
            f"less than {SMALLEST:g} x {SMALLEST:g}; leave it out"
        )
    seen = in_view(boxes, camera)
    if not seen.all():
        first = int(np.argmin(seen))
        raise InputError(
            f"boxes: number {first} is {boxes[first].tolist()}, whose centre is 90 degrees or more off the axis of "
            f"K, or beyond what the lens shows; leave it out"
        )
    return boxes


def _checked_keypoints(given: ArrayLike, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        keypoints = numbers("keypoints", given).astype(np.float32)
    if keypoints.shape != (count, 17, 3) or not np.isfinite(keypoints).all():
        raise InputError(f"keypoints: must be finite with shape [{count}, 17, 3], it is {list(keypoints.shape)}")
    return keypoints


def _checked_ids(given: ArrayLike, count: int) -> np.ndarray:
    ids = whole_numbers("ids", given, 2**32 - 1)
    if ids.shape != (count,):
        raise InputError(f"ids: must be {count} whole numbers, one per box, it has the shape {list(ids.shape)}")
    return ids
