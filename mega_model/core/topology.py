"""Topology: the data common to all meshes of a body model. Numpy only; one .npz file on disk."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import floats, indices, read_npz

MOST_BYTES = 2**26
"""Of one of its arrays: room for bodies of 100,000 vertices."""

SMPL_JOINTS = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot "
    "neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_hand right_hand"
).split()
"""SMPL's 24 joints, in its order. Every topology's regressor gives these joints."""
LIMBS = (
    "left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
"""The 12 joints of arms and legs, which have the same names in COCO and SMPL, in COCO's order. SMPL's hips lie a few cm
inside and below COCO's."""
LIMB_JOINTS = [SMPL_JOINTS.index(limb) for limb in LIMBS]
"""Their numbers in SMPL."""


@dataclass(frozen=True)
class Topology:
    """The fixed part of a body model (V vertices, F triangles, J joints)."""

    template: np.ndarray
    """float32 [V, 3], metres: the mean body in its rest pose, canonical frame."""
    faces: np.ndarray
    """int32 [F, 3], counter-clockwise seen from outside."""
    joint_regressor: np.ndarray
    """float32 [J, V]: joints = joint_regressor @ vertices; rows sum to one."""
    parts: np.ndarray
    """int32 [V]: index of the joint whose bone moves the vertex."""
    joint_names: tuple[str, ...] = tuple(SMPL_JOINTS)

    def joints(self, vertices: np.ndarray) -> np.ndarray:
        """[..., V, 3] -> [..., J, 3]."""
        return self.joint_regressor @ vertices

    def save(self, path: Path | str) -> None:
        arrays: dict[str, Any] = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path | str) -> Topology:
        """Raises InputError that names the file and the fault."""
        path = Path(path)
        arrays = read_npz(path, [f.name for f in fields(cls)], MOST_BYTES)
        names = tuple(str(n) for n in np.atleast_1d(arrays["joint_names"]))
        template = floats(path, "template", arrays["template"], (None, 3))
        count = len(template)
        faces = indices(path, "faces", arrays["faces"], (None, 3), count)
        regressor = floats(path, "joint_regressor", arrays["joint_regressor"], (len(names), count))
        parts = indices(path, "parts", arrays["parts"], (count,), max(1, len(names)))
        if names not in ((), tuple(SMPL_JOINTS)):
            raise InputError(f"{path}: field 'joint_names' is neither SMPL's 24 joints nor empty")
        return cls(template, faces, regressor, parts, names)
