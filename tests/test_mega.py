"""MEGA: masking, the meaning of `visible`, and generation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mega_model import generate
from mega_model.blazepose import PoseFeatures
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega, MegaConfig, masked_count, random_mask, token_loss

RESNET = MegaConfig(
    codes=32, width=32, encoder_blocks=2, decoder_blocks=2, backbone="resnet18", backbone_width=4, image_size=64
)
BLAZEPOSE = replace(RESNET, backbone="blazepose", backbone_width=16, image_size=256)


@pytest.fixture(scope="module", params=[RESNET, BLAZEPOSE], ids=["resnet18", "blazepose"])
def model(request: pytest.FixtureRequest) -> Mega:
    torch.manual_seed(0)
    model = Mega(request.param).eval()
    for name, p in model.named_parameters():
        if not name.startswith("lifter."):  # away from the start, or all logits are alike
            torch.nn.init.normal_(p, std=0.2)
    if model.lifter is not None:
        model.lifter.set_codebook(torch.randn(32, 9))
        torch.nn.init.constant_(model.lifter.sharpness, -4.0)  # or the prior of an untrained lifter decides alone
    return model


@pytest.fixture(scope="module")
def features(model: Mega) -> Any:
    size = model.config.image_size
    with torch.no_grad():
        return model.backbone(torch.randn(3, 3, size, size))


def take(features: Any, index: Any) -> Any:
    """Those of some people."""
    if isinstance(features, PoseFeatures):
        return PoseFeatures(*(part[index] for part in features))
    return features[index]


def test_masking_schedule_counts() -> None:
    tau = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.9999])
    assert masked_count(tau, 54).tolist() == [math.floor(54 * math.cos(math.pi * t / 2)) for t in tau.tolist()]
    masked = (~random_mask(40_000, 54)).sum(dim=1).float()
    assert masked.max() == 54 or masked.max() == 53
    assert abs(masked.mean() - (54 * 2 / math.pi - 0.5)) < 0.4  # the mean of cos over a quarter turn, rounded down
    assert masked.std() > 10, "every row has a ratio of its own"


def test_loss_is_the_cross_entropy_of_the_masked_tokens(model: Mega, features: Any) -> None:
    tokens = torch.randint(32, (3, 54))
    torch.manual_seed(5)
    loss = token_loss(model, model.encode_image(features).image, tokens)
    torch.manual_seed(5)
    visible = random_mask(3, 54)
    logits = model(features, tokens, visible).logits
    torch.testing.assert_close(loss, F.cross_entropy(logits[~visible], tokens[~visible]))


@torch.no_grad()
def test_people_are_upright_before_training_and_the_heads_are_unsure_in_training() -> None:
    torch.manual_seed(0)
    model = Mega(RESNET).eval()
    features = model.backbone(torch.randn(3, 3, 64, 64))
    seen = model.encode_image(features)
    turns = rot6d_to_matrix(seen.rot6d) @ torch.diag(torch.tensor([1.0, -1, -1]))  # upright, towards the camera
    assert (torch.einsum("bii->b", turns) > 1 + 2 * math.cos(math.radians(45))).all()
    assert torch.equal(model.encode_image(features).rot6d, seen.rot6d)
    assert not torch.equal(model.train().encode_image(features).rot6d, model.encode_image(features).rot6d)


@torch.no_grad()
def test_masked_tokens_are_not_seen_and_visible_ones_are(model: Mega, features: Any) -> None:
    tokens = torch.randint(32, (3, 54))
    visible = random_mask(3, 54)
    visible[:, 0], visible[:, 1] = True, False
    out = model(features, tokens, visible)
    assert out.logits.shape == (3, 54, 32) and out.rot6d.shape == (3, 6) and out.camera.shape == (3, 3)
    other = torch.where(visible, tokens, (tokens + 1) % 32)
    assert torch.equal(model(features, other, visible).logits, out.logits)
    tokens[:, 0] = (tokens[:, 0] + 1) % 32
    assert not torch.allclose(model(features, tokens, visible).logits, out.logits)


@torch.no_grad()
def test_rows_with_different_counts_do_not_disturb_each_other(model: Mega, features: Any) -> None:
    tokens = torch.randint(32, (3, 54))
    visible = torch.arange(54) < torch.tensor([[0], [20], [54]])
    together = model(features, tokens, visible).logits
    for i in range(3):
        alone = model(take(features, [i]), tokens[i : i + 1], visible[i : i + 1]).logits
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_an_image(model: Mega) -> None:
    out = model(None, torch.randint(32, (2, 54)), random_mask(2, 54))
    assert out.logits.shape == (2, 54, 32) and out.rot6d is None and out.camera is None


@pytest.mark.parametrize(("steps", "counts"), [(1, [0, 54]), (5, [0, 2, 10, 22, 37, 54])])
def test_visible_counts(steps: int, counts: list[int]) -> None:
    assert generate.visible_counts(54, steps) == counts
    want = [math.floor(54 * (1 - math.cos(math.pi * t / (2 * steps)))) for t in range(steps)] + [54]
    assert counts == want


def test_the_temperature_falls_to_zero() -> None:
    assert generate.temperatures(4, 2.0) == [1.5, 1.0, 0.5, 0.0]


@torch.no_grad()
def test_random_bodies_have_the_papers_noise(model: Mega) -> None:
    """Appendix C: (A (1 - t/T))^6."""
    uniforms = generate.uniforms((3, 4, 54, 2), seed=2)
    logits = generate.first_logits(model, None).expand(3, -1, -1)
    noise = [(1.2 * left) ** 6 for left in (0.75, 0.5, 0.25, 0.0)]
    expected = [*generate.unmask(model, None, logits, uniforms, noise)]
    for (tokens, index), (wanted, where) in zip(generate.unmask_bodies(model, uniforms, 1.2), expected, strict=True):
        assert torch.equal(tokens, wanted) and torch.equal(index, where)


@torch.no_grad()
def test_one_step_samples_the_most_likely_tokens(model: Mega, features: Any) -> None:
    """Its temperature is zero."""
    tokens = generate.stochastic(model, features, samples=2, steps=1)
    assert torch.equal(tokens, generate.deterministic(model, features)[:, None].expand(-1, 2, -1))


def test_a_uniform_is_never_0_or_1() -> None:
    """torch's may be 0, whose Gumbel noise is infinite."""
    count, seed = 2**23, 1
    assert torch.rand(count, generator=torch.Generator().manual_seed(seed)).min() == 0, "take another seed"
    random = generate.uniforms((count,), seed)
    assert random.min() > 0 and random.max() < 1


