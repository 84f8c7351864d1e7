"""Publishes `stop` while a person, grown by three sigma, is in a zone before the camera, and while nothing is known."""

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool

# metres in the camera frame: x right, y down, z ahead
LOW, HIGH = np.array([-1.0, -2.0, 0.0]), np.array([1.0, 2.0, 2.0])


class StopZone(Node):
    def __init__(self) -> None:
        super().__init__("stop_zone")
        self.stop = self.create_publisher(Bool, "stop", 1)
        self.create_subscription(PointCloud2, "mega/mesh", self.on_mesh, 1)
        self.silence = self.create_timer(0.5, lambda: self.stop.publish(Bool(data=True)))

    def on_mesh(self, mesh: PointCloud2) -> None:
        self.silence.reset()
        x_y_z, sigma = np.split(np.frombuffer(mesh.data, np.float32).reshape(-1, 5)[:, :4], [3], axis=1)
        outside = np.linalg.norm(np.maximum(LOW - x_y_z, x_y_z - HIGH).clip(min=0), axis=1)  # metres to the zone
        clear = outside > 3 * sigma[:, 0]  # false where sigma is not known
        self.stop.publish(Bool(data=not clear.all()))


rclpy.init()
rclpy.spin(StopZone())
