"""Identities over time: of boxes alone, and of people whose pelvis is known."""

from __future__ import annotations

import numpy as np
import pytest

from mega_ros.track import PATIENCE, Tracker

RATE = 15.0
FOCAL, CENTRE = 500.0, np.array([320.0, 240.0])
SIGMA = 0.05
"""Metres, of a pelvis."""


def box(x: float, y: float = 0.0, width: float = 50.0, height: float = 100.0) -> list[float]:
    return [x, y, x + width, y + height]


def at(frame: float) -> int:
    """The stamp of a frame, nanoseconds."""
    return int(frame / RATE * 1e9)


def seen(pelvis: np.ndarray) -> np.ndarray:
    """[P, 3] metres -> boxes [P, 4] of people of 0.6 x 1.7 m."""
    middle = pelvis[:, :2] / pelvis[:, 2:] * FOCAL + CENTRE
    half = np.array([0.3, 0.85]) / pelvis[:, 2:] * FOCAL
    return np.concatenate([middle - half, middle + half], axis=1)


class SimulatedCamera:
    """What a detector and the model make of people: noisy boxes, and noisier distances."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.tracker = Tracker()

    def ids(self, people: np.ndarray, frame: int) -> list[int]:
        """people: [P, 3], metres: those who are detected in this frame."""
        people = people.reshape(-1, 3)
        noise = self._random.normal(scale=[0.02, 0.02, 0.1], size=people.shape)
        boxes = seen(people) + self._random.normal(scale=3, size=(len(people), 4))
        return self.tracker.update(boxes, at(frame), people + noise, np.full(len(people), SIGMA)).tolist()


def walk(x: float, speed: float, z: float, frames: int) -> np.ndarray:
    """[frames, 3]: across the image at a constant speed, metres per second."""
    return np.stack([x + speed * np.arange(frames) / RATE, np.zeros(frames), np.full(frames, z)], axis=1)


# ------------------------------------------------------------------------------------------------------------- boxes


def test_ids_in_order_of_appearance_and_never_again() -> None:
    tracker = Tracker()
    assert tracker.update([box(0), box(200)], at(0)).tolist() == [0, 1]
    assert tracker.update([box(400), box(201), box(1)], at(1)).tolist() == [2, 1, 0]
    assert tracker.update(np.zeros((0, 4)), at(2)).shape == (0,)
    assert tracker.update([box(0)], at(1) + int(1.1 * PATIENCE * 1e9)).tolist() == [3]


def test_crossing_boxes_keep_their_ids() -> None:
    """At the crossing the boxes cover each other; their motion tells them apart."""
    tracker = Tracker()
    for k, x in enumerate(np.arange(0, 300, 6.0)):
        assert tracker.update([box(x), box(300 - x, 10)], at(k)).tolist() == [0, 1]


@pytest.mark.parametrize("frames", [1, 10, 30])
def test_a_hidden_box_comes_back(frames: int) -> None:
    """Walking on at the same pace behind an occluder, while another person stays in view."""
    tracker = Tracker()
    for k in range(60 + frames):
        boxes = [box(500), box(2 * k)]
        hidden = 30 <= k < 30 + frames
        ids = tracker.update(boxes[: 1 if hidden else 2], at(k))
        assert ids.tolist() == ([0] if hidden else [0, 1])


def test_trembling_boxes_keep_their_ids() -> None:
    random = np.random.default_rng(0)
    tracker = Tracker()
    for k in range(200):
        boxes = np.array([box(0), box(60), box(140)]) + random.normal(scale=4, size=(3, 4))
        assert tracker.update(boxes, at(k)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rates", [[30.0], [5.0], [30.0, 5.0, 10.0]])
def test_the_time_between_images_counts_not_their_number(rates: list[float]) -> None:
    """A walker, and then two seconds without anybody."""
    tracker, now = Tracker(), 0.0
    for k in range(30):
        assert tracker.update([box(40 * now)], int(now * 1e9)).tolist() == [0]
        now += 1 / rates[k % len(rates)]
    now += 2
    assert tracker.update([box(40 * now)], int(now * 1e9)).tolist() == [0]


def test_patience_counts_from_the_last_sighting() -> None:
    for unseen, expected in ((0.9 * PATIENCE, 0), (1.1 * PATIENCE, 1)):
        tracker = Tracker()
        tracker.update([box(0)], 0)
        tracker.update([box(0)], at(10))
        assert tracker.update([box(0)], at(10) + int(unseen * 1e9)).tolist() == [expected]


def test_stamps_out_of_order_harm_nothing() -> None:
    tracker = Tracker()
    for stamp in (at(0), at(5), at(3), at(3), at(6)):
        assert tracker.update([box(0), box(100)], stamp).tolist() == [0, 1]
    walker = Tracker()
    for k in range(10):
        walker.update([box(20 * k)], at(k))
    assert walker.update([box(180)], at(2)).tolist() == [0], "expected where it was last, not seven steps before"


# ------------------------------------------------------------------------------------------------------------ pelvises


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("behind", [0.5, 1.5])
def test_people_who_cross_never_swap(seed: int, behind: float) -> None:
    """Both walk, one behind the other. While boxes overlap by half, the detector finds only the front one."""
    camera, frames = SimulatedCamera(seed), 80
    front, back = walk(-2, 0.8, 4, frames), walk(2, -0.8, 4 + behind, frames)
    for k in range(frames):
        hidden = abs(seen(front[k : k + 1])[0, 0] - seen(back[k : k + 1])[0, 0]) < 40
        people = front[k : k + 1] if hidden else np.stack([back[k], front[k]][:: 1 if k % 2 else -1])
        expected = [0] if hidden else ([1, 0] if k % 2 else [0, 1])
        assert camera.ids(people, k) == expected, k


@pytest.mark.parametrize("seed", range(5))
def test_people_who_meet_and_part_again_keep_their_ids(seed: int) -> None:
    """Two come as close as their boxes overlap, and go back: what moves on in the image would swap them."""
    camera = SimulatedCamera(seed)
    for k in range(90):
        x = 1.2 * abs(np.cos(np.pi * k / 90)) + 0.05
        assert camera.ids(np.array([[-x, 0, 4], [x, 0, 5.5]]), k) == [0, 1], k


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stops", [False, True])
def test_two_seconds_behind_a_wall(seed: int, stops: bool) -> None:
    """A walker goes on, or stops behind the wall, where no box overlaps with what was expected. Another walks by."""
    camera, hidden = SimulatedCamera(seed), int(2 * RATE)
    walker, other = walk(-2, 1.2, 5, 90), walk(2, -0.5, 3.5, 90)
    if stops:
        walker[30:] = walker[30]
    for k in range(90):
        people = other[k : k + 1] if 30 <= k < 30 + hidden else np.stack([walker[k], other[k]])
        assert camera.ids(people, k) == ([1] if len(people) == 1 else [0, 1]), k


def test_who_was_hidden_does_not_take_the_box_of_somebody_seen() -> None:
    """The one in front stands where the hidden one is expected."""
    camera = SimulatedCamera()
    for k in range(60):
        people = np.array([[0.0, 0, 4], [0.1, 0, 4.8]])
        assert camera.ids(people[: 2 if k < 10 else 1], k) == [0, 1][: 2 if k < 10 else 1]


def test_somebody_elsewhere_is_new() -> None:
    camera = SimulatedCamera()
    for k in range(20):
        assert camera.ids(np.array([[-2.0, 0, 4]]), k) == [0]
    assert camera.ids(np.array([[2.0, 0, 4]]), 21) == [1]


def test_an_unknown_pelvis_leaves_the_boxes() -> None:
    """Meshes that are not finite do not end tracks, nor the memory of where the pelvis was."""
    tracker = Tracker()
    for k in range(40):
        places = np.full((1, 3), np.nan) if k % 3 == 0 else np.array([[0.0, 0, 4]])
        assert tracker.update([box(0)], at(k), places, np.array([np.nan])).tolist() == [0]


@pytest.mark.parametrize(
    ("distance", "sigma", "off", "expected"),
    [
        (4, 0.0, 0.4, 0),
        (4, 0.0, 0.8, 1),
        (4, 0.5, 0.8, 0),
        (4, np.nan, 0.3, 0),
        (20, 0.0, 0.8, 0),
        (20, 0.0, 4.0, 1),
    ],
)
@pytest.mark.parametrize("beside", [(9.0, 0.0, 60.0), (np.nan,) * 3])
def test_how_far_a_pelvis_may_be_off_follows_from_its_sigma_and_distance(
    distance: float, sigma: float, off: float, expected: int, beside: tuple[float, float, float]
) -> None:
    """The box does not overlap with the last one. Somebody else, far away or without a mesh, changes nothing."""
    tracker = Tracker()
    for k in range(10):
        places = [[0.0, 0, distance], beside]
        assert tracker.update([box(0), box(900)], at(k), places, np.array([sigma, 0])).tolist() == [0, 1]
    ids = tracker.update([box(900), box(300)], at(10), [beside, [off, 0, distance]], np.array([0, sigma]))
    assert ids.tolist() == [1, 2 * expected]


def test_who_is_hidden_does_not_run_off() -> None:
    """Two seconds later, 5 m from where the person was."""
    tracker = Tracker()
    for k in range(20):
        tracker.update([box(0)], at(k), [[0.0, 0, 4]], [SIGMA])
    assert tracker.update([box(400)], at(49), [[5.0, 0, 4]], [SIGMA]).tolist() == [1]


def test_without_a_pelvis_a_box_elsewhere_is_somebody_new() -> None:
    tracker = Tracker()
    assert [tracker.update([box(x)], at(k)).tolist() for k, x in enumerate((0, 400))] == [[0], [1]]
    assert tracker.update([box(445)], at(2)).tolist() == [2], "beside the last one, with a little overlap"


@pytest.mark.parametrize("off", [0.0, 0.2])
@pytest.mark.parametrize("other", [(np.nan,) * 3, (0.9, 0.0, 4.0)], ids=["unknown", "elsewhere"])
def test_the_place_counts_more_than_the_overlap(off: float, other: tuple[float, float, float]) -> None:
    """Of two boxes, one lies better, and the other one's pelvis is where it was expected."""
    tracker = Tracker()
    for k in range(10):
        tracker.update([box(0)], at(k), [[0.0, 0, 4]], [SIGMA])
    assert tracker.update([box(4), box(17)], at(10), [other, [off, 0, 4]], [SIGMA, SIGMA]).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_ids_stay_while_the_camera_turns(seed: int) -> None:
    """It stands still for a second and then turns by 0.5 rad/s, with five images per second; one is near, one far."""
    camera = SimulatedCamera(seed)
    for k in range(15):
        angles = np.array([0.4, 0.1]) - 0.1 * max(k - 5, 0)
        people = np.array([[3.0], [8.0]]) * np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1)
        assert camera.ids(people, 3 * k) == [0, 1]
