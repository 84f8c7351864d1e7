"""report.html: one page without other files, with the numbers of a replay, their plots, and its worst frames."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import jinja2
import leather
import numpy as np

from . import sheets
from .bootstrap import LEVEL
from .measures import FACTOR, MEASURES, Row, shown
from .report import live_rows

KEPT = 6
"""Worst frames that are shown."""
LISTED = 20
"""Frames that cannot be used whose reasons are shown."""
THUMBNAIL = 420
"""Pixels: the larger side of an image."""
ORDER = ("pve", "mpjpe", "normalised_error", "sigma")
"""By the first of these that a recording has, frames are the worst."""
CHARTS = {
    "error, mm": ("pve", "mpjpe", "pa_mpjpe"),
    "pelvis position, mm": ("position",),
    "acceleration error, m/s²": ("acceleration",),
    "2D, %": ("pck", "normalised_error"),
    "mean sigma, mm": ("sigma",),
    "people": ("people", "true_people", "false_negatives", "false_positives"),
}
"""Caption -> what is plotted over time."""


@dataclass
class Worst:
    """The `KEPT` worst of the frames that are added. Only these are held, and small."""

    _kept: list[tuple[tuple[int, float], Row, sheets.PageFrame]] = field(default_factory=list)
    """how bad, row and frame; the worst first."""

    def add(self, row: Row, frame: sheets.PageFrame) -> None:
        """A frame with its row of the report."""
        rank = next(((len(ORDER) - k, row[name]) for k, name in enumerate(ORDER) if name in row), None)
        if rank is None or (len(self._kept) == KEPT and rank <= self._kept[-1][0]):
            return
        height, width = frame.image.shape[:2]
        scale = THUMBNAIL / max(height, width)
        size = max(sheets.SMALLEST[0], round(width * scale)), max(sheets.SMALLEST[1], round(height * scale))
        image, moved = sheets.fit(frame.image, size)
        small = replace(frame, image=image, camera=frame.camera.moved(moved))
        self._kept.append((rank, row, small))
        self._kept.sort(key=lambda kept: kept[0], reverse=True)
        del self._kept[KEPT:]

    def drawn(self, faces: np.ndarray) -> list[tuple[Row, str]]:
        """Rows, and for each the mesh over the image and the mesh by sigma, as a JPEG in the form of an address."""
        out = []
        limit = sheets.nice_limit([frame.sigma for _, _, frame in self._kept])
        for _, row, frame in self._kept:
            size = frame.image.shape[1], frame.image.shape[0]
            _, over, by_sigma = sheets.views(frame, faces, size, limit)
            both = np.concatenate([over, by_sigma], axis=1)
            both = np.concatenate([both, sheets.legend(both.shape[1], limit)])
            data = cv2.imencode(".jpg", both, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
            out.append((row, f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"))
        return out


def write_page(path: Path, report: dict[str, Any], worst: Sequence[tuple[Row, str]]) -> None:
    """`report` is what report.json holds, `worst` what `Worst.drawn` gives."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"measures": MEASURES, "shown": shown, "level": f"{LEVEL:.0%}"}
    problems = [row for row in report["table"] if "problem" in row]
    page = environment.get_template("report.html").render(
        report=report,
        worst=worst,
        ordered_by=next((name for name in ORDER if any(name in row for row, _ in worst)), ""),
        plots=_plots(report),
        problems=problems[:LISTED],
        person_measures=[name for name in MEASURES if any(name in person for person in report.get("persons", []))],
        live=live_rows(report["live"]) if "live" in report else {},
        used={
            name
            for row in chain([report.get("scores", {})], *(report.get(n, []) for n in ("persons", "tracks", "table")))
            for name in row
        },
        provenance=json.dumps(report["provenance"], indent=1),
    )
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def _plots(report: dict[str, Any]) -> dict[str, str]:
    """Caption -> an SVG image."""
    rows = report["table"]
    seconds = [(row["stamp"] - rows[0]["stamp"]) / 1e9 for row in rows]
    out = {}
    for caption, names in CHARTS.items():
        known = [name for name in names if any(name in row for row in rows)]
        if known and len(rows) > 1:
            out[f"{caption} over time"] = _plot(
                "seconds",
                caption,
                {name: _points(name, seconds, rows) for name in known},
            )
    curves = report.get("curves", {})
    if calibration := dict(curves.get("calibration", {})):
        levels = calibration.pop("levels")
        lines = {"promised": (levels, levels), **{name: (levels, shares) for name, shares in calibration.items()}}
        out["Calibration: share of errors within the radius that promises a share"] = _plot(
            "promised share", "measured share", lines
        )
    if sparsification := dict(curves.get("sparsification", {})):
        removed = sparsification.pop("removed")
        lines = {f"by {name}": (removed, rest) for name, rest in sparsification.items()}
        out["Sparsification: mean error of the rest, after the vertices that are worst by sigma or by the error"] = (
            _plot("share removed", "error of the rest, over that of all", lines)
        )
    return out


def _points(name: str, seconds: Sequence[float], rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Times and values, in the unit of tables, of the frames that have a number."""
    unit = MEASURES[name].unit if name in MEASURES else "mm" if name == "sigma" else ""
    known = [(second, FACTOR[unit] * row[name]) for second, row in zip(seconds, rows) if name in row]
    return [second for second, _ in known], [value for _, value in known]


def _plot(x: str, y: str, lines: dict[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Lines by their names: an SVG element."""
    theme = leather.theme
    theme.background_color = "#ffffff"
    theme.legend_font_family = theme.axis_title_font_family = theme.tick_font_family = "sans-serif"
    theme.legend_font_size = theme.axis_title_font_size = theme.tick_font_size = 12
    chart = leather.Chart()
    for name, (at, values) in lines.items():
        chart.add_line([*zip(at, values)], name=MEASURES[name].words if name in MEASURES else name, width=1.5)
    chart.add_x_axis(name=x)
    chart.add_y_axis(name=y)
    return chart.to_svg(width=520, height=270)
