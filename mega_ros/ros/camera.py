"""One camera of the node, while it is active: its topics, and how the people in its images are recovered.

The executor's thread receives messages, and the worker's thread, which several cameras share, recovers people and
publishes.
"""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeAlias

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from mega_model.core.cameras import Camera
from mega_model.core.detection import Detections
from mega_model.core.errors import InputError, first_line

from ..recovery import People, Recovery
from ..smooth import HORIZON
from ..stream import Stream
from ..user_detector import UserDetector
from . import bodies, messages, parameters
from .camera_info import camera_for, is_rectified, other_frame
from .dds import HELP, profile_variable
from .detections import MOST, WAITING, Pairs, to_detections
from .diagnostics import Health
from .frame import ProcessedFrame
from .images import to_bgr
from .outputs import Outputs
from .read import read_stamp
from .standard import header
from .transport import MatchedSubscription, camera_info_topic, image_sources, type_name, within
from .worker import Worker

FOLLOW = 0.5
"""Seconds between two checks of what publishers offer."""
INFO_WAIT = 1.0
"""Seconds, from the first image on. Until then, images are dropped if a camera_info is published but has not come yet:
people in them would be seen through an assumed lens."""

AnyImage: TypeAlias = Any
"""Image or CompressedImage, of rosbags."""


