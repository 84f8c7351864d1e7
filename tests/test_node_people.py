"""The node with the user's own detections or detector. vision_msgs has no wheel: stand-ins are for its classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rclpy
from domains import free_domain
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, UInt8MultiArray
from test_detections import detection, detections
from test_node import GREY, Peer, image
from test_outputs import HRI, IdsList
from test_transport import damaged

from mega_ros.ros import bodies, parameters, standard
from mega_ros.ros.detections import MOST, WAITING
from mega_ros.ros.node import MegaNode
from mega_ros.ros.standard import serialised
from mega_ros.user_detector import UserDetector

pytest.importorskip("onnx", reason="graphs are made with the extra export")
from little_bundle import little_bundle
from test_user_detector import model, yolov8
from visualization_msgs.msg import MarkerArray


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    little_bundle(folder)
    return folder


Start = Callable[..., tuple[MegaNode, Peer]]


@pytest.fixture
def start(bundle: Path) -> Iterator[Start]:
    """Makes a node in this process, with some parameters, and its peer."""
    made: list[tuple[MegaNode, Peer]] = []

    def make(*ros_args: str) -> tuple[MegaNode, Peer]:
        given = ["-p", "provider:=cpu", "-p", f"bundle:={bundle}", "-p", "boxes:=full_frame", *ros_args]
        rclpy.init(args=["--ros-args", *given], domain_id=free_domain())
        node, peer = MegaNode(), Peer(rclpy.get_default_context(), Image, "image", "/")
        peer.executor_.add_node(node)
        made.append((node, peer))
        return node, peer

    yield make
    for node, peer in made:
        peer.executor_.shutdown()
        node.close()
        node.destroy_node()
        peer.destroy_node()
    rclpy.shutdown()


class Detection2DArray(UInt8MultiArray):  # type: ignore[misc]  # rclpy's types are skipped
    """On the wire, the bytes are those of a Detection2DArray: they are sent and taken as they are."""

    __module__ = "vision_msgs.msg"


@pytest.fixture
def waiting(start: Start, monkeypatch: pytest.MonkeyPatch) -> tuple[Peer, Publisher]:
    """The peer of an active node that takes its boxes from the topic, as if vision_msgs were installed."""
    package, module = ModuleType("vision_msgs"), ModuleType("vision_msgs.msg")
    monkeypatch.setattr(module, "Detection2DArray", Detection2DArray, raising=False)
    monkeypatch.setattr(module, "Detection3DArray", UInt8MultiArray, raising=False)
    monkeypatch.setitem(sys.modules, "vision_msgs", package)
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", module)
    node, peer = start()
    peer.destroy_publisher(peer.infos)  # so that no image waits for a camera_info
    assert node.start()
    assert not peer.set(boxes="detections")
    return peer, peer.create_publisher(Detection2DArray, "detections", 1)


def send(peer: Peer, count: int, answer: Callable[[int], Any]) -> None:
    """Images, and what `answer` does about each: it is given the stamp, nanoseconds."""
    for _ in range(count):
        answer(peer.send(image(GREY)) * 10**9 + 123)
        for _ in range(3):
            peer.executor_.spin_once(timeout_sec=0.01)


BOXES = [detection((50 + 40 * k, 60, 30, 60), ("person", 0.9)) for k in range(3)]


def test_people_are_those_of_the_detections_topic(waiting: tuple[Peer, Publisher]) -> None:
    """Images wait for detections with their stamp; those that the detector skips are dropped and counted."""
    peer, publisher = waiting

    def answer(stamp: int) -> None:
        if stamp // 10**9 % 2:
            other = detection((50, 60, 30, 60), ("dog", 0.9))
            publisher.publish(serialised(detections(stamp, *BOXES, other)))

    mesh = peer.wait(lambda: peer.meshes[:1], lambda: send(peer, 4, answer))[0]
    assert mesh.height == 3 and mesh.header.stamp.sec % 2
    values = peer.status(lambda s, v: int(v["frames_dropped"]) > 0, lambda: send(peer, 4, answer))
    assert int(values["frames_dropped"]) <= int(values["frames_received"]) // 2 + 4
    assert all(mesh.height == 3 and mesh.header.stamp.sec % 2 for mesh in peer.meshes)


def test_detections_with_other_stamps_are_told(waiting: tuple[Peer, Publisher]) -> None:
    peer, publisher = waiting

    def answer(stamp: int) -> None:
        publisher.publish(serialised(detections(stamp + 5)))

    reason = "/detections: none has the stamp of any of the last images"
    send(peer, 4, answer)
    peer.status(lambda s, v: int(v["frames_dropped"]) >= 2 and reason not in s.message)  # a few may be late
    peer.status(lambda s, v: reason in s.message, lambda: send(peer, WAITING, answer))
    assert not peer.meshes


def test_of_a_crowd_of_detections_the_likeliest_are_taken(waiting: tuple[Peer, Publisher]) -> None:
    peer, publisher = waiting
    crowd = [detection((50, 60, 30, 60), ("person", 0.5 + k / 400)) for k in range(MOST + 20)]

    def answer(stamp: int) -> None:
        publisher.publish(serialised(detections(stamp, *crowd)))

    mesh = peer.wait(lambda: peer.meshes[:1], lambda: send(peer, 1, answer))[0]
    assert mesh.height == MOST
    reason = "/detections: 120 people in one image, of whom only the likeliest 100 are recovered"
    peer.status(lambda s, v: reason in s.message, lambda: send(peer, 1, answer))


def test_damaged_detections_are_named(waiting: tuple[Peer, Publisher]) -> None:
    peer, publisher = waiting
    rng, named = np.random.default_rng(0), "/detections: a vision_msgs/msg/Detection2DArray of"

    def answer(stamp: int) -> None:
        publisher.publish(damaged(serialised(detections(stamp, *BOXES)), rng))

    peer.status(lambda s, v: named in s.message and "is damaged" in s.message, lambda: send(peer, 20, answer))
    peer.meshes.clear()
    first = peer.stamp + 1

    def good(stamp: int) -> None:
        publisher.publish(serialised(detections(stamp, *BOXES)))

    mesh = peer.wait(lambda: [m for m in peer.meshes if m.header.stamp.sec >= first], lambda: send(peer, 2, good))[0]
    assert mesh.height == 3


def test_the_users_detector_is_said(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = UserDetector.find

    def slow(self: UserDetector, *arguments: Any) -> Any:
        self.seconds, self.cpu_seconds = self.seconds + 100, self.cpu_seconds + 200
        return find(self, *arguments)

    monkeypatch.setattr(UserDetector, "find", slow)
    path = model(tmp_path / "mine.onnx", yolov8())
    node, peer = start("-p", f"detector_model:={path}", "-p", "boxes:=detector", "-p", "max_people:=1")
    assert node.start()
    said = f"{path} (outputs of YOLOv8, CPUExecutionProvider)"
    assert f"detector: {said}" in capfd.readouterr().err
    assert peer.ask(image(GREY))[0].height == 1
    values = peer.status(lambda s, v: v.get("people") == "1")
    assert values["detector"] == said
    assert "1 of 2 boxes are left out: max_people is 1" in values["message"]
    assert 100 <= float(values["infer_p50_s"]) < 200 <= float(values["infer_cpu_s"]), "it counts as a part of the model"


def test_nobody_is_tracked_by_a_silent_or_inactive_camera(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "package", lambda name: HRI if name == "hri_msgs" else None)
    node, peer = start("-p", "timeout:=0.5")
    assert node.start()
    lists: list[Any] = []
    peer.create_subscription(IdsList, "/humans/bodies/tracked", lists.append, 10)

    def tracked(count: int, again: Callable[[], Any] | None = None) -> None:
        lists.clear()
        peer.wait(lambda: any(len(message.name) == count for message in lists), again)

    tracked(1, lambda: peer.send(image(GREY)))
    tracked(0)
    assert not peer.set(timeout=3600.0)
    tracked(1, lambda: peer.send(image(GREY)))
    tracked(0, node.trigger_deactivate)


def test_an_output_that_fails_does_not_hide_the_others(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its topic is named, and the frame counts as processed, as its mesh went out."""

    def fail(*arguments: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("mega_ros.draw.overlay", fail)
    monkeypatch.setattr("mega_ros.ros.markers.Markers.message", fail)
    node, peer = start()
    assert node.start()
    for kind, topic in ((Image, "mega/overlay"), (MarkerArray, "mega/markers")):
        peer.create_subscription(kind, topic, lambda _: None, 1)
    failed = "/mega/overlay: ValueError: no ink"
    values = peer.status(lambda s, v: v.get("last_bad_input") == failed, lambda: peer.send(image(GREY)))
    assert int(values["frames_processed"]) > 0 and values["frames_rejected"] == "0"
    assert peer.ask(image(GREY))[1].height == 1


def test_a_frame_whose_mesh_fails_is_rejected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    people_cloud = standard.people_cloud

    def fail_without_distance(*arguments: Any) -> Any:
        if len(arguments) == 4:
            raise ValueError("no ink")
        return people_cloud(*arguments)

    monkeypatch.setattr(standard, "people_cloud", fail_without_distance)
    node, peer = start()
    assert node.start()
    values = peer.status(lambda s, v: v.get("frames_rejected", "0") != "0", lambda: peer.send(image(GREY)))
    assert values["frames_processed"] == "0" and values["last_bad_input"] == "/mega/mesh: ValueError: no ink"
    peer.wait(lambda: peer.joints, lambda: peer.send(image(GREY)))


def test_a_file_that_is_no_detector_fails_to_configure(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    node, _ = start("-p", "detector_model:=nowhere.onnx")
    assert not node.start()
    assert "detector_model: there is no file nowhere.onnx" in capfd.readouterr().err


def test_predicted_people_have_the_time_of_publication(start: Start) -> None:
    """Only where the stamp is of this clock: others are published as of their stamp."""
    node, peer = start("-p", "smoothing:=1.0", "-p", "predict:=true")
    assert node.start()
    sent: set[tuple[int, int]] = set()

    def send(seconds_ago: float) -> None:
        stamp = (node.get_clock().now() - rclpy.duration.Duration(seconds=seconds_ago)).to_msg()
        sent.add((stamp.sec, stamp.nanosec))
        peer.images.publish(image(GREY, header=Header(stamp=stamp, frame_id="camera")))

    def published(is_sent: bool) -> PointCloud2 | None:
        stamps = [((m.header.stamp.sec, m.header.stamp.nanosec), m) for m in peer.meshes]
        return next((mesh for stamp, mesh in stamps if (stamp in sent) == is_sent), None)

    mesh = peer.wait(lambda: published(False), lambda: send(0))
    assert mesh.height == 1 and mesh.header.frame_id == "camera"
    assert (mesh.header.stamp.sec, mesh.header.stamp.nanosec) > min(sent)
    for seconds_ago in (3600.0, -3600.0):
        sent.clear()
        assert peer.wait(lambda: published(True), lambda: send(seconds_ago)).height == 1  # noqa: B023


def test_empty_lists_are_lists(start: Start) -> None:
    """rcl gives them no type, and rclpy raised out of the executor."""
    node, _ = start("-p", "person_classes:=[]", "-p", "fixed_box:=[]")
    assert parameters.get(node, "person_classes") == [] and not parameters.stream_settings(node, 0.1).fixed_box
    (result,) = node.set_parameters([Parameter("boxes", value="fixed")])
    assert "fixed_box must be four finite numbers x0, y0, x1, y1" in result.reason
    endless = [Parameter("fixed_box", value=[0.0, 0.0, np.inf, 9.0]), Parameter("boxes", value="fixed")]
    assert "fixed_box must be four finite numbers x0, y0, x1, y1" in node.set_parameters_atomically(endless).reason


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
    (result,) = start()[0].set_parameters([Parameter(name, value=value)])
    assert not result.successful and reason in result.reason
