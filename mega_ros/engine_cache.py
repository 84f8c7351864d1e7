"""TensorRT engines on disk: built on the machine that runs them, and checked before they are loaded.

An engine is machine code. So its folder must be writable for its owner only, and an engine is loaded only if a stamp
beside it names this bundle, GPU, TensorRT, onnxruntime and precision, and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import read_bytes

from .accelerators import gpu, tensorrt_version
from .bundle import Bundle, GraphName, Tensor

Precision = Literal["fp16", "fp32"]
STAMP = "engine.json"
CHECKED = "checked.json"
"""Beside the graphs' folders, once `mega export trt` found that all engines pass the gates."""
MOST_BYTES = {"stamp": 2**20, "engine": 2**33}


@dataclass(frozen=True)
class Range:
    usual: int
    """The size that kernels are chosen for."""
    most: int

    @classmethod
    def of(cls, sizes: list[int]) -> Range:
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


@dataclass(frozen=True)
class Stamp:
    identity: Identity
    profile: Profile
    files: dict[str, str]
    """SHA-256 of every other file of the folder."""
    seconds: float
    """Of the build."""


class EngineCache:
    """The folder of one graph's engines.

    Raises InputError if it is not safe, or if there is no GPU or no TensorRT.
    """

    def __init__(self, bundle: Bundle, graph: GraphName, precision: Precision, profile: Profile | None = None) -> None:
        """profile: None takes that of the stored engines. If theirs is another, they are built again."""
        self._folder = folder_of(bundle, precision) / graph
        self._inputs = bundle.graphs[graph].inputs
        self._identity = _identity(bundle, graph, of_graph(bundle, graph, precision))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(self._folder)
        stamp = self._valid_stamp()
        self.found = stamp is not None and profile in (None, stamp.profile)
        """Whether there were engines to load."""
        self.profile = profile or (stamp.profile if stamp else Profile())
        self.seconds = stamp.seconds if stamp and self.found else 0.0
        """Of the build."""
        if not self.found:
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
        if not self.found:
            self.seconds = seconds
        stamp = Stamp(self._identity, self.profile, self._hashes(), self.seconds)
        new = self._folder / f"{STAMP}.new"
        new.write_bytes(msgspec.json.format(msgspec.json.encode(stamp)))
        new.replace(self._folder / STAMP)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._folder.iterdir())

    def _valid_stamp(self) -> Stamp | None:
        try:
            stamp = msgspec.json.decode(read_bytes(self._folder / STAMP, MOST_BYTES["stamp"]), type=Stamp)
            valid = stamp.identity == self._identity and bool(stamp.files) and stamp.files == self._hashes()
        except (InputError, msgspec.DecodeError):
            return None
        return stamp if valid else None

    def _hashes(self) -> dict[str, str]:
        files = sorted(file for file in self._folder.iterdir() if not file.name.startswith(STAMP))
        return {f.name: hashlib.sha256(read_bytes(f, MOST_BYTES["engine"])).hexdigest() for f in files}


def root() -> Path:
    """The folder of all engines: `MEGA_ENGINES`, else below the user's cache folder."""
    chosen = os.environ.get("MEGA_ENGINES")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "mega_ros" / "engines"


def folder_of(bundle: Bundle, precision: Precision) -> Path:
    """The folder of a bundle's engines, for this GPU and this TensorRT."""
    card = gpu()
    parts = (bundle.hash[:16], f"{card.name} sm{card.capability}", f"trt{tensorrt_version()}", precision)
    return (root() / "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)).resolve()


def of_graph(bundle: Bundle, graph: GraphName, precision: Precision) -> Precision:
    """What the engine of a graph has among those of `precision`. No gate of fp16 is about the detector, which has fp32."""
    return "fp32" if graph == "detector" or graph in bundle.fp32 else precision


def is_built(bundle: Bundle, precision: Precision) -> bool:
    """Whether a start finds engines for every graph of the bundle."""
    folder = folder_of(bundle, precision)
    return all((folder / graph / STAMP).is_file() for graph in bundle.graphs)


def best_precision(bundle: Bundle) -> Precision:
    """fp16 if `mega export trt` has built its engines here and found them good enough, else fp32."""
    return "fp16" if (folder_of(bundle, "fp16") / CHECKED).is_file() and is_built(bundle, "fp16") else "fp32"


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


def _identity(bundle: Bundle, graph: str, precision: Precision) -> Identity:
    from mega_model.core.onnx_runtime import ort  # slow to load

    card = gpu()
    return Identity(bundle.hash, graph, precision, card.name, card.capability, tensorrt_version(), ort.__version__)
