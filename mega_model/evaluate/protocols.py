"""Errors of meshes, by the conventions of published tables. Where conventions differ, each has a name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.data.images import ImageSet
from mega_model.options import Conventions

METRICS = ("PVE", "MPJPE", "PA-MPJPE")
COUNTS = (1, 5, 10, 25, 50, 100)
"""Q of the paper's tables 2 and 4."""

_HIPS = [2, 3]
"""Right and left hip among the 14 joints of Human3.6M that are compared."""


@dataclass(frozen=True)
class Protocol:
    """Conventions on one body: V vertices, J joints."""

    name: str
    regressor: np.ndarray
    """[J, V]"""
    origin: np.ndarray
    """[V]: weights of the vertices, whose weighted mean is moved to zero"""

    @classmethod
    def of(cls, images: ImageSet, chosen: Conventions) -> Protocol:
        """Raises InputError if the set lacks the regressor of the requested joints."""
        regressor = images.evaluation_regressor
        joints = chosen.joints or ("smpl24" if regressor is None else "h36m14")
        if joints == "smpl24":
            regressor = images.topology.joint_regressor
            pelvis = regressor[0]
        elif regressor is None:
            raise InputError("this image set has no regressor of Human3.6M's joints: use --joints smpl24")
        else:
            pelvis = regressor[_HIPS].mean(axis=0)
        origin = pelvis if chosen.align == "pelvis" else np.full(len(pelvis), 1 / len(pelvis), np.float32)
        return cls(f"{joints}, aligned at the {chosen.align}", regressor, origin)

    def vertex_errors(self, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Distances [..., V] of the vertices of meshes [..., V, 3]."""
        return metrics.distances(metrics.centre(predicted, self.origin), metrics.centre(truth, self.origin))

    def errors(self, predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        """Each of `METRICS` [...] of meshes [..., V, 3], metres."""
        predicted, truth = metrics.centre(predicted, self.origin), metrics.centre(truth, self.origin)
        joints, true_joints = self.regressor @ predicted, self.regressor @ truth
        return {
            "PVE": metrics.mean_distance(predicted, truth),
            "MPJPE": metrics.mean_distance(joints, true_joints),
            "PA-MPJPE": metrics.pa_mpjpe(joints, true_joints),
        }


def sample_counts(samples: int) -> list[int]:
    """The paper's Q up to `samples`."""
    return [q for q in COUNTS if q <= samples]
