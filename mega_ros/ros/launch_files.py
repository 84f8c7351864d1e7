"""What the launch files share. `ros2` reads them in the system's Python, so this needs `launch` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def ending(name: str) -> Callable[[Any, Any], Any]:
    """The `on_exit` of a process that has this name in messages: the launch ends with it.

    An exception is what makes `ros2 launch` return 1; launch then stops the other processes.
    """

    def ended(event: Any, context: Any) -> Any:
        from launch.actions import Shutdown  # here, because nothing else needs it

        if event.returncode:
            raise RuntimeError(f"{name} ended with code {event.returncode}")
        return Shutdown(reason=f"{name} ended")

    return ended
