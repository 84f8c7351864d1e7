"""Where people are in an image: the bundle's detector, the full frame, or a fixed box.

All are called alike: `boxes, scores = find(image_bgr)` with boxes float32 [P, 4] (x0, y0, x1, y1, pixels), scores [P].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from .bundle import Bundle
from .engines import OnnxEngine, Provider

OVERLAP = 0.5
"""Of two boxes whose intersection over union is larger, the one with the lower score is dropped."""

FindPeople = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Detector:
    """The person detector of a bundle; raises what OnnxEngine raises."""

    def __init__(self, bundle: Bundle, provider: Provider = "auto", threshold: float = 0.5) -> None:
        self._engine = OnnxEngine(bundle, "detector", provider)
        _, self._height, self._width, _ = (int(size) for size in bundle.graphs["detector"].inputs["image"].shape)
        self.threshold = threshold

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = image.shape[:2]
        scale = min(self._width / width, self._height / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        letterbox = np.zeros((1, self._height, self._width, 3), np.uint8)  # the image sits in the upper left corner
        letterbox[0, : size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        out = self._engine.run(image=letterbox)
        boxes = out["boxes"] * np.array([width / size[0], height / size[1]] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        # written so that NaN fails
        found = (out["scores"] >= self.threshold) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
        boxes, scores = boxes[found], out["scores"][found]
        corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        # the graph gives one box per peak, but a large person may have two
        best = np.array(cv2.dnn.NMSBoxes(corner_and_size.tolist(), scores.tolist(), self.threshold, OVERLAP), int)
        return boxes[best], scores[best]


def full_frame(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person who fills the image."""
    return fixed_box([0, 0, image.shape[1], image.shape[0]])(image)


def fixed_box(box: Sequence[float]) -> FindPeople:
    """One person at a known place: `box` is x0, y0, x1, y1, pixels."""
    boxes = np.asarray(box, np.float32).reshape(1, 4)
    return lambda image: (boxes.copy(), np.ones(1, np.float32))
