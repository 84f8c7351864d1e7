"""`mega bench`: the ways compute the same people, the operations are counted right, and the report has every size."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from little_bundle import STEPS, little_bundle
from onnx import TensorProto, helper, numpy_helper

from export import bench, flop, ways
from export.gates import BundleOutputs
from export.options import BenchConfig, TrtConfig
from export.random_model import random_checkpoint
from mega_model import checkpoint, generate
from mega_model.core.errors import InputError
from mega_model.core.onnx_runtime import ort
from mega_model.core.settings import parse
from mega_model.evaluate import plain
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_ros.bundle import DEFAULT, Bundle

# ---------------------------------------------------------------------------------------------------------- operations


def graph(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    """With the input x float [P, 6, 5, 5]."""
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["P", 6, 5, 5])
    made = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    return helper.make_model(helper.make_graph(nodes, "g", [given], [made], weights))


def test_operations_are_those_of_products_and_convolutions() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "kernels"], ["maps"], group=2),  # [P, 4, 3, 3], each of 3 * 3 * 3 products
        node("Relu", ["maps"], ["positive"]),
        node("Flatten", ["positive"], ["flat"]),  # [P, 36]
        node("Gemm", ["flat", "matrix"], ["row"], transB=1),  # [P, 7], each of 36 products
        node("MatMul", ["square", "square"], ["constant"]),  # of the weights only
        node("MatMul", ["row", "constant"], ["y"]),  # [P, 7], each of 7
    ]
    constants = {
        name: np.zeros(shape, np.float32)
        for name, shape in {"kernels": (4, 3, 3, 3), "matrix": (7, 36), "square": (7, 7)}.items()
    }
    for people in (1, 5):
        counted = flop.count(graph(nodes, constants), {"P": people})
        assert counted == 2 * people * (4 * 3 * 3 * 27 + 7 * 36 + 7 * 7)


def test_a_gemm_of_a_transposed_matrix() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["y"], transA=1),  # [150, P] by [P, 2]
    ]
    assert flop.count(graph(nodes, {"matrix": np.zeros((3, 2), np.float32)}), {"P": 3}) == 2 * 150 * 2 * 3


def test_a_product_of_unknown_size_is_not_left_out() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Cast", ["found"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["matrix", "numbers"], ["y"]),
    ]
    with pytest.raises(ValueError, match="MatMul : its shapes are not known"):
        flop.count(graph(nodes, {"matrix": np.zeros((3, 4), np.float32)}), {"P": 3})


def test_operations_grow_with_people_and_samples() -> None:
    bundle = Bundle.load()
    sampler = onnx.load(bundle.path("sampler"))
    one, two, four = (flop.count(sampler, {"P": p, "Q": q}) for p, q in ((1, 10), (2, 10), (1, 40)))
    assert 1.9 * one < two <= 2 * one and 3.5 * one < four <= 4 * one


# ------------------------------------------------------------------------------------------- the straightforward way


@torch.no_grad()
def test_the_plain_way_gives_the_same_people() -> None:
    torch.manual_seed(0)
    config = MegaConfig(
        codes=32, width=32, encoder_blocks=1, decoder_blocks=2, backbone="resnet18", backbone_width=4, image_size=64
    )
    model = Mega(config).eval()
    for p in [*model.encoder.parameters(), *model.decoder.parameters(), model.embed.weight, model.head.weight]:
        torch.nn.init.normal_(p, std=0.2)  # away from the start, or all logits are alike
    images = torch.randn(2, 3, 64, 64)

    class PointTokenizer(torch.nn.Module):
        quantizer = torch.nn.Module()

        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens[..., None].expand(-1, -1, 3).float()

        def reconstruct(self, latents: torch.Tensor) -> torch.Tensor:
            return latents[..., :3]

    tokenizer: Any = PointTokenizer()
    tokenizer.quantizer.codebook = torch.randn(32, 4)
    features = model.backbone(images)
    tokens, vertices = plain.deterministic(model, tokenizer, images)
    logits = generate.first_logits(model, model.encode_image(features).image)
    assert torch.equal(tokens, logits.argmax(dim=-1))
    torch.testing.assert_close(vertices, generate.expected_vertices(tokenizer, logits), atol=1e-4, rtol=0)
    want = generate.stochastic(model, features, samples=3, steps=4, temperature=1.0, seed=5)
    got, meshes = plain.sample(model, tokenizer, images, generate.uniforms((2, 3, 4, 54, 2), 5), 1.0)
    assert (got == want).float().mean() > 0.99  # a near tie may fall otherwise
    assert want[0, 0].ne(want[0, 1]).any() and meshes.shape == (2, 3, 54, 3)
    assert torch.equal(meshes[..., 0], got.float())


# -------------------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a bundle whose graphs are a few operators, by onnxruntime on the CPU."""
    out = tmp_path_factory.mktemp("bench")
    config = BenchConfig(
        str(little_bundle(out).folder),
        people=(1, 2),
        samples=(0, 2),
        ways=("cpu", "cuda"),
        repeats=2,
        seconds=0,
        out=out,
    )
    bench.main(config)
    assert (out / "bench.png").stat().st_size > 10000
    return json.loads((out / "bench.json").read_text()) | {"file": str(out / "bench.json")}


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_every_way_has_a_row_for_every_size(report: dict[str, Any]) -> None:
    rows = {(row["people"], row["samples"]): row for row in report["rows"]}
    assert [*rows] == [(1, 0), (1, 2), (2, 0), (2, 2)] or [*rows] == [(1, 0), (2, 0), (1, 2), (2, 2)]
    assert [*report["left_out"]] == ["cuda"] and report["steps"] == STEPS and report["load_after"] >= 0
    for (people, _), row in rows.items():
        assert row["same_tokens"] == 1 and row["way"] == "cpu" and row["runs"] == 1
        assert row["people_per_s"] == pytest.approx(1e3 * people / row["p50_ms"])
        assert 0 < row["p50_ms"] <= row["p95_ms"] and row["peak_MB"] > 50


