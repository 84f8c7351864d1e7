"""Before stage 3: the backbone learns to find joints on pictures, as the paper's was (3.2: pre-trained on 2D poses).

The rotation and camera heads, which need no tokens, learn with it. Without the transformer a step costs a third.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.mega import Mega, normalise
from mega_model.topology import SMPL_JOINTS
from mega_model.train.loop import Batch, Losses, Objective, parse
from mega_model.train.recover import RecoverTraining, augment, pose_losses, run


class BackboneObjective(Objective):
    model: Mega

    def __init__(self, model: Mega) -> None:
        super().__init__(model)
        self.joints = nn.Conv2d(model.backbone.channels, 3 * len(SMPL_JOINTS), 1)  # dropped after this stage

    def forward(self, batch: Batch) -> Losses:
        features = self.model.backbone(
            normalise(augment(batch["images"])).contiguous(memory_format=torch.channels_last)
        )
        rot6d, camera = self.model.pose(features)
        joints2d = integrate(self.joints(features))
        return {
            "joints": F.l1_loss(joints2d, batch["joints2d"]),
            **pose_losses(rot6d, camera, batch),
        }


def integrate(maps: Tensor) -> Tensor:
    """Maps [B, 3 J, h, w] (per joint: weight, and x, y from the cell's middle) -> mean joints [B, J, 2] in -1 to 1."""
    weight, offset = maps.unflatten(1, (-1, 3)).flatten(3).split((1, 2), dim=2)  # [B, J, 1 or 2, h w]
    height, width = maps.shape[2:]
    y, x = (torch.arange(n, device=maps.device) * 2 / n + 1 / n - 1 for n in (height, width))
    middle = torch.stack([x.repeat(height), y.repeat_interleave(width)])
    return (weight.softmax(dim=-1) * (middle + offset)).sum(dim=-1)


def main(args: list[str]) -> None:
    run(parse(RecoverTraining, args), BackboneObjective)
