"""Reads arrays from NumPy files without running code from them.

Faults raise InputError with one line that names the file and the field.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from mega_model.core.errors import InputError


def must_exist(path: Path) -> None:
    """Raises InputError if there is no such file."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")


def npz_fields(path: Path) -> list[str]:
    """The names of the arrays in an .npz file."""
    with _open_npz(path) as archive:
        return archive.files


def read_npz(path: Path, fields: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays `fields` of an .npz file."""
    with _open_npz(path) as archive:
        return {field: _member(path, archive, field) for field in fields}


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file."""
    must_exist(path)
    try:
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error})") from error


def floats(path: Path, field: str, value: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """`value` as float32. Raises InputError unless it holds finite numbers of this shape; None is any length."""
    array = np.asarray(value)
    wanted = ", ".join("any" if n is None else str(n) for n in shape)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        raise InputError(f"{path}: field '{field}' has the shape {list(array.shape)} in place of [{wanted}]")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise InputError(f"{path}: field '{field}' holds something other than finite numbers")
    return array.astype(np.float32)


def _open_npz(path: Path) -> NpzFile:
    must_exist(path)
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file, or cut short")
    return np.load(path, allow_pickle=False)


def _member(path: Path, archive: NpzFile, field: str) -> np.ndarray:
    try:
        return archive[field]
    except KeyError:
        raise InputError(f"{path}: field '{field}' is missing, it has {', '.join(archive.files)}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: field '{field}' cannot be read ({error})") from error
