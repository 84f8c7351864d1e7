"""A tiny random model through the whole export: what the graphs compute is what torch computes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tensorrt_operators import refused

from export import check, flop, gates, to_onnx, ways
from export.check import Parity
from export.gates import LIMITS
from export.options import CheckConfig, ExportConfig
from export.to_onnx import backbone_origin, export
from mega_model import checkpoint
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.expected_error import ErrorHead
from mega_model.mega import MegaConfig
from mega_model.tokenizer import TokenizerConfig
from mega_ros.bundle import DEFAULT, Body, Bundle

STEPS = 3
DETECTOR = DEFAULT / "detector.onnx"
CONFIG = ExportConfig(
    Path(), Path(), name="tiny", steps=STEPS, samples=4, temperature=1.3, body=Body("torus", "16 x 8", "CC0")
)


def torus(around: int = 16, across: int = 8) -> Topology:
    """A closed surface of 128 vertices that needs no body model."""
    u, v = np.meshgrid(*(np.arange(n) * 2 * np.pi / n for n in (around, across)), indexing="ij")
    radius = 0.6 + 0.2 * np.cos(v)
    template = np.stack([radius * np.cos(u), radius * np.sin(u), 0.2 * np.sin(v)], axis=-1).reshape(-1, 3)
    number = np.arange(around * across).reshape(around, across)
    a, b, c, d = (np.roll(number, shift, (0, 1)).ravel() for shift in ((0, 0), (-1, 0), (-1, -1), (0, -1)))
    faces = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    regressor = np.eye(24, len(template), dtype=np.float32)
    return Topology(template.astype(np.float32), faces.astype(np.int32), regressor, np.zeros(len(template), np.int32))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with random weights: `tokenizer`, `mega`, and `lifting` with BlazePose and an error head."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = checkpoint.begin_tokenizer(
        folder / "tokenizer", torus(), TokenizerConfig(channels=(8, 8), latent=4, codes=16, bases=2)
    )
    checkpoint.save_weights(tokenizer, folder / "tokenizer")
    config = MegaConfig(
        tokens=tokenizer.length, codes=16, width=16, encoder_blocks=1, decoder_blocks=1, heads=2, image_size=64,
        backbone="resnet18", backbone_width=4, latent=tokenizer.latent,
    )  # fmt: skip
    lifting = replace(config, backbone="blazepose", backbone_width=16, image_size=256)
    for name, sizes in {"mega": config, "lifting": lifting}.items():
        mega = checkpoint.begin_mega(folder / name, folder / "tokenizer", sizes)
        for embedding in (mega.mask_token, mega.encoder_position, mega.decoder_position, mega.embed.weight):
            torch.nn.init.normal_(embedding)  # so that places and codes matter as in a trained model
        _as_if_trained(mega)
        if mega.lifter is not None:
            mega.lifter.set_codebook(tokenizer.quantizer.codebook)
            for layer in (m for m in mega.lifter.eyes.modules() if isinstance(m, torch.nn.Conv2d)):
                torch.nn.init.kaiming_normal_(layer.weight)  # other weights than the backbone's, and maps that differ
        checkpoint.save_weights(mega, folder / name)
    maps = torch.rand(40, 16, 4, 4)
    errors = ErrorHead.begin(lifting.width, tokenizer, torus(), maps, 0.1 * torch.randn(3, 128, 3))
    checkpoint.save_errors(folder / "lifting", errors)
    scores = {"coverage": {"1 sigma": 0.7}, "quantiles": {"0.50": 0.8}}
    (folder / "lifting" / "scores.json").write_text(json.dumps(scores))
    for name in ("mega", "lifting"):  # of the samples' spread, which an error head replaces
        calibration = {"scale": 1.5, "how": "a test"}
        (folder / name / "calibration.json").write_text(json.dumps(calibration))
    notes = {"model": "Eyes", "file": "eyes.tflite", "package": "eyes", "version": "1", "license": "Apache-2.0"}
    (folder / "mega" / "training.json").write_text(json.dumps({"steps": 3, "backbone": notes}))
    return folder


def _as_if_trained(model: torch.nn.Module) -> None:
    """Batch norms that have seen data: the export merges them into convolutions."""
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        torch.nn.init.normal_(norm.running_mean, std=0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1)
        torch.nn.init.normal_(norm.bias, std=0.1)


@pytest.fixture(scope="module")
def bundle(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle")
    return export(replace(CONFIG, checkpoint=checkpoints / "mega", out=out, detector=DETECTOR))


def test_an_unknown_body_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="128 vertices"):
        export(ExportConfig(checkpoints / "mega", tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": value} for value in (0, -1, 2000)),
        *({"samples": value} for value in (-1, 5000)),
        *({"temperature": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_a_sampler_that_no_bundle_may_have_is_refused_at_once(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setattr(to_onnx, "save_graphs", None)
    (name,) = wrong
    with pytest.raises(InputError, match=f"--{name}"):
        export(replace(CONFIG, checkpoint=checkpoints / "mega", out=tmp_path / "new", **wrong))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        export(replace(CONFIG, checkpoint=checkpoints / "mega", out=tmp_path / "file"))


def test_damaged_scores_are_refused(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "mega", tmp_path / "mega")
    file = tmp_path / "mega" / "scores.json"
    file.write_text("{")
    with pytest.raises(InputError, match=re.escape(f"{file}: not JSON")):
        export(replace(CONFIG, checkpoint=tmp_path / "mega", out=tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("calibration", '{"how": "guessed"}', ".*no calibration .*missing required field `scale`"),
        ("calibration", '{"how": "guessed", "scale": "2"}', r".*no calibration .*at `\$\.scale`"),
        ("calibration", '{"how": "guessed", "scale": Infinity}', r".*no calibration .*at `\$\.scale`"),
        ("calibration", "[1]", "damaged, it holds no names and values"),
        ("training", "[1]", "damaged, it holds no names and values"),
    ],
)
def test_damaged_notes_are_refused_at_once(
    name: str, content: str, message: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the graphs, which take minutes."""
    shutil.copytree(checkpoints / "mega", tmp_path / "mega")
    (tmp_path / "mega" / f"{name}.json").write_text(content)
    monkeypatch.setattr(to_onnx, "save_graphs", None)
    with pytest.raises(InputError, match=rf"{name}\.json: {message}"):
        export(replace(CONFIG, checkpoint=tmp_path / "mega", out=tmp_path / "bundle"))


