"""Compares a bundle's outputs with torch's: `mega export check [BUNDLE] --checkpoint FOLDER`

Compares every output of every graph, except the imported detector, with the functions that training and evaluation use,
on random and on rendered crops, for several numbers of people and samples. The exit code is 1 if tokens differ or
vertices differ by more than 0.1 mm.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export.options import CheckConfig
from export.to_onnx import FEATURES, as_stored
from mega_model import checkpoint, generate
from mega_model.blazepose import PoseFeatures
from mega_model.core.commands import call
from mega_model.core.detection import LIMB_JOINTS
from mega_model.core.settings import parse
from mega_model.geometry import rot6d_to_matrix
from mega_ros.bundle import Bundle, GraphName
from mega_ros.engines import OnnxEngine

LIMITS = {
    "features": 1e-3,
    "tokens": 0.0,
    "vertices": 1e-4,
    "rotation": 1e-4,
    "camera": 1e-4,
    "image": 1e-3,
    "logits": 1e-3,
    "prior": 1e-3,
    "sigma": 1e-4,
    "joints_sigma": 1e-4,
    "distance": 1e-3,
    "modes": 1e-4,
    "landmarks": 5e-4,
    "world": 1e-4,
    "presence": 1e-4,
}
"""Largest allowed differences: metres for vertices and sigmas; for tokens, the number of different ones."""
SIZES = ((1, 1), (1, 10), (3, 4), (5, 2))
"""P, Q"""


Differences = dict[tuple[str, str], float]
"""(graph, output) -> largest difference."""


class Parity:
    """A bundle and the torch model that it was exported from."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle = bundle
        self.model, self.tokenizer, self.topology = checkpoint.load_mega(folder)
        self.errors = checkpoint.load_errors(folder)
        as_stored(self.model, self.tokenizer, *([self.errors] if self.errors else []))
        graphs: tuple[GraphName, ...] = ("backbone", "deterministic", "sampler")
        self.engines = {graph: OnnxEngine(bundle, graph, "cpu") for graph in graphs}

    @torch.no_grad()
    def people(self, crops: np.ndarray, samples: int) -> Differences:
        """Crops uint8 [P, H, W, 3] through backbone, deterministic and sampler."""
        shape = self.bundle.graphs["sampler"].inputs["uniforms"].shape
        uniforms = generate.uniforms((len(crops), samples, *(int(size) for size in shape[2:])), seed=len(crops))
        model, decode = self.model, self.tokenizer.decode
        features = model.backbone(model.normalise(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255))
        parts = dict(zip(FEATURES, features)) if isinstance(features, PoseFeatures) else {FEATURES[0]: features}
        seen = model.encode_image(features)
        states = generate.first_states(model, seen.image)
        logits = model.read(states, seen.image)
        sampled = generate.sample(model, seen.image, logits, uniforms, self.bundle.sampling.temperature)
        vertices = generate.expected_vertices(self.tokenizer, logits)
        answers = {
            "tokens": logits.argmax(dim=-1),
            "vertices": vertices,
            "rotation": rot6d_to_matrix(seen.rot6d),
            "camera": seen.camera,
            "image": seen.image.tokens,
            "logits": logits,
        }
        if seen.image.prior is not None:
            answers["prior"] = seen.image.prior
        rng = np.random.default_rng(len(crops))
        keypoints = torch.from_numpy(rng.uniform(0, 1, (len(crops), len(LIMB_JOINTS), 3)).astype(np.float32))
        if self.errors is not None:
            answers |= self.errors(states, features, keypoints)._asdict()
        expected: dict[GraphName, dict[str, Tensor]] = {
            "backbone": parts,
            "deterministic": answers,
            "sampler": {
                "tokens": sampled,
                "vertices": decode(sampled.flatten(0, 1)).unflatten(0, sampled.shape[:2]),
            },
        }
        given = {"crops": crops, **{name: part.numpy() for name, part in parts.items()}}
        given |= {name: answers[name].numpy() for name in ("image", "logits", "prior") if name in answers}
        given |= {"uniforms": uniforms.numpy(), "keypoints": keypoints.numpy()}
        return self._compare(expected, given)

    def _compare(self, expected: dict[GraphName, dict[str, Tensor]], given: dict[str, np.ndarray]) -> Differences:
        differences: Differences = {}
        for graph, outputs in expected.items():
            got = self.engines[graph].run(**{name: given[name] for name in self.bundle.graphs[graph].inputs})
            for name, tensor in outputs.items():
                differences[graph, name] = _largest(got[name], tensor.numpy())
        return differences


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


def noise_crops(parity: Parity, count: int) -> np.ndarray:
    """uint8 [count, H, W, 3]"""
    size = parity.bundle.crop.size
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def rendered_crops(parity: Parity, count: int) -> np.ndarray:
    """The same for rendered people of test clips."""
    from mega_model.data.meshes import BodySampler  # needs Anny
    from mega_model.data.scenes import Renderer, draw_crops

    renderer = Renderer(parity.topology, parity.bundle.crop.size, parity.bundle.crop.size)
    return draw_crops(np.random.default_rng(0), BodySampler("test"), renderer, count).images


def main(config: CheckConfig) -> int:
    parity = Parity(Bundle.load(config.bundle), config.checkpoint)
    table = Table("inputs", "graph", "output", "largest difference", "allowed", "")
    good = True
    for name, make in (("random", noise_crops), ("rendered", rendered_crops)):
        crops = make(parity, max(people for people, _ in SIZES))
        differences = worst(parity.people(crops[:people], samples) for people, samples in SIZES)
        for (graph, output), value in differences.items():
            passed = value <= LIMITS[output]
            good &= passed
            table.add_row(name, graph, output, f"{value:.2g}", f"{LIMITS[output]:g}", "" if passed else "DIFFERS")
    Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(call("export/check.py", lambda: main(parse(CheckConfig, sys.argv[1:]))))
