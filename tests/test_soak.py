"""`make soak`: the same run for a few seconds, and what its verdict finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from domains import free_domain

pytest.importorskip("onnx", reason="graphs are made with the extra export")
from little_bundle import little_bundle

from mega_model.core.errors import InputError
from mega_ros.ros import soak

IMAGE = np.full((720, 1280, 3), 128, np.uint8)
GOOD = {"frames_received": 95, "frames_processed": 50, "frames_dropped": 45, "frames_lost": 5}
NONE = dict.fromkeys(soak.ENDS, 0)


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    domain = free_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    rclpy.init(args=[], domain_id=domain)
    yield
    rclpy.shutdown()


def test_every_image_of_a_short_run_is_accounted_for(ros: None, tmp_path: Path) -> None:
    little_bundle(tmp_path)
    result = soak.run(3, IMAGE, {"bundle": tmp_path, "boxes": "full_frame"})
    assert result.sent > 3 * soak.RATE and result.counts["frames_processed"] > 0
    assert result.sent == sum(result.counts[name] for name in (*soak.ENDS, "frames_lost"))
    assert np.isfinite(result.latency).all()
    assert 50 < min(result.memory) <= max(result.memory) < 5000, "MiB"


def test_a_node_that_ends_is_said(ros: None, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="the node ended with code 1: what it printed is above"):
        soak.run(3, IMAGE, {"bundle": "nowhere"})
    assert "nowhere/bundle.json: there is no such file" in capfd.readouterr().err


IN_A_CONTAINER = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
RUN = """
import sys
import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from mega_ros.ros import soak
from mega_ros.ros.dds import use_large_messages
bundle, profile, reliability = sys.argv[1:]
if profile == "with":
    use_large_messages()
rclpy.init()
quality = qos_profile_sensor_data if reliability == "best_effort" else 1
image = np.full((720, 1280, 3), 128, np.uint8)
result = soak.run(2, image, {"bundle": bundle, "boxes": "full_frame"}, quality)
print(result)
sys.exit("; ".join(fault for fault in result.faults() if "grew" not in fault) or 0)
"""


@pytest.mark.parametrize(("profile", "reliability"), [("without", "reliable"), ("with", "best_effort")])
def test_a_camera_process_in_a_container(tmp_path: Path, profile: str, reliability: str) -> None:
    """1280 x 720 at 30 Hz with 64 MB of shared memory: each image is processed, dropped, or counted as lost."""
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    little_bundle(tmp_path)
    environment = {name: value for name, value in os.environ.items() if "PROFILES_FILE" not in name}
    environment["ROS_DOMAIN_ID"] = str(free_domain())
    line = [*IN_A_CONTAINER, sys.executable, "-c", RUN, str(tmp_path), profile, reliability]
    end = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert end.returncode == 0, end.stderr
    assert "processed" in end.stdout


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"sent": 101}, "101 images were sent, but 100 are accounted for"),
        ({"sent": 99}, "99 images were sent, but 100 are accounted for"),
        ({"counts": GOOD | NONE | {"frames_rejected": 95}}, "95 good images were rejected"),
        ({"memory": [*[500.0] * 30, *[517.0] * 10]}, "the memory grew from 500 to 517"),
        ({"memory": [*[300.0] * 10, *[500.0] * 20, *[515.0] * 10]}, None),
        ({"memory": [*[500.0] * 39, 900.0], "latency": [*[0.1] * 30, *[0.11] * 9, 0.9]}, None),
        ({"latency": [*[0.1] * 30, *[0.3] * 10]}, "the latency grew from 0.1 to 0.3"),
    ],
)
def test_the_verdict(changes: dict[str, object], fault: str | None) -> None:
    usual = {"sent": 100, "counts": NONE | GOOD, "memory": [500.0] * 40, "latency": [0.1] * 40}
    faults = soak.SoakResult(**usual | changes).faults()  # type: ignore[arg-type]
    assert faults == ([fault] if fault else [])
