"""The files of examples/, each in a process of its own, as a user starts them; those of ROS over DDS."""

import csv
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
import short_clip
from domains import free_domain
from little_bundle import little_bundle
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from recordings import Recorder, bag, clip
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool, Header

from mega_ros.ros import standard
from mega_ros.ros.dds import use_large_messages
from mega_ros.ros.read import points_of

PATIENCE = 600.0
"""Seconds to wait for what must come: it ends a hang, and a busy machine does not reach it."""
MANY = 300
"""Answers. Those to what was published earlier are a few."""
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_examples_are_short_and_each_has_a_test() -> None:
    tests = Path(__file__).read_text()
    for example in EXAMPLES.iterdir():
        assert len(example.read_text().splitlines()) <= 60, example
        assert f'"{example.name}"' in tests


def ended(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / example), *map(str, arguments)], capture_output=True, text=True
    )


def run(example: str, *arguments: object) -> str:
    """What it prints."""
    end = ended(example, *arguments)
    assert end.returncode == 0, end.stderr
    return end.stdout


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.iterdir()))
def test_examples_say_how_they_are_used(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"python {example}" in run(example, "--help")
    if example != "stop_zone.py":  # which needs no argument
        end = ended(example)
        assert end.returncode == 2 and "the following arguments are required" in end.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("example", "arguments", "reason"),
    [
        (
            "people_to_csv.py",
            ("people.csv", "bag"),
            "bag: no /mega/joints in it; of a camera's bag, mega replay writes",
        ),
        ("people_to_csv.py", ("people.csv", "gone"), "gone: there is no such file or folder"),
        ("evaluate_bag.py", ("bag",), "bag: no ground truth on /mega/ground_truth"),
        ("own_boxes.py", ("gone.mp4",), "gone.mp4: no film that OpenCV can read"),
        ("live_view.py", ("gone.mp4",), "gone.mp4: no camera or film that OpenCV can read"),
    ],
)
def test_a_wrong_input_is_one_line(
    example: str, arguments: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if example == "live_view.py":
        pytest.importorskip("viser")
    monkeypatch.chdir(tmp_path)
    bag(Path("bag"), *clip(Recorder()))
    end = ended(example, *arguments)
    assert end.returncode == 1 and end.stderr.startswith(reason) and end.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bag"] and not end.stdout


@contextmanager
def running(example: str, *arguments: object) -> Iterator[tuple[Node, Callable[[Callable[[], object]], None]]]:
    """The example, and a node in its DDS domain. The function spins this node until something is true."""
    use_large_messages()
    domain = free_domain()
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
    process = subprocess.Popen([sys.executable, EXAMPLES / example, *map(str, arguments)], env=environment)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("planner", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin_until(true: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert process.poll() is None, f"{example} ended with code {process.returncode}"
            assert time.monotonic() < end, f"{example} gave no such answer in {PATIENCE:g} s"
            executor.spin_once(timeout_sec=0.05)

    try:
        yield node, spin_until
    finally:
        process.kill()
        process.wait()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def people(z: float, sigma: float, x: float = 0.0) -> PointCloud2:
    """One far away, and one of whom a single vertex is z metres ahead."""
    points = np.full((2, 50, 3), 9, np.float32)
    points[1, 17] = x, 0, z
    spread = np.full((2, 50), 0.1, np.float32)
    spread[1, 17] = sigma
    return deserialize_message(standard.people_cloud(Header(), points, spread, np.array([4, 8])), PointCloud2)


def test_a_person_grown_by_three_sigma_stops_the_robot() -> None:
    with running("stop_zone.py", "--ros-args", "-p", "distance:=1.8") as (node, spin_until):
        answers: list[bool] = []
        node.create_subscription(Bool, "stop", lambda answer: answers.append(answer.data), 10)
        meshes = node.create_publisher(PointCloud2, "mega/mesh", 1)

        def answer(mesh: PointCloud2 | None, right: bool, age: float = 0.0) -> None:
            """The robot is told so; before, answers to what was published earlier may come."""

            def told() -> bool:
                if mesh:
                    mesh.header.stamp = (node.get_clock().now() - Duration(seconds=age)).to_msg()
                    meshes.publish(mesh)
                assert len(answers) < MANY, f"stop is {answers[-1]}, not {right}"
                return answers[-3:] == [right] * 3

            answers.clear()
            spin_until(told)

        answer(people(z=3.7, sigma=0.1), right=False)  # 1.7 m before the zone: 3 * 0.1 + 0.36 * 3.7 = 1.63
        answer(people(z=3.7, sigma=0.15), right=True)
        answer(people(z=3.7, sigma=0.1), right=False)
        answer(people(z=2.7, sigma=0.0), right=True)  # 0.7 m before it, and 2.7 is wrong by up to 1.0 m
        answer(people(z=3.7, sigma=0.1), right=False)
        answer(people(z=0.5, sigma=0.0, x=2.85), right=False)  # beside the zone, and 1.09 m beyond the distance
        answer(people(z=0.5, sigma=0.1, x=2.85), right=True)
        answer(people(z=3.7, sigma=0.1), right=False)
        answer(people(z=3.7, sigma=np.nan), right=True)
        answer(people(z=3.7, sigma=0.1), right=False)
        answer(people(z=3.7, sigma=0.1), right=True, age=0.6)
        answer(people(z=3.7, sigma=0.1), right=False)
        answer(None, right=True)


POSITIONS = np.arange(2 * 24 * 3, dtype=np.float32).reshape(2, 24, 3)
SIGMA, IDS, DISTANCE = np.array([[0.25], [0.5]]).repeat(24, axis=1), np.array([4, 8]), np.array([1.0, 2.5])
ROWS = [
    {"id": "4", "x": "0.0000", "y": "1.0000", "z": "2.0000", "pelvis_sigma": "0.2500", "distance": "1.0000"},
    {"id": "8", "x": "72.0000", "y": "73.0000", "z": "74.0000", "pelvis_sigma": "0.5000", "distance": "2.5000"},
]


def test_people_of_a_bag_become_rows(tmp_path: Path) -> None:
    everybody, nobody = points_of(POSITIONS, SIGMA, IDS, DISTANCE), points_of(POSITIONS[:0], SIGMA[:0], IDS[:0])
    recorder = Recorder()
    clouds = [recorder.cloud(k, points, "/mega/joints") for k, points in enumerate((everybody, nobody, everybody))]
    bag(tmp_path / "people", recorder.cloud(0, everybody, "/mega/mesh"), *clouds)
    run("people_to_csv.py", tmp_path / "people.csv", tmp_path / "people")
    rows = list(csv.DictReader((tmp_path / "people.csv").open()))
    assert [row.pop("time") for row in rows] == ["1000000000.000000"] * 2 + ["1000000000.200000"] * 2
    assert rows == ROWS * 2


def test_people_of_a_node_become_rows_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "people.csv"
    with running("people_to_csv.py", table, "--ros-args", "-r", "__ns:=/robot") as (node, spin_until):
        joints = node.create_publisher(PointCloud2, "robot/mega/joints", 1)
        header = Header()
        header.stamp.sec, header.stamp.nanosec = 5, 250_000_000

        def written() -> bool:
            joints.publish(standard.people_cloud(header, POSITIONS, SIGMA.astype(np.float32), IDS, DISTANCE))
            return table.exists() and len(table.read_text().splitlines()) > 2

        spin_until(written)
    assert "waiting for /robot/mega/joints" in capfd.readouterr().err
    rows = list(csv.DictReader(table.open()))[:2]
    assert [row.pop("time") for row in rows] == ["5.250000"] * 2
    assert rows == ROWS


def test_a_bag_is_evaluated(tmp_path: Path) -> None:
    lines = run("evaluate_bag.py", short_clip.bag(tmp_path / "bag", seconds=0.41)).splitlines()
    assert lines[0] == "smoothing, pve, pa_mpjpe, acceleration, recall, joints with a sigma above 0.2 m"
    off, full = [dict(zip(lines[0].split(", "), map(float, line.split(", ")))) for line in lines[1:]]
    assert (off["smoothing"], full["smoothing"]) == (0, 1)
    assert 0.02 < off["pa_mpjpe"] < off["pve"] < 0.3
    assert full["acceleration"] < off["acceleration"]
    assert off["recall"] == full["recall"] > 0.5
    assert 0 <= off["joints with a sigma above 0.2 m"] < 1


def test_people_are_in_the_boxes_of_ones_own_detector(tmp_path: Path) -> None:
    little_bundle(tmp_path)
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    for k in range(12):
        image = np.full((240, 320, 3), 60, np.uint8)
        if k > 4:
            image[80:200, 12 * k : 12 * k + 50] = 180
        writer.write(image)
    writer.release()
    lines = run("own_boxes.py", tmp_path / "film.mp4", tmp_path).splitlines()
    found = [re.fullmatch(r"(.*) s: person (\d+) at (\S+) (\S+) (\S+) m, sigma (\S+) m", line) for line in lines]
    times, ids, x, _, z, sigma = np.array([match.groups() for match in found if match], float).T
    assert len(times) == len(lines) and set(times) == {0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1}
    walker = ids == ids[-1]
    assert walker.sum() > 4 and (np.diff(x[walker]) > 0).all() and (z > 0).all() and (sigma > 0).all()


def test_a_page_shows_the_people_of_a_film(tmp_path: Path) -> None:
    viser = pytest.importorskip("viser")
    import zstandard  # viser brings these
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    film = short_clip.film(tmp_path / "film.mp4", seconds=0.2)
    command = [sys.executable, "-u", str(EXAMPLES / "live_view.py"), str(film)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    said = ""
    while "The last image stays" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    address = re.search(r"http://\S+?:(\d+)", said)
    assert address, said
    assert b"viser" in urllib.request.urlopen(address[0]).read()
    protocol = Subprotocol(f"viser-v{viser.__version__}")
    with connect(f"ws://localhost:{address[1]}", subprotocols=[protocol], max_size=None) as page:
        message = page.recv(timeout=PATIENCE)  # of all that is in the scene: two lengths, then it is packed
    assert isinstance(message, bytes)
    assert b"/people/0" in zstandard.ZstdDecompressor().decompressobj().decompress(message[16:])
    process.communicate("\n")
    assert process.returncode == 0
