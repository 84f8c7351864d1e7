"""Bodies are turned and placed as their landmarks say, as far as these can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from mega_model.core.fit import (
    LANDMARK_SIGMA,
    LATERAL_PRIOR,
    NEAREST,
    OBSERVED,
    OUTLIER,
    REACH,
    UNSEEN,
    Bends,
    Fit,
    fit_people,
    fit_pose,
    limb_shares,
    principal_modes,
    widened,
)
from mega_model.core.topology import LIMB_JOINTS, SMPL_JOINTS, Topology

SIDES = ("left", "right")
BOTH = np.array(LIMB_JOINTS * 2)
"""What is observed: the twelve joints of the limbs, by two networks."""
CHAINS = [
    [SMPL_JOINTS.index(f"{s}_{j}") for j in chain.split()]
    for chain in ("shoulder elbow wrist hand", "hip knee ankle foot")
    for s in SIDES
]

RIGID = np.zeros((0, len(SMPL_JOINTS), 3))
"""No modes."""


class PlacedBodies(NamedTuple):
    joints: np.ndarray
    """[P, J, 3]: in the camera's axes about the body's origin."""
    translation: np.ndarray
    focal: np.ndarray

    def landmarks(self, index: np.ndarray = BOTH) -> np.ndarray:
        seen = (self.joints + self.translation[:, None])[:, index]
        return self.focal[:, None, None] * seen[..., :2] / seen[..., 2:]

    def learned(
        self, rng: np.random.Generator, turn: float, shift: float, depth: float
    ) -> tuple[PlacedBodies, np.ndarray]:
        """What a model might say that is off by these deviations (rad, crop units, log) -> scene, rotation to truth."""
        rotation = Rotation.from_rotvec(turn * rng.normal(size=(len(self.focal), 3))).as_matrix()
        growth = np.exp(depth * rng.normal(size=(len(self.focal), 1)))
        translation = growth * self.translation
        translation[:, :2] += shift * rng.normal(size=(len(self.focal), 2)) * translation[:, 2:] / self.focal[:, None]
        return PlacedBodies(self.joints @ rotation, translation, self.focal), rotation


@pytest.fixture(scope="module")
def rest(root: Path) -> np.ndarray:
    topology = Topology.load(root / "mega_ros" / "models" / "default" / "topology.npz")
    return topology.joints(topology.template).astype(float)


def people(rest: np.ndarray, count: int, seed: int = 0) -> PlacedBodies:
    """Limbs bent anyhow, trunks about upright, two to four metres away, well inside of their crops."""
    rng = np.random.default_rng(seed)
    joints = np.repeat(rest[None], count, axis=0)
    for chain in CHAINS:
        for k in (1, 0):
            bend = Rotation.from_rotvec(0.5 * rng.normal(size=(count, 3))).as_matrix()
            pivot, below = joints[:, chain[k], None], chain[k + 1 :]
            joints[:, below] = pivot + (joints[:, below] - pivot) @ bend.swapaxes(1, 2)
    yaw = Rotation.from_rotvec(rng.uniform(-np.pi, np.pi, (count, 1)) * [0, 1, 0])
    rotation = Rotation.from_rotvec(0.2 * rng.normal(size=(count, 3))) * Rotation.from_rotvec([np.pi, 0, 0]) * yaw
    depth = rng.uniform(2, 4, count)
    translation = np.column_stack([0.1 * rng.normal(size=(count, 2)), depth])
    return PlacedBodies(joints @ rotation.as_matrix().swapaxes(1, 2), translation, depth / rng.uniform(1.1, 1.5, count))


def fitted(*given: np.ndarray, modes: np.ndarray = RIGID, **priors: float) -> Fit:
    joints, translation, focal, landmarks, weights, index = given
    joints, modes, landmarks, weights = (
        joints[..., index, :],
        modes[..., index, :],
        landmarks[..., None, :, :],
        weights[..., None, :],
    )
    fit = fit_pose(joints, translation, focal, landmarks, weights, modes, **priors)
    return fit._replace(residuals=fit.residuals[..., 0, :])


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between rotations [P, 3, 3], degrees [P]."""
    return np.degrees(Rotation.from_matrix(a @ b.swapaxes(-1, -2)).magnitude())


