"""Replay: reading and playing bags, scoring against ground truth, and `mega demo` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import Header

from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_ros.replay import sources
from mega_ros.replay.bags import read_bag
from mega_ros.replay.score import Score, match
from mega_ros.ros.images import to_bgr
from mega_ros.ros.messages import point_cloud
from mega_ros.ros.read import positions, read_cloud, read_stamp

K = intrinsics_from_fov(640, 480, 1.0)
BODY = np.random.default_rng(0).normal(size=(60, 3)) * [0.2, 0.5, 0.1]


@pytest.fixture
def topology() -> Topology:
    regressor = np.eye(len(SMPL_JOINTS), len(BODY), dtype=np.float32)
    return Topology(BODY.astype(np.float32), np.array([[0, 1, 2]]), regressor, np.zeros(len(BODY), np.int32))


def cloud(*places: tuple[float, float, float], sigma: float = 0.0) -> np.ndarray:
    """What `read_cloud` gives for BODY at some places."""
    vertices = np.array(places, np.float32).reshape(-1, 1, 3) + BODY.astype(np.float32)
    count = len(vertices)
    message = point_cloud(Header(), vertices, np.full((count, len(BODY)), sigma), np.arange(count, dtype=np.uint32))
    return read_cloud(message)


def truth(*places: tuple[float, float, float], visible: float = 1.0) -> np.ndarray:
    seen = cloud(*places)
    out = np.zeros(seen.shape, np.dtype([*seen.dtype.descr, ("visible", "<f4")]))
    for name in seen.dtype.names or ():
        out[name] = seen[name]
    out["visible"] = np.arange(len(BODY)) < visible * len(BODY)
    return out


def test_people_are_matched_by_where_they_are_not_by_their_order() -> None:
    vertices = np.array([(-1, 0, 4), (1, 0, 5)])[:, None] + BODY
    assert sorted(match(vertices, vertices[::-1], K)) == [(0, 1), (1, 0)]


def test_a_perfect_answer_has_no_error(topology: Topology) -> None:
    score = Score(topology)
    score.add(cloud((1, 0, 5), (-1, 0, 4), sigma=0.03), truth((-1, 0, 4), (1, 0, 5), visible=0.5), K)
    summary = score.summary()
    assert (summary["wanted"], summary["missed"], summary["invented"]) == (2, 0, 0)
    assert summary["pve"] == summary["mpjpe"] == pytest.approx(0, abs=1e-6)
    assert summary["sigma_visible"] == summary["sigma_hidden"] == pytest.approx(0.03)


def test_a_shifted_person_is_off_in_position_only(topology: Topology) -> None:
    score = Score(topology)
    score.add(cloud((0.06, 0, 4.08)), truth((0, 0, 4)), K)
    summary = score.summary()
    assert summary["position"] == pytest.approx(0.1, abs=1e-5)
    assert summary["pve"] == pytest.approx(0, abs=1e-5)


def test_misses_and_inventions_are_counted(topology: Topology) -> None:
    score = Score(topology)
    score.add(cloud((-1, 0, 4)), truth((1, 0, 5)), K)
    score.add(cloud(), truth((1, 0, 5)), K)
    score.add(cloud((1, 0, 5)), truth(), K)
    summary = score.summary()
    assert (summary["frames"], summary["wanted"], summary["missed"], summary["invented"]) == (3, 2, 2, 2)
    assert "pve" not in summary


def test_a_hidden_person_may_be_found_or_not(topology: Topology) -> None:
    for answer in (cloud(), cloud((0, 0, 4))):
        score = Score(topology)
        score.add(answer, truth((0, 0, 4), visible=0.0), K)
        summary = score.summary()
        assert (summary["wanted"], summary["missed"], summary["invented"]) == (0, 0, 0)
        assert "pve" not in summary


@pytest.mark.parametrize("storage", StoragePlugin)
def test_a_bag_is_read_in_time_order_with_the_wanted_topics_only(tmp_path: Path, storage: StoragePlugin) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    text = store.types["std_msgs/msg/String"]
    with Writer(tmp_path / "bag", version=9, storage_plugin=storage) as writer:
        topics = [writer.add_connection(name, text.__msgtype__, typestore=store) for name in ("/a", "/b", "/c")]
        for stamp in (30, 10, 20):
            for topic in topics:
                data = store.serialize_cdr(text(f"{topic.topic} {stamp}"), text.__msgtype__)
                writer.write(topic, stamp, data)
    messages = list(read_bag(tmp_path / "bag", ["/a", "/c"]))
    assert [m.time for m in messages] == [10, 10, 20, 20, 30, 30]
    assert {m.topic for m in messages} == {"/a", "/c"}
    first: Any = store.deserialize_cdr(messages[0].data, messages[0].type)
    assert first.data == f"{messages[0].topic} 10"


def test_a_photograph_becomes_a_moving_stream_at_a_steady_rate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    messages = list(sources.photograph(tmp_path / "photo.png", 1.0).messages)
    images = [m for m in messages if m.topic == sources.COMPRESSED]
    assert len(images) == len(messages) / 2 == 120
    np.testing.assert_allclose(np.diff([m.time for m in images]), 1e9 / 15, atol=1)
    assert images[0].data != images[40].data
    info, image = (deserialize_message(m.data, kind) for m, kind in zip(messages, (CameraInfo, CompressedImage)))
    assert info.header == image.header and info.header.frame_id == "camera_optical_frame"
    assert read_stamp(info) == messages[0].time
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), intrinsics_from_fov(400, 300, 1.0))
    assert to_bgr(image).shape == (300, 400, 3) and (info.height, info.width) == (300, 400)


def truth_of(folder: Path) -> dict[int, np.ndarray]:
    """Stamp -> cloud."""
    clouds = [message.read() for message in read_bag(folder, [sources.GROUND_TRUTH])]
    return {read_stamp(cloud): read_cloud(cloud) for cloud in clouds}


def test_the_embedded_clip(root: Path) -> None:
    folder = root / "demo" / "clip"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    source = sources.clip(folder)
    messages = list(source.messages)
    images = [m for m in messages if m.topic == sources.COMPRESSED]
    np.testing.assert_allclose([m.time - images[0].time for m in images], np.arange(90) * 1e9 / 15, atol=1)
    image = to_bgr(deserialize_message(images[0].data, CompressedImage))
    info = next(m for m in messages if m.topic == sources.INFO)
    K = deserialize_message(info.data, CameraInfo).k.reshape(3, 3)
    assert image.shape == (480, 640, 3)
    truth = truth_of(folder)
    assert set(truth) <= {m.time for m in images}
    shares = []
    for people in truth.values():
        visible = people["visible"] == 1
        pixels = project(positions(people), K)[visible]
        assert ((pixels >= -0.1) & (pixels <= [640.1, 480.1])).all()  # truth is kept to the millimetre
        shares.append(visible.mean(axis=1))
    assert np.shape(shares) == (30, 2)
    assert np.min(shares) < 0.15 < 0.45 < np.max(shares)  # half of a body faces the camera; one passes behind something


def test_the_embedded_clip_shows_what_its_script_makes(root: Path) -> None:
    pytest.importorskip("anny", reason="bodies need the extra train")
    from export.clip import camera, scene
    from mega_model.body.anny import AnnyBody

    truth = truth_of(root / "demo" / "clip")
    made = camera().camera(scene(AnnyBody())[::3])
    np.testing.assert_allclose([positions(truth[stamp]) for stamp in sorted(truth)], made, atol=2e-3)


@pytest.fixture
def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def demo(*args: str) -> list[str]:
    return [sys.executable, "-m", "mega_ros.cli", "demo", *args]


def test_demo_on_the_embedded_clip(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        demo("--seconds", "2", "--out", str(tmp_path)), env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sent"] == 31
    assert report["received"] + report["dropped"] == report["sent"]
    assert report["received"] > 0
    assert 0 < report["latency_p50"] <= report["latency_p95"]
    assert report["truth"]["frames"] == 30  # all, whatever the node caught
    for line in ("frames sent", "latency p50, p95", "PA-MPJPE", "overlay.webm"):
        assert line in done.stdout
    video = cv2.VideoCapture(str(tmp_path / "overlay.webm"))
    count = 0
    while video.read()[0]:
        count += 1
    assert count == report["sent"]
    if report["people_per_frame"]:
        assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_demo_and_node(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        demo("--out", str(tmp_path)),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # tests in the background of a shell ignore Ctrl-C, and all that they start would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (node := children(process.pid)) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    assert all(alive(pid) for pid in node)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=600) == 130
    assert not any(alive(pid) for pid in node)


@pytest.mark.parametrize(
    "args",
    [
        ("--image", "nowhere.jpg"),
        ("--image", __file__),
        ("--video", "nowhere.mp4"),
        ("--video", __file__),
        ("--camera", "987"),
        ("--bundle", "nowhere"),
        ("--fov", "180"),
    ],
)
def test_what_cannot_be_played_is_one_line_and_code_1(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mega_ros.replay.demo import main

    monkeypatch.chdir(tmp_path)
    assert main(list(args)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mega demo: ")
    assert args[1] in line
