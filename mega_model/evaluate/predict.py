"""Predictions of a model for an image set, batch by batch: the input of every table and figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint, generate
from mega_model.blazepose import PoseFeatures
from mega_model.checkpoint import LoadedModel
from mega_model.core import metrics
from mega_model.core.errors import InputError, first_line
from mega_model.core.fit import Bends, fit_people, limb_shares, widened
from mega_model.core.topology import LIMBS
from mega_model.data.images import ImageSet, open_for
from mega_model.evaluate.report import Report, publish
from mega_model.expected_error import head_inputs
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega
from mega_model.options import ImageSelection, Random, SamplingOptions, Subject

Name = TypeVar("Name")


def open_subject(subject: Subject) -> tuple[LoadedModel, ImageSet]:
    """The model on its device, and the images. Raises InputError if the model cannot read them."""
    model = checkpoint.load(subject.checkpoint).to(device_of(subject))
    return model, open_for(model.mega.config, model.topology, subject.images, subject.body)


def device_of(options: ImageSelection | Random) -> str:
    """Raises InputError if there is no such device."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {first_line(error)}") from error
    return device


def facts_of(subject: Subject, protocol: str, total: int) -> dict[str, str]:
    """The report's entries on the model, the evaluated images out of `total`, and the protocol."""
    count = len(image_indices(total, subject))
    drawn = f"{count}, drawn at random with seed {subject.seed}" if count < total else f"{count}, the whole set"
    facts = {"model": str(subject.checkpoint), "set": subject.images, "images": drawn, "protocol": protocol}
    return facts | {"mesh": mesh_of(subject) or "as published"}


def mesh_of(config: ImageSelection) -> str:
    """What makes the deterministic mesh another than the published one; nothing if it is that."""
    asked = {"most likely tokens": config.decode == "argmax", "not fitted": not config.fit}
    return ", ".join(name for name, is_so in asked.items() if is_so)


def publish_table(subject: Subject, table: str, report: Report) -> None:
    """Write the report. Its file name holds table, set, protocol and mesh, so that reports can share a folder."""
    kind, _, place = subject.images.partition(":")
    words = (table, kind, Path(place).name.removesuffix(".npz"), report.facts["protocol"], mesh_of(subject))
    publish(report, subject.folder, re.sub(r"[^\w.]+", "-", " ".join(words).strip()))


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for B images. Meshes are rotated into the camera's axes; metres."""

    batch: Mapping[str, Tensor]
    """The image set's batch."""
    truth: np.ndarray
    """[B, V, 3]"""
    single: np.ndarray
    """[B, V, 3] deterministic"""
    samples: np.ndarray
    """[B, Q, V, 3]; Q is 0 if none were requested"""
    sigma: np.ndarray
    """[B, V]: from the error head, or else the samples' spread, not calibrated"""
    rotation: np.ndarray
    """[B, 3, 3] predicted: canonical to camera"""
    camera: np.ndarray
    """[B, 3] (s, tx, ty) predicted"""
    beside: np.ndarray
    """[B, 3]: how far the deterministic mesh is beside the true one, see `metrics.beside`; 0 if it was not fitted"""


def image_indices(total: int, config: ImageSelection) -> np.ndarray:
    """Indices of the evaluated images out of `total`: int [n], ascending."""
    count = min(config.count or total, total)
    return np.sort(np.random.default_rng(config.seed).permutation(total)[:count])


