"""`mega replay`: bags, videos and photographs through the product, offline; what it finds, and how good that is."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape

from mega_model.core.errors import InputError

from ..engines import Provider
from ..recovery import Recovery
from ..stream import StreamSettings
from . import frames
from .bags import is_bag
from .meshes import Format, Grouping
from .offline import NAMES, Outputs, Run, write
from .reference import WITHIN, open_reference
from .report import FORMAT, offline_table


@dataclass(frozen=True)
class ReplayOptions:
    """Every frame of a bag, a video or images through the model, in the order of their stamps; no ROS is needed.

    Writes report.html, report.json, frames.csv and meshes.npz. The same input gives the same files, byte for byte, on
    any machine of a kind.
    """

    input: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Bags (folders, .mcap, .db3, .bag), videos, images, jsons in COCO's format, folders of any of these, or patterns
    in quotation marks."""
    out: Path = Path("mega_out/replay")
    """Folder for the results; with several inputs they get folders in it."""
    reference: str | None = None
    """Ground truth: a topic of the bag, another bag, an .npz of vertices or 3D joints (such as the meshes.npz of a
    replay), or a .json of 2D keypoints in COCO's format. By default /mega/ground_truth, or the replayed json."""
    within: float = WITHIN
    """Largest difference of the stamps of a frame and its ground truth, seconds."""
    images: Path | None = None
    """Folder of a json's images, by default `images` beside it, else beside it."""
    export: Format | None = None
    """Also write the meshes, into OUT/meshes; all but npz need trimesh."""
    export_by: Grouping = "frame"
    """What --export writes: a file for each frame, or a file or folder for each person (track)."""
    video: bool = False
    """Also write video.webm: the meshes over the images, and coloured by sigma."""
    write: Path | None = None
    """Also write a bag with /mega/mesh and /mega/joints, as the node publishes them."""
    image_topic: str | None = None
    """The bag's images, where it has several."""
    camera_info_topic: str | None = None
    """The bag's intrinsics; by default camera_info beside the images."""
    rectified: Literal["auto", "true", "false"] = "auto"
    """Whether the bag's images are rectified; auto: by the name of their topic."""
    rotate: Literal[0, 90, 180, 270] = 0
    """Degrees, clockwise, by which the images must be turned so that people are upright."""
    fov: float = 60.0
    """Field of view over the larger image side where nobody knows the intrinsics, degrees."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""
    provider: Provider = "auto"
    """What runs the model."""
    boxes: Literal["detector", "full_frame"] = "detector"
    """Where people are: what the bundle's detector finds, or one who fills the image."""
    seed: int = 0
    """Of the samples' noise, for a bundle that needs samples."""
    smoothing: float = 0.0
    """Of people over time, 0 to 1: 0 is off, 1 takes sigma as the noise of the measurements."""


