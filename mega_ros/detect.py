"""Person boxes: from the bundle's detector, from the full frame, or fixed.

All have one signature: `boxes, scores = find(image_bgr)`, boxes float32 [P, 4] (x0, y0, x1, y1, pixels), scores [P].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from mega_model.core.boxes import non_maximum_suppression
from mega_model.core.topology import SMPL_JOINTS

from .bundle import Bundle
from .engines import OnnxEngine, Provider

OVERLAP = 0.5
"""Intersection over union above which the box with the lower score is dropped."""

KEYPOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
"""COCO's 17, in the order of `Detections.keypoints`. Left is the person's own."""
LIMB_JOINTS = [SMPL_JOINTS.index(name) for name in KEYPOINTS[5:]]
"""The SMPL joints of the 12 keypoints of arms and legs. SMPL's hips lie a few cm inside and below COCO's."""

FindPeople = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


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


class Detector:
    """The person detector of a bundle; raises what OnnxEngine raises."""

    def __init__(self, bundle: Bundle, provider: Provider = "auto", threshold: float = 0.5) -> None:
        self._engine = OnnxEngine(bundle, "detector", provider)
        _, self._height, self._width, _ = (int(size) for size in bundle.graphs["detector"].inputs["image"].shape)
        self.threshold = threshold

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [P, 4] and scores [P] of the people in an image uint8 [H, W, 3] BGR."""
        return self.find(image)[:2]

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        """The same, with keypoints. threshold: lowest score, 0 to 1; None takes the detector's."""
        threshold = self.threshold if threshold is None else threshold
        height, width = image.shape[:2]
        scale = min(self._width / width, self._height / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        letterbox = np.zeros((1, self._height, self._width, 3), np.uint8)  # the image sits in the upper left corner
        letterbox[0, : size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1]
        out = self._engine.run(image=letterbox)
        back = np.array([width / size[0], height / size[1], 1], np.float32)  # x, y, and scores stay
        boxes = out["boxes"] * back[[0, 1, 0, 1]]
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        candidates = np.flatnonzero((out["scores"] >= threshold) & in_image(boxes, width, height))
        # the graph may give two boxes for one person
        stays = candidates[non_maximum_suppression(boxes[candidates], out["scores"][candidates], OVERLAP)]
        keypoints = out["keypoints"][stays] * back if "keypoints" in out else None
        return Detections(boxes[stays], out["scores"][stays], keypoints)


def in_image(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """bool [P]: boxes [P, 4] that overlap the image by more than one pixel in both directions. False for NaN."""
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], [width, height])
    return np.asarray((high - low > 1).all(axis=1))


def full_frame(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One person who fills the image."""
    return fixed_box([0, 0, image.shape[1], image.shape[0]])(image)


def fixed_box(box: Sequence[float]) -> FindPeople:
    """One person in a fixed box: x0, y0, x1, y1, pixels."""
    boxes = np.asarray(box, np.float32).reshape(1, 4)
    return lambda image: (boxes.copy(), np.ones(1, np.float32))
