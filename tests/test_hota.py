"""scripts/hota.py: what it gives to TrackEval, which is no requirement, so stand-ins take its metrics' place."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
from numpy.lib.recfunctions import append_fields
from recordings import Recorder, bag, clip
from test_outputs import some_people

from mega_model.core.topology import Topology
from mega_ros.bundle import DEFAULT, TOPOLOGY
from mega_ros.recovery import People
from mega_ros.replay.results import MeshFile
from mega_ros.ros.read import points_of

Given: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""Settings and data of a metric."""


class StandInMetric:
    """Of TrackEval: keeps what it is given, and answers as the three metrics do."""

    given: ClassVar[list[Given]] = []

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config or {}

    def eval_sequence(self, data: dict[str, Any]) -> dict[str, Any]:
        self.given.append((self.config, data))
        values = np.array([0.25, 0.75])
        return {"HOTA": values, "DetA": values / 2, "AssA": values / 4, "IDF1": 0.5, "IDSW": 7, "MOTA": 0.125}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """What each metric was given, in order."""
    metrics = ModuleType("trackeval.metrics")
    for name in ("CLEAR", "HOTA", "Identity"):
        setattr(metrics, name, StandInMetric)
    monkeypatch.setitem(sys.modules, "trackeval", ModuleType("trackeval"))
    monkeypatch.setitem(sys.modules, "trackeval.metrics", metrics)
    monkeypatch.setattr(StandInMetric, "given", [])
    return StandInMetric.given


def cloud(people: People, visible: list[bool]) -> np.ndarray:
    """Ground truth of these people, whole or hidden."""
    points = points_of(people.vertices, people.sigma, people.ids)
    seen = np.repeat(visible, points.shape[1]).astype(np.float32)
    return append_fields(points.ravel(), "visible", seen, usemask=False).reshape(points.shape)


def test_people_are_given_by_frame_and_identity(
    given: list[Given],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two people; one frame without ground truth; one in which a person is hidden, and found all the same."""
    topology, recorder = Topology.load(DEFAULT / TOPOLOGY), Recorder()
    true = some_people(topology, [30, 50])
    clouds = [recorder.cloud(k, cloud(true, [k != 2, True])) for k in (0, 2)]
    bag(tmp_path / "bag", *clip(recorder, 3), *clouds)
    (tmp_path / "replay").mkdir()
    file = MeshFile(tmp_path / "replay", topology)
    for k, ids in enumerate(([8, 6], [8, 6], [9, 6])):
        file.add(k, replace(true, ids=np.array(ids, np.uint32)))
    file.close()
    monkeypatch.setattr(sys, "argv", ["hota.py", str(tmp_path / "bag"), str(tmp_path / "replay")])
    run_path(str(root / "scripts" / "hota.py"), run_name="__main__")
    data = given[0][1]
    assert (data["num_timesteps"], data["num_gt_ids"], data["num_tracker_ids"]) == (2, 2, 2)
    assert (data["num_gt_dets"], data["num_tracker_dets"]) == (3, 3)
    assert [ids.tolist() for ids in data["gt_ids"]] == [[0, 1], [1]]
    assert [ids.tolist() for ids in data["tracker_ids"]] == [[1, 0], [0]]
    for overlaps, right in zip(data["similarity_scores"], (np.eye(2), np.eye(1))):
        np.testing.assert_allclose(overlaps, right, atol=0.05)
    assert [settings.get("THRESHOLD") for settings, _ in given] == [None, 0.3, 0.3, 0.5, 0.5]
    assert capsys.readouterr().out.splitlines() == [
        "HOTA 50.0%, DetA 25.0%, AssA 12.5%",
        "overlap 0.3: IDF1 50.0%, id switches 7, MOTA 12.5%",
        "overlap 0.5: IDF1 50.0%, id switches 7, MOTA 12.5%",
    ]
    bag(tmp_path / "without", *clip(recorder, 1))
    monkeypatch.setattr(sys, "argv", ["hota.py", str(tmp_path / "without"), str(tmp_path / "replay")])
    with pytest.raises(SystemExit, match="without has no ground truth"):
        run_path(str(root / "scripts" / "hota.py"), run_name="__main__")
