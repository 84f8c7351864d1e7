"""The user's own detections: vision_msgs/Detection2DArray to boxes, and which image they belong to.

The messages are of rosbags' types, of which the fields are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from rosbags.typesys import get_types_from_msg

from mega_model.core.detection import Detections

from .standard import MESSAGES

WAITING = 30
"""Images, and messages of detections, that wait for their partner at most."""
MOST = 100
"""Detections of one image that are taken: each is a person to recover, which takes time and memory."""
PATIENCE = 10**9
"""Nanoseconds between the stamps of an image that waits and of the newest one: images are large."""

# those of vision_msgs 4, of Humble and later
for _name, _fields in {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "Point2D position\nfloat64 theta",
    "BoundingBox2D": "Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nDetection2D[] detections",
}.items():
    MESSAGES.register(get_types_from_msg(_fields, f"vision_msgs/msg/{_name}"))

T = TypeVar("T")


def to_detections(message: Any, classes: Sequence[str], threshold: float) -> Detections:
    """The people in a Detection2DArray: those whose best hypothesis is one of `classes`, from the score `threshold` on.

    A detection without hypotheses is a person with score 1. Boxes that are not finite or have no size are left out; the
    tilt of a box is not used.
    """
    boxes, scores = [], []
    for detection in message.detections:
        best = max((result.hypothesis for result in detection.results), key=lambda h: h.score, default=None)
        score = 1.0 if best is None else best.score
        if score < threshold or (best is not None and best.class_id not in classes):
            continue
        centre = detection.bbox.center.position
        half = detection.bbox.size_x / 2, detection.bbox.size_y / 2
        boxes.append((centre.x - half[0], centre.y - half[1], centre.x + half[0], centre.y + half[1]))
        scores.append(score)
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
        corners, confidence = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    good = np.isfinite(corners).all(axis=1) & np.isfinite(confidence) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    order = np.flatnonzero(good)[np.argsort(-confidence[good], kind="stable")]
    return Detections(corners[order], confidence[order], None)


class Pairs(Generic[T]):
    """Images and their detections, by stamp. Either may come first; a newer pair ends the waiting of older images."""

    def __init__(self) -> None:
        self._images: dict[int, T] = {}  # in the order of arrival
        self._found: dict[int, Detections] = {}
        self.alone = 0
        """Images that went without detections."""
        self.alone_since_pair = 0

    def add_image(self, stamp: int, image: T) -> tuple[T, Detections] | None:
        """The pair, if the image's detections are here."""
        self._left(stamp in self._images)  # the one that waited under this stamp
        self._images[stamp] = image
        late = [other for other in self._images if stamp - other > PATIENCE] or [*self._images][:-WAITING]
        for other in late:
            self._images.pop(other)
        self._left(len(late))
        return self._pair(stamp)

    def add_detections(self, stamp: int, found: Detections) -> tuple[T, Detections] | None:
        """The pair, if the image is here."""
        self._found[stamp] = found
        while len(self._found) > WAITING:
            self._found.pop(next(iter(self._found)))
        return self._pair(stamp)

    def _pair(self, stamp: int) -> tuple[T, Detections] | None:
        if stamp not in self._images or stamp not in self._found:
            return None
        pair = self._images.pop(stamp), self._found.pop(stamp)
        older = [other for other in self._images if other < stamp]
        for other in older:
            self._images.pop(other)
        self._left(len(older))
        self.alone_since_pair = 0
        return pair

    def _left(self, count: int) -> None:
        self.alone += count
        self.alone_since_pair += count
