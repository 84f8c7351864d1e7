"""Identities: who of this frame is who of the last. By overlap of boxes, which is all that few people need.

The tracker packages of PyPI bring an older numpy or a second OpenCV, which clashes with the headless one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from mega_model.core.boxes import intersection_over_union


class Tracker:
    """Gives boxes ids that last: 0, 1, 2, ... in order of appearance."""

    def __init__(self, overlap: float = 0.2, patience: int = 30) -> None:
        """overlap: intersection over union from which on two boxes may be one person.
        patience: frames unseen after which an id is given up."""
        self.overlap = overlap
        self.patience = patience
        self._next = 0
        self._ids = np.zeros(0, np.int64)
        self._boxes = np.zeros((0, 4))  # where each was seen, or has drifted to since
        self._drift = np.zeros((0, 4))  # pixels per frame of the whole box: what hides a person also cuts its box
        self._unseen = np.zeros(0, np.int64)  # frames

    def update(self, boxes: ArrayLike) -> np.ndarray:
        """boxes [P, 4] (x0, y0, x1, y1, pixels) of the next frame -> ids int64 [P]."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        expected = self._boxes + self._drift
        overlaps = intersection_over_union(expected, boxes)
        tracks, found = linear_sum_assignment(overlaps, maximize=True)
        close = overlaps[tracks, found] >= self.overlap
        tracks, found = tracks[close], found[close]

        moved = boxes[found] - self._boxes[tracks]
        moved = np.tile((moved[:, :2] + moved[:, 2:]) / 2, 2)
        # half the old and half the new, because boxes tremble; unseen, the longer ago, the less it says
        drift = 0.95 * self._drift
        drift[tracks] = (self._drift[tracks] + moved) / 2
        expected[tracks] = boxes[found]
        unseen = self._unseen + 1
        unseen[tracks] = 0

        ids = np.full(len(boxes), -1)
        ids[found] = self._ids[tracks]
        new = ids < 0
        count = int(new.sum())
        ids[new] = self._next + np.arange(count)
        self._next += count

        keep = unseen <= self.patience
        self._ids = np.concatenate([self._ids[keep], ids[new]])
        self._boxes = np.concatenate([expected[keep], boxes[new]])
        self._drift = np.concatenate([drift[keep], np.zeros((count, 4))])
        self._unseen = np.concatenate([unseen[keep], np.zeros(count, np.int64)])
        return ids
