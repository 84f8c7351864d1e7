"""`mega bench`: time of generation, compared with a plain loop over samples and steps with the same weights.

Both start from image features. The loop runs encoder and decoder for every sample and step, as the paper describes it.
`generate` caches the encoder's output for no tokens, shares the first step among the samples, and batches the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mega_model import generate
from mega_model.backbones import BACKBONES
from mega_model.blazepose import PoseFeatures
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.options import GenerationBench


def random_features(config: MegaConfig) -> Any:
    """Random features with the shape of the backbone's output for one crop. The backbone does not run."""
    with torch.device("meta"):
        backbone = BACKBONES[config.backbone](config.backbone_width)
        found = backbone(torch.empty(1, 3, config.image_size, config.image_size))
    if isinstance(found, PoseFeatures):
        return PoseFeatures(*(torch.randn(part.shape) for part in found))
    return torch.randn(found.shape)


def loop_deterministic(model: Mega, people: Sequence[Any]) -> Tensor:
    """The result of `generate.deterministic` for several people, one at a time."""
    nothing = torch.zeros(1, model.config.tokens, dtype=torch.long)
    return torch.cat([model(features, nothing, nothing.bool()).logits.argmax(dim=-1) for features in people])


def loop_stochastic(
    model: Mega, people: Sequence[Any], samples: int, steps: int, temperature: float, seed: int
) -> Tensor:
    """The result of `generate.stochastic`, person by person, sample by sample and step by step."""
    length = model.config.tokens
    uniforms = generate.uniforms((len(people), samples, steps, length, 2), seed)
    counts, noise = generate.visible_counts(length, steps), generate.temperatures(steps, temperature)
    out = torch.zeros(len(people), samples, length, dtype=torch.long)
    for person, features in enumerate(people):
        for sample in range(samples):
            tokens, index = out[person, sample][None], torch.zeros(1, 0, dtype=torch.long)
            for t in range(steps):
                visible = torch.zeros(1, length, dtype=torch.bool).scatter(1, index, True)
                logits = model(features, tokens, visible).logits
                random = uniforms[person, sample, t][None]
                tokens, index = generate.step(logits, tokens, index, counts[t + 1], noise[t], random)
            out[person, sample] = tokens[0]
    return out


def seconds(run: Callable[[], Tensor], repeats: int) -> float:
    """Median wall time, after one warm-up run."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times[1:])


@torch.no_grad()
def main(config: GenerationBench) -> None:
    torch.manual_seed(0)
    preset = PRESETS[config.preset]
    features = random_features(preset)
    if isinstance(features, Tensor):  # leave out the paper's backbones, which are large and not needed
        preset = replace(preset, backbone="given", backbone_width=features.shape[1])
    model = Mega(preset).eval()
    how = (config.samples, config.steps, 1.0, 0)
    runs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "deterministic": (
            lambda: loop_deterministic(model, [features]),
            lambda: generate.deterministic(model, features),
        ),
        f"Q = {config.samples}, T = {config.steps}": (
            lambda: loop_stochastic(model, [features], *how),
            lambda: generate.stochastic(model, features, *how),
        ),
    }
    title = f"{config.preset}: one person from features, {torch.get_num_threads()} CPU threads"
    table = Table("generation", "loop, ms", "generate, ms", "ratio", "same tokens", title=title)
    for name, (loop, ours) in runs.items():
        slow, fast = seconds(loop, config.repeats), seconds(ours, config.repeats)
        same = (loop() == ours()).float().mean().item()
        table.add_row(name, f"{slow * 1e3:.0f}", f"{fast * 1e3:.0f}", f"{slow / fast:.1f}", f"{same:.1%}")
    Console().print(table)
