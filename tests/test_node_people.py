"""The node with the user's own detections or detector. vision_msgs has no wheel: its messages are stand-ins here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from test_detections import stand_in_detection
from test_node import GREY, PATIENCE, image

from mega_ros.ros import parameters
from mega_ros.ros.detections import WAITING
from mega_ros.ros.node import MegaNode

pytest.importorskip("onnx", reason="graphs are made with the extra export")
from little_bundle import little_bundle
from test_user_detector import model, yolov8
from visualization_msgs.msg import MarkerArray


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    little_bundle(folder)
    return folder


Start = Callable[..., MegaNode]


@pytest.fixture
def start(bundle: Path) -> Iterator[Start]:
    """Makes a node in this process, with some parameters."""
    made: list[MegaNode] = []

    def make(*ros_args: str) -> MegaNode:
        given = ["-p", "provider:=cpu", "-p", f"bundle:={bundle}", "-p", "boxes:=full_frame", *ros_args]
        rclpy.init(args=["--ros-args", *given], domain_id=random.SystemRandom().randint(1, 230))
        made.append(MegaNode())
        return made[0]

    yield make
    for node in made:
        node.close()
        node.destroy_node()
    rclpy.shutdown()


def heard(node: MegaNode, kind: Any, topic: str, again: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    """The first message of a topic that fits, while `again` is called now and then."""
    messages: list[Any] = []
    subscription = node.create_subscription(kind, topic, messages.append, 10)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end = time.monotonic() + PATIENCE
    while not (fitting := [message for message in messages if fits(message)]):
        assert time.monotonic() < end, "nothing was heard"
        again()
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(node)
    node.destroy_subscription(subscription)
    return fitting[0]


def values(message: DiagnosticArray) -> dict[str, str]:
    return {value.key: value.value for value in message.status[0].values}


def waiting_for_detections(start: Start, monkeypatch: pytest.MonkeyPatch) -> tuple[MegaNode, Any]:
    """An active node that takes its boxes from the topic, as if vision_msgs were installed; and its camera."""
    monkeypatch.setattr(parameters, "package", lambda name: name == "vision_msgs")
    node = start()
    assert node.start()
    assert node.set_parameters([Parameter("boxes", value="detections")])[0].successful
    return node, node._cameras[0]


def test_people_are_those_of_the_detections_topic(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images wait for detections with their stamp; those that the detector skips are dropped and counted."""
    node, camera = waiting_for_detections(start, monkeypatch)
    stamp = 0

    def send() -> None:
        """Two images, and then what was found in the first of them."""
        nonlocal stamp
        stamp += 2
        headers = [Header(frame_id="camera"), Header(frame_id="camera")]
        headers[0].stamp.sec, headers[1].stamp.sec = stamp, stamp + 1
        for header in headers:
            camera._on_image(image(GREY, header=header))
        boxes = [stand_in_detection((50 + 40 * k, 60, 30, 60), ("person", 0.9)) for k in range(3)]
        other = stand_in_detection((50, 60, 30, 60), ("dog", 0.9))
        camera._on_detections(SimpleNamespace(header=headers[0], detections=[*boxes, other]))

    mesh = heard(node, PointCloud2, "mega/mesh", send, lambda message: camera._pairs.alone > 0)
    assert mesh.height == 3 and mesh.header.stamp.sec % 2 == 0
    dropped = camera._pairs.alone
    assert 0 < dropped <= stamp // 2
    status = heard(node, DiagnosticArray, "/diagnostics", lambda: None, lambda m: "frames_dropped" in values(m))
    assert int(values(status)["frames_dropped"]) >= dropped


def test_detections_with_other_stamps_are_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    node, camera = waiting_for_detections(start, monkeypatch)
    subscription = node.create_subscription(PointCloud2, "mega/mesh", print, 10)
    end = time.monotonic() + PATIENCE
    while not camera._outputs.are_wanted():
        assert time.monotonic() < end
        time.sleep(0.01)
    for k in range(2 * WAITING):
        header = Header()
        header.stamp.sec = k + 1
        camera._on_image(image(GREY, header=header))
        header = Header()
        header.stamp.sec, header.stamp.nanosec = k + 1, 5
        camera._on_detections(SimpleNamespace(header=header, detections=[]))
    node.destroy_subscription(subscription)
    status = heard(node, DiagnosticArray, "/diagnostics", lambda: None, lambda m: "detections" in m.status[0].message)
    assert "/detections: none has the stamp of any of the last images" in status.status[0].message