@pytest.fixture(scope="module")
def parity(bundle: Bundle, checkpoints: Path) -> Parity:
    return Parity(bundle, checkpoints / "mega")


@pytest.fixture(scope="module")
def lifting(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """With BlazePose and an error head."""
    out = tmp_path_factory.mktemp("lifting")
    bundle = export(replace(CONFIG, checkpoint=checkpoints / "lifting", out=out, fp32=["sampler"]))
    return Parity(bundle, checkpoints / "lifting")


@pytest.mark.parametrize("people", [1, 3])
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("model", ["parity", "lifting"])
def test_every_output_is_that_of_torch(request: pytest.FixtureRequest, model: str, people: int, samples: int) -> None:
    parity: Parity = request.getfixturevalue(model)
    size = parity.bundle.crop.size
    crops = np.random.default_rng(people).integers(0, 256, (people, size, size, 3), np.uint8)
    differences = parity.people(crops, samples)
    assert set(differences) == {
        (name, output)
        for name in ("backbone", "deterministic", "sampler")
        for output in parity.bundle.graphs[name].outputs
    }
    assert {key: value for key, value in differences.items() if not value <= LIMITS[key[1]]} == {}


def test_a_model_with_landmarks_gives_them_and_sigma(lifting: Parity) -> None:
    graphs, length = lifting.bundle.graphs, lifting.model.tokenizer.length
    assert {name: t.shape for name, t in graphs["backbone"].outputs.items()} == {
        "features": ("P", 10, 16, 16),
        "landmarks": ("P", 39, 5),
        "world": ("P", 39, 3),
        "presence": ("P",),
    }
    assert list(graphs["deterministic"].inputs) == [*graphs["backbone"].outputs, "keypoints"]
    assert graphs["deterministic"].inputs["keypoints"].shape == ("P", 12, 3)
    shapes = {name: t.shape for name, t in graphs["deterministic"].outputs.items()}
    assert shapes["prior"] == shapes["logits"] == ("P", length, 16)
    assert (shapes["sigma"], shapes["joints_sigma"], shapes["distance"]) == (("P", 128), ("P", 24), ("P",))
    assert lifting.bundle.crop.passes > 1
    calibration = lifting.bundle.calibration
    measured = {"1 sigma": 0.7}, {"0.50": 0.8}
    assert (calibration.scale, calibration.coverage, calibration.quantiles) == (1.5, *measured), "of the test people"


def test_the_manifest_names_graphs_that_must_stay_in_fp32(bundle: Bundle, lifting: Parity) -> None:
    assert bundle.fp32 == [] and lifting.bundle.fp32 == ["sampler"]


def test_an_error_head_of_something_else_is_named(checkpoints: Path, tmp_path: Path) -> None:
    model = checkpoint.load_mega(checkpoints / "lifting")[0]
    assert checkpoint.load_errors(checkpoints / "mega", model) is None
    file = tmp_path / checkpoint.ERRORS
    file.write_bytes((checkpoints / "mega" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"errors\.safetensors: not the weights of an error head"):
        checkpoint.load_errors(tmp_path, model)
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"errors\.safetensors: not the weights of an error head"):
        checkpoint.load_errors(tmp_path, model)


def test_a_backbone_of_others_has_an_origin(bundle: Bundle, checkpoints: Path) -> None:
    assert bundle.origins["backbone"] == "Eyes (eyes.tflite of npm eyes 1), as published; licence: Apache-2.0"
    assert backbone_origin({"backbone": "eyes.pth"}) == backbone_origin({}) == {}
    stage = json.loads((checkpoints / "mega" / "training.json").read_text())
    assert backbone_origin({"steps": 1, "before": stage}) == {"backbone": bundle.origins["backbone"]}


def test_a_detector_comes_with_its_origin(bundle: Bundle, checkpoints: Path, tmp_path: Path) -> None:
    assert bundle.path("detector").read_bytes() == DETECTOR.read_bytes()
    assert list(bundle.graphs["detector"].outputs) == ["boxes", "scores", "keypoints"]
    assert "Google" in bundle.origins["detector"]

    def refused(detector: Path) -> str:
        with pytest.raises(InputError) as error:
            export(replace(CONFIG, checkpoint=checkpoints / "mega", out=tmp_path, detector=detector))
        assert not list(tmp_path.iterdir()), "no half bundle"
        return str(error.value)

    assert refused(bundle.path("backbone")) == (
        f"{bundle.path('backbone')}: not a bundle's detector; make one with mega import-detector"
    )
    assert refused(bundle.folder / "nothing.onnx") == f"{bundle.folder / 'nothing.onnx'}: there is no such file"


def test_all_ways_of_the_benchmark_make_the_same_people(bundle: Bundle, checkpoints: Path) -> None:
    paths = ways.ModelPaths(bundle.folder, checkpoints / "mega")
    made = {way: ways.Runner(way, paths).first(2, 3) for way in ("plain", "eager", "cpu")}
    expected = made["cpu"].people
    for way, first in made.items():
        assert (first.people.tokens == expected.tokens).all(), way
        assert (first.people.samples == expected.samples).mean() > 0.95 and first.people.samples.shape[:2] == (2, 3), (
            way
        )
        assert first.peak > 5e7
    one, two = (ways.Runner("plain", paths).first(1, q).flop for q in (1, 2))
    none = ways.Runner("plain", paths).first(1, 0).flop
    # the backbone and all steps run once more for each sample
    assert (
        one
        and two
        and none
        and two - one
        == one - none
        > sum(flop.count(onnx.load(bundle.path(graph)), {"P": 1, "Q": 1}) for graph in ("backbone", "sampler"))
    )


def test_parity_notices_other_weights(parity: Parity, bundle: Bundle, checkpoints: Path) -> None:
    other = Parity(bundle, checkpoints / "mega")
    with torch.no_grad():
        other.model.tokenizer.quantizer.codebook.mul_(1.01)
        other.model.mega.camera_head.bias.add_(0.001)
    differences = other.people(np.zeros((1, 64, 64, 3), np.uint8), 1)
    wrong = {key for key, value in differences.items() if not value <= LIMITS[key[1]]}
    assert wrong == {("deterministic", "vertices"), ("deterministic", "camera"), ("sampler", "vertices")}


@pytest.mark.parametrize(("camera", "error", "code"), [(0.0, 0.0, 0), (1.0, 0.0, 1), (0.0, 1.0, 1)])
def test_the_check_ends_with_1_if_anything_differs(
    monkeypatch: pytest.MonkeyPatch, camera: float, error: float, code: int
) -> None:
    """An output of a graph, for any number of people, or the people that the whole bundle makes."""
    found = dict.fromkeys(gates.GATES["fp32"], 0.0) | {"vertex error, max": error}
    compared = SimpleNamespace(
        bundle=Bundle.load(DEFAULT),
        people=lambda crops, samples: {("deterministic", "camera"): camera if len(crops) == 1 else 0.0},
        gated=lambda crops, samples: found,
    )
    monkeypatch.setattr(check, "Parity", lambda *_: compared)
    monkeypatch.setattr(check, "rendered_crops", lambda parity, count: gates.noise_crops(8, count))
    assert check.main(CheckConfig(Path(), "default")) == code


def test_samples_differ_and_a_uniform_is_one_sample(parity: Parity) -> None:
    """Equal uniforms give equal samples whatever their place; different ones give different samples."""
    features = np.random.default_rng(0).normal(size=(2, 32, 2, 2)).astype(np.float32)
    shape = (2, 3, STEPS, parity.model.tokenizer.length, 2)
    uniforms = np.random.default_rng(1).uniform(0.001, 0.999, shape).astype(np.float32)
    uniforms[:, 2] = uniforms[:, 0]
    made = parity.engines["deterministic"].run(features=features)
    tokens = parity.engines["sampler"].run(image=made["image"], logits=made["logits"], uniforms=uniforms)["tokens"]
    assert (tokens[:, 0] == tokens[:, 2]).all()
    assert (tokens[:, 0] != tokens[:, 1]).any()


def test_manifest_says_what_was_exported(bundle: Bundle, checkpoints: Path) -> None:
    length = json.loads((checkpoints / "mega" / "config.json").read_text())["tokens"]
    assert bundle.name == "tiny"
    assert bundle.graphs["backbone"].inputs["crops"].shape == ("P", 64, 64, 3)
    assert bundle.graphs["sampler"].inputs["uniforms"].shape == ("P", "Q", STEPS, length, 2)
    assert bundle.graphs["sampler"].outputs["vertices"].shape == ("P", "Q", 128, 3)
    assert bundle.graphs["detector"].inputs["image"].shape == (1, 192, 256, 3)
    assert (bundle.sampling.steps, bundle.sampling.samples, bundle.sampling.temperature) == (STEPS, 4, 1.3)
    assert (bundle.calibration.scale, bundle.calibration.coverage) == (1.5, {}), "not evaluated"
    assert (bundle.crop.size, bundle.crop.margin, bundle.crop.camera, bundle.crop.passes) == (64, 1.2, "ray", 1)
    backbone = checkpoint.load_mega(checkpoints / "mega")[0].backbone
    assert (bundle.crop.mean, bundle.crop.std) == (backbone.mean, backbone.std)


def test_graphs_keep_no_paths_and_no_data_beside_them(bundle: Bundle) -> None:
    assert {file.name for file in bundle.folder.iterdir()} == {"bundle.json", *bundle.files}
    here = str(Path(__file__).parents[1]).encode()
    for graph in bundle.graphs:
        raw = bundle.path(graph).read_bytes()
        assert here not in raw and b".py" not in raw, graph


def test_large_weights_are_stored_as_half(bundle: Bundle) -> None:
    for graph in ("backbone", "sampler"):
        kinds = [
            (tensor.data_type, int(np.prod(tensor.dims))) for tensor in onnx.load(bundle.path(graph)).graph.initializer
        ]
        assert any(kind == onnx.TensorProto.FLOAT16 for kind, _ in kinds)
        assert all(size < 1024 for kind, size in kinds if kind == onnx.TensorProto.FLOAT), graph


def test_deterministic_graph_has_no_encoder(bundle: Bundle) -> None:
    """Its encoder sees nothing, so only a constant of it is left: the graph is smaller than the sampler's."""
    nodes = {graph: len(onnx.load(bundle.path(graph)).graph.node) for graph in ("deterministic", "sampler")}
    norms = [n for n in onnx.load(bundle.path("deterministic")).graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == 4  # of the one decoder block: its first norm is apart for image, cls and masked tokens
    assert nodes["deterministic"] < nodes["sampler"]


@pytest.mark.parametrize("model", ["bundle", "lifting", "default"])
def test_tensorrt_takes_every_operator(request: pytest.FixtureRequest, model: str) -> None:
    """bundle: the paper's layout; lifting: the default model's, with small weights."""
    made = Bundle.load() if model == "default" else request.getfixturevalue(model)
    made = made if isinstance(made, Bundle) else made.bundle
    found = {graph: refused(onnx.load(made.path(graph))) for graph in made.graphs}
    assert {graph: faults for graph, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    ("nodes", "fault"),
    [
        ([("Det", ["x"], {})], "Det: not supported"),
        ([("Transpose", ["bytes"], {})], "Transpose: of UINT8"),
        ([("Cast", ["x"], {"to": onnx.TensorProto.INT64}), ("Clip", ["y0"], {})], "Clip: of INT64"),
        ([("CumSum", ["x", "axis"], {})], "CumSum: its input 1 is not a constant"),
        ([("TopK", ["x", "k"], {"sorted": 0})], "TopK: not sorted, or of more than 3839 or an unknown number"),
    ],
)
def test_what_tensorrt_refuses_is_named(nodes: list[tuple[str, list[str], dict[str, Any]]], fault: str) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    made = [
        helper.make_node(kind, given, [f"y{i}", f"z{i}"][: 1 + (kind == "TopK")], **attributes)
        for i, (kind, given, attributes) in enumerate(nodes)
    ]
    types = {"x": (kinds.FLOAT, [4, 4]), "bytes": (kinds.UINT8, [4, 4]), "axis": (kinds.INT64, [])}
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in types.items()]
    output = helper.make_empty_tensor_value_info(made[-1].output[0])
    constants = [onnx.numpy_helper.from_array(np.array([2]), "k")]
    model = helper.make_model(
        helper.make_graph(made, "g", inputs, [output], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    assert refused(model) == [fault]
