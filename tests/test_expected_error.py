"""The error head: it learns what the states say of errors, and sigma is as large as they are."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mega_model import checkpoint
from mega_model.body.anny import HIERARCHY_SEEDS
from mega_model.core.errors import InputError
from mega_model.core.fit import OBSERVED
from mega_model.core.topology import Topology
from mega_model.expected_error import LARGEST, ErrorHead, token_shares
from mega_model.mega import Mega, MegaConfig
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.train.errors import Known, Predicted, calibrate, loss, of_people, sigmas
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
    mixed = torch.randn(16, 16)
    mixed[15] = mixed[0]  # two channels that are the same
    maps = torch.einsum("dc,pcij->pdij", mixed, torch.randn(PEOPLE, 16, 4, 4))
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
def test_keypoints_count_where_the_detector_saw_them(head: ErrorHead, known: Known) -> None:
    """Which agree with the landmarks changes sigma; where those without a score lie does not."""
    moved = known.keypoints + torch.tensor([1.0, 1, 0])
    unseen = known.keypoints * torch.tensor([1.0, 1, 0])
    sigma, elsewhere, before, after = (
        head(**replace(known, keypoints=keypoints).inputs).sigma
        for keypoints in (known.keypoints, moved, unseen, unseen + torch.tensor([1.0, 1, 0]))
    )
    assert torch.equal(before, after) and not torch.isclose(sigma, elsewhere).all()


@torch.no_grad()
def test_what_the_fit_misses_is_a_part_of_sigma(head: ErrorHead, known: Known) -> None:
    part = replace(known, missed=0.7 * known.vertices, joints_missed=0.7 * known.joints)
    again = deepcopy(head)
    calibrate(again, part)
    for sigma, errors in zip(sigmas(again, part), (known.vertices, known.joints)):
        assert rms(sigma) == pytest.approx(rms(errors), rel=0.05)
    wide = replace(known, vertices=10 * known.vertices, joints=10 * known.joints)
    assert loss(head, replace(wide, missed=wide.vertices, joints_missed=wide.joints)) < loss(head, wide)


def test_the_loss_is_least_where_sigma_is_the_error(head: ErrorHead, known: Known) -> None:
    sure = deepcopy(head)
    with torch.no_grad():
        for last in (sure.token[-1], sure.person[-1]):
            for parameter in last.parameters():
                parameter.zero_()
        before, joints_before, _ = sure.log_errors(**known.inputs)
        sure.vertex.add_(math.log(0.1) - before[0])
        sure.joint.add_(math.log(0.1) - joints_before[0])
    off = replace(known, vertices=torch.full_like(known.vertices, 0.1), joints=torch.full_like(known.joints, 0.1))
    loss(sure, off).backward()
    for place in (sure.vertex, sure.joint):
        assert place.grad is not None and place.grad.abs().max() < 1e-6


@torch.no_grad()
def test_errors_are_those_beside_the_line_of_sight(topology: Topology) -> None:
    """Of a mesh that is exact but for its distance, its place or its turn; and of one that misses its landmarks."""
    count, focal, template = 4, 3.0, torch.from_numpy(topology.template)
    rotation = torch.from_numpy(Rotation.random(count, random_state=0).as_matrix()).float()
    pelvis = torch.tensor([[0.3, -0.2, 4], [-0.5, 0.1, 5], [0, 0, 3], [1, 0.5, 6]])
    root = torch.from_numpy(topology.joint_regressor[0]) @ template
    nothing = torch.zeros(count, 39, 5)

    def errors(turn: Tensor, place: Tensor, landmarks: Tensor = nothing) -> Known:
        at = place - turn @ root
        camera = torch.cat([focal / at[:, 2:], at[:, :2]], dim=1)
        bodies = template.expand(count, -1, -1)
        seen = torch.zeros(1), torch.zeros(1), landmarks, torch.zeros(1), torch.zeros(1), torch.zeros(count, 12, 3)
        truth = bodies, rotation, pelvis - rotation @ root, torch.full((count,), focal)
        return of_people(Predicted(*seen, bodies, turn, camera, *truth), topology, np.zeros((1, *template.shape)))

    exact = errors(rotation, pelvis)
    for wrong in (exact.vertices, exact.joints, exact.depth, exact.missed, exact.joints_missed):
        assert wrong.max() < 1e-5
    nearer = errors(rotation, 0.8 * pelvis)
    assert nearer.vertices.max() < 1e-5 and nearer.depth.numpy() == pytest.approx(0.2, abs=0.03)
    aside = errors(rotation, pelvis + torch.tensor([0.06, 0.08, 0]))
    assert aside.vertices.numpy() == pytest.approx(0.1, abs=1e-5) == aside.joints.numpy()
    turn = torch.from_numpy(Rotation.from_euler("z", 40, degrees=True).as_matrix()).float() @ rotation
    turned = errors(turn, pelvis)
    wanted = ((template - root) @ (turn - rotation).mT).norm(dim=-1)
    torch.testing.assert_close(turned.vertices, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        turned.joints,
        torch.from_numpy(
            np.linalg.norm(topology.joint_regressor @ ((template - root) @ (turn - rotation).mT).numpy(), axis=-1)
        ),
        atol=1e-5,
        rtol=0,
    )
    elsewhere = nothing.clone()
    elsewhere[:, OBSERVED[0]] = torch.tensor([0.9, 0.9, 0, 1, 1])
    missed = errors(rotation, pelvis, elsewhere)
    assert (missed.missed.amax(dim=1) > 0.02).all() and (missed.joints_missed.amax(dim=1) > 0.02).all()


@torch.no_grad()
def test_distance_is_one_for_maps_of_the_training_set_and_grows_away_from_it(head: ErrorHead, known: Known) -> None:
    distance = head(**known.inputs).distance
    assert distance.square().mean() == pytest.approx(15 / 16, abs=0.05), "of its 15 directions"
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
