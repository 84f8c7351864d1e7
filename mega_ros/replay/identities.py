"""Identities over time: IDF1, id switches and acceleration.

IDF1 is that of Ristani et al. 2016, id switches are those of CLEAR MOT (Bernardin and Stiefelhagen 2008). The
libraries for these, and for HOTA, bring too much (as of November 2026): `trackeval` 1.3 requires a
second OpenCV (`opencv-python`), matplotlib and pycocotools; `motmetrics` 1.4 requires pandas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mega_model.core import metrics

from .measures import Row

Pair = tuple[int, int]
"""A true and a recovered id."""
Moment = tuple[float, np.ndarray, np.ndarray]
"""Time in seconds; recovered and true joints [J, 3], metres, the pelvis at the origin."""


@dataclass
class Identities:
    """Who was found as whom, in frames that follow each other."""

    _frames: list[tuple[Row, set[Pair], int]] = field(default_factory=list)
    """each frame's row, the pairs that overlap enough, and how many people are true or recovered."""
    _last: dict[int, int] = field(default_factory=dict)
    """true id -> the recovered id under which the person was last found."""
    _past: dict[int, list[Moment]] = field(default_factory=dict)
    """true id -> up to two frames before this one without a gap."""

    def add(self, row: Row, found: Mapping[int, tuple[int, np.ndarray, np.ndarray]], near: set[Pair]) -> None:
        """The next frame. found: true id -> recovered id, recovered and true joints [J, 3], metres. near: all pairs
        that overlap enough to be one person, of which `found` has at most one for each person.

        Adds `switches`, the number of `accelerated` people, and their `acceleration` where there are some.
        """
        ids = {truth: person for truth, (person, _, _) in found.items()}
        row["switches"] = sum(self._last.get(truth, person) != person for truth, person in ids.items())
        if row["true_people"]:
            row["switch_rate"] = row["switches"] / row["true_people"]
        self._last |= ids
        # people who need not be found count on neither side
        self._frames.append((row, near, row["true_people"] + row["false_positives"] + len(found)))
        past, self._past, errors = self._past, {}, []
        for truth, (_, joints, true_joints) in found.items():
            now = row["stamp"] / 1e9, joints - joints[0], true_joints - true_joints[0]
            # a recording that starts again has earlier stamps
            moments = [*(moment for moment in past.get(truth, []) if moment[0] < now[0]), now]
            if len(moments) == 3:
                errors.append(_acceleration_error(moments))
            self._past[truth] = moments[-2:]
        row["accelerated"] = len(errors)
        if errors:
            row["acceleration"] = float(np.mean(errors))

    def finish(self) -> None:
        """Adds `idf1` and its weight `identities` to the rows.

        Ids are assigned one to one over all frames, so that the most frames have overlapping people of assigned ids.
        """
        from scipy.optimize import linear_sum_assignment  # slow to load

        together = Counter(pair for _, near, _ in self._frames for pair in near)
        truths, persons = (sorted({pair[side] for pair in together}) for side in (0, 1))
        counts = np.array([[together[t, p] for p in persons] for t in truths]).reshape(len(truths), len(persons))
        right = {(truths[t], persons[p]) for t, p in zip(*linear_sum_assignment(-counts))}
        for row, near, count in self._frames:
            if count:
                row |= {"idf1": 2 * len(right & near) / count, "identities": count}


def _acceleration_error(moments: list[Moment]) -> float:
    """Metres per second squared, mean over the known joints; the times need not be evenly spaced."""
    (t0, *a), (t1, *b), (t2, *c) = moments
    recovered, true = (2 * ((z - y) / (t2 - t1) - (y - x) / (t1 - t0)) / (t2 - t0) for x, y, z in zip(a, b, c))
    return float(np.nanmean(metrics.distances(recovered, true)))
