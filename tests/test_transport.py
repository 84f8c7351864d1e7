"""How images reach the node over DDS: QoS, what never arrived, cameras that die, and two nodes of one name."""

import array
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Log
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from test_node import GREY, PATIENCE, K, Peer, calibrate, command, image, running

from mega_ros.ros.diagnostics import RECENT
from mega_ros.ros.transport import Losses, camera_info_topic, image_sources

ONE_PERSON = ("-p", "boxes:=full_frame", "-p", "provider:=cpu")
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def camera(peer: Peer, quality: QoSProfile, kind: type = Image) -> None:
    """The peer's camera ends, and another begins."""
    peer.destroy_publisher(peer.images)
    peer.images = peer.create_publisher(kind, "image", quality)


def subscribed(peer: Peer, topic: str = "/image") -> list[QoSProfile]:
    """What the node asks for."""
    return [info.qos_profile for info in peer.get_subscriptions_info_by_topic(topic)]


@pytest.fixture(scope="module")
def talk() -> Iterator[Peer]:
    with running(*ONE_PERSON) as (peer, _):
        yield peer


@pytest.fixture
def peer(talk: Peer) -> Peer:
    assert not talk.set(timeout=3.0)
    return talk


def test_reliability_follows_the_publisher(peer: Peer) -> None:
    """Also one that appears later, and one of each kind at once."""
    for quality in (RELIABLE, BEST_EFFORT, RELIABLE):
        camera(peer, quality)
        peer.wait(lambda: [q.reliability for q in subscribed(peer)] == [quality.reliability])  # noqa: B023
        assert peer.ask(image(GREY))[0].height == 1
    second = peer.create_publisher(Image, "image", BEST_EFFORT)
    peer.wait(lambda: [q.reliability for q in subscribed(peer)] == [ReliabilityPolicy.BEST_EFFORT])
    peer.destroy_publisher(second)
    peer.status(lambda s, v: v["image_reliability"] == "reliable")


def test_reliability_as_the_parameter_says() -> None:
    with running(*ONE_PERSON, "-p", "image_reliability:=best_effort") as (peer, _):
        camera(peer, RELIABLE)
        assert peer.ask(image(GREY))[0].height == 1
        assert peer.status(lambda s, v: True)["image_reliability"] == "best_effort"


def test_qos_that_does_not_match_is_named() -> None:
    durable = "qos_overrides./image.subscription.durability"
    latched = "qos_overrides./camera_info.subscription.durability"
    arguments = ("-p", "image_reliability:=reliable", "-p", "timeout:=0.5", "-p", f"{durable}:=transient_local")
    with running(*ONE_PERSON, *arguments, "-p", f"{latched}:=transient_local") as (peer, _):
        strict = f"who publishes offers volatile, but {durable} is transient_local: set it to auto"
        reason = "who publishes offers best_effort, but image_reliability is reliable: set it to auto"
        camera(peer, BEST_EFFORT)
        peer.status(lambda s, v: f"/image: no images, {reason}; {strict}" in s.message)
        camera(peer, RELIABLE)
        peer.status(lambda s, v: f"/image: no images, {strict}" in s.message)
        peer.create_publisher(Image, "image", RELIABLE)  # one that matches is enough
        camera(peer, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        peer.ask(image(GREY))
        assumed = f"/camera_info: who publishes offers volatile, but {latched} is transient_local: set it to auto"
        peer.status(lambda s, v: assumed in s.message and strict not in s.message)


def test_qos_overrides_on_every_topic() -> None:
    """The names are those of rclpy; what is set wins over what would match."""
    topics = {
        "/image.subscription.reliability": "best_effort",
        "/image.subscription.depth": "3",
        "/camera_info.subscription.reliability": "best_effort",
        "/mega/mesh.publisher.reliability": "best_effort",
        "/mega/joints.publisher.reliability": "best_effort",
        "/mega/topology.publisher.depth": "2",
        "/diagnostics.publisher.durability": "transient_local",
    }
    arguments = [text for name, value in topics.items() for text in ("-p", f"qos_overrides.{name}:={value}")]
    with running(*ONE_PERSON, *arguments) as (peer, _):
        camera(peer, RELIABLE)
        peer.status(lambda s, v: v["frames_received"] != "0", lambda: peer.send(image(GREY)))
        assert [q.reliability for q in subscribed(peer)] == [ReliabilityPolicy.BEST_EFFORT]
        assert [q.reliability for q in subscribed(peer, "/camera_info")] == [ReliabilityPolicy.BEST_EFFORT]
        offers = {
            topic: peer.get_publishers_info_by_topic(topic)[0].qos_profile
            for topic in ("/mega/mesh", "/mega/joints", "/mega/topology", "/diagnostics")
        }
        assert offers["/mega/mesh"].reliability == ReliabilityPolicy.BEST_EFFORT
        assert offers["/mega/joints"].reliability == ReliabilityPolicy.BEST_EFFORT
        assert offers["/mega/topology"].durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert offers["/diagnostics"].durability == DurabilityPolicy.TRANSIENT_LOCAL


@pytest.mark.parametrize(
    "override", ["/image.subscription.reliability:=perhaps", "/mega/mesh.publisher.durability:=perhaps"]
)
def test_unknown_qos_override_is_one_line(override: str) -> None:
    arguments = command("-p", f"qos_overrides.{override}")
    end = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)
    assert end.returncode == 1
    assert len([line for line in end.stderr.splitlines() if not line.startswith("[INFO]")]) == 1
    assert "perhaps" in end.stderr


