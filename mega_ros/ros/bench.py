"""`mega bench node`: what the node costs beside the model, its rate and its latency.

A node in its own process gets images of 1280 x 720 with 1 and 4 people, from 1 and 2 cameras. The next image of each
camera is sent when the people in the last one have come. So the rate is the highest one, and latencies have no queue.
Stages and latencies are the medians of the node's own diagnostics. Overhead is the CPU time of the whole process, less
that of its graphs, per image: both are sums over the same images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import rclpy
import tyro
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.table import Table
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from mega_model.core.errors import InputError

from ..environment import share
from ..recovery import Recovery
from . import messages
from .dds import stay_on_this_machine, use_large_messages
from .images import to_bgr
from .process import NodeProcess
from .standard import MESSAGES

WIDTH, HEIGHT = 1280, 720
PLACES = 4
"""People have room for as many side by side."""
BAR = 8.0
"""Milliseconds of CPU per image with 4 people: what the overhead should stay under."""
WARM = 3
"""Images before the measurement."""
PATIENCE = 120.0
"""Seconds to wait for an answer of the node."""
CONNECTING = 5.0
"""Seconds after which the first image is sent again, while the node may not be connected."""
STAGES = ("decode", "crop", "infer", "publish")


@dataclass(frozen=True)
class NodeBenchConfig:
    bundle: str = "default"
    """'default', or the folder of a bundle with a detector."""
    images: int = 40
    """Number of images per camera in each measurement."""


def example_images(bundle: str) -> dict[int, np.ndarray]:
    """Number of people -> uint8 [720, 1280, 3] BGR: somebody of the demo's clip, so many times."""
    recovery = Recovery.load(bundle)
    if recovery.detector is None:
        raise InputError(f"bundle: {bundle} has no detector")
    with AnyReader([share() / "demo" / "clip"], default_typestore=MESSAGES) as bag:
        connection = next(c for c in bag.connections if c.topic.endswith("compressed"))
        frame = to_bgr(bag.deserialize(next(bag.messages([connection]))[2], connection.msgtype))
    boxes, _ = recovery.detector(frame)
    x0, y0, x1, y1 = boxes[0]
    side = 0.6 * max(x1 - x0, y1 - y0)
    middle, top = (x0 + x1) / 2, (y0 + y1) / 2 - side
    left, top = round(max(middle - side / 2, 0)), round(max(top, 0))
    person = frame[top : top + round(2 * side), left : left + round(side)]
    place = cv2.resize(person, (WIDTH // PLACES, HEIGHT))
    empty = np.full_like(place, 128)
    return {people: np.concatenate([place] * people + [empty] * (PLACES - people), axis=1) for people in (1, PLACES)}


class BenchClient(Node):  # type: ignore[misc]  # rclpy's types are skipped
    """The cameras, and who listens to the node."""

    def __init__(self, cameras: list[str], quality: QoSProfile | int = 1) -> None:
        """quality: of the images, reliable by default."""
        super().__init__("mega_bench")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._cameras = {name: self.create_publisher(Image, f"{name}/image", quality) for name in cameras}
        self._answered: dict[str, PointCloud2] = {}
        self._values: dict[str, dict[str, str]] = {}
        for name in cameras:
            self.create_subscription(
                PointCloud2, f"mega/{name}/mesh", lambda mesh, name=name: self._answered.update({name: mesh}), 1
            )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._values[status.name] = {value.key: value.value for value in status.values}

    def spin(self, seconds: float) -> None:
        self._executor.spin_once(timeout_sec=seconds)

    def ask(self, image: np.ndarray, patience: float) -> list[int]:
        """Sends an image from each camera. The number of people in each, once all have come; none if they do not."""
        self._answered.clear()
        header = Header(frame_id="camera", stamp=self.get_clock().now().to_msg())
        message = messages.image(header, image)
        for publisher in self._cameras.values():
            publisher.publish(message)
        end = time.monotonic() + patience
        while len(self._answered) < len(self._cameras) and time.monotonic() < end:
            self.spin(0.05)
        complete = len(self._answered) == len(self._cameras)
        return [mesh.height for mesh in self._answered.values()] if complete else []

    def diagnostics(self) -> list[dict[str, float]]:
        """The next ones of each camera: milliseconds."""
        names = [f"mega/{camera}" for camera in self._cameras]
        self._values.clear()
        while not self._values.keys() >= {*names}:
            self.spin(0.1)
        return [{k: 1e3 * float(v) for k, v in self._values[n].items() if k.endswith("_s")} for n in names]

    def value(self, name: str) -> str:
        """A value of the first camera's last diagnostics; nan before the first ones."""
        return self._values.get(f"mega/{next(iter(self._cameras))}", {}).get(name, "nan")

    def close(self) -> None:
        self._executor.shutdown()
        self.destroy_node()


def measure(config: NodeBenchConfig, people: int, cameras: int, image: np.ndarray) -> list[str]:
    """The row of a table. Raises InputError if the node does not answer."""
    names = ["front", "rear"][:cameras]
    node = NodeProcess({"bundle": config.bundle, "cameras": names})
    peer = BenchClient(names)
    try:
        end = time.monotonic() + PATIENCE
        while not peer.ask(image, CONNECTING):
            node.check()
            if time.monotonic() > end:
                raise InputError("the node does not answer")
        for _ in range(WARM):
            peer.ask(image, PATIENCE)
        before = peer.diagnostics()
        start, (cpu_before, _) = time.monotonic(), node.use()
        found = [peer.ask(image, PATIENCE) for _ in range(config.images)]
        seconds, (cpu, memory) = time.monotonic() - start, node.use()
        if [] in found:
            raise InputError("the node lost an image")
        after = peer.diagnostics()
    finally:
        peer.close()
        node.stop()
    count = config.images * cameras
    infer = sum(last["infer_cpu_s"] - first["infer_cpu_s"] for first, last in zip(before, after))
    values = after[0]
    return [
        f"{np.mean(found):.0f} of {people}, {cameras}",
        *(f"{values[f'{stage}_p50_s']:.1f}" for stage in STAGES),
        f"{(1e3 * (cpu - cpu_before) - infer) / count:.1f}",
        f"{count / seconds:.1f}",
        f"{values['latency_p50_s']:.0f} / {values['latency_p95_s']:.0f}",
        f"{memory / 2**20:.0f}",
    ]


def main(args: Sequence[str]) -> int:
    config = tyro.cli(NodeBenchConfig, args=args, prog="mega bench node", description=__doc__)
    if config.images < 1:
        raise InputError("images: must be at least 1")
    shown = example_images(config.bundle)
    use_large_messages()
    stay_on_this_machine()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    title = f"{WIDTH} x {HEIGHT}, {len(os.sched_getaffinity(0))} cores, milliseconds per image"
    table = Table(
        "people, cameras", *STAGES, "overhead, CPU", "images per second", "latency p50 / p95", "MiB", title=title
    )
    try:
        for people in shown:
            for cameras in (1, 2):
                table.add_row(*measure(config, people, cameras, shown[people]))
    finally:
        rclpy.try_shutdown()
    Console().print(table)
    print(f"the bar: everything but the graphs of the model, {PLACES} people: under {BAR:g} ms of CPU per image")
    return 0
