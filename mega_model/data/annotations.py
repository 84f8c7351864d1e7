"""Reads the labels of the public data sets in their usual file formats: `read_people("KIND:PATH")`.

No code from a file is run. Faults raise InputError with one line that names the file and the field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from mega_model.body.smpl import gender_of
from mega_model.core.detection import SMALLEST
from mega_model.core.errors import InputError
from mega_model.core.files import files_below, floats, npz_fields, read_npz, rotation_vectors
from mega_model.core.geometry import project
from mega_model.core.regions import BOX_MARGIN
from mega_model.core.topology import SMPL_JOINTS
from mega_model.data.crops import PIXELS_PER_SCALE
from mega_model.data.people import SPIN_JOINTS, LabelledPeople, join
from mega_model.pickles import read_pickle

SPIN_KINDS = ("coco", "mpii", "h36m", "mpi-inf-3dhp")
"""Data sets with labels of SPIN's joints in images; the others have SMPL's joints."""

PEOPLE_KINDS = (*SPIN_KINDS, "3dpw", "3dpw-occ", "emdb")
"""The kinds of `read_people`."""

KINDS = (*PEOPLE_KINDS, "rendered", "features", "shards", "live")
"""The kinds of `images.open_set`."""

OCCLUDED_SCENES = (
    "courtyard_backpack courtyard_basketball courtyard_bodyScannerMotions courtyard_box courtyard_golf "
    "courtyard_jacket courtyard_laceShoe downtown_stairs flat_guitar flat_packBags outdoors_climbing "
    "outdoors_crosscountry outdoors_fencing outdoors_freestyle outdoors_golf outdoors_parcours outdoors_slalom"
).split()
"""3DPW-OCC: the scenes of 3DPW (all splits) in which objects hide people (Zhang et al. 2020)."""

_SPIN_LABELS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 18, 14, 16, 17]
"""Indices of `people.SPIN_JOINTS` among the 24 joints in SPIN's layout."""


def read_people(name: str) -> LabelledPeople:
    """The labels of a data set, "KIND:PATH":

    `coco:FILE.npz`, `mpii:`, `h36m:`, `mpi-inf-3dhp:`  in BEDLAM's or SPIN's layout
    `3dpw:FOLDER`      3DPW's own files: the test split; or one of the folders in sequenceFiles
    `3dpw:FILE.npz`    the common 3dpw_test.npz, or the released code's 3DPW_test.npz
    `3dpw-occ:FOLDER`  3DPW's own files: the scenes of all splits with occlusion by objects; or an .npz file of these
    `emdb:FOLDER`      EMDB's own files: the sequences of EMDB 1; or an .npz file

    Image paths in an .npz file are relative to its folder or a parent of it.
    """
    kind, _, place = name.partition(":")
    path = Path(place)
    if kind not in KINDS or not place:
        raise InputError(f"image set {name!r}: write KIND:PATH, with one of the kinds {', '.join(KINDS)}")
    if kind not in PEOPLE_KINDS:
        raise InputError(f"image set {name!r}: has no labels of SMPL; those of {', '.join(PEOPLE_KINDS)} have")
    people = _read(kind, path)
    _must_fit(path, people)
    return replace(people, compared="smpl24") if kind == "emdb" else people


def _read(kind: str, path: Path) -> LabelledPeople:
    if kind in SPIN_KINDS or path.is_file():
        return read_npz_people(path, len(SPIN_JOINTS if kind in SPIN_KINDS else SMPL_JOINTS))
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    if kind == "emdb":
        return read_emdb(path)
    if kind == "3dpw-occ":
        return read_3dpw(path, OCCLUDED_SCENES)
    split = path / "sequenceFiles" / "test"
    return read_3dpw(split if split.is_dir() else path)


