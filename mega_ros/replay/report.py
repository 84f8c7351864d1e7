"""Reports: counts and latencies of a live replay, and tables of these and of a replay's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from .measures import MEASURES, Row, shown
from .recording import Recording

FORMAT = 3
"""Of the report of `mega replay`."""


def summarise(recording: Recording) -> dict[str, Any]:
    """The report of what was played live: counts, seconds of real time, hertz, bytes.

    Images are sent; received as meshes; dropped (the node was busy, and newer ones came); rejected (not usable); or
    lost, which is the rest.
    """
    sent, received = len(recording.sent), len(recording.latencies())
    dropped, rejected = recording.counted("dropped"), recording.counted("rejected")
    gaps = np.diff(sorted(recording.arrived.values()))
    out: dict[str, Any] = {
        "rate": recording.rate,
        "seconds": max(recording.sent.values(), default=0.0) - min(recording.sent.values(), default=0.0),
        "sent": sent,
        "received": received,
        "dropped": dropped,
        "rejected": rejected,
        "lost": max(0, sent - received - dropped - rejected),
    }
    for name, values in (
        ("latency", recording.latencies()),
        ("latency_from_stamp", recording.latencies_from_stamp()),
    ):
        for share in (50, 95, 99):
            out[f"{name}_p{share}"] = float(np.percentile(values, share)) if len(values) else None
    return out | {
        "rate_hz": received / (max(recording.arrived.values()) - min(recording.sent.values())) if received else None,
        "jitter": float(gaps.std()) if len(gaps) else None,
        "cpu": recording.cpu,
        "memory": recording.memory,
        "diagnostics": recording.status,
        "people_per_frame": float(np.mean([len(c) for c in recording.clouds.values()])) if recording.clouds else None,
    }


FEW = 2.0
"""Meshes per second: two idle cores give three times as many."""


def what_is_normal(live: dict[str, Any]) -> str:
    """A sentence about dropped frames."""
    sent = f"The camera sent {live['sent']} images in {live['seconds']:.0f} s"
    rate = live["rate_hz"] or 0
    if live["received"] == live["sent"]:
        return f"{sent}; this machine keeps up with all of them."
    if rate < FEW or live["lost"] > live["dropped"]:
        return (
            f"{sent}; {live['received']} came back as meshes, {rate:.1f} per second. That is far fewer than usual: "
            "other programs may keep this machine busy; node.log has what the node said."
        )
    return (
        f"{sent}; this machine keeps up with {rate:.1f} per second. The node takes the newest "
        "image and drops those that came while it was busy: that is normal."
    )


def demo_table(report: dict[str, Any]) -> Table:
    """The report of `mega demo` for people to read."""
    out = _two_columns(f"mega demo: {escape(report['source'])}")
    _add_rows(out, live_rows(report))
    if truth := report.get("truth"):
        out.add_section()
        _add_scores(out, truth)
    return out


def offline_table(report: dict[str, Any]) -> Table:
    """The report of `mega replay` for people to read."""
    out = _two_columns(f"mega replay: {escape(report['input'])}")
    if topics := report["provenance"]["topics"]:
        out.add_row("topics", escape(", ".join(topics.values())))
    out.add_row("frames", str(report["frames"]))
    if report["unreadable"]:
        first = next(row for row in report["table"] if "problem" in row)
        name = first.get("name", f"frame {first['frame']}")
        out.add_row("frames that cannot be used", escape(f"{report['unreadable']}, first {name}: {first['problem']}"))
    if report["assumed"]:
        out.add_row("frames with assumed intrinsics", escape(f"{report['assumed']}: {report['assumed_because']}"))
    if "note" in report:
        out.add_row("note", escape(report["note"]))
    if "camera_problem" in report:
        out.add_row("camera_info", escape(report["camera_problem"]))
    counts = [row["people"] for row in report["table"] if "people" in row]
    each = " to ".join(map(str, sorted({min(counts), max(counts)})))
    people = f"{report['people']} in all frames, {each} per frame"
    ids = f", {len(report['tracks'])} ids" if "tracks" in report else ""
    out.add_row("people", f"{people}{ids}", end_section="scores" in report)
    if scores := report.get("scores"):
        reference = report["reference"]
        out.add_row("ground truth", f"{escape(reference['name'])}, {reference['matching']}")
        out.add_row("frames without ground truth", _listed(reference["frames_without"]))
        if reference["unused"]:
            out.add_row("ground truth without a frame", _listed(reference["unused"]))
        _add_scores(out, scores, report["intervals"])
    if live := report.get("live"):
        out.add_section()
        _add_rows(out, live_rows(live))
    return out


def live_rows(live: dict[str, Any]) -> dict[str, str]:
    """What `summarise` gives, and the agreement with the offline run if it is known, in words."""
    rows = {
        "images sent, received as meshes": f"{live['sent']}, {live['received']}",
        "images dropped (newest wins), lost": f"{live['dropped']}, {live['lost']}",
    }
    if live["rejected"]:
        rows["images that cannot be used"] = str(live["rejected"])
    for name, words in (("latency", "latency"), ("latency_from_stamp", "latency from stamp")):
        values = ", ".join(shown(live[f"{name}_p{share}"], "ms") for share in (50, 95, 99))
        rows[f"{words} p50, p95, p99"] = values
    rate = "-" if live["rate_hz"] is None else f"{live['rate_hz']:.1f} per second"
    rows["meshes, jitter"] = f"{rate}, {shown(live['jitter'], 'ms')}"
    rows["CPU, memory of the node"] = f"{live['cpu']:.2f} cores, {live['memory'] / 2**20:.0f} MiB"
    people = live["people_per_frame"]
    rows["people per frame"] = "-" if people is None else f"{people:.2f}"
    if agreement := live.get("agreement"):
        differ = f", {agreement['other_people']} with other people" if agreement["other_people"] else ""
        largest = shown(agreement["largest"], "mm")
        rows["live and offline differ by at most"] = f"{largest} in {agreement['frames']} frames{differ}"
    return rows


def _add_rows(out: Table, rows: Mapping[str, str]) -> None:
    for words, value in rows.items():
        out.add_row(words, value)


COLUMNS = ("pve", "pa_mpjpe", "pck", "recall", "precision")
"""Scores in the table of many inputs; inputs.csv has all."""


def tables_of_inputs(rows: Sequence[Row]) -> list[Table]:
    """A row per input: its numbers; and in a table of their own, those that could not be replayed, with the reason."""
    good, bad = ([row for row in rows if ("problem" in row) == wrong] for wrong in (False, True))
    columns = [name for name in COLUMNS if any(name in row for row in good)]
    out = Table(title="mega replay", pad_edge=False)
    out.add_column("input", overflow="fold")
    for words in ("frames", "people", *(MEASURES[name].words for name in columns)):
        out.add_column(words, justify="right", overflow="fold")
    for row in good:
        scores = [shown(row.get(name), MEASURES[name].unit) for name in columns]
        out.add_row(escape(row["input"]), str(row["frames"]), str(row["people"]), *scores)
    reasons = Table("input", "reason", title="not replayed")
    for row in bad:
        reasons.add_row(escape(row["input"]), escape(row["problem"]))
    return [table for table in (out, reasons) if table.rows]


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
    if not scores["frames"]:
        out.add_row("frames with ground truth scored", "0: no frame that can be used has its stamp or name")
        return
    out.add_row("frames with ground truth scored", str(scores["frames"]))
    out.add_row("people to find, missed", f"{scores['true_people']}, {scores['false_negatives']}")
    out.add_row("people found where none is", str(scores["false_positives"]))
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
