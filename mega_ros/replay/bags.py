"""ROS 1 and ROS 2 bags, read without ROS: their topics, and their messages with times.

rosbags reads them. Its errors about a damaged bag become an InputError that names the file. Messages are read as what
their types are in ROS: the definitions in the bag are not used, as those of other topics may be missing or wrong.
Of metadata.yaml only the list of files is used: these say themselves what is in them, and people edit its QoS.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from heapq import heappop, heappush, merge
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from mega_model.core.errors import InputError
from mega_model.core.files import MOST_JSON, read_bytes

from ..ros.standard import MESSAGES
from ..stream import RESTART

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd  # rosbags brings it

ROS1 = (".bag", ".bag.active")
"""Endings of bag files' names in ROS 1. The second is of a recorder that was killed."""
FILES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd", *ROS1)
"""Endings of bag files' names."""
ZSTD = b"\x28\xb5\x2f\xfd"
"""How what is compressed by zstd begins. A message in CDR begins with a zero."""
INFORMATION = "rosbag2_bagfile_information"
"""Field of metadata.yaml that holds all others."""
JOURNALS = ("-wal", "-journal")
"""What sqlite's journals have behind the name of the database."""
MEND = {"mcap": "mcap recover", "db3": "sqlite3 FILE .recover", "bag": "rosbag reindex"}
"""Kind of a file -> what may mend it."""
_NAME = re.compile(r"(.*?)(?:_(\d+))?\.(mcap|db3|bag)(?:\.zstd|\.active)?")
"""Of a bag file: the bag, number and kind."""
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
    names = [_NAME.fullmatch(file.name) for file in files_of(path)]
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
    """Whether it says itself that it is a bag. False for a folder that may not be read.

    Others have a metadata.yaml, too: it is one of a bag if it says so, or if files of a bag lie beside it.
    """
    where = folder / "metadata.yaml"
    if not os.path.isfile(where) or files_of(folder):
        return os.path.isfile(where)
    try:
        with where.open("rb") as file:
            return INFORMATION.encode() in file.read(4096)
    except OSError:
        return False


def files_of(path: Path) -> list[Path]:
    """The files that may hold a bag's messages, in the order of their names' numbers."""
    if path.is_dir():
        files = [file for file in inside(path) if file.name.endswith(FILES) and file.is_file()]
        return sorted(files, key=lambda file: (len(file.name), file.name))
    return [path] if path.is_file() and path.name.endswith(FILES) else []


def parts_of(path: Path) -> list[Path]:
    """The files of a bag: those that its metadata.yaml lists, else all. Raises InputError for a wrong metadata.yaml."""
    if not has_metadata(path):
        return files_of(path)
    where, anew = path / "metadata.yaml", "ros2 bag reindex writes it anew"
    content = read_bytes(where, MOST_JSON)
    try:
        names = yaml.safe_load(content)[INFORMATION]["relative_file_paths"]
        parts = [path / PurePath(name).name for name in names]
    except (yaml.YAMLError, UnicodeError, ValueError, KeyError, TypeError):
        raise InputError(f"{where}: not what rosbag2 writes; {anew}") from None
    missing = [part.name for part in parts if not part.is_file()]
    if missing or not parts:
        raise InputError(f"{where}: lists {f'{missing[0]}, which is not there' if missing else 'no files'}; {anew}")
    return parts


def left_out(path: Path) -> list[str]:
    """Names of files beside a bag's metadata.yaml that it does not list, but for those that are unpacked ones of it."""
    listed = {part.name.removesuffix(".zstd") for part in parts_of(path)}
    return [file.name for file in files_of(path) if file.name.removesuffix(".zstd") not in listed]


class Runs:
    """Times that always grow, of stamps that go back where a recording starts again: what follows is later."""

    def __init__(self) -> None:
        self.count = 0
        """how often they went back by more than `RESTART`."""
        self._latest: int | None = None

    def time(self, stamp: int) -> int:
        """Of the next stamp (ns)."""
        if self._latest is not None and stamp < self._latest - RESTART:
            self.count, self._latest = self.count + 1, None
        self._latest = stamp if self._latest is None else max(self._latest, stamp)
        return self.count * 2**64 + stamp  # more than any two stamps are apart


