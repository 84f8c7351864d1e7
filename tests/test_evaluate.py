"""Every table and figure comes out of a command, says by which protocol, and has the numbers that the meshes imply."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation
from smpl_files import smpl_arrays
from test_image_sets import body as body  # the fixture
from test_image_sets import write_3dpw, write_emdb, write_spin
from test_reference import cvqmae as cvqmae
from test_reference import recorded
from test_reference import small as small
from tiny_people import WIDTH

from export.check import Parity
from export.gates import LIMITS
from export.options import ExportConfig
from export.to_onnx import export
from mega_model import checkpoint, generate
from mega_model.blazepose import PoseFeatures
from mega_model.body.smpl import SmplBody
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.data import rendered, shards
from mega_model.data.features import FeatureSet
from mega_model.data.images import ImageSet, open_set
from mega_model.data.mesh_sets import open_meshes
from mega_model.data.raster import facing
from mega_model.data.scenes import PARTS
from mega_model.evaluate import draw, figures
from mega_model.evaluate.held_out import compare, constant_answer, error_scores
from mega_model.evaluate.mean import errors_by_mode, mean_table
from mega_model.evaluate.predict import Prediction, collect, features_of, predict, uniforms
from mega_model.evaluate.protocols import METRICS, Protocol
from mega_model.evaluate.random import random_bodies
from mega_model.evaluate.report import Report, number, page, publish
from mega_model.evaluate.stochastic import best_of_table
from mega_model.evaluate.uncertainty import by_visibility, vertex_fields
from mega_model.expected_error import ErrorHead, head_inputs
from mega_model.mega import MegaConfig
from mega_model.options import Calibrate, Conventions, ImageSelection, Random, SamplingOptions, Write
from mega_model.tokenizer import TokenizerConfig
from mega_ros import cli
from mega_ros.bundle import Body


@pytest.fixture(scope="module")
def folder(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`: an untrained checkpoint whose meshes still look like bodies, `lifting`: one with BlazePose; `crops`: 40
    rendered people, `features`: what BlazePose sees of them."""
    out = tmp_path_factory.mktemp("evaluate")
    for link, place in {"crops": "scenes", "features": "features/test"}.items():
        (out / link).symlink_to(people / place)
    tiny = MegaConfig(
        width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone="resnet18", image_size=32, backbone_width=4
    )
    torch.manual_seed(0)
    checkpoint.save_weights(checkpoint.begin_mega(out / "model", people / "tokenizer", tiny), out / "model")
    lifting = replace(tiny, backbone="blazepose", backbone_width=WIDTH, image_size=256)
    model = checkpoint.begin_mega(out / "lifting", people / "tokenizer", lifting)
    checkpoint.load_weights(model.backbone, people / "blazepose")
    assert model.lifter is not None
    model.lifter.set_codebook(checkpoint.load_tokenizer(people / "tokenizer")[0].quantizer.codebook)
    checkpoint.save_weights(model, out / "lifting")
    return out


@pytest.fixture(scope="module")
def crops(folder: Path) -> ImageSet:
    return open_set(f"rendered:{folder / 'crops'}")


def evaluate(folder: Path, table: str, *options: str) -> tuple[dict[str, Any], str]:
    """The JSON and the HTML that `mega evaluate <table>` leaves, run on eight images."""
    shared = ["--checkpoint", folder / "model", "--set", f"rendered:{folder / 'crops'}", "--out", folder / table]
    assert cli.main(["evaluate", table, *map(str, shared), "--count", "8", "--batch", "5", *options]) == 0
    file = max((folder / table).glob(f"{table}-rendered-crops-*.json"), key=lambda file: file.stat().st_mtime_ns)
    return json.loads(file.read_text()), file.with_suffix(".html").read_text()


def only_table(content: dict[str, Any]) -> dict[str, Any]:
    (table,) = content["tables"].values()
    return table


# ------------------------------------------------------------------------------------------------------------ protocols


def test_alignment_is_what_its_name_says(crops: ImageSet) -> None:
    truth = crops.batch(np.arange(2), None)["vertices"].numpy()
    moved = truth + np.array([0.1, 0.2, 0.3], np.float32)
    wrong = truth.copy()
    wrong[:, crops.topology.joint_regressor[0] > 0] += 0.05  # the pelvis alone
    for align in ("pelvis", "mean"):
        protocol = Protocol.of(crops, Conventions(align=align))
        assert align in protocol.name and "smpl24" in protocol.name
        for error in protocol.errors(moved, truth).values():
            np.testing.assert_allclose(error, 0, atol=1e-5)
    by_pelvis, by_mean = (
        Protocol.of(crops, Conventions(align=align)).errors(wrong, truth)["PVE"] for align in ("pelvis", "mean")
    )
    assert (by_pelvis > 3 * by_mean).all(), "one wrong pelvis moves every vertex, but hardly their mean"


