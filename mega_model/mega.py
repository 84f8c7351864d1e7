"""MEGA: a masked autoencoder over mesh tokens, conditioned on an image (paper 3.2 to 3.4).

The encoder reads the visible tokens only. The decoder reads [image tokens, cls, 54 mesh tokens], with mask tokens in
place of masked mesh tokens, and predicts all mesh tokens. Rotation and camera depend on the image only. `visible` is
True for given tokens and False for masked ones. Shapes: B batch, N tokens, S codes, D width, C image channels, L image
tokens, M visible tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model.backbones import BACKBONES
from mega_model.blazepose import BlazePose
from mega_model.image_encoding import ImageEncoding, ImageTokens
from mega_model.lifter import Lifter
from mega_model.transformer import Block


@dataclass(frozen=True)
class MegaConfig:
    tokens: int = 54
    codes: int = 512
    width: int = 128
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    heads: int = 4
    backbone: Literal["resnet18", "resnet50", "hrnet", "vit", "blazepose", "given"] = "blazepose"
    backbone_width: int = 144
    """See `backbones.BACKBONES`."""
    image_size: int = 256
    """Side of the crops in pixels. Crops are square; the ViT uses the middle three quarters of the columns."""
    head_dropout: float = 0.1
    latent: int = 9
    """Width of the tokenizer's latents, which the lifter predicts."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"its width of {self.width} cannot be divided among {self.heads} heads")


_PAPER = MegaConfig(width=1024, encoder_blocks=12, decoder_blocks=4, head_dropout=0.5)

PRESETS = {
    "default": MegaConfig(),
    "hrnet": replace(_PAPER, backbone="hrnet", backbone_width=48, image_size=224),
    "vit": replace(_PAPER, backbone="vit", backbone_width=1280, image_size=256),
    "resnet": replace(_PAPER, backbone="resnet50", backbone_width=64, image_size=224),
}
"""The small default, and the paper's three (section 3.2; sizes: the released configurations)."""


class MegaOutput(NamedTuple):
    logits: Tensor
    """[B, N, S]"""
    rot6d: Tensor | None
    """[B, 6]: rotation from canonical to the crop's camera; None without an image"""
    camera: Tensor | None
    """[B, 3] = (s, tx, ty): weak perspective in coordinates that are -1 and 1 at the edges of the square crop"""


