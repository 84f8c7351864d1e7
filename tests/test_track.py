"""Identities of boxes over time."""

import numpy as np
import pytest

from mega_ros.track import Tracker


def box(x: float, y: float = 0.0, width: float = 50.0, height: float = 100.0) -> list[float]:
    return [x, y, x + width, y + height]


def test_ids_in_order_of_appearance_and_never_again() -> None:
    tracker = Tracker(patience=2)
    assert tracker.update([box(0), box(200)]).tolist() == [0, 1]
    assert tracker.update([box(400), box(201), box(1)]).tolist() == [2, 1, 0]
    for _ in range(3):
        assert tracker.update(np.zeros((0, 4))).shape == (0,)
    assert tracker.update([box(0)]).tolist() == [3]


def test_crossing_people_keep_their_ids() -> None:
    """At the crossing the boxes cover each other; their motion tells them apart."""
    tracker = Tracker()
    for x in np.arange(0, 300, 6.0):
        assert tracker.update([box(x), box(300 - x, 10)]).tolist() == [0, 1]


@pytest.mark.parametrize("frames", [1, 10, 25])
def test_a_hidden_person_comes_back(frames: int) -> None:
    """Walking on at the same pace behind an occluder, while another person stays in view."""
    tracker = Tracker()
    for k in range(60 + frames):
        boxes = [box(500), box(2 * k)]
        hidden = 30 <= k < 30 + frames
        ids = tracker.update(boxes[: 1 if hidden else 2])
        assert ids.tolist() == ([0] if hidden else [0, 1])


def test_trembling_boxes_keep_their_ids() -> None:
    random = np.random.default_rng(0)
    tracker = Tracker()
    for _ in range(200):
        boxes = np.array([box(0), box(60), box(140)]) + random.normal(scale=4, size=(3, 4))
        assert tracker.update(boxes).tolist() == [0, 1, 2]


def test_a_fast_walker_comes_back() -> None:
    tracker = Tracker()
    for k in [*range(20), *range(28, 30)]:
        assert tracker.update([box(12 * k)]).tolist() == [0]
        if k == 19:
            for _ in range(8):
                tracker.update([])


def test_patience_counts_from_the_last_sighting() -> None:
    tracker = Tracker()
    for unseen, expected in ((0, 0), (0, 0), (30, 0), (31, 1)):
        for _ in range(unseen):
            tracker.update([])
        assert tracker.update([box(0)]).tolist() == [expected]


def test_the_least_overlap_is_enough() -> None:
    tracker = Tracker(overlap=1 / 3)
    assert [tracker.update([box(x)]).tolist() for x in (0, 25)] == [[0], [0]]