def test_an_unknown_qos_override_of_a_later_topic_is_named_once() -> None:
    """The camera then also offers what the override is for: the node keeps what it subscribes to, and says so."""
    wrong = "qos_overrides./image/compressed.subscription.depth"
    with running(*ONE_PERSON, "-p", f"{wrong}:=perhaps") as (peer, _):
        lines: list[str] = []
        peer.create_subscription(Log, "/rosout", lambda log: lines.append(log.msg), 100)
        peer.destroy_publisher(peer.images)
        jpegs = peer.create_publisher(CompressedImage, "image/compressed", 1)
        for _ in range(3):
            values = peer.status(lambda s, v: s.level == DiagnosticStatus.WARN and wrong in s.message)
        assert values["image_topic"] == "/image"
        assert len([line for line in lines if wrong in line]) == 1
        peer.destroy_publisher(jpegs)
        peer.images = peer.create_publisher(Image, "image", 1)
        assert peer.ask(image(GREY))[0].height == 1
        peer.status(lambda s, v: wrong not in s.message)


def lost(stamps: list[float]) -> int:
    losses = Losses()
    return sum(losses.add(round(stamp * 1e9)) for stamp in stamps)


def test_gaps_in_stamps_are_lost_frames() -> None:
    stamps = np.arange(300) / 30
    rng = np.random.default_rng(0)
    assert lost([*stamps]) == 0
    for share in (0.02, 0.3, 0.7):
        kept = rng.random(300) > share
        kept[[0, -1]] = True
        assert lost([*stamps[kept]]) == 300 - kept.sum()
    every = [stamps[k] for k in range(300) if k % 30 in (0, 2, 5, 9, 12)]  # never two that follow each other
    assert lost(every) == 283 - len(every), "17 more after the last one that came"
    assert lost([*stamps, *stamps, *stamps + 100]) == 0, "a recording that starts again, a camera that stood still"
    assert lost([*stamps + 100, *stamps[kept]]) == 300 - kept.sum(), "after a clock that went back, too"
    assert lost([0.0] * 300) == 0, "a driver that sets no stamps"


FRAMES = np.arange(300)
HEALTHY: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal 5 ms": lambda rng: FRAMES / 30 + rng.normal(0, 0.005, 300),
    "normal, a third": lambda rng: FRAMES / 30 + rng.normal(0, 0.011, 300),
    "uniform, a third": lambda rng: FRAMES / 30 + rng.uniform(-0.011, 0.011, 300),
    "on arrival": lambda rng: FRAMES / 30 + rng.exponential(0.01, 300),
    "60 Hz": lambda rng: FRAMES / 60 + rng.normal(0, 0.003, 300),
    "some late": lambda rng: np.maximum.accumulate(
        FRAMES / 30 + np.where(rng.random(300) < 0.1, rng.exponential(0.02, 300), 0)
    ),
    "alternating": lambda rng: FRAMES / 30 + FRAMES % 2 * 0.005,
    "pairs": lambda rng: FRAMES // 2 / 15 + FRAMES % 2 * 0.005,
    "pairs on arrival": lambda rng: FRAMES // 2 / 15 + FRAMES % 2 * 0.005 + rng.uniform(0, 0.001, 300),
    "bursts of 10": lambda rng: FRAMES // 10 / 3 + FRAMES % 10 * 0.002 + rng.uniform(0, 0.001, 300),
}
"""Stamps of cameras that lose nothing, seconds."""


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_camera_with_jitter_loses_nothing(name: str) -> None:
    """Drivers that stamp on arrival: the worst is one invented loss in twenty, from which on it would be reported."""
    for seed in range(5):
        losses, counted = Losses(), 0
        for stamp in np.sort(HEALTHY[name](np.random.default_rng(seed))):
            counted += losses.add(round(stamp * 1e9))
            assert counted >= 0
        assert counted <= 12
        assert losses.period == pytest.approx(1 / 60 if name == "60 Hz" else 1 / 30, rel=0.1)


