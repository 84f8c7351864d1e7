"""A recording of a live replay: images sent to the node, and meshes received."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mega_model.core.cameras import Camera

from ..ros.images import to_bgr
from ..ros.read import read_cloud, read_stamp
from .bags import CAMERA_INFO, Message

OTHER_CLOCK = 3600.0
"""Seconds: an image that was recorded so long after its stamp, or before it, has one of a simulation's clock, or of
a camera's that counts from its start."""


@dataclass
class Recording:
    """Sent and received messages by stamp (ns)."""

    rate: float = 1.0
    """How much faster than recorded the messages were sent."""
    keep_images: bool = True
    """Whether the messages are kept, for drawings."""
    images: dict[int, Any] = field(default_factory=dict)
    """Image or CompressedImage"""
    infos: dict[int, Any] = field(default_factory=dict)
    """CameraInfo"""
    sent: dict[int, float] = field(default_factory=dict)
    """time.monotonic() when the image was sent."""
    due: dict[int, int] = field(default_factory=dict)
    """The recording's time when the image was sent, ns."""
    arrived: dict[int, float] = field(default_factory=dict)
    clouds: dict[int, np.ndarray] = field(default_factory=dict)
    """of `read_cloud`."""
    status: dict[str, str] = field(default_factory=dict)
    """The node's last diagnostics."""
    cpu: float = 0.0
    """Seconds of CPU that the node took per second."""
    memory: int = 0
    """Bytes that the node had at the end."""

    def sending(self, message: Message) -> None:
        """Record a message that is being sent."""
        stamp, of_camera = message.stamp, message.type == CAMERA_INFO
        if self.keep_images:
            (self.infos if of_camera else self.images)[stamp] = message.read()
        if of_camera:
            return
        self.due[stamp] = message.time
        self.sent[stamp] = time.monotonic()

    def receiving(self, message: Any) -> None:
        """Record a received mesh, a PointCloud2 of rclpy or of rosbags."""
        now = time.monotonic()
        self.arrived[read_stamp(message)] = now
        self.clouds[read_stamp(message)] = read_cloud(message)

    def counted(self, what: str) -> int:
        """Frames that the node received, processed, dropped, rejected, or left alone (idle)."""
        return int(self.status.get(f"frames_{what}", 0))

    def image(self, stamp: int) -> np.ndarray:
        """uint8 [H, W, 3] BGR."""
        return to_bgr(self.images[stamp])

    def camera(self, stamp: int) -> Camera:
        """Of the image with this stamp. What is played has no distortion."""
        return Camera(np.asarray(self.infos[stamp].k).reshape(3, 3))

    def latencies(self) -> np.ndarray:
        """Seconds from image to mesh, for every frame that has one."""
        return np.array([self.arrived[s] - self.sent[s] for s in self._answered()])

    def latencies_from_stamp(self) -> np.ndarray:
        """The same from the image's stamp: with the time until it was recorded. Seconds on the recording's clock.

        Empty where the stamps are of another clock, see `OTHER_CLOCK`.
        """
        ages = np.array([(self.due[s] - s) / 1e9 for s in self._answered()])
        return ages[:0] if (np.abs(ages) > OTHER_CLOCK).any() else ages + self.rate * self.latencies()

    def _answered(self) -> list[int]:
        return sorted(stamp for stamp in self.arrived if stamp in self.sent)
