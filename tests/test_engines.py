"""Graphs in onnxruntime: the default bundle's run, and what does not fit its manifest is refused at loading."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mega_model.core.errors import InputError
from mega_model.core.onnx_runtime import ort
from mega_ros import accelerators
from mega_ros.bundle import Bundle, BundleError, Graph, Tensor
from mega_ros.engines import OnnxEngine


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("default")


def changed(bundle: Bundle, graph: Graph) -> Bundle:
    return dataclasses.replace(bundle, graphs={**bundle.graphs, "backbone": graph})


def test_outputs_are_those_of_the_manifest_for_any_number_of_people(bundle: Bundle) -> None:
    # each takes what those before it give
    engines = {name: OnnxEngine(bundle, name, "cpu") for name in ("backbone", "deterministic", "sampler")}
    size = bundle.crop.size
    for people, samples in ((1, 2), (3, 1)):
        crops = np.random.default_rng(0).integers(0, 256, (people, size, size, 3), np.uint8)
        shape = [int(n) for n in bundle.graphs["sampler"].inputs["uniforms"].shape[2:]]
        known = {"crops": crops, "uniforms": np.full((people, samples, *shape), 0.5, np.float32)}
        known["keypoints"] = np.zeros((people, 12, 3), np.float32)
        sizes: dict[int | str, int | str] = {"P": people, "Q": samples}
        for name, engine in engines.items():
            graph: Graph = bundle.graphs[name]  # type: ignore[literal-required]
            outputs = engine.run(**{key: known[key] for key in graph.inputs})
            known |= outputs
            assert set(outputs) == set(graph.outputs)
            for key, value in outputs.items():
                expected = tuple(sizes.get(n, n) for n in graph.outputs[key].shape)
                assert (value.shape, value.dtype.name) == (expected, graph.outputs[key].dtype), key
                assert np.isfinite(value).all(), key


def test_a_person_does_not_depend_on_the_others(bundle: Bundle) -> None:
    backbone, engine = (OnnxEngine(bundle, name, "cpu") for name in ("backbone", "deterministic"))
    size = bundle.crop.size
    features = backbone.run(crops=np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8))
    features["keypoints"] = np.zeros((3, 12, 3), np.float32)
    together, alone = (
        engine.run(**{name: features[name][some] for name in bundle.graphs["deterministic"].inputs})
        for some in (slice(None), slice(1, 2))
    )
    np.testing.assert_allclose(together["vertices"][1], alone["vertices"][0], atol=1e-4)
    np.testing.assert_allclose(together["logits"][1], alone["logits"][0], atol=1e-2)


def test_samples_are_those_of_their_uniforms(bundle: Bundle) -> None:
    """Equal uniforms give equal samples whatever their place, different ones different samples."""
    rng = np.random.default_rng(0)
    graph = bundle.graphs["sampler"]
    sizes = {"P": 2, "Q": 3}
    inputs = {
        name: rng.normal(size=[int(sizes.get(str(n), n)) for n in tensor.shape]).astype(np.float32)
        for name, tensor in graph.inputs.items()
    }
    inputs["uniforms"] = rng.uniform(0.001, 0.999, inputs["uniforms"].shape).astype(np.float32)
    inputs["uniforms"][:, 2] = inputs["uniforms"][:, 0]
    out = OnnxEngine(bundle, "sampler", "cpu").run(**inputs)
    assert (out["tokens"][:, 0] == out["tokens"][:, 2]).all() and (out["tokens"][:, 0] != out["tokens"][:, 1]).any()
    np.testing.assert_allclose(out["vertices"][:, 0], out["vertices"][:, 2], atol=1e-5)


def test_provider_is_the_one_asked_for(bundle: Bundle) -> None:
    assert OnnxEngine(bundle, "backbone", "cpu").backend == "onnxruntime CPUExecutionProvider"
    with pytest.raises(InputError, match="provider: 'gpu' is unknown"):
        OnnxEngine(bundle, "backbone", "gpu")  # type: ignore[arg-type]


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_without_cuda_auto_is_cpu_and_says_why_and_others_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "onnxruntime has no CUDA: pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    engine = OnnxEngine(bundle, "backbone", "auto")
    assert engine.backend == "onnxruntime CPUExecutionProvider"
    if not accelerators.has_gpu():
        assert engine.why == "not tensorrt or cuda: onnxruntime has no CUDA"
    monkeypatch.setattr(accelerators, "gpu", lambda: accelerators.Gpu("a GPU", "9.0"))
    assert OnnxEngine(bundle, "backbone", "auto").why == f"not tensorrt or cuda: {reason}"
    assert OnnxEngine(bundle, "backbone", "cpu").why == ""
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(InputError, match=re.escape(f"provider: {provider} was asked for, but {reason}")):
            OnnxEngine(bundle, "backbone", provider)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor("float32", ("P", 256, 256, 3)), "input crops is uint8"),
        (Tensor("uint8", ("P", 7, 7, 3)), "input crops is uint8"),
        (Tensor("uint8", ("P", 3)), "input crops is uint8"),
    ],
)
def test_graph_that_is_not_what_the_manifest_says(bundle: Bundle, tensor: Tensor, message: str) -> None:
    other = changed(bundle, Graph({"crops": tensor}, bundle.graphs["backbone"].outputs))
    with pytest.raises(BundleError, match=message):
        OnnxEngine(other, "backbone", "cpu")


def test_graph_with_other_names(bundle: Bundle) -> None:
    real = bundle.graphs["backbone"]
    with pytest.raises(BundleError, match="inputs are crops, the manifest says images"):
        OnnxEngine(changed(bundle, Graph({"images": real.inputs["crops"]}, real.outputs)), "backbone", "cpu")
    with pytest.raises(BundleError, match=r"outputs are features, .*the manifest says map"):
        OnnxEngine(changed(bundle, Graph(real.inputs, {"map": real.outputs["features"]})), "backbone", "cpu")


def test_file_that_is_no_graph(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "backbone.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"backbone\.onnx: onnxruntime cannot load it") as caught:
        OnnxEngine(dataclasses.replace(bundle, folder=tmp_path), "backbone", "cpu")
    assert "\n" not in str(caught.value)


def test_nothing_is_sent_home(tmp_path: Path) -> None:
    """Where telemetry is on, onnxruntime keeps a data base below the home directory from its first import."""
    code = "from mega_ros import Recovery; Recovery.load('default', provider='cpu')"
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run([sys.executable, "-c", code], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))


def test_onnxruntime_has_one_door() -> None:
    root = Path(__file__).parents[1]
    files = [path for folder in ("mega_ros", "mega_model", "export", "tests") for path in (root / folder).rglob("*.py")]
    importing = [f.name for f in files if re.search(r"^\s*(import|from) onnxruntime\b", f.read_text(), re.MULTILINE)]
    assert importing == ["onnx_runtime.py"]
