"""The person detector learns boxes in synthetic rooms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mega_model import checkpoint
from mega_model.data.meshes import MOTION
from mega_model.data.rendered import SceneSet
from mega_model.detector import Detector, DetectorConfig, targets
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse
from mega_model.train.recover import augment


@dataclass(frozen=True)
class DetectorTraining(LoopConfig):
    groups: Path = Path("runs/groups/train")


class DetectorObjective(Objective):
    model: Detector

    def forward(self, batch: Batch) -> Losses:
        logits, sides = self.model.maps(augment(batch["images"]))
        heat, true_sides, counts = targets(batch["boxes"], *batch["images"].shape[2:])
        p = logits.sigmoid()
        middle = heat > 0.99
        # focal loss: cells near a middle count less as negatives (Zhou et al. 2019)
        found = F.logsigmoid(logits) * (1 - p).square()
        empty = F.logsigmoid(-logits) * p.square() * (1 - heat) ** 4
        people = middle.sum().clamp(min=1)
        error = (sides - true_sides).abs().mean(dim=1)
        return {
            "heat": -(torch.where(middle, found, empty)).sum() / people,
            "sides": (error * counts * heat).sum() / (counts * heat).sum().clamp(min=1),
        }


def main(args: list[str]) -> None:
    config = parse(DetectorTraining, args)
    torch.manual_seed(config.seed)
    groups = SceneSet(config.groups)
    height, width = groups.fields["images"].shape[1:3]
    model = checkpoint.begin_detector(config.out, DetectorConfig(height, width))

    def batches(rng: np.random.Generator, count: int) -> Batch:
        pick = np.sort(rng.choice(len(groups), count, replace=False))
        images = torch.from_numpy(groups.fields["images"][pick]).permute(0, 3, 1, 2)
        boxes = torch.from_numpy(groups.fields["boxes"][pick])
        flip = torch.from_numpy(rng.random(count) < 0.5)
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        turned = torch.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], dim=-1)
        return {"images": images, "boxes": torch.where(flip[:, None, None], turned, boxes)}

    data = {"pictures": f"{len(groups)} rendered groups of people", "motion": MOTION}
    fit(config, DetectorObjective(model), batches, data)
