"""Surfaces for RViz and Foxglove: a MarkerArray with a triangle list per person.

The colour of a vertex is its sigma, blue (certain) to red (uncertain). The shading is part of the colour, because RViz
turns its light off where vertices have colours.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, Vector3
from rclpy.serialization import serialize_message
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from ..draw import RED, light, sigma_colours
from ..recovery import People

NAMESPACE = "people"

# one point and one colour that no surface has, and how they lie in a serialised Marker: count, doubles, count, floats
_POINT, _COLOUR = (12345.0, -54321.0, 0.125), (0.5, 0.25, 0.125, 0.0625)
_PLACEHOLDER = struct.pack("<I3dI4f", 1, *_POINT, 1, *_COLOUR)


class Markers:
    """Remembers the people of the last frame, so that those who are gone can be deleted."""

    def __init__(self, faces: np.ndarray) -> None:
        """faces: int [F, 3]."""
        self._faces = faces
        self._shown: set[int] = set()

    def message(self, header: Any, people: People) -> bytes:
        """A serialised MarkerArray.

        Building 3F Point objects per person takes most of a frame's time. So rclpy serialises markers of one point,
        which stands for all, and is replaced in the bytes. Points have 24 bytes and colours 16, so what lies behind
        them keeps its alignment of 8.
        """
        ids = people.ids.tolist()
        markers = [_surface(header, person) for person in ids]
        markers += [_lost(header, person) for person in sorted(self._shown.difference(ids))]
        self._shown = set(ids)
        pieces = serialize_message(MarkerArray(markers=markers)).split(_PLACEHOLDER)
        assert len(pieces) == len(ids) + 1, "a Marker is serialised in another way than expected"
        surfaces = [self._triangles(*person) for person in zip(people.vertices, people.sigma)]
        return b"".join([pieces[0], *(part for pair in zip(surfaces, pieces[1:]) for part in pair)])

    def _triangles(self, vertices: np.ndarray, sigma: np.ndarray) -> bytes:
        """The points and colours of all corners of one person's triangles, with their counts."""
        corners = self._faces.ravel()
        colours = np.ones((len(vertices), 4), np.float32)  # red, green, blue, opacity
        shade = light(vertices, self._faces)[:, None]
        colours[:, :3] = np.minimum(sigma_colours(sigma, RED)[:, ::-1] / 255 * shade, 1)
        count = struct.pack("<I", len(corners))
        points = vertices.astype(np.float64)[corners]
        return b"".join([count, points.tobytes(), count, colours[corners].tobytes()])


def _surface(header: Any, person: int) -> Marker:
    marker = _lost(header, person)
    marker.action = Marker.ADD
    marker.scale = Vector3(x=1.0, y=1.0, z=1.0)
    (x, y, z), (r, g, b, a) = _POINT, _COLOUR
    marker.points, marker.colors = [Point(x=x, y=y, z=z)], [ColorRGBA(r=r, g=g, b=b, a=a)]
    return marker


def _lost(header: Any, person: int) -> Marker:
    # ids of markers are signed
    signed = person - 2**32 if person >= 2**31 else person
    return Marker(header=header, ns=NAMESPACE, id=signed, type=Marker.TRIANGLE_LIST, action=Marker.DELETE)
