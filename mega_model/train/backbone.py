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


class JointMaps(nn.Module):
    """Where each joint is, as logits over the cells of stride 8: a feature pyramid that is dropped after this stage."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels >> k, width, 1) for k in (0, 1, 2))  # strides 32, 16, 8
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.maps = nn.Conv2d(width, len(SMPL_JOINTS), 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Maps at strides 4 to 32 -> [B, J, h, w]"""
        x = self.lateral[0](levels[-1])
        for lateral, level in zip(self.lateral[1:], reversed(levels[1:-1])):
            x = F.interpolate(x, scale_factor=2.0) + lateral(level)
        return self.maps(self.head(x))


class BackboneObjective(Objective):
    model: Mega

    def __init__(self, model: Mega) -> None:
        super().__init__(model)
        self.joint_maps = JointMaps(model.backbone.channels)

    def forward(self, batch: Batch) -> Losses:
        images = normalise(augment(batch["images"])).contiguous(memory_format=torch.channels_last)
        levels = self.model.backbone.levels(images)
        rot6d, camera = self.model.pose(levels[-1])
        return {
            "joints": joint_loss(self.joint_maps(levels), batch["joints2d"]),
            **pose_losses(rot6d, camera, batch),
        }


def joint_loss(maps: Tensor, joints2d: Tensor) -> Tensor:
    """Cross-entropy over the cells: maps [B, J, h, w], joints [B, J, 2] in -1 to 1; those outside do not count."""
    height, width = maps.shape[2:]
    size = torch.tensor([width, height], device=maps.device)
    cell = ((joints2d + 1) / 2 * size).floor().long()
    inside = ((cell >= 0) & (cell < size)).all(dim=-1)
    index = cell[..., 1] * width + cell[..., 0]
    return F.cross_entropy(maps.flatten(2)[inside], index[inside])


def main(args: list[str]) -> None:
    run(parse(RecoverTraining, args), BackboneObjective, with_tokens=False)
