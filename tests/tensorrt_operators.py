"""What TensorRT's ONNX parser takes, so that an operator that would break engines is found on a CPU.

Source: docs/operators.md of github.com/onnx/onnx-tensorrt for TensorRT 10.15, read in November 2026. Left out are types
that no graph of this project has (BFLOAT16, FP8, INT8, ...) and operators that no network here is likely to have.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import onnx
from onnx import TensorProto

OPSETS = range(9, 25)
FLOATS = {"FLOAT", "FLOAT16"}
NUMBERS = FLOATS | {"INT32", "INT64"}
BOOLEANS = {"BOOL"}
ANY = NUMBERS | BOOLEANS
OPERATORS: dict[str, set[str]] = {
    **dict.fromkeys(
        """AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos CumSum Einsum Elu Erf Exp Floor Gemm
        GlobalAveragePool GroupNormalization HardSigmoid HardSwish InstanceNormalization IsInf LayerNormalization
        LeakyRelu Log LogSoftmax LpNormalization MatMul MaxPool PRelu Reciprocal Resize Round Sigmoid Sin Softmax
        Softplus Softsign Sqrt Tan Tanh""".split(),
        FLOATS,
    ),
    **dict.fromkeys(
        """Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min
        Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
        ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Sign SpaceToDepth Sub Sum TopK""".split(),
        NUMBERS,
    ),
    **dict.fromkeys(
        """Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot Reshape
        ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""".split(),
        ANY,
    ),
    **dict.fromkeys("And Not Or Xor".split(), BOOLEANS),
    "NonZero": FLOATS,
    "Cast": ANY | {"UINT8"},
}
"""Operator -> types of its data. UINT8 exists only as type of a network's inputs and outputs."""
CONSTANT = {
    **{name: 1 for name in OPERATORS if name.startswith("Reduce")},
    **dict.fromkeys(("CumSum", "OneHot", "Squeeze", "Unsqueeze"), 1),
}
"""Operator -> which of its inputs must be a constant: axes, or a depth."""
MOST_K = 3839
RESIZE = {
    "coordinate_transformation_mode": {
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
    },
    "mode": {"nearest", "linear"},
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
}


def refused(proto: onnx.ModelProto) -> list[str]:
    """What TensorRT's parser does not take in a graph; empty if it takes all of it."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    faults = [] if opset in OPSETS else [f"opset {opset}"]
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in chain(graph.input, graph.output, graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    constants: dict[str, Any] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = onnx.helper.get_attribute_value(node.attribute[0])
        if node.op_type not in OPERATORS or node.domain:
            faults.append(f"{node.op_type}: not supported")
            continue
        kinds = {TensorProto.DataType.Name(types[name]) for name in _data(node, opset)}
        if kinds - OPERATORS[node.op_type]:
            faults.append(f"{node.op_type}: of {', '.join(sorted(kinds - OPERATORS[node.op_type]))}")
        faults += _restrictions(node, constants)
    return sorted(set(faults))


def _data(node: onnx.NodeProto, opset: int) -> Iterator[str]:
    """The inputs of the first input's type; indices, axes and shapes have types of their own."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    for number, name in enumerate(node.input):
        declared = schema.inputs[min(number, len(schema.inputs) - 1)]
        if name and declared.type_str == schema.inputs[0].type_str:
            yield name


def _restrictions(node: onnx.NodeProto, constants: dict[str, Any]) -> Iterator[str]:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    which = CONSTANT.get(node.op_type)
    if which is not None and len(node.input) > which and node.input[which] not in constants:
        yield f"{node.op_type}: its input {which} is not a constant"
    if node.op_type in ("LayerNormalization", "MaxPool") and len(node.output) > 1:
        yield f"{node.op_type}: has a second output"
    if node.op_type == "TopK":
        k = constants.get(node.input[1])
        if not attributes.get("sorted", 1) or k is None or int(k[0]) > MOST_K:
            yield "TopK: not sorted, or of more than 3839 or an unknown number"
    if node.op_type in ("ScatterND", "ScatterElements") and attributes.get("reduction", b"none") != b"none":
        yield f"{node.op_type}: has a reduction"
    if node.op_type == "Resize":
        wrong = [name for name, good in RESIZE.items() if name in attributes and attributes[name].decode() not in good]
        yield from (f"Resize: its {name} is {attributes[name].decode()}" for name in wrong)
