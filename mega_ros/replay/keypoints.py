"""`mega evaluate keypoints`: evaluates a bundle on annotated photographs, with the same code as at run time.

Each person is recovered twice: from the annotated box, and end to end from the box of the bundle's detector. The camera
is treated as unknown, so the default field of view is assumed. Annotated joints are compared with SMPL's joints, whose
hips lie a few centimetres inside and below the annotated ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mega_model.core.errors import InputError
from mega_model.core.files import make_folder

from ..recovery import Recovery
from .coco import read
from .photographs import PARTS, Row, evaluate, rows
from .results import put_in_place, write_json

REPORT = "keypoints_report.json"
"""Name of the file."""
TABLES = {
    "Detection, IoU 0.5": "people found wrong recall precision",
    "PCK@0.2 of the torso (constant: rest pose fitted to the box)": "scored joints pck pck_end_to_end pck_constant",
    "PCK in annotated boxes, by part": " ".join(f"pck_{part}" for part in PARTS),
    "PA-MPJPE, mm": "people_3d pa_mpjpe pa_mpjpe_end_to_end pa_mpjpe_constant",
    "Sigma against error in the image; medians in mm": (
        "spearman within_1_sigma within_2_sigma median_sigma median_error"
    ),
}
"""Caption -> names of numbers of `photographs.summary`."""
MILLIMETRES = ("pa_mpjpe", "median")


@dataclass(frozen=True)
class KeypointOptions:
    set: str
    """The annotated photographs: coco-keypoints:FILE.json (docs/evaluate/photographs.md has the format)."""
    bundle: str = "default"
    """The model: "default" or a folder made by `mega export onnx`."""
    images: Path | None = None
    """Folder of the images, by default `images` beside the file."""
    without: tuple[str, ...] = ()
    """Groups to exclude in an additional row."""
    out: Path = Path("mega_out")
    """Folder for the report."""


def table(caption: str, numbers: Mapping[str, Row]) -> Table:
    """One of `TABLES` for the screen, without rows that have no score."""
    names = TABLES[caption].split()

    def text(name: str, value: float | int | None) -> str:
        if value is None or isinstance(value, int):
            return "-" if value is None else str(value)
        return f"{1000 * value:.0f}" if name.startswith(MILLIMETRES) else f"{value:.3f}"

    out = Table(title=caption, title_justify="left", box=SIMPLE_HEAD)
    out.add_column("", no_wrap=True)
    for name in names:
        out.add_column(name.replace("pck_", "").replace("pa_mpjpe_", "").replace("_", " "), justify="right")
    for row, values in numbers.items():
        if any(isinstance(values[name], float) for name in names):
            out.add_row(row, *(text(name, values[name]) for name in names))
    return out


def main(args: list[str]) -> None:
    options = tyro.cli(KeypointOptions, args=args, prog="mega evaluate keypoints", description=__doc__)
    photographs = read(options.set, options.images)
    for group in options.without:
        if group not in (photograph.group for photograph in photographs):
            raise InputError(f"--without {group}: no image has this group")
    recovery = Recovery.load(options.bundle)
    make_folder(options.out)  # or it would be missed when all is done
    console = Console()
    results = [evaluate(recovery, p) for p in track(photographs, "photographs", console=console, transient=True)]
    detections = [d for d, _ in results if d is not None]
    numbers = rows(detections, [person for _, people in results for person in people], options.without)
    facts = {
        "bundle": recovery.bundle.name,
        "hash": recovery.bundle.hash,
        "set": options.set,
        "images": len(photographs),
        "command": f"mega evaluate keypoints {shlex.join(args)}",
    }
    with put_in_place(options.out, (REPORT,)) as fresh:
        write_json(fresh / REPORT, facts | {"rows": numbers})
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", markup=False, highlight=False, soft_wrap=True)
    for caption in TABLES:
        console.print(table(caption, numbers))
    console.print(f"report: {options.out / REPORT}", markup=False, highlight=False, soft_wrap=True)
