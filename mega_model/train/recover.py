"""Stage 3: MEGA learns masked mesh tokens, rotation and camera from images (paper 3.3).

With BlazePose there are two further losses that the paper does not have: on the lifter's latents, and on meshes in
metres, through the tokenizer's frozen decoder.
"""

from __future__ import annotations

from typing import Any

from mega_model.backbones import Backbone, ViT
from mega_model.core.errors import InputError
from mega_model.generate import first_logits
from mega_model.mega import Mega, token_loss
from mega_model.options import RecoverTraining
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.images import encode_images, full_precision, latent_losses, pose_losses, run, tokens_of
from mega_model.train.linear_decoder import LinearDecoder
from mega_model.train.loop import Batch, Losses, Objective

EYES_RATE = 0.5
"""Learning rate of each tensor of a lifter's eyes, over its median size and the rate of the rest. The sizes differ a
thousandfold, as BlazePose's batch norms are folded into its layers, and AdamW's steps do not depend on them."""


class RecoverObjective(Objective):
    model: Mega

    def __init__(
        self, model: Mega, tokenizer: MeshTokenizer, config: RecoverTraining, linear: LinearDecoder | None = None
    ) -> None:
        super().__init__(model)
        self.linear = linear
        self.frozen = (tokenizer,)  # in a tuple, so that torch neither trains nor saves it
        self.config = config
        if config.trained_blocks is not None:
            freeze(model.backbone, config.trained_blocks)

    def learned(self) -> list[dict[str, Any]]:
        if self.model.lifter is None:
            return super().learned()
        eyes = {id(p): p for p in self.model.lifter.eyes.parameters()}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in eyes]
        groups: list[dict[str, Any]] = [{"params": rest, "rate": 1.0}]
        for p in eyes.values():
            rate = EYES_RATE * float(p.detach().abs().median())
            groups.append({"params": [p], "rate": rate, "weight_decay": 0.0})  # the decay would grow with the rate
        return groups

    def train(self, mode: bool = True) -> RecoverObjective:
        super().train(mode)
        if self.config.trained_blocks is not None:
            self.model.backbone.eval()  # frozen layers keep their batch norm statistics
        return self

    def forward(self, batch: Batch) -> Losses:
        seen = encode_images(self.model, batch)
        tokenizer = self.frozen[0].to(seen.camera.device)
        tokens = tokens_of(batch, tokenizer)
        losses = {
            "tokens": token_loss(self.model, seen.image, tokens),
            **pose_losses(seen.rot6d, seen.camera, batch, self.config.rotation),
        }
        if self.linear is not None:
            logits = first_logits(self.model, seen.image).float()
            with full_precision(seen.camera):
                codes = logits.softmax(dim=-1) @ tokenizer.quantizer.codebook
                losses |= latent_losses(seen, tokens, tokenizer)
                losses |= self.linear.losses(codes, seen, batch)
        return losses


def freeze(backbone: Backbone, trained_blocks: int) -> None:
    """Freeze all but the last blocks and the norm after them. InputError if the backbone has no such blocks."""
    backbone.requires_grad_(False)
    if trained_blocks:
        if not isinstance(backbone, ViT) or trained_blocks > len(backbone.blocks):
            raise InputError(f"trained_blocks {trained_blocks}: only the ViT can train some of its blocks, at most 32")
        for module in (*backbone.blocks[-trained_blocks:], backbone.norm):
            module.requires_grad_(True)


def main(config: RecoverTraining) -> None:
    run(config, RecoverObjective)