@torch.no_grad()
def predict(
    model: LoadedModel, images: ImageSet, config: ImageSelection, sampling: SamplingOptions | None = None
) -> Iterator[Prediction]:
    """Predictions one batch at a time, because a large set's samples do not fit into memory.

    Without `sampling`, only the deterministic mode runs. The model is on `device_of(config)`.
    """
    mega, tokenizer, errors, _ = model
    picked, topology = image_indices(len(images), config), images.topology
    shares = limb_shares(topology.template, topology.joints(topology.template))
    for start in tqdm(range(0, len(picked), config.batch), desc="evaluate", mininterval=5):
        index = picked[start : start + config.batch]
        batch = images.batch(index, None)
        features = features_of(mega, batch, device_of(config))
        seen, states, logits = generate.first_pass(mega, features)
        if config.decode == "argmax":
            single = tokenizer.decode(logits.argmax(dim=-1))
        else:
            single = generate.expected_vertices(tokenizer, logits)
        rotation = rot6d_to_matrix(seen.rot6d)
        keypoints = batch.get("keypoints", torch.zeros(len(index), len(LIMBS), 3)).to(device_of(config))
        samples = single[:, None][:, :0]
        if sampling and sampling.samples:
            random = uniforms(index, sampling, tokenizer.length, config.seed).to(device_of(config))
            tokens = generate.sample(mega, seen.image, logits, random, sampling.temperature)
            meshes = [tokenizer.decode(part) for part in tokens.flatten(0, 1).split(100)]  # all together take gigabytes
            samples = torch.cat(meshes).unflatten(0, tokens.shape[:2])
        spread = metrics.spread(samples) if samples.shape[1] else torch.full(single.shape[:2], torch.nan)
        sigma = spread if errors is None else errors(**head_inputs(states, seen, features, keypoints)).sigma
        camera, sigma = seen.camera.cpu().numpy(), sigma.cpu().numpy()
        together = torch.cat([single[:, None], samples], dim=1).cpu().numpy()  # [B, 1 + Q, V, 3]
        turned, beside, places = rotation.cpu().numpy()[:, None], np.zeros((len(index), 3)), None
        if config.fit and errors is not None and isinstance(features, PoseFeatures) and "focal" in batch:
            fitted = fit_people(
                together,
                turned,
                camera[:, None],
                batch["focal"].numpy()[:, None],
                features.landmarks.cpu().numpy()[:, None],
                keypoints.cpu().numpy()[:, None],
                Bends.of(topology.joint_regressor, errors.modes.cpu().numpy()),
            )
            together, turned = fitted.vertices.astype(np.float32), fitted.body_to_crop.astype(np.float32)
            sigma = widened(sigma, fitted.residuals[:, 0], shares)
            places = fitted.translation[:, 0], batch["translation"].numpy()
        together = together @ turned.swapaxes(-1, -2)
        truth = (batch["vertices"] @ batch["rotation"].mT).numpy()
        single, pelvis = together[:, 0], topology.joint_regressor[0]
        if places is not None:
            beside = metrics.beside(*(pelvis @ mesh + place for mesh, place in zip((single, truth), places)))
        yield Prediction(batch, truth, single, together[:, 1:], sigma, turned[:, 0], camera, beside)


def features_of(model: Mega, batch: Mapping[str, Tensor], device: str) -> Any:
    """The backbone's output for a batch of images, or the stored features of a batch."""
    if "maps" in batch:
        return PoseFeatures(*(batch[name].to(device) for name in PoseFeatures._fields))
    return model.backbone(model.normalise(batch["images"].to(device).float() / 255))


def uniforms(index: np.ndarray, sampling: SamplingOptions, length: int, seed: int) -> Tensor:
    """[B, Q, T, N, 2] for the images `index` int [B]. Those of an image do not depend on the rest of the batch."""
    shape = (sampling.samples, sampling.steps, length, 2)
    seeds = (np.random.SeedSequence((seed, k)).generate_state(1, np.uint64)[0] for k in index.tolist())
    return torch.stack([generate.uniforms(shape, int(own)) for own in seeds])


def collect(parts: Iterable[Mapping[Name, np.ndarray]]) -> dict[Name, np.ndarray]:
    """Arrays of batches, joined name by name along the first axis."""
    joined = list(parts)
    return {name: np.concatenate([part[name] for part in joined]) for name in joined[0]}
