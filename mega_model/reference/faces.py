"""Reads SMPL's faces from a file, and compares them with a folder of connections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mega_model.body.smpl import hierarchy_seeds
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.core.files import npz_fields, read_npy, read_npz, read_text


def read_faces(path: Path) -> np.ndarray:
    """int32 [F, 3] of an .npy, of `f` or `faces` in an .npz (a SMPL model, for one), or of an .obj.

    Raises InputError that names the file.
    """
    if path.suffix == ".npy":
        faces = read_npy(path)
    elif path.suffix == ".npz":
        field = "f" if "f" in npz_fields(path) else "faces"
        faces = read_npz(path, [field])[field]
    elif path.suffix == ".obj":
        corners = [line.split()[1:] for line in read_text(path).splitlines() if line.startswith("f ")]
        try:  # a corner is vertex/texture/normal, counted from one
            faces = np.array([[int(corner.split("/")[0]) - 1 for corner in face] for face in corners])
        except ValueError as error:
            raise InputError(f"{path}: its faces are not all triangles of vertex numbers") from error
    else:
        raise InputError(f"{path}: faces are read from .npy, .npz and .obj files")
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces) or faces.dtype.kind not in "iu":
        raise InputError(f"{path}: its faces are {faces.dtype} {list(faces.shape)}, not whole numbers [F, 3]")
    return faces.astype(np.int32)


def check_faces(path: Path, faces: np.ndarray, levels: Sequence[hierarchy.Level]) -> None:
    """Raises InputError unless the faces [F, 3] of a file give exactly these levels."""
    vertices = len(levels[0].centres)
    if faces.min() < 0 or faces.max() >= vertices:
        raise InputError(f"{path}: faces of vertex {faces.max()}, but the connections are those of {vertices} vertices")
    strides = [1 + i % 2 for i in range(len(levels))]
    for i, (computed, level) in enumerate(
        zip(hierarchy.build(faces, vertices, strides, hierarchy_seeds(vertices)), levels)
    ):
        for kind in ("pool", "unpool"):
            if not np.array_equal(getattr(computed, kind).published(), getattr(level, kind).published()):
                raise InputError(
                    f"{path}: its faces give another table _{kind}{i} than the one in the connections folder"
                )
