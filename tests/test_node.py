"""The node in its own process, over DDS: what it publishes, what it says about bad input, how it starts and ends."""

import array
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from domains import free_domain
from rcl_interfaces.msg import Log, ParameterType
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from shape_msgs.msg import Mesh

from mega_model.core.cameras import Camera
from mega_ros import Recovery
from mega_ros.bundle import DEFAULT
from mega_ros.environment import share
from mega_ros.ros.dds import use_large_messages
from mega_ros.ros.parameters import declare, stream_settings, unused_files
from mega_ros.ros.read import positions, read_cloud
from mega_ros.stream import StreamSettings

HEIGHT, WIDTH = 240, 320
K = [300.0, 0.0, 160.0, 0.0, 300.0, 120.0, 0.0, 0.0, 1.0]
PATIENCE = 600.0
"""Seconds to wait for what must come: it ends a hang, and a busy machine does not reach it."""

use_large_messages()


Fits: TypeAlias = Callable[[DiagnosticStatus, dict[str, str]], bool]


class Peer(Node):  # type: ignore[misc]  # rclpy's types are skipped
    """Publishes to the node under test and receives its answers."""

    def __init__(self, context: Context, image_type: type, image_topic: str, namespace: str) -> None:
        super().__init__("peer", context=context, namespace=namespace)
        self.executor_ = SingleThreadedExecutor(context=context)
        self.executor_.add_node(self)
        self.stamp = 0
        self.images = self.create_publisher(image_type, image_topic, 1)
        self.infos = self.create_publisher(CameraInfo, "camera_info", 1)
        self.meshes: list[PointCloud2] = []
        self.joints: list[PointCloud2] = []
        self.topologies: list[Mesh] = []
        self.statuses: list[DiagnosticStatus] = []
        self.clouds: list[Any] = []
        self.listen(True)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(Mesh, "mega/topology", self.topologies.append, latched)
        self.create_subscription(DiagnosticArray, "/diagnostics", lambda m: self.statuses.extend(m.status), 10)

    def listen(self, on: bool) -> None:
        """Subscribes to mesh and joints, or no longer."""
        for subscription in self.clouds:
            self.destroy_subscription(subscription)
        topics = {"mega/mesh": self.meshes, "mega/joints": self.joints} if on else {}
        self.clouds = [self.create_subscription(PointCloud2, name, heard.append, 10) for name, heard in topics.items()]

    def wait(self, until: Callable[[], Any], again: Callable[[], Any] | None = None) -> Any:
        """Spins until `until()` is true and returns it; calls `again` every half second, for what may get lost."""
        end = time.monotonic() + PATIENCE
        due = 0.0
        while not (result := until()):
            assert time.monotonic() < end, "the node did not answer"
            if again and time.monotonic() >= due:
                again()
                due = time.monotonic() + 0.5
            self.executor_.spin_once(timeout_sec=0.05)
        return result

    def send(self, image: Any) -> int:
        """Publishes an image with a stamp of its own, which is returned."""
        self.stamp += 1
        image.header.stamp.sec, image.header.stamp.nanosec = self.stamp, 123
        image.header.frame_id = "camera_optical_frame"
        self.images.publish(image)
        return self.stamp

    def ask(self, image: Any) -> tuple[PointCloud2, PointCloud2]:
        """Sends an image until the node answers one of its copies: mesh and joints."""
        first = self.stamp + 1
        mesh = self.wait(
            # a damaged image may have been answered, with any stamp
            lambda: next((m for m in self.meshes if first <= m.header.stamp.sec <= self.stamp), None),
            lambda: self.send(image),
        )
        joints = self.wait(lambda: next((m for m in self.joints if m.header == mesh.header), None))
        return mesh, joints

    def status(self, fits: Fits, again: Callable[[], Any] | None = None) -> dict[str, str]:
        """The values of the next diagnostics that fit, while `again` is called every half second."""
        self.statuses.clear()

        def fitting() -> dict[str, str] | None:
            for status in self.statuses:
                values = {v.key: v.value for v in status.values} | {"message": status.message}
                if fits(status, values):
                    return values
            return None

        return self.wait(fitting, again)

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self.create_client(kind, f"mega/{name}")
        self.wait(client.service_is_ready)
        future = client.call_async(request)
        self.wait(future.done)
        self.destroy_client(client)
        return future.result()

    def set(self, **parameters: Any) -> str:
        """Sets parameters of the node; what it says against it, or nothing."""
        changes = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        answer = self.call(SetParameters, "set_parameters", SetParameters.Request(parameters=changes))
        return "; ".join(result.reason for result in answer.results if not result.successful)