class Mega(nn.Module):
    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.config = c = config
        self.backbone = BACKBONES[c.backbone](c.backbone_width)
        channels = self.backbone.channels

        self.embed = nn.Embedding(c.codes, c.width)
        self.encoder_position = nn.Parameter(torch.empty(c.tokens, c.width))
        self.cls = nn.Parameter(torch.empty(c.width))
        self.encoder = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.encoder_blocks))
        self.encoder_norm = nn.LayerNorm(c.width)
        self._nothing: tuple[list[tuple[int, int]], Tensor] | None = None  # see `encode_nothing`

        self.mask_token = nn.Parameter(torch.empty(c.width))
        self.decoder_position = nn.Parameter(torch.empty(1 + c.tokens, c.width))  # cls first
        self.decoder = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.decoder_blocks))
        self.head = nn.Linear(c.width, c.codes)

        self.lifter = None
        if c.backbone == "blazepose":
            assert isinstance(self.backbone, BlazePose)
            self.backbone.requires_grad_(False)
            self.lifter = Lifter(self.backbone, c.tokens, c.codes, c.latent, c.width, c.head_dropout)
        else:
            self.image_embed = nn.Linear(channels, c.width)
            # no nonlinearity, as in the released code
            drop = nn.Dropout(c.head_dropout)
            self.pose_head = nn.Sequential(nn.Linear(channels, c.width), drop, nn.Linear(c.width, c.width), drop)
            self.rotation_head = nn.Linear(c.width, 6)
            self.camera_head = nn.Linear(c.width, 3)
            with torch.no_grad():  # initial prediction: an upright person, seen from the front, who fills the crop
                self.rotation_head.bias.copy_(torch.tensor([1.0, 0, 0, 0, -1, 0]))
                self.camera_head.bias.copy_(torch.tensor([1.0, 0, 0]))

        for p in (self.encoder_position, self.cls, self.mask_token, self.decoder_position, self.embed.weight):
            nn.init.trunc_normal_(p, std=0.02)
        for block in (*self.encoder, *self.decoder):
            for m in block.modules():
                if isinstance(m, nn.Linear):
                    nn.init.xavier_uniform_(m.weight)

    def forward(self, features: Any | None, tokens: Tensor, visible: Tensor) -> MegaOutput:
        """features: the backbone's output, or None (unconditional). tokens int64 [B, N], visible bool [B, N]."""
        if features is None:
            return MegaOutput(self.logits(None, tokens, visible), None, None)
        seen = self.encode_image(features)
        return MegaOutput(self.logits(seen.image, tokens, visible), seen.rot6d, seen.camera)

    def normalise(self, images: Tensor) -> Tensor:
        """RGB [B, 3, H, W] in 0..1 -> the backbone's input."""
        mean, std = (
            torch.tensor(x, device=images.device)[:, None, None] for x in (self.backbone.mean, self.backbone.std)
        )
        return (images - mean) / std

    def encode_image(self, features: Any) -> ImageEncoding:
        """The image's part of the model, from the backbone's output. It is computed once per image."""
        if self.lifter is not None:
            return self.lifter(features)
        tokens = self.image_embed(features.flatten(2).transpose(1, 2))  # row by row
        x = self.pose_head(features.mean(dim=(2, 3)))
        tokens = tokens + sinusoid(*tokens.shape[1:]).to(tokens)
        return ImageEncoding(ImageTokens(tokens), self.rotation_head(x), self.camera_head(x))

    def logits(self, image: ImageTokens | None, tokens: Tensor, visible: Tensor) -> Tensor:
        """Logits [B, N, S] from image tokens (None: unconditional), tokens and visible [B, N]."""
        # rows may have different numbers of visible tokens: pad to the longest, and mask the padding
        count = visible.sum(dim=1, keepdim=True)
        index = visible.int().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
        keep = torch.arange(index.shape[1], device=index.device) < count
        return self.read(self.decode(image, self.encode(tokens.gather(1, index), index, keep), index, keep), image)

    def encode(self, tokens: Tensor, index: Tensor, keep: Tensor | None = None) -> Tensor:
        """Visible tokens [B, M] at positions index [B, M] -> [B, 1 + M, D], cls first; keep [B, M]: no padding."""
        x = self.embed(tokens) + self.encoder_position[index]
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        if keep is not None:
            keep = F.pad(keep, (1, 0), value=True)
        for block in self.encoder:
            x = block(x, keep)
        return self.encoder_norm(x)

    def encode_nothing(self) -> Tensor:
        """`encode` without visible tokens: [1, 1, D]. It depends only on the weights and is cached until they change.

        Changes through `.data` are not detected, because torch does not count them.
        """
        nothing = torch.zeros(1, 0, dtype=torch.long, device=self.cls.device)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled(self.cls.device.type):
            return self.encode(nothing, nothing)
        weights = (self.cls, *self.encoder.parameters(), *self.encoder_norm.parameters())
        if any(w.is_inference() for w in weights):  # torch does not count their changes
            return self.encode(nothing, nothing)
        made_of = [(w.data_ptr(), w._version) for w in weights]
        if self._nothing is None or self._nothing[0] != made_of:
            self._nothing = made_of, self.encode(nothing, nothing)
        return self._nothing[1]

    def decode(self, image: ImageTokens | None, encoded: Tensor, index: Tensor, keep: Tensor | None = None) -> Tensor:
        """Image tokens and the output of `encode` for positions index [B, M] -> states [B, N, D], see `read`."""
        # In the first block, queries, keys and values depend on each row alone. So those of the image are computed once
        # for all samples, those of masked tokens once for all, and only those of cls and of visible tokens here.
        place = F.pad(index + 1, (1, 0))
        given = self._rows(encoded + self.decoder_position[place])
        masked = self._rows(self.mask_token + self.decoder_position)
        if keep is not None:
            given = torch.where(F.pad(keep, (1, 0), value=True)[..., None], given, masked[place])
        rows = masked.expand(len(given), -1, -1).scatter(1, place[..., None].expand_as(given), given)
        if image is not None:
            image = self.project_image(image)
            assert image.projected is not None
            rows = torch.cat([torch.cat([image.tokens, image.projected], dim=-1), rows], dim=1)
        x, projected = rows.split([self.config.width, 3 * self.config.width], dim=-1)
        for block in self.decoder:
            last = block is self.decoder[-1]
            x = block(x, first=x.shape[1] - self.config.tokens if last else 0, projected=projected)
            projected = None
        return x

    def project_image(self, image: ImageTokens) -> ImageTokens:
        """With `projected`."""
        return image if image.projected is not None else image._replace(projected=self._project(image.tokens))

    def _rows(self, x: Tensor) -> Tensor:
        """Rows [..., D] of the decoder's input -> [..., 4 D], with their queries, keys and values."""
        return torch.cat([x, self._project(x)], dim=-1)

    def _project(self, x: Tensor) -> Tensor:
        """`Block.project` of the decoder's first block."""
        first = self.decoder[0]
        assert isinstance(first, Block)
        return first.project(x)

    def read(self, states: Tensor, image: ImageTokens | None) -> Tensor:
        """The logits [B, N, S] of states [B, N, D]."""
        logits = self.head(states)
        return logits if image is None or image.prior is None else logits + image.prior


def sinusoid(length: int, width: int) -> Tensor:
    """Position code [length, width]: sines at even, cosines at odd channels (Vaswani et al. 2017)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def masked_count(tau: Tensor, tokens: int) -> Tensor:
    """Cosine schedule: floor(N cos(pi tau / 2)) tokens are masked at tau in [0, 1) (paper 3.3)."""
    return (tokens * torch.cos(tau * (math.pi / 2))).floor().long()


def random_mask(batch: int, tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Training masks: visible bool [batch, tokens], each row with its own ratio from the cosine schedule."""
    masked = masked_count(torch.rand(batch, 1, device=device), tokens)
    rank = torch.rand(batch, tokens, device=device).argsort(dim=1)
    return rank >= masked


def token_loss(model: Mega, image: ImageTokens | None, tokens: Tensor) -> Tensor:
    """Cross-entropy of randomly masked tokens [B, N] (paper 3.3), with or without image tokens."""
    visible = random_mask(len(tokens), tokens.shape[1], tokens.device)
    losses = []
    # group rows with similar numbers of visible tokens, because the encoder pads to the longest row
    for part in visible.sum(dim=1).argsort().chunk(4):
        logits = model.logits(None if image is None else image.map(itemgetter(part)), tokens[part], visible[part])
        masked = ~visible[part]
        losses.append(F.cross_entropy(logits[masked], tokens[part][masked], reduction="sum"))
    return torch.stack(losses).sum() / (~visible).sum().clamp(min=1)  # a small batch may have no masked token
