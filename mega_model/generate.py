"""Generation: all tokens at once, or step by step (paper 3.4).

Random numbers are an input: uniforms in (0, 1), so that a compiled graph can repeat every choice. Each step and token
has two. One draws the candidate code by the inverse distribution function, which is equivalent to Gumbel-max. The other
gives the Gumbel noise that decides which candidates are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mega_model.image_encoding import ImageEncoding, ImageTokens
from mega_model.mega import Mega
from mega_model.tokenizer import MeshTokenizer


def visible_counts(tokens: int, steps: int) -> list[int]:
    """n_t for t = 0..T: how many tokens are visible after t steps; 0 first, all at the end.

    The paper rounds the visible tokens down (3.4). The released code rounds the masked ones down, so it shows one more
    after most steps, and it always leaves at least one masked, even at the end (reference_checkpoints.md, section 4).
    """
    counts = [math.floor(tokens * (1 - math.cos(math.pi * t / (2 * steps)))) for t in range(steps)]
    return [*counts, tokens]


def temperatures(steps: int, initial: float) -> list[float]:
    """Temperature of step t = 1..T: initial * (1 - t / T). It is zero in the last step."""
    return [initial * (1 - t / steps) for t in range(1, steps + 1)]


def sample_codes(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Codes [...] drawn from softmax(logits / temperature) by uniforms [...]; logits [..., S]. 0: argmax."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = F.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    # without the last, which is 1, or below a uniform close to 1 by rounding
    return (cumulative[..., :-1] < uniform[..., None]).sum(dim=-1)


def step(
    logits: Tensor, tokens: Tensor, index: Tensor, count: int, temperature: float, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: draw candidate codes, then choose `count` visible tokens. uniforms [B, N, 2]; the rest as in `show`."""
    candidates = sample_codes(logits, temperature, uniforms[..., 0])
    return show(logits, candidates, tokens, index, count, -temperature * torch.log(-torch.log(uniforms[..., 1])))


def show(
    logits: Tensor, candidates: Tensor, tokens: Tensor, index: Tensor, count: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose the visible tokens as in the paper: those with the largest logit plus noise.

    logits [B, N, S]. candidates int64 [B, N]. index [B, M]: positions that are visible already. tokens int64 [B, N]:
    only the values at `index` are used. noise [B, N]: Gumbel noise times the temperature. Returns tokens [B, N], with
    candidates at all other positions, and the positions [B, count] that are visible now, including `index`.
    """
    after = candidates.scatter(1, index, tokens.gather(1, index))
    if count == tokens.shape[1]:
        return after, torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    confidence = logits.gather(-1, candidates[..., None])[..., 0] + noise  # unnormalised, as the paper says
    confidence = confidence.scatter(1, index, torch.full_like(confidence[:, : index.shape[1]], torch.inf))
    return after, confidence.topk(count, dim=1).indices


@torch.no_grad()
def deterministic(model: Mega, features: Any) -> Tensor:
    """The most likely tokens [B, N] when all are masked. features: the backbone's output."""
    return first_logits(model, model.encode_image(features).image).argmax(dim=-1)


def expected_vertices(tokenizer: MeshTokenizer, logits: Tensor) -> Tensor:
    """The mesh [B, V, 3] of the expected codes under logits [B, N, S].

    If the model is uncertain, this mesh is closer to the truth than that of the most likely tokens, which are chosen
    independently of each other.
    """
    return tokenizer.reconstruct(logits.softmax(dim=-1) @ tokenizer.quantizer.codebook)


def first_states(model: Mega, image: ImageTokens | None) -> Tensor:
    """The decoder's states [B, N, D] with all tokens masked; [1, N, D] without an image."""
    cls = model.encode_nothing()
    nothing = torch.zeros(1, 0, dtype=torch.long, device=cls.device)
    if image is None:
        return model.decode(None, cls, nothing)
    people = len(image.tokens)
    return model.decode(image, cls.expand(people, -1, -1), nothing.expand(people, -1))


def first_logits(model: Mega, image: ImageTokens | None) -> Tensor:
    """The logits [B, N, S] of `first_states`."""
    return model.read(first_states(model, image), image)


def first_pass(model: Mega, features: Any) -> tuple[ImageEncoding, Tensor, Tensor]:
    """What the image gives, `first_states` [B, N, D] and their logits [B, N, S], from the backbone's output."""
    seen = model.encode_image(features)
    states = first_states(model, seen.image)
    return seen, states, model.read(states, seen.image)


def sample(model: Mega, image: ImageTokens, logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Tokens [B, Q, N] from image tokens, `first_logits` [B, N, S] and uniforms [B, Q, T, N, 2]."""
    batch, samples, steps = uniforms.shape[:3]

    def spread(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, samples, *x.shape[1:]).flatten(0, 1)

    # no token is visible in the first step, so all samples share its logits
    noise = temperatures(steps, temperature)
    image = model.project_image(image).map(spread)
    *_, (tokens, _) = unmask(model, image, spread(logits), uniforms.flatten(0, 1), noise)
    return tokens.unflatten(0, (batch, samples))


def unmask_bodies(model: Mega, uniforms: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """`unmask` without images, by a pre-trained model, from uniforms [B, T, N, 2].

    The noise is (A (1 - t/T))^6 (paper, appendix C); the released code's is (1 - t/T) (A (1 - t/T))^5.
    """
    logits = first_logits(model, None).expand(len(uniforms), -1, -1)
    return unmask(model, None, logits, uniforms, [tau**6 for tau in temperatures(uniforms.shape[1], temperature)])


def unmask(
    model: Mega, image: ImageTokens | None, logits: Tensor, uniforms: Tensor, noise: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens [B, N] and the positions [B, n_t] of the visible ones, after each step.

    image: None for unconditional generation. logits [B, N, S]: of the first step. uniforms [B, T, N, 2]. noise: the
    temperature of each step.
    """
    steps, length = uniforms.shape[1:3]
    counts = visible_counts(length, steps)
    tokens = torch.zeros_like(uniforms[:, 0, :, 0], dtype=torch.long)
    index = tokens[:, :0]
    for t in range(steps):
        if counts[t + 1] > counts[t]:  # with many steps, the first ones may add no visible token
            if counts[t] > 0:
                logits = model.read(model.decode(image, model.encode(tokens.gather(1, index), index), index), image)
            tokens, index = step(logits, tokens, index, counts[t + 1], noise[t], uniforms[:, t])
        yield tokens, index


@torch.no_grad()
def stochastic(
    model: Mega, features: Any, samples: int, steps: int = 5, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Tokens [B, Q, N], sampled step by step from the backbone's output; equal seeds give equal tokens."""
    seen, _, logits = first_pass(model, features)
    shape = (len(logits), samples, steps, model.config.tokens, 2)
    return sample(model, seen.image, logits, uniforms(shape, seed).to(logits.device), temperature)


@torch.no_grad()
def unconditional(model: Mega, count: int, steps: int = 20, temperature: float = 1.2, seed: int = 0) -> Tensor:
    """Tokens [count, N] of random bodies from a pre-trained model; equal seeds give equal bodies."""
    random = uniforms((count, steps, model.config.tokens, 2), seed).to(model.cls.device)
    *_, (tokens, _) = unmask_bodies(model, random, temperature)
    return tokens


def uniforms(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random float32 numbers in the open interval (0, 1)."""
    # on the CPU, for equal numbers on all machines; torch's interval includes 0, whose Gumbel noise is infinite
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), device="cpu").clamp(min=1e-7)
