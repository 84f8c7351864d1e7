"""Many inputs over several processes, and over Ray: the same results, whoever computes them and whatever breaks."""

import csv
from pathlib import Path

import pytest
from little_bundle import little_bundle
from sudden_end import ends_suddenly
from test_replay_offline import Recorder, bag, clip

from mega_ros.cli import main
from mega_ros.replay import many

GOOD, BROKEN = 20, 2


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and a folder with `GOOD` bags of 2 frames and `BROKEN` others."""
    folder = tmp_path_factory.mktemp("bags")
    (folder / "bundle").mkdir()
    little_bundle(folder / "bundle")
    (folder / "bags").mkdir()
    for k in range(GOOD):
        bag(folder / "bags" / f"bag_{k:02}", *clip(Recorder(), 2))
    (folder / "bags" / "cut.mcap").write_bytes(next((folder / "bags" / "bag_00").glob("*.mcap")).read_bytes()[:300])
    (folder / "bags" / "noise.db3").write_bytes(b"no bag")
    return folder


def results(bags: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, bytes]:
    """Of a replay of all bags: name -> content of every file."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    options = ["--bundle", str(bags / "bundle"), "--boxes", "full_frame", "--out", "out"]
    assert main(["replay", str(bags / "bags"), *options, *words]) == 1
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return results(bags, tmp_path_factory.mktemp("expected") / "one", monkeypatch)


def test_the_number_of_workers_changes_nothing(
    bags: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert results(bags, tmp_path / "two", monkeypatch, "--workers", "2") == expected
    assert len(capsys.readouterr().err.splitlines()) == BROKEN
    assert sum(name.endswith("report.json") for name in expected) == GOOD
    rows = list(csv.DictReader(expected["out/inputs.csv"].decode().splitlines()))
    assert [row["input"] for row in rows] == [f"bag_{k:02}" for k in range(GOOD)] + ["cut.mcap", "noise.db3"]
    assert {row["frames"] for row in rows[:GOOD]} == {"2"} and not any(row["problem"] for row in rows[:GOOD])
    assert all(name in row["problem"] for name, row in zip(("cut.mcap", "noise.db3"), rows[GOOD:]))


def test_ray_gives_the_same(
    bags: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mega_ros[cluster]'")
    found = results(bags, tmp_path / "ray", monkeypatch, "--engine=ray")
    if "Ray does not start: The current node timed out" in capsys.readouterr().err:
        pytest.skip("Ray's processes did not start within its 30 s: the machine is too busy")
    assert found == expected


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    jobs = [tmp_path / name for name in ("a", "once", "b", "always", "c")]
    found = {job.name: result for job, result in many.run(ends_suddenly, jobs, "local", 2)}
    assert found == {"a": "a", "once": "once", "b": "b", "always": None, "c": "c"}


def test_an_error_of_ours_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        list(many.run(len, [3], "local", 2))  # type: ignore[arg-type]
