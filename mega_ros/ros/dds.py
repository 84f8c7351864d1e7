"""Configuration of the DDS implementation, set before ROS starts, and whether it suits camera images."""

from __future__ import annotations

import atexit
import fcntl
import os
import tempfile
from pathlib import Path

from rclpy.utilities import get_rmw_implementation_identifier

from ..environment import share
from . import shared_memory

MIB = shared_memory.MIB
PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""Variables that name a profile of Fast DDS; the second one until version 2, see `profile_variable`."""
OURS = "mega_fastdds_"
"""How the names of the profiles begin that are written here."""
LARGE_BUFFER = 32 * MIB
"""Bytes of a socket's buffer: several camera images have room."""
HELP = "see docs/robot/transport.md"
_written: list[Path] = []


def use_large_messages() -> None:
    """Let Fast DDS carry camera images in shared memory, as much as fits; call it before ROS starts.

    What the user has set stays: a profile, or FASTDDS_BUILTIN_TRANSPORTS.
    """
    if any(os.environ.get(name) for name in (*PROFILES, "FASTDDS_BUILTIN_TRANSPORTS")):
        return
    shared_memory.clean()
    segment = shared_memory.segment_size(shared_memory.free_space())
    shared_memory.remove_left(Path(tempfile.gettempdir()).glob(f"{OURS}*.xml"))
    file, name = tempfile.mkstemp(prefix=OURS, suffix=".xml")
    fcntl.flock(file, fcntl.LOCK_SH)  # it stays open, and so locked, as long as this process lives
    os.write(file, shared_memory.profile(segment, share() / "config" / "fastdds.xml").encode())
    _written.append(Path(name))
    atexit.register(remove_profile)
    os.environ[profile_variable()] = name


def profile_variable() -> str:
    """Which of PROFILES this ROS distribution's Fast DDS reads."""
    return PROFILES[os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")]


def stay_on_this_machine() -> None:
    """Hides this process, and those that it starts, from other machines; call it before ROS starts."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":  # it does not know that variable, later ones warn of this one
        os.environ["ROS_LOCALHOST_ONLY"] = "1"


def remove_profile() -> None:
    """Remove what `use_large_messages` wrote in this process."""
    for profile in _written:
        profile.unlink(missing_ok=True)


def transport() -> tuple[str, str]:
    """What carries this process' messages, and what to set if camera images are likely to be lost; else nothing.

    To be asked once a node exists: only then does the DDS implementation make its segment.
    """
    implementation = get_rmw_implementation_identifier()
    if "fastrtps" not in implementation:
        return implementation, _advice(implementation)
    variable = next((name for name in PROFILES if os.environ.get(name)), None)
    if variable is None:
        if builtin := os.environ.get("FASTDDS_BUILTIN_TRANSPORTS"):
            return f"Fast DDS, FASTDDS_BUILTIN_TRANSPORTS={builtin}", ""
        what = "Fast DDS with its own shared memory of 0.5 MiB, too small for camera images"
        return what, f"{what}: start it by `mega node`, or set {profile_variable()}; {HELP}"
    profile = Path(os.environ[variable])
    segment = shared_memory.segment_of(profile)
    if not profile.is_file():
        what = f"Fast DDS with its own shared memory of 0.5 MiB, as there is no file {profile}"
        return what, f"{what}; camera images are likely to be lost: correct or unset {variable}; {HELP}"
    free = f"/dev/shm has {shared_memory.free_space() / MIB:.0f} MiB free"
    if segment and shared_memory.is_mapped():
        return f"Fast DDS, shared memory with a segment of {segment / MIB:.3g} MiB", ""
    if segment:
        what = f"Fast DDS over UDP, as its segment of {segment / MIB:.3g} MiB could not be made: {free}"
    elif profile.name.startswith(OURS):
        what = f"Fast DDS over UDP, as there is no room for shared memory: {free}"
    else:
        return f"Fast DDS, profile {profile}", ""
    return what, f"{what}; camera images are likely to be lost: give it more (docker: --shm-size=512m); {HELP}"


def _advice(implementation: str) -> str:
    """For another DDS implementation than Fast DDS; nothing if it needs none."""
    if "zenoh" in implementation:  # over TCP
        return ""
    limit = Path("/proc/sys/net/core/rmem_max")
    small = limit.exists() and int(limit.read_text()) < LARGE_BUFFER
    if not small and ("cyclonedds" not in implementation or os.environ.get("CYCLONEDDS_URI")):
        return ""
    what = f"{implementation}: camera images are likely to be lost between sockets; "
    setting = f"sysctl -w net.core.rmem_max={LARGE_BUFFER}"
    return what + setting + (" and SocketReceiveBufferSize by CYCLONEDDS_URI; " if "cyclone" in what else "; ") + HELP