def read_npz_people(path: Path, joints: int) -> LabelledPeople:
    """Fields: imgname, center, scale, pose_cam | pose | root_orient and pose_body, betas | shape; part | j2d, gender;
    has_smpl, which is 0 for people without pose and shape: they are left out, whatever their other fields hold.

    `joints` is 17 for files with SPIN's joints, of which `people.SPIN_JOINTS` are kept, and 24 for SMPL's. Files with
    `root_orient` are those of the released code: they hold 1 / scale, and a joint's depth instead of a confidence (spec
    section 6).
    """
    has = npz_fields(path)

    def one_of(*names: str) -> str:
        return next((name for name in names if name in has), names[0])

    prepared = "root_orient" in has
    pose_names = ["root_orient", "pose_body"] if prepared else [one_of("pose_cam", "pose")]
    betas_name, joints_name = one_of("betas", "shape"), one_of("part", "j2d")
    optional = [name for name in (joints_name, "gender", "has_smpl") if name in has]
    data = read_npz(path, ["imgname", "center", "scale", *pose_names, betas_name, *optional])

    names = data["imgname"].astype(str)
    count = names.size
    if names.ndim != 1 or not count:
        raise InputError(f"{path}: field 'imgname' has the shape {list(names.shape)} in place of [any]")
    labelled = _flags(path, "has_smpl", np.ravel(data.get("has_smpl", np.ones(count))))
    if not labelled.any():
        raise InputError(f"{path}: field 'has_smpl' is 0 for all {count} people, so none has a label")
    if len(labelled) != count:
        raise InputError(f"{path}: field 'has_smpl' is of {len(labelled)} people, but 'imgname' of {count}")

    def rows(name: str, *shape: int | None) -> np.ndarray:
        return _rows(path, name, data[name], labelled, *shape)

    names, scale = names[labelled], rows("scale")
    if (scale <= 0).any():
        raise InputError(f"{path}: field 'scale' holds numbers that are not positive")
    pose = np.concatenate([rows(name, None) for name in pose_names], axis=1)
    points = np.zeros((len(names), joints, 3), np.float32)
    if joints_name in data:
        labels = rows(joints_name, None, 3)
        if labels.shape[1] < 24:
            raise InputError(f"{path}: field '{joints_name}' has {labels.shape[1]} joints in place of 24")
        points = labels[:, _SPIN_LABELS] if joints == len(_SPIN_LABELS) else labels[:, :24]
        points[..., 2] = points[..., 2] > 0 if prepared else points[..., 2].clip(0, 1)
    return LabelledPeople(
        images=_find_images(path, names),
        centre=rows("center", 2),
        side=PIXELS_PER_SCALE * (1 / scale if prepared else scale),
        pose=_poses(path, " + ".join(pose_names), pose),
        betas=_wide(path, betas_name, rows(betas_name, None), 10),
        gender=_genders(path, data["gender"], labelled) if "gender" in data else np.full(len(names), "neutral"),
        joints2d=points,
    )


def read_3dpw(folder: Path, scenes: Sequence[str] = ("",)) -> LabelledPeople:
    """The sequences in or below `folder`, such as a split in 3DPW's `sequenceFiles`, that start with one of `scenes`.

    Only frames with an aligned camera and with detected joints that span 4 pixels. The square is around these joints,
    as in SPIN's 3dpw_test.npz (the released code smooths it over time). joints2d are SMPL's joints, projected from the
    label.
    """
    files = [p for p in _files(folder, "*.pkl") if p.name.startswith(tuple(scenes))]
    above = next((p for p in _above(folder) if (p / "imageFiles").is_dir()), folder)
    parts = [part for path in files for part in _read_3dpw_sequence(path, above / "imageFiles")]
    return _some(parts, f"{folder}: no 3DPW sequence in it has a frame with a valid camera")


def read_emdb(folder: Path) -> LabelledPeople:
    """The good frames of the sequences of EMDB 1, the usual test set, below `folder`; boxes have 4 pixels at least."""
    parts = [part for path in _files(folder, "*_data.pkl") for part in _read_emdb_sequence(path)]
    return _some(parts, f"{folder}: no sequence in it belongs to EMDB 1 and has a good frame")


def _read_3dpw_sequence(path: Path, images: Path) -> list[LabelledPeople]:
    data = read_pickle(path)
    intrinsics = floats(path, "cam_intrinsics", _field(path, data, "cam_intrinsics"), (3, 3))
    folder = images / str(_field(path, data, "sequence"))
    people = range(len(_each(path, data, "poses")))
    return [_read_3dpw_person(path, data, k, folder, intrinsics) for k in people]


