"""The numbers of a replay's report: what each is, its unit, and how those of frames make that of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from math import erf, exp, pi, sqrt
from typing import Any, Literal, NamedTuple

Row = dict[str, Any]
"""Of one frame in report.json."""


class Measure(NamedTuple):
    words: str
    unit: str
    """in which it is shown; reports hold metres, seconds, and shares from 0 to 1."""
    weight: str
    """the field of a frame that weights the frame's number, e.g. of how many people it is the mean."""
    better: Literal["low", "high", "promised", ""]
    """`promised`: near what `promised` says. Empty: neither is better."""
    definition: str


def _gaussian(sigmas: float) -> float:
    """Share of isotropic Gaussian errors within so many root mean squares: chi distribution, 3 degrees of freedom."""
    half = 1.5 * sigmas**2
    return erf(sqrt(half)) - 2 * sqrt(half / pi) * exp(-half)


_ALIGNED = "the pelvises put together"
_NEAR = "with the recovered person moved along the line of sight to the true distance"
MEASURES = {
    "pve": Measure("PVE", "mm", "compared", "low", f"Per-vertex error: mean distance of the vertices, {_ALIGNED}."),
    "mpjpe": Measure(
        "MPJPE", "mm", "compared", "low", f"Mean per-joint position error: that of SMPL's joints, {_ALIGNED}."
    ),
    "pa_mpjpe": Measure(
        "PA-MPJPE", "mm", "compared", "low", "MPJPE after the best rotation, scale and shift (Procrustes)."
    ),
    **{
        f"best_{name}": Measure(
            f"{words}, best sample",
            "mm",
            "compared",
            "low",
            f"{words} of the sample of each person that has the least.",
        )
        for name, words in (("pve", "PVE"), ("mpjpe", "MPJPE"), ("pa_mpjpe", "PA-MPJPE"))
    },
    "position": Measure(
        "pelvis position", "mm", "compared", "low", "Distance of the recovered from the true pelvis, camera frame."
    ),
    "acceleration": Measure(
        "acceleration error",
        "m/s²",
        "accelerated",
        "low",
        "Mean distance of the joints' recovered and true acceleration: second differences over three frames with "
        f"ground truth that follow each other, {_ALIGNED}.",
    ),
    "pck": Measure(
        "PCK@0.2",
        "%",
        "joints",
        "high",
        "Percentage of correct keypoints: the 12 joints of arms and legs, projected, that lie within 0.2 torso lengths "
        "of the true ones in the image. All joints of a person who is missed are wrong.",
    ),
    "normalised_error": Measure(
        "2D error, of the torso",
        "%",
        "joints_found",
        "low",
        "Mean distance of projected and true joints in torso lengths, of people who are found. A torso length is the "
        "mean diagonal from shoulder to hip, at least 0.2 of the box.",
    ),
    "recall": Measure("recall", "%", "true_people", "high", "Share of the true people to find who are found."),
    "precision": Measure(
        "precision", "%", "predicted_people", "high", "Share of the recovered people who are true ones."
    ),
    "idf1": Measure(
        "IDF1",
        "%",
        "identities",
        "high",
        "Twice the frames in which people have their right id, over the frames of all true and all recovered people. "
        "True and recovered ids are assigned one to one for the whole recording, by the number of frames in which "
        "their boxes overlap enough (Ristani et al. 2016).",
    ),
    "switch_rate": Measure(
        "id switches per person and frame",
        "%",
        "true_people",
        "low",
        "How often a true person is found under another id than before, over the frames of all true people.",
    ),
    "spearman": Measure(
        "Spearman",
        "",
        "compared",
        "high",
        f"Rank correlation of sigma and the error of all vertices, {_NEAR}; 1 is the best.",
    ),
    "ause": Measure(
        "AUSE",
        "",
        "compared",
        "low",
        "Area between the sparsification curves by sigma and by the error, in mean errors; 0 is the best.",
    ),
    **{
        f"coverage_{k}_sigma{suffix}": Measure(
            f"errors within {k} sigma{words}",
            "%",
            {"": "compared", "_visible": "points_visible", "_hidden": "points_hidden"}[suffix],
            "promised",
            f"Share of the errors of {of} that are at most {k} sigma, {_NEAR}. The bundle's manifest promises a share; "
            f"where it does not, an isotropic Gaussian's is expected: {100 * _gaussian(k):.1f} %.",
        )
        for suffix, words, of in (
            ("", "", "vertices"),
            ("_visible", ", visible", "visible vertices"),
            ("_hidden", ", hidden", "hidden vertices"),
        )
        for k in (1, 2)
    },
    "sigma_visible": Measure("mean sigma, visible", "mm", "points_visible", "", "Mean sigma of visible vertices."),
    "sigma_hidden": Measure("mean sigma, hidden", "mm", "points_hidden", "", "Mean sigma of hidden vertices."),
}
"""Name -> measure, in the order of tables. Where a reference has joints only, vertices are joints."""
FACTOR = {"mm": 1000, "ms": 1000, "%": 100, "m/s²": 1, "": 1}
"""From the report's unit to that of a table."""


def promised(name: str, coverage: Mapping[str, float]) -> float:
    """The share that a measure of the kind `promised` should have, by a manifest's calibration.coverage.

    Where that lacks it: by the error model of `metrics.radius`.
    """
    k = int(name.split("_")[1])
    return coverage.get(f"{k} sigma", _gaussian(k))


def shown(value: float | None, unit: str, sign: str = "") -> str:
    """A number of a report, in the unit of a table. sign: "+" shows it also of positive numbers."""
    if value is None:
        return "-"
    digits = {"ms": 0, "mm": 1, "%": 1, "m/s²": 2, "": 3}[unit]
    return f"{FACTOR[unit] * value:{sign}.{digits}f} {unit}".strip()


def parts(name: str, row: Row) -> tuple[float, float] | None:
    """Numerator and denominator of a number in a frame: over all frames, the sum of the one over that of the other."""
    if name not in row:
        return None
    weight = row[MEASURES[name].weight]
    return row[name] * weight, weight