def command(*ros_args: str) -> list[str]:
    return [sys.executable, "-m", "mega_ros.node", "--ros-args", *ros_args]


@contextmanager
def running(
    *ros_args: str,
    image_type: type = Image,
    image_topic: str = "image",
    namespace: str = "/",
    starts: bool = True,
) -> Iterator[tuple[Peer, subprocess.Popen[str]]]:
    """The node with `ros_args` and a peer, alone in a DDS domain. starts: whether it activates itself."""
    domain = free_domain()
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
    process = subprocess.Popen(
        command("-r", f"__ns:={namespace}", *ros_args), env=environment, stderr=subprocess.PIPE, text=True
    )
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    peer = Peer(context, image_type, image_topic, namespace)
    try:
        peer.wait(lambda: peer.statuses and (peer.topologies or not starts))
        yield peer, process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
        print(errors, file=sys.stderr)
        peer.executor_.shutdown()
        peer.destroy_node()
        rclpy.shutdown(context=context)
        assert process.returncode == 0


def image(pixels: np.ndarray, encoding: str = "bgr8", **changes: Any) -> Image:
    pixels = np.ascontiguousarray(pixels)
    values = {"height": pixels.shape[0], "width": pixels.shape[1], "step": pixels.strides[0]} | changes
    return Image(encoding=encoding, data=array.array("B", pixels.tobytes()), **values)


GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    return Recovery.load("default", provider="cpu")


@pytest.fixture(scope="module")
def talk() -> Iterator[Peer]:
    """A node that takes every image for one person, so that what it finds does not depend on the detector."""
    with running("-p", "boxes:=full_frame", "-p", "provider:=cpu") as (peer, _):
        calibrate(peer)
        yield peer


@pytest.fixture
def peer(talk: Peer) -> Peer:
    """The same node for every test, as it was at its start."""
    usual = {"fixed_box": [0.0] * 4, "samples": "auto", "seed": 0, "fov": 1.0, "score_threshold": 0.5}
    assert not talk.set(boxes="full_frame", rectified="auto", rotate=0, **usual)
    return talk


def calibrate(peer: Peer, **changes: Any) -> None:
    """A camera_info that the node has certainly taken: diagnostics stop, or begin, to assume intrinsics."""
    info = CameraInfo(**{"width": WIDTH, "height": HEIGHT, "k": K} | changes)
    wanted = "assumed" if changes else "camera_info"

    def again() -> None:
        peer.infos.publish(info)
        peer.send(image(GREY))

    peer.status(lambda s, values: values["intrinsics"].startswith(wanted), again)


def test_mesh_is_what_recovery_gives(peer: Peer, recovery: Recovery) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    mesh, joints = peer.ask(image(pixels))
    boxes = np.array([[0, 0, WIDTH, HEIGHT]], np.float32)
    ids = read_cloud(mesh)["id"][:, 0]
    people = recovery.run(pixels, np.reshape(K, (3, 3)), boxes, ids)
    for message, points, sigma in ((mesh, people.vertices, people.sigma), (joints, people.joints, people.joints_sigma)):
        cloud = read_cloud(message)
        assert message.header.frame_id == "camera_optical_frame"
        assert cloud.shape == points.shape[:2]
        np.testing.assert_allclose(positions(cloud), points, atol=1e-4)
        np.testing.assert_allclose(cloud["sigma"], sigma, atol=1e-4)
    assert (people.sigma > 0).all()
    np.testing.assert_allclose(read_cloud(joints)["distance"], np.tile(people.distance[:, None], 24), atol=1e-3)


