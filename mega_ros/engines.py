"""Runs the graphs of a bundle in onnxruntime.

Arrays pass through the host between graphs: on an H100, outputs bound to the GPU's memory gained nothing. onnxruntime's
CUDA graphs cannot capture these graphs, as some operators run on the CPU and copies wait (docs/deploy/gpu.md).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mega_model.core.errors import InputError, first_line

from .accelerators import NO_CUDA, NO_PROVIDER, PROVIDERS, free_gpu_memory, has_gpu, prepare
from .bundle import Bundle, BundleError, GraphName, Tensor
from .engine_cache import EngineCache, Precision, Profile, best_precision, is_built, lock
from .parts import free_memory, most_at_once, run_in_parts

Provider = Literal["auto", "tensorrt", "cuda", "cpu"]
NOT_STARTED = (
    "onnxruntime could not start it, libraries of CUDA or cuDNN are missing or do not fit: "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


class Unavailable(InputError):
    """A provider that cannot be used here: one line that says what is missing."""


class OnnxEngine:
    """A graph of a bundle in onnxruntime. Provider "auto" takes the first of PROVIDERS that works here.

    TensorRT's engines come from the cache (`mega_ros.engine_cache`); if it has none, they are built here, in minutes.
    Raises BundleError if the graph does not match the manifest, InputError if the provider is not available.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: GraphName,
        provider: Provider = "auto",
        precision: Precision | None = None,
        profile: Profile | None = None,
    ) -> None:
        """precision, profile: of TensorRT's engines. None takes what the cache has; the other providers have fp32."""
        if provider != "auto" and provider not in PROVIDERS:
            raise InputError(f"provider: {provider!r} is unknown; use auto, tensorrt, cuda or cpu")
        self._path, self._specification = bundle.path(graph), bundle.graphs[graph]
        self._outputs = list(self._specification.outputs)
        self.cache: EngineCache | None = None
        """Of TensorRT's engines."""
        refused: dict[str, list[str]] = {}  # reason -> providers
        for name in PROVIDERS if provider == "auto" else [provider]:
            try:
                if name == "tensorrt":
                    self._session = self._tensorrt(bundle, graph, precision, profile)
                else:
                    self._session = self._start(name, {})
                break
            except Unavailable as error:
                if provider != "auto":
                    raise InputError(f"provider: {name} was asked for, but {error}; or use cpu") from None
                # what to install is of no use without a GPU
                reason = NO_CUDA if str(error) == NO_PROVIDER and not has_gpu() else str(error)
                refused.setdefault(reason, []).append(name)
        self.backend = f"onnxruntime {self._session.get_providers()[0]}"
        """For display."""
        self.seconds = self.cpu_seconds = 0.0
        """What all runs so far took."""
        self._free_memory = free_memory if name == "cpu" else free_gpu_memory
        self.why = "; ".join(f"not {' or '.join(names)}: {reason}" for reason, names in refused.items())
        """Why "auto" did not take the providers before."""
        try:
            _check(f"{self._path}: input", self._session.get_inputs(), self._specification.inputs)
            _check(f"{self._path}: output", self._session.get_outputs(), self._specification.outputs)
        except UnicodeDecodeError:  # onnxruntime decodes names only when they are asked for
            raise BundleError(f"{self._path}: a name in it is not UTF-8; export it again") from None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs and outputs have the names, shapes and dtypes of the bundle's manifest."""
        return run_in_parts(self._specification, self._run, inputs, self._most(inputs))

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        start, cpu = time.perf_counter(), time.process_time()
        outputs = self._session.run(self._outputs, inputs)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu
        return dict(zip(self._outputs, outputs))

    def _most(self, inputs: dict[str, np.ndarray]) -> dict[str, int]:
        """Numbers of people and samples at a time."""
        if self.cache:
            return {"P": self.cache.profile.people.most, "Q": self.cache.profile.samples.most}
        people = len(next(iter(inputs.values())))
        return most_at_once(self._specification, people, self._free_memory)

    def _tensorrt(self, bundle: Bundle, graph: GraphName, precision: Precision | None, profile: Profile | None) -> Any:
        _check_available("tensorrt")
        try:
            best = precision or best_precision(bundle)
            with lock(bundle, best):
                cache = EngineCache(bundle, graph, best, profile)
                if precision or cache.found or best == "fp32":
                    start = time.perf_counter()
                    session = self._start("tensorrt", cache.options())
                    try:  # onnxruntime may build an engine at the first run, so this is one
                        session.run(self._outputs, cache.profile.examples(self._specification.inputs))
                    except Exception as error:
                        raise Unavailable(f"{self._path}: TensorRT cannot run it ({first_line(error)})") from None
                    cache.seal(time.perf_counter() - start)
                    self.cache = cache
                    return session
        except InputError as error:  # the cache cannot be used, either
            raise Unavailable(str(error)) from None
        # the engine of fp16 was stale, and a new one would be unchecked
        return self._tensorrt(bundle, graph, "fp32", profile)

    def _start(self, provider: str, of_tensorrt: dict[str, str]) -> Any:
        try:
            return start_session(self._path, provider, of_tensorrt)
        except Unavailable:
            raise
        except Exception as error:  # onnxruntime's exceptions have no base class of their own
            why = f"{self._path}: onnxruntime cannot load it ({first_line(error)})"
            if provider == "cpu":
                raise BundleError(f"{why}; export it again") from None
            raise Unavailable(why) from None


def start_session(model: Path | bytes, provider: str, of_tensorrt: dict[str, str] | None = None) -> Any:
    """An onnxruntime session in this provider. Raises Unavailable if that does not start, others for the model."""
    from mega_model.core.onnx_runtime import ort  # slow to load

    if provider != "cpu":
        _check_available(provider)
        ort.preload_dlls()  # finds the CUDA libraries that pip installed
    names = list(PROVIDERS)
    # fp32 means fp32: by default, CUDA's matrix products would have the precision of TF32
    options = {"tensorrt": of_tensorrt or {}, "cuda": {"use_tf32": "0"}, "cpu": {}}
    providers = [(PROVIDERS[name], options[name]) for name in names[names.index(provider) :]]
    # without the fallback, a failure is an error; with it, the next provider takes over and says nothing
    session = ort.InferenceSession(model, session_options(), providers=providers, enable_fallback=0)
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise Unavailable(NOT_STARTED)
    return session


def to_build(bundle: Bundle, provider: Provider) -> str:
    """In one line, what a start with this provider builds first; empty if nothing."""
    if provider not in ("auto", "tensorrt") or prepare("tensorrt") or is_built(bundle, best_precision(bundle)):
        return ""
    return (
        f"TensorRT engines of bundle {bundle.name} are being built for this GPU, which takes minutes; "
        "mega export trt builds them ahead of time"
    )


def session_options() -> Any:
    from mega_model.core.onnx_runtime import ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so log nothing else
    options.intra_op_num_threads = min(len(os.sched_getaffinity(0)), 8)
    # several graphs run in turn: spinning threads of one would slow down the next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _check_available(provider: str) -> None:
    """Raises Unavailable if something that the provider needs is missing."""
    if lacks := prepare(provider):
        raise Unavailable(lacks[0])


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
