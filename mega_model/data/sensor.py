"""Camera effects: blur, resolution, exposure, white balance, noise and JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from mega_model.data.backgrounds import GAMMA

_STEPS = 4096
_DISPLAY = (255 * (np.arange(_STEPS) / (_STEPS - 1)) ** (1 / GAMMA)).round().astype(np.uint8)

_GRAIN = np.random.default_rng(0).normal(size=(1024, 1024, 3)).astype(np.float32)
_GRAIN = 0.6 * _GRAIN + 0.8 * _GRAIN.mean(axis=2, keepdims=True)  # mostly of brightness


def display(image: np.ndarray) -> np.ndarray:
    """Linear light [H, W, 3] -> uint8."""
    return _DISPLAY[(image.clip(0, 1) * (_STEPS - 1)).astype(np.int16)]


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Linear light float32 [H, W, 3] -> uint8 RGB, as stored by a random consumer camera."""
    height, width = image.shape[:2]
    image = image * (rng.uniform(0.6, 1.5) * rng.uniform(0.88, 1.12, 3)).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 0.9) if rng.random() < 0.75 else rng.uniform(0.9, 2.5))
    if rng.random() < 0.12:
        image = cv2.filter2D(image, -1, _smear(rng.uniform(3, 11), rng.uniform(0, np.pi)))
    small = image
    if rng.random() < 0.4:  # a small person, enlarged
        scale = np.exp(rng.uniform(np.log(0.25), 0))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    rows, columns = small.shape[:2]
    top, left = rng.integers(0, len(_GRAIN) - np.array([rows, columns]))
    grain = _GRAIN[top : top + rows, left : left + columns]
    small = cv2.addWeighted(display(small).astype(np.float32), 1, grain, rng.gamma(1.5, 2.5), 0, dtype=cv2.CV_8U)
    quality = int(rng.uniform(35, 96))
    data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded just now
    stored = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    if stored.shape[:2] != (height, width):
        stored = cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR)
    return stored


def _smear(length: float, angle: float) -> np.ndarray:
    """The kernel of a motion of `length` pixels."""
    side = int(length) | 1
    kernel = np.zeros((side, side), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    middle = side // 2
    first, last = (tuple(np.rint(middle + s * reach).astype(int).tolist()) for s in (-1, 1))
    cv2.line(kernel, first, last, 1.0)
    return kernel / kernel.sum()