def test_the_users_detector_is_said(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path / "mine.onnx", yolov8())
    node = start("-p", f"detector_model:={path}", "-p", "boxes:=detector", "-p", "max_people:=1")
    assert node.start()
    said = f"{path} (outputs of YOLOv8, CPUExecutionProvider)"
    assert f"detector: {said}" in capfd.readouterr().err
    camera: Any = node._cameras[0]
    sent = image(GREY, header=Header(stamp=Time(sec=1)))
    mesh = heard(node, PointCloud2, "mega/mesh", lambda: camera._on_image(sent), lambda message: True)
    assert mesh.height == 1
    status = heard(node, DiagnosticArray, "/diagnostics", lambda: None, lambda m: values(m).get("people") == "1")
    assert values(status)["detector"] == said
    assert "1 of 2 boxes are left out: max_people is 1" in status.status[0].message


def test_an_output_that_fails_does_not_hide_the_others(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its topic is named, and the frame counts as processed, as its mesh went out."""

    def fail(*arguments: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("mega_ros.ros.outputs.draw.overlay", fail)
    monkeypatch.setattr("mega_ros.ros.markers.Markers.message", fail)
    node = start()
    assert node.start()
    for kind, topic in ((Image, "mega/overlay"), (MarkerArray, "mega/markers")):
        node.create_subscription(kind, topic, print, 1)
    camera: Any = node._cameras[0]
    sent = image(GREY, header=Header(stamp=Time(sec=1)))
    people = heard(node, PointCloud2, "mega/joints", lambda: camera._on_image(sent), lambda message: True)
    assert people.height == 1
    fits = lambda m: values(m).get("last_bad_input") == "/mega/overlay: ValueError: no ink"  # noqa: E731
    status = heard(node, DiagnosticArray, "/diagnostics", lambda: camera._on_image(sent), fits)
    counted = values(status)
    assert int(counted["frames_processed"]) > 0 and counted["frames_rejected"] == "0"


def test_a_file_that_is_no_detector_fails_to_configure(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    node = start("-p", "detector_model:=nowhere.onnx")
    assert not node.start()
    assert "detector_model: there is no file nowhere.onnx" in capfd.readouterr().err


def test_predicted_people_have_the_time_of_publication(start: Start) -> None:
    """Only where the stamp is of this clock: others are published as of their stamp."""
    node = start("-p", "smoothing:=1.0", "-p", "predict:=true")
    assert node.start()
    camera: Any = node._cameras[0]
    sent: set[tuple[int, int]] = set()

    def send(seconds_ago: float) -> None:
        stamp = (node.get_clock().now() - rclpy.duration.Duration(seconds=seconds_ago)).to_msg()
        sent.add((stamp.sec, stamp.nanosec))
        camera._on_image(image(GREY, header=Header(stamp=stamp, frame_id="camera")))

    def is_sent(message: PointCloud2) -> bool:
        return (message.header.stamp.sec, message.header.stamp.nanosec) in sent

    mesh = heard(node, PointCloud2, "mega/mesh", lambda: send(0), lambda message: not is_sent(message))
    assert mesh.height == 1 and mesh.header.frame_id == "camera"
    assert (mesh.header.stamp.sec, mesh.header.stamp.nanosec) > min(sent)
    sent.clear()
    assert heard(node, PointCloud2, "mega/mesh", lambda: send(3600), is_sent).height == 1


def test_empty_lists_are_lists(start: Start) -> None:
    """rcl gives them no type, and rclpy raised out of the executor."""
    node = start("-p", "person_classes:=[]", "-p", "fixed_box:=[]")
    assert parameters.get(node, "person_classes") == [] and parameters.stream_settings(node, 0.1).fixed_box == ()
    (result,) = node.set_parameters([Parameter("boxes", value="fixed")])
    assert "fixed_box must be x0, y0, x1, y1" in result.reason


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("boxes", "detections", "boxes: detections needs the package vision_msgs"),
        ("predict", True, "predict needs smoothing above 0"),
        ("max_people", -1, "range"),
        ("smoothing", -1.0, "range"),
    ],
)
def test_refused(start: Start, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, reason: str) -> None:
    monkeypatch.setattr(parameters, "package", lambda name: None)
    (result,) = start().set_parameters([Parameter(name, value=value)])
    assert not result.successful and reason in result.reason
