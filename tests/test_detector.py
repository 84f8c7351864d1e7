"""MoveNet as the bundle's detector: boxes and keypoints on the embedded clip's people, and the verb that imports it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mega_model import import_detector
from mega_model.core.detection import KEYPOINTS, THRESHOLD, Detections, detections, in_image, keypoints_of, letterbox
from mega_model.core.geometry import project
from mega_model.core.onnx_runtime import ort
from mega_model.core.topology import LIMB_JOINTS, Topology
from mega_ros import Recovery, Stream, StreamSettings, cli
from mega_ros.bundle import DEFAULT, TOPOLOGY, Bundle, Graph
from mega_ros.detect import Detector, find_people, one_person
from mega_ros.engines import OnnxEngine
from mega_ros.stream import BoxSource


@dataclass
class Labelled:
    """Of the embedded clip."""

    image: np.ndarray
    """uint8 [480, 640, 3] BGR"""
    joints: np.ndarray
    """float32 [2, 12, 2], pixels: the true LIMB_JOINTS"""


@pytest.fixture(scope="module")
def frames(clip_frames: list[Any]) -> list[Labelled]:
    topology = Topology.load(DEFAULT / TOPOLOGY)
    return [
        Labelled(frame.image, project(topology.joints(frame.vertices)[:, LIMB_JOINTS], frame.K[None]))
        for frame in clip_frames[4:9]  # the two are well apart here, and all of them is in the image
    ]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(Bundle.load(), "cpu")


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    return Recovery.load()


def apart(found: Detections, joints: np.ndarray) -> np.ndarray:
    """[P]: median distance of each true person's joints [P, 12, 2] from the nearest found keypoints, in box heights."""
    assert found.keypoints is not None
    distance = np.linalg.norm(found.keypoints[:, None, 5:, :2] - joints, axis=-1)
    height = found.boxes[:, 3] - found.boxes[:, 1]
    return (np.median(distance, axis=-1) / height[:, None]).min(axis=0)


def test_limbs_are_joints_of_the_body() -> None:
    names = Topology.load(DEFAULT / TOPOLOGY).joint_names
    assert len(KEYPOINTS) == 17 and [names[joint] for joint in LIMB_JOINTS] == KEYPOINTS[5:]


def test_keypoints_land_on_the_people(detector: Detector, frames: list[Labelled]) -> None:
    for frame in frames:
        found = detector.find(frame.image)
        assert found.keypoints is not None and found.keypoints.shape == (2, 17, 3)
        assert apart(found, frame.joints).max() < 0.07
        low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
        inside = ((found.keypoints[..., :2] > low - 5) & (found.keypoints[..., :2] < high + 5)).all(axis=-1)
        assert inside.mean() > 0.9, "each has the keypoints of its own box"
        scores = found.keypoints[..., 2]
        assert ((scores >= 0) & (scores <= 1)).all() and scores.mean() > 0.3
        boxes, scores = detector(frame.image)
        assert (boxes == found.boxes).all() and (scores == found.scores).all()


@pytest.mark.parametrize(("left", "above"), [(640, 0), (0, 480)], ids=["wide", "tall"])
def test_images_of_any_shape_keep_their_pixels(
    detector: Detector, frames: list[Labelled], left: int, above: int
) -> None:
    """The same people beside, or below, as much grey again: half as large to the detector, at known places."""
    for frame in frames:
        image = np.full((480 + above, 640 + left, 3), 128, np.uint8)
        image[above:, left:] = frame.image
        found = detector.find(image)
        assert apart(found, frame.joints + [left, above]).max() < 0.15
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        middles = frame.joints.mean(axis=1) + [left, above]
        assert (np.abs(centres[:, None] - middles).min(axis=0) < 40).all()


