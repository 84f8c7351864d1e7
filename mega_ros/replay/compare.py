"""`mega replay compare A.json B.json`: two reports of one input side by side. For continuous integration."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.special import gammainc

from mega_model.core.errors import InputError
from mega_model.core.files import MOST_JSON, read_bytes

from .report import FACTOR, FORMAT, NUMBERS, shown

DRAWS = 2000
"""Of the bootstrap."""
LEVEL = 0.95
"""Of the confidence intervals."""
UNITS = {name: unit for name, _, unit in NUMBERS}
HIGHER_IS_BETTER = ("recall", "precision", "spearman")
PROMISED = {f"coverage_{k}_sigma": float(gammainc(1.5, 1.5 * k * k)) for k in (1, 2)}
"""Shares of errors within k sigma by the error model of `metrics.radius`: the nearer, the better."""
GATED = tuple(name for name in UNITS if not name.startswith("sigma"))
TOLERANCE = {"mm": 1.0, "%": 1.0, "": 0.01}
"""In the units of the table, for numbers without one of their own."""


@dataclass(frozen=True)
class CompareOptions:
    """Is report B worse than report A? Both are report.json of `mega replay` on the same input.

    Exit code 0: no. 1: a number is worse by more than its tolerance, and the confidence interval excludes chance.
    2: the reports cannot be compared.
    """

    a: Annotated[Path, tyro.conf.Positional]
    """The report before."""
    b: Annotated[Path, tyro.conf.Positional]
    """The report after."""
    tolerance: tuple[str, ...] = ()
    """How much worse a number may be, in the units of the table: pve=2 recall=0.5 ... (default: 1 mm, 1 %, 0.01)."""


class Provenance(msgspec.Struct):
    inputs: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    topics: dict[str, str]
    bundle: dict[str, str]


class ReplayReport(msgspec.Struct):
    """What is compared of report.json."""

    format: int
    input: str
    provenance: Provenance
    table: list[dict[str, Any]]
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
        tolerances = _tolerances(options.tolerance)
        a, b = _read(options.a), _read(options.b)
        _check_comparable(a, b, options)
    except InputError as error:
        print(f"mega replay compare: {error}", file=sys.stderr)
        return 2
    differences = [d for name in UNITS if (d := compare(name, a.table, b.table)) is not None]
    regressions = [d for d in differences if d.name in GATED and d.surely and d.worse > tolerances[d.name]]
    console = Console()
    console.print(_table(a, b, differences, regressions))
    for d in regressions:
        unit = UNITS[d.name]
        console.print(f"worse: {d.name} by {shown(d.worse, unit)}, allowed are {shown(tolerances[d.name], unit)}")
    return 1 if regressions else 0


def compare(name: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Difference | None:
    """A number in the tables of two reports, whose rows are the same frames. None without frames that have it in both.

    Neighbouring frames are alike, so the bootstrap draws blocks of them (circular, of the cube root of their number).
    """
    pairs = [(_share(name, x), _share(name, y)) for x, y in zip(a, b)]
    sums = np.array([[*x, *y] for x, y in pairs if x is not None and y is not None])  # [F, 4]
    if not len(sums) or not sums[:, 1].any() or not sums[:, 3].any():
        return None
    count = len(sums)
    block = round(count ** (1 / 3))
    rng = np.random.default_rng(0)
    draws = np.empty((DRAWS, 4))
    for draw in draws:
        starts = rng.integers(0, count, -(-count // block))
        draw[:] = sums[(starts[:, None] + np.arange(block)).ravel()[:count] % count].sum(axis=0)
    draws = draws[(draws[:, [1, 3]] > 0).all(axis=1)]
    total = sums.sum(axis=0)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(draws[:, 2] / draws[:, 3] - draws[:, 0] / draws[:, 1], ends)
    before, after = total[0] / total[1], total[2] / total[3]
    worse = float(_badness(name, after) - _badness(name, before))
    drawn = _badness(name, draws[:, 2] / draws[:, 3]) - _badness(name, draws[:, 0] / draws[:, 1])
    surely = bool(np.quantile(drawn, ends[0]) > 0)
    return Difference(name, count, before, after, after - before, (float(low), float(high)), worse, surely)


def _share(name: str, row: dict[str, Any]) -> tuple[float, float] | None:
    """Numerator and denominator of a number in a frame: over all frames, the sum of the one over that of the other."""
    if "wanted" not in row:
        return None
    if name == "recall":
        return row["wanted"] - row["missed"], row["wanted"]
    if name == "precision":
        return row["matched"], row["matched"] + row["invented"]
    return (row[name] * row["compared"], row["compared"]) if name in row else None


def _badness(name: str, value: Any) -> Any:
    if name in PROMISED:
        return np.abs(value - PROMISED[name])
    return -value if name in HIGHER_IS_BETTER else value


def _tolerances(words: tuple[str, ...]) -> dict[str, float]:
    """name -> tolerance in the report's units."""
    out = {name: TOLERANCE[UNITS[name]] / FACTOR[UNITS[name]] for name in GATED}
    for word in words:
        name, _, value = word.partition("=")
        if name not in GATED:
            raise InputError(f"--tolerance {word}: there is no number {name!r}, but {', '.join(GATED)}")
        try:
            number = float(value.removesuffix(UNITS[name]))
        except ValueError:
            raise InputError(f"--tolerance {word}: write {name}=NUMBER, in {UNITS[name] or 'no unit'}") from None
        if not number >= 0:
            raise InputError(f"--tolerance {word}: must not be negative")
        out[name] = number / FACTOR[UNITS[name]]
    return out