def test_losses_are_counted_in_spite_of_jitter() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        stamps, kept = FRAMES / 30 + rng.normal(0, 0.005, 300), rng.random(300) > 0.1
        kept[[0, -1]] = True
        gone = 300 - kept.sum()
        assert 0.5 * gone < lost([*np.sort(stamps[kept])]) < 1.5 * gone
    kept = np.random.default_rng(0).random(3000) > 0.9
    kept[[0, -1]] = True
    assert lost([*np.arange(3000)[kept] / 30]) == pytest.approx(3000 - kept.sum(), rel=0.05), "nine of ten"
    changes = [*FRAMES[:100] / 30, *FRAMES[100::2] / 30]
    assert 20 < lost(changes) <= 100, "every second, until the period seems to be another"


def test_lost_frames_are_reported(peer: Peer) -> None:
    """The camera leaves out two of three frames."""
    number = 0

    def again() -> None:
        nonlocal number
        for _ in range(4):
            number += 1 if number < 40 else 3
            message = image(GREY)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(number * 100_000_000, 10**9)
            peer.images.publish(message)
            peer.executor_.spin_once(timeout_sec=0.01)

    values = peer.status(lambda s, v: s.level == DiagnosticStatus.WARN and "never arrived" in s.message, again)
    assert int(values["frames_lost"]) > 0
    assert float(values["camera_rate_hz"]) == pytest.approx(10, rel=0.01)
    assert "/image: " in values["message"]


def test_without_stamps_the_time_of_arrival_counts(peer: Peer) -> None:
    """Smoothed people move on, latency is a latency, and the headers of what is published have a time.

    What is wrong with the camera lasts, and is logged once.
    """
    lines: list[str] = []
    peer.create_subscription(Log, "/rosout", lambda log: lines.append(log.msg), 100)
    assert not peer.set(smoothing=0.5)
    peer.status(lambda s, v: "frame_id" not in s.message, lambda: peer.send(image(GREY)))
    start = time.time()

    def again() -> None:
        peer.images.publish(image(GREY))

    reason = "/image: the stamp is 0, so the time of arrival is used instead"
    unframed = "/image: the frame_id is empty"
    peer.wait(lambda: [m for m in peer.meshes if m.header.stamp.sec >= start - 1], again)
    # the times of the diagnostics are those of the last 10 s
    values = peer.status(lambda s, v: reason in v["message"] and float(v["latency_from_stamp_p50_s"]) < 1e6, again)
    assert unframed in values["message"]
    assert float(values["latency_from_stamp_p50_s"]) > 0
    end = time.monotonic() + RECENT + 1
    peer.wait(lambda: time.monotonic() > end, again)
    for said in (reason, unframed):
        assert len([line for line in lines if said in line]) == 1
    assert not [line for line in lines if "no camera_info has come" in line], "it was said before"
    assert not peer.set(smoothing=0.0)
    right = lambda s, v: reason not in v["message"] and unframed not in v["message"]  # noqa: E731
    peer.status(right, lambda: peer.send(image(GREY)))


def test_simulated_time_without_a_clock_is_named() -> None:
    with running("-p", "boxes:=full_frame", "-p", "use_sim_time:=true") as (peer, _):
        reason = "use_sim_time is true, but no time has come on /clock"
        values = peer.status(lambda s, v: s.level == DiagnosticStatus.WARN and reason in s.message)
        unstamped = "the stamp is 0, so the time of arrival is used instead"  # which is not known
        values = peer.status(lambda s, v: v["frames_received"] != "0", lambda: peer.images.publish(image(GREY)))
        assert reason in values["message"] and unstamped not in values["message"]
        clock = peer.create_publisher(Clock, "/clock", 1)
        peer.status(
            lambda s, v: reason not in s.message and unstamped in s.message,
            lambda: (clock.publish(Clock(clock=Time(sec=5))), peer.images.publish(image(GREY))),
        )


def test_a_camera_info_of_another_frame_is_a_warning(peer: Peer) -> None:
    info, text = CameraInfo(k=K), "/camera_info: the frame_id is rear, that of the images camera_optical_frame"

    def again() -> None:
        peer.infos.publish(info)
        peer.send(image(GREY))

    info.header.frame_id = "rear"
    peer.status(lambda s, v: text in s.message and s.level == DiagnosticStatus.WARN, again)
    info.header.frame_id = "camera_optical_frame"
    peer.status(lambda s, v: "that of the images" not in s.message, again)


