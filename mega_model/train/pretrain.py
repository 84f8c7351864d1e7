"""Stage 2: MEGA learns bodies without images: cross-entropy of randomly masked mesh tokens (paper 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mega_model import checkpoint
from mega_model.data.meshes import BodySampler
from mega_model.mega import Mega, MegaConfig, token_loss
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse


@dataclass(frozen=True)
class PretrainTraining(LoopConfig):
    tokenizer: Path = Path("runs/tokenizer")
    bodies: int = 20000
    """Random bodies that are tokenised once, before the training."""


class PretrainObjective(Objective):
    model: Mega

    def forward(self, batch: Batch) -> Losses:
        return {"tokens": token_loss(self.model, None, batch["tokens"])}


def main(args: list[str]) -> None:
    config = parse(PretrainTraining, args)
    tokenizer, _ = checkpoint.load_tokenizer(config.tokenizer)
    bodies = BodySampler("train")
    rng = np.random.default_rng(config.seed)
    with torch.no_grad():
        chunks = [tokenizer.encode(torch.from_numpy(bodies.draw(rng, 100)[0])) for _ in range(config.bodies // 100)]
    tokens = torch.cat(chunks)
    torch.manual_seed(config.seed)
    model = checkpoint.begin_mega(config.out, config.tokenizer, MegaConfig())

    def batches(rng: np.random.Generator) -> Batch:
        return {"tokens": tokens[torch.from_numpy(rng.integers(len(tokens), size=config.batch))]}

    fit(config, PretrainObjective(model), batches)
