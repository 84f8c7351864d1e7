"""Steady people: a constant-velocity Kalman filter per person, whose measurement noise is the calibrated sigma.

A vertex with a small sigma follows its measurements at once, one with a large sigma follows slowly. The pelvis is
filtered in the camera frame and all other points relative to it, so a hidden hand moves with its person.

Sigma stays what it was calibrated for: the expected error. The errors of successive images are not independent, because
the images show the same person to the same model, so sigma must not fall with their number. The sigma of a smoothed
point is the mean of the measurements' sigma, with the weights that the measurements have in the point. It is never less
than the filter's own standard deviation, which grows with the time over which it predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from .recovery import People

AGILITY = 3.0
"""Spectral density of the acceleration of a point of the body, m²/s³: how quickly its velocity may change. Of 1, 3, 10,
30 and 100 the one with the least acceleration error on the embedded clip whose lag is less than a frame of 15 Hz."""
START_SPEED = 1.0
"""Standard deviation of the velocity of a new person's points, m/s."""
FORGET = 1.0
"""Seconds: who was not seen for longer is new."""
JUMP = 1.0
"""Metres: a person whose pelvis is this much farther from the expected place than three standard deviations is new."""
LEAST = 1e-4
"""Metres: the least noise. Without any, prediction and measurement would have no weights."""
HORIZON = 0.5
"""Seconds: the farthest that people are predicted."""


@dataclass
class Motion:
    """Constant-velocity Kalman filters of N points with isotropic noise. Arrays [N, 3] and [N]."""

    stamp: int
    """Nanoseconds: the time of the state."""
    position: np.ndarray
    velocity: np.ndarray
    variance: np.ndarray
    """Of the position, per axis. Metres squared; the next two with the velocity in metres per second."""
    covariance: np.ndarray
    variance_of_velocity: np.ndarray

    @classmethod
    def start(cls, stamp: int, position: np.ndarray, sigma: np.ndarray) -> Motion:
        """At rest, as far as is known. position [N, 3], sigma [N]: metres."""
        zero = np.zeros(len(position))
        return cls(stamp, position, np.zeros_like(position), sigma**2, zero, zero + START_SPEED**2)

    def __getitem__(self, index: np.ndarray) -> Motion:
        """A selection of the points: a mask [N], or indices."""
        return Motion(self.stamp, *(getattr(self, f.name)[index] for f in fields(self)[1:]))

    def joined(self, other: Motion) -> Motion:
        """These points, then those of another with the same stamp."""
        pairs = ((getattr(of, f.name) for of in (self, other)) for f in fields(self)[1:])
        return Motion(self.stamp, *(np.concatenate(list(pair)) for pair in pairs))

    def at(self, stamp: int, agility: float = AGILITY) -> Motion:
        """The prediction for a time not before `self.stamp`."""
        dt = (stamp - self.stamp) / 1e9
        of_velocity = self.variance_of_velocity + agility * dt
        covariance = self.covariance + self.variance_of_velocity * dt + agility * dt**2 / 2
        variance = self.variance + 2 * self.covariance * dt + self.variance_of_velocity * dt**2 + agility * dt**3 / 3
        return Motion(stamp, self.position + self.velocity * dt, self.velocity, variance, covariance, of_velocity)

    def corrected(self, position: np.ndarray, sigma: np.ndarray) -> tuple[Motion, np.ndarray]:
        """The state after a measurement [N, 3] with sigma [N] at this time; and its weight [N] in the position."""
        total = self.variance + sigma**2
        weight, weight_of_velocity = self.variance / total, self.covariance / total
        off = position - self.position
        state = Motion(
            self.stamp,
            self.position + weight[:, None] * off,
            self.velocity + weight_of_velocity[:, None] * off,
            self.variance * (1 - weight),
            self.covariance * (1 - weight),
            self.variance_of_velocity - weight_of_velocity * self.covariance,
        )
        return state, weight


@dataclass
class _Person:
    motion: Motion
    """Of the pelvis, then of all joints and vertices relative to it."""
    sigma: np.ndarray
    """[J + V]: the mean sigma of the measurements, weighted."""


class Smoother:
    """Smooths the people of one camera, one image after the other."""

    def __init__(self) -> None:
        self._people: dict[int, _Person] = {}

    def update(self, people: People, stamp: int, smoothing: float) -> People:
        """The people of the next image, smoothed.

        stamp: nanoseconds; intervals may vary. smoothing: 0 to 1. Sigma times this is the filter's measurement noise:
        1 takes sigma as it is, less follows more quickly, and 0 changes nothing.
        Whoever is new, was unseen for `FORGET`, has jumped, or has no finite sigma is given as measured. So is
        everybody if the stamp goes back.
        """
        if smoothing == 0:
            self._people = {}
            return people
        old, self._people = self._people, {}
        for k, person in enumerate(people.ids.tolist()):
            before = old.pop(person, None)
            points, sigma = _points(people, k)
            if np.isfinite(sigma).all():
                noise = np.concatenate([sigma[:1], sigma]) * smoothing
                noise = np.maximum(noise, LEAST)
                self._people[person] = _next(before, stamp, points, sigma, noise)
        self._people |= {person: state for person, state in old.items() if _is_recent(state.motion, stamp)}
        return self.predict(people, stamp)

    def predict(self, people: People, stamp: int) -> People:
        """The people of the last image at a later time, nanoseconds, by their velocities; at most `HORIZON` later.

        Who was not smoothed stays as measured.
        """
        vertices, sigma, joints, joints_sigma = (
            array.copy() for array in (people.vertices, people.sigma, people.joints, people.joints_sigma)
        )
        count = joints.shape[1]
        for k, person in enumerate(people.ids.tolist()):
            if person not in self._people:
                continue
            known = self._people[person]
            latest = known.motion.stamp
            motion = known.motion.at(min(max(stamp, latest), latest + int(HORIZON * 1e9)))
            points = motion.position[1:] + motion.position[0]
            expected = np.maximum(known.sigma, np.sqrt(motion.variance[1:]))
            joints[k], vertices[k] = points[:count], points[count:]
            joints_sigma[k], sigma[k] = expected[:count], expected[count:]
        return replace(people, vertices=vertices, sigma=sigma, joints=joints, joints_sigma=joints_sigma)


def _points(people: People, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Person number k: the pelvis [3], then joints and vertices relative to it [1 + J + V, 3]; sigma [J + V]."""
    points = np.concatenate([people.joints[k], people.vertices[k]]).astype(np.float64)
    pelvis = points[:1]
    sigma = np.concatenate([people.joints_sigma[k], people.sigma[k]]).astype(np.float64)
    return np.concatenate([pelvis, points - pelvis]), sigma


def _is_recent(motion: Motion, stamp: int) -> bool:
    return 0 <= stamp - motion.stamp < FORGET * 1e9


def _next(before: _Person | None, stamp: int, points: np.ndarray, sigma: np.ndarray, noise: np.ndarray) -> _Person:
    """A person after a measurement; a new one where it does not continue `before`."""
    if before is not None and _is_recent(before.motion, stamp):
        expected = before.motion.at(stamp)
        off = np.linalg.norm(points[0] - expected.position[0])
        if off < JUMP + 3 * np.sqrt(expected.variance[0] + noise[0] ** 2):
            motion, weight = expected.corrected(points, noise)
            return _Person(motion, before.sigma + weight[1:] * (sigma - before.sigma))
    return _Person(Motion.start(stamp, points, noise), sigma)
