"""`mega demo`: the node in its own process, images played to it over DDS, and what came back.

Ends with a table, report.json, an overlay video and a contact sheet.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
import tyro
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2
from shape_msgs.msg import Mesh

from mega_model.core.topology import Topology

from .. import draw
from ..bundle import TOPOLOGY, Bundle, BundleError
from ..environment import share, use_large_messages
from ..images import to_bgr
from ..messages import intrinsics, positions, read_cloud
from . import sources
from .player import Message, Player
from .score import Score
from .sources import Source, SourceError, stamp_of, without_stderr

READY_SECONDS = 120.0
SHEET_ROWS = 4


@dataclass(frozen=True)
class Options:
    """Play images to the node as a camera would, and show what it makes of them.

    Without an input it plays the embedded clip, which comes with ground truth.
    """

    image: Path | None = None
    """A photograph, played as a slow pan and zoom."""
    video: Path | None = None
    """A video file."""
    camera: int | None = None
    """A camera of this machine, by number; until Ctrl-C or --seconds."""
    out: Path = Path("mega_out")
    """Folder for the results."""
    seconds: float = 60.0
    """Longest time to play."""
    fov: float = 60.0
    """Field of view of your own camera over the larger image side, degrees."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""


@dataclass
class Recording:
    """What was sent and what came back, by stamp (ns)."""

    images: dict[int, CompressedImage] = field(default_factory=dict)
    infos: dict[int, CameraInfo] = field(default_factory=dict)
    sent: dict[int, float] = field(default_factory=dict)
    """time.monotonic() when the image went out."""
    arrived: dict[int, float] = field(default_factory=dict)
    clouds: dict[int, np.ndarray] = field(default_factory=dict)
    """of `messages.read_cloud`."""

    def sending(self, message: Message) -> None:
        """Takes note of a message that goes out now."""
        if message.topic == sources.INFO:
            info = deserialize_message(message.data, CameraInfo)
            self.infos[stamp_of(info)] = info
        elif message.topic == sources.COMPRESSED:
            image = deserialize_message(message.data, CompressedImage)
            self.images[stamp_of(image)] = image
            self.sent[stamp_of(image)] = time.monotonic()

    def receiving(self, message: PointCloud2) -> None:
        """Takes note of a mesh."""
        now = time.monotonic()
        self.arrived[stamp_of(message)] = now
        self.clouds[stamp_of(message)] = read_cloud(message)

    def latencies(self) -> np.ndarray:
        """Seconds from image to mesh, for every frame that has one."""
        return np.array([self.arrived[s] - self.sent[s] for s in sorted(self.arrived) if s in self.sent])


