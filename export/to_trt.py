"""Builds the TensorRT engines of a bundle: `mega export trt [BUNDLE]` or `python export/to_trt.py`.

The engines go to the cache where the node looks for them. Then the bundle with these engines is compared with
onnxruntime on the CPU; engines that miss a gate of export/gates.py are removed. No torch is needed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export import gates
from export.options import TrtConfig
from mega_model.core.commands import call
from mega_model.core.errors import InputError
from mega_model.core.settings import parse
from mega_ros.accelerators import prepare
from mega_ros.bundle import Bundle
from mega_ros.engine_cache import Precision, Profile, Range, folder_of, lock, vouch
from mega_ros.engines import OnnxEngine


def build(bundle: Bundle, precision: Precision, profile: Profile, console: Console) -> None:
    """Builds the engines of all graphs that the cache lacks, and prints a table of them."""
    table = Table("graph", "MB", "build, s", "")
    for number, graph in enumerate(bundle.graphs, 1):
        console.print(f"{number}/{len(bundle.graphs)} {graph}: building for {precision}", highlight=False)
        engine = OnnxEngine(bundle, graph, "tensorrt", precision, profile)  # type: ignore[arg-type]
        assert engine.cache is not None
        table.add_row(
            graph,
            f"{engine.cache.size() / 1e6:.1f}",
            f"{engine.cache.seconds:.0f}",
            "was there" if engine.cache.found else "",
        )
    console.print(table)


def check(bundle: Bundle, precision: Precision, profile: Profile, console: Console) -> bool:
    """Whether the engines pass the gates. If not, they are removed."""
    crops = gates.photographed_crops(bundle.crop.size, profile.people.usual + 1)
    given = gates.inputs(bundle, crops, profile.samples.usual)
    reference = gates.Chain(bundle, lambda graph: OnnxEngine(bundle, graph, "cpu"))(given)
    chain = gates.Chain(bundle, lambda graph: OnnxEngine(bundle, graph, "tensorrt", precision))
    found = gates.errors(reference, chain(given), chain(given))
    console.print(gates.table(found, precision, f"tensorrt, {precision}, compared with cpu"))
    with lock(bundle, precision):
        if gates.missed(found, precision):
            shutil.rmtree(folder_of(bundle, precision))
            return False
        vouch(bundle, precision)
    return True


def main(config: TrtConfig) -> int:
    bundle = Bundle.load(config.bundle)
    lacks = prepare("tensorrt")
    if lacks:
        for line in lacks:
            print(f"mega export trt: {line}", file=sys.stderr)
        return 1
    if config.out:
        os.environ["MEGA_ENGINES"] = str(config.out.resolve())
    console = Console()
    profile = Profile(Range.of(config.people), Range.of(config.samples))
    build(bundle, config.precision, profile, console)
    if not check(bundle, config.precision, profile, console):
        raise InputError(f"{bundle.name}: the engines miss a gate and were removed; try --precision fp32")
    where = f"set MEGA_ENGINES={os.environ['MEGA_ENGINES']} for the node" if config.out else "the node finds them"
    console.print(f"{folder_of(bundle, config.precision)}: {where}", soft_wrap=True, highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(call("export/to_trt.py", lambda: main(parse(TrtConfig, sys.argv[1:]))))
