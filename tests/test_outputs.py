"""What the node publishes beside mesh and joints: surfaces, overlay, and people for other packages."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from domains import free_domain
from geometry_msgs.msg import Pose, Quaternion, Vector3
from hypothesis import given, settings
from hypothesis import strategies as st
from message_packages import PUBLISHED
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage, Image, JointState, PointCloud2, RegionOfInterest
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from mega_model.core.cameras import Camera
from mega_model.core.geometry import project
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_ros.bundle import DEFAULT, TOPOLOGY
from mega_ros.recovery import People
from mega_ros.ros import bodies
from mega_ros.ros.frame import ProcessedFrame
from mega_ros.ros.markers import Markers
from mega_ros.ros.outputs import Outputs
from mega_ros.ros.read import read_cloud

HEADER = Header(stamp=Time(sec=12, nanosec=345), frame_id="camera_optical_frame")
K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
TO_CAMERA = np.diag([1.0, -1, -1]).astype(np.float32)
"""Somebody upright who looks at the camera."""


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology.load(DEFAULT / TOPOLOGY)


def some_people(topology: Topology, ids: list[int]) -> People:
    """People in a row, 4 m away; the sigma of a vertex grows with its number."""
    count = len(ids)
    places = np.array([[k - (count - 1) / 2, 0, 4] for k in range(count)], np.float32).reshape(-1, 1, 3)
    vertices = topology.template @ TO_CAMERA + places
    sigma = np.tile(np.linspace(0, 0.5, len(topology.template), dtype=np.float32), (count, 1))
    points = project(vertices, K)
    return People(
        vertices=vertices,
        sigma=sigma,
        joints=topology.joints(vertices),
        joints_sigma=np.full((count, 24), 0.3, np.float32),
        ids=np.array(ids, np.uint32),
        boxes=np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32),
        scores=np.full(count, 0.9, np.float32),
        distance=1.5 + np.arange(count, dtype=np.float32),
        samples=np.zeros((count, 0, *vertices.shape[1:]), np.float32),
    )


def some_frame(topology: Topology, ids: list[int]) -> ProcessedFrame:
    return ProcessedFrame(
        HEADER, np.full((240, 320, 3), 128, np.uint8), Camera(K), some_people(topology, ids), topology.faces
    )


@settings(max_examples=12, deadline=None)
@given(now=st.lists(st.integers(0, 2**32 - 1), max_size=3, unique=True), frame_id=st.text("abc", max_size=9))
def test_markers_are_surfaces_coloured_by_sigma(now: list[int], frame_id: str) -> None:
    """rclpy reads from the patched bytes what it would have written, at any alignment."""
    topology = Topology.load(DEFAULT / TOPOLOGY)
    topology = replace(topology, faces=topology.faces[::40])
    markers, before = Markers(topology.faces), [7, 2**32 - 1]
    header = Header(stamp=HEADER.stamp, frame_id=frame_id)
    markers.message(header, some_people(topology, before))
    people = some_people(topology, now)
    found = deserialize_message(markers.message(header, people), MarkerArray).markers
    assert all(marker.header == header for marker in found)
    assert all((marker.lifetime.sec, marker.lifetime.nanosec) == (3, 0) for marker in found)
    for marker in found:  # points are metres in the frame of the header, at its stamp
        assert (marker.type, marker.ns, marker.frame_locked) == (Marker.TRIANGLE_LIST, "people", False)
        assert (marker.pose, marker.scale) == (Pose(orientation=Quaternion(w=1.0)), Vector3(x=1.0, y=1.0, z=1.0))
    surfaces = [marker for marker in found if marker.action == Marker.ADD]
    assert [marker.id % 2**32 for marker in surfaces] == now
    for marker, vertices in zip(surfaces, people.vertices):
        points = np.array([[p.x, p.y, p.z] for p in marker.points])
        np.testing.assert_array_equal(points, vertices[topology.faces.ravel()])
        colours = np.array([[c.r, c.g, c.b, c.a] for c in marker.colors])
        assert (colours[:, 3] == 1).all() and colours.min() > 0 and colours.max() <= 1
        sigma = people.sigma[0][topology.faces.ravel()]
        red, blue = colours[sigma > 0.4], colours[sigma < 0.1]
        assert (red[:, 0] > red[:, 2]).all() and (blue[:, 2] > blue[:, 0]).all()
    gone = {marker.id % 2**32 for marker in found if marker.action == Marker.DELETE}
    assert gone == set(before) - set(now)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain())
    made = Node("mega", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


def heard(node: Node, outputs: Outputs, kind: Any, topic: str, frame: ProcessedFrame) -> Any:
    """The message that a subscriber gets of a frame."""
    messages: list[Any] = []
    subscription = node.create_subscription(kind, topic, messages.append, 1)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    while not messages:
        outputs.publish(frame)
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(node)
    node.destroy_subscription(subscription)
    while outputs.are_wanted():
        time.sleep(0.01)
    return messages[0]


def test_outputs_are_computed_for_subscribers_only(node: Node, topology: Topology) -> None:
    """Without a subscriber, not even what cannot be computed is noticed."""
    outputs = Outputs(node, topology, tf=False)
    frame = some_frame(topology, [3, 5])
    try:
        assert not outputs.are_wanted()
        outputs.publish(replace(frame, people=None))  # type: ignore[arg-type]
        surfaces = heard(node, outputs, MarkerArray, "mega/markers", replace(frame, image=None))  # type: ignore[arg-type]
        assert [marker.id for marker in surfaces.markers] == [3, 5]
        raw = heard(node, outputs, Image, "mega/overlay", frame)
        assert (raw.header, raw.encoding, raw.height, raw.width) == (HEADER, "bgr8", 240, 320)
        drawn = np.frombuffer(raw.data, np.uint8).reshape(240, 320, 3)
        assert (drawn != 128).any() and (drawn[:, :5] == 128).all()
        jpeg = heard(node, outputs, CompressedImage, "mega/overlay/compressed", frame)
        decoded = cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None and np.abs(decoded.astype(float) - drawn).mean() < 5
        joints = read_cloud(heard(node, outputs, PointCloud2, "mega/joints", frame))
        np.testing.assert_array_equal(joints["distance"], np.tile(frame.people.distance[:, None], 24))
    finally:
        outputs.close()
    assert not [publisher for publisher in node.publishers if publisher.topic_name.startswith("/mega/")]


STORE = get_typestore(Stores.ROS2_JAZZY)
for name, definitions in PUBLISHED.items():
    STORE.register(
        {t: d for kind, text in definitions.items() for t, d in get_types_from_msg(text, f"{name}/msg/{kind}").items()}
    )


def stand_in(package: str) -> Any:
    """The module `msg` of a package, with classes of the published fields."""
    return SimpleNamespace(**{kind: STORE.types[f"{package}/msg/{kind}"] for kind in PUBLISHED[package]})


def through_cdr(message: Any, name: str) -> Any:
    """What a subscriber gets: every field must be there, and of its type."""
    return STORE.deserialize_cdr(STORE.serialize_cdr(message, name), name)


def test_pelvis_axes_are_forward_left_up(topology: Topology) -> None:
    positions, rotations = bodies.pelvis_poses(topology.joints(topology.template)[None])
    np.testing.assert_allclose(positions[0], topology.joints(topology.template)[0])
    np.testing.assert_allclose(rotations[0].T @ rotations[0], np.eye(3), atol=1e-5)
    left, up, forward = np.eye(3)  # of the canonical frame
    for axis, right in zip(rotations[0].T, (forward, left, up)):
        assert axis @ right > 0.9


def test_frames_of_people(topology: Topology) -> None:
    frame = some_frame(topology, [3, 5])
    message = through_cdr(bodies.transforms(stand_in("tf2_msgs"), frame), "tf2_msgs/msg/TFMessage")
    assert [t.child_frame_id for t in message.transforms] == ["person_3", "person_5"]
    for found, joints in zip(message.transforms, frame.people.joints):
        assert found.header.frame_id == HEADER.frame_id
        place = found.transform.translation
        np.testing.assert_allclose([place.x, place.y, place.z], joints[0], atol=1e-6)
        q = found.transform.rotation
        assert 2 * (q.x * q.z - q.w * q.y) < -0.9, "who looks at the camera looks against its z axis"


def test_frames_of_bodies_are_those_of_rep_155(topology: Topology) -> None:
    frame = some_frame(topology, [3, 5])
    message = through_cdr(
        bodies.transforms(stand_in("tf2_msgs"), frame, "robot/front", rep_155=True), "tf2_msgs/msg/TFMessage"
    )
    names = [t.child_frame_id for t in message.transforms]
    assert names == [
        "robot/front/person_3",
        "body_mega_robot_front_3",
        "robot/front/person_5",
        "body_mega_robot_front_5",
    ]
    person, body = (t.transform for t in message.transforms[:2])
    left, right = SMPL_JOINTS.index("left_hip"), SMPL_JOINTS.index("right_hip")
    between = (frame.people.joints[0, left] + frame.people.joints[0, right]) / 2
    place = body.translation
    np.testing.assert_allclose([place.x, place.y, place.z], between, atol=1e-6)
    assert body.rotation == person.rotation


def test_transforms_have_the_room_of_tf2(node: Node, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "required", lambda name, what: SimpleNamespace(TFMessage=JointState))
    outputs = Outputs(node, topology, tf=True)
    try:
        depths = {publisher.topic_name: publisher.qos_profile.depth for publisher in node.publishers}
        assert (depths["/tf"], depths["/mega/mesh"]) == (100, 1)
    finally:
        outputs.close()


def test_people_as_detections(topology: Topology) -> None:
    frame = some_frame(topology, [3, 5])
    message = through_cdr(bodies.detections(stand_in("vision_msgs"), frame), "vision_msgs/msg/Detection3DArray")
    assert [d.id for d in message.detections] == ["3", "5"]
    for k, found in enumerate(message.detections):
        low, high = frame.people.vertices[k].min(axis=0), frame.people.vertices[k].max(axis=0)
        np.testing.assert_allclose([found.bbox.size.x, found.bbox.size.y, found.bbox.size.z], high - low, atol=1e-5)
        centre = found.bbox.center
        np.testing.assert_allclose(
            [centre.position.x, centre.position.y, centre.position.z], (low + high) / 2, atol=1e-5
        )
        assert centre.orientation.w == 1
        (person,) = found.results
        assert person.hypothesis.class_id == "person", "consumers take the result with the best score"
        assert person.hypothesis.score == pytest.approx(0.9)
        covariance = person.pose.covariance.reshape(6, 6)
        assert np.trace(covariance[:3, :3]) == pytest.approx(0.3**2, rel=1e-5)
        assert np.diag(covariance)[3:] == pytest.approx(np.full(3, (2 * np.pi) ** 2 / 12)), "any angle of a turn"
        assert person.pose.pose.position.z == pytest.approx(frame.people.joints[k, 0, 2])


class IdsList(JointState):  # type: ignore[misc]  # rclpy's types are skipped
    """hri_msgs' message has no wheel, so one with a list of names stands in, to be published over DDS."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"name" if name == "ids" else name: value for name, value in fields.items()})


