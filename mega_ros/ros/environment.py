"""Configuration of Fast DDS, set before ROS starts."""

from __future__ import annotations

import os

from ..environment import share


def use_large_messages() -> None:
    """Give Fast DDS enough shared memory for images. Call it before `rclpy.init`; it keeps a user's own profile."""
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(share() / "config" / "fastdds.xml"))
