"""How images and camera_info come in: topics, types and QoS that fit what is published, and what never arrived."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from mega_model.core.errors import InputError, first_line

from .standard import MESSAGES

OVERRIDABLE = QoSOverridingOptions(
    [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY]
)
"""For publishers: the policies that `qos_overrides` may set."""
DEPTH = 5
"""Of subscriptions, as in ROS' profile for sensor data."""

# the stronger one first: a subscription that asks for it is not matched with a publisher that offers the other
POLICIES: dict[str, dict[str, Any]] = {
    "reliability": {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT},
    "durability": {"transient_local": DurabilityPolicy.TRANSIENT_LOCAL, "volatile": DurabilityPolicy.VOLATILE},
}

Source: TypeAlias = tuple[str, Any]
"""A topic and the class of its messages."""


def type_name(kind: Any) -> str:
    """As the graph names the type of a message class: sensor_msgs/msg/Image."""
    return f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"


def create_publisher(node: Node, kind: Any, topic: str, **qos: Any) -> Any:
    """Reliable, with room for the newest message, where `qos_overrides` say nothing else."""
    return node.create_publisher(kind, topic, QoSProfile(**{"depth": 1} | qos), qos_overriding_options=OVERRIDABLE)


def within(camera: str, name: str) -> str:
    """The name of a topic, or of a frame, of one of several cameras; as it is for the only one, which has no name."""
    return f"{camera}/{name}" if camera else name


def image_sources(topic: str, image_transport: str) -> list[Source]:
    """Where the images of the resolved topic `image` may come from, best first.

    image_transport: auto, raw or compressed.
    """
    if image_transport == "raw":
        return [(topic, Image)]
    base = topic.removesuffix("/compressed")
    compressed = (f"{base}/compressed", CompressedImage)
    if image_transport == "compressed" or base != topic:
        return [compressed]
    return [(topic, Image), compressed, (topic, CompressedImage)]


def camera_info_topic(node: Node, name: str, image: str) -> str:
    """The name of the topic `name`, a camera_info: what it is remapped to, or else beside the resolved image topic.

    The second is the rule of image_transport: the last part of the base topic is replaced.
    """
    given = node.resolve_topic_name(name)
    if given != node.resolve_topic_name(name, only_expand=True):
        return given
    return f"{image.removesuffix('/compressed').rpartition('/')[0]}/camera_info"


