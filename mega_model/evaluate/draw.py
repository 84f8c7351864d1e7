"""Draws meshes on matplotlib axes: orthographic, lit from the camera, in one colour or coloured by vertex values.

Points are in the camera's axes (x right, y down, z away), in the units of the axes' limits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

BODY = np.array([0.47, 0.62, 0.83])
"""Colour of a mesh without vertex values."""
SCALE = colormaps["coolwarm"]
"""Blue: small sigma or error; red: large."""
UPRIGHT = np.diag([1.0, -1.0, -1.0])
"""From canonical axes to those of a camera that an upright person faces."""
SIDE = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
"""From the camera's axes to those of a second camera on the left, which looks along the first one's x axis."""


def grid(rows: int, columns: int, headings: list[str], side: float = 2.0) -> tuple[Figure, np.ndarray]:
    """A figure of empty square axes [rows, columns] without ticks, and headings over the first row."""
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, heading in zip(axes[0], headings):
        ax.set_title(heading, fontsize=9)
    return figure, axes


def image(axes: Axes, crop: np.ndarray) -> None:
    """A square crop uint8 [3, H, H], in its coordinates -1 to 1."""
    axes.imshow(crop.transpose(1, 2, 0), extent=(-1, 1, 1, -1))


def body(axes: Axes, points: np.ndarray, faces: np.ndarray, values: np.ndarray | None = None, limit: float = 1) -> None:
    """A mesh [V, 3]; values [V] colour it from 0 (blue) to `limit` (red). Back faces are not drawn."""
    corners = points[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    shine = -normals[:, 2] / (np.linalg.norm(normals, axis=1) + 1e-12)
    drawn = np.flatnonzero(shine > 0)
    drawn = drawn[np.argsort(-corners[drawn, :, 2].mean(axis=1))]  # the nearest last
    colours = np.broadcast_to(BODY, (len(drawn), 3))
    if values is not None:
        colours = SCALE(values[faces[drawn]].mean(axis=1) / limit)[:, :3]
    lit = colours * (0.45 + 0.55 * shine[drawn, None])
    axes.add_collection(PolyCollection(corners[drawn, :, :2], facecolors=lit, edgecolors=lit, linewidths=0.3))


def alone(
    axes: Axes, points: np.ndarray, faces: np.ndarray, values: np.ndarray | None = None, limit: float = 1
) -> None:
    """A mesh [V, 3] centred in empty axes, scaled to fit."""
    low, high = points.min(axis=0), points.max(axis=0)
    body(axes, (points - (low + high) / 2) / (0.52 * (high - low)[:2].max()), faces, values, limit)
    axes.set(xlim=(-1, 1), ylim=(1, -1), aspect="equal")


def over(axes: Axes, crop: np.ndarray, points: np.ndarray, camera: np.ndarray, faces: np.ndarray) -> None:
    """A mesh [V, 3] over its crop, by the weak perspective camera (s, tx, ty)."""
    image(axes, crop)
    scale, tx, ty = camera
    body(axes, scale * (points + [tx, ty, 0]), faces)
    axes.set(xlim=(-1, 1), ylim=(1, -1))


def scale_bar(figure: Figure, axes: Any, limit: float, label: str) -> None:
    """The colour bar from 0 to `limit` metres, in millimetres, beside some axes."""
    figure.colorbar(ScalarMappable(Normalize(0, 1000 * limit), SCALE), ax=axes, label=label, shrink=0.8)
