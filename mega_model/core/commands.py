"""What a command line does with its verbs: find one, import its module, call it, and print an `InputError` as one line.

A table of verbs says "module:function" of each, and what it does. The function takes the arguments behind the verb and
returns the exit code, or None for 0. Its module is imported only when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from mega_model.core.errors import InputError

Verbs = Mapping[str, tuple[str, str]]

_NEEDED = {
    "torch": "pip install 'mega_ros[train]'",
    "lightning": "pip install 'mega_ros[train]'",
    "anny": "pip install 'mega_ros[train]'",
    "fsspec": "pip install 'mega_ros[train]'",
    "matplotlib": "pip install 'mega_ros[train]'",
    "yaml": "pip install 'mega_ros[train]'",
    "tqdm": "pip install 'mega_ros[train]'",
    "safetensors": "pip install 'mega_ros[train]'",
    "smplx": "pip install 'mega_ros[smpl]'",
    "onnx": "pip install 'mega_ros[import]'",
    "tflite": "pip install 'mega_ros[import]'",
    "onnxscript": "pip install 'mega_ros[export]'",
    "trimesh": "pip install 'mega_ros[mesh]'",
    "rclpy": "pip install 'mega_ros[ros]'",
    "export": "this verb needs a checkout: git clone mega_ros, then pip install --editable '.[export]'",
}
"""Package that may be absent -> what to do about it."""


def run(verbs: Verbs, args: Sequence[str]) -> int:
    """The verb that `args` begin with. Returns the exit code."""
    verb = max((v for v in verbs if [*args[: len(v.split())]] == v.split()), key=len, default=None)
    if verb is None:
        return _help(verbs, args)
    sys.argv[0] = f"mega {verb}"  # what the verb's own help calls it
    module, function = verbs[verb][0].split(":")
    return call(f"mega {verb}", lambda: getattr(import_module(module), function)([*args[len(verb.split()) :]]))


def call(name: str, command: Callable[[], int | None]) -> int:
    """The command's exit code; 1 and one line if it is the user who can help. Anything else is a bug, seen whole."""
    try:
        return command() or 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _NEEDED:
            raise
        print(f"{name}: {missing} is not installed: {_NEEDED[missing]}", file=sys.stderr)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
    return 1


def _help(verbs: Verbs, args: Sequence[str]) -> int:
    """Lists the verbs, or those of a group (`mega train`). Exit code 2 if something else was asked for."""
    words = [word for word in args if word not in ("-h", "--help")]
    listed = {verb for verb in verbs if verb.split()[: len(words)] == words}
    stream = sys.stdout if (listed and len(words) < len(args)) or not args else sys.stderr
    if not listed:
        print(f"mega: there is no verb '{' '.join(words)}'", file=stream)
        listed = {*verbs}
    print("usage: mega <verb> [options]      mega <verb> --help tells a verb's options\n", file=stream)
    for verb in sorted(listed):
        print(f"  {verb:<22} {verbs[verb][1]}", file=stream)
    return 0 if stream is sys.stdout else 2
