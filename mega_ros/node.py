"""`python -m mega_ros.node` and `from mega_ros.node import main`: the node, which is in mega_ros.ros.node.

That module is imported lazily, because it needs rclpy.
"""

import sys
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module 'mega_ros.node' has no attribute '{name}'")
    return getattr(import_module("mega_ros.ros.node"), name)


if __name__ == "__main__":
    sys.exit(import_module("mega_ros.ros.node").main(sys.argv[1:]))
