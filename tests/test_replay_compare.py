"""`mega replay compare`: what became worse, by chance or not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from little_bundle import MARGIN, little_bundle
from recordings import Recorder, bag, clip, difference_of, replay, table, truth_of

from mega_ros.cli import main
from mega_ros.replay.compare import compare
from mega_ros.replay.measures import MEASURES

CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "crop margin": ({"margin": 1.4 * MARGIN}, "worse: pve by"),
    "colour order": ({"colours": ("blue", "green", "red")}, "worse: pve by"),
    "calibration": ({"scale": 0.3}, "worse: coverage_1_sigma by"),
    "promise": ({"coverage": {"1 sigma": 0.1}}, "worse: coverage_1_sigma by"),
}


@pytest.fixture(scope="module")
def gated(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bag with noisy ground truth of 12 frames, and the report of the bundle as it should be."""
    folder = tmp_path_factory.mktemp("gated")
    r, rng = Recorder(), np.random.default_rng(0)
    messages = [topic for k in range(12) for topic in (r.info(k), r.raw(k))]
    assert replay(bundle, folder / "first", bag(folder / "plain", *messages)) == 0
    truth = truth_of(folder / "first", (0, 0, 0))
    for points in truth:
        for axis in "xyz":
            points[axis] += rng.normal(0, 0.05, points.shape)
    path = bag(folder / "bag", *messages, *(r.cloud(k, points) for k, points in enumerate(truth)))
    assert replay(bundle, folder / "before", path) == 0
    return path, folder / "before" / "report.json"


