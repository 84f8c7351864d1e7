"""Ground truth for a replay: a topic of the bag, another bag, or the meshes of an earlier replay.

The format is that of `/mega/mesh`, so what the node published can be a reference. A field `visible` is optional: where
it is absent, the vertices inside the image count as visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.files import read_npz

from ..ros.read import points_of, positions, read_cloud
from .bags import is_bag, open_bag
from .sources import GROUND_TRUTH

WITHIN = 10**6
"""Nanoseconds: a reference belongs to the frame whose stamp differs by no more."""
CLOUD = "sensor_msgs/msg/PointCloud2"
FIELDS = ("x", "y", "z")


class Reference:
    """Clouds of true people by stamp, to be asked in the order of the stamps. Only one is held at a time."""

    def __init__(self, name: str, files: list[Path], clouds: Iterator[tuple[int, np.ndarray]], vertices: int) -> None:
        """clouds: stamps (ns) in order, and what `read_cloud` gives. vertices: V of the body that is recovered."""
        self.name = name
        self.files = files
        """what was given beside the input."""
        self._clouds, self._vertices = clouds, vertices
        self._next = next(clouds, None)
        if self._next is None:
            raise InputError(f"{name}: no ground truth in it")
        self.unused = 0
        """references to which no frame belongs, so far."""

    def at(self, stamp: int) -> np.ndarray | None:
        """The reference [T, V] of the frame with this stamp. Raises InputError if it is of another body."""
        while self._next is not None and self._next[0] < stamp - WITHIN:
            self._step(unused=True)
        if self._next is None or self._next[0] > stamp + WITHIN:
            return None
        cloud = self._next[1]
        self._step(unused=False)
        missing = [name for name in FIELDS if name not in (cloud.dtype.names or ())]
        if missing:
            raise InputError(f"{self.name}: its points lack the fields {', '.join(missing)}")
        if len(cloud) and cloud.shape[1] != self._vertices:
            raise InputError(
                f"{self.name}: its bodies have {cloud.shape[1]} vertices, the bundle's {self._vertices}; "
                "use a bundle of the same body"
            )
        return cloud

    def finish(self) -> None:
        """Counts those behind the last frame as unused."""
        while self._next is not None:
            self._step(unused=True)

    def _step(self, unused: bool) -> None:
        self.unused += unused
        self._next = next(self._clouds, None)


def with_visible(cloud: np.ndarray, camera: Camera, width: int, height: int) -> np.ndarray:
    """A reference whose points have the field `visible`, 1 for those that the camera sees."""
    if "visible" in (cloud.dtype.names or ()):
        return cloud
    out = np.zeros(cloud.shape, [*((name, "<f4") for name in FIELDS), ("visible", "<f4")])
    for name in FIELDS:
        out[name] = cloud[name]
    pixels = camera.project(positions(cloud))
    out["visible"] = ((pixels >= 0) & (pixels <= [width, height])).all(axis=-1)
    return out


def open_reference(choice: str | None, source: Path, vertices: int) -> Reference | None:
    """choice: a topic of the bag `source`, a bag, or the meshes.npz of a replay; None: the bag's own, if it has one."""
    if choice is None:
        if not is_bag(source):
            return None
        with open_bag(source) as bag:
            known = bag.topics.get(GROUND_TRUTH) == CLOUD
        return Reference(GROUND_TRUTH, [], _of_bag(source, GROUND_TRUTH), vertices) if known else None
    path = Path(choice)
    if path.suffix == ".npz":
        return Reference(choice, [path], _of_replay(path), vertices)
    if path.exists():
        with open_bag(path) as bag:
            topics = [topic for topic, kind in bag.topics.items() if kind == CLOUD]
        chosen = [t for t in (GROUND_TRUTH, "/mega/mesh") if t in topics] or topics
        if not chosen:
            raise InputError(f"{path}: no topic carries {CLOUD}, so there is no ground truth in it")
        return Reference(f"{choice}: {chosen[0]}", [path], _of_bag(path, chosen[0]), vertices)
    if not is_bag(source):
        raise InputError(
            f"--reference {choice}: there is no such file, and {source} is no bag that could have the topic"
        )
    with open_bag(source) as bag:
        kind = bag.topics.get(choice)
        clouds = ", ".join(topic for topic, k in bag.topics.items() if k == CLOUD) or "none"
    if kind != CLOUD:
        what = f"carries {kind}" if kind else "is neither a file nor a topic"
        raise InputError(f"--reference {choice}: {what} of {source}; topics with {CLOUD}: {clouds}")
    return Reference(choice, [], _of_bag(source, choice), vertices)


def _of_bag(path: Path, topic: str) -> Iterator[tuple[int, np.ndarray]]:
    with open_bag(path) as bag:
        for stamp, message in bag.in_stamp_order(topic):
            try:
                yield stamp, read_cloud(message)
            except (ValueError, KeyError) as error:  # fields of no known type, or that lie outside of the point
                raise InputError(f"{path}: {topic}: not readable as points ({error})") from None


def _of_replay(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    arrays = read_npz(path, ("stamps", "frame", "vertices", "sigma", "ids"))
    order = np.argsort(arrays["stamps"], kind="stable")
    for k in order:
        people = arrays["frame"] == k
        yield int(arrays["stamps"][k]), points_of(*(arrays[name][people] for name in ("vertices", "sigma", "ids")))