def test_the_first_image_waits_for_a_camera_info_that_is_published() -> None:
    """Otherwise it would be seen through an assumed lens."""
    with running("-p", "boxes:=full_frame") as (peer, _):
        peer.status(lambda s, v: peer.images.get_subscription_count() > 0 < peer.infos.get_subscription_count())
        first = peer.stamp + 1
        peer.status(lambda s, v: v.get("frames_dropped", "0") != "0", lambda: peer.send(image(GREY)))
        calibrate(peer)
        assert not [m for m in peer.meshes if m.header.stamp.sec == first]


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """A message in which some bytes are others, and any number of bytes is missing."""
    data = np.frombuffer(whole, np.uint8).copy()
    data[rng.integers(4, len(data), 6)] = rng.integers(0, 256, 6)
    return data[: rng.integers(4, len(data) + 1)].tobytes()


def test_damaged_messages_are_counted_and_named_once(peer: Peer) -> None:
    lines: list[str] = []
    peer.create_subscription(Log, "/rosout", lambda log: lines.append(log.msg), 100)
    rng = np.random.default_rng(0)
    small = image(GREY[:2, :2])
    small.header.stamp.sec = 1
    cameras = {peer.images: serialize_message(small), peer.infos: serialize_message(CameraInfo(k=K))}

    def again() -> None:
        for publisher, whole in cameras.items():
            for _ in range(20):
                publisher.publish(damaged(whole, rng))
                peer.executor_.spin_once(timeout_sec=0.005)

    before = int(peer.status(lambda s, v: True)["frames_rejected"])
    reason = "is damaged or cut off"
    for topic in ("/image", "/camera_info"):
        peer.status(lambda s, v: v["last_bad_input"].startswith(f"{topic}: a ") and reason in s.message, again)  # noqa: B023
    peer.status(lambda s, v: int(v["frames_rejected"]) > before + 40, again)
    peer.infos.publish(CameraInfo(width=GREY.shape[1], height=GREY.shape[0], k=K))
    assert peer.ask(image(GREY))[0].height == 1
    assert len([line for line in lines if reason in line]) < 10


def test_a_camera_that_died_is_an_error(peer: Peer) -> None:
    peer.ask(image(GREY))
    assert not peer.set(timeout=0.2)
    peer.status(lambda s, v: s.level == DiagnosticStatus.ERROR and "/image: no images" in s.message)


def test_a_remapped_topic_of_jpegs_is_told_and_used() -> None:
    remap = ["-r", "image/compressed:=/front/jpeg", "-p", "timeout:=0.1", "-p", "boxes:=full_frame"]
    with running(*remap, image_type=CompressedImage, image_topic="/front/jpeg") as (peer, _):
        peer.destroy_publisher(peer.images)
        peer.status(lambda s, v: s.message.endswith("nobody publishes /image or /front/jpeg"))
        peer.images = peer.create_publisher(CompressedImage, "/front/jpeg", 1)
        assert peer.ask(CompressedImage(format="png", data=cv2.imencode(".png", GREY)[1].tobytes()))[0].height == 1


def test_two_cameras_on_one_topic_are_noticed(peer: Peer) -> None:
    mixed = "/image: 2 publish it, so two cameras are mixed: remap one"
    other = peer.create_publisher(Image, "image", 1)
    peer.status(lambda s, v: s.level != DiagnosticStatus.OK and mixed in s.message)
    peer.destroy_publisher(other)
    peer.status(lambda s, v: mixed not in s.message)


def test_two_nodes_of_one_name_are_noticed(peer: Peer) -> None:
    twin = Node("mega", context=peer.context)
    peer.status(lambda s, v: s.level != DiagnosticStatus.OK and "2 nodes are named /mega" in s.message)
    twin.destroy_node()
    peer.status(lambda s, v: "nodes are named" not in s.message)


def test_one_kind_of_problem_is_not_logged_for_every_frame(peer: Peer) -> None:
    """Images that are each cut off at another place."""
    lines: list[str] = []
    peer.create_subscription(Log, "/rosout", lambda log: lines.append(log.msg), 100)
    rows = iter(range(GREY.shape[0] + 1, 10**6))

    def again() -> None:
        for _ in range(10):
            peer.send(image(GREY, height=next(rows)))
            peer.executor_.spin_once(timeout_sec=0.02)

    rejected = int(peer.status(lambda s, v: True)["frames_rejected"])
    peer.wait(lambda: any("cut off" in line for line in lines), again)
    values = peer.status(lambda s, v: int(v["frames_rejected"]) > rejected + 40, again)
    assert len([line for line in lines if "cut off" in line]) < (int(values["frames_rejected"]) - rejected) / 4


