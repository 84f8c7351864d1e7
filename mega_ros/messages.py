"""People to ROS messages, and back: a PointCloud2 of P rows (people) and V columns (vertices)."""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from sensor_msgs.msg import PointCloud2, PointField
from shape_msgs.msg import Mesh, MeshTriangle

from mega_model.core.errors import InputError
from mega_model.core.topology import Topology

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("sigma", "<f4"), ("id", "<u4")])
"""One point of `~/mesh` and `~/joints`: metres in the camera frame, and the person's id."""

# datatype of a PointField -> numpy's name of it
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}


def point_cloud(header: Any, points: np.ndarray, sigma: np.ndarray, ids: np.ndarray) -> PointCloud2:
    """points [P, V, 3] and sigma [P, V] in metres, ids [P] -> one row per person, one column per vertex (or joint)."""
    people, columns = sigma.shape
    cloud = np.zeros((people, columns), POINT)
    for axis, name in enumerate("xyz"):
        cloud[name] = points[..., axis]
    cloud["sigma"] = sigma
    cloud["id"] = ids[:, None]
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
    message.data.frombytes(cloud.tobytes())  # rclpy takes anything else number by number
    return message


def read_cloud(message: Any) -> np.ndarray:
    """A PointCloud2 (of rclpy or of rosbags) -> structured array [height, width] with the message's fields, no copy."""
    order = ">" if message.is_bigendian else "<"
    fields = [(f.name, order + _TYPES[f.datatype], f.offset) for f in message.fields]
    names, formats, offsets = zip(*fields)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": message.point_step})
    shape = message.height, message.width
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    if len(message.data) < message.row_step * (message.height - 1) + message.point_step * message.width:
        raise InputError(f"PointCloud2 of {shape} points has only {len(message.data)} bytes: it is cut off")
    return np.ndarray(shape, dtype, memoryview(message.data), strides=(message.row_step, message.point_step))


def positions(cloud: np.ndarray) -> np.ndarray:
    """What `read_cloud` gives -> float32 [P, V, 3], metres."""
    return np.stack([cloud[axis] for axis in "xyz"], axis=-1).astype(np.float32)


def mesh(topology: Topology) -> Mesh:
    """The triangles, whose vertices are numbered as the columns of `~/mesh`, and the template."""
    return Mesh(
        triangles=[MeshTriangle(vertex_indices=face) for face in topology.faces.astype(np.uint32)],
        vertices=[Point(x=x, y=y, z=z) for x, y, z in topology.template.tolist()],
    )


def intrinsics(info: Any) -> np.ndarray:
    """CameraInfo -> K [3, 3] in pixels. Raises InputError with the reason why it cannot be used."""
    K = np.asarray(info.k, np.float64).reshape(3, 3)
    if not np.isfinite(K).all():
        raise InputError(f"K is not finite: {K.ravel().tolist()}")
    if not K.any():
        raise InputError("K is all zero: the camera is not calibrated")
    if K[0, 0] < 1 or K[1, 1] < 1 or not np.array_equal(K[2], [0, 0, 1]):
        raise InputError(f"K is no camera matrix in pixels: {K.ravel().tolist()}")
    return K


def frame_seed(stamp: Any, seed: int) -> int:
    """The seed of one frame's noise: a frame that is played again gets the same people. `stamp` is a ROS Time."""
    return seed << 64 | (stamp.sec & 0xFFFFFFFF) << 32 | stamp.nanosec
