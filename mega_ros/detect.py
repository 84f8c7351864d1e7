"""Person boxes: those of the bundle's detector, or a given one. `user_detector` has the user's own detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mega_model.core.detection import THRESHOLD, Detections, checked, detections, letterbox

from .bundle import Bundle
from .engines import OnnxEngine, Provider


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
        """Boxes float32 [P, 4] and scores [P] of the people in an image uint8 [H, W, 3] BGR."""
        return self.find(image)[:2]

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The same, with keypoints. threshold: lowest score, 0 to 1; None takes the detector's."""
        threshold = self.threshold if threshold is None else threshold
        boxed, factors = letterbox(image, self._height, self._width)
        height, width = image.shape[:2]
        return detections(self.engine.run(image=boxed), factors, width, height, threshold)


def find_turned(detector: PersonDetector, image: np.ndarray, rotate: int, threshold: float | None = None) -> Detections:
    """`detector.find` on the image turned clockwise by `rotate` degrees; in the pixels of the image as it is."""
    image = np.ascontiguousarray(np.rot90(image, -rotate // 90))
    boxes, scores, keypoints = checked("detector", detector.find(image, threshold))
    height, width = image.shape[:2]
    for _ in range(rotate // 90):  # a quarter clockwise takes x, y to height - y, x, and that height is the new width
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
        if keypoints is not None:
            x, y, score = np.moveaxis(keypoints, -1, 0)
            keypoints = np.stack([y, width - x, score], axis=-1)
        width, height = height, width
    return Detections(boxes, scores, keypoints)


def one_person(box: Sequence[float]) -> Detections:
    """One person in a given box: x0, y0, x1, y1, pixels."""
    return Detections(np.array([box], np.float32), np.ones(1, np.float32), None)
