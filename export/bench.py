"""What recovering people costs, from crops to meshes, by each way of running the same weights: `mega bench`

The ways take turns, so that other programs slow all of them down, and so does the matrix product whose speed is the
machine's peak: ratios and shares belong to one run. Sizes that would take a way too long are left out.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export import flop, ways
from export.gates import CHAIN, BundleOutputs
from export.options import BenchConfig, ExportConfig, Way
from export.ways import ModelPaths
from mega_model.core.commands import call, must_have
from mega_model.core.errors import InputError, first_line
from mega_model.core.files import make_folder, read_json
from mega_model.core.settings import Positive, parse
from mega_model.core.workers import watch_parent
from mega_ros.accelerators import gpu
from mega_ros.bundle import Bundle

Row = dict[str, Any]
WIDTH = 130
"""Characters that the table needs."""
COLUMNS = {
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "people_per_s": "people/s",
    "peak_MB": "memory, MB",
    "GFLOP": "GFLOP",
    "share": "share of peak",
    "times_plain": "times plain",
    "same_tokens": "same tokens",
    "problem": "",
}


@dataclass(frozen=True)
class MeasuredRow:
    """What `compare` needs of a row."""

    way: str
    people: int
    samples: int
    p50_ms: Positive
    GFLOP: Positive
    share: Positive


@dataclass(frozen=True)
class BenchReport:
    """A bench.json."""

    rows: list[Row]
    """Those with a `problem` are not measured."""


class Process:
    """Something of `ways` in a process of its own."""

    def __init__(self, kind: type, *arguments: Any) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), watch_parent)
        self._started = self.pool.submit(ways.begin, kind, *arguments)

    def ask(self, method: str, *arguments: int) -> Any:
        self._started.result()
        return self.pool.submit(ways.ask, method, *arguments).result()


@dataclass
class Cell:
    """One way at one size."""

    way: Way
    first: ways.First
    seconds: list[float]

    def row(self, people: int, samples: int, flop_of_graphs: int, peak: float, plain: Cell | None, like: Cell) -> Row:
        """peak: FLOP per second. plain: the same size by the straightforward implementation. like: has right tokens."""
        p50, p95 = np.quantile(self.seconds, (0.5, 0.95))
        counted = self.first.flop or flop_of_graphs
        row = {
            "p50_ms": 1e3 * p50,
            "p95_ms": 1e3 * p95,
            "people_per_s": people / p50,
            "peak_MB": self.first.peak / 1e6,
            "GFLOP": counted / 1e9,
            "share": counted / p50 / peak,
            "same_tokens": _agreement(self.first.people, like.first.people),
            "runs": len(self.seconds),
        }
        if plain is not None:
            row["times_plain"] = float(np.median(plain.seconds)) / p50
        return {"way": self.way, "people": people, "samples": samples, **row}


class Bench:
    def __init__(self, config: BenchConfig, paths: ModelPaths) -> None:
        self.config = config
        self.bundle = Bundle.load(paths.bundle)
        self._graphs = {graph: onnx.load(self.bundle.path(graph)) for graph in CHAIN}
        self.left_out = {way: reason for way in config.ways if (reason := ways.lacks(way, paths))}
        self._ways = [way for way in config.ways if way not in self.left_out]
        if not self._ways:
            raise InputError("; ".join(f"{way}: {reason}" for way, reason in self.left_out.items()))
        self._paths = paths
        self._last: dict[Way, tuple[float, int]] = {}  # seconds and size of the last call
        self._failed: dict[Way, str] = {}

    def rows(self) -> Iterator[Row]:
        with ExitStack() as stack:
            started = {way: Process(ways.Runner, way, self._paths) for way in self._ways}
            products = {where: Process(ways.Product, where) for where in {ways.device(way) for way in self._ways}}
            for process in (*started.values(), *products.values()):
                stack.callback(process.pool.shutdown, cancel_futures=True)
            # from small to large, as a process keeps the memory that it once had
            sizes = [(p, q) for p in self.config.people for q in self.config.samples]
            for people, samples in sorted(sizes, key=lambda size: (_size(*size), size)):
                yield from self._cells(started, products, people, samples)

    def _cells(
        self, started: dict[Way, Process], products: dict[str, Process], people: int, samples: int
    ) -> Iterator[Row]:
        cells: dict[Way, Cell] = {}
        for way, process in started.items():
            problem = self._problem(way, people, samples)
            if not problem:
                try:
                    cells[way] = Cell(way, process.ask("first", people, samples), [])
                except Exception as error:  # the process may have been killed for its memory
                    problem = self._failed[way] = f"{type(error).__name__}: {first_line(error)}"
            if problem:
                yield {"way": way, "people": people, "samples": samples, "problem": problem}
        peaks: dict[str, list[float]] = {where: [] for where in products}
        end = time.perf_counter() + self.config.seconds * len(cells)
        for number in range(self.config.repeats):
            if number and time.perf_counter() > end:
                break
            for way, cell in cells.items():
                cell.seconds.append(started[way].ask("again", people, samples))
            for where, product in products.items():
                peaks[where].append(product.ask("speed"))
        for way, cell in cells.items():
            self._last[way] = float(np.median(cell.seconds)), _size(people, samples)
            peak = float(np.median(peaks[ways.device(way)]))
            like = next(iter(cells.values()))
            yield cell.row(people, samples, self.flop(people, samples), peak, cells.get("plain"), like)

    def _problem(self, way: Way, people: int, samples: int) -> str:
        if way in self._failed:
            return f"left out after {self._failed[way]}"
        seconds, size = self._last.get(way, (0.0, 1))
        expected = seconds * _size(people, samples) / size
        return f"left out: about {expected:.0f} s per call" if expected > self.config.longest else ""

    def flop(self, people: int, samples: int) -> int:
        """Of the graphs that run."""
        sizes = {"P": people, "Q": samples}
        return sum(flop.count(self._graphs[graph], sizes) for graph in (CHAIN if samples else CHAIN[:2]))


def _size(people: int, samples: int) -> int:
    return people * max(samples, 1)


def _agreement(got: BundleOutputs, expected: BundleOutputs) -> float:
    """Share of equal tokens, the sampled ones included."""
    pairs = (got.tokens, expected.tokens), (got.samples, expected.samples)
    return float(np.concatenate([(a == b).ravel() for a, b in pairs]).mean())


@contextmanager
def model_paths(config: BenchConfig) -> Iterator[ModelPaths]:
    """The bundle and the checkpoint to compare. What is not given is made in a temporary folder."""
    if config.checkpoint is None and config.preset is None:
        yield ModelPaths(Bundle.load(config.bundle or "default").folder, None)
        return
    from export import to_onnx  # needs torch
    from export.random_model import random_checkpoint
    from mega_model.mega import PRESETS

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = config.checkpoint or random_checkpoint(PRESETS[config.preset or "default"], folder / "checkpoint")
        if config.bundle:
            yield ModelPaths(Bundle.load(config.bundle).folder, source)
        else:
            options = ExportConfig(
                source, folder / "bundle", steps=config.steps, temperature=1.0, fp32=None if config.checkpoint else []
            )
            made = to_onnx.export(options)
            yield ModelPaths(made.folder, source)


def measure(config: BenchConfig, console: Console) -> dict[str, Any]:
    """The report: what was measured, where, and a row for each way and size."""
    with model_paths(config) as paths:
        bench = Bench(config, paths)
        for way, reason in bench.left_out.items():
            console.print(f"{way}: left out, {reason}", highlight=False, soft_wrap=True)
        rows: list[Row] = []
        report = {
            "bundle": bench.bundle.name,
            "hash": bench.bundle.hash,
            "steps": bench.bundle.sampling.steps,
            "machine": machine(),
            "date": date.today().isoformat(),
            "versions": ways.versions(),
            "load_before": os.getloadavg()[0],
            "left_out": bench.left_out,
            "rows": rows,
        }
        for row in bench.rows():
            rows.append(row)
            console.print(_said(row), highlight=False, soft_wrap=True)
    return report | {"load_after": os.getloadavg()[0]}


def machine() -> str:
    """Processor, cores of this process, and the GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else platform.machine(), f"{len(os.sched_getaffinity(0))} cores"]
    with suppress(InputError):
        parts.append(gpu().name)
    return ", ".join(parts)


