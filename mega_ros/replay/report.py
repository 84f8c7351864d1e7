"""Reports: counts and latencies of a recording, and tables of these and of a replay's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from .measures import MEASURES, shown
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


FORMAT = 2
"""Of the report of `mega replay`."""


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
        out.add_row("ground truth", f"{escape(reference['name'])}, {reference['matching']}")
        out.add_row("frames without ground truth", _listed(reference["frames_without"]))
        if reference["unused"]:
            out.add_row("ground truth without a frame", _listed(reference["unused"]))
        _add_scores(out, scores, report["intervals"])
    return out


def _listed(names: list[int | str]) -> str:
    """How many there are, and the first of them."""
    if not names:
        return "0"
    return f"{len(names)}: {escape(', '.join(map(str, names[:5])))}{', ...' if len(names) > 5 else ''}"


def _two_columns(title: str) -> Table:
    out = Table(title=title, show_header=False)
    out.add_column(style="bold")
    out.add_column(justify="right", overflow="fold")
    return out


def _add_scores(out: Table, scores: dict[str, Any], intervals: Mapping[str, Sequence[float]] = {}) -> None:
    out.add_row("frames with ground truth scored", str(scores["frames"]))
    out.add_row("people to find, missed", f"{scores['wanted']}, {scores['missed']}")
    out.add_row("people found where none is", str(scores["invented"]))
    if "switches" in scores:
        out.add_row("id switches", str(scores["switches"]))
    for name, measure in MEASURES.items():
        if name in scores:
            out.add_row(measure.words, shown(scores[name], measure.unit) + _between(intervals.get(name), measure.unit))


def _between(ends: Sequence[float] | None, unit: str) -> str:
    """A confidence interval behind a number."""
    if ends is None:
        return ""
    low, high = (shown(end, unit).removesuffix(unit).strip() for end in ends)
    return f"  ({low} to {high})"
