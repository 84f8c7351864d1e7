"""Cameras and crops: round trips and closed forms."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mega_model.core import geometry
from mega_model.core.cameras import Camera

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


def test_perspective() -> None:
    points = np.array([[0.0, 0, 2], [1, -1, 4]])
    np.testing.assert_allclose(geometry.project(points, K), [[320, 240], [445, 115]])


def test_intrinsics_from_field_of_view() -> None:
    k = geometry.intrinsics_from_fov(640, 480, np.radians(60))
    focal = 320 * np.sqrt(3)
    np.testing.assert_allclose(k, [[focal, 0, 320], [0, focal, 240], [0, 0, 1]])


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_crop_cameras_look_at_the_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform([-100, -100], [500, 400], (3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 300, (3, 2))], axis=1)
    _, crop_from_camera = geometry.square_cameras(*geometry.box_squares(boxes, 1.2), K, 128)
    np.testing.assert_allclose(
        crop_from_camera @ crop_from_camera.transpose(0, 2, 1), np.tile(np.eye(3), (3, 1, 1)), atol=1e-12
    )
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    ray = np.concatenate([middle, np.ones((3, 1))], axis=1) @ np.linalg.inv(K).T
    seen = np.einsum("pij,pj->pi", crop_from_camera, ray)
    np.testing.assert_allclose(seen[:, :2], 0, atol=1e-9)
    assert (seen[:, 2] > 0).all()


def squares(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres [3, 2] and sides [3] within the image of K."""
    rng = np.random.default_rng(seed)
    return rng.uniform([50, 50], [590, 430], (3, 2)), rng.uniform(40, 300, 3)


