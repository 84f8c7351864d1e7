"""ONNX files of the families that `UserDetector` knows, made here: graphs whose boxes are known.

Each graph gives the same boxes for every image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mega_model.core.errors import InputError

pytest.importorskip("onnx", reason="graphs are made with the extra export")
import onnx
from onnx import TensorProto, helper, numpy_helper

from mega_ros import Recovery, Stream, user_detector
from mega_ros.bundle import MOST_BYTES
from mega_ros.engines import start_session
from mega_ros.user_detector import UserDetector

HEIGHT, WIDTH = 64, 128
"""Of the input; the image has three times the height and is a square, so a letterbox leaves the right half grey."""
IMAGE = np.zeros((3 * HEIGHT, 3 * HEIGHT, 3), np.uint8)
BOX = np.array([30.0, 60.0, 90.0, 180.0], np.float32)
"""Of the first person, pixels of the image."""
OTHER = np.array([120.0, 30.0, 180.0, 150.0], np.float32)


def cells(*strides: int) -> np.ndarray:
    """[N, 3]: row, column and stride of the cells of grids of these strides."""
    return np.array([(y, x, s) for s in strides for y in range(HEIGHT // s) for x in range(WIDTH // s)], np.float32)


CELLS = cells(8, 16, 32)
LARGER = cells(8, 16, 32, 64)
LETTERBOX = np.full(4, 1 / 3, np.float32)
STRETCHED = np.array([2 / 3, 1 / 3, 2 / 3, 1 / 3], np.float32)


def model(
    path: Path,
    outputs: dict[str, np.ndarray],
    height: Any = HEIGHT,
    width: Any = WIDTH,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A graph with the input `images` that gives `outputs` for every image."""
    nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0)]
    weights = [numpy_helper.from_array(np.array(0, np.float32), "nothing")]
    nodes.append(helper.make_node("Mul", ["mean", "nothing"], ["zero"]))
    infos = []
    for name, value in outputs.items():
        kind = TensorProto.INT64 if value.dtype == np.int64 else TensorProto.FLOAT
        weights.append(numpy_helper.from_array(value, f"{name}_value"))
        nodes.append(helper.make_node("Cast", ["zero"], [f"{name}_zero"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_zero"], [name]))
        infos.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, height, width])]
    if {"labels", "boxes"} <= outputs.keys():
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    graph = helper.make_graph(nodes, "detector", inputs, infos, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata or {})
    onnx.save(made, path)
    return path


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def grid_answers(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] of the letterbox (centre, size) and scores [N, 3]: two people, in
    the first and the last grid, the first one again, and a dog."""
    boxes = np.full((len(grid), 4), 4.0, np.float32)
    scores = np.zeros((len(grid), 3), np.float32)
    people = np.stack([BOX, OTHER, BOX + 1, OTHER - 90])
    boxes[[5, -1, 6, 60]] = centred(people * LETTERBOX)
    scores[[5, -1, 6], 0] = 0.9, 0.7, 0.6
    scores[60, 2] = 0.95
    return boxes, scores


def yolox(decoded: bool, grid: np.ndarray = CELLS) -> dict[str, np.ndarray]:
    boxes, scores = grid_answers(grid)
    if not decoded:
        boxes = np.concatenate(
            [boxes[:, :2] / grid[:, 2:] - grid[:, 1::-1], np.log(boxes[:, 2:] / grid[:, 2:])], axis=1
        )
    objectness = np.full((len(grid), 1), 0.9, np.float32)
    return {"output": np.concatenate([boxes, objectness, scores / objectness], axis=1)[None]}


def yolov8(grid: np.ndarray = CELLS) -> dict[str, np.ndarray]:
    boxes, scores = grid_answers(grid)
    return {"output0": np.concatenate([boxes, scores], axis=1).T[None]}


def yolo26() -> dict[str, np.ndarray]:
    boxes, labels, scores = queries(LETTERBOX)
    return {"output0": np.concatenate([boxes, scores[:, None], labels[:, None]], axis=1, dtype=np.float32)[None]}


def queries(scale: np.ndarray = STRETCHED) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RT-DETR's: corners in pixels of the input [20, 4], labels [20], scores [20]."""
    boxes, labels, scores = np.full((20, 4), 4.0, np.float32), np.ones(20, np.int64), np.full(20, 0.01, np.float32)
    boxes[:3] = np.stack([BOX, OTHER, OTHER - 90]) * scale
    labels[:2], scores[:3] = 0, (0.9, 0.7, 0.95)
    return boxes, labels, scores