def test_topology_comes_to_late_subscribers(peer: Peer, recovery: Recovery) -> None:
    topology = peer.topologies[0]
    np.testing.assert_array_equal([t.vertex_indices for t in topology.triangles], recovery.topology.faces)
    np.testing.assert_allclose([[p.x, p.y, p.z] for p in topology.vertices], recovery.topology.template)


def test_same_person_keeps_the_id(peer: Peer) -> None:
    """In images a tenth of a second apart; those of `send`, whole seconds apart, may be lost."""
    peer.stamp += 1

    def id_in(message: Image) -> int:
        stamp = message.header.stamp
        mesh = peer.wait(
            lambda: next((m for m in peer.meshes if m.header.stamp == stamp), None),
            lambda: peer.images.publish(message),
        )
        return int(read_cloud(mesh)["id"][0, 0])

    ids = set()
    for k in range(1, 4):
        message = image(GREY)
        message.header.stamp.sec, message.header.stamp.nanosec = peer.stamp, k * 10**8
        ids.add(id_in(message))
    assert len(ids) == 1


def test_nobody(peer: Peer, recovery: Recovery) -> None:
    """A black image: the detector finds nobody, and the message says so."""
    assert not peer.set(boxes="detector", score_threshold=1.0)
    mesh, joints = peer.ask(image(np.zeros_like(GREY)))
    assert (mesh.height, mesh.width, len(mesh.data)) == (0, len(recovery.topology.template), 0)
    assert (joints.height, joints.width) == (0, len(recovery.topology.joint_names))
    assert [f.name for f in mesh.fields] == ["x", "y", "z", "sigma", "id"]


def test_diagnostics_tell_what_runs(peer: Peer, recovery: Recovery) -> None:
    # an earlier test's last frame may have no people, and stays the last one until this test's is processed
    values = peer.status(
        lambda s, v: s.level == DiagnosticStatus.OK and v["people"] != "0", lambda: peer.send(image(GREY))
    )
    assert values["bundle"] == recovery.bundle.name
    assert values["bundle_hash"] == recovery.bundle.hash
    assert values["backend"] == recovery.backend
    assert f"{recovery.bundle.calibration.scale:g}" in values["calibration"]
    assert int(values["frames_received"]) >= int(values["frames_processed"]) > 0
    assert 0 < float(values["latency_p50_s"]) <= float(values["latency_p95_s"])
    assert float(values["rate_hz"]) > 0
    parts = [float(values[f"{stage}_p50_s"]) for stage in ("decode", "crop", "infer", "publish")]
    decode, _, infer, publish = parts
    assert min(parts) >= 0 and infer > 0
    assert max(parts) < float(values["latency_p95_s"]), "of one image, not of all so far"
    assert decode + publish < infer, "publishing begins after the people are known"
    assert float(values["latency_from_stamp_p50_s"]) > 1e9, "the stamps of these tests are old"
    assert [key for key in values if re.fullmatch(r"person_\d+", key)]


def test_newest_frame_wins_and_drops_are_counted(peer: Peer) -> None:
    """Images faster than the node: what it received and did not process it counts as dropped. The last one comes."""

    def counted(values: dict[str, str]) -> list[int]:
        return [int(values[f"frames_{what}"]) for what in ("received", "processed", "dropped", "rejected", "idle")]

    def settled(status: DiagnosticStatus, values: dict[str, str]) -> bool:
        return counted(values)[0] == sum(counted(values)[1:])

    before = counted(peer.status(settled))
    for _ in range(60):
        last = peer.send(image(GREY))
        peer.executor_.spin_once(timeout_sec=0.002)
    peer.wait(lambda: any(m.header.stamp.sec == last for m in peer.meshes))
    after = counted(peer.status(settled))
    received, processed, dropped, rejected, idle = (b - a for a, b in zip(before, after))
    assert received > processed > 0
    assert dropped == received - processed
    assert rejected == idle == 0


