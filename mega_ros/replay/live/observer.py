"""Our side of DDS: publishers of what is played, subscriptions to what the node publishes."""

from __future__ import annotations

import threading

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import PointCloud2
from shape_msgs.msg import Mesh

from ..recording import Recording
from ..sources import TOPICS
from .player import Player


class Observer:
    """The player's publishers, and subscriptions to what the node publishes.

    Messages are received in a thread, so that their times of arrival do not depend on the player's.
    """

    def __init__(self, recording: Recording) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("mega_demo", context=self._context)
        self.player = Player(self._node, TOPICS)
        self._topology = threading.Event()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(Mesh, "/mega/topology", lambda _: self._topology.set(), latched)
        self._meshes = self._node.create_subscription(PointCloud2, "/mega/mesh", recording.receiving, 50)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="observer")
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def ready(self) -> bool:
        """The node has published its topology, listens to our topics, and we are connected to its meshes."""
        return self._topology.is_set() and self.player.subscribed() and self._meshes.get_publisher_count() > 0

    def close(self) -> None:
        """The order in which rclpy always ends cleanly: first the thread, then what it used."""
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)
