"""Stage 1: the Mesh-VQ-VAE learns to reconstruct random bodies. Loss: mean vertex distance (metres) + commitment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mega_model import checkpoint
from mega_model.body.anny import HIERARCHY_SEEDS
from mega_model.data.meshes import BodySampler
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse


@dataclass(frozen=True)
class TokenizerTraining(LoopConfig):
    quantize_from: int = 500
    """Step at which the codebook starts, by k-means over the latents of the step's bodies and of some more."""


class TokenizerObjective(Objective):
    model: MeshTokenizer

    def __init__(self, model: MeshTokenizer, config: TokenizerTraining, bodies: BodySampler) -> None:
        super().__init__(model)
        self.config, self.bodies = config, bodies

    @torch.no_grad()
    def before_step(self, step: int, batch: Batch) -> None:
        if step == self.config.quantize_from:
            more = self.bodies.draw(np.random.default_rng(self.config.seed), 1000)[0]
            self.model.quantizer.start(self.model.latents(torch.from_numpy(more).to(batch["vertices"])))

    def forward(self, batch: Batch) -> Losses:
        out = self.model(batch["vertices"])
        distance = (out.vertices - batch["vertices"]).norm(dim=-1).mean()
        return {"v2v": distance, "commitment": out.commitment, "_codes": perplexity(out.tokens)}


def perplexity(tokens: Tensor) -> Tensor:
    """Effective number of codes in use."""
    p = torch.bincount(tokens.flatten()).float() / tokens.numel()
    return (-(p * (p + 1e-10).log()).sum()).exp()


def main(args: list[str]) -> None:
    config = parse(TokenizerTraining, args)
    bodies = BodySampler("train")
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    topology = bodies.body.topology(bodies.draw_poses(rng, 400), bodies.bones, bodies.draw_phenotypes(rng, 400))
    model = checkpoint.begin_tokenizer(config.out, topology, TokenizerConfig(seeds=HIERARCHY_SEEDS))

    def batches(rng: np.random.Generator) -> Batch:
        return {"vertices": torch.from_numpy(bodies.draw(rng, config.batch)[0])}

    fit(config, TokenizerObjective(model, config, bodies), batches)
