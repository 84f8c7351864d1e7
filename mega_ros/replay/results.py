"""The files that a replay leaves: written beside those of an earlier one, and moved into place when complete."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder
from mega_model.core.topology import Topology

from ..recovery import People
from ..ros.frame import ProcessedFrame
from ..ros.markers import Markers
from ..ros.standard import MESSAGES, header, jpeg_image, people_cloud
from .bags import is_bag, open_bag
from .frames import Frame
from .measures import Row


def must_be_of_replay(out: Path, names: Sequence[str]) -> None:
    """Raises InputError if a folder without a report.json has something under `names`, which a replay replaces."""
    if foreign := [name for name in names if (out / name).exists() and not (out / "report.json").exists()]:
        raise InputError(f"{out / foreign[0]}: is of no replay, and this one would replace it; choose another --out")


@contextmanager
def put_in_place(out: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A new folder within `out`. What the block has written there under `names` replaces what `out` has under them.

    If the block fails, what `out` has stays as it was. A full disk is an InputError.
    """
    make_folder(out)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield fresh
        for name in names:
            old, new = out / name, fresh / name
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if new.exists():
                os.replace(new, old)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


class MeshFile:
    """meshes.npz: all people of all frames. N people in all, F frames.

    stamps [F], nanoseconds; frame [N], index into stamps; and of each person what `People` has: vertices [N, V, 3],
    sigma [N, V], joints [N, J, 3], joints_sigma [N, J], ids [N], boxes [N, 4], scores [N], distance [N], samples
    [N, Q, V, 3]. faces [T, 3] and joint_names [J] say what they mean. People are kept on disk until the file is
    complete.
    """

    def __init__(self, folder: Path, topology: Topology) -> None:
        self._folder, self._topology = folder, topology
        self._names = [f.name for f in fields(People)]
        self._files = {name: (folder / f".{name}").open("wb") for name in self._names}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._stamps: list[int] = []
        self._frame: list[int] = []

    def add(self, stamp: int, people: People | None) -> None:
        """The next frame; None if its image could not be read."""
        if people is not None:
            self._frame += [len(self._stamps)] * len(people)
            for name in self._names:
                array = getattr(people, name)
                self._kinds[name] = array.dtype, array.shape[1:]
                self._files[name].write(np.ascontiguousarray(array).tobytes())
        self._stamps.append(stamp)

    def close(self) -> None:
        """Writes the file."""
        arrays: dict[str, Any] = {}
        for name, (kind, shape) in self._kinds.items():
            self._files[name].close()
            path, whole = self._folder / f".{name}", (len(self._frame), *shape)
            arrays[name] = np.memmap(path, kind, "r", shape=whole) if path.stat().st_size else np.zeros(whole, kind)
        np.savez(
            self._folder / "meshes.npz",
            stamps=np.array(self._stamps, np.int64),
            frame=np.array(self._frame, np.int64),
            faces=self._topology.faces,
            joint_names=np.array(self._topology.joint_names),
            **arrays,
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Raises ValueError for a number that is not finite, which JSON cannot hold."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """A line per row. columns: by default what some row has, but for `bodies`; `ids` are separated by spaces."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row if name != "bodies"))
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | ({"ids": " ".join(map(str, row["ids"]))} if "ids" in row else {}))


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """The report's rows of frames as they are: `ids`, `notes` and `bodies` are lists. Needs pyarrow."""
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_text(row[name]) if name in row else None for row in rows] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _text(value: Any) -> Any:
    """Names of files need not be UTF-8, texts in Parquet must be."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


TOPICS = {
    "/mega/mesh": "sensor_msgs/msg/PointCloud2",
    "/mega/joints": "sensor_msgs/msg/PointCloud2",
    "/mega/markers": "visualization_msgs/msg/MarkerArray",
    "/mega/overlay/compressed": "sensor_msgs/msg/CompressedImage",
}
"""Of the written bag, with their types."""


def is_of_replay(path: Path) -> bool:
    """Whether it is a bag as `MeshBag` writes it, and no recording."""
    if not is_bag(path):
        return False
    with open_bag(path) as bag:
        return {*bag.topics} == {*TOPICS}


class MeshBag:
    """A bag with what the node would have published, for every frame that was read: for RViz and Foxglove."""

    def __init__(self, path: Path, topology: Topology) -> None:
        self._faces, self._markers = topology.faces, Markers(topology.faces)
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections = [
            self._writer.add_connection(topic, kind, typestore=MESSAGES) for topic, kind in TOPICS.items()
        ]

    def add(self, frame: Frame, people: People, camera: Camera) -> None:
        """A frame that has an image."""
        assert frame.image is not None
        head = header(frame.stamp, frame.frame_id)
        processed = ProcessedFrame(head, frame.image, camera, people, self._faces)
        messages = (
            people_cloud(head, people.vertices, people.sigma, people.ids),
            people_cloud(head, people.joints, people.joints_sigma, people.ids, people.distance),
            self._markers.message(head, people),
            jpeg_image(head, processed.overlay),
        )
        for connection, data in zip(self._connections, messages):
            self._writer.write(connection, max(0, frame.stamp), data)  # a bag's times cannot be negative

    def close(self) -> None:
        self._writer.close()
