"""Overlap of boxes against closed forms, and which of overlapping boxes stay."""

import cv2
import numpy as np
import pytest

from mega_model.core.boxes import intersection_over_union, non_maximum_suppression


def box(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def test_overlap_against_closed_forms() -> None:
    a = np.array([box(0, 0, 10)])
    b = np.array([box(0, 0, 10), box(5, 0, 10), box(5, 5, 10), box(10, 0, 10), box(2, 2, 5)])
    np.testing.assert_allclose(intersection_over_union(a, b), [[1, 1 / 3, 1 / 7, 0, 1 / 4]])
    np.testing.assert_allclose(intersection_over_union(b, a), intersection_over_union(a, b).T)
    assert intersection_over_union(a[:0], b).shape == (0, 5)


def test_of_boxes_that_overlap_the_best_stays() -> None:
    boxes = np.array([box(0, 0, 10), box(1, 0, 10), box(100, 0, 10), box(2, 0, 10)])
    scores = np.array([0.7, 0.9, 0.5, 0.8])
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [1, 2]
    assert non_maximum_suppression(boxes, scores, 0.9).tolist() == [1, 3, 0, 2]


def test_a_dropped_box_drops_no_other() -> None:
    boxes = np.array([box(0, 0, 10), box(3, 0, 10), box(6, 0, 10)])
    assert non_maximum_suppression(boxes, np.array([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_nobody() -> None:
    assert non_maximum_suppression(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_opencv(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner, size, scores = rng.uniform(0, 50, (60, 2)), rng.uniform(5, 30, (60, 2)), rng.uniform(0.1, 1, 60)
    wanted = cv2.dnn.NMSBoxes(np.concatenate([corner, size], axis=1).tolist(), scores.tolist(), 0.0, 0.4)
    found = non_maximum_suppression(np.concatenate([corner, corner + size], axis=1), scores, 0.4)
    assert found.tolist() == [*wanted] and len(found) < 60
