"""A bundle whose graphs are a few operators each, so that what the runtime makes of their outputs is known.

A person's features are the mean colour (red, green, blue; 0 to 1) of the crop. Vertices are the template times
1 + red, and NaN without any green; sigma is 0.1 + blue, and NaN at blue 1. A sample is the template times the mean of
the logarithms of its uniforms, and NaN at blue 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mega_model.core.regions import MARGIN as MARGIN_OF_REGIONS
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_ros.bundle import TOPOLOGY, Body, Bundle, Calibration, Crop, Graph, Graphs, Sampling, Tensor, write_bundle

SIZE = 32
MARGIN = 1.5
CAMERA = (0.8, 0.0, 0.0)
VERTICES, JOINTS, TOKENS, STEPS = 40, len(SMPL_JOINTS), 50, 40
TEMPLATE = np.random.default_rng(0).normal(0, 0.2, (VERTICES, 3)).astype(np.float32)
NEXT = (0.2, 0.1), 0.6, 0.3
"""The next crop, in crop coordinates: centre, side over this crop's, and roll, radians."""
LANDMARKS = np.zeros((39, 5), np.float32)  # of no weight in the fit
LANDMARKS[33:35, :2] = NEXT[0]
LANDMARKS[34, :2] += NEXT[1] / MARGIN_OF_REGIONS * np.array([np.sin(NEXT[2]), -np.cos(NEXT[2])])
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
FLOAT = "float32"


def little_bundle(
    folder: Path,
    *,
    errors: bool = True,
    scale: float = 1.0,
    samples: int = 0,
    margin: float = MARGIN,
    colours: tuple[str, str, str] = ("red", "green", "blue"),
    coverage: Mapping[str, float] = {},
    passes: int = 1,
    modes: int = 0,
) -> Bundle:
    """errors: whether the deterministic graph gives sigma, joints_sigma and distance. colours: what it takes a crop's
    channels for. coverage: what the manifest promises of sigma. passes: if more than one, the backbone gives LANDMARKS
    for every crop, and distance is the mean of all keypoints. modes: how many there are, which needs several passes."""
    regressor = np.random.default_rng(1).dirichlet(np.ones(VERTICES), JOINTS).astype(np.float32)
    Topology(TEMPLATE, np.array([[0, 1, 2]], np.int32), regressor, np.zeros(VERTICES, np.int32)).save(folder / TOPOLOGY)
    graphs: Graphs = {
        "backbone": _backbone(folder, passes > 1),
        "deterministic": _deterministic(folder, errors, colours, passes > 1, modes),
        "sampler": _sampler(folder),
    }
    return write_bundle(
        folder,
        name="little",
        graphs=graphs,
        crop=Crop(SIZE, margin, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), passes=passes),
        sampling=Sampling(STEPS, samples, 1.0),
        calibration=Calibration(scale, "by hand", {**coverage}),
        body=Body("little", "random", "CC0"),
        training={},
        origins={},
    )


def _backbone(folder: Path, landmarks: bool) -> Graph:
    node = helper.make_node
    nodes = [
        node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        node("Div", ["mean", "white"], ["features"]),
    ]
    outputs = {"features": Tensor(FLOAT, ("P", 3))}
    if landmarks:
        nodes += [
            node("ReduceMean", ["mean"], ["grey"], axes=[1], keepdims=1),
            node("Mul", ["grey", "nothing"], ["zero"]),
            node("Reshape", ["zero", "column"], ["zeros"]),
            node("Add", ["zeros", "same"], ["landmarks"]),
        ]
        outputs["landmarks"] = Tensor(FLOAT, ("P", 39, 5))
    constants = {"white": np.float32(255), "nothing": np.float32(0), "column": np.array([-1, 1, 1]), "same": LANDMARKS}
    return _save(
        folder / "backbone.onnx",
        nodes,
        constants,
        Graph({"crops": Tensor("uint8", ("P", SIZE, SIZE, 3))}, outputs),
    )


