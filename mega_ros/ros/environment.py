"""What Fast DDS needs to know before ROS starts."""

from __future__ import annotations

import os

from ..environment import share


def use_large_messages() -> None:
    """Let Fast DDS carry camera images in shared memory; call it before `rclpy.init`. A user's own profile stays."""
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(share() / "config" / "fastdds.xml"))
