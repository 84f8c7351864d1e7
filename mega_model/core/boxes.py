"""Box overlap and non-maximum suppression. A box is x0, y0, x1, y1, pixels."""

from __future__ import annotations

import numpy as np


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes [M, 4] and [N, 4] -> [M, N] in 0 to 1."""
    shared = _shared(a, b)
    return shared / np.maximum(_area(a)[:, None] + _area(b) - shared, 1e-9)


def share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of the area of boxes [M, 4] that lies in regions [N, 4] -> [M, N] in 0 to 1."""
    return _shared(boxes, regions) / _area(boxes)[:, None]


def _area(boxes: np.ndarray) -> np.ndarray:
    """[N, 4] -> [N]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas of the intersections of boxes [M, 4] and [N, 4] -> [M, N]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.maximum(high - low, 0)
    return overlap[..., 0] * overlap[..., 1]


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Indices of the boxes [P, 4] with scores [P] that are kept, the best score first.

    A box is dropped if its intersection over union with a kept box of a higher score is larger than `overlap`.
    """
    same = intersection_over_union(boxes, boxes) > overlap
    kept: list[int] = []
    for k in np.argsort(-scores, kind="stable").tolist():
        if not same[k, kept].any():
            kept.append(k)
    return np.array(kept, int)
