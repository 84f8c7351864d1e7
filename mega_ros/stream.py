"""One camera over time, without ROS: images in, people with track ids out.

Several cameras in one process have one `Stream` each and share one `Recovery`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from mega_model.core.cameras import Camera
from mega_model.core.detection import SMALLEST, THRESHOLD, Detections, checked, in_image
from mega_model.core.errors import InputError, numbers, shown
from mega_model.core.geometry import intrinsics_from_fov

from .detect import PersonDetector, find_people, one_person
from .recovery import (
    FARTHEST,
    FOV_DEFAULT,
    PELVIS,
    Observation,
    People,
    Recovery,
    checked_image,
    in_view,
    must_be_rotation,
)
from .samples import allotted
from .smooth import Smoother
from .track import Tracker

BoxSource = Literal["detector", "detections", "full_frame", "fixed"]

FOV_BOUNDS = 0.01, 3.0
"""Radians: what may be assumed."""
RESTART = 10**9
"""Nanoseconds. If a stamp is earlier than the last one by more than this, a new recording has started."""


@dataclass(frozen=True)
class StreamSettings:
    """Settings that may change from image to image. Raises InputError that names the setting."""

    boxes: BoxSource = "detector"
    """Source of the boxes: the stream's detector, what `process` is given with each image, one box that fills the
    image, or `fixed_box`."""
    fixed_box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """x0, y0, x1, y1 in pixels."""
    score_threshold: float = THRESHOLD
    """Detections with a lower score are left out, 0 to 1."""
    tiles: bool = False
    """Whether the detector also searches four overlapping tiles of the image, for smaller people: five runs."""
    max_people: int = 0
    """If more people are found, those with the lowest scores are left out; 0: nobody is."""
    samples: int | Literal["auto"] | None = None
    """Samples per person, see `Recovery.run`; None takes the bundle's number, "auto" as many as fit `period`."""
    period: float = np.nan
    """Seconds that there are for an image, where `samples` is "auto"; NaN: not known, so nobody gets more than the
    bundle's number."""
    keep_samples: bool = False
    """Whether people have their samples, see `Recovery.run`."""
    seed: int = 0
    """The samples' noise depends on seed and id only. A track keeps its noise, so its sigma does not flicker."""
    fov: float = float(FOV_DEFAULT)
    """Field of view over the larger image side, radians, 0.01 to 3: assumed while no intrinsics are known."""
    rotate: int = 0
    """0, 90, 180 or 270, degrees, clockwise, by which the image must be turned so that people are upright. Boxes and
    people stay in the pixels and in the camera frame of the image as it is."""
    smoothing: float = 0.0
    """0 to 1: 0 gives people as measured, 1 smooths them over time by their sigma, see `Smoother.update`."""

    def __post_init__(self) -> None:
        """Samples and seed are checked by `Recovery`, with each image."""
        if self.boxes not in get_args(BoxSource):
            raise InputError(f"boxes: must be one of {', '.join(get_args(BoxSource))}, it is {shown(self.boxes)}")
        if self.boxes == "fixed" and numbers("fixed_box", self.fixed_box).shape != (4,):
            raise InputError(f"fixed_box: must be x0, y0, x1, y1, it is {shown(self.fixed_box)}")
        if not isinstance(self.max_people, Integral) or self.max_people < 0:
            raise InputError(f"max_people: must be a whole number from 0 on, it is {shown(self.max_people)}")
        for name, (low, high) in {"score_threshold": (0, 1), "smoothing": (0, 1), "fov": FOV_BOUNDS}.items():
            value = getattr(self, name)
            if not isinstance(value, Real) or not low <= value <= high:
                raise InputError(f"{name}: must be a number from {low} to {high}, it is {shown(value)}")
        must_be_rotation(self.rotate)


@dataclass(frozen=True)
class Seen:
    """What one image shows, whatever came before it."""

    observation: Observation
    camera: Camera
    """Given or assumed."""
    assumed: str
    """Why the intrinsics are assumed; empty if they were given."""
    boxes: int
    """Their number, with those that are left out."""
    notes: list[str]
    """Why some are left out."""


