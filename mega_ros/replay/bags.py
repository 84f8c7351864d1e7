"""ROS 1 and ROS 2 bags, read without ROS: their topics, and their messages with times.

rosbags reads them. Its errors about a damaged bag become an InputError that names the bag. Messages are read as what
their types are in ROS: the definitions in the bag are not used, as those of other topics may be missing or wrong.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from heapq import heappop, heappush, merge
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from mega_model.core.errors import InputError

from ..ros.standard import MESSAGES
from ..stream import RESTART

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # rosbags brings it

FILES = (".mcap", ".db3", ".bag", ".mcap.zstd", ".db3.zstd")
"""Endings of bag files' names."""
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


@cache
def _ros1_messages() -> Typestore:
    return get_typestore(Stores.ROS1_NOETIC)


class Message(NamedTuple):
    """A message and its time."""

    time: int
    """nanoseconds on any clock; only differences matter."""
    topic: str
    type: str
    """e.g. "sensor_msgs/msg/CompressedImage"."""
    data: bytes
    """CDR, as in bags and over DDS."""

    @property
    def stamp(self) -> int:
        """Nanoseconds, of the header that it must begin with; zero if it is cut off before it."""
        return _stamp(self.data)

    def read(self) -> Any:
        """The deserialised message, of rosbags."""
        return MESSAGES.deserialize_cdr(self.data, self.type)


def is_bag(path: Path) -> bool:
    """Whether it is a bag: a folder with metadata.yaml or with the files of one bag, or such a file."""
    if path.is_dir():
        if has_metadata(path):
            return True
        if any(inner.is_dir() and has_metadata(inner) for inner in inside(path)):
            return False  # a folder of bags
    names = [re.fullmatch(r"(.*?)(?:_(\d+))?\.(?:mcap|db3|bag)(?:\.zstd)?", file.name) for file in files_of(path)]
    if len(names) < 2:
        return len(names) == 1
    # rosbag2 calls the parts of one bag name_0.mcap, name_1.mcap, ...: others are bags of their own
    parts = {(name[1], int(name[2] or -1)) for name in names if name}
    return len(parts) == len(names) and parts == {(min(parts)[0], number) for number in range(len(names))}


def inside(folder: Path) -> list[Path]:
    """What is in a folder, by name, but for what is hidden: macOS puts a ._NAME beside each NAME.

    Nothing where it cannot be read, as lost+found on a disk.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def has_metadata(folder: Path) -> bool:
    """Whether it says itself that it is a bag. False for a folder that may not be read."""
    return os.path.isfile(folder / "metadata.yaml")


def files_of(path: Path) -> list[Path]:
    """The files that hold a bag's messages, in the order of their names' numbers."""
    if path.is_dir():
        files = [file for file in inside(path) if file.name.endswith(FILES) and file.is_file()]
        return sorted(files, key=lambda file: (len(file.name), file.name))
    return [path] if path.is_file() and path.name.endswith(FILES) else []


class Bag:
    """An open bag. Raises InputError, here and later, for one that is damaged."""

    def __init__(self, path: Path, parts: Sequence[Reader1 | Reader2]) -> None:
        """parts: of the bag, open, of one ROS version."""
        self.path = path
        self._parts = parts
        self.topics: dict[str, str] = {c.topic: c.msgtype for part in parts for c in part.connections}
        """name -> type, e.g. "sensor_msgs/msg/Image", also in a bag of ROS 1."""
        self.is_ros2 = isinstance(parts[0], Reader2)

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time (ns) and bytes of the messages on some topics, in time order. No topics, no messages."""
        wanted = set(topics)
        chosen = [(part, [c for c in part.connections if c.topic in wanted]) for part in self._parts]
        with _naming(self.path):
            # rosbags reads an empty list as all of them
            found = [part.messages(connections) for part, connections in chosen if connections]
            yield from merge(*found, key=lambda message: message[1])

    def read(self, connection: Connection, data: bytes) -> Any:
        """The message as rosbags has it. A camera_info of ROS 1 has the field names of ROS 2."""
        with _naming(self.path, connection.topic):
            read = MESSAGES.deserialize_cdr if self.is_ros2 else _ros1_messages().deserialize_ros1
            message: Any = read(data, connection.msgtype)
        if connection.msgtype == CAMERA_INFO and hasattr(message, "K"):
            for name in "DKRP":
                object.__setattr__(message, name.lower(), getattr(message, name))
        return message

    def in_stamp_order(self, topic: str) -> Iterator[tuple[int, Connection, bytes]]:
        """Stamp (ns), connection and bytes of all messages on a topic with headers, in the order of the stamps.

        A message without a stamp has the time at which it was recorded. Where stamps go back by more than `RESTART`,
        as when a simulation is reset, another run begins, which follows the one before. The topic is read twice, and
        only what was recorded out of order is held.
        """
        runs: list[list[int]] = [[]]
        latest = 0
        for _, time, data in self.messages([topic]):
            stamp = self.stamp(data)
            if 0 < stamp < latest - RESTART:
                runs.append([])
                latest = 0
            runs[-1].append(stamp or time)
            latest = max(latest, stamp)
        order = [stamp for run in runs for stamp in sorted(run)]
        waiting: list[tuple[int, int, Connection, bytes]] = []
        given = 0
        for count, (connection, time, data) in enumerate(self.messages([topic])):
            heappush(waiting, (self.stamp(data) or time, count, connection, data))
            while waiting and waiting[0][0] == order[given]:
                stamp, _, connection, data = heappop(waiting)
                given += 1
                yield stamp, connection, data

    def stamp(self, data: bytes) -> int:
        """Nanoseconds, of the header that a message begins with: read without the rest of it, which may be large.

        Zero for a message that is cut off before it.
        """
        return _stamp(data, self.is_ros2)


