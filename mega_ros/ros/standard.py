"""ROS's standard message types and their serialisation, without a ROS installation.

Headers may be those of rclpy or of rosbags.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores import ros2_jazzy as ros

from .read import points_of

MESSAGES = get_typestore(Stores.ROS2_JAZZY)
"""Serialises and reads messages. It also takes messages of rclpy, as their fields have the same names."""


def header(stamp: int, frame_id: str) -> Any:
    """stamp: nanoseconds."""
    return ros.std_msgs__msg__Header(ros.builtin_interfaces__msg__Time(*divmod(stamp, 10**9)), frame_id)


def serialised(message: Any) -> bytes:
    """A message of rosbags' types, as CDR."""
    return bytes(MESSAGES.serialize_cdr(message, message.__msgtype__))


def camera_info(head: Any, width: int, height: int, intrinsics: np.ndarray) -> Any:
    """Of a camera without distortion. intrinsics: [3, 3], pixels."""
    return ros.sensor_msgs__msg__CameraInfo(
        head,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=intrinsics.ravel(),
        r=np.eye(3).ravel(),
        p=np.column_stack([intrinsics, np.zeros(3)]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=ros.sensor_msgs__msg__RegionOfInterest(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def point_cloud(head: Any, points: np.ndarray) -> Any:
    """Points [P, V] with fields of 4 bytes, such as `read.POINT`, as a PointCloud2 of P rows."""
    field = ros.sensor_msgs__msg__PointField
    return ros.sensor_msgs__msg__PointCloud2(
        head,
        height=points.shape[0],
        width=points.shape[1],
        fields=[
            field(name, 4 * k, field.UINT32 if name == "id" else field.FLOAT32, 1)
            for k, name in enumerate(points.dtype.names or ())
        ],
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * points.shape[1],
        data=np.frombuffer(points.tobytes(), np.uint8),
        is_dense=True,
    )


def people_cloud(
    head: Any, positions: np.ndarray, sigma: np.ndarray, ids: np.ndarray, distance: np.ndarray | None = None
) -> bytes:
    """A PointCloud2 with a row per person and a column per vertex (or joint), as CDR; see `points_of`."""
    return serialised(point_cloud(head, points_of(positions, sigma, ids, distance)))


def jpeg_image(head: Any, bgr: np.ndarray) -> bytes:
    """A CompressedImage of uint8 [H, W, 3], as CDR, in the format that compressed_image_transport writes."""
    jpeg = cv2.imencode(".jpg", bgr)[1].ravel()
    return serialised(ros.sensor_msgs__msg__CompressedImage(head, "bgr8; jpeg compressed bgr8", jpeg))
