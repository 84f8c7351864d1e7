"""TensorRT engines on disk: built on the machine that runs them, and checked before they are loaded.

An engine is machine code. So its folder must be writable for its owner only, and an engine is loaded only if a stamp
beside it names this bundle, GPU, TensorRT, onnxruntime and precision, and the SHA-256 of every file. A lock lets one
process at a time find, build or remove the engines of one bundle and precision.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import check_file, read_bytes, sha256

from .accelerators import TF32, gpu, tensorrt_version
from .bundle import Bundle, GraphName, Tensor

Precision = Literal["fp16", "fp32"]
STAMP = "engine.json"
CHECKED = "checked.json"
"""Beside the graphs' folders, once `mega export trt` found that all engines pass the gates: graph -> SHA-256 of the
stamp of its engine."""
MOST_BYTES = {"stamp": 2**20, "engine": 2**33}


@dataclass(frozen=True)
class Range:
    usual: int
    """The size that kernels are chosen for."""
    most: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Range:
        """The middle one and the largest: onnxruntime gives an engine one profile, which begins at 1."""
        return cls(sorted(sizes)[(len(sizes) - 1) // 2], max(sizes))


@dataclass(frozen=True)
class Profile:
    """Sizes that an engine takes. Larger numbers of people or samples are run in parts."""

    people: Range = Range(2, 8)
    samples: Range = Range(10, 25)

    def options(self, inputs: dict[str, Tensor]) -> dict[str, str]:
        """onnxruntime's options for a graph's inputs; none if their sizes are fixed."""
        dynamic = {name: tensor for name, tensor in inputs.items() if set(tensor.shape) & {"P", "Q"}}
        bounds = {
            "min": (1, 1),
            "opt": (self.people.usual, self.samples.usual),
            "max": (self.people.most, self.samples.most),
        }
        texts = {
            bound: ",".join(f"{name}:{'x'.join(map(str, t.sized(*sizes)))}" for name, t in dynamic.items())
            for bound, sizes in bounds.items()
        }
        return {f"trt_profile_{bound}_shapes": text for bound, text in texts.items() if text}

    def examples(self, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Inputs of the largest sizes, all 0.5 or 0."""
        sizes = self.people.most, self.samples.most
        return {name: np.full(t.sized(*sizes), 0.5).astype(t.dtype) for name, t in inputs.items()}


@dataclass(frozen=True)
class Identity:
    """What an engine was built from and for. If any of it differs, it is built again."""

    bundle: str
    graph: str
    precision: str
    gpu: str
    capability: str
    tensorrt: str
    onnxruntime: str
    tf32: str
    """Of the environment: "0" is without."""


@dataclass(frozen=True)
class Stamp:
    identity: Identity
    profile: Profile
    files: dict[str, str]
    """SHA-256 of every other file of the folder."""
    seconds: float
    """Of the build."""


class EngineCache:
    """The folder of one graph's engines. Take the `lock` before, and hold it until they are sealed.

    Raises InputError if it is not safe, or if there is no GPU or no TensorRT; OSError if it cannot be written.
    """

    def __init__(self, bundle: Bundle, graph: GraphName, precision: Precision, profile: Profile | None = None) -> None:
        """profile: None takes that of the stored engines. If theirs is another, they are built again."""
        self._folder = folder_of(bundle, precision) / graph
        self._inputs = bundle.graphs[graph].inputs
        self._identity = _identity(bundle, graph, precision)
        for folder in (self._folder.parents[1], self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask
        check_owner(self._folder)
        stamp = _intact(bundle, graph, precision)
        self.found = stamp is not None and profile in (None, stamp.profile)
        """Whether there were engines to load."""
        self.profile = profile or (stamp.profile if stamp else Profile())
        self.seconds = stamp.seconds if stamp and self.found else 0.0
        """Of the build."""
        self._sealed = stamp.files if stamp and self.found else {}
        if not self.found:
            (self._folder.parent / CHECKED).unlink(missing_ok=True)
            shutil.rmtree(self._folder)
            self._folder.mkdir(mode=0o700)

    def options(self) -> dict[str, str]:
        """For onnxruntime's TensorRT provider."""
        return {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(self._folder),
            "trt_timing_cache_enable": "True",  # kernels that were timed for one graph are not timed again for the next
            "trt_timing_cache_path": str(self._folder.parent),
            "trt_fp16_enable": str(self._identity.precision == "fp16"),
            # no operator is kept out of the engine: that would cut the graph into parts whose inputs have no profile
            **self.profile.options(self._inputs),
        }

    def seal(self, seconds: float) -> None:
        """Write the stamp, once onnxruntime has written the engines. seconds: that it took to build or load them."""
        files = _hashes(self._folder)
        if files == self._sealed:
            return
        if not self.found:
            self.seconds = seconds
        stamp = Stamp(self._identity, self.profile, files, self.seconds)
        _write(self._folder / STAMP, stamp)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._folder.iterdir())


