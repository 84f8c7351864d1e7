"""People, their topology and images to ROS messages.

People are a PointCloud2 of P rows (people) and V columns (vertices or joints).
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from shape_msgs.msg import Mesh, MeshTriangle
from std_msgs.msg import Header

from mega_model.core.topology import Topology

from .read import points_of
from .standard import BGR_AS_JPEG


def header_of(message: Any) -> Header:
    """A copy of the header of a message of rosbags, for one of rclpy."""
    stamp, frame_id = message.header.stamp, message.header.frame_id
    return Header(stamp=Time(sec=stamp.sec, nanosec=stamp.nanosec), frame_id=frame_id)


def point_cloud(
    header: Any, positions: np.ndarray, sigma: np.ndarray, ids: np.ndarray, distance: np.ndarray | None = None
) -> PointCloud2:
    """positions [P, V, 3] and sigma [P, V] in metres, ids [P] -> one row per person, one column per vertex (or joint).

    distance [P] adds a field of that name.
    """
    people, columns = sigma.shape
    points = points_of(positions, sigma, ids, distance)
    message = PointCloud2(
        header=header,
        height=people,
        width=columns,
        fields=[
            PointField(name=name, offset=4 * k, datatype=6 if name == "id" else 7, count=1)
            for k, name in enumerate(points.dtype.names or ())
        ],
        is_bigendian=False,
        point_step=points.itemsize,
        row_step=points.itemsize * columns,
        is_dense=True,
    )
    message.data.frombytes(points.tobytes())  # rclpy converts other types element by element
    return message


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


def compressed_image(header: Any, bgr: np.ndarray) -> CompressedImage:
    """The same as a JPEG."""
    jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
    return CompressedImage(header=header, format=BGR_AS_JPEG, data=array.array("B", jpeg))
