"""Crops show what their squares say: against the released code's crops, and against each other."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mega_model.core import images as image_files
from mega_model.core.errors import InputError
from mega_model.data.crops import Square, affine_crop, columns, decode, occlude, read, square_crop

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def recorded(root: Path) -> dict[str, np.ndarray]:
    with np.load(root / "tests" / "fixtures" / "geometry.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def photo(recorded: dict[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(recorded["demo_image_bgr"][..., ::-1])


def grey_levels(crop: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """How far the crop is from a recorded one, which is normalised and holds every fourth row and column."""
    return np.abs(crop[::4, ::4] - 255 * (patch.transpose(1, 2, 0) * STD + MEAN))


@pytest.mark.parametrize("k", [0, 1])
def test_evaluation_crops_are_the_released_ones(k: int, recorded: dict[str, np.ndarray], photo: np.ndarray) -> None:
    square = Square(recorded[f"square_center{k}"], 200 * float(recorded[f"square_scale{k}"]))
    off = grey_levels(square_crop(photo, square, 224), recorded[f"square_patch{k}"])
    assert off.max() < 1, "ours are whole numbers, theirs are not"


@pytest.mark.parametrize("k", [0, 1, 2])
def test_demo_crops_are_the_released_ones(k: int, recorded: dict[str, np.ndarray], photo: np.ndarray) -> None:
    square = Square(recorded[f"demo_box_center{k}"], float(recorded[f"demo_box_size{k}"]))
    off = grey_levels(affine_crop(photo, square, 224, smooth=True), recorded[f"demo_patch{k}"])
    # recorded with OpenCV 4.11, which samples at 1/32 of a pixel; version 5 samples where it should
    assert off.max() < 3 and off.mean() < 0.25


def test_demo_crops_of_large_people_are_blurred_first() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    square = Square(np.array([300.0, 300.0]), 560.0)
    sigma = (560 / 2 / 64 - 1) / 2  # spec section 6
    blurred = gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
    smooth = affine_crop(image, square, 64, smooth=True).astype(float)
    assert np.abs(smooth - affine_crop(blurred, square, 64)).max() <= 1
    assert smooth.std() < 0.5 * affine_crop(image, square, 64).std()


@pytest.mark.parametrize("turn", [0.0, 0.7, -1.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_points_go_where_the_image_goes(turn: float, mirrored: bool) -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    spots = np.array([[150, 120], [190, 90], [120, 160]])
    for channel, (x, y) in enumerate(spots):
        cv2.circle(image, (int(x), int(y)), 4, [255.0 * (channel == c) for c in range(3)], -1)
    square = Square(np.array([150.0, 120.0]), 160.0, turn, mirrored)
    crop = affine_crop(image, square, 128).astype(float)
    rows, across = np.mgrid[:128, :128]
    for channel, point in enumerate(square.points(spots.astype(float))):
        weight = crop[..., channel] / crop[..., channel].sum()
        middle = np.array([(weight * across).sum(), (weight * rows).sum()])
        np.testing.assert_allclose((point + 1) * 64, middle, atol=1)


def test_the_two_crops_agree(photo: np.ndarray) -> None:
    smooth = cv2.GaussianBlur(photo, (0, 0), 4)
    square = Square(np.array([300.2, 250.2]), 180.0)
    off = square_crop(smooth, square, 224).astype(float) - affine_crop(smooth, square, 224)
    assert np.abs(off).max() < 20 and np.abs(off).mean() < 2, "by less than a pixel"


def test_a_frame_may_lie_outside_of_the_image(photo: np.ndarray) -> None:
    square = Square(np.array([-500.0, 100.0]), 200.0)
    assert not square_crop(photo, square, 64).any() and not affine_crop(photo, square, 64).any()


def test_narrow_crops_are_the_middle_of_square_ones(photo: np.ndarray) -> None:
    crop = affine_crop(photo, Square(np.array([300.0, 250.0]), 400.0), 256)
    np.testing.assert_array_equal(columns(crop.transpose(2, 0, 1), 192), crop[:, 32:-32].transpose(2, 0, 1))


def test_augmented_frames_vary_and_keep_to_their_bounds() -> None:
    rng = np.random.default_rng(0)
    squares = [Square(np.zeros(2), 100.0).augmented(rng) for _ in range(2000)]
    turns = np.array([f.turn for f in squares])
    sides = np.array([f.side for f in squares])
    assert 0.45 < np.mean([f.mirrored for f in squares]) < 0.55
    assert 0.35 < (turns != 0).mean() < 0.45 and np.abs(turns).max() <= np.pi / 3 + 1e-9
    assert sides.min() == 75 and sides.max() == 125 and 15 < sides.std() < 25


def test_occlusion_hides_a_part_half_of_the_time() -> None:
    hidden = []
    for seed in range(200):
        crop = np.full((64, 48, 3), 77, np.uint8)
        occlude(crop, np.random.default_rng(seed))
        hidden.append((crop != 77).any(axis=2).mean())
    touched = np.array(hidden) > 0
    assert 0.4 < touched.mean() < 0.6 and 0.02 < np.mean(hidden) < 0.2 and max(hidden) < 0.6


def test_labels_refer_to_stored_pixels(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # turn by 90 degrees
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    assert read(tmp_path / "a.jpg").shape == (24, 32, 3)
    assert image_files.read(tmp_path / "a.jpg", turn=True).shape == (32, 24, 3)


def test_images_are_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "red.jpg"
    cv2.imwrite(str(path), np.full((20, 30, 3), (0, 0, 255), np.uint8))
    assert read(path).shape == (20, 30, 3) and read(path)[0, 0, 0] > 250, "red comes first"
    with pytest.raises(InputError, match=r"blue\.jpg: there is no such file"):
        read(tmp_path / "blue.jpg")
    for damaged in (b"", b"not an image", zlib.compress(bytes(1000))):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"red\.jpg: not an image: its "):
            read(path)
        with pytest.raises(InputError, match="member 7: not an image: its "):
            decode(damaged, "member 7")