@pytest.mark.parametrize("change", CHANGED)
def test_the_gate_catches_a_bundle_that_was_changed(
    change: str, gated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = gated
    how, words = CHANGED[change]
    (tmp_path / "bundle").mkdir()
    little_bundle(tmp_path / "bundle", **how)
    assert replay(tmp_path / "bundle", tmp_path / "after", path) == 0
    assert main(["replay", "compare", str(before), str(tmp_path / "after" / "report.json")]) == 1
    assert words in capsys.readouterr().out


def test_compare_finds_what_became_worse(
    bundle: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigma of a bundle with another calibration; and bodies against a reference of other people."""
    (tmp_path / "small").mkdir()
    little_bundle(tmp_path / "small", scale=1e-6)
    r, rng = Recorder(), np.random.default_rng(0)
    assert replay(bundle, tmp_path / "plain", scored) == 0
    truth = truth_of(tmp_path / "plain", (0, 0, 0))
    for points in truth:
        points["x"] += rng.normal(0, 0.02, points.shape)
    path = bag(tmp_path / "bag", *clip(r), *(r.cloud(k, truth[k]) for k in range(4)))
    for name, model in (("a", bundle), ("same", bundle), ("b", tmp_path / "small")):
        assert replay(model, tmp_path / name, path) == 0
    capsys.readouterr()

    def gate(other: str, *words: str) -> int:
        a, b = (str(tmp_path / name / "report.json") for name in ("a", other))
        return main(["replay", "compare", a, b, *words])

    assert gate("same") == 0
    assert gate("b") == 1
    assert "worse: coverage_1_sigma by" in capsys.readouterr().out
    coverage = [f"coverage_{k}_sigma{which}" for k in (1, 2) for which in ("", "_visible", "_hidden")]
    assert gate("b", "--tolerance", *(f"{name}=100%" for name in coverage)) == 0
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("".join(f"{name}: {amount}\n" for name, amount in zip(coverage, ["100%", 100] * 3)))
    assert gate("b", "--thresholds", str(thresholds)) == 0
    assert gate("b", "--thresholds", str(thresholds), "--tolerance", "coverage_2_sigma=3") == 1
    assert gate("plain") == 2
    assert "not comparable: they are of different input files" in capsys.readouterr().err
    assert gate("same", "--tolerance", "wings=2") == 2
    for text in ("wings: 2", "pve: [2]", "pve: much", "pve: -1", "- pve", "pve: {", ""):
        thresholds.write_text(text)
        capsys.readouterr()
        assert gate("same", "--thresholds", str(thresholds)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mega replay compare: {thresholds}: ")
    assert gate("gone") == 2
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "report.json").write_text('{"format": 1}')
    assert gate("gone") == 2
    assert "Traceback" not in capsys.readouterr().err


def no_sigma(row: dict[str, Any]) -> None:
    for name in [name for name in row if re.search("sigma|spearman|ause|points", name)]:
        del row[name]


def every_second_cut_off(row: dict[str, Any]) -> None:
    if row["frame"] % 2:
        kept = {"frame": row["frame"], "stamp": row["stamp"], "problem": "cut off"}
        row.clear()
        row.update(kept)


def nobody_found(row: dict[str, Any]) -> None:
    for name in [name for name, measure in MEASURES.items() if measure.weight == "compared"]:
        row.pop(name, None)
    no_sigma(row)
    row |= {"compared": 0, "joints_found": 0, "predicted_people": 0, "accelerated": 0}


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (no_sigma, 1, "worse: coverage_1_sigma_visible is missing in B in 12 of 12 frames that have it in A"),
        (lambda row: row.pop("pve"), 1, "worse: pve is missing in B in 12 of 12 frames that have it in A"),
        (every_second_cut_off, 1, "worse: 6 of 12 scored frames are not scored in B, the first: cut off"),
        (nobody_found, 0, ""),
        (lambda row: row.update(pve="big"), 2, "table[0].pve is 'big', not a number; the file is damaged"),
        (lambda row: row.update(pve=None), 2, "table[0].pve is None, not a number"),
        (lambda row: row.update(pve=1e300), 2, "table[0].pve is 1e+300, not a number"),
        (lambda row: row.pop("compared"), 2, "table[0].compared is missing; the file is damaged"),
    ],
)
def test_what_a_report_lacks_is_not_passed_over(
    damage: Callable[[dict[str, Any]], object],
    code: int,
    words: str,
    gated: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = json.loads(gated[1].read_text())
    for row in said["table"]:
        damage(row)
    (tmp_path / "b.json").write_text(json.dumps(said))
    assert main(["replay", "compare", str(gated[1]), str(tmp_path / "b.json")]) == code
    shown = capsys.readouterr()
    assert words in shown.out + shown.err
    assert len(shown.err.splitlines()) == (code == 2)


def test_a_difference_is_a_regression_only_if_chance_does_not_explain_it() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.05, 0.15, 60)
    unsure, after = before + 0.001 + rng.normal(0, 0.01, 60), before + 0.003 + rng.normal(0, 0.001, 60)
    noise, shifted = (difference_of("pve", table(before), table(values)) for values in (unsure, after))
    assert noise.worse > 0 and not noise.surely and shifted.surely
    assert shifted.interval[0] < shifted.difference < shifted.interval[1]
    assert shifted.difference == pytest.approx(0.003, abs=5e-4)
    unscored = [{"people": 1}] * 60
    assert compare(unscored + table(before), unscored + table(after)) == compare(table(before), table(after))
    missed = [row | {"recall": 0} for row in table(before)]
    recall = difference_of("recall", table(before), missed)
    assert (recall.difference, recall.worse) == (-1, 1)


def test_a_number_that_few_frames_have_may_be_a_regression() -> None:
    """In some draws of the bootstrap, no frame has it."""
    nobody: dict[str, Any] = {"compared": 0, "true_people": 1, "recall": 0}
    before, after = ([nobody | {"compared": 1, "pve": pve}, *[nobody] * 3] for pve in (0.1, 0.2))
    assert difference_of("pve", before, after).surely


def covered(share: float) -> list[dict[str, Any]]:
    return [{"true_people": 1, "compared": 1, "coverage_1_sigma": share} for _ in range(10)]


def test_coverage_is_judged_by_what_each_bundle_promises() -> None:
    """0.70 is nearer to a promise of 0.71 than 0.61 is, but farther from the share of a Gaussian, 0.608."""
    a, b, name = covered(0.61), covered(0.70), "coverage_1_sigma"
    kept, broken = {"1 sigma": 0.71}, {"1 sigma": 0.5}
    without, nearer, farther = (
        next(d for d in compare(a, b, coverages) if d.name == name)
        for coverages in (({}, {}), (kept, kept), (kept, broken))
    )
    assert without.surely and without.worse == pytest.approx(0.090, abs=1e-3)
    assert not nearer.surely and nearer.worse == pytest.approx(-0.09)
    assert farther.surely and farther.worse == pytest.approx(0.1)
