"""Worker processes, which take jobs from the process that started them."""

from __future__ import annotations

import multiprocessing
import os
from threading import Thread


def watch_parent() -> None:
    """In a worker: end with its parent, however that ends. Otherwise it would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()
