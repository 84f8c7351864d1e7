"""Cameras with lenses: against OpenCV where that is right, against themselves to the edge, and in crops."""

from __future__ import annotations

import contextlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_model.core.cameras import WIDEST_CROP, Camera
from mega_model.core.errors import InputError
from mega_model.core.geometry import crop_images, square_cameras

K = np.array([[300.0, 2.0, 450], [0, 310, 300], [0, 0, 1]])
STRAIGHT = np.array([[300.0, 0, 450], [0, 300, 300], [0, 0, 1]])
LENSES = {
    "plumb_bob 4": ("plumb_bob", [-0.3, 0.1, 0.001, -0.002]),
    "plumb_bob 5": ("plumb_bob", [-0.3, 0.1, 0.001, -0.002, -0.01]),
    "rational_polynomial 8": ("rational_polynomial", [0.5, 0.05, 0.001, 0.002, 0.002, 0.6, 0.1, 0.005]),
    # so strong that Newton's method needs a right derivative
    "thin prism": ("rational_polynomial", [0.1, -0.05, 0.02, 0.03, 0.01, 0.15, 0, 0, 0.03, -0.008, 0.012, 0.006]),
    "tilt": ("rational_polynomial", [0.1, 0, 0.001, 0.002, 0, 0.15, 0, 0, 0.01, 0, 0.004, 0, 0.02, -0.03]),
    "tilt about x": ("rational_polynomial", [0.1, 0, 0.001, 0.002, 0, 0.15, 0, 0, 0, 0, 0, 0, 0.02, 0]),
    "tilt about y": ("rational_polynomial", [0.1, 0, 0.001, 0.002, 0, 0.15, 0, 0, 0, 0, 0, 0, 0, -0.03]),
    "equidistant": ("equidistant", [0.02, -0.003, 0.001, -0.0005]),
}


def directions(rng: np.random.Generator, count: int, widest: float) -> np.ndarray:
    """[N, 3], up to `widest` radians off the axis, of any length."""
    angle, around, length = (rng.uniform(low, high, count) for low, high in ((0, widest), (0, 2 * np.pi), (0.5, 5)))
    across = np.sin(angle)
    return (length * [across * np.cos(around), across * np.sin(around), np.cos(angle)]).T


@pytest.mark.parametrize("name", LENSES)
def test_points_are_seen_where_opencv_sees_them(name: str) -> None:
    lens, distortion = LENSES[name]
    matrix = K if lens == "equidistant" else K * [[1, 0, 1], [1, 1, 1], [1, 1, 1]]  # only fisheye's has a skew
    points = directions(np.random.default_rng(0), 300, np.radians(86 if lens == "equidistant" else 40))
    nothing, D = np.zeros(3), np.array(distortion)
    if lens == "equidistant":
        expected = cv2.fisheye.projectPoints(points[:, None], nothing, nothing, matrix, D, alpha=2 / 300)[0][:, 0]
    else:
        expected = cv2.projectPoints(points, nothing, nothing, matrix, D)[0][:, 0]
    np.testing.assert_allclose(Camera(matrix, lens, distortion).project(points), expected, atol=1e-9)


@pytest.mark.parametrize("name", LENSES)
def test_rays_are_the_way_back_to_the_edge(name: str) -> None:
    lens, distortion = LENSES[name]
    camera = Camera(K, lens, distortion)
    points = directions(np.random.default_rng(0), 500, np.radians(86 if lens == "equidistant" else 62))
    rays = camera.rays(camera.project(points).reshape(5, 100, 2)).reshape(-1, 3)
    np.testing.assert_allclose(rays, points / points[:, 2:], rtol=1e-8, atol=1e-9)