def shifted(a: np.ndarray, b: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """Between translations [P, 3], as seen in the crop [P]."""
    return np.linalg.norm(focal[:, None] * (a[:, :2] / a[:, 2:] - b[:, :2] / b[:, 2:]), axis=1)


def test_a_pose_is_recovered_from_exact_landmarks(rest: np.ndarray) -> None:
    true = people(rest, 200)
    learned, rotation = true.learned(np.random.default_rng(1), turn=0.2, shift=0.3, depth=0.2)
    given = true.landmarks(), np.ones((200, len(BOTH))), BOTH
    found_rotation, found_translation, *_ = fitted(*learned, *given, rotation_prior=10.0, depth_prior=10.0)
    assert angle(found_rotation, rotation).max() < 2
    assert np.linalg.norm(found_translation - true.translation, axis=1).max() < 0.02
    np.testing.assert_allclose(found_rotation @ found_rotation.swapaxes(1, 2) - np.eye(3), 0, atol=1e-12)


def test_the_answer_is_the_minimum_of_loss_and_priors(rest: np.ndarray) -> None:
    true, rng = people(rest, 3), np.random.default_rng(1)
    learned, _ = true.learned(rng, turn=0.1, shift=0.1, depth=0.1)
    landmarks = true.landmarks() + 0.05 * rng.normal(size=(3, len(BOTH), 2))
    weights, modes = 0.2 * rng.random((3, len(BOTH))), 0.1 * rng.normal(size=(2, len(SMPL_JOINTS), 3))
    fit = fitted(*learned, landmarks, weights, BOTH, modes=modes)

    def cost(pose: np.ndarray, k: int) -> float:
        joints = (learned.joints[k] + np.tensordot(pose[6:], modes, axes=1)) @ Rotation.from_rotvec(
            pose[:3]
        ).as_matrix().T
        at, expected = pose[3:6], learned.translation[k]
        seen = (joints + at)[BOTH]
        square = ((true.focal[k] * seen[:, :2] / seen[:, 2:] - landmarks[k]) ** 2).sum(axis=1)
        loss = (weights[k] * square / (1 + square / OUTLIER**2)).sum() / LANDMARK_SIGMA**2
        moved = true.focal[k] * (at[:2] / at[2] - expected[:2] / expected[2])
        priors = pose[:3] / 0.2, moved / LATERAL_PRIOR, [np.log(at[2] / expected[2]) / 0.2], pose[6:]
        return loss + sum(float(np.sum(np.square(prior))) for prior in priors)

    for k in range(3):
        pose = np.concatenate([Rotation.from_matrix(fit.rotation[k]).as_rotvec(), fit.translation[k], fit.shape[k]])
        best = minimize(cost, pose, args=(k,)).x
        np.testing.assert_allclose(pose, best, atol=0.01)


def test_the_priors_leave_most_to_the_landmarks(rest: np.ndarray) -> None:
    true = people(rest, 200)
    learned, rotation = true.learned(np.random.default_rng(1), turn=0.2, shift=0.3, depth=0.2)
    found_rotation, found_translation, *_ = fitted(*learned, true.landmarks(), np.ones((200, len(BOTH))), BOTH)
    assert np.median(angle(found_rotation, rotation)) < 0.15 * np.median(angle(np.eye(3)[None], rotation))
    assert np.median(shifted(found_translation, true.translation, true.focal)) < 0.01


def test_a_body_that_starts_beside_its_landmarks_finds_them(rest: np.ndarray) -> None:
    true = people(rest, 100)
    far = true.translation * 1.6 + [8.0, 4.0, 0]
    _, found_translation, *_ = fitted(true.joints, far, true.focal, true.landmarks(), np.ones((100, len(BOTH))), BOTH)
    assert shifted(far, true.translation, true.focal).min() > 2
    assert shifted(found_translation, true.translation, true.focal).max() < 0.05


@pytest.mark.parametrize(
    ("beside", "depth", "shift"),
    [((1, -1, 0), 3.0, (8, 4, 0)), ((1, -1, 0), 1 / 3, (2, 1, 0)), ((0, 0, 0), 0.3, (2, 1, 0))],
)
def test_a_start_that_is_far_off_is_no_fault(
    rest: np.ndarray, beside: tuple[float, ...], depth: float, shift: tuple[float, ...]
) -> None:
    """At another depth, beside the landmarks; also of bodies whose origin lies beside them."""
    true = people(rest, 100)
    joints, translation = true.joints + beside, true.translation - beside
    given = depth * translation + shift, true.focal, true.landmarks(), np.ones((100, len(BOTH))), BOTH
    fit = fitted(joints, *given, depth_prior=10.0)
    placed = PlacedBodies(joints @ fit.rotation.swapaxes(1, 2), fit.translation, true.focal)
    assert np.abs(placed.landmarks() - true.landmarks()).max() < 0.5


def test_people_who_are_far_turned_are_mostly_found(rest: np.ndarray) -> None:
    """Off by a radian, with every seventh landmark wrong: a step must not take all that is far for wrong."""
    true, index = people(rest, 500), np.array(LIMB_JOINTS)
    rng = np.random.default_rng(1)
    learned, rotation = true.learned(rng, turn=0.7, shift=0.2, depth=0.2)
    landmarks = true.landmarks(index) + 0.03 * rng.normal(size=(500, len(index), 2))
    landmarks += 0.5 * rng.normal(size=landmarks.shape) * (rng.random((500, len(index), 1)) < 0.15)
    found_rotation, *_ = fitted(*learned, landmarks, np.ones((500, len(index))), index, rotation_prior=0.4)
    before, after = angle(np.eye(3)[None], rotation), angle(found_rotation, rotation)
    assert np.quantile(before, 0.95) > 100 and np.quantile(after, 0.95) < 62
    assert np.median(after) < 0.2 * np.median(before)


def test_wrists_that_are_swapped_or_wrong_hardly_matter(rest: np.ndarray) -> None:
    true = people(rest, 200)
    learned, _ = true.learned(np.random.default_rng(1), turn=0.1, shift=0.1, depth=0.1)
    index, weights = np.array(LIMB_JOINTS), np.ones((200, len(LIMB_JOINTS)))
    good = true.landmarks(index)
    wrong, swapped = good.copy(), good.copy()
    wrong[:, LIMB_JOINTS.index(SMPL_JOINTS.index("left_wrist"))] += [0.5, 0.5]
    left, right = (LIMB_JOINTS.index(SMPL_JOINTS.index(f"{side}_wrist")) for side in SIDES)
    swapped[:, [left, right]] = good[:, [right, left]]
    found_rotation, found_translation, *_ = fitted(*learned, good, weights, index)
    for outlier in (wrong, swapped):
        moved, placed, *_ = fitted(*learned, outlier, weights, index)
        assert np.median(angle(moved, found_rotation)) < 2 and np.quantile(angle(moved, found_rotation), 0.95) < 8
        assert np.median(shifted(placed, found_translation, true.focal)) < 0.01


def test_without_weight_the_prior_is_the_answer(rest: np.ndarray) -> None:
    learned, _ = people(rest, 20).learned(np.random.default_rng(1), turn=0.5, shift=0.3, depth=0.3)
    noise = np.random.default_rng(2).normal(size=(20, len(BOTH), 2))
    modes = np.random.default_rng(3).normal(size=(5, len(SMPL_JOINTS), 3))
    answer = fitted(*learned, noise, np.zeros((20, len(BOTH))), BOTH, modes=modes)
    np.testing.assert_array_equal(answer.rotation, np.broadcast_to(np.eye(3), (20, 3, 3)))
    np.testing.assert_array_equal(answer.translation, learned.translation)
    np.testing.assert_array_equal(answer.shape, np.zeros((20, 5)))


def test_joints_behind_the_camera_are_seen_from_a_decimetre(rest: np.ndarray) -> None:
    placed = people(rest, 1)._replace(translation=np.array([[0.2, 0.1, -0.05]]))
    nothing = np.zeros((1, len(BOTH), 2)), np.zeros((1, len(BOTH))), BOTH
    at = (placed.joints + placed.translation[:, None])[:, BOTH]
    assert (at[..., 2] < NEAREST).any()
    seen = placed.focal[:, None] * np.hypot(at[..., 0], at[..., 1]) / np.maximum(at[..., 2], NEAREST)
    np.testing.assert_allclose(fitted(*placed, *nothing).residuals, seen)


def test_the_answer_goes_from_the_prior_to_the_landmarks_as_weight_grows(rest: np.ndarray) -> None:
    true = people(rest, 50)
    learned, rotation = true.learned(np.random.default_rng(1), turn=0.2, shift=0.2, depth=0.1)
    landmarks = true.landmarks()
    off = []
    for weight in (0, 1e-4, 1e-3, 1e-2, 0.1, 1):
        found_rotation = fitted(*learned, landmarks, np.full((50, len(BOTH)), weight), BOTH).rotation
        off.append(np.median(angle(found_rotation, rotation)))
    assert off[0] - off[1] < 0.02 * off[0], "little weight, little change"
    assert (np.diff(off) < 0).all()


def test_mirrored_people_have_mirrored_answers(rest: np.ndarray) -> None:
    true = people(rest, 20)
    learned, _ = true.learned(np.random.default_rng(1), turn=0.2, shift=0.2, depth=0.1)
    landmarks = true.landmarks() + 0.05 * np.random.default_rng(2).normal(size=(20, len(BOTH), 2))
    weights = np.random.default_rng(3).random((20, len(BOTH)))
    flip = np.array([-1.0, 1, 1])
    modes = 0.1 * np.random.default_rng(4).normal(size=(5, len(SMPL_JOINTS), 3))
    found_rotation, found_translation, shape, _ = fitted(*learned, landmarks, weights, BOTH, modes=modes)
    mirrored = fitted(
        learned.joints * flip,
        learned.translation * flip,
        learned.focal,
        landmarks * flip[:2],
        weights,
        BOTH,
        modes=modes * flip,
    )
    np.testing.assert_allclose(mirrored[0], found_rotation * np.outer(flip, flip), atol=1e-9)
    np.testing.assert_allclose(mirrored[1], found_translation * flip, atol=1e-9)
    np.testing.assert_allclose(mirrored[2], shape, atol=1e-9)


def test_observations_have_no_order_and_add_up(rest: np.ndarray) -> None:
    true = people(rest, 20)
    rng = np.random.default_rng(1)
    learned, _ = true.learned(rng, turn=0.2, shift=0.2, depth=0.1)
    landmarks = true.landmarks() + 0.05 * rng.normal(size=(20, len(BOTH), 2))
    weights = rng.random((20, len(BOTH)))
    *answer, residuals = fitted(*learned, landmarks, weights, BOTH)
    order = rng.permutation(len(BOTH))
    *shuffled, there = fitted(*learned, landmarks[:, order], weights[:, order], BOTH[order])
    # each seen twice with half the weight
    twice = np.tile(landmarks, (1, 2, 1)), np.tile(weights, (1, 2)) / 2, np.tile(BOTH, 2)
    *doubled, both = fitted(*learned, *twice)
    for a, b, c in zip(answer, shuffled, doubled):
        np.testing.assert_allclose(a, b, atol=1e-9)
        np.testing.assert_allclose(a, c, atol=1e-9)
    np.testing.assert_allclose(there, residuals[:, order], atol=1e-9)
    np.testing.assert_allclose(both, np.tile(residuals, (1, 2)), atol=1e-9)


def test_a_batch_is_its_members(rest: np.ndarray) -> None:
    """Samples [P, Q] of people whose landmarks are [P, 1]."""
    rng = np.random.default_rng(1)
    true = people(rest, 3)
    joints = true.joints[:, None] + 0.03 * rng.normal(size=(3, 4, len(SMPL_JOINTS), 3))
    landmarks, weights = true.landmarks(), rng.random((3, len(BOTH)))
    together = fitted(
        joints, true.translation[:, None], true.focal[:, None], landmarks[:, None], weights[:, None], BOTH
    )
    assert [part.shape for part in together] == [(3, 4, 3, 3), (3, 4, 3), (3, 4, 0), (3, 4, len(BOTH))]
    for p in range(3):
        for q in range(4):
            alone = fitted(joints[p, q], true.translation[p], true.focal[p], landmarks[p], weights[p], BOTH)
            for part, all_of_it in zip(alone, together):
                np.testing.assert_allclose(part, all_of_it[p, q], atol=1e-9)


def test_nobody(rest: np.ndarray) -> None:
    nobody = PlacedBodies(*(part[:0] for part in people(rest, 1)))
    found_rotation, found_translation, shape, _ = fitted(*nobody, nobody.landmarks(), np.ones((0, len(BOTH))), BOTH)
    assert found_rotation.shape == (0, 3, 3) and found_translation.shape == (0, 3) and shape.shape == (0, 0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), depth=st.floats(0.05, 100), scale=st.sampled_from([0.1, 1.0, 100.0]))