def _read_3dpw_person(path: Path, data: Any, k: int, folder: Path, intrinsics: np.ndarray) -> LabelledPeople:
    def own(name: str) -> Any:
        values = _each(path, data, name)
        if len(values) <= k:
            raise InputError(f"{path}: field '{name}' is of {len(values)} people, but 'poses' of more")
        return values[k]

    valid = _flags(path, "campose_valid", own("campose_valid"))
    detected = _rows(path, "poses2d", own("poses2d"), valid, 3, None)
    known = detected[:, 2] > 0
    valid[valid] = known.any(axis=1)
    detected, known = detected[known.any(axis=1)], known[known.any(axis=1), None]
    low = np.where(known, detected[:, :2], np.inf).min(axis=2, initial=np.inf)
    high = np.where(known, detected[:, :2], -np.inf).max(axis=2, initial=-np.inf)
    pose = _poses(path, "poses", _rows(path, "poses", own("poses"), valid, 72))
    cameras = _cameras(path, "cam_poses", _field(path, data, "cam_poses"), valid)
    turn, shift = cameras[:, :3, :3], cameras[:, None, :3, 3]
    joints = _rows(path, "jointPositions", own("jointPositions"), valid, 72).reshape(-1, 24, 3)
    points = project(joints @ turn.transpose(0, 2, 1) + shift, intrinsics)
    names = np.array([str(folder / f"image_{k:05d}.jpg") for k in np.flatnonzero(valid)])
    return _sequence(path, names, low, high, turn, pose, own("betas"), own("genders"), points)


def _read_emdb_sequence(path: Path) -> list[LabelledPeople]:
    data = read_pickle(path)
    if not _field(path, data, "emdb1"):
        return []
    good = _flags(path, "good_frames_mask", _field(path, data, "good_frames_mask"))
    good &= ~np.isin(np.arange(len(good)), _field(path, data, "bboxes", "invalid_idxs"))

    def rows(*names: str, shape: tuple[int, ...]) -> np.ndarray:
        return _rows(path, ".".join(names), _field(path, data, *names), good, *shape)

    pose = np.concatenate([rows("smpl", "poses_root", shape=(3,)), rows("smpl", "poses_body", shape=(69,))], axis=1)
    pose = _poses(path, "smpl.poses_root + smpl.poses_body", pose)
    turn = _cameras(path, "camera.extrinsics", _field(path, data, "camera", "extrinsics"), good)[:, :3, :3]
    boxes = rows("bboxes", "bboxes", shape=(4,))
    points = rows("kp2d", shape=(24, 2))
    names = np.array([str(path.parent / "images" / f"{k:05d}.jpg") for k in np.flatnonzero(good)])
    betas, gender = _field(path, data, "smpl", "betas"), _field(path, data, "gender")
    return [_sequence(path, names, boxes[:, :2], boxes[:, 2:], turn, pose, betas, gender, points)]


def _sequence(
    path: Path,
    names: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    turn: np.ndarray,
    pose: np.ndarray,
    betas: Any,
    gender: Any,
    points: np.ndarray,
) -> LabelledPeople:
    """One person in those of n frames that show something: 4 pixels at least, as at run time.

    low, high [n, 2]: corners of the boxes. turn [n, 3, 3]: rotation from the world of the poses [n, 66] to the camera.
    points [n, 24, 2]: SMPL's joints. betas [10 or more] and gender are the same in all frames.
    """
    count = len(names)
    root = Rotation.from_matrix(turn) * Rotation.from_rotvec(pose[:, :3]) if count else Rotation.identity(0)
    shape = _wide(path, "betas", floats(path, "betas", np.ravel(betas)[None], (1, None)), 10)
    people = LabelledPeople(
        images=names,
        centre=(low + high) / 2,
        side=BOX_MARGIN * (high - low).max(axis=1),
        pose=np.concatenate([root.as_rotvec(), pose[:, 3:]], axis=1).astype(np.float32),
        betas=np.repeat(shape, count, axis=0),
        gender=np.repeat(_genders(path, [gender], np.ones(1, bool)), count),
        joints2d=np.pad(points, ((0, 0), (0, 0), (0, 1)), constant_values=1).astype(np.float32),
    )
    return people[people.side >= BOX_MARGIN * SMALLEST]


