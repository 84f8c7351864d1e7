"""The reports of many inputs as one, for `mega replay compare` of folders of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .offline import Counts
from .report import FORMAT
from .score import intervals, totals


def joined(reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Name of each input and its report -> a report of all their frames, whose rows have the name as `input`.

    Spearman and AUSE are means over frames here, because a report does not hold the vertices.
    """
    rows = [
        {"input": name, **{key: value for key, value in row.items() if key != "bodies"}}
        for name, report in reports.items()
        for row in report["table"]
    ]
    out: dict[str, Any] = {"format": FORMAT, "input": f"{len(reports)} inputs"}
    out |= {f.name: sum(report[f.name] for report in reports.values()) for f in fields(Counts)}
    if any("scores" in report for report in reports.values()):
        scored = [row for row in rows if "true_people" in row]
        out |= {"scores": totals(scored), "intervals": intervals(scored)}
    sources = {name: report["provenance"] for name, report in reports.items()}
    out["provenance"] = next(iter(sources.values())) | {
        "inputs": [file for source in sources.values() for file in source["inputs"]],
        "reference": [file for source in sources.values() for file in source["reference"]],
        "topics": {f"{name}: {kind}": topic for name, s in sources.items() for kind, topic in s["topics"].items()},
    }
    out["table"] = rows
    return out
