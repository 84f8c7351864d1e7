"""Does a bundle compute what torch computes? `python export/check.py [BUNDLE] --checkpoint FOLDER`

Compares every output of every graph with the functions that training and evaluation use, on random and on rendered
crops, for several numbers of people and samples. Exit code 1 if tokens differ or vertices are more than 0.1 mm apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export.to_onnx import DETERMINISTIC, FEATURES, as_stored
from mega_model import checkpoint, generate
from mega_model.blazepose import PoseFeatures
from mega_model.geometry import rot6d_to_matrix
from mega_ros.bundle import Bundle
from mega_ros.engines import OnnxEngine

LIMITS = {
    "features": 1e-3,
    "tokens": 0.0,
    "vertices": 1e-4,
    "rotation": 1e-4,
    "camera": 1e-4,
    "image": 1e-3,
    "logits": 1e-3,
    "sigma": 1e-4,
    "joints_sigma": 1e-4,
    "distance": 1e-3,
    "landmarks": 1e-4,
    "world": 1e-4,
    "presence": 1e-4,
    "boxes": 1e-2,
    "scores": 1e-4,
}
"""Largest allowed differences. Metres for vertices and sigmas; pixels for boxes; for tokens, how many differ."""
SIZES = ((1, 1), (1, 10), (3, 4), (5, 2))
"""P, Q"""


@dataclass(frozen=True)
class Config:
    checkpoint: Path
    """folder that the bundle was exported from"""
    bundle: tyro.conf.Positional[str] = "default"
    """folder of the bundle"""
    detector: Path | None = None
    """folder that the bundle's detector was exported from"""


Differences = dict[tuple[str, str], float]
"""(graph, output) -> largest difference."""


class Parity:
    """One bundle and the torch model that it was made from."""

    def __init__(self, bundle: Bundle, folder: Path, detector: Path | None = None) -> None:
        self.bundle = bundle
        self.model, self.tokenizer, self.topology = checkpoint.load_mega(folder)
        self.detector = checkpoint.load_detector(detector) if detector else None
        self.errors = checkpoint.load_errors(folder)
        as_stored(self.model, self.tokenizer, *([self.errors] if self.errors else []))
        self.engines = {graph: OnnxEngine(bundle, graph, "cpu") for graph in bundle.graphs}

    @torch.no_grad()
    def people(self, crops: np.ndarray, samples: int) -> Differences:
        """Crops uint8 [P, H, W, 3] through backbone, deterministic and sampler."""
        shape = self.bundle.graphs["sampler"].inputs["uniforms"].shape
        uniforms = generate.uniforms((len(crops), samples, *(int(size) for size in shape[2:])), seed=len(crops))
        model, decode = self.model, self.tokenizer.decode
        features = model.backbone(model.normalise(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255))
        parts = dict(zip(FEATURES, features)) if isinstance(features, PoseFeatures) else {FEATURES[0]: features}
        seen = model.see(features)
        states = generate.first_states(model, seen.tokens)
        logits = model.head(states)
        sampled = generate.sample(model, seen.tokens, logits, uniforms, self.bundle.sampling.temperature)
        vertices = generate.expected_vertices(self.tokenizer, logits)
        answers = logits.argmax(dim=-1), vertices, rot6d_to_matrix(seen.rot6d), seen.camera, seen.tokens, logits
        if self.errors is not None:
            answers = *answers, *self.errors(states, features)
        expected = {
            "backbone": parts,
            "deterministic": dict(zip(DETERMINISTIC, answers)),
            "sampler": {
                "tokens": sampled,
                "vertices": decode(sampled.flatten(0, 1)).unflatten(0, sampled.shape[:2]),
            },
        }
        given = {"crops": crops, **{name: part.numpy() for name, part in parts.items()}}
        given |= {"image": seen.tokens.numpy(), "logits": logits.numpy(), "uniforms": uniforms.numpy()}
        return self._compare(expected, given)

    @torch.no_grad()
    def boxes(self, image: np.ndarray) -> Differences:
        """An image uint8 [1, H, W, 3] of the detector's size."""
        assert self.detector is not None
        boxes, scores = self.detector(torch.from_numpy(image))
        got = self.engines["detector"].run(image=image)
        # each of torch's boxes to the nearest, because equal scores may come in any order, and any may be the last one
        boxes = boxes[scores > scores[-1] + 1e-5]
        apart = np.abs(got["boxes"][:, None] - boxes.numpy()).max(axis=-1).min(axis=0)
        return {
            ("detector", "boxes"): float(apart.max(initial=0)),
            ("detector", "scores"): _largest(got["scores"], scores.numpy()),
        }

    def _compare(self, expected: dict[str, dict[str, Tensor]], given: dict[str, np.ndarray]) -> Differences:
        differences = {}
        for graph, outputs in expected.items():
            got = self.engines[graph].run(**{name: given[name] for name in self.bundle.graphs[graph].inputs})
            for name, tensor in outputs.items():
                differences[graph, name] = _largest(got[name], tensor.numpy())
        return differences


def _largest(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; of whole numbers, how many differ. Other shapes or types differ without limit."""
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


def noise_inputs(parity: Parity, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops [count, H, W, 3] and images for the detector [count, H', W', 3] of noise."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (count, *size, 3), np.uint8) for size in _sizes(parity))  # type: ignore[return-value]


def rendered_inputs(parity: Parity, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of people as training sees them, from test clips."""
    from mega_model.data.meshes import BodySampler  # needs Anny
    from mega_model.data.scenes import Renderer, draw_crops, draw_groups

    rng = np.random.default_rng(0)
    bodies = BodySampler("test")
    crop, image = (Renderer(parity.topology, *size) for size in _sizes(parity))
    return draw_crops(rng, bodies, crop, count).images, draw_groups(rng, bodies, image, count, 3).images


def _sizes(parity: Parity) -> tuple[tuple[int, int], tuple[int, int]]:
    crop = parity.bundle.crop.size
    detector = parity.detector.config if parity.detector else None
    return (crop, crop), (detector.height, detector.width) if detector else (1, 1)


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    parity = Parity(Bundle.load(config.bundle), config.checkpoint, config.detector)
    table = Table("inputs", "graph", "output", "largest difference", "allowed", "")
    good = True
    for name, make in (("random", noise_inputs), ("rendered", rendered_inputs)):
        crops, images = make(parity, max(people for people, _ in SIZES))
        differences = worst(parity.people(crops[:people], samples) for people, samples in SIZES)
        if parity.detector is not None:
            differences |= worst(parity.boxes(image[None]) for image in images)
        for (graph, output), value in differences.items():
            passed = value <= LIMITS[output]
            good &= passed
            table.add_row(name, graph, output, f"{value:.2g}", f"{LIMITS[output]:g}", "" if passed else "DIFFERS")
    Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
