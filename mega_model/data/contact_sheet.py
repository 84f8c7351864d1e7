"""`python -m mega_model.data.contact_sheet` draws a contact sheet of rendered sets: one row of test images per part."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tyro

from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.data.meshes import BodySampler
from mega_model.data.scenes import PARTS, Renderer, draw_crops

COLUMNS, SIDE = 12, 320


def main(
    out: Path = Path("docs/images/synthetic_data.jpg"),
    topology: Path = Path("mega_ros/models/default/topology.npz"),
    seed: int = 0,
) -> None:
    """Write the contact sheet to `out`: people of held-out clips; equal seeds give equal sheets."""
    renderer = Renderer(Topology.load(topology), SIDE, SIDE)
    crops = draw_crops(
        np.random.default_rng(seed), BodySampler("test"), renderer, COLUMNS * len(PARTS), [1] * len(PARTS)
    )
    rows = []
    for kind, part in enumerate(PARTS):
        row = np.concatenate(list(crops.images[crops.kind == kind]), axis=1)
        row = cv2.resize(row, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.putText(row, part, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
        rows.append(cv2.putText(row, part, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA))
    sheet = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(out), sheet, [cv2.IMWRITE_JPEG_QUALITY, 80]):
        raise InputError(f"{out}: cannot be written; its folder must exist")


if __name__ == "__main__":
    tyro.cli(main)
