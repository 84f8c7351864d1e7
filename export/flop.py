"""Floating point operations of an ONNX graph: those of its matrix products and convolutions, two per multiplication.

All else is left out: it is a few percent, and a machine's peak counts these only. So is what depends on the weights
alone, because a runtime computes it once, at loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import prod

import onnx


def count(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Of one run. sizes: of the dynamic dimensions of the inputs, by name ("P", "Q").

    Raises ValueError for a product whose shapes cannot be inferred.
    """
    shapes = _shapes(model, sizes)
    found, varying = 0, {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not varying & {*node.input}:
            continue
        varying |= {*node.output}
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        first, second, made = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
        if first is None or second is None or made is None:
            raise ValueError(f"{node.op_type} {node.name}: its shapes are not known")
        if node.op_type == "Conv":  # weights [out, in / groups, height, width]
            terms = prod(second[1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            terms = first[0 if transposed else -1]
        found += 2 * prod(made) * terms
    return found


def _shapes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """Of every tensor whose shape is known, by name."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in chain(sized.graph.input, sized.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in sizes:
                size.dim_value = sizes[size.dim_param]
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    found = {tensor.name: [*tensor.dims] for tensor in graph.initializer}
    for value in chain(graph.input, graph.output, graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if all(size.HasField("dim_value") for size in dims):
            found[value.name] = [size.dim_value for size in dims]
    return found