def _must_fit(path: Path, people: LabelledPeople) -> None:
    """Raises InputError if the joints of most people do not fit their squares: fields of other units or conventions."""
    known = people.joints2d[..., 2] > 0
    away = np.abs(people.joints2d[..., :2] - people.centre[:, None]).max(axis=2) / (people.side[:, None] / 2)
    away, known = away[known.any(axis=1)], known[known.any(axis=1)]
    if not len(away):
        return
    if not np.median(((away < 1) & known).sum(axis=1) / known.sum(axis=1)) >= 0.5:
        fault = "lie outside of the squares around them"
    elif np.median(np.where(known, away, 0).max(axis=1)) < 0.05:
        fault = "fill less than a twentieth of the squares around them"
    else:
        return
    raise InputError(
        f"{path}: the joints of most people {fault}; are lengths metres, places pixels of the image, and scales units "
        f"of {PIXELS_PER_SCALE} pixels?"
    )


def _above(path: Path) -> list[Path]:
    """The folders above it; if it is a link, then also those above the place that it leads to."""
    return [*Path(os.path.abspath(path)).parents, *path.resolve().parents]


def _find_images(path: Path, names: np.ndarray) -> np.ndarray:
    """Full paths, in the file's folder, or in its first parent that contains the first image."""
    above = _above(path)
    folder = next((p for p in above if (p / names[0]).is_file()), above[0])
    return np.array([str(folder / name) for name in names])


def _genders(path: Path, values: Any, keep: np.ndarray) -> np.ndarray:
    """The rows `keep`, bool [n], of the words of a data set."""
    given = np.asarray(values).astype(str)
    if given.shape != keep.shape:
        raise InputError(f"{path}: field 'gender' has the shape {list(given.shape)} in place of [{len(keep)}]")
    words, place = np.unique(given[keep], return_inverse=True)
    try:
        return np.array([gender_of(word) for word in words])[place]
    except ValueError as error:
        raise InputError(f"{path}: field 'gender': {error}") from error


def _wide(path: Path, field: str, array: np.ndarray, least: int) -> np.ndarray:
    """The first `least` columns of an array [any, n]."""
    if array.shape[1] < least:
        raise InputError(
            f"{path}: field '{field}' has the shape {list(array.shape)}, but its rows need {least} numbers"
        )
    return array[:, :least]


def _poses(path: Path, field: str, array: np.ndarray) -> np.ndarray:
    """`LabelledPeople.pose`, from poses that may have the hands."""
    return rotation_vectors(path, field, _wide(path, field, array, 66), (None, 66))


def _cameras(path: Path, field: str, value: Any, keep: np.ndarray) -> np.ndarray:
    """The frames `keep` of matrices [n, 4, 4], from the world to the camera."""
    matrices = _rows(path, field, value, keep, 4, 4)
    turn = matrices[:, :3, :3]
    if np.abs(turn @ turn.swapaxes(1, 2) - np.eye(3)).max(initial=0) > 0.01 or (np.linalg.det(turn) < 0).any():
        raise InputError(f"{path}: field '{field}' holds something other than rotations and translations")
    return matrices


def _flags(path: Path, field: str, value: Any) -> np.ndarray:
    """bool [n]: which of a sequence's frames, or of a file's people, to use."""
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise InputError(f"{path}: field '{field}' has the shape {list(array.shape)} in place of one number per row")
    return array > 0


def _rows(path: Path, field: str, value: Any, keep: np.ndarray, *shape: int | None) -> np.ndarray:
    """The rows `keep`, bool [n], of a `value` [n, *shape], as float32. Other rows are not checked."""
    array = np.asarray(value)
    if array.shape[:1] != keep.shape:
        raise InputError(f"{path}: field '{field}' has the shape {list(array.shape)}, but there are {len(keep)} rows")
    return floats(path, field, array[keep], (None, *shape))


def _field(path: Path, data: Any, *names: str) -> Any:
    for k, name in enumerate(names):
        if not isinstance(data, Mapping) or name not in data:
            raise InputError(f"{path}: field '{'.'.join(names[: k + 1])}' is missing")
        data = data[name]
    return data


def _each(path: Path, data: Any, name: str) -> Any:
    """A field with one entry per person."""
    values = _field(path, data, name)
    if not isinstance(values, list | tuple) and np.ndim(values) == 0:
        raise InputError(f"{path}: field '{name}' has no entry per person")
    return values


def _files(folder: Path, pattern: str) -> list[Path]:
    files = files_below(folder, pattern)
    if not files:
        raise InputError(f"{folder}: there is no file {pattern} in it")
    return files


def _some(parts: list[LabelledPeople], message: str) -> LabelledPeople:
    if not any(map(len, parts)):
        raise InputError(message)
    return join(parts)
