"""A recording of a replay: images sent to the node, and meshes received."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mega_model.core.cameras import Camera

from ..ros.images import to_bgr
from ..ros.read import read_cloud, read_stamp
from .bags import Message
from .sources import COMPRESSED, INFO


@dataclass
class Recording:
    """Sent and received messages by stamp (ns)."""

    images: dict[int, Any] = field(default_factory=dict)
    """CompressedImage"""
    infos: dict[int, Any] = field(default_factory=dict)
    """CameraInfo"""
    sent: dict[int, float] = field(default_factory=dict)
    """time.monotonic() when the image was sent."""
    arrived: dict[int, float] = field(default_factory=dict)
    clouds: dict[int, np.ndarray] = field(default_factory=dict)
    """of `read_cloud`."""

    def sending(self, message: Message) -> None:
        """Record a message that is being sent."""
        if message.topic == INFO:
            info = message.read()
            self.infos[read_stamp(info)] = info
        elif message.topic == COMPRESSED:
            image = message.read()
            self.images[read_stamp(image)] = image
            self.sent[read_stamp(image)] = time.monotonic()

    def receiving(self, message: Any) -> None:
        """Record a received mesh, a PointCloud2 of rclpy or of rosbags."""
        now = time.monotonic()
        self.arrived[read_stamp(message)] = now
        self.clouds[read_stamp(message)] = read_cloud(message)

    def image(self, stamp: int) -> np.ndarray:
        """uint8 [H, W, 3] BGR."""
        return to_bgr(self.images[stamp])

    def camera(self, stamp: int) -> Camera:
        """Of the image with this stamp. What is played has no distortion."""
        return Camera(np.asarray(self.infos[stamp].k).reshape(3, 3))

    def latencies(self) -> np.ndarray:
        """Seconds from image to mesh, for every frame that has one."""
        return np.array([self.arrived[s] - self.sent[s] for s in sorted(self.arrived) if s in self.sent])