def test_answers_are_finite_for_any_landmarks(rest: np.ndarray, seed: int, depth: float, scale: float) -> None:
    """Also for people around the camera, and for landmarks that no body can meet."""
    rng = np.random.default_rng(seed)
    learned = people(rest, 10, seed)._replace(translation=np.array([[0.0, 0.0, depth]]))
    landmarks = scale * rng.normal(size=(10, len(BOTH), 2))
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        modes = 0.1 * rng.normal(size=(3, len(SMPL_JOINTS), 3))
        found_rotation, found_translation, shape, _ = fitted(
            *learned, landmarks, rng.random((10, len(BOTH))), BOTH, modes=modes
        )
    assert np.isfinite(found_translation).all() and (found_translation[:, 2] > 0).all()
    np.testing.assert_allclose(np.linalg.det(found_rotation), 1)
    assert np.isfinite(shape).all()


def test_a_body_bends_along_its_modes(rest: np.ndarray) -> None:
    """Wrists and ankles that are elsewhere than the model says are found, unless none of its errors is like that."""
    true = people(rest, 100)
    rng = np.random.default_rng(1)
    modes = np.zeros((6, len(SMPL_JOINTS), 3))
    for mode in modes:  # a wrist or an ankle that is off by decimetres
        mode[rng.choice([SMPL_JOINTS.index(f"{s}_{j}") for s in SIDES for j in ("wrist", "ankle")])] = (
            0.15 * rng.normal(size=3)
        )
    shape = rng.normal(size=(100, 6))
    wrong = PlacedBodies(true.joints - np.tensordot(shape, modes, axes=1), true.translation, true.focal)
    seen = true.landmarks(), np.ones((100, len(BOTH))), BOTH
    stiff, bent = fitted(*wrong, *seen), fitted(*wrong, *seen, modes=modes)

    def off(fit: Fit, modes: np.ndarray) -> np.ndarray:
        joints = (wrong.joints + np.tensordot(fit.shape, modes, axes=1)) @ fit.rotation.swapaxes(1, 2)
        placed = PlacedBodies(joints, fit.translation, true.focal)
        return np.linalg.norm(placed.landmarks() - true.landmarks(), axis=-1).max(axis=1)

    assert np.median(off(stiff, RIGID)) > 0.1 and np.median(off(bent, modes)) < 0.03
    assert np.abs(bent.shape).max() < 4, "the prior holds"


