"""Publishes messages in real time, and the time of the recording on /clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import ReliabilityPolicy
from rosbags.typesys.stores import ros2_jazzy as ros

from ...ros.standard import serialised
from ..bags import Message

CLOCK = "/clock"
TICK = 0.01
"""Seconds between two messages on /clock, at most."""
TAKEN = 5.0
"""Seconds to wait for a message that must be taken before the next one."""


def message_class(name: str) -> Any:
    """The rclpy class of a message type such as "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


class Player:
    """Publishes messages at their times. It does not wait for subscribers: slow ones miss messages."""

    def __init__(self, node: Node, topics: Mapping[str, str]) -> None:
        """`topics`: name -> type. They are advertised here, so that subscribers connect before the first message."""
        self._node = node
        self._topics = topics
        # reliable publishers match reliable and best-effort subscribers
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(message_class(kind), topic, 10)
            for topic, kind in {**topics, CLOCK: "rosgraph_msgs/msg/Clock"}.items()
        }

    def subscribed(self) -> bool:
        """Whether every topic has a subscriber; the node's follow the publishers and become reliable."""
        return all(p.get_subscription_count() > 0 for p in self._publishers.values()) and all(
            ReliabilityPolicy.RELIABLE
            in (end.qos_profile.reliability for end in self._node.get_subscriptions_info_by_topic(topic))
            for topic in self._topics
        )

    def send_first(self, message: Message) -> None:
        """Publish a message before the others, and wait until it has arrived."""
        self._publishers[message.topic].publish(message.data)
        self._publishers[message.topic].wait_for_all_acked(Duration(seconds=TAKEN))

    def play(self, messages: Iterable[Message], sending: Callable[[Message], None], rate: float = 1.0) -> None:
        """Publish `rate` times as fast as recorded. `sending` is called with each message just before it is sent."""
        began: tuple[float, int] | None = None
        for message in messages:
            while began and (left := began[0] + (message.time - began[1]) / 1e9 / rate - time.monotonic()) > 0:
                self._tick(message.time - round(left * rate * 1e9))
                time.sleep(min(TICK, left))
            self._tick(message.time)
            sending(message)
            began = began or (time.monotonic(), message.time)
            self._publishers[message.topic].publish(message.data)

    def _tick(self, stamp: int) -> None:
        now = ros.builtin_interfaces__msg__Time(*divmod(max(0, stamp), 10**9))
        self._publishers[CLOCK].publish(serialised(ros.rosgraph_msgs__msg__Clock(now)))
