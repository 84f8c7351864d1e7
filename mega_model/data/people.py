"""People with SMPL labels in images of any data set: a table of them, and an image set on such a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mega_model.body.smpl import H36M_14, SmplBody, of_genders
from mega_model.core.errors import InputError
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.data.crops import ACROSS, Square, affine_crop, columns, occlude, read, square_crop
from mega_model.options import Joints

SPIN_JOINTS = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head pelvis spine jaw"
).split()
"""The 17 of the 24 joints in SPIN's layout that Human3.6M's regressor finds on meshes."""

_MOVED = SMPL_JOINTS[:22]  # the joints whose rotations `LabelledPeople.pose` holds

ImageReader = Callable[[], np.ndarray]
"""Reads an image: uint8 [H, W, 3] RGB. Raises InputError that names the file."""


@dataclass(frozen=True)
class LabelledPeople:
    """N people in images, with J labelled joints."""

    images: np.ndarray
    """str [N]: the image files"""
    centre: np.ndarray
    """float32 [N, 2], pixels: of the square around the person"""
    side: np.ndarray
    """float32 [N], pixels"""
    pose: np.ndarray
    """float32 [N, 66]: rotation vectors (radians) of SMPL's root (canonical to camera) and of 21 joints"""
    betas: np.ndarray
    """float32 [N, 10]"""
    gender: np.ndarray
    """str [N]: "neutral", "male" or "female" """
    joints2d: np.ndarray
    """float32 [N, J, 3]: pixels of the image, and a confidence from 0 (unknown) to 1"""
    compared: Joints = "h36m14"
    """The joints that papers compare on this data set: 14 that Human3.6M's regressor finds, or SMPL's own."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray | slice) -> LabelledPeople:
        return replace(self, **{name: getattr(self, name)[index] for name in COLUMNS})

    @property
    def joints(self) -> int:
        """J"""
        return self.joints2d.shape[1]

    def fetch(self, index: np.ndarray) -> tuple[LabelledPeople, Sequence[ImageReader]]:
        """The people `index`, and readers of their images."""
        people = self[index]
        return people, [partial(read, name) for name in people.images]


COLUMNS = tuple(f.name for f in fields(LabelledPeople) if f.name != "compared")
"""The fields of `LabelledPeople` that have one row per person."""


def join(parts: Sequence[LabelledPeople]) -> LabelledPeople:
    """All the people of parts of one data set."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS}
    return replace(parts[0], **columns)


class PeopleSource(Protocol):
    """The people of an image set: labels in memory and images in files (`LabelledPeople`), or both in shards."""

    @property
    def joints(self) -> int: ...

    @property
    def compared(self) -> Joints: ...

    def __len__(self) -> int: ...

    def fetch(self, index: np.ndarray) -> tuple[LabelledPeople, Sequence[ImageReader]]: ...


class PeopleSet:
    """An `images.ImageSet`: crops of `size` (H, W) of a source's people, with meshes from the body of their gender."""

    def __init__(
        self, source: PeopleSource, bodies: Mapping[str, SmplBody], h36m: np.ndarray | None, size: tuple[int, int]
    ) -> None:
        """`h36m` [17, V]: regressor of Human3.6M's joints. A source with SPIN's joints needs it."""
        self.source, self.bodies, self.size = source, bodies, size
        self.topology: Topology = next(iter(bodies.values())).topology()
        self.evaluation_regressor = h36m[[*H36M_14]] if h36m is not None and source.compared == "h36m14" else None
        if source.joints != len(SPIN_JOINTS):
            self.regressor, self.swap = self.topology.joint_regressor, mirrored(SMPL_JOINTS)
        elif h36m is not None:
            self.regressor, self.swap = h36m[[*H36M_14, 0, 7, 9]], mirrored(SPIN_JOINTS)
        else:
            raise InputError("people with SPIN's joints need Human3.6M's joint regressor")

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """With `rng`, people are randomly mirrored, rotated, scaled and partly occluded.

        Colours are not changed: training augments them for all image sets.
        """
        people, readers = self.source.fetch(index)
        squares = [Square(centre, float(side)) for centre, side in zip(people.centre, people.side)]
        seeds = [None] * len(squares)
        if rng:
            squares = [square.augmented(rng) for square in squares]
            seeds = list(rng.integers(2**63, size=len(squares)))
        with ThreadPoolExecutor() as pool:  # OpenCV releases the GIL while it decodes
            crops = list(pool.map(self._cut, readers, squares, seeds))

        flip = np.array([square.mirrored for square in squares])
        pose = people.pose.reshape(-1, len(_MOVED), 3).copy()
        turn = Rotation.from_rotvec([[0, 0, square.turn] for square in squares])
        rotation = (turn * Rotation.from_rotvec(pose[:, 0])).as_matrix().astype(np.float32)
        rotation[flip] *= ACROSS * ACROSS[:, None]
        pose[flip] = pose[flip][:, mirrored(_MOVED)] * ACROSS * -1
        points = np.stack([square.points(xy) for square, xy in zip(squares, people.joints2d[..., :2])])
        joints2d = np.concatenate([points, people.joints2d[..., 2:]], axis=2).astype(np.float32)
        joints2d[flip] = joints2d[flip][:, self.swap]
        joints2d[joints2d[..., 2] == 0] = 0

        vertices = of_genders(self.bodies, people.gender, SmplBody.canonical, pose.reshape(len(pose), -1), people.betas)
        missing = ((0, 0), (0, len(SMPL_JOINTS) - len(self.regressor)), (0, 0))
        joints2d = np.pad(joints2d, missing)
        batch = {
            "images": columns(np.stack(crops).transpose(0, 3, 1, 2), self.size[1]),
            "vertices": vertices,
            "joints": np.pad(self.regressor @ vertices, missing),
            "rotation": rotation,
            "joints2d": joints2d[..., :2],
            "confidence": joints2d[..., 2],
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def _cut(self, read_image: ImageReader, square: Square, seed: int | None) -> np.ndarray:
        """uint8 [H, H, 3], augmented by a seed."""
        height, width = self.size
        cut = square_crop if seed is None and height == width else affine_crop
        crop = cut(read_image(), square, height)
        if seed is not None:
            occlude(crop, np.random.default_rng(seed))
        return crop


def mirrored(names: Sequence[str]) -> list[int]:
    """For each joint, the index of its mirror joint."""
    other = {"left": "right", "right": "left"}
    sides = ("_".join(other.get(word, word) for word in name.split("_")) for name in names)
    return [list(names).index(name) for name in sides]
