#!/usr/bin/env python3
"""Writes two pages from the code: docs/robot/reference.md (topics, parameters, diagnostics and launch arguments) and
docs/commands.md (the verbs of `mega` with their options).

A test fails if a committed page is not what this script writes. It needs rclpy's messages, but starts no node.
"""

import ast
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import MagicMock, patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

import numpy as np
import tyro

from mega_model.core.commands import Verb, named
from mega_ros.cli import OF_CHECKOUT, VERBS
from mega_ros.ros import interface, parameters
from mega_ros.ros.read import JOINT, POINT

ROOT = Path(__file__).resolve().parents[1]

LAUNCH = "launch launch.actions launch.substitutions launch_ros launch_ros.actions launch_ros.substitutions"
"""Modules that only a ROS installation has."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def topics(which: Mapping[str, tuple[str, str]]) -> str:
    return table(["topic", "type", "content"], [[f"`{name}`", *texts] for name, texts in which.items()])


def point(kind: np.dtype[Any]) -> str:
    """The fields of a point, in their order."""
    assert kind.fields
    named = {"float32": "FLOAT32 (7)", "uint32": "UINT32 (6)"}
    rows = [[f"`{name}`", named[str(field)], str(offset)] for name, (field, offset, *_) in kind.fields.items()]
    return table(["field", "datatype", "offset"], rows)


def allowed(descriptor: Any) -> str:
    for limits in (*descriptor.integer_range, *descriptor.floating_point_range):
        step = f", in steps of {limits.step}" if limits.step > 1 else ""
        return f"{limits.from_value:.10g} to {limits.to_value:.10g}{step}"
    return code(descriptor.additional_constraints.removeprefix("one of ")) if descriptor.additional_constraints else ""


def parameter_rows() -> Iterable[Sequence[str]]:
    declared = {name: rest for name, *rest in parameters.PARAMETERS}
    for name, text in documented().items():
        default, descriptor = declared.pop(name)
        value = f"{default:.4g}" if isinstance(default, float) else json.dumps(default).strip('"')
        moment = "at the start" if descriptor.read_only else "any time"
        yield [f"`{name}`", value and f"`{value}`", allowed(descriptor), moment, text]
    assert not declared, f"config/mega.yaml lacks {', '.join(declared)}"


def documented() -> dict[str, str]:
    """Parameter -> the comment before it in config/mega.yaml, in its order."""
    found, comment = {}, ""
    for line in (ROOT / "config" / "mega.yaml").read_text().partition("ros__parameters:\n")[2].splitlines():
        if line.strip().startswith("#"):
            comment += line.strip().removeprefix("#")
        elif name := re.match(r"\s+(\w+):", line):
            text = comment.strip().replace("<", "&lt;").replace(">", "&gt;")
            found[name[1]] = re.sub(
                r"docs/(\w+/(\w+)\.md)", lambda page: f"[{page[2].replace('_', ' ')}](../{page[1]})", text
            )
            comment = ""
        else:
            comment = ""  # about several
    return found


def launch_file(name: str) -> ModuleType:
    with patch.dict(sys.modules, {module: MagicMock() for module in [*LAUNCH.split(), "ament_index_python.packages"]}):
        spec = importlib.util.spec_from_file_location("launch_file", ROOT / "launch" / name)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def launch_rows(name: str) -> Iterable[Sequence[str]]:
    for argument, (default, text) in launch_file(name).ARGUMENTS.items():
        value = (
            f"`{default}`" if isinstance(default, str) and default else "" if default == "" else "`config/mega.yaml`"
        )
        yield [f"`{argument}`", value, text]


class Asked(Exception):
    """The class of the options that a verb parses."""


def options_of(verb: Verb) -> type[Any]:
    """A dataclass. Verbs that declare none parse their arguments first of all."""
    if verb.options:
        return named(verb.options)

    def asked(kind: type[Any], **_: Any) -> None:
        raise Asked(kind)

    with patch.object(tyro, "cli", asked):
        try:
            named(verb.function)([])
        except Asked as found:
            return found.args[0]
    raise AssertionError(verb)


def texts(kind: type[Any]) -> dict[str, str]:
    """Field -> the text below it in the source."""
    found = {}
    for part in reversed(kind.__mro__[:-1]):
        (declared,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(declared, ast.ClassDef)
        for line, after in zip(declared.body, [*declared.body[1:], None]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                said = after.value if isinstance(after, ast.Expr) else None
                text = said.value if isinstance(said, ast.Constant) else ""
                found[line.target.id] = " ".join(str(text).split())
    return found


def values(hint: Any) -> str:
    """What an option takes."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Annotated:
        return values(parts[0])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if get_origin(hint) is tuple:
        return f"{values(parts[0])}, {'several' if parts[-1] is ... else len(parts)}"
    if parts:  # or None
        return " or ".join(map(values, parts))
    return {bool: "", int: "integer", float: "number", str: "text", Path: "path"}[hint]