class Bag:
    """An open bag. Raises InputError, here and later, for one that is damaged."""

    def __init__(self, path: Path, parts: Mapping[Path, Reader1 | Reader2]) -> None:
        """parts: the bag's files, open, of one ROS version."""
        self.path = path
        self._parts = parts
        self._connections = [c for part in parts.values() for c in part.connections]
        self.topics: dict[str, str] = {c.topic: c.msgtype for c in self._connections}
        """name -> type, e.g. "sensor_msgs/msg/Image", also in a bag of ROS 1."""
        self.is_ros2 = all(isinstance(part, Reader2) for part in parts.values())

    def announced(self, topic: str) -> int:
        """How many messages the bag says that it has on a topic."""
        return sum(c.msgcount for c in self._connections if c.topic == topic)

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time (ns) and bytes of the messages on some topics, in time order. No topics, no messages."""
        wanted = set(topics)
        found = [
            _messages(file, part, [c for c in part.connections if c.topic in wanted])
            for file, part in self._parts.items()
        ]
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

    def in_stamp_order(self, topic: str) -> Iterator[tuple[int, int, Connection, bytes]]:
        """Messages on a topic with headers, as `timed` gives them, in the order of the stamps.

        A message without a stamp has the time at which it was recorded. Where stamps go back by more than `RESTART`,
        as when a simulation is reset, another run begins, which follows the one before. The topic is read twice, and
        only what was recorded out of order is held.
        """
        order = sorted(when for when, *_ in self.timed(topic))
        waiting: list[tuple[int, int, int, Connection, bytes]] = []
        given = 0
        for count, (when, stamp, connection, data) in enumerate(self.timed(topic)):
            heappush(waiting, (when, count, stamp, connection, data))
            while waiting and waiting[0][0] == order[given]:
                when, _, stamp, connection, data = heappop(waiting)
                given += 1
                yield when, stamp, connection, data

    def timed(self, topic: str) -> Iterator[tuple[int, int, Connection, bytes]]:
        """`Runs.time`, stamp (ns), connection and bytes of messages, in the order in which they were recorded."""
        runs = Runs()
        for connection, recorded, data in self.messages([topic]):
            stamp = self.stamp(data)
            # the time of recording may be that of another clock, so it begins no run
            when = runs.time(stamp) if stamp else runs.count * 2**64 + recorded
            yield when, stamp or recorded, connection, data

    def stamp(self, data: bytes) -> int:
        """Nanoseconds, of the header that a message begins with: read without the rest of it, which may be large.

        Zero for a message that is cut off before it.
        """
        return _stamp(data, self.is_ros2)


HEADER = 4
"""Where the stamp of a message with a header begins: in CDR behind the encoding, in ROS 1 behind a counter."""
STAMP_END = HEADER + 8
"""Where it ends."""


def _stamp_form(data: bytes, is_ros2: bool) -> struct.Struct:
    """Seconds and nanoseconds, in the message's byte order: that of ROS 1, or which CDR's second byte says."""
    return struct.Struct("<iI" if not is_ros2 or data[1:2] == b"\1" else ">iI")


def _stamp(data: bytes, is_ros2: bool = True) -> int:
    form = _stamp_form(data, is_ros2)
    if len(data) < STAMP_END:
        return 0
    seconds, nanoseconds = form.unpack_from(data, HEADER)
    return int(seconds) * 10**9 + int(nanoseconds)


def with_stamp(message: Message) -> Message:
    """A message with a header, whose stamp, if it is zero, is the time at which it was recorded."""
    form = _stamp_form(message.data, True)
    if message.stamp or len(message.data) < STAMP_END:
        return message
    stamp = form.pack(*divmod(message.time, 10**9))
    return message._replace(data=message.data[:HEADER] + stamp + message.data[STAMP_END:])


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
        parts: dict[Path, Reader1 | Reader2] = {}
        for file in parts_of(path):
            if not file.stat().st_size:
                raise InputError(f"{file}: is empty; if it is one of several parts, move it away to read the others")
            plain = stack.enter_context(_unpacked(file)) if file.suffix == ".zstd" else file
            plain = stack.enter_context(_settled(plain)) if plain.suffix == ".db3" else plain
            with _naming(file):
                reader: Reader1 | Reader2 = Reader1(plain) if file.name.endswith(ROS1) else Reader2(plain)
                stack.enter_context(reader)
            parts[file] = reader
        if len({*map(type, parts.values())}) > 1:
            raise InputError(f"{path}: has parts of ROS 1 and of ROS 2; name one of them")
        yield Bag(path, parts)


def _messages(
    file: Path, part: Reader1 | Reader2, connections: Collection[Connection]
) -> Iterator[tuple[Connection, int, bytes]]:
    """Of one file of a bag, in time order. No connections, no messages."""
    if not connections:
        return  # rosbags reads an empty list as all of them
    with _naming(file):
        chunks = getattr(part.storage, "chunks", []) if isinstance(part, Reader2) else []
        if not any(chunk.message_index_offsets for chunk in chunks):
            chunks.clear()  # rosbags finds no message in a chunk without an index; without chunks, it reads all
        for connection, time, data in part.messages(connections):
            packed = isinstance(part, Reader2) and data[: len(ZSTD)] == ZSTD
            yield connection, time, zstd.decompress(data) if packed else data


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
        with _filling(folder, path), zstd.open(path, "rb") as packed, out.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        yield out


@contextmanager
def _settled(path: Path) -> Iterator[Path]:
    """A file of sqlite, or a copy of it in a temporary folder, from which rosbags reads all of its messages.

    rosbags does not look into sqlite's journals, in which the last messages lie while a recorder runs, and after it was
    killed. It also takes ?, # and % in a path for parts of an address.
    """
    beside = [path.with_name(f"{path.name}{end}") for end in JOURNALS]
    journals = [file for file in beside if file.is_file() and file.stat().st_size]
    if not journals and not {*"?#%"} & {*str(path)}:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bag.db3"
        with _filling(folder, path):
            if not journals:
                out.symlink_to(path.absolute())
            else:
                for file in (path, *journals):
                    shutil.copyfile(file, f"{out}{file.name.removeprefix(path.name)}")
                with closing(sqlite3.connect(out)) as database:
                    database.execute("PRAGMA journal_mode = DELETE")
        yield out


@contextmanager
def _filling(folder: str, path: Path) -> Iterator[None]:
    """Makes an InputError of what keeps a file from being unpacked or copied into a temporary folder."""
    try:
        yield
    except (zstd.ZstdError, EOFError, sqlite3.Error) as error:
        raise InputError(f"{path}: damaged or cut off: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be unpacked into {folder} ({error.strerror}); TMPDIR names another") from None


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
        if what.startswith("Profile is not"):
            said = "an MCAP whose profile is not ros2, as one made of a bag of ROS 1 or by other programs"
            raise InputError(f"{where}: {said}; name that bag, or record with ROS 2") from error
        name = _NAME.fullmatch(path.name)
        mend = f"; what was cut off may be mended: {MEND[name[3]]}" if name else ""
        raise InputError(f"{where}: damaged, cut off or not of ROS, rosbags says: {what}{mend}") from error
