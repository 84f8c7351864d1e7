"""Drawings: where surfaces land, what hides what, what colours mean."""

import numpy as np
import pytest

from mega_model.core.cameras import Camera
from mega_model.core.geometry import intrinsics_from_fov
from mega_ros import draw

CAMERA = Camera(intrinsics_from_fov(320, 240, 1.0))
# an octahedron of 30 cm, counter-clockwise seen from outside
BALL = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]) * 0.3
FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
ABOVE = 3
"""Pixels from a surface to the id over it, at least."""


@pytest.fixture
def image() -> np.ndarray:
    return np.full((240, 320, 3), 128, np.uint8)


def people(*places: tuple[float, float, float]) -> np.ndarray:
    return (BALL[None] + np.array(places)[:, None]).astype(np.float32)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Pixel centres [N, 2] (x, y) that differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return np.stack([columns, rows], axis=1) + 0.5


@pytest.mark.parametrize("place", [(0, 0, 3), (1.2, -0.5, 3), (-0.6, 0.4, 2)])
def test_a_surface_is_drawn_where_its_points_project_to(image: np.ndarray, place: tuple[float, float, float]) -> None:
    drawn = changed(image, draw.overlay(image, people(place), np.array([0]), FACES, CAMERA))
    corners = CAMERA.project(people(place)[0])
    drawn = drawn[drawn[:, 1] > corners[:, 1].min() - ABOVE]
    np.testing.assert_allclose(drawn.min(axis=0), corners.min(axis=0), atol=1.5)
    np.testing.assert_allclose(drawn.max(axis=0), corners.max(axis=0), atol=1.5)


def test_an_overlay_of_a_large_image_is_small_and_right() -> None:
    """The same surface in the same place, half as fine."""
    large, camera = np.full((960, 1280, 3), 128, np.uint8), CAMERA.moved(np.diag([4, 4, 1]))
    image, small = draw.shrunk(large, camera)
    drawn = changed(image, draw.overlay(image, people((0.8, -0.5, 3)), np.array([0]), FACES, small))
    corners = CAMERA.project(people((0.8, -0.5, 3))[0]) * 2
    drawn = drawn[drawn[:, 1] > corners[:, 1].min() - ABOVE]
    assert image.shape == (480, 640, 3)
    np.testing.assert_allclose(drawn.min(axis=0), corners.min(axis=0), atol=1.5)
    np.testing.assert_allclose(drawn.max(axis=0), corners.max(axis=0), atol=1.5)
    assert draw.shrunk(image, small)[0] is image


def test_all_of_a_large_image_is_drawn_on() -> None:
    camera = Camera(np.array([[8000.0, 0, 4000], [0, 80, 20], [0, 0, 1]]))
    image = np.zeros((40, 8000, 3), np.uint8)
    corners = camera.project(people((1.1, 0, 3))[0])
    drawn = changed(image, draw.overlay(image, people((1.1, 0, 3)), np.array([0]), FACES, camera))
    np.testing.assert_allclose(drawn[:, 0].min(), corners[:, 0].min(), atol=2)
    np.testing.assert_allclose(drawn[:, 0].max(), corners[:, 0].max(), atol=2)


def test_a_row_of_pixels_stays_one() -> None:
    image, camera = draw.shrunk(np.zeros((1, 1280, 3), np.uint8), CAMERA)
    assert image.shape == (1, 640, 3)
    np.testing.assert_allclose(np.diag(camera.K), np.diag(CAMERA.K) * [0.5, 1, 1])


def test_ids_are_over_the_people_who_are_seen(image: np.ndarray) -> None:
    near, hidden = (0, 0, 2), (0, 0, 4)
    pictures = [
        draw.overlay(image, people(near, hidden), np.array(ids), FACES, CAMERA)
        for ids in ((333, 1), (888, 1), (333, 6))  # of the same colours
    ]
    _, top = CAMERA.project(people(near)[0]).min(axis=0)
    written = changed(pictures[0], pictures[1])
    assert len(written) > 5 and (np.abs(written - [160, top - 8]) < [16, 8]).all()
    assert abs(written[:, 0].min() + written[:, 0].max() - 320) < 8
    np.testing.assert_array_equal(pictures[0], pictures[2])
    beside = [draw.overlay(image, people((-0.5, 0, 2), (0.5, 0, 2)), np.array([3, k]), FACES, CAMERA) for k in (3, 8)]
    assert (changed(*beside)[:, 0] > 200).all() and len(changed(*beside)) > 5
    at_the_edge = draw.overlay(image, people((0, -0.8, 2)), np.array([3]), FACES, CAMERA)
    assert (at_the_edge[:14] > 240).all(axis=2).any(), "an id over the image's edge is moved into it"


