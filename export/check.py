"""Compares a bundle's outputs with torch's: `mega export check [BUNDLE] --checkpoint FOLDER`

In fp32, it compares every output of every graph, except the imported detector, with the functions that training and
evaluation use, on random and on rendered crops, for several numbers of people and samples. Then it compares the people
that the whole bundle makes of photographed crops, for any provider and precision. export/gates.py has what is allowed;
the exit code is 1 if something exceeds it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export import gates, in_torch
from export.gates import LIMITS, Arrays, Chain, noise_crops, photographed_crops
from export.in_torch import GraphInputs, GraphOutputs
from export.options import CheckConfig
from export.to_onnx import as_stored
from mega_model import checkpoint
from mega_model.core.commands import call
from mega_model.core.errors import InputError
from mega_model.core.settings import parse
from mega_ros.bundle import Bundle
from mega_ros.engine_cache import Precision
from mega_ros.engines import OnnxEngine, Provider

SIZES = ((1, 1), (1, 10), (3, 4), (5, 2))
"""P, Q"""

Differences = dict[tuple[str, str], float]
"""(graph, output) -> largest difference."""


class Parity:
    """A bundle and the torch model that it was exported from."""

    def __init__(self, bundle: Bundle, folder: Path, provider: Provider = "cpu", precision: Precision = "fp32") -> None:
        self.bundle = bundle
        self.model = checkpoint.load(folder)
        as_stored(self.model)
        self.engines = {graph: OnnxEngine(bundle, graph, provider, precision) for graph in gates.CHAIN}

    def people(self, crops: np.ndarray, samples: int) -> Differences:
        """Crops uint8 [P, H, W, 3] through backbone, deterministic and sampler, each fed with torch's answers."""
        given = gates.inputs(self.bundle, crops, samples)
        expected = self.expected(given)
        known = given | {name: x.numpy() for graph in gates.CHAIN[:2] for name, x in expected[graph].items()}
        differences: Differences = {}
        for graph, outputs in expected.items():
            got = self.engines[graph].run(**{name: known[name] for name in self.bundle.graphs[graph].inputs})
            differences |= {(graph, name): _largest(got[name], tensor.numpy()) for name, tensor in outputs.items()}
        return differences

    def gated(self, crops: np.ndarray, samples: int) -> dict[str, float]:
        """`gates.errors` of the whole bundle."""
        given = gates.inputs(self.bundle, crops, samples)
        chain = Chain(self.bundle, lambda graph: self.engines[graph])
        return gates.errors(in_torch.people(self.expected(given)), chain(given), chain(given))

    def expected(self, given: Arrays) -> GraphOutputs:
        """Torch's outputs of the three graphs, from `gates.inputs`."""
        return in_torch.outputs(self.model, GraphInputs.of(self.model, given), self.bundle.sampling.temperature)


def _largest(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; for integers, the number of different ones. Infinite for different shapes or types."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return np.inf
    if np.issubdtype(expected.dtype, np.integer):
        return float((got != expected).sum())
    return float(np.abs(got - expected).max(initial=0))


def worst(found: Iterable[Differences]) -> Differences:
    together: Differences = {}
    for differences in found:
        for key, value in differences.items():
            together[key] = max(value, together.get(key, 0.0))
    return together


def rendered_crops(parity: Parity, count: int) -> np.ndarray:
    """uint8 [count, H, H, 3]: rendered people of test clips, of the bundle's crop size."""
    from mega_model.data.meshes import BodySampler  # needs Anny
    from mega_model.data.scenes import Renderer, draw_crops

    renderer = Renderer(parity.model.topology, parity.bundle.crop.size, parity.bundle.crop.size)
    return draw_crops(np.random.default_rng(0), BodySampler("test"), renderer, count).images


def main(config: CheckConfig) -> int:
    if config.precision == "fp16" and config.provider != "tensorrt":
        raise InputError(f"--precision fp16: {config.provider} runs fp32 only; add --provider tensorrt")
    parity = Parity(Bundle.load(config.bundle), config.checkpoint, config.provider, config.precision)
    most, size = max(people for people, _ in SIZES), parity.bundle.crop.size
    good = config.precision != "fp32" or _every_output(parity, most, size)
    found = parity.gated(photographed_crops(size, most), samples=10)
    Console().print(gates.table(found, config.precision, f"whole bundle, {config.provider}, {config.precision}"))
    return 0 if good and not gates.missed(found, config.precision) else 1


def _every_output(parity: Parity, most: int, size: int) -> bool:
    table = Table("inputs", "graph", "output", "largest difference", "allowed", "")
    good = True
    for name, crops in (("random", noise_crops(size, most)), ("rendered", rendered_crops(parity, most))):
        differences = worst(parity.people(crops[:people], samples) for people, samples in SIZES)
        for (graph, output), value in differences.items():
            passed = value <= LIMITS[output]
            good &= passed
            table.add_row(name, graph, output, f"{value:.2g}", f"{LIMITS[output]:g}", "" if passed else "DIFFERS")
    Console().print(table)
    return good


if __name__ == "__main__":
    sys.exit(call("export/check.py", lambda: main(parse(CheckConfig, sys.argv[1:]))))