def _said(row: Row) -> str:
    what = f"{row['way']}, P = {row['people']}, Q = {row['samples']}: "
    return what + (row.get("problem") or f"{row['p50_ms']:.1f} ms, {row['share']:.0%} of the peak")


def table(report: dict[str, Any]) -> Table:
    title = f"{report['bundle']}, T = {report['steps']}, {report['machine']}"
    made = Table("way", "P", "Q", *COLUMNS.values(), title=title)
    for row in sorted(report["rows"], key=lambda row: (row["people"], row["samples"])):
        cells = (_cell(name, row.get(name)) for name in COLUMNS)
        made.add_row(row["way"], str(row["people"]), str(row["samples"]), *cells)
    return made


def _cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.0%}" if name in ("share", "same_tokens") else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def plot(report: dict[str, Any], file: Path) -> None:
    """Milliseconds over samples and over people, on logarithmic axes: one row for each way."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if "p50_ms" in row]
    names = list(dict.fromkeys(row["way"] for row in rows))
    figure = Figure((9, 3 * len(names)), layout="constrained")
    for way, (over_samples, over_people) in zip(names, figure.subplots(len(names), 2, squeeze=False)):
        own = [row for row in rows if row["way"] == way]
        for axes, across, along in ((over_samples, "samples", "people"), (over_people, "people", "samples")):
            for fixed in sorted({row[along] for row in own}):
                line = sorted((row[across], row["p50_ms"]) for row in own if row[along] == fixed)
                axes.plot(*zip(*line), marker=".", label=f"{along[0].upper()} = {fixed}".replace("S", "Q"))
            axes.set_xscale("symlog", linthresh=1)  # samples may be 0
            axes.set_yscale("log")
            places = sorted({row[across] for row in own})
            axes.set_xticks(places, map(str, places), minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set(xlabel=f"{across} per {'person' if across == 'samples' else 'call'}", ylabel="ms", title=way)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=100)


def read_report(file: Path) -> list[MeasuredRow]:
    """The measured rows of a bench.json. Raises InputError that names the file."""
    found = read_json(file)
    try:
        measured = [row for row in msgspec.convert(found, BenchReport).rows if "problem" not in row]
        return msgspec.convert(measured, list[MeasuredRow])
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: not a report of mega bench ({error})") from None


def compare(first: list[MeasuredRow], second: list[MeasuredRow]) -> Table:
    """Times of the same way and size in two reports, and what is left if each is measured by its machine's peak."""
    made = Table("way", "P", "Q", "first, ms", "second, ms", "second / first", "work per peak, second / first")
    rows = [{(row.way, row.people, row.samples): row for row in report} for report in (first, second)]
    for key in sorted({*rows[0]} & {*rows[1]}):
        a, b = (part[key] for part in rows)
        ratio = b.p50_ms / a.p50_ms
        by_peak = (b.GFLOP / b.share) / (a.GFLOP / a.share)
        made.add_row(*map(str, key), f"{a.p50_ms:.1f}", f"{b.p50_ms:.1f}", f"{ratio:.2f}", f"{by_peak:.2f}")
    if not made.row_count:
        raise InputError("the two reports have no way and size in common")
    return made


def main(config: BenchConfig) -> None:
    console = Console(markup=False)  # reasons and paths may have square brackets
    if config.compare:
        console.print(compare(*map(read_report, config.compare)))
        return
    make_folder(config.out)  # or it would be missed when all is done, as would the plot's package
    must_have("matplotlib")
    report = measure(config, console)
    Console(width=max(console.width, WIDTH), markup=False).print(table(report))
    (config.out / "bench.json").write_text(json.dumps(report, indent=1))
    plot(report, config.out / "bench.png")
    console.print(f"{config.out / 'bench.json'}, {config.out / 'bench.png'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(call("export/bench.py", lambda: main(parse(BenchConfig, sys.argv[1:]))))