def rtdetr(kind: str) -> dict[str, np.ndarray]:
    boxes, labels, scores = queries()
    if kind == "labels":
        return {"labels": labels[None], "boxes": boxes[None], "scores": scores[None]}
    shares = centred(boxes) / np.array([WIDTH, HEIGHT] * 2, np.float32)
    by_class = np.full((20, 3), 0.01, np.float32)
    by_class[np.arange(20), labels] = scores
    if kind == "logits":
        return {"logits": np.log(by_class / (1 - by_class))[None], "pred_boxes": shares[None]}
    by_class[-1] = 0  # a whole number, as a class has
    return {"output0": np.concatenate([shares, by_class[:, :1] if kind == "people" else by_class], axis=1)[None]}


def rtmdet() -> dict[str, np.ndarray]:
    boxes = np.stack([BOX, OTHER, OTHER - 90]) * LETTERBOX
    scores = np.array([[0.9], [0.7], [0.95]], np.float32)
    return {"dets": np.concatenate([boxes, scores], axis=1)[None], "labels": np.array([[0, 0, 1]])}


class WatchedSession:
    """onnxruntime's. `tell` is called with the inputs of each run."""

    def __init__(self, tell: Callable[[dict[str, np.ndarray]], object], *arguments: Any) -> None:
        self.tell, self.session = tell, start_session(*arguments)

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> Any:
        self.tell(inputs)
        return self.session.run(names, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """The inputs that detectors are given."""
    inputs: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr(user_detector, "start_session", partial(WatchedSession, inputs.append))
    return inputs


ANSWERS = {
    "YOLOX": ("YOLOX", yolox(decoded=False)),
    "YOLOX, decoded": ("YOLOX", yolox(decoded=True)),
    "YOLOX, four grids": ("YOLOX", yolox(decoded=False, grid=LARGER)),
    "YOLOv8": ("YOLOv8", yolov8()),
    "YOLOv8, four grids": ("YOLOv8", yolov8(LARGER)),
    "YOLO26": ("YOLO26", yolo26()),
    "RT-DETR": ("RT-DETR", rtdetr("labels")),
    "RT-DETR, transformers": ("RT-DETR", rtdetr("logits")),
    "RT-DETR, ultralytics": ("RT-DETR", rtdetr("one")),
    "RT-DETR, people alone": ("RT-DETR", rtdetr("people")),
    "RTMDet": ("RTMDet", rtmdet()),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_layouts_are_recognised_and_read(tmp_path: Path, name: str) -> None:
    layout, outputs = ANSWERS[name]
    path = model(tmp_path / "d.onnx", outputs)
    detector = UserDetector(path, "cpu")
    assert detector.layout == layout
    found = detector.find(IMAGE)
    np.testing.assert_allclose(found.boxes, [BOX, OTHER], atol=0.01)
    np.testing.assert_allclose(found.scores, [0.9, 0.7], atol=1e-4)
    assert found.keypoints is None
    assert detector.find(IMAGE, 0.8).scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # blue 20, green 40, red 60; the letterbox's other half is 114
        ("YOLOX", [20, 40, 60, 114]),
        ("YOLOv8", [60 / 255, 40 / 255, 20 / 255, 114 / 255]),
        ("YOLO26", [60 / 255, 40 / 255, 20 / 255, 114 / 255]),
        ("RT-DETR", [60 / 255, 40 / 255, 20 / 255, 0]),
        ("RTMDet", [(20 - 103.53) / 57.375, (40 - 116.28) / 57.12, (60 - 123.675) / 58.395, (114 - 103.53) / 57.375]),
    ],
)
def test_images_go_in_as_each_family_expects(
    tmp_path: Path, given: list[dict[str, np.ndarray]], name: str, expected: list[float]
) -> None:
    layout, outputs = ANSWERS[name]
    detector = UserDetector(model(tmp_path / "d.onnx", outputs), "cpu")
    detector.find(np.full_like(IMAGE, (20, 40, 60)))
    pixels = given[-1]["images"]
    assert pixels.shape == (1, 3, HEIGHT, WIDTH) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0, :, 5, 5], expected[:3], rtol=1e-5)
    # beside the image; RT-DETR's fills the input
    corner = pixels[0, 0, -1, -1]
    assert corner == pytest.approx(expected[3] if layout != "RT-DETR" else expected[0], rel=1e-5)
    if layout == "RT-DETR":
        assert given[-1]["orig_target_sizes"].tolist() == [[WIDTH, HEIGHT]]