@given(st.lists(st.floats(-0.3, 0.3), min_size=8, max_size=8), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_any_lens_leads_back_or_says_that_it_shows_nothing(numbers: list[float], seed: int) -> None:
    """Hostile coefficients: folds and poles. Where a ray is given, the lens shows it at that pixel."""
    pixels = np.random.default_rng(seed).uniform([-100, -100], [1000, 700], (200, 2))
    for lens, distortion in (
        ("plumb_bob", [*numbers[:2], *(x / 30 for x in numbers[2:4]), numbers[4]]),
        ("rational_polynomial", [*numbers[:2], *(x / 30 for x in numbers[2:4]), *numbers[4:]]),
        ("equidistant", numbers[:4]),
    ):
        camera = Camera(K, lens, distortion)
        rays = camera.rays(pixels)
        seen = np.isfinite(rays).all(axis=-1)
        assert (seen == np.isfinite(rays).any(axis=-1)).all() and (rays[seen, 2] == 1).all()
        np.testing.assert_allclose(camera.project(rays[seen]), pixels[seen], atol=1e-2)
    middle = Camera(K, "plumb_bob", [*numbers[:2], 0, 0, numbers[4]]).rays(np.array([[450.0, 300.0]]))
    np.testing.assert_allclose(middle, [[0, 0, 1]], atol=1e-12)


def test_a_polynomial_ends_where_it_turns_back() -> None:
    """r - 0.3 r^3 is largest at r = 1.054: what is farther out is not mirrored into the image."""
    camera = Camera(STRAIGHT, "plumb_bob", [-0.3, 0, 0, 0])
    turn = 1 / np.sqrt(0.9)
    near, beyond = np.array([0.99 * turn, 0, 1]), np.array([1.01 * turn, 0, 1])
    assert np.isfinite(camera.project(near)).all() and np.isnan(camera.project(beyond)).all()
    largest = 300 * (turn - 0.3 * turn**3)
    inside, outside = camera.rays(np.array([[450 + 0.99 * largest, 300], [450 + 1.01 * largest, 300]]))
    assert np.isfinite(inside).all() and np.isnan(outside).all()


def test_an_equidistant_polynomial_ends_where_it_turns_back() -> None:
    """The same of angle - 0.2 angle^3, at 74 degrees."""
    camera, turn = Camera(STRAIGHT, "equidistant", [-0.2, 0, 0, 0]), 1 / np.sqrt(0.6)
    near, beyond = (camera.project(np.array([np.sin(a), 0, np.cos(a)])) for a in (0.99 * turn, 1.01 * turn))
    assert np.isfinite(near).all() and np.isnan(beyond).all()


def test_beyond_90_degrees_there_is_no_ray_but_crops_show_it() -> None:
    camera = Camera(STRAIGHT, "equidistant", [0.0] * 4)
    angles = np.radians([10.0, 80, 89, 90, 95, 120])
    pixels = np.stack([450 - 300 * angles, np.full(6, 300.0)], axis=1)
    rays = camera.rays(pixels)
    np.testing.assert_allclose(rays[:3, 0], -np.tan(angles[:3]))
    assert np.isnan(rays[3:]).all()
    points = np.stack([-np.sin(angles), np.zeros(6), np.cos(angles)], axis=1)
    np.testing.assert_allclose(camera.project(points), pixels, atol=1e-9)
    assert np.isnan(Camera(STRAIGHT).project(points)[4:]).all()
    assert np.isnan(Camera(STRAIGHT, "plumb_bob", [0.1, 0, 0, 0]).project(points)[4:]).all()


def test_a_lens_without_distortion_is_a_pinhole() -> None:
    points = directions(np.random.default_rng(0), 50, 1.2)
    for lens in ("plumb_bob", "rational_polynomial"):
        camera = Camera(K, lens, np.zeros(8 if lens.startswith("r") else 5))
        assert camera.lens == ""
        np.testing.assert_array_equal(camera.project(points), Camera(K).project(points))
    np.testing.assert_allclose(Camera(K).rays(Camera(K).project(points)), points / points[:, 2:])
    assert Camera(K, "equidistant", [0.0] * 4).lens == "equidistant"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(4),), "K: must be a finite 3 x 3"),
        ((np.full((3, 3), np.inf),), "K: must be a finite 3 x 3"),
        (("camera",), "K: must hold numbers"),
        ((K, "fov", [0.9]), "lens: 'fov' is unknown; known are plumb_bob, rational_polynomial, equidistant"),
        ((K, "plumb_bob", [0.1] * 8), "distortion: plumb_bob has 4 or 5 coefficients, these are 8"),
        ((K, "equidistant", []), "distortion: equidistant has 4 coefficients, these are 0"),
        ((K, "", [0.1] * 5), "distortion: no lens has 0 coefficients, these are 5"),
        ((K, "plumb_bob", [np.nan] * 4), "distortion: must be finite"),
        ((np.stack([K, K]), "plumb_bob", [0.1] * 4), "K: a camera with a lens has one"),
    ],
)
def test_what_is_no_camera_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Camera(*arguments)


