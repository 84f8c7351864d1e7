"""The squares to look at: upright on the body, however it lies in the image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mega_model.core.regions import keypoint_region, next_cameras, region_of_interest

STANDING = np.array(
    # nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; metres, y down, seen from the front
    "0 -.63 .03 -.66 -.03 -.66 .07 -.64 -.07 -.64 .18 -.46 -.18 -.46 .25 -.2 -.25 -.2 .27 .05 -.27 .05 "
    ".1 0 -.1 0 .11 .42 -.11 .42 .12 .82 -.12 .82".split(),
    float,
).reshape(17, 2)


def keypoints(score: float = 0.9) -> np.ndarray:
    return np.column_stack([STANDING, np.full(17, score)])


def landmarks() -> np.ndarray:
    """BlazePose's: of its 39 only the last but four counts, with the circle's top."""
    points = np.random.default_rng(0).normal(size=(39, 5))
    points[33, :2], points[34, :2] = (0.0, 0.0), (0.0, -0.92)
    return points


def turned(points: np.ndarray, angle: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Clockwise as seen, then scaled, then shifted."""
    out = points.copy()
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # y is down
    out[..., :2] = scale * points[..., :2] @ rotation.T + shift
    return out


def test_an_upright_person_has_no_roll() -> None:
    centre, side, roll = region_of_interest(landmarks())
    assert centre.tolist() == [0, 0] and side == pytest.approx(2.5 * 0.92) and roll == 0
    centre, side, roll, found = keypoint_region(keypoints())
    assert found and roll == pytest.approx(0) and centre == pytest.approx([0, 0], abs=1e-9)
    assert side / 2 > 0.95, "the crown and the soles, which are no keypoints, are inside"
    assert side == pytest.approx(2.5 * 0.92, rel=0.1), "as the landmarks say"


@pytest.mark.parametrize("angle", [-3.0, -np.pi / 2, -0.3, 0.3, np.pi / 2, 2.0])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, (0.0, 0.0)), (120.0, (300.0, 200.0)), (0.1, (-0.3, 0.4))])
def test_regions_move_with_the_person(angle: float, scale: float, shift: tuple[float, float]) -> None:
    for region, points in ((region_of_interest, landmarks()), (keypoint_region, keypoints())):
        centre, side, *_ = region(points)
        after = region(turned(points, angle, scale, shift))
        np.testing.assert_allclose(after[0], turned(centre, angle, scale, shift), atol=1e-9)
        np.testing.assert_allclose(after[1], scale * side)
        np.testing.assert_allclose(after[2], angle)


def test_roll_is_clockwise_in_the_image() -> None:
    points = landmarks()
    points[34, :2] = 1.0, 0.0  # the head is to the right
    assert region_of_interest(points)[2] == pytest.approx(np.pi / 2)


def test_the_region_holds_arms_and_legs_and_foreshortened_trunks() -> None:
    _, side, _, _ = keypoint_region(keypoints())
    raised, towards, cut = keypoints(), keypoints(), keypoints()
    raised[9:11, 1] = -1.4  # wrists above the head
    assert keypoint_region(raised)[1] > 1.3 * side
    raised[9:11, 2] = 0.05
    assert keypoint_region(raised)[1] == pytest.approx(side, rel=0.05), "but not where they were only guessed"
    cut[13:, 2] = 0.0
    assert keypoint_region(cut)[1] == pytest.approx(side, rel=0.15), "hidden legs need room as well"
    towards[:7, 1] += 0.4  # the trunk is bent towards the camera
    assert keypoint_region(towards)[1] > 0.9 * side


def test_hidden_hips_and_shoulders_give_no_region() -> None:
    some = np.stack([keypoints()] * 4)
    some[1, 11, 2] = some[2, 6, 2] = 0.1
    some[3, [0, 1, 2, 13, 16], 2] = 0.1
    assert keypoint_region(some)[3].tolist() == [True, False, False, True]
    assert keypoint_region(some, threshold=0.1)[3].all()
    assert not keypoint_region(np.zeros((17, 3)))[3]
    assert not keypoint_region(np.ones((17, 3)))[3], "all in one place"


def test_any_batch() -> None:
    many = np.stack([turned(keypoints(), angle) for angle in (0, 0.5, 1, 1.5, 2, 2.5)]).reshape(2, 3, 17, 3)
    centre, side, roll, found = keypoint_region(many)
    assert centre.shape == (2, 3, 2) and side.shape == roll.shape == found.shape == (2, 3)
    np.testing.assert_allclose(roll.ravel(), [0, 0.5, 1, 1.5, 2, 2.5], atol=1e-9)
    assert [part.shape for part in region_of_interest(np.zeros((0, 39, 5)))] == [(0, 2), (0,), (0,)]


def test_the_next_crop_looks_at_the_region_but_stays_near_the_last_one() -> None:
    size, focal, roll = 64, 80.0, 0.4
    crop_intrinsics = np.tile(np.array([[focal, 0, 32], [0, focal, 32], [0, 0, 1]]), (4, 1, 1))
    crop_from_camera = Rotation.random(4, random_state=np.random.default_rng(0)).as_matrix()
    # all in sides of the last crop, from its upper left corner
    centre, side = np.array([[0.6, 0.3], [0.5, 0.5], [-1.0, 0.5], [0.5, 3.0]]), np.array([1.0, 0.1, 9.0, 1.0])
    near, some = np.array([[0.6, 0.3], [0.5, 0.5], [-0.25, 0.5], [0.5, 1.25]]), np.array([1.0, 0.5, 1.6, 1.0])
    points = np.random.default_rng(0).normal(size=(4, 39, 5))
    points[:, 33, :2] = 2 * centre - 1
    points[:, 34, :2] = points[:, 33, :2] + 2 * side[:, None] / 2.5 * [np.sin(roll), -np.cos(roll)]
    intrinsics, from_camera = next_cameras(points, crop_intrinsics, crop_from_camera, size)
    from_crop = from_camera @ crop_from_camera.transpose(0, 2, 1)
    looked_at = from_crop[:, 2] / from_crop[:, 2, 2:]
    np.testing.assert_allclose((focal * looked_at[:, :2] + 32) / size, near)
    # off the axis, a side spans a smaller angle
    np.testing.assert_allclose(focal * np.linalg.norm(looked_at, axis=1) / intrinsics[:, 0, 0], some)
    np.testing.assert_allclose(Rotation.from_matrix(from_crop[1]).as_rotvec(), [0, 0, -roll], atol=1e-9)
