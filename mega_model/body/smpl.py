"""SMPL and SMPL-H, the paper's body, posed with smplx, from the user's licensed model file, which is never shipped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mega_model.core.errors import InputError
from mega_model.core.files import files_below, floats, read_npy, read_npz
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.pickles import as_array, read_pickle

VARIABLE = "MEGA_SMPL"
"""Environment variable with the path of the model file, or of a folder with one per gender."""

WHERE = (
    "SMPL may not be passed on, so get it from its authors: register at https://smpl.is.tue.mpg.de and download SMPL "
    "for Python (smpl/models/basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl); or, as the paper did, at "
    "https://mano.is.tue.mpg.de the extended SMPL+H model used in AMASS (smplh/neutral/model.npz). "
    f"Then give its path, or set {VARIABLE} to it"
)

GENDERS = ("neutral", "male", "female")

HIERARCHY_SEEDS = (412, 2000, 3077, 3443, 5459, 6843)
"""Seed vertices of the pooling hierarchy of SMPL's mesh. They give the paper's 54 tokens (spec section 2)."""

H36M_14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
"""Rows of the H36M-17 regressor for the 14 joints of published tables, in LSP's order (spec section 5)."""

TOGETHER = 256
"""So many bodies are posed at once, so that those of a long file fit into memory."""

_FIELDS = ("v_template", "f", "J_regressor", "kintree_table", "shapedirs", "posedirs", "weights")
_BODY = 22  # joints before those of the hands, in SMPL and SMPL-H alike
_SHAPES = 10
_GENDERS = {word: gender for gender in GENDERS for word in (gender[0], gender)}