def test_what_is_said_has_its_square_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ways, "lacks", lambda way, _: "pip install 'onnxruntime-gpu[cuda]'" * (way == "cuda"))
    rows = [{"way": "cpu", "people": 1, "samples": 0, "problem": "Fail: [no]"}]
    monkeypatch.setattr(bench.Bench, "rows", lambda _: rows)
    monkeypatch.setattr(bench, "plot", lambda *_: None)
    bench.main(BenchConfig(str(little_bundle(tmp_path).folder), ways=("cpu", "cuda"), out=tmp_path / "out[a]"))
    said = capsys.readouterr().out
    assert "cuda: left out, pip install 'onnxruntime-gpu[cuda]'\n" in said
    assert said.count("Fail: [no]") == 2, "in its line and in the table"
    assert str(tmp_path / "out[a]" / "bench.json") in said


def test_a_row_compares_with_the_peak_and_the_plain_way() -> None:
    people = BundleOutputs(*(np.zeros((2, size), np.int64) for size in (4, 3, 0, 0)))
    others = replace(people, tokens=np.array([[0, 0, 0, 1], [0, 0, 0, 0]]))
    plain_cell = bench.Cell("plain", ways.First(2 * 10**6, people, 4 * 10**9), [2.0, 4.0, 2.0])
    cell = bench.Cell("cpu", ways.First(10**6, others, None), [0.25, 0.5, 0.75])
    row = cell.row(2, 0, 10**9, 8e9, plain_cell, plain_cell)
    assert (row["p50_ms"], row["people_per_s"], row["peak_MB"], row["GFLOP"]) == (500, 4, 1, 1)
    assert (row["share"], row["times_plain"], row["same_tokens"], row["runs"]) == (0.25, 4, 7 / 8, 3)
    assert row["p95_ms"] == pytest.approx(725)
    row = plain_cell.row(2, 0, 10**9, 8e9, None, plain_cell)
    assert (row["GFLOP"], row["share"]) == (4, 0.25) and "times_plain" not in row


