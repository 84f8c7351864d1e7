"""Several cameras in one node: each has its topics, its tracks and its diagnostics, and they take turns."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from little_bundle import little_bundle
from rclpy.exceptions import ParameterException
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from shape_msgs.msg import Mesh
from test_node import HEIGHT, WIDTH, K, Peer, image, running

from mega_ros.ros.node import MegaNode
from mega_ros.ros.read import read_cloud
from mega_ros.ros.worker import Worker

BLUE = {"front": 51, "rear": 102}
"""Of each camera's images: the little bundle's sigma is 0.1 m and the mean blue of the crop."""


class CameraPeer:
    """Publishes images of its colour, and receives the node's answers."""

    def __init__(self, peer: Peer, name: str, image_topic: str) -> None:
        self.peer, self.name = peer, name
        self.publisher = peer.create_publisher(Image, image_topic, 1)
        self.info = peer.create_publisher(CameraInfo, image_topic.rpartition("/")[0] + "/camera_info", 1)
        self.meshes: list[PointCloud2] = []
        self.topologies: list[Mesh] = []
        peer.create_subscription(PointCloud2, f"mega/{name}/mesh", self.meshes.append, 10)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer.create_subscription(Mesh, f"mega/{name}/topology", self.topologies.append, latched)

    def send(self) -> None:
        self.peer.stamp += 1
        message = image(np.full((HEIGHT, WIDTH, 3), (BLUE[self.name], 100, 50), np.uint8))
        message.header.stamp.sec = self.peer.stamp
        message.header.frame_id = self.name
        self.publisher.publish(message)

    def status(self, **wanted: str) -> dict[str, str]:
        """The camera's next diagnostics that have these values at the beginning."""
        return self.peer.status(
            lambda s, v: s.name == f"mega/{self.name}" and all(v[k].startswith(w) for k, w in wanted.items())
        )


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CameraPeer]]:
    """front by its own name, rear remapped to a driver's."""
    folder = tmp_path_factory.mktemp("little")
    little_bundle(folder)
    parameters = {"bundle": str(folder), "boxes": "full_frame", "provider": "cpu", "cameras": "[front, rear]"}
    arguments = [word for k, v in parameters.items() for word in ("-p", f"{k}:={v}")]
    with running(*arguments, "-r", "rear/image:=/back/image_raw", starts=False) as (peer, _):
        made = [CameraPeer(peer, "front", "front/image"), CameraPeer(peer, "rear", "back/image_raw")]
        peer.wait(lambda: all(camera.topologies for camera in made))
        yield made


def test_each_camera_has_its_own_topics_and_diagnostics(cameras: list[CameraPeer]) -> None:
    front, rear = cameras
    front.peer.wait(lambda: front.meshes, front.send)
    assert not rear.meshes
    assert rear.status()["frames_received"] == "0"

    def calibrated() -> None:
        rear.info.publish(CameraInfo(width=WIDTH, height=HEIGHT, k=K))
        rear.send()

    rear.peer.wait(lambda: rear.meshes, calibrated)
    blue = {}
    for camera in cameras:
        cloud = read_cloud(camera.meshes[-1])
        assert camera.meshes[-1].header.frame_id == camera.name
        assert read_cloud(camera.meshes[0])["id"][0, 0] == 0, "each camera has its own tracks"
        blue[camera.name] = cloud["sigma"][0, 0] - 0.1
    assert blue["rear"] == pytest.approx(2 * blue["front"], rel=0.01), "each has the people of its own images"
    rear.peer.wait(lambda: len(rear.meshes) > 3, calibrated)
    assert rear.status(intrinsics="camera_info")["image_topic"] == "/back/image_raw"
    assert front.status(intrinsics="assumed")["image_topic"] == "/front/image"


def test_a_silent_camera_is_told_by_its_name(cameras: list[CameraPeer]) -> None:
    front, rear = cameras
    assert not front.peer.set(timeout=1.0)
    found = rear.peer.status(lambda s, v: s.name == "mega/front" and "no images, " in v["message"], rear.send)
    assert found["message"].startswith("/front/image: ")
    rear.peer.status(lambda s, v: s.name == "mega/rear" and "no images, " not in v["message"], rear.send)


class WaitingCamera:
    """A camera whose images are processed when `go` is set."""

    def __init__(self, name: str, done: list[str], go: threading.Event) -> None:
        self.name, self.done, self.go = name, done, go

    def recover(self, image: Any, arrived: float) -> None:
        self.go.wait(60)
        self.done.append(f"{self.name}{image}")


def test_cameras_take_turns_and_the_newest_image_wins() -> None:
    done: list[str] = []
    go = threading.Event()
    a, b, c = (WaitingCamera(name, done, go) for name in "abc")
    worker = Worker()
    try:
        assert not worker.put(a, 0)
        while worker.put(a, 1):  # until the worker has taken one, so that all below wait
            time.sleep(0.01)
        replaced = [worker.put(camera, k) for k in range(2, 5) for camera in (a, b, c)]
        assert replaced == [True, False, False] + [True] * 6
        go.set()
        while len(done) < 4:
            time.sleep(0.01)
        assert done[1:] == ["b4", "c4", "a4"], "a had its turn"
        worker.put(b, 5)
        while len(done) < 5:
            time.sleep(0.01)
    finally:
        go.set()
        worker.close()
    assert done[4:] == ["b5"]


def test_closing_waits_for_the_image_in_work_and_leaves_the_others() -> None:
    done: list[str] = []
    go = threading.Event()
    a, b = (WaitingCamera(name, done, go) for name in "ab")
    worker = Worker()
    worker.put(a, 0)
    while worker.put(a, 1):  # until the worker has taken one
        time.sleep(0.01)
    worker.put(b, 2)
    threading.Timer(0.2, go.set).start()
    worker.close()
    assert len(done) == 1 and done[0].startswith("a")


@pytest.mark.parametrize("cameras", ["[front, front]", "['front/left']", "front", "[1, 2]"])
def test_names_of_cameras_are_checked(cameras: str) -> None:
    context_args = ["--ros-args", "-p", f"cameras:={cameras}"]
    rclpy.init(args=context_args)
    try:
        with pytest.raises(ParameterException, match="cameras must be different names"):
            MegaNode()
    finally:
        rclpy.shutdown()
