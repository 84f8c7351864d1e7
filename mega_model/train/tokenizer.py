"""Stage 1: the Mesh-VQ-VAE learns to reconstruct random bodies. Loss: mean vertex distance (metres) + commitment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mega_model import checkpoint
from mega_model.body.anny import HIERARCHY_SEEDS
from mega_model.data.meshes import BodySampler
from mega_model.tokenizer import TokenizerConfig
from mega_model.train.loop import Batch, LoopConfig, Losses, fit, parse


@dataclass(frozen=True)
class TokenizerTraining(LoopConfig):
    quantize_from: int = 500
    """Step at which the codebook starts, by k-means over the latents of the step's bodies and of some more."""


def main(args: list[str]) -> None:
    config = parse(TokenizerTraining, args)
    bodies = BodySampler("train")
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    topology = bodies.body.topology(bodies.draw_poses(rng, 400), bodies.bones, bodies.draw_phenotypes(rng, 400))
    model = checkpoint.begin_tokenizer(config.out, topology, TokenizerConfig(seeds=HIERARCHY_SEEDS))

    def batches(rng: np.random.Generator) -> Batch:
        return {"vertices": torch.from_numpy(bodies.draw(rng, config.batch)[0])}

    @torch.no_grad()
    def start_codebook(step: int, batch: Batch) -> None:
        if step == config.quantize_from and not model.quantizer.started:
            more = torch.from_numpy(bodies.draw(np.random.default_rng(config.seed), 1000)[0]).to(batch["vertices"])
            model.quantizer.start(model.latents(more))

    fit(config, model, batches, losses, start_codebook)


def losses(model: nn.Module, batch: Batch) -> Losses:
    out = model(batch["vertices"])
    distance = (out.vertices - batch["vertices"]).norm(dim=-1).mean()
    return {"v2v": distance, "commitment": out.commitment, "_codes": perplexity(out.tokens)}


def perplexity(tokens: Tensor) -> Tensor:
    """Effective number of codes in use."""
    p = torch.bincount(tokens.flatten()).float() / tokens.numel()
    return (-(p * (p + 1e-10).log()).sum()).exp()


