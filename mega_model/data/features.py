"""`mega features`: a frozen BlazePose's outputs for crops of rendered people, see `options.Extract`.

A training set keeps the crop around the box and the next one of every scene, and mirrors half of the scenes.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mega_model.blazepose import BlazePose, PoseFeatures
from mega_model.checkpoint import load_weights
from mega_model.core.detection import KEYPOINTS, THRESHOLD, detections, keypoints_of, letterbox
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder, read_text
from mega_model.core.geometry import box_squares, crop_images, in_crops, project, square_cameras
from mega_model.core.onnx_runtime import ort
from mega_model.core.regions import BOX_MARGIN, PASSES, Cameras, last_cameras
from mega_model.core.topology import LIMBS, Topology
from mega_model.data import chunks
from mega_model.data.chunks import CHUNK, open_fields
from mega_model.data.crops import ACROSS
from mega_model.data.rendered import SceneSet, crop_each, intrinsics_of, mirror
from mega_model.options import Extract
from mega_model.tokenizer import MeshTokenizer

VIEW = 256
"""Pixels: side of the image in which the detector looks for a person."""
WIDEST = 2.5
"""The side of this image is one to so many times the first crop's."""


class FeatureSet:
    """Reads what `extract` wrote beside its rendered set: an `images.ImageSet` with maps in place of images."""

    evaluation_regressor: np.ndarray | None = None

    def __init__(self, folder: Path, topology: Topology | None = None) -> None:
        """Raises InputError that names what is wrong with a file."""
        self.fields = open_fields(folder, "no features; make some with mega features")
        place = _scenes_of(folder)
        self.scenes = SceneSet(place, topology)
        if chunks.changed(folder, chunks.contents(_of_scenes(place))):
            raise InputError(f"{folder}: not made of the scenes that are in {place} now; make the features again")
        _must_be_new(folder, self.fields["maps"])
        self.tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.fields["maps"])

    @property
    def topology(self) -> Topology:
        return self.scenes.topology

    @torch.no_grad()
    def tokenise(self, tokenizer: MeshTokenizer) -> None:
        """Tokenise all bodies and their mirror images once. Batches then have a field `tokens` int64 [B, N]."""
        vertices = self.scenes.fields["vertices"]
        mirror = self.scenes.mirror_index
        parts = []
        for start in tqdm(range(0, len(vertices), 100), desc="tokenising", mininterval=5):
            body = vertices[start : start + 100].astype(np.float32)
            both = np.stack([body, body[:, mirror] * ACROSS], axis=1)
            tokens = tokenizer.encode(torch.from_numpy(both).flatten(0, 1).to(tokenizer.template))
            parts.append(tokens.unflatten(0, (-1, 2)).cpu())
        self.tokens = torch.cat(parts)

    def batch(self, index: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """See `images.ImageSet`, and `rendered.SceneSet.batch` for further fields. In place of images: the fields of
        `blazepose.PoseFeatures`, and keypoints [B, 12, 3] (crop coordinates and score).
        """
        f = {name: array[index] for name, array in self.fields.items()}
        f |= {name: self.scenes.fields[name][f["scene"]] for name in ("vertices", "visible", "kind")}
        arrays = {
            **{name: f[name].astype(np.float32) for name in PoseFeatures._fields},
            **self.scenes.labels(f),
            "keypoints": f.get("keypoints", np.zeros((len(index), len(LIMBS), 3), np.float32)),
        }
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        if self.tokens is not None:
            batch["tokens"] = self.tokens[torch.from_numpy(f["scene"]).long(), torch.from_numpy(f["mirrored"]).long()]
        return batch


def _scenes_of(folder: Path) -> Path:
    """The rendered set that belongs to a folder of features."""
    place = read_text(folder / "scenes.txt")
    beside = folder / place
    return beside if beside.exists() else Path(place)  # older versions wrote the path from where they ran


def _of_scenes(folder: Path) -> dict[str, Path | None]:
    """The file of a rendered set that tells it from others."""
    return {"scenes": folder / "rotation.npy"}


def _must_be_new(folder: Path, maps: np.ndarray) -> None:
    """Raises InputError for the maps [n, C, H, W] of an older version."""
    if maps.shape[2:] != (16, 16):
        raise InputError(
            f"{folder / 'maps.npy'}: an older version's maps, not of 16 x 16 cells; "
            "delete the folder and make the features again with mega features"
        )


def compiled(backbone: BlazePose) -> Callable[[np.ndarray], PoseFeatures]:
    """The backbone as a function of crops uint8 [P, 256, 256, 3]. In onnxruntime it is 4 times as fast on a CPU.

    Also beside a GPU, as there are several processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "backbone.onnx"
        shapes = ({0: torch.export.Dim("P")},)
        images = torch.zeros(2, 3, BlazePose.SIDE, BlazePose.SIDE)
        names = list(PoseFeatures._fields)
        program = torch.onnx.export(
            backbone, (images,), dynamic_shapes=shapes, output_names=names, dynamo=True, verbose=False
        )
        assert program is not None
        program.save(file)
        session = open_graph(file)
    name = session.get_inputs()[0].name

    def run(crops: np.ndarray) -> PoseFeatures:
        images = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32) / 255
        parts = zip(*(session.run(names, {name: image[None]}) for image in images))
        return PoseFeatures(*(torch.from_numpy(np.concatenate(part)) for part in parts))

    return run


def open_graph(file: Path) -> ort.InferenceSession:
    """On one thread: there are several processes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class FeatureExtractor:
    """Crops the people of rendered scenes and runs the backbone on the crops."""

    def __init__(self, config: Extract) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.config = config
        self.scenes = SceneSet(config.scenes)
        backbone = BlazePose(config.width).eval()
        load_weights(backbone, config.backbone)
        self.size = BlazePose.SIDE
        self.backbone = compiled(backbone)
        self.detector = open_graph(config.detector) if config.detector else None

    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        """What `extract` stores of the scenes of a chunk."""
        rng = np.random.default_rng([self.config.seed, chunk])
        index = np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.scenes)))
        f = {name: self.scenes.fields[name][index] for name in ("images", "box", "rotation", "translation", "focal")}
        count, pixels = len(index), f["images"].shape[1]
        flip = np.zeros(count, bool)
        centre, side, roll = box_squares(f["box"], BOX_MARGIN)
        if self.config.train:
            flip = rng.random(count) < 0.5
            side = side * rng.uniform(0.85, 1.2, count)
            centre = centre + side[:, None] * rng.uniform(-0.06, 0.06, (count, 2))
            roll = rng.normal(0, np.radians(6), count)
        if self.config.turned:
            roll = rng.uniform(np.pi / 2, 3 * np.pi / 2, count)
        images, rotation, translation = f["images"], f["rotation"], f["translation"]
        images[flip] = images[flip][:, :, ::-1]
        mirror(flip, rotation, translation)
        centre[flip, 0] = pixels - centre[flip, 0]
        intrinsics = intrinsics_of(f)

        keypoints = self.keypoints(rng, index, flip, images, centre, side, roll, intrinsics)

        def see(people: np.ndarray, cameras: Cameras) -> PoseFeatures:
            return self.backbone(crop_each(images[people], intrinsics[people], cameras, self.size))

        def stored(cameras: Cameras) -> dict[str, np.ndarray]:
            features = see(np.arange(count), cameras)
            crop_intrinsics, crop_from_camera = cameras
            crop_rotation = crop_from_camera.astype(np.float32)
            fields = {
                **{name: part.numpy() for name, part in features._asdict().items()},
                "maps": features.maps.numpy().astype(np.float16),
                "scene": index.astype(np.int32),
                "mirrored": flip,
                "rotation": crop_rotation @ rotation,
                "translation": np.einsum("bij,bj->bi", crop_rotation, translation),
                "focal": (2 / self.size * crop_intrinsics[:, 0, 0]).astype(np.float32),
            }
            if keypoints is not None:
                limbs = in_crops(keypoints[:, -len(LIMBS) :], intrinsics, *cameras)
                fields["keypoints"] = limbs.astype(np.float32)
            return fields

        squares = centre, side, roll
        cameras_of = functools.partial(last_cameras, squares, keypoints, intrinsics, self.size)
        if not self.config.train:
            return stored(cameras_of(PASSES, lambda people, cameras: see(people, cameras).landmarks.numpy()))
        first = stored(square_cameras(*squares, intrinsics, self.size))
        second = stored(cameras_of(2, lambda people, _: first["landmarks"][people]))
        both = {name: np.stack([first[name], second[name]], axis=1) for name in first}
        return {name: array.reshape(2 * count, *array.shape[2:]) for name, array in both.items()}

    def keypoints(
        self,
        rng: np.random.Generator,
        index: np.ndarray,
        flip: np.ndarray,
        images: np.ndarray,
        centre: np.ndarray,
        side: np.ndarray,
        roll: np.ndarray,
        intrinsics: np.ndarray,
    ) -> np.ndarray | None:
        """The detector's keypoints [n, 17, 3] of the people of some scenes, pixels of `images`.

        flip [n]: which images are mirrored, and so their people. The detector sees more of the image than the crop, as
        at run time: up to `WIDEST` times its side.
        """
        if self.detector is None:
            return None
        side = side * rng.uniform(1, WIDEST, len(side))
        centre = centre + side[:, None] * rng.uniform(-0.15, 0.15, (len(side), 2))
        view_intrinsics, view_from_camera = square_cameras(centre, side, roll, intrinsics, VIEW)
        scenes, pixels = self.scenes.fields, images.shape[1]
        points = scenes["vertices"][index] @ scenes["rotation"][index].swapaxes(1, 2)
        points = points + scenes["translation"][index][:, None]
        points[flip, :, 0] *= -1
        at = project(points, intrinsics)
        inside = (at > 0) & (at < pixels)
        in_view = project(points @ view_from_camera.swapaxes(1, 2), view_intrinsics)
        in_view = np.where(inside.all(axis=-1, keepdims=True), in_view, np.nan)
        boxes = np.concatenate([np.nanmin(in_view, axis=1), np.nanmax(in_view, axis=1)], axis=1).clip(0, VIEW)
        keypoints = np.zeros((len(side), len(KEYPOINTS), 3))
        height, width = self.detector.get_inputs()[0].shape[1:3]
        names = [out.name for out in self.detector.get_outputs()]
        for person, image in enumerate(images):
            view = view_intrinsics[[person]], view_from_camera[[person]]
            seen = crop_images(image, intrinsics[person], *view, VIEW)[0]
            boxed, factors = letterbox(seen[..., ::-1], height, width)
            out = dict(zip(names, self.detector.run(names, {"image": boxed})))
            found = detections(out, factors, VIEW, VIEW, THRESHOLD)
            keypoints[person] = keypoints_of(boxes[[person]], found)[0]
        in_scene = in_crops(keypoints, view_intrinsics, intrinsics, view_from_camera.swapaxes(1, 2))
        in_scene[..., :2] = (in_scene[..., :2] + 1) * (pixels / 2)
        return in_scene


def extract(config: Extract) -> None:
    """Compute and store the features; an interrupted run continues."""
    if chunks.begun(config.out):
        _must_be_new(config.out, chunks.mapped(config.out / "maps.npy"))
    else:
        make_folder(config.out)
        # from here, so that both can be moved together
        place = os.path.relpath(config.scenes.resolve(), config.out.resolve())
        (config.out / "scenes.txt").write_text(place)
    crops = 2 if config.train else 1
    count = crops * len(SceneSet(config.scenes))
    begin = functools.partial(FeatureExtractor, config)
    files = {"backbone": config.backbone / "model.safetensors", "detector": config.detector}
    chunks.fill(config.out, config, begin, count, crops * CHUNK, config.workers, _of_scenes(config.scenes) | files)
