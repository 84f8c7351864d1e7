#!/usr/bin/env python
"""HOTA and IDF1 of a replay, by TrackEval: scripts/hota.py BAG REPLAY, its ground truth and the folder of its replay.

Of boxes around projected meshes, as in the MOT challenge. People who are hardly visible count on neither side, as in
`mega replay`. Needs `pip install --no-deps trackeval` in an environment of its own: its requirements bring a second
OpenCV.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from trackeval.metrics import CLEAR, HOTA, Identity

from mega_model.core.topology import Topology
from mega_ros.bundle import DEFAULT
from mega_ros.replay.frames import Recorded
from mega_ros.replay.reference import Truth, open_reference
from mega_ros.replay.score import MINIMUM_OVERLAP, MINIMUM_VISIBLE, match, overlaps


def frames(bag: Path, replay: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each frame with ground truth: true ids [T], found ids [P] and overlaps [T, P]."""
    topology = Topology.load(DEFAULT / "topology.npz")
    reference, result = open_reference(None, bag, topology), []
    if reference is None:
        sys.exit(f"{bag} has no ground truth")
    with np.load(replay / "meshes.npz") as found:
        which, ids, vertices = (found[name] for name in ("frame", "ids", "vertices"))
    for number, (frame, truth) in enumerate(reference.matched(Recorded(bag).frames())):
        here = which == number
        if truth is None:
            continue
        assert isinstance(truth, Truth) and frame.camera is not None  # of a bag with `/mega/ground_truth`
        assert truth.vertices is not None and truth.visible is not None and truth.ids is not None
        wanted = truth.visible.mean(axis=1) >= MINIMUM_VISIBLE
        overlap = overlaps(vertices[here], truth.vertices, frame.camera)
        spare = {person for person, true in match(overlap) if not wanted[true]}
        kept = [person for person in range(here.sum()) if person not in spare]
        result.append((truth.ids[wanted], ids[here][kept], overlap[kept][:, wanted].T))
    return result


def numbered(ids: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The same ids from 0 on, as TrackEval wants them, and how many there are."""
    known = np.unique(np.concatenate(ids))
    return [np.searchsorted(known, here) for here in ids], len(known)


def main(bag: str, replay: str) -> None:
    true, found, similarity = map(list, zip(*frames(Path(bag), Path(replay))))
    data: dict[str, Any] = {"num_timesteps": len(true), "similarity_scores": similarity}
    for name, given in (("gt", true), ("tracker", found)):
        ids, count = numbered(given)
        data |= {f"{name}_ids": ids, f"num_{name}_ids": count, f"num_{name}_dets": sum(map(len, ids))}
    hota = HOTA().eval_sequence(data)
    print(", ".join(f"{name} {hota[name].mean():.1%}" for name in ("HOTA", "DetA", "AssA")))
    for overlap in (MINIMUM_OVERLAP, 0.5):
        settings = {"THRESHOLD": overlap, "PRINT_CONFIG": False}
        out = Identity(settings).eval_sequence(data) | CLEAR(settings).eval_sequence(data)
        print(f"overlap {overlap}:", f"IDF1 {out['IDF1']:.1%}, id switches {out['IDSW']}, MOTA {out['MOTA']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
