"""The error head: it learns what the states say of errors, and sigma is as large as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mega_model import checkpoint
from mega_model.body.anny import HIERARCHY_SEEDS
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.expected_error import LARGEST, ErrorHead, token_shares
from mega_model.mega import Mega, MegaConfig
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.train.errors import Known, calibrate, loss
from mega_ros.bundle import DEFAULT, TOPOLOGY

WIDTH, PEOPLE = 8, 400


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology.load(DEFAULT / TOPOLOGY)


@pytest.fixture(scope="module")
def tokenizer(topology: Topology) -> MeshTokenizer:
    torch.manual_seed(0)
    return MeshTokenizer(topology, TokenizerConfig(HIERARCHY_SEEDS, channels=(8, 8), latent=4, codes=16, bases=2))


@pytest.fixture(scope="module")
def known(tokenizer: MeshTokenizer, topology: Topology) -> Known:
    """The first number of a token's state says whether the vertices around it are 2 or 20 cm off."""
    torch.manual_seed(1)
    states = torch.randn(PEOPLE, tokenizer.length, WIDTH)
    states[..., 0] = (torch.rand(PEOPLE, tokenizer.length) < 0.5).float()
    maps = torch.randn(PEOPLE, 16, 4, 4)
    pose = torch.rand(PEOPLE, 39, 5), torch.randn(PEOPLE, 39, 3), torch.rand(PEOPLE)
    scale = 0.02 * 10 ** (states[..., 0] @ token_shares(tokenizer, topology).T)
    errors = scale * torch.randn(*scale.shape, 3).norm(dim=-1) / 3**0.5
    joints = errors @ torch.from_numpy(topology.joint_regressor).T
    missed, joints_missed = torch.zeros_like(errors), torch.zeros_like(joints)
    keypoints = torch.rand(PEOPLE, 12, 3)
    return Known(states, maps, *pose, keypoints, errors, joints, missed, joints_missed, torch.zeros(PEOPLE))


@pytest.fixture(scope="module")
def head(tokenizer: MeshTokenizer, topology: Topology, known: Known) -> ErrorHead:
    """Trained for a moment, and calibrated."""
    torch.manual_seed(2)
    head = ErrorHead.begin(WIDTH, tokenizer, topology, known.maps, torch.randn(2, 1229, 3))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(head, known[torch.randint(PEOPLE, (64,))]).backward()
        optimizer.step()
    calibrate(head, known)
    return head.eval()


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@torch.no_grad()
def test_sigma_is_large_where_the_states_say_so(head: ErrorHead, known: Known) -> None:
    sigma = head(**known.inputs).sigma
    large = known.states[..., 0] @ head.shares.T > 0.5
    assert sigma.shape == known.vertices.shape
    assert sigma[large].mean() > 2 * sigma[~large].mean()


@torch.no_grad()
def test_calibrated_sigma_is_the_root_mean_square_error(head: ErrorHead, known: Known) -> None:
    found = head(**known.inputs)
    assert rms(known.vertices / found.sigma) == pytest.approx(1, abs=0.1)
    assert rms(known.joints / found.joints_sigma) == pytest.approx(1, abs=0.1)
    small = found.sigma < found.sigma.median()
    for half in (small, ~small):
        assert rms(known.vertices[half]) == pytest.approx(rms(found.sigma[half]), rel=0.25)


@torch.no_grad()
def test_distance_is_one_for_maps_of_the_training_set_and_grows_away_from_it(head: ErrorHead, known: Known) -> None:
    distance = head(**known.inputs).distance
    assert distance.square().mean() == pytest.approx(1, abs=0.05)
    far = head(**replace(known, maps=known.maps + 3).inputs).distance
    assert (far > 3 * distance.mean()).all()


@torch.no_grad()
def test_a_vertex_takes_its_error_from_the_tokens_around_it(head: ErrorHead, known: Known) -> None:
    torch.testing.assert_close(head.shares.sum(dim=1), torch.ones(len(head.shares)))
    torch.testing.assert_close(head.joint_shares.sum(dim=1), torch.ones(24))
    known = known[:1]
    states = known.states.clone()
    token = head.shares.amax(dim=0).argmax()
    states[:, token, 0] = 1 - states[:, token, 0]
    before, after = (head(**x.inputs).sigma for x in (known, replace(known, states=states)))
    change = (after / before).log().abs()
    share = head.shares[:, token]
    assert change[0, share > 0.4].min() > 5 * change[0, share < 0.01].max()


@torch.no_grad()
def test_sigma_stays_within_limits(head: ErrorHead, known: Known) -> None:
    wild = {"states": 1e3 * known.states, "maps": 1e4 * known.maps, "world": 1e4 * known.world}
    found = head(**replace(known, **wild, keypoints=1e3 * known.keypoints).inputs)
    assert found.sigma.isfinite().all() and found.sigma.max() <= LARGEST and found.joints_sigma.max() <= LARGEST


@torch.no_grad()
def test_a_head_comes_back_from_disk(head: ErrorHead, known: Known, tmp_path: Path) -> None:
    checkpoint.save_errors(tmp_path, head)
    sizes = MegaConfig(head.shares.shape[1], 16, WIDTH, 1, 1, 2, backbone_width=16)
    again = checkpoint.load_errors(tmp_path, Mega(sizes))
    assert again is not None
    for a, b in zip(again(**known.inputs), head(**known.inputs)):
        assert torch.equal(a, b)
    message = r"errors\.safetensors: .*of another model: .* of 16 channels\); train it again with mega train errors"
    for other in (replace(sizes, width=16), replace(sizes, backbone_width=96), replace(sizes, backbone="resnet18")):
        with pytest.raises(InputError, match=message):
            checkpoint.load_errors(tmp_path, Mega(other))