@torch.no_grad()
def test_deterministic_is_the_argmax_of_one_pass(model: Mega, features: Any) -> None:
    nothing = torch.zeros(3, 54, dtype=torch.long)
    logits = model(features, nothing, nothing.bool()).logits
    assert (generate.deterministic(model, features) == logits.argmax(-1)).all()


@torch.no_grad()
def test_stochastic_repeats_with_its_seed(model: Mega, features: Any) -> None:
    first = generate.stochastic(model, features, samples=4, seed=3)
    assert first.shape == (3, 4, 54) and first.min() >= 0 and first.max() < 32
    assert torch.equal(first, generate.stochastic(model, features, samples=4, seed=3))
    assert not torch.equal(first, generate.stochastic(model, features, samples=4, seed=4))
    assert len({tuple(row) for row in first[0].tolist()}) > 1, "samples differ"


def test_steps_show_more_and_keep_what_is_shown() -> None:
    torch.manual_seed(0)
    counts = generate.visible_counts(54, 5)
    tokens, index = torch.zeros(2, 54, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)
    for t in range(5):
        before, shown = tokens, index
        logits = torch.randn(2, 54, 32)
        tokens, index = generate.step(logits, tokens, index, counts[t + 1], 1.0, torch.rand(2, 54, 2))
        assert index.shape == (2, counts[t + 1])
        for row in range(2):
            assert set(shown[row].tolist()) <= set(index[row].tolist()), "shown tokens stay shown"
            assert len(set(index[row].tolist())) == counts[t + 1]
        assert torch.equal(tokens.gather(1, shown), before.gather(1, shown)), "and keep their codes"


def test_one_uniform_draws_the_code_and_the_other_one_decides_whether_it_is_kept() -> None:
    torch.manual_seed(0)
    logits, uniforms, nothing = torch.randn(2, 54, 32), torch.rand(2, 54, 2), torch.zeros(2, 0, dtype=torch.long)
    tokens, index = generate.step(logits, torch.zeros(2, 54, dtype=torch.long), nothing, 10, 0.7, uniforms)
    drawn = [generate.sample_codes(row, 0.7, uniform) for row, uniform in zip(logits, uniforms[..., 0])]
    assert torch.equal(tokens, torch.stack(drawn))
    gumbel = -torch.log(-torch.log(uniforms[..., 1]))
    confidence = logits.gather(-1, tokens[..., None])[..., 0] + 0.7 * gumbel
    assert torch.equal(index, confidence.topk(10).indices)


def test_inverse_distribution_sampling_follows_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    codes = generate.sample_codes(logits.expand(200_000, 4), 0.7, torch.rand(200_000))
    share = torch.bincount(codes, minlength=4) / len(codes)
    torch.testing.assert_close(share, (logits / 0.7).softmax(-1), atol=5e-3, rtol=0)
    assert generate.sample_codes(logits, 0.0, torch.tensor(0.5)) == 3


