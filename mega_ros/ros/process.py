"""The node in a process of its own, which ends when this one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import psutil

from mega_model.core.errors import InputError

from .signals import end_with_parent


class NodeProcess:
    """A running node. Start it from the main thread, see `end_with_parent`."""

    def __init__(
        self, parameters: Mapping[str, object], remap: Mapping[str, str] | None = None, log: Path | None = None
    ) -> None:
        """remap: names of topics -> new ones. log: the file for its output; None: this terminal, and errors only."""
        command = [sys.executable, "-m", "mega_ros.node", "--ros-args"]
        if not log:
            command += ["--log-level", "error"]
        # JSON is YAML, in which a text of digits would be a number
        values = {name: json.dumps(value, default=str) for name, value in parameters.items()}
        for flag, pairs in (("-r", remap or {}), ("-p", values)):
            command += [word for name, value in pairs.items() for word in (flag, f"{name}:={value}")]
        self._log = log
        with log.open("w") if log else nullcontext() as output:
            # a new session, so that Ctrl-C reaches only this process, which then stops the node
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, preexec_fn=end_with_parent()
            )

    def check(self) -> None:
        """Raises InputError, with one line, if the node has ended."""
        if self._process.poll() is not None:
            raise InputError(f"the node ended with code {self._process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of the node's output."""
        if not self._log:
            return "what it printed is above"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def use(self) -> tuple[float, int]:
        """Seconds of CPU that the node has taken until now, and bytes of memory that it has. Raises InputError."""
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
