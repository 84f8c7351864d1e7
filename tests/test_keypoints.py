"""`mega evaluate keypoints`: the format, each number's definition, and the product on frames whose answer is known."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mega_model.core import metrics
from mega_model.core.detection import Detections
from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import LIMB_JOINTS, LIMBS
from mega_ros import Recovery, cli
from mega_ros.detect import Detector
from mega_ros.recovery import FOV_DEFAULT
from mega_ros.replay.coco import Person, Photograph, read
from mega_ros.replay.keypoints import table
from mega_ros.replay.photographs import (
    FEWEST,
    NOBODY,
    PARTS,
    DetectionCounts,
    Limbs,
    find,
    rest_pose,
    rows,
    score,
    summary,
    torso,
)

NAMES = ["nose", *LIMBS]
WIDTH, HEIGHT = 320, 240


def annotation(box: Any, points: Any, image: int = 0, **fields: Any) -> dict[str, Any]:
    """box [4] (x0, y0, x1, y1) and points [12, 2] -> an annotation with a nose that is not annotated."""
    x0, y0, x1, y1 = (float(x) for x in box)
    triples = np.concatenate([np.asarray(points, float), np.full((len(LIMBS), 1), 2.0)], axis=1)
    keypoints = [0.0, 0.0, 0.0, *triples.ravel().tolist()]
    out = {"image_id": image, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "keypoints": keypoints}
    return out | fields


def write_set(folder: Path, images: list[np.ndarray], annotations: list[dict[str, Any]], **fields: Any) -> Path:
    """A set of COCO's format with its images; `fields` are those of every image."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"categories": [{"id": 1, "name": "person", "keypoints": NAMES}]}
    data |= {"images": [], "annotations": annotations}
    for n, image in enumerate(images):
        cv2.imwrite(str(folder / "images" / f"{n}.png"), image)
        size = {"width": image.shape[1], "height": image.shape[0]}
        data["images"].append({"id": n, "file_name": f"{n}.png", **size, **fields})
    (folder / "set.json").write_text(json.dumps(data))
    return folder / "set.json"


def person(box: Any = (0, 0, 100, 200), points: Any = None, **fields: Any) -> Person:
    points = np.zeros((12, 2)) if points is None else points
    fields = dict[str, Any](seen=np.ones(12, bool), crowd=False, joints3d=None) | fields
    return Person(np.asarray(box, float), points, **fields)


def photograph(*people: Person, ignore: Any = (), all_marked: bool = True, group: str = "") -> Photograph:
    regions = np.array([*ignore, *(p.box for p in people if p.crowd)], float).reshape(-1, 4)
    return Photograph(Path("x.png"), WIDTH, HEIGHT, group, list(people), regions, all_marked)


# ---------------------------------------------------------------------------------------------------------- the format


def points(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(10, 200, (12, 2))


def test_people_of_several_categories_are_people(tmp_path: Path) -> None:
    """As men and women, whose joints have another order."""
    labels = points()
    both = [annotation((10, 20, 110, 220), labels)] * 2
    path = write_set(tmp_path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)], both)
    data = json.loads(path.read_text())
    data["categories"].append({"id": 7, "name": "rider", "keypoints": NAMES[::-1]})
    triples = np.reshape(both[1]["keypoints"], (-1, 3))
    data["annotations"][1] |= {"category_id": 7, "keypoints": triples[::-1].ravel().tolist()}
    path.write_text(json.dumps(data))
    (one,) = read(f"coco-keypoints:{path}")
    assert [person.keypoints.tolist() for person in one.people] == [labels.tolist()] * 2


