"""`mega render`: scenes on disk, a folder with one memory-mapped .npy per field of `scenes.LabelledCrops`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from mega_model.core.detection import KEYPOINTS
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder
from mega_model.core.geometry import box_squares, crop_images, project, square_cameras
from mega_model.core.regions import BOX_MARGIN, Cameras, keypoint_region
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


class CroppedScenes(ABC):
    """Crops of rendered scenes, an `images.ImageSet`. A subclass keeps the scenes."""

    evaluation_regressor: np.ndarray | None = None

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        """`size` (H, W): of the crops in batches, by default 256 x 256."""
        self.size = size or (256, 256)

    @property
    @abstractmethod
    def topology(self) -> Topology: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, index: np.ndarray) -> dict[str, Any]:
        """The fields of `scenes.LabelledCrops` of the scenes `index` int [B]. Raises InputError if one is missing."""

    @abstractmethod
    def cameras(self, rng: np.random.Generator, rows: Mapping[str, Any], intrinsics: np.ndarray) -> Cameras:
        """Where the training crops of scenes are. intrinsics [B, 3, 3]: of the scenes."""

    @abstractmethod
    def crops(self, images: Any, intrinsics: np.ndarray, cameras: Cameras, flip: np.ndarray) -> Tensor:
        """uint8 [B, 3, H, H]: a crop of each image [B, S, S, 3]; a mirrored one for those with flip bool [B]."""

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

        With `rng`, they are where `cameras` says, and half of them are mirrored. Further fields: those of `labels`.
        Raises InputError if a field is missing.
        """
        rows = self.rows(index)
        rows["vertices"] = rows["vertices"].astype(np.float32)
        count, (height, width) = len(index), self.size
        intrinsics = intrinsics_of(rows)
        if rng:
            cameras = self.cameras(rng, rows, intrinsics)
        else:
            cameras = square_cameras(*box_squares(rows["box"], BOX_MARGIN), intrinsics, height)
        flip = rng.random(count) < 0.5 if rng else np.zeros(count, bool)
        images = columns(self.crops(rows["images"], intrinsics, cameras, flip), width).contiguous()
        crop_intrinsics, crop_from_camera = cameras[0], cameras[1].astype(np.float32)
        rotation = crop_from_camera @ rows["rotation"]
        translation = np.einsum("bij,bj->bi", crop_from_camera, rows["translation"])
        mirror(flip, rotation, translation)
        focal = (2 / height * crop_intrinsics[:, 0, 0]).astype(np.float32)
        rows |= {"mirrored": flip, "rotation": rotation, "translation": translation, "focal": focal}
        return {"images": images, **{name: torch.from_numpy(array) for name, array in self.labels(rows).items()}}

    def guesses(
        self, rng: np.random.Generator, rows: Mapping[str, Any], intrinsics: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """Where a program takes people to be: squares (centre, side, roll) around boxes, and keypoints [B, 17, 3].

        Squares are scaled by up to 20 %, shifted by up to 8 % of their side and rolled (15 degrees rms, at most 45).
        Keypoints are noisy joints of arms and legs, pixels, with score 0 outside the image.
        """
        centre, side, roll = box_squares(rows["box"], BOX_MARGIN)
        joints = self.topology.joint_regressor[LIMB_JOINTS] @ rows["vertices"]
        joints = joints @ rows["rotation"].transpose(0, 2, 1) + rows["translation"][:, None]
        at = project(joints, intrinsics)
        inside = ((at > 0) & (at < rows["images"].shape[1])).all(axis=-1)
        keypoints = np.zeros((len(joints), len(KEYPOINTS), 3))
        keypoints[:, -len(LIMBS) :, :2] = at
        keypoints[:, -len(LIMBS) :, 2] = inside & (joints[..., 2] > 0)
        keypoints[..., :2] += rng.normal(0, UNSURE, keypoints[..., :2].shape) * side[:, None, None]
        side = side * rng.uniform(0.8, 1.2, len(side))
        centre = centre + side[:, None] * rng.uniform(-0.08, 0.08, centre.shape)
        roll = np.radians(rng.normal(0, 15, len(side)).clip(-45, 45))
        return (centre, side, roll), keypoints

    def labels(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The fields of a batch, but for the images.

        Beside those of `images.ImageSet`: part int64 [B] (index into `scenes.PARTS`), translation [B, 3] (metres) and
        focal [B] (half crop sides) of the crop's camera. rows, of B crops: vertices and kind of their scenes; mirrored
        bool [B]; rotation, translation and focal as in the batch.
        """
        vertices, mirrored = rows["vertices"].astype(np.float32), rows["mirrored"]
        if mirrored.any():
            vertices[mirrored] = vertices[mirrored].take(self.mirror_index, axis=1) * ACROSS
        joints = self.topology.joints(vertices)
        return {
            "vertices": vertices,
            "joints": joints,
            **{name: rows[name] for name in ("rotation", "translation", "focal")},
            "joints2d": _in_crop(joints, rows),
            "confidence": np.ones(joints.shape[:2], np.float32),
            "part": rows["kind"].astype(np.int64),
        }


class SceneSet(CroppedScenes):
    """Reads what `render` wrote; `fields[name]` is an array over all scenes."""

    def __init__(self, folder: Path, topology: Topology | None = None, size: tuple[int, int] | None = None) -> None:
        """`topology` replaces the folder's topology.npz, which sets of older versions lack.

        Raises InputError that names the file and the fault.
        """
        super().__init__(size)
        self.folder = folder
        self.fields = open_fields(folder, "no rendered scenes; make some with mega render")
        if topology and "vertices" in self.fields and self.fields["vertices"].shape[1] != len(topology.template):
            has, wanted = self.fields["vertices"].shape[1], len(topology.template)
            raise InputError(f"{folder}: has meshes of {has} vertices, the model's body has {wanted}")
        self._topology = topology

    def __len__(self) -> int:
        return len(self.fields["images"])

    @cached_property
    def topology(self) -> Topology:
        return self._topology or Topology.load(self.folder / "topology.npz")

    def rows(self, index: np.ndarray) -> dict[str, Any]:
        names = [f.name for f in fields(LabelledCrops)]
        missing = [name for name in names if name not in self.fields]
        if missing:
            raise InputError(f"{self.folder}: no rendered crops, it lacks {missing[0]}.npy")
        return {name: self.fields[name][index] for name in names}

    def cameras(self, rng: np.random.Generator, rows: Mapping[str, Any], intrinsics: np.ndarray) -> Cameras:
        """The noisy squares of `guesses`. A share of `PLACED` is the region of the person's keypoints instead, in
        which the body is upright, unless a shoulder or hip lies outside the image.
        """
        (centre, side, roll), keypoints = self.guesses(rng, rows, intrinsics)
        *region, found = keypoint_region(keypoints)
        placed = found & (rng.random(len(found)) < PLACED)
        centre[placed], side[placed], roll[placed] = (part[placed] for part in region)
        return square_cameras(centre, side, roll, intrinsics, self.size[0])

    def crops(self, images: Any, intrinsics: np.ndarray, cameras: Cameras, flip: np.ndarray) -> Tensor:
        crops = crop_each(images, intrinsics, cameras, self.size[0])
        crops[flip] = crops[flip][:, :, ::-1]
        return torch.from_numpy(crops).permute(0, 3, 1, 2)

    def labels(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Also vertices2d [B, V, 2] (-1 to 1 in the crop) and visible bool [B, V], from rows with visible."""
        labels, mirrored = super().labels(rows), rows["mirrored"]
        vertices2d, visible = _in_crop(labels["vertices"], rows), rows["visible"].copy()
        if mirrored.any():
            visible[mirrored] = visible[mirrored][:, self.mirror_index]
        visible &= (np.abs(vertices2d) < 1).all(axis=-1)
        return {**labels, "vertices2d": vertices2d, "visible": visible}


def intrinsics_of(rows: Mapping[str, Any]) -> np.ndarray:
    """[B, 3, 3]: those of the cameras of scenes, pixels. rows: their images and focal."""
    middle = rows["images"].shape[1] / 2
    intrinsics = np.zeros((len(rows["focal"]), 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = rows["focal"] * middle
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = middle, 1
    return intrinsics


def crop_each(
    images: Iterable[np.ndarray], intrinsics: Iterable[np.ndarray], cameras: Cameras, size: int
) -> np.ndarray:
    """`geometry.crop_images` with one crop of each image: uint8 [B, size, size, 3]."""
    each = zip(images, intrinsics, *cameras)
    return np.concatenate([crop_images(image, k, crop[None], turn[None], size) for image, k, crop, turn in each])


def _in_crop(points: np.ndarray, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Canonical points [B, N, 3] in crops [B, N, 2], -1 to 1. rows: see `CroppedScenes.labels`."""
    x = points @ rows["rotation"].transpose(0, 2, 1) + rows["translation"][:, None]
    return rows["focal"][:, None, None] * x[..., :2] / x[..., 2:]


def mirror(flip: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> None:
    """Make those with flip bool [B] mirror images, in place: rotation [B, 3, 3] and translation [B, 3] of the body."""
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
    files = {"topology": config.topology}
    chunks.fill(config.out, config, partial(_Worker, config), config.count, CHUNK, config.workers, files)


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
        return vars(draw_crops(rng, self.bodies, self.renderer, CHUNK, c.shares))
