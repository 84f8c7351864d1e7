"""Stage 3: MEGA learns to see: masked mesh tokens, rotation and camera from images (paper 3.3).

With BlazePose's features there are further losses, which are ours: on the lifter's latents, and on meshes in metres,
through the frozen decoder of the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mega_model.backbones import Backbone, ViT
from mega_model.core.errors import InputError
from mega_model.generate import first_logits
from mega_model.mega import Mega, token_loss
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.linear_decoder import LinearDecoder
from mega_model.train.loop import Batch, Losses, Objective
from mega_model.train.pictures import ImageTraining, full_precision, latent_losses, pose_losses, run, see
from mega_model.train.settings import parse


@dataclass(frozen=True)
class RecoverTraining(ImageTraining):
    trained_blocks: int | None = None
    """Blocks of the backbone, from its last, that learn; 0: it is frozen. By default all of it learns."""


class RecoverObjective(Objective):
    model: Mega

    def __init__(
        self, model: Mega, tokenizer: MeshTokenizer, config: RecoverTraining, linear: LinearDecoder | None = None
    ) -> None:
        super().__init__(model)
        self.linear = linear
        self.frozen = (tokenizer,)  # in a tuple, so that it is not trained, not saved, and never in training mode
        self.config = config
        if config.trained_blocks is not None:
            freeze(model.backbone, config.trained_blocks)

    def train(self, mode: bool = True) -> RecoverObjective:
        super().train(mode)
        if self.config.trained_blocks is not None:
            self.model.backbone.eval()  # what does not learn keeps the statistics of its batch norms
        return self

    def forward(self, batch: Batch) -> Losses:
        seen = see(self.model, batch)
        tokenizer = self.frozen[0].to(seen.camera.device)
        with torch.no_grad(), full_precision(seen.camera):
            tokens = batch["tokens"] if "tokens" in batch else tokenizer.encode(batch["vertices"])
        losses = {
            "tokens": token_loss(self.model, seen.image, tokens),
            **pose_losses(seen.rot6d, seen.camera, batch, self.config.rotation),
        }
        if self.linear is not None:
            codes = first_logits(self.model, seen.image).softmax(dim=-1) @ tokenizer.quantizer.codebook
            with full_precision(seen.camera):
                losses |= latent_losses(seen, tokens, tokenizer)
                losses |= self.linear.losses(codes.float(), seen, batch)
        return losses


def freeze(backbone: Backbone, trained_blocks: int) -> None:
    """Only the last blocks and the norm behind them go on learning. InputError if the backbone has no such blocks."""
    backbone.requires_grad_(False)
    if trained_blocks:
        if not isinstance(backbone, ViT) or trained_blocks > len(backbone.blocks):
            raise InputError(
                f"trained_blocks {trained_blocks}: only the ViT has blocks that can learn alone, at most 32"
            )
        for module in (*backbone.blocks[-trained_blocks:], backbone.norm):
            module.requires_grad_(True)


def main(args: list[str]) -> None:
    run(parse(RecoverTraining, args), RecoverObjective)
