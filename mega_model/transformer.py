"""The transformer block of MEGA and its ViT backbone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm block (Dosovitskiy et al. 2021): attention and a GELU layer four times as wide, each with a shortcut.

    `bias` is that of queries, keys and values, `eps` that of the layer norms.
    """

    def __init__(self, width: int, heads: int, bias: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keep: Tensor | None = None, first: int = 0, projected: Tensor | None = None) -> Tensor:
        """x [B, L, D] -> [B, L - first, D]: the outputs from index `first` on; earlier ones are only attended to.

        keep bool [B, L]: mask of the keys; None for no mask. projected: `project(x)`, if it is known.
        """
        q, k, v = (self.project(x) if projected is None else projected).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q[:, first:], k, v))
        mask = None if keep is None else keep[:, None, None]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # [B, heads, L, D']
        x = x[:, first:] + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def project(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, 3 D]: queries, keys and values. They depend on each row alone."""
        return self.qkv(self.norm1(x))
