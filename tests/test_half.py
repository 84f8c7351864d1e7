"""Graphs that fp16 harms are found by their measured error, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from little_bundle import little_bundle
from onnx import TensorProto, helper, numpy_helper

from export import gates, half
from mega_model.core.errors import InputError
from mega_model.core.onnx_runtime import ort
from mega_ros.bundle import Bundle

Change = Callable[[onnx.GraphProto], None]


def changed(bundle: Bundle, change: Change) -> Bundle:
    """With another deterministic graph."""
    model = onnx.load(bundle.path("deterministic"))
    change(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, bundle.path("deterministic"))
    return bundle


def sums(size: float) -> Change:
    """Red goes through a sum of 1000 times `size`, and back."""

    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].output[0] = "first"
        node = helper.make_node
        detour = [
            node("Expand", ["first", "thousand"], ["many"]),
            node("Mul", ["many", "large"], ["large_ones"]),
            node("ReduceSum", ["large_ones", "second"], ["sum"]),
            node("Div", ["sum", "total"], ["red"]),
        ]
        rest = [*graph.node]
        del graph.node[:]
        graph.node.extend([rest[0], *detour, *rest[1:]])
        constants = {
            "thousand": np.array([1, 1000]),
            "large": np.float32(size),
            "second": np.array([1]),
            "total": np.float32(1000 * size),
        }
        graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())

    return change


def test_a_graph_with_a_sum_that_overflows_stays(tmp_path: Path) -> None:
    assert half.stay_fp32(changed(little_bundle(tmp_path), sums(2000))) == ["deterministic"]


def test_a_graph_with_a_sum_that_fits_does_not(tmp_path: Path) -> None:
    assert half.stay_fp32(changed(little_bundle(tmp_path), sums(0.5))) == []


def test_a_bundle_with_noise_of_its_own_is_named(tmp_path: Path) -> None:
    def noise(graph: onnx.GraphProto) -> None:
        graph.node[0].output[0] = "first"
        graph.node.insert(1, helper.make_node("RandomNormalLike", ["first"], ["noise"]))
        graph.node.insert(2, helper.make_node("Add", ["first", "noise"], ["red"]))

    with pytest.raises(InputError, match="little: the same inputs give other people in a second run"):
        half.stay_fp32(changed(little_bundle(tmp_path), noise))


def test_rounding_is_that_of_fp16() -> None:
    """Of inputs and of what depends on them only, and of floating point numbers only."""
    node = helper.make_node
    nodes = [
        node("Mul", ["x", "x"], ["square"]),
        node("Add", ["square", "tenth"], ["y"]),
        node("Mul", ["tenth", "tenth"], ["hundredth"]),
        node("Cast", ["square"], ["whole"], to=TensorProto.INT64),
        node("MatMul", ["x", "matrix"], ["product"]),
    ]
    value = helper.make_tensor_value_info
    made = [value(name, TensorProto.FLOAT, [4]) for name in ("y", "square", "product")]
    made += [value("hundredth", TensorProto.FLOAT, []), value("whole", TensorProto.INT64, [4])]
    constants: dict[str, np.ndarray] = {"tenth": np.array(0.1, np.float32), "matrix": np.eye(4, dtype=np.float32) / 10}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [4])],
        made,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = np.array([1.1, 3, 300, 1e-5], np.float32)
    proto = half.rounded(model).SerializeToString()
    y, square, product, hundredth, whole = ort.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )

    def fp16(numbers: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16).astype(np.float32)

    expected = fp16(fp16(x) ** 2)
    assert np.isinf(expected[2]) and expected[3] == 0 and expected[0] != fp16(x**2)[0]
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_array_equal(product, fp16(fp16(x) * np.float32(0.1)))
    np.testing.assert_array_equal(y, fp16(expected + np.float32(0.1)))
    assert hundredth == np.float32(0.1) * np.float32(0.1) and whole.dtype == np.int64


def test_gates_of_fp16_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates.GATES["fp16"], "vertex error, mean", 1e-9)
    assert "deterministic" in half.stay_fp32(little_bundle(tmp_path))


def test_few_graphs_with_little_work_stay() -> None:
    tried = half.choices({"backbone": 2, "deterministic": 1, "sampler": 5})
    assert tried[:4] == [[], ["deterministic"], ["backbone"], ["sampler"]]
    assert tried[4:6] == [["backbone", "deterministic"], ["deterministic", "sampler"]] and len(tried) == 8
