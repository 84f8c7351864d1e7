"""PointCloud2 messages, of rclpy or of rosbags, to arrays; `images` and `camera_info` read the other two.

Also the points of a PointCloud2 as an array, which `standard` puts into messages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mega_model.core.errors import InputError

# datatype of a PointField -> numpy's name of it
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("sigma", "<f4"), ("id", "<u4")])
"""One point of `~/mesh`: metres in the camera frame, and the person's id."""
JOINT = np.dtype([*POINT.descr, ("distance", "<f4")])
"""One point of `~/joints`: the same, and how far the person is from the training set (`People.distance`)."""


def points_of(
    positions: np.ndarray, sigma: np.ndarray, ids: np.ndarray, distance: np.ndarray | None = None
) -> np.ndarray:
    """positions [P, V, 3] and sigma [P, V] in metres, ids [P] -> `POINT` [P, V]: a row per person.

    With distance [P]: `JOINT`.
    """
    points = np.zeros(sigma.shape, POINT if distance is None else JOINT)
    for axis, name in enumerate("xyz"):
        points[name] = positions[..., axis]
    points["sigma"] = sigma
    points["id"] = ids[:, None]
    if distance is not None:
        points["distance"] = distance[:, None]
    return points


def read_stamp(message: Any) -> int:
    """The stamp in a message's header, nanoseconds."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def read_cloud(message: Any) -> np.ndarray:
    """A PointCloud2 -> structured array [height, width] with the message's fields, no copy.

    Raises InputError for one that is cut off, or whose rows overlap.
    """
    order = ">" if message.is_bigendian else "<"
    fields = [(f.name, order + _TYPES[f.datatype], f.offset) for f in message.fields]
    names, formats, offsets = zip(*fields)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": message.point_step})
    shape = message.height, message.width
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    row = message.point_step * message.width
    if message.height > 1 and message.row_step < row:
        raise InputError(f"row_step is {message.row_step} bytes, but a row of {message.width} points takes {row}")
    if len(message.data) < message.row_step * (message.height - 1) + row:
        raise InputError(f"PointCloud2 of {shape} points has only {len(message.data)} bytes: it is cut off")
    return np.ndarray(shape, dtype, memoryview(message.data), strides=(message.row_step, message.point_step))


def positions(cloud: np.ndarray) -> np.ndarray:
    """A cloud of `read_cloud` -> float32 [P, V, 3], metres."""
    return np.stack([cloud[axis] for axis in "xyz"], axis=-1).astype(np.float32)