KEYPOINTS = np.arange(2 * 17 * 3, dtype=np.float32).reshape(2, 17, 3)
"""Of the first two people, pixels of the image; no scores, which a letterbox does not change."""


@pytest.mark.parametrize("name", ["YOLOv8", "YOLO26"])
def test_keypoints_of_pose_models_are_those_of_their_people(tmp_path: Path, name: str) -> None:
    (only,) = ANSWERS[name][1].values()
    rows = only[0].T if name == "YOLOv8" else only[0]
    more = np.zeros((len(rows), 17, 3), np.float32)
    more[[5, -1] if name == "YOLOv8" else [0, 1]] = KEYPOINTS * [1 / 3, 1 / 3, 1]
    rows = np.concatenate([rows, more.reshape(len(rows), 51)], axis=1)
    outputs = {"output0": (rows.T if name == "YOLOv8" else rows)[None]}
    pose = UserDetector(model(tmp_path / "pose.onnx", outputs, metadata={"kpt_shape": "[17, 3]"}), "cpu")
    found = pose.find(IMAGE)
    assert pose.layout == name and found.keypoints is not None
    np.testing.assert_allclose(found.boxes, [BOX, OTHER], atol=0.01)
    np.testing.assert_allclose(found.keypoints, KEYPOINTS, atol=1e-3)
    hands = UserDetector(model(tmp_path / "hands.onnx", outputs, metadata={"kpt_shape": "[21, 3]"}), "cpu")
    assert hands.find(IMAGE).keypoints is None


def test_an_open_size_is_640(tmp_path: Path, given: list[dict[str, np.ndarray]]) -> None:
    detector = UserDetector(model(tmp_path / "d.onnx", rtmdet(), height="height"), "cpu")
    assert detector.find(IMAGE).boxes.shape == (2, 4)
    assert given[-1]["images"].shape == (1, 3, 640, WIDTH)
    UserDetector(model(tmp_path / "d.onnx", rtmdet(), width="width"), "cpu")
    assert given[-1]["images"].shape == (1, 3, HEIGHT, 640)


