"""`mega`: the command with the verbs of mega_ros, of mega_model and of a checkout."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from mega_model.core import verbs
from mega_model.core.commands import run

OF_RUNTIME = {
    "node": ("mega_ros.node:main", "the ROS 2 node: camera images in, meshes out"),
    "demo": ("mega_ros.replay.demo:main", "play a clip, image, video or camera to the node and report the result"),
    "replay": (
        "mega_ros.replay.command:main",
        "run bags, videos and images through the model and score them, without ROS",
    ),
    "replay compare": ("mega_ros.replay.compare:main", "compare two reports; exit code 1 on a regression"),
    "evaluate keypoints": ("mega_ros.replay.keypoints:main", "evaluate a bundle on annotated photographs"),
}
OF_CHECKOUT = {
    "export onnx": ("export.to_onnx:main", "a checkpoint to a bundle for the node"),
    "export check": ("export.check:main", "compare a bundle's outputs with torch's"),
    "clip": ("export.clip:main", "render the demo's clip"),
}
"""These need a checkout: the folder export/ is not installed."""
VERBS = {**OF_RUNTIME, **verbs.VERBS, **OF_CHECKOUT}


def main(args: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be UTF-8
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    return run(VERBS, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
