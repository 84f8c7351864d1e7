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
    film = Film(out / OVERLAY, topology, sheets.nice_limit([cloud["sigma"] for cloud in recording.clouds.values()]))
    shown = None
    for stamp in track(stamps, "drawing", console=console, transient=True):
        shown = stamp if stamp in recording.clouds else shown
        film.add(stamp, _frame(recording, stamp, shown))
    film.close()
    populated = [s for s in stamps if len(recording.clouds.get(s, ()))]
    if populated:
        chosen = [populated[round(k)] for k in np.linspace(0, len(populated) - 1, SHEET_ROWS + 2)[1:-1]]
        sheet = sheets.contact_sheet([_frame(recording, s, s) for s in dict.fromkeys(chosen)], topology.faces)
        (out / CONTACT_SHEET).write_bytes(cv2.imencode(".png", sheet)[1].tobytes())


class Film:
    """A video of frames that are added with their stamps: a VP8 file, which browsers can play and every build of OpenCV
    can write.

    The time between the first two frames gives the video's rate. Each frame is shown until the next one, at most for
    `LONGEST`: it is repeated, or left out, so that times are kept. The size is that of the first frame: others are
    fitted into it.
    """

    def __init__(self, path: Path, topology: Topology, limit: float | None = None) -> None:
        """limit: upper end of sigma's scale, metres; None: by the first frame with people."""
        self._path, self._topology, self._limit = path, topology, limit
        self._writer = cv2.VideoWriter()
        self._waiting: tuple[int, sheets.PageFrame] | None = None
        self._rate = 0.0
        self._size: tuple[int, int] | None = None
        self._seconds, self._written = 0.0, 0

    def add(self, stamp: int, frame: sheets.PageFrame) -> None:
        """stamp: nanoseconds."""
        if self._waiting is not None:
            seconds = (stamp - self._waiting[0]) / 1e9
            if seconds > 0 and not self._rate:
                self._rate = float(np.clip(1 / seconds, 1, 60))
            self._show(self._waiting[1], seconds)
        self._waiting = stamp, frame

    def close(self) -> None:
        """Completes the file. The last frame is shown for one period."""
        if self._waiting is not None:
            self._rate = self._rate or 1.0
            self._show(self._waiting[1], -1.0)
        self._writer.release()

    def _show(self, frame: sheets.PageFrame, seconds: float) -> None:
        """seconds: until the next frame. Negative, as where a recording starts again: for one period."""
        if seconds < 0 and self._rate:
            seconds = 1 / self._rate
        self._seconds += float(np.clip(seconds, 0, LONGEST))
        count = round(self._seconds * self._rate) - self._written
        if not count:
            return
        if self._limit is None and len(frame.sigma):
            self._limit = sheets.nice_limit([frame.sigma])
        drawn = sheets.video_frame(frame, self._topology.faces, self._limit or 0.1)
        self._size = self._size or (drawn.shape[1], drawn.shape[0])
        if drawn.shape[1::-1] != self._size:
            drawn, _ = sheets.fit(drawn, self._size)
        if not self._writer.isOpened():
            with without_stderr():  # OpenCV's warning about the tag of VP8 in WebM is harmless
                self._writer.open(str(self._path), cv2.VideoWriter.fourcc(*"VP80"), self._rate, self._size)
        for _ in range(count):
            self._writer.write(drawn)
        self._written += count


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
