"""`mega`: one command, a verb for everything. A verb's module is imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from mega_model.core.errors import InputError

from .environment import use_large_messages

VERBS = {
    "node": ("mega_ros.node:main", "the ROS 2 node: camera images in, meshes out"),
    "demo": ("mega_ros.replay.demo:main", "play a bag, image, video or camera to the node and show what it finds"),
    "train tokenizer": ("mega_model.train.tokenizer:main", "stage 1: meshes to tokens and back"),
    "train pretrain": ("mega_model.train.pretrain:main", "stage 2: masked meshes, without images"),
    "train lift": ("mega_model.train.lift:main", "before stage 3: BlazePose's landmarks to latents"),
    "train recover": ("mega_model.train.recover:main", "stage 3: images to meshes"),
    "train errors": ("mega_model.train.errors:main", "after stage 3: how wrong each vertex is likely to be"),
    "train default": ("mega_model.train.default:main", "the default model from nothing, all stages"),
    "shards": ("mega_model.data.shards:main", "a data set as tar files, which may lie on a server"),
    "import-reference": ("mega_model.reference:main", "the authors' released checkpoints as a checkpoint of ours"),
    "import-backbone": ("mega_model.import_backbone:main", "BlazePose's published weights, to train from"),
    "import-detector": ("mega_model.import_detector:main", "MoveNet's published weights, to put into a bundle"),
    "evaluate deterministic": ("mega_model.evaluate.deterministic:main", "tables 1 and 3: one mesh per picture"),
    "evaluate stochastic": ("mega_model.evaluate.stochastic:main", "table 2: the best of Q meshes"),
    "evaluate mean": ("mega_model.evaluate.mean:main", "table 4: the mean of Q meshes"),
    "evaluate random": ("mega_model.evaluate.random:main", "random bodies: diversity and plausibility"),
    "evaluate uncertainty": ("mega_model.evaluate.uncertainty:main", "does sigma say how wrong each vertex is?"),
    "evaluate figures": ("mega_model.evaluate.figures:main", "figures 4 to 7 and 9"),
    "evaluate keypoints": ("mega_ros.replay.keypoints:main", "a bundle on your annotated photographs"),
    "evaluate": ("mega_model.evaluate.held_out:main", "score a trained model on held-out clips"),
    "bench": ("mega_model.evaluate.bench:main", "what generation costs, beside a straightforward loop"),
}
"""Verb -> "module:function", what it does. The function takes the arguments after the verb, returns the exit code."""

_EXTRAS = {
    "torch": "train",
    "lightning": "train",
    "anny": "train",
    "fsspec": "train",
    "matplotlib": "train",
    "yaml": "train",
    "safetensors": "train",
    "smplx": "smpl",
    "onnx": "import",
    "tflite": "import",
    "rclpy": "ros",
}
"""Package that may be absent -> the extra that brings it."""


def main(args: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if args is None else args)
    verb = next((v for v in VERBS if args[: len(v.split())] == v.split()), None)
    if verb is None:
        return _help(args)
    use_large_messages()
    sys.argv[0] = f"mega {verb}"  # what the verb's own help calls it
    module, function = VERBS[verb][0].split(":")
    try:
        return getattr(import_module(module), function)(args[len(verb.split()) :]) or 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        print(f"mega {verb}: {missing} is not installed: pip install 'mega_ros[{_EXTRAS[missing]}]'", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"mega {verb}: {error}", file=sys.stderr)
        return 1


def _help(args: list[str]) -> int:
    """Lists the verbs, or those of a group (`mega train`). Exit code 2 if something else was asked for."""
    words = [word for word in args if word not in ("-h", "--help")]
    listed = {verb: what for verb, (_, what) in VERBS.items() if verb.split()[: len(words)] == words}
    stream = sys.stdout if (listed and words != args) or not args else sys.stderr
    if not listed:
        print(f"mega: there is no verb '{' '.join(words)}'", file=stream)
        listed = {verb: what for verb, (_, what) in VERBS.items()}
    print("usage: mega <verb> [options]      mega <verb> --help tells a verb's options\n", file=stream)
    for verb, what in listed.items():
        print(f"  {verb:<22} {what}", file=stream)
    return 0 if stream is sys.stdout else 2


if __name__ == "__main__":
    sys.exit(main())
