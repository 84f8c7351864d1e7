"""`mega node`, `python -m mega_ros.node` and `ros2 run mega_ros node`: the node, which is in mega_ros.ros.node.

That module is imported lazily, because it needs rclpy.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from .ros.signals import that_end


def end_by_signals() -> None:
    """From here on, a signal ends the process with code 0, until the node is imported and has its own handlers."""
    for number in that_end():
        signal.signal(number, lambda *_: os._exit(0))


def main(args: Sequence[str]) -> int:
    """Runs the node. A signal ends it with exit code 0, even while its modules are still being imported."""
    end_by_signals()
    return import_module("mega_ros.ros.node").main(args)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module 'mega_ros.node' has no attribute '{name}'")
    return getattr(import_module("mega_ros.ros.node"), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
