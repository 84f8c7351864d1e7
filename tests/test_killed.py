"""Processes that are killed (SIGKILL) while they work: the others go on, and nothing is left behind."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from domains import free_domain
from rclpy.context import Context
from sensor_msgs.msg import Image

pytest.importorskip("onnx", reason="graphs are made with the extra export")
from little_bundle import little_bundle
from recordings import Recorder, bag, clip
from test_node import PATIENCE, Peer, command

from mega_ros.ros import shared_memory
from mega_ros.ros.signals import end_with_parent

CAMERA = """
import array, time
from mega_ros.ros.dds import use_large_messages
use_large_messages()
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("camera")
images = node.create_publisher(Image, "image", 1)
image = Image(width=320, height=240, encoding="bgr8", step=960, data=array.array("B", bytes([128]) * 230400))
while True:
    image.header.stamp = node.get_clock().now().to_msg()
    images.publish(image)
    time.sleep(0.05)
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    domain = free_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    little_bundle(tmp_path)
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    peer = Peer(context, Image, "unused", "/")
    yield peer
    peer.executor_.shutdown()
    peer.destroy_node()
    rclpy.shutdown(context=context)


def kill(process: subprocess.Popen[str]) -> set[str]:
    """At any moment; the lock files of its shared memory, made older than those that stay."""
    time.sleep(random.random())
    names = {Path(os.readlink(file)).name for file in Path(f"/proc/{process.pid}/fd").iterdir()}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    own = {name for name in names if re.fullmatch("fastdds_[0-9a-z]{16}_el", name)}
    for name in own:
        with suppress(FileNotFoundError):  # another test's start may have found it already
            os.utime(shared_memory.MOUNT / name, (time.time() - 2 * shared_memory.YOUNG,) * 2)
    return own


def more_meshes(peer: Peer) -> None:
    peer.meshes.clear()
    peer.wait(lambda: len(peer.meshes) > 3)


def test_the_others_go_on(peer: Peer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    node = command("-p", f"bundle:={tmp_path}", "-p", "boxes:=full_frame", "-p", "timeout:=0.5")
    camera = [sys.executable, "-c", CAMERA]
    viewer = [sys.executable, "-m", "mega_ros.cli", "view", "--port", port]
    alive = {name: subprocess.Popen(line, text=True) for name, line in (("node", node), ("camera", camera))}
    alive["viewer"] = subprocess.Popen(viewer, text=True, stdout=subprocess.PIPE)
    assert alive["viewer"].stdout is not None
    try:
        assert any("http" in line for line in alive["viewer"].stdout)
        more_meshes(peer)
        dead = kill(alive["camera"])
        peer.status(lambda s, v: s.level == DiagnosticStatus.ERROR and "no images" in s.message)
        alive["camera"] = subprocess.Popen(camera, text=True)
        more_meshes(peer)

        dead |= kill(alive["node"])
        assert len(dead) == 2
        alive["node"] = subprocess.Popen(node, text=True)
        more_meshes(peer)
        assert any("http" in line for line in alive["viewer"].stdout), "the topology of the new node"
        # a start leaves what somebody has locked at that moment, and living processes look at the locks of others
        start = [sys.executable, "-c", "from mega_ros.ros.dds import use_large_messages as use; use()"]
        peer.wait(
            lambda: not [name for name in dead if (shared_memory.MOUNT / name).exists()],
            lambda: subprocess.run(start, check=True),
        )
        assert all(process.poll() is None for process in alive.values())
    finally:
        for process in alive.values():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def test_a_killed_player_leaves_no_node(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    little_bundle(tmp_path / "bundle")
    path = bag(tmp_path / "bag", *clip(Recorder()))
    words = [path, "--live", "--bundle", tmp_path / "bundle", "--boxes", "full_frame", "--out", tmp_path / "out"]
    player = subprocess.Popen([sys.executable, "-m", "mega_ros.cli", "replay", *map(str, words)], text=True)
    nodes: list[psutil.Process] = []
    try:
        while not nodes:
            assert player.poll() is None
            nodes = [child for child in psutil.Process(player.pid).children() if "mega_ros.node" in child.cmdline()]
    finally:
        time.sleep(random.random())
        player.kill()
        player.communicate()
    assert not psutil.wait_procs(nodes, timeout=PATIENCE)[1]


@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_replay_leaves_no_workers(number: int, inputs: int, tmp_path: Path) -> None:
    """And, unless it is killed, no file. One input is divided between the workers, of three each is a job."""
    (tmp_path / "bundle").mkdir()
    little_bundle(tmp_path / "bundle")
    words: list[object] = [bag(tmp_path / f"bag{k}", *clip(Recorder(), 3000 // inputs)) for k in range(inputs)]
    words += ["--workers", 2, "--bundle", tmp_path / "bundle", "--boxes", "full_frame", "--out", tmp_path / "out"]
    replay = subprocess.Popen(
        [sys.executable, "-m", "mega_ros.cli", "replay", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        children: list[psutil.Process] = []
        while len(children) < 3 or not [*tmp_path.glob("out/**/.unfinished*")]:  # two, and what multiprocessing starts
            assert replay.poll() is None
            children = psutil.Process(replay.pid).children()
    finally:
        if number == signal.SIGINT:  # as by Ctrl-C in a terminal
            os.killpg(replay.pid, number)
        else:
            replay.send_signal(number)
        said = replay.communicate(timeout=PATIENCE)[1]  # workers that are left would hold stderr
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]
    if number != signal.SIGKILL:
        # where Ctrl-C comes while Python runs the text of a program, as dataclasses do, it ends by the signal itself
        assert replay.returncode in (130, -signal.SIGINT) and said == "mega replay: interrupted\n"
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("parent", "code"), [(os.getpid, 0), (lambda: 1, 143)], ids=["lives", "is gone"])
def test_a_process_knows_that_its_parent_is_gone(
    monkeypatch: pytest.MonkeyPatch, parent: Callable[[], int], code: int
) -> None:
    """Which it was when it made `end_with_parent`'s function: the real one, and in its place process 1."""
    monkeypatch.setattr(os, "getpid", parent)
    assert subprocess.run(["true"], preexec_fn=end_with_parent()).returncode == code
