"""The node's parameters: defaults, ranges and checks. config/mega.yaml documents them for users."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterUninitializedException
from rclpy.node import Node
from rclpy.parameter import Parameter

from mega_model.core.detection import THRESHOLD

from ..engines import Provider
from ..recovery import FOV_DEFAULT
from ..samples import MOST
from ..stream import BoxSource, StreamSettings
from .bodies import package

CHOICES = {
    "provider": get_args(Provider),
    "image_transport": ("auto", "raw", "compressed"),
    "image_reliability": ("auto", "reliable", "best_effort"),
    "rectified": ("auto", "true", "false"),
    "boxes": get_args(BoxSource),
}
FOV_LIMITS = 0.1, 3.0
"""Radians."""
FOV_RANGE = "{:g} to {:g}".format(*FOV_LIMITS)

OVERRIDES = (
    "qos_overrides.<full name of a topic>.<publisher or subscription>.<history, depth, reliability or durability>"
)
OVERRIDE = re.compile(r"qos_overrides\./.+\.(?:publisher|subscription)\.(?:history|depth|reliability|durability)")


def _described(what: str, read_only: bool = False) -> ParameterDescriptor:
    return ParameterDescriptor(description=what, read_only=read_only)


def _choice(name: str, what: str, **more: bool) -> ParameterDescriptor:
    choices = f"one of {', '.join(CHOICES[name])}"
    return ParameterDescriptor(description=f"{what}: {choices}", additional_constraints=choices, **more)


def _integer(what: str, low: int, high: int, step: int = 1) -> ParameterDescriptor:
    limits = IntegerRange(from_value=low, to_value=high, step=step)
    return ParameterDescriptor(description=what, integer_range=[limits])


def _real(what: str, low: float, high: float) -> ParameterDescriptor:
    limits = FloatingPointRange(from_value=low, to_value=high, step=0.0)
    return ParameterDescriptor(description=what, floating_point_range=[limits])


PARAMETERS: tuple[tuple[str, Any, ParameterDescriptor], ...] = (
    (
        "autostart",
        True,
        _described("whether the node configures and activates itself at its start", read_only=True),
    ),
    ("bundle", "default", _described("the model: 'default', or the folder of a bundle", read_only=True)),
    ("provider", "auto", _choice("provider", "what runs the model", read_only=True)),
    (
        "detector_model",
        "",
        _described("ONNX file of your own person detector; empty: the bundle's", read_only=True),
    ),
    ("tf", False, _described("whether a TF frame person_<id> is published for each person", read_only=True)),
    (
        "cameras",
        [],
        ParameterDescriptor(
            description="names of several cameras: <name>/image, ~/<name>/mesh, ...; empty: one, without a name",
            read_only=True,
            dynamic_typing=True,  # rcl gives no type to an empty list
        ),
    ),
    (
        "image_transport",
        "auto",
        _choice(
            "image_transport",
            "type of `image`; compressed subscribes to <image>/compressed, auto to what is published",
            read_only=True,
        ),
    ),
    (
        "image_reliability",
        "auto",
        _choice("image_reliability", "of the subscription to `image`; auto: as the publishers offer", read_only=True),
    ),
    (
        "rectified",
        "auto",
        _choice("rectified", "whether the images are; auto: by the name of `image`", dynamic_typing=True),
    ),
    (
        "rotate",
        0,
        _integer("degrees, clockwise, by which the image must be turned so that people are upright", 0, 270, 90),
    ),
    ("timeout", 3.0, _real("seconds without an image after which the camera counts as silent", 0.1, 3600.0)),
    (
        "samples",
        "auto",
        ParameterDescriptor(
            description="samples per person, for bundles without an error head; -1: the bundle's number; auto: as "
            "many as fit the camera's period",
            additional_constraints=f"one of auto, -1 to {MOST}",
            dynamic_typing=True,
        ),
    ),
    ("seed", 0, _integer("seed of the samples' noise, together with the person's id", 0, 2**31 - 1)),
    ("fixed_box", [0.0, 0.0, 0.0, 0.0], _described("x0, y0, x1, y1 in pixels: the person's box if boxes is fixed")),
    ("boxes", "detector", _choice("boxes", "source of the person boxes")),
    ("score_threshold", THRESHOLD, _real("detections with a lower score are ignored", 0.0, 1.0)),
    ("tiles", False, _described("whether the detector also searches four parts of the image, for smaller people")),
    ("person_classes", ["person", "0"], _described("class_id of people in `detections`")),
    ("max_people", 0, _integer("if more are found, the least likely are left out; 0: nobody is", 0, 1000)),
    ("smoothing", 0.0, _real("of people over time: 0 is off, 1 takes sigma as measurement noise", 0.0, 1.0)),
    ("predict", False, _described("whether people are published where they are expected at publication")),
    (
        "fov",
        float(FOV_DEFAULT),
        # its range is checked below, where the unit is said
        ParameterDescriptor(
            description="field of view over the larger image side, radians; used without camera_info",
            additional_constraints=FOV_RANGE,
        ),
    ),
)
"""Name, default and descriptor of each, in the order in which they are declared: the check of `boxes` reads
`fixed_box`."""


def declare(node: Node) -> None:
    """Declares every parameter; raises rclpy's ParameterException for a value that is not allowed.

    Parameters that are not read-only can be changed while the node runs; changes apply from the next frame on.
    Warns of one that is given and misspelt, or nested where a value has to be.
    """
    known = [name for name, *_ in PARAMETERS]
    for name in node._parameter_overrides.keys() - known:  # rclpy tells no other way what is given
        first = name.partition(".")[0]
        # what resembles none may be meant for another node that has the same parameter file
        if alike := [first] if first in known else get_close_matches(name, known, n=1):
            meant = f"did you mean {alike[0]}?"
        elif first == "qos_overrides" and not OVERRIDE.fullmatch(name):
            meant = f"what can be set is {OVERRIDES}"
        else:
            continue
        node.get_logger().warning(f"there is no parameter {name}, so it is ignored; {meant}")

    def check(changes: list[Parameter]) -> SetParametersResult:
        reason = _why_not_allowed(node, changes)
        return SetParametersResult(successful=not reason, reason=reason)

    node.add_on_set_parameters_callback(check)
    for name, default, descriptor in PARAMETERS:
        node.declare_parameter(name, default, descriptor)


def unused_files(args: Sequence[str], node: str) -> list[str]:
    """The parameter files in ROS arguments that have no entry for a node, of which ROS says nothing.

    node: its full name. The files are those that ROS has read.
    """

    def fits(entries: Any, name: str) -> bool:
        """Whether an entry, which may be within others, has the node's name: * is any part of it, ** any parts."""
        if not isinstance(entries, dict):
            return False
        pattern = re.escape(name).replace(r"/\*\*", "(?:/[^/]+)*").replace(r"\*", "[^/]+")
        return ("ros__parameters" in entries and bool(re.fullmatch(pattern, node))) or any(
            fits(entry, f"{name}/{str(key).strip('/')}") for key, entry in entries.items()
        )

    files = [Path(file) for flag, file in pairwise(args) if flag == "--params-file"]
    # without types: ROS has its own, and takes values that Python does not
    return [str(file) for file in files if not fits(yaml.load(file.read_text(errors="replace"), yaml.BaseLoader), "")]