def test_sets_with_human36m_joints_are_compared_on_them(folder: Path) -> None:
    images = rendered.SceneSet(folder / "crops")
    with pytest.raises(InputError, match="smpl24"):
        Protocol.of(images, Conventions(joints="h36m14"))
    rng = np.random.default_rng(0)
    images.evaluation_regressor = rng.dirichlet(np.ones(1229), 14).astype(np.float32)
    protocol = Protocol.of(images, Conventions())
    assert protocol.name.startswith("h36m14")
    placed = metrics.centre(images.batch(np.arange(3), None)["vertices"].numpy(), protocol.origin)
    hips = (images.evaluation_regressor @ placed)[:, 2:4]
    np.testing.assert_allclose(hips.mean(axis=1), 0, atol=1e-5)
    assert Protocol.of(images, Conventions(joints="smpl24")).name.startswith("smpl24")


def test_procrustes_forgives_what_the_others_do_not(crops: ImageSet) -> None:
    truth = crops.batch(np.arange(2), None)["vertices"].numpy()
    turned = 1.2 * truth @ Rotation.from_euler("y", 90, degrees=True).as_matrix().astype(np.float32)
    errors = Protocol.of(crops, Conventions()).errors(turned, truth)
    assert (errors["PVE"] > 0.05).all() and (errors["MPJPE"] > 0.05).all()
    np.testing.assert_allclose(errors["PA-MPJPE"], 0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- tables


def test_best_by_metric_and_best_by_sample_differ() -> None:
    """Of two samples one has the better mesh, the other the better joints. Two more people are exact."""
    first = {"PVE": [0.30, 0.24, 1, 1, 1], "MPJPE": [0.15, 0.21, 1, 1, 1], "PA-MPJPE": [0.12, 0.18, 1, 1, 1]}
    samples = {metric: np.array([errors, [0] * 5, [0] * 5]) for metric, errors in first.items()}
    single = {metric: np.array([0.27, 0, 0]) for metric in METRICS}
    by_metric, by_sample = (best_of_table(single, samples, best) for best in ("metric", "sample"))
    assert [by_metric[m]["Q = 5"] for m in METRICS] == pytest.approx([80, 50, 40])
    assert [by_sample[m]["Q = 5"] for m in METRICS] == pytest.approx([80, 70, 60])
    assert by_metric["PVE"] == pytest.approx({"Q = 1": 100, "Q = 5": 80, "Imp, %": 20, "deterministic": 90})


def test_mean_table_of_known_meshes(crops: ImageSet) -> None:
    """Five samples about the truth: 0, +d, -d, +d, -d in x on every vertex, and a deterministic mesh 3 d in y off."""
    d, count = 0.02, 2
    batch = crops.batch(np.arange(count), None)
    truth = batch["vertices"].numpy()
    offsets = d * np.array([0, 1, -1, 1, -1], np.float32)[:, None, None] * np.array([1, 0, 0], np.float32)
    single = truth + np.array([0, 3 * d, 0], np.float32)
    nothing = np.zeros((count, 3))
    prediction = Prediction(batch, truth, single, truth[:, None] + offsets, nothing, nothing, nothing, nothing)
    errors = errors_by_mode([prediction, prediction], Protocol.of(crops, Conventions()))
    assert len(errors["mean of 5", "PVE"]) == 2 * count
    table = mean_table(errors, [1, 5])
    assert table["SD"] == pytest.approx({"Q = 1": None, "Q = 5": 1000 * d * np.sqrt(4 / 5), "deterministic": 0})
    assert table["Dist. to det."] == pytest.approx({"Q = 1": 3000 * d, "Q = 5": 3000 * d, "deterministic": 0}, rel=1e-4)
    assert table["PVE"]["Q = 5"] == pytest.approx(0, abs=1e-2), "aligned at the pelvis, a shift is no error"


def test_uncertainty_by_visibility() -> None:
    """Visible vertices with a true sigma, occluded ones with a third of it."""
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.01, 0.1, (100, 500))
    error = np.linalg.norm(rng.normal(size=(*sigma.shape, 3)), axis=-1) * sigma / np.sqrt(3)
    visible = rng.random(sigma.shape) < 0.5
    radii = metrics.radius(metrics.LEVELS)
    groups = by_visibility(error, np.where(visible, sigma, sigma / 3), visible, radii)
    good, bad = groups["visible"], groups["occluded"]
    assert good["within 50 %"] == pytest.approx(0.5, abs=0.01)
    assert good["within 90 %"] == pytest.approx(0.9, abs=0.01)
    assert good["ECE"] < 0.01 < 0.3 < bad["ECE"]
    assert good["AUSE"] == pytest.approx(bad["AUSE"], abs=0.02), "the order is as good in both"
    assert "occluded" not in by_visibility(error, sigma, np.ones_like(visible), radii)


