"""Mesh-VQ-VAE: a canonical mesh to 54 tokens and back (paper 3.1; layers after Zhou et al. 2020).

Convolutions and pools alternate. Every token is the quantised latent of one vertex of the coarsest graph, so it
describes one part of the body. Internally, tensors are [vertices, batch, channels], so that a gather copies whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from mega_model.core import hierarchy
from mega_model.core.topology import Topology


class Layer(NamedTuple):
    """A layer of the encoder or decoder: sqrt(1 - r) ELU(convolution) + sqrt(r) shortcut, with r the residual rate."""

    channels: int
    """Output channels."""
    bases: int
    """Number of kernel bases of the convolution."""
    residual: float
    """0: only a convolution; 1: only a shortcut, which is a pool."""


@dataclass(frozen=True)
class TokenizerConfig:
    seeds: tuple[int, ...] = ()
    """Template vertices at which the hierarchy starts."""
    channels: tuple[int, ...] = (32, 128)
    """Width after the convolution of each level, finest first; each level halves the graph."""
    latent: int = 9
    codes: int = 512
    bases: int = 9
    commitment: float = 0.25
    from_template: bool = True
    """Codes describe the difference to the template, so that all body parts share them; otherwise the vertices."""
    layers: tuple[Layer, ...] = ()
    """All layers of encoder and decoder, instead of `channels`, `latent` and `bases`."""

    def stack(self) -> list[Layer]:
        """The encoder's layers, then equally many of the decoder; every second layer changes the graph."""
        if self.layers:
            return [*self.layers]
        down = [Layer(c, bases, rate) for c in self.channels for bases, rate in ((self.bases, 0), (0, 1))]
        up = [Layer(c, bases, rate) for c in self.channels[::-1] for bases, rate in ((self.bases, 0), (0, 1))]
        return [*down, Layer(self.latent, self.bases, 0), *up, Layer(3, self.bases, 0)]


class TokenizerOutput(NamedTuple):
    vertices: Tensor
    """[B, V, 3] reconstruction"""
    tokens: Tensor
    """int64 [B, N]"""
    commitment: Tensor
    """scalar"""


def gather_sum(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: x [inputs, D], index and weights [rows, M] -> [rows, D]."""
    if torch.compiler.is_compiling():  # also during an export, as ONNX has no EmbeddingBag
        return (weights[:, None] @ x[index]).squeeze(1)
    weights = weights.to(x.dtype)  # under autocast, x may have half the precision
    return F.embedding_bag(index, x, per_sample_weights=weights, mode="sum")  # never builds the gathered rows


class _OverTable(nn.Module):
    """A layer over the neighbours of a fixed table."""

    def __init__(self, table: hierarchy.Table) -> None:
        super().__init__()
        # the padding may have any index, as its weight is zero
        self.register_buffer(
            "index", torch.from_numpy(table.index).long().clamp(max=table.inputs - 1), persistent=False
        )
        self.register_buffer("mask", torch.from_numpy(table.hops >= 0).float(), persistent=False)
        self.index: Tensor
        self.mask: Tensor
        self.mean_count = round(float(table.count.mean()))


class MeshConv(_OverTable):
    """Convolution with one kernel per neighbour, mixed from shared bases.

    y[p] = bias + sum_m sum_w mixing[p, m, w] weights[w] x[index[p, m]]
    """

    def __init__(self, table: hierarchy.Table, inputs: int, outputs: int, bases: int) -> None:
        super().__init__(table)
        self.weights = nn.Parameter(torch.randn(bases, outputs, inputs))
        self.mixing = nn.Parameter(torch.randn(*table.index.shape, bases) / (self.mean_count * bases))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[V, B, C] -> [V, B, C']"""
        bases, outputs, inputs = self.weights.shape
        vertices, batch = x.shape[:2]
        mixing = self.mixing * self.mask[..., None]
        # the sums over m and w commute: gather the side with fewer channels
        if outputs < inputs:
            kernels = self.weights.permute(2, 0, 1).reshape(inputs, bases * outputs)
            y = (x @ kernels).reshape(vertices, batch, bases, outputs).transpose(1, 2)
            index = self.index[..., None] * bases + torch.arange(bases, device=x.device)
            y = gather_sum(y.reshape(vertices * bases, batch * outputs), index.flatten(1), mixing.flatten(1))
            return y.reshape(-1, batch, outputs) + self.bias
        index = self.index[:, None].expand(-1, bases, -1).flatten(0, 1)
        y = gather_sum(x.reshape(vertices, batch * inputs), index, mixing.transpose(1, 2).flatten(0, 1))
        y = y.reshape(-1, bases, batch, inputs).transpose(1, 2).flatten(2)
        return y @ self.weights.transpose(1, 2).reshape(bases * inputs, outputs) + self.bias


class MeshPool(_OverTable):
    """Learned weighted mean over the neighbours, to a coarser or finer graph."""

    def __init__(self, table: hierarchy.Table) -> None:
        super().__init__(table)
        self.weights = nn.Parameter(torch.randn(table.index.shape) / self.mean_count)

    def forward(self, x: Tensor) -> Tensor:
        """[V, B, C] -> [V', B, C]"""
        weights = self.weights.abs() * self.mask
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-8)
        return gather_sum(x.flatten(1), self.index, weights).reshape(-1, *x.shape[1:])