BAD_IMAGES = {
    "16 bit": (image(np.zeros((HEIGHT, WIDTH), np.uint16), "mono16"), "'mono16' has more than 8 bits"),
    "Bayer": (image(np.zeros((HEIGHT, WIDTH), np.uint16), "bayer_rggb16"), "'bayer_rggb16' has more than 8 bits"),
    "cut off": (image(GREY, height=HEIGHT + 1), "the data are cut off"),
    "empty": (image(GREY[:0]), "320 x 0 pixels"),
    "no size": (Image(encoding="bgr8"), "0 x 0 pixels"),
    "unknown": (image(GREY, "hsl8"), "'hsl8' is unknown"),
    "short rows": (image(GREY, step=10), "step is 10 bytes"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_image_is_named_and_survived(peer: Peer, kind: str) -> None:
    bad, reason = BAD_IMAGES[kind]
    values = peer.status(lambda s, v: s.level == DiagnosticStatus.WARN and reason in s.message, lambda: peer.send(bad))
    assert values["last_bad_input"].startswith("/image: ")
    assert reason in values["last_bad_input"]
    assert int(values["frames_rejected"]) > 0
    assert peer.ask(image(GREY))[0].height == 1


BAD_INFOS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"k": [float("nan"), *K[1:]]}, "K is not finite"),
    "zero": ({"k": [0.0] * 9}, "K is all zero, and P, too"),
    "another ratio": ({"width": 2 * WIDTH, "height": HEIGHT}, "it is for 640 x 240 pixels, the image has 320 x 240"),
    "unknown lens": ({"distortion_model": "fov", "d": [0.9]}, "distortion_model 'fov' is unknown"),
}


@pytest.mark.parametrize("kind", BAD_INFOS)
def test_bad_camera_info_is_named_and_replaced(peer: Peer, recovery: Recovery, kind: str) -> None:
    """People are still found, with intrinsics from the field of view."""
    changes, reason = BAD_INFOS[kind]
    assert not peer.set(fov=0.8)
    calibrate(peer, **changes)
    values = peer.status(lambda s, v: reason in s.message, lambda: peer.send(image(GREY)))
    assert values["intrinsics"].startswith("assumed: /camera_info: ")
    assert reason in values["intrinsics"]
    assert values["message"].count(reason) == 1, "not also as the last bad input"
    mesh, _ = peer.ask(image(GREY))
    focal = WIDTH / 2 / np.tan(0.4)
    assumed = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    people = recovery.run(GREY, assumed, np.array([[0, 0, WIDTH, HEIGHT]], np.float32))
    np.testing.assert_allclose(positions(read_cloud(mesh)), people.vertices, atol=1e-4)
    calibrate(peer)


FULL_FRAME = np.array([[0, 0, WIDTH, HEIGHT]], np.float32)
INFO: dict[str, Any] = {"width": 2 * WIDTH, "height": 2 * HEIGHT, "k": [600.0, 0, 320, 0, 600, 240, 0, 0, 1]}
FISHEYE = INFO | {"distortion_model": "equidistant", "d": [0.1, 0.0, 0.0, 0.0]}
RECTIFIED = FISHEYE | {"p": [440.0, 0, 300, 0, 0, 440, 260, 0, 0, 0, 1, 0]}


@pytest.mark.parametrize(
    ("sent", "parameters", "camera"),
    [
        (FISHEYE, {}, Camera(np.reshape(K, (3, 3)), "equidistant", [0.1, 0, 0, 0])),
        (RECTIFIED, {"rectified": True, "rotate": 90}, Camera(np.array([[220.0, 0, 150], [0, 220, 130], [0, 0, 1]]))),
    ],
    ids=["lens", "rectified and turned"],
)
def test_camera_info_is_understood_whole(
    peer: Peer, recovery: Recovery, sent: dict[str, Any], parameters: dict[str, Any], camera: Camera
) -> None:
    """Lens, scaled image, rectified image, turned camera: the mesh is that of the library."""
    pixels = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    rotate = parameters.get("rotate", 0)
    people = recovery.run(pixels, camera, FULL_FRAME, rotate=rotate)
    assert not peer.set(**parameters)

    def again() -> None:
        peer.infos.publish(CameraInfo(**sent))
        peer.send(image(pixels))

    def right() -> bool:
        mesh = peer.meshes[-1]
        return mesh.height == len(people) and np.allclose(positions(read_cloud(mesh)), people.vertices, atol=1e-3)

    peer.wait(right, again)
    values = peer.status(lambda s, v: s.level == DiagnosticStatus.OK, lambda: peer.send(image(pixels)))
    assert values["intrinsics"] == "camera_info"
    calibrate(peer)