def _read(path: Path) -> ReplayReport:
    try:
        report = msgspec.json.decode(read_bytes(path, MOST_JSON), type=ReplayReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a report of mega replay ({error})") from None
    if report.format != FORMAT:
        raise InputError(f"{path}: has format {report.format}, this version compares {FORMAT}; replay again")
    if report.scores is None:
        raise InputError(f"{path}: has no scores: replay with --reference")
    return report


def _check_comparable(a: ReplayReport, b: ReplayReport, options: CompareOptions) -> None:
    def differ(what: str) -> InputError:
        return InputError(f"{options.a} and {options.b} are not comparable: {what}")

    for field, what in (("inputs", "input files"), ("reference", "references"), ("topics", "topics")):
        x, y = getattr(a.provenance, field), getattr(b.provenance, field)
        if [*map(_identity, x)] != [*map(_identity, y)] or (field == "topics" and x != y):
            raise differ(f"they are of different {what}")
    if [row.get("stamp") for row in a.table] != [row.get("stamp") for row in b.table]:
        raise differ("they have different frames")
    if not any("wanted" in x and "wanted" in y for x, y in zip(a.table, b.table)):
        raise differ("no frame is scored in both")


def _identity(file: Any) -> Any:
    return file.get("sha256") if isinstance(file, dict) else file


def _table(a: ReplayReport, b: ReplayReport, differences: list[Difference], regressions: list[Difference]) -> Table:
    out = Table(title=f"mega replay compare: {a.input}")
    out.add_column("")
    for report in (a, b):
        out.add_column(
            f"{report.provenance.bundle.get('name')} {report.provenance.bundle.get('hash', '')[:8]}", justify="right"
        )
    for heading in ("difference", f"{LEVEL:.0%} interval", "frames"):
        out.add_column(heading, justify="right")
    words = {name: text for name, text, _ in NUMBERS}
    for d in differences:
        unit = UNITS[d.name]
        interval = " to ".join(f"{FACTOR[unit] * end:+.{1 if unit else 3}f}" for end in d.interval)
        style = "red" if d in regressions else None
        change = f"{FACTOR[unit] * d.difference:+.{1 if unit else 3}f} {unit}".strip()
        out.add_row(words[d.name], shown(d.a, unit), shown(d.b, unit), change, interval, str(d.frames), style=style)
    return out
