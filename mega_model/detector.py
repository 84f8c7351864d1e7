"""A small person detector: one point per person on a coarse grid, which gives the sides of a box (cf. CenterNet)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.backbones import BasicBlock

STRIDE = 8


@dataclass(frozen=True)
class DetectorConfig:
    height: int = 192
    width: int = 256
    channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    """At strides 2, 4, 8, 16, 32."""
    people: int = 20
    """Boxes per picture."""


class Detector(nn.Module):
    """uint8 RGB [1, H, W, 3] -> boxes [K, 4] (x0, y0, x1, y1 pixels) and scores [K], best first."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.stem = nn.Sequential(nn.Conv2d(3, c[0], 3, 2, 1, bias=False), nn.BatchNorm2d(c[0]), nn.ReLU())
        self.down = nn.ModuleList(BasicBlock(a, b, 2) for a, b in pairwise(c))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(c[2:]))
        self.head = nn.Sequential(nn.Conv2d(c[2], c[2], 3, 1, 1, bias=False), nn.BatchNorm2d(c[2]), nn.ReLU())
        self.heat, self.sides = nn.Conv2d(c[2], 1, 1), nn.Conv2d(c[2], 4, 1)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -4.0)  # most cells hold nobody

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """RGB [B, 3, H, W] in 0..1 -> person logits [B, h, w] and sides [B, 4, h, w]: log of cells from the middle."""
        levels = [self.stem(images - 0.5)]
        for block in self.down:
            levels.append(block(levels[-1]))
        x = levels[-1]
        for lateral, level in zip(reversed(self.up), reversed(levels[2:-1])):
            x = level + F.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
        x = self.head(x)
        return self.heat(x)[:, 0], self.sides(x)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        heat, sides = self.maps(image.permute(0, 3, 1, 2).float() / 255)
        score = heat.sigmoid()
        peak = score == F.max_pool2d(score[:, None], 3, 1, 1)[:, 0]  # one box per hill
        scores, place = (score * peak)[0].flatten().topk(self.config.people)
        reach = sides[0].flatten(1)[:, place].T.exp()
        width = self.config.width // STRIDE
        middle = torch.stack([place % width, place // width], dim=1) + 0.5
        return torch.cat([middle - reach[:, :2], middle + reach[:, 2:]], dim=1) * STRIDE, scores


def targets(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the maps should say about boxes [B, P, 4] (NaN: none) in pictures of height x width pixels.

    Returns heat [B, h, w] (1 at the middle of a box, falling off with its size), sides [B, 4, h, w] and where they
    count, bool [B, h, w].
    """
    h, w = height // STRIDE, width // STRIDE
    boxes = boxes / STRIDE
    there = ~boxes[..., 0].isnan()
    boxes = torch.where(there[..., None], boxes, 0)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0.5)
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    grid = torch.stack([x, y], dim=-1).to(boxes)
    cell = middle.floor() + 0.5
    away = (grid - cell[:, :, None, None]) / (0.15 * size + 0.3)[:, :, None, None]
    hill = torch.exp(-0.5 * away.square().sum(-1)) * there[..., None, None]  # [B, P, h, w]
    heat, owner = hill.max(dim=1)
    owned = boxes[torch.arange(len(boxes))[:, None, None], owner]
    sides = torch.cat([grid - owned[..., :2], owned[..., 2:] - grid], dim=-1)
    return heat, sides.clamp(min=0.1).log().permute(0, 3, 1, 2), (heat > 0.3) & (sides > 0).all(-1)
