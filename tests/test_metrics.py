"""Metrics against closed forms, and what each must not react to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from mega_model.core import metrics

settings.register_profile("metrics", deadline=None, max_examples=40)  # how long an example takes says nothing here
settings.load_profile("metrics")

batch_shapes = array_shapes(min_dims=0, max_dims=2, max_side=3)
seeds = st.integers(0, 2**32 - 1)
CHI = metrics.radius(metrics.LEVELS)


def points(seed: int, shape: tuple[int, ...], count: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, count, 3))


def test_a_shift_is_an_error_until_both_are_centred() -> None:
    truth = points(0, (4,))
    moved = truth + [0.3, 0.0, 0.4]
    np.testing.assert_allclose(metrics.mean_distance(moved, truth), 0.5)
    mean = np.full(24, 1 / 24)
    np.testing.assert_allclose(
        metrics.mean_distance(metrics.centre(moved, mean), metrics.centre(truth, mean)), 0, atol=1e-12
    )


def test_one_wrong_vertex() -> None:
    truth = points(1, ())
    wrong = truth.copy()
    wrong[5, 2] += 0.24
    assert metrics.mean_distance(wrong, truth) == pytest.approx(0.01)  # 240 mm over 24 vertices
    # the mean moves by 10 mm: 23 vertices are off by 10 mm, one by 230 mm
    mean = np.full(24, 1 / 24)
    off = metrics.mean_distance(metrics.centre(wrong, mean), metrics.centre(truth, mean))
    assert off == pytest.approx((23 * 0.01 + 0.23) / 24)


def test_a_wrong_origin_counts_for_every_other_point() -> None:
    truth = points(3, (2,))
    wrong = truth.copy()
    wrong[:, 7] += [0.24, 0, 0]
    seventh = np.eye(24)[7]
    off = metrics.mean_distance(metrics.centre(wrong, seventh), metrics.centre(truth, seventh))
    np.testing.assert_allclose(off, 0.24 * 23 / 24)
    np.testing.assert_allclose(metrics.centre(wrong, seventh)[:, 7], 0, atol=1e-12)


@given(seeds, batch_shapes)
def test_procrustes_undoes_every_similarity(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth = points(seed, shape)
    rotation = Rotation.random(random_state=seed).as_matrix()
    predicted = 10 ** rng.uniform(-3, 1) * truth @ rotation.T + rng.normal(size=3)
    np.testing.assert_allclose(metrics.procrustes(predicted, truth), truth, atol=1e-9)
    np.testing.assert_allclose(metrics.pa_mpjpe(predicted, truth), np.zeros(shape), atol=1e-9)


@given(seeds)
def test_procrustes_is_the_least_squares_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = points(seed, (), 6), points(seed + 1, (), 6)
    best = np.sum((metrics.procrustes(predicted, truth) - truth) ** 2)
    centred = predicted - predicted.mean(0)
    for _ in range(10):
        other = rng.uniform(0.1, 2) * centred @ Rotation.random(random_state=rng).as_matrix() + truth.mean(0)
        assert best <= np.sum((other - truth) ** 2) + 1e-9


def test_procrustes_never_mirrors() -> None:
    truth = points(4, ())
    mirrored = truth * [-1, 1, 1]
    assert metrics.pa_mpjpe(mirrored, truth) > 0.1


def test_procrustes_of_points_in_one_place_is_finite() -> None:
    truth = points(5, (2,))
    np.testing.assert_allclose(
        metrics.procrustes(np.zeros_like(truth), truth), truth.mean(1, keepdims=True) + 0 * truth
    )


@given(seeds, batch_shapes)
def test_batches_are_the_same_as_one_by_one(seed: int, shape: tuple[int, ...]) -> None:
    predicted, truth = points(seed, shape), points(seed + 1, shape)
    for metric in (metrics.mean_distance, metrics.pa_mpjpe):
        together = metric(predicted, truth)
        assert np.shape(together) == shape
        for i in np.ndindex(*shape):
            assert together[i] == pytest.approx(metric(predicted[i], truth[i]))


def test_best_of() -> None:
    errors = np.array([[3.0, 1.0, 2.0], [0.5, 4.0, 0.1]])
    np.testing.assert_array_equal(metrics.best_of(errors), [1.0, 0.1])
    np.testing.assert_array_equal(metrics.best_of(errors, 1), [3.0, 0.5])


@given(seeds)
def test_spearman_sees_only_the_order(seed: int) -> None:
    sigma = np.random.default_rng(seed).uniform(0.1, 1, (3, 7))
    assert metrics.spearman(sigma, np.exp(5 * sigma)) == pytest.approx(1)
    assert metrics.spearman(sigma, -(sigma**3)) == pytest.approx(-1)


def test_coverage_of_a_half_normal_error() -> None:
    error = np.abs(np.random.default_rng(0).normal(size=200_000)) * 0.02
    sigma = np.full_like(error, 0.02)
    assert metrics.coverage(error, sigma) == pytest.approx(0.683, abs=0.005)
    assert metrics.coverage(error, sigma, 2) == pytest.approx(0.954, abs=0.005)


def test_improvement_is_that_of_the_papers_table() -> None:
    assert metrics.improvement(101.6, 87.5) == pytest.approx(13.9, abs=0.05)


def test_spread_is_the_root_mean_square_distance_from_the_mean() -> None:
    samples = np.zeros((2, 4, 5, 3))
    samples[1, :, 2] = [[3, 0, 0], [-3, 0, 0], [0, 4, 0], [0, -4, 0]]
    expected = np.zeros((2, 5))
    expected[1, 2] = np.sqrt((9 + 9 + 16 + 16) / 4)
    np.testing.assert_allclose(metrics.spread(samples + points(0, (2, 1), 5)), expected, atol=1e-12)


def test_spread_is_one_formula_for_arrays_and_tensors() -> None:
    torch = pytest.importorskip("torch")
    samples = points(0, (2, 5))
    np.testing.assert_allclose(metrics.spread(torch.from_numpy(samples)).numpy(), metrics.spread(samples))


def gaussian_errors(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Errors whose sigma is the truth: isotropic 3D Gaussians of root mean square radius sigma."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.01, 0.2, shape)
    return np.linalg.norm(rng.normal(size=(*shape, 3)) * sigma[..., None] / np.sqrt(3), axis=-1), sigma


def test_radius_of_a_gaussian_in_space() -> None:
    # the median of chi with 3 degrees of freedom is 1.5382, its 90 % quantile 2.5003; sigma is sqrt(3) of its units
    np.testing.assert_allclose(metrics.radius(np.array([0.5, 0.9])) * np.sqrt(3), [1.5382, 2.5003], atol=1e-4)
    assert metrics.radius(0) == 0


def test_true_sigma_is_calibrated_at_every_level() -> None:
    error, sigma = gaussian_errors(0, (200, 1000))
    np.testing.assert_allclose(metrics.reliability(error, sigma, CHI), metrics.LEVELS, atol=0.004)
    assert metrics.coverage(error, sigma, float(metrics.radius(0.9))) == pytest.approx(0.9, abs=0.003)
    assert metrics.calibration_error(error, sigma, CHI) < 0.003


def test_measured_quantiles_hold_their_share_of_any_errors() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.01, 0.2, (2, 20000))
    error = sigma * rng.standard_cauchy((2, 20000)) ** 2  # tails that no Gaussian has
    radii = metrics.quantiles(error[0], sigma[0])
    np.testing.assert_allclose(metrics.reliability(error[1], sigma[1], radii), metrics.LEVELS, atol=0.02)
    assert metrics.calibration_error(error[1], sigma[1], radii) < 0.01 < metrics.calibration_error(error, sigma, CHI)


def test_what_a_calibration_says_of_errors() -> None:
    error, sigma = np.arange(1, 101) * 0.01, np.full(100, 0.5)
    said = metrics.coverages(error, sigma)
    assert said["coverage"] == {"1 sigma": 0.5, "2 sigma": 1.0}
    assert [float(level) for level in said["quantiles"]] == pytest.approx(metrics.LEVELS)
    np.testing.assert_allclose([*said["quantiles"].values()], 0.02 + 1.98 * metrics.LEVELS, atol=1e-4)


def test_a_sigma_of_no_use_has_the_largest_calibration_error() -> None:
    error = np.ones(10)
    assert metrics.calibration_error(error, np.zeros(10), CHI) == pytest.approx(0.5)  # nothing is ever covered
    assert metrics.calibration_error(error, np.full(10, 1e9), CHI) == pytest.approx(0.5)  # everything is


def test_too_small_a_sigma_covers_too_little() -> None:
    error, sigma = gaussian_errors(1, (100, 1000))
    assert (metrics.reliability(error, sigma / 2, CHI) < metrics.LEVELS).all()
    assert (metrics.reliability(error, sigma * 2, CHI) > metrics.LEVELS).all()


def test_ause_of_perfect_useless_and_wrong_orders() -> None:
    """Errors uniform in 0..1: what is left of the best order has the mean (1 - f) / 2, of no order 1/2, and of the
    reversed one (1 + f) / 2. Over the mean 1/2 and integrated, the gaps are 0, 1/2 and 1."""
    error = np.random.default_rng(0).uniform(size=200_000)
    assert metrics.ause(error, error) == 0
    assert metrics.ause(error, np.exp(3 * error)) == 0, "only the order counts"
    assert metrics.ause(error, np.random.default_rng(1).uniform(size=error.shape)) == pytest.approx(0.5, abs=0.01)
    assert metrics.ause(error, -error) == pytest.approx(1, abs=0.011)


def test_sparsification_begins_at_one_and_is_the_same_in_any_unit() -> None:
    error, sigma = gaussian_errors(2, (40, 50))
    curve, best = metrics.sparsification(error, sigma)
    assert curve[0] == pytest.approx(1) and best[0] == pytest.approx(1)
    assert (curve >= best - 1e-12).all() and (np.diff(best) <= 1e-12).all()
    np.testing.assert_allclose(metrics.sparsification(1000 * error, 3 * sigma)[0], curve)


def test_sparsification_by_hand() -> None:
    """Of four elements, none is removed before the share is a quarter."""
    by_sigma, best = metrics.sparsification(np.array([4.0, 2, 3, 1]), np.array([1, 4, 3, 2]))
    shares = [0, 24, 25, 49, 50, 74, 75, 99]
    np.testing.assert_allclose(by_sigma[shares], np.array([10, 10, 32 / 3, 32 / 3, 10, 10, 16, 16]) / 10)
    np.testing.assert_allclose(best[shares], np.array([10, 10, 8, 8, 6, 6, 4, 4]) / 10)


def test_apd_of_known_points() -> None:
    joints = np.zeros((3, 2, 3))
    joints[1, 0, 0], joints[2, 0, 1] = 3, 4  # pairs of the first joint: 3, 4 and 5; the second never moves
    assert metrics.apd(joints) == pytest.approx((3 + 4 + 5) / 3 / 2)


def test_apd_of_gaussians() -> None:
    # the difference of two has the deviation sqrt(2) on each axis, and the mean length of chi_3, sqrt(8 / pi), times it
    assert metrics.apd(points(0, (1500,), 4)) == pytest.approx(np.sqrt(2) * np.sqrt(8 / np.pi), rel=0.02)


@given(seeds)
def test_fid_of_two_gaussians(seed: int) -> None:
    """Samples whitened to exact moments, so that the closed form of commuting covariances holds to rounding."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 4))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    first, second, shift = rng.uniform(0.1, 3, 4), rng.uniform(0.1, 3, 4), rng.normal(size=4)
    expected = shift @ shift + ((first - second) ** 2).sum()
    assert metrics.fid(x * first @ turn, x * second @ turn + shift) == pytest.approx(expected, rel=1e-6)


@given(seeds)
def test_fid_is_its_definition(seed: int) -> None:
    """Of covariances that do not commute."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4) for _ in range(2))
    a, b, shift = np.cov(x, rowvar=False), np.cov(y, rowvar=False), x.mean(0) - y.mean(0)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert metrics.fid(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_fid_of_a_set_and_itself_is_zero() -> None:
    x = np.random.default_rng(3).normal(size=(30, 50))  # fewer samples than dimensions, too
    assert metrics.fid(x, x[::-1]) == pytest.approx(0, abs=1e-6)


def test_what_is_beside_counts_and_what_is_behind_does_not() -> None:
    true = np.array([[0.5, -0.2, 4.0], [0, 0, 2]])
    np.testing.assert_allclose(metrics.beside(true * [[1.7], [0.3]], true), 0, atol=1e-12)
    moved = true + [0.3, 0.4, 0]
    np.testing.assert_allclose(metrics.beside(moved, true), np.tile([0.3, 0.4, 0], (2, 1)), atol=1e-12)
    np.testing.assert_allclose(metrics.beside(moved * 2, true), np.tile([0.3, 0.4, 0], (2, 1)), atol=1e-12)
