"""`mega render`: scenes on disk, a folder with one memory-mapped .npy per field of `scenes.LabelledCrops`."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mega_model.core.detection import KEYPOINTS
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder
from mega_model.core.geometry import crop_images, project, square_cameras
from mega_model.core.regions import BOX_MARGIN, keypoint_region
from mega_model.core.topology import LIMB_JOINTS, LIMBS, Topology
from mega_model.data import chunks
from mega_model.data.chunks import CHUNK, open_fields
from mega_model.data.crops import ACROSS, columns
from mega_model.data.meshes import BodySampler
from mega_model.data.scenes import LabelledCrops, Renderer, draw_crops
from mega_model.options import Render

PLACED = 0.7
"""Share of training crops that are placed by the person's keypoints, as most are at run time."""
UNSURE = 0.025
"""Standard deviation of these keypoints over the side of a crop around the box."""


class SceneSet:
    """Reads what `render` wrote, an `images.ImageSet`; `fields[name]` is an array over all scenes."""

    evaluation_regressor: np.ndarray | None = None

    def __init__(self, folder: Path, topology: Topology | None = None, size: tuple[int, int] | None = None) -> None:
        """`topology` replaces the folder's topology.npz, which sets of older versions lack.

        `size` (H, W): of the crops in batches, by default 256 x 256. Raises InputError that names the file and the
        fault.
        """
        self.folder = folder
        self.fields = open_fields(folder, "no rendered scenes; make some with mega render")
        if topology and "vertices" in self.fields and self.fields["vertices"].shape[1] != len(topology.template):
            has, wanted = self.fields["vertices"].shape[1], len(topology.template)
            raise InputError(f"{folder}: has meshes of {has} vertices, the model's body has {wanted}")
        self._topology, self.size = topology, size or (256, 256)

    def __len__(self) -> int:
        return len(self.fields["images"])

    @cached_property
    def topology(self) -> Topology:
        return self._topology or Topology.load(self.folder / "topology.npz")

    @cached_property
    def mirror_index(self) -> np.ndarray:
        """int [V]: the mirror vertex of each vertex. InputError if the topology is not symmetric."""
        template = self.topology.template
        distance = np.linalg.norm(template[:, None] * ACROSS - template, axis=-1)
        mirror = distance.argmin(axis=1)
        if distance.min(axis=1).max() > 0.001 or (mirror[mirror] != np.arange(len(mirror))).any():
            raise InputError("the body's left and right do not have the same vertices")
        return mirror

    def batch(self, index: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """See `images.ImageSet`. Crops are around the person's box and come from virtual cameras, as at run time.

        With `rng`, crops are scaled by up to 20 %, shifted by up to 8 % of their side and rolled (15 degrees rms, at
        most 45), and half of them are mirrored. A share of `PLACED` is the region of the person's keypoints instead, in
        which the body is upright, unless a shoulder or hip lies outside the image.

        Further fields: vertices2d [B, V, 2] (-1 to 1 in the crop), visible bool [B, V], part int64 [B] (index into
        `scenes.PARTS`), translation [B, 3] (metres) and focal [B] (half crop sides) of the crop's camera. Raises
        InputError if a field is missing.
        """
        missing = [f.name for f in fields(LabelledCrops) if f.name not in self.fields]
        if missing:
            raise InputError(f"{self.folder}: no rendered crops, it lacks {missing[0]}.npy")
        scenes = LabelledCrops(**{f.name: self.fields[f.name][index] for f in fields(LabelledCrops)})
        count, (height, width) = len(index), self.size
        box, roll = scenes.box, np.zeros(count)
        side = BOX_MARGIN * (box[:, 2:] - box[:, :2]).max(axis=1)
        centre = (box[:, :2] + box[:, 2:]) / 2
        intrinsics = self.intrinsics(index)
        if rng:
            keypoints = self._keypoints(scenes, intrinsics)
            keypoints[..., :2] += rng.normal(0, UNSURE, keypoints[..., :2].shape) * side[:, None, None]
            side = side * rng.uniform(0.8, 1.2, count)
            centre = centre + side[:, None] * rng.uniform(-0.08, 0.08, (count, 2))
            roll = np.radians(rng.normal(0, 15, count).clip(-45, 45))
            *region, found = keypoint_region(keypoints)
            placed = found & (rng.random(count) < PLACED)
            centre[placed], side[placed], roll[placed] = (part[placed] for part in region)
        crop_intrinsics, crop_from_camera = square_cameras(centre, side, roll, intrinsics, height)
        images = np.concatenate([
            crop_images(image, k, crop[None], turn[None], height)
            for image, k, crop, turn in zip(scenes.images, intrinsics, crop_intrinsics, crop_from_camera)
        ])  # fmt: skip
        crop_from_camera = crop_from_camera.astype(np.float32)
        flip = rng.random(count) < 0.5 if rng else np.zeros(count, bool)
        rotation = crop_from_camera @ scenes.rotation
        translation = np.einsum("bij,bj->bi", crop_from_camera, scenes.translation)
        mirror(flip, images, rotation, translation)
        focal = (2 / height * crop_intrinsics[:, 0, 0]).astype(np.float32)
        images = columns(images, width).transpose(0, 3, 1, 2)
        batch = {"images": images, **self.labels(index, flip, rotation, translation, focal)}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def intrinsics(self, index: np.ndarray) -> np.ndarray:
        """[B, 3, 3]: those of the cameras of the scenes `index` int [B], pixels."""
        middle = self.fields["images"].shape[1] / 2
        intrinsics = np.zeros((len(index), 3, 3))
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = self.fields["focal"][index] * middle
        intrinsics[:, :2, 2], intrinsics[:, 2, 2] = middle, 1
        return intrinsics

    def labels(
        self, index: np.ndarray, mirrored: np.ndarray, rotation: np.ndarray, translation: np.ndarray, focal: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The fields of a batch, but for the crops, of the people `index` int [B].

        mirrored bool [B]: whose crops are. rotation [B, 3, 3], translation [B, 3] and focal [B]: as in the batch.
        """
        vertices, visible = self.fields["vertices"][index].astype(np.float32), self.fields["visible"][index]
        if mirrored.any():
            vertices[mirrored] = vertices[mirrored][:, self.mirror_index] * ACROSS
            visible[mirrored] = visible[mirrored][:, self.mirror_index]

        def seen(points: np.ndarray) -> np.ndarray:
            x = points @ rotation.transpose(0, 2, 1) + translation[:, None]
            return focal[:, None, None] * x[..., :2] / x[..., 2:]

        joints, vertices2d = self.topology.joints(vertices), seen(vertices)
        return {
            "vertices": vertices,
            "joints": joints,
            "rotation": rotation,
            "translation": translation,
            "focal": focal,
            "joints2d": seen(joints),
            "confidence": np.ones(joints.shape[:2], np.float32),
            "vertices2d": vertices2d,
            "visible": visible & (np.abs(vertices2d) < 1).all(axis=-1),
            "part": self.fields["kind"][index].astype(np.int64),
        }

    def _keypoints(self, scenes: LabelledCrops, intrinsics: np.ndarray) -> np.ndarray:
        """The joints of arms and legs as a detector's keypoints [B, 17, 3], pixels; score 0 outside the image."""
        joints = self.topology.joints(scenes.vertices.astype(np.float32))[:, LIMB_JOINTS]
        joints = joints @ scenes.rotation.transpose(0, 2, 1) + scenes.translation[:, None]
        at = project(joints, intrinsics)
        inside = ((at > 0) & (at < scenes.images.shape[1])).all(axis=-1)
        keypoints = np.zeros((len(joints), len(KEYPOINTS), 3))
        keypoints[:, -len(LIMBS) :, :2] = at
        keypoints[:, -len(LIMBS) :, 2] = inside & (joints[..., 2] > 0)
        return keypoints


def mirror(flip: np.ndarray, images: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> None:
    """Make those with flip bool [B] mirror images, in place.

    images [B, H, W, 3]. rotation [B, 3, 3] and translation [B, 3]: from the body to the camera.
    """
    images[flip] = images[flip][:, :, ::-1]
    rotation[flip] *= ACROSS * ACROSS[:, None]
    translation[flip] *= ACROSS


def must_be_chunks(option: str, count: int) -> None:
    """Raises InputError unless a number of scenes is a multiple of `CHUNK`."""
    if count % CHUNK:
        raise InputError(f"{option} {count} is not a multiple of {CHUNK}")


def render(config: Render) -> None:
    """Render and store the scenes; an interrupted run continues."""
    must_be_chunks("count", config.count)
    if not sum(config.shares):
        raise InputError("shares: all are 0")
    if not chunks.begun(config.out):
        make_folder(config.out)
        Topology.load(config.topology).save(config.out / "topology.npz")
    chunks.fill(config.out, config, partial(_Worker, config), config.count, CHUNK, config.workers)


class _Worker:
    def __init__(self, config: Render) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.config = config
        self.bodies = BodySampler(config.split)
        self.renderer = Renderer(Topology.load(config.topology), config.size, config.size)

    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        c = self.config
        rng = np.random.default_rng([c.seed, ["train", "calibration", "test"].index(c.split), chunk])
        scenes = draw_crops(rng, self.bodies, self.renderer, CHUNK, c.shares)
        return {f.name: getattr(scenes, f.name) for f in fields(scenes)}
