"""ROS's standard message types and their serialisation, without a ROS installation."""

from __future__ import annotations

from typing import Any

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores import ros2_jazzy as ros

MESSAGES = get_typestore(Stores.ROS2_JAZZY)
"""Serialises and reads messages. It also takes messages of rclpy, as their fields have the same names."""


def header(stamp: int, frame_id: str) -> Any:
    """stamp: nanoseconds."""
    return ros.std_msgs__msg__Header(ros.builtin_interfaces__msg__Time(*divmod(stamp, 10**9)), frame_id)


def serialised(message: Any) -> bytes:
    """A message of rosbags' types, as CDR."""
    return bytes(MESSAGES.serialize_cdr(message, message.__msgtype__))
