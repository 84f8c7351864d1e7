"""Work that kills its worker. It imports little, because every new worker imports it."""

import os
import signal
from pathlib import Path


def ends_suddenly(path: Path) -> str:
    """`once` kills its worker the first time, `always` every time, others answer."""
    if path.name == "always" or (path.name == "once" and not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name
