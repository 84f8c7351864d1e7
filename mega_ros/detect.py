"""Person boxes: from the bundle's detector, from the full frame, or fixed. `user_detector` has the user's own.

All have one signature: `boxes, scores = find(image_bgr)`, boxes float32 [P, 4] (x0, y0, x1, y1, pixels), scores [P].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mega_model.core.detection import Detections, detections, letterbox

from .bundle import Bundle
from .engines import OnnxEngine, Provider

FindPeople = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class PersonDetector(Protocol):
    """A detector: the bundle's, or the user's."""

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The people in an image uint8 [H, W, 3] BGR. threshold: lowest score, 0 to 1; None takes the detector's."""
        ...


class Detector:
    """The person detector of a bundle; raises what OnnxEngine raises."""

    def __init__(self, bundle: Bundle, provider: Provider, threshold: float = 0.5) -> None:
        self.engine = OnnxEngine(bundle, "detector", provider)
        _, self._height, self._width, _ = (int(size) for size in bundle.graphs["detector"].inputs["image"].shape)
        self.threshold = threshold

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
    boxes, scores, keypoints = detector.find(image, threshold)
    height, width = image.shape[:2]
    for _ in range(rotate // 90):  # a quarter clockwise takes x, y to height - y, x, and that height is the new width
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
        if keypoints is not None:
            x, y, score = np.moveaxis(keypoints, -1, 0)
            keypoints = np.stack([y, width - x, score], axis=-1)
        width, height = height, width
    return Detections(boxes, scores, keypoints)


def full_frame(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person who fills the image."""
    return fixed_box([0, 0, image.shape[1], image.shape[0]])(image)


def fixed_box(box: Sequence[float]) -> FindPeople:
    """One person in a fixed box: x0, y0, x1, y1, pixels."""
    boxes = np.asarray(box, np.float32).reshape(1, 4)
    return lambda image: (boxes.copy(), np.ones(1, np.float32))
