"""Many inputs, and long ones, over several processes and over Ray: the same results, whoever computes them and whatever
breaks."""

import csv
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from little_bundle import little_bundle
from recordings import Recorder, bag, clip
from rosbags.rosbag2 import StoragePlugin, Writer
from sudden_end import ends_suddenly, machine_of_ray

from mega_ros.cli import main
from mega_ros.replay import many
from mega_ros.replay.bags import open_bag
from mega_ros.replay.sources import COMPRESSED
from mega_ros.ros.standard import MESSAGES

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


def files_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, dict[str, bytes]]:
    """The exit code of a replay within `folder`, and what it writes: name -> content of every file."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    code = main(["replay", *map(str, words), "--out", "out"])
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return code, {str(path.relative_to(folder)): path.read_bytes() for path in files}


def results(bags: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, bytes]:
    """Of a replay of all bags."""
    options = ["--bundle", bags / "bundle", "--boxes", "full_frame", *words]
    code, files = files_of(folder, monkeypatch, bags / "bags", *options)
    assert code == 1
    return files


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
    assert sum(name.endswith("report.json") for name in expected) == GOOD + 1
    rows = list(csv.DictReader(expected["out/inputs.csv"].decode().splitlines()))
    assert [row["input"] for row in rows] == [f"bag_{k:02}" for k in range(GOOD)] + [
        "cut.mcap",
        "noise.db3",
        "all inputs",
    ]
    assert {row["frames"] for row in rows[:GOOD]} == {"2"} and not any(row["problem"] for row in rows[:GOOD])
    assert rows[-1]["frames"] == str(2 * GOOD)
    assert all(name in row["problem"] for name, row in zip(("cut.mcap", "noise.db3"), rows[GOOD:]))


def excerpt(clip: Path, out: Path, count: int) -> Path:
    """The first images of a bag with all that goes with them."""
    with open_bag(clip) as source, Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=MESSAGES) for topic, kind in source.topics.items()
        }
        for connection, time, data in source.messages(source.topics):
            count -= connection.topic == COMPRESSED
            if count < 0:
                break
            writer.write(connections[connection.topic], time, data)
    return out


def test_a_long_recording_is_divided_between_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, smoothing and scores depend on the frames before."""
    bag = excerpt(root / "demo" / "clip", tmp_path / "bag", 5)
    one, three = (
        files_of(tmp_path / workers, monkeypatch, bag, "--smoothing", "0.5", "--workers", workers) for workers in "13"
    )
    assert one[0] == 0 and b'"pve"' in one[1]["out/report.json"]
    assert three == one


def test_samples_are_the_same_whoever_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their noise depends on ids, which are known when the frames before are done."""
    (tmp_path / "bundle").mkdir()
    little_bundle(tmp_path / "bundle", errors=False)
    path = bag(tmp_path / "bag", *clip(Recorder(), 6))
    options = ["--bundle", tmp_path / "bundle", "--boxes", "full_frame", "--samples", "3", "--workers"]
    one, two = (files_of(tmp_path / workers, monkeypatch, path, *options, workers) for workers in "12")
    assert one[0] == 0 and two == one


def test_one_large_input_of_several_is_divided(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bags").mkdir()
    bag(tmp_path / "bags" / "long", *clip(Recorder(), 9))
    for name in ("bag_00", "cut.mcap"):
        at = tmp_path / "bags" / name
        (shutil.copytree if (bags / "bags" / name).is_dir() else shutil.copy)(bags / "bags" / name, at)
    given: list[object] = []
    in_order = many.in_order

    def watched(pool: many.Pool, work: object, jobs: object, prefetch: int | None = None) -> object:
        given.append((pool.size, work.__name__))  # type: ignore[attr-defined]
        return in_order(pool, work, jobs, prefetch)  # type: ignore[arg-type]

    monkeypatch.setattr(many, "in_order", watched)
    options = ["--bundle", bags / "bundle", "--boxes", "full_frame", "--workers"]
    two = files_of(tmp_path / "2", monkeypatch, tmp_path / "bags", *options, "2")
    assert given == [(1, "_identify"), (2, "_observe"), (2, "work")]
    assert two == files_of(tmp_path / "1", monkeypatch, tmp_path / "bags", *options, "1")
    assert two[0] == 1 and len(capsys.readouterr().err.splitlines()) == 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on two machines, which are processes of this one, with a CPU each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mega_ros[cluster]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as monkeypatch:
        # workers import this folder's `sudden_end`
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        )
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
            machines.add_node(num_cpus=1)
        except Exception as error:
            pytest.skip(f"Ray's processes did not start: {error}")
        monkeypatch.setenv("RAY_ADDRESS", machines.address)
        yield
        machines.shutdown()


def test_ray_gives_the_same(
    bags: Path, expected: dict[str, bytes], cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results(bags, tmp_path / "ray", monkeypatch, "--engine=ray") == expected


def test_ray_divides_a_long_recording(
    bags: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bag(tmp_path / "bag", *clip(Recorder(), 6))
    options = ["--bundle", bags / "bundle", "--boxes", "full_frame", "--samples", "3"]
    one = files_of(tmp_path / "one", monkeypatch, path, *options)
    assert one[0] == 0
    assert files_of(tmp_path / "ray", monkeypatch, path, *options, "--engine", "ray") == one


def test_all_machines_of_a_cluster_work(cluster: None) -> None:
    with many.open_pool("ray", 1) as pool:
        assert pool.size == 2
        machines = {machine for _, machine in many.in_order(pool, machine_of_ray, [(k, 0.3) for k in range(8)])}
    assert len(machines) == 2


def names(folder: Path, engine: many.Engine) -> dict[str, str | None]:
    jobs = [(name, folder / name) for name in ("a", "once", "b", "always", "c")]
    with many.open_pool(engine, 2) as pool:
        return dict(many.in_order(pool, ends_suddenly, jobs))


DIED = {"a": "a", "once": "once", "b": "b", "always": None, "c": "c"}


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    assert names(tmp_path, "local") == DIED


def test_a_worker_of_ray_that_dies_is_replaced(tmp_path: Path, cluster: None) -> None:
    assert names(tmp_path, "ray") == DIED


def test_results_come_in_the_order_of_the_jobs_and_few_are_held(tmp_path: Path) -> None:
    taken = []

    def jobs() -> Iterator[tuple[int, float]]:
        for k in range(20):
            taken.append(k)
            yield k, 0.2 * (k == 0)

    with many.open_pool("local", 2) as pool:
        for count, (k, _) in enumerate(many.in_order(pool, time.sleep, jobs())):
            assert k == count and len(taken) <= count + 1 + pool.prefetch


def test_an_error_of_ours_is_not_hidden() -> None:
    with many.open_pool("local", 2) as pool, pytest.raises(TypeError):
        list(many.in_order(pool, len, [(0, 3)]))  # type: ignore[arg-type]
