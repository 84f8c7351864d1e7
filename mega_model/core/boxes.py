"""Box overlap and non-maximum suppression. A box is x0, y0, x1, y1, pixels."""

from __future__ import annotations

import numpy as np


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes [M, 4] and [N, 4] -> [M, N] in 0 to 1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.maximum(high - low, 0)
    shared = overlap[..., 0] * overlap[..., 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9)


def share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of the area of boxes [M, 4] that lies in regions [N, 4] -> [M, N] in 0 to 1."""
    low = np.maximum(boxes[:, None, :2], regions[:, :2])
    high = np.minimum(boxes[:, None, 2:], regions[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (high - low).clip(min=0).prod(axis=2) / area[:, None]


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