class MeshMixed(nn.Module):
    """A convolution and a shortcut around it, mixed by the residual rate."""

    def __init__(self, convolution: nn.Module, shortcut: nn.Module, rate: float) -> None:
        super().__init__()
        self.convolution, self.shortcut, self.rate = convolution, shortcut, rate

    def forward(self, x: Tensor) -> Tensor:
        """[V, B, C] -> [V', B, C']"""
        return math.sqrt(1 - self.rate) * self.convolution(x) + math.sqrt(self.rate) * self.shortcut(x)


def mesh_layer(table: hierarchy.Table, inputs: int, layer: Layer, last: bool) -> list[nn.Module]:
    """The modules of one layer: one, and an ELU after a pure convolution, except in the `last` layer."""
    convolution: list[nn.Module] = []
    shortcut: list[nn.Module] = []
    if layer.residual < 1:
        convolution = [MeshConv(table, inputs, layer.channels, layer.bases), *([] if last else [nn.ELU()])]
    if layer.residual > 0 and inputs != layer.channels:
        shortcut.append(nn.Linear(inputs, layer.channels, bias=False))
    if layer.residual > 0 and len(table.index) != table.inputs:
        shortcut.append(MeshPool(table))
    if not layer.residual:
        return convolution
    around = shortcut[0] if len(shortcut) == 1 else nn.Sequential(*shortcut)
    return [MeshMixed(nn.Sequential(*convolution), around, layer.residual) if convolution else around]


