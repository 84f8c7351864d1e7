"""Shared memory of Fast DDS: how much a process takes, what killed processes left, and the profile that asks for it.

Messages lie in a segment of the process that sends them; one who receives maps it. Fast DDS allocates a segment whole,
so it must fit the space that is free: a container has 64 MB in all, by default.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

MOUNT = Path("/dev/shm")
MIB = 2**20
LARGEST = 64 * MIB
SMALLEST = MIB
"""Below it no person's mesh would fit well."""
YOUNG = 30.0
"""Seconds. Files that are younger stay: a process that starts makes a lock file first, and locks it then."""
_LOCK = re.compile(r"(?P<name>fastdds_([0-9a-z]{16}|port\d{1,5}))_(el|sl)")
_XML = "{http://www.eprosima.com}"


def free_space(mount: Path = MOUNT) -> int:
    """Bytes; 0 where there is no such file system."""
    try:
        state = os.statvfs(mount)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize


def segment_size(free: int) -> int:
    """Bytes of free space -> of a segment: a quarter, so that cameras have room, too. 0: use UDP instead."""
    size = min(LARGEST, free // 4) // MIB * MIB
    return size if size >= SMALLEST else 0


def profile(segment: int, template: Path) -> str:
    """A profile of Fast DDS: `template` (config/fastdds.xml) with a segment of that many bytes, or none for 0."""
    ElementTree.register_namespace("", _XML.strip("{}"))
    root = ElementTree.parse(template).getroot()
    for tag in ("segment_size", "maxMessageSize"):
        for element in root.iter(_XML + tag):
            element.text = str(segment)
    if not segment:
        for parent in (root.find(f".//{_XML}transport_descriptors"), root.find(f".//{_XML}userTransports")):
            assert parent is not None
            parent.remove(parent[0])  # the template has shared memory first, and UDP
    return ElementTree.tostring(root, encoding="unicode")


def segment_of(profile: Path) -> int:
    """Bytes of the segment that a profile asks for; 0 if it asks for none, or cannot be read."""
    try:
        found = re.search(r"<segment_size>\s*(\d+)\s*<", profile.read_text(errors="replace"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def clean(mount: Path = MOUNT) -> None:
    """Removes what killed processes left.

    It decides as Fast DDS' own `fastdds shm clean`: each segment and each port has a lock file which a living process
    keeps locked (flock), and the system unlocks it when the process ends. The lock is held while the files go, so no
    process can begin to use them meanwhile.
    """
    try:
        found = [match for path in mount.iterdir() if (match := _LOCK.fullmatch(path.name))]
    except OSError:
        return
    for name in {match["name"] for match in found}:
        locks = [mount / match.string for match in found if match["name"] == name]
        with suppress(OSError), ExitStack() as held:  # alive, somebody else's, or gone by now
            for lock in locks:
                _lock_left(lock, held)
            for path in (mount / name, mount / f"sem.{name}_mutex", *locks):
                path.unlink(missing_ok=True)


def remove_left(files: Iterable[Path]) -> None:
    """Removes those that killed processes have left: a living one keeps its file locked (flock)."""
    for file in files:
        with suppress(OSError), ExitStack() as held:
            _lock_left(file, held)
            file.unlink()


def _lock_left(path: Path, held: ExitStack) -> None:
    """Locks a file that no living process has locked, until `held` ends. Raises OSError for one that must stay."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # everybody may write where it is: it may be a pipe
    held.callback(os.close, file)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if time.time() - os.fstat(file).st_mtime < YOUNG:
        raise BlockingIOError


def is_mapped() -> bool:
    """Whether this process has a segment of Fast DDS in its memory."""
    maps = Path("/proc/self/maps")
    return maps.exists() and re.search(r"/fastdds_[0-9a-z]{16}$", maps.read_text(), re.MULTILINE) is not None
