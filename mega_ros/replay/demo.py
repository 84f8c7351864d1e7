"""`mega demo`: plays images to the node over DDS and records its output.

The result is a table, report.json, an overlay video and a contact sheet. The scores come from an offline replay of all
frames, because the frames that the node processes depend on the machine.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from mega_model.core.errors import InputError
from mega_model.core.topology import Topology

from ..bundle import TOPOLOGY, Bundle
from ..environment import share
from ..recovery import Recovery
from . import sources
from .drawings import write_drawings
from .live.node_process import ProcessError
from .offline import scores_of
from .report import summarise, table
from .sources import Source, SourceError


@dataclass(frozen=True)
class DemoOptions:
    """Play images to the node as a camera would, and report the result.

    By default it plays the embedded clip, which has ground truth.
    """

    image: Path | None = None
    """A photograph, played as a slow pan and zoom."""
    video: Path | None = None
    """A video file."""
    camera: int | None = None
    """Number of a camera of this machine; runs until Ctrl-C or --seconds."""
    out: Path = Path("mega_out")
    """Folder for the results."""
    seconds: float = 60.0
    """Maximum playing time."""
    fov: float = 60.0
    """Field of view of your camera over the larger image side, degrees."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""


def main(args: list[str]) -> int:
    """`mega demo`: returns the exit code."""
    options = tyro.cli(DemoOptions, args=args, prog="mega demo")
    console = Console()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        source = _source(options)
        from .live.play import play  # needs rclpy, which is slow to load, and optional for other users of this module

        bundle = Bundle.load(options.bundle)
        topology = Topology.load(bundle.folder / TOPOLOGY)
        options.out.mkdir(parents=True, exist_ok=True)
        recording, interrupted = play(source, options.bundle, options.seconds, options.out / "node.log", console)
        if not recording.sent:
            raise SourceError(f"{source.name}: no images in it")
        report = summarise(source, recording)
        if source.bag is not None:
            with console.status("scoring every frame of the clip"):
                report["truth"] = scores_of(source.bag, Recovery(bundle))
        (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        written = write_drawings(recording, topology, options.out, console)
    except (InputError, ProcessError, OSError) as error:
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


def _source(options: DemoOptions) -> Source:
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
