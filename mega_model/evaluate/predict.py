"""A model run once over an image set, batch by batch: what every table and figure is made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint, generate
from mega_model.blazepose import PoseFeatures
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.core.fit import fit_people
from mega_model.data.images import ImageSet, open_set
from mega_model.evaluate.report import Report, publish
from mega_model.expected_error import ErrorHead
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega
from mega_model.tokenizer import MeshTokenizer

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which pictures a model is run on, and where."""

    count: int | None = None
    """Pictures of the set, drawn at random; all of them if this is not given."""
    seed: int = 0
    batch: int = 20
    """Pictures at once."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    decode: Literal["expected", "argmax"] = "expected"
    """The deterministic mesh: of the expected codes, as published, or of the most likely ones, as in the paper."""
    fit: bool = True
    """Tie meshes to the landmarks, as the run time does, where there is an error head and the set has focal lengths."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The stochastic mode: HRNet as in the paper. Its ResNet-50 takes 2 steps at temperature 10 (appendix C)."""

    samples: int = 25
    """Q, meshes per picture."""
    steps: int = 5
    """T"""
    temperature: float = 1.0
    """Noise of the first step."""

    def describe(self) -> str:
        return f"{self.samples} in {self.steps} steps, temperature {self.temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Which model, and where its report goes."""

    checkpoint: Path
    """Folder of a trained or imported model."""
    out: Path | None = None
    """Folder of the report; the checkpoint's folder `evaluation` if this is not given."""

    @property
    def folder(self) -> Path:
        return self.out or self.checkpoint / "evaluation"


@dataclass(frozen=True, kw_only=True)
class Subject(Trained, Pictures):
    """What is evaluated: a model on an image set."""

    images: Annotated[str, tyro.conf.arg(name="set")]
    """KIND:PATH of an image set, for example rendered:runs/crops/test or 3dpw:/data/3DPW."""
    body: Path | None = None
    """SMPL model file of the set's meshes, or a folder with one for each gender; by default the environment variable
    MEGA_SMPL. A rendered set needs none."""

    def publish(self, table: str, report: Report) -> None:
        """Sets, their parts and protocols may share a folder: the report's file is called by all of them."""
        kind, _, place = self.images.partition(":")
        words = (table, kind, Path(place).name.removesuffix(".npz"), report.facts["protocol"])
        publish(report, self.folder, re.sub(r"[^\w.]+", "-", " ".join(words)))

    def facts(self, protocol: str, total: int) -> dict[str, str]:
        """What a report says of the model, the pictures that were looked at out of `total`, and the protocol."""
        count = len(pictures(total, self))
        drawn = f"{count}, drawn at random with seed {self.seed}" if count < total else f"{count}, the whole set"
        return {"model": str(self.checkpoint), "set": self.images, "pictures": drawn, "protocol": protocol}

    def open(self) -> tuple[Mega, MeshTokenizer, ImageSet]:
        """Raises InputError if model and set are of different bodies."""
        model, tokenizer, topology = checkpoint.load_mega(self.checkpoint)
        size = model.config.image_size
        images = open_set(self.images, size=(size, size), body=self.body, topology=topology)
        here, there = len(topology.template), len(images.topology.template)
        if here != there:
            raise InputError(f"{self.images} has meshes of {there} vertices, the model of {self.checkpoint} of {here}")
        return model.to(self.device), tokenizer.to(self.device), images


@dataclass(frozen=True)
class Prediction:
    """What a model says about B pictures. Meshes are turned as the camera sees them; metres."""

    batch: Mapping[str, Tensor]
    """What the image set gave."""
    truth: np.ndarray
    """[B, V, 3]"""
    single: np.ndarray
    """[B, V, 3] deterministic"""
    samples: np.ndarray
    """[B, Q, V, 3]; Q is 0 where none were asked for"""
    sigma: np.ndarray
    """[B, V]: of the deterministic mesh, by the error head, or else the spread of the samples, not yet calibrated"""
    rotation: np.ndarray
    """[B, 3, 3] predicted: canonical to camera"""
    camera: np.ndarray
    """[B, 3] (s, tx, ty) predicted"""