def test_a_stand_in_for_the_calibration_is_a_warning(peer: Peer) -> None:
    sent = CameraInfo(**RECTIFIED | {"k": [0.0] * 9})

    def again() -> None:
        peer.infos.publish(sent)
        peer.send(image(GREY))

    reason = "/camera_info: K is all zero, so P is used instead"
    values = peer.status(lambda s, v: s.level == DiagnosticStatus.WARN and reason in s.message, again)
    assert values["intrinsics"] == "camera_info"
    calibrate(peer)


@pytest.mark.parametrize("samples", [0, 2])
def test_sigma_needs_no_samples(peer: Peer, recovery: Recovery, samples: int) -> None:
    assert not peer.set(samples=samples)
    mesh, joints = map(read_cloud, peer.ask(image(GREY)))
    people = recovery.run(GREY, np.reshape(K, (3, 3)), np.array([[0, 0, WIDTH, HEIGHT]], np.float32))
    np.testing.assert_allclose(mesh["sigma"], people.sigma, atol=1e-4)
    np.testing.assert_allclose(joints["sigma"], people.joints_sigma, atol=1e-4)


def test_a_box_beside_the_image_is_left_out(peer: Peer) -> None:
    """The frame is answered all the same, and diagnostics say why it shows nobody."""
    assert not peer.set(fixed_box=[2.0 * WIDTH, 0.0, 3.0 * WIDTH, 100.0])
    assert not peer.set(boxes="fixed")
    assert peer.ask(image(GREY))[0].height == 0
    reason = "1 of 1 boxes are left out"
    values = peer.status(lambda s, v: reason in s.message, lambda: peer.send(image(GREY)))
    assert values["last_bad_input"].startswith(f"/image: {reason}")


def test_fixed_box(peer: Peer, recovery: Recovery) -> None:
    box = [40.0, 20.0, 140.0, 220.0]
    assert not peer.set(fixed_box=box)
    assert not peer.set(boxes="fixed")
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    mesh, _ = peer.ask(image(pixels))
    people = recovery.run(pixels, np.reshape(K, (3, 3)), np.array([box], np.float32))
    np.testing.assert_allclose(positions(read_cloud(mesh)), people.vertices, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"samples": 1000}, "auto or a whole number from -1 to 100"),
        ({"samples": -2}, "auto or a whole number"),
        ({"score_threshold": 1.5}, "range"),
        ({"fov": 0.0}, "fov must be in radians, 0.1 to 3"),
        ({"fov": 60.0}, "radians, 0.1 to 3, not 60: 60 degrees are 1.047"),
        ({"rotate": 45}, "range|step"),
        ({"fixed_box": [10.0, 20.0, 30.0, 20.0], "boxes": "fixed"}, "y0 < y1"),
        ({"rectified": "maybe"}, "one of auto, true, false"),
        ({"rectified": 3}, "one of auto, true, false"),
        ({"seed": -1}, "range"),
        ({"boxes": "hog"}, "one of detector, detections, full_frame, fixed"),
        ({"boxes": "fixed"}, "fixed_box must be"),
        ({"samples": "many"}, "auto or a whole number"),
        ({"max_people": "many"}, "max_people has the type INTEGER, but many has STRING$"),
        ({"smoothing": 1}, "smoothing has the type DOUBLE, but 1 has INTEGER; numbers need a point, as 1.0$"),
        ({"fixed_box": [0, 0, 9, 9]}, "fixed_box has the type DOUBLE_ARRAY, .*; numbers need a point"),
        ({"max_peple": 3}, "there is no parameter max_peple$"),
        ({"bundle": "other"}, "read-only|read only"),
    ],
)
def test_refused_parameters(peer: Peer, parameters: dict[str, Any], reason: str) -> None:
    assert re.search(reason, peer.set(**parameters))


