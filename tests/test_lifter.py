"""From BlazePose's landmarks to latents: what the lifter knows before it is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mega_model.blazepose import LANDMARKS, BlazePose, PoseFeatures
from mega_model.geometry import rot6d_to_matrix
from mega_model.lifter import Lifter, torso_frame

BACKBONE = BlazePose(16)


def random_turns(count: int) -> Tensor:
    """[count, 3, 3]"""
    return torch.from_numpy(Rotation.random(count, random_state=0).as_matrix().astype(np.float32))


def bodies(turns: Tensor) -> Tensor:
    """World landmarks [B, 39, 3] of a body that stands along the canonical axes, turned."""
    canonical = torch.randn(len(LANDMARKS), 3, generator=torch.Generator().manual_seed(0))
    for name, place in {"shoulder": (0.2, 0.5, -0.02), "hip": (0.1, 0.0, -0.02)}.items():
        for side, sign in (("left", 1), ("right", -1)):
            canonical[LANDMARKS.index(f"{side}_{name}")] = torch.tensor([sign * place[0], *place[1:]])
    return canonical @ turns.mT


def features(world: Tensor) -> PoseFeatures:
    random = torch.Generator().manual_seed(1)
    return PoseFeatures(
        torch.randn(len(world), BACKBONE.channels, 16, 16, generator=random),
        torch.rand(len(world), 39, 5, generator=random),
        world,
        torch.ones(len(world)),
    )


def test_the_torso_frame_of_a_turned_body_is_its_turn() -> None:
    turns = random_turns(20)
    torch.testing.assert_close(torso_frame(bodies(turns)), turns)


def test_of_a_twisted_torso_hips_and_shoulders_say_where_the_front_is() -> None:
    """Shoulders are twice as wide as the hips, so a turn of the hips by twice as much undoes theirs."""
    twisted = bodies(torch.eye(3)[None])
    for name, sine in {"shoulder": 0.25, "hip": -0.5}.items():
        pair = [LANDMARKS.index(f"{side}_{name}") for side in ("left", "right")]
        turn = torch.from_numpy(Rotation.from_euler("y", np.arcsin(sine)).as_matrix()).float()
        twisted[:, pair] = twisted[:, pair] @ turn.mT
    torch.testing.assert_close(torso_frame(twisted), torch.eye(3)[None], atol=0.05, rtol=0)


def test_a_torso_without_extent_is_finite() -> None:
    assert torso_frame(torch.zeros(2, 39, 3)).isfinite().all()


def lifter() -> Lifter:
    torch.manual_seed(0)
    made = Lifter(BACKBONE, tokens=10, codes=8, latent=4, width=16, dropout=0.1)
    made.set_codebook(torch.randn(8, 4) * torch.tensor([1.0, 2, 3, 4]))
    return made


@torch.no_grad()
def test_before_training_the_rotation_is_about_that_of_the_torso() -> None:
    turns = random_turns(20)
    found = rot6d_to_matrix(lifter().eval()(features(bodies(turns))).rot6d)
    angles = np.degrees(Rotation.from_matrix((found @ turns.mT).numpy()).magnitude())
    assert angles.max() < 20


@torch.no_grad()
def test_the_prior_is_about_the_distance_to_the_latents() -> None:
    """Codes in order of their distances, in units of the codes' deviations."""
    model = lifter().eval()
    seen = model(features(bodies(random_turns(5))))
    assert seen.image.tokens.shape == (5, 14, 16) and seen.latents is not None and seen.image.prior is not None
    distances = torch.cdist(seen.latents / model.unit, model.codes)
    assert torch.equal(seen.image.prior.argsort(dim=-1), distances.argsort(dim=-1, descending=True))


@torch.no_grad()
def test_only_training_adds_noise() -> None:
    model, given = lifter(), features(bodies(random_turns(3)))
    assert torch.equal(model.eval()(given).rot6d, model(given).rot6d)
    model.train()
    assert not torch.equal(model(given).rot6d, model(given).rot6d)


@torch.no_grad()
def test_training_sees_landmarks_that_are_off_and_maps_with_holes() -> None:
    model, given, inputs = lifter(), features(bodies(random_turns(50))), list[Tensor]()
    model.trunk.register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
    model.eval()(given)
    model.train()(given)
    plain, noisy = inputs
    sizes = [39 * 3, 39 * 2, 39 * 3, 39 * 3, 9, 16 * BACKBONE.branch_channels]
    for name, before, after, deviation in zip(
        ("landmarks", "probabilities", "world"), plain.split(sizes, 1), noisy.split(sizes, 1), (0.03, 0, 0.02)
    ):
        assert (after - before).std().item() == pytest.approx(deviation, rel=0.1), name
    before, after = plain.split(sizes, 1)[-1], noisy.split(sizes, 1)[-1]
    assert (after[before != 0] == 0).float().mean().item() == pytest.approx(0.15, abs=0.03)


@torch.no_grad()
def test_in_the_torso_s_frame_a_turn_makes_no_difference() -> None:
    model, inputs = lifter().eval(), list[Tensor]()
    model.trunk.register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
    model(features(bodies(random_turns(5))))
    upright = inputs[0][:, 39 * 8 : 39 * 11]
    torch.testing.assert_close(upright, upright[:1].expand(5, -1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_eyes_begin_as_blazepose_s_later_layers() -> None:
    """Where there is no U-net, they see what its landmarks are made of."""
    backbone, found = BlazePose(96).eval(), []
    backbone.to4.register_forward_hook(lambda *called: found.append(called[2]))
    given = backbone(torch.rand(2, 3, 256, 256))
    seen = Lifter(backbone, tokens=10, codes=8, latent=4, width=16, dropout=0.1).eval()(given)
    assert seen.maps is not None and seen.maps.shape == (2, 192, 4, 4) and seen.maps.any()
    assert torch.equal(seen.maps, found[0])


def test_the_eyes_learn_and_a_frozen_backbone_does_not() -> None:
    backbone = BlazePose(16).requires_grad_(False)
    made = Lifter(backbone, tokens=10, codes=8, latent=4, width=16, dropout=0.1)
    made.set_codebook(torch.randn(8, 4))
    made(backbone(torch.rand(2, 3, 256, 256))).latents.square().sum().backward()
    assert [name for name, weight in made.eyes.named_parameters() if weight.grad is None] == []
    assert all(weight.grad is None for weight in backbone.parameters())