def pictures(total: int, config: Pictures) -> np.ndarray:
    """The pictures out of `total` that are looked at, int [n], ascending."""
    count = min(config.count or total, total)
    return np.sort(np.random.default_rng(config.seed).permutation(total)[:count])


@torch.no_grad()
def predict(
    model: Mega,
    tokenizer: MeshTokenizer,
    images: ImageSet,
    config: Pictures,
    sampling: Sampling | None = None,
    errors: ErrorHead | None = None,
) -> Iterator[Prediction]:
    """One after the other, for a large set's samples fit no memory. Without `sampling`: deterministic mode alone."""
    picked, regressor = pictures(len(images), config), images.topology.joint_regressor
    for start in tqdm(range(0, len(picked), config.batch), desc="evaluate", mininterval=5):
        index = picked[start : start + config.batch]
        batch = images.batch(index, None)
        features = features_of(model, batch, config.device)
        seen = model.see(features)
        states = generate.first_states(model, seen.image)
        logits = model.read(states, seen.image)
        if config.decode == "argmax":
            single = tokenizer.decode(logits.argmax(dim=-1))
        else:
            single = generate.expected_vertices(tokenizer, logits)
        rotation = rot6d_to_matrix(seen.rot6d).cpu()
        published = single
        if config.fit and errors is not None and isinstance(features, PoseFeatures) and "focal" in batch:
            published, rotation = tied(single, rotation, seen.camera, batch, features, regressor, errors.modes)
        samples = single[:, None][:, :0]
        if sampling and sampling.samples:
            random = uniforms(index, sampling, tokenizer.length, config.seed).to(config.device)
            tokens = generate.sample(model, seen.image, logits, random, sampling.temperature)
            meshes = [tokenizer.decode(part) for part in tokens.flatten(0, 1).split(100)]  # all at once takes gigabytes
            samples = torch.cat(meshes).unflatten(0, tokens.shape[:2])
        spread = metrics.spread(samples) if samples.shape[1] else torch.full(single.shape[:2], torch.nan)
        yield Prediction(
            batch,
            (batch["vertices"] @ batch["rotation"].mT).numpy(),
            (published.cpu() @ rotation.mT).numpy(),
            (samples.cpu() @ rotation.mT[:, None]).numpy(),
            (spread if errors is None else errors(states, features).sigma).cpu().numpy(),
            rotation.numpy(),
            seen.camera.cpu().numpy(),
        )


def features_of(model: Mega, batch: Mapping[str, Tensor], device: str) -> Any:
    """What the backbone gives for a batch of an image set, or of a set of stored features."""
    if "maps" in batch:
        return PoseFeatures(*(batch[name].to(device) for name in PoseFeatures._fields))
    return model.backbone(model.normalise(batch["images"].to(device).float() / 255))


def tied(
    vertices: Tensor,
    rotation: Tensor,
    camera: Tensor,
    batch: Mapping[str, Tensor],
    features: PoseFeatures,
    regressor: np.ndarray,
    modes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Vertices [B, V, 3] and rotations [B, 3, 3] of people, tied to their landmarks; see `fit_people`."""
    mesh, turned, _ = fit_people(
        vertices.cpu().numpy(),
        rotation.cpu().numpy(),
        camera.cpu().numpy(),
        batch["focal"].numpy(),
        features.landmarks.cpu().numpy(),
        None,
        regressor,
        modes.cpu().numpy(),
    )
    return torch.from_numpy(mesh.astype(np.float32)), torch.from_numpy(turned.astype(np.float32))


def uniforms(index: np.ndarray, sampling: Sampling, length: int, seed: int) -> Tensor:
    """[B, Q, T, N, 2] for the pictures `index` int [B]: each has its own, whichever others share its batch."""
    shape = (sampling.samples, sampling.steps, length, 2)
    seeds = (np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0] for k in index.tolist())
    return torch.stack([generate.uniforms(shape, int(own)) for own in seeds])


def collect(parts: Iterable[Mapping[K, np.ndarray]]) -> dict[K, np.ndarray]:
    """Arrays of batches, joined name by name along the first axis."""
    joined = list(parts)
    return {name: np.concatenate([part[name] for part in joined]) for name in joined[0]}
