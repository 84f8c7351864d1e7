"""Runs a graph in parts, where all people and samples at once need too much memory or do not fit a compiled engine.

People and samples do not depend on each other, so parts give the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .bundle import Graph

Arrays = dict[str, np.ndarray]
PEOPLE = 16
"""At a time, in graphs without samples: they take 15 MiB of memory each, and more of them are not faster on a CPU."""
SHARE = 0.25
"""Share of the free memory that one run may take."""
ACTIVATIONS, DECODED = 10, 64
"""Arrays of the size of a sample's states and logits, and numbers per vertex, that are alive at once: twice the peak
measured with the default bundle in onnxruntime on a CPU (1.0 MB per sample; P = 8, Q = 100)."""


def run_in_parts(graph: Graph, run: Callable[[Arrays], Arrays], inputs: Arrays, most: Mapping[str, int]) -> Arrays:
    """`run(inputs)`, with at most `most[name]` of each dynamic size ("P", "Q") at a time.

    An output without that size does not depend on it: the first part's is taken.
    """
    for name, limit in most.items():
        axes = {key: t.shape.index(name) for key, t in graph.inputs.items() if name in t.shape}
        size = max((inputs[key].shape[axis] for key, axis in axes.items()), default=0)
        if size > limit:
            parts = [
                run_in_parts(
                    graph,
                    run,
                    {key: _part(x, axes[key], start, limit) if key in axes else x for key, x in inputs.items()},
                    most,
                )
                for start in range(0, size, limit)
            ]
            return {key: _joined(key, parts, graph, name) for key in parts[0]}
    return run(inputs)


def most_at_once(graph: Graph, people: int, memory: Callable[[], int]) -> dict[str, int]:
    """Numbers of people and samples; those of graphs with samples fit the free `memory`, bytes."""
    if not any("Q" in tensor.shape for tensor in graph.inputs.values()):
        return {"P": PEOPLE}
    rows = max(1, int(SHARE * memory() / bytes_per_sample(graph)))
    return {"P": rows, "Q": max(1, rows // people)}


def bytes_per_sample(graph: Graph) -> int:
    """What a run of the sampler takes for one sample of one person, about; from the shapes of its inputs."""
    states, logits = (np.prod([int(n) for n in graph.inputs[name].shape[1:]]) for name in ("image", "logits"))
    vertices = int(graph.outputs["vertices"].shape[2])
    return 4 * int(ACTIVATIONS * (2 * states + logits) + DECODED * vertices)


def free_memory() -> int:
    """Bytes that programs can still take without swapping."""
    with open("/proc/meminfo", "rb", buffering=0) as file:  # for each run of a graph, so the first lines only
        return 1024 * int(file.read(400).partition(b"MemAvailable:")[2].split(maxsplit=1)[0])


def _part(x: np.ndarray, axis: int, start: int, size: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(x, range(start, min(start + size, x.shape[axis])), axis))


def _joined(key: str, parts: list[Arrays], graph: Graph, name: str) -> np.ndarray:
    shape = graph.outputs[key].shape
    return np.concatenate([part[key] for part in parts], shape.index(name)) if name in shape else parts[0][key]
