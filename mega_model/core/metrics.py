"""Metrics of recovered people, of their uncertainty, and of sets of random bodies.

Numpy arrays of any batch shape; metres in, metres out. scipy is imported inside functions, because it is slow to load
and the runtime does not need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LEVELS = np.arange(1, 20) / 20
"""Probabilities at which `calibration_error` compares predicted and measured coverage: 5 % to 95 %."""
REMOVED = np.arange(100) / 100
"""Shares of the elements that `sparsification` removes."""


def distances(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance point by point: [..., N, 3] and [..., N, 3] -> [..., N]. No alignment."""
    return np.linalg.norm(predicted - truth, axis=-1)


def mean_distance(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean of `distances` -> [...]: the per-vertex error (PVE) of vertices, the MPJPE of joints."""
    return distances(predicted, truth).mean(axis=-1)


def centre(points: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Points [..., N, 3] translated so that their weighted mean is zero; the weights `origin` [N] sum to 1.

    With a row of a joint regressor, this joint is at zero: the pelvis, in published tables.
    """
    return points - origin[None] @ points


def beside(pelvis: np.ndarray, true_pelvis: np.ndarray) -> np.ndarray:
    """How far a body is from the true one across the line of sight, metres: [..., 3], 0 along z.

    pelvis, true_pelvis [..., 3]: in the camera's frame. The body is moved along its line of sight to the true distance
    first, because one camera hardly measures the distance.
    """
    return pelvis * (true_pelvis[..., 2:] / np.maximum(pelvis[..., 2:], 1e-3)) - true_pelvis


def procrustes(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`predicted` [..., N, 3] after the similarity transform (rotation, scale, translation) that best fits `truth`.

    Least squares by SVD (Umeyama 1991); never a reflection.
    """
    truth_mean = truth.mean(axis=-2, keepdims=True)
    x, y = predicted - predicted.mean(axis=-2, keepdims=True), truth - truth_mean
    u, s, vt = np.linalg.svd(np.swapaxes(x, -1, -2) @ y)
    sign = np.ones_like(s)
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    spread = (x * x).sum(axis=(-1, -2))
    scale = (s * sign).sum(axis=-1) / np.where(spread > 0, spread, 1)  # if all points coincide, only translate
    return scale[..., None, None] * (x @ rotation) + truth_mean


def pa_mpjpe(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean distance of joints [..., J, 3] after `procrustes` -> [...]. The same on vertices is PA-PVE."""
    return mean_distance(procrustes(predicted, truth), truth)


def pck(error: np.ndarray, length: np.ndarray, factor: float = 0.2) -> float:
    """Percentage of correct keypoints, 0 to 1: the share of errors that are at most `factor` lengths.

    error [..., J] and length [...] in one unit, usually pixels. NaN marks a joint without annotation, which is not
    counted; infinity marks a joint that was not found. Returns NaN if no joint is annotated.
    """
    annotated = ~np.isnan(error)
    right = error <= factor * length[..., None]
    return float(right[annotated].mean()) if annotated.any() else float("nan")


def best_of(errors: np.ndarray, samples: int | None = None) -> np.ndarray:
    """Error of the best among the first `samples` (default: all) of the Q samples: [..., Q] -> [...]."""
    return errors[..., :samples].min(axis=-1)


def improvement(first: float, last: float) -> float:
    """Reduction of the error from `first` to `last`, percent: "Imp" in the paper's table 2."""
    return 100 * (1 - last / first)


# ------------------------------------------------------------------------------------------------------- uncertainty


def spread(samples: Any) -> Any:
    """Sigma [..., V] of samples [..., Q, V, 3]: the root mean square distance from their mean, in metres.

    Works on numpy arrays and torch tensors.
    """
    deviation = samples - samples.mean(axis=-3, keepdims=True)
    return (deviation * deviation).sum(axis=-1).mean(axis=-2) ** 0.5


def spearman(sigma: np.ndarray, error: np.ndarray) -> float:
    """Rank correlation of predicted uncertainty and error, over all elements of two arrays of one shape."""
    from scipy.stats import spearmanr

    return float(spearmanr(np.ravel(sigma), np.ravel(error)).statistic)


def coverage(error: np.ndarray, sigma: np.ndarray, factor: float = 1.0) -> float:
    """Share of errors within `factor` sigma, over all elements of two arrays of one shape."""
    return float(np.mean(error <= factor * sigma))


def radius(level: np.ndarray | float) -> np.ndarray:
    """The radius, in sigma, that contains the error with probability `level`; the shape is kept.

    The error model: an isotropic 3D Gaussian whose root mean square radius is sigma. Each axis then has the deviation
    sigma / sqrt(3), and distance * sqrt(3) / sigma follows the chi distribution of 3 degrees of freedom.
    """
    from scipy.special import gammaincinv

    return np.sqrt(2 / 3 * gammaincinv(1.5, np.asarray(level, float)))


def quantiles(error: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Radii [L], in sigma, that contain the shares `LEVELS` of all errors; two arrays of one shape."""
    return np.quantile(error / sigma, LEVELS)


def coverages(error: np.ndarray, sigma: np.ndarray) -> dict[str, dict[str, float]]:
    """What a calibration says of errors and sigma: `coverage` by 1 and 2 sigma, and the `quantiles` by level."""
    radii = zip(LEVELS, quantiles(error, sigma))
    return {
        "coverage": {f"{factor} sigma": round(coverage(error, sigma, factor), 4) for factor in (1, 2)},
        "quantiles": {f"{level:.2f}": round(float(radius), 4) for level, radius in radii},
    }


def reliability(error: np.ndarray, sigma: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Shares [L] of the errors within radii [L], in sigma; equal to `LEVELS` if sigma is calibrated."""
    return np.array([coverage(error, sigma, factor) for factor in radii])


def calibration_error(error: np.ndarray, sigma: np.ndarray, radii: np.ndarray) -> float:
    """Expected calibration error: mean over `LEVELS` of |share of errors within the radius - level|. 0 is best."""
    return float(np.abs(reliability(error, sigma, radii) - LEVELS).mean())


def sparsification(error: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean error of the rest after removing each share of `REMOVED` [L], over the mean error of all.

    The first curve [L] removes the elements with the largest sigma, the second those with the largest error, which is
    optimal. Both start at 1. Elements with equal sigma are removed in array order.
    """
    error, sigma = np.ravel(error).astype(float), np.ravel(sigma)
    left = len(error) - np.floor(REMOVED * len(error)).astype(int)

    def curve(order: np.ndarray) -> np.ndarray:
        return np.cumsum(error[order])[left - 1] / left / error.mean()

    return curve(np.argsort(sigma, kind="stable")), curve(np.argsort(error))


def ause(error: np.ndarray, sigma: np.ndarray) -> float:
    """Area under the sparsification error: mean gap of the two curves of `sparsification`, in units of the mean error.

    It is 0 if sigma sorts the errors correctly, and does not change with monotone changes of sigma (Ilg et al. 2018).
    """
    by_sigma, best = sparsification(error, sigma)
    return float((by_sigma - best).mean())


# ------------------------------------------------------------------------------------------------ sets of random bodies


def apd(joints: np.ndarray) -> float:
    """Average pairwise distance: mean over all pairs of n bodies, and over joints, of the joints' distance.

    joints [n, J, 3], aligned by the caller.
    """
    from scipy.spatial.distance import pdist

    return float(np.mean([pdist(joints[:, j]).mean() for j in range(joints.shape[1])]))


def fid(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to features [n, D] and reference [m, D] (Heusel et al. 2017).

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)) with the covariances A and B.
    """
    difference = features.mean(axis=0) - reference.mean(axis=0)
    a, b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (features, reference))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # A B has the eigenvalues of root B root, which is symmetric
    shared = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * shared)