def test_parameters_are_the_settings_of_each_camera() -> None:
    given = {
        "cameras": "[front, rear]",
        "fixed_box": "[1.0, 2.0, 3.0, 4.0]",
        "boxes": "fixed",
        "score_threshold": 0.25,
        "tiles": True,
        "max_people": 3,
        "samples": -1,
        "seed": 7,
        "fov": 1.5,
        "rotate": 90,
        "smoothing": 0.75,
    }
    context = Context()
    rclpy.init(context=context, domain_id=free_domain())
    arguments = [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]
    node = Node("mega", context=context, cli_args=["--ros-args", *arguments])
    try:
        declare(node)
        assert stream_settings(node, 0.1) == StreamSettings(
            boxes="fixed",
            fixed_box=(1, 2, 3, 4),
            score_threshold=0.25,
            tiles=True,
            max_people=3,
            samples=None,
            period=0.05,
            seed=7,
            fov=1.5,
            rotate=90,
            smoothing=0.75,
        )
        for samples in (0, 100, "auto"):
            assert node.set_parameters([Parameter("samples", value=samples)])[0].successful
            assert stream_settings(node, 0.1).samples == samples
        assert node.set_parameters([Parameter("predict", value=True)])[0].successful
        refused = node.set_parameters([Parameter("smoothing", value=0.0)])[0]
        assert refused.reason.startswith("predict needs smoothing"), "whichever of the two changes"
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_parameter_file_shows_the_defaults_and_all_are_described() -> None:
    content = yaml.safe_load((share() / "config" / "mega.yaml").read_text())
    shown = content["/**"]["ros__parameters"]
    with running() as (peer, _):
        names = list(shown)
        values = peer.call(GetParameters, "get_parameters", GetParameters.Request(names=names)).values
        kinds = {
            ParameterType.PARAMETER_BOOL: "bool_value",
            ParameterType.PARAMETER_STRING: "string_value",
            ParameterType.PARAMETER_INTEGER: "integer_value",
            ParameterType.PARAMETER_DOUBLE: "double_value",
            ParameterType.PARAMETER_DOUBLE_ARRAY: "double_array_value",
            ParameterType.PARAMETER_BYTE_ARRAY: "byte_array_value",  # as rclpy has an empty list
            ParameterType.PARAMETER_STRING_ARRAY: "string_array_value",
        }
        actual = {name: getattr(value, kinds[value.type]) for name, value in zip(names, values)}
        assert {k: list(v) if isinstance(v, array.array) else v for k, v in actual.items()} == shown
        described = peer.call(DescribeParameters, "describe_parameters", DescribeParameters.Request(names=names))
        assert all(d.description for d in described.descriptors)


