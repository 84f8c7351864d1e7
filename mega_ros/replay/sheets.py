"""Page layout: image, mesh and uncertainty side by side, with captions and a colour scale.

Images are uint8 BGR. Vertices are metres in the camera frame (x right, y down, z forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mega_model.core.cameras import Camera

from ..draw import PAPER, label, paint, paint_people, side_view, sigma_colours, trace

INK = (64, 52, 44)
VIDEO, PANEL = 640, 400
"""Pixels: the larger side of an image in a video, and the width of one in the contact sheet."""
SMALLEST = (160, 64)
"""Width and height, pixels: in less, there is no room for the colour scale. Strips are drawn with a border."""


def text(image: np.ndarray, words: str, at: tuple[int, int], size: float) -> None:
    """Write text on `image`, in place; `at` is the left end of the base line."""
    cv2.putText(image, words, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)


def legend(width: int, limit: float) -> np.ndarray:
    """The colour scale of sigma from 0 to `limit` metres with numbers in millimetres, [44, width, 3]."""
    strip = np.full((44, width, 3), PAPER, np.uint8)
    bar = sigma_colours(np.linspace(0, limit, width - 120), limit)
    strip[8:22, 20:-100] = bar.astype(np.uint8)
    for part in np.linspace(0, 1, 5):
        x = 20 + round(part * (width - 121))
        strip[22:26, x] = INK
        text(strip, f"{1000 * limit * part:.0f}", (x - 8, 39), 0.38)
    text(strip, "sigma, mm", (width - 88, 20), 0.42)
    return strip


def nice_limit(sigmas: Sequence[np.ndarray]) -> float:
    """Upper limit of the colour scale, metres: the 98th percentile of all sigma, rounded up to 2 cm."""
    values = np.concatenate([np.ravel(s)[np.isfinite(np.ravel(s))] for s in sigmas] or [np.zeros(0)])
    return float(max(0.02, np.ceil(50 * np.quantile(values, 0.98)) / 50)) if len(values) else 0.1


def fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`image` scaled to fit `size` (width, height), on the background colour, and the [3, 3] map of its pixels."""
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    x, y = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    page = np.full((size[1], size[0], 3), PAPER, np.uint8)
    page[y : y + inner[1], x : x + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    return page, np.array([[inner[0] / width, 0, x], [0, inner[1] / height, y], [0, 0, 1]])


@dataclass(frozen=True)
class PageFrame:
    """One image and its people: a row of the contact sheet, or a frame of the video."""

    image: np.ndarray
    """uint8 BGR [H, W, 3]."""
    camera: Camera
    vertices: np.ndarray
    """[P, V, 3]."""
    sigma: np.ndarray
    """[P, V]."""
    ids: np.ndarray
    """[P]."""
    caption: str = ""


def views(
    frame: PageFrame, faces: np.ndarray, size: tuple[int, int], limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, mesh over it, and mesh by sigma: three images of `size` (width, height)."""
    image, moved = fit(frame.image, size)
    paper = np.full_like(image, PAPER)
    if not len(frame.vertices):
        return image, image.copy(), paper
    surface = trace(frame.vertices, faces, frame.camera.moved(moved), size)
    return image, paint_people(image, surface, frame.ids), paint(paper, surface, sigma_colours(frame.sigma, limit))


def video_frame(frame: PageFrame, faces: np.ndarray, limit: float) -> np.ndarray:
    """Mesh over the image, and beside it the mesh by sigma; the larger side of each is `VIDEO` pixels."""
    height, width = frame.image.shape[:2]
    scale = VIDEO / max(height, width) / 2
    size = (2 * round(width * scale), 2 * round(height * scale))  # video needs even numbers
    size = max(SMALLEST[0], size[0]), max(SMALLEST[1], size[1])
    _, over, by_sigma = views(frame, faces, size, limit)
    by_sigma[-44:] = legend(size[0], limit)
    label(over, frame.caption, (8, size[1] - 10))
    return np.concatenate([over, by_sigma], axis=1)


def contact_sheet(frames: Sequence[PageFrame], faces: np.ndarray) -> np.ndarray:
    """Rows of `views` and `side_view`, a heading and the colour scale."""
    limit = nice_limit([f.sigma for f in frames])
    width, gap = PANEL, 10
    image_height, image_width = frames[0].image.shape[:2]
    height = round(width * image_height / image_width)
    page_width = 4 * width + 5 * gap
    head = np.full((40, page_width, 3), PAPER, np.uint8)
    for column, words in enumerate(["image", "mesh", "uncertainty, camera view", "uncertainty, side view"]):
        text(head, words, (gap + column * (width + gap), 28), 0.6)
    rows = [head]
    for frame in frames:
        row = np.full((height + gap, page_width, 3), PAPER, np.uint8)
        side = side_view(frame.vertices, frame.sigma, faces, (width, height), limit)
        panels = *views(frame, faces, (width, height), limit), side
        label(panels[0], frame.caption, (8, height - 10))
        for column, panel in enumerate(panels):
            x = gap + column * (width + gap)
            row[:height, x : x + width] = panel
            if column >= 2:
                cv2.rectangle(row, (x, 0), (x + width - 1, height - 1), (226, 222, 220), 1)
        rows.append(row)
    foot = np.full((44, page_width, 3), PAPER, np.uint8)
    foot[:, 2 * width + 3 * gap : -gap] = legend(2 * width + gap, limit)
    return np.concatenate([*rows, foot])
