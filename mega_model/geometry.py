"""Rotations and the weak-perspective camera, in torch, for the networks' outputs. See also `core.geometry`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """6D rotation [..., 6] to matrix [..., 3, 3]; the two 3-vectors become its first two *rows* (Zhou et al. 2019)."""
    a1, a2 = rot6d[..., :3], rot6d[..., 3:]
    b1 = F.normalize(a1, dim=-1)
    b2 = F.normalize(a2 - (b1 * a2).sum(dim=-1, keepdim=True) * b1, dim=-1)
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2)], dim=-2)


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] to its first two rows [..., 6]."""
    return matrix[..., :2, :].flatten(-2)


def project_weak(points: Tensor, camera: Tensor) -> Tensor:
    """Weak perspective: points [..., V, 3], camera [..., 3] = (s, tx, ty) -> crop coordinates [..., V, 2], -1 to 1."""
    return camera[..., None, :1] * (points[..., :2] + camera[..., None, 1:])
