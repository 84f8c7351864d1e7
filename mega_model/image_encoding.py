"""What MEGA reads off an image, once per person: what its image parts hand to its transformer.

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
    """[B, N, S]: what a first guess says of the codes; it is added to the logits of every pass"""

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageTokens:
        """Both parts changed alike."""
        return ImageTokens(change(self.tokens), None if self.prior is None else change(self.prior))


class ImageEncoding(NamedTuple):
    image: ImageTokens
    rot6d: Tensor
    """[B, 6]: rotation from canonical to the crop's camera"""
    camera: Tensor
    """[B, 3] = (s, tx, ty), see `MegaOutput`"""
    latents: Tensor | None = None
    """[B, N, latent]: a first guess of the mesh tokens' latents, where the model's image part makes one"""