def test_the_graph_sees_red_first(detector: Detector, frames: list[Labelled]) -> None:
    engine = OnnxEngine(Bundle.load(), "detector", "cpu")
    for frame in frames:
        image = cv2.resize(frame.image, (256, 192))
        found = detector.find(image)
        red_first, blue_first = (engine.run(image=x[None])["scores"][:2] for x in (image[..., ::-1], image))
        np.testing.assert_allclose(found.scores, red_first, atol=1e-5)
        assert np.abs(red_first - blue_first).max() > 0.005


def test_a_detector_without_keypoints_is_one_too(tmp_path: Path, frames: list[Labelled]) -> None:
    shutil.copytree(DEFAULT, tmp_path, dirs_exist_ok=True)
    model = onnx.load(tmp_path / "detector.onnx")
    del model.graph.output[[output.name for output in model.graph.output].index("keypoints")]
    onnx.save(model, tmp_path / "detector.onnx")
    bundle = Bundle.load()
    graph = bundle.graphs["detector"]
    outputs = {name: graph.outputs[name] for name in ("boxes", "scores")}
    plain = replace(bundle, folder=tmp_path, graphs={**bundle.graphs, "detector": Graph(graph.inputs, outputs)})
    found, usual = Detector(plain, "cpu").find(frames[0].image), Detector(bundle, "cpu").find(frames[0].image)
    assert found.keypoints is None and (found.boxes == usual.boxes).all()


def test_a_given_threshold_replaces_the_usual_one(detector: Detector, frames: list[Labelled]) -> None:
    usual, all_of_them = detector.find(frames[0].image), detector.find(frames[0].image, 0.0)
    assert len(usual.boxes) == 2 < len(all_of_them.boxes)
    assert len(detector.find(frames[0].image, 1.0).boxes) == 0


class DotDetector:
    """Finds one person: from the green to the blue dot, the nose at the red one. The green dot is the upper left."""

    keypoints = True

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        assert image.flags.c_contiguous
        blue, green, red = (
            np.argwhere(image[..., channel])[0].astype(np.float32)[::-1] + np.float32(0.5) for channel in range(3)
        )
        score = np.array([threshold], np.float32)
        keypoints = np.tile(np.append(red, score), (1, 17, 1)) if self.keypoints else None
        return Detections(np.append(green, blue)[None], score, keypoints)