@given(st.integers(0, 10_000), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_square_cameras_agree_with_their_homography(seed: int, roll: float) -> None:
    centre, side = squares(seed)
    crop_intrinsics, crop_from_camera = geometry.square_cameras(centre, side, np.full(3, roll), K, 64)
    points = np.random.default_rng(seed).uniform([-1, -1, 2], [1, 1, 4], (3, 9, 3))
    seen = geometry.project(np.einsum("pij,pvj->pvi", crop_from_camera, points), crop_intrinsics)
    pixels = np.concatenate([geometry.project(points, K), np.ones((3, 9, 1))], axis=-1)
    mapped = np.einsum("pij,pvj->pvi", crop_intrinsics @ crop_from_camera @ np.linalg.inv(K), pixels)
    np.testing.assert_allclose(seen, mapped[..., :2] / mapped[..., 2:], atol=1e-6)
    # the crop's right is the image's direction (cos roll, sin roll)
    right = centre + 1e-3 * np.array([np.cos(roll), np.sin(roll)])
    ends = np.concatenate([np.stack([centre, right], axis=1), np.ones((3, 2, 1))], axis=-1)
    ends = np.einsum("pij,pvj->pvi", crop_intrinsics @ crop_from_camera @ np.linalg.inv(K), ends)
    step = np.diff(ends[..., :2] / ends[..., 2:], axis=1)[:, 0]
    off_axis = np.linalg.norm((centre - [320, 240]) / 500, axis=1)  # squares become trapezia there
    assert (np.abs(np.arctan2(step[:, 1], step[:, 0])) < 0.01 + 0.3 * off_axis**2).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_rolled_squares(seed: int) -> None:
    centre, side = squares(seed)
    boxes = np.concatenate([centre - side[:, None] / 2, centre + side[:, None] / 2], axis=1)
    crop_intrinsics, straight = geometry.square_cameras(*geometry.box_squares(boxes, 1.0), K, 64)
    for got, wanted in zip(geometry.square_cameras(centre, side, np.zeros(3), K, 64), (crop_intrinsics, straight)):
        np.testing.assert_allclose(got, wanted, atol=1e-9)
    each = np.broadcast_to(K, (3, 3, 3))
    np.testing.assert_allclose(geometry.square_cameras(centre, side, np.zeros(3), each, 64)[1], straight, atol=1e-12)
    quarter = geometry.square_cameras(centre, side, np.full(3, np.pi / 2), K, 64)[1] @ straight.transpose(0, 2, 1)
    np.testing.assert_allclose(np.linalg.matrix_power(quarter, 4), np.tile(np.eye(3), (3, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.matrix_power(quarter, 2)[:, 0, 0], -1)


def test_crop_of_a_box_on_the_axis_is_a_plain_crop() -> None:
    crop_intrinsics, crop_from_camera = geometry.square_cameras(
        *geometry.box_squares(np.array([[270.0, 140, 370, 340]]), 1.0), K, 128
    )
    np.testing.assert_allclose(crop_from_camera[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(crop_intrinsics[0], [[320, 0, 64], [0, 320, 64], [0, 0, 1]])  # 200 pixels become 128


@pytest.mark.parametrize("size", [(640, 480), (2560, 1920)])
def test_crop_images_show_points_where_the_crop_camera_says(size: tuple[int, int]) -> None:
    width, height = size
    scale = width / 640
    intrinsics = np.diag([scale, scale, 1]) @ K
    image = np.zeros((height, width, 3), np.uint8)
    pixel = np.array([500.0, 130.0]) * scale
    cv2.circle(image, tuple(np.round(pixel).astype(int).tolist()), int(4 * scale), (255, 255, 255), -1)
    box = np.array([[440.0, 80, 600, 220]]) * scale
    crop_intrinsics, crop_from_camera = geometry.square_cameras(*geometry.box_squares(box, 1.1), intrinsics, 128)
    crop = geometry.crop_images(image, intrinsics, crop_intrinsics, crop_from_camera, 128)[0, ..., 0].astype(float)
    rows, columns = np.mgrid[:128, :128] + 0.5
    found = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
    ray = crop_from_camera[0] @ np.linalg.inv(intrinsics) @ [*pixel, 1]
    want = geometry.project(ray[None], crop_intrinsics[0])[0]
    np.testing.assert_allclose(found, want, atol=0.75)


def test_place_puts_the_body_where_the_crop_camera_saw_it() -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(scale=0.3, size=(2, 40, 3))
    body -= body.mean(axis=1, keepdims=True)
    turn = Rotation.random(2, random_state=rng).as_matrix()
    boxes = np.array([[50.0, 60, 200, 400], [420, 100, 560, 380]])
    crop_intrinsics, crop_from_camera = geometry.square_cameras(*geometry.box_squares(boxes, 1.2), K, 128)
    translation = np.array([[0.1, -0.2, 3.0], [-0.05, 0.1, 5.0]])
    focal = crop_intrinsics[:, 0, 0] / 64
    camera = np.stack([focal / translation[:, 2], translation[:, 0], translation[:, 1]], axis=1)
    np.testing.assert_allclose(geometry.crop_translation(camera, focal), translation, atol=1e-12)
    np.testing.assert_allclose(geometry.crop_translation(camera[None], focal[None]), translation[None], atol=1e-12)
    placed = geometry.place(body, turn, translation, crop_from_camera)
    for p in range(2):
        want = (body[p] @ turn[p].T + translation[p]) @ crop_from_camera[p]
        np.testing.assert_allclose(placed[p], want, atol=1e-9)
        in_crop = geometry.project(body[p] @ turn[p].T + translation[p], crop_intrinsics[p])
        again = geometry.project(placed[p] @ crop_from_camera[p].T, crop_intrinsics[p])
        np.testing.assert_allclose(in_crop, again, atol=1e-9)


def test_keypoints_in_crops_are_where_the_crop_shows_them() -> None:
    """In crop sides from the middle, also where pixels of the image are not square; scores stay."""
    intrinsics = K * [[1, 1, 1], [1, 1.1, 1], [1, 1, 1]]
    camera = Camera(intrinsics, "plumb_bob", [-0.2, 0.05, 0.001, 0.002])
    centre, side, roll = np.array([[200.0, 300], [450, 100]]), np.array([150.0, 90]), np.array([0.4, -1.0])
    points = centre[:, None] + np.random.default_rng(0).uniform(-40, 40, (2, 5, 2))
    scores = np.random.default_rng(1).uniform(0.1, 1, (2, 5, 1))
    for through, one in (
        (camera, camera),
        (Camera(intrinsics), intrinsics),
        (Camera(intrinsics), np.stack([intrinsics] * 2)),
    ):
        crops = geometry.square_cameras(centre, side, roll, through, 64)
        found = geometry.in_crops(np.concatenate([points, scores], axis=-1), one, *crops)
        for p in range(2):
            pixels = geometry.project(through.rays(points[p]) @ crops[1][p].T, crops[0][p])
            np.testing.assert_allclose(found[p, :, :2], pixels / 32 - 1, atol=1e-9)
        np.testing.assert_array_equal(found[..., 2:], scores)


def test_keypoints_without_a_place_in_the_crop_have_no_score() -> None:
    """Behind the crop's camera, or beyond the lens."""
    camera = Camera(np.array([[300.0, 0, 450], [0, 300, 300], [0, 0, 1]]), "equidistant", [0.0] * 4)
    crops = geometry.square_cameras(np.array([[850.0, 300]]), np.array([50.0]), np.zeros(1), camera, 64)
    points = np.array([[[850.0, 300, 0.9], [300, 300, 0.8], [460, 300, 0.7], [5000, 300, 0.6]]])
    found = geometry.in_crops(points, camera, *crops)
    np.testing.assert_allclose(found[0, :, 2], [0.9, 0, 0.7, 0])
    assert np.isfinite(found).all()


def test_a_pyramid_is_halved_until_it_is_small_enough() -> None:
    """Each size is the mean of its pixels in the image, and is made once."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    pyramid = geometry.Pyramid(image)
    for shrink, factor in ((0.3, 1), (1.99, 1), (2, 2), (3.9, 2), (4, 4), (9, 8)):
        found = pyramid.at(shrink)
        mean = image.reshape(48 // factor, factor, 64 // factor, factor, 3).mean(axis=(1, 3))
        assert np.abs(found - mean).max() <= 1.5
        assert pyramid.at(shrink) is found
    assert pyramid.at(1e4).shape == (1, 1, 3)


def test_crops_of_a_shared_pyramid_are_those_of_the_image() -> None:
    """Of a small and of a large square, whichever is cut first."""
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    K = geometry.intrinsics_from_fov(320, 240, 1.0)
    cameras = geometry.square_cameras(
        np.array([[160.0, 120], [100, 90]]), np.array([220.0, 60]), np.array([0.1, 0]), K, 32
    )
    pyramid = geometry.Pyramid(image)
    for index in ([1, 0], [0, 1], [1]):
        intrinsics, rotations = (part[index] for part in cameras)
        shared, own = (geometry.crop_images(x, K, intrinsics, rotations, 32) for x in (pyramid, image))
        np.testing.assert_array_equal(shared, own)
    spread = geometry.crop_images(image, K, *cameras, 32).std(axis=(1, 2, 3))
    assert spread[0] < 0.4 * spread[1], "the large square is averaged, so noise goes"
