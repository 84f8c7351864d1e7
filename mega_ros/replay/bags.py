"""Serialised messages with their times, as in a bag."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

MESSAGES = get_typestore(Stores.ROS2_JAZZY)
"""ROS's standard message types, without a ROS installation."""


class Message(NamedTuple):
    """A message and its time."""

    time: int
    """nanoseconds on any clock; only differences matter."""
    topic: str
    type: str
    """e.g. "sensor_msgs/msg/CompressedImage"."""
    data: bytes
    """CDR, as in bags and over DDS."""

    def read(self) -> Any:
        """The deserialised message, of rosbags."""
        return MESSAGES.deserialize_cdr(self.data, self.type)


def read_bag(path: Path, topics: Iterable[str]) -> Iterator[Message]:
    """The messages of a ROS 2 bag (MCAP or sqlite3) on some topics, in time order."""
    with AnyReader([path]) as reader:
        wanted = set(topics)
        connections = [c for c in reader.connections if c.topic in wanted]
        for connection, stamp, data in reader.messages(connections):
            yield Message(stamp, connection.topic, connection.msgtype, bytes(data))