def test_meshes_are_turned_placed_and_bent_in_their_own_frame(rest: np.ndarray) -> None:
    """A mode is canonical: it bends the body before the rotation, whichever way this faces."""
    rng = np.random.default_rng(1)
    regressor = np.eye(len(SMPL_JOINTS))  # the joints are the vertices
    modes = np.zeros((1, len(SMPL_JOINTS), 3))
    modes[0, [SMPL_JOINTS.index(f"{side}_wrist") for side in SIDES]] = [0, 0.2, 0]
    bends = Bends.of(regressor, modes)
    rotation = Rotation.from_rotvec(rng.uniform(-1, 1, (50, 3))) * Rotation.from_rotvec([np.pi, 0, 0])
    scale, focal = rng.uniform(0.7, 0.9, 50), rng.uniform(1.5, 3, 50)
    camera = np.column_stack([scale, np.zeros((50, 2))])
    translation = np.column_stack([np.zeros((50, 2)), focal / scale])
    truth = PlacedBodies((rest + modes[0]) @ rotation.as_matrix().swapaxes(1, 2), translation, focal)
    landmarks = np.zeros((50, 39, 5))
    landmarks[:, OBSERVED, :2], landmarks[:, OBSERVED, 3:] = truth.landmarks(np.array(LIMB_JOINTS)), 1
    vertices = np.repeat(rest[None], 50, axis=0)
    keypoints = np.concatenate([landmarks[:, OBSERVED, :2], np.ones((50, 12, 1))], axis=-1)
    for also in (0 * keypoints, keypoints):
        mesh, turned, placed, residuals = fit_people(
            vertices, rotation.as_matrix(), camera, focal, landmarks, also, bends
        )
        assert residuals.max() < 0.1
        raised = (mesh - rest)[:, modes[0].any(axis=1)]
        assert (np.median(raised[..., 1], axis=0) > 0.1).all() and np.abs(raised[..., [0, 2]]).max() < 1e-12
        seen = PlacedBodies(mesh @ turned.swapaxes(1, 2), placed, focal).landmarks() - truth.landmarks()
        assert np.abs(seen).max() < 0.1