def main(args: list[str]) -> int:
    """`mega replay`: returns the exit code; 1 if one of the inputs could not be replayed."""
    options = tyro.cli(ReplayOptions, args=args, prog="mega replay")
    if not 1 <= options.fov <= 170:
        raise InputError(f"--fov {options.fov:g}: not between 1 and 170 degrees")
    if not options.input:
        raise InputError("INPUT: name a bag, a video, an image or a folder of these")
    if options.export not in (None, "npz"):
        import trimesh  # noqa: F401  if it is missing, say so before any work is done
    inputs = _inputs(options.input)
    if options.write and len(inputs) > 1:
        raise InputError(f"--write is for one input, these are {len(inputs)}")
    if options.write and options.write.exists() and not is_bag(options.write):
        raise InputError(f"--write {options.write}: there is something that is no bag; choose another name")
    if not 0 <= options.smoothing <= 1:
        raise InputError(f"--smoothing {options.smoothing:g}: not between 0 and 1")
    if not options.within >= 0:
        raise InputError(f"--within {options.within:g}: must not be negative")
    console = Console()
    opened, code = [], 0
    for name, paths in inputs:  # all of them, before the model is loaded
        try:
            opened.append((name, paths[0], _open(options, paths)))
        except InputError as error:
            print(f"mega replay: {error}", file=sys.stderr)
            code = 1
    if not opened:
        return code
    recovery = Recovery.load(options.bundle, provider=options.provider)
    for name, path, source in opened:
        out = options.out / name if len(inputs) > 1 else options.out
        try:
            _replay(options, recovery, source, path, out, ["mega", "replay", *args], console)
        except InputError as error:
            print(f"mega replay: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("mega replay: interrupted", file=sys.stderr)
            return 130
    return code


def _open(options: ReplayOptions, paths: list[Path]) -> frames.Input:
    # annotations refer to the stored pixels
    turn = options.reference is None or not options.reference.endswith(".json")
    topics = options.image_topic, options.camera_info_topic
    return frames.open_input(paths, *topics, options.rectified, options.images, turn=turn)


def _replay(
    options: ReplayOptions,
    recovery: Recovery,
    source: frames.Input,
    path: Path,
    out: Path,
    command: list[str],
    console: Console,
) -> None:
    """One input, whose first file is `path`: its results into `out`, and its table onto the console."""
    fov = float(np.radians(options.fov))
    settings = StreamSettings(
        boxes=options.boxes, seed=options.seed, fov=fov, rotate=options.rotate, smoothing=options.smoothing
    )
    reference = open_reference(options.reference, path, recovery.topology, options.within, options.images)
    run = Run(recovery, settings, reference)
    report: dict[str, Any] = {"format": FORMAT, "input": source.name}

    def finished() -> dict[str, Any]:
        report.update(run.results(), provenance=_provenance(run, source, command))
        return report

    outputs = Outputs(options.export, options.export_by, options.video, options.write)
    with console.status(escape(source.name)) as status:
        run.watch = lambda done: status.update(f"{escape(source.name)}: frame {done} of {source.count or '?'}")
        write(run, source, out, outputs, finished)
    console.print(offline_table(report))
    written = [out / name for name in NAMES if (out / name).exists()]
    for path in [*written, *([options.write] if options.write else [])]:
        console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)


def _provenance(run: Run, source: frames.Input, command: list[str]) -> dict[str, Any]:
    """From what, and by what, the numbers were made."""
    bundle = run.recovery.bundle
    packages = ("mega_ros", "numpy", "onnxruntime", "opencv-python-headless", "rosbags", "scipy")
    return {
        "command": shlex.join(command),
        "bundle": {"name": bundle.name, "hash": bundle.hash},
        "provider": run.recovery.backend,
        "settings": {name: getattr(run.settings, name) for name in ("boxes", "seed", "fov", "rotate", "smoothing")},
        "inputs": frames.digests(source.files),
        "topics": source.topics,
        "reference": frames.digests(run.reference.files) if run.reference else [],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # e.g. OpenCV of the system's packages
        return "unknown"


def _inputs(words: tuple[str, ...]) -> list[tuple[str, list[Path]]]:
    """Name and files of each input. Photographs that are given together are one input."""
    paths = [path for word in words for path in _matching(word)]
    images = [path for path in paths if frames.is_image_file(path)]
    groups = [[path] for path in paths if path not in images]
    if images:
        groups.insert(0, images)
    named: dict[str, list[Path]] = {}
    for group in groups:
        name = group[0].name if len(group) == 1 else "images"
        while name in named:
            name += "_"
        named[name] = group
    return list(named.items())


def _matching(word: str) -> list[Path]:
    """A path or a pattern -> the inputs there: a folder of bags and videos is as many."""
    path = Path(word)
    found = [path] if path.exists() else [Path(match) for match in sorted(glob(word))]
    if not found:
        raise InputError(f"{word}: there is no such file or folder")
    return [inner for outer in found for inner in frames.inputs_in(outer)]
