"""`mega bench node`: its images show what they should, and a measurement has numbers of the node."""

import pytest
import rclpy
from domains import free_domain

from mega_ros.recovery import Recovery
from mega_ros.ros import bench


def test_images_show_as_many_people() -> None:
    recovery = Recovery.load("default", provider="cpu")
    assert recovery.detector
    for people, image in bench.example_images("default").items():
        assert image.shape == (720, 1280, 3)
        assert len(recovery.detector(image)[0]) == people


def test_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = free_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    rclpy.init(args=[], domain_id=domain)
    try:
        row = bench.measure(bench.NodeBenchConfig(images=2), 4, 2, bench.example_images("default")[4])
    finally:
        rclpy.shutdown()
    assert row[0] == "4 of 4, 2"
    decode, _, infer, _, overhead, rate = map(float, row[1:7])
    assert 0 <= decode < infer and rate > 0 and overhead == overhead
