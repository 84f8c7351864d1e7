"""Work for tests of workers. It imports little, because every new worker imports it."""

import os
import signal
import time
from pathlib import Path


def ends_suddenly(path: Path) -> str:
    """`once` kills its worker the first time, `always` every time, others answer."""
    if path.name == "always" or (path.name == "once" and not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def machine_of_ray(seconds: float) -> str:
    """The id of the machine on which this ran, and that for so long."""
    import ray

    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()
