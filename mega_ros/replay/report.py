"""The report of a recording: counts, latencies and, with ground truth, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from mega_model.core.topology import Topology

from .recording import Recording
from .score import Score
from .sources import Source, SourceError


def summarise(source: Source, recording: Recording, topology: Topology) -> dict[str, Any]:
    """The report: counts, seconds, metres. Raises SourceError if the ground truth has another body."""
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
                raise SourceError(f"{source.name}: its ground truth has another body than the bundle")
            if stamp in recording.clouds:
                score.add(recording.clouds[stamp], truth, recording.intrinsics(stamp))
        report["truth"] = score.summary()
    return report


def table(report: dict[str, Any]) -> Table:
    """The report as a table in milliseconds and millimetres."""

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