class Quantizer(nn.Module):
    """Nearest code. Codes are exponential moving averages of their members; unused ones are reset.

    Members are those of all processes of torch.distributed, so all of them have the same codes.
    """

    def __init__(self, codes: int, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer("size", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, width))
        self.codebook: Tensor
        self.size: Tensor
        self.total: Tensor

    @property
    def started(self) -> bool:
        """Whether the codes are initialised."""
        return bool(self.size.any())

    def forward(self, z: Tensor) -> Tensor:
        """Latents [..., width] -> int64 [...]: the nearest code."""
        flat = z.reshape(-1, z.shape[-1])
        # |z|^2 is the same for every code
        distance = self.codebook.square().sum(dim=1) - 2 * flat @ self.codebook.T
        return distance.argmin(dim=1).reshape(z.shape[:-1])

    @torch.no_grad()
    def start(self, z: Tensor, rounds: int = 10) -> None:
        """Initialise the codes by k-means on latents [..., width], at least as many, the same in all processes."""
        flat = z.reshape(-1, z.shape[-1])
        self.codebook.copy_(flat[torch.randperm(len(flat), device=flat.device)[: len(self.codebook)]])
        for _ in range(rounds):
            count, total = self._members(flat, self(flat))
            self.codebook.copy_(torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], self.codebook))
        self.size.copy_(count.clamp(min=1))
        self.total.copy_(self.codebook * self.size[:, None])

    @torch.no_grad()
    def update(self, z: Tensor, tokens: Tensor) -> None:
        """One step of the moving averages. Codes with less than a tenth of the mean number of members are reset.

        All processes give the same number of latents.
        """
        flat = z.reshape(-1, z.shape[-1])
        count, total = (_sum(part) for part in self._members(flat, tokens))
        self.size.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        mean = self.size.mean()
        dead = self.size < 0.1 * mean
        fresh = _draw(flat, len(self.size))
        self.size[dead] = mean
        self.total[dead] = mean * fresh[dead]
        self.codebook.copy_(self.total / self.size[:, None])

    def _members(self, flat: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        index = tokens.reshape(-1)
        count = torch.bincount(index, minlength=len(self.codebook)).to(flat.dtype)
        return count, torch.zeros_like(self.codebook).index_add_(0, index, flat)


def _many() -> bool:
    """Whether several processes train."""
    return distributed.is_available() and distributed.is_initialized()


def _sum(x: Tensor) -> Tensor:
    """The sum of the `x` of all processes."""
    if _many():
        distributed.all_reduce(x)
    return x


def _draw(rows: Tensor, count: int) -> Tensor:
    """`count` random rows out of those of all processes: the same ones in each."""
    if not _many():
        return rows[torch.randint(len(rows), (count,), device=rows.device)]
    index = torch.randint(distributed.get_world_size() * len(rows), (count,), device=rows.device)
    distributed.broadcast(index, 0)
    mine = index // len(rows) == distributed.get_rank()
    return _sum(torch.where(mine[:, None], rows[index % len(rows)], 0))


class MeshTokenizer(nn.Module):
    """Vertices [B, V, 3] (metres, canonical) <-> tokens [B, N]."""

    def __init__(
        self, topology: Topology, config: TokenizerConfig, levels: Sequence[hierarchy.Level] | None = None
    ) -> None:
        """`levels`: the hierarchy; by default computed from the topology's faces."""
        super().__init__()
        self.config = config
        stack = config.stack()
        half = len(stack) // 2
        if levels is None:
            strides = [1 + layer % 2 for layer in range(half)]
            levels = hierarchy.build(topology.faces, len(topology.template), strides, config.seeds)
        tables = [level.pool for level in levels[:half]] + [level.unpool for level in levels[:half][::-1]]
        modules = []
        width = 3
        for number, (table, layer) in enumerate(zip(tables, stack), 1):
            modules.append(mesh_layer(table, width, layer, last=number == len(stack)))
            width = layer.channels
        self.encoder = nn.Sequential(*chain.from_iterable(modules[:half]))
        self.decoder = nn.Sequential(*chain.from_iterable(modules[half:]))
        self.latent = stack[half - 1].channels
        """Width of a latent and of a code."""
        self.quantizer = Quantizer(config.codes, self.latent)
        self.length = len(tables[half].index)
        template = torch.from_numpy(topology.template)
        self.register_buffer("template", template if config.from_template else torch.zeros_like(template))
        self.template: Tensor

    def pooling(self) -> list[Tensor]:
        """For each level of the encoder, int [rows, M]: the input vertices of each vertex, -1 in the padding."""
        layers = [m for m in self.encoder.modules() if isinstance(m, _OverTable)]
        return [torch.where(layer.mask > 0, layer.index, -1) for layer in layers]

    def latents(self, vertices: Tensor) -> Tensor:
        """[B, V, 3] -> [B, N, latent]"""
        return self.encoder((vertices - self.template).transpose(0, 1)).transpose(0, 1)

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Latents [B, N, latent] -> [B, V, 3]"""
        return self.decoder(quantized.transpose(0, 1)).transpose(0, 1) + self.template

    def encode(self, vertices: Tensor) -> Tensor:
        """[B, V, 3] -> int64 [B, N]"""
        return self.quantizer(self.latents(vertices))

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, N] -> [B, V, 3]"""
        return self.reconstruct(self.quantizer.codebook[tokens])

    def forward(self, vertices: Tensor) -> TokenizerOutput:
        """Reconstruction for training, with a straight-through gradient of the quantiser."""
        z = self.latents(vertices)
        if not self.quantizer.started:  # an autoencoder without quantisation, until the codes are initialised
            return TokenizerOutput(self.reconstruct(z), self.quantizer(z), z.new_zeros(()))
        tokens = self.quantizer(z)
        quantized = self.quantizer.codebook[tokens]
        commitment = self.config.commitment * F.mse_loss(z, quantized)
        if self.training:
            self.quantizer.update(z.detach(), tokens)
        return TokenizerOutput(self.reconstruct(z + (quantized - z).detach()), tokens, commitment)