def test_auto_takes_what_is_there_and_a_latched_camera_info() -> None:
    """The camera is in the node's namespace, by a relative name, and first offers only compressed images."""
    topic = "camera/image_raw"
    arguments = (*ONE_PERSON, "-r", f"image:={topic}")
    started = running(*arguments, image_type=CompressedImage, image_topic=f"{topic}/compressed", namespace="/robot")
    with started as (peer, _):
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        info = CameraInfo(width=GREY.shape[1], height=GREY.shape[0], k=K)
        peer.create_publisher(CameraInfo, "camera/camera_info", latched).publish(info)
        jpeg = CompressedImage(format="jpeg", data=array.array("B", cv2.imencode(".jpg", GREY)[1].tobytes()))
        values = peer.status(lambda s, v: v["intrinsics"] == "camera_info", lambda: peer.send(jpeg))
        assert values["image_topic"] == f"/robot/{topic}/compressed"
        assert values["image_type"] == "sensor_msgs/msg/CompressedImage"
        raw = peer.create_publisher(Image, topic, 1)
        peer.status(lambda s, v: v["image_topic"] == f"/robot/{topic}", lambda: raw.publish(image(GREY)))
        peer.destroy_publisher(raw)
        peer.status(lambda s, v: v["image_topic"] == f"/robot/{topic}/compressed", lambda: peer.send(jpeg))
        assert peer.ask(jpeg)[0].height == 1


def test_a_topic_may_change_its_type() -> None:
    """CompressedImage on `image` itself, from a camera that starts later than the node; then a raw one again."""
    jpeg = CompressedImage(format="jpeg", data=array.array("B", cv2.imencode(".jpg", GREY)[1].tobytes()))
    with running(*ONE_PERSON) as (peer, _):
        for message in (jpeg, image(GREY)):
            name = f"sensor_msgs/msg/{type(message).__name__}"
            camera(peer, RELIABLE, type(message))
            values = peer.status(lambda s, v: v.get("image_type") == name)  # noqa: B023
            assert "image_transport" not in values["message"] and "qos_overrides" not in values["message"]
            assert peer.ask(message)[0].height == 1


@pytest.mark.parametrize(
    ("namespace", "remaps", "infos"),
    [
        ("/", [], "/camera_info"),
        ("/front", [], "/front/camera_info"),
        ("/front", ["image:=image_raw"], "/front/camera_info"),
        ("/front", ["image:=camera/image_raw"], "/front/camera/camera_info"),
        ("/front", ["image:=/camera/image_raw"], "/camera/camera_info"),
        ("/", ["image:=/image_raw"], "/camera_info"),
        ("/", ["image:=/camera/image_raw/compressed"], "/camera/camera_info"),
        ("/front", ["image:=/camera/image_raw", "camera_info:=calibration"], "/front/calibration"),
    ],
)
def test_camera_info_is_beside_the_image(namespace: str, remaps: list[str], infos: str) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=os.getpid() % 200 + 1)
    arguments = ["--ros-args", *(text for remap in remaps for text in ("-r", remap))]
    node = Node("mega", context=context, namespace=namespace, cli_args=arguments if remaps else None)
    try:
        assert camera_info_topic(node, "camera_info", node.resolve_topic_name("image")) == infos
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_the_launch_file_follows(shared: Path, root: Path) -> None:
    case = shared / "cases" / "05_launch_relative_camera_info" / "repro.py"
    end = subprocess.run([sys.executable, case, root], capture_output=True, text=True)
    assert end.returncode == 0, end.stdout + end.stderr


@pytest.mark.parametrize(
    ("topic", "image_transport", "sources"),
    [
        ("/c/image", "raw", [("/c/image", Image)]),
        ("/c/image", "compressed", [("/c/image/compressed", CompressedImage)]),
        ("/c/image/compressed", "compressed", [("/c/image/compressed", CompressedImage)]),
        ("/c/image/compressed", "auto", [("/c/image/compressed", CompressedImage)]),
        (
            "/c/image",
            "auto",
            [("/c/image", Image), ("/c/image/compressed", CompressedImage), ("/c/image", CompressedImage)],
        ),
    ],
)
def test_sources_of_images(topic: str, image_transport: str, sources: list[tuple[str, type]]) -> None:
    assert image_sources(topic, image_transport) == sources


def test_diagnostics_say_what_carries_messages(peer: Peer) -> None:
    assert "shared memory with a segment of" in peer.status(lambda s, v: True)["transport"]
