"""The node's status on /diagnostics."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from ..recovery import People
from .transport import Losses

WINDOW = 10.0
"""Seconds over which rate and latency are computed."""
RECENT = 5.0
"""Seconds for which a bad input is reported, and between two log lines about problems of one kind."""
SILENT = 1.0
"""Seconds without an image from which on a camera_info tells of a lost one."""
LOSSY = 0.05
"""Share of lost frames from which on it is reported as a problem."""
UNUSUAL = 2.0
"""`People.distance` from which on a person is unlike the training set, so that sigma cannot be trusted."""
TIMES = ("latency", "latency_from_stamp", "decode", "crop", "infer", "sampling", "publish")
"""What `Health.processed` is told about each frame, beside `infer_cpu`."""


def kind_of(problem: str) -> str:
    """A problem's text without its numbers and quoted names, which differ from frame to frame."""
    return re.sub(r"'[^']*'|[\d.]+", "*", problem)


class Health:
    """Frame statistics since the node was activated, for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: deque[tuple[float, dict[str, float]]] = deque()  # when, and what took how long: seconds
        self._problems: dict[str, float] = {}  # kind -> when one was logged last
        self._states: dict[str, str] = {}  # what concerns -> the state that was logged last, without its numbers
        self._losses = Losses()
        self._arrived: deque[tuple[float, int]] = deque()  # when, and how many were found missing: seconds
        self._lost = 0
        self._newest = 0  # stamp of the last image, or of the last camera_info that counted as one
        self._info = 0  # stamp of the last camera_info
        self._infos = Losses()
        self._activated = time.monotonic()
        self._first = 0.0  # when the first frame arrived
        self._last = 0.0
        self._received = self._processed = self._rejected = self._idle = self._tracks = 0
        self._infer_cpu = 0.0
        self._people: dict[str, str] = {}  # of the last frame: id -> description
        self._samples = "0"  # of each person in the last frame
        self._unlike = ""
        self._bad_input = ""
        self._bad_input_at = -np.inf
        self.assumed = ""
        """Why the intrinsics are assumed; empty if they come from camera_info."""

    def received(self, stamp: int) -> None:
        """stamp: the frame's, nanoseconds."""
        with self._lock:
            self._last = time.monotonic()
            self._first = self._first or self._last
            self._received += 1
            self._newest = stamp
            lost = self._losses.add(stamp)
            self._lost += lost
            self._arrived.append((self._last, lost))
            while self._last - self._arrived[0][0] > WINDOW:
                self._arrived.popleft()

    def received_info(self, stamp: int) -> None:
        """stamp: of a camera_info, nanoseconds. While no images come, it is a lost one's, if there was one per image.

        Not before the next one comes: the image may be under way.
        """
        with self._lock:
            before, self._info = self._info, stamp
            self._infos.add(stamp)
            one_each = 0.75 < self._infos.period / self._losses.period < 1.5  # NaN while one is not known
            if one_each and stamp > before > self._newest and time.monotonic() - self._last > SILENT:
                lost = 1 + self._losses.add(before)
                self._lost += lost
                self._arrived.append((time.monotonic(), lost))
                self._newest = before

    @property
    def period(self) -> float:
        """Seconds between two frames of the camera; NaN while it is not known."""
        return self._losses.period

    def losses(self) -> str:
        """How many frames of late never arrived, if they are many; else nothing."""
        with self._lock:
            lost = sum(lost for _, lost in self._arrived)
            sent = lost + len(self._arrived)
        return f"{lost} of the last {sent} frames never arrived" if lost > LOSSY * sent else ""

    def processed(self, people: People, times: dict[str, float], samples: np.ndarray) -> None:
        """times: name -> seconds. `latency` is the time from arrival to publication, `latency_from_stamp` includes what
        came before; the others are stages of it. `infer_cpu` is the CPU time of `infer`. samples: int [P], how many
        each person got.
        """
        described = {
            f"person_{person}": f"sigma {sigma:.3f} m, distance {distance:.2f}"
            for person, sigma, distance in zip(people.ids.tolist(), people.sigma.mean(axis=1), people.distance)
        }
        most = int(samples.max(initial=0))
        unlike = ", ".join(map(str, people.ids[people.distance > UNUSUAL].tolist()))
        with self._lock:
            self._done.append((time.monotonic(), times))
            self._processed += 1
            self._samples = " to ".join(map(str, sorted({samples.min(initial=most), most})))
            self._infer_cpu += times["infer_cpu"]
            self._people = described
            self._tracks = max([self._tracks, *(person + 1 for person in people.ids.tolist())])
            self._unlike = f"unlike the training set, so sigma may be too small: person {unlike}" if unlike else ""

    def rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    def idle(self) -> None:
        """A frame that was not processed because nobody subscribes to any output."""
        with self._lock:
            self._idle += 1

    def problem(self, topic: str, reason: str) -> bool:
        """Record a bad input. Returns whether to log it now."""
        with self._lock:
            self._bad_input, self._bad_input_at = f"{topic}: {reason}", time.monotonic()
        return self.is_due(self._bad_input)

    def is_due(self, problem: str) -> bool:
        """Whether it is time to log a problem (again): one of its kind was not logged a moment ago."""
        with self._lock:
            now = time.monotonic()
            self._problems = {kind: at for kind, at in self._problems.items() if now - at < RECENT}
            return self._problems.setdefault(kind_of(problem), now) == now

    def begins(self, what: str, state: str) -> bool:
        """Whether to log the state of something that may last now: it has begun, or is another one than before.

        what: only one thread may ask about it. state: empty if it is over. One that comes and goes is logged as often
        as other problems.
        """
        if (kind := re.sub(r"[\d.]+", "*", state)) == self._states.get(what, ""):
            return False
        if state and not self.is_due(state):
            return False
        self._states[what] = kind
        return bool(state)

    def silence(self) -> float:
        """Seconds since the last image, or since the activation before the first."""
        return time.monotonic() - (self._last or self._activated)

    def status(
        self, name: str, dropped: int, silence: str, warnings: Sequence[str], facts: dict[str, str]
    ) -> DiagnosticStatus:
        """The node's state now, for /diagnostics.

        name: the node's. dropped: number of dropped frames. silence: why no images arrive, or empty; it is an error
        once some have arrived. warnings: other problems. facts: further values to report.
        """
        with self._lock:
            now = time.monotonic()
            while self._done and now - self._done[0][0] > WINDOW:
                self._done.popleft()
            rate = len(self._done) / min(max(now - self._first, 1.0), WINDOW)
            assumed = f"intrinsics are assumed: {self.assumed}" if self.assumed else ""
            recent = self._bad_input if now - self._bad_input_at < RECENT else ""
            texts = [text for text in (silence, recent, assumed, self._unlike, *warnings) if text]
            died = silence and self._first
            warning = DiagnosticStatus.WARN if texts else DiagnosticStatus.OK
            values = {
                "rate_hz": f"{rate:.2f}",
                **_medians([times for _, times in self._done]),
                "infer_cpu_s": f"{self._infer_cpu:.4f}",
                "frames_received": str(self._received),
                "frames_processed": str(self._processed),
                "frames_dropped": str(dropped),
                "frames_lost": str(self._lost),
                "camera_rate_hz": f"{1 / self._losses.period:.2f}",
                "frames_rejected": str(self._rejected),
                "frames_idle": str(self._idle),
                "people": str(len(self._people)),
                "tracks": str(self._tracks),
                **self._people,
                "samples": self._samples,
                "intrinsics": self._intrinsics(),
                "last_bad_input": self._bad_input or "none",
                **facts,
            }
        return DiagnosticStatus(
            level=DiagnosticStatus.ERROR if died else warning,
            name=name,
            message="; ".join(texts) or f"{rate:.1f} frames per second",
            hardware_id=name,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )

    def _intrinsics(self) -> str:
        if self.assumed:
            return f"assumed: {self.assumed}"
        return "camera_info" if self._processed else "no image has been processed"


def _medians(frames: Sequence[dict[str, float]]) -> dict[str, str]:
    """The times of several frames -> their medians, and the 95th percentiles of latencies; seconds."""
    seconds = [[times[name] for name in TIMES] for times in frames] or [[np.nan] * len(TIMES)]
    middle, most = np.percentile(seconds, (50, 95), axis=0)
    values = {f"{name}_p50_s": f"{median:.4f}" for name, median in zip(TIMES, middle)}
    return values | {f"{name}_p95_s": f"{late:.4f}" for name, late in zip(TIMES, most) if name.startswith("latency")}
