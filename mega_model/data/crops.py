"""Square crops of people: read a picture, cut a person out, turn and mirror it, hide a part of it. Numpy and OpenCV.

A person is framed by the centre and the side of a square, in pixels of the picture. Points in a crop run from -1 to 1
over that square, also where only its middle columns are kept: a crop of 256 x 192 shows the square's 256 x 256 pixels
without 32 columns on each side. (The released code counts -0.5 to 0.5 there, so its cameras have half our scale.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from mega_model.core.errors import InputError

PIXELS_PER_SCALE = 200
"""Data sets in SPIN's layout give the square's side as `scale`, in this many pixels."""


@dataclass(frozen=True)
class Frame:
    """The square of a picture that a crop shows, and how."""

    centre: np.ndarray
    """[2] pixels"""
    side: float
    """pixels"""
    turn: float = 0.0
    """radians, from x to y (clockwise as one sees it), about the centre"""
    mirrored: bool = False
    """left and right exchanged, after the turn"""

    def augmented(self, rng: np.random.Generator) -> Frame:
        """Mirrored every second time, turned (30 degrees rms, at most 60) two times in five, scaled by up to 1/4."""
        turn = np.clip(rng.normal(0, np.pi / 6), -np.pi / 3, np.pi / 3) if rng.random() < 0.4 else 0.0
        side = self.side * np.clip(rng.normal(1, 0.25), 0.75, 1.25)
        return replace(self, side=side, turn=float(turn), mirrored=bool(rng.random() < 0.5))

    def matrix(self, pixels: float) -> np.ndarray:
        """[2, 3], from the picture to a crop whose square is `pixels` wide and begins at 0."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turn = np.array([[cos, -sin], [sin, cos]])
        if self.mirrored:
            turn[0] *= -1
        return pixels * np.column_stack([turn / self.side, 0.5 - turn @ self.centre / self.side])

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] of the picture in the crop, -1 to 1."""
        matrix = self.matrix(2)
        return points @ matrix[:, :2].T + matrix[:, 2] - 1


def decode(data: np.ndarray | bytes, name: Path | str) -> np.ndarray:
    """The bytes of a picture file -> uint8 [H, W, 3] RGB. InputError that names it if they are no picture."""
    buffer = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None
    if image is None:
        raise InputError(f"{name}: not a readable picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read(path: Path | str) -> np.ndarray:
    """uint8 [H, W, 3] RGB. InputError that names the file."""
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: there is no such picture") from None
    return decode(data, path)


def square_crop(image: np.ndarray, frame: Frame, pixels: int) -> np.ndarray:
    """The crop on which the paper's models are evaluated: whole pixels, black outside, resized without smoothing.

    [H, W, 3] -> [pixels, pixels, 3]. For a frame that is neither turned nor mirrored. Spec section 6.
    """
    # released models saw the corners that these lines round to, where they fall on whole pixels
    zoom, shift = pixels / frame.side, pixels * (0.5 - frame.centre / frame.side)
    first = -shift * (1 / zoom)
    (left, top), (right, bottom) = np.trunc([first, pixels * (1 / zoom) + first]).astype(int)
    cut = np.zeros((max(1, bottom - top), max(1, right - left), 3), image.dtype)
    height, width = image.shape[:2]
    x0, x1, y0, y1 = max(0, left), min(width, right), max(0, top), min(height, bottom)
    if x0 < x1 and y0 < y1:
        cut[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return cv2.resize(cut, (pixels, pixels), interpolation=cv2.INTER_LINEAR)


def affine_crop(image: np.ndarray, frame: Frame, pixels: int, smooth: bool = False) -> np.ndarray:
    """The crop of any frame: [H, W, 3] -> [pixels, pixels, 3], bilinear, black outside.

    `smooth`, as in the released demo, blurs pictures first that shrink to less than 1/2.2, so that fine patterns do not
    alias. Spec section 6.
    """
    shrink = frame.side / pixels / 2
    if smooth and shrink > 1.1:
        sigma = (shrink - 1) / 2
        width = 2 * int(4 * sigma + 0.5) + 1
        image = cv2.GaussianBlur(image.astype(np.float32), (width, width), sigma, borderType=cv2.BORDER_REPLICATE)
    crop = cv2.warpAffine(image, frame.matrix(pixels), (pixels, pixels), flags=cv2.INTER_LINEAR)
    return crop if crop.dtype == np.uint8 else np.rint(crop).astype(np.uint8)


def resize(crop: np.ndarray, pixels: int) -> np.ndarray:
    """A square crop at another size: [H, H, 3] -> [pixels, pixels, 3]."""
    smaller = pixels < len(crop)
    return cv2.resize(crop, (pixels, pixels), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def columns(crop: np.ndarray, width: int) -> np.ndarray:
    """The middle `width` columns of crops [..., H, W, 3]."""
    cut = (crop.shape[-2] - width) // 2
    return crop[..., cut : cut + width, :]


def occlude(crop: np.ndarray, rng: np.random.Generator) -> None:
    """Half of the time, hide a part of the crop uint8 [H, W, 3] behind a rectangle or ellipse of grainy colour."""
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
