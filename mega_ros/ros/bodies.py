"""People for other packages: frames for tf2, boxes for vision_msgs, bodies for ROS4HRI (REP-155).

These packages are no requirement. Functions that need one take its module `msg` as their first argument.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseWithCovariance,
    Quaternion,
    Transform,
    TransformStamped,
    Vector3,
)
from rclpy.node import Node
from std_msgs.msg import Header

from mega_model.core.errors import InputError
from mega_model.core.topology import SMPL_JOINTS

from ..track import PATIENCE
from .frame import ProcessedFrame
from .transport import create_publisher, within

PELVIS, LEFT_HIP, RIGHT_HIP, NECK = (SMPL_JOINTS.index(name) for name in ("pelvis", "left_hip", "right_hip", "neck"))
UNKNOWN_ANGLE = np.pi**2 / 3
"""Variance of an angle of which nothing is known, radians squared: uniform over a turn."""
BODIES = "/humans/bodies"
"""Where REP-155 has them, whatever the namespace."""
HRI_SKELETON = (
    "- neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle - - - -"
).split()
"""The 18 points of hri_msgs/Skeleton2D as SMPL's joints; nose, eyes and ears are no joints."""


def package(name: str) -> Any:
    """The messages of a ROS package, or None where it is not installed."""
    try:
        return importlib.import_module(f"{name}.msg")
    except ImportError:
        return None


def required(name: str, what: str) -> Any:
    """The same for a package that the user's settings need. Raises InputError that says what needs it."""
    found = package(name)
    if found is None:
        apt = name.replace("_", "-")
        raise InputError(f"{what} needs the package {name}, which is not installed: apt install ros-$ROS_DISTRO-{apt}")
    return found


