"""Writes a row per person and image into a CSV: time, id, where the pelvis is, its sigma, and how unusual the image is.

python people_to_csv.py people.csv                # what a running node publishes, until Ctrl-C
python people_to_csv.py people.csv people_bag     # a bag of ros2 bag record, or of mega replay --write
"""

import csv
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

JOINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("sigma", "<f4"), ("id", "<u4"), ("distance", "<f4")])
"""Of /mega/joints: metres in the camera frame (x right, y down, z ahead), id, and distance from the training set."""
PELVIS = 0


def subscribe(write: Callable[[Any], None]) -> None:
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import PointCloud2

    rclpy.init()
    node = rclpy.create_node("people_to_csv")
    node.create_subscription(PointCloud2, "mega/joints", write, 10)
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


def read(bag: Path, write: Callable[[Any], None]) -> None:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        joints = [connection for connection in reader.connections if connection.topic == "/mega/joints"]
        for connection, _, raw in reader.messages(joints):
            write(reader.deserialize(raw, connection.msgtype))


with open(sys.argv[1], "w", newline="", buffering=1) as file:  # a line at a time, so that nothing is lost
    table = csv.writer(file)
    table.writerow(["time", "id", "x", "y", "z", "sigma", "distance"])

    def write(joints: Any) -> None:
        time = joints.header.stamp.sec + joints.header.stamp.nanosec / 1e9
        for person in np.frombuffer(joints.data, JOINT).reshape(joints.height, joints.width)[:, PELVIS]:
            numbers = [f"{person[name]:.4f}" for name in ("x", "y", "z", "sigma", "distance")]
            table.writerow([f"{time:.6f}", person["id"], *numbers])

    read(Path(sys.argv[2]), write) if len(sys.argv) > 2 else subscribe(write)
