"""Recordings of every kind, runs of `mega replay` on them, and fixtures: to pytest, this file is a plugin."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from little_bundle import little_bundle
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from mega_model.core.geometry import intrinsics_from_fov
from mega_model.core.topology import LIMBS
from mega_ros.cli import main
from mega_ros.replay.compare import Difference, compare
from mega_ros.ros.read import points_of
from mega_ros.ros.standard import point_cloud

ROS2, ROS1 = get_typestore(Stores.ROS2_JAZZY), get_typestore(Stores.ROS1_NOETIC)
WIDTH, HEIGHT = 64, 48
START = 10**18
STEP = 10**8
K = intrinsics_from_fov(WIDTH, HEIGHT, 1.0)
IMAGE, INFO, TRUTH = "/camera/image_raw", "/camera/camera_info", "/mega/ground_truth"


def pattern(k: int) -> np.ndarray:
    """uint8 [H, W, 3]: each is of another colour, and never black, which stands for no answer."""
    return np.full((HEIGHT, WIDTH, 3), [40 + k, 200 - 9 * k, 90 + 11 * k], np.uint8)


Topic = tuple[str, int, Any]
"""topic, stamp and message"""


class Recorder:
    """Messages of one ROS version."""

    def __init__(self, store: Any = ROS2) -> None:
        self.store, self.first = store, store is ROS1

    def header(self, stamp: int) -> Any:
        time = self.store.types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
        sequence = [0] if self.first else []
        return self.store.types["std_msgs/msg/Header"](*sequence, time, "camera")

    def raw(self, k: int, topic: str = IMAGE, encoding: str = "bgr8") -> Topic:
        stamp, pixels = START + k * STEP, pattern(k)
        if encoding == "rgb8":
            pixels = pixels[..., ::-1]
        kind = self.store.types["sensor_msgs/msg/Image"]
        data = np.ascontiguousarray(pixels).ravel()
        return topic, stamp, kind(self.header(stamp), HEIGHT, WIDTH, encoding, 0, 3 * WIDTH, data)

    def compressed(self, k: int, kind: str = ".png") -> Topic:
        stamp, data = START + k * STEP, cv2.imencode(kind, pattern(k))[1].ravel()
        message = self.store.types["sensor_msgs/msg/CompressedImage"](self.header(stamp), kind[1:], data)
        return f"{IMAGE}/compressed", stamp, message

    def info(self, k: int, topic: str = INFO) -> Topic:
        stamp, types = START + k * STEP, self.store.types
        region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        numbers = np.zeros(5), K.ravel(), np.eye(3).ravel(), np.zeros(12)
        message = types["sensor_msgs/msg/CameraInfo"](
            self.header(stamp), HEIGHT, WIDTH, "plumb_bob", *numbers, 0, 0, region
        )
        return topic, stamp, message

    def cloud(self, k: int, points: np.ndarray, topic: str = TRUTH) -> Topic:
        stamp = START + k * STEP
        return topic, stamp, point_cloud(self.header(stamp), points)


def clip(recorder: Recorder, count: int = 4) -> list[Topic]:
    return [topic for k in range(count) for topic in (recorder.info(k), recorder.raw(k))]


def write_messages(
    writer: Writer | Writer1, topics: Iterable[Topic], types: Typestore, serialise: Callable[[Any, str], Any]
) -> None:
    connections: dict[str, Connection] = {}
    for topic, stamp, message in topics:
        kind = message.__msgtype__
        if topic not in connections:
            connections[topic] = writer.add_connection(topic, kind, typestore=types)
        writer.write(connections[topic], stamp, serialise(message, kind))


def write_ros2(
    path: Path, topics: Iterable[Topic], storage: StoragePlugin, mode: CompressionMode | None = None
) -> Path:
    writer = Writer(path, version=9, storage_plugin=storage)
    if mode:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        write_messages(writer, topics, ROS2, ROS2.serialize_cdr)
    return path


def bag(path: Path, *topics: Topic) -> Path:
    return write_ros2(path, topics, StoragePlugin.MCAP)


def write_ros1(path: Path, topics: Iterable[Topic]) -> Path:
    with Writer1(path) as writer:
        write_messages(writer, topics, ROS1, ROS1.serialize_ros1)
    return path


def bare(suffix: str, storage: StoragePlugin) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole = write_ros2(folder / "whole", clip(Recorder()), storage)
        return Path(shutil.move(next(whole.glob(f"*{suffix}")), folder / f"bare{suffix}"))

    return make


def without_metadata(folder: Path) -> Path:
    """Two parts, as of a split bag."""
    messages = clip(Recorder())
    out = folder / "parts"
    out.mkdir()
    for part in range(2):
        whole = bag(folder / f"whole{part}", *messages[4 * part : 4 * part + 4])
        shutil.move(next(whole.glob("*.mcap")), out / f"parts_{part}.mcap")
    return out


def split(folder: Path) -> Path:
    """The same with a metadata.yaml that names both; rosbags does not split."""
    out = without_metadata(folder)
    metadata = yaml.safe_load((folder / "whole0" / "metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"]["relative_file_paths"] = ["parts_0.mcap", "parts_1.mcap"]
    (out / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    return out


def packed_file(folder: Path) -> Path:
    whole = write_ros2(folder / "whole", clip(Recorder()), StoragePlugin.SQLITE3, CompressionMode.FILE)
    return next(whole.glob("*.zstd"))


def killed(folder: Path) -> Path:
    """A recorder of sqlite that was killed: its last messages are only in the journal."""
    path, left = bare(".db3", StoragePlugin.SQLITE3)(folder), folder / "killed"
    left.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        rows = database.execute("SELECT * FROM messages").fetchall()
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("DELETE FROM messages WHERE id > 4")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows[4:])
        for name in ("bare.db3", "bare.db3-wal"):
            shutil.copy(folder / name, left / name)
    return left / "bare.db3"


def with_summary(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """An MCAP with other records in its summary: a kind, eight bytes with the length of the rest, and the rest."""

    def make(folder: Path) -> Path:
        path = bare(".mcap", StoragePlugin.MCAP)(folder)
        content = path.read_bytes()
        at = int.from_bytes(content[-28:-20], "little")
        out = content[:at]
        while at < len(content) - 8:
            end = at + 9 + int.from_bytes(content[at + 1 : at + 9], "little")
            rest = change(content[at : at + 1] + content[at + 9 : end])
            out += rest[:1] + len(rest[1:]).to_bytes(8, "little") + rest[1:]
            at = end
        path.write_bytes(out + content[-8:])
        return path

    return make


def without_message_index(record: bytes) -> bytes:
    """Of a chunk's index, the list of where the messages are indexed."""
    if record[0] != 8:
        return record
    return record[:33] + bytes(4) + record[37 + int.from_bytes(record[33:37], "little") :]