class MatchedSubscription:
    """A subscription to the first of several sources that somebody publishes.

    Its reliability and durability are what the publishers offer: reliable where all of them are, latched where all of
    them are. What `qos_overrides` sets stays. For the executor's thread.

    Messages are read by rosbags, and are of its types. rclpy would take damaged ones in silence, or crash (a changed
    byte in an Image is enough).
    """

    def __init__(
        self,
        node: Node,
        sources: Sequence[Source],
        callback: Callable[[Any], None],
        damaged: Callable[[str, str], None],
        reliability: str = "auto",
    ) -> None:
        """sources: of types that `MESSAGES` knows; the first is subscribed to while nobody publishes any. damaged: told
        what is wrong with a message that cannot be read, and its topic. reliability: auto, reliable, best_effort."""
        self._node = node
        self._sources = sources
        self._callback, self._damaged = callback, damaged
        self._reliability = reliability
        self._subscription: Any = None
        self._qos: tuple[Any, Any] = (None, None)
        self.topic, self.kind = sources[0]
        """What is subscribed to now: the topic and the class of its messages. Any thread may read them."""
        self.unmatched = ""
        """Why nothing comes from any publisher that is there: its QoS, what asks for another, and what to do."""
        self.publishers = 0
        """How many there are."""
        self.follow()

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)

    @property
    def topics(self) -> list[str]:
        """Where messages may come from."""
        return list(dict.fromkeys(self._node.resolve_topic_name(topic) for topic, _ in self._sources))

    @property
    def reliable(self) -> bool:
        return self._qos[0] == ReliabilityPolicy.RELIABLE

    def follow(self) -> None:
        """Subscribes anew if the publishers are others now, or offer something else. Call it now and then.

        Raises InputError for a wrong `qos_overrides`; the subscription stays as it was then, but for one of another
        type, which has ended.
        """
        (topic, kind), offers = self._offered()
        self.unmatched, self.publishers = "", len(offers)
        if self._subscription is not None and not offers:
            return
        topic = self._node.resolve_topic_name(topic)
        old = self._subscription
        try:
            asked = {policy: self._policy(topic, policy, offers) for policy in POLICIES}
            qos = asked["reliability"][0], asked["durability"][0]
            self.unmatched = _why_unmatched(asked, offers)
            if old is not None and (topic, kind, qos) == (self.topic, self.kind, self._qos):
                return
            if old is not None and topic == self.topic and kind != self.kind:
                # Fast DDS refuses a second type on a topic that this process already reads
                self._node.destroy_subscription(old)
                self._subscription = old = None
            self._subscription = self._node.create_subscription(
                kind,
                topic,
                partial(self._read, type_name(kind)),
                QoSProfile(depth=DEPTH, reliability=qos[0], durability=qos[1]),
                qos_overriding_options=QoSOverridingOptions([QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH]),
                raw=True,
            )
        except (ParameterException, RuntimeError) as error:
            raise InputError(f"qos_overrides of {topic}: {first_line(error)}") from None
        self.topic, self.kind, self._qos = topic, kind, qos
        if old is not None:
            self._node.destroy_subscription(old)

    def _read(self, kind: str, data: bytes) -> None:
        try:
            message = MESSAGES.deserialize_cdr(memoryview(data), kind)  # a slice of bytes would be a copy
        except Exception:  # damaged bytes may raise anything
            self._damaged(f"a {kind} of {len(data)} bytes is damaged or cut off", self.topic)
        else:
            self._callback(message)

    def _offered(self) -> tuple[Source, list[QoSProfile]]:
        """The source to subscribe to, and what its publishers offer; nothing if there are none."""
        for topic, kind in self._sources:
            publishers = self._node.get_publishers_info_by_topic(topic)
            offers = [publisher.qos_profile for publisher in publishers if publisher.topic_type == type_name(kind)]
            if offers:
                return (topic, kind), offers
        return self._sources[0], []

    def _policy(self, topic: str, policy: str, offers: Sequence[QoSProfile]) -> tuple[Any, str]:
        """What is asked for, and by which parameter: what `qos_overrides` says, under the name that rclpy would give
        it, or else `image_reliability`.

        auto asks for the stronger one if all publishers offer it.

        rclpy's own parameter holds the first policy for good, so it cannot follow a publisher.
        """
        name, choices = f"qos_overrides.{topic}.subscription.{policy}", POLICIES[policy]
        allowed = ", ".join(["auto", *choices])
        if not self._node.has_parameter(name):
            self._node.declare_parameter(name, "auto", ParameterDescriptor(description=allowed, read_only=True))
        choice = self._node.get_parameter(name).value
        if choice == "auto" and policy == "reliability":
            name, choice = "image_reliability", self._reliability
        if choice == "auto":
            strong, weak = choices.values()
            return strong if {getattr(offer, policy) for offer in offers} == {strong} else weak, name
        if choice not in choices:
            raise InputError(f"{name} must be one of {allowed}, not '{choice}'")
        return choices[choice], name


def _why_unmatched(asked: dict[str, tuple[Any, str]], offers: Sequence[QoSProfile]) -> str:
    """Why no publisher fits what is asked for: policy -> what, and by which parameter. Empty if one fits."""
    faults: list[set[str]] = [set() for _ in offers]
    for policy, (wanted, name) in asked.items():
        (strong, stronger), (weak, weaker) = POLICIES[policy].items()
        for offer, fault in zip(offers, faults):
            if wanted == stronger and getattr(offer, policy) == weaker:
                fault.add(f"who publishes offers {weak}, but {name} is {strong}: set it to auto")
    return "; ".join(sorted(set().union(*faults))) if all(faults) else ""


