"""`mega replay` on bags: every kind of recording, its topics and cameras, what is missing or damaged in it."""

import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from little_bundle import VERTICES
from recordings import (
    HEIGHT,
    IMAGE,
    INFO,
    KINDS,
    ROS1,
    ROS2,
    START,
    STEP,
    WIDTH,
    K,
    Recorder,
    bag,
    clip,
    cut,
    difference_of,
    edited,
    pattern,
    replay,
    report,
    split,
    with_summary,
    without_metadata,
    write_messages,
    write_ros1,
)
from rosbags.interfaces import Connection
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_ros import Recovery
from mega_ros.replay import frames
from mega_ros.replay.bags import Bag, open_bag, read_bag
from mega_ros.replay.measures import MEASURES
from mega_ros.replay.score import in_view
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import points_of, read_stamp


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


def test_only_of_shares_and_of_the_rank_correlation_is_more_better() -> None:
    for name in (name for name, measure in MEASURES.items() if measure.better in ("low", "high")):
        before, after = ([{MEASURES[name].weight: 1, name: value}] * 2 for value in (0.5, 0.6))
        better = name in ("pck", "recall", "precision", "idf1", "spearman")
        assert difference_of(name, before, after).worse == pytest.approx(-0.1 if better else 0.1), name


def test_a_bag_without_the_topic_gives_nothing(tmp_path: Path) -> None:
    assert list(read_bag(KINDS["mcap"](tmp_path), ["/nowhere"])) == []


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


def test_topics_of_a_ros1_bag_have_the_types_of_ros2(tmp_path: Path) -> None:
    with open_bag(KINDS["ROS 1"](tmp_path)) as opened:
        assert opened.topics == {INFO: "sensor_msgs/msg/CameraInfo", IMAGE: "sensor_msgs/msg/Image"}