def test_scores_by_hand(folder: Path, crops: ImageSet) -> None:
    """Of 4 people, the hidden vertices are 5 cm off; in 10 samples, they are 10 cm off on either side, then 5 cm."""
    tokenizer = checkpoint.load_tokenizer(folder / "model" / "tokenizer")[0]
    protocol, batch = Protocol.of(crops, Conventions()), dict(crops.batch(np.arange(4), None))
    truth = (batch["vertices"] @ batch["rotation"].mT).numpy()
    hidden = (crops.topology.joint_regressor == 0).all(axis=0)
    batch["visible"] = torch.from_numpy(~hidden).expand(4, -1)
    off = np.where(hidden, 0.05, 0).astype(np.float32)[:, None] * np.array([0, 1, 0], np.float32)
    samples = truth[:, None] + np.array([2, -2] * 3 + [1, -1] * 2, np.float32)[:, None, None] * off
    turns = Rotation.from_euler("z", [[10], [60], [80], [100]], degrees=True).as_matrix()
    beside = np.tile([0, 0.03, 0], (4, 1))
    p = Prediction(
        batch, truth, truth + off, samples, hidden + 1.0, turns @ batch["rotation"].numpy(), np.zeros((4, 3)), beside
    )
    fields = vertex_fields(p, protocol)
    np.testing.assert_allclose(fields["error"], np.where(hidden, [[0.08]] * 4, 0.03), atol=1e-5)
    scores = error_scores(compare(p, tokenizer, protocol), np.full((4, 5), 0.2))
    decoded = tokenizer.decode(tokenizer.encode(batch["vertices"])).detach().numpy()
    share = hidden.mean()
    assert scores == pytest.approx(
        {
            "PVE": 50 * share,
            "MPJPE": 0,
            "PA-MPJPE": 0,
            "PVE visible": 0,
            "PVE hidden": 50,
            "PVE of the tokenizer alone": 1000 * protocol.errors(decoded, batch["vertices"].numpy())["PVE"].mean(),
            "PVE constant answer": 200,
            "PVE one sample": 80 * share,
            "PVE mean of samples": 0,
            "PVE best of 5": 100 * share,
            "PVE best of 10": 50 * share,
            "rotation off, median, degrees": 70,
            "rotation off by over 90 degrees, %": 25,
            "images": 4,
        },
        abs=0.02,
        rel=1e-3,
    )


def test_the_best_constant_answer_is_in_the_middle(crops: ImageSet) -> None:
    protocol, vertices = Protocol.of(crops, Conventions()), crops.batch(np.arange(1), None)["vertices"].numpy()
    wide = Rotation.from_euler("y", [[-30], [30]], degrees=True).as_matrix()
    start = Rotation.random(random_state=0).as_matrix()
    found = constant_answer({"vertices": vertices * [[[0.9]], [[1.1]]], "rotation": start @ wide}, protocol)
    truth = vertices * [[[0.9]], [[1.1]]] @ (start @ wide).swapaxes(1, 2)
    np.testing.assert_allclose(found, protocol.vertex_errors(vertices @ start.T, truth), atol=1e-5)


