"""From BlazePose's features to image tokens, rotation and camera. Not part of the paper.

BlazePose stays as it is published, as its landmarks hold on photographs. They already contain a pose, but not all that
the image shows. So the lifter has a copy of BlazePose's later layers, which training changes. A multilayer perceptron
lifts the map that they see, and the landmarks, to the latents of the mesh tokens, which become image tokens. The
rotation is relative to the torso frame, which the world landmarks span. B batch, N mesh tokens, D width, C channels.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.blazepose import LANDMARKS, BlazePose, PoseFeatures
from mega_model.geometry import matrix_to_rot6d, rot6d_to_matrix
from mega_model.image_encoding import ImageEncoding, ImageTokens

HIDDEN = 1024
EXTRA = 4
"""Number of further image tokens, which are not latents of mesh tokens."""
CELLS = 16
"""Cells of the 4x4 map."""

_SHOULDERS, _HIPS = (
    [LANDMARKS.index(f"{side}_{joint}") for side in ("left", "right")] for joint in ("shoulder", "hip")
)


class Lifter(nn.Module):
    """`PoseFeatures` of B crops -> `ImageEncoding`."""

    def __init__(self, backbone: BlazePose, tokens: int, codes: int, latent: int, width: int, dropout: float) -> None:
        super().__init__()
        self.eyes = deepcopy(backbone.later_layers()).requires_grad_()  # a copy of what is frozen would be, too
        inputs = len(LANDMARKS) * (5 + 3 + 3) + 9 + CELLS * backbone.branch_channels
        drop = nn.Dropout(dropout)
        self.trunk = nn.Sequential(
            nn.Linear(inputs, HIDDEN), nn.GELU(), drop, nn.Linear(HIDDEN, HIDDEN), nn.GELU(), drop
        )
        self.turn, self.camera = nn.Linear(HIDDEN, 6), nn.Linear(HIDDEN, 3)
        self.latents = nn.Linear(HIDDEN, tokens * latent)
        self.extra = nn.Linear(HIDDEN, EXTRA * width)
        self.embed = nn.Linear(latent, width)
        self.position = nn.Parameter(0.5 * torch.randn(tokens + EXTRA, width))
        self.register_buffer("codes", torch.zeros(codes, latent))
        self.codes: Tensor
        """[S, latent]: the tokenizer's codes, divided by `unit`, like the predicted latents"""
        self.register_buffer("unit", torch.ones(latent))
        self.unit: Tensor
        """[latent]: standard deviation of the codes"""
        self.sharpness = nn.Parameter(torch.tensor(-0.5))
        self.shape = tokens, latent
        with torch.no_grad():  # initial prediction: the torso frame, and a person who nearly fills the crop
            for layer in (self.turn, self.camera, self.latents):
                layer.weight.mul_(0.1)
                layer.bias.zero_()
            self.turn.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
            self.camera.bias.copy_(torch.tensor([0.8, 0, 0]))

    @torch.no_grad()
    def set_codebook(self, codebook: Tensor) -> None:
        """Set the tokenizer's codes [S, latent]."""
        self.unit.copy_(codebook.std(dim=0))
        self.codes.copy_(codebook / self.unit)

    def forward(self, features: PoseFeatures) -> ImageEncoding:
        if self.training:  # landmark errors on photographs differ from those on renders
            jitter = 0.015 * torch.randn_like(features.landmarks) * features.landmarks.new_tensor([1.0, 1, 1, 0, 0])
            world = features.world + 0.01 * torch.randn_like(features.world)
            features = features._replace(landmarks=features.landmarks + jitter, world=world)
        torso = torso_frame(features.world)
        maps = self.eyes(features.maps)
        # scaled to about unit variance
        probabilities = features.landmarks[..., 3:] - 0.5
        inputs = (
            2 * features.landmarks[..., :3],
            probabilities,
            2 * features.world,
            2 * features.world @ torso,
            torso,
            # dropout of single cells, against overfitting to few renders
            F.dropout(maps / 2, 0.15, self.training),
        )
        hidden = self.trunk(torch.cat([x.flatten(1).clamp(-8, 8) for x in inputs], dim=1))
        rotation = torso @ rot6d_to_matrix(self.turn(hidden))
        latents = self.latents(hidden).unflatten(1, self.shape)
        tokens = torch.cat([self.embed(latents), self.extra(hidden).unflatten(1, (EXTRA, -1))], dim=1)
        # the negative squared distance to each code, without the square of the latents, which is constant
        nearness = 2 * latents @ self.codes.T - self.codes.square().sum(dim=1)
        image = ImageTokens(tokens + self.position, self.sharpness.exp() * nearness)
        return ImageEncoding(image, matrix_to_rot6d(rotation), self.camera(hidden), latents * self.unit, maps)


def torso_frame(world: Tensor) -> Tensor:
    """World landmarks [B, 39, 3] -> rotation [B, 3, 3] from canonical to camera: hips and shoulders span it."""
    shoulders, hips = world[:, _SHOULDERS], world[:, _HIPS]
    y = _direction(shoulders.sum(dim=1) - hips.sum(dim=1))
    across = shoulders[:, 0] - shoulders[:, 1] + hips[:, 0] - hips[:, 1]
    x = _direction(across - (across * y).sum(dim=-1, keepdim=True) * y)
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], dim=-1)


def _direction(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-3)
