"""The node beside the real packages vision_msgs, tf2_msgs and hri_msgs, over DDS.

They have no wheels. A ROS installation has them, and message_packages.py builds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_node import GREY, HEIGHT, WIDTH, Peer, calibrate, image, running

from mega_model.core.topology import SMPL_JOINTS
from mega_ros.ros.read import positions, read_cloud

hri, tf2, vision = (
    pytest.importorskip(f"{name}.msg", reason=f"{name} is not installed; tests/message_packages.py builds it")
    for name in ("hri_msgs", "tf2_msgs", "vision_msgs")
)


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with running("-p", "boxes:=full_frame", "-p", "provider:=cpu", "-p", "tf:=true") as (peer, _):
        calibrate(peer)
        yield peer


def heard(peer: Peer, kind: Any, topic: str) -> tuple[Any, np.ndarray]:
    """What the node publishes about an image, and the joints [P, 24, 3] that it publishes with it."""
    messages: list[Any] = []
    subscription = peer.create_subscription(kind, topic, messages.append, 10)
    peer.wait(lambda: messages, lambda: peer.ask(image(GREY)))
    messages.clear()
    _, joints = peer.ask(image(GREY))
    message = peer.wait(lambda: messages[-1:])[0]
    peer.destroy_subscription(subscription)
    return message, positions(read_cloud(joints))


def test_frames_of_people(peer: Peer) -> None:
    message, joints = heard(peer, tf2.TFMessage, "/tf")
    frames = {transform.child_frame_id: transform for transform in message.transforms}
    (person,) = (name for name in frames if name.startswith("person_"))
    assert frames.keys() == {
        person,
        f"body_mega{person.removeprefix('person_')}",
    }  # the second one as hri_msgs is there
    place = frames[person].transform.translation
    np.testing.assert_allclose([place.x, place.y, place.z], joints[0, 0], atol=1e-4)
    assert frames[person].header.frame_id == "camera_optical_frame"


def test_people_as_detections(peer: Peer) -> None:
    message, joints = heard(peer, vision.Detection3DArray, "mega/people")
    (person,) = message.detections
    (result,) = person.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ("person", 1.0)
    place = result.pose.pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], joints[0, 0], atol=1e-4)
    assert result.pose.covariance[0] == result.pose.covariance[14] > 0
    assert person.bbox.size.y > 0.5 and person.id.isdigit()


def test_bodies_of_rep_155(peer: Peer) -> None:
    tracked, _ = heard(peer, hri.IdsList, "/humans/bodies/tracked")
    (body,) = tracked.ids
    region, _ = heard(peer, hri.NormalizedRegionOfInterest2D, f"/humans/bodies/{body}/roi")
    assert (region.xmin, region.ymin, region.xmax, region.ymax, region.c) == (0, 0, 1, 1, 1)
    skeleton, joints = heard(peer, hri.Skeleton2D, f"/humans/bodies/{body}/skeleton2d")
    for name, found in {"left_shoulder": skeleton.skeleton[5], "right_shoulder": skeleton.skeleton[2]}.items():
        joint = joints[0, SMPL_JOINTS.index(name)]
        expected = (300 * joint[:2] / joint[2] + [WIDTH / 2, HEIGHT / 2]) / [WIDTH, HEIGHT]
        np.testing.assert_allclose([found.x, found.y], expected, atol=1e-3)


def test_people_are_those_of_the_detections_topic(peer: Peer) -> None:
    assert not peer.set(boxes="detections")
    publisher = peer.create_publisher(vision.Detection2DArray, "detections", 1)
    people = [
        vision.Detection2D(
            results=[vision.ObjectHypothesisWithPose(hypothesis=vision.ObjectHypothesis(class_id="person", score=0.9))],
            bbox=vision.BoundingBox2D(
                center=vision.Pose2D(position=vision.Point2D(x=x, y=120.0)), size_x=90.0, size_y=200.0
            ),
        )
        for x in (80.0, 200.0)
    ]

    def again() -> None:
        message = image(GREY)
        peer.send(message)
        publisher.publish(vision.Detection2DArray(header=message.header, detections=people))

    peer.meshes.clear()
    assert peer.wait(lambda: peer.meshes, again)[0].height == 2
    peer.destroy_publisher(publisher)
    assert not peer.set(boxes="full_frame")
