"""Files in the exact format of SMPL's and SMPL-H's model files, with a made-up body in them. No test of its own.

write_smpl(folder / "SMPL_NEUTRAL.npz")                          # 162 vertices, fast
write_smpl(folder / "neutral" / "model.npz", joints=52)          # SMPL-H, as AMASS uses it
write_smpl(folder / "basicmodel_m_lbs_10_207_0_v1.1.0.pkl", vertices=6890)
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
from scipy.sparse import csc_matrix
from scipy.spatial import ConvexHull

# a person in T-pose, metres: x to the person's left, y up, z forward; the order is SMPL's
_JOINTS = np.array([
    (0, 0, 0), (0.06, -0.09, 0), (-0.06, -0.09, 0), (0, 0.11, 0), (0.1, -0.48, 0), (-0.1, -0.48, 0), (0, 0.25, 0),
    (0.09, -0.88, 0), (-0.09, -0.88, 0), (0, 0.3, 0), (0.12, -0.93, 0.1), (-0.12, -0.93, 0.1), (0, 0.5, 0),
    (0.08, 0.42, 0), (-0.08, 0.42, 0), (0, 0.6, 0), (0.18, 0.45, 0), (-0.18, 0.45, 0), (0.44, 0.45, 0),
    (-0.44, 0.45, 0), (0.7, 0.45, 0), (-0.7, 0.45, 0), (0.78, 0.45, 0), (-0.78, 0.45, 0),
])  # fmt: skip
_PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]


def smpl_arrays(vertices: int = 162, joints: int = 24, seed: int = 0) -> dict[str, Any]:
    """The arrays of a model file: an ellipsoid of `vertices` and SMPL's 24 or SMPL-H's 52 joints, dense, float64."""
    rng = np.random.default_rng(seed)
    template, faces = _ellipsoid(vertices)
    places, parents = _skeleton(joints)
    near = ((template[:, None] - places) ** 2).sum(axis=-1)
    weights = np.exp(-near / (2 * 0.08**2)) + 1e-9
    regressor = np.exp(-near.T / (2 * 0.2**2)) + 1e-9
    shapedirs = rng.normal(0, 0.01, (vertices, 3, 10 if joints == 24 else 16))
    shapedirs[..., 0] = 0.05 * template  # the first one is size
    return {
        "v_template": template,
        "f": faces.astype(np.uint32),
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "kintree_table": np.array([parents, range(joints)]).astype(np.uint32),  # the root's parent: 4294967295
        "shapedirs": shapedirs,
        "posedirs": rng.normal(0, 0.002, (vertices, 3, 9 * (joints - 1))),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "J": places,
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
    }


def write_smpl(path: Path, vertices: int = 162, joints: int = 24, seed: int = 0) -> Path:
    """A model file at `path`, .npz or (as the first releases, written by Python 2 with chumpy arrays) .pkl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = smpl_arrays(vertices, joints, seed)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        chumpy = {name: ModuleType(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering")}
        for name, kind in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select")):
            setattr(chumpy[name], kind, type(kind, (), {"__module__": name}))
        with patch.dict(sys.modules, chumpy):  # where pickle looks for the classes
            path.write_bytes(python2_pickle(_as_released(arrays)))
    return path


def python2_pickle(value: Any) -> bytes:
    """What Python 2's `pickle.dump(value, file, protocol=2)` wrote, with the module names of its time."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    modern = {b"cnumpy._core.": b"cnumpy.core.", b"cscipy.sparse._csc\n": b"cscipy.sparse.csc\n"}
    data = file.getvalue()
    for new, old in modern.items():
        data = data.replace(new, old)
    return data


def _ellipsoid(vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [V, 3] and faces [2 V - 4, 3], counter-clockwise from outside: as many faces per vertex as SMPL has."""
    k = np.arange(vertices)
    y = 1 - (2 * k + 1) / vertices
    angle = np.pi * (3 - np.sqrt(5)) * k
    sphere = np.stack([np.sqrt(1 - y**2) * np.cos(angle), y, np.sqrt(1 - y**2) * np.sin(angle)], axis=1)
    hull = ConvexHull(sphere)
    faces = hull.simplices
    a, b, c = (sphere[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * hull.equations[:, :3]).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return sphere * [0.9, 0.95, 0.15], faces


def _skeleton(joints: int) -> tuple[np.ndarray, list[int]]:
    """Places [joints, 3] and parents: 24 as in SMPL, 52 as in SMPL-H, with five fingers of three joints per hand."""
    if joints == 24:
        return _JOINTS, _PARENTS
    places, parents = list(_JOINTS[:22]), _PARENTS[:22]
    for wrist in (20, 21):
        for finger in range(5):
            for k in range(3):
                parents.append(len(places) - 1 if k else wrist)
                side = np.sign(_JOINTS[wrist, 0])
                places.append(_JOINTS[wrist] + [side * (0.06 + 0.02 * k), 0, 0.02 * (2 - finger)])
    return np.array(places), parents


class _Python2Pickler(pickle._Pickler):
    """Strings of both kinds are byte strings."""

    def _save_string(self, value: str | bytes) -> None:
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)  # type: ignore[attr-defined]  # typeshed knows the C pickler
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: _save_string, bytes: _save_string}  # type: ignore[dict-item]


def _as_released(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The shapes as a selection from a chumpy array with twice as many, the regressor sparse, the rest plain."""
    shapes = arrays["shapedirs"]
    all_shapes = sys.modules["chumpy.ch"].Ch()
    vars(all_shapes).update(x=np.concatenate([shapes, shapes + 1], axis=2), _dirty_vars={"x"}, _itr=None)
    some_shapes = sys.modules["chumpy.reordering"].Select()
    index = np.arange(2 * shapes.size).reshape(len(shapes), 3, -1)[..., : shapes.shape[2]]
    vars(some_shapes).update(a=all_shapes, idxs=index.ravel(), preferred_shape=shapes.shape, _dirty_vars=set())
    words = {name: str(arrays[name]) for name in ("bs_style", "bs_type")}
    return {**arrays, **words, "shapedirs": some_shapes, "J_regressor": csc_matrix(arrays["J_regressor"])}
