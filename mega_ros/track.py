"""Tracking: assigns the boxes of the next image to the people of earlier images.

The overlap of boxes alone swaps people who cross, and loses people who were hidden. So the position of the mesh's
pelvis in metres counts, too. A person who passes behind another one is farther away. A person who walks on behind a
wall reappears at a place that can be predicted, with an uncertainty that grows meanwhile.

The trackers on PyPI know boxes only, and do not install beside the headless OpenCV (checked in November 2026):
`trackers` 2.6 and `boxmot` 25 require `opencv-python`, `boxmot` also torch; `supervision` 0.31 has no tracker any more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mega_model.core.boxes import intersection_over_union

from .smooth import Motion

PATIENCE = 3.0
"""Seconds: a track ends after this time without a box."""
OVERLAP = 0.2
"""Intersection over union from which on two boxes may be one person's."""
NEAR = 9.0
"""Squared Mahalanobis distance below which two places may be one person's: three standard deviations."""
AGILITY = 0.5
"""Spectral density of a pelvis' acceleration, m²/s³. After two seconds unseen, a walker is expected within 1.2 m."""
DISTANCE_ERROR = 0.03
"""Standard deviation of a person's distance from image to image, as a share of it. Sigma does not include it."""
UNKNOWN = 1e3
"""Metres: sigma of a pelvis of which nothing is known."""


class Tracker:
    """Assigns track ids to boxes: `next_id`, `next_id` + 1, ... in order of appearance."""

    def __init__(self, next_id: int = 0) -> None:
        self.next_id = next_id
        """Of the next new person: no id is given to two people."""
        self._ids = np.zeros(0, np.int64)
        self._boxes = np.zeros((0, 4))  # last box, moved on by its drift while it is not seen
        # of the box's centre, pixels per second: occlusion changes the box's size
        self._drift = np.zeros((0, 2))
        self._seen = np.zeros(0, np.int64)  # when, nanoseconds
        self._pelvis = Motion.start(0, np.zeros((0, 3)), np.zeros(0))

    def update(
        self,
        boxes: ArrayLike,
        stamp: int,
        pelvis: ArrayLike = np.nan,
        sigma: ArrayLike = 0.0,
    ) -> np.ndarray:
        """The people in the next image -> their ids, int64 [P].

        boxes: [P, 4], x0, y0, x1, y1, pixels. stamp: nanoseconds; an earlier one than before counts as the same.
        pelvis, sigma: [P, 3] and [P], metres, in the camera frame. A pelvis that is not finite is not known; a sigma of
        NaN counts as 0.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        places, noise = _places(len(boxes), pelvis, sigma)
        stamp = max(stamp, self._pelvis.stamp)
        self._forget(stamp)
        dt = (stamp - self._pelvis.stamp) / 1e9
        expected = self._boxes + np.tile(self._drift * dt, 2)
        motion = self._pelvis.at(stamp, AGILITY)
        tracks, found = _same(expected, motion, boxes, places, noise)

        if dt > 0:
            moved = (boxes[found] - self._boxes[tracks]).reshape(-1, 2, 2).mean(axis=1)
            # the mean of old and new, because boxes are noisy
            self._drift[tracks] = (self._drift[tracks] + moved / dt) / 2
        expected[tracks] = boxes[found]
        self._seen[tracks] = stamp
        measured, measured_noise = motion.position.copy(), np.full(len(self._ids), UNKNOWN)
        measured[tracks], measured_noise[tracks] = places[found], noise[found]
        motion, _ = motion.corrected(measured, measured_noise)

        ids = np.full(len(boxes), -1)
        ids[found] = self._ids[tracks]
        new = ids < 0
        count = int(new.sum())
        ids[new] = self.next_id + np.arange(count)
        self.next_id += count
        self._ids = np.concatenate([self._ids, ids[new]])
        self._boxes = np.concatenate([expected, boxes[new]])
        self._drift = np.concatenate([self._drift, np.zeros((count, 2))])
        self._seen = np.concatenate([self._seen, np.full(count, stamp)])
        self._pelvis = motion.joined(Motion.start(stamp, places[new], noise[new]))
        return ids

    def _forget(self, stamp: int) -> None:
        keep = stamp - self._seen <= PATIENCE * 1e9
        self._ids, self._boxes = self._ids[keep], self._boxes[keep]
        self._drift, self._seen = self._drift[keep], self._seen[keep]
        self._pelvis = self._pelvis[keep]


def _places(count: int, pelvis: ArrayLike, sigma: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P, 3] and their noise [P], metres; `UNKNOWN` where the pelvis is not finite."""
    places = np.full((count, 3), pelvis, np.float64)
    known = np.isfinite(places).all(axis=1)
    places[~known] = 0
    noise = np.hypot(np.nan_to_num(sigma), DISTANCE_ERROR * np.linalg.norm(places, axis=1))
    return places, np.where(known, noise, UNKNOWN)


def _same(
    expected: np.ndarray, motion: Motion, boxes: np.ndarray, places: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which tracks are which boxes: indices of both. expected [T, 4] and motion: where the T tracks should be now."""
    from scipy.optimize import linear_sum_assignment  # slow to load

    overlaps = intersection_over_union(expected, boxes)
    variance = motion.variance[:, None] + noise**2
    known = variance < (UNKNOWN / 2) ** 2
    far = ((motion.position[:, None] - places) ** 2).sum(axis=-1) / variance
    # the peak of the place's probability density, relative to that of a track without uncertainty: somebody who was
    # hidden for long may be anywhere, and must not take the box of somebody who is seen
    certain = np.where(known, noise / np.sqrt(variance), 1)
    likely = certain * (overlaps + np.where(known, np.exp(-far / 6), 0))
    likely[(overlaps < OVERLAP) & ~(known & (far < NEAR))] = 0
    tracks, found = linear_sum_assignment(likely, maximize=True)
    possible = likely[tracks, found] > 0
    return tracks[possible], found[possible]
