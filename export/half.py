"""Which graphs stay in fp32 among engines of fp16, by their measured error.

A bundle is exported without a GPU, so fp16 is emulated on the CPU: a graph's inputs, and every output of an operator
that computes, are rounded to fp16, as TensorRT stores them; products and norms accumulate in fp32 there, too. A graph
has one precision, because onnxruntime's provider has none for single operators: it can only keep types of operators
out of an engine, which cuts the graph into parts whose inputs have no profile.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Mapping
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from export import flop, gates
from export.gates import CHAIN
from mega_model.core.errors import InputError
from mega_ros.bundle import Bundle, GraphName
from mega_ros.engines import OnnxEngine

MOVES = {
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Reshape", "Slice"),
    *("ScatterElements", "ScatterND", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}
"""Operators that only move numbers, which are rounded already."""
PEOPLE, SAMPLES = 6, 8
"""The errors are measured on so many crops: 324 tokens and 2592 sampled ones at 54 each. With two people, a gate of
1 % of 108 tokens would be passed or missed by a single near tie."""
NOISE = 8
"""Largest change of a pixel, uint8: it makes six different images of one photograph."""


def stay_fp32(bundle: Bundle) -> list[GraphName]:
    """The fewest graphs that must stay in fp32 so that the bundle passes `gates.GATES["fp16"]`; the first of `choices`.

    Raises InputError if the bundle misses a gate even without rounding: then its graphs are not deterministic.
    """
    given = gates.inputs(bundle, noisy_crops(bundle.crop.size), SAMPLES)
    models = {graph: onnx.load(bundle.path(graph)) for graph in CHAIN}
    exact = {graph: OnnxEngine(bundle, graph, "cpu") for graph in CHAIN}
    with tempfile.TemporaryDirectory() as folder:
        emulated = dataclasses.replace(bundle, folder=Path(folder))
        for graph, model in models.items():
            onnx.save(rounded(model), emulated.path(graph))
        half = {graph: OnnxEngine(emulated, graph, "cpu") for graph in CHAIN}

    def people(stay: Collection[GraphName]) -> gates.BundleOutputs:
        return gates.Chain(bundle, lambda graph: (exact if graph in stay else half)[graph])(given)

    reference = people(CHAIN)
    for stay in choices({graph: flop.count(model, {"P": PEOPLE, "Q": SAMPLES}) for graph, model in models.items()}):
        got = people(stay)
        if not gates.missed(gates.errors(reference, got, got), "fp16"):
            return stay
    raise InputError(f"{bundle.name}: the same inputs give other people in a second run; export the bundle again")


def choices(work: Mapping[GraphName, float]) -> list[list[GraphName]]:
    """All sets of graphs: small ones first, and of equal size those with less work."""
    sets = chain.from_iterable(combinations(work, count) for count in range(len(work) + 1))
    return sorted(map(list, sets), key=lambda graphs: (len(graphs), sum(work[graph] for graph in graphs)))


def noisy_crops(size: int) -> np.ndarray:
    """uint8 [PEOPLE, size, size, 3]"""
    crops = gates.photographed_crops(size, PEOPLE)
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, crops.shape)
    return np.clip(crops + noise, 0, 255).astype(np.uint8)


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all floating point numbers rounded to fp16 that depend on its inputs; infinite if that overflows.

    Weights are in fp16 already.
    """
    floats, varying, made = _floats(model), {value.name for value in model.graph.input}, onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]

    def rounds(exact: str, name: str) -> None:
        for before, after, kind in (
            (exact, f"{name} half", TensorProto.FLOAT16),
            (f"{name} half", name, TensorProto.FLOAT),
        ):
            made.graph.node.append(helper.make_node("Cast", [before], [after], to=kind))

    given = sorted(varying & floats)
    for name in given:
        rounds(name, f"{name} rounded")
    for node in model.graph.node:
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name} rounded" if name in given else name for name in node.input]
        if varying & {*node.input}:
            varying |= {*node.output}
            changed = [number for number, name in enumerate(node.output) if name in floats]
            for number in changed if node.op_type not in MOVES else []:
                copy.output[number] = f"{node.output[number]} exact"
                rounds(copy.output[number], node.output[number])
    return made


def _floats(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = chain(graph.value_info, graph.input, graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
