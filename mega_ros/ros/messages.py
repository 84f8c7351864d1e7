"""People to ROS messages: a PointCloud2 of P rows (people) and V columns (vertices)."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from sensor_msgs.msg import PointCloud2, PointField
from shape_msgs.msg import Mesh, MeshTriangle

from mega_model.core.topology import Topology

from .read import POINT, points_of


def point_cloud(header: Any, points: np.ndarray, sigma: np.ndarray, ids: np.ndarray) -> PointCloud2:
    """points [P, V, 3] and sigma [P, V] in metres, ids [P] -> one row per person, one column per vertex (or joint)."""
    people, columns = sigma.shape
    cloud = points_of(points, sigma, ids)
    message = PointCloud2(
        header=header,
        height=people,
        width=columns,
        fields=[
            PointField(name=name, offset=4 * k, datatype=6 if name == "id" else 7, count=1)
            for k, name in enumerate(POINT.names or ())
        ],
        is_bigendian=False,
        point_step=POINT.itemsize,
        row_step=POINT.itemsize * columns,
        is_dense=True,
    )
    message.data.frombytes(cloud.tobytes())  # rclpy converts other types element by element
    return message


def mesh(topology: Topology) -> Mesh:
    """The triangles, whose indices are columns of `~/mesh`, and the template."""
    return Mesh(
        triangles=[MeshTriangle(vertex_indices=face) for face in topology.faces.astype(np.uint32)],
        vertices=[Point(x=x, y=y, z=z) for x, y, z in topology.template.tolist()],
    )
