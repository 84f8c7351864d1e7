"""`mega replay` scores people against references: ground truth in a bag, npz, bodies, COCO's keypoints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from little_bundle import VERTICES
from recordings import (
    KINDS,
    LARGE,
    START,
    STEP,
    TRUTH,
    Recorder,
    ReportPage,
    bag,
    clip,
    coco_json,
    photographs,
    replay,
    report,
    with_exif,
)
from smpl_files import write_smpl

from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import LIMB_JOINTS, LIMBS, SMPL_JOINTS
from mega_ros import Recovery
from mega_ros.cli import main
from mega_ros.replay import frames
from mega_ros.replay.reference import Truth, open_reference
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import points_of


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


def test_images_of_a_json_are_not_one_camera_and_are_not_turned(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People of different photographs are different people. Annotations refer to the stored pixels."""
    names = photographs(tmp_path / "images", 2)
    sideways = with_exif(cv2.imencode(".jpg", np.full((12, LARGE, 3), 90, np.uint8))[1].tobytes())
    (tmp_path / "images" / "s.jpg").write_bytes(sideways)
    path = coco_json(tmp_path / "a.json", [*names, "s.jpg"], tall={"s.jpg": 12})
    shapes = [frame.image.shape[:2] for frame in frames.open_input([path]).frames() if frame.image is not None]
    assert shapes[2] == (12, LARGE)
    assert replay(bundle, tmp_path / "out", path) == 0
    assert np.load(tmp_path / "out" / "meshes.npz")["ids"].tolist() == [0, 0, 0]
    # so nobody is tracked, also where a reference has such ids
    assert replay(bundle, tmp_path / "again", path, "--reference", tmp_path / "out" / "meshes.npz") == 0
    said = report(tmp_path / "again")
    assert said["scores"]["pve"] == 0 and said["persons"] == []
    assert not {"acceleration", "idf1", "switches", "tracks"} & {*said["scores"], *said}
    assert replay(bundle, tmp_path / "again", path, "--export", "npz", "--export-by", "track") == 1
    assert "a.json: --export-by track: ids start again in each image" in capsys.readouterr().err
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


def test_a_reference_belongs_to_the_nearest_frame(bundle: Path, tmp_path: Path) -> None:
    """It is within reach of the frame before, too, and of one that has a reference of its own."""
    path = KINDS["mcap"](tmp_path)
    assert replay(bundle, tmp_path / "first", path) == 0
    meshes = np.load(tmp_path / "first" / "meshes.npz")
    late = np.array([0, 70, 170, 380]) * 10**6  # the frames are at 0, 100, 200 and 300
    np.savez(tmp_path / "a.npz", vertices=meshes["vertices"], stamps=START + late)
    args = "--reference", tmp_path / "a.npz", "--within", 0.09
    assert replay(bundle, tmp_path / "out", path, *args) == 0
    said = report(tmp_path / "out")
    assert said["scores"]["frames"] == 4 and said["reference"]["unused"] == []
    np.savez(tmp_path / "a.npz", vertices=meshes["vertices"][:2], stamps=START + late[[1, 3]])
    assert replay(bundle, tmp_path / "out", path, *args) == 0
    assert report(tmp_path / "out")["reference"]["frames_without"] == [0, 2]


@pytest.mark.parametrize("key", ["names", "stamps"])
def test_the_reference_of_a_frame_that_cannot_be_used_is_no_other_ones(key: str, bundle: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 3)
    assert replay(bundle, tmp_path / "first", tmp_path / "photos") == 0
    meshes = np.load(tmp_path / "first" / "meshes.npz")
    arrays: dict[str, Any] = {"names": np.array(["1.png"])} if key == "names" else {"stamps": meshes["stamps"][1:2]}
    np.savez(tmp_path / "a.npz", vertices=meshes["vertices"][:1], **arrays)
    (tmp_path / "photos" / "1.png").write_bytes(b"no image")
    args = "--reference", tmp_path / "a.npz", "--within", 0.05  # the next frame is so near
    assert replay(bundle, tmp_path / "out", tmp_path / "photos", *args) == 0
    said = report(tmp_path / "out")
    assert (said["unreadable"], said["scores"]["frames"], said["reference"]["unused"]) == (1, 0, [])


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
    (_, first), (_, second) = truth.matched(frames.Frame(START + k * STEP, None) for k in range(2))
    assert isinstance(first, Truth) and isinstance(second, Truth)
    assert not len(first.joints) and second.ids is not None and second.ids.tolist() == [8, 9]
    assert second.vertices is not None and second.vertices.shape == (2, VERTICES, 3)
    np.testing.assert_allclose(second.vertices[1] - second.vertices[0], VERTICES * [[1, 0, 0]], atol=1e-5)


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


def test_a_reference_of_another_body(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = points_of(np.ones((1, 5, 3), np.float32), np.ones((1, 5)), np.zeros(1, np.uint32))
    path = bag(tmp_path / "bag", *clip(Recorder()), Recorder().cloud(0, points))
    assert replay(bundle, tmp_path / "out", path) == 1
    assert f"its bodies have 5 vertices, the bundle's {VERTICES}" in capsys.readouterr().err
