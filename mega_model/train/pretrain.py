"""Stage 2: MEGA learns masked mesh tokens without images, with cross-entropy as the loss (paper 3.3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint
from mega_model.core.errors import InputError
from mega_model.data.mesh_sets import MeshSet, open_meshes
from mega_model.mega import PRESETS, Mega, token_loss
from mega_model.options import PretrainTraining
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.loop import Batch, Losses, Objective, fit, own_device


class PretrainObjective(Objective):
    model: Mega

    def forward(self, batch: Batch) -> Losses:
        return {"tokens": token_loss(self.model, None, batch["tokens"])}


@torch.no_grad()
def tokenise(tokenizer: MeshTokenizer, meshes: MeshSet, count: int, seed: int) -> Tensor:
    """Random meshes as tokens: int64 [count, N]. Every process computes all of them, on its own GPU."""
    device = own_device()
    tokenizer.to(device)
    rng = np.random.default_rng(seed)
    sizes = [min(100, count - done) for done in range(0, count, 100)]
    drawn = (torch.from_numpy(meshes.draw(rng, size)) for size in tqdm(sizes, desc="tokenising", mininterval=5))
    return torch.cat([tokenizer.encode(vertices.to(device)).cpu() for vertices in drawn])


def main(config: PretrainTraining) -> None:
    tokenizer, topology = checkpoint.load_tokenizer(config.tokenizer)
    meshes = open_meshes(config)
    known, given = len(topology.template), len(meshes.topology().template)
    if known != given:
        raise InputError(f"{config.tokenizer}: its tokenizer is for meshes of {known} vertices, these have {given}")
    tokens = tokenise(tokenizer, meshes, config.bodies, config.seed)
    torch.manual_seed(config.seed)
    size = replace(
        PRESETS[config.preset],
        tokens=tokenizer.length,
        codes=tokenizer.config.codes,
        latent=tokenizer.latent,
    )
    model = checkpoint.begin_mega(config.out, config.tokenizer, size)

    def batches(rng: np.random.Generator, count: int) -> Batch:
        return {"tokens": tokens[torch.from_numpy(rng.integers(len(tokens), size=count))]}

    fit(config, PretrainObjective(model), batches, meshes.made_of)
