"""`mega bench node`: its images show what they should, and a measurement has numbers of the node."""

from types import SimpleNamespace

import numpy as np
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
    assert infer > 1, "milliseconds: no machine is so fast that it takes thousandths of one"


def test_the_row_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images in 4 s, with 2 s of CPU, of which the graphs took 1 s."""
    uses, clock = iter([(10.0, 0), (12.0, 300 * 2**20)]), iter([0.0, 10.0, 14.0])
    times = dict.fromkeys([f"{name}_s" for name in ("decode_p50", "crop_p50", "infer_p50", "publish_p50")], 1.0)
    latencies = {"latency_p50_s": 30.0, "latency_p95_s": 50.0}
    told = iter([[200.0, 400.0], [700.0, 900.0]])
    node = SimpleNamespace(use=lambda: next(uses), check=lambda: None, stop=lambda: None)
    peer = SimpleNamespace(
        ask=lambda image, patience: [4, 4],
        diagnostics=lambda: [times | latencies | {"infer_cpu_s": cpu} for cpu in next(told)],
        close=lambda: None,
    )
    monkeypatch.setattr(bench, "NodeProcess", lambda parameters: node)
    monkeypatch.setattr(bench, "BenchClient", lambda names: peer)
    monkeypatch.setattr(bench, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    row = bench.measure(bench.NodeBenchConfig(images=5), 4, 2, np.zeros((2, 2, 3), np.uint8))
    assert row == ["4 of 4, 2", "1.0", "1.0", "1.0", "1.0", "100.0", "2.5", "30 / 50", "300"]
