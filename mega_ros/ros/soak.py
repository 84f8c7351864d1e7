"""`make soak`: a node under a camera of 30 Hz with four people, for minutes. Prints a verdict; 1 if it is not good.

Good is: every image that was sent was processed, dropped, or lost, and counted as such; the memory stays; the latency
does not grow. The counts are the node's own (/diagnostics). Stamps are a thirtieth of a second apart, whenever an image
is really sent, so the node sees each that is missing as a gap.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import rclpy
import tyro
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header

from mega_model.core.errors import InputError

from . import messages
from .bench import PLACES, BenchClient, example_images
from .dds import stay_on_this_machine, use_large_messages
from .process import NodeProcess
from .transport import Losses

RATE = 30
"""Images per second."""
PATIENCE = 600.0
"""Seconds to wait for the node: it ends a hang, and a busy machine does not reach it."""
CAMERA = "front"
ENDS = "frames_processed", "frames_dropped", "frames_rejected", "frames_idle"
"""What may become of a frame that was received."""
FLAT = 16.0
"""MiB by which the memory may grow from the second quarter of the run to the last one."""
STEADY = 2.0
"""Factor by which the latency may."""


@dataclass(frozen=True)
class Soak:
    minutes: float = 10.0
    """Of images at 30 Hz."""
    bundle: str = "default"
    """'default', or the folder of a bundle with a detector."""
    profile: bool = True
    """Whether the camera has the node's profile of Fast DDS, and so room for images in shared memory."""
    best_effort: bool = False
    """Whether the camera offers best effort, not reliable."""


@dataclass
class SoakResult:
    """What was seen of a run."""

    sent: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """of the run: the node's counters that begin with frames_."""
    memory: list[float] = field(default_factory=list)
    """MiB, once a second."""
    latency: list[float] = field(default_factory=list)
    """seconds: the median of the last 10, once a second."""

    def faults(self) -> list[str]:
        """What is not good, a line for each."""
        found, ended = [], sum(self.counts[name] for name in ENDS)
        if self.sent != ended + self.counts["frames_lost"]:
            found.append(f"{self.sent} images were sent, but {ended + self.counts['frames_lost']} are accounted for")
        if self.counts["frames_rejected"]:
            found.append(f"{self.counts['frames_rejected']} good images were rejected")
        for what, values, factor, more in (
            ("memory", self.memory, 1.0, FLAT),
            ("latency", self.latency, STEADY, 0.0),
        ):
            before, after = (np.median(part) for part in _quarters(values))
            if after > factor * before + more:
                found.append(f"the {what} grew from {before:.3g} to {after:.3g}")
        return found

    def __str__(self) -> str:
        counts = ", ".join(f"{name.removeprefix('frames_')} {count}" for name, count in self.counts.items() if count)
        memory, latency = (_quarters(values) for values in (self.memory, self.latency))
        return (
            f"sent {self.sent}: {counts}; memory {np.median(memory[0]):.0f} then {np.median(memory[1]):.0f} MiB, "
            f"latency {1e3 * np.median(latency[0]):.0f} then {1e3 * np.median(latency[1]):.0f} ms"
        )


def _quarters(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The second quarter, when everything is loaded, and the last one."""
    quarter = max(1, len(values) // 4)
    return values[quarter : 2 * quarter] or values, values[-quarter:]


class ImagePublisher(BenchClient):
    """Sends the same image again and again."""

    def __init__(self, image: np.ndarray, quality: QoSProfile | int) -> None:
        super().__init__([CAMERA], quality)
        self._image = messages.image(Header(frame_id="camera"), image)
        self._first = time.time_ns()
        self.sent = 0

    def send(self) -> None:
        stamp = self._first + self.sent * 10**9 // RATE
        self._image.header.stamp.sec, self._image.header.stamp.nanosec = divmod(stamp, 10**9)
        self._cameras[CAMERA].publish(self._image)
        self.sent += 1

    def counts(self, node: NodeProcess) -> Mapping[str, int]:
        """The node's counters once it has nothing left to do. Raises InputError if that does not come."""
        end = time.monotonic() + PATIENCE
        for _ in range(20):  # what waits is older
            self.spin(0)
        while time.monotonic() < end:
            node.check()
            self._values.clear()
            while f"mega/{CAMERA}" not in self._values and time.monotonic() < end:
                self.spin(0.1)
            values = self._values.get(f"mega/{CAMERA}", {})
            counts = {name: int(value) for name, value in values.items() if name.startswith("frames_")}
            if counts and counts["frames_received"] == sum(counts[name] for name in ENDS):
                return counts
        raise InputError("the node does not come to rest")

    def wait_for_people(self, node: NodeProcess) -> None:
        """Sends an image, and again if need be, until the last one is answered: then none is under way any more."""
        end, due, pause = time.monotonic() + PATIENCE, 0.0, 1.0
        self._answered.clear()
        while CAMERA not in self._answered or self._answered[CAMERA].header.stamp != self._image.header.stamp:
            node.check()
            if time.monotonic() > end:
                raise InputError("the node does not answer")
            if time.monotonic() > due:
                self.send()
                due, pause = time.monotonic() + pause, 2 * pause  # slow machines answer late
            self.spin(0.05)


def run(
    seconds: float, image: np.ndarray, parameters: Mapping[str, object], quality: QoSProfile | int = 1
) -> SoakResult:
    """Plays `image` to a node for so long. rclpy must have started.

    parameters: further ones of the node. quality: of the images, reliable by default.
    Raises InputError if the node ends or does not answer.
    """
    node = NodeProcess({"cameras": [CAMERA], **parameters})
    camera, result = ImagePublisher(image, quality), SoakResult()
    try:
        for _ in range(Losses.MEMORY + 2):  # the node learns the camera's period
            camera.wait_for_people(node)
        before, first = camera.counts(node), camera.sent
        watched = time.monotonic()
        for _ in range(round(seconds * RATE)):
            camera.send()
            due = time.monotonic() + 1 / RATE  # never two at once, also if this process was late
            while (left := due - time.monotonic()) > 0:
                camera.spin(left)
            if time.monotonic() > watched + 1:
                watched += 1
                result.memory.append(node.use()[1] / 2**20)
                result.latency.append(float(camera.value("latency_p50_s")))
        camera.wait_for_people(node)  # what was lost at the end is a gap before this one
        after = camera.counts(node)
        result.sent = camera.sent - first
        result.counts = {name: after[name] - before[name] for name in after}
    finally:
        camera.close()
        node.stop()
    return result


def main(args: Sequence[str]) -> int:
    config = tyro.cli(Soak, args=args, prog="soak", description=__doc__)
    image = example_images(config.bundle)[PLACES]
    if config.profile:
        use_large_messages()
    stay_on_this_machine()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        quality = qos_profile_sensor_data if config.best_effort else 1
        result = run(60 * config.minutes, image, {"bundle": config.bundle}, quality)
    finally:
        rclpy.try_shutdown()
    faults = result.faults()
    print(result)
    print("\n".join(faults) or "good: every image is accounted for, memory and latency are steady")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