class SmplBody:
    """SMPL or SMPL-H with flat hands, of the gender of its file."""

    def __init__(self, path: Path | str | None = None) -> None:
        """`path` of an .npz or .pkl file, by default the environment variable MEGA_SMPL.

        Raises InputError with where to get the file, or with its fault.
        """
        file = _find(path)
        data = _read(file)
        template = floats(file, "v_template", data["v_template"], (None, 3))
        count = len(template)
        regressor = floats(file, "J_regressor", data["J_regressor"], (None, count))
        joints = len(regressor)
        if joints not in (24, 52):
            raise InputError(f"{file}: it has {joints} joints, but SMPL has 24 and SMPL-H has 52")
        weights = floats(file, "weights", data["weights"], (count, joints))
        posedirs = floats(file, "posedirs", data["posedirs"], (count, 3, 9 * (joints - 1)))
        shapedirs = floats(file, "shapedirs", data["shapedirs"], (count, 3, None))
        if shapedirs.shape[2] < _SHAPES:
            raise InputError(
                f"{file}: field 'shapedirs' has {shapedirs.shape[2]} shapes, at least {_SHAPES} are needed"
            )
        faces = floats(file, "f", data["f"], (None, 3)).astype(np.int32)
        if (faces < 0).any() or (faces >= count).any():
            raise InputError(f"{file}: field 'f' names vertices that the {count} of 'v_template' lack")
        tree = floats(file, "kintree_table", data["kintree_table"], (2, joints))
        parents = [int(parent) for parent in tree[0, 1:]]
        if any(not 0 <= parent <= k for k, parent in enumerate(parents)):
            raise InputError(f"{file}: field 'kintree_table' should name the parent of a joint among those before it")

        # flat hands: all joints of a hand move with the wrist
        moved_by = list(range(_BODY))
        for parent in parents[_BODY - 1 :]:
            moved_by.append(moved_by[parent])
        bones = weights @ np.eye(_BODY, dtype=np.float32)[moved_by]
        parts = [j if j < _BODY else moved_by[j] + 2 for j in range(joints)]  # SMPL's hands come two after its wrists
        hands = [22, 23] if joints == 24 else [25, 40]  # SMPL-H: the middle fingers' first joints
        self._topology = Topology(
            template - template.mean(axis=0),
            faces,
            regressor[[*range(_BODY), *hands]],
            (weights @ np.eye(len(SMPL_JOINTS), dtype=np.float32)[parts]).argmax(axis=1).astype(np.int32),
        )
        self._skinning = {
            "v_template": torch.from_numpy(template),
            "shapedirs": torch.from_numpy(shapedirs[..., :_SHAPES].copy()),
            "posedirs": torch.from_numpy(posedirs[..., : 9 * (_BODY - 1)].reshape(3 * count, -1).T.copy()),
            "J_regressor": torch.from_numpy(regressor[:_BODY].copy()),
            "parents": torch.tensor([-1, *parents[: _BODY - 1]]),
            "lbs_weights": torch.from_numpy(bones),
        }

    def topology(self) -> Topology:
        """The file's mean body, and SMPL's 24 joints (for SMPL-H, a hand's joint is its middle knuckle)."""
        return self._topology

    def canonical(self, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """Bodies without global rotation, their vertex mean at the origin (spec section 7): float32 [B, V, 3], metres.

        pose [B, 63]: rotation vectors (radians) of the 21 joints from hips to wrists, or an input of `body_pose`.
        betas [B, 10] or more; the first 10 are used. Raises ValueError for other shapes.
        """
        vertices = self.posed(np.pad(body_pose(pose), ((0, 0), (3, 0))), betas)
        return vertices - vertices.mean(axis=1, keepdims=True)

    def posed(self, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
        """Bodies as smplx gives them, turned about the pelvis: float32 [B, V, 3], metres.

        pose [B, 66]: rotation vectors (radians) of the pelvis and of the 21 joints from hips to wrists. betas and
        errors as in `canonical`.
        """
        from smplx.lbs import lbs  # a separate extra, because of its licence

        if betas.ndim != 2 or len(betas) != len(pose) or betas.shape[1] < _SHAPES:
            raise ValueError(f"betas of the shape {list(betas.shape)} do not fit {len(pose)} poses: [B, {_SHAPES}]")
        with torch.no_grad():
            vertices, _ = lbs(
                torch.from_numpy(betas[:, :_SHAPES].astype(np.float32)),
                torch.from_numpy(pose.astype(np.float32)),
                **self._skinning,
            )
        return vertices.numpy()


def hierarchy_seeds(vertices: int) -> tuple[int, ...]:
    """Of a mesh with so many vertices: those of another mesh than SMPL's are not known."""
    return HIERARCHY_SEEDS if vertices == 6890 else ()


def body_pose(pose: np.ndarray) -> np.ndarray:
    """The paper's 21 joints [B, 63] of a pose that may also have the root and hands.

    Takes [B, 63], SMPL's [B, 66] and [B, 72], SMPL-H's [B, 156] and SMPL-X's [B, 165], else raises ValueError.
    """
    if pose.ndim != 2 or pose.shape[1] not in (63, 66, 72, 156, 165):
        raise ValueError(f"poses of the shape {list(pose.shape)} are not SMPL's: [B, 63], 66, 72, 156 or 165")
    return pose if pose.shape[1] == 63 else pose[:, 3:66]


def load_bodies(path: Path | str | None = None) -> dict[str, SmplBody]:
    """The bodies by gender ("neutral", "male", "female").

    A single file is used for all three. A folder has one file per gender, recognised by name (SMPL_MALE.pkl,
    basicmodel_m_..., or male/model.npz); some may be missing. By default the environment variable MEGA_SMPL is used.
    """
    path = _find(path)
    if path.is_file():
        return dict.fromkeys(GENDERS, SmplBody(path))
    files: dict[str, Path] = {}
    for file in (p for p in files_below(path, "*") if p.suffix in (".npz", ".pkl")):
        words = re.split("[^a-z]+", str(file.relative_to(path)).lower())
        for gender in {_GENDERS[word] for word in words if word in _GENDERS}:
            if gender in files:
                raise InputError(f"{path}: two {gender} bodies in it, {files[gender].name} and {file.name}")
            files[gender] = file
    if not files:
        raise InputError(f"{path}: no .npz or .pkl file in it whose name tells a gender. {WHERE}")
    return {gender: SmplBody(file) for gender, file in files.items()}


def of_genders(
    bodies: Mapping[str, SmplBody],
    genders: np.ndarray,
    how: Callable[[SmplBody, np.ndarray, np.ndarray], np.ndarray],
    pose: np.ndarray,
    betas: np.ndarray,
) -> np.ndarray:
    """Every row by the body of its gender: float32 [B, V, 3], metres. InputError for a gender without a body.

    genders str [B]. how: `SmplBody.canonical` or `SmplBody.posed`, whose input pose and betas are.
    """
    missing = sorted({*genders.tolist()} - {*bodies})
    if missing:
        raise InputError(f"the data need a {missing[0]} SMPL body, but there are {', '.join(bodies)} ones")
    vertices = np.empty((len(pose), *next(iter(bodies.values())).topology().template.shape), np.float32)
    for gender in np.unique(genders):
        of = np.flatnonzero(genders == gender)
        for rows in np.array_split(of, -(-len(of) // TOGETHER)):
            vertices[rows] = how(bodies[gender], pose[rows], betas[rows])
    return vertices


def gender_of(value: Any) -> str:
    """The gender "neutral", "male" or "female" from a data set's word, such as "m", b"female", or an array of one."""
    words = np.asarray(value).ravel().tolist()
    word = words[0].decode() if words and isinstance(words[0], bytes) else str(*words[:1])
    if word.lower() not in _GENDERS:
        raise ValueError(f"'{word}' is none of the genders {', '.join(_GENDERS)}")
    return _GENDERS[word.lower()]


def load_regressor(path: Path | str, vertices: int) -> np.ndarray:
    """A joint regressor float32 [J, vertices] from the user's .npy file, such as J_regressor_h36m.npy (J = 17)."""
    file = Path(path)
    regressor = floats(file, "regressor", read_npy(file), (None, vertices))
    if abs(regressor.sum(axis=1) - 1).max(initial=0) > 0.1:
        raise InputError(f"{file}: not a joint regressor, the weights of a joint should sum to one")
    return regressor


def _find(path: Path | str | None) -> Path:
    chosen = path or os.environ.get(VARIABLE)
    if not chosen:
        raise InputError(f"no SMPL model file was given. {WHERE}")
    if not Path(chosen).exists():
        raise InputError(f"{chosen}: there is no such SMPL model file. {WHERE}")
    return Path(chosen)


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an untrusted model file."""
    if file.suffix == ".npz":
        return read_npz(file, _FIELDS)
    values = read_pickle(file)
    missing = [field for field in _FIELDS if not isinstance(values, Mapping) or field not in values]
    if missing:
        raise InputError(f"{file}: not an SMPL model file, it lacks {', '.join(missing)}")
    try:
        return {field: as_array(values[field]) for field in _FIELDS}
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{file}: an array in it cannot be read ({error})") from error
