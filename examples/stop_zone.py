"""Publishes `stop` while a person may be near the camera or in a zone before it, and while nothing is known.

python stop_zone.py --ros-args -p distance:=1.5     # metres from the camera

A person is where the vertices of `~/mesh` are, each grown by three sigma and by the error of its distance, which
sigma does not hold. The robot also stops if no mesh comes for SILENCE, or if the image of the mesh is older than that.
People whom the node leaves out are not in the mesh; its diagnostics say why.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.time import Time
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool

LOW, HIGH = np.array([-1.0, -2.0, 0.0]), np.array([1.0, 2.0, 2.0])
"""The zone, metres in the camera frame: x right, y down, z ahead."""
SIGMAS = 3.0
DISTANCE_ERROR = 0.36
"""As a share of the distance; larger for one person in ten (docs/sigma.md). With a depth camera, take its error."""
SILENCE = 0.5
"""Seconds."""


class StopZone(Node):
    def __init__(self) -> None:
        super().__init__("stop_zone")
        self.near = self.declare_parameter("distance", 1.5).value
        self.stop = self.create_publisher(Bool, "stop", 1)
        self.create_subscription(PointCloud2, "mega/mesh", self.on_mesh, 1)
        self.silence = self.create_timer(SILENCE, lambda: self.stop.publish(Bool(data=True)))

    def on_mesh(self, mesh: PointCloud2) -> None:
        if self.get_clock().now() - Time.from_msg(mesh.header.stamp) > Duration(seconds=SILENCE):
            return
        self.silence.reset()
        x_y_z, sigma = np.split(np.frombuffer(mesh.data, np.float32).reshape(-1, 5)[:, :4], [3], axis=1)
        away = np.linalg.norm(x_y_z, axis=1)
        outside = np.linalg.norm(np.maximum(LOW - x_y_z, x_y_z - HIGH).clip(min=0), axis=1)  # metres to the zone
        clear = np.minimum(outside, away - self.near) > SIGMAS * sigma[:, 0] + DISTANCE_ERROR * away
        self.stop.publish(Bool(data=not clear.all()))  # not clear where sigma is not known


parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
parser.parse_args(remove_ros_args(sys.argv)[1:])
rclpy.init()
with suppress(KeyboardInterrupt, ExternalShutdownException):
    rclpy.spin(StopZone())
