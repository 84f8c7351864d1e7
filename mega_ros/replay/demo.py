"""`mega demo`: plays images to the node over DDS, as a camera would, and draws what it answers.

The clip has ground truth: all its frames are scored by an offline replay, because the frames that the node takes depend
on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from mega_model.core.errors import InputError
from mega_model.core.files import make_folder
from mega_model.core.settings import Positive, parse
from mega_model.core.topology import Topology

from ..bundle import TOPOLOGY, Bundle
from ..environment import share
from ..recovery import Recovery
from . import sources
from .drawings import CONTACT_SHEET, OVERLAY, write_drawings
from .frames import Recorded
from .offline import scores_of
from .report import demo_table, summarise, what_is_normal
from .results import put_in_place, write_json
from .sources import Degrees, Source

NAMES = ("report.json", OVERLAY, CONTACT_SHEET)
"""What it may write into its folder, beside the node's log."""


@dataclass(frozen=True)
class DemoOptions:
    """Play images to the node as a camera would, and report the result.

    By default it plays the embedded clip, which has ground truth.
    """

    image: Path | None = None
    """A photograph, played as a slow pan and zoom."""
    video: Path | None = None
    """A video file."""
    camera: str | None = None
    """A camera: its number on this machine, its device (/dev/video0) or the address of its stream (rtsp://..., http://...);
    runs until Ctrl-C or --seconds."""
    out: Path = Path("mega_out")
    """Folder for the results."""
    seconds: Positive = 60.0
    """Maximum playing time."""
    fov: Degrees = 60.0
    """Field of view of your camera over the larger image side, degrees."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""


def main(args: list[str]) -> int:
    """`mega demo`: returns the exit code."""
    options = parse(DemoOptions, args)
    console = Console()
    given = [value for value in (options.image, options.video, options.camera) if value is not None]
    if len(given) > 1:
        raise InputError("--image, --video and --camera exclude each other")
    clip = None if given else share() / "demo" / "clip"
    source = Recorded(clip).played() if clip else _source(options)
    bundle = Bundle.load(options.bundle)
    from .live.play import play  # needs rclpy, which is slow to load, and optional for other users of this module

    make_folder(options.out)
    recording, interrupted = play(
        source,
        {"bundle": options.bundle, "tiles": options.image is not None},
        options.out / "node.log",
        console,
        seconds=options.seconds,
        keep_images=True,
    )
    if not recording.sent:
        raise InputError(f"{source.name}: no images in it")
    report = {"source": source.name, **summarise(recording)}
    if clip:
        report["truth"] = scores_of(clip, Recovery(bundle), console)
    with put_in_place(options.out, NAMES) as fresh:
        write_json(fresh / "report.json", report)
        write_drawings(recording, Topology.load(bundle.folder / TOPOLOGY), fresh, console)
    console.print(demo_table(report))
    console.print(what_is_normal(report))
    for path in (options.out / name for name in NAMES):
        if path.exists():
            console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
    if not report["people_per_frame"]:
        console.print("  nobody was found: no contact sheet")
    return 130 if interrupted and not source.live else 0


def _source(options: DemoOptions) -> Source:
    """What the user has given."""
    fov = np.radians(options.fov)
    if options.image is not None:
        return sources.photograph(options.image, fov)
    if options.video is not None:
        return sources.video(options.video, fov)
    return sources.camera(options.camera or "0", fov)
