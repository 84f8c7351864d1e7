"""Rotations and projections in torch: round trips and closed forms, and the same numbers as in numpy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mega_model.core.geometry import project
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix


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
