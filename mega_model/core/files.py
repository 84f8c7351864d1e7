"""Reads files without running code from them: NumPy's arrays, JSON and text.

Faults raise InputError with one line that names the file and the field.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from mega_model.core.errors import InputError

MOST_BYTES = 2**34
"""Of one array of a data set."""
MOST_JSON = 2**30
"""Bytes of a text: COCO's largest file of annotations has half of it."""


def must_exist(path: Path) -> None:
    """Raises InputError if there is no such file, or if it is a page about the file: a usual slip of a download."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            start = file.read(200).lstrip().lower()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if start.startswith((b"<!doctype html", b"<html")):
        raise InputError(f"{path}: a web page, saved in place of the file; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a pointer of Git LFS in place of the file; run git lfs pull")


def check_file(path: Path, most: int) -> int:
    """Size in bytes. Raises InputError unless it is a regular file of at most `most` bytes: no pipe, no device."""
    try:
        state = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # the name has a zero byte
        raise InputError(f"{str(path)!r}: not the name of a file") from None
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{path}: not a regular file")
    if state.st_size > most:
        raise InputError(f"{path}: has {state.st_size} bytes; at most {most} are read")
    return state.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """All of a regular file. Raises InputError if it is none, has more than `most` bytes, or cannot be read."""
    check_file(path, most)
    try:
        with path.open("rb") as file:
            return file.read(most)  # it may have grown
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder and in those inside of it whose names fit the pattern, in order of their paths.

    Folders may be links, as where parts of a data set lie on several disks: `Path.rglob` leaves these out.
    """
    found, seen = [], set()
    for place, inside, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above, or a second one to the same folder
            inside.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in fnmatch.filter(names, pattern)]
    return sorted(found)


def make_folder(out: Path) -> None:
    """The folder for results, if it is not there. Raises InputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"{out}: cannot be written")


def sha256(path: Path) -> str:
    """The SHA-256 of a file of any size, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The content of a JSON file."""
    content = read_bytes(path, most)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The content of a text file in UTF-8."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8 ({error.reason} at {error.start})") from None


def npz_fields(path: Path) -> list[str]:
    """The names of the arrays in an .npz file."""
    with _open_npz(path) as archive:
        return archive.files


def read_npz(path: Path, fields: Iterable[str], most: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays `fields` of an .npz file, each of at most `most` bytes when unpacked."""
    with _open_npz(path) as archive:
        return {field: _member(path, archive, field, most) for field in fields}


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file."""
    must_exist(path)
    try:
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from error


def floats(path: Path, field: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """`value` as float32. Raises InputError unless it holds finite numbers of this shape; None is any length."""
    array = _array(path, field, value, shape)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise InputError(f"{path}: field '{field}' holds something other than finite numbers")
    return array.astype(np.float32)


def rotation_vectors(path: Path, field: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """`floats` that are radians. Raises InputError also where most rows have more than two turns: they are degrees."""
    array = floats(path, field, value, shape)
    largest = np.abs(array).reshape(len(array), -1).max(axis=1) if array.size else np.zeros(1)
    if np.median(largest) > 4 * np.pi:
        most = f"{largest.max():.0f} radians"
        raise InputError(f"{path}: field '{field}' holds rotations of up to {most}, so they may be degrees")
    return array


def indices(path: Path, field: str, value: Any, shape: tuple[int | None, ...], count: int) -> np.ndarray:
    """`value` as int32. Raises InputError unless it holds whole numbers from 0 to count - 1, of this shape."""
    array = _array(path, field, value, shape)
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() >= count)):
        raise InputError(f"{path}: field '{field}' holds something other than whole numbers from 0 to {count - 1}")
    return array.astype(np.int32)


def _array(path: Path, field: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """None is any length."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of several lengths
        raise InputError(f"{path}: field '{field}' holds lists of several lengths") from None
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        raise InputError(f"{path}: field '{field}' has the shape {list(array.shape)} in place of [{wanted}]")
    return array


def _open_npz(path: Path) -> NpzFile:
    must_exist(path)
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file, or cut short")
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path}: not a readable .npz file ({error})") from error
    if not isinstance(archive, NpzFile):  # an .npy file with an archive behind it
        raise InputError(f"{path}: not an .npz file")
    return archive


def _member(path: Path, archive: NpzFile, field: str, most: int) -> np.ndarray:
    if field not in archive.files:
        raise InputError(f"{path}: field '{field}' is missing, it has {', '.join(archive.files)}")
    assert archive.zip is not None
    names = [f"{field}.npy", field]  # as numpy writes it, and as others do
    size = next(info.file_size for info in archive.zip.infolist() if info.filename in names)
    if size > most:
        raise InputError(f"{path}: field '{field}' has {size} bytes when unpacked; at most {most} are read")
    try:
        array = archive[field]
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a file that holds no array
            raise ValueError("it is no array")
        return array
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: field '{field}' cannot be read ({error})") from error
