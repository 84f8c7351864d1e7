"""Rotations, the weak-perspective camera and crops, in torch. See also `core.geometry`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 64
"""Crops that are cut at once: a float image and its coordinates take 10 times the memory of the crop."""


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


@torch.no_grad()
def crop_batch(
    images: Tensor, intrinsics: np.ndarray, crop_intrinsics: np.ndarray, crop_from_camera: np.ndarray, size: int
) -> Tensor:
    """`core.geometry.crop_images` of a batch, on its device: one crop of each image, for cameras without a lens.

    images uint8 [B, H, W, 3] and the intrinsics of their cameras [B, 3, 3] -> uint8 [B, 3, size, size], black outside.
    A crop with a negative focal length in x is mirrored. Nothing is averaged first, so a crop whose pixels span two of
    the image's or more is not smooth.
    """
    to_image = intrinsics @ crop_from_camera.swapaxes(1, 2) @ np.linalg.inv(crop_intrinsics)
    homographies = torch.from_numpy(to_image.astype(np.float32)).to(images.device, non_blocking=True)
    middle = torch.arange(size, device=images.device) + 0.5
    y, x = (part.unsqueeze(-1) for part in torch.meshgrid(middle, middle, indexing="ij"))
    scale = torch.tensor([2 / images.shape[2], 2 / images.shape[1]], device=images.device)
    crops = []
    for some, homography in zip(images.split(AT_ONCE), homographies.split(AT_ONCE)):
        h = homography[:, None, None]
        # not a matrix product, which a GPU may round to 10 bits
        pixels, depth = (x * h[..., 0] + y * h[..., 1] + h[..., 2]).split([2, 1], dim=-1)
        # what is behind the camera is outside of the image
        at = torch.where(depth > 1e-6, pixels / depth * scale - 1, -2)
        crops.append(F.grid_sample(some.permute(0, 3, 1, 2).float(), at, align_corners=False).round().byte())
    return torch.cat(crops)