@torch.no_grad()
def test_without_noise_confident_tokens_come_first() -> None:
    logits = torch.randn(1, 54, 32)
    nothing = torch.zeros(1, 0, dtype=torch.long)
    tokens, index = generate.step(logits, torch.zeros(1, 54, dtype=torch.long), nothing, 10, 0.0, torch.rand(1, 54, 2))
    best = logits.max(-1)
    assert torch.equal(tokens, best.indices)
    assert set(index[0].tolist()) == set(best.values[0].topk(10).indices.tolist())


@pytest.mark.parametrize("steps", [8, 20])  # of 20 steps, the first two show nothing
def test_unconditional(model: Mega, steps: int) -> None:
    bodies = generate.unconditional(model, 6, steps=steps, seed=1)
    assert bodies.shape == (6, 54) and len({tuple(b) for b in bodies.tolist()}) == 6
    with torch.no_grad():
        own = generate.uniforms((6, steps, 54, 2), seed=1).split(4)
        parts = [[*generate.unmask_bodies(model, u, temperature=1.2)][-1][0] for u in own]
    assert (torch.cat(parts) == bodies).float().mean() > 0.98, "whichever others are beside it; a near tie may fall"


@torch.no_grad()
@pytest.mark.parametrize("steps", [4, 8])  # of 8 steps, the first shows one token
def test_generation_is_a_plain_loop_over_the_model(model: Mega, features: Any, steps: int) -> None:
    """The shared first pass and the outputs that are left out change nothing."""
    uniforms = generate.uniforms((3, 2, steps, 54, 2), seed=7)
    tokens = torch.zeros(6, 54, dtype=torch.long)
    visible = torch.zeros(6, 54, dtype=torch.bool)
    counts, noise = generate.visible_counts(54, steps), generate.temperatures(steps, 1.0)
    for t in range(steps):
        logits = model(take(features, [0, 0, 1, 1, 2, 2]), tokens, visible).logits
        index = visible.int().argsort(dim=1, descending=True, stable=True)[:, : counts[t]]
        tokens, shown = generate.step(logits, tokens, index, counts[t + 1], noise[t], uniforms[:, :, t].flatten(0, 1))
        visible = torch.zeros_like(visible).scatter(1, shown, True)
    image = model.encode_image(features).image
    sampled = generate.sample(model, image, generate.first_logits(model, image), uniforms, 1.0)
    assert torch.equal(sampled.flatten(0, 1), tokens)


@torch.no_grad()
def test_nothing_is_computed_that_is_not_needed(model: Mega, features: Any) -> None:
    """Tokens through the encoder (with cls) and the decoder's head, for three images, two samples, five steps."""
    model = Mega(model.config).eval()
    encoded: list[int] = []
    decoded: list[int] = []
    hooks = [
        model.encoder[0].register_forward_hook(lambda _, args, out: encoded.append(out.shape[0] * out.shape[1])),
        model.head.register_forward_hook(lambda _, args, out: decoded.append(out.shape[0] * out.shape[1])),
    ]
    generate.stochastic(model, features, samples=2, steps=5)
    generate.deterministic(model, features)
    for hook in hooks:
        hook.remove()
    assert encoded == [1, 6 * 3, 6 * 11, 6 * 23, 6 * 38], "and for the deterministic tokens nothing more"
    assert decoded == [3 * 54, 6 * 54, 6 * 54, 6 * 54, 6 * 54, 3 * 54]


def test_what_is_kept_of_the_encoder_follows_its_weights() -> None:
    torch.manual_seed(1)
    model = Mega(RESNET).eval()
    nothing = torch.zeros(1, 0, dtype=torch.long)

    def check() -> None:
        with torch.no_grad():
            assert torch.equal(model.encode_nothing(), model.encode(nothing, nothing))

    check()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    encoded = model.encode_nothing()
    assert encoded.requires_grad, "training reaches the weights through it"
    encoded[..., 0].sum().backward()
    optimizer.step()
    check()
    model.load_state_dict(Mega(RESNET).state_dict())
    check()
    model.double()
    check()
    with torch.inference_mode():
        check()
        uncounted = Mega(RESNET).eval()  # whose changes torch does not count
        first = uncounted.encode_nothing()
        uncounted.cls.add_(1)
        assert not torch.equal(uncounted.encode_nothing(), first)


def test_noise_does_not_depend_on_the_device() -> None:
    expected = generate.uniforms((2, 3), seed=1)
    with torch.device("meta"):
        assert torch.equal(generate.uniforms((2, 3), seed=1), expected)


def test_a_batch_without_masked_tokens_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in eighty has none, which a micro-batch of one cannot share with others."""
    monkeypatch.setattr(
        "mega_model.mega.random_mask", lambda batch, tokens, device: torch.ones(batch, tokens, dtype=torch.bool)
    )
    model = Mega(MegaConfig(tokens=5, codes=7, width=8, encoder_blocks=1, decoder_blocks=1, heads=2, backbone="given"))
    loss = token_loss(model, None, torch.zeros(1, 5, dtype=torch.long))
    loss.backward()
    assert loss == 0 and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