def test_residuals_are_distances_at_the_depth_of_the_body(rest: np.ndarray) -> None:
    """One knee's keypoint is 0.2 m beside the knee, an elbow's below, hardly seen; the unseen has none."""
    count = 20
    knee, elbow = (LIMB_JOINTS.index(SMPL_JOINTS.index(name)) for name in ("left_knee", "right_elbow"))
    true = people(rest, count)
    camera = np.column_stack([true.focal / true.translation[:, 2], true.translation[:, :2]])
    landmarks, keypoints = np.zeros((count, 39, 5)), np.zeros((count, 12, 3))
    landmarks[:, OBSERVED, :2], landmarks[:, OBSERVED, 3:] = true.landmarks(np.array(LIMB_JOINTS)), 1
    keypoints[..., :2] = landmarks[:, OBSERVED, :2]
    keypoints[:, knee, 0] += 0.2 * true.focal / true.translation[:, 2]
    keypoints[:, elbow, 1] += 0.2 * true.focal / true.translation[:, 2]
    landmarks[:, np.array(OBSERVED)[[knee, elbow]], 4] = landmarks[:, OBSERVED[0], 3] = 0
    keypoints[:, knee, 2], keypoints[:, elbow, 2] = 1, UNSEEN
    upright = np.repeat(np.eye(3)[None], count, axis=0)
    bends = Bends.of(np.eye(len(SMPL_JOINTS)), np.zeros((1, len(SMPL_JOINTS), 3)))
    residuals = fit_people(true.joints, upright, camera, true.focal, landmarks, keypoints, bends).residuals
    assert (residuals[:, 0] == 0).all()
    assert np.median(residuals[:, elbow]) == pytest.approx(0.2 * 0.5**0.5, abs=0.03), "half of its square"
    assert np.median(residuals[:, knee]) == pytest.approx(0.2, abs=0.05)
    assert np.median(np.delete(residuals, [0, knee, elbow], axis=1)) < 0.05