class NodeProcess:
    """`mega_ros.node` in a process of its own, with its output in a file."""

    def __init__(self, bundle: str, log: Path) -> None:
        remap = {"image": sources.IMAGE, "camera_info": sources.INFO}
        parameters = {"image_transport": "compressed", "bundle": bundle}
        command = [sys.executable, "-m", "mega_ros.node", "--ros-args"]
        command += itertools.chain(*(["-r", f"{a}:={b}"] for a, b in remap.items()))
        command += itertools.chain(*(["-p", f"{a}:={b}"] for a, b in parameters.items()))
        self.log = log
        with log.open("w") as output:
            # a session of its own: Ctrl-C reaches only this process, which then ends the node in good order
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def check(self) -> None:
        """Raises DemoError when the node has ended by itself."""
        if self._process.poll() is not None:
            raise DemoError(f"the node ended with code {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its output."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> int:
        """Ends the node and gives its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class DemoError(Exception):
    """The demo cannot go on, in one line."""


class Observer:
    """Our side of DDS: the player's publishers and the subscriptions to what the node publishes.

    Messages are received in a thread, so that their times of arrival do not depend on the player's.
    """

    def __init__(self, recording: Recording) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("mega_demo", context=self._context)
        self.player = Player(self._node, sources.TOPICS)
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


def main(args: list[str]) -> int:
    """`mega demo`: returns the exit code."""
    options = tyro.cli(Options, args=args, prog="mega demo")
    console = Console()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        source = _source(options)
        topology = Topology.load(Bundle.load(options.bundle).folder / TOPOLOGY)
        options.out.mkdir(parents=True, exist_ok=True)
        recording, interrupted = stream(source, options, console)
        if not recording.sent:
            raise DemoError(f"{source.name}: no images in it")
        report = summarise(source, recording, topology)
        (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        written = _pictures(recording, topology, options.out, console)
    except (SourceError, DemoError, BundleError, OSError) as error:
        print(f"mega demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mega demo: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print(table(report))
    for path in [options.out / "report.json", *written]:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    if not report["people_per_frame"]:
        console.print("  nobody was found: no contact sheet")
    return 130 if interrupted and not source.live else 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _source(options: Options) -> Source:
    if sum(given is not None for given in (options.image, options.video, options.camera)) > 1:
        raise SourceError("--image, --video and --camera exclude each other")
    if not 1 <= options.fov <= 170:
        raise SourceError(f"--fov {options.fov:g}: not between 1 and 170 degrees")
    fov = np.radians(options.fov)
    if options.image is not None:
        return sources.photograph(options.image, fov)
    if options.video is not None:
        return sources.video(options.video, fov)
    if options.camera is not None:
        return sources.camera(options.camera, fov)
    return sources.clip(share() / "demo" / "clip")


def stream(source: Source, options: Options, console: Console) -> tuple[Recording, bool]:
    """Plays `source` to a node that lives only for this; also tells whether the user ended it early (Ctrl-C)."""
    _keep_to_ourselves()
    recording, interrupted = Recording(), False
    node = NodeProcess(options.bundle, options.out / "node.log")
    try:
        observer = Observer(recording)
        try:
            with console.status("starting the node"):
                _wait(observer.ready, READY_SECONDS, node)
            if not observer.ready():
                raise DemoError(f"the node was not ready after {READY_SECONDS:.0f} s: {node.last_words()}")
            try:
                with console.status(f"playing {source.name}" + (", Ctrl-C ends it" if source.live else "")):
                    observer.player.play(_at_most(source.messages, options.seconds), recording.sending)
                    # frames on their way: wait for the last one, but not for those that the node has skipped
                    _wait(lambda: max(recording.sent, default=0) in recording.arrived, 5.0, node)
            except KeyboardInterrupt:
                if not recording.sent:
                    raise
                interrupted = True
        finally:
            with _undisturbed():
                observer.close()
    finally:
        with _undisturbed():
            code = node.stop()
    if code:
        raise DemoError(f"the node ended with code {code}: {node.last_words()} (all of it: {node.log})")
    return recording, interrupted


def _keep_to_ourselves() -> None:
    """A random domain on this machine only: a robot next door neither hears the demo nor disturbs it."""
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 101))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_messages()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No Ctrl-C in here: an impatient second one must not leave the node behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(condition: Callable[[], bool], seconds: float, node: NodeProcess) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        node.check()
        time.sleep(0.02)


def _at_most(messages: Iterator[Message], seconds: float) -> Iterator[Message]:
    first: int | None = None
    for message in messages:
        first = message.time if first is None else first
        if message.time - first > seconds * 1e9:
            return
        yield message


def summarise(source: Source, recording: Recording, topology: Topology) -> dict[str, Any]:
    """The report: counts, seconds, metres."""
    latencies = recording.latencies()
    report: dict[str, Any] = {
        "source": source.name,
        "sent": len(recording.sent),
        "received": len(latencies),
        "dropped": len(recording.sent) - len(latencies),
        "latency_p50": float(np.quantile(latencies, 0.5)) if len(latencies) else None,
        "latency_p95": float(np.quantile(latencies, 0.95)) if len(latencies) else None,
        "people_per_frame": float(np.mean([len(c) for c in recording.clouds.values()])) if recording.clouds else None,
    }
    if source.truth:
        score = Score(topology)
        for stamp, truth in source.truth.items():
            if truth.shape[1] != len(topology.template):
                raise DemoError(f"{source.name}: its ground truth has another body than the bundle")
            if stamp in recording.clouds:
                score.add(recording.clouds[stamp], truth, _intrinsics(recording, stamp))
        report["truth"] = score.summary()
    return report


def table(report: dict[str, Any]) -> Table:
    """The report for people to read: milliseconds and millimetres."""

    def milli(value: float | None, unit: str) -> str:
        return "-" if value is None else f"{1000 * value:.0f} {unit}"

    out = Table(title=f"mega demo: {report['source']}", show_header=False)
    out.add_column(style="bold")
    out.add_column(justify="right")
    out.add_row("frames sent", str(report["sent"]))
    out.add_row("frames received as meshes", str(report["received"]))
    out.add_row("frames dropped (newest wins)", str(report["dropped"]))
    out.add_row("latency p50, p95", f"{milli(report['latency_p50'], 'ms')}, {milli(report['latency_p95'], 'ms')}")
    people = report["people_per_frame"]
    out.add_row("people per frame", "-" if people is None else f"{people:.2f}", end_section="truth" in report)
    if truth := report.get("truth"):
        out.add_row("frames with ground truth scored", str(truth["frames"]))
        out.add_row("people to find, missed", f"{truth['wanted']}, {truth['missed']}")
        out.add_row("people found where none is", str(truth["invented"]))
        for name, words in (
            ("pve", "PVE (pelvis aligned)"),
            ("mpjpe", "MPJPE (pelvis aligned)"),
            ("pa_mpjpe", "PA-MPJPE"),
            ("position", "pelvis position in the camera frame"),
            ("sigma_visible", "mean sigma, vertices in sight"),
            ("sigma_hidden", "mean sigma, vertices out of sight"),
        ):
            out.add_row(words, milli(truth.get(name), "mm"))
    return out


def _intrinsics(recording: Recording, stamp: int) -> np.ndarray:
    return intrinsics(recording.infos[stamp])


def _frame(recording: Recording, stamp: int, shown: int | None) -> draw.Frame:
    """The image of `stamp` with the people of the frame `shown`: the same, or an earlier one if it was dropped."""
    begin = min(recording.sent)
    caption = f"{(stamp - begin) / 1e9:.2f} s"
    image, K = to_bgr(recording.images[stamp]), _intrinsics(recording, stamp)
    if shown is None:
        return draw.Frame(image, K, np.zeros((0, 0, 3)), np.zeros((0, 0)), np.zeros(0), f"{caption}, no mesh yet")
    if shown != stamp:
        caption += f", dropped: mesh of {(shown - begin) / 1e9:.2f} s"
    cloud = recording.clouds[shown]
    return draw.Frame(image, K, positions(cloud), cloud["sigma"], cloud["id"][:, 0], caption)


def _pictures(recording: Recording, topology: Topology, out: Path, console: Console) -> list[Path]:
    """Writes the overlay video and, when anybody was found, the contact sheet."""
    stamps = sorted(recording.sent)
    limit = draw.nice_limit([cloud["sigma"] for cloud in recording.clouds.values()])
    seconds = (stamps[-1] - stamps[0]) / 1e9
    written = [out / "overlay.webm"]
    shown = None
    with _video(written[0], (len(stamps) - 1) / seconds if seconds else 1.0) as write:
        for stamp in track(stamps, "drawing", console=console, transient=True):
            shown = stamp if stamp in recording.clouds else shown
            write(draw.video_frame(_frame(recording, stamp, shown), topology.faces, limit))
    populated = [s for s in stamps if len(recording.clouds.get(s, ()))]
    if populated:
        chosen = [populated[round(k)] for k in np.linspace(0, len(populated) - 1, SHEET_ROWS + 2)[1:-1]]
        sheet = draw.contact_sheet([_frame(recording, s, s) for s in dict.fromkeys(chosen)], topology.faces)
        written.append(out / "contact_sheet.png")
        cv2.imwrite(str(written[1]), sheet)
    return written


@contextmanager
def _video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A VP8 file, which browsers play and every build of OpenCV writes. Gives a function that appends a picture."""
    writer = cv2.VideoWriter()

    def write(picture: np.ndarray) -> None:
        if not writer.isOpened():
            with without_stderr():  # OpenCV's complaint about the tag of VP8 in WebM means nothing
                writer.open(str(path), cv2.VideoWriter.fourcc(*"VP80"), rate, picture.shape[1::-1])
        writer.write(picture)

    try:
        yield write
    finally:
        writer.release()