@pytest.mark.parametrize("keypoints", [True, False])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_people_in_a_turned_image_are_told_in_its_own_pixels(rotate: int, keypoints: bool) -> None:
    """The image shows people turned counterclockwise; the detector sees them upright."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[5, 10, 1] = upright[30, 20, 0] = upright[8, 13, 2] = 255
    turned = np.rot90(upright, rotate // 90)
    detector = DotDetector()
    detector.keypoints = keypoints
    found = find_people(detector, turned, 0.25, rotate, tiles=False)
    (red,), (green,), (blue,) = (np.argwhere(turned[..., channel])[:, ::-1] + 0.5 for channel in (2, 1, 0))
    np.testing.assert_allclose(found.boxes, [[*np.minimum(green, blue), *np.maximum(green, blue)]])
    assert found.scores.tolist() == [0.25]
    if keypoints:
        assert found.keypoints is not None
        np.testing.assert_allclose(found.keypoints, np.tile([*red, 0.25], (1, 17, 1)))
    else:
        assert found.keypoints is None


def edges(where: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask [H, W]."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Coarse:
    """Finds rectangles of one colour (blue: who, green: score) that are at least a third as high as the image."""

    keypoints = True

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        assert threshold is not None and image.flags.c_contiguous
        found = []
        for who in np.unique(image[..., 0][image[..., 0] > 0]):
            x0, y0, x1, y1 = edges(image[..., 0] == who)
            score = image[y0, x0, 1] / 255
            if y1 - y0 >= image.shape[0] / 3 and score >= threshold:
                found.append((x0, y0, x1, y1, score))
        rows = np.array(found, np.float32).reshape(-1, 5)
        middle = (rows[:, :2] + rows[:, 2:4]) / 2
        points = np.tile(np.column_stack([middle, rows[:, 4]])[:, None], (1, 17, 1)) if self.keypoints else None
        return Detections(rows[:, :4], rows[:, 4], points)


def painted(*people: tuple[tuple[int, int, int, int], float]) -> np.ndarray:
    """200 x 300 pixels: boxes and scores for `Coarse`."""
    image = np.zeros((200, 300, 3), np.uint8)
    for number, ((x0, y0, x1, y1), score) in enumerate(people, 1):
        image[y0:y1, x0:x1] = (number, round(255 * score), 0)
    return image


@pytest.mark.parametrize("keypoints", [True, False])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_tiles_show_smaller_people(rotate: int, keypoints: bool) -> None:
    """Each once, also those in two tiles; the best first."""
    large, small, alone = (10, 20, 60, 170), (130, 90, 150, 140), (250, 145, 270, 195)
    upright = painted((large, 0.7), (small, 0.8), (alone, 0.9))
    detector = Coarse()
    detector.keypoints = keypoints
    image = np.rot90(upright, rotate // 90)
    assert len(find_people(detector, image, 0.5, rotate, tiles=False).boxes) == 1
    found = find_people(detector, image, 0.5, rotate)
    np.testing.assert_allclose(found.boxes, [edges(image[..., 0] == who) for who in (3, 2, 1)])
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7], abs=0.01)
    if keypoints:
        assert found.keypoints is not None
        middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        np.testing.assert_allclose(found.keypoints[:, 4, :2], middles)
        np.testing.assert_allclose(found.keypoints[:, 4, 2], found.scores)
    else:
        assert found.keypoints is None


def test_a_part_of_a_person_in_a_tile_is_nobody() -> None:
    """The upper tiles are 120 pixels high; the left one ends at 180, the right one begins at 120."""
    across = painted(((100, 60, 200, 110), 0.9))
    assert len(Coarse().find(np.ascontiguousarray(across[:120, :180]), 0.5).boxes) == 1
    assert len(find_people(Coarse(), across, 0.5).boxes) == 0
    at_the_images_border = (0, 0, 15, 50)
    assert find_people(Coarse(), painted((at_the_images_border, 0.9)), 0.5).boxes.tolist() == [[*at_the_images_border]]
    leg_of_a_large_one = painted(((10, 20, 60, 170), 0.9), ((20, 120, 30, 175), 0.9))
    assert find_people(Coarse(), leg_of_a_large_one, 0.5).boxes.tolist() == [[10, 20, 60, 170]]


def test_who_is_found_in_a_tile_only_needs_a_higher_score() -> None:
    small, large = (130, 90, 150, 140), (10, 20, 60, 170)
    found = [
        len(find_people(Coarse(), painted((box, score)), 0.5).boxes)
        for box, score in ((small, 0.55), (small, 0.65), (large, 0.55))
    ]
    assert found == [0, 1, 1]


def test_the_detector_finds_small_people_in_tiles(detector: Detector, frames: list[Labelled]) -> None:
    """The clip at less than half its size, in a corner of a large image: too small for the detector without tiles."""
    usual = close = 0
    for frame in frames:
        image = np.full((600, 800, 3), 127, np.uint8)
        small = cv2.resize(frame.image, None, fx=0.45, fy=0.45, interpolation=cv2.INTER_AREA)
        image[: small.shape[0], -small.shape[1] :] = small
        usual += len(detector.find(image).boxes)
        found = find_people(detector, image, detector.threshold)
        close += len(found.boxes)
        assert apart(found, 0.45 * frame.joints + [800 - small.shape[1], 0]).max() < 0.15
        np.testing.assert_array_equal(detector(image)[0], found.boxes)
    assert usual <= len(frames) and close == 2 * len(frames)


@pytest.mark.parametrize("boxes", ["detector", "fixed"])
def test_a_photograph_is_searched_in_tiles_and_a_stream_if_asked(
    recovery: Recovery, frames: list[Labelled], boxes: BoxSource
) -> None:
    """For boxes, or for the keypoints of a given one."""
    image = np.full((600, 800, 3), 127, np.uint8)
    image[:216, -288:] = cv2.resize(frames[0].image, None, fx=0.45, fy=0.45, interpolation=cv2.INTER_AREA)
    photograph = recovery.run(image)
    assert len(photograph) == 2
    settings = StreamSettings(boxes=boxes, fixed_box=tuple(photograph.boxes[1].tolist()))
    usual, close = (Stream(recovery, replace(settings, tiles=tiles)).process(image, None, 0) for tiles in (False, True))
    if boxes == "detector":
        assert len(usual) < 2
        np.testing.assert_array_equal(close.vertices, photograph.vertices)
    else:
        np.testing.assert_array_equal(close.vertices, recovery.run(image, boxes=[settings.fixed_box]).vertices)
        assert np.abs(usual.vertices - close.vertices).max() > 0.001, "it has no keypoints"


def test_a_box_without_a_detector_has_a_detectors_types() -> None:
    boxes, scores, keypoints = one_person((0, 0, 8, 6))
    assert keypoints is None
    assert boxes.tolist() == [[0, 0, 8, 6]] and scores.tolist() == [1]
    assert boxes.dtype == scores.dtype == np.float32


# --------------------------------------------------------------------------------------------------- of every detector


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 200), st.integers(8, 200))
def test_a_letterbox_holds_the_whole_image(width: int, height: int, wide: int, high: int) -> None:
    """In the upper left corner, as large as it fits, with the same ratio, red first."""
    boxed, factors = letterbox(np.full((height, width, 3), (10, 20, 30), np.uint8), high, wide, 114)
    assert boxed.shape == (1, high, wide, 3)
    shown = (boxed[0] == (30, 20, 10)).all(axis=2)
    across, down = int(shown.any(axis=0).sum()), int(shown.any(axis=1).sum())
    assert shown[:down, :across].all() and (boxed[0][~shown] == 114).all()
    assert factors == pytest.approx([width / across, height / down, 1])
    assert across == wide or down == high
    assert abs(across * height - down * width) <= max(width, height), "sides are rounded, and at least a pixel"


def test_a_letterbox_leaves_no_pixel_out() -> None:
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[::4] = 200
    assert (letterbox(stripes, 40, 40)[0] == 50).all()


@pytest.mark.parametrize(("shown", "expected"), [(4.0, True), (3.9, False), (np.nan, False)])
def test_a_box_shows_four_pixels_of_the_image_or_is_none(shown: float, expected: bool) -> None:
    """From every side of an image of 100 x 60."""
    boxes = [[-50, 10, shown, 50], [10, -50, 50, shown], [100 - shown, 10, 150, 50], [10, 60 - shown, 50, 150]]
    boxes += [[10, 10, 10 + shown, 50], [10, 10, 50, 10 + shown], [-5, -5, 105, shown], [-5, -5, shown, 65]]
    assert in_image(np.array(boxes), 100, 60).tolist() == [expected] * 8


def test_a_detectors_answer_in_the_image() -> None:
    """Clipped to it, best first, one box for one person, nobody whom the image hardly shows; keypoints stay."""
    weak, lowest, clipped, beside, best, again = 0.49, 0.5, 0.9, 0.95, 0.6, 0.55
    boxes = [[20, 0, 30, 5], [0, 0, 2, 1], [40, 10, 60, 20], [48.5, 1, 70, 10], [10, 2, 20, 10], [13, 2, 23, 10]]
    keypoints = np.random.default_rng(0).uniform(-9, 70, (6, 17, 3)).astype(np.float32)
    out = {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array([weak, lowest, clipped, beside, best, again], np.float32),
        "keypoints": keypoints,
    }
    found = detections(out, np.array([2, 4, 1], np.float32), 100, 60, THRESHOLD)
    assert found.boxes.tolist() == [[80, 40, 100, 60], [20, 8, 40, 40], [0, 0, 4, 4]]
    assert found.scores.tolist() == pytest.approx([clipped, best, lowest])
    np.testing.assert_array_equal(found.keypoints, keypoints[[2, 4, 1]] * [2, 4, 1])


def test_keypoints_are_those_of_the_person_in_the_box() -> None:
    boxes, keypoints = np.array([[0.0, 0, 10, 20], [30, 0, 40, 20], [2, 0, 12, 20]]), np.zeros((3, 17, 3), np.float32)
    keypoints[:] = np.arange(1, 4)[:, None, None]
    found = Detections(boxes, np.array([0.9, 0.8, 0.7]), keypoints)
    asked = np.array([[31.0, 0, 41, 20], [60, 0, 70, 20], [0, 0, 10, 10], [2, 0, 12, 20], [30, 0, 40, 9]])
    assert keypoints_of(asked, found)[:, 0, 0].tolist() == [2, 0, 1, 3, 0], "half of a box is enough, less is not"
    assert (
        keypoints_of(asked, Detections(boxes[:0], np.zeros(0), keypoints[:0])).tolist() == np.zeros((5, 17, 3)).tolist()
    )
    assert keypoints_of(asked[:0], found).shape == (0, 17, 3)


# --------------------------------------------------------------------------------------------------------------- import

PEOPLE, HEIGHT, WIDTH = 3, 64, 96


def rows() -> np.ndarray:
    """float32 [3, 56] as MoveNet gives them: the last is the best, and has 0.13; the second lies a little outside."""
    numbers = np.random.default_rng(0).random((PEOPLE, 56), np.float32)
    numbers[:, 51:] = [[0.5, 0.25, 1, 0.75, 0], [0.1, -0.1, 0.3, 1.1, 0.06], [0, 0.5, 0.25, 1, 0.13]]
    return numbers


def movenet(path: Path, **change: onnx.ValueInfoProto) -> Path:
    """A model of MoveNet's inputs and outputs, whose people are `rows` where the first pixel's red is 255."""
    node = helper.make_node
    nodes = [
        node("Cast", ["input"], ["pixels"], to=TensorProto.FLOAT),
        node("Slice", ["pixels", "from", "to"], ["red"]),
        node("Div", ["red", "white"], ["share"]),
        node("Reshape", ["share", "as_row"], ["share_of_row"]),
        node("Mul", ["people", "share_of_row"], ["output_0"]),
    ]
    constants = {
        "from": np.zeros(4, np.int64),
        "to": np.ones(4, np.int64),
        "white": np.float32(255),
        "as_row": np.ones(3, np.int64),
        "people": rows()[None],
        "some_weights": np.arange(2000, dtype=np.float32) / 4,  # float16 can hold them
        "other_weights": np.full(2000, 0.1, np.float32),  # not these
    }
    ends = {
        "input": helper.make_tensor_value_info("input", TensorProto.INT32, [1, HEIGHT, WIDTH, 3]),
        "output": helper.make_tensor_value_info("output_0", TensorProto.FLOAT, [1, PEOPLE, 56]),
    } | change
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "tf2onnx", [ends["input"]], [ends["output"]], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def verb(source: Path, out: Path) -> int:
    return cli.main(["import-detector", "--onnx", str(source), "--out", str(out)])


def test_import_makes_a_bundle_s_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "detector.onnx"
    assert verb(movenet(tmp_path / "movenet.onnx"), out) == 0
    assert "unknown origin" in capsys.readouterr().out

    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", [1, HEIGHT, WIDTH, 3])
    ]
    image = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    image[0, 0, 0, 0] = 255
    names = ["boxes", "scores", "keypoints"]
    boxes, scores, keypoints = (np.asarray(out) for out in session.run(names, {"image": image}))
    raw = rows()[[2, 1, 0]]
    np.testing.assert_allclose(boxes, [[48.0, 0, 96, 16], [-9.6, 6.4, 105.6, 19.2], [24.0, 32, 72, 64]], atol=1e-4)
    np.testing.assert_allclose(scores[[0, 2]], [0.5, 0], atol=1e-6)
    assert 0 < scores[1] < 0.5
    y, x, score = raw[:, :51].reshape(PEOPLE, 17, 3).transpose(2, 0, 1)
    np.testing.assert_allclose(keypoints, np.stack([x * WIDTH, y * HEIGHT, score], axis=-1), rtol=1e-6)
    assert all(array.dtype == np.float32 for array in (boxes, scores, keypoints))

    image[0, 0, 0, 0] = 51
    np.testing.assert_allclose(session.run(["keypoints"], {"image": image})[0][..., 2], 0.2 * score, rtol=1e-5)


def test_weights_are_halved_where_nothing_is_lost(tmp_path: Path) -> None:
    verb(movenet(tmp_path / "movenet.onnx"), tmp_path / "detector.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "detector.onnx").graph.initializer}
    assert stored["some_weights_half"].dtype == np.float16 and "some_weights" not in stored
    assert stored["other_weights"].dtype == np.float32 and (stored["other_weights"] == np.float32(0.1)).all()


def test_published_weights_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their numbers: names and order differ from one conversion to the next."""
    model = onnx.load(movenet(tmp_path / "movenet.onnx"))
    known = import_detector.fingerprint(model.graph)
    weights = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    weights[0].name = "another"
    assert import_detector.fingerprint(model.graph) == known
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) + np.float32(1e-6), weights.name))
    assert import_detector.fingerprint(model.graph) != known

    monkeypatch.setattr(import_detector, "PUBLISHED", known)
    verb(tmp_path / "movenet.onnx", tmp_path / "detector.onnx")
    assert [(note.key, note.value) for note in onnx.load(tmp_path / "detector.onnx").metadata_props] == [
        ("origin", import_detector.ORIGIN)
    ]


