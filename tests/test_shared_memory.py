"""Shared memory of Fast DDS: what fits, what may be removed, and images in a container's 64 MB."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mega_ros.environment import share
from mega_ros.ros import dds, shared_memory
from mega_ros.ros.shared_memory import MIB, YOUNG

TEMPLATE = share() / "config" / "fastdds.xml"


@pytest.mark.parametrize(
    ("free", "segment"),
    [(24 * 1024 * MIB, 64 * MIB), (64 * MIB, 16 * MIB), (60 * MIB, 15 * MIB), (4 * MIB, MIB), (4 * MIB - 1, 0), (0, 0)],
)
def test_segment_fits_the_free_space(free: int, segment: int) -> None:
    assert shared_memory.segment_size(free) == segment


def test_profiles(tmp_path: Path) -> None:
    file = tmp_path / "profile.xml"
    for segment in (5 * MIB, 0):
        file.write_text(shared_memory.profile(segment, TEMPLATE))
        assert shared_memory.segment_of(file) == segment
        texts: dict[str, list[str | None]] = {}
        for element in ElementTree.parse(file).iter():
            texts.setdefault(element.tag.partition("}")[2], []).append(element.text)
        assert texts["type"] == (["SHM", "UDPv4"] if segment else ["UDPv4"])
        assert texts["transport_id"] == (["large_shared_memory", "udp"] * 2 if segment else ["udp"] * 2)
        assert texts.get("maxMessageSize", []) == ([str(segment)] if segment else [])
    assert shared_memory.segment_of(TEMPLATE) == 64 * MIB
    assert shared_memory.segment_of(tmp_path / "nowhere.xml") == 0


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"1234")
        os.utime(folder / name, (0, 0))
    return [folder / name for name in names]


def test_only_what_nobody_has_locked_is_removed(tmp_path: Path) -> None:
    files(tmp_path, "fastdds_0123456789abcdef", "fastdds_0123456789abcdef_el")
    files(tmp_path, "fastdds_port7411", "fastdds_port7411_el", "sem.fastdds_port7411_mutex")
    alive = files(tmp_path, "fastdds_fedcba9876543210", "fastdds_fedcba9876543210_el")
    # one of its two locks is held
    alive += files(tmp_path, "fastdds_port7400", "fastdds_port7400_el", "fastdds_port7400_sl")
    others = files(tmp_path, "fastdds_port7413", "my_fastdds_0123456789abcdef_el", "sem.other_mutex", "fastdds_x_el")
    young = files(tmp_path, "fastdds_aaaaaaaaaaaaaaaa", "fastdds_aaaaaaaaaaaaaaaa_el")
    os.utime(young[1])
    with alive[1].open() as first, alive[4].open() as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_SH)
        shared_memory.clean(tmp_path)
    assert {*tmp_path.iterdir()} == {*alive, *others, *young}
    shared_memory.clean(tmp_path / "nowhere")


PROCESS = """
import sys, time
from mega_ros.ros.dds import transport, use_large_messages
use_large_messages()
import rclpy
rclpy.init(domain_id=int(sys.argv[1]))
node = rclpy.create_node("somebody")
print(transport()[0], flush=True)
time.sleep(600)
"""


def segments() -> set[str]:
    return {path.name for path in shared_memory.MOUNT.glob("fastdds_*_el") if "port" not in path.name}


def test_segments_of_killed_processes_go_and_living_ones_stay() -> None:
    environment = {name: value for name, value in os.environ.items() if "PROFILES_FILE" not in name}
    command = [sys.executable, "-c", PROCESS, str(os.getpid() % 200 + 1)]
    processes, made = [], []
    try:
        for _ in range(2):
            before = segments()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            processes.append(process)
            assert "shared memory with a segment of" in process.stdout.readline()  # type: ignore[union-attr]
            own = f"/proc/{process.pid}/fd"
            names = {Path(os.readlink(f"{own}/{number}")).name for number in os.listdir(own)}
            made.append(names & (segments() - before))
            assert len(made[-1]) == 1
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        for name in made[0] | made[1]:
            os.utime(shared_memory.MOUNT / name, (time.time() - 2 * YOUNG,) * 2)
        shared_memory.clean()
        assert not made[0] & segments()
        assert made[1] <= segments()
        assert not [path for name in made[0] if (path := shared_memory.MOUNT / name.removesuffix("_el")).exists()]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_profiles_of_killed_processes_go_and_living_ones_stay(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "PROFILES_FILE" not in name}
    command = [sys.executable, "-c", PROCESS, str(os.getpid() % 200 + 1)]
    os.mkfifo(tmp_path / "mega_fastdds_pipe.xml")
    processes: list[subprocess.Popen[str]] = []
    made: list[set[Path]] = []
    try:
        for number in range(3):
            before = {*tmp_path.iterdir()}
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment | {"TMPDIR": str(tmp_path)}
            )
            processes.append(process)
            assert "shared memory with a segment of" in process.stdout.readline()  # type: ignore[union-attr]
            made.append({*tmp_path.iterdir()} - before)
            for path in tmp_path.iterdir():
                os.utime(path, (0, 0))
            if not number:
                process.kill()
                process.wait()
                assert len(made[0]) == 1 and made[0] < {*tmp_path.iterdir()}
        assert {*tmp_path.iterdir()} == made[1] | made[2] and len(made[1] | made[2]) == 2
    finally:
        for process in processes:
            process.kill()
            process.communicate()


SMALL = """
mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"
"""


@pytest.mark.parametrize(("size", "carrier"), [("64m", "a segment of 1"), ("2m", "no room for shared memory")])
def test_small_shared_memory(size: str, carrier: str) -> None:
    """In a file system of its own, as a container has it."""
    prefix = ["unshare", "--mount", "sh", "-c", SMALL.format(size=size), "sh"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting needs root")
    environment = {name: value for name, value in os.environ.items() if "PROFILES_FILE" not in name}
    code = PROCESS.replace("time.sleep(600)", "")
    command = [*prefix, sys.executable, "-c", code, str(os.getpid() % 200 + 1)]
    end = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert carrier in end.stdout, end.stderr


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*dds.PROFILES, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA")
    dds.use_large_messages()
    assert not any(name in os.environ for name in dds.PROFILES)
    assert dds.transport() == ("Fast DDS, FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA", "")
    mine = tmp_path / "mine.xml"
    monkeypatch.setenv(dds.PROFILES[0], str(mine))
    carrier, advice = dds.transport()
    assert f"as there is no file {mine}" in carrier and f"correct or unset {dds.PROFILES[0]}" in advice
    mine.touch()
    dds.use_large_messages()
    assert os.environ[dds.PROFILES[0]] == str(mine)
    assert dds.transport() == (f"Fast DDS, profile {mine}", "")


@pytest.mark.parametrize("distribution", ["humble", "jazzy", "kilted", ""])
def test_the_variable_is_the_one_that_this_fast_dds_reads(monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    for name in (*dds.PROFILES, "FASTDDS_BUILTIN_TRANSPORTS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("ROS_DISTRO", distribution)
    named = [name for name in dds.PROFILES if f"or set {name};" in dds.transport()[1]]
    dds.use_large_messages()
    assert [name for name in dds.PROFILES if os.environ[name]] == named
    assert bool(os.environ[dds.PROFILES[1]]) == (distribution in ("humble", "jazzy"))
    assert bool(os.environ[dds.PROFILES[0]]) != (distribution in ("humble", "jazzy"))


def test_what_stays_on_this_machine_does_so_on_each_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"):
        monkeypatch.setenv(name, "")
    for distribution, localhost_only in (("kilted", ""), ("humble", "1")):
        monkeypatch.setenv("ROS_DISTRO", distribution)
        dds.stay_on_this_machine()
        assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
        assert os.environ["ROS_LOCALHOST_ONLY"] == localhost_only


def test_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No profile, and other DDS implementations: what to set. Nothing where nothing is needed."""
    for name in (*dds.PROFILES, "FASTDDS_BUILTIN_TRANSPORTS", "CYCLONEDDS_URI"):
        monkeypatch.delenv(name, raising=False)
    assert dds.profile_variable() in dds.transport()[1]
    for implementation, words in {
        "rmw_cyclonedds_cpp": ["net.core.rmem_max", "SocketReceiveBufferSize", "CYCLONEDDS_URI"],
        "rmw_zenoh_cpp": [],
    }.items():
        monkeypatch.setattr(dds, "get_rmw_implementation_identifier", lambda: implementation)  # noqa: B023
        carrier, advice = dds.transport()
        assert carrier == implementation
        assert all(word in advice for word in words) and bool(advice) == bool(words)