def test_samples_of_people_are_fitted_like_each_alone(rest: np.ndarray) -> None:
    """Meshes [P, Q] of people whose landmarks are [P, 1]."""
    rng = np.random.default_rng(0)
    meshes = rest + 0.05 * rng.normal(size=(3, 2, len(rest), 3))
    upright = np.repeat(Rotation.from_rotvec([np.pi, 0, 0]).as_matrix()[None], 3, axis=0)
    camera, focal = np.tile([0.8, 0, 0], (3, 1)), np.full(3, 2.0)
    landmarks, keypoints = rng.uniform(-0.5, 0.5, (3, 39, 5)), rng.uniform(0, 0.5, (3, 12, 3))
    landmarks[..., 3:] = 1
    bends = Bends.of(np.eye(len(SMPL_JOINTS)), 0.1 * rng.normal(size=(2, len(SMPL_JOINTS), 3)))
    a, b, c, d, e = (part[:, None] for part in (upright, camera, focal, landmarks, keypoints))
    together = fit_people(meshes, a, b, c, d, e, bends)
    for q in range(2):
        alone = fit_people(meshes[:, q], upright, camera, focal, landmarks, keypoints, bends)
        for part, whole in zip(alone, together):
            np.testing.assert_allclose(part, whole[:, q], atol=1e-9)


