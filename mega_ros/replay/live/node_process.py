"""The node in a separate process."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from mega_model.core.errors import InputError

from ...ros.signals import end_with_parent


class ProcessError(InputError):
    """The node ended unexpectedly. The message has one line."""


class NodeProcess:
    """A running node, whose output goes to a file."""

    def __init__(self, remap: Mapping[str, str], parameters: Mapping[str, object], log: Path) -> None:
        command = [sys.executable, "-m", "mega_ros.node", "--ros-args"]
        command += itertools.chain(*(["-r", f"{a}:={b}"] for a, b in remap.items()))
        command += itertools.chain(*(["-p", f"{a}:={b}"] for a, b in parameters.items()))
        self.log = log
        with log.open("w") as output:
            # a new session, so that Ctrl-C reaches only this process, which then stops the node
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, preexec_fn=end_with_parent()
            )

    def check(self) -> None:
        """Raises ProcessError if the node has ended."""
        if self._process.poll() is not None:
            raise ProcessError(f"the node ended with code {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of the node's output."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def use(self) -> tuple[float, int]:
        """Seconds of CPU that the node has taken until now, and bytes of memory that it has. Raises ProcessError."""
        self.check()
        process = psutil.Process(self._process.pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss

    def stop(self) -> int:
        """Stop the node. Returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