def test_namespace_remapping_parameter_file_and_compressed_images(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a launch file starts it: the topics move, the parameter file still fits, a later -p wins."""
    parameters = tmp_path / "mega.yaml"
    parameters.write_text("/**:\n  ros__parameters:\n    boxes: full_frame\n    fov: 0.7\n")
    arguments = ["--params-file", str(parameters), "-p", "image_transport:=compressed", "-p", "fov:=0.5"]
    arguments += ["-r", "image:=/camera/image_raw", "-r", "~/mesh:=/people"]
    topic = "/camera/image_raw/compressed"
    with running(*arguments, image_type=CompressedImage, image_topic=topic, namespace="/robot") as (peer, _):
        peer.create_subscription(PointCloud2, "/people", peer.meshes.append, 10)
        jpeg = cv2.imencode(".jpg", GREY)[1].tobytes()
        mesh, _ = peer.ask(CompressedImage(format="jpeg", data=array.array("B", jpeg)))
        assert mesh.height == 1
        values = peer.status(lambda s, v: "no camera_info has come" in s.message)
        reason = "no camera_info has come; remap camera_info, or set fov"
        assert values["intrinsics"] == f"assumed: /camera/camera_info: {reason}"
        assert values["message"].count("no camera_info has come") == 1
        reason = "the JPEG data are cut off"
        cut = CompressedImage(format="jpeg", data=array.array("B", jpeg[: len(jpeg) // 2]))
        values = peer.status(lambda s, v: reason in s.message, lambda: peer.send(cut))
        assert values["last_bad_input"].startswith(f"{topic}: ")
        noise = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, GREY.shape, np.uint8))[1].tobytes()
        for k in range(60):  # libjpeg complains about those that are damaged, but whole
            at = 700 + 100 * k
            for broken in (noise[:at], noise[:at] + noise[at + 50 :]):
                peer.send(CompressedImage(format="jpeg", data=array.array("B", broken)))
                peer.executor_.spin_once(timeout_sec=0.02)
        assert peer.ask(CompressedImage(format="jpeg", data=array.array("B", jpeg)))[0].height == 1
    said = capfd.readouterr().err.splitlines()
    assert 1 <= len([line for line in said if "cut off" in line]) < 10
    assert not [line for line in said if line and not line.startswith("[")]


def test_large_images_arrive_best_effort() -> None:
    """1280 x 720 raw, 2.8 MB, from a best-effort camera: needs the shared memory of config/fastdds.xml."""
    with running("-p", "boxes:=full_frame") as (peer, _):
        quality = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        peer.images = peer.create_publisher(Image, "image", quality)
        peer.wait(peer.images.get_subscription_count)
        mesh, _ = peer.ask(image(np.zeros((720, 1280, 3), np.uint8)))
        assert mesh.height == 1


def test_wrong_type_is_named() -> None:
    """A camera that publishes CompressedImage where Image is awaited."""
    with running("-p", "image_transport:=raw", image_type=CompressedImage) as (peer, _):
        lines: list[str] = []
        kept = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        peer.create_subscription(Log, "/rosout", lambda log: lines.append(f"{log.level} {log.msg}"), kept)
        why = "/image: carries sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image"
        for _ in range(3):
            peer.status(lambda s, v: why in s.message)
        peer.wait(lambda: any(why in line for line in lines))
        (said,) = [line for line in lines if why in line]
        assert said.startswith("30 ")  # WARN
        assert any("listens to /image, /camera_info" in line and "/mega/mesh, /mega/joints" in line for line in lines)


@contextmanager
def started_with_sighup(handler: signal.Handlers) -> Iterator[None]:
    """What processes inherit that are started within: under nohup, SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_with_code_0(number: signal.Signals) -> None:
    with started_with_sighup(signal.SIG_DFL), running("-p", "boxes:=full_frame") as (peer, process):
        calibrate(peer)
        peer.send(image(GREY))  # in the midst of work
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 0


def test_further_signals_do_not_change_the_code() -> None:
    """As a launch that sends SIGINT, then SIGTERM, or an impatient user."""
    with running("-p", "boxes:=full_frame") as (_, process):
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert process.returncode == 0


def test_under_nohup_a_closed_terminal_does_not_end_it() -> None:
    with started_with_sighup(signal.SIG_IGN), running("-p", "boxes:=full_frame") as (peer, process):
        process.send_signal(signal.SIGHUP)
        assert peer.ask(image(GREY))[0].height == 1


SLOW = """
import sys, time
def slow(*args, **options):
    print("now", flush=True)
    while True:
        time.sleep(0.1)  # goes on after a handler in Python; a signal just before a long one would wait for its end
class SlowImport:
    def find_spec(self, name, *rest):
        if [name] == sys.argv[2:]:
            slow()
sys.meta_path.insert(0, SlowImport())
if sys.argv[1] == "node":  # as the command `mega`
    from mega_ros.cli import main
    sys.exit(main())
if sys.argv[1] != "importing":
    from mega_ros.bundle import Bundle
    Bundle.load = slow
from mega_ros.node import main
if sys.argv[1] == "configuring":  # as the service does, in the executor
    from mega_ros.node import MegaNode
    MegaNode.start = lambda node: bool(node.create_timer(0.01, node.trigger_configure))
sys.exit(main([]))
"""


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("node numpy", signal.SIGINT),
        ("importing rclpy", signal.SIGINT),
        ("importing rclpy", signal.SIGHUP),
        ("loading", signal.SIGTERM),
        ("configuring", signal.SIGTERM),
    ],
)
def test_ends_at_once_while_it_starts(phase: str, number: signal.Signals) -> None:
    with started_with_sighup(signal.SIG_DFL):
        process = subprocess.Popen([sys.executable, "-c", SLOW, *phase.split()], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_program_with_the_node_ends_by_its_exception() -> None:
    """Python waits for the node's worker, which nobody closes."""
    code = """
import rclpy
from mega_ros.node import MegaNode
rclpy.init()
node = MegaNode()
assert node.start()
raise KeyError("ours")
"""
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert end.returncode == 1 and "KeyError: 'ours'" in end.stderr


def broken(folder: Path, how: str) -> str:
    """Breaks a copy of the default bundle; what the node must say about it."""
    manifest = folder / "bundle.json"
    if how == "missing":
        manifest.unlink()
        return "bundle.json: there is no such file"
    if how == "missing graph":
        (folder / "sampler.onnx").unlink()
        return "sampler.onnx: there is no such file"
    if how == "changed":
        with (folder / "backbone.onnx").open("r+b") as file:
            file.write(b"\xff")
        return "backbone.onnx: its SHA-256 is not"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format": 999}))
    return "format 999 is newer"


@pytest.mark.parametrize("how", ["missing", "missing graph", "changed", "newer"])
def test_bad_bundle_is_one_line_and_code_1(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(DEFAULT, folder)
    reason = broken(folder, how)
    end = subprocess.run(command("-p", f"bundle:={folder}"), capture_output=True, text=True, timeout=PATIENCE)
    assert end.returncode == 1
    assert reason in end.stderr
    assert len(end.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("-p", "samples:=many"),
        ("-p", "samples:=-7"),
        ("-p", "boxes:=fixed"),
        ("-p", "provider:=tpu"),
        ("--params-file", "nowhere.yaml"),
        ("-r", "no rule"),
    ],
)
def test_bad_arguments_are_one_line_and_code_1(arguments: tuple[str, str]) -> None:
    end = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE)
    assert end.returncode == 1
    assert len(end.stderr.strip().splitlines()) == 1
    assert arguments[1].split(":=")[0] in end.stderr


