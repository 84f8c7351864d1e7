"""The gates: how far a compiled bundle may be from the reference, by precision; and what is compared.

`mega export check` compares with torch; `mega export trt` compares with onnxruntime on the CPU, because robots have
no torch. Only numpy and mega_ros are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.table import Table

from mega_model.core.topology import LIMBS
from mega_ros.bundle import Bundle, GraphName
from mega_ros.engine_cache import Precision
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
"""Largest allowed difference of each output of a graph from torch's, for the same inputs, in fp32: metres for vertices
and sigmas; for tokens, the number of different ones."""
GATES: dict[Precision, dict[str, float]] = {
    "fp32": {
        "tokens that differ": 0.0,
        "vertex error, mean": 1e-4,
        "vertex error, p99": 1e-4,
        "vertex error, max": 1e-3,
        "sigma error, mean": 1e-4,
        "sampled tokens that differ": 0.01,
        "same seed, other people": 0.0,
    },
    "fp16": {
        "tokens that differ": 0.01,
        "vertex error, mean": 1e-3,
        "vertex error, p99": 5e-3,
        "vertex error, max": 2e-2,
        "sigma error, mean": 2e-3,
        "sampled tokens that differ": 0.05,
        "same seed, other people": 0.0,
    },
}
"""Largest allowed error of a whole bundle, from crops to people: metres, or shares of the tokens. A sampled token may
fall on the other side of a near tie, and takes the tokens of the next steps with it."""
CHAIN: tuple[GraphName, ...] = ("backbone", "deterministic", "sampler")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class BundleOutputs:
    """What a bundle makes of crops."""

    tokens: np.ndarray
    """[P, N]: of the deterministic mesh."""
    vertices: np.ndarray
    """[P, V, 3], metres, with the person's rotation."""
    sigma: np.ndarray
    """[P, V], metres; [P, 0] without an error head."""
    samples: np.ndarray
    """[P, Q, N]: sampled tokens."""

    @classmethod
    def of(cls, deterministic: Arrays, sampler: Arrays | None) -> BundleOutputs:
        """From the outputs of two graphs; None: no samples."""
        vertices = np.einsum("pij,pvj->pvi", deterministic["rotation"], deterministic["vertices"])
        sigma = deterministic.get("sigma", np.zeros((len(vertices), 0), np.float32))
        samples = deterministic["tokens"][:, None][:, :0] if sampler is None else sampler["tokens"]
        return cls(deterministic["tokens"], vertices, sigma, samples)


class Chain:
    """A bundle's three graphs, each fed by the one before."""

    def __init__(self, bundle: Bundle, engine: Callable[[GraphName], OnnxEngine]) -> None:
        self.bundle = bundle
        self._engines = {graph: engine(graph) for graph in CHAIN}

    def __call__(self, given: Arrays) -> BundleOutputs:
        """given: crops, keypoints and uniforms, see `inputs`. Without samples, the sampler does not run."""
        known, outputs = dict(given), {}
        for graph in CHAIN if given["uniforms"].shape[1] else CHAIN[:2]:
            inputs = {name: known[name] for name in self.bundle.graphs[graph].inputs}
            outputs[graph] = self._engines[graph].run(**inputs)
            known |= outputs[graph]
        return BundleOutputs.of(outputs["deterministic"], outputs.get("sampler"))


def inputs(bundle: Bundle, crops: np.ndarray, samples: int) -> Arrays:
    """The inputs of a chain: crops uint8 [P, H, W, 3], with random keypoints and uniforms."""
    people, rng = len(crops), np.random.default_rng(len(crops))
    uniforms = rng.uniform(1e-6, 1 - 1e-6, bundle.graphs["sampler"].inputs["uniforms"].sized(people, samples))
    keypoints = rng.uniform(0, 1, (people, len(LIMBS), 3))
    return {"crops": crops, "uniforms": uniforms.astype(np.float32), "keypoints": keypoints.astype(np.float32)}


def noise_crops(size: int, count: int) -> np.ndarray:
    """uint8 [count, size, size, 3]"""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def photographed_crops(size: int, count: int) -> np.ndarray:
    """The same from the checkout's photograph of a person: RGB, each cut further to the right than the one before."""
    photograph = cv2.imread(str(Path(__file__).parents[1] / "demo" / "photographer.png"))
    assert photograph is not None
    height, width = photograph.shape[:2]
    side = min(height, width)
    starts = np.linspace(0, width - side, count).astype(int)
    crops = [cv2.resize(photograph[:side, x : x + side, ::-1], (size, size)) for x in starts]
    return np.stack(crops).astype(np.uint8)


def errors(reference: BundleOutputs, got: BundleOutputs, again: BundleOutputs) -> dict[str, float]:
    """What `GATES` bound. `again`: the people of a second run with the same inputs."""
    distances = np.linalg.norm(got.vertices - reference.vertices, axis=-1)
    same = np.array_equal(got.tokens, again.tokens) and np.array_equal(got.samples, again.samples)
    same &= bool(np.allclose(got.vertices, again.vertices, atol=1e-5))  # a GPU's sums may have another order
    return {
        "tokens that differ": float((got.tokens != reference.tokens).mean()),
        "vertex error, mean": float(distances.mean()),
        "vertex error, p99": float(np.quantile(distances, 0.99)),
        "vertex error, max": float(distances.max()),
        "sigma error, mean": float(np.abs(got.sigma - reference.sigma).mean()) if got.sigma.size else 0.0,
        "sampled tokens that differ": float((got.samples != reference.samples).mean()) if got.samples.size else 0.0,
        "same seed, other people": float(not same),
    }


def missed(found: dict[str, float], precision: Precision) -> list[str]:
    """The gates that the errors do not pass; an error that is no number passes none."""
    return [name for name, limit in GATES[precision].items() if not found[name] <= limit]


def table(found: dict[str, float], precision: Precision, title: str) -> Table:
    made = Table("error", "found", "allowed", "", title=title)
    for name, limit in GATES[precision].items():
        made.add_row(name, f"{found[name]:.2g}", f"{limit:g}", "MISSED" if name in missed(found, precision) else "")
    return made
