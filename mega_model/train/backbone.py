"""Before stage 3: the backbone learns to find people on pictures, as the paper's was (3.2: pre-trained on 2D poses).

It learns where each joint is, on the picture and on the canonical body, and which point of the body's surface each part
of the picture shows. The rotation and camera heads, which need no tokens, learn with it. Without the transformer a step
costs a third.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.mega import Mega
from mega_model.topology import SMPL_JOINTS, Topology
from mega_model.train.loop import Batch, Losses, Objective, parse
from mega_model.train.recover import PictureTraining, pictures, pose_losses, run


class BodyMaps(nn.Module):
    """Joints and surface over the cells of stride 8: a feature pyramid that is dropped after this stage."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels >> k, width, 1) for k in (0, 1, 2))  # strides 32, 16, 8
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.joints = nn.Conv2d(width, len(SMPL_JOINTS), 1)
        self.surface = nn.Conv2d(width, 3, 1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps at strides 4 to 32 -> joints [B, J, h, w] (logits), surface [B, 3, h, w] (see `surface_loss`)"""
        x = self.lateral[0](levels[-1])
        for lateral, level in zip(self.lateral[1:], reversed(levels[1:-1])):
            x = F.interpolate(x, scale_factor=2.0) + lateral(level)
        x = self.head(x)
        return self.joints(x), self.surface(x)


class BackboneObjective(Objective):
    model: Mega

    def __init__(self, model: Mega, topology: Topology, config: PictureTraining) -> None:
        super().__init__(model)
        self.maps = BodyMaps(model.backbone.channels)
        self.skeleton = nn.Linear(model.backbone.channels, 3 * len(SMPL_JOINTS))  # canonical joints, metres
        template = torch.from_numpy(topology.template)
        self.register_buffer("template", (template - template.mean(0)) / template.std(0), persistent=False)
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        levels = self.model.backbone.levels(pictures(batch["images"]))
        joints, surface = self.maps(levels)
        skeleton = self.skeleton(levels[-1].mean(dim=(2, 3)))
        return {
            "joints": joint_loss(joints, batch["joints2d"]),
            "skeleton": 10 * F.l1_loss(skeleton, batch["joints"].flatten(1)),  # decimetres: of the size of the others
            "surface": surface_loss(surface, batch["vertices2d"], batch["visible"], self.get_buffer("template")),
            **pose_losses(*self.model.pose(levels[-1]), batch, self.config.rotation),
        }


def cells(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of points [..., 2] (-1 to 1): the cell int64 [...] of an h x w map that each is in, and whether it is in one."""
    size = torch.tensor([width, height], device=points.device)
    cell = ((points + 1) / 2 * size).floor().long()
    return cell[..., 1] * width + cell[..., 0], ((cell >= 0) & (cell < size)).all(dim=-1)


def joint_loss(maps: Tensor, joints2d: Tensor) -> Tensor:
    """Cross-entropy over the cells: maps [B, J, h, w], joints [B, J, 2] in -1 to 1; those outside do not count."""
    index, inside = cells(joints2d, *maps.shape[2:])
    return F.cross_entropy(maps.flatten(2)[inside], index[inside])


def surface_loss(maps: Tensor, vertices2d: Tensor, visible: Tensor, template: Tensor) -> Tensor:
    """Mean distance per axis of maps [B, 3, h, w] from the template's points that the cells show.

    vertices2d [B, V, 2] in -1 to 1, visible bool [B, V], template [V, 3]; cells that show no vertex do not count.
    """
    batch, _, height, width = maps.shape
    index, inside = cells(vertices2d, height, width)
    b, v = (inside & visible).nonzero(as_tuple=True)
    cell = b * (height * width) + index[b, v]
    # homogeneous points: the sum's last number says how many it is of
    points = F.pad(template, (0, 1), value=1.0)
    total = points.new_zeros(batch * height * width, 4).index_add_(0, cell, points[v])
    shown = total[:, 3] > 0
    return F.l1_loss(maps.permute(0, 2, 3, 1).flatten(0, 2)[shown], total[shown, :3] / total[shown, 3:])


def main(args: list[str]) -> None:
    config = parse(PictureTraining, args)
    if not all(name.startswith("rendered:") for name in config.sets):
        raise ValueError(
            f"sets {', '.join(config.sets)}: this stage needs rendered ones, whose visible vertices are known"
        )
    run(config, lambda model, _, topology: BackboneObjective(model, topology, config))
