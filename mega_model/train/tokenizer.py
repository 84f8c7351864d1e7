"""Stage 1: the Mesh-VQ-VAE learns to reconstruct bodies. Loss: mean vertex distance (metres) + commitment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mega_model import checkpoint
from mega_model.core.errors import InputError
from mega_model.data.mesh_sets import MeshSet, open_meshes
from mega_model.options import TokenizerTraining
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.train.loop import Batch, Losses, Objective, fit

PRESETS = {
    "default": TokenizerConfig(),
    "paper": TokenizerConfig(channels=(32, 64, 128), from_template=False),
    "autoencoder": TokenizerConfig(channels=(32, 64, 128, 64), from_template=False),
}
"""`default` is for the default body's 1229 vertices, `paper` for SMPL's 6890 (spec section 1.1); both give 54 tokens.
`autoencoder` gives SMPL bodies 7 latents, which FID compares without quantisation (section 4.3)."""


class TokenizerObjective(Objective):
    model: MeshTokenizer

    def __init__(self, model: MeshTokenizer, config: TokenizerTraining, meshes: MeshSet) -> None:
        super().__init__(model)
        self.config, self.meshes = config, meshes

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        if step == self.config.quantize_from:
            more = torch.from_numpy(self.meshes.draw(np.random.default_rng(self.config.seed), 1000))
            parts = more.to(self.model.template).split(50)  # all at once would need gigabytes
            self.model.quantizer.start(torch.cat([self.model.latents(part) for part in parts]))

    def forward(self, batch: Batch) -> Losses:
        out = self.model(batch["vertices"])
        distance = (out.vertices - batch["vertices"]).norm(dim=-1).mean()
        return {"v2v": distance, "commitment": out.commitment, "_codes": perplexity(out.tokens)}


def perplexity(tokens: Tensor) -> Tensor:
    """Effective number of codes in use."""
    p = torch.bincount(tokens.flatten()).float() / tokens.numel()
    return (-(p * (p + 1e-10).log()).sum()).exp()


def main(config: TokenizerTraining) -> None:
    if config.precision != "32-true":
        raise InputError(f"precision {config.precision}: the layers on meshes need 32-true, so leave the option out")
    if config.preset != "autoencoder" and config.quantize_from >= config.steps:
        raise InputError(
            f"quantize_from {config.quantize_from}: not before the last of the {config.steps} steps, so there would be "
            "no codebook"
        )
    meshes = open_meshes(config)
    torch.manual_seed(config.seed)
    preset = replace(PRESETS[config.preset], seeds=meshes.seeds)
    model = checkpoint.begin_tokenizer(config.out, meshes.topology(), preset)

    def batches(rng: np.random.Generator, count: int) -> Batch:
        return {"vertices": torch.from_numpy(meshes.draw(rng, count))}

    fit(config, TokenizerObjective(model, config, meshes), batches, meshes.made_of)