def test_the_default_bundle_has_the_published_weights() -> None:
    model = onnx.load(DEFAULT / "detector.onnx")
    stored = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    weights = [numpy_helper.from_array(w.astype(np.float32) if w.dtype == np.float16 else w) for w in stored]
    assert import_detector.fingerprint(helper.make_graph([], "", [], [], weights)) == import_detector.PUBLISHED
    assert [note.value for note in model.metadata_props] == [import_detector.ORIGIN]


def test_the_default_bundle_says_whose_its_detector_is() -> None:
    bundle = Bundle.load()
    assert bundle.origins["detector"] == import_detector.ORIGIN
    assert bundle.graphs["detector"].outputs["keypoints"].shape == (20, 17, 3)


def _no_file(path: Path) -> None:
    pass


def _no_onnx(path: Path) -> None:
    path.write_bytes(b"damaged")


def _of_floats(path: Path) -> None:
    movenet(path, input=helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, HEIGHT, WIDTH, 3]))


def _of_any_size(path: Path) -> None:
    movenet(path, input=helper.make_tensor_value_info("input", TensorProto.INT32, [1, None, None, 3]))


def _for_one_person(path: Path) -> None:
    movenet(path, output=helper.make_tensor_value_info("output_0", TensorProto.FLOAT, [1, 1, 17, 3]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_no_file, "there is no such file"),
        (_no_onnx, "not a readable ONNX file"),
        (_of_floats, "its input is no int32"),
        (_of_any_size, "its input is no int32"),
        (_for_one_person, r"its output is no float32 \[1, people, 56\]"),
    ],
)
def test_other_files_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None], message: str
) -> None:
    source = tmp_path / "other.onnx"
    make(source)
    assert verb(source, tmp_path / "detector.onnx") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mega import-detector: {source}: ") and error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "detector.onnx").exists()
