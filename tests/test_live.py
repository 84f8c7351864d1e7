"""`mega replay --live`: a bag played to the real node over DDS, and beside it the offline run."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from little_bundle import little_bundle
from recordings import ROS1, START, STEP, Recorder, bag, clip, pattern, write_ros1

from mega_ros.cli import main


def test_the_node_answers_as_the_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bag has its only camera_info at the end; the node is told before the first image, as offline. The name of the
    bundle's folder is not a number for the node, either."""
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        monkeypatch.setenv(name, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    little_bundle(tmp_path / "2024")
    recorder = Recorder()
    # recorded 20 ms after their stamps
    images = [(topic, stamp + 20_000_000, message) for topic, stamp, message in map(recorder.raw, range(6))]
    path = bag(tmp_path / "bag", *images, recorder.info(6))
    words = ["--bundle", "2024", "--boxes", "full_frame", "--out", tmp_path / "out", "--rate", "0.5"]
    assert main(["replay", str(path), "--live", *map(str, words)]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["frames"] == 6 and report["assumed"] == 0
    live = report["live"]
    assert live["sent"] == sum(live[name] for name in ("received", "dropped", "rejected", "lost")) == 6
    assert live["received"] > 0 and live["people_per_frame"] == 1
    assert live["seconds"] >= 5 * STEP / 1e9 / 0.5
    for name in ("latency", "latency_from_stamp"):
        assert 0 < live[f"{name}_p50"] <= live[f"{name}_p95"] <= live[f"{name}_p99"]
    assert live["latency_from_stamp_p50"] == pytest.approx(0.02 + 0.5 * live["latency_p50"], abs=1e-6)
    assert live["cpu"] > 0 and live["memory"] > 1e6
    # by the recording's clock, which is of 2001
    assert 0 < float(live["diagnostics"]["latency_from_stamp_p50_s"]) < START / 1e9 / 2
    assert live["diagnostics"]["intrinsics"] == "camera_info"
    assert live["agreement"]["frames"] == live["received"] and live["agreement"]["other_people"] == 0
    assert live["agreement"]["largest"] < 1e-4
    assert "live and offline differ by at most" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_played_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), pattern(0))
    old = write_ros1(tmp_path / "old.bag", clip(Recorder(ROS1)))
    for path, reason in (
        (tmp_path / "photo.png", "photo.png: --live plays bags"),
        (old, "old.bag: a bag of ROS 1"),
    ):
        assert main(["replay", str(path), "--live", "--out", str(tmp_path / "out")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
    assert main(["replay", str(tmp_path / "photo.png"), str(old), "--live"]) == 1
    assert "--live is for one input, these are 2" in capsys.readouterr().err


def test_the_agreement_sees_a_difference(tmp_path: Path) -> None:
    from mega_ros import Recovery, StreamSettings
    from mega_ros.replay.frames import Recorded
    from mega_ros.replay.offline import agreement
    from mega_ros.ros.read import points_of

    little_bundle(tmp_path)
    recovery, settings = Recovery.load(tmp_path, provider="cpu"), StreamSettings(boxes="full_frame")
    source = Recorded(bag(tmp_path / "bag", *clip(Recorder(), 3)))
    clouds = {}
    for k, frame in enumerate(source.frames()):
        assert frame.image is not None
        people = recovery.run(frame.image, frame.camera, np.array([[0, 0, 64, 48]]), np.array([0]))
        moved = people.vertices + np.array([0, 0, 0.002 * (k == 1)], np.float32)
        clouds[frame.stamp] = points_of(moved, people.sigma, people.ids + (k == 2))
    same = agreement(source, recovery, settings, clouds)
    assert same == {"frames": 2, "largest": pytest.approx(0.002, abs=1e-5), "other_people": 1}