def _deterministic(folder: Path, errors: bool, colours: tuple[str, str, str], keypoints: bool, modes: int) -> Graph:
    node = helper.make_node
    nodes = [
        node("Split", ["features"], [*colours], axis=1),
        node("Div", ["green", "green"], ["one_or_nan"]),
        node("Add", ["red", "one"], ["size"]),
        node("Mul", ["size", "one_or_nan"], ["scale"]),
        node("Reshape", ["scale", "column"], ["scales"]),
        node("Mul", ["scales", "template"], ["vertices"]),
        node("Mul", ["red", "nothing"], ["zero"]),
        node("Reshape", ["zero", "column"], ["zeros"]),
        node("Add", ["zeros", "upright"], ["rotation"]),
        node("Add", ["zero", "weak"], ["camera"]),
        node("Cast", ["zeros"], ["whole"], to=TensorProto.INT64),
        node("Reshape", ["whole", "row"], ["whole_row"]),
        node("Add", ["whole_row", "no_tokens"], ["tokens"]),
        node("Sub", ["one", "blue"], ["dark"]),
        node("Div", ["dark", "dark"], ["one_unless_blue"]),
        node("Mul", ["zero", "one_unless_blue"], ["zero_unless_blue"]),
        node("Reshape", ["zero_unless_blue", "column"], ["image"]),
        node("Identity", ["zeros"], ["logits"]),
    ]
    outputs = {
        "tokens": Tensor("int64", ("P", TOKENS)),
        "vertices": Tensor(FLOAT, ("P", VERTICES, 3)),
        "rotation": Tensor(FLOAT, ("P", 3, 3)),
        "camera": Tensor(FLOAT, ("P", 3)),
        "image": Tensor(FLOAT, ("P", 1, 1)),
        "logits": Tensor(FLOAT, ("P", 1, 1)),
    }
    if errors:
        nodes += [
            node("Add", ["blue", "least"], ["error"]),
            node("Mul", ["error", "one_unless_blue"], ["usual"]),
            node("Add", ["usual", "no_vertices"], ["sigma"]),
            node("Add", ["blue", "joint_errors"], ["joints_sigma"]),
            node("ReduceMean", ["keypoints"], ["distance"], axes=[1, 2], keepdims=0)
            if keypoints
            else node("Reshape", ["green", "flat"], ["distance"]),
        ]
        outputs |= {
            "sigma": Tensor(FLOAT, ("P", VERTICES)),
            "joints_sigma": Tensor(FLOAT, ("P", JOINTS)),
            "distance": Tensor(FLOAT, ("P",)),
        }
    inputs = {"features": Tensor(FLOAT, ("P", 3))}
    if keypoints:
        inputs["keypoints"] = Tensor(FLOAT, ("P", 12, 3))
    if modes:
        nodes.append(node("Identity", ["of_errors"], ["modes"]))
        outputs["modes"] = Tensor(FLOAT, (modes, VERTICES, 3))
    constants = {
        "one": np.float32(1),
        "nothing": np.float32(0),
        "least": np.float32(0.1),
        "column": np.array([-1, 1, 1]),
        "row": np.array([-1, 1]),
        "flat": np.array([-1]),
        "template": TEMPLATE,
        "upright": np.diag(np.array([1, -1, -1], np.float32)),
        "weak": np.array([CAMERA], np.float32),
        "no_tokens": np.zeros((1, TOKENS), np.int64),
        "no_vertices": np.zeros((1, VERTICES), np.float32),
        "joint_errors": np.arange(JOINTS, dtype=np.float32)[None],
        "of_errors": np.random.default_rng(2).normal(0, 0.05, (modes, VERTICES, 3)).astype(np.float32),
    }
    return _save(folder / "deterministic.onnx", nodes, constants, Graph(inputs, outputs))


def _sampler(folder: Path) -> Graph:
    node = helper.make_node
    shape = ("P", "Q", STEPS, TOKENS, 2)
    inputs = {
        "image": Tensor(FLOAT, ("P", 1, 1)),
        "logits": Tensor(FLOAT, ("P", 1, 1)),
        "uniforms": Tensor(FLOAT, shape),
    }
    return _save(
        folder / "sampler.onnx",
        [
            node("Log", ["uniforms"], ["logs"]),
            node("ReduceMean", ["logs"], ["means"], axes=[3, 4], keepdims=0),
            node("ReduceMean", ["means"], ["mean"], axes=[2], keepdims=1),
            node("Unsqueeze", ["mean", "last"], ["means_of_samples"]),
            node("Add", ["image", "logits"], ["zeros"]),
            node("Unsqueeze", ["zeros", "last"], ["no_vertices"]),
            node("Mul", ["means_of_samples", "template"], ["bodies"]),
            node("Add", ["bodies", "no_vertices"], ["vertices"]),
            node("Cast", ["mean"], ["whole"], to=TensorProto.INT64),
            node("Add", ["whole", "no_tokens"], ["tokens"]),
        ],
        {"last": np.array([3]), "template": TEMPLATE, "no_tokens": np.zeros((1, 1, TOKENS), np.int64)},
        Graph(
            inputs,
            {"tokens": Tensor("int64", ("P", "Q", TOKENS)), "vertices": Tensor(FLOAT, ("P", "Q", VERTICES, 3))},
        ),
    )


def _save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], graph: Graph) -> Graph:
    def info(tensors: dict[str, Tensor]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, KINDS[t.dtype], list(t.shape)) for name, t in tensors.items()]

    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used]
    proto = helper.make_graph(nodes, path.stem, info(graph.inputs), info(graph.outputs), weights)
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return graph
