"""How many samples each person gets, where sigma comes from samples and their number follows the camera's period."""

from __future__ import annotations

import numpy as np

MOST = 100
"""Samples per person: more do not change sigma."""


def allotted(distance: np.ndarray, new: np.ndarray, least: int, affordable: float) -> np.ndarray:
    """Numbers of samples, int [P], for people at distances [P], metres; new: bool [P].

    Everybody gets `least`, the number that sigma was calibrated with. What is left of `affordable`, the number of
    samples that there is time for, goes to new people first, then to near ones, up to `MOST` for each.
    """
    samples = np.full(len(distance), least)
    left = affordable - least * len(distance)
    for person in np.lexsort((distance, ~new)):
        more = int(np.clip(left, 0, max(0, MOST - least)))
        samples[person] += more
        left -= more
    return samples
