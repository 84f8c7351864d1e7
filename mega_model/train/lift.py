"""Before stage 3, for BlazePose: trains only the lifter, without its eyes, on latents, rotation and camera.

Not part of the paper. A crop costs less than half of what it costs in stage 3, which then starts with useful image
tokens. The eyes, which are a trained network, learn in stage 3: the gradients of a new lifter would wreck them.
"""

from __future__ import annotations

from mega_model.core.errors import InputError
from mega_model.mega import Mega
from mega_model.options import ImageTraining
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.images import encode_images, full_precision, latent_losses, pose_losses, run, tokens_of
from mega_model.train.linear_decoder import LinearDecoder
from mega_model.train.loop import Batch, Losses, Objective


class LiftObjective(Objective):
    model: Mega

    def __init__(
        self, model: Mega, tokenizer: MeshTokenizer, config: ImageTraining, linear: LinearDecoder | None
    ) -> None:
        super().__init__(model)
        if model.lifter is None or linear is None:
            raise InputError(f"{config.pretrained}: its model has no lifter, which needs BlazePose; use train recover")
        model.requires_grad_(False)
        model.lifter.requires_grad_(True)
        model.lifter.eyes.requires_grad_(False)
        self.linear = linear
        self.frozen = (tokenizer,)  # in a tuple, so that torch neither trains nor saves it
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        seen = encode_images(self.model, batch)
        assert seen.latents is not None
        tokenizer = self.frozen[0].to(seen.camera.device)
        with full_precision(seen.camera):
            return {
                **latent_losses(seen, tokens_of(batch, tokenizer), tokenizer),
                **self.linear.losses(seen.latents, seen, batch),
                **pose_losses(seen.rot6d, seen.camera, batch, self.config.rotation),
            }


def main(config: ImageTraining) -> None:
    run(config, LiftObjective)