class TFMessage(JointState):  # type: ignore[misc]
    """tf2_msgs' message has no wheel, either."""

    def __init__(self, transforms: Sequence[Any] = (), **fields: Any) -> None:
        super().__init__(name=[transform.child_frame_id for transform in transforms], **fields)


HRI = SimpleNamespace(IdsList=IdsList, NormalizedRegionOfInterest2D=RegionOfInterest, Skeleton2D=RegionOfInterest)
"""As far as topics are concerned; nobody subscribes to the last two."""


def test_who_looks_at_bodies_is_asked_while_people_come_and_go(node: Node, topology: Topology) -> None:
    """By the executor's thread, while the worker's thread creates and destroys publishers."""
    humans = bodies.Humans(node, HRI)
    seen, frames = bodies.Bodies(humans), [some_frame(topology, ids) for ids in ([1, 2], [3, 4])]
    asked, finished = 0, threading.Event()

    def worker() -> None:
        for k in range(60):
            seen.publish(frames[k % 2])
        finished.set()

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        while not finished.is_set():
            assert not seen.is_wanted()
            asked += 1
    finally:
        thread.join()
        seen.close()
        humans.close()
    assert asked and not [p for p in node.publishers if "humans" in p.topic_name]


@pytest.mark.parametrize("name", ["roi", "skeleton2d"])
def test_who_looks_at_one_body_only_wants_bodies(node: Node, topology: Topology, name: str) -> None:
    humans = bodies.Humans(node, HRI)
    seen = bodies.Bodies(humans)
    seen.publish(some_frame(topology, [1]))
    subscription = node.create_subscription(RegionOfInterest, f"/humans/bodies/mega1/{name}", lambda _: None, 1)
    try:
        end = time.monotonic() + 30
        while not seen.is_wanted() and time.monotonic() < end:
            time.sleep(0.01)
        assert seen.is_wanted()
    finally:
        node.destroy_subscription(subscription)
        seen.close()
        humans.close()