class LiveCamera:
    """Subscribes to `image`, `camera_info` and, if vision_msgs is installed, `detections`; publishes the people."""

    def __init__(
        self,
        node: Node,
        name: str,
        recovery: Recovery,
        outputs: Outputs,
        worker: Worker,
        advice: str,
        detector: UserDetector | None = None,
        next_id: int = 0,
    ) -> None:
        """name: of several cameras, else empty: they have `<name>/image` and `<name>/camera_info`.
        advice: what to set if camera images are likely to be lost, see `dds.transport`. detector: the user's
        own, else the bundle's. next_id: of the first new person.

        Raises InputError for a wrong `qos_overrides`, too.
        """
        self.name = name
        self._node, self._recovery, self._outputs, self._advice = node, recovery, outputs, advice
        self._worker, self._detector = worker, detector
        self._health = Health()
        self._stream = Stream(recovery, parameters.stream_settings(node, self._health.period), detector, next_id)
        self._pairs: Pairs[AnyImage] = Pairs()
        self._info: Any = None  # CameraInfo
        self._dropped = 0
        self._unstamped = False  # whether the last image had the stamp 0
        self._frame: str | None = None  # its frame_id
        self._first = 0.0  # when the first wanted one came, time.monotonic
        self._refused: list[str] = []  # why publishers that are there cannot be followed
        topic = node.resolve_topic_name(within(name, "image"))
        sources = image_sources(topic, parameters.get(node, "image_transport"))
        infos = [(camera_info_topic(node, within(name, "camera_info"), topic), CameraInfo)]
        with ExitStack() as stack:
            reliability = parameters.get(node, "image_reliability")
            self._images = MatchedSubscription(node, sources, self._on_image, self._on_damaged_image, reliability)
            stack.callback(self._images.close)
            self._infos = MatchedSubscription(node, infos, self._on_camera_info, self._warn)
            stack.callback(self._infos.close)
            self._follows = [self._images, self._infos]
            if vision := bodies.package("vision_msgs"):
                found = [(node.resolve_topic_name(within(name, "detections")), vision.Detection2DArray)]
                self._follows.append(MatchedSubscription(node, found, self._on_detections, self._warn))
                stack.callback(self._follows[-1].close)
            timer = node.create_timer(FOLLOW, self._follow, clock=Clock(clock_type=ClockType.STEADY_TIME))
            stack.callback(node.destroy_timer, timer)
            self._open = stack.pop_all()
        listened = [name for subscription in self._follows for name in subscription.topics]
        node.get_logger().info(f"listens to {', '.join(listened)}; publishes {', '.join(outputs.topics)}")

    def close(self) -> int:
        """Ends the subscriptions. The worker must have ended. Returns the id of the next new person."""
        self._open.close()
        self._outputs.forget()
        return self._stream.next_id

    # ------------------------------------------------------------------------------------------- the executor's thread

    def _on_image(self, image: AnyImage) -> None:
        self._health.received(read_stamp(image))
        self._unstamped, self._frame = not read_stamp(image), image.header.frame_id
        if self._unstamped:  # from here on all that follows time works; replay/bags.py does the same
            arrived = header(self._node.get_clock().now().nanoseconds, image.header.frame_id)
            image = replace(image, header=arrived)
        if not self._outputs.are_wanted():
            self._health.idle()
        elif self._waits_for_info():
            self._dropped += 1
        elif not self._waits_for_detections():
            self._put(image)
        elif pair := self._pairs.add_image(read_stamp(image), image):
            self._put(*pair)

    def _on_damaged_image(self, reason: str, topic: str) -> None:
        self._health.received(0)
        self._reject(reason)

    def _put(self, image: AnyImage, found: Detections | None = None) -> None:
        self._dropped += self._worker.put(self, (image, found))

    def _on_detections(self, message: Any) -> None:
        if self._waits_for_detections():
            classes, threshold = (parameters.get(self._node, name) for name in ("person_classes", "score_threshold"))
            found = to_detections(message, classes, threshold)
            if len(found.boxes) > MOST:
                many = f"{len(found.boxes)} people in one image, of whom only the likeliest {MOST} are recovered"
                self._warn(many, self._node.resolve_topic_name(within(self.name, "detections")))
                found = Detections(found.boxes[:MOST], found.scores[:MOST], None)
            if pair := self._pairs.add_detections(read_stamp(message), found):
                self._put(*pair)

    def _waits_for_detections(self) -> bool:
        return bool(parameters.get(self._node, "boxes") == "detections")

    def _waits_for_info(self) -> bool:
        if self._info is not None:
            return False
        self._first = self._first or time.monotonic()
        recent = time.monotonic() - self._first < INFO_WAIT
        return recent and self._node.count_publishers(self._infos.topic) > 0

    def _on_camera_info(self, info: Any) -> None:
        self._info = info
        self._health.received_info(read_stamp(info))

    def _follow(self) -> None:
        refused = []
        for subscription in self._follows:
            try:
                subscription.follow()
            except InputError as error:  # of a topic that was not subscribed to before
                refused.append(str(error))
        for text in refused:
            if text not in self._refused:  # nothing changes until the node starts again: once is enough
                self._node.get_logger().warning(text)
        self._refused = refused

    def status(self, name: str, warning: str, facts: dict[str, str]) -> DiagnosticStatus:
        """The state for /diagnostics. warning and facts: what the node adds; an empty warning is none."""
        states = {
            "node": warning,
            "losses": self._why_lossy(),
            "publishers": self._why_mixed(),
            "detections": self._why_unmatched(),
            "clock": self._why_timeless(),
            "stamp": self._why_unstamped(),
            "frame_id": self._why_unframed(),
            "camera_info's frame_id": self._why_other_frame(),
        }
        silence = self._why_silent()
        facts = facts | {
            "image_topic": self._images.topic,
            "image_type": type_name(self._images.kind),
            "image_reliability": "reliable" if self._images.reliable else "best_effort",
            "camera_info_topic": self._infos.topic,
            "rectified": str(self._are_rectified()).lower(),
        }
        for what, state in {**states, "images": silence}.items():
            self._lasts(what, state)
        if silence:
            self._outputs.forget()
        dropped = self._dropped + self._pairs.alone
        return self._health.status(name, dropped, silence, [*states.values(), *self._refused], facts)

    def _why_lossy(self) -> str:
        losses = self._health.losses()
        return f"{self._images.topic}: {losses}; {self._remedy()}" if losses else ""

    def _why_mixed(self) -> str:
        count = self._images.publishers
        return f"{self._images.topic}: {count} publish it, so two cameras are mixed: remap one" if count > 1 else ""

    def _why_unmatched(self) -> str:
        if not self._waits_for_detections() or self._pairs.alone_since_pair < WAITING:
            return ""
        topic = self._node.resolve_topic_name(within(self.name, "detections"))
        return f"{topic}: none has the stamp of any of the last images; its header must be a copy of the image's"

    def _why_timeless(self) -> str:
        clock = self._node.get_clock()
        if not clock.ros_time_is_active or clock.now().nanoseconds:
            return ""
        return "use_sim_time is true, but no time has come on /clock; play it, or set use_sim_time to false"

    def _why_unstamped(self) -> str:
        if not self._unstamped or self._why_timeless():  # then the time of arrival is 0, too
            return ""
        return f"{self._images.topic}: the stamp is 0, so the time of arrival is used instead; set it in the driver"

    def _why_unframed(self) -> str:
        if self._frame != "":
            return ""
        return f"{self._images.topic}: the frame_id is empty, so tf2 cannot place the people; set it in the driver"

    def _why_other_frame(self) -> str:
        problem = other_frame(self._info.header.frame_id, self._frame or "") if self._info else ""
        return problem and f"{self._infos.topic}: {problem}: is it another camera's?"

    def _remedy(self) -> str:
        return self._advice or f"set {profile_variable()} for the camera's process, too; {HELP}"

    def _why_silent(self) -> str:
        if self._health.silence() < parameters.get(self._node, "timeout"):
            return ""
        topic = self._images.topic
        kinds = {publisher.topic_type for publisher in self._node.get_publishers_info_by_topic(topic)}
        wanted = type_name(self._images.kind)
        if self._images.unmatched:
            return f"{topic}: no images, {self._images.unmatched}"
        if kinds - {wanted}:
            return f"{topic}: carries {', '.join(sorted(kinds))}, not {wanted}; see the parameter image_transport"
        if not kinds:
            return f"{topic}: no images, nobody publishes {' or '.join(self._images.topics)}"
        return f"{topic}: no images, though somebody publishes it; if they are large, {self._remedy()}"

    # ---------------------------------------------------------------------------------------------- the worker's thread

    def recover(self, work: tuple[AnyImage, Detections | None], arrived: float) -> None:
        """Process an image message and publish the result; what is wrong with it is logged. arrived: time.monotonic."""
        try:
            self._recover(*work, arrived)
        except InputError as error:  # an invalid image or argument
            self._reject(str(error))
        except Exception as error:  # keep running: the next frame may succeed
            self._health.rejected()
            self._failed(error)

    def _recover(self, message: AnyImage, found: Detections | None, arrived: float) -> None:
        """Process one image message and publish the result. found: in this image. arrived: time.monotonic."""
        start = time.monotonic()
        image = to_bgr(message)
        decoded = time.monotonic()
        before = self._seconds()
        topic, stamp = self._infos.topic, read_stamp(message)
        camera, problem = self._of_image(width=image.shape[1], height=image.shape[0])
        stream = self._stream
        stream.settings = parameters.stream_settings(self._node, self._health.period)
        people = stream.process(image, camera, stamp, problem, found)
        self._health.assumed = f"{topic}: {stream.assumed}" if stream.assumed else ""
        assumed = f"; a field of view of {stream.settings.fov:.3f} rad is assumed" if stream.assumed else ""
        self._lasts("camera_info", problem and f"{topic}: {problem}{assumed}")
        if problem and not assumed:
            self._health.problem(topic, problem)
        for note in stream.notes:
            self._warn(note)
        of_image = messages.header_of(message)
        if parameters.get(self._node, "predict"):
            of_image, people = self._predicted(of_image, people, stamp)
        recovered = time.monotonic()
        frame = ProcessedFrame(of_image, image, stream.camera, people, self._recovery.topology.faces)
        failed = self._outputs.publish(frame)
        for output, error in failed.items():
            self._failed(error, output)
        if self._outputs.mesh in failed:
            self._health.rejected()
            return
        published = time.monotonic()
        stages = {name: seconds - before[name] for name, seconds in self._seconds().items()}
        times = {
            "latency": published - arrived,
            "latency_from_stamp": (self._node.get_clock().now().nanoseconds - stamp) / 1e9,
            "decode": decoded - start,
            "publish": published - recovered,
        }
        self._health.processed(people, times | stages, stream.samples)

    def _seconds(self) -> dict[str, float]:
        """`Recovery.seconds`, with what the user's detector took."""
        seconds = self._recovery.seconds()
        if self._detector:
            seconds["infer"] += self._detector.seconds
            seconds["infer_cpu"] += self._detector.cpu_seconds
        return seconds

    def _predicted(self, header: Header, people: People, stamp: int) -> tuple[Header, People]:
        """The people where they are expected now, and a header that says so."""
        now = self._node.get_clock().now()
        age = (now.nanoseconds - stamp) / 1e9
        old = "" if 0 <= age <= HORIZON else f"predict: the stamp is {age:.2f} s old, not 0 to {HORIZON:g}"
        self._lasts("predict", old and f"{old}; people are published as of then")
        if old:
            return header, people
        predicted = self._stream.predict(people, now.nanoseconds)
        return Header(stamp=now.to_msg(), frame_id=header.frame_id), predicted

    def _of_image(self, width: int, height: int) -> tuple[Camera | None, str]:
        """The camera of the last camera_info for an image of this size, or None; and what is wrong with it."""
        if self._info is None:
            name = within(self.name, "camera_info")
            return None, self._infos.unmatched or f"no camera_info has come; remap {name}, or set fov"
        return camera_for(self._info, width, height, self._are_rectified())

    def _are_rectified(self) -> bool:
        return is_rectified(self._images.topic, str(parameters.get(self._node, "rectified")).lower())  # or a bool

    def _lasts(self, what: str, state: str) -> None:
        """A state that may last, or nothing if it is over: a warning when it begins or changes."""
        if self._health.begins(what, state):
            self._node.get_logger().warning(state)

    def _reject(self, reason: str) -> None:
        self._health.rejected()
        self._warn(reason)

    def _failed(self, error: Exception, topic: str = "") -> None:
        """A fault of this program, not of the input; topic: what it concerns, by default the image topic."""
        self._warn(f"{type(error).__name__}: {first_line(error)}", topic)
        self._node.get_logger().debug("".join(traceback.format_exception(error)))

    def _warn(self, reason: str, topic: str = "") -> None:
        """About a bad input on a topic, by default the image topic."""
        topic = topic or self._images.topic
        if self._health.problem(topic, reason):
            self._node.get_logger().warning(f"{topic}: {reason}")
