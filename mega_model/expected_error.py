"""The expected error of each vertex, without sampling. Not part of the paper.

A head on the decoder's states, with all tokens masked, predicts the error of every mesh token. The error of a vertex is
a weighted mean over the tokens around it. Further inputs detect crops without a person and crops unlike the training
set: presence, visibility and size of the person by BlazePose, the distance of the lifter's maps from those of the
training set, and how well a detector's keypoints agree with the landmarks. How far the fitted mesh is from both is
known only after the fit, and `fit.widened` adds it. B batch, N tokens, D width, V vertices, J joints, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mega_model.blazepose import PoseFeatures
from mega_model.core.fit import OBSERVED, limb_shares
from mega_model.core.topology import Topology
from mega_model.image_encoding import ImageEncoding
from mega_model.tokenizer import MeshTokenizer

SMALLEST, LARGEST = 0.01, 3.0
"""Metres."""
KNOTS = 10
"""Points of the calibration curve."""
AGREEMENT = 3
"""Numbers that say how well landmark and keypoint of a limb agree: two scores, and a log distance."""
_REACH = 0.08
"""Metres on the template: standard deviation of a token's weights around its centre."""


class ExpectedError(NamedTuple):
    sigma: Tensor
    """[B, V], metres: expected root mean square error of the vertices, see `metrics.beside`, to be `widened`"""
    joints_sigma: Tensor
    """[B, J], metres: the same of the joints"""
    distance: Tensor
    """[B]: root mean square distance of the pooled features from those of the training set (Mahalanobis)"""
    modes: Tensor
    """[M, V, 3], metres: principal components of the meshes' errors before the fit to landmarks; see `core.fit`"""