def test_a_stretched_image_leaves_no_pixel_out(tmp_path: Path, given: list[dict[str, np.ndarray]]) -> None:
    stripes = IMAGE.copy()
    stripes[::3] = 90  # the input has a third of the height
    UserDetector(model(tmp_path / "d.onnx", rtdetr("labels")), "cpu").find(stripes)
    np.testing.assert_allclose(given[-1]["images"], 30 / 255, rtol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"heatmap": np.zeros((1, 17, 64, 48), np.float32)}, r"its outputs are heatmap \[1, 17, 64, 48\]; known are"),
        (
            {"logits": np.zeros((1, 100, 91), np.float32), "pred_boxes": np.zeros((1, 100, 4), np.float32)},
            r"its logits have 91 classes, as those of DETR and YOLOS",
        ),
        (
            {"logits": np.zeros((1, 100, 92), np.float32), "pred_boxes": np.zeros((1, 100, 4), np.float32)},
            r"its logits have 92 classes, as those of DETR and YOLOS",
        ),
        *(  # the names of a known family, but other shapes
            ({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, f"its outputs are {first} ")
            for first, shapes in (
                ("dets", {"dets": (1, 10, 5), "labels": (1, 9)}),
                ("dets", {"dets": (1, 10, 5), "labels": (1, 10, 1)}),
                ("dets", {"dets": (1, 10, 5), "labels": ()}),
                ("labels", {"labels": (1, 300), "boxes": (1, 300, 5), "scores": (1, 300)}),
                ("labels", {"labels": (300,), "boxes": (300, 4), "scores": (300,)}),
                ("logits", {"logits": (1, 300, 80), "pred_boxes": (1, 200, 4)}),
                ("logits", {"logits": (300, 80), "pred_boxes": (300, 4)}),
            )
        ),
        ({"output0": np.zeros((1, 5000, 84), np.float32)}, r"its outputs are output0 \[1, 5000, 84\]; known are"),
    ],
)
def test_unknown_outputs_are_one_line(tmp_path: Path, outputs: dict[str, np.ndarray], reason: str) -> None:
    path = model(tmp_path / "d.onnx", outputs)
    with pytest.raises(InputError, match=f"detector_model .*d.onnx: {reason}") as raised:
        UserDetector(path, "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [(2**40, WIDTH), (4097, WIDTH), (HEIGHT, 4097)])
def test_a_huge_input_is_refused_before_memory_is_taken(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"its input has {size[1]} x {size[0]} pixels; a side has 1 to 4096"):
        UserDetector(model(tmp_path / "d.onnx", rtmdet(), height=size[0], width=size[1]), "cpu")


def test_files_that_are_no_detectors_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="detector_model: there is no file"):
        UserDetector(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match=r"detector_model .*text\.onnx: onnxruntime cannot load it"):
        UserDetector(tmp_path / "text.onnx")
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(MOST_BYTES["graph"] + 1)
    with pytest.raises(InputError, match=r"sparse\.onnx: has \d+ bytes; at most \d+ are read"):
        UserDetector(tmp_path / "sparse.onnx", "cpu")
    damaged = model(tmp_path / "damaged.onnx", rtmdet())
    damaged.write_bytes(damaged.read_bytes().replace(b"images", b"image\xff"))  # a name that is not UTF-8
    with pytest.raises(InputError, match=r"detector_model .*damaged\.onnx: onnxruntime cannot load it"):
        UserDetector(damaged, "cpu")
    tokens = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [1, 5])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5])
    graph = helper.make_graph([helper.make_node("Identity", ["tokens"], ["out"])], "g", [tokens], [out])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "words.onnx"
    )
    with pytest.raises(InputError, match=r"its inputs are tokens \[1, 5\] tensor\(float\); known is one of float"):
        UserDetector(tmp_path / "words.onnx")


def test_a_stream_takes_its_people(tmp_path: Path) -> None:
    from little_bundle import little_bundle

    folder = tmp_path / "bundle"
    folder.mkdir()
    recovery = Recovery(little_bundle(folder), "cpu")
    detector = UserDetector(model(tmp_path / "d.onnx", yolov8()), "cpu")
    stream, before = Stream(recovery, detector=detector), detector.seconds
    people = stream.process(np.full_like(IMAGE, 200), np.array([[200.0, 0, 128], [0, 200, 96], [0, 0, 1]]), 0)
    np.testing.assert_allclose(people.boxes, [BOX, OTHER], atol=0.01)
    np.testing.assert_allclose(people.scores, [0.9, 0.7], atol=1e-4)
    assert detector.seconds > before > 0 and detector.cpu_seconds > 0, "diagnostics count it as inference"
