"""Rotations and projections in torch: round trips and closed forms, and the same numbers as in numpy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mega_model import geometry
from mega_model.core.geometry import crop_images, project, square_cameras
from mega_model.geometry import crop_batch, matrix_to_rot6d, project_weak, rot6d_to_matrix

BEHIND = np.diag([-1.0, 1, -1])
"""[3, 3]: turns a camera around."""


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_rot6d_round_trip(seed: int) -> None:
    matrix = torch.from_numpy(Rotation.random(4, random_state=np.random.default_rng(seed)).as_matrix())
    rot6d = matrix_to_rot6d(matrix)
    torch.testing.assert_close(rot6d, torch.cat([matrix[:, 0], matrix[:, 1]], dim=1))
    torch.testing.assert_close(rot6d_to_matrix(rot6d), matrix)
    torch.testing.assert_close(rot6d_to_matrix(3 * rot6d), matrix)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_rot6d_always_gives_finite_numbers(values: list[float]) -> None:
    assert rot6d_to_matrix(torch.tensor(values)).isfinite().all()


def test_weak_perspective() -> None:
    points = torch.tensor([[0.0, 0, 2], [1, -1, 4]])
    weak = project_weak(points, torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(weak, torch.tensor([[0.5, 0], [1, -0.5]]))


def test_perspective_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    points, focal = rng.uniform([-1, -1, 2], [1, 1, 4], (3, 9, 3)), rng.uniform(300, 500, (3, 2))
    intrinsics = np.zeros((3, 3, 3)) + [[0, 0, 320], [0, 0, 240], [0, 0, 1]]
    intrinsics[:, [0, 1], [0, 1]] = focal
    pixels = project(torch.from_numpy(points), torch.from_numpy(intrinsics))
    np.testing.assert_allclose(pixels, project(points, intrinsics))
    np.testing.assert_allclose(pixels, focal[:, None] * points[..., :2] / points[..., 2:] + [320, 240])


@pytest.mark.parametrize("side", [30.0, 60.0, 150.0])
def test_crops_are_those_of_numpy(side: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of smooth images, rolled, near the edges, and wider than the image, which leaves black around it."""
    monkeypatch.setattr(geometry, "AT_ONCE", 2)
    rng = np.random.default_rng(0)
    images = np.stack([cv2.resize(rng.integers(256, size=(12, 15, 3), dtype=np.uint8), (100, 80)) for _ in range(3)])
    intrinsics = np.tile([[90.0, 0, 50], [0, 90, 40], [0, 0, 1]], (3, 1, 1))
    centre, roll = np.array([[50.0, 40], [5, 70], [95, 20]]), np.array([0, 0.6, -2.5])
    cameras = square_cameras(centre, np.full(3, side), roll, intrinsics, 96)
    found = crop_batch(torch.from_numpy(images), intrinsics, *cameras, 96).permute(0, 2, 3, 1).numpy()
    for image, K, crop, turn, got in zip(images, intrinsics, *cameras, found):
        wanted = crop_images(image, K, crop[None], turn[None], 96)[0].astype(int)
        # OpenCV interpolates in steps of 1/32 pixel
        off = got - wanted
        assert abs(off.mean()) < 0.2 and np.abs(off).mean() < 1 and np.abs(off).max() < 40
    assert (found[1] == 0).all(axis=-1).any(), "beyond the edge"
    assert not crop_batch(torch.from_numpy(images), intrinsics, cameras[0], cameras[1] @ BEHIND, 96).any()
    cameras[0][:, 0, 0] *= -1
    mirrored = crop_batch(torch.from_numpy(images), intrinsics, *cameras, 96).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(mirrored[:, :, ::-1], found.astype(float), atol=1)  # they are rounded
