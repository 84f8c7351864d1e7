"""The filter over time: what follows at once, what glides, what starts anew, and what sigma says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from mega_model.core.topology import SMPL_JOINTS
from mega_ros.recovery import People
from mega_ros.smooth import AGILITY, FORGET, HORIZON, JUMP, START_SPEED, Motion, Smoother

VERTICES, JOINTS = 40, len(SMPL_JOINTS)
BODY = np.random.default_rng(0).normal(0, 0.3, (VERTICES, 3)).astype(np.float32)
RATE = 15.0
CERTAIN, HIDDEN = slice(0, 20), slice(20, VERTICES)
SIGMA = np.where(np.arange(VERTICES) < 20, 0.01, 0.4).astype(np.float32)


def someone(
    place: np.ndarray | tuple[float, float, float] = (0, 0, 4),
    vertices: np.ndarray = BODY,
    sigma: np.ndarray = SIGMA,
    person: int = 0,
) -> People:
    """One person; every joint is at the pelvis."""
    place = np.asarray(place, np.float32)
    return People(
        vertices=(vertices + place)[None].astype(np.float32),
        sigma=sigma[None],
        joints=np.tile(place, (1, JOINTS, 1)),
        joints_sigma=np.full((1, JOINTS), 0.05, np.float32),
        ids=np.array([person], np.uint32),
        boxes=np.zeros((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        distance=np.ones(1, np.float32),
        samples=np.zeros((1, 0, len(vertices), 3), np.float32),
    )


def together(*people: People) -> People:
    return People(*(np.concatenate([getattr(one, f.name) for one in people]) for f in fields(People)))


def stamp(seconds: float) -> int:
    return int(seconds * 1e9)


def played(
    smoother: Smoother, make: Callable[[float], People], times: np.ndarray, smoothing: float = 1.0
) -> list[People]:
    return [smoother.update(make(t), stamp(t), smoothing) for t in times]


def test_without_smoothing_nothing_changes() -> None:
    smoother = Smoother()
    smoother.update(someone((2, 0, 4)), 0, 1)
    for k in range(3):
        people = someone((k, 0, 4))
        assert smoother.update(people, stamp(k / RATE), 0) is people
    beside = someone((2.1, 0, 4))
    again = smoother.update(beside, stamp(3 / RATE), 1)
    np.testing.assert_allclose(again.vertices, beside.vertices, atol=1e-5, err_msg="the images before are forgotten")


@pytest.mark.parametrize("dt", [0, 0.1])
def test_two_images_count_as_sigma_and_the_time_between_say(dt: float) -> None:
    smoother, moved = Smoother(), BODY + np.array([0.3, 0, 0], np.float32)
    smoother.update(someone(), 0, 1)
    now = smoother.update(someone(vertices=moved), stamp(dt), 1)
    before = SIGMA**2 + START_SPEED**2 * dt**2 + AGILITY * dt**3 / 3
    share = (now.vertices[0, :, 0] - someone().vertices[0, :, 0]) / 0.3
    np.testing.assert_allclose(share, before / (before + SIGMA**2), atol=1e-4)


def test_two_predictions_are_one() -> None:
    random = np.random.default_rng(0)
    motion = Motion(5, *random.normal(size=(2, 4, 3)), *random.uniform(0.1, 1, (3, 4)))
    once, twice = motion.at(stamp(0.3) + 5), motion.at(stamp(0.1) + 5).at(stamp(0.3) + 5)
    for name, value in vars(once).items():
        np.testing.assert_allclose(getattr(twice, name), value, err_msg=name)


def test_certain_vertices_follow_at_once_and_hidden_ones_glide() -> None:
    """All vertices move by 0.3 m from one image to the next, relative to the pelvis."""
    smoother, moved = Smoother(), BODY + np.array([0.3, 0, 0], np.float32)
    played(smoother, lambda t: someone(), np.arange(45) / RATE)
    now = smoother.update(someone(vertices=moved), stamp(45 / RATE), 1)
    share = (now.vertices[0, :, 0] - someone().vertices[0, :, 0]) / 0.3
    assert share[CERTAIN].min() > 0.9 and share[HIDDEN].max() < 0.33
    less = Smoother()
    played(less, lambda t: someone(), np.arange(45) / RATE)
    quicker = less.update(someone(vertices=moved), stamp(45 / RATE), 0.1)
    assert (quicker.vertices[0, HIDDEN, 0] > now.vertices[0, HIDDEN, 0] + 0.05).all()


def test_noise_is_reduced_where_sigma_says_so() -> None:
    random = np.random.default_rng(1)

    def trembling(t: float) -> People:
        return someone(vertices=BODY + random.normal(0, 0.1, BODY.shape).astype(np.float32))

    later = np.stack(
        [people.vertices[0] - [0, 0, 4] for people in played(Smoother(), trembling, np.arange(90) / RATE)[15:]]
    )
    errors = (later - BODY).std(axis=0).mean(axis=-1)
    assert errors[CERTAIN].mean() > 0.08 and errors[HIDDEN].mean() < 0.05


@pytest.mark.parametrize("intervals", [[1 / 15], [1 / 30, 1 / 5, 1 / 10]])
def test_a_constant_velocity_has_no_lag_at_any_rate(intervals: list[float]) -> None:
    """Body and pelvis move at constant velocities; so does what is far in front."""
    times = np.cumsum([intervals[k % len(intervals)] for k in range(80)])
    way, turn = np.array([0.8, 0, 0.3]), np.array([0, 0.2, 0])
    smoother = Smoother()
    people = played(smoother, lambda t: someone(way * t + [0, 0, 4], BODY + (turn * t).astype(np.float32)), times)
    t = times[-1]
    np.testing.assert_allclose(people[-1].vertices[0], BODY + turn * t + way * t + [0, 0, 4], atol=0.02)
    np.testing.assert_allclose(people[-1].joints[0], np.tile(way * t + [0, 0, 4], (JOINTS, 1)), atol=0.02)
    ahead = smoother.predict(people[-1], stamp(t + 0.3))
    np.testing.assert_allclose(
        ahead.vertices[0] - people[-1].vertices[0], np.tile(0.3 * (way + turn), (VERTICES, 1)), atol=0.01
    )
    np.testing.assert_allclose(ahead.joints[0] - people[-1].joints[0], np.tile(0.3 * way, (JOINTS, 1)), atol=0.01)
    assert (ahead.joints_sigma > people[-1].joints_sigma).all()
    assert (ahead.sigma >= people[-1].sigma).all() and (ahead.sigma[0, CERTAIN] > people[-1].sigma[0, CERTAIN]).all()
    farthest, beyond = (smoother.predict(people[-1], stamp(t + dt)) for dt in (HORIZON, 10))
    np.testing.assert_allclose(beyond.vertices, farthest.vertices, atol=1e-5)
    np.testing.assert_array_equal(smoother.predict(people[-1], 0).vertices, people[-1].vertices)


@pytest.mark.parametrize(
    ("place", "after"),
    [
        pytest.param((3, 0, 4), 1 / RATE, id="jumped"),
        pytest.param((0.2, 0, 4), 1.1 * FORGET, id="unseen"),
        pytest.param((0.2, 0, 4), -0.1, id="time went back"),
    ],
)
def test_a_person_starts_anew(place: tuple[float, float, float], after: float) -> None:
    smoother = Smoother()
    played(smoother, lambda t: someone(), np.arange(15) / RATE)
    there = someone(place, 1.5 * BODY)
    np.testing.assert_allclose(smoother.update(there, stamp(14 / RATE + after), 1).vertices, there.vertices, atol=1e-5)


@pytest.mark.parametrize(("share", "new"), [(0.98, False), (1.02, True)])
def test_who_jumps_farther_than_three_deviations_and_a_metre_is_new(share: float, new: bool) -> None:
    smoother, sigma, dt = Smoother(), np.full((1, JOINTS), 0.5, np.float32), 0.1
    smoother.update(replace(someone(), joints_sigma=sigma), 0, 1)
    variance = 0.5**2 + START_SPEED**2 * dt**2 + AGILITY * dt**3 / 3
    there = replace(someone((share * (JUMP + 3 * (variance + 0.5**2) ** 0.5), 0, 4)), joints_sigma=sigma)
    smoothed = smoother.update(there, stamp(dt), 1)
    assert (abs(smoothed.joints - there.joints).max() < 1e-5) == new


def test_a_person_goes_on_after_a_moment_unseen_and_others_are_new() -> None:
    smoother, moved = Smoother(), BODY + np.array([0.3, 0, 0], np.float32)
    played(smoother, lambda t: someone(), np.arange(15) / RATE)
    nobody = someone()[np.zeros(0, int)]
    assert len(smoother.update(nobody, stamp(15 / RATE), 1)) == 0
    other = someone(vertices=moved, person=7)
    np.testing.assert_allclose(smoother.update(other, stamp(16 / RATE), 1).vertices, other.vertices, atol=1e-5)
    known = smoother.update(someone(vertices=moved), stamp(17 / RATE), 1)
    assert (known.vertices[0, HIDDEN, 0] < other.vertices[0, HIDDEN, 0] - 0.1).all()


def test_sigma_does_not_fall_with_the_number_of_images() -> None:
    """Errors of successive images are the same error: their mean is no better."""
    smoother = Smoother()
    people = played(smoother, lambda t: someone(), np.arange(200) / RATE)[-1]
    np.testing.assert_allclose(people.sigma[0], SIGMA, rtol=1e-4)
    np.testing.assert_allclose(people.joints_sigma[0], 0.05, rtol=1e-4)


def test_sigma_covers_what_is_not_seen_any_more() -> None:
    """A certain vertex becomes hidden: the prediction is trusted first, and less and less."""
    smoother, hidden = Smoother(), np.full(VERTICES, 0.4, np.float32)
    played(smoother, lambda t: someone(), np.arange(30) / RATE)
    sigma = [smoother.update(someone(sigma=hidden), stamp((30 + k) / RATE), 1).sigma[0, 0] for k in range(60)]
    assert 0.01 < sigma[0] < 0.1
    assert (np.diff(sigma) > -1e-3).all() and sigma[-1] == pytest.approx(0.4, abs=0.02)


def test_people_without_sigma_are_given_as_measured() -> None:
    """Neither filtered nor with the state of an earlier image; others are smoothed."""
    smoother = Smoother()
    played(smoother, lambda t: together(someone(), someone(person=7)), np.arange(5) / RATE)
    unknown = replace(someone((0.3, 0, 4)), sigma=np.full((1, VERTICES), np.nan, np.float32))
    now = smoother.update(together(unknown, someone((0.3, 0, 4), person=7)), stamp(5 / RATE), 1)
    np.testing.assert_array_equal(now.vertices[0], unknown.vertices[0])
    assert abs(now.vertices[1] - unknown.vertices[0])[:, 0].min() > 0.01


def test_a_sigma_of_zero_is_no_fault() -> None:
    smoother, certain = Smoother(), np.zeros(VERTICES, np.float32)
    for _ in range(3):
        people = smoother.update(someone(sigma=certain), stamp(1), 1)
    np.testing.assert_allclose(people.vertices, someone().vertices, atol=1e-5)
