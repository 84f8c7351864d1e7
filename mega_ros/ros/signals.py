"""Signals of the node's process: they end it with code 0, and at once while it loads a model.

Python runs a handler in the main thread only, after the library call that it is in; loading a model may take minutes
there. So a thread learns of the signals from the file descriptor that Python's own C handler writes to.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def that_end() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and the SIGHUP of a terminal that closes, unless that is ignored, as under nohup."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def end_with_parent() -> Callable[[], None]:
    """The `preexec_fn` of a new process: the system ends it by SIGTERM when this one ends, also when that is killed.

    Start it from the main thread: the system waits for the end of the thread that starts it.
    """
    parent = os.getpid()

    def follow() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before
            os._exit(128 + signal.SIGTERM)

    return follow


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that what was begun is ended. For the main thread, of other processes than
    the node's."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Ending:
    """Whether a signal has asked the process to end. For the main thread."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.wake: Callable[[], None] = lambda: None
        """Called when the process is asked to end, from another thread: lets the main thread check `asked`."""
        self._leave: Callable[[], None] | None = None
        written, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._numbers = that_end()
        for number in self._numbers:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=[written], name="signals", daemon=True).start()

    @contextmanager
    def at_once(self, leave: Callable[[], None]) -> Iterator[None]:
        """Inside, a signal ends the process without waiting for the main thread, after a call of `leave`.

        So does one that came before. It may be used inside itself.
        """
        before, self._leave = self._leave, leave
        try:
            if self.asked.is_set():
                self._end()
            yield
        finally:
            self._leave = before

    def ignore_more(self) -> None:
        """Call it last: while Python ends, it has no handlers, and a second signal would end the process by itself."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _watch(self, written: int) -> None:
        while os.read(written, 1)[0] not in self._numbers:
            pass
        self.asked.set()
        self.wake()
        self._end()

    def _end(self) -> None:
        if leave := self._leave:
            leave()
            os._exit(0)
