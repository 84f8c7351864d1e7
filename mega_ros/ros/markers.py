"""Surfaces for RViz and Foxglove: a MarkerArray with a triangle list per person. Needs no ROS installation.

The colour of a vertex is its sigma, blue (certain) to red (uncertain). The shading is part of the colour, because RViz
turns its light off where vertices have colours.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from rosbags.typesys.stores import ros2_jazzy as ros

from ..draw import RED, light, sigma_colours
from ..recovery import People
from ..track import PATIENCE
from .standard import serialised

Marker, Point, Colour = ros.visualization_msgs__msg__Marker, ros.geometry_msgs__msg__Point, ros.std_msgs__msg__ColorRGBA

NAMESPACE = "people"
LIFETIME = ros.builtin_interfaces__msg__Duration(*divmod(round(PATIENCE * 1e9), 10**9))
"""After the last image, when nobody deletes people: the camera fell silent, or the node has ended."""

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
        """A serialised MarkerArray. header: of rclpy or of rosbags.

        Building 3F Point objects per person takes most of a frame's time. So markers of one point are serialised,
        which stands for all, and is replaced in the bytes. Points have 24 bytes and colours 16, so what lies behind
        them keeps its alignment of 8.
        """
        ids = people.ids.tolist()
        markers = [_surface(header, person) for person in ids]
        markers += [_lost(header, person) for person in sorted(self._shown.difference(ids))]
        self._shown = set(ids)
        pieces = serialised(ros.visualization_msgs__msg__MarkerArray(markers)).split(_PLACEHOLDER)
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


def _surface(header: Any, person: int) -> Any:
    return _marker(header, person, Marker.ADD, [Point(*_POINT)], [Colour(*_COLOUR)])


def _lost(header: Any, person: int) -> Any:
    return _marker(header, person, Marker.DELETE, [], [])


def _marker(header: Any, person: int, action: int, points: list[Any], colours: list[Any]) -> Any:
    """rosbags' types have no defaults, so all fields are given."""
    nothing = np.zeros(0, np.uint8)
    return Marker(
        header,
        ns=NAMESPACE,
        id=person - 2**32 if person >= 2**31 else person,  # ids of markers are signed
        type=Marker.TRIANGLE_LIST,
        action=action,
        pose=ros.geometry_msgs__msg__Pose(Point(0.0, 0.0, 0.0), ros.geometry_msgs__msg__Quaternion(0.0, 0.0, 0.0, 1.0)),
        scale=ros.geometry_msgs__msg__Vector3(1.0, 1.0, 1.0),
        color=Colour(0.0, 0.0, 0.0, 0.0),
        lifetime=LIFETIME,
        frame_locked=False,
        points=points,
        colors=colours,
        texture_resource="",
        texture=ros.sensor_msgs__msg__CompressedImage(header, format="", data=nothing),
        uv_coordinates=[],
        text="",
        mesh_resource="",
        mesh_file=ros.visualization_msgs__msg__MeshFile(filename="", data=nothing),
        mesh_use_embedded_materials=False,
    )
