"""Draws a recording: a video of all images, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mega_model.core.images import without_stderr
from mega_model.core.topology import Topology

from ..ros.read import positions
from . import pages
from .recording import Recording

SHEET_ROWS = 4


def write_drawings(recording: Recording, topology: Topology, out: Path, console: Console) -> list[Path]:
    """Write the overlay video and, if there are people, the contact sheet."""
    stamps = sorted(recording.sent)
    limit = pages.nice_limit([cloud["sigma"] for cloud in recording.clouds.values()])
    seconds = (stamps[-1] - stamps[0]) / 1e9
    written = [out / "overlay.webm"]
    shown = None
    with _video(written[0], (len(stamps) - 1) / seconds if seconds else 1.0) as write:
        for stamp in track(stamps, "drawing", console=console, transient=True):
            shown = stamp if stamp in recording.clouds else shown
            write(pages.video_frame(_frame(recording, stamp, shown), topology.faces, limit))
    populated = [s for s in stamps if len(recording.clouds.get(s, ()))]
    if populated:
        chosen = [populated[round(k)] for k in np.linspace(0, len(populated) - 1, SHEET_ROWS + 2)[1:-1]]
        sheet = pages.contact_sheet([_frame(recording, s, s) for s in dict.fromkeys(chosen)], topology.faces)
        written.append(out / "contact_sheet.png")
        cv2.imwrite(str(written[1]), sheet)
    return written


@contextmanager
def _video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A VP8 file, which browsers can play and every build of OpenCV can write. Yields a function that adds an image."""
    writer = cv2.VideoWriter()

    def write(image: np.ndarray) -> None:
        if not writer.isOpened():
            with without_stderr():  # OpenCV's warning about the tag of VP8 in WebM is harmless
                writer.open(str(path), cv2.VideoWriter.fourcc(*"VP80"), rate, image.shape[1::-1])
        writer.write(image)

    try:
        yield write
    finally:
        writer.release()


def _frame(recording: Recording, stamp: int, shown: int | None) -> pages.PageFrame:
    """The image at `stamp` with the people of the frame `shown`, which is an earlier one if this frame was dropped."""
    begin = min(recording.sent)
    caption = f"{(stamp - begin) / 1e9:.2f} s"
    image, intrinsics = recording.image(stamp), recording.intrinsics(stamp)
    if shown is None:
        return pages.PageFrame(
            image, intrinsics, np.zeros((0, 0, 3)), np.zeros((0, 0)), np.zeros(0), f"{caption}, no mesh yet"
        )
    if shown != stamp:
        caption += f", dropped: mesh of {(shown - begin) / 1e9:.2f} s"
    cloud = recording.clouds[shown]
    return pages.PageFrame(image, intrinsics, positions(cloud), cloud["sigma"], cloud["id"][:, 0], caption)
