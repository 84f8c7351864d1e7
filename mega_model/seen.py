"""What MEGA reads off an image, once per person: the one thing that its image parts hand to its transformer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """B images, L image tokens, D width, N mesh tokens."""

    tokens: Tensor
    """[B, L, D]: image tokens, with their positions"""
    rot6d: Tensor
    """[B, 6]: rotation from canonical to the crop's camera"""
    camera: Tensor
    """[B, 3] = (s, tx, ty), see `MegaOutput`"""
    latents: Tensor | None
    """[B, N, latent]: a first guess of the mesh tokens' latents, where the model's image part makes one"""
