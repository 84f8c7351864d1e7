"""The image's part of MEGA, computed once per person: the input of the transformer, rotation and camera.

B images, L image tokens, D width, N mesh tokens, S codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class ImageTokens(NamedTuple):
    tokens: Tensor
    """[B, L, D], with their positions"""
    prior: Tensor | None = None
    """[B, N, S]: prior on the codes; it is added to the logits of every pass"""
    projected: Tensor | None = None
    """[B, L, 3 D]: the tokens' queries, keys and values in the decoder's first block, if they are known"""

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageTokens:
        """Apply `change` to all parts."""
        prior, projected = (None if part is None else change(part) for part in self[1:])
        return ImageTokens(change(self.tokens), prior, projected)


class ImageEncoding(NamedTuple):
    image: ImageTokens
    rot6d: Tensor
    """[B, 6]: rotation from canonical to the crop's camera"""
    camera: Tensor
    """[B, 3] = (s, tx, ty), see `MegaOutput`"""
    latents: Tensor | None = None
    """[B, N, latent]: the lifter's prediction of the mesh tokens' latents; None without a lifter"""
    maps: Tensor | None = None
    """[B, channels, 4, 4]: what the lifter sees in the image; None without a lifter"""
