"""`mega evaluate detector`: how many people it finds in rendered rooms of held-out clips, and how many are none.

A box finds a person if their intersection over union is 0.5 or more; each finds one at most, best scores first. Of
boxes that overlap much, only the best counts, as in the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro

from mega_model import checkpoint
from mega_model.data.rendered import SceneSet
from mega_model.evaluate.report import Report, publish

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
ENOUGH = 0.5
OVERLAP = 0.5
"""As in mega_ros/detect.py."""


@dataclass(frozen=True)
class EvaluateDetector:
    checkpoint: Path = Path("runs/detector")
    test: Path = Path("runs/groups/test")


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [A, B] of boxes [A, 4] and [B, 4] (x0, y0, x1, y1)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clip(min=0).prod(axis=-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=-1) for x in (a, b))
    return both / (area_a[:, None] + area_b - both)


def hits(boxes: np.ndarray, people: np.ndarray) -> np.ndarray:
    """bool [K]: which boxes [K, 4], best first, find one of people [P, 4] whom no box before has found."""
    found = np.zeros(len(boxes), bool)
    overlap = overlaps(boxes, people)
    for k in range(len(boxes) if len(people) else 0):
        person = overlap[k].argmax()
        if overlap[k, person] >= ENOUGH:
            found[k] = True
            overlap[:, person] = 0
    return found


@torch.no_grad()
def evaluate(config: EvaluateDetector) -> Report:
    detector = checkpoint.load_detector(config.checkpoint)
    rooms = SceneSet(config.test)
    scores, right, people = [], [], 0
    for image, boxes in zip(rooms.fields["images"], rooms.fields["boxes"]):
        there = boxes[~np.isnan(boxes[:, 0])]
        found, score = (x.numpy() for x in detector(torch.from_numpy(image.copy())[None]))
        found = found.clip(0, [*image.shape[1::-1]] * 2)
        corner_and_size = np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1)
        stays = np.array(cv2.dnn.NMSBoxes(corner_and_size.tolist(), score.tolist(), 0, OVERLAP), int)
        right.append(hits(found[stays], there))
        scores.append(score[stays])
        people += len(there)
    every, good = np.concatenate(scores), np.concatenate(right)
    rows = {
        f"score above {limit}": {
            "recall": float(good[every > limit].sum() / people),
            "precision": float(good[every > limit].mean()) if (every > limit).any() else None,
        }
        for limit in THRESHOLDS
    }
    facts = {"detector": str(config.checkpoint), "rooms": f"{len(rooms)} of {config.test}", "people": str(people)}
    return Report("The person detector on held-out rendered rooms", facts, {f"Boxes of IoU {ENOUGH} or more": rows})


def main(args: list[str]) -> None:
    config = tyro.cli(EvaluateDetector, args=args, description=__doc__)
    publish(evaluate(config), config.checkpoint / "evaluation", "detector")