def why_refused(node: Node, changes: Sequence[Parameter]) -> str:
    """Why parameters cannot be set, where rclpy would name no parameter and only the numbers of types; else nothing."""
    for change in changes:
        if not node.has_parameter(change.name):
            return f"there is no parameter {change.name}"
        descriptor = node.describe_parameter(change.name)
        wanted, given = Parameter.Type(descriptor.type).name, change.type_.name
        if wanted != given and not descriptor.dynamic_typing:
            point = "; numbers need a point, as 1.0" if wanted == given.replace("INTEGER", "DOUBLE") else ""
            return f"{change.name} has the type {wanted}, but {change.value} has {given}{point}"
    return ""


def get(node: Node, name: str) -> Any:
    try:
        return node.get_parameter(name).value
    except ParameterUninitializedException:  # rcl gives no type to an empty list
        return []


def cameras(node: Node) -> list[str]:
    """The names of several cameras; none if there is one, which has no name."""
    return list(get(node, "cameras") or [])


def stream_settings(node: Node, period: float) -> StreamSettings:
    """The current parameters. period: seconds between two images of a camera."""
    samples = get(node, "samples")
    return StreamSettings(
        boxes=get(node, "boxes"),
        fixed_box=tuple(get(node, "fixed_box")),
        score_threshold=get(node, "score_threshold"),
        tiles=get(node, "tiles"),
        max_people=get(node, "max_people"),
        samples="auto" if samples == "auto" else None if int(samples) < 0 else int(samples),
        period=period / max(1, len(cameras(node))),
        seed=get(node, "seed"),
        fov=get(node, "fov"),
        rotate=get(node, "rotate"),
        smoothing=get(node, "smoothing"),
    )


def _why_not_allowed(node: Node, changes: Sequence[Parameter]) -> str:
    """What is wrong with the first value that is not allowed, or with a combination of values; else nothing."""

    def value(name: str) -> Any:
        new = [change.value for change in changes if change.name == name]
        return new[0] if new else node.has_parameter(name) and get(node, name)

    for change in changes:
        if change.name == "samples" and str(change.value) not in ("auto", *map(str, range(-1, MOST + 1))):
            return f"samples must be auto or a whole number from -1 to {MOST}, not {change.value}"
        if change.name == "cameras":
            names = change.value or []
            if not _are_names(names):
                return f"cameras must be different names of letters, digits and _, as [front, rear], not {names}"
        if change.name == "fov" and change.type_ == Parameter.Type.DOUBLE:
            low, high = FOV_LIMITS
            if not low <= change.value <= high:
                given = f"{change.value:g} degrees are {np.radians(change.value):.3f}"
                return f"fov must be in radians, {FOV_RANGE}, not {change.value:g}: {given}"
        # -p and parameter files read true as a bool
        choice = str(change.value).lower() if isinstance(change.value, bool) else change.value
        if change.name in CHOICES and choice not in CHOICES[change.name]:
            return f"{change.name} must be one of {', '.join(CHOICES[change.name])}, not '{change.value}'"
        if change.name in ("boxes", "fixed_box") and node.has_parameter("fixed_box") and value("boxes") == "fixed":
            box = list(value("fixed_box"))
            if not (len(box) == 4 and np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
                return f"fixed_box must be four finite numbers x0, y0, x1, y1 with x0 < x1 and y0 < y1, not {box}"
        if change.name == "boxes" and change.value == "detections" and not package("vision_msgs"):
            return "boxes: detections needs the package vision_msgs: apt install ros-$ROS_DISTRO-vision-msgs"
        if change.name in ("smoothing", "predict") and value("predict") and not value("smoothing"):
            return "predict needs smoothing above 0: without it, velocities are not known"
    return ""


def _are_names(names: Any) -> bool:
    """Whether a value is a list of different names, each of which can be a part of a topic's."""
    if isinstance(names, str) or not isinstance(names, Sequence) or len({*names}) < len(names):
        return False
    return all(isinstance(name, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in names)
