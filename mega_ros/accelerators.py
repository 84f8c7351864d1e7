"""The GPU and the libraries that onnxruntime's GPU providers need: what is here, and what is missing.

They are queried with ctypes, because a robot (Jetson) has neither nvidia-smi nor PyTorch.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mega_model.core.errors import InputError

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""onnxruntime's names, in the order in which "auto" tries them. Each leaves single operators to those behind it."""
NO_CUDA = "onnxruntime has no CUDA"
NO_PROVIDER = f"{NO_CUDA}: pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
NO_DRIVER = "no NVIDIA driver (libcuda.so.1): sudo ubuntu-drivers install; in a container, docker run --gpus all"
NO_GPU = "no NVIDIA GPU that the driver can use: see nvidia-smi; in a container, docker run --gpus all"
NO_TENSORRT = "TensorRT's {} is not installed: pip install 'tensorrt=={}.*'"
TF32 = "NVIDIA_TF32_OVERRIDE"
"""Environment variable that CUDA's libraries and TensorRT read: "0" is fp32 as it is written. Without it, TensorRT
computes fp32 engines in TF32 (10 bits of mantissa), and onnxruntime's provider has no option for that."""
NAME, MAJOR, MINOR = 100, 75, 76
"""Length of a name; CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: str
    """Compute capability: "9.0"."""


def gpu() -> Gpu:
    """The first NVIDIA GPU. Raises InputError."""
    cuda, device = _first()
    name, major, minor = ctypes.create_string_buffer(NAME), ctypes.c_int(), ctypes.c_int()
    _must_succeed(
        lambda: cuda.cuDeviceGetName(name, NAME, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device),
    )
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")


def free_gpu_memory() -> int:
    """Bytes of its memory that no program has taken. Raises InputError.

    It is asked in the primary context of the GPU, which CUDA's libraries share, and which stays if one has made it.
    """
    cuda, device = _first()
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    _must_succeed(
        lambda: cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        lambda: cuda.cuCtxPushCurrent_v2(context),
        lambda: cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        lambda: cuda.cuCtxPopCurrent_v2(ctypes.byref(context)),
        lambda: cuda.cuDevicePrimaryCtxRelease_v2(device),
    )
    return free.value


def _first() -> tuple[ctypes.CDLL, ctypes.c_int]:
    """CUDA's driver and its first device."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise InputError(NO_DRIVER) from None
    device = ctypes.c_int()
    _must_succeed(lambda: cuda.cuInit(0), lambda: cuda.cuDeviceGet(ctypes.byref(device), 0))
    return cuda, device


def _must_succeed(*calls: Callable[[], int]) -> None:
    if any(call() for call in calls):  # 0 is success
        raise InputError(NO_GPU)


def has_gpu() -> bool:
    try:
        gpu()
    except InputError:
        return False
    return True


def tensorrt_version() -> str:
    """The version of TensorRT's library that onnxruntime is built for, which this loads. Raises InputError.

    It is that of the PyPI package `tensorrt`, whose import loads it, or else the system's.
    """
    library = _library_of_provider()
    with suppress(Exception):  # a package that cannot be imported is as good as none
        import_module("tensorrt")
    try:
        number = int(ctypes.CDLL(library).getInferLibVersion())
    except OSError:
        raise InputError(NO_TENSORRT.format(library, library.rsplit(".")[-1])) from None
    base = 10000 if number >= 100000 else 1000  # NvInferVersion.h: the major number has a factor of 10000 from 10 on
    return f"{number // base}.{number % base // 100}.{number % 100}"


def prepare(provider: str) -> list[str]:
    """Load what onnxruntime's provider "tensorrt" or "cuda" needs; where TensorRT may run, TF32 is turned off before.

    Returns what is missing here: one line each, with the command that installs it.
    """
    from mega_model.core.onnx_runtime import ort  # slow to load

    lacks = [] if PROVIDERS[provider] in ort.get_available_providers() else [NO_PROVIDER]
    if provider == "tensorrt" and not lacks:
        os.environ.setdefault(TF32, "0")
    for needed in (gpu, *([tensorrt_version] if provider == "tensorrt" else [])):
        try:
            needed()
        except InputError as error:
            lacks.append(str(error))
    return lacks


def _library_of_provider() -> str:
    """The file name of the TensorRT library that onnxruntime's provider is linked to, such as libnvinfer.so.10."""
    from mega_model.core.onnx_runtime import ort

    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    found = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes()) if provider.exists() else None
    return found[0].decode() if found else "libnvinfer.so.10"
