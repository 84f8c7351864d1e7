"""`mega`: the command with the verbs of mega_ros, of mega_model and of a checkout."""

from __future__ import annotations

import sys

from .node import end_by_signals

if sys.argv[1:2] == ["node"]:  # before the other imports, which take a third of a second
    end_by_signals()

import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mega_model.core import verbs
from mega_model.core.commands import Verb, run

OF_RUNTIME = {
    "node": Verb("mega_ros.node:main", "the ROS 2 node: camera images in, meshes out"),
    "view": Verb("mega_ros.viewer:main", "a live 3D page in the browser: of a running node, or of a replay's meshes"),
    "bench node": Verb("mega_ros.ros.bench:main", "what the node costs beside the model, its rate and its latency"),
    "demo": Verb("mega_ros.replay.demo:main", "play a clip, image, video or camera to the node and report the result"),
    "replay": Verb(
        "mega_ros.replay.command:main", "run bags, videos and images through the model and score them, without ROS"
    ),
    "replay compare": Verb("mega_ros.replay.compare:main", "compare two reports; exit code 1 on a regression"),
    "evaluate keypoints": Verb("mega_ros.replay.keypoints:main", "evaluate a bundle on annotated photographs"),
}
OF_CHECKOUT = {
    "export onnx": Verb("export.to_onnx:main", "a checkpoint to a bundle for the node", "export.options:ExportConfig"),
    "export trt": Verb("export.to_trt:main", "a bundle's TensorRT engines, ahead of time", "export.options:TrtConfig"),
    "export check": Verb("export.check:main", "compare a bundle's outputs with torch's", "export.options:CheckConfig"),
    "bench": Verb("export.bench:main", "what a model costs, in torch and compiled", "export.options:BenchConfig"),
    "clip": Verb("export.clip:main", "render the demo's clip", "export.options:Clip"),
}
"""These need a checkout: the folder export/ is not installed."""
FIRST = {
    "mega demo": "see it work: a clip is played to the node, drawn and scored",
    "mega replay photo.jpg": "people in your own image, video or bag, as meshes in a file",
    "mega node": "the ROS 2 node: images of your camera in, meshes out",
    "mega train default": "train the model",
    "mega export onnx": "compile a trained model for the node",
}
"""What a newcomer needs."""
VERBS = {**OF_RUNTIME, **verbs.VERBS, **OF_CHECKOUT}


def main(args: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be UTF-8
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    words = sys.argv[1:] if args is None else args
    if [*words] == ["--version"]:
        print(f"mega_ros {version('mega_ros')}")
        return 0
    if not words:
        print("usage: mega <verb> [options]\n")
        for example, what in FIRST.items():
            print(f"  {example:<22} {what}")
        print("\nmega --help lists all verbs, mega <verb> --help shows a verb's options")
        return 0
    return run(VERBS, words)


if __name__ == "__main__":
    sys.exit(main())