class Stream:
    """The state of one camera. Only one thread may use it at a time. It does not travel between processes."""

    def __init__(
        self,
        recovery: Recovery,
        settings: StreamSettings = StreamSettings(),
        detector: PersonDetector | None = None,
        next_id: int = 0,
    ) -> None:
        """detector: by default the bundle's. next_id: of the first new person.

        Raises InputError where the settings ask for a detector and there is none.
        """
        self._recovery = recovery
        self._detector = recovery.detector if detector is None else detector
        self.settings = settings
        self._tracker = Tracker(next_id)
        self._smoother = Smoother()
        self._stamp = 0
        self._busy = np.inf
        """Seconds that the last image took beside its samples."""
        self._sample_seconds = np.nan
        """What a sample of one person took in the last image with `samples` auto; NaN before it."""
        self.camera = Camera(np.eye(3))
        """Of the last image, given or assumed."""
        self.assumed = ""
        """Why the intrinsics of the last image are assumed; empty if they were given."""
        self.samples = np.zeros(0, int)
        """int [P]: how many samples each person in the last image got for sigma; 0 for bundles with an error head."""
        self.notes: list[str] = []
        """Why there are fewer people than boxes in the last image; empty where there are not."""

    @property
    def next_id(self) -> int:
        """Of the next new person: no id is given to two people."""
        return self._tracker.next_id

    @property
    def settings(self) -> StreamSettings:
        """Changes apply from the next image on. The setter raises what the constructor raises."""
        return self._settings

    @settings.setter
    def settings(self, settings: StreamSettings) -> None:
        if settings.boxes == "detector" and self._detector is None:
            name = self._recovery.bundle.name
            raise InputError(f"boxes: the bundle {name} has no detector; set boxes to full_frame or fixed")
        self._settings = settings

    def process(
        self,
        image: np.ndarray,
        camera: Camera | ArrayLike | None,
        stamp: int,
        unknown: str = "no intrinsics are given",
        found: Detections | None = None,
    ) -> People:
        """The people in the next image, with the ids of their tracks.

        image: uint8 [H, W, 3] BGR. camera: of this image, or its intrinsics [3, 3] in pixels if it has no distortion;
        None assumes the settings' field of view.
        stamp: time of the image, whole nanoseconds of 64 bits on any clock. If it goes back by more than a second, a
        new recording has started, and all people are new.
        unknown: the reason why there are no intrinsics, for `assumed`.
        found: the people in this image, where the settings take the boxes from `detections`.
        Raises InputError that names the argument, as `Recovery.run` does.
        """
        settings, start, sampled = self._settings, time.perf_counter(), self._recovery.seconds()["sampling"]
        seen = self.observe(image, camera, unknown, found)
        first_new = self.next_id
        ids = self.identify(seen, stamp)
        new = ids >= first_new
        bundle, samples = self._recovery.bundle, settings.samples
        if samples is None:
            samples = bundle.sampling.samples
        counts = self._affordable(seen.observation.people, new) if samples == "auto" else samples
        people = self._recovery.identified(seen.observation, ids, counts, settings.seed, settings.keep_samples)
        sampling = self._recovery.seconds()["sampling"] - sampled
        predicted = "sigma" in bundle.graphs["deterministic"].outputs
        self.samples = np.broadcast_to(0 if predicted else counts, len(ids))
        if settings.samples == "auto" and sampling:
            self._sample_seconds = sampling / self.samples.sum()
        people = self.finish(seen, people, stamp)
        self._busy = time.perf_counter() - start - sampling
        return people

    def observe(
        self,
        image: np.ndarray,
        camera: Camera | ArrayLike | None,
        unknown: str = "no intrinsics are given",
        found: Detections | None = None,
    ) -> Seen:
        """The part of `process` that does not depend on other images, and takes nearly all of its time."""
        image = checked_image(image)
        height, width = image.shape[:2]
        assumed = unknown if camera is None else ""
        if camera is None:
            camera = intrinsics_from_fov(width, height, self._settings.fov)
        camera = Camera.of(camera)
        boxes, scores, keypoints = self._find(image, found)
        shown = in_image(boxes, width, height)
        inside = shown & in_view(boxes, camera)
        kept = _best(scores, inside, self._settings.max_people)
        observation = self._recovery.observe(
            image,
            camera,
            boxes[kept],
            None if keypoints is None else keypoints[kept],
            self._settings.rotate,
            self._settings.tiles,
        )
        people = replace(observation.people, scores=scores[kept])
        reasons = {
            f"the image shows less than {SMALLEST:g} x {SMALLEST:g} pixels of them": (~shown).sum(),
            "the lens shows nothing there, or 90 degrees or more off its axis": (shown & ~inside).sum(),
            f"max_people is {self._settings.max_people}, and the others are likelier": (inside & ~kept).sum(),
        }
        notes = [_note(n, len(boxes), why) for why, n in reasons.items() if n]
        return Seen(replace(observation, people=people), camera, assumed, len(boxes), notes)

    def identify(self, seen: Seen, stamp: int) -> np.ndarray:
        """The ids of the people in the next image, int64 [P]."""
        if not isinstance(stamp, Integral) or not -(2**63) <= stamp < 2**63:
            raise InputError(f"stamp: must be whole nanoseconds of 64 bits, it is {shown(stamp)}")
        stamp = int(stamp)  # numpy's may have no sign
        if stamp < self._stamp - RESTART:
            self._tracker = Tracker(self.next_id)  # the smoother sees by itself that time goes back
        self._stamp = stamp
        people = seen.observation.people
        return self._tracker.update(people.boxes, stamp, people.joints[:, PELVIS], people.joints_sigma[:, PELVIS])

    def finish(self, seen: Seen, people: People, stamp: int) -> People:
        """`people`, those of the next image with their ids, smoothed; also sets what this stream says about it."""
        self.camera, self.assumed, self.notes = seen.camera, seen.assumed, [*seen.notes]
        if lost := len(seen.observation.people) - len(people):
            why = f"their meshes are not finite, or not in front of the camera and nearer than {FARTHEST:g} m"
            self.notes.append(_note(lost, seen.boxes, f"{why}; check camera_info"))
        return self._smoother.update(people, stamp, self._settings.smoothing)

    def predict(self, people: People, stamp: int) -> People:
        """The people of the last image at a later time, nanoseconds, see `Smoother.predict`. It needs `smoothing`."""
        return self._smoother.predict(people, stamp)

    def _affordable(self, people: People, new: np.ndarray) -> np.ndarray:
        """The number of samples of each person, int [P], if this image takes as long as the last one did.

        new: bool [P], who was not in earlier images.
        """
        affordable = (self._settings.period - self._busy) / self._sample_seconds
        least = max(2, self._recovery.bundle.sampling.samples)
        distance = np.linalg.norm(people.joints[:, PELVIS], axis=1)
        return allotted(distance, new, least, affordable if np.isfinite(affordable) else 0)

    def _find(self, image: np.ndarray, found: Detections | None) -> Detections:
        if self._settings.boxes == "detections":
            if found is None:
                raise InputError("found: boxes is detections, so those of the image must be given")
            return checked("found", found)
        if self._settings.boxes == "full_frame":
            return one_person([0, 0, image.shape[1], image.shape[0]])
        if self._settings.boxes == "fixed":
            return one_person(self._settings.fixed_box)
        assert self._detector is not None  # the settings were checked
        settings = self._settings
        return find_people(self._detector, image, settings.score_threshold, settings.rotate, settings.tiles)


def warm_up(recovery: Recovery, detector: PersonDetector | None = None) -> None:
    """Processes a grey image, so that the first real one does not wait for the first run of a graph, and for scipy."""
    image = np.full((480, 640, 3), 127, np.uint8)
    if finder := detector or recovery.detector:
        finder.find(image)
    Stream(recovery, StreamSettings(boxes="full_frame")).process(image, None, 0)


def _note(count: int, boxes: int, why: str) -> str:
    return f"{count} of {boxes} boxes are left out: {why}"


def _best(scores: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """bool [N]: of the allowed ones, the `count` with the highest scores; all of them if it is 0."""
    if not count:
        return allowed
    order = np.argsort(-scores, kind="stable")
    best = np.zeros_like(allowed)
    best[order[allowed[order]][:count]] = True
    return best