def default_of(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        return "needed"
    if value is None or value == () or value is False:
        return ""
    if value is True:
        return "on"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def option_rows(kind: type[Any]) -> Iterator[Sequence[str]]:
    said, hints = texts(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
        if set(marks) & set(tyro.conf.Suppress[int].__metadata__):  # type: ignore[attr-defined]
            continue
        name = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name).replace("_", "-")
        positional = set(marks) & set(tyro.conf.Positional[int].__metadata__)  # type: ignore[attr-defined]
        shown = [name.upper() if positional else f"--{name}"] + [f"--no-{name}"] * (field.default is True)
        text = said[field.name].replace("<", "&lt;").replace(">", "&gt;")
        yield [code(", ".join(shown)), values(hint), default_of(field), text]


def verb_section(name: str) -> str:
    verb = VERBS[name]
    checkout = " Needs a checkout." if name in OF_CHECKOUT else ""
    what = f"{verb.what[0].upper()}{verb.what[1:]}."
    if name == "node":
        return f"## mega node\n\n{what} It takes ROS arguments: [reference](robot/reference.md#parameters)."
    kind = options_of(verb)
    if not (kind.__doc__ or "").startswith(f"{kind.__name__}("):  # what dataclasses make
        what = inspect.cleandoc(kind.__doc__ or "")
    return f"## mega {name}\n\n{what}{checkout}\n\n{table(['option', 'takes', 'default', ''], option_rows(kind))}"


def commands() -> str:
    sections = "\n\n".join(map(verb_section, sorted(VERBS)))
    return f"""# Commands

All verbs of `mega`, and their options. `mega <verb> --help` says the same. `scripts/document.py` wrote this page from
the code; a test checks that it is current. An option that takes nothing is a switch. Most verbs of training,
evaluation and export also read a YAML file whose keys are their options:
`mega train recover config/train/recover.yaml --steps 100`.

{sections}
"""


def reference() -> str:
    return f"""# Reference

Topics, parameters, diagnostics and launch arguments of the node `mega`, written from the code by `scripts/document.py`;
a test checks that it is current.

## Topics it reads

All names are relative or private, so namespaces and remapping apply.

{topics(interface.INPUTS)}

## Topics it publishes

The node's name is `mega`, so `~/mesh` is `/mega/mesh`. Each output is computed only while somebody subscribes to it.
Outputs are reliable, with room for the newest message; `qos_overrides` change that ([how images arrive](transport.md)).

{topics(interface.OUTPUTS)}

### The bytes of `~/mesh` and `~/joints`

A point of `~/mesh` has {POINT.itemsize} bytes (`point_step`):

{point(POINT)}

`~/joints` has the field `distance`, FLOAT32, behind these: {JOINT.itemsize} bytes. Both are little-endian and without
gaps: person after person (`height`), and of each person vertex after vertex (`width`), as `~/topology` numbers them.
`row_step` is `width * point_step`. So with numpy:

<!-- not run: needs a message of ~/mesh -->
```python
points = np.frombuffer(mesh.data, np.float32)
points = points.reshape(mesh.height, mesh.width, {POINT.itemsize // 4})  # x, y, z, sigma
ids = points.view(np.uint32)[:, 0, 4]
```

## Parameters

In a file like [config/mega.yaml](../../config/mega.yaml), or one by one: `mega node --ros-args -p smoothing:=0.5`.
`boxes: fixed` needs a `fixed_box`, and `predict` needs `smoothing`. While the node runs, set what is needed first, or
both in one atomic call. `ros2 param load` sets one after the other, as they stand in the file, so it refuses
`boxes: fixed` before `fixed_box`, and `predict` before `smoothing`. At the start, any order will do. Parameters that
are not whole numbers need a point: `1.0`, not `1`.

{table(["parameter", "default", "allowed", "can be set", ""], parameter_rows())}

## Diagnostics

The values of `/diagnostics`. The message says what is wrong; the level is WARN, or ERROR when a camera
fell silent or a transition failed. While the node is not active, there are no values, and the message is the state,
and why a transition failed.

{table(["value", "what it says"], [[code(names), text] for names, text in interface.DIAGNOSTICS.items()])}

## Launch arguments

`ros2 launch mega_ros mega.launch.py`:

{table(["argument", "default", ""], launch_rows("mega.launch.py"))}

`ros2 launch mega_ros replay.launch.py bag:=BAG`, which is `mega replay BAG --live` in the ROS domain of the shell:

{table(["argument", "default", ""], launch_rows("replay.launch.py"))}
"""


PAGES = {"robot/reference.md": reference, "commands.md": commands}
"""Page in docs/ -> what makes it."""

if __name__ == "__main__":
    for file, page in PAGES.items():
        (ROOT / "docs" / file).write_text(page())
        print(ROOT / "docs" / file)