class ErrorHead(nn.Module):
    """States [B, N, D] and what is known of the crops -> `ExpectedError`.

    maps [B, C, 4, 4]: what the lifter sees (`ImageEncoding`). landmarks, world, presence: see `PoseFeatures`.
    keypoints [B, 12, 3]: a detector's, of the limbs, in crop coordinates, with scores; score 0 if unknown.
    """

    def __init__(self, width: int, tokens: int, vertices: int, joints: int, channels: int, modes: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(width + AGREEMENT, 64), nn.GELU(), nn.Linear(64, 1))
        self.person = nn.Sequential(nn.Linear(7, 32), nn.GELU(), nn.Linear(32, tokens))
        self.vertex, self.joint = nn.Parameter(torch.zeros(vertices)), nn.Parameter(torch.zeros(joints))
        shares = {"shares": (vertices, tokens), "joint_shares": (joints, tokens), "limb_shares": (tokens, 12)}
        features = {"centre": (channels,), "whiten": (channels, channels)}
        for name, shape in {**shares, **features, "calibration": (2, 2, KNOTS), "modes": (modes, vertices, 3)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.shares: Tensor
        self.joint_shares: Tensor
        self.limb_shares: Tensor
        self.centre: Tensor
        self.whiten: Tensor
        self.modes: Tensor
        self.calibration: Tensor
        """[2, 2, K]: for vertices and for joints, some logs of the head's errors, ascending, and their logs of sigma"""
        with torch.no_grad():
            self.calibration[:] = torch.linspace(SMALLEST, LARGEST, KNOTS).log()
            for head in (self.token, self.person):
                for parameter in head[-1].parameters():
                    parameter.mul_(0.1)

    @classmethod
    def begin(cls, width: int, tokenizer: MeshTokenizer, topology: Topology, maps: Tensor, modes: Tensor) -> ErrorHead:
        """A new head with the statistics of the training set's maps, and with the meshes' modes."""
        shares = token_shares(tokenizer, topology)
        pooled = maps.mean(dim=(2, 3))
        sizes = tokenizer.length, len(topology.template), len(topology.joint_names), pooled.shape[1], len(modes)
        head = cls(width, *sizes)
        head.modes.copy_(modes)
        head.shares.copy_(shares)
        weights = torch.from_numpy(np.abs(topology.joint_regressor)).float()
        head.joint_shares.copy_(weights / weights.sum(dim=1, keepdim=True) @ shares)
        centres, template = token_centres(tokenizer, topology).numpy(), topology.template
        head.limb_shares.copy_(torch.from_numpy(limb_shares(centres, topology.joints(template))))
        head.centre.copy_(pooled.mean(dim=0))
        covariance = torch.cov(pooled.T)
        # directions that hardly vary in renders must not dominate
        covariance += 1e-3 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        head.whiten.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)).T)
        return head

    def forward(
        self, states: Tensor, maps: Tensor, landmarks: Tensor, world: Tensor, presence: Tensor, keypoints: Tensor
    ) -> ExpectedError:
        vertices, joints, distance = self.log_errors(states, maps, landmarks, world, presence, keypoints)
        sigma, joints_sigma = (
            interpolated(log, *knots).exp().clamp(SMALLEST, LARGEST)
            for log, knots in zip((vertices, joints), self.calibration)
        )
        return ExpectedError(sigma, joints_sigma, distance, self.modes)

    def log_errors(
        self, states: Tensor, maps: Tensor, landmarks: Tensor, world: Tensor, presence: Tensor, keypoints: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Before calibration: logs of the errors (metres) of vertices [B, V] and joints [B, J]; the distance [B]."""
        distance = ((maps.mean(dim=(2, 3)) - self.centre) @ self.whiten).square().mean(dim=1).sqrt()
        limbs, score = landmarks[:, OBSERVED], keypoints[..., 2]
        apart = (limbs[..., :2] - keypoints[..., :2]).norm(dim=-1).clamp(max=2)
        agreement = torch.stack([limbs[..., 3] * limbs[..., 4], score, score * (10 * apart + 0.3).log()], dim=-1)
        person = torch.stack(
            [
                presence.clamp(1e-3, 1 - 1e-3).logit() / 4,
                distance - 1,
                landmarks[:, :33, 3].mean(dim=1) - 0.5,
                landmarks[:, :33, 4].mean(dim=1) - 0.5,
                world[:, :33].norm(dim=-1).mean(dim=1).clamp(min=0.05).log(),
                score.mean(dim=1) - 0.5,
                score.amax(dim=1) - 0.5,
            ],
            dim=1,
        )
        states = torch.cat([states, self.limb_shares @ agreement], dim=-1)
        tokens = self.token(states)[..., 0] + self.person(person) - 2  # initially about a decimetre
        return tokens @ self.shares.T + self.vertex, tokens @ self.joint_shares.T + self.joint, distance


def head_inputs(states: Tensor, seen: ImageEncoding, features: PoseFeatures, keypoints: Tensor) -> dict[str, Tensor]:
    """The inputs of `ErrorHead`, by name."""
    assert seen.maps is not None  # models with BlazePose have them
    # the map that the lifter sees, in place of the backbone's
    return features._asdict() | {"states": states, "maps": seen.maps, "keypoints": keypoints}


def interpolated(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """The polygon through `values` [K] at `at` [K], ascending, with slope 1 beyond its ends: [...] -> [...]."""
    slopes = values.diff() / at.diff()
    within = (x[..., None] - at[:-1]).clamp(min=0).minimum(at.diff())
    return values[0] + (x - at[0]).clamp(max=0) + (within * slopes).sum(dim=-1) + (x - at[-1]).clamp(min=0)


def token_centres(tokenizer: MeshTokenizer, topology: Topology) -> Tensor:
    """[N, 3], metres: where the tokens are on the template."""
    centres = torch.from_numpy(topology.template)
    for table in tokenizer.pooling():
        centres = torch.stack([centres[row[row >= 0].long()].mean(dim=0) for row in table])
    return centres


def token_shares(tokenizer: MeshTokenizer, topology: Topology) -> Tensor:
    """[V, N]: weights of the tokens' errors for each vertex, from distances on the template; rows sum to one."""
    places = torch.from_numpy(topology.template)
    near = -torch.cdist(places, token_centres(tokenizer, topology)).square() / (2 * _REACH**2)
    return near.softmax(dim=1)
