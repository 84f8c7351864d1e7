"""Confidence intervals by a block bootstrap over frames.

Neighbouring frames are alike, so blocks of neighbours are drawn (circular, as long as the cube root of the number of
frames), as many as give the number of frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DRAWS = 2000
LEVEL = 0.95
"""Of the confidence intervals."""
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def resamples(count: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """`draws` times `count` frames: int [count], indices. Always the same."""
    block = round(count ** (1 / 3))
    rng = np.random.default_rng(0)
    for _ in range(draws):
        starts = rng.integers(0, count, -(-count // block))
        yield (starts[:, None] + np.arange(block)).ravel()[:count] % count


def ratios(sums: np.ndarray) -> np.ndarray:
    """Numerators and denominators of F frames [F, M, 2] -> ratios of their sums in each draw [DRAWS, M].

    NaN where a denominator is zero.
    """
    totals = np.array([sums[chosen].sum(axis=0) for chosen in resamples(len(sums))])
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[..., 0] / totals[..., 1]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of the numbers [D] of all draws; NaN is left out."""
    low, high = np.nanquantile(values, ENDS)
    return float(low), float(high)
