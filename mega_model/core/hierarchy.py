"""Pooling levels of a mesh topology ("Fully Convolutional Mesh Autoencoder", Zhou et al. 2020, sec. 3). Numpy only.

A level turns a graph (ordered adjacency lists) into a coarser one with stride s:

centres  a breadth-first scan makes a vertex a centre if no centre lies within s - 1 hops; stride 1 keeps every vertex.
pool     row i: the input vertices within s hops of centre i, breadth first, the centre itself first.
unpool   row v: the centres within s hops of input vertex v, ascending. Never empty, as the centres are maximal.
graph    two centres are adjacent if at most 2 s - 1 hops apart; listed breadth first, each vertex its own neighbour.

With `body.smpl.HIERARCHY_SEEDS`, SMPL's faces give the tables that the authors published, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import read_npy

Adjacency = Sequence[Sequence[int]]
Rows = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Table:
    """A gather table: row r reads input vertices index[r, :count[r]]."""

    index: np.ndarray
    """int32 [rows, M], padded with the input's vertex count (one past its last vertex)."""
    hops: np.ndarray
    """int32 [rows, M], distance in edges, -1 in the padding."""
    inputs: int
    """Vertex count of the input graph."""

    @property
    def count(self) -> np.ndarray:
        """int [rows]: neighbours per row."""
        return (self.hops >= 0).sum(axis=1)

    @classmethod
    def of(cls, rows: Rows, inputs: int) -> Table:
        width = max(map(len, rows))
        index = np.full((len(rows), width), inputs, np.int32)
        hops = np.full((len(rows), width), -1, np.int32)
        for r, row in enumerate(rows):
            index[r, : len(row)], hops[r, : len(row)] = np.array(row, np.int32).T
        return cls(index, hops, inputs)

    @classmethod
    def of_published(cls, array: np.ndarray, inputs: int) -> Table:
        """From the layout of the published files, int [rows, 1 + 2 M]: count, then M pairs of index and hops.

        Raises ValueError that says what is wrong.
        """
        if array.ndim != 2 or array.shape[1] % 2 == 0 or array.dtype.kind != "i":
            raise ValueError(f"a table of connections is integers [rows, 1 + 2 M], not {array.dtype} {array.shape}")
        table = cls(array[:, 1::2].astype(np.int32), array[:, 2::2].astype(np.int32), inputs)
        there = np.arange(table.index.shape[1]) < array[:, :1]
        padded = (table.index == inputs) & (table.hops == -1)
        known = (table.index >= 0) & (table.index < inputs) & (table.hops >= 0)
        if not np.where(there, known, padded).all():
            raise ValueError(f"the connections do not fit a graph of {inputs} vertices")
        return table

    def published(self) -> np.ndarray:
        """The inverse of `of_published`."""
        pairs = np.stack([self.index, self.hops], axis=-1).reshape(len(self.index), -1)
        return np.concatenate([self.count[:, None], pairs], axis=1).astype(np.int32)


@dataclass(frozen=True)
class Level:
    """One step from fine to coarse and back."""

    centres: np.ndarray
    """int32 [coarse]: input vertices that the coarse vertices stand on, ascending."""
    pool: Table
    """coarse x fine"""
    unpool: Table
    """fine x coarse"""


def build(faces: np.ndarray, vertices: int, strides: Iterable[int], seeds: Sequence[int] = ()) -> list[Level]:
    """Levels of a triangle mesh [F, 3]: stride 1 gives the neighbourhoods of a graph, stride 2 coarsens it.

    `seeds` are vertices that every level must keep; the breadth-first scans start there.
    """
    return coarsen(_edges(faces, vertices), strides, seeds)


def coarsen(graph: Adjacency, strides: Iterable[int], seeds: Sequence[int] = ()) -> list[Level]:
    """`build` from the vertices' neighbours, each list in order of first appearance over the faces' edges."""
    levels = []
    for stride in strides:
        fine = len(graph)
        centres = _centres(graph, stride, seeds)
        number = {c: i for i, c in enumerate(centres)}
        balls = [_ball(graph, c, stride) for c in centres]
        unpool: list[list[tuple[int, int]]] = [[] for _ in range(fine)]
        for i, ball in enumerate(balls):
            for v, hops in ball:
                unpool[v].append((i, hops))
        levels.append(Level(np.array(centres, np.int32), Table.of(balls, fine), Table.of(unpool, len(centres))))
        graph = [[number[v] for v, _ in _ball(graph, c, 2 * stride - 1) if v in number] for c in centres]
        seeds = [number[s] for s in seeds]
    return levels


def save(folder: Path, levels: Sequence[Level]) -> None:
    """Write the tables as they are published: `_pool0.npy`, `_unpool0.npy`, `_pool1.npy` ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, level in enumerate(levels):
        np.save(folder / f"_pool{i}.npy", level.pool.published())
        np.save(folder / f"_unpool{i}.npy", level.unpool.published())


def load(folder: Path) -> list[Level]:
    """All levels of a folder that holds published tables.

    Raises InputError for a table that is not there, is damaged or does not fit.
    """
    levels: list[Level] = []
    fine = len(read_npy(folder / "_pool0.npy"))
    while not levels or (folder / f"_pool{len(levels)}.npy").exists():
        number = len(levels)
        pool = _published(folder / f"_pool{number}.npy", fine)
        coarse = len(pool.index)
        unpool = _published(folder / f"_unpool{number}.npy", coarse)
        if len(unpool.index) != fine:
            raise InputError(f"{folder / f'_unpool{number}.npy'}: {len(unpool.index)} rows for {fine} vertices")
        levels.append(Level(pool.index[:, 0], pool, unpool))
        fine = coarse
    return levels


def _published(path: Path, inputs: int) -> Table:
    array = read_npy(path)
    try:
        return Table.of_published(array, inputs)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _edges(faces: np.ndarray, vertices: int) -> list[list[int]]:
    """Neighbours in order of first appearance over the faces' edges 01, 12, 20."""
    graph: list[dict[int, None]] = [{} for _ in range(vertices)]  # dicts: ordered sets
    for a, b, c in faces.tolist():
        for p, q in ((a, b), (b, c), (c, a)):
            graph[p].setdefault(q)
            graph[q].setdefault(p)
    return [list(neighbours) for neighbours in graph]


def _ball(graph: Adjacency, centre: int, radius: int) -> list[tuple[int, int]]:
    """(vertex, hops) within `radius` hops, breadth first."""
    hops = {centre: 0}
    queue = deque([centre])
    while queue:
        v = queue.popleft()
        if hops[v] < radius:
            for q in graph[v]:
                if q not in hops:
                    hops[q] = hops[v] + 1
                    queue.append(q)
    return list(hops.items())


def _centres(graph: Adjacency, stride: int, seeds: Sequence[int]) -> list[int]:
    centres, seen = set(seeds), set(seeds)
    queue = deque(seeds or [0])
    while queue:
        for v in graph[queue.popleft()]:
            if v not in seen:
                seen.add(v)
                queue.append(v)
                if not any(q in centres for q, _ in _ball(graph, v, stride - 1)):
                    centres.add(v)
    return sorted(centres)
