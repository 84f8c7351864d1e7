"""Tracking: assigns the boxes of each frame to people of earlier frames, by box overlap.

The trackers on PyPI require an older numpy, or a second OpenCV that conflicts with the headless one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mega_model.core.boxes import intersection_over_union


class Tracker:
    """Assigns track ids to boxes: 0, 1, 2, ... in order of appearance."""

    def __init__(self, overlap: float = 0.2, patience: int = 30) -> None:
        """overlap: smallest intersection over union of two boxes of one person.
        patience: a track ends after this many frames without a box."""
        self.overlap = overlap
        self.patience = patience
        self._next = 0
        self._ids = np.zeros(0, np.int64)
        self._boxes = np.zeros((0, 4))  # last box, or its extrapolation
        self._drift = np.zeros(
            (0, 4)
        )  # velocity of the box's centre, pixels per frame: occlusion changes the box's size
        self._unseen = np.zeros(0, np.int64)  # frames

    def update(self, boxes: ArrayLike) -> np.ndarray:
        """boxes [P, 4] (x0, y0, x1, y1, pixels) of the next frame -> ids int64 [P]."""
        from scipy.optimize import linear_sum_assignment  # slow to load

        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        expected = self._boxes + self._drift
        overlaps = intersection_over_union(expected, boxes)
        tracks, found = linear_sum_assignment(overlaps, maximize=True)
        close = overlaps[tracks, found] >= self.overlap
        tracks, found = tracks[close], found[close]

        moved = boxes[found] - self._boxes[tracks]
        moved = np.tile((moved[:, :2] + moved[:, 2:]) / 2, 2)
        # the mean of old and new, because boxes are noisy; it decays while a person is unseen
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
