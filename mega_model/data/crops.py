"""Square crops of people: read an image, crop a person, rotate, mirror and occlude the crop. Numpy and OpenCV.

The square around a person has a centre and a side, in pixels of the image. Coordinates in a crop are -1 to 1 over this
square, even if only its middle columns are kept: a crop of 256 x 192 is the square's 256 x 256 pixels without 32
columns on each side. (The released code has -0.5 to 0.5 there, so its cameras have half our scale.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mega_model.core import images as image_files
from mega_model.core.errors import InputError

PIXELS_PER_SCALE = 200
"""Data sets in SPIN's layout give the square's side as `scale`, in units of this many pixels."""
ACROSS = np.array([-1, 1, 1], np.float32)
"""Times this, a point is its mirror image."""


@dataclass(frozen=True)
class Square:
    """The square of an image that a crop shows, with its rotation and mirroring."""

    centre: np.ndarray
    """[2] pixels"""
    side: float
    """pixels"""
    turn: float = 0.0
    """radians about the centre, from x to y (clockwise in the image)"""
    mirrored: bool = False
    """whether left and right are exchanged, after the rotation"""

    def augmented(self, rng: np.random.Generator) -> Square:
        """Mirrored with probability 0.5, rotated (30 degrees rms, at most 60) with 0.4, scaled by up to 1/4."""
        turn = np.clip(rng.normal(0, np.pi / 6), -np.pi / 3, np.pi / 3) if rng.random() < 0.4 else 0.0
        side = self.side * np.clip(rng.normal(1, 0.25), 0.75, 1.25)
        return replace(self, side=side, turn=float(turn), mirrored=bool(rng.random() < 0.5))

    def matrix(self, pixels: float) -> np.ndarray:
        """[2, 3], from the image to a crop whose square is `pixels` wide and begins at 0."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turn = np.array([[cos, -sin], [sin, cos]])
        if self.mirrored:
            turn[0] *= -1
        return pixels * np.column_stack([turn / self.side, 0.5 - turn @ self.centre / self.side])

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the image in the crop, -1 to 1."""
        matrix = self.matrix(2)
        return points @ matrix[:, :2].T + matrix[:, 2] - 1


def decode(data: bytes, name: Path | str) -> np.ndarray:
    """The bytes of an image file -> uint8 [H, W, 3] RGB, as stored: labels refer to these pixels, so EXIF is ignored.

    Raises InputError that names the file.
    """
    try:
        return cv2.cvtColor(image_files.decode(data, turn=False), cv2.COLOR_BGR2RGB)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def read(path: Path | str) -> np.ndarray:
    """`decode` of a file."""
    return cv2.cvtColor(image_files.read(Path(path), turn=False), cv2.COLOR_BGR2RGB)


def square_crop(image: np.ndarray, square: Square, pixels: int) -> np.ndarray:
    """The crop for evaluating the paper's models: whole pixels, black outside, resized without smoothing.

    [H, W, 3] -> [pixels, pixels, 3]. For a square that is neither turned nor mirrored. Spec section 6.
    """
    # the same rounding as in the released code, which matters where corners fall on whole pixels
    zoom, shift = pixels / square.side, pixels * (0.5 - square.centre / square.side)
    first = -shift * (1 / zoom)
    (left, top), (right, bottom) = np.trunc([first, pixels * (1 / zoom) + first]).astype(int)
    cut = np.zeros((max(1, bottom - top), max(1, right - left), 3), image.dtype)
    height, width = image.shape[:2]
    x0, x1, y0, y1 = max(0, left), min(width, right), max(0, top), min(height, bottom)
    if x0 < x1 and y0 < y1:
        cut[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return cv2.resize(cut, (pixels, pixels), interpolation=cv2.INTER_LINEAR)


def affine_crop(image: np.ndarray, square: Square, pixels: int, smooth: bool = False) -> np.ndarray:
    """The crop of any square: [H, W, 3] -> [pixels, pixels, 3], bilinear, black outside.

    `smooth` blurs images that shrink to less than 1/2.2, against aliasing, as the released demo does. Spec section 6.
    """
    shrink = square.side / pixels / 2
    if smooth and shrink > 1.1:
        sigma = (shrink - 1) / 2
        width = 2 * int(4 * sigma + 0.5) + 1
        image = cv2.GaussianBlur(image.astype(np.float32), (width, width), sigma, borderType=cv2.BORDER_REPLICATE)
    crop = cv2.warpAffine(image, square.matrix(pixels), (pixels, pixels), flags=cv2.INTER_LINEAR)
    return crop if crop.dtype == np.uint8 else np.rint(crop).astype(np.uint8)


def columns(crops: Any, width: int) -> Any:
    """The middle `width` columns of crops [..., 3, H, W]: numpy arrays or torch tensors."""
    cut = (crops.shape[-1] - width) // 2
    return crops[..., cut : cut + width]


def occlude(crop: np.ndarray, rng: np.random.Generator) -> None:
    """With probability 0.5, cover a part of the crop uint8 [H, W, 3] with a grainy rectangle or ellipse, in place."""
    if rng.random() < 0.5:
        return
    height, width = crop.shape[:2]
    middle = (rng.uniform(0, width), rng.uniform(0, height))
    size = (rng.uniform(0.1, 0.5) * height, rng.uniform(0.1, 0.5) * height)
    box = (middle, size, rng.uniform(0, 180))
    mask = np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        cv2.ellipse(mask, box, 1, thickness=-1)
    else:
        cv2.fillConvexPoly(mask, cv2.boxPoints(box).astype(np.int32), 1)
    grain = rng.normal(rng.uniform(0, 255, 3), rng.uniform(0, 40), (int(mask.sum()), 3))
    crop[mask > 0] = grain.clip(0, 255)
