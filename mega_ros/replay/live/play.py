"""Plays a source to a node that is started for this purpose."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ...ros.environment import use_large_messages
from ..bags import Message
from ..recording import Recording
from ..sources import Source
from .node_process import NodeProcess, ProcessError
from .observer import Observer

READY_SECONDS = 120.0


def play(source: Source, bundle: str, seconds: float, log: Path, console: Console) -> tuple[Recording, bool]:
    """Play at most `seconds` of `source` to a node with `bundle`. The node's output goes to the file `log`.

    Returns the recording, and whether the user stopped early (Ctrl-C). Raises ProcessError if the node fails.
    """
    _use_own_domain()
    recording, interrupted = Recording(), False
    node = NodeProcess(bundle, log)
    try:
        observer = Observer(recording)
        try:
            with console.status("starting the node"):
                _wait(observer.ready, READY_SECONDS, node)
            if not observer.ready():
                raise ProcessError(f"the node was not ready after {READY_SECONDS:.0f} s: {node.last_words()}")
            try:
                with console.status(f"playing {source.name}" + (", Ctrl-C ends it" if source.live else "")):
                    observer.player.play(_at_most(source.messages, seconds), recording.sending)
                    # wait for the last frame; dropped ones never arrive
                    _wait(lambda: max(recording.sent, default=0) in recording.arrived, 5.0, node)
            except KeyboardInterrupt:
                if not recording.sent:
                    raise
                interrupted = True
        finally:
            with _undisturbed():
                observer.close()
    finally:
        with _undisturbed():
            code = node.stop()
    if code:
        raise ProcessError(f"the node ended with code {code}: {node.last_words()} (all of it: {log})")
    return recording, interrupted


def _use_own_domain() -> None:
    """Use a random ROS domain on this machine only, so that other robots neither receive nor send messages."""
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 101))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    use_large_messages()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while the node is stopped."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(condition: Callable[[], bool], seconds: float, node: NodeProcess) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        node.check()
        time.sleep(0.02)


def _at_most(messages: Iterator[Message], seconds: float) -> Iterator[Message]:
    first: int | None = None
    for message in messages:
        first = message.time if first is None else first
        if message.time - first > seconds * 1e9:
            return
        yield message
