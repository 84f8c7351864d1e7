"""Person boxes: those of the bundle's detector, or a given one. `user_detector` has the user's own detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mega_model.core.boxes import intersection_over_union, non_maximum_suppression, share_inside
from mega_model.core.detection import OVERLAP, THRESHOLD, Detections, checked, detections, letterbox

from .bundle import Bundle
from .engines import OnnxEngine, Provider

TILE = 0.6
"""Share of the image's width and height that each of the four tiles has. They begin at its corners, so they overlap."""
STRICTER = 0.1
"""By how much the score of a person who is found only in a tile must exceed the threshold: five runs make more false
detections than one, see docs/robot/detector.md."""
CUT = 4.0
"""Pixels: a box that ends so close to a tile's border within the image may be a part of somebody."""


class PersonDetector(Protocol):
    """A detector: the bundle's, or the user's."""

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The people in an image uint8 [H, W, 3] BGR. threshold: lowest score, 0 to 1; None takes the detector's."""
        ...


class Detector:
    """The person detector of a bundle; raises what OnnxEngine raises."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self.engine = OnnxEngine(bundle, "detector", provider)
        _, self._height, self._width, _ = (int(size) for size in bundle.graphs["detector"].inputs["image"].shape)
        self.threshold = THRESHOLD

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [P, 4] and scores [P] of the people in an image uint8 [H, W, 3] BGR, also in its tiles."""
        return find_people(self, image, self.threshold)[:2]

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The people in an image. threshold: lowest score, 0 to 1; None takes the detector's."""
        threshold = self.threshold if threshold is None else threshold
        boxed, factors = letterbox(image, self._height, self._width)
        height, width = image.shape[:2]
        return detections(self.engine.run(image=boxed), factors, width, height, threshold)


def find_people(
    detector: PersonDetector, image: np.ndarray, threshold: float, rotate: int = 0, tiles: bool = True
) -> Detections:
    """The people in an image uint8 [H, W, 3] BGR, in its pixels.

    threshold: lowest score, 0 to 1. rotate: 0, 90, 180 or 270, degrees clockwise: the detector sees the image turned by
    it. tiles: whether each of four parts of the image is searched, too, which finds smaller people and takes five runs.
    """
    image = np.ascontiguousarray(np.rot90(image, -rotate // 90))
    found = checked("detector", detector.find(image, threshold))
    if tiles:
        found = _with_small_ones(found, detector, image, threshold)
    boxes, scores, keypoints = found
    height, width = image.shape[:2]
    for _ in range(rotate // 90):  # a quarter clockwise takes x, y to height - y, x, and that height is the new width
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
        if keypoints is not None:
            x, y, score = np.moveaxis(keypoints, -1, 0)
            keypoints = np.stack([y, width - x, score], axis=-1)
        width, height = height, width
    return Detections(boxes, scores, keypoints)


def _with_small_ones(found: Detections, detector: PersonDetector, image: np.ndarray, threshold: float) -> Detections:
    """Those found in an image, and those who are found in its tiles only."""
    height, width = image.shape[:2]
    right, low = round(TILE * width), round(TILE * height)
    in_tiles = (
        _in_tile(detector, image, (x, y, x + right, y + low), threshold + STRICTER)
        for y in (0, height - low)
        for x in (0, width - right)
    )
    parts = [found, *in_tiles]
    boxes, scores = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    known = np.maximum(intersection_over_union(boxes, found.boxes), share_inside(boxes, found.boxes))
    new = np.flatnonzero(known.max(axis=1, initial=0) < OVERLAP)
    new = new[non_maximum_suppression(boxes[new], scores[new], OVERLAP)]
    kept = np.concatenate([np.arange(len(found.boxes)), new])
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    keypoints = None if found.keypoints is None else np.concatenate([part.keypoints for part in parts])[kept]
    return Detections(boxes[kept], scores[kept], keypoints)


def _in_tile(
    detector: PersonDetector, image: np.ndarray, tile: tuple[int, int, int, int], threshold: float
) -> Detections:
    """Those who are whole in a tile x0, y0, x1, y1 of an image, or cut by the image itself; in the image's pixels."""
    x0, y0, x1, y1 = tile
    height, width = image.shape[:2]
    boxes, scores, keypoints = checked("detector", detector.find(np.ascontiguousarray(image[y0:y1, x0:x1]), threshold))
    boxes = boxes + np.array([x0, y0, x0, y0], np.float32)
    inner = np.array([x0 > 0, y0 > 0, x1 < width, y1 < height])
    whole = ~((np.abs(boxes - tile) < CUT) & inner).any(axis=1)
    if keypoints is not None:
        keypoints = (keypoints + np.array([x0, y0, 0], np.float32))[whole]
    return Detections(boxes[whole], scores[whole], keypoints)


def one_person(box: Sequence[float]) -> Detections:
    """One person in a given box: x0, y0, x1, y1, pixels."""
    return Detections(np.array([box], np.float32), np.ones(1, np.float32), None)
