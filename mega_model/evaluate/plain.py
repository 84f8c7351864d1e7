"""The straightforward implementation of the paper, which `mega bench` compares with.

It goes person by person, sample by sample and step by step. The backbone runs for every sample, as in the released
code, encoder and decoder in every step. Nothing is shared, cached or batched. P people, Q samples, T steps, N tokens,
V vertices, L image tokens, S codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mega_model import generate
from mega_model.image_encoding import ImageTokens
from mega_model.mega import Mega
from mega_model.tokenizer import MeshTokenizer


@torch.no_grad()
def deterministic(model: Mega, tokenizer: MeshTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images [P, 3, H, W] -> tokens int64 [P, N] and vertices [P, V, 3] of the expected codes."""
    nothing = torch.zeros(1, 0, dtype=torch.long, device=images.device)
    tokens, vertices = [], []
    for image in images.split(1):
        found = logits(model, model.encode_image(model.backbone(image)).image, nothing, nothing)
        tokens.append(found.argmax(dim=-1))
        vertices.append(generate.expected_vertices(tokenizer, found))
    return torch.cat(tokens), torch.cat(vertices)


@torch.no_grad()
def sample(
    model: Mega, tokenizer: MeshTokenizer, images: Tensor, uniforms: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Normalised images [P, 3, H, W], uniforms [P, Q, T, N, 2] -> tokens [P, Q, N], vertices [P, Q, V, 3]"""
    steps, length = uniforms.shape[2:4]
    counts, noise = generate.visible_counts(length, steps), generate.temperatures(steps, temperature)
    tokens = torch.zeros(*uniforms.shape[:2], length, dtype=torch.long, device=images.device)
    vertices = []
    for person, image in enumerate(images.split(1)):
        for number in range(uniforms.shape[1]):
            features = model.backbone(image)
            drawn, index = tokens[person, number][None], torch.zeros_like(tokens[0, 0, :0])[None]
            for t in range(steps):
                found = logits(model, model.encode_image(features).image, drawn.gather(1, index), index)
                random = uniforms[person, number, t][None]
                drawn, index = generate.step(found, drawn, index, counts[t + 1], noise[t], random)
            tokens[person, number] = drawn[0]
            vertices.append(tokenizer.decode(drawn))
    return tokens, torch.cat(vertices).unflatten(0, uniforms.shape[:2])


def logits(model: Mega, image: ImageTokens, tokens: Tensor, index: Tensor) -> Tensor:
    """Image tokens [B, L, D] and visible tokens [B, M] at positions index [B, M] -> logits [B, N, S]."""
    encoded = model.encode(tokens, index)
    cls, given = encoded[:, :1], encoded[:, 1:]
    mesh = model.mask_token.expand(len(given), model.config.tokens, -1)
    mesh = mesh.scatter(1, index[..., None].expand_as(given), given)
    x = torch.cat([image.tokens, torch.cat([cls, mesh], dim=1) + model.decoder_position], dim=1)
    for block in model.decoder:
        x = block(x)
    return model.read(x[:, -model.config.tokens :], image)
