"""Headers, the topology and images as messages of rclpy. Those of people are made in `standard`."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point
from sensor_msgs.msg import Image
from shape_msgs.msg import Mesh, MeshTriangle
from std_msgs.msg import Header

from mega_model.core.topology import Topology


def header_of(message: Any) -> Header:
    """A copy of the header of a message of rosbags, for one of rclpy."""
    stamp, frame_id = message.header.stamp, message.header.frame_id
    return Header(stamp=Time(sec=stamp.sec, nanosec=stamp.nanosec), frame_id=frame_id)


def mesh(topology: Topology) -> Mesh:
    """The triangles, whose indices are columns of `~/mesh`, and the template."""
    return Mesh(
        triangles=[MeshTriangle(vertex_indices=face) for face in topology.faces.astype(np.uint32)],
        vertices=[Point(x=x, y=y, z=z) for x, y, z in topology.template.tolist()],
    )


def image(header: Any, bgr: np.ndarray) -> Image:
    """bgr: uint8 [H, W, 3]."""
    height, width = bgr.shape[:2]
    data = array.array("B", bgr.tobytes())
    return Image(header=header, height=height, width=width, encoding="bgr8", step=3 * width, data=data)