def test_joints_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    labels = points()
    path = write_set(tmp_path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)], [annotation((10, 20, 110, 220), labels)])
    data = json.loads(path.read_text())
    order = np.random.default_rng(1).permutation(len(NAMES))
    data["categories"][0]["keypoints"] = [NAMES[k] for k in order] + ["tail"]
    triples = np.reshape(data["annotations"][0]["keypoints"], (-1, 3))
    triples[NAMES.index("left_knee"), 2], triples[NAMES.index("right_knee"), 2] = 0, 1  # 1: annotated, but hidden
    data["annotations"][0]["keypoints"] = [*triples[order].ravel().tolist(), 1, 2, 0]
    data["annotations"].append({"image_id": 0, "category_id": 2})  # a dog
    data["categories"] = [{"id": 0}, {"id": 2, "keypoints": ["nose", "tail"]}, *data["categories"]]
    path.write_text(json.dumps(data))
    (one,) = read(f"coco-keypoints:{path}")
    (somebody,) = one.people
    np.testing.assert_array_equal(somebody.keypoints, labels)
    assert [name for name, seen in zip(LIMBS, somebody.seen) if not seen] == ["left_knee"]
    np.testing.assert_array_equal(somebody.box, [10, 20, 110, 220])
    assert somebody.counts and somebody.joints3d is None
    assert one.all_marked and one.group == "" and one.ignore.shape == (0, 4)


def test_crowds_regions_and_joints_in_space_are_read(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(12, 3))
    people = [
        annotation((0, 0, 100, 200), points(), iscrowd=1),
        annotation((0, 0, 50, 100), points(), iscrowd=0, joints3d=joints.tolist()),
        annotation((0, 0, 50, 100), points()) | {"keypoints": []},
        {name: value for name, value in annotation((0, 0, 9, 9), points(), iscrowd=1).items() if name != "keypoints"},
    ]
    fields = {"ignore": [[1, 2, 3, 4]], "all_people_marked": False, "group": "park"}
    (one,) = read(f"coco-keypoints:{write_set(tmp_path, [np.zeros((9, 9, 3), np.uint8)], people, **fields)}")
    np.testing.assert_array_equal(one.ignore, [[1, 2, 3, 4], [0, 0, 100, 200], [0, 0, 9, 9]])
    assert (one.all_marked, one.group) == (False, "park")
    assert [p.counts for p in one.people] == [False, True, True, False]
    assert [p.seen.any() for p in one.people] == [True, True, False, False]
    np.testing.assert_array_equal(one.people[1].joints3d, joints)


