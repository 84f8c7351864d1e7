"""The example of docs/sigma.md in its own process, over DDS."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool, Header

from mega_ros.ros import messages
from mega_ros.ros.environment import use_large_messages

PATIENCE = 600.0


def people(z: float, sigma: float) -> PointCloud2:
    """One far away, and one of whom a single vertex is z metres ahead."""
    points = np.full((2, 50, 3), 9, np.float32)
    points[1, 17] = 0, 0, z
    spread = np.full((2, 50), 0.1, np.float32)
    spread[1, 17] = sigma
    return messages.point_cloud(Header(), points, spread, np.array([4, 8]))


def test_a_person_grown_by_three_sigma_stops_the_robot(root: Path) -> None:
    use_large_messages()
    domain = random.SystemRandom().randint(1, 230)
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
    process = subprocess.Popen([sys.executable, root / "examples" / "stop_zone.py"], env=environment)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("planner", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    answers: list[bool] = []
    node.create_subscription(Bool, "stop", lambda answer: answers.append(answer.data), 10)
    meshes = node.create_publisher(PointCloud2, "mega/mesh", 1)

    def answer(mesh: PointCloud2 | None, right: bool) -> None:
        """The robot is told so; before, answers to what was published earlier may come."""
        end = time.monotonic() + PATIENCE
        answers.clear()
        while answers[-3:] != [right] * 3:
            assert time.monotonic() < end, answers
            if mesh:
                meshes.publish(mesh)
            executor.spin_once(timeout_sec=0.05)

    try:
        answer(people(z=2.5, sigma=0.1), right=False)
        answer(people(z=2.5, sigma=0.2), right=True)
        answer(people(z=4.0, sigma=0.2), right=False)
        answer(people(z=1.0, sigma=0.0), right=True)
        answer(people(z=4.0, sigma=0.2), right=False)
        answer(people(z=4.0, sigma=np.nan), right=True)
        answer(people(z=4.0, sigma=0.2), right=False)
        answer(None, right=True)
    finally:
        process.kill()
        process.wait()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
