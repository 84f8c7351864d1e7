"""Pages: sizes, rows, and where an image lies on them."""

import numpy as np
import pytest

from mega_model.core.cameras import Camera
from mega_model.core.geometry import intrinsics_from_fov
from mega_ros import draw
from mega_ros.replay import sheets

CAMERA = Camera(intrinsics_from_fov(320, 240, 1.0))
# one person, an octahedron of 30 cm at 3 m
BALL = np.array([[[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]], np.float32) * 0.3 + np.array(
    [0, 0, 3], np.float32
)
FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


@pytest.fixture
def image() -> np.ndarray:
    return np.full((240, 320, 3), 128, np.uint8)


def test_fit_says_where_pixels_go() -> None:
    image = np.zeros((100, 400, 3), np.uint8)
    image[40:60, 300:320] = 255
    page, moved = sheets.fit(image, (200, 150))
    assert page.shape == (150, 200, 3)
    x, y, _ = moved @ [310, 50, 1]
    assert (page[int(y), int(x)] > 250).all()


def test_contact_sheet_has_a_row_per_frame_also_for_nobody(image: np.ndarray) -> None:
    sigma = np.full((1, 6), 0.03)
    somebody = sheets.PageFrame(image, CAMERA, BALL, sigma, np.array([4]), "0.00 s")
    nobody = sheets.PageFrame(image, CAMERA, np.zeros((0, 6, 3)), np.zeros((0, 6)), np.zeros(0), "0.07 s")
    one = sheets.contact_sheet([somebody], FACES)
    two = sheets.contact_sheet([somebody, nobody], FACES)
    assert two.shape[0] - one.shape[0] > 300
    assert two.shape[1:] == one.shape[1:]


def test_the_image_stays_and_the_view_by_sigma_shows_it(image: np.ndarray) -> None:
    sigma = 0.05 + (BALL[..., 0] / 6)  # 0 to 0.1 m, uncertain to the right
    frame = sheets.PageFrame(image, CAMERA, BALL, sigma, np.array([0]))
    plain, over, by_sigma = sheets.views(frame, FACES, (320, 240), 0.1)
    np.testing.assert_array_equal(plain, image)
    assert (over != image).any() and tuple(by_sigma[0, 0]) == draw.PAPER
    left, right = by_sigma[120, 140].astype(int), by_sigma[120, 180].astype(int)
    assert left[0] > left[2]
    assert right[2] > right[0]


def test_video_frames_have_ids_over_the_image(image: np.ndarray) -> None:
    one, other = (
        sheets.video_frame(sheets.PageFrame(image, CAMERA, BALL, np.full((1, 6), 0.1), np.array([person])), FACES, 0.1)
        for person in (3, 8)  # of the same colour
    )
    differ = (one != other).any(axis=2)
    assert differ[:, :640].any() and not differ[:, 640:].any()


def test_video_frames_have_even_sides_and_one_size(image: np.ndarray) -> None:
    nobody = sheets.PageFrame(image[:239, :319], CAMERA, np.zeros((0, 6, 3)), np.zeros((0, 6)), np.zeros(0))
    somebody = sheets.PageFrame(image[:239, :319], CAMERA, BALL, np.full((1, 6), np.nan), np.array([0]))
    shapes = {sheets.video_frame(frame, FACES, 0.1).shape for frame in (nobody, somebody)}
    assert len(shapes) == 1
    assert all(side % 2 == 0 for side in shapes.pop()[:2])