HEADER = 4
"""Where the stamp of a message with a header begins: in CDR behind the encoding, in ROS 1 behind a counter."""


def _stamp_form(data: bytes, is_ros2: bool) -> struct.Struct:
    """Seconds and nanoseconds, in the message's byte order: that of ROS 1, or which CDR's second byte says."""
    return struct.Struct("<iI" if not is_ros2 or data[1:2] == b"\1" else ">iI")


def _stamp(data: bytes, is_ros2: bool = True) -> int:
    form = _stamp_form(data, is_ros2)
    if len(data) < HEADER + form.size:
        return 0
    seconds, nanoseconds = form.unpack_from(data, HEADER)
    return int(seconds) * 10**9 + int(nanoseconds)


def with_stamp(message: Message) -> Message:
    """A message with a header, whose stamp, if it is zero, is the time at which it was recorded."""
    form = _stamp_form(message.data, True)
    if message.stamp or len(message.data) < HEADER + form.size:
        return message
    stamp = form.pack(*divmod(message.time, 10**9))
    return message._replace(data=message.data[:HEADER] + stamp + message.data[HEADER + form.size :])


@contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """A folder of rosbag2, with or without metadata.yaml, or one file: .mcap, .db3, either with .zstd, .bag."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if not is_bag(path):
        raise InputError(
            f"{path}: there is no bag here: no metadata.yaml, and not one file, or the parts of one, that ends in "
            f"{', '.join(FILES)}"
        )
    with ExitStack() as stack:
        paths = [path] if has_metadata(path) else files_of(path)
        paths = [stack.enter_context(_unpacked(p)) if p.suffix == ".zstd" else p for p in paths]
        with _naming(path):
            # a folder of ROS 2 may be called name.bag
            readers: list[Reader1 | Reader2]
            readers = [Reader1(p) if p.suffix == ".bag" and p.is_file() else Reader2(p) for p in paths]
            for reader in readers:
                stack.enter_context(reader)
        if len({*map(type, readers)}) > 1:
            raise InputError(f"{path}: has parts of ROS 1 and of ROS 2; name one of them")
        yield Bag(path, readers)


def read_bag(path: Path, topics: Iterable[str]) -> Iterator[Message]:
    """The messages of a ROS 2 bag on some topics, in time order."""
    with open_bag(path) as bag:
        if not bag.is_ros2:
            raise InputError(f"{path}: a bag of ROS 1, whose messages ROS 2 cannot read; convert it (rosbags-convert)")
        for connection, stamp, data in bag.messages(topics):
            yield Message(stamp, connection.topic, connection.msgtype, bytes(data))


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file compressed as a whole, unpacked into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.stem
        try:
            with zstd.open(path, "rb") as packed, out.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (zstd.ZstdError, EOFError) as error:
            raise InputError(f"{path}: damaged or cut off: {error}") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be unpacked into {folder} ({error.strerror}); TMPDIR names another"
            ) from None
        yield out


@contextmanager
def _naming(path: Path, topic: str = "") -> Iterator[None]:
    """Makes an InputError of whatever rosbags raises: on damaged bags that may be anything, also a TypeError.

    So the block must hold calls of rosbags only: an error of ours would seem to be one of the bag.
    """
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        where = f"{path}: {topic}" if topic else f"{path}"
        for cause in (error, error.__cause__):
            if isinstance(cause, OSError):
                raise InputError(f"{where}: cannot be read ({cause.strerror})") from error
        if isinstance(error, KeyError) and not topic:  # of a definition that the recorder did not find: 'unknown'
            why = "which rosbags does not know; record without them, or leave them out by mcap filter"
            raise InputError(f"{where}: has topics with a definition of the kind {what}, {why}") from error
        if topic:
            raise InputError(f"{where}: damaged or cut off, rosbags says: {what}") from error
        mend = "what was cut off may be mended: mcap recover, ros2 bag reindex, rosbag reindex"
        raise InputError(f"{where}: damaged, cut off or not of ROS, rosbags says: {what}; {mend}") from error