@pytest.mark.parametrize(("width", "height"), [(1000, 500), (500, 1000)])
@pytest.mark.parametrize("across", [True, False])
def test_focal_lengths_must_fit_the_larger_side(width: int, height: int, across: bool) -> None:
    """Each of the two: from 1/50 to 1000 times the side."""
    for focal, fits in ((19, False), (21, True), (999_000, True), (1_001_000, False)):
        camera = Camera(np.diag([focal, 800.0, 1] if across else [800.0, focal, 1]))
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="pixels do not fit"):
            camera.must_fit(width, height)


def test_a_pinholes_crop_spans_its_square_by_the_mean_of_both_focal_lengths() -> None:
    camera = Camera(np.array([[200.0, 0, 450], [0, 450, 300], [0, 0, 1]]))
    crop_intrinsics, _ = square_cameras(np.array([[450.0, 300]]), np.array([90.0]), np.zeros(1), camera, 64)
    assert crop_intrinsics[0, 0, 0] == pytest.approx(64 * np.sqrt(200 * 450) / 90)


# -------------------------------------------------------------------------------------------------------------- crops


def scene(camera: Camera, width: int = 900, height: int = 600) -> np.ndarray:
    """What a camera sees of a smooth pattern on the sphere around it, uint8 [H, W, 3]; black where it sees nothing."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = camera.rays(np.stack([x, y], axis=-1))
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    pattern = 128 + 100 * np.sin(14 * rays + [0, 1, 2])
    return np.nan_to_num(pattern).astype(np.uint8)


@pytest.mark.parametrize("name", ["plumb_bob 5", "rational_polynomial 8", "equidistant"])
def test_crops_through_a_lens_are_those_of_a_pinhole(name: str) -> None:
    """The same virtual cameras in two images of one scene. Speeds: pinholes are warped, lenses remapped."""
    lens, pinhole = Camera(STRAIGHT, *LENSES[name]), Camera(STRAIGHT)
    centre, side = np.array([[450.0, 300], [650, 200], [250, 380]]), np.array([150.0, 90, 300])
    crops = square_cameras(centre, side, np.array([0.0, 0.5, -1]), pinhole, 96)
    expected, found = (crop_images(scene(camera), camera, *crops, 96).astype(float) for camera in (pinhole, lens))
    seen = (expected > 27) & (found > 27)  # the pattern's darkest is 28
    assert (seen.mean(axis=(1, 2, 3)) > 0.7).all(), seen.mean(axis=(1, 2, 3))
    off = np.abs(expected - found)[seen]
    assert off.mean() < 1.5 and np.quantile(off, 0.99) < 8, (off.mean(), np.quantile(off, 0.99))


@pytest.mark.parametrize(
    "camera", [Camera(STRAIGHT), Camera(STRAIGHT, *LENSES["equidistant"])], ids=["pinhole", "lens"]
)
def test_enlarged_crops_are_interpolated(camera: Camera) -> None:
    """Four pixels of the crop for one of the image, whose neighbours differ by 8."""
    image = np.zeros((600, 900, 1), np.uint8)
    image[..., 0] = np.clip(8 * (np.arange(900) - 434), 0, 255)
    crops = square_cameras(np.array([[450.0, 300]]), np.array([16.0]), np.zeros(1), camera, 64)
    steps = np.diff(crop_images(image, camera, *crops, 64)[0, ..., 0].astype(int), axis=1)
    assert (steps >= 0).all() and steps.max() <= 4


def test_a_crop_looks_at_its_square_and_shows_all_of_it() -> None:
    """From the middle to 80 degrees; sides are angles there. A pixel spans what it spans in the middle, or less."""
    camera = Camera(STRAIGHT, "equidistant", [0.0] * 4)
    angles = np.radians([0.0, 40, 80])
    centre = np.stack([450 + 300 * angles, np.full(3, 300.0)], axis=1)
    crop_intrinsics, crop_from_camera = square_cameras(centre, np.full(3, 50.0), np.zeros(3), camera, 64)
    looked_at = crop_from_camera[:, 2]
    np.testing.assert_allclose(np.arctan2(looked_at[:, 0], looked_at[:, 2]), angles)
    spanned = 2 * np.arctan(32 / crop_intrinsics[:, 0, 0])
    np.testing.assert_allclose(spanned, 50 / 300, rtol=0.02)  # 80 degrees off, the radial side is the longer one
    image = np.zeros((600, 900, 1), np.uint8)
    x, y = (int(v) for v in centre[2])
    image[y - 25 : y + 25, x - 25 : x + 25] = 255
    crop = crop_images(image, camera, crop_intrinsics[2:], crop_from_camera[2:], 64)[0, ..., 0]
    assert crop[32, 2:-2].min() > 200 and crop[32, 32] == 255  # the radial side fills it
    assert 0.6 < (crop[:, 32] > 128).mean() < 0.8  # the other one is 80 / 180 pi / sin 80 times shorter


@pytest.mark.parametrize("name", ["plumb_bob 5", "equidistant"])
@pytest.mark.parametrize("roll", [0.0, 0.2, -2.0])
def test_a_crop_spans_the_larger_angle_of_its_square(name: str, roll: float) -> None:
    """Between the middles of opposite sides, of which a lens shows one farther from the centre than the other."""
    camera, centre, side = Camera(K, *LENSES[name]), np.array([780.0, 240]), 160.0
    right, down = np.array([np.cos(roll), np.sin(roll)]), np.array([-np.sin(roll), np.cos(roll)])
    rays = camera.rays(centre + side / 2 * np.array([np.zeros(2), right, -right, down, -down]))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across, along = np.arccos(rays[1:] @ rays[0]).reshape(2, 2).sum(axis=1)
    assert abs(across - along) > 0.01
    crop_intrinsics, _ = square_cameras(centre[None], np.array([side]), np.array([roll]), camera, 64)
    assert 2 * np.arctan(32 / crop_intrinsics[0, 0, 0]) == pytest.approx(max(across, along))


def test_a_weak_lens_gives_the_crops_of_a_pinhole() -> None:
    centre, side = np.array([[450.0, 300], [800, 300], [450, 80]]), np.array([100.0, 100, 100])
    weak, none = (
        square_cameras(centre, side, np.zeros(3), camera, 64)
        for camera in (Camera(STRAIGHT, "plumb_bob", [1e-6, 0, 0, 0]), Camera(STRAIGHT))
    )
    np.testing.assert_allclose(weak[0], none[0], rtol=2e-2)
    np.testing.assert_allclose(weak[1], none[1], atol=1e-5)


def test_no_crop_spans_more_than_120_degrees() -> None:
    for camera in (Camera(STRAIGHT * [[0.1], [0.1], [1]]), Camera(STRAIGHT, "equidistant", [0.0] * 4)):
        middle = camera.K[None, :2, 2]
        crop_intrinsics, _ = square_cameras(middle, np.array([2000.0]), np.zeros(1), camera, 64)
        assert 2 * np.arctan(32 / crop_intrinsics[0, 0, 0]) == pytest.approx(2 * WIDEST_CROP)


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_a_crop_beside_a_wide_pinhole_does_not_mirror_what_is_behind(across: int, down: int) -> None:
    """A crop 65 degrees off the axis, of which one corner or side lies behind the camera. What is opposite is white."""
    camera = Camera(STRAIGHT * [[0.5], [0.5], [1]] + [[0, 0, 225], [0, 0, 150], [0, 0, 0]])
    x, y = np.meshgrid(np.arange(900) - 450, np.arange(600) - 300)
    image = np.where(across * x + down * y < -50, 255, 0).astype(np.uint8)[..., None]
    away = 320 / np.hypot(across, down)
    crops = square_cameras(
        np.array([[450 + away * across, 300 + away * down]]), np.full(1, 850.0), np.zeros(1), camera, 64
    )
    assert crop_images(image, camera, *crops, 64).max() == 0


def test_a_square_beside_the_lens_has_no_crop() -> None:
    camera = Camera(STRAIGHT, "equidistant", [0.0] * 4)
    assert np.isnan(square_cameras(np.array([[940.0, 300.0]]), np.ones(1), np.zeros(1), camera, 64)[1]).all()


@pytest.mark.parametrize("lens, distortion", [("", []), ("plumb_bob", [0.0] * 5), ("plumb_bob", [0.1, 0.02, 0, 0, 0])])
def test_a_camera_of_a_scaled_image(lens: str, distortion: list[float]) -> None:
    camera = Camera(np.array([[400.0, 0, 300], [0, 410, 200], [0, 0, 1]]), lens, distortion)
    points = np.random.default_rng(0).uniform([-1, -1, 2], [1, 1, 5], (20, 3))
    half = camera.moved(np.array([[0.5, 0, 7], [0, 0.5, 3], [0, 0, 1]]))
    np.testing.assert_allclose(half.project(points), camera.project(points) / 2 + [7, 3])
