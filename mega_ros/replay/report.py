"""Reports: counts and latencies of a recording, and tables of these and of a replay's results."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from .recording import Recording
from .sources import Source


def summarise(source: Source, recording: Recording) -> dict[str, Any]:
    """The demo's report of what was played: counts and seconds."""
    latencies = recording.latencies()
    return {
        "source": source.name,
        "sent": len(recording.sent),
        "received": len(latencies),
        "dropped": len(recording.sent) - len(latencies),
        "latency_p50": float(np.quantile(latencies, 0.5)) if len(latencies) else None,
        "latency_p95": float(np.quantile(latencies, 0.95)) if len(latencies) else None,
        "people_per_frame": float(np.mean([len(c) for c in recording.clouds.values()])) if recording.clouds else None,
    }


FORMAT = 1
"""Of the report of `mega replay`."""
NUMBERS = (
    ("pve", "PVE (pelvis aligned)", "mm"),
    ("mpjpe", "MPJPE (pelvis aligned)", "mm"),
    ("pa_mpjpe", "PA-MPJPE", "mm"),
    ("position", "pelvis position in the camera frame", "mm"),
    ("recall", "recall", "%"),
    ("precision", "precision", "%"),
    ("spearman", "Spearman of sigma and error", ""),
    ("ause", "AUSE", ""),
    ("coverage_1_sigma", "errors within 1 sigma", "%"),
    ("coverage_2_sigma", "errors within 2 sigma", "%"),
    ("sigma_visible", "mean sigma, vertices in sight", "mm"),
    ("sigma_hidden", "mean sigma, vertices out of sight", "mm"),
)
"""The scores of `Score.summary` that tables show: name, words, unit."""
FACTOR = {"mm": 1000, "ms": 1000, "%": 100, "": 1}
"""From the report's unit to that of a table."""


def shown(value: float | None, unit: str) -> str:
    """A number of a report, in the unit of a table."""
    if value is None:
        return "-"
    return f"{FACTOR[unit] * value:.{0 if unit == 'ms' else 1 if unit else 3}f} {unit}".strip()


def table(report: dict[str, Any]) -> Table:
    """The demo's report as a table in milliseconds."""
    out = _two_columns(f"mega demo: {report['source']}")
    out.add_row("frames sent", str(report["sent"]))
    out.add_row("frames received as meshes", str(report["received"]))
    out.add_row("frames dropped (newest wins)", str(report["dropped"]))
    out.add_row("latency p50, p95", f"{shown(report['latency_p50'], 'ms')}, {shown(report['latency_p95'], 'ms')}")
    people = report["people_per_frame"]
    out.add_row("people per frame", "-" if people is None else f"{people:.2f}", end_section="truth" in report)
    if truth := report.get("truth"):
        _add_scores(out, truth)
    return out


def offline_table(report: dict[str, Any]) -> Table:
    """The report of `mega replay` for people to read."""
    out = _two_columns(f"mega replay: {escape(report['input'])}")
    out.add_row("frames", str(report["frames"]))
    if report["unreadable"]:
        first = next(row["problem"] for row in report["table"] if "problem" in row)
        out.add_row("frames that cannot be used", f"{report['unreadable']}, first: {escape(first)}")
    if report["assumed"]:
        out.add_row("frames with assumed intrinsics", f"{report['assumed']}: {report['assumed_because']}")
    if "camera_problem" in report:
        out.add_row("camera_info", escape(report["camera_problem"]))
    out.add_row("people", str(report["people"]), end_section="scores" in report)
    if scores := report.get("scores"):
        reference = report["reference"]
        out.add_row("ground truth", escape(reference["name"]))
        out.add_row("frames without ground truth", str(report["without_reference"]))
        if reference["unused"]:
            out.add_row("ground truth without a frame", str(reference["unused"]))
        _add_scores(out, scores)
    return out


def _two_columns(title: str) -> Table:
    out = Table(title=title, show_header=False)
    out.add_column(style="bold")
    out.add_column(justify="right", overflow="fold")
    return out


def _add_scores(out: Table, scores: dict[str, Any]) -> None:
    out.add_row("frames with ground truth scored", str(scores["frames"]))
    out.add_row("people to find, missed", f"{scores['wanted']}, {scores['missed']}")
    out.add_row("people found where none is", str(scores["invented"]))
    for name, words, unit in NUMBERS:
        out.add_row(words, shown(scores.get(name), unit))
