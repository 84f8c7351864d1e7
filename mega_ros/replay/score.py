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
POOLED = 1000
"""Largest number of vertices per person, evenly spaced, that are used to compare sigma and error over all people."""


def boxes_of(vertices: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Image boxes [P, 4] (x0, y0, x1, y1, pixels) around people [P, V, 3]."""
    points = project(np.maximum(vertices, [-np.inf, -np.inf, 0.01]), intrinsics)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def match(predicted: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (recovered, true) of people [P, V, 3] and [T, V, 3] whose image boxes overlap most in total."""
    if not len(predicted) or not len(truth):
        return []
    overlap = intersection_over_union(boxes_of(predicted, intrinsics), boxes_of(truth, intrinsics))
    pairs = zip(*linear_sum_assignment(-overlap))
    return [(int(p), int(t)) for p, t in pairs if overlap[p, t] >= MINIMUM_OVERLAP]


@dataclass(frozen=True)
class _Vertices:
    """Of one matched person: error and sigma [V] in metres, both relative to the pelvis; visible [V]."""

    error: np.ndarray
    sigma: np.ndarray
    visible: np.ndarray


@dataclass
class Score:
    """Counts and errors over all frames."""

    topology: Topology
    frames: int = 0
    wanted: int = 0
    """true people who must be found."""
    missed: int = 0
    matched: int = 0
    """recovered people who are a true one."""
    invented: int = 0
    """recovered people without a match."""
    errors: dict[str, list[float]] = field(default_factory=dict)
    """one number per compared person, metres."""
    _pool: list[_Vertices] = field(default_factory=list)

    def add(self, predicted: np.ndarray, truth: np.ndarray, intrinsics: np.ndarray) -> dict[str, float]:
        """One frame: two clouds of `read_cloud`, the true one with a field `visible`. Returns the frame's own numbers.

        People who are occluded or outside the image are not counted, whether they are found or not.
        """
        vertices, true_vertices, visible = positions(predicted), positions(truth), truth["visible"] > 0.5
        pairs = match(vertices, true_vertices, intrinsics)
        wanted = visible.mean(axis=1) >= MINIMUM_VISIBLE if len(truth) else np.zeros(0, bool)
        counts = {
            "wanted": int(wanted.sum()),
            "missed": int(wanted.sum()) - sum(bool(wanted[t]) for _, t in pairs),
            "matched": len(pairs),
            "invented": len(predicted) - len(pairs),
        }
        self.frames += 1
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)
        compared = [
            self._compare(vertices[p], predicted["sigma"][p], true_vertices[t], visible[t])
            for p, t in pairs
            if wanted[t]
        ]
        errors = {name: [numbers[name] for numbers, _ in compared] for name in (compared[0][0] if compared else ())}
        for name, values in errors.items():
            self.errors.setdefault(name, []).extend(values)
        pool = [points for _, points in compared]
        self._pool += pool
        return {**counts, "compared": len(compared), **_means(errors), **_honesty(pool)}

    def _compare(
        self, vertices: np.ndarray, sigma: np.ndarray, truth: np.ndarray, visible: np.ndarray
    ) -> tuple[dict[str, float], _Vertices]:
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
        some = slice(None, None, -(-len(sigma) // POOLED))
        error = metrics.distances(vertices - pelvis, truth - true_pelvis)
        pooled = _Vertices(error[some], sigma[some].astype(np.float32), visible[some])
        return {name: float(value) for name, value in numbers.items()}, pooled

    def summary(self) -> dict[str, float]:
        """Counts, shares, and the mean of each error in metres; without those that nobody has."""
        shares = {}
        if self.wanted:
            shares["recall"] = (self.wanted - self.missed) / self.wanted
        if self.matched + self.invented:
            shares["precision"] = self.matched / (self.matched + self.invented)
        counts = {name: getattr(self, name) for name in ("frames", "wanted", "missed", "matched", "invented")}
        return {**counts, **shares, **_means(self.errors), **_honesty(self._pool)}


def _means(errors: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in errors.items() if np.isfinite(values).any()}


def _honesty(people: list[_Vertices]) -> dict[str, float]:
    """How well sigma tells the error of the vertices of some people. Empty without people, or without sigma."""
    if not people:
        return {}
    error, sigma, visible = (
        np.concatenate([getattr(p, name) for p in people]) for name in ("error", "sigma", "visible")
    )
    if not np.isfinite(sigma).all() or not sigma.min() > 0:
        return {}
    out = {"ause": metrics.ause(error, sigma)} if error.any() else {}
    if np.ptp(sigma) > 0 and np.ptp(error) > 0:
        out["spearman"] = metrics.spearman(sigma, error)
    for name, which in (("", np.ones_like(visible)), ("_visible", visible), ("_hidden", ~visible)):
        if which.any():
            for factor in (1, 2):
                out[f"coverage_{factor}_sigma{name}"] = metrics.coverage(error[which], sigma[which], factor)
    return out
