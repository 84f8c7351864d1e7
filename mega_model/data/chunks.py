"""Data sets as folders with one memory-mapped .npy file per field, which processes fill chunk by chunk."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist, read_json, sha256
from mega_model.core.workers import watch_parent

CHUNK = 40
"""Scenes per random generator, so that a set does not depend on the number of workers."""


class Maker(Protocol):
    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        """The fields of the rows of a chunk."""
        ...


MADE = "made.json"
"""File with the number of chunks of a set, and with the options that define it. Sets of older versions lack it."""


def open_fields(folder: Path, otherwise: str) -> dict[str, np.ndarray]:
    """The memory-mapped arrays of a folder, by name.

    InputError with the text `otherwise` if there are none, or if some chunks are not stored yet: their rows are zeros.
    """
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise InputError(f"{folder}: {otherwise}")
    if (folder / MADE).exists():
        all_chunks, stored = read_json(folder / MADE)["chunks"], len([*_progress(folder).glob("*")])
        if stored < all_chunks:
            raise InputError(
                f"{folder}: only {stored} of {all_chunks} parts are stored; give the command that began it once more"
            )
    arrays = {file.stem: mapped(file) for file in files}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{folder}: its fields are of different lengths, {lengths}")
    return arrays


def mapped(file: Path) -> np.ndarray:
    """The memory-mapped array of an .npy file. Raises InputError that names it."""
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: not a readable .npy file ({error})") from error


def begun(out: Path) -> bool:
    """Whether `fill` has stored something in this folder."""
    return _progress(out).exists()


def changed(out: Path, options: Mapping[str, str]) -> str:
    """The first of some options with which the set in the folder `out` was not begun: "seed 3, not 5". Empty if none.

    Sets of older versions may lack some.
    """
    there = read_json(out / MADE)["options"] if (out / MADE).exists() else {}
    differ = (name for name in options.keys() & there if there[name] != options[name])
    return next((f"{name} {there[name]}, not {options[name]}" for name in differ), "")


def contents(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Files as options, by what they hold: they may be moved. Raises InputError for one that is not there."""
    given = {name: file for name, file in files.items() if file}
    for file in given.values():
        must_exist(file)
    return {name: f"of SHA-256 {sha256(file)[:16]}" for name, file in given.items()}


def fill(
    out: Path,
    config: Any,
    begin: Callable[[], Maker],
    count: int,
    each: int,
    workers: int,
    files: Mapping[str, Path | None] | None = None,
) -> None:
    """Store `count` rows in the existing folder `out`, chunks of `each` rows; an interrupted run continues.

    config: the options, a dataclass; all but `workers` and paths define the set, and so do the `contents` of `files`.
    Every worker calls `begin` once. Several workers are processes, and `begin` is sent to them: a class or a function
    of a module, or a partial of one. Raises InputError without a worker, or if `out` holds a set of other options.
    """
    if workers < 1:
        raise InputError(f"workers: {workers}, at least one is needed")
    given = {name: value for name, value in vars(config).items() if name != "workers" and not isinstance(value, Path)}
    options = {name: str(value) for name, value in given.items()} | contents(files or {})
    if begun(out) and (out / MADE).exists():
        if other := changed(out, options):
            raise InputError(f"{out}: a set with {other}; give the same, or another folder")
    else:
        unfinished = out / f"{MADE}.new"
        unfinished.write_text(json.dumps({"chunks": -(-count // each), "options": options}, indent=1) + "\n")
        unfinished.replace(out / MADE)
    if not begun(out):
        for name, array in begin().draw(0).items():  # created before the workers write into it
            file, shape = out / f"{name}.npy", (count, *array.shape[1:])
            rows = np.lib.format.open_memmap(file, "w+", array.dtype, shape)
            with file.open("r+b") as whole:  # a disk that is too small says so now, not by a signal hours later
                try:
                    os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(file)) from None
            rows[: len(array)] = array
        _progress(out).mkdir()
        (_progress(out) / "0").touch()
    done = {int(file.name) for file in _progress(out).iterdir()}
    left = [chunk for chunk in range(-(-count // each)) if chunk not in done]
    shares = [left[w::workers] for w in range(min(workers, len(left)))]
    work = functools.partial(_fill_chunks, out, begin, each)
    if len(shares) > 1:
        # forked processes may hang, as torch, OpenCV and onnxruntime have threads here
        with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn"), watch_parent) as pool:
            list(pool.map(work, shares))
    else:
        list(map(work, shares))


def _fill_chunks(out: Path, begin: Callable[[], Maker], each: int, chunks: Sequence[int]) -> None:
    maker = begin()
    fields = {file.stem: np.load(file, mmap_mode="r+") for file in out.glob("*.npy")}
    for chunk in tqdm(chunks, desc=str(out), mininterval=10):
        for name, array in maker.draw(chunk).items():
            fields[name][chunk * each : chunk * each + len(array)] = array
        (_progress(out) / str(chunk)).touch()  # an interrupted run continues from here


def _progress(out: Path) -> Path:
    """A folder with one empty file per stored chunk."""
    return out / "progress"
