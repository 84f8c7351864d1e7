"""The ROS 2 node `mega`: camera images in, a mesh with sigma per person out. What it computes is `Recovery.run`.

The executor's thread only receives; a worker thread recovers people and publishes, so that neither camera_info nor
diagnostics wait for it. Between the two is room for one frame, the newest: what it pushes out is a dropped frame.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import rclpy
import tyro
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from shape_msgs.msg import Mesh

from mega_model.core.geometry import intrinsics_from_fov

from . import messages, parameters
from .bundle import Bundle
from .detect import fixed_box, full_frame, in_image
from .environment import use_large_messages
from .health import Health
from .images import to_bgr
from .recovery import Recovery
from .track import Tracker

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SILENCE = 3.0
"""Seconds without an image after which diagnostics say so."""

AnyImage: TypeAlias = "Image | CompressedImage"


class Newest:
    """Room for one image between two threads. Putting replaces what is still there, and counts that."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: tuple[AnyImage, float] | None = None
        self._closed = False
        self.replaced = 0

    def put(self, image: AnyImage) -> None:
        with self._changed:
            self.replaced += self._item is not None
            self._item = image, time.monotonic()
            self._changed.notify()

    def take(self) -> tuple[AnyImage, float] | None:
        """Waits for an image; gives it and when it was put. None once the room is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed)
            item, self._item = self._item, None
            return None if self._closed else item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class MegaNode(Node):
    """Raises BundleError, ValueError or rclpy's ParameterException if it cannot start, each with one clear line."""

    def __init__(self) -> None:
        super().__init__("mega")
        parameters.declare(self)
        self._recovery = Recovery.load(self._get("bundle"), provider=self._get("provider"))
        if self._recovery.detector is None and self._get("boxes") == "detector":
            name = self._recovery.bundle.name
            raise ValueError(f"boxes: the bundle {name} has no detector; set boxes to full_frame or fixed")
        self._health = Health({"backend": self._recovery.backend, **_facts(self._recovery.bundle)})
        self._tracker = Tracker()
        self._info: CameraInfo | None = None

        self._mesh = self.create_publisher(PointCloud2, "~/mesh", RELIABLE)
        self._joints = self.create_publisher(PointCloud2, "~/joints", RELIABLE)
        self._topology = self.create_publisher(Mesh, "~/topology", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._topology.publish(messages.mesh(self._recovery.topology))

        compressed = self._get("image_transport") == "compressed"
        topic = self.resolve_topic_name("image")
        if compressed and not topic.endswith("/compressed"):
            topic += "/compressed"
        kind = CompressedImage if compressed else Image
        self._images = self.create_subscription(kind, topic, self._on_image, NEWEST)
        self._infos = self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, NEWEST)
        # on its own clock: diagnostics go on when a bag that drives /clock pauses
        self.create_timer(1.0, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME))

        self._newest = Newest()
        self._worker = threading.Thread(target=self._work, name="recovery")
        self._worker.start()

    def close(self) -> None:
        """Ends the worker, which publishes, so before the node goes."""
        self._newest.close()
        self._worker.join()

    def _get(self, parameter: str) -> Any:
        return self.get_parameter(parameter).value

    # ------------------------------------------------------------------------------------------- the executor's thread

    def _on_image(self, image: AnyImage) -> None:
        self._health.received()
        self._newest.put(image)

    def _on_camera_info(self, info: CameraInfo) -> None:
        self._info = info

    def _diagnose(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name().lstrip("/")
        message.status = [self._health.status(name, self._newest.replaced, self._why_silent())]
        self._diagnostics.publish(message)

    def _why_silent(self) -> str:
        if self._health.silence() < SILENCE:
            return ""
        topic = self._images.topic_name
        kinds = {publisher.topic_type for publisher in self.get_publishers_info_by_topic(topic)}
        wanted = f"sensor_msgs/msg/{self._images.msg_type.__name__}"
        if kinds - {wanted}:
            return f"{topic}: carries {', '.join(sorted(kinds))}, not {wanted}; see the parameter image_transport"
        return f"{topic}: no images, {'though somebody' if kinds else 'nobody'} publishes it"

    # ---------------------------------------------------------------------------------------------- the worker's thread

    def _work(self) -> None:
        while (item := self._newest.take()) is not None:
            image, arrived = item
            try:
                people = self._recover(image)
                self._health.processed(time.monotonic() - arrived, people)
            except ValueError as error:  # ImageError, or an argument that Recovery.run refuses
                self._reject(str(error))
            except Exception as error:  # the next frame may fare better, and a robot needs its node
                self._reject(f"{type(error).__name__}: {error}")
                self.get_logger().debug(traceback.format_exc())

    def _recover(self, message: AnyImage) -> int:
        """One frame, from message to messages. Returns how many people it shows."""
        image = to_bgr(message)
        boxes, keypoints = self._find(image)
        inside = in_image(boxes, image.shape[1], image.shape[0])
        if not inside.all():
            reason = f"{(~inside).sum()} of {len(boxes)} boxes are left out: the image shows nothing of them"
            self._warn(self._images.topic_name, reason)
            boxes, keypoints = boxes[inside], None if keypoints is None else keypoints[inside]
        people = self._recovery.run(
            image,
            self._intrinsics(width=image.shape[1], height=image.shape[0]),
            boxes,
            self._tracker.update(boxes),
            None if self._get("samples") < 0 else self._get("samples"),
            messages.frame_seed(message.header.stamp, self._get("seed")),
            keypoints,
        )
        header = message.header
        self._mesh.publish(messages.point_cloud(header, people.vertices, people.sigma, people.ids))
        self._joints.publish(messages.point_cloud(header, people.joints, people.joints_sigma, people.ids))
        return len(people)

    def _find(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Boxes [P, 4] as the parameters say, and the detector's keypoints [P, 17, 3], if it gives any."""
        boxes = self._get("boxes")
        if boxes == "full_frame":
            return full_frame(image)[0], None
        if boxes == "fixed":
            return fixed_box(self._get("fixed_box"))(image)[0], None
        if self._recovery.detector is None:
            raise ValueError("the bundle has no detector; set the parameter boxes to full_frame or fixed")
        self._recovery.detector.threshold = self._get("score_threshold")
        found = self._recovery.detector.find(image)
        return found.boxes, found.keypoints

    def _intrinsics(self, width: int, height: int) -> np.ndarray:
        """K [3, 3] of the last camera_info, or, with a reason in the diagnostics, one that is assumed."""
        info = self._info
        topic = self._infos.topic_name
        try:
            if info is None:
                raise ValueError("no camera_info has come")
            K = messages.intrinsics(info)
            if (info.width, info.height) != (width, height):
                raise ValueError(f"it is for {info.width} x {info.height} pixels, the image has {width} x {height}")
        except ValueError as error:
            self._health.assumed = f"{topic}: {error}"
            self._warn(topic, f"{error}; a field of view of {self._get('fov'):.3f} rad is assumed")
            return intrinsics_from_fov(width, height, self._get("fov"))
        self._health.assumed = ""
        return K

    def _reject(self, reason: str) -> None:
        self._health.rejected()
        self._warn(self._images.topic_name, reason)

    def _warn(self, topic: str, reason: str) -> None:
        if self._health.problem(topic, reason):
            self.get_logger().warning(f"{topic}: {reason}")


def _facts(bundle: Bundle) -> dict[str, str]:
    calibration = bundle.calibration
    coverage = ", ".join(f"{share:.0%} within {within}" for within, share in calibration.coverage.items())
    return {
        "bundle": bundle.name,
        "bundle_hash": bundle.hash,
        "calibration": f"sigma times {calibration.scale:g}; {coverage}; {calibration.how}",
    }


def options() -> None:
    """The ROS 2 node: subscribes to `image` and `camera_info`, publishes `~/mesh`, `~/joints` and `~/topology`.

    Topics and parameters are set the ROS way, and `config/mega.yaml` lists the parameters:

    mega node --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info -p fov:=1.2
    """


def main(args: Sequence[str]) -> int:
    use_large_messages()
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        tyro.cli(options, prog="mega node", args=remove_ros_args(list(args)))
        # rclpy's own handlers, and its spin(), do not always end with code 0
        rclpy.init(args=list(args), signal_handler_options=SignalHandlerOptions.NO)
        node = MegaNode()
    except (ParameterException, ValueError, RuntimeError) as error:  # rcl's errors are RuntimeErrors
        print(f"mega node: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:
        executor.shutdown()
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
