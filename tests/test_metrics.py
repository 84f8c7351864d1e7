"""Metrics against closed forms, and what each must not react to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from scipy.spatial.transform import Rotation

from mega_model import metrics

settings.register_profile("metrics", deadline=None, max_examples=40)  # how long an example takes says nothing here
settings.load_profile("metrics")

batch_shapes = array_shapes(min_dims=0, max_dims=2, max_side=3)
seeds = st.integers(0, 2**32 - 1)


def points(seed: int, shape: tuple[int, ...], count: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, count, 3))


def test_a_shift_is_the_error_without_alignment_and_nothing_with_it():
    truth = points(0, (4,))
    moved = truth + [0.3, 0.0, 0.4]
    regressor = np.full((1, 24), 1 / 24)
    np.testing.assert_allclose(metrics.pve(moved, truth, at="none"), 0.5)
    np.testing.assert_allclose(metrics.pve(moved, truth, at="mean"), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.pve(moved, truth, at="pelvis", regressor=regressor), 0, atol=1e-12)
    np.testing.assert_allclose(metrics.mpjpe(moved, truth, at="none"), 0.5)
    np.testing.assert_allclose(metrics.mpjpe(moved, truth), 0, atol=1e-12)


def test_one_wrong_vertex():
    truth = points(1, ())
    wrong = truth.copy()
    wrong[5, 2] += 0.24
    assert metrics.pve(wrong, truth, at="none") == pytest.approx(0.01)  # 240 mm over 24 vertices
    # the mean moves by 10 mm: 23 vertices are off by 10 mm, one by 230 mm
    assert metrics.pve(wrong, truth, at="mean") == pytest.approx((23 * 0.01 + 0.23) / 24)


def test_a_wrong_pelvis_counts_for_every_other_joint():
    truth = points(2, ())
    wrong = truth.copy()
    wrong[0] += [0, 0.1, 0]
    assert metrics.mpjpe(wrong, truth) == pytest.approx(0.1 * 23 / 24)


def test_pelvis_alignment_uses_the_first_row_of_the_regressor():
    truth = points(3, (2,))
    wrong = truth.copy()
    wrong[:, 7] += [0.24, 0, 0]
    regressor = np.zeros((2, 24))
    regressor[0, 7] = regressor[1, 0] = 1
    np.testing.assert_allclose(metrics.pve(wrong, truth, at="pelvis", regressor=regressor), 0.24 * 23 / 24)


def test_pelvis_alignment_without_a_pelvis_is_refused():
    with pytest.raises(ValueError, match="pelvis"):
        metrics.pve(points(0, ()), points(1, ()), at="pelvis")


@given(seeds, batch_shapes)
def test_procrustes_undoes_every_similarity(seed, shape):
    rng = np.random.default_rng(seed)
    truth = points(seed, shape)
    rotation = Rotation.random(random_state=seed).as_matrix()
    predicted = rng.uniform(0.2, 3) * truth @ rotation.T + rng.normal(size=3)
    np.testing.assert_allclose(metrics.procrustes(predicted, truth), truth, atol=1e-9)
    np.testing.assert_allclose(metrics.pa_mpjpe(predicted, truth), np.zeros(shape), atol=1e-9)


@given(seeds)
def test_procrustes_is_the_least_squares_similarity(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = points(seed, (), 6), points(seed + 1, (), 6)
    best = np.sum((metrics.procrustes(predicted, truth) - truth) ** 2)
    centred = predicted - predicted.mean(0)
    for _ in range(10):
        other = rng.uniform(0.1, 2) * centred @ Rotation.random(random_state=rng).as_matrix() + truth.mean(0)
        assert best <= np.sum((other - truth) ** 2) + 1e-9


def test_procrustes_never_mirrors():
    truth = points(4, ())
    mirrored = truth * [-1, 1, 1]
    assert metrics.pa_mpjpe(mirrored, truth) > 0.1


def test_procrustes_of_points_in_one_place_is_finite():
    truth = points(5, (2,))
    np.testing.assert_allclose(
        metrics.procrustes(np.zeros_like(truth), truth), truth.mean(1, keepdims=True) + 0 * truth
    )


@given(seeds, batch_shapes)
def test_batches_are_the_same_as_one_by_one(seed, shape):
    predicted, truth = points(seed, shape), points(seed + 1, shape)
    for metric in (metrics.pve, metrics.mpjpe, metrics.pa_mpjpe):
        together = metric(predicted, truth)
        assert np.shape(together) == shape
        for i in np.ndindex(*shape):
            assert together[i] == pytest.approx(metric(predicted[i], truth[i]))


def test_best_of():
    errors = np.array([[3.0, 1.0, 2.0], [0.5, 4.0, 0.1]])
    np.testing.assert_array_equal(metrics.best_of(errors), [1.0, 0.1])
    np.testing.assert_array_equal(metrics.best_of(errors, 1), [3.0, 0.5])


@given(seeds)
def test_spearman_sees_only_the_order(seed):
    sigma = np.random.default_rng(seed).uniform(0.1, 1, (3, 7))
    assert metrics.spearman(sigma, np.exp(5 * sigma)) == pytest.approx(1)
    assert metrics.spearman(sigma, -(sigma**3)) == pytest.approx(-1)


def test_coverage_of_a_half_normal_error():
    error = np.abs(np.random.default_rng(0).normal(size=200_000)) * 0.02
    sigma = np.full_like(error, 0.02)
    assert metrics.coverage(error, sigma) == pytest.approx(0.683, abs=0.005)
    assert metrics.coverage(error, sigma, 2) == pytest.approx(0.954, abs=0.005)
