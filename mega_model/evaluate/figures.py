"""`mega evaluate figures`: figures 4 to 7 and 9 of the paper, on the first images of a random draw.

Figure 3 comes with `mega evaluate random`; figure 6 also with the table it belongs to, by `mega evaluate mean`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mega_model import checkpoint, generate
from mega_model.checkpoint import LoadedModel
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.data.features import FeatureSet
from mega_model.evaluate import draw
from mega_model.evaluate.mean import error_distribution, errors_by_mode
from mega_model.evaluate.predict import (
    Prediction,
    device_of,
    facts_of,
    features_of,
    open_subject,
    predict,
    publish_table,
)
from mega_model.evaluate.protocols import Protocol
from mega_model.evaluate.report import Report
from mega_model.options import Figures
from mega_model.tokenizer import MeshTokenizer

SHOWN_STEPS = (1, 5, 9, 13, 16, 20)
"""Steps of unconditional generation that figure 7 shows."""


class ShownPerson(NamedTuple):
    """One image of a `Prediction`, and the predictions for it."""

    image: np.ndarray
    """uint8 [3, H, W]"""
    truth: np.ndarray
    single: np.ndarray
    samples: np.ndarray
    rotation: np.ndarray
    camera: np.ndarray
    error: np.ndarray
    """[V] of the deterministic mesh, metres"""
    sigma: np.ndarray
    """[V] spread of the samples, metres"""


def people(p: Prediction, protocol: Protocol) -> list[ShownPerson]:
    error, sigma = protocol.vertex_errors(p.single, p.truth), metrics.spread(p.samples)
    images = p.batch["images"].numpy()
    return [*map(ShownPerson, images, p.truth, p.single, p.samples, p.rotation, p.camera, error, sigma)]


def evaluate(config: Figures) -> Report:
    model, images = open_subject(config)
    if isinstance(images, FeatureSet):
        raise InputError(f"{config.images}: features have no images to draw; use the rendered set")
    protocol = Protocol.of(images, config)
    faces = images.topology.faces
    shown: list[ShownPerson] = []

    def noted(p: Prediction) -> Prediction:
        if len(shown) < config.rows:
            shown.extend(people(p, protocol))
        return p

    errors = errors_by_mode(map(noted, predict(model, images, config, config)), protocol)
    shown = shown[: config.rows]
    figures = {
        "Figure 4: error of the deterministic mesh, and uncertainty": errors_and_sigma(shown, faces),
        "Figure 5: samples of one image, from the camera and from the side": several_samples(shown, faces),
        "Figure 6: distribution of the errors": error_distribution(errors),
        "Figure 7: meshes after each step; tokens still masked are shown as code 0": steps_of_images(
            model, shown, faces, config
        ),
        "Figure 9: truth, image, deterministic mesh, uncertainty": qualitative(shown, faces),
    }
    if config.pretrained:
        random = steps_of_random_bodies(config.pretrained, faces, config)
        figures["Figure 7, continued: random bodies after some of 20 steps"] = random
    facts = facts_of(config, protocol.name, len(images)) | {"samples": config.describe()}
    return Report("Figures", facts, {}, figures)


def colour_limit(values: list[np.ndarray]) -> float:
    """Upper limit of a colour scale, metres: the 98th percentile of the values."""
    return float(np.quantile(values, 0.98))


def errors_and_sigma(shown: list[ShownPerson], faces: np.ndarray) -> Figure:
    """Figure 4."""
    figure, axes = draw.grid(len(shown), 3, ["image", "error", "uncertainty"])
    for column, label, values in (
        (1, "error, mm", [p.error for p in shown]),
        (2, "standard deviation, mm", [p.sigma for p in shown]),
    ):
        limit = colour_limit(values)
        for row, (p, value) in enumerate(zip(shown, values)):
            draw.alone(axes[row, column], p.single, faces, value, limit)
        draw.scale_bar(figure, axes[:, column], limit, label)
    for row, p in enumerate(shown):
        draw.image(axes[row, 0], p.image)
    return figure


def several_samples(shown: list[ShownPerson], faces: np.ndarray, columns: int = 5) -> Figure:
    """Figure 5: two rows per image."""
    headings = ["image", *(f"sample {q + 1}" for q in range(columns))]
    figure, axes = draw.grid(2 * len(shown), 1 + columns, headings)
    for row, p in enumerate(shown):
        draw.image(axes[2 * row, 0], p.image)
        for column, sample in enumerate(p.samples[:columns], start=1):
            draw.over(axes[2 * row, column], p.image, sample, p.camera, faces)
            draw.alone(axes[2 * row + 1, column], sample @ draw.SIDE.T, faces)
    return figure


def qualitative(shown: list[ShownPerson], faces: np.ndarray) -> Figure:
    """Figure 9."""
    headings = ["ground truth", "image", "deterministic", "uncertainty", "uncertainty, canonical"]
    figure, axes = draw.grid(len(shown), len(headings), headings)
    limit = colour_limit([p.sigma for p in shown])
    for row, p in zip(axes, shown):
        draw.alone(row[0], p.truth, faces)
        draw.image(row[1], p.image)
        draw.over(row[2], p.image, p.single, p.camera, faces)
        draw.alone(row[3], p.single, faces, p.sigma, limit)
        draw.alone(row[4], p.single @ p.rotation @ draw.UPRIGHT, faces, p.sigma, limit)
    draw.scale_bar(figure, axes[:, -1], limit, "standard deviation, mm")
    return figure


@torch.no_grad()
def steps_of_images(model: LoadedModel, shown: list[ShownPerson], faces: np.ndarray, config: Figures) -> Figure:
    """Figure 7, upper part: a row per image."""
    mega, tokenizer, _, _ = model
    device, images = device_of(config), torch.from_numpy(np.stack([p.image for p in shown]))
    seen, _, logits = generate.first_pass(mega, features_of(mega, {"images": images}, device))
    uniforms = generate.uniforms((len(shown), config.steps, tokenizer.length, 2), config.seed).to(device)
    noise = generate.temperatures(config.steps, config.temperature)
    states = generate.unmask(mega, seen.image, logits, uniforms, noise)
    meshes = [known_bodies(tokenizer, *state) for state in states]
    headings = ["image", *(f"step {t + 1}" for t in range(config.steps))]
    figure, axes = draw.grid(len(shown), len(headings), headings)
    for i, (row, p) in enumerate(zip(axes, shown)):
        draw.image(row[0], p.image)
        for ax, after in zip(row[1:], meshes):
            draw.alone(ax, after[i] @ p.rotation.T, faces)
    return figure


@torch.no_grad()
def steps_of_random_bodies(pretrained: Path, faces: np.ndarray, config: Figures, rows: int = 2) -> Figure:
    """Figure 7, lower part."""
    model, tokenizer, _ = checkpoint.load_mega(pretrained)
    steps = SHOWN_STEPS[-1]
    uniforms = generate.uniforms((rows, steps, tokenizer.length, 2), config.seed)
    after = [*generate.unmask_bodies(model, uniforms, temperature=1.2)]
    figure, axes = draw.grid(rows, len(SHOWN_STEPS), [f"step {t}" for t in SHOWN_STEPS])
    for column, step in zip(axes.T, SHOWN_STEPS):
        for ax, mesh in zip(column, known_bodies(tokenizer, *after[step - 1])):
            draw.alone(ax, mesh @ draw.UPRIGHT, faces)
    return figure


def known_bodies(tokenizer: MeshTokenizer, tokens: Tensor, index: Tensor) -> np.ndarray:
    """Meshes [B, V, 3] of tokens [B, N], where all tokens except those at index [B, M] are replaced by code 0."""
    kept = torch.zeros_like(tokens).scatter(1, index, tokens.gather(1, index))
    return tokenizer.decode(kept).cpu().numpy()


def main(config: Figures) -> None:
    publish_table(config, "figures", evaluate(config))
