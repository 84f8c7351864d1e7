"""Writes a row per person and image into a CSV: time, id, pelvis, its sigma, and how unlike the training images it is.

python people_to_csv.py people.csv                # what a running node publishes, until Ctrl-C
python people_to_csv.py people.csv people_bag     # a bag of ros2 bag record, or of mega replay --write
"""

import sys
from argparse import REMAINDER, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

JOINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("sigma", "<f4"), ("id", "<u4"), ("distance", "<f4")])
"""Of /mega/joints: metres in the camera frame (x right, y down, z ahead), id, and distance from the training set."""
TOPIC, PELVIS, SHOWN = "/mega/joints", 0, ["x", "y", "z", "sigma", "distance"]


def table(path: Path) -> Callable[[Any], None]:
    rows = path.open("w", buffering=1)  # a line at a time, so that nothing is lost
    print("time,id,x,y,z,pelvis_sigma,distance", file=rows)

    def write(joints: Any) -> None:
        time = joints.header.stamp.sec + joints.header.stamp.nanosec / 1e9
        for person in np.frombuffer(joints.data, JOINT).reshape(joints.height, joints.width)[:, PELVIS]:
            print(f"{time:.6f}", person["id"], *(f"{person[name]:.4f}" for name in SHOWN), sep=",", file=rows)

    return write


parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.add_argument("csv", type=Path)
parser.add_argument("bag", type=Path, nargs="?")
parser.add_argument("--ros-args", nargs=REMAINDER, help="as other ROS nodes: -r __ns:=/robot")
given = parser.parse_args()
if given.bag:
    from mega_model.core.errors import InputError
    from mega_ros.replay.bags import open_bag

    try:
        with open_bag(given.bag) as bag:
            if TOPIC not in bag.topics:
                raise InputError(f"{given.bag}: no {TOPIC} in it; of a camera's bag, mega replay writes people.csv")
            write = table(given.csv)
            for connection, _, data in bag.messages([TOPIC]):
                write(bag.read(connection, data))
    except InputError as error:
        sys.exit(str(error))
else:
    import rclpy.executors
    from sensor_msgs.msg import PointCloud2

    rclpy.init()
    node = rclpy.create_node("people_to_csv")
    joints = node.create_subscription(PointCloud2, TOPIC.lstrip("/"), table(given.csv), 10)
    print(f"waiting for {joints.topic_name}", file=sys.stderr)
    with suppress(KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.spin(node)
