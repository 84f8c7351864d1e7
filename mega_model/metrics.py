"""Errors of recovered people and of their uncertainty. Numpy arrays of any batch shape; metres in, metres out."""

from __future__ import annotations

from typing import Literal

import numpy as np

Align = Literal["none", "mean", "pelvis"]


def distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance point by point: [..., N, 3] and [..., N, 3] -> [..., N]. No alignment."""
    return np.linalg.norm(predicted - truth, axis=-1)


def align(points: np.ndarray, at: Align, pelvis: np.ndarray | None = None) -> np.ndarray:
    """Points [..., N, 3] moved so that their mean, or their `pelvis` [..., 3], lies at the origin."""
    if at == "none":
        return points
    if at == "mean":
        return points - points.mean(axis=-2, keepdims=True)
    if pelvis is None:
        raise ValueError("alignment at the pelvis needs the pelvis")
    return points - pelvis[..., None, :]


def pve(
    predicted: np.ndarray, truth: np.ndarray, at: Align = "mean", regressor: np.ndarray | None = None
) -> np.ndarray:
    """Per-vertex error: mean distance of vertices [..., V, 3] after alignment -> [...].

    `at="pelvis"` takes the first row of the joint `regressor` [J, V]: that is the convention of the published tables.
    """
    pelvis = [None, None] if regressor is None else [regressor[0] @ points for points in (predicted, truth)]
    return distances(align(predicted, at, pelvis[0]), align(truth, at, pelvis[1])).mean(axis=-1)


def mpjpe(predicted: np.ndarray, truth: np.ndarray, at: Align = "pelvis") -> np.ndarray:
    """Mean per-joint position error of joints [..., J, 3], the pelvis first -> [...]."""
    return distances(align(predicted, at, predicted[..., 0, :]), align(truth, at, truth[..., 0, :])).mean(axis=-1)


def procrustes(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`predicted` [..., N, 3] after the similarity (rotation, scale, translation) that fits it best to `truth`.

    Least squares by SVD (Umeyama 1991); never a reflection.
    """
    truth_mean = truth.mean(axis=-2, keepdims=True)
    x, y = align(predicted, "mean"), truth - truth_mean
    u, s, vt = np.linalg.svd(np.swapaxes(x, -1, -2) @ y)
    sign = np.ones_like(s)
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    spread = (x * x).sum(axis=(-1, -2))
    scale = (s * sign).sum(axis=-1) / np.where(spread > 0, spread, 1)  # all points in one place: only move them
    return scale[..., None, None] * (x @ rotation) + truth_mean


def pa_mpjpe(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean distance of joints [..., J, 3] after `procrustes` -> [...]. The same on vertices is PA-PVE."""
    return distances(procrustes(predicted, truth), truth).mean(axis=-1)


def best_of(errors: np.ndarray, samples: int | None = None) -> np.ndarray:
    """Error of the best among the first `samples` (default: all) of the Q samples: [..., Q] -> [...]."""
    return errors[..., :samples].min(axis=-1)


def spearman(sigma: np.ndarray, error: np.ndarray) -> float:
    """Rank correlation of predicted uncertainty and error, over all elements of two arrays of one shape."""
    from scipy.stats import spearmanr  # slow to import, and the demo does without

    return float(spearmanr(np.ravel(sigma), np.ravel(error)).statistic)


def coverage(error: np.ndarray, sigma: np.ndarray, factor: float = 1.0) -> float:
    """Share of errors within `factor` sigma, over all elements of two arrays of one shape."""
    return float(np.mean(error <= factor * sigma))
