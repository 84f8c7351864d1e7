"""Plays messages over DDS in real time: a bag's, or any others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.node import Node
from rclpy.publisher import Publisher
from rosbags.highlevel import AnyReader


class Message(NamedTuple):
    """A message and when it is due."""

    time: int
    """nanoseconds, on any clock: only differences matter."""
    topic: str
    type: str
    """e.g. "sensor_msgs/msg/CompressedImage"."""
    data: bytes
    """CDR, as it lies in a bag and goes over DDS."""


def read_bag(path: Path, topics: Iterable[str]) -> Iterator[Message]:
    """The messages of a ROS 2 bag (MCAP or sqlite3) on some topics, in time order."""
    with AnyReader([path]) as reader:
        wanted = set(topics)
        connections = [c for c in reader.connections if c.topic in wanted]
        for connection, stamp, data in reader.messages(connections):
            yield Message(stamp, connection.topic, connection.msgtype, bytes(data))


def message_class(name: str) -> Any:
    """The rclpy class of a message type such as "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


class Player:
    """Publishes messages when they are due. It never waits for a subscriber: a slow one misses messages."""

    def __init__(self, node: Node, topics: dict[str, str]) -> None:
        """`topics`: name -> type, advertised at once so that subscribers are found before the first message."""
        # reliable fits subscribers of both kinds
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(message_class(kind), topic, 10) for topic, kind in topics.items()
        }

    def subscribed(self) -> bool:
        """Somebody listens to every topic."""
        return all(p.get_subscription_count() > 0 for p in self._publishers.values())

    def play(self, messages: Iterable[Message], sending: Callable[[Message], None]) -> None:
        """Publish in real time. `sending` hears of each message just before it goes out."""
        start: float | None = None
        for message in messages:
            due = message.time / 1e9
            start = time.monotonic() - due if start is None else start
            time.sleep(max(0.0, start + due - time.monotonic()))
            sending(message)
            self._publishers[message.topic].publish(message.data)