def test_reports_are_compared(report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = json.loads(Path(report["file"]).read_text())
    for row in other["rows"]:
        row["p50_ms"] *= 3
    for row in (*other["rows"], *report["rows"]):
        row["GFLOP"], row["share"] = 2.0, 0.5
    Path(report["file"]).write_text(json.dumps(report))
    (tmp_path / "other.json").write_text(json.dumps(other))
    bench.main(BenchConfig(compare=(Path(report["file"]), tmp_path / "other.json")))
    lines = [line for line in capsys.readouterr().out.splitlines() if "cpu" in line]
    assert len(lines) == 4 and all("3.00" in line and "1.00" in line for line in lines)
    (tmp_path / "other.json").write_text(json.dumps(other | {"rows": []}))
    with pytest.raises(InputError, match="no way and size in common"):
        bench.main(BenchConfig(compare=(Path(report["file"]), tmp_path / "other.json")))


ROW = {"way": "cpu", "people": 1, "samples": 0, "p50_ms": 2.0, "GFLOP": 1.0, "share": 0.5}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (ROW | {"p50_ms": "fast"}, "p50_ms"),
        (ROW | {"p50_ms": 0}, "p50_ms"),
        (ROW | {"p50_ms": float("nan")}, "p50_ms"),
        (ROW | {"share": 0}, "share"),
        (ROW | {"GFLOP": None}, "GFLOP"),
        (ROW | {"way": ["cpu"]}, "way"),
        (ROW | {"people": "1"}, "people"),
        ({"way": "cpu", "people": 1, "samples": 0}, "p50_ms"),
        (7, "rows"),
    ],
)
def test_a_damaged_report_is_named(tmp_path: Path, row: Any, field: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps({"rows": [ROW, {"way": "cuda", "problem": "left out"}]}))
    (tmp_path / "other.json").write_text(json.dumps({"rows": [row]}))
    with pytest.raises(InputError, match=rf"other.json: not a report of mega bench \(.*{field}"):
        bench.main(BenchConfig(compare=(tmp_path / "good.json", tmp_path / "other.json")))


def test_what_cannot_be_measured_or_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        bench.main(BenchConfig(ways=("cpu",), out=tmp_path / "file"))
    with monkeypatch.context() as patched, pytest.raises(ModuleNotFoundError):
        patched.setitem(sys.modules, "matplotlib", None)  # as good as not installed
        bench.main(BenchConfig(ways=("cpu",), out=tmp_path / "folder"))


def test_a_way_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    people = BundleOutputs(*(np.zeros((1, 3), np.int64) for _ in range(4)))

    class FakeProcess:
        """Takes 2 s per call, or fails."""

        def __init__(self, _: type, name: str, *__: Any) -> None:
            self.name, self.pool, self.shutdown = name, self, lambda **_: None

        def ask(self, method: str, *_: int) -> Any:
            if method == "first" and self.name == "plain":
                raise MemoryError("too much\nof it")
            return {"first": ways.First(10**6, people, None), "again": 2.0, "speed": 1e9}[method]

    monkeypatch.setattr(bench, "Process", FakeProcess)
    folder = little_bundle(tmp_path).folder
    config = BenchConfig(people=(1, 2), samples=(0, 2), ways=("plain", "cpu"), repeats=1, longest=5.0)
    rows = [*bench.Bench(config, ways.ModelPaths(folder, folder)).rows()]
    told = {(row["way"], row["people"], row["samples"]): row.get("problem") for row in rows}
    assert told["plain", 1, 0] == "MemoryError: too much"
    assert told["plain", 2, 2] == "left out after MemoryError: too much"
    assert told["cpu", 1, 0] is None and told["cpu", 1, 2] is None  # expected to take 4 s
    assert told["cpu", 2, 2] is None, "2 s for half of it"
    config = replace(config, longest=3.0)
    rows = [*bench.Bench(config, ways.ModelPaths(folder, folder)).rows()]
    assert rows[-1]["problem"] == "left out: about 8 s per call"


def test_without_torch_weights_the_bundle_is_measured_alone() -> None:
    paths = ways.ModelPaths(DEFAULT, None)
    assert "give --checkpoint or --preset" in ways.lacks("eager", paths) and ways.lacks("cpu", paths) == ""
    with pytest.raises(InputError, match="plain: torch's weights are not in the bundle"):
        bench.Bench(BenchConfig(ways=("plain",)), paths)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (BenchConfig, "--people 1 0"),
        (BenchConfig, "--samples -1"),
        (BenchConfig, "--ways"),
        (BenchConfig, "--repeats 0"),
        (TrtConfig, "--people"),
        (TrtConfig, "--samples 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind: type[BenchConfig | TrtConfig], options: str) -> None:
    with pytest.raises(InputError, match=f"^{options} ?: must be (of length )?>= [01]$"):
        parse(kind, options.split())


def test_a_random_checkpoint_is_complete(tmp_path: Path) -> None:
    folder = random_checkpoint(replace(PRESETS["default"], width=16, heads=2, backbone_width=16), tmp_path)
    model, tokenizer, topology = checkpoint.load_mega(folder)
    assert checkpoint.load_errors(folder, model) is not None and model.config.tokens == tokenizer.length
    assert len(topology.template) == 1229