def test_bodies_of_a_camera_that_says_nothing_are_forgotten(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 100.0, list[Any]()
    monkeypatch.setattr("mega_ros.ros.bodies.time.monotonic", lambda: now)
    humans = bodies.Humans(node, HRI)
    humans.close()
    humans.tracked = SimpleNamespace(publish=said.append)
    for seconds, camera in ((0.0, "front"), (1.0, "rear"), (3.0, "rear")):
        now += seconds
        humans.publish(HEADER, camera, [camera])
    assert [message.name for message in said] == [["front"], ["front", "rear"], ["rear"]]


def test_bodies_of_several_cameras_are_on_one_topic(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ids that no two cameras of any two robots give, and the QoS that the user set."""
    monkeypatch.setattr(bodies, "required", lambda name, what: SimpleNamespace(TFMessage=TFMessage))
    wanted = "qos_overrides./humans/bodies/tracked.publisher.reliability"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain())
    node = Node("mega", context=context, namespace="robot", cli_args=["--ros-args", "-p", f"{wanted}:=best_effort"])
    humans = bodies.Humans(node, HRI)
    cameras = {name: Outputs(node, topology, True, name, humans) for name in ("front", "rear")}
    messages: list[Any] = []
    transforms: list[Any] = []
    node.create_subscription(IdsList, "/humans/bodies/tracked", messages.append, qos_profile_sensor_data)
    node.create_subscription(TFMessage, "/tf", transforms.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    places = {"robot/front/person_1", "robot/front/person_2", "robot/rear/person_1"}
    everybody = ["mega_robot_front_1", "mega_robot_front_2", "mega_robot_rear_1"]
    try:
        while not messages or messages[-1].name != everybody or len(transforms) < 2:
            cameras["front"].publish(some_frame(topology, [1, 2]))
            cameras["rear"].publish(some_frame(topology, [1]))
            executor.spin_once(timeout_sec=0.05)
        assert {name for message in transforms for name in message.name} == places | {f"body_{b}" for b in everybody}
        regions = {p.topic_name: p for p in node.publishers if p.topic_name.endswith("roi")}
        assert sorted(regions) == [f"/humans/bodies/{body}/roi" for body in everybody]
        found = [p.qos_profile.reliability for p in [humans.tracked, *regions.values()]]
        assert found == [ReliabilityPolicy.BEST_EFFORT] * 4
        assert not [name for name in node.get_parameters_by_prefix("") if "bodies/mega" in name], (
            "one for each new person"
        )
    finally:
        executor.shutdown()
        for outputs in cameras.values():
            outputs.close()
        humans.close()
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_bodies_of_rep_155(topology: Topology) -> None:
    frame = some_frame(topology, [3, 5])
    frame.people.boxes[0] = [-20, -10, 400, 300]
    hri = stand_in("hri_msgs")
    cut = through_cdr(bodies.region(hri, frame, 0), "hri_msgs/msg/NormalizedRegionOfInterest2D")
    assert [cut.xmin, cut.ymin, cut.xmax, cut.ymax, cut.c] == pytest.approx([0, 0, 1, 1, 0.9])
    roi = through_cdr(bodies.region(hri, frame, 1), "hri_msgs/msg/NormalizedRegionOfInterest2D")
    box = frame.people.boxes[1] / [320, 240, 320, 240]
    np.testing.assert_allclose([roi.xmin, roi.ymin, roi.xmax, roi.ymax], np.clip(box, 0, 1), atol=1e-6)
    points = through_cdr(bodies.skeleton(hri, frame, 1), "hri_msgs/msg/Skeleton2D").skeleton
    assert [k for k, point in enumerate(points) if not point.c] == [0, 14, 15, 16, 17]
    assert points[7].c == pytest.approx(0.9)
    left_wrist = project(frame.people.joints[1], K)[20] / [320, 240]
    np.testing.assert_allclose([points[7].x, points[7].y], left_wrist, atol=1e-6)


def test_points_of_a_skeleton_that_are_not_seen_have_no_confidence(topology: Topology) -> None:
    """Beyond each edge of the image, and an elbow behind the camera."""
    frame = some_frame(topology, [3])
    places = {
        "left_wrist": [5, 0, 1],
        "right_wrist": [-5, 0, 1],
        "neck": [0, -5, 1],
        "right_elbow": [0, 5, 1],
        "left_elbow": [0, 0, -1],
    }
    for name, place in places.items():
        frame.people.joints[0, SMPL_JOINTS.index(name)] = place
    points = through_cdr(bodies.skeleton(stand_in("hri_msgs"), frame, 0), "hri_msgs/msg/Skeleton2D").skeleton
    assert [(points[k].x, points[k].y, points[k].c) for k in (1, 3, 4, 6, 7)] == [(0, 0, 0)] * 5
    assert points[2].c > 0 and points[5].c > 0
