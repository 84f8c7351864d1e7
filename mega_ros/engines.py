"""Runs the graphs of a bundle: one interface, one class per runtime."""

from __future__ import annotations

import os
import time
from typing import Any, Literal, Protocol

import numpy as np

from mega_model.core.errors import InputError

from .bundle import Bundle, BundleError, GraphName, Tensor

Provider = Literal["auto", "cpu", "cuda"]


class Engine(Protocol):
    backend: str
    """Description of the runtime, for display."""
    seconds: float
    """What all runs so far took."""

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs and outputs have the names, shapes and dtypes of the bundle's manifest."""
        ...


class OnnxEngine:
    """A graph of a bundle in onnxruntime. Provider "auto" uses a GPU if there is one.

    Raises BundleError if the graph does not match the manifest, InputError if the provider is not available.
    """

    def __init__(self, bundle: Bundle, graph: GraphName, provider: Provider = "auto") -> None:
        from mega_model.core.onnx_runtime import ort  # slow to load

        providers = _providers(provider)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised, so log nothing else
        options.intra_op_num_threads = min(len(os.sched_getaffinity(0)), 8)
        # several graphs run in turn: spinning threads of one would slow down the next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = bundle.path(graph)
        try:
            self._session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            raise BundleError(f"{path}: onnxruntime cannot load it ({_first_line(error)}); export it again") from None
        actual = self._session.get_providers()[0]
        if provider == "cuda" and actual != "CUDAExecutionProvider":
            raise InputError(
                "provider: cuda was asked for, but onnxruntime could not start it here; check CUDA or use cpu"
            )
        self.backend = f"onnxruntime {actual}"
        self.seconds = self.cpu_seconds = 0.0
        specification = bundle.graphs[graph]
        _check(f"{path}: input", self._session.get_inputs(), specification.inputs)
        _check(f"{path}: output", self._session.get_outputs(), specification.outputs)
        self._outputs = list(specification.outputs)

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        start, cpu = time.perf_counter(), time.process_time()
        outputs = self._session.run(self._outputs, inputs)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu
        return dict(zip(self._outputs, outputs))


def _providers(provider: Provider) -> list[str]:
    if provider not in ("auto", "cpu", "cuda"):
        raise InputError(f"provider: {provider!r} is unknown; use auto, cpu or cuda")
    from mega_model.core.onnx_runtime import ort

    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if provider == "cuda" and not has_cuda:
        raise InputError(
            "provider: cuda was asked for, but this onnxruntime has none; install onnxruntime-gpu or use cpu"
        )
    if provider == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    ort.preload_dlls()  # finds the CUDA libraries that pip installed
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _check(what: str, actual: list[Any], expected: dict[str, Tensor]) -> None:
    names = [value.name for value in actual]
    if sorted(names) != sorted(expected):
        raise BundleError(f"{what}s are {', '.join(names)}, the manifest says {', '.join(expected)}; export it again")
    for value in actual:
        tensor = expected[value.name]
        dtype = {"tensor(float)": "float32"}.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
        fits = len(value.shape) == len(tensor.shape) and all(
            a == e or not (isinstance(a, int) and isinstance(e, int)) for a, e in zip(value.shape, tensor.shape)
        )
        if dtype != tensor.dtype or not fits:
            raise BundleError(
                f"{what} {value.name} is {dtype} {value.shape}, the manifest says {tensor.dtype} {list(tensor.shape)}; "
                "export it again"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
