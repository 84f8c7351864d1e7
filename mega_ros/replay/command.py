"""`mega replay`: bags, videos and photographs through the product, offline; what it finds, and how good that is."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from msgspec import Meta
from rich.console import Console

from mega_model.core.commands import must_have
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder
from mega_model.core.settings import Count, Whole, parse

from ..engines import Provider
from ..recovery import FOV_DEFAULT, Recovery
from ..ros.signals import ended_as_by_ctrl_c
from ..samples import MOST
from ..stream import StreamSettings
from . import frames, many
from .joined import joined
from .measures import Row
from .meshes import Format, Grouping
from .offline import NAMES, OutputOptions, Run, agreement, write
from .progress import progress
from .recording import Recording
from .reference import WITHIN, open_reference
from .report import FORMAT, offline_table, summarise, tables_of_inputs
from .results import is_of_replay, must_be_of_replay, put_in_place, write_csv, write_json
from .sources import Degrees

ALL = "all inputs"
"""Name of the row with the numbers of all frames."""
TABLES = ("inputs.csv", "report.json")
"""What is written for many inputs, beside their folders."""
SETTINGS = ("boxes", "tiles", "samples", "seed", "fov", "rotate", "smoothing")
"""Of the stream: in the report, and parameters of the node."""


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
    """Ground truth: a topic of the bag, another bag, an .npz of vertices (such as the meshes.npz of a replay), of 3D
    joints or of parameters of SMPL or Anny, or a .json of 2D keypoints in COCO's format. By default
    /mega/ground_truth, or the replayed json."""
    within: Annotated[float, Meta(ge=0, le=1e10)] = WITHIN
    """Largest difference of the stamps of a frame and its ground truth, seconds."""
    images: Path | None = None
    """Folder of a json's images, by default `images` beside it, else beside it."""
    export: Format | None = None
    """Also write the meshes, into OUT/meshes; all but npz need trimesh."""
    export_by: Grouping = "frame"
    """What --export writes: a file for each frame, or a file or folder for each person (track)."""
    parquet: bool = False
    """Also write frames.csv as frames.parquet, with the scores of each person (needs the extra `parquet`)."""
    video: bool = False
    """Also write video.webm: the meshes over the images, and coloured by sigma."""
    write: Path | None = None
    """Also write a bag with /mega/mesh, /mega/joints, /mega/markers and /mega/overlay/compressed, as the node publishes
    them, for RViz and Foxglove."""
    live: bool = False
    """Also play the bag to the node, in real time over DDS and with /clock (needs ROS): latency, drops, losses, CPU,
    and whether its meshes are those of the offline run."""
    rate: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    """How much faster than recorded --live plays."""
    domain: Annotated[int, Meta(ge=0, le=232)] | None = None
    """ROS domain of --live, for example to watch it in RViz; by default a random one on this machine only."""
    workers: Count = 1
    """Processes that share the work: inputs, and the frames of a large one. Results do not depend on their number."""
    engine: many.Engine = "local"
    """Who works: --workers on this machine, or Ray, on all CPUs of its cluster (needs the extra `cluster`)."""
    image_topic: str | None = None
    """The bag's images, where it has several."""
    camera_info_topic: str | None = None
    """The bag's intrinsics; by default camera_info beside the images, else one with their frame_id; none: --fov."""
    rectified: Literal["auto", "true", "false"] = "auto"
    """Whether the bag's images are rectified; auto: by the name of their topic."""
    rotate: Literal[0, 90, 180, 270] = 0
    """Degrees, clockwise, by which the images must be turned so that people are upright."""
    fov: Degrees | None = None
    """Field of view over the larger image side, degrees: in place of camera_info. Without either, 60 are assumed."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""
    provider: Provider = "auto"
    """What runs the model."""
    boxes: Literal["detector", "full_frame"] = "detector"
    """Where people are: what the bundle's detector finds, or one who fills the image."""
    tiles: Literal["auto", "true", "false"] = "auto"
    """Whether the detector also searches four overlapping parts of each image, for smaller people, in five runs; auto:
    in images, not in bags and videos."""
    samples: Annotated[int, Meta(ge=0, le=MOST)] | None = None
    """Q meshes that are drawn for each person beside the published one: they go into meshes.npz, and the error of the
    best of them into the report. Sigma of a bundle without an error head comes from so many."""
    seed: Whole = 0
    """Of the samples' noise."""
    smoothing: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Of people over time, 0 to 1: 0 is off, 1 takes sigma as the noise of the measurements."""


def main(args: list[str]) -> int:
    """`mega replay`: returns the exit code; 1 if one of the inputs could not be replayed."""
    options = parse(ReplayOptions, args)
    if options.fov is not None and options.camera_info_topic not in (None, frames.WITHOUT):
        raise InputError("--fov stands in place of camera_info, so --camera-info-topic cannot be given with it")
    if not options.input:
        raise InputError("INPUT: name a bag, a video, an image or a folder of these")
    inputs = _inputs(options.input)
    for option, given in (("--write", options.write), ("--live", options.live)):
        if given and len(inputs) > 1:
            raise InputError(f"{option} is for one input, these are {len(inputs)}")
    if options.write and options.write.exists() and not is_of_replay(options.write):
        raise InputError(f"--write {options.write}: there is something that no replay has written; choose another name")
    if options.engine == "ray" and options.workers != 1:
        raise InputError("--workers is for --engine local; Ray takes all CPUs of its cluster")
    mesh_file = options.export not in (None, "npz")
    for needed, package in ((mesh_file, "trimesh"), (options.parquet, "pyarrow"), (options.engine == "ray", "ray")):
        if needed:
            must_have(package)  # else it would be missed when most is done
    command = shlex.join(["mega", "replay", *_without_workers(args)])
    console = Console()
    with ended_as_by_ctrl_c(), many.open_pool(options.engine, options.workers) as pool:
        if len(inputs) == 1:
            ((name, paths),) = inputs
            return _one(Job(0, name, paths, options, command, options.out), console, pool)
        return _many(options, inputs, command, console, pool)


def _without_workers(args: list[str]) -> list[str]:
    """The command as reports have it: they do not depend on who computes them."""
    out, skip = [], False
    for word in args:
        name, given, _ = word.partition("=")
        if not skip and name not in ("--workers", "--engine"):
            out.append(word)
        skip = name in ("--workers", "--engine") and not given
    return out


@dataclass(frozen=True)
class Job:
    """An input, for any process."""

    number: int
    name: str
    paths: list[Path]
    options: ReplayOptions
    command: str
    out: Path
    """Folder for its results."""
    folder: Path = Path()
    """What paths are relative to."""
    recovery: Recovery | None = None
    """If there is none, it is loaded when the input is open."""


def _one(job: Job, console: Console, pool: many.Pool) -> int:
    """Replays the only input, and prints its table."""
    report = _replay(job, console, pool)
    console.print(offline_table(report))
    written = [job.out / name for name in NAMES if (job.out / name).exists()]
    for path in [*written, *([job.options.write] if job.options.write else [])]:
        console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
    return 0


def work(job: Job) -> Row:
    """Replays an input, and returns its row in the table of inputs."""
    os.chdir(job.folder)
    return _row(job, Console(quiet=True), many.HERE)


def _row(job: Job, console: Console, pool: many.Pool) -> Row:
    try:
        report = _replay(job, console, pool)
    except InputError as error:
        return {"input": job.name, "problem": str(error)}
    return _numbers(report) | {"input": job.name}


def _numbers(report: dict[str, Any]) -> Row:
    """Of a report, as inputs.csv has them."""
    scores = {"scored" if name == "frames" else name: value for name, value in report.get("scores", {}).items()}
    return {"input": report["input"], "frames": report["frames"], "people": report["people"], **scores}


def _many(
    options: ReplayOptions, inputs: list[tuple[str, list[Path]]], command: str, console: Console, pool: many.Pool
) -> int:
    """Replays all inputs, a folder each; one that cannot be read is a row with its reason. Writes inputs.csv, and
    report.json of all frames.

    One that is more than a worker's share of all is divided between the workers, the others are given to one each.
    """
    recovery = Recovery.load(options.bundle, provider=options.provider)  # a wrong one is one error, not many rows
    jobs = [
        Job(k, name, paths, options, command, options.out / name, Path.cwd(), recovery)
        for k, (name, paths) in enumerate(inputs)
    ]
    sizes = [sum(map(_bytes, job.paths)) for job in jobs]
    large = [job for job, size in zip(jobs, sizes) if size * pool.size > sum(sizes)]
    rows: dict[int, Row] = {}

    def add(job: Job, row: Row | None) -> None:
        rows[job.number] = row or {"input": job.name, "problem": f"its worker died {many.ATTEMPTS} times"}
        if "problem" in rows[job.number]:
            print(f"mega replay: {rows[job.number]['problem']}", file=sys.stderr)

    start = time.monotonic()
    for job in large:
        add(job, _row(job, console, pool))
    with progress(console) as bar:
        task = bar.add_task("inputs", total=len(jobs), completed=len(large))
        small = [(job, job) for job in jobs if job not in large]
        for job, row in many.in_order(pool, work, small, prefetch=len(small) * (pool.size > 1)):
            add(job, row)
            bar.advance(task)
    table = [rows[number] for number in sorted(rows)]
    reports = {
        row["input"]: json.loads((options.out / row["input"] / "report.json").read_text())
        for row in table
        if "problem" not in row
    }
    with put_in_place(options.out, TABLES) as fresh:
        if reports:
            together = joined(reports)
            table.append(_numbers(together) | {"input": ALL})
            write_json(fresh / "report.json", together)
        write_csv(fresh / "inputs.csv", table)
    console.print(*tables_of_inputs(table))
    console.print(
        f"  {len(inputs)} inputs in {time.monotonic() - start:.1f} s: {options.out / 'inputs.csv'}", markup=False
    )
    return int(any("problem" in row for row in table))


def _bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _replay(job: Job, console: Console, pool: many.Pool) -> dict[str, Any]:
    """One input: writes its results, and returns its report."""
    options, paths = job.options, job.paths
    must_be_of_replay(job.out, NAMES)
    # annotations refer to the stored pixels
    turn = options.reference is None or not options.reference.endswith(".json")
    topics = options.image_topic, options.camera_info_topic if options.fov is None else frames.WITHOUT
    source = frames.open_input(paths, *topics, options.rectified, options.images, turn=turn)
    recovery = job.recovery or Recovery.load(options.bundle, provider=options.provider)
    fov = float(FOV_DEFAULT if options.fov is None else np.radians(options.fov))
    settings = StreamSettings(
        boxes=options.boxes,
        tiles=options.tiles == "true" or (options.tiles == "auto" and isinstance(source, frames.ImageFiles)),
        samples=options.samples,
        keep_samples=options.samples is not None,
        seed=options.seed,
        fov=fov,
        rotate=options.rotate,
        smoothing=options.smoothing,
    )
    reference = open_reference(options.reference, paths[0], recovery.topology, options.within, options.images)
    run = Run(recovery, settings, reference)
    report: dict[str, Any] = {"format": FORMAT, "input": source.name}
    if options.live:
        recording = _play(options, source, settings, job.out, console)
        same = agreement(source, recovery, settings, recording.clouds)
        report["live"] = {**summarise(recording), "agreement": same}

    def finished() -> dict[str, Any]:
        report.update(run.results(), provenance=_provenance(run, source, job.command))
        return report

    outputs = OutputOptions(options.export, options.export_by, options.parquet, options.video, options.write)
    with progress(console) as bar:
        task = bar.add_task(source.name, total=source.count)
        run.watch = lambda done: bar.update(task, completed=done)
        write(run, source, job.out, outputs, finished, pool)
    return report


def _play(
    options: ReplayOptions, source: frames.Input, settings: StreamSettings, out: Path, console: Console
) -> Recording:
    """What the node answers to a bag, with the same settings. Its output goes to node.log."""
    if not isinstance(source, frames.Recorded):
        raise InputError(f"{source.name}: --live plays bags; mega demo plays images, videos and cameras")
    from .live.play import play  # needs rclpy, which the rest does not

    parameters = {name: getattr(settings, name) for name in SETTINGS} | {
        "bundle": options.bundle,
        "provider": options.provider,
        "rectified": options.rectified,
        "samples": -1 if settings.samples is None else settings.samples,
    }
    make_folder(out)
    recording, interrupted = play(
        source.played(), parameters, out / "node.log", console, rate=options.rate, domain=options.domain
    )
    if interrupted:
        raise KeyboardInterrupt
    return recording


def _provenance(run: Run, source: frames.Input, command: str) -> dict[str, Any]:
    """From what, and by what, the numbers were made."""
    bundle = run.recovery.bundle
    packages = ("mega_ros", "numpy", "onnxruntime", "opencv-python-headless", "rosbags", "scipy")
    return {
        "command": command,
        "bundle": {"name": bundle.name, "hash": bundle.hash, "coverage": bundle.calibration.coverage},
        "provider": run.recovery.backend,
        "settings": {name: getattr(run.settings, name) for name in SETTINGS},
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
        while name in named or name in (ALL, *TABLES):
            name += "_"
        named[name] = group
    return list(named.items())


def _matching(word: str) -> list[Path]:
    """A path or a pattern -> the inputs there: a folder of bags and videos is as many."""
    path = Path(word)
    if path.name in ("", ".."):  # results are called as their input
        path = Path(os.path.abspath(path))
    found = [path] if path.exists() else [Path(match) for match in sorted(glob(word))]
    if not found:
        raise InputError(f"{word}: there is no such file or folder")
    return [inner for outer in found for inner in frames.inputs_in(outer)]
