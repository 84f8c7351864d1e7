"""What `mega replay` writes: people and frames as tables, the page, videos, meshes; and how it fails."""

import base64
import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from recordings import (
    HEIGHT,
    IMAGE,
    INFO,
    JPEG,
    KINDS,
    ROS2,
    START,
    STEP,
    WIDTH,
    K,
    Recorder,
    ReportPage,
    bag,
    clip,
    coco_json,
    cut,
    file,
    pattern,
    photographs,
    replay,
    report,
    write_messages,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_ros.cli import main
from mega_ros.replay import bags, frames
from mega_ros.replay.bags import open_bag
from mega_ros.replay.measures import MEASURES
from mega_ros.replay.recording import Recording
from mega_ros.replay.report_page import Worst, write_page
from mega_ros.replay.results import put_in_place
from mega_ros.replay.sheets import PageFrame
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import positions, read_cloud


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


def test_the_overlay_of_a_large_image_is_as_small_as_the_node_s(bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), np.full((600, 1280, 3), 128, np.uint8))
    assert replay(bundle, tmp_path / "out", tmp_path / "large.png", "--write", tmp_path / "written") == 0
    with open_bag(tmp_path / "written") as written:
        ((connection, _, data),) = written.messages(["/mega/overlay/compressed"])
        assert to_bgr(written.read(connection, data)).shape == (300, 640, 3)


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


def with_metadata(text: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = KINDS["mcap"](folder)
        (path / "metadata.yaml").write_bytes(text)
        return path

    return make


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


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
        (["--fov", "180"], "--fov 180.0: must be <= 170"),
        (["--smoothing", "1.5"], "--smoothing 1.5: must be <= 1"),
        (["--within", "nan"], "--within nan: must be >= 0"),
        (["--within", "inf"], "--within inf: must be <= 1"),
        (["--bundle", "gone"], "gone"),
        (["--rate", "0"], "--rate 0.0: must be >= 0.01"),
        (["--domain", "233"], "--domain 233: must be <= 232"),
        (["--workers", "0"], "--workers 0: must be >= 1"),
        (["--workers", "2", "--engine", "ray"], "--workers is for --engine local"),
        (["--samples", "101"], "--samples 101: must be <= 100"),
        (["--seed", "-1"], "--seed -1: must be >= 0"),
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


def test_an_error_of_ours_is_not_the_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged bag may raise anything within rosbags, and only there."""

    def fail(*arguments: object) -> None:
        raise TypeError("of ours")

    with open_bag(KINDS["ROS 1"](tmp_path)) as opened:
        (first,) = (m for m, _ in zip(opened.messages([INFO]), range(1)))
        monkeypatch.setattr(bags, "hasattr", fail, raising=False)
        with pytest.raises(TypeError, match="of ours"):
            opened.read(first[0], first[2])


def test_the_embedded_clip_is_scored_with_all_its_frames(root: Path, tmp_path: Path) -> None:
    """With the default bundle, whose accuracy has tests of its own: here, every frame is in the table."""
    assert main(["replay", str(root / "demo" / "clip"), "--out", str(tmp_path / "out")]) == 0
    said = report(tmp_path / "out")
    assert (said["frames"], said["unreadable"], said["assumed"], said["without_reference"]) == (90, 0, 0, 60)
    assert said["scores"]["frames"] == sum("true_people" in row for row in said["table"]) == 30
    assert said["scores"]["recall"] > 0.5
    assert 0 < said["scores"]["pve"] < 0.25
