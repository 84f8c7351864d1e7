"""TensorRT's engines, without a GPU: what is missing, the cache, the options, the command.

A stand-in takes the place of onnxruntime's TensorRT provider: it runs the graph on the CPU and writes a file where the
engine would be. So what these tests do not show is that TensorRT builds and runs the graphs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from little_bundle import little_bundle
from test_user_detector import WatchedSession, model, yolov8

from export import gates, to_trt, ways
from export.options import TrtConfig
from mega_model.core.errors import InputError
from mega_model.core.onnx_runtime import ort
from mega_ros import accelerators, engine_cache, engines
from mega_ros.accelerators import Gpu
from mega_ros.bundle import Bundle
from mega_ros.engine_cache import EngineCache, Profile, Range, best_precision, folder_of
from mega_ros.engines import OnnxEngine, to_build
from mega_ros.parts import SHARE, bytes_per_sample
from mega_ros.recovery import Recovery
from mega_ros.user_detector import UserDetector

CARD = Gpu("NVIDIA RTX 4000 Ada", "8.9")
LIBRARIES = {
    "libcuda.so.1": """
        int cuInit(unsigned flags) { return 0; }
        int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
        int cuDeviceGetName(char *name, int size, int device) { *name = 'A' + device; name[1] = 0; return 0; }
        static int context, pushed;
        int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; context++; return device != 7; }
        int cuCtxPushCurrent_v2(void *given) { pushed++; return given != &context; }
        int cuMemGetInfo_v2(unsigned long *free, void *all) { *free = 5000000000; return pushed != 1; }
        int cuCtxPopCurrent_v2(void **given) { pushed--; return *given != &context; }
        int cuDevicePrimaryCtxRelease_v2(int device) { return --context; }
        int cuDeviceGetAttribute(int *value, int what, int device) { *value = what - 66; return device != 7; }""",
    "libnvinfer.so.10": "int getInferLibVersion() { return 101501; }",
}
NOTHING = """
        int cuInit(unsigned flags) { return 100; }"""
Providers = list[tuple[str, dict[str, str]]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return little_bundle(tmp_path_factory.mktemp("little"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A machine with a GPU and TensorRT. The list holds the graphs whose engines were built."""
    graphs: list[str] = []
    start = ort.InferenceSession
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)

    class FakeSession:
        def __init__(self, path: Any, options: Any, providers: Providers, enable_fallback: int) -> None:
            assert not enable_fallback
            self._name, given = providers[0]
            if self._name == "TensorrtExecutionProvider":
                if "trt_op_types_to_exclude" in given and "trt_profile_max_shapes" in given:  # as onnxruntime does
                    raise RuntimeError("User needs to provide all the dynamic shape inputs with associated profiles")
                engine = Path(given["trt_engine_cache_path"]) / "graph.engine"
                if not engine.exists():
                    engine.write_bytes(b"an engine")
                    graphs.append(path.stem)
            self._session = start(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [self._name]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    monkeypatch.setenv("MEGA_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setattr(engine_cache, "gpu", lambda: CARD)
    monkeypatch.setattr(engines, "free_gpu_memory", lambda: 2**34)
    for module in (engines, to_trt):
        monkeypatch.setattr(module, "prepare", lambda provider: [])
    monkeypatch.setattr(engine_cache, "tensorrt_version", lambda: "10.15.1")
    return graphs


def files(bundle: Bundle) -> list[Path]:
    return sorted(folder_of(bundle, "fp32").rglob("*"))


# ------------------------------------------------------------------------------------------------ what the machine has


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has TensorRT"
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(capsys: pytest.CaptureFixture[str]) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has a GPU")
    assert to_trt.main(TrtConfig()) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line, name, command in zip(
        lines,
        ("onnxruntime", "libcuda.so.1", "libnvinfer.so.10"),
        ("pip install 'onnxruntime-gpu[cuda,cudnn]'", "ubuntu-drivers install", "pip install 'tensorrt==10.*'"),
    ):
        assert name in line and command in line


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_libraries_are_asked(tmp_path: Path) -> None:
    asked = "gpu(), free_gpu_memory(), tensorrt_version(), prepare('tensorrt')"
    code = f"from mega_ros.accelerators import *; print({asked})"

    def ask(libraries: dict[str, str]) -> str:
        folder = tmp_path / str(len(libraries))
        folder.mkdir()
        for name, source in libraries.items():
            subprocess.run(["cc", "-shared", "-x", "c", "-", "-o", folder / name], input=source.encode(), check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        return run.stdout or run.stderr.splitlines()[-1]

    said = ask(LIBRARIES)
    assert said.startswith("Gpu(name='H', capability='9.10') 5000000000 10.15.1 [")
    assert "libnvinfer" not in said and "libcuda" not in said
    assert "no NVIDIA GPU that the driver can use" in ask({"libcuda.so.1": NOTHING})


def test_tf32_is_off_where_tensorrt_may_run(bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    accelerators.prepare("cuda")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    accelerators.prepare("tensorrt")
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    seen: list[str | None] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(accelerators, "gpu", lambda: seen.append(os.environ.get("NVIDIA_TF32_OVERRIDE")))
    accelerators.prepare("tensorrt")
    assert seen == ["0"]
    OnnxEngine(bundle, "backbone", "tensorrt")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    OnnxEngine(bundle, "backbone", "tensorrt")
    assert len(built) == 2


# ----------------------------------------------------------------------------------------------------------- the cache


def test_engines_are_built_once(bundle: Bundle, built: list[str]) -> None:
    assert "are being built for this GPU" in to_build(bundle, "auto")
    assert to_build(bundle, "cpu") == "" and to_build(bundle, "cuda") == ""
    first = Recovery(bundle)
    assert first.backend == "onnxruntime TensorrtExecutionProvider" and first.why == ""
    assert built == ["backbone", "deterministic", "sampler"] and to_build(bundle, "auto") == ""
    Recovery(bundle)
    assert len(built) == 3


def test_the_key_has_bundle_gpu_version_and_precision(
    bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{bundle.hash[:16]}-NVIDIA_RTX_4000_Ada_sm8.9-trt10.15.1-"
    assert folder_of(bundle, "fp16").name == f"{name}fp16" and folder_of(bundle, "fp32").name == f"{name}fp32"
    OnnxEngine(bundle, "backbone", "tensorrt")
    monkeypatch.setattr(engine_cache, "tensorrt_version", lambda: "10.16.0")
    OnnxEngine(bundle, "backbone", "tensorrt")
    monkeypatch.setattr(engine_cache, "gpu", lambda: Gpu("NVIDIA RTX 4000 Ada", "12.0"))
    OnnxEngine(bundle, "backbone", "tensorrt")
    assert built == ["backbone"] * 3


def changed(stamp: Path, key: str, value: str) -> None:
    content = json.loads(stamp.read_text())
    content["identity"][key] = value
    stamp.write_text(json.dumps(content))


def test_what_tensorrt_cannot_build_runs_in_cuda(
    bundle: Bundle, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    standin: Any = ort.InferenceSession

    def fails(path: Any, options: Any, providers: Providers, enable_fallback: int) -> Any:
        if providers[0][0] == "TensorrtExecutionProvider":
            raise RuntimeError("no engine\nmore about it")
        return standin(path, options, providers, enable_fallback)

    monkeypatch.setattr(ort, "InferenceSession", fails)
    engine = OnnxEngine(bundle, "backbone", "auto")
    assert engine.backend == "onnxruntime CUDAExecutionProvider"
    assert engine.why == f"not tensorrt: {bundle.path('backbone')}: onnxruntime cannot load it (no engine)"
    monkeypatch.setattr(ort, "InferenceSession", standin)
    monkeypatch.setattr(standin, "run", lambda *_: 1 / 0, raising=False)
    with pytest.raises(InputError, match=r"tensorrt was asked for, but .*TensorRT cannot run it \(division by zero\)"):
        OnnxEngine(bundle, "backbone", "tensorrt")
    assert to_build(bundle, "tensorrt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "graph.engine").write_bytes(b"another engine"),
        lambda folder: (folder / "more.engine").write_bytes(b"put beside it"),
        lambda folder: (folder / "engine.json").unlink(),
        lambda folder: (folder / "engine.json").write_text("{"),
        lambda folder: changed(folder / "engine.json", "bundle", "0" * 64),
        lambda folder: changed(folder / "engine.json", "onnxruntime", "1.0"),
    ],
    ids=["changed", "added", "no stamp", "half a stamp", "another bundle", "another onnxruntime"],
)
def test_a_stale_or_foreign_engine_is_built_again(
    bundle: Bundle, built: list[str], damage: Callable[[Path], object]
) -> None:
    OnnxEngine(bundle, "backbone", "tensorrt")
    damage(folder_of(bundle, "fp32") / "backbone")
    OnnxEngine(bundle, "backbone", "tensorrt")
    assert built == ["backbone"] * 2
    assert [f.name for f in files(bundle)] == ["backbone", "engine.json", "graph.engine"]
    OnnxEngine(bundle, "backbone", "tensorrt")
    assert len(built) == 2


def test_engines_for_other_sizes_are_built_again_and_no_longer_vouched_for(bundle: Bundle, built: list[str]) -> None:
    checked(bundle)
    few, many = Profile(Range(2, 2), Range(2, 2)), Profile(Range(8, 8), Range(2, 2))
    del built[:]
    for profile in (few, None):  # as they were built, and whatever there is
        assert OnnxEngine(bundle, "sampler", "tensorrt", "fp16", profile).cache.profile == few  # type: ignore[union-attr]
    assert built == [] and best_precision(bundle) == "fp16"
    assert OnnxEngine(bundle, "sampler", "tensorrt", "fp16", many).cache.profile == many  # type: ignore[union-attr]
    assert built == ["sampler"] and best_precision(bundle) == "fp32"
    assert not (folder_of(bundle, "fp16") / "checked.json").exists()


def test_a_stamp_without_engines_is_no_build(bundle: Bundle, built: list[str]) -> None:
    OnnxEngine(bundle, "backbone", "tensorrt")
    folder = folder_of(bundle, "fp32") / "backbone"
    (folder / "graph.engine").unlink()
    stamp = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(stamp | {"files": {}}))
    assert not EngineCache(bundle, "backbone", "fp32").found


def test_the_time_of_the_build_is_kept(bundle: Bundle, built: list[str]) -> None:
    """A start that finds engines may still write a file, such as the timing cache; its own time is not the build's."""
    cache = EngineCache(bundle, "backbone", "fp32")
    folder = folder_of(bundle, "fp32") / "backbone"
    (folder / "graph.engine").write_bytes(b"an engine")
    cache.seal(12.5)
    again = EngineCache(bundle, "backbone", "fp32")
    assert again.found and again.seconds == 12.5
    (folder / "more.profile").write_bytes(b"written by this start")
    again.seal(0.5)
    assert EngineCache(bundle, "backbone", "fp32").seconds == 12.5


def test_engines_are_in_the_users_cache_folder(
    bundle: Bundle, built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGA_ENGINES")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folder_of(bundle, "fp32").parent == tmp_path / ".cache" / "mega_ros" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert folder_of(bundle, "fp32").parent == tmp_path / "elsewhere" / "mega_ros" / "engines"


def test_a_folder_that_others_may_write_is_refused(bundle: Bundle, built: list[str]) -> None:
    OnnxEngine(bundle, "backbone", "tensorrt")
    folder = folder_of(bundle, "fp32") / "backbone"
    for path, mode in (
        (folder, 0o770),
        (folder.parent, 0o707),
        (folder.parents[1], 0o770),
        (folder.parents[1], 0o1777),
    ):
        path.chmod(mode)
        with pytest.raises(InputError, match=rf"{path}: another user may write here.*chmod go-w {path}"):
            OnnxEngine(bundle, "backbone", "tensorrt")
        engine = OnnxEngine(bundle, "backbone", "auto")
        assert engine.backend == "onnxruntime CUDAExecutionProvider" and "not tensorrt: " in engine.why
        path.chmod(0o700)
    folder.parents[2].chmod(0o777)
    with pytest.raises(InputError, match=rf"{folder.parents[2]}: another user may write here"):
        EngineCache(bundle, "backbone", "fp32")
    folder.parents[2].chmod(0o1777)  # as /tmp: nobody moves what others own
    assert EngineCache(bundle, "backbone", "fp32").found


def checked(bundle: Bundle) -> None:
    """Engines of fp16 that passed the gates."""
    assert to_trt.main(TrtConfig(str(bundle.folder), people=(2,), samples=(2,))) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "graph.engine").write_bytes(b"another engine"),
        lambda folder: changed(folder / "engine.json", "onnxruntime", "1.0"),
        lambda folder: (folder / "engine.json").write_text("{"),
        lambda folder: (folder / "engine.json").write_text((folder / "engine.json").read_text() + " "),
    ],
    ids=["engine", "stale stamp", "half a stamp", "not the stamp that was checked"],
)
def test_fp16_without_its_check_is_not_used(bundle: Bundle, built: list[str], damage: Callable[[Path], object]) -> None:
    checked(bundle)
    assert not engine_cache.is_built(bundle, "fp32") and to_build(bundle, "auto") == ""
    damage(folder_of(bundle, "fp16") / "sampler")
    del built[:]
    recovery = Recovery(bundle)
    assert recovery.backend == "onnxruntime TensorrtExecutionProvider" and built[-1] == "sampler"
    assert best_precision(bundle) == "fp32" and (folder_of(bundle, "fp32") / "sampler" / "engine.json").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_damaged_set_is_announced(bundle: Bundle, built: list[str], precision: str) -> None:
    checked(bundle)
    if precision == "fp32":
        (folder_of(bundle, "fp16") / "checked.json").unlink()
        Recovery(bundle)
    assert to_build(bundle, "auto") == ""
    changed(folder_of(bundle, precision) / "sampler" / "engine.json", "gpu", "another")  # type: ignore[arg-type]
    assert "are being built" in to_build(bundle, "auto")


def test_what_is_found_is_not_written_again(bundle: Bundle, built: list[str]) -> None:
    OnnxEngine(bundle, "backbone", "tensorrt")
    before = [(file, file.stat().st_mtime_ns, file.stat().st_ino) for file in files(bundle)]
    OnnxEngine(bundle, "backbone", "tensorrt")
    assert [(file, file.stat().st_mtime_ns, file.stat().st_ino) for file in files(bundle)] == before


def test_a_cache_that_cannot_be_written_is_one_line_and_auto_takes_cuda(
    bundle: Bundle, built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEGA_ENGINES", str(tmp_path / "file" / "engines"))
    engine = OnnxEngine(bundle, "backbone", "auto")
    assert engine.backend == "onnxruntime CUDAExecutionProvider" and "\n" not in engine.why
    assert engine.why.startswith(f"not tensorrt: {tmp_path}/file/engines: Not a directory, so TensorRT's engines")
    monkeypatch.setenv("MEGA_ENGINES", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match="no home folder; set MEGA_ENGINES"):
        OnnxEngine(bundle, "backbone", "tensorrt")
    assert "are being built" in to_build(bundle, "auto")  # and does not fail


def test_one_process_at_a_time(bundle: Bundle, built: list[str]) -> None:
    start, order = threading.Event(), []

    def other() -> None:
        with engine_cache.lock(bundle, "fp32"):
            start.set()
            time.sleep(0.2)
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    start.wait()
    OnnxEngine(bundle, "backbone", "tensorrt")
    order.append("this")
    thread.join()
    assert order == ["other", "this"]


def test_a_umask_that_lets_the_group_write_is_no_obstacle(bundle: Bundle, built: list[str]) -> None:
    before = os.umask(0o002)
    try:
        OnnxEngine(bundle, "backbone", "tensorrt")
        assert EngineCache(bundle, "backbone", "fp32").found
    finally:
        os.umask(before)


# --------------------------------------------------------------------------------------------------- options and sizes


def test_options_of_the_provider(built: list[str]) -> None:
    default = dataclasses.replace(Bundle.load("default"), fp32=[])
    cache = EngineCache(default, "sampler", "fp16", Profile(Range.of([4, 1, 2, 8]), Range.of([25, 1, 10])))
    options = cache.options()
    assert options["trt_fp16_enable"] == options["trt_engine_cache_enable"] == "True"
    assert Path(options["trt_timing_cache_path"]) == Path(options["trt_engine_cache_path"]).parent
    shapes = {name: dict(part.split(":") for part in options[f"trt_profile_{name}_shapes"].split(",")) for name in
              ("min", "opt", "max")}  # fmt: skip
    assert {name: found["uniforms"] for name, found in shapes.items()} == {
        "min": "1x1x2x54x2",
        "opt": "2x10x2x54x2",
        "max": "8x25x2x54x2",
    }
    assert set(shapes["min"]) == set(default.graphs["sampler"].inputs)
    fixed = EngineCache(default, "detector", "fp32").options()
    assert fixed["trt_fp16_enable"] == "False" and not [name for name in fixed if "profile" in name]


def test_graphs_that_must_stay_in_fp32_do_and_so_does_the_detector(built: list[str]) -> None:
    default = dataclasses.replace(Bundle.load("default"), fp32=["backbone"])
    for precision, halved in (("fp16", {"deterministic", "sampler"}), ("fp32", set())):
        options = {graph: EngineCache(default, graph, precision).options() for graph in default.graphs}  # type: ignore[arg-type]
        assert {graph for graph, given in options.items() if given["trt_fp16_enable"] == "True"} == halved
        assert len(options) == 4 and not [name for name in options["sampler"] if "exclude" in name]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The numbers of people and samples in each run of a sampler."""
    sizes: list[tuple[int, int]] = []

    def tell(inputs: dict[str, np.ndarray]) -> None:
        if "uniforms" in inputs:
            sizes.append(inputs["uniforms"].shape[:2])

    monkeypatch.setattr(engines, "start_session", partial(WatchedSession, tell))
    return sizes


def test_more_people_and_samples_than_an_engine_takes_run_in_parts(
    bundle: Bundle, built: list[str], runs: list[tuple[int, int]]
) -> None:
    profile = Profile(Range(1, 2), Range(2, 3))
    rng = np.random.default_rng(0)
    given = gates.inputs(bundle, rng.integers(0, 256, (5, 32, 32, 3), np.uint8), 7)
    engines_of = {name: (lambda graph, name=name: OnnxEngine(bundle, graph, name)) for name in ("cpu", "tensorrt")}
    for graph in gates.CHAIN:
        OnnxEngine(bundle, graph, "tensorrt", None, profile)
    sampler = OnnxEngine(bundle, "sampler", "tensorrt")
    assert sampler.cache is not None and sampler.cache.profile == profile
    one = np.ones((5, 1, 1), np.float32)
    runs.clear()
    sampler.run(image=one, logits=one, uniforms=given["uniforms"])
    assert runs == [(2, 3), (2, 3), (2, 1)] * 2 + [(1, 3), (1, 3), (1, 1)]
    cpu, trt = (gates.Chain(bundle, make)(given) for make in engines_of.values())
    assert gates.errors(cpu, trt, trt)["vertex error, max"] < 1e-6 and (cpu.samples == trt.samples).all()


def test_samples_are_taken_in_parts_that_fit_the_memory(
    runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = 2**34
    monkeypatch.setattr(engines, "free_memory", lambda: memory)
    default = Bundle.load("default")
    sampler = OnnxEngine(default, "sampler", "cpu")
    rng, inputs = np.random.default_rng(0), default.graphs["sampler"].inputs
    given = {k: rng.uniform(0.01, 0.99, t.sized(2, 5)).astype(t.dtype) for k, t in inputs.items()}
    whole = sampler.run(**given)
    memory = 35 * 10**6
    parts = sampler.run(**given)
    assert runs == [(2, 5), (2, 2), (2, 2), (2, 1)]
    assert (parts["tokens"] == whole["tokens"]).all()
    np.testing.assert_allclose(parts["vertices"], whole["vertices"], atol=1e-5)
    runs.clear()
    memory = 10**3
    sampler.run(**{name: x[:, :1] if name == "uniforms" else x for name, x in given.items()})
    assert runs == [(1, 1), (1, 1)]


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_memory_is_bounded_and_work_grows_linearly(
    bundle: Bundle, built: list[str], runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, provider: Any
) -> None:
    """8 people with 100 samples: no part is larger than the free memory allows, and each sample is computed once."""
    graph, fit = bundle.graphs["sampler"], 30
    memory = enough = int(fit * bytes_per_sample(graph) / SHARE) + 1
    monkeypatch.setattr(engines, "free_memory" if provider == "cpu" else "free_gpu_memory", lambda: memory)
    sampler, rng = OnnxEngine(bundle, "sampler", provider), np.random.default_rng(0)
    for people, samples in ((1, 1), (1, 25), (2, 50), (4, 100), (8, 100)):
        given = {k: rng.uniform(0.1, 0.9, t.sized(people, samples)).astype(t.dtype) for k, t in graph.inputs.items()}
        runs.clear()
        memory = enough
        out = sampler.run(**given)
        sizes = [np.prod(run) for run in runs]
        assert max(sizes) <= fit and sum(sizes) == people * samples
        assert len(sizes) <= 1 + 1.5 * people * samples / fit
        memory = 2**34
        for name, whole in sampler.run(**given).items():
            np.testing.assert_array_equal(out[name], whole)


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_builds_and_checks_and_the_node_finds(
    bundle: Bundle, built: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    call = TrtConfig(str(bundle.folder), people=(1, 3), samples=(2, 5))
    assert best_precision(bundle) == "fp32"
    assert to_trt.main(call) == 0
    said = capsys.readouterr().out
    assert [f"{i}/3 {graph}: building for fp16" in said for i, graph in enumerate(gates.CHAIN, 1)] == [True] * 3
    assert "build, s" in said and "vertex error, p99" in said and "MISSED" not in said
    assert str(folder_of(bundle, "fp16")) in said
    assert built == ["backbone", "deterministic", "sampler"] and best_precision(bundle) == "fp16"
    assert to_build(bundle, "tensorrt") == ""
    engine = OnnxEngine(bundle, "sampler", "auto")
    assert engine.cache is not None and engine.cache.found
    assert engine.cache.profile == Profile(Range(1, 3), Range(2, 5))
    assert to_trt.main(call) == 0 and "was there" in capsys.readouterr().out
    assert len(built) == 3


def test_what_misses_a_gate_is_not_written(
    bundle: Bundle,
    built: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(gates.GATES["fp16"], "vertex error, mean", -1.0)
    monkeypatch.setenv("MEGA_ENGINES", "")
    with pytest.raises(InputError, match="the engines miss a gate and were removed; try --precision fp32"):
        to_trt.main(TrtConfig(str(bundle.folder), out=tmp_path / "here"))
    assert "MISSED" in capsys.readouterr().out
    assert len(built) == 3 and not [file for file in (tmp_path / "here").iterdir() if file.suffix != ".lock"]


def test_gpu_day_rehearses_on_a_cpu(
    bundle: Bundle, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    script = run_path(str(root / "scripts" / "gpu_day"))

    def rows(*arguments: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["gpu_day", "--cpu", "--out", str(tmp_path), *map(str, arguments)])
        assert script["main"]() == 0
        made: list[dict[str, Any]] = json.loads((tmp_path / "gpu_day.json").read_text())["rows"]
        return made

    made = rows("--bundle", bundle.folder, "--people", 1, 2, "--samples", 0, 2)
    assert [row for row in made if "problem" in row] == []
    found = {(row["what"], row.get("people"), row.get("samples")): row for row in made}
    for what in ("torch eager fp32", "torch eager, folded fp32", "onnxruntime cpu fp32"):
        for size in (0, 2):
            assert found[what, 1, size]["p50_ms"] > 0 and found[what, 2, size]["missed"] == []
    for size in (0, 2):
        plain = found["torch plain fp32", 1, size]
        assert plain["tokens that differ"] == plain["sampled tokens that differ"] == 0
    assert "| torch eager fp32 |" in (tmp_path / "gpu_day.md").read_text()
    made = rows("--bundle", tmp_path, "--people", 1, "--samples", 0)
    assert [row["problem"].split(":")[0] for row in made if "problem" in row] == ["BundleError"]
    made = rows("--bundle", bundle.folder, "--people", 1, "--samples", 0, "--minutes", 0)
    assert {row["problem"] for row in made} == {"left out: no time was left"}
    with pytest.raises(SystemExit):
        rows("--prepare")  # where to?
    day = script["Day"](SimpleNamespace(cpu=True, minutes=1, preset="hrnet"))
    with pytest.raises(RuntimeError, match=r"^no$"):
        day.child("import sys; sys.exit('a\\nno')")


def test_gpu_day_ends_what_takes_too_long(root: Path, tmp_path: Path) -> None:
    """Also in its own process, and in one that would go on after an exception."""
    pytest.importorskip("torch")
    day = run_path(str(root / "scripts" / "gpu_day"))["Day"](SimpleNamespace(cpu=True, minutes=0, preset="hrnet"))

    def stubborn() -> dict[str, Any]:
        while time.monotonic() < end:
            with suppress(Exception):
                time.sleep(9)
        return {}

    for run in (
        stubborn,
        lambda: day.child("import time, sys; time.sleep(9); open(sys.argv[1], 'w')", tmp_path / "late"),
    ):
        day.options.minutes = (time.perf_counter() - day.begin + 0.3) / 60
        end = time.monotonic() + 9
        assert not day.attempt("slow", run)
        assert time.monotonic() < end
    assert {row["problem"] for row in day.rows} == {"OutOfTime: not done after 0 s"}


def test_other_sessions_say_which_provider_they_have(
    built: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin: Any = ort.InferenceSession
    path = model(tmp_path / "detector.onnx", yolov8())
    monkeypatch.setattr(ways, "SIDE", {"cuda": 4, "cpu": 4})
    for provider in ("auto", "cuda"):
        assert UserDetector(path, provider).name.endswith("CUDAExecutionProvider)")
    assert ways.Product("cuda").speed() > 0
    monkeypatch.setattr(standin, "get_providers", lambda self: ["CPUExecutionProvider"])
    assert UserDetector(path).name.endswith("CPUExecutionProvider)")
    for make in (lambda: ways.Product("cuda"), lambda: UserDetector(path, "cuda")):
        with pytest.raises(InputError, match="onnxruntime could not start it, libraries of CUDA"):
            make()


def test_gates_see_each_error() -> None:
    rng = np.random.default_rng(0)
    same = gates.BundleOutputs(
        np.zeros((2, 100), int), rng.normal(size=(2, 50, 3)), np.ones((2, 50)), np.zeros((2, 3, 100), int)
    )

    def errors(again: gates.BundleOutputs = same, **other: np.ndarray) -> list[str]:
        got = gates.BundleOutputs(**{**vars(same), **other})
        return gates.missed(gates.errors(same, got, got if other else again), "fp32")

    tokens, samples = same.tokens.copy(), same.samples.copy()
    tokens[0, 0] = 1
    samples[:, :, :2] = 1
    moved, two = same.vertices.copy(), same.vertices.copy()
    moved[0, 0] += 0.01
    two[0, :2, 0] += 5e-4  # of 100
    assert errors() == []
    assert errors(tokens=tokens) == ["tokens that differ"]
    assert errors(vertices=same.vertices + 9e-5) == ["vertex error, mean", "vertex error, p99"]
    assert errors(vertices=moved)[-1] == "vertex error, max"
    assert errors(vertices=two) == ["vertex error, p99"]
    assert errors(sigma=same.sigma + 0.01) == errors(sigma=same.sigma - 0.01) == ["sigma error, mean"]
    assert errors(samples=samples) == ["sampled tokens that differ"]
    for other in ({"tokens": tokens}, {"vertices": moved}, {"samples": samples}):
        assert errors(gates.BundleOutputs(**{**vars(same), **other})) == ["same seed, other people"]
    assert errors(vertices=same.vertices * np.nan) == [f"vertex error, {which}" for which in ("mean", "p99", "max")] + [
        "same seed, other people"
    ]
