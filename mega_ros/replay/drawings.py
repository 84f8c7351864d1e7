"""Draws people over their images: videos, and the contact sheet of a demo's recording."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from mega_model.core.images import without_stderr
from mega_model.core.topology import Topology

from ..ros.read import positions
from . import sheets
from .recording import Recording

OVERLAY, CONTACT_SHEET = "overlay.webm", "contact_sheet.png"
SHEET_ROWS = 4
LONGEST = 5.0
"""Seconds: a frame is not shown for longer, however late the next one is."""


def write_drawings(recording: Recording, topology: Topology, out: Path, console: Console) -> None:
    """Write the overlay video and, if there are people, the contact sheet."""
    stamps = sorted(recording.sent)
    limit = sheets.nice_limit([cloud["sigma"] for cloud in recording.clouds.values()])
    seconds = (stamps[-1] - stamps[0]) / 1e9
    rate = (len(stamps) - 1) / seconds if seconds else 1.0
    writer, shown = cv2.VideoWriter(), None
    for stamp in track(stamps, "drawing", console=console, transient=True):
        shown = stamp if stamp in recording.clouds else shown
        drawn = sheets.video_frame(_frame(recording, stamp, shown), topology.faces, limit)
        _write(writer, out / OVERLAY, rate, drawn)
    writer.release()
    populated = [s for s in stamps if len(recording.clouds.get(s, ()))]
    if populated:
        chosen = [populated[round(k)] for k in np.linspace(0, len(populated) - 1, SHEET_ROWS + 2)[1:-1]]
        sheet = sheets.contact_sheet([_frame(recording, s, s) for s in dict.fromkeys(chosen)], topology.faces)
        (out / CONTACT_SHEET).write_bytes(cv2.imencode(".png", sheet)[1].tobytes())


class Film:
    """A video of a replay, of frames that are added with their stamps.

    The time between the first two frames gives the video's rate; a later frame that stays longer is repeated, so that
    times are kept. The scale of sigma is that of the first frame with people, the size that of the first frame: others
    are fitted into it.
    """

    def __init__(self, path: Path, topology: Topology) -> None:
        self._path, self._topology = path, topology
        self._writer = cv2.VideoWriter()
        self._waiting: tuple[int, sheets.PageFrame] | None = None
        self._limit = 0.0
        self._rate = 0.0
        self._size: tuple[int, int] | None = None

    def add(self, stamp: int, frame: sheets.PageFrame) -> None:
        """stamp: nanoseconds, not before that of the last frame."""
        if self._waiting is not None:
            self._show(self._waiting[1], (stamp - self._waiting[0]) / 1e9)
        self._waiting = stamp, frame

    def close(self) -> None:
        if self._waiting is not None:
            self._show(self._waiting[1], 0.0)
        self._writer.release()

    def _show(self, frame: sheets.PageFrame, seconds: float) -> None:
        if not self._limit and len(frame.sigma):
            self._limit = sheets.nice_limit([frame.sigma])
        drawn = sheets.video_frame(frame, self._topology.faces, self._limit or 0.1)
        size = drawn.shape[1], drawn.shape[0]
        self._size = self._size or size
        if size != self._size:
            drawn, _ = sheets.fit(drawn, self._size)
        if not self._rate:
            self._rate = float(np.clip(1 / seconds, 1, 60)) if seconds else 1.0
        for _ in range(max(1, round(min(seconds, LONGEST) * self._rate))):
            _write(self._writer, self._path, self._rate, drawn)


def _write(writer: cv2.VideoWriter, path: Path, rate: float, image: np.ndarray) -> None:
    """Add an image to a video. The first one makes it: a VP8 file, which browsers can play and every build of OpenCV
    can write."""
    if not writer.isOpened():
        with without_stderr():  # OpenCV's warning about the tag of VP8 in WebM is harmless
            writer.open(str(path), cv2.VideoWriter.fourcc(*"VP80"), rate, image.shape[1::-1])
    writer.write(image)


def _frame(recording: Recording, stamp: int, shown: int | None) -> sheets.PageFrame:
    """The image at `stamp` with the people of the frame `shown`, which is an earlier one if this frame was dropped."""
    begin = min(recording.sent)
    caption = f"{(stamp - begin) / 1e9:.2f} s"
    image, camera = recording.image(stamp), recording.camera(stamp)
    if shown is None:
        return sheets.PageFrame(
            image, camera, np.zeros((0, 0, 3)), np.zeros((0, 0)), np.zeros(0), f"{caption}, no mesh yet"
        )
    if shown != stamp:
        caption += f", dropped: mesh of {(shown - begin) / 1e9:.2f} s"
    cloud = recording.clouds[shown]
    return sheets.PageFrame(image, camera, positions(cloud), cloud["sigma"], cloud["id"][:, 0], caption)
