"""An image and the people in it: what every output is made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mega_model.core.cameras import Camera

from .. import draw
from ..recovery import People


@dataclass(frozen=True)
class ProcessedFrame:
    """With what it takes to draw and to place them."""

    header: Any
    """The image's std_msgs/Header."""
    image: np.ndarray
    """uint8 [H, W, 3] BGR."""
    camera: Camera
    people: People
    faces: np.ndarray
    """int [F, 3]: triangles of every person's vertices."""

    @cached_property
    def overlay(self) -> np.ndarray:
        """The surfaces over the image, at most `draw.WIDEST` wide: both transports of `~/overlay` need it."""
        image, camera = draw.shrunk(self.image, self.camera)
        return draw.overlay(image, self.people.vertices, self.people.ids, self.faces, camera)
