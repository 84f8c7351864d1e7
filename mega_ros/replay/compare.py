"""`mega replay compare A.json B.json`: two reports of one input side by side. For continuous integration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from mega_model.core.errors import InputError
from mega_model.core.files import MOST_JSON, read_bytes

from .bootstrap import ENDS, LEVEL, interval, ratios
from .measures import FACTOR, MEASURES, Row, parts, promised, shown
from .report import FORMAT

GATED = tuple(name for name, measure in MEASURES.items() if measure.better)
TOLERANCE = {"mm": 1.0, "%": 1.0, "m/s²": 0.1, "": 0.01}
"""In the units of the table, for numbers without one of their own."""

LARGEST = 1e9
"""No number of a report is larger."""


@dataclass(frozen=True)
class CompareOptions:
    """Is report B worse than report A? Both are report.json of `mega replay` on the same input.

    Exit code 0: no. 1: a number is worse by more than its tolerance, and the confidence interval excludes chance; or
    B lacks frames or numbers that A has. 2: the reports cannot be compared.
    """

    a: Annotated[Path, tyro.conf.Positional]
    """The report before."""
    b: Annotated[Path, tyro.conf.Positional]
    """The report after."""
    tolerance: tuple[str, ...] = ()
    """How much worse a number may be, in the units of the table: pve=2 recall=0.5 ... (default: 1 mm, 1 %, 0.1 m/s²,
    0.01)."""
    thresholds: Path | None = None
    """The same in a YAML file, a line `pve: 2` for each; --tolerance goes before."""


class Model(msgspec.Struct):
    name: str = ""
    hash: str = ""
    coverage: dict[str, float] = {}
    """Of the manifest's calibration. Reports of older versions lack it."""


class Settings(msgspec.Struct):
    samples: int = 0


class Provenance(msgspec.Struct):
    inputs: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    topics: dict[str, str]
    bundle: Model
    settings: Settings


class ReplayReport(msgspec.Struct):
    """What is compared of report.json."""

    format: int
    input: str
    provenance: Provenance
    table: list[Row]
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class Difference:
    """One number of both reports, over the frames that have it in both. In the report's units."""

    name: str
    frames: int
    a: float
    b: float
    difference: float
    """b - a."""
    interval: tuple[float, float]
    """of the difference."""
    worse: float
    """by how much b is worse; negative: better."""
    surely: bool
    """whether the interval of `worse` lies above zero."""


def main(args: list[str]) -> int:
    """`mega replay compare`: returns the exit code."""
    options = tyro.cli(CompareOptions, args=args, prog="mega replay compare")
    try:
        tolerances = _tolerances(options)
        a, b = _read(options.a), _read(options.b)
        _check_comparable(a, b, options)
    except InputError as error:
        print(f"mega replay compare: {error}", file=sys.stderr)
        return 2
    differences = compare(a.table, b.table, (a.provenance.bundle.coverage, b.provenance.bundle.coverage))
    lacks = lacking(a.table, b.table)
    regressions = [d for d in differences if d.name in GATED and d.surely and d.worse > tolerances[d.name]]
    console = Console(width=None if sys.stdout.isatty() else 120)  # logs take the width of the table
    console.print(_table(a, b, differences, regressions))
    for d in regressions:
        unit = MEASURES[d.name].unit
        console.print(f"worse: {d.name} by {shown(d.worse, unit)}, allowed are {shown(tolerances[d.name], unit)}")
    for line in lacks:
        console.print(f"worse: {line}", markup=False, soft_wrap=True)
    return 1 if regressions or lacks else 0


def lacking(a: list[Row], b: list[Row]) -> list[str]:
    """What the table `b` lacks that `a` has, a line each: scored frames, and numbers that are gated.

    A number of people who are found may be missing where nobody is found, which recall tells.
    """
    scored = [(row, other) for row, other in zip(a, b) if "true_people" in row]
    lost = [other for _, other in scored if "true_people" not in other]
    out = []
    if lost:
        why = next((f", the first: {row['problem']}" for row in lost if "problem" in row), "")
        out.append(f"{len(lost)} of {len(scored)} scored frames are not scored in B{why}")
    for name in GATED:
        weight = MEASURES[name].weight
        have = [other for row, other in scored if name in row and row[weight] and "true_people" in other]
        if count := sum(name not in other and other.get(weight, other.get("compared")) != 0 for other in have):
            out.append(f"{name} is missing in B in {count} of {len(have)} frames that have it in A")
    return out


