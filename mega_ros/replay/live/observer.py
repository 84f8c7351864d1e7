"""The replay's ROS node: publishes the played messages and subscribes to the mega node's output."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2
from shape_msgs.msg import Mesh

from ..recording import Recording
from .player import Player

SETTLED = 1.0
"""Seconds after the last image after which the node has received all that it will."""


class Observer:
    """The player's publishers, and subscriptions to the mega node's output.

    A thread receives the messages, so that arrival times do not depend on the player.
    """

    def __init__(self, recording: Recording, topics: Mapping[str, str]) -> None:
        """topics: what is played, name -> type."""
        self._recording = recording
        self._context = rclpy.Context()
        # without arguments: by default they are the program's, whose names of files need not be UTF-8
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("mega_replay", context=self._context)
        self.player = Player(self._node, topics)
        self._topology = threading.Event()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(Mesh, "/mega/topology", lambda _: self._topology.set(), latched)
        self._meshes = self._node.create_subscription(PointCloud2, "/mega/mesh", recording.receiving, 50)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._reported_at = 0.0
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="observer")
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name == "mega":
                self._recording.status = {value.key: value.value for value in status.values}
                self._reported_at = time.monotonic()

    def ready(self) -> bool:
        """Whether the topology has arrived, and all publishers and subscriptions are connected."""
        return self._topology.is_set() and self.player.subscribed() and self._meshes.get_publisher_count() > 0

    def finished(self) -> bool:
        """Whether the node has said that it is done with all images that it received."""
        count = self._recording.counted
        done = sum(map(count, ("processed", "dropped", "rejected", "idle")))
        return self._reported_at > max(self._recording.sent.values(), default=0.0) + SETTLED and done >= count(
            "received"
        )

    def close(self) -> None:
        """Stop the thread first, then the objects that it used; in other orders, rclpy may fail."""
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)
