"""Command line verbs: find the verb, import its module, call it, and print an `InputError` as one line.

The module of a verb is imported only when the verb is called, and after its arguments were checked, because torch and
others take seconds.
"""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mega_model.core.errors import InputError
from mega_model.core.settings import parse


class Verb(NamedTuple):
    function: str
    """module:function. It takes the options and returns the exit code, or None for 0."""
    what: str
    """For the list of the verbs."""
    options: str = ""
    """module:class, a dataclass, in a module that is imported fast. Without one, the function takes the arguments."""


Verbs = Mapping[str, Verb]

EXTRAS = {
    **dict.fromkeys(
        ("torch", "lightning", "anny", "fsspec", "matplotlib", "tqdm", "safetensors", "tensorboard"), "train"
    ),
    "smplx": "smpl",
    "onnx": "import",
    "tflite": "import",
    "onnxscript": "export",
    "trimesh": "mesh",
    "viser": "view",
    "pyarrow": "parquet",
    "ray": "cluster",
    **dict.fromkeys(
        (
            "rclpy",
            "ament_index_python",
            "builtin_interfaces",
            "diagnostic_msgs",
            "geometry_msgs",
            "psutil",
            "rcl_interfaces",
            "rosgraph_msgs",
            "sensor_msgs",
            "shape_msgs",
            "std_msgs",
            "visualization_msgs",
        ),
        "ros",
    ),
}
"""Optional package -> the extra of setup.py that brings it."""
CHECKOUT = Path(__file__).resolve().parents[2]
ROS = Path("/opt/ros")
"""Where a distribution's packages install ROS."""


def remedy(package: str) -> str:
    """How to get an optional package here."""
    if package == "export":
        return "this verb needs a checkout: git clone mega_ros, then pip install --editable '.[export]'"
    extra = EXTRAS[package]
    scripts = sorted(ROS.glob("*/setup.bash"))
    if extra == "ros" and scripts:
        return f"source {scripts[-1]}"
    if (CHECKOUT / "setup.py").is_file():
        return f"in {CHECKOUT}, pip install -e '.[{extra}]'"
    return f"pip install {shlex.join(_packages_of(extra) or [package])}"


def _packages_of(extra: str) -> list[str]:
    """What the installed mega_ros says that an extra requires; nothing where it is not installed."""
    try:
        lines = requires("mega_ros") or []
    except PackageNotFoundError:
        return []
    return [line.partition(";")[0].strip() for line in lines if re.search(f"extra == ['\"]{extra}['\"]", line)]


def must_have(package: str) -> None:
    """Raises what importing a missing package raises, without importing it, which may be slow."""
    if find_spec(package) is None:
        raise ModuleNotFoundError(name=package)


def run(verbs: Verbs, args: Sequence[str]) -> int:
    """Run the verb at the beginning of `args`. Returns the exit code."""
    verb = max((v for v in verbs if [*args[: len(v.split())]] == v.split()), key=len, default=None)
    if verb is None:
        return _help(verbs, args)
    sys.argv[0] = f"mega {verb}"  # the name in the verb's help
    found, rest = verbs[verb], [*args[len(verb.split()) :]]

    def command() -> int | None:
        options = parse(named(found.options), rest) if found.options else rest
        return named(found.function)(options)

    return call(f"mega {verb}", command)


def named(place: str) -> Any:
    """The function or class at module:name."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def call(name: str, command: Callable[[], int | None]) -> int:
    """Run a command. Returns its exit code: 1 after an InputError, for a missing package or on a full disk, 130 after
    Ctrl-C, which are printed as one line."""
    try:
        return command() or 0
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in EXTRAS and missing != "export":
            raise
        print(f"{name}: {missing} is not installed: {remedy(missing)}", file=sys.stderr)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename2 or error.filename
        print(f"{name}: {f'{place}: ' if place else ''}{error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 1


def _help(verbs: Verbs, args: Sequence[str]) -> int:
    """List the verbs, or those of a group (`mega train`). Exit code 2 for an unknown verb."""
    words = [word for word in args if word not in ("-h", "--help")]
    listed = {verb for verb in verbs if verb.split()[: len(words)] == words}
    stream = sys.stdout if (listed and len(words) < len(args)) or not args else sys.stderr
    if not listed:
        print(f"mega: there is no verb '{' '.join(words)}'", file=stream)
        listed = {*verbs}
    print("usage: mega <verb> [options]      mega <verb> --help shows a verb's options\n", file=stream)
    for verb in sorted(listed):
        print(f"  {verb:<22} {verbs[verb].what}", file=stream)
    return 0 if stream is sys.stdout else 2
