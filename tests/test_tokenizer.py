"""Mesh-VQ-VAE: its layers, its quantiser, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_hierarchy import icosphere

from mega_model.core import hierarchy
from mega_model.core.topology import Topology
from mega_model.generate import expected_vertices
from mega_model.tokenizer import (
    Layer,
    MeshConv,
    MeshPool,
    MeshTokenizer,
    Quantizer,
    TokenizerConfig,
    mesh_layer,
)


@pytest.fixture
def topology() -> Topology:
    faces, count = icosphere(2)
    rng = np.random.default_rng(0)
    template = rng.normal(size=(count, 3)).astype(np.float32)
    return Topology(
        template, faces.astype(np.int32), np.full((24, count), 1 / count, np.float32), np.zeros(count, np.int32)
    )


def test_expected_vertices_are_those_of_the_expected_codes(topology: Topology) -> None:
    """Of one code where the model is certain, of the mean of two between which it cannot decide."""
    tokenizer = MeshTokenizer(topology, TokenizerConfig(channels=(4, 6), latent=5, codes=16, bases=3)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    first, second = torch.randint(16, (2, 2, tokenizer.length))
    certain = torch.nn.functional.one_hot(first, 16) * 100.0
    both = certain + torch.nn.functional.one_hot(second, 16) * 100.0
    with torch.no_grad():
        torch.testing.assert_close(expected_vertices(tokenizer, certain), tokenizer.decode(first))
        codes = tokenizer.quantizer.codebook
        same = (first == second)[..., None]
        middle = tokenizer.reconstruct(torch.where(same, codes[first], (codes[first] + codes[second]) / 2))
        torch.testing.assert_close(expected_vertices(tokenizer, both.clamp(max=100)), middle)


def test_meshes_are_decoded_under_autocast(topology: Topology) -> None:
    """Products of matrices have half the precision then, and sums of rows get what they make."""
    tokenizer = MeshTokenizer(topology, TokenizerConfig(channels=(4, 6), latent=5, codes=16, bases=3)).eval()
    tokens = torch.randint(16, (2, tokenizer.length))
    with torch.no_grad():
        exact = tokenizer.decode(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            half = tokenizer.decode(tokens)
    size = (exact - tokenizer.template).abs().max()
    torch.testing.assert_close(half.float(), exact, atol=0.05 * float(size), rtol=0)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_convolution_is_its_definition(inputs: int, outputs: int) -> None:
    faces, count = icosphere(1)
    table = hierarchy.build(faces, count, [2])[0].pool
    layer = MeshConv(table, inputs, outputs, bases=4)
    x = torch.randn(count, 2, inputs)
    y = layer(x)
    for p in range(len(table.index)):
        want = layer.bias.expand(2, -1).clone()
        for m in range(int(table.count[p])):
            kernel = torch.einsum("w,woi->oi", layer.mixing[p, m], layer.weights)
            want = want + x[int(table.index[p, m])] @ kernel.T
        torch.testing.assert_close(y[p], want, atol=1e-5, rtol=1e-4)


def test_pool_is_a_weighted_mean() -> None:
    faces, count = icosphere(2)
    level = hierarchy.build(faces, count, [2])[0]
    for table in (level.pool, level.unpool):
        pool, x = MeshPool(table), torch.randn(table.inputs, 2, 3)
        for row, (found, index, hops) in enumerate(zip(pool(x), table.index, table.hops)):
            weights = pool.weights[row, hops >= 0].abs()
            want = torch.einsum("m,mbc->bc", weights / weights.sum(), x[index[hops >= 0]])
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_layers_are_spelt_out_or_follow_from_the_widths(topology: Topology) -> None:
    short = TokenizerConfig(channels=(4, 6), latent=5, codes=16, bases=3)
    long = TokenizerConfig(codes=16, layers=tuple(short.stack()))
    one, other = MeshTokenizer(topology, short), MeshTokenizer(topology, long)
    other.load_state_dict(one.state_dict())
    vertices = torch.randn(2, len(topology.template), 3)
    assert torch.equal(one.encode(vertices), other.encode(vertices))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_layer_mixes_convolution_and_shortcut(rate: float) -> None:
    faces, count = icosphere(2)
    table = hierarchy.build(faces, count, [2])[0].pool
    layers = torch.nn.Sequential(*mesh_layer(table, 3, Layer(5, bases=2, residual=rate), last=False))
    parts = {type(m): m for m in layers.modules()}
    assert (MeshConv in parts) == (rate < 1) and (MeshPool in parts) == (torch.nn.Linear in parts) == (rate > 0)
    x = torch.randn(count, 2, 3)
    want = torch.zeros(len(table.index), 2, 5)
    if rate < 1:
        want += (1 - rate) ** 0.5 * torch.nn.functional.elu(parts[MeshConv](x))
    if rate > 0:
        want += rate**0.5 * parts[MeshPool](parts[torch.nn.Linear](x))
    torch.testing.assert_close(layers(x), want)


def test_codes_may_spell_the_vertices_themselves(topology: Topology) -> None:
    model = MeshTokenizer(topology, TokenizerConfig(channels=(4, 6), codes=16, from_template=False))
    assert not model.template.any()


def test_quantiser_finds_the_nearest_code() -> None:
    quantizer = Quantizer(codes=7, width=3)
    z = torch.randn(50, 3)
    assert (quantizer(z) == torch.cdist(z, quantizer.codebook).argmin(dim=1)).all()


def test_quantiser_starts_by_kmeans_and_follows() -> None:
    torch.manual_seed(0)
    clusters = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    z = (clusters[:, None] + 0.1 * torch.randn(4, 100, 2)).reshape(-1, 2)
    quantizer = Quantizer(codes=4, width=2, decay=0.5)
    assert not quantizer.started
    for _ in range(20):  # k-means may put two codes into one cluster: dead codes then start again elsewhere
        quantizer.start(z)
        if len(set(quantizer(clusters).tolist())) == 4:
            break
    assert quantizer.started
    assert torch.cdist(clusters, quantizer.codebook).amin(dim=1).max() < 0.1
    for _ in range(10):
        quantizer.update(z + 1, quantizer(z + 1))
    assert torch.cdist(clusters + 1, quantizer.codebook).amin(dim=1).max() < 0.1


def test_dead_codes_start_again_from_latents() -> None:
    quantizer = Quantizer(codes=8, width=2, decay=0.5)
    z = torch.randn(200, 2)
    quantizer.start(z)
    quantizer.codebook[3] = 1e3
    quantizer.total[3] = quantizer.codebook[3] * quantizer.size[3]
    for _ in range(20):
        quantizer.update(z, quantizer(z))
    assert quantizer.codebook.abs().max() < 10


def test_tokens_round_trip(topology: Topology) -> None:
    model = MeshTokenizer(topology, TokenizerConfig(channels=(4, 6), codes=16)).eval()
    vertices = torch.randn(3, len(topology.template), 3)
    tokens = model.encode(vertices)
    assert tokens.shape == (3, model.length) and tokens.dtype == torch.int64
    assert model.decode(tokens).shape == vertices.shape
    model.quantizer.size += 1
    torch.testing.assert_close(model(vertices).vertices, model.decode(tokens), atol=1e-5, rtol=1e-4)


def test_training_pulls_latents_and_codes_together(topology: Topology) -> None:
    """Gradients pass the quantiser as if it were not there; codes move in training only, by the decay."""
    torch.manual_seed(0)
    model = MeshTokenizer(topology, TokenizerConfig(channels=(4, 6), codes=16, commitment=0.1)).eval()
    vertices = torch.from_numpy(topology.template) + 0.3 * torch.randn(50, len(topology.template), 3)
    z = model.latents(vertices).detach()
    model.quantizer.start(z, rounds=1)
    codes = model.quantizer.codebook.clone()
    out = model(vertices)
    assert torch.equal(model.quantizer.codebook, codes)
    chosen = codes[out.tokens]
    assert out.commitment.item() == pytest.approx(0.1 * (z - chosen).square().mean().item(), rel=1e-4)
    weight = next(model.encoder.parameters())
    for value in (out.commitment, (out.vertices - vertices).norm(dim=-1).mean()):
        (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
        assert gradient.any()
    model.train()(vertices)
    members = torch.nn.functional.one_hot(out.tokens.flatten(), 16).float()
    size = members.sum(dim=0)
    centres = members.T @ z.flatten(0, 1) / size[:, None]
    alive = size > 0.2 * size.mean()
    before, after = ((x - centres)[alive].norm(dim=1) for x in (codes, model.quantizer.codebook))
    assert alive.sum() > 4 and (after < before).all() and (after > 0.9 * before).all(), "by a hundredth"


def test_a_dead_code_begins_with_the_mean_number_of_members() -> None:
    torch.manual_seed(0)
    quantizer, z = Quantizer(codes=4, width=2), torch.randn(400, 2)
    quantizer.start(z)
    quantizer.size[1], quantizer.total[1] = 0, 0
    quantizer.codebook[1] = 1e3
    quantizer.update(z, quantizer(z))
    assert quantizer.size[1] == pytest.approx(quantizer.size[[0, 2, 3]].sum().item() / 4, rel=0.01)
    assert torch.cdist(quantizer.codebook[[1]], z).min() < 1e-5, "one of the latents"


def test_it_learns(topology: Topology) -> None:
    torch.manual_seed(0)
    model = MeshTokenizer(topology, TokenizerConfig(channels=(8, 8), codes=32))
    template = torch.from_numpy(topology.template)
    vertices = template * (1 + 0.3 * torch.randn(64, 1, 3))  # bodies of different proportions
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = (vertices - template).norm(dim=-1).mean()
    for step in range(150):
        if step == 50:
            with torch.no_grad():
                model.quantizer.start(model.latents(vertices))
        out = model(vertices)
        loss = (out.vertices - vertices).norm(dim=-1).mean()
        optimizer.zero_grad()
        (loss + out.commitment).backward()
        optimizer.step()
    assert loss < 0.6 * before
