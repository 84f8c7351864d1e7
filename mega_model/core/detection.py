"""What a person detector gives, and how an image goes into one and its answer comes back.

`mega_ros.detect` runs the detector of a bundle; `mega features` runs the same graph on rendered people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike

from mega_model.core.boxes import intersection_over_union, non_maximum_suppression
from mega_model.core.errors import InputError, numbers, shown
from mega_model.core.topology import LIMBS

THRESHOLD = 0.5
"""The lowest score of a person, where nothing else is asked for."""
OVERLAP = 0.5
"""Intersection over union above which the box with the lower score is dropped."""
SMALLEST = 4.0
"""Pixels, in both directions: a box that shows less of the image holds nothing to recover a person from."""
SAME_PERSON = 0.5
"""Intersection over union from which on a given box and a detected one are the same person's."""

KEYPOINTS = [*"nose left_eye right_eye left_ear right_ear".split(), *LIMBS]
"""COCO's 17, in the order of `Detections.keypoints`. Left is the person's own."""


class Detections(NamedTuple):
    """People found in an image, best first; pixels of that image."""

    boxes: np.ndarray
    """float32 [P, 4]: x0, y0, x1, y1."""
    scores: np.ndarray
    """float32 [P], 0 to 1."""
    keypoints: np.ndarray | None
    """float32 [P, 17, 3]: x, y, score (0 to 1) of each of KEYPOINTS; None where the bundle's detector gives none.

    A keypoint may lie outside its box, or outside the image.
    """


def checked(name: str, found: Detections) -> Detections:
    """The same as float32. Raises InputError that begins with `name` if an array has another shape."""
    if not isinstance(found, tuple | list) or len(found) != 3:
        raise InputError(f"{name}: must be Detections (boxes, scores, keypoints or None), it is {shown(found)}")
    boxes, scores, keypoints = found
    people = numbers(f"{name}.scores", scores).size
    return Detections(
        _shaped(f"{name}.boxes", boxes, (people, 4)),
        _shaped(f"{name}.scores", scores, (people,)),
        None if keypoints is None else _shaped(f"{name}.keypoints", keypoints, (people, len(KEYPOINTS), 3)),
    )


def _shaped(name: str, given: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    array = numbers(name, given)
    if array.shape != shape and (array.size or 0 not in shape):  # an empty list is nobody
        raise InputError(f"{name}: must have the shape {[*shape]}, it is {[*array.shape]}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32).reshape(shape)


def in_image(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """bool [P]: boxes [P, 4] that overlap the image by `SMALLEST` in both directions. False for NaN."""
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], [width, height])
    return np.asarray((high - low >= SMALLEST).all(axis=1))


def letterbox(image: np.ndarray, height: int, width: int, grey: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """BGR image uint8 [H, W, 3] -> the detector's input, RGB [1, height, width, 3], and factors [3].

    The image sits in the upper left corner, the rest has the value `grey`. The factors turn x, y and score of the input
    into those of the image.
    """
    full_height, full_width = image.shape[:2]
    scale = min(width / full_width, height / full_height)
    size = max(1, round(full_width * scale)), max(1, round(full_height * scale))
    boxed = np.full((1, height, width, 3), grey, np.uint8)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    boxed[0, : size[1], : size[0]] = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    return boxed, np.array([full_width / size[0], full_height / size[1], 1], np.float32)


def detections(
    out: Mapping[str, np.ndarray], factors: np.ndarray, width: int, height: int, threshold: float
) -> Detections:
    """The people in a detector's outputs for an image of `width` x `height`.

    out: boxes [N, 4], scores [N] and perhaps keypoints [N, 17, 3], pixels of the letterbox. threshold: lowest score.
    """
    boxes = np.clip(out["boxes"] * factors[[0, 1, 0, 1]], 0, np.array([width, height] * 2, np.float32))
    candidates = np.flatnonzero((out["scores"] >= threshold) & in_image(boxes, width, height))
    # the graph may give two boxes for one person
    stays = candidates[non_maximum_suppression(boxes[candidates], out["scores"][candidates], OVERLAP)]
    keypoints = out["keypoints"][stays] * factors if "keypoints" in out else None
    return Detections(boxes[stays], out["scores"][stays], keypoints)


def keypoints_of(boxes: np.ndarray, found: Detections) -> np.ndarray:
    """The keypoints [P, 17, 3] of the people in boxes [P, 4]; score 0 for people whom the detector did not find."""
    assert found.keypoints is not None
    keypoints = np.zeros((len(boxes), len(KEYPOINTS), 3), np.float32)
    if len(found.boxes):
        overlaps = intersection_over_union(boxes, found.boxes)
        same = overlaps.max(axis=1) >= SAME_PERSON
        keypoints[same] = found.keypoints[overlaps.argmax(axis=1)[same]]
    return keypoints
