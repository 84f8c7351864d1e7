"""Compares recovered people with ground truth, frame by frame. Camera frame, metres."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from mega_model.core import metrics
from mega_model.core.boxes import intersection_over_union
from mega_model.core.geometry import project
from mega_model.core.topology import Topology

from ..ros.read import positions

MINIMUM_OVERLAP = 0.3
"""Smallest intersection over union of image boxes with which a recovered person matches a true one."""
MINIMUM_VISIBLE = 0.05
"""A person with a smaller share of visible vertices need not be found."""


def boxes_of(vertices: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Image boxes [P, 4] (x0, y0, x1, y1, pixels) around people [P, V, 3]."""
    points = project(np.maximum(vertices, [-np.inf, -np.inf, 0.01]), intrinsics)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def match(predicted: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (recovered, true) of people [P, V, 3] and [T, V, 3] whose image boxes overlap most in total."""
    overlap = intersection_over_union(boxes_of(predicted, intrinsics), boxes_of(truth, intrinsics))
    pairs = zip(*linear_sum_assignment(-overlap))
    return [(int(p), int(t)) for p, t in pairs if overlap[p, t] >= MINIMUM_OVERLAP]


@dataclass
class Score:
    """Counts and errors over all frames."""

    topology: Topology
    frames: int = 0
    wanted: int = 0
    """true people who must be found."""
    missed: int = 0
    invented: int = 0
    """recovered people without a match."""
    errors: dict[str, list[float]] = field(default_factory=dict)
    """one number per matched person, metres."""

    def add(self, predicted: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray) -> None:
        """One frame: two clouds of `read_cloud`, the true one with a field `visible`.

        People who are occluded or outside the image are not counted, whether they are found or not.
        """
        vertices, true_vertices, visible = positions(predicted), positions(truth), truth["visible"] > 0.5
        pairs = match(vertices, true_vertices, intrinsics)
        wanted = visible.mean(axis=1) >= MINIMUM_VISIBLE
        self.frames += 1
        self.wanted += int(wanted.sum())
        self.missed += int(wanted.sum()) - sum(bool(wanted[t]) for _, t in pairs)
        self.invented += len(predicted) - len(pairs)
        for p, t in pairs:
            if wanted[t]:
                self._compare(vertices[p], predicted["sigma"][p], true_vertices[t], visible[t])

    def _compare(self, vertices: np.ndarray, sigma: np.ndarray, truth: np.ndarray, visible: np.ndarray) -> None:
        joints, true_joints = self.topology.joints(vertices), self.topology.joints(truth)
        pelvis, true_pelvis = joints[0], true_joints[0]
        numbers = {
            "pve": metrics.mean_distance(vertices - pelvis, truth - true_pelvis),
            "mpjpe": metrics.mean_distance(joints - pelvis, true_joints - true_pelvis),
            "pa_mpjpe": metrics.pa_mpjpe(joints, true_joints),
            "position": metrics.distances(pelvis, true_pelvis),
            "sigma_visible": sigma[visible].mean(),
            "sigma_hidden": sigma[~visible].mean() if not visible.all() else np.nan,
        }
        for name, value in numbers.items():
            self.errors.setdefault(name, []).append(float(value))

    def summary(self) -> dict[str, float]:
        """Counts, and the mean of each error in metres (NaN when nobody was matched)."""
        means = {name: float(np.nanmean(values)) for name, values in self.errors.items() if np.isfinite(values).any()}
        return {"frames": self.frames, "wanted": self.wanted, "missed": self.missed, "invented": self.invented, **means}