def test_a_log_folder_that_cannot_be_made_is_one_line() -> None:
    ended = subprocess.run(command(), env=os.environ | {"ROS_LOG_DIR": "/proc/nowhere"}, capture_output=True, text=True)
    assert ended.returncode == 1
    (line,) = ended.stderr.strip().splitlines()
    assert "/proc/nowhere" in line and line.endswith("; set ROS_LOG_DIR to a folder that can be written")


@pytest.mark.parametrize(
    ("entry", "used"),
    [
        ("/**", True),
        ("/*/mega", True),
        ("/**/mega", True),
        ("/robot/mega", True),
        ("robot/mega", True),
        ("robot: {mega", True),
        ("mega", False),
        ("/*", False),
        ("/robot/mega_node", False),
    ],
)
def test_parameter_files_without_an_entry_for_the_node_are_known(tmp_path: Path, entry: str, used: bool) -> None:
    """Whether ROS takes the parameters from the file, and what `unused_files` says. To ROS, any date is text."""
    file = tmp_path / "parameters.yaml"
    file.write_text(f"{entry}: {{ros__parameters: {{value: 3, day: 2026-13-45}}}}{'}' * entry.count('{')}\n")
    args = ["--ros-args", "-r", "__ns:=/robot", "-r", "__node:=mega", "--params-file", str(file)]
    context = Context()
    rclpy.init(args=args, context=context, domain_id=free_domain())
    node = Node("mega", context=context, automatically_declare_parameters_from_overrides=True)
    try:
        assert node.has_parameter("value") == used
        assert unused_files(args, node.get_fully_qualified_name()) == [str(file)] * (not used)
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_unknown_ros_arguments_are_named() -> None:
    end = subprocess.run(command("--foo", "a b"), capture_output=True, text=True, timeout=PATIENCE)
    assert (end.returncode, end.stderr) == (1, "mega node: unknown ROS arguments: --foo 'a b'\n")