def test_what_a_limb_misses_widens_sigma_around_it(rest: np.ndarray) -> None:
    shares = limb_shares(rest, rest)
    expected = np.exp(-((rest[:, None] - rest[LIMB_JOINTS]) ** 2).sum(axis=-1) / (2 * REACH**2))
    np.testing.assert_allclose(shares, expected / expected.sum(axis=1, keepdims=True), atol=1e-9)
    np.testing.assert_allclose(limb_shares(np.array([[0, 9.0, 0], rest[0]]), rest).sum(axis=1), 1)
    between = widened(np.array([0.3]), np.array([0.4, 0.1]), np.array([[0.75, 0.25]]))  # the mean of the squares
    np.testing.assert_allclose(between, (0.3**2 + 1.6**2 * (0.75 * 0.4**2 + 0.25 * 0.1**2)) ** 0.5)
    for number, joint in enumerate(LIMB_JOINTS):
        residuals = np.zeros((1, 12))
        residuals[0, number] = 0.4
        sigma = widened(np.full((1, len(rest)), 0.3), residuals, shares)[0]
        assert 0.39 < sigma[joint] <= 0.71
        farthest = np.linalg.norm(rest - rest[joint], axis=1).argmax()
        assert sigma[farthest] == pytest.approx(0.3, abs=0.01) and (sigma >= 0.3).all()


def test_modes_are_the_directions_of_errors_one_deviation_long() -> None:
    rng = np.random.default_rng(0)
    big, small = np.zeros((2, 7, 3))
    big[2, 0], small[5] = 1, [0, 0.6, 0.8]
    errors = (
        rng.normal(size=(7, 3))
        + 0.3 * rng.normal(size=(5000, 1, 1)) * big
        + 0.05 * rng.normal(size=(5000, 1, 1)) * small
    )
    modes = principal_modes(errors, 2)
    assert modes.dtype == np.float32
    for mode, expected in zip(modes, (0.3 * big, 0.05 * small)):
        np.testing.assert_allclose(mode * np.sign((mode * expected).sum()), expected, atol=0.01)
