"""The pooling hierarchy: properties of every level, and equality with published tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mega_model.core import hierarchy


def icosphere(rounds: int) -> tuple[np.ndarray, int]:
    """Faces and vertex count of a subdivided octahedron."""
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    count = 6
    for _ in range(rounds):
        middle: dict[tuple[int, int], int] = {}
        finer = []
        for a, b, c in faces:
            ab, bc, ca = (middle.setdefault((min(e), max(e)), count + len(middle)) for e in ((a, b), (b, c), (c, a)))
            finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces, count = finer, count + len(middle)
    return np.array(faces), count


def test_stride_one_is_the_neighbourhood() -> None:
    faces, count = icosphere(1)
    (level,) = hierarchy.build(faces, count, [1])
    assert (level.centres == np.arange(count)).all()
    edges = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, 1))}
    neighbours = {v: {b for a, b in edges | {(q, p) for p, q in edges} if a == v} | {v} for v in range(count)}
    for v in range(count):
        row = level.pool.index[v, : level.pool.count[v]]
        assert row[0] == v and set(row.tolist()) == neighbours[v]


@pytest.mark.parametrize("seeds", [(), (3, 40)])
def test_levels_cover_and_separate(seeds: tuple[int, ...]) -> None:
    faces, count = icosphere(3)
    fine, coarse = hierarchy.build(faces, count, [2, 2], seeds)
    assert count > len(fine.centres) > len(coarse.centres) > 1
    assert set(seeds) <= set(fine.centres.tolist())
    for level in (fine, coarse):
        assert (level.unpool.count > 0).all(), "every vertex has a centre"
        assert level.pool.index[level.pool.hops < 0].min(initial=level.pool.inputs) == level.pool.inputs
        pairs = {(r, int(v)) for r, row in enumerate(level.pool.index) for v in row[: level.pool.count[r]]}
        back = {(int(c), v) for v, row in enumerate(level.unpool.index) for c in row[: level.unpool.count[v]]}
        assert pairs == back, "unpooling is the transpose of pooling"
        near = {(c, v) for c, row in enumerate(level.pool.index) for v, h in zip(row, level.pool.hops[c]) if h == 1}
        centres = set(level.centres.tolist())
        assert not any(int(v) in centres for _, v in near), "no two centres are neighbours"


def test_default_topology_tables(shared: Path) -> None:
    data = np.load(shared / "data" / "anny10pc_54tokens.npz")
    levels = hierarchy.build(data["faces"], len(data["vertices"]), [1, 2, 1, 2, 1], data["seeds"].tolist())
    assert [len(level.centres) for level in levels] == [1229, 320, 320, 54, 54]
    for i, level in enumerate(levels):
        for kind in ("pool", "unpool"):
            table = getattr(level, kind)
            assert (table.index == data[f"{kind}{i}_index"]).all()
            assert (table.hops == data[f"{kind}{i}_hop"]).all()
            assert (table.count == data[f"{kind}{i}_count"]).all()