@contextmanager
def lock(bundle: Bundle, precision: Precision) -> Iterator[None]:
    """For one process at a time. Raises InputError if the cache's folder is not safe, or for any OSError inside."""
    folder = folder_of(bundle, precision)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(folder.parent)
        file = os.open(
            f"{folder}.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644
        )  # a stored one can be read-only
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: {error.strerror}, so TensorRT's engines cannot be kept there; "
            "set MEGA_ENGINES to a folder of your own"
        ) from None


def root() -> Path:
    """The folder of all engines: `MEGA_ENGINES`, else below the user's cache folder. Raises InputError."""
    chosen = os.environ.get("MEGA_ENGINES")
    if chosen:
        return Path(chosen)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise InputError("this user has no home folder; set MEGA_ENGINES to a folder of TensorRT's engines") from None
    return Path(cache) / "mega_ros" / "engines"


def folder_of(bundle: Bundle, precision: Precision) -> Path:
    """The folder of a bundle's engines, for this GPU and this TensorRT."""
    card = gpu()
    parts = (bundle.hash[:16], f"{card.name} sm{card.capability}", f"trt{tensorrt_version()}", precision)
    return (root() / "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)).resolve()


def is_built(bundle: Bundle, precision: Precision) -> bool:
    """Whether a start finds engines for every graph of the bundle."""
    return all(_intact(bundle, graph, precision) for graph in bundle.graphs)  # type: ignore[arg-type]


def vouch(bundle: Bundle, precision: Precision) -> None:
    """Note that the present engines pass the gates."""
    _write(folder_of(bundle, precision) / CHECKED, _stamps(bundle, precision))


def best_precision(bundle: Bundle) -> Precision:
    """fp16 if `mega export trt` has built its engines here and found them good enough, else fp32."""
    try:
        content = read_bytes(folder_of(bundle, "fp16") / CHECKED, MOST_BYTES["stamp"])
        good = msgspec.json.decode(content, type=dict[str, str]) == _stamps(bundle, "fp16")
    except (InputError, msgspec.DecodeError):
        return "fp32"
    return "fp16" if good else "fp32"


def check_owner(folder: Path) -> None:
    """Raises InputError if another user may change files in `folder`, or put others in its place."""
    for path in (folder, *folder.parents):
        state = path.stat()
        ours = path == folder or path.is_relative_to(root().resolve())
        writers = stat.S_IWGRP | stat.S_IWOTH if ours else stat.S_IWOTH
        # in a folder with the sticky bit, such as /tmp, only owners rename and remove
        open_to_others = state.st_mode & writers and not (state.st_mode & stat.S_ISVTX and not ours)
        if state.st_uid not in (0, os.getuid()) or open_to_others:
            raise InputError(
                f"{path}: another user may write here, so engines are not loaded from {folder}; "
                f"chmod go-w {path}, or set MEGA_ENGINES to a folder of your own"
            )


def _identity(bundle: Bundle, graph: GraphName, precision: Precision) -> Identity:
    """precision: of the set of engines. No gate of fp16 is about the detector, so it has fp32, too."""
    from mega_model.core.onnx_runtime import ort  # slow to load

    card, full = gpu(), graph == "detector" or graph in bundle.fp32
    own = "fp32" if full else precision
    versions = tensorrt_version(), ort.__version__, os.environ.get(TF32, "")
    return Identity(bundle.hash, graph, own, card.name, card.capability, *versions)


def _stamp(bundle: Bundle, graph: GraphName, precision: Precision) -> tuple[Stamp, str]:
    """The stamp of a graph's engines, and its SHA-256. Raises InputError if there is none, or if they are stale."""
    path = folder_of(bundle, precision) / graph / STAMP
    content = read_bytes(path, MOST_BYTES["stamp"])
    try:
        stamp = msgspec.json.decode(content, type=Stamp)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None
    if stamp.identity != _identity(bundle, graph, precision):
        raise InputError(f"{path}: of other engines")
    return stamp, hashlib.sha256(content).hexdigest()


def _stamps(bundle: Bundle, precision: Precision) -> dict[str, str]:
    """Graph -> SHA-256 of its stamp. Raises InputError as `_stamp` does."""
    return {graph: _stamp(bundle, graph, precision)[1] for graph in bundle.graphs}  # type: ignore[arg-type]


def _intact(bundle: Bundle, graph: GraphName, precision: Precision) -> Stamp | None:
    """The stamp, if it is that of all files beside it."""
    try:
        stamp, _ = _stamp(bundle, graph, precision)
        same = bool(stamp.files) and stamp.files == _hashes(folder_of(bundle, precision) / graph)
    except (InputError, OSError):
        return None
    return stamp if same else None


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the stamp."""
    files = sorted(file for file in folder.iterdir() if not file.name.startswith(STAMP))
    for file in files:
        check_file(file, MOST_BYTES["engine"])
    return {file.name: sha256(file) for file in files}


def _write(path: Path, content: object) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    new.replace(path)
