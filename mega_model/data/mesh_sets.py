"""Meshes for training without images: random Anny bodies, or SMPL bodies from motion files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mega_model.body import anny, smpl
from mega_model.core.errors import InputError
from mega_model.core.files import files_below, floats, read_npz, rotation_vectors
from mega_model.core.topology import Topology
from mega_model.data.meshes import MOTION, BodySampler
from mega_model.options import MeshOptions, Split

_NO_MOTION = ("*shape.npz", "*stagei.npz")  # further files of AMASS: one per person


class MeshSet(Protocol):
    @property
    def made_of(self) -> Mapping[str, Any]:
        """A description for training.json."""
        ...

    @property
    def seeds(self) -> tuple[int, ...]:
        """Vertices at which the topology's hierarchy starts."""
        ...

    def topology(self) -> Topology: ...

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random canonical meshes: float32 [count, V, 3], metres."""
        ...


def open_meshes(options: MeshOptions) -> MeshSet:
    if options.meshes:
        return SmplMeshes(options.meshes, smpl.load_bodies(options.smpl), "train")
    return AnnyMeshes()


class AnnyMeshes:
    """The bodies of the default model."""

    def __init__(self) -> None:
        self.bodies = BodySampler("train")
        self.made_of = {"meshes": "random Anny bodies", "motion": MOTION}
        self.seeds = anny.HIERARCHY_SEEDS

    def topology(self) -> Topology:
        rng = np.random.default_rng(0)
        poses, phenotypes = self.bodies.draw_poses(rng, 400), self.bodies.draw_phenotypes(rng, 400)
        return self.bodies.body.topology(poses, self.bodies.bones, phenotypes)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.bodies.draw(rng, count)[0]


@dataclass(frozen=True)
class CapturedMotion:
    """A motion file: one person, T frames."""

    pose: np.ndarray
    """float32 [T, 63]: rotation vectors (radians) of the 21 joints from hips to wrists"""
    betas: np.ndarray
    """float32 [at least 10]"""
    gender: str
    """ "neutral", "male" or "female" """


def read_motion(file: Path) -> CapturedMotion:
    """An .npz file of AMASS (poses [T, 156] or [T, 165], betas [16]) or BEDLAM (poses [T, 72], betas [10] or [11]).

    The gender is read, too; other fields are not. Betas of SMPL-X are used as SMPL's.
    Raises InputError that names file and field.
    """
    data = read_npz(file, ("poses", "betas"))
    poses = rotation_vectors(file, "poses", data["poses"], (None, None))
    betas = floats(file, "betas", data["betas"], (None,))
    if not len(poses):
        raise InputError(f"{file}: field 'poses' has no frames")
    if len(betas) < 10:
        raise InputError(f"{file}: field 'betas' has {len(betas)} shapes, at least 10 are needed")
    try:
        pose = smpl.body_pose(poses)
    except ValueError as error:
        raise InputError(f"{file}: field 'poses': {error}") from error
    return CapturedMotion(pose, betas, _gender(file))


class SmplMeshes:
    """Random frames of the motion files in a folder; all files have the same probability.

    Splits consist of whole files: one in ten is for calibration, one in ten for tests. The split depends only on the
    file's path within the folder, so it does not change when files are added.
    """

    def __init__(self, folder: Path, bodies: Mapping[str, smpl.SmplBody], split: Split) -> None:
        """`bodies` by gender. Raises InputError that names the folder, or a file and its field."""
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder of motion files")
        found = [f for f in files_below(folder, "*.npz") if not any(f.match(name) for name in _NO_MOTION)]
        self.files = [f for f in found if _split_of(f.relative_to(folder).as_posix()) == split]
        if not self.files:
            raise InputError(f"{folder}: none of its {len(found)} .npz files of motions is in the split '{split}'")
        for file in self.files:
            if _gender(file) not in bodies:
                raise InputError(f"{file}: field 'gender' is '{_gender(file)}', for which there is no SMPL model file")
        self.bodies = bodies
        self._topology = next(bodies[gender] for gender in smpl.GENDERS if gender in bodies).topology()
        vertices = len(self._topology.template)
        self.made_of = {
            "meshes": f"SMPL bodies of {vertices} vertices",
            "motion": f"{folder.name}, {len(self.files)} files",
        }
        self.seeds = smpl.hierarchy_seeds(vertices)
        # files are drawn repeatedly: cache some of them
        self._read = lru_cache(maxsize=1000)(read_motion)

    def topology(self) -> Topology:
        return self._topology

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        motions = [self._read(self.files[k]) for k in rng.integers(len(self.files), size=count)]
        pose = np.stack([motion.pose[rng.integers(len(motion.pose))] for motion in motions])
        betas = np.stack([motion.betas[:10] for motion in motions])
        genders = np.array([motion.gender for motion in motions])
        return smpl.of_genders(self.bodies, genders, smpl.SmplBody.canonical, pose, betas)


def _gender(file: Path) -> str:
    value = read_npz(file, ("gender",))["gender"]
    try:
        return smpl.gender_of(value)
    except ValueError as error:
        raise InputError(f"{file}: field 'gender': {error}") from error


def _split_of(name: str) -> Split:
    tenth = zlib.crc32(name.encode()) % 10
    return "test" if tenth == 0 else "calibration" if tenth == 5 else "train"
