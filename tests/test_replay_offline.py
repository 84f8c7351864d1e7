"""`mega replay` and `mega replay compare`: every input, what is written, scores, the gate, and broken inputs."""

import base64
import csv
import errno
import json
import os
import re
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import short_clip
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from little_bundle import MARGIN, VERTICES, little_bundle
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore
from smpl_files import write_smpl

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import LIMB_JOINTS, LIMBS, SMPL_JOINTS
from mega_ros import Recovery
from mega_ros.cli import main
from mega_ros.replay import bags, frames
from mega_ros.replay.bags import Bag, open_bag, read_bag
from mega_ros.replay.compare import Difference, compare
from mega_ros.replay.measures import MEASURES
from mega_ros.replay.recording import Recording
from mega_ros.replay.reference import Truth, open_reference
from mega_ros.replay.report_page import Worst, write_page
from mega_ros.replay.results import put_in_place
from mega_ros.replay.score import in_view
from mega_ros.replay.sheets import PageFrame
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import points_of, positions, read_cloud, read_stamp
from mega_ros.ros.standard import point_cloud

ROS2, ROS1 = get_typestore(Stores.ROS2_JAZZY), get_typestore(Stores.ROS1_NOETIC)
WIDTH, HEIGHT = 64, 48
START = 10**18
STEP = 10**8
K = intrinsics_from_fov(WIDTH, HEIGHT, 1.0)
IMAGE, INFO, TRUTH = "/camera/image_raw", "/camera/camera_info", "/mega/ground_truth"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    little_bundle(folder)
    return folder


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