def test_a_body_hides_its_far_side(crops: ImageSet) -> None:
    """A ball shows the half that is turned to the camera; a person's front and back have little in common."""
    normals = np.random.default_rng(0).normal(size=(2000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    faces = ConvexHull(normals).simplices
    inwards = np.linalg.det(normals[faces]) < 0
    faces[inwards] = faces[inwards, ::-1]
    (shown,) = facing(0.5 * normals[None] + [3, -1, 2], faces)
    assert shown[normals[:, 2] < -0.1].all() and not shown[normals[:, 2] > 0.1].any()

    batch = crops.batch(np.arange(len(crops)), None)
    meshes = (batch["vertices"] @ batch["rotation"].mT).numpy()
    front = facing(meshes, crops.topology.faces)
    back = facing(meshes * [-1, 1, -1], crops.topology.faces)  # half a turn about the vertical
    assert (front | back).mean() > 0.8 > 0.1 > (front & back).mean()


def test_samples_are_those_of_the_image(folder: Path, crops: ImageSet) -> None:
    model = checkpoint.load(folder / "model")

    def samples(seed: int, batch: int) -> np.ndarray:
        config = ImageSelection(count=5, seed=seed, batch=batch, device="cpu")
        return np.concatenate([p.samples for p in predict(model, crops, config, SamplingOptions(samples=3))])

    together = samples(0, 5)
    assert np.isclose(together, samples(0, 2), atol=1e-5).mean() > 0.98, "a near tie may fall otherwise"
    assert not np.isclose(together, samples(1, 5), atol=1e-5).all()
    own = uniforms(np.array([7, 8]), SamplingOptions(samples=3), length=4, seed=0)
    assert not torch.isclose(own[0], own[1]).any()
    assert torch.equal(own[1:], uniforms(np.array([8]), SamplingOptions(samples=3), length=4, seed=0))


# ------------------------------------------------------------------------------------------------------------- commands


def test_deterministic_and_stochastic_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single, html = evaluate(folder, "deterministic")
    (row,) = only_table(single).values()
    assert list(row) == [*METRICS] and all(value > 0 for value in row.values())
    assert single["facts"]["protocol"] == "smpl24, aligned at the pelvis"
    assert single["facts"]["images"].startswith("8,")
    printed = capsys.readouterr().out
    assert "PA-MPJPE" in printed and f"{row['PVE']:.4g}" in printed and f"{row['PVE']:.4g}" in html
    assert html.count("<img") == 1

    best, _ = evaluate(folder, "stochastic", "--samples", "10", "--steps", "3", "--best", "sample")
    table = only_table(best)
    assert {metric: table[metric]["deterministic"] for metric in METRICS} == pytest.approx(row)
    values = [table["PVE"][f"Q = {q}"] for q in (1, 5, 10)]
    assert values[0] > values[1] > values[2]
    assert table["PVE"]["Imp, %"] == pytest.approx(100 * (1 - values[2] / values[0]))
    assert best["facts"]["protocol"].endswith("best by sample")


def test_reports_say_what_their_mesh_is_and_lie_side_by_side(folder: Path, tmp_path: Path) -> None:
    command = f"evaluate deterministic --checkpoint {folder}/model --set rendered:{folder}/crops --out {tmp_path}"
    for options in ("", "--decode argmax", "--decode argmax --no-fit"):
        assert cli.main([*command.split(), "--count", "4", *options.split()]) == 0
    reports = {file.stem: json.loads(file.read_text())["facts"]["mesh"] for file in tmp_path.glob("*.json")}
    name = "deterministic-rendered-crops-smpl24-aligned-at-the-pelvis"
    assert reports == {
        name: "as published",
        f"{name}-most-likely-tokens": "most likely tokens",
        f"{name}-most-likely-tokens-not-fitted": "most likely tokens, not fitted",
    }


def test_reports_of_sets_and_protocols_lie_side_by_side(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(folder / "crops")
    for images in (folder / "crops", tmp_path / "train"):
        for align in ("mean", "pelvis"):
            command = ["evaluate", "deterministic", "--checkpoint", folder / "model", "--set", f"rendered:{images}"]
            assert cli.main([*map(str, command), "--align", align, "--count", "99", "--out", str(tmp_path)]) == 0
    reports = {file.stem: json.loads(file.read_text())["facts"] for file in tmp_path.glob("*.json")}
    aligned = "smpl24-aligned-at-the"
    assert set(reports) == {
        f"deterministic-rendered-{name}-{aligned}-{align}"
        for name in ("crops", "train")
        for align in ("mean", "pelvis")
    }
    assert {facts["images"] for facts in reports.values()} == {"40, the whole set"}


def test_mean_table(folder: Path) -> None:
    content, html = evaluate(folder, "mean", "--samples", "5", "--steps", "3", "--align", "mean")
    table = only_table(content)
    assert list(table) == [*METRICS, "Dist. to det.", "SD"]
    assert list(table["PVE"]) == ["Q = 1", "Q = 5", "deterministic"]
    assert table["Dist. to det."]["Q = 5"] < table["Dist. to det."]["Q = 1"]
    assert table["SD"]["Q = 5"] > 0 and content["facts"]["protocol"] == "smpl24, aligned at the mean"
    assert html.count("<img") == 1


def test_random_table(folder: Path) -> None:
    out = ["--checkpoint", str(folder / "model"), "--out", str(folder / "random")]
    assert cli.main(["evaluate", "random", *out, "--count", "20", "--compared", "60", "--steps", "4"]) == 0
    content = json.loads((folder / "random" / "random.json").read_text())
    table = only_table(content)
    model, tokenizer, _ = checkpoint.load_mega(folder / "model")
    options = Random(checkpoint=folder / "model", count=20, steps=4, device="cpu")
    joints = open_meshes(options).topology().joints(random_bodies(model, tokenizer, options))
    assert table["random bodies"]["APD, cm"] == pytest.approx(100 * metrics.apd(joints - joints[:, :1]), rel=1e-3)
    assert 0 < table["as many of the mesh set"]["FID"] < table["random bodies"]["FID"], "untrained: far from real"
    assert "486 latents" in content["facts"]["FID"]
    assert (folder / "random" / "random.html").read_text().count("<img") == 1


def test_uncertainty_table(folder: Path) -> None:
    content, html = evaluate(folder, "uncertainty", "--samples", "4", "--steps", "2", "--scale", "2")
    table = only_table(content)
    assert list(table) == ["all", "visible", "occluded"]
    assert all(0 <= row["within 50 %"] <= row["within 90 %"] <= 1 for row in table.values())
    half, _ = evaluate(folder, "uncertainty", "--samples", "4", "--steps", "2", "--scale", "1")
    assert [row["sigma"] for row in table.values()] == pytest.approx(
        [2 * row["sigma"] for row in only_table(half).values()]
    )
    assert 1 < table["all"]["error"] < 1000, "millimetres"
    assert content["facts"]["sigma"].startswith("2 times") and "chi" in content["facts"]["error model"]
    assert html.count("<img") == 1


def test_figures(folder: Path) -> None:
    sampling = ["--samples", "5", "--steps", "3", "--rows", "1"]
    _, html = evaluate(folder, "figures", *sampling, "--pretrained", str(folder / "model"))
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    assert [caption[:8] for caption in captions] == [f"Figure {n}" for n in (4, 5, 6, 7, 9, 7)]


def score(model: Path, *options: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """scores.json and the report of `mega evaluate`."""
    command = ["evaluate", "--checkpoint", model, "--steps", "2", "--samples", "5", *options]
    assert cli.main([*map(str, command)]) == 0
    scores, report = (model / name for name in ("scores.json", "evaluation/held_out.json"))
    return json.loads(scores.read_text()), json.loads(report.read_text())


def test_scores_of_held_out_people_and_calibration(folder: Path) -> None:
    crops, model = folder / "crops", folder / "model"
    command = ["calibrate", "--checkpoint", model, "--set", crops, "--steps", "2", "--samples", "5"]
    assert cli.main([*map(str, command)]) == 0
    scores, report = score(model, "--test", crops)
    calibration = json.loads((model / "calibration.json").read_text())
    parts = scores["parts"]
    assert list(parts) == ["all", *PARTS] and report["tables"]["Errors, mm"].keys() == parts.keys()
    assert [parts[part]["images"] for part in parts] == [40, 8, 8, 8, 8, 8]
    for name in ("PVE", "PA-MPJPE", "PVE best of 5"):
        assert np.mean([parts[part][name] for part in PARTS]) == pytest.approx(parts["all"][name])
    assert all(part["PVE best of 5"] < part["PVE one sample"] for part in parts.values())
    assert scores["samples"] == 5 and calibration.keys() == {"scale", "how"}, "evaluation says how well it holds"
    assert scores["sigma"]["all"]["within 50 %"] == pytest.approx(0.5, abs=0.01), "the radii are of these people"
    assert scores["sigma"]["all"]["error"] == pytest.approx(parts["all"]["PVE"])
    # the factor makes sigma the root mean square of the very people it is made of
    people = open_set(f"rendered:{crops}", (32, 32))
    drawn, protocol = (
        Calibrate(checkpoint=model, set=crops, steps=2, samples=5, device="cpu"),
        Protocol.of(people, Conventions()),
    )
    found = collect(vertex_fields(p, protocol) for p in predict(checkpoint.load(model), people, drawn, drawn))
    error, spread = (np.sqrt(np.square(found[name]).mean()) for name in ("error", "sigma"))
    assert calibration["scale"] == pytest.approx(error / spread, rel=1e-3) and report["facts"]["sigma"].startswith(
        f"{calibration['scale']:g} times"
    )
    assert list(scores["ways"]) == ["as published", "most likely tokens", "not tied to the landmarks"]
    assert scores["ways"]["as published"] == scores["ways"]["not tied to the landmarks"], "it has no landmarks"
    assert scores["ways"]["as published"] != scores["ways"]["most likely tokens"]
    # crops are of the model's size, as for the other tables
    content, _ = evaluate(folder, "deterministic", "--count", "40")
    assert only_table(content)[f"rendered:{crops}"]["PVE"] == pytest.approx(parts["all"]["PVE"], rel=1e-4)
    # what the export reads is about the published mesh
    scored = [score(model, "--test", crops, *options) for options in (["--decode", "argmax"], ["--no-fit"])]
    assert [found for found, _ in scored] == [scores, scores]
    (_, report), _ = scored
    assert report["facts"]["mesh"] == "most likely tokens"
    assert report["tables"]["Errors, mm"]["all"]["PVE"] == scores["ways"]["most likely tokens"]["PVE"]
    # what was calibrated is used from now on
    content, _ = evaluate(folder, "uncertainty", "--samples", "5", "--steps", "2")
    assert content["facts"]["sigma"].startswith(f"{calibration['scale']:g} times")
    assert "by mega evaluate on test people" in content["facts"]["error model"]
    assert cli.main([*map(str, command)]) == 0
    assert not (model / "scores.json").exists(), "they were of another sigma"


def test_scores_of_a_model_with_landmarks_and_an_error_head(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lifting", tmp_path / "model")
    model, tokenizer, topology = checkpoint.load_mega(tmp_path / "model")
    seen, images = FeatureSet(folder / "features"), rendered.SceneSet(folder / "crops")
    batch = seen.batch(np.arange(40), None)
    features = PoseFeatures(*(batch[name] for name in PoseFeatures._fields))
    modes = torch.zeros(2, len(topology.template), 3)
    modes[0, :200], modes[1, 800:] = 0.1, 0.2
    with torch.no_grad():
        image, states, _ = generate.first_pass(model, features)
    assert image.maps is not None
    head = ErrorHead.begin(model.config.width, tokenizer, topology, image.maps, modes)
    checkpoint.save_errors(tmp_path / "model", head)
    scores, report = score(tmp_path / "model", "--test", folder / "features")
    assert report["facts"]["sigma"] == "the error head" and not (tmp_path / "model" / "calibration.json").exists()
    ways = scores["ways"]
    assert ways["as published"]["PVE"] != ways["not tied to the landmarks"]["PVE"]
    assert ways["as published"]["PA-MPJPE"] != ways["not tied to the landmarks"]["PA-MPJPE"], "meshes bend"
    with torch.no_grad():
        expected = head(**head_inputs(states, image, features, batch["keypoints"])).sigma
    config = ImageSelection(batch=13, device="cpu", fit=False)
    # a device without memory stands in for a GPU: a part that stays behind cannot compute with the others
    away = checkpoint.load(tmp_path / "model").to("meta")
    assert away.errors is not None
    assert {x.device.type for part in away.networks for x in part.state_dict().values()} == {"meta"}
    whole = checkpoint.load(tmp_path / "model")
    found = [*predict(whole, seen, config)]
    np.testing.assert_allclose(np.concatenate([p.sigma for p in found]), expected, rtol=1e-4)
    fitted = [*predict(whole, seen, ImageSelection(batch=13, device="cpu"))]
    wider = np.concatenate([p.sigma for p in fitted]) / expected.numpy()
    assert wider.min() > 0.999 and wider.mean() > 1.01, "what the mesh misses is added"
    assert any(p.beside.any() for p in fitted) and not any(p.beside.any() for p in found)
    assert found[0].samples.shape == (13, 0, 1229, 3)
    # crops of a rendered set pass the backbone, which stored features did before
    rotations = [next(predict(whole, s, config)).rotation for s in (seen, images)]
    assert np.degrees(np.arccos((np.einsum("bij,bij->b", *rotations) - 1).clip(-2, 2) / 2)).mean() < 10
    tables = {}
    for table in ("deterministic", "stochastic", "mean", "uncertainty"):
        command = ["evaluate", table, "--checkpoint", tmp_path / "model", "--out", tmp_path / "report"]
        drawn = [] if table == "deterministic" else ["--samples", "2", "--steps", "1"]
        assert cli.main([*map(str, command), "--set", f"features:{folder / 'features'}", *drawn]) == 0
        (file,) = (tmp_path / "report").glob(f"{table}-*.json")
        tables[table] = json.loads(file.read_text())
    (single,) = only_table(tables["deterministic"]).values()
    for table in ("stochastic", "mean"):
        assert {name: only_table(tables[table])[name]["deterministic"] for name in METRICS} == pytest.approx(single)
    facts = tables["uncertainty"]["facts"]
    assert facts["sigma"] == "the error head" and facts["visible"] == "visible to the camera"


@torch.no_grad()
def test_the_backbone_sees_normalised_colours(folder: Path, crops: ImageSet) -> None:
    model, _, _ = checkpoint.load_mega(folder / "model")
    batch = crops.batch(np.arange(3), None)
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.backbone.mean, model.backbone.std))
    seen = model.backbone((batch["images"] / 255 - mean) / std)
    torch.testing.assert_close(features_of(model, batch, "cpu"), seen)


def test_published_meshes_are_the_expected_ones(folder: Path, crops: ImageSet) -> None:
    model, tokenizer, _ = checkpoint.load_mega(folder / "model")
    batch = crops.batch(np.arange(3), None)
    with torch.no_grad():
        image = model.encode_image(features_of(model, batch, "cpu")).image
        logits = generate.first_logits(model, image)
        codes = logits.softmax(dim=-1) @ tokenizer.quantizer.codebook
        meshes = {"expected": tokenizer.reconstruct(codes), "argmax": tokenizer.decode(logits.argmax(dim=-1))}
    for decode, mesh in meshes.items():
        how = ImageSelection(count=len(crops), batch=3, device="cpu", decode=decode)  # type: ignore[arg-type]
        p = next(predict(checkpoint.load(folder / "model"), crops, how))
        np.testing.assert_allclose(p.single, np.einsum("bij,bvj->bvi", p.rotation, mesh), atol=1e-5)
        assert np.isnan(p.sigma).all(), "nobody says"


def test_a_model_of_another_body_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "crops"
    other.mkdir()
    for file in (folder / "crops").glob("*.npy"):
        array = np.load(file)
        np.save(other / file.name, array[:, :100] if file.stem in ("vertices", "visible") else array)
    command = ["evaluate", "deterministic", "--checkpoint", str(folder / "model"), "--set", f"rendered:{other}"]
    assert cli.main(command) == 1
    assert "has meshes of 100 vertices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("deterministic --checkpoint model --set features:features", "are not of the model's backbone, resnet18"),
        ("figures --checkpoint lifting --set features:features", "features have no images to draw"),
        ("uncertainty --checkpoint model --set rendered:crops --samples 1", "sigma is the spread of at least 2"),
        ("uncertainty --checkpoint model --set rendered:crops --steps 1", "all samples are the same"),
        ("deterministic --checkpoint model --set rendered:crops --device tpu", "--device tpu: "),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    words: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["evaluate", *words.split()]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("mega evaluate"))
    assert message in line


def test_samples_that_are_all_the_same_calibrate_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their spread is rounding, and the factor was 28 million."""
    command = ["calibrate", "--checkpoint", folder / "model", "--set", folder / "crops", "--temperature", "0"]
    assert cli.main([*map(str, command)]) == 1
    assert "mega calibrate: --steps 2 --temperature 0: all samples are the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16.5}, "Expected `int`, got `float` - at `$.width`"),
        ({"heads": "2"}, "Expected `int`, got `str` - at `$.heads`"),
        ({"heads": 3}, "its width of 16 cannot be divided among 3 heads"),
        ({"backbone": "cat"}, "Invalid enum value 'cat' - at `$.backbone`"),
        ({"colour": 1}, "it has no colour"),
    ],
)
def test_a_config_of_something_else_is_named(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=rf"config\.json: not the config of a Mega .*{re.escape(message)}"):
        checkpoint.load(tmp_path / "model")


def test_weights_that_are_no_numbers_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    model = checkpoint.load(tmp_path / "model").mega
    model.head.weight.data[3, 2] = torch.nan
    checkpoint.save_weights(model, tmp_path / "model")
    with pytest.raises(InputError, match=r"model\.safetensors: head\.weight holds something other than finite numbers"):
        checkpoint.load(tmp_path / "model")


def test_data_sets_on_disk_are_trained_on_and_evaluated(body: Path, tmp_path: Path) -> None:
    """A mixture of COCO's and 3DPW's files trains a model of SMPL's body; every kind of set scores it."""
    topology = SmplBody(body / "SMPL_NEUTRAL.npz").topology()
    tokenizer = checkpoint.begin_tokenizer(tmp_path / "tokenizer", topology, TokenizerConfig())
    checkpoint.save_weights(tokenizer, tmp_path / "tokenizer")
    tiny = MegaConfig(tokenizer.length, 512, 16, 1, 1, 2, "resnet18", backbone_width=8, image_size=32)
    start = checkpoint.begin_mega(tmp_path / "start", tmp_path / "tokenizer", tiny)
    checkpoint.save_weights(start, tmp_path / "start")
    coco, pw3d = f"coco:{write_spin(tmp_path / 'coco')}", f"3dpw:{write_3dpw(tmp_path / '3dpw', body)}"
    emdb = f"emdb:{write_emdb(tmp_path / 'emdb', body)}"
    shards.write(Write(coco, tmp_path / "shards"))

    options = f"--pretrained {tmp_path}/start --out {tmp_path}/model --steps 2 --batch 6 --lr 0.001 --warmup 1"
    assert cli.main(["train", "recover", *options.split(), "--sets", coco, pw3d, "--body", str(body)]) == 0
    made = json.loads((tmp_path / "model" / "training.json").read_text())
    assert made["images"].keys() == {coco, pw3d}

    occluded = pw3d.replace("3dpw:", "3dpw-occ:")
    for images in (coco, pw3d, occluded, emdb, f"shards:{tmp_path}/shards"):
        command = ["evaluate", "deterministic", "--checkpoint", str(tmp_path / "model"), "--set", images]
        assert cli.main([*command, "--body", str(body), "--out", str(tmp_path / "reports")]) == 0
    reports = {file.stem.split("-aligned")[0]: json.loads(file.read_text()) for file in tmp_path.glob("reports/*.json")}
    words = "coco-coco-h36m14 3dpw-3dpw-h36m14 3dpw-occ-3dpw-h36m14 emdb-emdb-smpl24 shards-shards-h36m14".split()
    assert reports.keys() == {f"deterministic-{word}" for word in words}
    errors = {name: only_table(report).popitem()[1]["PVE"] for name, report in reports.items()}
    assert all(value > 0 for value in errors.values())
    command = ["evaluate", "uncertainty", "--checkpoint", str(tmp_path / "model"), "--set", pw3d, "--samples", "3"]
    assert cli.main([*command, "--body", str(body), "--out", str(tmp_path / "uncertainty")]) == 0
    (report,) = (json.loads(file.read_text()) for file in tmp_path.glob("uncertainty/*.json"))
    assert only_table(report).keys() == {"all", "visible", "occluded"} and "own body" in report["facts"]["visible"]
    # a set and its shards are the same people
    assert errors["deterministic-shards-shards-h36m14"] == pytest.approx(errors["deterministic-coco-coco-h36m14"], 0.02)


@pytest.fixture
def imported(small: list[str], body: Path, tmp_path: Path) -> str:
    """Trains `model` for a step from `out`, an imported pair, both below tmp_path. Returns the set, with its body."""
    np.savez(tmp_path / "smpl.npz", **{**smpl_arrays(162), "f": recorded("tiny_mesh_medium")["faces"]})
    assert cli.main([*small, "--smpl-model", str(tmp_path / "smpl.npz")]) == 0
    pw3d = f"3dpw:{write_3dpw(tmp_path / '3dpw', body)} --body {body}"
    options = f"--preset default --steps 1 --batch 2 --lr 0.001 --sets {pw3d}"
    folders = f"--pretrained {tmp_path}/out --out {tmp_path}/model"
    assert cli.main(["train", "recover", *folders.split(), *options.split()]) == 0
    return pw3d


def test_an_imported_model_is_trained_and_evaluated(imported: str, tmp_path: Path) -> None:
    (before, released, _), (after, tokenizer, _) = (checkpoint.load_mega(tmp_path / name) for name in ("out", "model"))
    assert torch.equal(tokenizer.quantizer.codebook, released.quantizer.codebook)
    moved = (after.head.weight - before.head.weight).abs()
    assert 0 < moved.max() < 0.01, "one step away from the released weights"

    options = f"--checkpoint {tmp_path}/model --set {imported} --samples 5 --steps 2"
    assert cli.main(["evaluate", "stochastic", *options.split()]) == 0
    (report,) = (tmp_path / "model" / "evaluation").glob("stochastic-3dpw-*.json")
    assert only_table(json.loads(report.read_text()))["PVE"]["Q = 5"] > 0


@pytest.mark.slow  # the exporter takes its time
@pytest.mark.usefixtures("imported")
def test_an_imported_model_is_exported(tmp_path: Path) -> None:
    body = Body("smpl", "made up", "none")
    bundle = export(ExportConfig(tmp_path / "model", tmp_path / "bundle", steps=1, body=body, fp32=[]))
    size = bundle.crop.size
    crops = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    differences = Parity(bundle, tmp_path / "model").people(crops, samples=2)
    assert {key: value for key, value in differences.items() if not value <= LIMITS[key[1]]} == {}


# --------------------------------------------------------------------------------------------------- images and pages


def pixels(mesh: np.ndarray, faces: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """uint8 RGB [100, 100, 3] of a mesh alone on a page."""
    figure, axes = draw.grid(1, 1, [], side=1)
    draw.alone(axes[0, 0], mesh, faces, values)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_meshes_stand_upright_and_show_their_values(crops: ImageSet) -> None:
    topology = crops.topology
    mesh = topology.template @ draw.UPRIGHT
    certain, uncertain = (pixels(mesh, topology.faces, np.full(len(mesh), v)).astype(int) for v in (0.0, 1.0))
    drawn = certain.min(axis=-1) < 250
    rows, columns = np.nonzero(drawn)
    assert np.ptp(rows) > 80, "as large as fits"
    head, feet = (columns[rows < rows.min() + 8], columns[rows > rows.max() - 8])
    assert np.ptp(head) < np.ptp(feet), "the head is up"
    assert (certain[drawn][:, 2] >= certain[drawn][:, 0]).mean() > 0.9, "blue"
    assert (uncertain[drawn][:, 0] >= uncertain[drawn][:, 2]).mean() > 0.9, "red"


def test_the_nearer_triangle_hides_the_other() -> None:
    corners = np.array([[-1.0, 1, 0], [0, -1, 0], [1, 1, 0]])  # counter-clockwise for the camera, whose y is down
    mesh = np.concatenate([corners + [0, 0, 1], corners])
    near_is_red = np.array([0.0, 0, 0, 1, 1, 1])
    for faces in ([[0, 2, 1], [3, 5, 4]], [[3, 5, 4], [0, 2, 1]]):
        red, _, blue = pixels(mesh, np.array(faces), near_is_red)[50, 50].astype(int)
        assert red > blue
    assert pixels(mesh, np.array([[0, 1, 2]])).min() > 250, "what faces away is not drawn"


def test_steps_end_where_the_sampler_does(folder: Path) -> None:
    model, tokenizer, _ = checkpoint.load_mega(folder / "model")
    features = torch.randn(2, model.backbone.channels, 1, 1, generator=torch.Generator().manual_seed(0))
    uniforms = generate.uniforms((2, 3, 54, 2), seed=1)
    with torch.no_grad():
        image, noise = model.encode_image(features).image, generate.temperatures(3, 1.0)
        logits = generate.first_logits(model, image)
        states = [*generate.unmask(model, image, logits, uniforms, noise)]
        whole = generate.sample(model, image, logits, uniforms[:, None], 1.0)[:, 0]
        assert [index.shape[1] for _, index in states] == generate.visible_counts(54, 3)[1:]
        assert torch.equal(states[-1][0], whole)
        mesh = figures.known_bodies(tokenizer, *states[-1])
        np.testing.assert_allclose(mesh, tokenizer.decode(whole).numpy(), atol=1e-6)


def test_numbers_are_whole_on_a_narrow_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = {"all people": {f"a long name of column {k}": -0.00012345 * 10**-k for k in range(9)}}
    publish(Report("Title", {}, {"Table": rows | {"one": {"deterministic": 1.0}}}), tmp_path, "wide")
    shown = capsys.readouterr().out
    assert (
        "…" not in shown
        and "deterministic" in shown
        and all(number(value) in shown for value in rows["all people"].values())
    )


def test_a_page_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    figure, _ = draw.grid(1, 1, [])
    report = Report("a < b", {"set": "x & y"}, {"mm": {"<row>": {"Q": 1.23456, "P": None}}}, {"shown": figure})
    html = page(report)
    assert "a &lt; b" in html and "x &amp; y" in html and "&lt;row&gt;" in html and "1.235" in html
    assert not re.search(r"https?:|<script|<link", html), "no network"
    assert 'src="data:image/png;base64,' in html
