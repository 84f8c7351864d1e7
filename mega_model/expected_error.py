"""How wrong each vertex is likely to be, without sampling. Ours, not the paper's.

A head on the decoder's states, when all tokens are masked, gives the expected error of every mesh token; a vertex takes
those of the tokens around it. It also knows what tells a crop that shows no person, or one that training did not have:
how sure BlazePose is that there is one, how large its person is, and how far its features lie from those of the
training set. B batch, N tokens, D width, V vertices, J joints, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mega_model.blazepose import PoseFeatures
from mega_model.core.topology import Topology
from mega_model.tokenizer import MeshTokenizer

SMALLEST, LARGEST = 0.01, 3.0
"""Metres."""
_REACH = 0.08
"""Metres on the template: deviation of a token's share in the vertices around it."""


class ExpectedError(NamedTuple):
    sigma: Tensor
    """[B, V], metres: expected root mean square error of the vertices about the pelvis"""
    joints_sigma: Tensor
    """[B, J], metres: the same of the joints"""
    distance: Tensor
    """[B]: root mean square distance of the pooled features from the training set's, in its deviations (Mahalanobis)"""
    modes: Tensor
    """[M, V, 3], metres: in which ways meshes are usually wrong, before they are tied to landmarks; see `core.fit`"""


class ErrorHead(nn.Module):
    """States [B, N, D] and `PoseFeatures` -> `ExpectedError`."""

    def __init__(self, width: int, tokens: int, vertices: int, joints: int, channels: int, modes: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))
        self.person = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, tokens))
        self.vertex, self.joint = nn.Parameter(torch.zeros(vertices)), nn.Parameter(torch.zeros(joints))
        shares = {"shares": (vertices, tokens), "joint_shares": (joints, tokens)}
        features = {"centre": (channels,), "whiten": (channels, channels)}
        for name, shape in {**shares, **features, "calibration": (2, 2), "modes": (modes, vertices, 3)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.shares: Tensor
        self.joint_shares: Tensor
        self.centre: Tensor
        self.whiten: Tensor
        self.modes: Tensor
        self.calibration: Tensor
        """[2, 2]: offset and slope of the log of sigma by that of the head, of vertices and of joints"""
        with torch.no_grad():
            self.calibration[:, 1] = 1
            for head in (self.token, self.person):
                for parameter in head[-1].parameters():
                    parameter.mul_(0.1)

    @classmethod
    def begin(
        cls, width: int, tokenizer: MeshTokenizer, topology: Topology, features: PoseFeatures, modes: Tensor
    ) -> ErrorHead:
        """A new head, for features like those of the training set that are given, with the meshes' modes."""
        shares = token_shares(tokenizer, topology)
        pooled = features.maps.mean(dim=(2, 3))
        sizes = tokenizer.length, len(topology.template), len(topology.joint_names), pooled.shape[1], len(modes)
        head = cls(width, *sizes)
        head.modes.copy_(modes)
        head.shares.copy_(shares)
        weights = torch.from_numpy(np.abs(topology.joint_regressor)).float()
        head.joint_shares.copy_(weights / weights.sum(dim=1, keepdim=True) @ shares)
        head.centre.copy_(pooled.mean(dim=0))
        covariance = torch.cov(pooled.T)
        # directions that hardly vary in renders must not decide
        covariance += 1e-3 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        head.whiten.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance)).T)
        return head

    def forward(self, states: Tensor, features: PoseFeatures) -> ExpectedError:
        vertices, joints, distance = self.log_errors(states, features)
        (a, b), (c, d) = self.calibration
        limits = SMALLEST, LARGEST
        sigma, joints_sigma = ((x + y * log).exp().clamp(*limits) for x, y, log in ((a, b, vertices), (c, d, joints)))
        return ExpectedError(sigma, joints_sigma, distance, self.modes)

    def log_errors(self, states: Tensor, features: PoseFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Before calibration: logs of the errors (metres) of vertices [B, V] and joints [B, J]; the distance [B]."""
        distance = ((features.maps.mean(dim=(2, 3)) - self.centre) @ self.whiten).square().mean(dim=1).sqrt()
        person = torch.stack(
            [
                features.presence.clamp(1e-3, 1 - 1e-3).logit() / 4,
                distance - 1,
                features.landmarks[:, :33, 3].mean(dim=1) - 0.5,
                features.landmarks[:, :33, 4].mean(dim=1) - 0.5,
                features.world[:, :33].norm(dim=-1).mean(dim=1).clamp(min=0.05).log(),
            ],
            dim=1,
        )
        tokens = self.token(states)[..., 0] + self.person(person) - 2  # a decimetre or so, to begin with
        return tokens @ self.shares.T + self.vertex, tokens @ self.joint_shares.T + self.joint, distance


def token_shares(tokenizer: MeshTokenizer, topology: Topology) -> Tensor:
    """[V, N]: how much each token's error says of each vertex; rows sum to one. By distances on the template."""
    places = torch.from_numpy(topology.template)
    centres = places
    for table in tokenizer.pooling():
        centres = torch.stack([centres[row[row >= 0].long()].mean(dim=0) for row in table])
    near = -torch.cdist(places, centres).square() / (2 * _REACH**2)
    return near.softmax(dim=1)