class Losses:
    """Counts the frames that never arrived: more time passed than the frames that came account for.

    The camera's period is learned from the stamps, so a few frames pass until losses are counted, those before
    included. A camera that gets slower seems to lose frames until as many as `MEMORY` have come.
    """

    MEMORY = 30
    """Intervals that the period is taken from."""
    ENOUGH = 8
    """Intervals from which the period is known."""
    FASTEST = 1 / 150
    """Seconds. Images that follow each other faster, with gaps, come in bursts: such a camera loses no frames."""
    PAUSE = 3.0
    """Seconds. A longer gap is a camera that stood still, not a loss."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._intervals: deque[float] = deque(maxlen=self.MEMORY)
        self._waiting: list[float] = []  # intervals from before the period is known
        self._late = 0.0  # how much later than expected the last frame came, periods: -1 to 0.5
        self._found: deque[int] = deque(maxlen=self.MEMORY)  # what the last frames told
        self.period = math.nan
        """Seconds between two frames of the camera; NaN while it is not known."""

    def add(self, stamp: int) -> int:
        """The next frame's stamp, nanoseconds -> how many frames were found missing now.

        Negative if the frame is one of those that were missing: it was late.
        """
        interval = math.nan if self._last is None else (stamp - self._last) / 1e9
        self._last = stamp
        if not 0 < interval < self.PAUSE:  # the first one, a clock that was set, a recording that starts again
            return 0
        self._intervals.append(interval)
        self._waiting.append(interval)
        if len(self._intervals) < self.ENOUGH:
            return 0
        self.period = self._period()
        lost = sum(map(self._missing, self._waiting))
        self._waiting.clear()
        return lost

    def _missing(self, interval: float) -> int:
        """A late frame makes the next interval shorter, so what is over, or lacking, is kept for the next one.

        A tenth of it is forgotten each time, as the period is not known exactly.
        """
        late = 0.9 * self._late + interval / self.period - 1
        lost = max(round(late), -sum(self._found))
        self._late = max(late - lost, -1.0)
        self._found.append(lost)
        return lost

    def _period(self) -> float:
        """The longest one of which all intervals are multiples, but for some jitter.

        If there is none, the stamps tell when images arrived rather than when they were taken. Then it is the mean of
        the intervals without gaps, or of all, where images come in bursts. Plain Python: for so few numbers it is
        faster than numpy.
        """
        intervals = sorted(self._intervals)
        count, total = len(intervals), sum(intervals)
        short = [interval for interval in intervals if interval < 1.4 * intervals[count // 10]]
        shortest = short[len(short) // 2]
        median = intervals[count // 2]
        # where frames are late, others follow soon, and the period is the median; where so much is lost that no two
        # frames follow each other, the shortest interval has several periods
        late = [(median, 1)] if intervals[0] < 0.6 * median else []
        for base, periods in [*late, *((shortest, n) for n in range(1, 7))]:
            period = base / periods
            if period < self.FASTEST:
                break
            multiples = [round(interval / period) for interval in intervals]
            error = sum(abs(interval / period - n) for interval, n in zip(intervals, multiples)) / count
            # by chance it is 0.25, with a standard error of 0.14 / sqrt(count); two values may fit by chance, too
            fits = error < 0.25 - 0.6 / math.sqrt(count) and (periods == 1 or len({*multiples}) > 2)
            if fits and sum(multiples) >= count - 1:  # fewer: images come in bursts
                return total / sum(multiples)
        jitter = sorted(abs(interval - median) for interval in intervals)[6 * count // 10]
        usual = [interval for interval in intervals if interval < median + max(0.5 * median, 3.5 * jitter)]
        period = sum(usual) / len(usual)
        # one gap in many may be long; if more is missing than came, after short intervals, images come in bursts
        return period if sum(intervals[: self.MEMORY - 1]) < 2 * period * count else total / count
