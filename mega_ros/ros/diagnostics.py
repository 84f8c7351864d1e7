"""The node's status on /diagnostics."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

WINDOW = 10.0
"""Seconds over which rate and latency are computed."""
RECENT = 5.0
"""Seconds for which a problem is reported, and between two log lines about the same problem."""


class Health:
    """Frame statistics, for use by several threads."""

    def __init__(self, facts: dict[str, str]) -> None:
        """facts: values that do not change while the node runs."""
        self._facts = facts
        self._lock = threading.Lock()
        self._done: deque[tuple[float, float]] = deque()  # when, latency: seconds
        self._problems: dict[str, float] = {}  # text -> when it was logged last
        self._first = 0.0  # when the first frame arrived
        self._last = 0.0
        self._received = self._processed = self._rejected = self._people = 0
        self._bad_input = ""
        self._bad_input_at = -np.inf
        self.assumed = ""
        """Why the intrinsics are assumed; empty if they come from camera_info."""

    def received(self) -> None:
        with self._lock:
            self._last = time.monotonic()
            self._first = self._first or self._last
            self._received += 1

    def processed(self, latency: float, people: int) -> None:
        """latency: seconds from arrival to publication."""
        with self._lock:
            self._done.append((time.monotonic(), latency))
            self._processed += 1
            self._people = people

    def rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    def problem(self, topic: str, reason: str) -> bool:
        """Record a bad input. Returns whether to log it now."""
        with self._lock:
            now = time.monotonic()
            self._bad_input, self._bad_input_at = f"{topic}: {reason}", now
            self._problems = {text: at for text, at in self._problems.items() if now - at < RECENT}
            return self._problems.setdefault(self._bad_input, now) == now

    def silence(self) -> float:
        """Seconds since the last image, infinite before the first."""
        return time.monotonic() - self._last if self._first else np.inf

    def status(self, name: str, dropped: int, silence: str) -> DiagnosticStatus:
        """name: the node's. dropped: number of dropped frames. silence: why no images arrive, or empty."""
        with self._lock:
            now = time.monotonic()
            while self._done and now - self._done[0][0] > WINDOW:
                self._done.popleft()
            latencies = [latency for _, latency in self._done]
            p50, p95 = np.percentile(latencies, [50, 95]) if latencies else (np.nan, np.nan)
            rate = len(latencies) / min(max(now - self._first, 1.0), WINDOW)
            assumed = f"intrinsics are assumed: {self.assumed}" if self.assumed else ""
            recent = self._bad_input if now - self._bad_input_at < RECENT else ""
            warnings = [text for text in (recent, silence, assumed) if text]
            values = {
                "rate_hz": f"{rate:.2f}",
                "latency_p50_s": f"{p50:.4f}",
                "latency_p95_s": f"{p95:.4f}",
                "frames_received": str(self._received),
                "frames_processed": str(self._processed),
                "frames_dropped": str(dropped),
                "frames_rejected": str(self._rejected),
                "people": str(self._people),
                "intrinsics": f"assumed: {self.assumed}" if self.assumed else "camera_info",
                "last_bad_input": self._bad_input or "none",
                **self._facts,
            }
        return DiagnosticStatus(
            level=DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK,
            name=name,
            message="; ".join(warnings) or f"{rate:.1f} frames per second",
            hardware_id=name,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
