"""`mega vertices`: parameters of SMPL or Anny to vertices in the camera frame, as ground truth for `mega replay`.

Input: an .npz of N people in F frames. `poses`, `trans` [N, 3] (metres), and

- SMPL, from the model file of `--smpl` or MEGA_SMPL: `poses` [N, 72] (or 66), rotation vectors whose first is the
  body's in the camera frame; `betas` [N, 10] or [10]; `gender`, a text, or one per person. As in smplx, the body turns
  about its pelvis, and `trans` is added.
- Anny: `poses` [N, K, 3] of the K `bones`, the root first, in Anny's axes; `phenotypes` [N, 6]. A body without rotation
  stands upright and faces the camera, with the root bone's head at `trans`.

Everything else (`stamps` or `names` [F], `frame` [N], `ids` [N], `visible` [N, V]) is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from mega_model.core.errors import InputError
from mega_model.core.files import floats, npz_fields, read_npz, rotation_vectors

TO_CAMERA = np.diag([1, -1, -1]).astype(np.float32)
"""From the canonical axes (x left, y up, z forward) to those of a camera that the body faces."""
COPIED = ("stamps", "names", "frame", "ids", "visible")


@dataclass(frozen=True)
class VerticesOptions:
    parameters: Annotated[Path, tyro.conf.Positional]
    """The .npz of parameters."""
    out: Path = Path("vertices.npz")
    """The .npz of vertices, for `mega replay --reference`."""
    smpl: Path | None = None
    """SMPL's model file, or a folder with one per gender; by default MEGA_SMPL."""


def main(args: list[str]) -> None:
    options = tyro.cli(VerticesOptions, args=args, prog="mega vertices", description=__doc__)
    path = options.parameters
    fields = npz_fields(path)
    if "poses" not in fields:
        raise InputError(f"{path}: field 'poses' is missing, it has {', '.join(fields)}")
    arrays = read_npz(path, fields)
    vertices = anny_vertices(path, arrays) if "bones" in fields else smpl_vertices(path, arrays, options.smpl)
    copied: dict[str, Any] = {name: arrays[name] for name in COPIED if name in arrays}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("wb") as file:  # np.savez would add a suffix
        np.savez(file, vertices=vertices, **copied)
    print(options.out)


def smpl_vertices(path: Path, arrays: Mapping[str, np.ndarray], model: Path | None) -> np.ndarray:
    """float32 [N, V, 3], metres. `path` is named in errors."""
    from .smpl import SmplBody, gender_of, load_bodies, of_genders

    poses = rotation_vectors(path, "poses", arrays["poses"], (None, None))
    if poses.shape[1] not in (66, 72):
        raise InputError(f"{path}: field 'poses' has {poses.shape[1]} numbers per person; SMPL has 72 (or 66)")
    count = len(poses)
    betas = _get(path, arrays, "betas")
    betas = floats(path, "betas", np.tile(betas, (count, 1)) if betas.ndim == 1 else betas, (count, 10))
    trans = floats(path, "trans", _get(path, arrays, "trans"), (count, 3))
    words = np.ravel(arrays.get("gender", "neutral")).tolist()
    try:
        genders = [gender_of(word) for word in (words * count if len(words) == 1 else words)]
    except ValueError as error:
        raise InputError(f"{path}: field 'gender': {error}") from None
    if len(genders) != count:
        raise InputError(f"{path}: field 'gender' is of {len(genders)} people, 'poses' of {count}")
    bodies = load_bodies(model)
    try:
        vertices = of_genders(bodies, np.array(genders), SmplBody.posed, poses[:, :66], betas)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return vertices + trans[:, None]


def anny_vertices(path: Path, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [N, V, 3], metres. `path` is named in errors."""
    from .anny import AnnyBody

    bones = [str(bone) for bone in arrays["bones"]]
    poses = rotation_vectors(path, "poses", arrays["poses"], (None, len(bones), 3))
    phenotypes = floats(path, "phenotypes", _get(path, arrays, "phenotypes"), (len(poses), 6))
    trans = floats(path, "trans", _get(path, arrays, "trans"), (len(poses), 3))
    body = AnnyBody()
    unknown = [bone for bone in bones if bone not in body.model.bone_labels]
    if unknown:
        raise InputError(f"{path}: field 'bones' names {', '.join(unknown)}, which Anny lacks")
    vertices, heads, rotation = body.canonical(poses, bones, phenotypes)
    root = heads[:, [body.model.bone_labels.index(bones[0])]]
    turned = np.einsum("nij,nvj->nvi", TO_CAMERA @ rotation, vertices - root)
    return (turned + trans[:, None]).astype(np.float32)


def _get(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"{path}: field '{name}' is missing, it has {', '.join(arrays)}")
    return arrays[name]
