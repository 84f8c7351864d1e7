"""People with SMPL labels on pictures, from whatever data set: a table of them, and the image set it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mega_model.body.smpl import H36M_14, SmplBody
from mega_model.core.errors import InputError
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.data.crops import Frame, affine_crop, columns, occlude, read, square_crop

SPIN_JOINTS = (
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head pelvis spine jaw"
).split()
"""The 17 joints, of the 24 that SPIN's layout labels on pictures, which Human3.6M's regressor finds on meshes."""

_MOVED = SMPL_JOINTS[:22]  # the joints whose rotations `People.pose` holds

Compared = Literal["h36m14", "smpl24"]
"""The joints that papers compare on a data set: 14 that Human3.6M's regressor finds, or SMPL's own."""

Picture = Callable[[], np.ndarray]
"""Reads a picture: uint8 [H, W, 3] RGB. InputError that names the file."""


@dataclass(frozen=True)
class People:
    """N people with J joints on pictures."""

    images: np.ndarray
    """str [N]: the picture files"""
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
    """float32 [N, J, 3]: pixels of the picture, and a confidence from 0 (unknown) to 1"""
    compared: Compared = "h36m14"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray | slice) -> People:
        return replace(self, **{name: getattr(self, name)[index] for name in COLUMNS})

    @property
    def joints(self) -> int:
        """J"""
        return self.joints2d.shape[1]

    def fetch(self, index: np.ndarray) -> tuple[People, Sequence[Picture]]:
        """The people `index`, and their pictures."""
        people = self[index]
        return people, [partial(read, name) for name in people.images]


COLUMNS = tuple(f.name for f in fields(People) if f.name != "compared")
"""The fields of `People` with a row for each person."""


def join(parts: Sequence[People]) -> People:
    """All the people of parts of one data set."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in COLUMNS}
    return replace(parts[0], **columns)


class Source(Protocol):
    """Where an image set finds its people: in memory with files beside (`People`), or both in shards."""

    @property
    def joints(self) -> int: ...

    @property
    def compared(self) -> Compared: ...

    def __len__(self) -> int: ...

    def fetch(self, index: np.ndarray) -> tuple[People, Sequence[Picture]]: ...


class PeopleSet:
    """An `images.ImageSet`: crops `size` (H, W) of the people of a source, with meshes by the body of their gender."""

    def __init__(
        self, source: Source, bodies: Mapping[str, SmplBody], h36m: np.ndarray | None, size: tuple[int, int]
    ) -> None:
        """`h36m` [17, V] finds Human3.6M's joints on meshes; a source with SPIN's joints needs it."""
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
        """With `rng`, each person is mirrored, turned, scaled and hidden in part as chance has it.

        Colours are as in the picture: training varies them for all image sets alike.
        """
        people, pictures = self.source.fetch(index)
        frames = [Frame(centre, float(side)) for centre, side in zip(people.centre, people.side)]
        seeds = [None] * len(frames)
        if rng:
            frames = [frame.augmented(rng) for frame in frames]
            seeds = list(rng.integers(2**63, size=len(frames)))
        with ThreadPoolExecutor() as pool:  # OpenCV lets others run while it decodes
            crops = list(pool.map(self._cut, pictures, frames, seeds))

        flip = np.array([frame.mirrored for frame in frames])
        across = np.array([-1, 1, 1], np.float32)
        pose = people.pose.reshape(-1, len(_MOVED), 3).copy()
        turn = Rotation.from_rotvec([[0, 0, frame.turn] for frame in frames])
        rotation = (turn * Rotation.from_rotvec(pose[:, 0])).as_matrix().astype(np.float32)
        rotation[flip] *= across * across[:, None]
        pose[flip] = pose[flip][:, mirrored(_MOVED)] * across * -1
        points = np.stack([frame.points(xy) for frame, xy in zip(frames, people.joints2d[..., :2])])
        joints2d = np.concatenate([points, people.joints2d[..., 2:]], axis=2).astype(np.float32)
        joints2d[flip] = joints2d[flip][:, self.swap]
        joints2d[joints2d[..., 2] == 0] = 0

        vertices = self._pose(pose.reshape(len(pose), -1), people.betas, people.gender)
        missing = ((0, 0), (0, len(SMPL_JOINTS) - len(self.regressor)), (0, 0))
        joints2d = np.pad(joints2d, missing)
        batch = {
            "images": np.stack(crops).transpose(0, 3, 1, 2),
            "vertices": vertices,
            "joints": np.pad(self.regressor @ vertices, missing),
            "rotation": rotation,
            "joints2d": joints2d[..., :2],
            "confidence": joints2d[..., 2],
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def _cut(self, picture: Picture, frame: Frame, seed: int | None) -> np.ndarray:
        image = picture()
        height, width = self.size
        if seed is not None:
            crop = affine_crop(image, frame, height)
            occlude(crop, np.random.default_rng(seed))
        elif height == width:
            crop = square_crop(image, frame, height)
        else:
            crop = affine_crop(image, frame, height)
        return columns(crop, width)

    def _pose(self, pose: np.ndarray, betas: np.ndarray, gender: np.ndarray) -> np.ndarray:
        vertices = np.empty((len(pose), *self.topology.template.shape), np.float32)
        for name in np.unique(gender):
            if name not in self.bodies:
                raise InputError(f"the data need a {name} SMPL body, but there are {', '.join(self.bodies)} ones")
            rows = gender == name
            vertices[rows] = self.bodies[name].canonical(pose[rows], betas[rows])
        return vertices


def mirrored(names: Sequence[str]) -> list[int]:
    """For each joint the one on the body's other side."""
    other = {"left": "right", "right": "left"}
    sides = ("_".join(other.get(word, word) for word in name.split("_")) for name in names)
    return [list(names).index(name) for name in sides]
