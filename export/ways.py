"""The ways to run one model that `mega bench` compares: all take the same crops and noise, and have the same weights.

Each way lives in a process of its own, so that its memory is its own, and one that is killed does not end the others.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from export import gates
from export.gates import Arrays, BundleOutputs
from export.options import Way
from mega_ros.accelerators import prepare
from mega_ros.bundle import Bundle
from mega_ros.engine_cache import Precision
from mega_ros.engines import OnnxEngine, Provider, start_session

OF_TORCH: tuple[Way, ...] = ("plain", "eager", "compiled")
SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices whose product is a device's peak."""


@dataclass(frozen=True)
class ModelPaths:
    bundle: Path
    checkpoint: Path | None
    """What it was exported from; the ways of torch need it."""


@dataclass(frozen=True)
class First:
    """The first call of a size."""

    peak: int
    """Bytes: the largest resident memory of the way's process so far."""
    people: BundleOutputs
    flop: int | None
    """Operations as torch counts them; None where the graphs tell."""


def lacks(way: Way, paths: ModelPaths) -> str:
    """In one line, why a way does not run here; empty if it may."""
    if way in OF_TORCH:
        return "" if paths.checkpoint else "torch's weights are not in the bundle: give --checkpoint or --preset"
    return "" if way == "cpu" else "; ".join(prepare(way.split()[0]))


def device(way: Way) -> str:
    """Whose peak bounds a way: "cpu" or "cuda"."""
    if way in OF_TORCH:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if way == "cpu" else "cuda"


class Runner:
    """One way, ready to run. Made and called inside its process."""

    def __init__(self, way: Way, paths: ModelPaths) -> None:
        self._bundle = Bundle.load(paths.bundle)
        self._counts = way == "plain"
        self._run = _in_torch(way, self._bundle, paths) if way in OF_TORCH else _in_onnxruntime(way, self._bundle)

    @functools.lru_cache(maxsize=1)  # noqa: B019  # the process ends with its runner
    def _given(self, people: int, samples: int) -> Arrays:
        return gates.inputs(self._bundle, gates.photographed_crops(self._bundle.crop.size, people), samples)

    def first(self, people: int, samples: int) -> First:
        given = self._given(people, samples)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from now on
        made, flop = _counted(self._run, given) if self._counts else (self._run(given), None)
        return First(peak_memory(), made, flop)

    def again(self, people: int, samples: int) -> float:
        given, start = self._given(people, samples), time.perf_counter()
        self._run(given)
        return time.perf_counter() - start


class Product:
    """The product of two large matrices in onnxruntime, in fp32. Its inputs stay on the device."""

    def __init__(self, where: str) -> None:
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node
        nodes = [
            node("Mul", ["matrix", "factor"], ["other"]),
            node("MatMul", ["other", "matrix"], ["product"]),
            node("ReduceMax", ["product"], ["largest"], keepdims=0),
        ]
        matrix = np.random.default_rng(0).standard_normal((SIDE[where], SIDE[where]), np.float32)
        one = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("factor", "largest")]
        graph = helper.make_graph(nodes, "product", one[:1], one[1:], [numpy_helper.from_array(matrix, "matrix")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        self._session = start_session(model.SerializeToString(), where)
        self._flop = 2 * SIDE[where] ** 3
        self.speed()

    def speed(self) -> float:
        """FLOP per second."""
        start = time.perf_counter()
        self._session.run(None, {"factor": np.ones((), np.float32)})
        return self._flop / (time.perf_counter() - start)


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _in_onnxruntime(way: Way, bundle: Bundle) -> Callable[[Arrays], BundleOutputs]:
    provider, _, precision = way.partition(" ")
    how = cast(Provider, provider), cast(Precision, precision or "fp32")
    return gates.Chain(bundle, lambda graph: OnnxEngine(bundle, graph, *how))


def _in_torch(way: Way, bundle: Bundle, paths: ModelPaths) -> Callable[[Arrays], BundleOutputs]:
    import torch

    from export import in_torch
    from export.to_onnx import as_stored
    from mega_model import checkpoint

    assert paths.checkpoint is not None
    torch.backends.cudnn.allow_tf32 = False  # as in onnxruntime; of matrix products, it is torch's default
    temperature = bundle.sampling.temperature
    model = checkpoint.load(paths.checkpoint)
    as_stored(model)
    model.to(device(way))
    outputs = torch.compile(in_torch.outputs) if way == "compiled" else in_torch.outputs

    def run(arrays: Arrays) -> BundleOutputs:
        given = in_torch.GraphInputs.of(model, arrays)
        if way == "plain":
            return in_torch.plain_people(model, given, temperature)
        return in_torch.people(outputs(model, given, temperature))

    return run


def _counted(run: Callable[[Arrays], BundleOutputs], given: Arrays) -> tuple[BundleOutputs, int]:
    """What `run` gives, and the operations of torch's matrix products and convolutions in it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch has no formula for it
    with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
        made = run(given)
    return made, counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------- in the process

_here: Any = None


def begin(kind: type, *arguments: Any) -> None:
    """Makes a Runner or a Product in this process."""
    global _here
    _here = kind(*arguments)


def ask(method: str, *arguments: int) -> Any:
    """Calls what `begin` made."""
    return getattr(_here, method)(*arguments)


def versions() -> dict[str, str]:
    """Versions, for the report."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
