"""Publishes messages in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher

from ..bags import Message


def message_class(name: str) -> Any:
    """The rclpy class of a message type such as "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


class Player:
    """Publishes messages at their times. It does not wait for subscribers: slow ones miss messages."""

    def __init__(self, node: Node, topics: dict[str, str]) -> None:
        """`topics`: name -> type. They are advertised here, so that subscribers connect before the first message."""
        # reliable publishers match reliable and best-effort subscribers
        self._publishers: dict[str, Publisher] = {
            topic: node.create_publisher(message_class(kind), topic, 10) for topic, kind in topics.items()
        }

    def subscribed(self) -> bool:
        """Whether every topic has a subscriber."""
        return all(p.get_subscription_count() > 0 for p in self._publishers.values())

    def play(self, messages: Iterable[Message], sending: Callable[[Message], None]) -> None:
        """Publish in real time. `sending` is called with each message just before it is published."""
        start: float | None = None
        for message in messages:
            due = message.time / 1e9
            start = time.monotonic() - due if start is None else start
            time.sleep(max(0.0, start + due - time.monotonic()))
            sending(message)
            self._publishers[message.topic].publish(message.data)