@pytest.fixture(scope="module")
def expected(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The meshes of the plain bag."""
    folder = tmp_path_factory.mktemp("expected")
    assert replay(bundle, folder / "out", KINDS["mcap"](folder)) == 0
    return dict(np.load(folder / "out" / "meshes.npz"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bag_gives_the_same_people(
    kind: str, bundle: Path, tmp_path: Path, expected: dict[str, np.ndarray]
) -> None:
    assert replay(bundle, tmp_path / "out", KINDS[kind](tmp_path)) == 0
    found = np.load(tmp_path / "out" / "meshes.npz")
    assert found["stamps"].tolist() == [START + k * STEP for k in range(4)]
    assert found["vertices"].shape == (4, VERTICES, 3)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    said = report(tmp_path / "out")
    assert (said["frames"], said["people"], said["unreadable"], said["assumed"]) == (4, 4, 0, 0)


def test_files_that_metadata_does_not_list_are_said(bundle: Path, tmp_path: Path) -> None:
    """As where a recorder was killed after it had begun the next part. An unpacked copy is no other part."""
    path = edited(tmp_path)
    shutil.copy(path / "bag.mcap", path / "bag_1.mcap")
    shutil.copy(path / "bag.mcap", path / "bag.mcap.zstd")
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    assert said["frames"] == 4
    assert said["note"] == "metadata.yaml does not list bag_1.mcap: left out; ros2 bag reindex adds it"
    assert [file["name"] for file in said["provenance"]["inputs"]] == ["bag.mcap", "metadata.yaml"]


def test_messages_that_a_bag_announces_and_lacks_are_said(bundle: Path, tmp_path: Path) -> None:
    four, nine = (struct.pack("<HQ", 2, count) for count in (4, 9))
    path = with_summary(lambda record: record.replace(four, nine) if record[0] == 11 else record)(tmp_path)
    assert replay(bundle, tmp_path / "out", path) == 0
    assert report(tmp_path / "out")["note"] == f"of 9 messages that the bag announces on {IMAGE}, 4 are in it"


def of_profile(folder: Path) -> Path:
    path = KINDS["bare mcap"](folder)
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0ros2", b"\x04\0\0\0ros1", 1))
    return path


def unfinished(folder: Path) -> Path:
    """As a recorder of ROS 1 leaves it that was killed: the header does not know where the index is."""
    path = KINDS["ROS 1"](folder)
    at = path.read_bytes().find(b"index_pos=") + len(b"index_pos=")
    path.write_bytes(path.read_bytes()[:at] + bytes(8) + path.read_bytes()[at + 8 :])
    return path.rename(folder / "a.bag.active")


def with_empty_part(folder: Path) -> Path:
    """As of a recorder that was killed when it had begun a part."""
    path = without_metadata(folder)
    (path / "parts_2.mcap").touch()
    return path


def with_damaged_part(folder: Path) -> Path:
    path = split(folder)
    (path / "parts_1.mcap").write_bytes((path / "parts_1.mcap").read_bytes()[:9000])
    return path


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda folder: edited(folder, relative_file_paths=["gone.mcap"]), "metadata.yaml: lists gone.mcap, which"),
        (lambda folder: edited(folder, relative_file_paths=[]), "metadata.yaml: lists no files; ros2 bag reindex"),
        (of_profile, "an MCAP whose profile is not ros2, .*; name that bag, or record with ROS 2"),
        (unfinished, "not indexed, .*; what was cut off may be mended: rosbag reindex"),
        (lambda folder: cut(folder, "bare mcap", 0.9), "what was cut off may be mended: mcap recover$"),
        (with_damaged_part, r"parts_1\.mcap: damaged"),
        (with_empty_part, r"parts_2\.mcap: is empty; .* move it away"),
        (
            lambda folder: bag(folder / "bag", Recorder().raw(0, "/mega/camera/image")),
            "under /mega, .*: /mega/camera/image; --image-topic takes one",
        ),
        (lambda folder: bag(folder / "bag", Recorder().info(0)), "images of other types, as .* must be republished"),
    ],
)
def test_what_keeps_a_bag_from_being_read(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        frames.open_input([make(tmp_path)])


def test_each_run_has_its_own_camera(bundle: Path, tmp_path: Path) -> None:
    """A simulation that was started again with another camera, without waiting for the stamps of the first run."""
    recorder = Recorder()
    messages = []
    for run, numbers in enumerate(([0, 20, 40], [0, 20, 40])):
        for number in numbers:
            topic, stamp, info = recorder.info(number)
            messages.append((topic, stamp, replace(info, k=(K * [[1 + run], [1 + run], [1]]).ravel())))
            messages.append(recorder.raw(number))
    path = bag(tmp_path / "bag", *((topic, START + k, message) for k, (topic, _, message) in enumerate(messages)))
    source = frames.open_input([path])
    assert [frame.camera.K[0, 0] / K[0, 0] for frame in source.frames() if frame.camera] == [1, 1, 1, 2, 2, 2]
    assert source.note.startswith("the stamps go back by more than a second once; people get new ids each time")


def test_a_camera_info_of_another_frame_is_said(bundle: Path, tmp_path: Path) -> None:
    topic, stamp, info = Recorder().info(0)
    for number, (frame, problem) in enumerate({"/camera": "", "": "", "rear": "the frame_id is rear"}.items()):
        info = replace(info, header=replace(info.header, frame_id=frame))
        path = bag(tmp_path / f"bag{number}", (topic, stamp, info), Recorder().raw(0))
        assert replay(bundle, tmp_path / "out", path) == 0
        said = report(tmp_path / "out")
        whole = f"{INFO}: {problem}, that of the images camera: is it another camera's?"
        assert said["assumed"] == 0 and said.get("camera_problem", "") == (whole if problem else "")


def test_images_of_a_bag_that_are_not_replayed_are_said(tmp_path: Path) -> None:
    r = Recorder()
    left, few = "/left/image_raw", "/right/image_raw"
    odd = [replace(r.raw(k)[2], encoding="nv24") for k in range(3)]
    path = bag(tmp_path / "a", *((left, START + k, message) for k, message in enumerate(odd)), r.raw(0, few))
    assert frames.open_input([path]).note == f"left out, as their images cannot be read: {left}"
    path = bag(tmp_path / "b", r.raw(0), *map(r.compressed, range(3)))
    assert frames.open_input([path]).note == f"{IMAGE} has 1 images, {IMAGE}/compressed 3; --image-topic chooses"
    path = bag(tmp_path / "c", *map(r.raw, range(3)), *map(r.compressed, range(3)))
    assert frames.open_input([path]).note == ""


def test_images_of_two_cameras_on_one_topic_are_said(bundle: Path, tmp_path: Path) -> None:
    topic, stamp, message = Recorder().raw(1)
    other = replace(message, header=replace(message.header, frame_id="rear"))
    path = bag(tmp_path / "bag", Recorder().raw(0), (topic, stamp, other))
    assert replay(bundle, tmp_path / "out", path) == 0
    note = "the images have several frame_ids, camera, rear: are they of one camera?"
    assert report(tmp_path / "out")["note"] == note


def test_two_runs_are_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    path, out = KINDS["mcap"](tmp_path), tmp_path / "out"
    contents = []
    for _ in range(2):
        assert replay(bundle, out, path, "--write", tmp_path / "written", "--export", "ply") == 0
        files = [p for folder in (out, tmp_path / "written") for p in sorted(folder.rglob("*")) if p.is_file()]
        contents.append({p.name: p.read_bytes() for p in files})
    assert contents[0] == contents[1]
    assert {"report.json", "meshes.npz", "000003.ply", "metadata.yaml"} <= set(contents[0])
    assert not [*tmp_path.rglob(".unfinished*")]


def test_without_camera_info_the_field_of_view_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bag(tmp_path / "bag", Recorder().raw(0))
    assert replay(bundle, tmp_path / "out", path, "--fov", 50) == 0
    said = report(tmp_path / "out")
    assert said["assumed"] == 1 and "no camera_info; a field of view of 50 degrees" in said["assumed_because"]
    assert "assumed intrinsics" in capsys.readouterr().out


def test_people_are_smoothed_where_asked(bundle: Path, tmp_path: Path) -> None:
    path, meshes = bag(tmp_path / "bag", *clip(Recorder())), {}
    for smoothing in (0.0, 1.0):
        assert replay(bundle, tmp_path / "out", path, "--smoothing", smoothing) == 0
        assert report(tmp_path / "out")["provenance"]["settings"]["smoothing"] == smoothing
        meshes[smoothing] = np.load(tmp_path / "out" / "meshes.npz")["vertices"]
    np.testing.assert_allclose(meshes[1.0][0], meshes[0.0][0], atol=1e-5)
    assert (np.abs(meshes[1.0][1:] - meshes[0.0][1:]).max(axis=(1, 2)) > 1e-3).all()


def test_the_bags_camera_is_understood_whole(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lens, scaled and rectified images, a turned camera; what stands in for a calibration is said."""
    recovery, box = Recovery.load(bundle, provider="cpu"), np.array([[0, 0, WIDTH, HEIGHT]])
    topic, stamp, message = Recorder().info(0)
    double = (K * [[2], [2], [1]]).ravel()
    sent = replace(
        message, width=2 * WIDTH, height=2 * HEIGHT, k=double, distortion_model="equidistant", d=np.ones(4) / 9
    )
    P = np.insert(double * [0.5, 1, 1, 1, 0.5, 1, 1, 1, 1], [3, 6, 9], 0.0)
    halved = K * [[0.5, 1, 1], [1, 0.5, 1], [1, 1, 1]]
    for number, (changes, words, camera, problem) in enumerate(
        (
            ({}, ["--rotate", "90"], Camera(K, "equidistant", np.ones(4) / 9), ""),
            ({"p": P}, ["--rectified", "true"], Camera(halved), ""),
            ({"p": P, "k": np.zeros(9)}, [], Camera(halved), "K is all zero, so P is used instead"),
        )
    ):
        path = bag(tmp_path / f"bag{number}", (topic, stamp, replace(sent, **changes)), Recorder().raw(0))
        assert replay(bundle, tmp_path / "out", path, *words) == 0
        people = recovery.run(pattern(0), camera, box, rotate=90 if "--rotate" in words else 0)
        np.testing.assert_allclose(np.load(tmp_path / "out" / "meshes.npz")["vertices"], people.vertices, atol=1e-5)
        said = report(tmp_path / "out")
        assert said["assumed"] == 0 and said.get("camera_problem", "").startswith(
            f"{INFO}: {problem}" if problem else ""
        )
        assert problem in " ".join(capsys.readouterr().out.split())
    assert said["provenance"]["settings"]["rotate"] == 0


def test_what_a_lens_sees_is_visible() -> None:
    points = np.array([[[0, 0, 1], [np.tan(1.2), 0, 1], [np.tan(1.2), 0, -1]]])
    focal = np.array([[25.0, 0, WIDTH / 2], [0, 25, HEIGHT / 2], [0, 0, 1]])
    for camera, visible in ((Camera(focal), [1, 0, 0]), (Camera(focal, "equidistant", np.zeros(4)), [1, 1, 0])):
        assert in_view(points, camera, (WIDTH, HEIGHT)).tolist() == [visible]


def test_topics_are_named_where_there_are_several(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    r = Recorder()
    infos = r.info(0, "/left/camera_info"), r.info(0, "/right/camera_info")
    path = bag(tmp_path / "bag", *infos, r.raw(0, "/left/image"), r.raw(1, "/right/image"), r.raw(2, "/right/image"))
    assert replay(bundle, tmp_path / "out", path) == 1
    assert "choose by --image-topic: /left/image, /right/image" in capsys.readouterr().err
    assert replay(bundle, tmp_path / "out", path, "--image-topic", "/right/image") == 0
    said = report(tmp_path / "out")
    assert said["frames"] == 2
    assert said["provenance"]["topics"] == {"image": "/right/image", "camera_info": "/right/camera_info"}
    assert replay(bundle, tmp_path / "out", path, "--image-topic", "/left/camera_info") == 1
    assert "/left/camera_info carries sensor_msgs/msg/CameraInfo, not" in capsys.readouterr().err


def test_depth_and_the_topics_of_image_transport_are_no_cameras(tmp_path: Path) -> None:
    """As a depth camera has them where all topics are recorded."""
    r = Recorder()
    topic, stamp, png = r.compressed(0)
    depth = replace(png, format="16UC1; compressedDepth png")
    path = bag(
        tmp_path / "bag",
        r.raw(0, "/depth/image_raw", "16UC1"),
        ("/depth/image_raw/compressedDepth", stamp, depth),
        (f"{IMAGE}/zstd", stamp, replace(png, format="zstd", data=png.data[9:])),
        (topic, stamp, png),
        r.raw(0),
    )
    assert frames.open_input([path]).topics == {"image": IMAGE}
    only_depth = bag(tmp_path / "depth", r.raw(0, "/a/image", "16UC1"), r.raw(0, "/b/image", "32FC1"))
    with pytest.raises(InputError, match="choose by --image-topic: /a/image, /b/image"):
        frames.open_input([only_depth])


@pytest.mark.parametrize("named", [None, IMAGE])
def test_a_topic_without_messages_is_no_camera(named: str | None, tmp_path: Path) -> None:
    topic, stamp, message = Recorder().compressed(0)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection(IMAGE, "sensor_msgs/msg/Image", typestore=ROS2)
        for other in (f"{IMAGE}/compressedDepth", "/rear/image_raw/compressed"):
            writer.add_connection(other, message.__msgtype__, typestore=ROS2)
        write_messages(writer, [(topic, stamp, message)], ROS2, ROS2.serialize_cdr)
    assert frames.open_input([tmp_path / "bag"], named).topics == {"image": topic}


@pytest.mark.parametrize(
    "frame, words, topic, reason",
    [
        ("/camera", [], "/front/camera_info", ""),  # of ROS 1
        ("front", [], None, "/rear/camera_info: the bag has only /front/camera_info, of another frame_id"),
        ("camera", [], "/front/camera_info", ""),
        ("camera", ["--fov", "90"], None, "/rear/camera_info: left out, as asked for; a field of view of 90 degrees"),
        ("camera", ["--camera-info-topic", "none"], None, "/rear/camera_info: left out, as asked for"),
        ("front", ["--camera-info-topic", "/front/camera_info"], "/front/camera_info", ""),
    ],
)
def test_only_the_cameras_own_calibration_is_taken(
    frame: str, words: list[str], topic: str | None, reason: str, bundle: Path, tmp_path: Path
) -> None:
    r = Recorder()
    _, stamp, info = r.info(0)
    info = replace(info, header=replace(info.header, frame_id=frame))
    _, _, image = r.compressed(0)
    path = bag(tmp_path / "bag", ("/front/camera_info", stamp, info), ("/rear/image_raw/compressed", stamp, image))
    assert replay(bundle, tmp_path / "out", path, "--image-topic", "/rear/image_raw", *words) == 0  # the camera's name
    said = report(tmp_path / "out")
    assert said["provenance"]["topics"].get("camera_info") == topic
    assert said.get("assumed_because", "").startswith(reason) and said["assumed"] == (topic is None)


def test_one_photograph_in_one_result_out(bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.jpg"), pattern(0))
    assert replay(bundle, tmp_path / "out", tmp_path / "photo.jpg") == 0
    assert np.load(tmp_path / "out" / "meshes.npz")["vertices"].shape == (1, VERTICES, 3)
    assert [row["name"] for row in report(tmp_path / "out")["table"]] == ["photo.jpg"]


def with_exif(jpeg: bytes) -> bytes:
    """As of a camera that was held upright: to be turned by a quarter."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(cv2.imencode(".jpg", pattern(0))[1].tobytes()))
    (frame,) = frames.open_input([tmp_path / "a.jpg"]).frames()
    assert frame.image is not None and frame.image.shape == (WIDTH, HEIGHT, 3)


def test_files_are_in_the_order_of_all_their_numbers(tmp_path: Path) -> None:
    names = ["a9_1", "a9_2", "a9_10", "a10_1", "b1", "1699999999.1234567", "1699999999.25", "1699999999.5"]
    paths = [tmp_path / f"{name}.png" for name in names]
    assert [path.stem for path in frames.in_order(paths[::-1])] == [*names[5:], *names[:5]]


def test_an_image_that_is_a_link_to_nowhere_is_a_frame_that_says_so(bundle: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 1)
    (tmp_path / "photos" / "1.png").symlink_to("gone.png")
    assert replay(bundle, tmp_path / "out", tmp_path / "photos") == 0
    said = report(tmp_path / "out")
    assert said["unreadable"] == 1 and said["table"][1]["problem"].endswith("photos/1.png: there is no such file")
    assert [file["name"] for file in said["provenance"]["inputs"]] == ["0.png", "1.png"]


def test_photographs_one_behind_the_other_are_a_video(tmp_path: Path) -> None:
    """As cameras send them, and ffmpeg and curl save them."""
    path = tmp_path / "film.mjpeg"
    path.write_bytes(b"".join(cv2.imencode(".jpg", pattern(k))[1].tobytes() for k in range(3)))
    assert len(list(frames.open_input([path]).frames())) == 3


@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_folder_or_a_pattern_of_images_in_the_order_of_their_numbers(
    bundle: Path, tmp_path: Path, by_pattern: bool
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(11):
        cv2.imwrite(str(folder / f"{k}.png"), pattern(k))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    assert replay(bundle, tmp_path / "out", f"{folder}/*.png" if by_pattern else folder) == 0
    said = report(tmp_path / "out")
    assert [row["name"] for row in said["table"]] == [f"{k}.png" for k in range(11)]
    assert said["unreadable"] == 1 and "3.png: the PNG data are cut off" in said["table"][3]["problem"]
    assert np.load(tmp_path / "out" / "meshes.npz")["frame"].tolist() == [k for k in range(11) if k != 3]


@pytest.mark.parametrize("rate", [30.0, 0.5])
def test_a_video_keeps_its_times(bundle: Path, tmp_path: Path, rate: float) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (WIDTH, HEIGHT))
    for k in range(5):
        writer.write(pattern(k))
    writer.release()
    assert replay(bundle, tmp_path / "out", path) == 0
    stamps = np.load(tmp_path / "out" / "meshes.npz")["stamps"]
    np.testing.assert_allclose(stamps, np.arange(5) * 1e9 / rate, atol=1e6)
    assert "note" not in report(tmp_path / "out")


def test_a_video_with_fewer_frames_than_it_announces(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (WIDTH, HEIGHT))
    for _ in range(5):
        writer.write(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    note = f"{said['frames']} of the 5 frames that the file announces could be read"
    assert 0 < said["frames"] < 5 and said["note"] == note
    printed = "".join(c if c.isascii() else " " for c in capsys.readouterr().out)
    assert note in " ".join(printed.split()) and note in (tmp_path / "out/report.html").read_text()


def test_a_video_whose_frames_are_not_evenly_spaced_lacks_none(tmp_path: Path) -> None:
    """Ten to the second but for three: Matroska holds no count, so OpenCV takes it from the length."""
    (tmp_path / "film.mkv").write_bytes(zlib.decompress(base64.b85decode(UNEVEN)))
    film = frames.open_input([tmp_path / "film.mkv"])
    assert [frame.stamp for frame in film.frames()] == [k * STEP for k in (0, 1, 2, 5, 6, 8, 9)]
    assert film.note == ""


UNEVEN = (
    b"c-oV4y}x*|Q(GgW({~{L)X3uWxsk)EsUtVBq$s~QJJG2fDAd}>BoW+@&d2})OyPpQvr7)_Z&^`!@qzE|?%>reqMj?$g4Z-"
    b"Igz&^d)@1{EXMA_}0C_?ohtq@CG%-"
    b"3uxH7@Jfs##3)^8xDF$6PEAAsDmY=28sSBk0D^^MK^P7b~eEk225Y2l7w%B8czq2B?l6y(@X`&<6$RO_yTx+wX2BV+N=4yaj-"
    b"a~c_xw$5oT%}eQMWN7OTi}ww1bvM!X4EEP|3=U{+WK@3K+`{_xA;W{t4UG!B8Wm<WG9@pX2h_O%XdvU(PGKMkGDv~pNN)#2C?gAth%+cuuI+Ex"
    b"WHonVaq-#Y1Kr683)4?bcU|1>>gVk5;u_@A-"
    b"UW1VvO;b_YPw1KiAAo9J6uA8978<){ao6o7#LWAkfELd3@|XrJ8vs>n7+Sdm&EnN=Zy@D7c??3Gysj=%pkxHq_znhSUm0ivD<YF42Rrx_xEo5y"
    b"Ldt)Lkh^^ZGjKm>w&`gAdwSbk)Q)`5ymfIkx+yhrU<Y|7(xxR0$3yhp@z8yED{M-1B!m2+fr=#Q+M}oZe-Zr1x$7yn;7SPXygO{%rDJd"
)
"""An MPEG-4 video of 32 x 32 grey pixels."""
INTERLACED = b"c-muNVBE~apdkGJ{{smI2F9%-O$>|-K)|?zfrG(;0mR||{{tk`|NnCXNP<y2)GO%c>ep{Iy<9*Fn9%sRjXOZHaR6z%E}Z"
"""An MPEG-2 video of two frames of 32 x 32 pixels."""


def test_interlaced_video_is_read_right_or_refused(tmp_path: Path) -> None:
    """OpenCV with FFmpeg 8 gives what its memory held before."""
    (tmp_path / "film.m2v").write_bytes(zlib.decompress(base64.b85decode(INTERLACED)))
    try:
        film = frames.open_input([tmp_path / "film.m2v"])
    except InputError as error:
        assert str(error).startswith(f"{tmp_path / 'film.m2v'}: OpenCV cannot read interlaced images; of a file")
    else:
        seen = [frame.image for frame in film.frames() if frame.image is not None]
        assert len(seen) == 2 and max(np.abs(image - [50.0, 100.0, 200.0]).max() for image in seen) < 8


def test_an_interlaced_image_in_a_video_is_a_frame_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As broadcasts mix them: the others are read."""
    film = frames.open_input([short_clip.film(tmp_path / "film.avi", 0.3)])
    reads = iter(range(99))

    class Mixed:
        def __init__(self, name: str) -> None:
            self._film = opened(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._film, name)

        def read(self) -> Any:
            if next(reads) == 1:
                os.write(2, b"[swscaler @ 0x1] Cannot convert interlaced to progressive frames or vice versa.\n")
            return self._film.read()

    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Mixed)
    first, second, *others = film.frames()
    assert first.image is not None and second.image is None and all(frame.image is not None for frame in others)
    assert second.problem.startswith(f"{tmp_path / 'film.avi'}: OpenCV cannot read interlaced images")


def test_a_video_of_wide_pixels_is_stretched(tmp_path: Path) -> None:
    """As those of camcorders: 4 to 3."""
    (tmp_path / "film.m2v").write_bytes(zlib.decompress(base64.b85decode(WIDE)))
    for frame in frames.open_input([tmp_path / "film.m2v"]).frames():
        assert frame.image is not None and frame.image.shape == (24, 43, 3)


WIDE = b"c-muNVBE~aAYuIf{{smI2F9%-T?~v2K)|?zfrG(;0mR||{{tk`|NpaN1CYU}y=uzR&*9haEY%bQDP%(9<2LR9$;JTy2`4bi"
"""An MPEG-2 video of two frames of 32 x 24 pixels, for a screen of 16 to 9."""


@pytest.mark.parametrize("name", ["photograph", "photograph.jfif", "photograph.MPO"])
def test_a_photograph_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(JPEG)
    (frame,) = frames.open_input([tmp_path / name]).frames()
    assert frame.image is not None and frame.name == name


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_a_photograph_in_heic_is_a_frame_that_says_so(brand: bytes, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "2.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(99))
    first, second = frames.open_input([tmp_path]).frames()
    assert first.image is not None and second.image is None
    assert (
        second.problem == f"{tmp_path / '2.heic'}: an image in HEIC or AVIF, which is not read; save it as JPEG or PNG"
    )
    (alone,) = frames.open_input([tmp_path / "2.heic"]).frames()
    assert alone.problem == second.problem


def test_a_folder_of_bags_is_as_many_inputs_and_a_broken_one_stops_no_other(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bags"
    folder.mkdir()
    for name in ("a", "b"):
        bag(folder / name, *clip(Recorder()))
    (folder / "c.mcap").write_bytes(b"no bag")
    assert replay(bundle, tmp_path / "out", folder) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if (p / "report.json").is_file()) == ["a", "b"]


def test_the_written_bag_is_what_the_node_publishes(bundle: Path, tmp_path: Path) -> None:
    assert replay(bundle, tmp_path / "out", KINDS["mcap"](tmp_path), "--write", tmp_path / "written") == 0
    messages: dict[str, list[Any]] = {}
    with open_bag(tmp_path / "written") as written:
        topics = written.topics
        for connection, _, data in written.messages(topics):
            messages.setdefault(connection.topic, []).append(written.read(connection, data))
    meshes = np.load(tmp_path / "out" / "meshes.npz")
    for topic, names in (("/mega/mesh", ("vertices", "sigma")), ("/mega/joints", ("joints", "joints_sigma"))):
        clouds = [read_cloud(m) for m in messages[topic]]
        np.testing.assert_array_equal(np.concatenate([positions(c) for c in clouds]), meshes[names[0]])
        np.testing.assert_array_equal(np.concatenate([c["sigma"] for c in clouds]), meshes[names[1]])
        np.testing.assert_array_equal(np.concatenate([c["id"][:, 0] for c in clouds]), meshes["ids"])
    for array, vertices in zip(messages["/mega/markers"], meshes["vertices"]):
        (marker,) = array.markers
        corners = np.array([[p.x, p.y, p.z] for p in marker.points])
        np.testing.assert_array_equal(corners, vertices[meshes["faces"].ravel()])
    for k, overlay in enumerate(messages["/mega/overlay/compressed"]):
        assert np.abs(to_bgr(overlay).astype(int)[0, 0] - pattern(k)[0, 0]).max() <= 3  # JPEG, where nobody is
    assert topics["/mega/markers"] == "visualization_msgs/msg/MarkerArray"
    assert all(len(found) == 4 for found in messages.values())
    head = messages["/mega/overlay/compressed"][0].header
    assert (head.frame_id, head.stamp.sec) == ("camera", START // 10**9)


@pytest.mark.parametrize("kind", ["obj", "ply", "glb", "npz"])
def test_exported_meshes(kind: str, bundle: Path, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    assert replay(bundle, tmp_path / "out", KINDS["mcap"](tmp_path), "--export", kind) == 0
    files = sorted((tmp_path / "out" / "meshes").iterdir())
    assert [f.name for f in files] == [f"{k:06}.{kind}" for k in range(4)]
    vertices = np.load(tmp_path / "out" / "meshes.npz")["vertices"][1]
    if kind == "npz":
        return np.testing.assert_array_equal(np.load(files[1])["vertices"][0], vertices)
    scene = trimesh.load_scene(files[1], process=False)
    if kind != "ply":
        assert len(scene.geometry) == 1
    back = scene.to_geometry().vertices * ([1, -1, -1] if kind == "glb" else 1)
    assert len(back)
    for point in back:  # trimesh drops vertices that no face uses
        assert np.abs(vertices - point).max(axis=1).min() < 1e-5


def truth_of(out: Path, shift: tuple[float, float, float]) -> list[np.ndarray]:
    meshes = np.load(out / "meshes.npz")
    return [
        points_of(meshes["vertices"][[k]] + np.asarray(shift, np.float32), meshes["sigma"][[k]], meshes["ids"][[k]])
        for k in range(len(meshes["ids"]))
    ]


@pytest.fixture(scope="module")
def scored(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of 4 frames with ground truth for three: it lies 0.1 m behind the recovered people. One is of no frame."""
    folder = tmp_path_factory.mktemp("scored")
    r = Recorder()
    assert replay(bundle, folder / "first", KINDS["mcap"](folder)) == 0
    truth = truth_of(folder / "first", (0, 0, 0.1))
    clouds = [r.cloud(k, truth[k]) for k in range(3)] + [r.cloud(9, truth[0])]
    return bag(folder / "scored", *clip(r), *clouds)


def test_a_bag_with_ground_truth_scores_itself(
    bundle: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(bundle, tmp_path / "out", scored) == 0
    said = report(tmp_path / "out")
    assert (said["reference"]["frames_without"], said["reference"]["unused"]) == ([3], [START + 9 * STEP])
    scores = said["scores"]
    assert (scores["frames"], scores["true_people"], scores["recall"], scores["precision"]) == (3, 3, 1, 1)
    assert scores["pve"] == pytest.approx(0, abs=1e-5)
    assert scores["position"] == pytest.approx(0.1, abs=1e-5)
    assert scores["coverage_1_sigma"] == 1
    assert ["pve" in row for row in said["table"]] == [True, True, True, False]
    assert "pelvis position" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, said",
    [
        ({"frame_id": "camera"}, ""),
        (
            {"frame_id": "map"},
            f"{TRUTH}: the frame_id is map, that of the images camera: scores are right only if both",
        ),
    ],
)
def test_ground_truth_in_another_frame_is_said(
    change: dict[str, str], said: str, bundle: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    topic, stamp, cloud = Recorder().cloud(0, points_of(expected["vertices"][:1], expected["sigma"][:1], np.zeros(1)))
    cloud = replace(cloud, header=replace(cloud.header, **change))
    path = bag(tmp_path / "bag", *clip(Recorder()), (topic, stamp, cloud))
    assert replay(bundle, tmp_path / "out", path) == 0
    note = report(tmp_path / "out").get("note", "")
    assert note.startswith(said) and bool(note) == bool(said) and "pve" in report(tmp_path / "out")["scores"]
    # images without a frame of their own
    photographs(tmp_path / "photos", 1)
    assert replay(bundle, tmp_path / "out", tmp_path / "photos", "--reference", path, "--within", START / 1e9) == 0
    assert "note" not in report(tmp_path / "out") and "pve" in report(tmp_path / "out")["scores"]


@pytest.mark.parametrize(
    "place, fields, said",
    [
        (np.nan, {}, "its bodies have vertices that are not finite numbers; leave such people out"),
        (np.inf, {}, "its bodies have vertices that are not finite numbers"),
        (1, {"row_step": 0}, f"row_step is 0 bytes, but a row of {VERTICES} points takes"),
    ],
)
def test_ground_truth_that_cannot_be_used(
    place: float, fields: dict[str, int], said: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = points_of(np.ones((2, VERTICES, 3)), np.ones((2, VERTICES)), np.arange(2))
    points["x"][0, 3] = place
    topic, stamp, cloud = Recorder().cloud(0, points)
    path = bag(tmp_path / "bag", *clip(Recorder()), (topic, stamp, replace(cloud, **fields)))
    assert replay(bundle, tmp_path / "out", path) == 1
    assert f"mega replay: {path}: {TRUTH}: {said}" in capsys.readouterr().err


def test_the_best_of_samples_stands_beside_the_published_mesh(bundle: Path, scored: Path, tmp_path: Path) -> None:
    assert replay(bundle, tmp_path / "plain", scored) == 0
    assert replay(bundle, tmp_path / "out", scored, "--samples", 5) == 0
    plain, meshes = (np.load(tmp_path / name / "meshes.npz") for name in ("plain", "out"))
    assert plain["samples"].shape == (4, 0, VERTICES, 3) and meshes["samples"].shape == (4, 5, VERTICES, 3)
    assert all(np.array_equal(plain[name], meshes[name]) for name in plain.files if name != "samples")
    regressor = Recovery.load(bundle, provider="cpu").topology.joint_regressor
    truth, samples = meshes["vertices"][:3, None], meshes["samples"][:3]  # the truth lies behind the published mesh
    centred, true_centred = (x - (regressor[0] @ x)[..., None, :] for x in (samples, truth))
    errors = np.linalg.norm(centred - true_centred, axis=-1).mean(axis=-1)
    said, before = report(tmp_path / "out"), report(tmp_path / "plain")
    assert said["scores"]["best_pve"] == pytest.approx(errors.min(axis=1).mean(), rel=1e-3)
    assert {*said["scores"]} - {*before["scores"]} == {"best_pve", "best_mpjpe", "best_pa_mpjpe"}
    assert said["scores"]["pve"] == before["scores"]["pve"] and said["provenance"]["settings"]["samples"] == 5
    assert replay(bundle, tmp_path / "few", scored, "--samples", 2) == 0
    assert report(tmp_path / "few")["scores"]["best_pve"] > said["scores"]["best_pve"]
    paths = [str(tmp_path / name / "report.json") for name in ("few", "plain", "out")]
    assert main(["replay", "compare", paths[0], paths[2]]) == 2
    assert main(["replay", "compare", *paths[1:]]) == 0


@pytest.mark.parametrize("kind", ["bag", "npz", "topic", "no visible"])
def test_references_from_elsewhere(kind: str, bundle: Path, scored: Path, tmp_path: Path) -> None:
    """What the node published, and the result of an earlier replay, are references as well."""
    path = KINDS["mcap"](tmp_path)
    written = tmp_path / "written"
    assert replay(bundle, tmp_path / "before", path, "--write", written) == 0
    choice = {"bag": scored, "npz": tmp_path / "before" / "meshes.npz", "topic": TRUTH, "no visible": written}[kind]
    assert replay(bundle, tmp_path / "out", scored if kind == "topic" else path, "--reference", choice) == 0
    scores = report(tmp_path / "out")["scores"]
    assert scores["position"] == pytest.approx(0 if kind in ("npz", "no visible") else 0.1, abs=1e-5)
    assert scores["frames"] == (4 if kind in ("npz", "no visible") else 3)


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


@pytest.mark.parametrize("where", ["images", "."])
def test_a_coco_json_is_an_input_with_its_own_keypoints(bundle: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "set").mkdir()
    names = photographs(tmp_path / "set" / where) if where != "." else photographs(tmp_path / "beside")
    path = coco_json((tmp_path / ("set" if where != "." else "beside")) / "a.json", names)
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    assert [row["name"] for row in said["table"]] == names
    assert [file["name"] for file in said["provenance"]["inputs"]] == ["a.json", *names]
    scores = said["scores"]
    assert (scores["frames"], scores["recall"], scores["precision"]) == (3, 1, 1)
    # by hand: the torso is 0.2 of the box, and a joint is right within 0.2 of that
    meshes = np.load(tmp_path / "out" / "meshes.npz")
    pixels = project(meshes["joints"][:, LIMB_JOINTS], intrinsics_from_fov(LARGE, LARGE, np.radians(60)))
    error = np.linalg.norm(pixels - LARGE / 2, axis=-1) / (0.2 * LARGE)
    assert scores["pck"] == pytest.approx((error <= 0.2).mean())
    assert scores["normalised_error"] == pytest.approx(error.mean(), rel=1e-4)
    assert "pve" not in scores and "idf1" not in scores


def test_images_of_several_folders_may_have_one_name(bundle: Path, tmp_path: Path) -> None:
    """As in sets of videos. Only in the first image a person is annotated: the others have none."""
    photographs(tmp_path / "set/one")
    photographs(tmp_path / "set/two", 1)
    names = ["set/one/0.png", "set/one/1.png", "set/two/0.png"]
    path = coco_json(tmp_path / "a.json", names)
    data = json.loads(path.read_text())
    del data["annotations"][1:]
    path.write_text(json.dumps(data))
    pattern = str(tmp_path / "set" / "*" / "[01].png")
    for out, words in (("own", [path]), ("given", [pattern, "--reference", path])):
        assert replay(bundle, tmp_path / out, *words) == 0
        table = report(tmp_path / out)["table"]
        assert [row["name"] for row in table] == ["one/0.png", "one/1.png", "two/0.png"]
        assert [row["true_people"] for row in table] == [1, 0, 0]


def test_an_image_that_is_listed_twice(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "images", 1)
    assert replay(bundle, tmp_path / "out", coco_json(tmp_path / "a.json", ["0.png", "0.png"])) == 1
    assert "a.json: has the image 0.png twice; put all of its people under one" in capsys.readouterr().err


def test_annotations_of_images_of_another_size(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = photographs(tmp_path / "images", 2)
    path = coco_json(tmp_path / "a.json", names, tall={"1.png": 2 * LARGE})
    assert replay(bundle, tmp_path / "out", path) == 1
    assert "1.png: 96 x 96 pixels, but 'width' and 'height' say 96 x 192" in capsys.readouterr().err


def test_images_of_a_json_are_not_one_camera_and_are_not_turned(bundle: Path, tmp_path: Path) -> None:
    """People of different photographs are different people. Annotations refer to the stored pixels."""
    names = photographs(tmp_path / "images", 2)
    sideways = with_exif(cv2.imencode(".jpg", np.full((12, LARGE, 3), 90, np.uint8))[1].tobytes())
    (tmp_path / "images" / "s.jpg").write_bytes(sideways)
    path = coco_json(tmp_path / "a.json", [*names, "s.jpg"], tall={"s.jpg": 12})
    shapes = [frame.image.shape[:2] for frame in frames.open_input([path]).frames() if frame.image is not None]
    assert shapes[2] == (12, LARGE)
    assert replay(bundle, tmp_path / "out", path) == 0
    assert np.load(tmp_path / "out" / "meshes.npz")["ids"].tolist() == [0, 0, 0]
    assert replay(bundle, tmp_path / "photos", tmp_path / "images", "--reference", path) == 0
    assert report(tmp_path / "photos")["scores"]["frames"] == 3
    turned = np.load(tmp_path / "photos" / "meshes.npz")["boxes"][2]
    assert turned.tolist() == [0, 0, LARGE, 12]
    assert replay(bundle, tmp_path / "photos", tmp_path / "images") == 0
    assert np.load(tmp_path / "photos" / "meshes.npz")["boxes"][2].tolist() == [0, 0, 12, LARGE]


def square(message: Any) -> Any:
    """An image message with `LARGE` pixels on a side."""
    pixels = cv2.resize(to_bgr(message), (LARGE, LARGE))
    return replace(message, height=LARGE, width=LARGE, step=3 * LARGE, data=pixels.ravel())


def test_keypoints_of_a_recording_are_matched_by_stamp(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = [(topic, stamp, square(message)) for topic, stamp, message in map(Recorder().raw, range(4))]
    path = bag(tmp_path / "bag", *film)
    # 0 and 2 have some; one is of no frame
    stamps = [START, START + 2 * STEP + 400_000, START + 7 * STEP]
    marked = coco_json(tmp_path / "a.json", ["a", "b", "c"], stamps)
    assert replay(bundle, tmp_path / "out", path, "--reference", marked) == 0
    said = report(tmp_path / "out")
    assert said["reference"]["matching"] == "by stamp, within 1 ms"
    assert (said["reference"]["frames_without"], said["reference"]["unused"]) == ([1, 3], [START + 7 * STEP])
    assert ["pck" in row for row in said["table"]] == [True, False, True, False]
    assert "2: 1, 3" in capsys.readouterr().out
    nameless = coco_json(tmp_path / "b.json", ["a"])
    assert replay(bundle, tmp_path / "out", path, "--reference", nameless) == 1
    assert "have no names" in capsys.readouterr().err


def test_a_frame_has_the_nearest_reference_within_the_tolerance(bundle: Path, tmp_path: Path) -> None:
    """The reference runs at four times the rate, a little late. The nearest is where the person is."""
    path = KINDS["mcap"](tmp_path)
    assert replay(bundle, tmp_path / "first", path) == 0
    meshes = np.load(tmp_path / "first" / "meshes.npz")
    late = np.arange(16) // 4
    shift = np.arange(16)[:, None, None] % 4 * np.array([0, 0, 1])
    stamps = START + np.arange(16) * (STEP // 4) + 3_000_000
    np.savez(tmp_path / "a.npz", vertices=meshes["vertices"][late] + shift, stamps=stamps)
    for within, count in ((0.001, 0), (0.005, 4), (0.09, 4)):
        assert replay(bundle, tmp_path / "out", path, "--reference", tmp_path / "a.npz", "--within", within) == 0
        said = report(tmp_path / "out")
        assert said["scores"]["frames"] == count and len(said["reference"]["unused"]) == 16 - count
        if count:
            assert said["scores"]["position"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["vertices", "joints", "some joints", "names"])
def test_npz_references(kind: str, bundle: Path, tmp_path: Path) -> None:
    """Two people in a frame, of whom the recovered one is the second; 0.1 m away."""
    photographs(tmp_path / "images", 2)
    source = tmp_path / "images" if kind == "names" else KINDS["mcap"](tmp_path)
    assert replay(bundle, tmp_path / "first", source) == 0
    meshes = np.load(tmp_path / "first" / "meshes.npz")
    what = "vertices" if kind in ("vertices", "names") else "joints"
    points = meshes[what][:2] + np.array([0, 0, 0.1], np.float32)
    arrays: dict[str, Any] = {
        what: np.concatenate([points + np.array([50, 0, 0], np.float32), points]),
        "frame": np.array([0, 1, 0, 1]),
    }
    arrays["ids"] = np.array([5, 5, 6, 6])
    arrays |= {"names": np.array(["1.png", "0.png"])} if kind == "names" else {"stamps": meshes["stamps"][:2]}
    if kind == "names":
        arrays[what] = arrays[what][[1, 0, 3, 2]]
    if kind == "some joints":
        names = ["left_knee", "nose", "pelvis", *LIMBS[:5]]
        columns = [SMPL_JOINTS.index(name) if name in SMPL_JOINTS else 0 for name in names]
        arrays |= {what: arrays[what][:, columns], "joint_names": np.array(names)}
    np.savez(tmp_path / "truth.npz", **arrays)
    assert replay(bundle, tmp_path / "out", source, "--reference", tmp_path / "truth.npz") == 0
    said = report(tmp_path / "out")
    scores = said["scores"]
    # who is outside the image need not be found
    assert (scores["frames"], scores["recall"], scores["idf1"]) == (2, 1, 1)
    assert scores["position"] == pytest.approx(0.1, abs=1e-4) and scores["mpjpe"] == pytest.approx(0, abs=1e-5)
    assert ("pve" in scores) == (what == "vertices")
    assert [(p["person"], p["found"]) for p in said["persons"]] == [(6, 2)]


def test_parameters_of_bodies_are_a_reference(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people in the second frame."""
    pytest.importorskip("torch")
    monkeypatch.setenv("MEGA_SMPL", str(write_smpl(tmp_path / "SMPL_NEUTRAL.npz", VERTICES)))
    trans = np.array([[0, 0, 5], [1, 0, 5]])
    frame: dict[str, Any] = {
        "stamps": np.array([START, START + STEP]),
        "frame": np.ones(2, int),
        "ids": np.array([8, 9]),
    }
    np.savez(tmp_path / "a.npz", poses=np.zeros((2, 72)), betas=np.zeros(10), trans=trans, **frame)
    topology = Recovery.load(bundle, provider="cpu").topology
    truth = open_reference(str(tmp_path / "a.npz"), KINDS["mcap"](tmp_path), topology)
    assert truth is not None
    first, second = (truth.at(frames.Frame(START + k * STEP, None)) for k in range(2))
    assert isinstance(first, Truth) and isinstance(second, Truth)
    assert not len(first.joints) and second.ids is not None and second.ids.tolist() == [8, 9]
    assert second.vertices is not None and second.vertices.shape == (2, VERTICES, 3)
    np.testing.assert_allclose(second.vertices[1] - second.vertices[0], VERTICES * [[1, 0, 0]], atol=1e-5)


def test_images_without_stamps_have_the_time_of_recording(bundle: Path, tmp_path: Path) -> None:
    """Offline, and as they are played live."""
    (_, _, image), (_, _, info) = Recorder().raw(0), Recorder().info(0)
    no_time = ROS2.types["builtin_interfaces/msg/Time"](0, 0)
    image, info = (replace(m, header=replace(m.header, stamp=no_time)) for m in (image, info))
    path = bag(tmp_path / "bag", *((t, START + k, m) for k in range(2) for t, m in ((IMAGE, image), (INFO, info))))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    assert [row["stamp"] for row in said["table"]] == [START, START + 1] and said["assumed"] == 0
    assert said["note"] == "2 of 2 images have the stamp 0: the time of recording is used instead"
    played = [message.read() for message in frames.Recorded(path).played().messages]
    assert [read_stamp(message) for message in played] == [START, START, START + 1, START + 1]
    np.testing.assert_array_equal(to_bgr(played[0]), pattern(0))


def test_damaged_messages_are_rows_and_the_rest_goes_on(bundle: Path, tmp_path: Path) -> None:
    """Cut off behind the stamp, and before it; two images have the same stamp."""
    images = [Recorder().raw(k) for k in (0, 1, 2, 2, 2)]
    length = iter([None, 40, 6, None, None])
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        write_messages(writer, images, ROS2, lambda m, kind: ROS2.serialize_cdr(m, kind)[: next(length)])
    assert replay(bundle, tmp_path / "out", tmp_path / "bag") == 0
    said = report(tmp_path / "out")
    assert [("people" in row, row["stamp"]) for row in said["table"]] == [
        (True, START),
        (False, START + STEP),
        (False, START + 2 * STEP),
        (True, START + 2 * STEP),
        (True, START + 2 * STEP),
    ]
    assert "1 of 5 images have the stamp of another" in said["note"]
    assert all(f"{IMAGE}: damaged or cut off" in row["problem"] for row in said["table"] if "people" not in row)
    recording = Recording(keep_images=False)
    for message in frames.Recorded(tmp_path / "bag").played().messages:
        recording.sending(message)
    assert {START, START + STEP} < {*recording.sent}


def test_each_person_has_intervals(bundle: Path, tmp_path: Path) -> None:
    """Two frames of one person, 0.1 and 0.2 m away; one of each of two others."""
    path = KINDS["mcap"](tmp_path)
    assert replay(bundle, tmp_path / "first", path) == 0
    meshes = np.load(tmp_path / "first" / "meshes.npz")
    shift = np.array([0.1, 0.2, 0.3, 0.3], np.float32)[:, None, None] * [0, 0, 1]
    ids = np.array([5, 5, 6, 7])
    np.savez(tmp_path / "a.npz", vertices=meshes["vertices"] + shift, stamps=meshes["stamps"], ids=ids)
    assert replay(bundle, tmp_path / "out", path, "--reference", tmp_path / "a.npz") == 0
    one, *others = report(tmp_path / "out")["persons"]
    assert (one["person"], one["position"]) == (5, pytest.approx(0.15, abs=1e-5))
    assert one["intervals"]["position"] == pytest.approx([0.1, 0.2], abs=1e-5)
    assert [person["intervals"] for person in others] == [{}, {}]
    page = ReportPage((tmp_path / "out" / "report.html").read_text())
    assert "100.0 mm to 200.0 mm" in " ".join(page.text).partition("as id")[2].partition("Plots")[0]


PEOPLE = {"vertices": np.ones((2, VERTICES, 3)), "stamps": np.array([0, 1])}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"stamps": np.zeros(1, int)}, "has no 'vertices', 'joints' or 'poses', it has stamps"),
        ({"poses": np.zeros((1, 72))}, "has neither 'stamps' nor 'names'"),
        ({"vertices": PEOPLE["vertices"]}, "has neither 'stamps' nor 'names'"),
        (PEOPLE | {"stamps": np.array([0.5, 1])}, "'stamps' must hold whole nanoseconds"),
        (PEOPLE | {"frame": np.array([0, 2])}, "'frame' must number the 2 'stamps' from 0"),
        (PEOPLE | {"stamps": np.array([0])}, "'frame' must number the 1 'stamps' from 0"),
        (PEOPLE | {"ids": np.array([0, 1, 2])}, "'ids' must hold 2 whole numbers"),
        (PEOPLE | {"vertices": np.ones((2, 7, 3))}, f"its bodies have 7 vertices, the bundle's {VERTICES}"),
        (PEOPLE | {"vertices": np.full((2, VERTICES, 3), np.nan)}, "other than finite numbers"),
        (PEOPLE | {"visible": np.ones(2)}, "'visible' must have the shape"),
        ({"joints": np.ones((1, 5, 3)), "stamps": np.array([0])}, "'joints' must have the shape [N, 24, 3]"),
        ({"joints": np.full((1, 24, 3), np.nan), "stamps": np.array([0])}, "must have the pelvis"),
        ({"joints": np.full((1, 24, 3), np.inf), "stamps": np.array([0])}, "'joints' is infinite somewhere"),
        ({"vertices": np.ones((0, VERTICES, 3)), "stamps": np.zeros(0, int)}, "no ground truth in it"),
    ],
)
def test_an_npz_that_is_no_reference(
    arrays: dict[str, Any], reason: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert replay(bundle, tmp_path / "out", KINDS["mcap"](tmp_path), "--reference", tmp_path / "a.npz") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mega replay: {tmp_path / 'a.npz'}") and reason in line


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


def test_the_page_needs_no_other_file_and_links_numbers_to_definitions(
    bundle: Path, scored: Path, tmp_path: Path
) -> None:
    assert replay(bundle, tmp_path / "out", scored) == 0
    page = ReportPage((tmp_path / "out" / "report.html").read_text())
    assert page.loaded and all(address.startswith("data:image/jpeg;base64,") for address in page.loaded)
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert {f"#{name}" for name in report(tmp_path / "out")["scores"] if name in MEASURES} <= {*page.links}
    jpeg = base64.b64decode(page.loaded[0].partition(",")[2])
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape[1] > 2 * image.shape[0] * 0.8  # two views side by side
    said = " ".join(page.text)
    for words in ("Calibration", "Sparsification", "error, mm over time", "Worst frames, by PVE", "pelvis position"):
        assert words in said


LIVE: dict[str, float] = dict.fromkeys(
    ("sent", "received", "dropped", "lost", "rejected", "cpu", "memory", "rate_hz", "jitter"), 2
)
LIVE |= {f"{name}_p{share}": 0.2 for name in ("latency", "latency_from_stamp") for share in (50, 95, 99)}


def test_the_page_has_all_that_the_table_has(bundle: Path, scored: Path, tmp_path: Path) -> None:
    """And what only some of the people have."""
    assert replay(bundle, tmp_path / "out", scored) == 0
    said = report(tmp_path / "out")
    said["persons"].insert(0, {"person": 8, "frames": 3, "found": 0, "ids": []})
    said["table"] += [{"frame": k, "stamp": START + k * STEP, "problem": f"cut off at {k}"} for k in range(4, 30)]
    live = LIVE | {"people_per_frame": 1.5, "agreement": {"frames": 3, "largest": 0.0004, "other_people": 0}}
    write_page(tmp_path / "a.html", said | {"live": live, "camera_problem": "K is <zero>", "unreadable": 26}, [])
    page = ReportPage((tmp_path / "a.html").read_text())
    text = " ".join(" ".join(page.text).split())
    assert {"#live"} < {*page.links} and {link.removeprefix("#") for link in page.links} <= page.ids
    for words in ("K is <zero>", "cut off at 4", "cut off at 23", "6 more are in report.json", "0.4 mm in 3 frames"):
        assert words in text
    assert "cut off at 24" not in text
    people = text.partition("as id")[2].partition("Plots")[0]
    assert "PVE" in people and "pelvis position" in people


def test_names_in_the_page_are_text(bundle: Path, tmp_path: Path) -> None:
    name = "<b>&.png"
    cv2.imwrite(str(tmp_path / name), pattern(0))
    assert replay(bundle, tmp_path / "out", tmp_path / name) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;&amp;.png" in text


def test_the_worst_frames_are_kept() -> None:
    worst = Worst()
    errors = np.random.default_rng(0).permutation(30)
    for k, error in enumerate(errors):
        nobody = PageFrame(pattern(0), Camera(K), np.zeros((0, 3, 3)), np.zeros((0, 3)), np.zeros(0))
        worst.add({"frame": k, "sigma": 9.0, **({"pve": float(error)} if error % 2 else {})}, nobody)
    assert [row.get("pve") for row, _ in worst.drawn(np.array([[0, 1, 2]]))] == [29, 27, 25, 23, 21, 19]


def test_a_row_per_frame_as_csv(bundle: Path, scored: Path, tmp_path: Path) -> None:
    assert replay(bundle, tmp_path / "out", scored) == 0
    with (tmp_path / "out" / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, said in zip(rows, report(tmp_path / "out")["table"], strict=True):
        assert (int(row["frame"]), int(row["stamp"]), row["ids"]) == (said["frame"], said["stamp"], "0")
        assert row["pve"] == (repr(said["pve"]) if "pve" in said else "")


def filled(value: Any) -> Any:
    """What is known of a row and, in it, of each person: a column has a null where it does not apply."""
    if isinstance(value, dict):
        return {name: filled(value[name]) for name in sorted(value) if value[name] is not None}
    return [filled(element) for element in value] if isinstance(value, list) else value


def test_people_as_rows_and_on_the_page_where_nothing_is_scored(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(bundle, tmp_path / "out", bag(tmp_path / "bag", *clip(Recorder()))) == 0
    assert "4 in all frames, 1 per frame, 1 ids" in capsys.readouterr().out
    meshes, said = np.load(tmp_path / "out" / "meshes.npz"), report(tmp_path / "out")
    with (tmp_path / "out" / "people.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    pelvis = meshes["joints"][:, 0]
    for name, column in (
        ("stamp", meshes["stamps"][meshes["frame"]]),
        ("frame", meshes["frame"]),
        ("id", meshes["ids"]),
        *zip("xyz", pelvis.T),
        ("distance", meshes["distance"]),
        ("sigma", meshes["sigma"].mean(axis=1)),
        ("pelvis_sigma", meshes["joints_sigma"][:, 0]),
        ("score", meshes["scores"]),
    ):
        np.testing.assert_allclose([row[name] for row in rows], column, atol=1e-4, err_msg=name)
    (track,) = said["tracks"]
    assert (track["id"], track["first"], track["last"], track["frames"]) == (0, START, START + 3 * STEP, 4)
    assert track["nearest"] == pytest.approx(np.linalg.norm(pelvis, axis=1).min(), abs=1e-3)
    assert track["sigma"] == pytest.approx(meshes["sigma"].mean(), abs=1e-3)
    page = ReportPage((tmp_path / "out" / "report.html").read_text())
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert "0.30 s" in page.text and f"{track['nearest']:.2f} m" in page.text
    assert not page.ids & {"pve", "interval"}, "definitions that nothing here uses"
    assert "true one" not in " ".join(page.text)


def test_a_row_per_frame_as_parquet(bundle: Path, scored: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'mega_ros[parquet]'")
    photograph = tmp_path / os.fsdecode(b"caf\xe9.png")
    photograph.write_bytes(cv2.imencode(".png", pattern(0))[1].tobytes())
    for source in (photograph, scored):
        assert replay(bundle, tmp_path / "out", source, "--parquet") == 0
        rows = parquet.read_table(tmp_path / "out" / "frames.parquet").to_pylist()
        for row, said in zip(rows, report(tmp_path / "out")["table"], strict=True):
            said |= {"name": r"caf\udce9.png"} if "name" in said else {}  # Parquet has UTF-8 only
            assert json.dumps(filled(row)) == json.dumps(filled(said))
    assert replay(bundle, tmp_path / "out", scored) == 0
    assert not (tmp_path / "out" / "frames.parquet").exists()  # that was of another run


@pytest.mark.parametrize("kind", ["ply", "npz"])
def test_meshes_by_track(kind: str, bundle: Path, tmp_path: Path) -> None:
    assert replay(bundle, tmp_path / "out", KINDS["mcap"](tmp_path), "--export", kind, "--export-by", "track") == 0
    meshes = np.load(tmp_path / "out" / "meshes.npz")
    folder = tmp_path / "out" / "meshes"
    if kind == "npz":
        track = np.load(folder / "person_0.npz")
        np.testing.assert_array_equal(track["vertices"], meshes["vertices"][meshes["ids"] == 0])
        np.testing.assert_array_equal(track["stamps"], meshes["stamps"])
    else:
        assert sorted(p.name for p in (folder / "person_0").iterdir()) == [f"{k:06}.ply" for k in range(4)]


def test_a_video_of_the_result_keeps_the_times(bundle: Path, tmp_path: Path) -> None:
    r = Recorder()
    path = bag(tmp_path / "bag", r.info(0), *(r.raw(k) for k in (0, 1, 2, 7)))
    assert replay(bundle, tmp_path / "out", path, "--video") == 0
    video, count = cv2.VideoCapture(str(tmp_path / "out" / "video.webm")), 0
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    while video.read()[0]:
        count += 1
    assert count == 8  # 0.1 s each, the third is shown for 0.5 s
    assert replay(bundle, tmp_path / "out", path) == 0
    assert not (tmp_path / "out" / "video.webm").exists()  # that was of another run


def test_images_of_several_sizes_are_all_in_the_video(bundle: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 3)
    cv2.imwrite(str(tmp_path / "photos" / "1.png"), pattern(1))
    assert replay(bundle, tmp_path / "out", tmp_path / "photos", "--video") == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "video.webm"))
    shown = [image for good, image in iter(video.read, (False, None)) if good]
    assert len(shown) == 3 and len({image.shape for image in shown}) == 1


@pytest.mark.parametrize("shape", [(2, 400), (400, 2)])
def test_strips_are_drawn(bundle: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "strip.png"), np.full((*shape, 3), 90, np.uint8))
    assert replay(bundle, tmp_path / "out", tmp_path / "strip.png", "--video") == 0
    assert (tmp_path / "out" / "video.webm").is_file()


def test_a_folder_of_many(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    bag(folder / "a", *clip(Recorder()))
    shutil.move(KINDS["bare mcap"](tmp_path), folder / "b.mcap")
    names = photographs(folder / "images")
    coco_json(folder / "c.json", names)
    (folder / "notes.json").write_text("{}")
    (folder / "empty.json").touch()
    photographs(folder / "d")
    writer = cv2.VideoWriter(str(folder / "e.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (WIDTH, HEIGHT))
    writer.write(pattern(0))
    writer.release()
    assert [path.name for path in frames.inputs_in(folder)] == ["a", "b.mcap", "c.json", "d", "e.avi"]
    assert replay(bundle, tmp_path / "out", folder) == 0
    names = ["a", "b.mcap", "c.json", "d", "e.avi"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "inputs.csv", "report.json"]
    cv2.imwrite(str(folder / "loose.png"), pattern(0))
    assert [path.name for path in frames.inputs_in(folder)] == ["many", *names]
    assert frames.inputs_in(folder / "d") == [folder / "d"]


def test_ground_truth_of_no_frame_is_said(
    bundle: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frames of a folder of images begin at 0, those of the reference when it was recorded."""
    photographs(tmp_path / "images")
    assert replay(bundle, tmp_path / "out", tmp_path / "images", "--reference", scored) == 0
    assert report(tmp_path / "out")["scores"]["frames"] == 0
    printed = "".join(character if character.isascii() else " " for character in capsys.readouterr().out)
    assert "scored 0: no frame that can be used has its stamp or name" in " ".join(printed.split())
    assert "people to find" not in printed


def test_the_table_of_inputs_counts_all_frames(
    bundle: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    shutil.copytree(scored, folder / "annotated_in_part")
    bag(folder / "plain", *clip(Recorder()))
    assert replay(bundle, tmp_path / "out", folder) == 0
    with (tmp_path / "out" / "inputs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["frames"], row["people"], row["scored"]) for row in rows] == [
        ("annotated_in_part", "4", "4", "3"),
        ("plain", "4", "4", ""),
        ("all inputs", "8", "8", "3"),
    ]
    printed = capsys.readouterr().out
    one, whole = report(tmp_path / "out" / "annotated_in_part"), report(tmp_path / "out")
    assert whole["scores"]["pve"] == one["scores"]["pve"] and whole["intervals"]["pve"] == one["intervals"]["pve"]
    a, b = str(tmp_path / "out" / "report.json"), tmp_path / "b.json"
    assert main(["replay", "compare", a, a]) == 0
    for row in whole["table"]:
        row |= {"pve": 0.5} if "pve" in row else {}
    b.write_text(json.dumps(whole))
    assert main(["replay", "compare", a, str(b)]) == 1
    assert "…" not in printed and "annotat" in printed  # names are folded, not cut


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "crop margin": ({"margin": 1.4 * MARGIN}, "worse: pve by"),
    "colour order": ({"colours": ("blue", "green", "red")}, "worse: pve by"),
    "calibration": ({"scale": 0.3}, "worse: coverage_1_sigma by"),
    "promise": ({"coverage": {"1 sigma": 0.1}}, "worse: coverage_1_sigma by"),
}


@pytest.fixture(scope="module")
def gated(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bag with noisy ground truth of 12 frames, and the report of the bundle as it should be."""
    folder = tmp_path_factory.mktemp("gated")
    r, rng = Recorder(), np.random.default_rng(0)
    messages = [topic for k in range(12) for topic in (r.info(k), r.raw(k))]
    assert replay(bundle, folder / "first", bag(folder / "plain", *messages)) == 0
    truth = truth_of(folder / "first", (0, 0, 0))
    for points in truth:
        for axis in "xyz":
            points[axis] += rng.normal(0, 0.05, points.shape)
    path = bag(folder / "bag", *messages, *(r.cloud(k, points) for k, points in enumerate(truth)))
    assert replay(bundle, folder / "before", path) == 0
    return path, folder / "before" / "report.json"


@pytest.mark.parametrize("change", CHANGED)
def test_the_gate_catches_a_bundle_that_was_changed(
    change: str, gated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = gated
    how, words = CHANGED[change]
    (tmp_path / "bundle").mkdir()
    little_bundle(tmp_path / "bundle", **how)
    assert replay(tmp_path / "bundle", tmp_path / "after", path) == 0
    assert main(["replay", "compare", str(before), str(tmp_path / "after" / "report.json")]) == 1
    assert words in capsys.readouterr().out


def test_compare_finds_what_became_worse(
    bundle: Path, scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigma of a bundle with another calibration; and bodies against a reference of other people."""
    (tmp_path / "small").mkdir()
    little_bundle(tmp_path / "small", scale=1e-6)
    r, rng = Recorder(), np.random.default_rng(0)
    assert replay(bundle, tmp_path / "plain", scored) == 0
    truth = truth_of(tmp_path / "plain", (0, 0, 0))
    for points in truth:
        points["x"] += rng.normal(0, 0.02, points.shape)
    path = bag(tmp_path / "bag", *clip(r), *(r.cloud(k, truth[k]) for k in range(4)))
    for name, model in (("a", bundle), ("same", bundle), ("b", tmp_path / "small")):
        assert replay(model, tmp_path / name, path) == 0
    capsys.readouterr()

    def gate(other: str, *words: str) -> int:
        a, b = (str(tmp_path / name / "report.json") for name in ("a", other))
        return main(["replay", "compare", a, b, *words])

    assert gate("same") == 0
    assert gate("b") == 1
    assert "worse: coverage_1_sigma by" in capsys.readouterr().out
    coverage = [f"coverage_{k}_sigma{which}" for k in (1, 2) for which in ("", "_visible", "_hidden")]
    assert gate("b", "--tolerance", *(f"{name}=100%" for name in coverage)) == 0
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("".join(f"{name}: {amount}\n" for name, amount in zip(coverage, ["100%", 100] * 3)))
    assert gate("b", "--thresholds", str(thresholds)) == 0
    assert gate("b", "--thresholds", str(thresholds), "--tolerance", "coverage_2_sigma=3") == 1
    assert gate("plain") == 2
    assert "not comparable: they are of different input files" in capsys.readouterr().err
    assert gate("same", "--tolerance", "wings=2") == 2
    for text in ("wings: 2", "pve: [2]", "pve: much", "pve: -1", "- pve", "pve: {", ""):
        thresholds.write_text(text)
        capsys.readouterr()
        assert gate("same", "--thresholds", str(thresholds)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mega replay compare: {thresholds}: ")
    assert gate("gone") == 2
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "report.json").write_text('{"format": 1}')
    assert gate("gone") == 2
    assert "Traceback" not in capsys.readouterr().err


def no_sigma(row: dict[str, Any]) -> None:
    for name in [name for name in row if re.search("sigma|spearman|ause|points", name)]:
        del row[name]


def every_second_cut_off(row: dict[str, Any]) -> None:
    if row["frame"] % 2:
        kept = {"frame": row["frame"], "stamp": row["stamp"], "problem": "cut off"}
        row.clear()
        row.update(kept)


def nobody_found(row: dict[str, Any]) -> None:
    for name in [name for name, measure in MEASURES.items() if measure.weight == "compared"]:
        row.pop(name, None)
    no_sigma(row)
    row |= {"compared": 0, "joints_found": 0, "predicted_people": 0, "accelerated": 0}


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (no_sigma, 1, "worse: coverage_1_sigma_visible is missing in B in 12 of 12 frames that have it in A"),
        (lambda row: row.pop("pve"), 1, "worse: pve is missing in B in 12 of 12 frames that have it in A"),
        (every_second_cut_off, 1, "worse: 6 of 12 scored frames are not scored in B, the first: cut off"),
        (nobody_found, 0, ""),
        (lambda row: row.update(pve="big"), 2, "table[0].pve is 'big', not a number; the file is damaged"),
        (lambda row: row.update(pve=None), 2, "table[0].pve is None, not a number"),
        (lambda row: row.update(pve=1e300), 2, "table[0].pve is 1e+300, not a number"),
        (lambda row: row.pop("compared"), 2, "table[0].compared is missing; the file is damaged"),
    ],
)
def test_what_a_report_lacks_is_not_passed_over(
    damage: Callable[[dict[str, Any]], object],
    code: int,
    words: str,
    gated: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = json.loads(gated[1].read_text())
    for row in said["table"]:
        damage(row)
    (tmp_path / "b.json").write_text(json.dumps(said))
    assert main(["replay", "compare", str(gated[1]), str(tmp_path / "b.json")]) == code
    shown = capsys.readouterr()
    assert words in shown.out + shown.err
    assert len(shown.err.splitlines()) == (code == 2)


def table(values: Iterable[float]) -> list[dict[str, Any]]:
    return [{"true_people": 1, "compared": 1, "recall": 1, "pve": value} for value in values]


def difference_of(name: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Difference:
    (difference,) = (d for d in compare(a, b) if d.name == name)
    return difference


def test_a_difference_is_a_regression_only_if_chance_does_not_explain_it() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.05, 0.15, 60)
    unsure, after = before + 0.001 + rng.normal(0, 0.01, 60), before + 0.003 + rng.normal(0, 0.001, 60)
    noise, shifted = (difference_of("pve", table(before), table(values)) for values in (unsure, after))
    assert noise.worse > 0 and not noise.surely and shifted.surely
    assert shifted.interval[0] < shifted.difference < shifted.interval[1]
    assert shifted.difference == pytest.approx(0.003, abs=5e-4)
    unscored = [{"people": 1}] * 60
    assert compare(unscored + table(before), unscored + table(after)) == compare(table(before), table(after))
    missed = [row | {"recall": 0} for row in table(before)]
    recall = difference_of("recall", table(before), missed)
    assert (recall.difference, recall.worse) == (-1, 1)


def test_only_of_shares_and_of_the_rank_correlation_is_more_better() -> None:
    for name in (name for name, measure in MEASURES.items() if measure.better in ("low", "high")):
        before, after = ([{MEASURES[name].weight: 1, name: value}] * 2 for value in (0.5, 0.6))
        better = name in ("pck", "recall", "precision", "idf1", "spearman")
        assert difference_of(name, before, after).worse == pytest.approx(-0.1 if better else 0.1), name


def test_a_number_that_few_frames_have_may_be_a_regression() -> None:
    """In some draws of the bootstrap, no frame has it."""
    nobody: dict[str, Any] = {"compared": 0, "true_people": 1, "recall": 0}
    before, after = ([nobody | {"compared": 1, "pve": pve}, *[nobody] * 3] for pve in (0.1, 0.2))
    assert difference_of("pve", before, after).surely


def covered(share: float) -> list[dict[str, Any]]:
    return [{"true_people": 1, "compared": 1, "coverage_1_sigma": share} for _ in range(10)]


def test_coverage_is_judged_by_what_each_bundle_promises() -> None:
    """0.70 is nearer to a promise of 0.71 than 0.61 is, but farther from the share of a Gaussian, 0.608."""
    a, b, name = covered(0.61), covered(0.70), "coverage_1_sigma"
    kept, broken = {"1 sigma": 0.71}, {"1 sigma": 0.5}
    without, nearer, farther = (
        next(d for d in compare(a, b, coverages) if d.name == name)
        for coverages in (({}, {}), (kept, kept), (kept, broken))
    )
    assert without.surely and without.worse == pytest.approx(0.090, abs=1e-3)
    assert not nearer.surely and nearer.worse == pytest.approx(-0.09)
    assert farther.surely and farther.worse == pytest.approx(0.1)


def test_a_bag_without_the_topic_gives_nothing(tmp_path: Path) -> None:
    assert list(read_bag(KINDS["mcap"](tmp_path), ["/nowhere"])) == []


def cut(folder: Path, kind: str, share: float) -> Path:
    path = KINDS[kind](folder)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


@pytest.mark.parametrize("kind", ["bare mcap", "bare db3", "bare db3.zstd", "ROS 1"])
def test_a_bag_cut_anywhere_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    """By an InputError: anything else would be a traceback."""
    path = KINDS[kind](tmp_path)
    whole = path.read_bytes()

    @settings(max_examples=15, deadline=None, database=None)
    @given(share=st.floats(0, 1, exclude_max=True))
    def read(share: float) -> None:
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            seen = list(frames.open_input([path]).frames())
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert len(seen) <= 4

    read()


def with_metadata(text: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = KINDS["mcap"](folder)
        (path / "metadata.yaml").write_bytes(text)
        return path

    return make


def file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


JPEG = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))[1].tobytes()
AT = JPEG.find(b"\xff\xc0") + 5
HUGE = JPEG[:AT] + 2 * (49000).to_bytes(2, "big") + JPEG[AT + 4 :]

BROKEN: dict[str, Callable[[Path], Path]] = {
    "nothing": lambda folder: folder / "gone.mcap",
    "an empty folder": empty_folder,
    "text": file("a.txt", b"hello"),
    "a list of images": file("a.txt", b"images/1.jpg\n" * 200),
    "an empty bag": file("a.mcap", b""),
    "an empty ROS 1 bag": file("a.bag", b""),
    "noise for a bag": file("a.db3", np.random.default_rng(0).bytes(5000)),
    "noise for a compressed bag": file("a.mcap.zstd", b"noise"),
    "half an mcap": lambda folder: cut(folder, "bare mcap", 0.5),
    "an mcap without its end": lambda folder: cut(folder, "bare mcap", 0.95),
    "half a db3": lambda folder: cut(folder, "bare db3", 0.5),
    "half a ROS 1 bag": lambda folder: cut(folder, "ROS 1", 0.5),
    "half a compressed bag": lambda folder: cut(folder, "bare db3.zstd", 0.5),
    "metadata that is no YAML": with_metadata(b"{"),
    "metadata of something else": with_metadata(b"a: 1"),
    "metadata that is not UTF-8": with_metadata(b"\xff\xfe\x00"),
    "no images": lambda folder: bag(folder / "bag", Recorder().info(0)),
    "no messages": lambda folder: bag(folder / "bag"),
    "images that the node does not take": lambda folder: bag(folder / "bag", Recorder().raw(0, encoding="32FC1")),
    "half a photograph": file("a.jpg", JPEG[: len(JPEG) // 2]),
    "a header of 2.4 gigapixels": file("a.jpg", HUGE),
    "no photograph": file("a.png", b"noise"),
    "no video": file("a.mp4", b"noise"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_input_is_one_line_and_leaves_no_result(
    kind: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = BROKEN[kind](tmp_path)
    assert replay(bundle, tmp_path / "out", path) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"mega replay: {path}")
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("suffix", [".png", ".avi", ".mcap", ".txt"])
def test_files_whose_names_are_not_utf8(
    suffix: str, bundle: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9[red]" + suffix.encode())
    if suffix == ".png":
        path.write_bytes(cv2.imencode(".png", pattern(0))[1].tobytes())
    elif suffix == ".mcap":
        shutil.move(KINDS["bare mcap"](tmp_path), path)
    else:
        path.write_bytes(b"noise")
    expected = 0 if suffix in (".png", ".mcap") else 1
    assert replay(bundle, tmp_path / path.stem, path) == expected
    assert len(capfdbinary.readouterr().err.splitlines()) == expected


def test_a_topic_whose_name_is_not_utf8(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = KINDS["bare mcap"](tmp_path)
    path.write_bytes(path.read_bytes().replace(b"/camera/image_raw", b"/camera/image_r\xff\xfe"))
    assert replay(bundle, tmp_path / "out", path) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--image-topic", "/gone"], "there is no topic /gone; it has /camera/camera_info"),
        (["--camera-info-topic", IMAGE], "carries sensor_msgs/msg/Image, not"),
        (["--reference", "/gone"], "is neither a file nor a topic"),
        (["--reference", IMAGE], "carries sensor_msgs/msg/Image"),
        (["--reference", __file__], "there is no bag here"),
        (["--reference", "gone.npz"], "there is no such file"),
        (["--write", "taken"], "there is something that no replay has written"),
        (["--fov", "180"], "not between 1 and 170"),
        (["--smoothing", "1.5"], "not between 0 and 1"),
        (["--bundle", "gone"], "gone"),
        (["--rate", "0"], "--rate 0: not between"),
        (["--domain", "233"], "--domain 233: not between"),
        (["--workers", "0"], "--workers 0: at least one"),
        (["--workers", "2", "--engine", "ray"], "--workers is for --engine local"),
        (["--samples", "101"], "--samples 101: not between 0 and 100"),
        (["--seed", "-1"], "--seed -1: must not be negative"),
    ],
)
def test_wrong_options(
    args: list[str],
    reason: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert replay(bundle, tmp_path / "out", KINDS["mcap"](tmp_path), *args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mega replay: ") and reason in line


def test_an_input_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay"]) == 1
    assert "INPUT: name a bag" in capsys.readouterr().err


def test_a_reference_of_another_body(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = points_of(np.ones((1, 5, 3), np.float32), np.ones((1, 5)), np.zeros(1, np.uint32))
    path = bag(tmp_path / "bag", *clip(Recorder()), Recorder().cloud(0, points))
    assert replay(bundle, tmp_path / "out", path) == 1
    assert f"its bodies have 5 vertices, the bundle's {VERTICES}" in capsys.readouterr().err


def test_a_failed_run_leaves_the_results_of_the_one_before(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert replay(bundle, out, KINDS["mcap"](tmp_path)) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert replay(bundle, out, BROKEN["half a photograph"](tmp_path)) == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_what_no_replay_has_written_stays(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording as --write, the input itself or another; a folder with other meshes as --out."""
    recording = KINDS["mcap"](tmp_path)
    (tmp_path / "own" / "meshes").mkdir(parents=True)
    (tmp_path / "own" / "meshes" / "mine.txt").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert replay(bundle, tmp_path / "out", recording, "--write", recording) == 1
    assert replay(bundle, tmp_path / "own", recording) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "that no replay has written" in said[0] and "own/meshes: is of no replay" in said[1]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_full_disk_is_an_error_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("of the run before")
    full = pytest.raises(InputError, match=r"cannot be written \(No space left on device\)")
    with full, put_in_place(tmp_path, ("a",)), Path("/dev/full").open("w") as file:
        file.write("more")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of the run before"]


@pytest.mark.parametrize("kind", ["recorded out of order", "ROS 1"])
def test_each_message_is_read_once_in_the_order_of_the_stamps(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are large."""
    given: list[str] = []
    read = Bag.read

    def watched(opened: Bag, connection: Connection, data: bytes) -> Any:
        given.append(connection.topic)
        return read(opened, connection, data)

    monkeypatch.setattr(Bag, "read", watched)
    found = list(frames.Recorded(KINDS[kind](tmp_path)).frames())
    assert [frame.stamp for frame in found] == [START + k * STEP for k in range(4)]
    assert all(np.array_equal(frame.image, pattern(k)) for k, frame in enumerate(found) if frame.image is not None)
    assert given.count(IMAGE) == 4 and given.count(INFO) == 1  # the others repeat it


def started_again(folder: Path) -> tuple[Path, list[int]]:
    """Two runs of a simulation with ground truth, which are recorded one after the other, and their numbers."""
    numbers, recorder = [*range(20, 24), *range(4)], Recorder()
    truth = points_of(np.ones((1, VERTICES, 3)), np.ones((1, VERTICES)), np.zeros(1))
    topics = [t for k in numbers for t in (recorder.info(k), recorder.raw(k), recorder.cloud(k, truth))]
    return bag(folder / "bag", *((t, START + k, m) for k, (t, _, m) in enumerate(topics))), numbers


def test_a_simulation_that_is_reset_is_two_runs(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they were recorded, without waiting for the second; each with its ground truth."""
    path, numbers = started_again(tmp_path)
    messages, taken = Bag.messages, 0

    def watched(opened: Bag, topics: Iterable[str]) -> Iterator[tuple[Connection, int, bytes]]:
        nonlocal taken
        for message in messages(opened, topics):
            taken += 1
            yield message

    with monkeypatch.context() as patched, open_bag(path) as opened:
        patched.setattr(Bag, "messages", watched)
        for count, (_, stamp, *_) in enumerate(opened.in_stamp_order(IMAGE)):
            assert stamp == START + numbers[count] * STEP and taken == len(numbers) + count + 1
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    assert [row["stamp"] for row in said["table"]] == [START + k * STEP for k in numbers]
    assert (said["frames"], said["without_reference"], said["reference"]["unused"]) == (8, 0, [])
    assert len(said["tracks"]) == 2, "people of the next run are others"


def test_files_without_metadata_are_one_bag_only_if_they_are_its_parts(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without_metadata(tmp_path)
    assert replay(bundle, tmp_path / "out", folder) == 0
    note = "no metadata.yaml: parts_0.mcap to parts_1.mcap are taken for the parts of one bag"
    assert report(tmp_path / "out")["note"] == note
    assert note in " ".join("".join(c if c.isascii() else " " for c in capsys.readouterr().out).split())
    for number in (1, 0):
        (folder / f"parts_{number}.mcap").rename(folder / f"parts_{number + 1}.mcap")
    assert [path.name for path in frames.inputs_in(folder)] == ["parts_1.mcap", "parts_2.mcap"]
    with pytest.raises(InputError, match="there is no bag here"), open_bag(folder):
        pass


@pytest.mark.parametrize("definition", ["", "int32 x\n", "other_msgs/Gone x\n", "no definition {"])
def test_definitions_of_other_topics_may_be_missing_or_wrong(definition: str, tmp_path: Path) -> None:
    """As some drivers and recorders leave them; their hashes do not fit, then."""
    odd = "/odd", "odd_msgs/msg/Odd"
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection(*odd, msgdef=definition, rihs01=f"RIHS01_{64 * '0'}")
        write_messages(writer, clip(Recorder()), ROS2, ROS2.serialize_cdr)
    with Writer1(tmp_path / "a.bag") as writer1:
        connection = writer1.add_connection(*odd, msgdef=definition, md5sum="*")
        writer1.write(connection, START, bytes(4))
        write_messages(writer1, clip(Recorder(ROS1)), ROS1, ROS1.serialize_ros1)
    for name in ("bag", "a.bag"):
        seen = list(frames.open_input([tmp_path / name]).frames())
        assert len(seen) == 4 and all(frame.camera and frame.image is not None for frame in seen)


@pytest.mark.parametrize("kind", ["bare mcap", "bare db3"])
def test_a_kind_of_definition_that_rosbags_does_not_know(kind: str, tmp_path: Path) -> None:
    """As rosbag2 writes it where it does not find the definition."""
    path = KINDS[kind](tmp_path)
    path.write_bytes(path.read_bytes().replace(b"ros2msg", b"unknown"))
    with pytest.raises(InputError, match="has topics with a definition of the kind 'unknown', which rosbags"):
        frames.open_input([path])


def test_parts_of_two_ros_are_no_bag(tmp_path: Path) -> None:
    write_ros1(tmp_path / "run_0.bag", clip(Recorder(ROS1)))
    shutil.copy(KINDS["bare mcap"](tmp_path / "other"), tmp_path / "run_1.mcap")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(InputError, match="has parts of ROS 1 and of ROS 2; name one of them"), open_bag(tmp_path):
        pass


def test_stamps_before_1970_are_kept(bundle: Path, tmp_path: Path) -> None:
    """As of a clock that was not set. A bag's own times cannot be negative, those of headers can."""
    topic, stamp, message = Recorder().raw(0)
    message.header.stamp.sec = -5
    path, out = bag(tmp_path / "bag", (topic, stamp, message)), tmp_path / "meshes"
    assert replay(bundle, tmp_path / "out", path, "--write", out) == 0
    with open_bag(out) as written:
        assert [s for _, s, *_ in written.in_stamp_order("/mega/mesh")] == [-5 * 10**9]


def test_images_are_inputs_wherever_they_lie(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other inputs, beside folders of images, beside a metadata.yaml of something else, and in this folder."""
    photographs(tmp_path / "photos", 1)
    photographs(tmp_path / "photos" / "left", 1)
    bag(tmp_path / "photos" / "bag", *clip(Recorder()))
    (tmp_path / "photos" / "metadata.yaml").write_text("rig: 2\n")
    monkeypatch.chdir(tmp_path / "photos" / "left")
    for word, out in (("..", tmp_path / "out"), (tmp_path / "photos", tmp_path / "again")):
        assert replay(bundle, out, word) == 0
        assert sorted(path.name for path in out.iterdir()) == ["bag", "inputs.csv", "left", "photos", "report.json"]
    assert replay(bundle, tmp_path / "here", ".") == 0 and report(tmp_path / "here")["input"] == "left"


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    """As macOS leaves them on other systems' disks."""
    parts = without_metadata(tmp_path)
    (parts / "._parts_0.mcap").write_bytes(b"Mac OS X")
    assert frames.inputs_in(parts) == [parts] and len(list(frames.open_input([parts]).frames())) == 4
    photographs(tmp_path / "photos", 1)
    for name in ("._0.png", "._film.mp4"):
        (tmp_path / "photos" / name).write_bytes(b"Mac OS X")
    assert frames.inputs_in(tmp_path / "photos") == [tmp_path / "photos"]
    assert [frame.problem for frame in frames.open_input([tmp_path / "photos"]).frames()] == [""]


def test_camcorders_videos_in_a_folder_are_inputs(tmp_path: Path) -> None:
    names = ["00000.MTS", "door.dav", "film.mpg", "live.ts", "moving.gif", "phone.3gp", "web.mjpeg"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in frames.inputs_in(tmp_path)] == names


def test_a_folder_that_may_not_be_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lost+found on a disk. Permissions do not keep root out, so the system call fails here."""
    disk = tmp_path / "disk"
    closed = disk / "lost+found"
    closed.mkdir(parents=True)
    bag(disk / "a", *clip(Recorder()))

    def only_open(name: str, call: Callable[[Any], Any]) -> None:
        def called(path: Any) -> Any:
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path)

        monkeypatch.setattr(os, name, called)

    only_open("listdir", os.listdir)
    only_open("scandir", os.scandir)
    assert frames.inputs_in(disk) == [disk / "a"]
    assert replay(bundle, tmp_path / "out", closed) == 1
    assert f"{closed}: cannot be read (Permission denied)" in capsys.readouterr().err


def test_an_error_of_ours_is_not_the_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged bag may raise anything within rosbags, and only there."""

    def fail(*arguments: object) -> None:
        raise TypeError("of ours")

    with open_bag(KINDS["ROS 1"](tmp_path)) as opened:
        (first,) = (m for m, _ in zip(opened.messages([INFO]), range(1)))
        monkeypatch.setattr(bags, "hasattr", fail, raising=False)
        with pytest.raises(TypeError, match="of ours"):
            opened.read(first[0], first[2])


def test_topics_of_a_ros1_bag_have_the_types_of_ros2(tmp_path: Path) -> None:
    with open_bag(KINDS["ROS 1"](tmp_path)) as opened:
        assert opened.topics == {INFO: "sensor_msgs/msg/CameraInfo", IMAGE: "sensor_msgs/msg/Image"}


def test_the_embedded_clip_is_scored_with_all_its_frames(root: Path, tmp_path: Path) -> None:
    """With the default bundle, whose accuracy has tests of its own: here, every frame is in the table."""
    assert main(["replay", str(root / "demo" / "clip"), "--out", str(tmp_path / "out")]) == 0
    said = report(tmp_path / "out")
    assert (said["frames"], said["unreadable"], said["assumed"], said["without_reference"]) == (90, 0, 0, 60)
    assert said["scores"]["frames"] == sum("true_people" in row for row in said["table"]) == 30
    assert said["scores"]["recall"] > 0.5
    assert 0 < said["scores"]["pve"] < 0.25