def pelvis_poses(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints [P, 24, 3] -> positions [P, 3], metres, and rotations [P, 3, 3] of the pelvis.

    Its axes are those of REP-103 for a body: x forward, y left, z up.
    """
    up = joints[:, NECK] - joints[:, PELVIS]
    left = joints[:, LEFT_HIP] - joints[:, RIGHT_HIP]
    forward = np.cross(left, up)
    axes = np.stack([forward, left, np.cross(forward, left)], axis=-1)  # columns
    return joints[:, PELVIS], axes / (np.linalg.norm(axes, axis=1, keepdims=True) + 1e-9)


def transforms(tf2: Any, frame: ProcessedFrame, scope: str = "", rep_155: bool = False) -> Any:
    """tf2_msgs/TFMessage: a frame `person_<id>` at each pelvis, `<scope>/person_<id>` if there is a scope.

    scope: the node's namespace, then the camera's name, as far as there are any: all nodes share /tf.
    rep_155: also `body_<body's id>`, with the same axes, in the middle between the hips.
    """
    joints = frame.people.joints
    found = []
    for person, hips, (pelvis, turn) in zip(
        frame.people.ids.tolist(), joints[:, [LEFT_HIP, RIGHT_HIP]].mean(axis=1), zip(*_poses(joints))
    ):
        places = {within(scope, f"person_{person}"): pelvis}
        if rep_155:
            places[f"body_{body_id(scope, person)}"] = hips
        for name, place in places.items():
            transform = Transform(translation=_xyz(Vector3, place), rotation=turn)
            found.append(TransformStamped(header=frame.header, child_frame_id=name, transform=transform))
    return tf2.TFMessage(transforms=found)


def body_id(scope: str, person: int) -> str:
    """Of REP-155: unique among nodes and cameras, and a part of a topic's name, which begins with a letter.

    scope: as for `transforms`.
    """
    return f"mega_{scope.replace('/', '_')}_{person}" if scope else f"mega{person}"


def detections(vision: Any, frame: ProcessedFrame) -> Any:
    """vision_msgs/Detection3DArray: the box of each body, and the result `person`.

    It has the detector's score and the pose of the pelvis, whose covariance comes from its sigma: that is a distance in
    space, so a third of its square is the variance of each axis. The orientation's is not known.
    """
    people = frame.people
    found = []
    for k, (position, turn) in enumerate(zip(*_poses(people.joints))):
        variances = [float(people.joints_sigma[k, PELVIS]) ** 2 / 3] * 3 + [UNKNOWN_ANGLE] * 3
        pose = PoseWithCovariance(
            pose=Pose(position=_xyz(Point, position), orientation=turn), covariance=np.diag(variances).ravel()
        )
        low, high = people.vertices[k].min(axis=0), people.vertices[k].max(axis=0)
        upright = Quaternion(x=0.0, y=0.0, z=0.0, w=1.0)
        box = vision.BoundingBox3D(
            center=Pose(position=_xyz(Point, (low + high) / 2), orientation=upright), size=_xyz(Vector3, high - low)
        )
        hypothesis = vision.ObjectHypothesis(class_id="person", score=float(people.scores[k]))
        result = vision.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose)
        found.append(vision.Detection3D(header=frame.header, results=[result], bbox=box, id=str(people.ids[k])))
    return vision.Detection3DArray(header=frame.header, detections=found)


def region(hri: Any, frame: ProcessedFrame, k: int) -> Any:
    """hri_msgs/NormalizedRegionOfInterest2D: the box of person number k."""
    height, width = frame.image.shape[:2]
    box = np.clip(frame.people.boxes[k] / [width, height, width, height], 0, 1)
    xmin, ymin, xmax, ymax = box.tolist()
    score = float(frame.people.scores[k])
    return hri.NormalizedRegionOfInterest2D(header=frame.header, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax, c=score)


def skeleton(hri: Any, frame: ProcessedFrame, k: int) -> Any:
    """hri_msgs/Skeleton2D: the joints of person number k in the image.

    The confidence is 0 for points that are no joints, or that the image does not show.
    """
    height, width = frame.image.shape[:2]
    at = frame.camera.project(frame.people.joints[k]) / [width, height]
    score = float(frame.people.scores[k])
    nowhere = hri.NormalizedPointOfInterest2D(x=0.0, y=0.0, c=0.0)
    points = []
    for name in HRI_SKELETON:
        x, y = at[SMPL_JOINTS.index(name)].tolist() if name != "-" else (np.nan, np.nan)
        shown = 0 <= x <= 1 and 0 <= y <= 1
        points.append(hri.NormalizedPointOfInterest2D(x=x, y=y, c=score) if shown else nowhere)
    return hri.Skeleton2D(header=frame.header, skeleton=points)


class Humans:
    """The topic `/humans/bodies/tracked`: the bodies that all cameras of the node see. Hold `lock` meanwhile."""

    def __init__(self, node: Node, hri: Any) -> None:
        """hri: the module hri_msgs.msg. Raises what rclpy raises for a wrong `qos_overrides`."""
        self.node, self.hri = node, hri
        self.tracked = create_publisher(node, hri.IdsList, f"{BODIES}/tracked")
        self._seen: dict[str, tuple[float, list[str]]] = {}  # by each camera: when, and who
        self.lock = threading.RLock()
        """Of all cameras' bodies: the worker's thread publishes them, the executor's asks who listens, and empties."""

    def publish(self, header: Header, camera: str, ids: list[str]) -> None:
        """ids: of the bodies that the camera sees now. Those that others saw until a moment ago are tracked, too."""
        now = time.monotonic()
        self._seen[camera] = now, ids
        everybody = [body for at, seen in self._seen.values() if now - at < PATIENCE for body in seen]
        self.tracked.publish(self.hri.IdsList(header=header, ids=everybody))

    def close(self) -> None:
        self.node.destroy_publisher(self.tracked)


class Bodies:
    """Topics `/humans/bodies/<id>/...` of the bodies that one camera sees: a region and a skeleton."""

    topic = BODIES

    def __init__(self, humans: Humans, scope: str = "") -> None:
        """scope: as for `transforms`."""
        self._humans, self._scope = humans, scope
        self._regions: dict[str, Any] = {}
        self._skeletons: dict[str, Any] = {}

    def is_wanted(self) -> bool:
        with self._humans.lock:
            publishers = [self._humans.tracked, *self._regions.values(), *self._skeletons.values()]
            return any(publisher.get_subscription_count() for publisher in publishers)

    def publish(self, frame: ProcessedFrame) -> None:
        ids = [body_id(self._scope, person) for person in frame.people.ids.tolist()]
        with self._humans.lock:
            self._track(frame.header, ids)
            for k, body in enumerate(ids):
                for publisher, message in ((self._regions[body], region), (self._skeletons[body], skeleton)):
                    if publisher.get_subscription_count():
                        publisher.publish(message(self._humans.hri, frame, k))

    def forget(self) -> None:
        """Nobody is tracked: the camera shows nothing any more."""
        with self._humans.lock:
            self._track(Header(stamp=self._humans.node.get_clock().now().to_msg()), [])

    def close(self) -> None:
        self._have([])

    def _track(self, header: Header, ids: list[str]) -> None:
        self._have(ids)
        self._humans.publish(header, self._scope, ids)

    def _have(self, ids: list[str]) -> None:
        """Publishers for these bodies, and no others.

        Their QoS is that of `tracked`: `qos_overrides` of their own would be more and more parameters.
        """
        node, hri, qos = self._humans.node, self._humans.hri, self._humans.tracked.qos_profile
        kinds = {"roi": hri.NormalizedRegionOfInterest2D, "skeleton2d": hri.Skeleton2D}
        with self._humans.lock:
            for publishers, (name, kind) in zip((self._regions, self._skeletons), kinds.items()):
                for gone in publishers.keys() - set(ids):
                    node.destroy_publisher(publishers.pop(gone))
                for new in set(ids) - publishers.keys():
                    publishers[new] = node.create_publisher(kind, f"{BODIES}/{new}/{name}", qos)


def _poses(joints: np.ndarray) -> tuple[np.ndarray, list[Quaternion]]:
    positions, rotations = pelvis_poses(joints)
    if not len(joints):
        return positions, []
    from scipy.spatial.transform import Rotation  # slow to load

    turns = Rotation.from_matrix(rotations).as_quat().tolist()
    return positions, [Quaternion(x=x, y=y, z=z, w=w) for x, y, z, w in turns]


def _xyz(kind: Any, point: np.ndarray) -> Any:
    x, y, z = point.tolist()
    return kind(x=x, y=y, z=z)
