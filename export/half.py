"""Which operators must stay in fp32 in an engine of fp16, by their measured error.

A bundle is exported without a GPU, so fp16 is emulated on the CPU: every output of an operator is rounded to fp16, as
TensorRT stores it; products and norms accumulate in fp32 there, too. If the whole bundle misses one of
`gates.GATES["fp16"]`, the operators that do most harm alone stay in fp32, one after the other, until it passes.
Then those that need not stay go.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import lru_cache
from itertools import chain
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export import gates
from export.gates import CHAIN, GATES
from mega_model.core.errors import InputError
from mega_ros.bundle import Bundle, GraphName
from mega_ros.engines import OnnxEngine

Operators = dict[str, list[str]]
"""Graph -> types of its operators, sorted."""
MOVES = {
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Reshape", "Slice"),
    *("ScatterElements", "ScatterND", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}
"""Operators that only move numbers, which are rounded already."""
PEOPLE, SAMPLES = 2, 4
"""Of the crops that the errors are measured on."""


def must_stay(bundle: Bundle) -> Operators:
    """The operators of a bundle that must stay in fp32. Graphs that have none are left out.

    Raises InputError if the bundle misses a gate even without rounding: then its graphs are not deterministic.
    """
    given = gates.inputs(bundle, gates.photographed_crops(bundle.crop.size, PEOPLE), SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        emulated = _Emulated(bundle, Path(folder))
        reference = emulated.chain({})(given)

        def excess(kinds: Operators) -> float:
            """The largest error over its gate if these are rounded: above 1, a gate is missed."""
            run = emulated.chain(kinds)
            found = gates.errors(reference, run(given), run(given))
            ratios = [found[name] / limit if limit else found[name] * 2 for name, limit in GATES["fp16"].items()]
            return max(float("inf") if ratio != ratio else ratio for ratio in ratios)

        everything: Operators = {graph: operators(emulated.models[graph]) for graph in CHAIN}
        if excess(everything) <= 1:
            return {}
        alone = [(graph, kind) for graph, kinds in everything.items() for kind in kinds]
        alone.sort(key=lambda one: excess({one[0]: [one[1]]}), reverse=True)

        def without(stay: list[tuple[str, str]]) -> Operators:
            return {name: [kind for kind in kinds if (name, kind) not in stay] for name, kinds in everything.items()}

        for count in range(1, len(alone) + 1):
            if excess(without(alone[:count])) <= 1:
                stay = alone[:count]
                for one in reversed(alone[: count - 1]):  # what does harm alone may do none beside the others
                    fewer = [other for other in stay if other != one]
                    stay = fewer if excess(without(fewer)) <= 1 else stay
                kept = {graph: sorted(kind for name, kind in stay if name == graph) for graph in CHAIN}
                return {graph: kinds for graph, kinds in kept.items() if kinds}
    raise InputError(f"{bundle.name}: the same inputs give other people in a second run; export the bundle again")


def operators(model: onnx.ModelProto) -> list[str]:
    """Types of the operators with an output that fp16 can change: those that compute floating point numbers."""
    return sorted({model.graph.node[number].op_type for number in _computing(model)})


def rounded(model: onnx.ModelProto, kinds: list[str]) -> onnx.ModelProto:
    """The model with all floating point outputs of these operators rounded to fp16, infinite where that overflows."""
    made, floats = onnx.ModelProto(), _floats(model)
    made.CopyFrom(model)
    del made.graph.node[:]
    computing = _computing(model)
    for place, node in enumerate(model.graph.node):
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        changed = place in computing and node.op_type in kinds
        for number, name in enumerate(node.output if changed else ()):
            if name in floats:
                copy.output[number] = f"{name} exact"
                made.graph.node.append(
                    helper.make_node("Cast", [f"{name} exact"], [f"{name} half"], to=TensorProto.FLOAT16)
                )
                made.graph.node.append(helper.make_node("Cast", [f"{name} half"], [name], to=TensorProto.FLOAT))
    return made


def _computing(model: onnx.ModelProto) -> set[int]:
    """Places of the nodes with a floating point output that depends on an input of the graph. Weights are in fp16."""
    floats, varying, found = _floats(model), {value.name for value in model.graph.input}, set()
    for place, node in enumerate(model.graph.node):
        if varying & {*node.input}:
            varying |= {*node.output}
            if floats & {*node.output} and node.op_type not in MOVES:
                found.add(place)
    return found


def _floats(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = chain(graph.value_info, graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


class _Emulated:
    """A bundle whose operators can be rounded."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.models = {graph: onnx.load(bundle.path(graph)) for graph in CHAIN}
        self._bundle = dataclasses.replace(bundle, folder=folder)
        # an engine takes the memory of its weights, so only the last ones are kept
        self._engine = lru_cache(2 * len(CHAIN))(self._made)

    def chain(self, kinds: Operators) -> gates.Chain:
        return gates.Chain(self._bundle, lambda graph: self._engine(graph, tuple(kinds.get(graph, ()))))

    def _made(self, graph: GraphName, kinds: tuple[str, ...]) -> OnnxEngine:
        onnx.save(rounded(self.models[graph], list(kinds)), self._bundle.path(graph))
        return OnnxEngine(self._bundle, graph, "cpu")