def compare(
    a: list[Row], b: list[Row], coverages: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
) -> list[Difference]:
    """The numbers in the tables of two reports, whose rows are the same frames: those that some frame has in both.

    The intervals are by a `bootstrap` over the frames that have any. coverages: what each bundle's manifest promises of
    sigma: each is compared with its own.
    """
    sums: dict[str, list[tuple[tuple[float, float], tuple[float, float]] | None]] = {
        name: [(x, y) if (x := parts(name, r)) and (y := parts(name, s)) else None for r, s in zip(a, b)]
        for name in MEASURES
    }
    sums = {name: pairs for name, pairs in sums.items() if any(p and p[0][1] and p[1][1] for p in pairs)}
    used = [k for k in range(len(a)) if any(pairs[k] for pairs in sums.values())]
    if not used:
        return []
    missing = (0.0, 0.0), (0.0, 0.0)
    array = np.array([[pairs[k] or missing for pairs in sums.values()] for k in used])  # [F, M, 2, 2]
    drawn = ratios(array.reshape(len(used), -1, 2)).reshape(-1, len(sums), 2)
    totals = array.sum(axis=0)
    out = []
    for m, name in enumerate(sums):
        before, after = (totals[m, :, 0] / totals[m, :, 1]).tolist()
        worse, worse_drawn = (
            _badness(name, y, coverages[1]) - _badness(name, x, coverages[0])
            for x, y in ((before, after), (drawn[:, m, 0], drawn[:, m, 1]))
        )
        surely = np.nanquantile(worse_drawn, ENDS[0]) > 0
        between = interval(drawn[:, m, 1] - drawn[:, m, 0])
        frames = sum(pair is not None for pair in sums[name])
        out.append(Difference(name, frames, before, after, after - before, between, float(worse), bool(surely)))
    return out


def _badness(name: str, value: Any, coverage: Mapping[str, float]) -> Any:
    if MEASURES[name].better == "promised":
        return np.abs(value - promised(name, coverage))
    return -value if MEASURES[name].better == "high" else value


def _tolerances(options: CompareOptions) -> dict[str, float]:
    """name -> tolerance in the report's units."""
    out = {name: TOLERANCE[MEASURES[name].unit] for name in GATED}
    if options.thresholds is not None:
        for name, value in _read_thresholds(options.thresholds).items():
            out[name] = _tolerance(f"{options.thresholds}: {name}: {value}", name, str(value))
    for word in options.tolerance:
        name, _, text = word.partition("=")
        out[name] = _tolerance(f"--tolerance {word}", name, text)
    return {name: value / FACTOR[MEASURES[name].unit] for name, value in out.items()}


def _read_thresholds(path: Path) -> dict[str, float | str]:
    try:
        return msgspec.yaml.decode(read_bytes(path, MOST_JSON), type=dict[str, float | str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a YAML file with a line such as `pve: 2` for each number ({reason})") from None


def _tolerance(where: str, name: str, text: str) -> float:
    """In the unit of the table."""
    if name not in GATED:
        raise InputError(f"{where}: there is no number {name!r}, but {', '.join(GATED)}")
    unit = MEASURES[name].unit
    try:
        number = float(text.removesuffix(unit))
    except ValueError:
        raise InputError(f"{where}: write a number, in {unit or 'no unit'}") from None
    if not number >= 0:
        raise InputError(f"{where}: must not be negative")
    return number


def _read(path: Path) -> ReplayReport:
    try:
        report = msgspec.json.decode(read_bytes(path, MOST_JSON), type=ReplayReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a report of mega replay ({error})") from None
    if report.format != FORMAT:
        raise InputError(f"{path}: has format {report.format}, this version compares {FORMAT}; replay again")
    if report.scores is None:
        raise InputError(f"{path}: has no scores: replay with --reference")
    for number, row in enumerate(report.table):
        for name, measure in MEASURES.items():
            for field in (name, measure.weight) if name in row else ():
                if type(row.get(field)) not in (int, float) or not abs(row[field]) < LARGEST:
                    is_what = f"is {row[field]!r:.40}, not a number" if field in row else "is missing"
                    raise InputError(f"{path}: table[{number}].{field} {is_what}; the file is damaged, replay again")
    return report


def _check_comparable(a: ReplayReport, b: ReplayReport, options: CompareOptions) -> None:
    def differ(what: str) -> InputError:
        return InputError(f"{options.a} and {options.b} are not comparable: {what}")

    was, now = _made_from(a.provenance), _made_from(b.provenance)
    for what in was:
        if was[what] != now[what]:
            raise differ(f"they are of different {what}")
    samples = {report.provenance.settings.samples for report in (a, b)} - {0}
    if len(samples) > 1:
        raise differ("the best is of different numbers of samples")
    if [row.get("stamp") for row in a.table] != [row.get("stamp") for row in b.table]:
        raise differ("they have different frames")
    if not any("true_people" in x and "true_people" in y for x, y in zip(a.table, b.table)):
        raise differ("no frame is scored in both")


def _made_from(provenance: Provenance) -> dict[str, Any]:
    """What two reports must share: files are known by their hashes."""
    return {
        "input files": [file.get("sha256") for file in provenance.inputs],
        "references": [file.get("sha256") for file in provenance.reference],
        "topics": provenance.topics,
    }


def _table(a: ReplayReport, b: ReplayReport, differences: list[Difference], regressions: list[Difference]) -> Table:
    out = Table(title=f"mega replay compare: {a.input}")
    out.add_column("")
    for report in (a, b):
        out.add_column(f"{report.provenance.bundle.name} {report.provenance.bundle.hash[:8]}", justify="right")
    for heading in ("difference", f"{LEVEL:.0%} interval", "frames"):
        out.add_column(heading, justify="right")
    for d in differences:
        words, unit = MEASURES[d.name].words, MEASURES[d.name].unit
        ends = " to ".join(shown(end, unit, "+").removesuffix(unit).strip() for end in d.interval)
        style = "red" if d in regressions else None
        change = shown(d.difference, unit, "+")
        out.add_row(words, shown(d.a, unit), shown(d.b, unit), change, ends, str(d.frames), style=style)
    return out
