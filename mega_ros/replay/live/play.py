"""Plays a source to a node that is started for this purpose."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from mega_model.core.errors import InputError

from ...ros.dds import stay_on_this_machine, use_large_messages
from ...ros.process import NodeProcess
from ...ros.signals import ended_as_by_ctrl_c
from ..bags import Message
from ..progress import progress
from ..recording import Recording
from ..sources import Source
from .observer import Observer

READY_SECONDS = 120.0
DONE_SECONDS = 60.0
"""The node's time for the last images."""


def play(
    source: Source,
    parameters: Mapping[str, object],
    log: Path,
    console: Console,
    *,
    seconds: float = float("inf"),
    rate: float = 1.0,
    domain: int | None = None,
    keep_images: bool = False,
) -> tuple[Recording, bool]:
    """Play at most `seconds` of `source` to a node, `rate` times as fast as it was recorded.

    parameters: of the node. Its output goes to the file `log`. domain: the ROS domain, where others can watch; None: a
    random one on this machine only, so that other robots neither receive nor send messages.
    Returns the recording, and whether the user stopped early (Ctrl-C, SIGTERM). Raises InputError if the node fails.
    """
    _use_domain(domain)
    recording, interrupted = Recording(rate, keep_images), False
    remap = {"image": source.image} | ({"camera_info": source.info} if source.info else {})
    with ended_as_by_ctrl_c(), progress(console) as bar:
        node = NodeProcess({"use_sim_time": True, **parameters}, remap, log)
        try:
            observer = Observer(recording, source.topics)
            try:
                task = bar.add_task("starting the node", total=None)
                _wait(observer.ready, READY_SECONDS, node)
                if not observer.ready():
                    raise InputError(f"the node was not ready after {READY_SECONDS:.0f} s: {node.last_words()}")
                bar.remove_task(task)
                try:
                    _play(observer, source, recording, node, bar, seconds)
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
        raise InputError(f"the node ended with code {code}: {node.last_words()} (all of it: {log})")
    return recording, interrupted


def _play(
    observer: Observer, source: Source, recording: Recording, node: NodeProcess, bar: Progress, seconds: float
) -> None:
    task = bar.add_task(f"playing {source.name}" + (", Ctrl-C ends it" if source.live else ""), total=source.count)

    def sending(message: Message) -> None:
        recording.sending(message)
        bar.update(task, completed=len(recording.sent))

    if source.camera_info:  # the node should know the camera when the first image comes
        observer.player.send_first(source.camera_info)
    cpu, _ = node.use()
    start = time.monotonic()
    try:
        observer.player.play(_at_most(source.messages, seconds), sending, recording.rate)
        bar.update(task, description="waiting for the node's last answers")
        _wait(observer.finished, DONE_SECONDS, node)
    finally:
        used, recording.memory = node.use()
        recording.cpu = (used - cpu) / (time.monotonic() - start)


def _use_domain(domain: int | None) -> None:
    if domain is None:
        domain = random.randint(1, 101)
        stay_on_this_machine()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
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