def edited(folder: Path, **fields: Any) -> Path:
    """A bag with other fields in metadata.yaml, and without QoS and counts."""
    path = KINDS["mcap"](folder)
    metadata = yaml.safe_load((path / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    for topic in information["topics_with_message_count"]:
        topic["message_count"] = 0
        topic["topic_metadata"]["offered_qos_profiles"] = [QOS]
    information |= {"message_count": 0, "version": 99} | fields
    (path / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    return path


NEVER = {"sec": 0, "nsec": 0}
QOS = {"history": "keep_last", "depth": 1, "reliability": "reliable", "durability": "transient_local"} | {
    **{"deadline": NEVER, "lifespan": NEVER, "liveliness": "automatic", "liveliness_lease_duration": NEVER},
    "avoid_ros_namespace_conventions": False,
}


def renamed(folder: Path) -> Path:
    """With signs that have a meaning in the address of a database."""
    (folder / "50% #1?").mkdir()
    return Path(shutil.move(KINDS["bare db3"](folder), folder / "50% #1?"))


def bare_packed_messages(folder: Path) -> Path:
    return next(KINDS["zstd messages"](folder).glob("*.db3"))


KINDS: dict[str, Callable[[Path], Path]] = {
    "mcap": lambda f: write_ros2(f / "bag", clip(Recorder()), StoragePlugin.MCAP),
    "sqlite": lambda f: write_ros2(f / "bag", clip(Recorder()), StoragePlugin.SQLITE3),
    "zstd chunks": lambda f: write_ros2(f / "bag", clip(Recorder()), StoragePlugin.MCAP, CompressionMode.STORAGE),
    "zstd messages": lambda f: write_ros2(f / "bag", clip(Recorder()), StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "zstd file": lambda f: write_ros2(f / "bag", clip(Recorder()), StoragePlugin.SQLITE3, CompressionMode.FILE),
    "bare mcap": bare(".mcap", StoragePlugin.MCAP),
    "bare db3": bare(".db3", StoragePlugin.SQLITE3),
    "bare db3.zstd": packed_file,
    "split": split,
    "no metadata, split": without_metadata,
    "ROS 1": lambda f: write_ros1(f / "bag.bag", clip(Recorder(ROS1))),
    "killed while sqlite had a journal": killed,
    "a name with signs": renamed,
    "zstd messages, bare": bare_packed_messages,
    "no message index": with_summary(without_message_index),
    "metadata that was edited": edited,
    "a folder that is called .bag": lambda f: write_ros2(f / "run.bag", clip(Recorder()), StoragePlugin.MCAP),
    "compressed images": lambda f: bag(
        f / "bag", *(t for k in range(4) for t in (Recorder().info(k), Recorder().compressed(k)))
    ),
    "rgb8": lambda f: bag(f / "bag", Recorder().info(0), *(Recorder().raw(k, encoding="rgb8") for k in range(4))),
    "camera_info once, late": lambda f: bag(f / "bag", *(Recorder().raw(k) for k in range(4)), Recorder().info(3)),
    "recorded out of order": lambda f: bag(
        f / "bag",
        Recorder().info(0),
        *((t, START + k, m) for k, (t, _, m) in enumerate(map(Recorder().raw, [2, 0, 1, 3]))),
    ),
}


def replay(bundle: Path, out: Path, *args: Any) -> int:
    words = ["replay", "--out", out, "--bundle", bundle, "--boxes", "full_frame", *args]
    return main([str(word) for word in words])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def with_exif(jpeg: bytes) -> bytes:
    """As of a camera that was held upright: to be turned by a quarter."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def truth_of(out: Path, shift: tuple[float, float, float]) -> list[np.ndarray]:
    meshes = np.load(out / "meshes.npz")
    return [
        points_of(meshes["vertices"][[k]] + np.asarray(shift, np.float32), meshes["sigma"][[k]], meshes["ids"][[k]])
        for k in range(len(meshes["ids"]))
    ]


LARGE = 96
"""Pixels: people of fewer than 60 are not scored in photographs."""


def photographs(folder: Path, count: int = 3) -> list[str]:
    """The names of images in a new folder."""
    folder.mkdir(parents=True)
    for k in range(count):
        cv2.imwrite(str(folder / f"{k}.png"), cv2.resize(pattern(k), (LARGE, LARGE)))
    return [f"{k}.png" for k in range(count)]


def coco_json(path: Path, names: Iterable[str], stamps: Iterable[int] = (), tall: dict[str, int] | None = None) -> Path:
    """One person in each image, who fills it; all joints are in its middle. tall: heights of others than squares."""
    images: list[dict[str, Any]] = [
        {"id": k, "file_name": name, "width": LARGE, "height": (tall or {}).get(name, LARGE)}
        for k, name in enumerate(names)
    ]
    for image, stamp in zip(images, stamps):
        image["stamp"] = stamp
    person = {"category_id": 1, "bbox": [0, 0, LARGE, LARGE], "keypoints": len(LIMBS) * [LARGE / 2, LARGE / 2, 2]}
    annotations = [{"image_id": image["id"], **person} for image in images]
    categories = [{"id": 1, "keypoints": LIMBS}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


class ReportPage(HTMLParser):
    """Ids, links, and what would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name in ("src", "xlink:href", "data"):
                self.loaded.append(value or "")
        assert tag not in ("script", "link", "iframe")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def table(values: Iterable[float]) -> list[dict[str, Any]]:
    return [{"true_people": 1, "compared": 1, "recall": 1, "pve": value} for value in values]


def difference_of(name: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Difference:
    (difference,) = (d for d in compare(a, b) if d.name == name)
    return difference


def cut(folder: Path, kind: str, share: float) -> Path:
    path = KINDS[kind](folder)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))[1].tobytes()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a little bundle. Only to be read."""
    folder = tmp_path_factory.mktemp("bundle")
    little_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def expected(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The meshes of the plain bag."""
    folder = tmp_path_factory.mktemp("expected")
    assert replay(bundle, folder / "out", KINDS["mcap"](folder)) == 0
    return dict(np.load(folder / "out" / "meshes.npz"))


@pytest.fixture(scope="session")
def scored(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of 4 frames with ground truth for three: it lies 0.1 m behind the recovered people. One is of no frame."""
    folder = tmp_path_factory.mktemp("scored")
    r = Recorder()
    assert replay(bundle, folder / "first", KINDS["mcap"](folder)) == 0
    truth = truth_of(folder / "first", (0, 0, 0.1))
    clouds = [r.cloud(k, truth[k]) for k in range(3)] + [r.cloud(9, truth[0])]
    return bag(folder / "scored", *clip(r), *clouds)
