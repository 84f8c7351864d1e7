"""The thread that recovers the people in the images of all cameras.

The executor's thread receives messages; this one does the work and publishes, so that camera_info and diagnostics do
not wait for it. One worker, because the model uses all cores by itself.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol


class ImageProcessor(Protocol):
    def recover(self, work: Any, arrived: float) -> None:
        """Process what was put. arrived: when it came, time.monotonic. Must not raise."""


class Worker:
    """Each camera has a queue of length one, for its newest image. Cameras take turns: of those that have an image, the
    one whose last turn is the longest ago is next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: dict[ImageProcessor, tuple[Any, float]] = {}
        self._turns: dict[ImageProcessor, int] = {}  # camera -> number of its last turn
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="recovery")
        self._thread.start()

    def put(self, camera: ImageProcessor, work: Any) -> bool:
        """The camera's next work, an image. Returns whether it replaces one that was not taken."""
        with self._changed:
            replaces = camera in self._newest
            self._newest[camera] = work, time.monotonic()
            self._changed.notify()
            return replaces

    def close(self) -> None:
        """Waits for the image that is being processed; others are left."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            camera, work, arrived = taken
            camera.recover(work, arrived)

    def _take(self) -> tuple[ImageProcessor, Any, float] | None:
        """Waits for an image; None once the worker is closed."""
        with self._changed:
            while not self._newest and not self._closed:
                self._changed.wait(1.0)
                # Python waits for this thread when a program ends without `close`, by an exception
                self._closed |= not threading.main_thread().is_alive()
            if self._closed:
                return None
            camera = min(self._newest, key=lambda camera: self._turns.get(camera, -1))
            self._turns[camera] = max(self._turns.values(), default=0) + 1
            return camera, *self._newest.pop(camera)