def test_the_orientation_tag_is_ignored(tmp_path: Path) -> None:
    """Annotations refer to the stored pixels."""
    path = write_set(tmp_path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)], [])
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[:, : WIDTH // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(stored).save(tmp_path / "images" / "0.png", exif=exif)
    (one,) = read(f"coco-keypoints:{path}")
    np.testing.assert_array_equal(one.load(), stored)


BROKEN = {
    "field 'categories' is missing": lambda d: d.pop("categories"),
    "field 'categories' has none with 'keypoints'": lambda d: d["categories"].clear(),
    "field 'categories[0].keypoints' lacks left_hip": lambda d: d["categories"][0]["keypoints"].remove("left_hip"),
    "field 'images[1].id' is 0, as that of another image": lambda d: d["images"].append(dict(d["images"][0])),
    "field 'images' is {} in place of a list": lambda d: d.update(images={}),
    "field 'images[0].width' is missing": lambda d: d["images"][0].pop("width"),
    "field 'images[0].file_name' is of no file": lambda d: d["images"][0].update(file_name="gone.png"),
    "field 'images[0].ignore' does not hold 1 x 4": lambda d: d["images"][0].update(ignore=[[1, 2, 3]]),
    "images[0] is not an object": lambda d: d.update(images=[3]),
    "field 'annotations[0].bbox' is missing": lambda d: d["annotations"][0].pop("bbox"),
    "field 'annotations[0].bbox' has no area": lambda d: d["annotations"][0].update(bbox=[1, 2, 0, 4]),
    "field 'annotations[0].bbox' lies outside of its image": lambda d: d["annotations"][0].update(
        bbox=[-99, 0, 50, 90]
    ),
    "field 'annotations[0].keypoints' is missing": lambda d: d["annotations"][0].pop("keypoints"),
    "field 'annotations[0].bbox' does not hold 4": lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
    "field 'annotations[0].keypoints' does not hold 39": lambda d: d["annotations"][0]["keypoints"].pop(),
    "field 'annotations[0].joints3d' does not hold 12 x 3": lambda d: d["annotations"][0].update(
        joints3d=[[1, "x", 2]]
    ),
    "field 'annotations[0].image_id' is 5, which no image has": lambda d: d["annotations"][0].update(image_id=5),
    "0.png: 320 x 240 pixels, but 'width' and 'height' say 240 x 320": lambda d: d["images"][0].update(
        width=HEIGHT, height=WIDTH
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_with_a_file_is_one_line(
    message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_set(tmp_path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)], [annotation((10, 20, 110, 220), points())])
    data = json.loads(path.read_text())
    BROKEN[message](data)
    path.write_text(json.dumps(data))
    assert evaluate(path, tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mega evaluate keypoints: ") and message in line and str(tmp_path) in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "nowhere.json"), "set 'nowhere.json': write coco-keypoints:FILE.json"),
        (("--set", "coco-keypoints:nowhere.json"), "nowhere.json: there is no such file"),
        (("--set", f"coco-keypoints:{__file__}"), "test_keypoints.py: not JSON"),
        (("--set", "coco-keypoints:set.json", "--images", "nowhere"), "is of no file: nowhere/0.png"),
        (("--set", "coco-keypoints:set.json", "--without", "sport"), "--without sport: no image has this group"),
        (("--set", "coco-keypoints:set.json", "--bundle", "nowhere"), "nowhere/bundle.json: there is no such file"),
        (("--set", "coco-keypoints:broken.json"), "0.png: not an image"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, [np.zeros((HEIGHT, WIDTH, 3), np.uint8)], [])
    if "broken" in arguments[1]:
        (tmp_path / "set.json").rename("broken.json")
        (tmp_path / "images" / "0.png").write_bytes(b"no image")
    assert cli.main(["evaluate", "keypoints", *arguments]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mega evaluate keypoints: ") and message in line


# ----------------------------------------------------------------------------------------------------- the definitions


def test_pck_counts_annotated_joints_by_the_length_of_their_person() -> None:
    error = np.array([[2.0, 2.1, np.nan, np.inf], [4.0, 4.1, np.nan, np.nan]])
    assert metrics.pck(error, np.array([10.0, 20.0])) == pytest.approx(2 / 5)
    assert metrics.pck(error, np.array([10.0, 20.0]), factor=0.3) == pytest.approx(4 / 5)
    assert np.isnan(metrics.pck(error[:, 2:3], np.array([10.0, 20.0])))


def test_the_torso_is_the_mean_of_the_diagonals() -> None:
    labels = np.zeros((12, 2))
    labels[LIMBS.index("left_shoulder")] = [30, 40]
    labels[LIMBS.index("right_hip")] = [0, 0]
    labels[LIMBS.index("right_shoulder")] = [0, 140]
    labels[LIMBS.index("left_hip")] = [0, 50]
    assert torso(person(points=labels)) == pytest.approx((50 + 90) / 2)
    seen = np.arange(12) != LIMBS.index("left_hip")
    assert torso(person(points=labels, seen=seen)) == pytest.approx(50)
    assert torso(person((0, 0, 300, 400), labels, seen=seen)) == pytest.approx(0.2 * 400)
    for box in ((0, 0, 300, 400), (0, 0, 400, 300)):
        assert torso(person(box, labels, seen=np.zeros(12, bool))) == pytest.approx(0.35 * 400)


def test_every_limb_joint_belongs_to_a_part() -> None:
    assert sorted(k for columns in PARTS.values() for k in columns) == [*range(12)]


def found(one: Photograph, *boxes: Any, scores: Any = None) -> tuple[list[int], list[bool]]:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    who, wrong = find(array, np.linspace(1, 0.6, len(array)) if scores is None else np.array(scores), one)
    return who.tolist(), wrong.tolist()


def test_each_person_is_found_once_by_the_best_score() -> None:
    one = photograph(person((0, 0, 100, 200)), person((200, 0, 300, 200)))
    assert found(one, (0, 0, 100, 190), (0, 0, 100, 200), (200, 0, 300, 210)) == ([0, -1, 1], [False, True, False])
    assert found(one, (0, 0, 100, 190), (0, 0, 100, 200), scores=(0.6, 0.7)) == ([-1, 0], [True, False])
    assert found(one, (0, 0, 100, 99)) == ([-1], [True])  # less than half of the person is not enough
    assert found(one, (0, 0, 100, 100)) == ([0], [False])
    assert found(one) == ([], [])


def test_of_two_people_the_one_who_counts_is_found_first() -> None:
    one = photograph(person((0, 0, 100, 200), crowd=True), person((0, 0, 100, 150)))
    assert found(one, (0, 0, 100, 200), (0, 0, 100, 200)) == ([1, 0], [False, False])


def test_what_counts_neither_way() -> None:
    """Small people, small detections, and whatever lies in a region to ignore or in a crowd."""
    one = photograph(person((0, 0, 30, 59)), person((100, 0, 200, 200), crowd=True), ignore=[(200, 100, 320, 240)])
    assert not any(somebody.counts for somebody in one.people) and person((0, 0, 30, 60)).counts
    boxes = [(0, 0, 30, 61), (110, 10, 150, 90), (200, 90, 320, 240), (0, 100, 50, 159)]
    assert found(one, *boxes) == ([0, -1, -1, -1], [False] * 4)
    assert found(one, (0, 100, 50, 160), (150, 100, 300, 160)) == ([-1, -1], [True, False])
    assert found(one, (145, 130, 245, 230), (155, 130, 255, 230)) == ([-1, -1], [True, False]), "45 % and 55 % in it"
    assert found(photograph(), (0, 0, 100, 200)) == ([-1], [True])


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    return Recovery.load("default")


def test_the_rest_pose_stands_upright_in_the_box_and_faces_the_camera(recovery: Recovery) -> None:
    pose = dict(zip(LIMBS, rest_pose(recovery.topology, np.array([100.0, 50, 160, 450]))))
    assert pose["left_shoulder"][0] > 130 > pose["right_shoulder"][0]
    heights = [pose[f"left_{part}"][1] for part in ("shoulder", "hip", "knee", "ankle")]
    assert heights[0] > 50 and heights == sorted(heights) and heights[-1] < 450
    assert heights[-1] - heights[0] > 0.6 * 400


def limbs(seed: int) -> Limbs:
    rng = np.random.default_rng(seed)
    return Limbs(rng.normal(size=(12, 3)) * [0.3, 0.8, 0.2] + [0, 0, 4], rng.uniform(0.01, 0.1, 12))


def annotated(answer: Limbs, shift: float = 0.0) -> Person:
    """Whose annotation is what was recovered, but for `shift` pixels."""
    pixels = project(answer.joints, intrinsics_from_fov(WIDTH, HEIGHT, FOV_DEFAULT)) + [shift, 0]
    return person([*pixels.min(0), *pixels.max(0)], pixels, joints3d=2 * answer.joints[:, [1, 2, 0]] + 1)


@pytest.mark.filterwarnings("ignore:An input array is constant")  # spearman of errors that are all 0
def test_a_perfect_answer_and_a_missing_one(recovery: Recovery) -> None:
    one, answer = photograph(), limbs(0)
    perfect = score(one, annotated(answer), answer, answer, recovery.topology)
    missed = score(one, annotated(answer), answer, NOBODY, recovery.topology)
    numbers = summary([DetectionCounts("", 2, 1, 0, True)], [perfect, missed])
    assert numbers["pck"] == numbers["pck_wrists"] == 1
    assert numbers["pck_end_to_end"] == numbers["recall"] == 0.5  # whoever is missed has no joint right
    assert numbers["pa_mpjpe"] == pytest.approx(0, abs=1e-9)
    assert numbers["pa_mpjpe_end_to_end"] == pytest.approx(0, abs=1e-9)  # of those who were found
    assert numbers["pa_mpjpe_constant"] is not None and numbers["pa_mpjpe_constant"] > 0.1
    assert (numbers["scored"], numbers["joints"], numbers["people_3d"]) == (2, 24, 2)
    nothing = score(one, annotated(answer), NOBODY, NOBODY, recovery.topology)
    numbers = summary([], [nothing])
    assert numbers["pck"] == 0
    for name in ("pa_mpjpe", "spearman", "median_error", "people", "recall", "precision", "pck_end_to_end"):
        assert numbers[name] is None


def test_sigma_is_compared_with_the_error_in_metres_at_the_joints_depth(recovery: Recovery) -> None:
    answer = limbs(1)
    focal = intrinsics_from_fov(WIDTH, HEIGHT, FOV_DEFAULT)[0, 0]
    metres = 5 * answer.joints[:, 2] / focal
    answer = Limbs(answer.joints, metres / np.sqrt(2 / 3) * np.repeat([1.01, 0.99, 0.51, 0.49], 3))
    scored = score(photograph(), annotated(answer, shift=5), answer, NOBODY, recovery.topology)
    numbers = summary([], [scored])
    assert numbers["within_1_sigma"] == pytest.approx(3 / 12)
    assert numbers["within_2_sigma"] == pytest.approx(9 / 12)
    assert numbers["median_error"] == pytest.approx(np.median(metres))
    assert numbers["median_sigma"] == pytest.approx(np.median(answer.sigma))
    in_order = score(
        photograph(), annotated(answer, shift=5), Limbs(answer.joints, metres**3), NOBODY, recovery.topology
    )
    assert summary([], [in_order])["spearman"] == pytest.approx(1)
    without = Limbs(answer.joints, np.full(12, np.nan))
    unsaid = summary([], [score(photograph(), annotated(answer, shift=5), without, NOBODY, recovery.topology)])
    assert [unsaid[name] for name in ("spearman", "within_1_sigma", "median_sigma", "median_error")] == [None] * 4


def test_precision_is_over_images_where_everybody_is_marked() -> None:
    numbers = summary([DetectionCounts("", 4, 3, 1, True), DetectionCounts("", 4, 4, 2, False)], [])
    assert numbers["recall"] == pytest.approx(7 / 8)
    assert numbers["precision"] == pytest.approx(3 / 4)
    assert (numbers["found"], numbers["wrong"]) == (7, 1)


def test_rows_of_groups() -> None:
    numbers = rows([DetectionCounts(group, n, n, 0, True) for group, n in (("a", 1), ("b", 2), ("", 4))], [], ["b"])
    assert {name: row["people"] for name, row in numbers.items()} == {"a": 1, "b": 2, "all": 7, "all but b": 5}


def test_errors_in_space_are_shown_in_millimetres() -> None:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table("PA-MPJPE, mm", {"all": {**summary([], []), "people_3d": 7, "pa_mpjpe": 0.0614}}))
    assert shown.get().split("all")[1].split() == ["7", "61", "-", "-"]


# --------------------------------------------------------------------------------------------------------- the product


def evaluate(path: Path, out: Path, *arguments: str) -> int:
    return cli.main(["evaluate", "keypoints", "--set", f"coco-keypoints:{path}", "--out", str(out), *arguments])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "keypoints_report.json").read_text())


@pytest.fixture
def frames(clip_frames: list[Any]) -> list[Any]:
    return clip_frames[:20:10]


@pytest.mark.filterwarnings("ignore:An input array is constant")  # spearman of errors that are all 0
def test_the_products_own_answer_is_perfect(
    tmp_path: Path, frames: list[Any], recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotated with what the bundle finds, every number says so. The detector runs once per image."""
    annotations = []
    assert recovery.detector is not None
    for n, image in enumerate(frame.image for frame in frames):
        people = recovery.run(image, boxes=recovery.detector(image)[0])  # as the verb does, without keypoints
        pixels = project(
            people.joints[:, LIMB_JOINTS], intrinsics_from_fov(image.shape[1], image.shape[0], FOV_DEFAULT)
        )
        annotations += [
            annotation(box, labels, n, joints3d=joints.astype(float).tolist())
            for box, labels, joints in zip(people.boxes, pixels, people.joints[:, LIMB_JOINTS])
        ]
    annotations[0]["iscrowd"] = 1
    annotations[1]["keypoints"][3 + 3 * FEWEST :] = [0] * 3 * (12 - FEWEST)
    path = write_set(tmp_path, [frame.image for frame in frames], annotations)
    find, runs = Detector.find, []

    def counted(self: Detector, *rest: Any) -> Detections:
        runs.append(rest)
        return find(self, *rest)

    monkeypatch.setattr(Detector, "find", counted)
    assert evaluate(path, tmp_path) == 0
    assert len(runs) == 5 * len(frames), "each image, and its tiles, once"
    numbers = report(tmp_path)["rows"]["all"]
    assert numbers["people"] == numbers["scored"] == len(annotations) - 1 > 0, "a crowd need not be found"
    assert numbers["joints"] == FEWEST + 12 * (len(annotations) - 2)
    for name in ("recall", "precision", "pck", "pck_end_to_end", "within_1_sigma"):
        assert numbers[name] == 1
    assert numbers["pa_mpjpe"] < 1e-5 and numbers["pa_mpjpe_end_to_end"] < 1e-5 < numbers["pa_mpjpe_constant"]
    assert numbers["pck_constant"] < 1


def test_the_truth_of_the_clip(
    tmp_path: Path, frames: list[Any], recovery: Recovery, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = []
    for n, frame in enumerate(frames):
        joints = recovery.topology.joints(frame.vertices)[:, LIMB_JOINTS]
        for box, labels, in_space in zip(frame.boxes, project(joints, frame.K), joints):
            annotations.append(annotation(box, labels, n, joints3d=in_space.astype(float).tolist()))
    path = write_set(tmp_path, [frame.image for frame in frames], annotations, group="clip", all_people_marked=False)
    assert evaluate(path, tmp_path / "out", "--images", str(tmp_path / "images")) == 0
    found = report(tmp_path / "out")
    assert (found["bundle"], found["hash"]) == (recovery.bundle.name, recovery.bundle.hash)
    assert found["images"] == 2 and str(path) in found["command"]
    numbers = found["rows"]["all"]
    assert found["rows"]["clip"] == numbers
    assert numbers["people"] == numbers["scored"] == numbers["people_3d"] == 4
    assert numbers["pa_mpjpe"] < numbers["pa_mpjpe_constant"], "of its own renders the bundle knows more"
    assert 0 < numbers["pck"] < 1
    assert numbers["recall"] is not None and numbers["precision"] is None, "not everybody is marked"
    shown = capsys.readouterr().out
    for text in ("recall", "PCK@0.2", "PA-MPJPE", "spearman", "keypoints_report.json"):
        assert text in shown


def test_numbers_agree_with_the_reference_script(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a few of the project's photographs: one with 3D joints, with ignored regions, with people not annotated."""
    folder = shared / "real_dev"
    chosen = ("h36m", "coco", "aic", "ochuman", "lspet")
    spec = importlib.util.spec_from_file_location("reference", folder / "evaluate.py")
    reference = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(reference)  # type: ignore[union-attr]
    (tmp_path / "images").symlink_to(folder / "images")
    for name in ("set.json", "keypoints.json"):
        data = json.loads((folder / name).read_text())
        images = [next(i for i in data["images"] if i["group"] == group) for group in chosen]
        if name == "keypoints.json":
            ids = [i["id"] for i in images]
            data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
        (tmp_path / name).write_text(json.dumps(data | {"images": images}))
    reference.main(
        Namespace(data=tmp_path, bundle="default", threshold=0.5, out=tmp_path / "reference.json", overlays=None)
    )
    expected = json.loads((tmp_path / "reference.json").read_text())
    assert evaluate(tmp_path / "keypoints.json", tmp_path) == 0
    numbers = report(tmp_path)["rows"]

    def same(ours: float | None, theirs: float | None, within: float = 2e-3) -> None:
        # without a detection that counts, the script calls the precision 0
        assert (ours or 0) == pytest.approx(0 if theirs is None or np.isnan(theirs) else theirs, abs=within)

    for group in (*chosen, "all"):
        row, detection, pck = numbers[group], expected["detection"][group], expected["pck"].get(group, {})
        for name in ("people", "found", "recall", "precision"):
            same(row[name], detection[name])
        names = {"people": "scored", "joints": "joints", "total": "pck", "constant": "pck_constant"}
        names |= {"own_all": "pck_end_to_end"} | {part: f"pck_{part}" for part in PARTS}
        for theirs, ours in names.items():
            same(row[ours], pck.get(theirs))
    for ours, theirs in {
        "spearman": "rho_joint_metres",
        "within_1_sigma": "within_1sigma_2d",
        "within_2_sigma": "within_2sigma_2d",
        "median_sigma": "median_sigma",
        "median_error": "median_error_2d_m",
    }.items():
        # the script gives ties different ranks
        same(numbers["all"][ours], expected["sigma"][theirs], 5e-3 if ours == "spearman" else 2e-3)
    on_boxes, constant = expected["pa_mpjpe"]["mean"]
    same(numbers["all"]["pa_mpjpe"], on_boxes / 1000)
    same(numbers["all"]["pa_mpjpe_constant"], constant / 1000)