def test_nobody_leaves_the_image_as_it_is(image: np.ndarray) -> None:
    nobody = np.zeros((0, 6, 3), np.float32)
    out = draw.overlay(image, nobody, np.zeros(0), FACES, CAMERA)
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)


@pytest.mark.parametrize("place", [(0, 0, -3), (0, 0, 0), (0, 0, 0.35), (9, 0, 3)])
def test_what_lies_behind_or_beside_the_camera_is_not_drawn(
    image: np.ndarray, place: tuple[float, float, float]
) -> None:
    np.testing.assert_array_equal(draw.overlay(image, people(place), np.array([0]), FACES, CAMERA), image)


def test_a_pixel_shows_the_point_of_the_surface_that_projects_to_it() -> None:
    vertices = people((0, 0, 3))
    surface = draw.trace(vertices, FACES, CAMERA, (320, 240))
    pixels = (np.stack(surface.pixels[::-1], axis=1) + 0.5) / draw.FINER
    assert (np.abs(pixels.mean(axis=0) - [160, 120]) < [0.1, 0.6]).all()  # OpenCV takes whole rows
    assert surface.weights.min() >= 0
    np.testing.assert_allclose(surface.weights.sum(axis=1), 1, rtol=1e-5)
    shown = np.einsum("nk,nki->ni", surface.weights, CAMERA.project(vertices[0])[surface.corners])
    assert (np.median(np.abs(shown - pixels), axis=0) < 0.01).all()  # farther off at the triangles' edges


def test_light_comes_from_the_camera_and_from_above_on_the_left() -> None:
    right, left, below, above, behind, front = draw.light(people((0, 0, 3))[0], FACES)
    assert left > right and above > below and front > behind > 0


def test_the_image_shines_through_a_surface(image: np.ndarray) -> None:
    on_black, on_white = (
        draw.overlay(np.full_like(image, grey), people((0, 0, 3)), np.array([0]), FACES, CAMERA)[120, 160]
        for grey in (0, 255)
    )
    np.testing.assert_allclose(on_white.astype(int) - on_black, (1 - draw.OVER_IMAGE) * 255, atol=1)


def test_too_much_light_is_white(image: np.ndarray) -> None:
    surface = draw.trace(people((0, 0, 3)), FACES, CAMERA, (320, 240))
    assert (draw.paint(image, surface, np.full((6, 3), 400.0))[120, 160] == 255).all()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_person_hides_the_other(image: np.ndarray, order: tuple[int, int]) -> None:
    places = np.array([(0, 0, 2), (0, 0, 4)])
    both = draw.overlay(image, people(*places[list(order)]), np.array(order), FACES, CAMERA)
    alone = draw.overlay(image, people((0, 0, 2)), np.array([0]), FACES, CAMERA)
    np.testing.assert_allclose(both[120, 160].astype(int), alone[120, 160], atol=2)


def test_sigma_goes_from_blue_to_red_and_the_unknown_is_grey() -> None:
    low, middle, high, above, unknown = draw.sigma_colours(np.array([0, 0.05, 0.1, 0.5, np.nan]), 0.1)
    assert low[0] > 2 * low[2]
    assert high[2] > 2 * high[0]
    assert np.ptp(middle) < 10
    np.testing.assert_array_equal(above, high)
    assert np.ptp(unknown) == 0 and 150 < unknown[0] < 250


def test_the_side_view_shows_sigma() -> None:
    sigma = 0.05 + BALL[None, :, 0] / 6  # 0 to 0.1 m, uncertain to the right
    side = draw.side_view(people((0, 0, 3)), sigma, FACES, (320, 240), 0.1)
    from_the_left = side[120, 160].astype(int)
    assert from_the_left[0] > 2 * from_the_left[2]
    assert tuple(side[0, 0]) == draw.PAPER


def test_the_side_view_turns_depth_into_width_and_keeps_all_in_view() -> None:
    vertices = people((-3, 0, 3), (3, 0.1, 6))
    turned, camera = draw.from_the_side(vertices, (320, 240))
    pixels = camera.project(turned.reshape(-1, 3))
    assert (pixels > 0).all() and (pixels < [320, 240]).all()
    centres = camera.project(turned.mean(axis=1))
    assert centres[0, 0] - centres[1, 0] > 100  # the farther one stands to the left: the camera is to the right
    inward = np.cross(turned[0, 2] - turned[0, 0], turned[0, 4] - turned[0, 0])
    assert inward @ (turned[0, [0, 2, 4]].mean(axis=0) - turned[0].mean(axis=0)) > 0  # turned, not mirrored


def test_intrinsics_are_a_camera_without_a_lens(image: np.ndarray) -> None:
    given = image, people((0, 0, 3)), np.array([0]), FACES
    np.testing.assert_array_equal(draw.overlay(*given, CAMERA.K), draw.overlay(*given, CAMERA))
