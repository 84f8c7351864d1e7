"""The ROS 2 node `mega`: camera images in, a mesh with sigma per person out, by `Stream.process`.

The executor's thread receives messages; a worker thread recovers people and publishes, so that camera_info and
diagnostics do not wait for it. The queue between them holds one frame; replacing it by a newer one counts as a drop.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, TypeAlias

import rclpy
import tyro
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from shape_msgs.msg import Mesh

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError

from ..bundle import Bundle
from ..recovery import Recovery
from ..stream import Stream, StreamSettings
from . import messages, parameters
from .camera_info import camera_for, is_rectified
from .diagnostics import Health
from .environment import HELP, remove_profile, transport, use_large_messages
from .images import to_bgr
from .read import read_stamp
from .signals import Ending
from .transport import OVERRIDABLE, MatchedSubscription, camera_info_topic, image_sources, type_name

FOLLOW = 0.5
"""Seconds between two looks at what publishers offer."""

AnyImage: TypeAlias = "Image | CompressedImage"


class Newest:
    """A queue of length one between two threads. `put` replaces an image that was not taken, and counts it."""

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
        """Waits for an image. Returns it and the time of `put`, or None once the queue is closed."""
        with self._changed:
            while self._item is None and not self._closed:
                self._changed.wait(1.0)
                # Python waits for this thread when a program ends without `close`, by an exception
                self._closed |= not threading.main_thread().is_alive()
            item, self._item = self._item, None
            return None if self._closed else item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class MegaNode(Node):  # type: ignore[misc]  # rclpy's types are skipped
    """Raises InputError or rclpy's ParameterException if it cannot start, each with one clear line."""

    def __init__(self) -> None:
        super().__init__("mega")
        parameters.declare(self)
        recovery = Recovery.load(self._get("bundle"), provider=self._get("provider"))
        self._stream = Stream(recovery, self._settings())
        carrier, self._advice = transport()
        if self._advice:
            self.get_logger().warning(self._advice)
        facts = {"backend": recovery.backend, "transport": carrier, **_facts(recovery.bundle)}
        self._health = Health(facts)
        self._info: CameraInfo | None = None

        self._mesh = self._publisher(PointCloud2, "~/mesh")
        self._joints = self._publisher(PointCloud2, "~/joints")
        self._topology = self._publisher(Mesh, "~/topology", durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._diagnostics = self._publisher(DiagnosticArray, "/diagnostics", depth=10)
        self._topology.publish(messages.mesh(recovery.topology))

        topic = self.resolve_topic_name("image")
        sources = image_sources(topic, self._get("image_transport"))
        self._images = MatchedSubscription(self, sources, self._on_image, self._get("image_reliability"))
        infos = [(camera_info_topic(self, topic), CameraInfo)]
        self._infos = MatchedSubscription(self, infos, self._on_camera_info)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(FOLLOW, self._follow, clock=steady)
        # on its own clock: diagnostics go on when a bag that drives /clock pauses
        self.create_timer(1.0, self._diagnose, clock=steady)

        self._newest = Newest()
        self._worker = threading.Thread(target=self._work, name="recovery")
        self._worker.start()

    def close(self) -> None:
        """Stop the worker. Call it before the node is destroyed, because the worker publishes."""
        self._newest.close()
        self._worker.join()

    def _publisher(self, kind: Any, topic: str, **qos: Any) -> Any:
        """Reliable, with room for the newest message, where `qos_overrides` say nothing else."""
        return self.create_publisher(kind, topic, QoSProfile(**{"depth": 1} | qos), qos_overriding_options=OVERRIDABLE)

    def _get(self, parameter: str) -> Any:
        return self.get_parameter(parameter).value

    def _settings(self) -> StreamSettings:
        """The current parameters."""
        return StreamSettings(
            boxes=self._get("boxes"),
            fixed_box=tuple(self._get("fixed_box")),
            score_threshold=self._get("score_threshold"),
            samples=None if self._get("samples") < 0 else self._get("samples"),
            seed=self._get("seed"),
            fov=self._get("fov"),
            rotate=self._get("rotate"),
        )

    # ------------------------------------------------------------------------------------------- the executor's thread

    def _on_image(self, image: AnyImage) -> None:
        self._health.received(read_stamp(image))
        self._newest.put(image)

    def _on_camera_info(self, info: CameraInfo) -> None:
        self._info = info

    def _follow(self) -> None:
        self._images.follow()
        self._infos.follow()

    def _diagnose(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name().lstrip("/")
        warnings = [self._namesakes(), self._why_lossy()]
        facts = {
            "image_topic": self._images.topic,
            "image_type": type_name(self._images.kind),
            "image_reliability": "reliable" if self._images.reliable else "best_effort",
        }
        status = self._health.status(name, self._newest.replaced, self._why_silent(), warnings, facts)
        for text in warnings:
            if text and self._health.is_due(text):
                self.get_logger().warning(text)
        message.status = [status]
        self._diagnostics.publish(message)

    def _namesakes(self) -> str:
        names = self.get_node_names_and_namespaces()
        same = names.count((self.get_name(), self.get_namespace()))
        if same < 2:
            return ""
        # DDS misses a killed node only when its lease ends
        own = self.get_fully_qualified_name()
        return f"{same} nodes are named {own}: rename one (__node:=...); a killed one still counts for 20 s"

    def _why_lossy(self) -> str:
        losses = self._health.losses()
        return f"{self._images.topic}: {losses}; {self._remedy()}" if losses else ""

    def _remedy(self) -> str:
        return self._advice or f"set FASTDDS_DEFAULT_PROFILES_FILE for the camera's process, too; {HELP}"

    def _why_silent(self) -> str:
        if self._health.silence() < self._get("timeout"):
            return ""
        topic = self._images.topic
        kinds = {publisher.topic_type for publisher in self.get_publishers_info_by_topic(topic)}
        wanted = type_name(self._images.kind)
        if kinds - {wanted}:
            return f"{topic}: carries {', '.join(sorted(kinds))}, not {wanted}; see the parameter image_transport"
        if not kinds:
            return f"{topic}: no images, nobody publishes {' or '.join(self._images.topics)}"
        return f"{topic}: no images, though somebody publishes it; if they are large, {self._remedy()}"

    # ---------------------------------------------------------------------------------------------- the worker's thread

    def _work(self) -> None:
        while (item := self._newest.take()) is not None:
            image, arrived = item
            try:
                people = self._recover(image)
                self._health.processed(time.monotonic() - arrived, people)
            except InputError as error:  # an invalid image or argument
                self._reject(str(error))
            except Exception as error:  # keep running: the next frame may succeed
                self._reject(f"{type(error).__name__}: {error}")
                self.get_logger().debug(traceback.format_exc())

    def _recover(self, message: AnyImage) -> int:
        """Process one image message and publish the result. Returns the number of people."""
        image = to_bgr(message)
        header, topic = message.header, self._infos.topic
        camera, problem = self._camera(width=image.shape[1], height=image.shape[0])
        stream = self._stream
        stream.settings = self._settings()
        people = stream.process(image, camera, read_stamp(message), problem)
        self._health.assumed = f"{topic}: {stream.assumed}" if stream.assumed else ""
        if stream.assumed:
            self._warn(topic, f"{stream.assumed}; a field of view of {stream.settings.fov:.3f} rad is assumed")
        elif problem:
            self._warn(topic, problem)
        for note in stream.notes:
            self._warn(self._images.topic, note)
        self._mesh.publish(messages.point_cloud(header, people.vertices, people.sigma, people.ids))
        self._joints.publish(messages.point_cloud(header, people.joints, people.joints_sigma, people.ids))
        return len(people)

    def _camera(self, width: int, height: int) -> tuple[Camera | None, str]:
        """The camera of the last camera_info for an image of this size, or None; and what is wrong with it."""
        if self._info is None:
            return None, "no camera_info has come"
        rectified = is_rectified(self._images.topic, str(self._get("rectified")).lower())  # true may be a bool
        return camera_for(self._info, width, height, rectified)

    def _reject(self, reason: str) -> None:
        self._health.rejected()
        self._warn(self._images.topic, reason)

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

    Topics and parameters are set as ROS arguments. `config/mega.yaml` lists the parameters.

    mega node --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info -p fov:=1.2
    """


def main(args: Sequence[str]) -> int:
    ending = Ending()
    use_large_messages()
    try:
        with ending.at_once(remove_profile):
            tyro.cli(options, prog="mega node", args=remove_ros_args(list(args)))
            # rclpy's own handlers, and its spin(), do not always end with code 0
            rclpy.init(args=list(args), signal_handler_options=SignalHandlerOptions.NO)
            node = MegaNode()
    except (ParameterException, InputError, RuntimeError) as error:  # rcl's errors are RuntimeErrors
        print(f"mega node: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not ending.asked.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:
        executor.shutdown()
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
