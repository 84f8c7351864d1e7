"""Ground truth for a replay: meshes, 3D joints or 2D keypoints, by the stamps of the frames or by their names.

Meshes are a topic of the bag, another bag, or an npz of vertices or parameters; 3D joints an npz; 2D keypoints a json
in COCO's format. The format of a topic is that of `/mega/mesh`, so what the node published can be a reference.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Protocol

import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import floats, npz_fields, read_npz
from mega_model.core.topology import Topology

from ..ros.camera_info import other_frame
from ..ros.read import positions, read_cloud
from . import coco
from .bags import Runs, is_bag, open_bag
from .coco import Photograph
from .frames import Frame, names_of
from .sources import GROUND_TRUTH

WITHIN = 0.001
"""Seconds: by default, a reference belongs to a frame whose stamp differs by no more."""
CLOUD = "sensor_msgs/msg/PointCloud2"


@dataclass(frozen=True)
class Truth:
    """The true people in one frame, in the camera frame, metres. T people, V vertices, J joints of SMPL."""

    joints: np.ndarray
    """float32 [T, J, 3]; NaN for joints that are not known."""
    vertices: np.ndarray | None = None
    """float32 [T, V, 3]; None if only joints are known."""
    visible: np.ndarray | None = None
    """bool [T, V]: the camera sees the vertex. None: those inside the image count as visible."""
    ids: np.ndarray | None = None
    """int [T]: identities over time; None if they are not known."""
    frame_id: str = field(default="", kw_only=True)
    """name of their coordinate frame; empty where it is not known, or not that of the images."""


Matched = tuple[Frame, Truth | Photograph | None]
"""A frame and its reference."""


class Reference(Protocol):
    """True people, of some of the frames."""

    name: str
    files: list[Path]
    """what was given beside the input."""
    matching: str
    """how references and frames are matched, for the report."""
    unused: list[int | str]
    """stamps or names of references to which no frame belongs; complete after the last frame."""
    note: str
    """what the user should know about it; complete after the last frame."""

    def matched(self, frames: Iterable[Frame]) -> Iterator[Matched]:
        """frames: in the order of their stamps. Raises InputError for a reference that cannot be used."""
        ...


class ByStamp:
    """References with stamps. A frame has the nearest one, unless that is nearer to the next frame.

    Only a few references, and two frames, are held at a time.
    """

    def __init__(
        self, name: str, files: list[Path], truths: Iterator[tuple[int, Truth | Photograph]], within: float
    ) -> None:
        """truths: with stamps (ns), in their order. within: seconds, see `WITHIN`."""
        self.name, self.files = name, files
        self.matching = f"by stamp, within {1000 * within:g} ms"
        self.unused: list[int | str] = []
        self.note = ""
        self._within = round(1e9 * within)
        self._truths, self._runs = truths, Runs()
        self._prefetched: deque[tuple[int, int, Truth | Photograph]] = deque()
        if not self._fill(1):
            raise InputError(f"{name}: no ground truth in it")

    def matched(self, frames: Iterable[Frame]) -> Iterator[Matched]:
        runs = Runs()
        waiting: tuple[int, Frame] | None = None
        for frame in frames:
            time = runs.time(frame.stamp)
            if waiting is not None:
                yield waiting[1], self._of(*waiting, time)
            waiting = time, frame
        if waiting is not None:
            yield waiting[1], self._of(*waiting, inf)
        while self._fill(1):
            self._drop()

    def _of(self, time: int, frame: Frame, following: float) -> Truth | Photograph | None:
        """time, following: `Runs.time` of this frame and of the next one, for which is left what is nearer to it."""

        def away(number: int) -> float:
            """Nanoseconds from the frame to a reference; infinite for one that is left."""
            at = self._prefetched[number][0]
            return abs(at - time) if abs(at - time) <= abs(at - following) else inf

        while self._fill(1) and self._prefetched[0][0] < time - self._within:
            self._drop()
        while self._fill(2) and away(1) < away(0):
            self._drop()
        if not self._prefetched or away(0) > self._within:
            return None
        truth = self._prefetched.popleft()[2]
        if isinstance(truth, Truth) and not self.note and (other := other_frame(truth.frame_id, frame.frame_id)):
            self.note = f"{self.name}: {other}: scores are right only if both names mean one frame"
        return truth

    def _fill(self, count: int) -> bool:
        """Whether the next `count` references exist; they are read."""
        while len(self._prefetched) < count:
            following = next(self._truths, None)
            if following is None:
                return False
            stamp, truth = following
            self._prefetched.append((self._runs.time(stamp), stamp, truth))
        return True

    def _drop(self) -> None:
        self.unused.append(self._prefetched.popleft()[1])


class ByName:
    """References by the names of the frames' image files."""

    matching = "by the name of the image file"
    note = ""

    def __init__(self, name: str, files: list[Path], truths: Sequence[tuple[str, Truth | Photograph]]) -> None:
        self.name, self.files = name, files
        self.unused: list[int | str] = []
        self._left: dict[str, Truth | Photograph] = {}
        for image, truth in truths:
            if image in self._left:
                raise InputError(f"{name}: has the image {image} twice; put all of its people under one")
            self._left[image] = truth
        if not truths:
            raise InputError(f"{name}: no ground truth in it")

    def matched(self, frames: Iterable[Frame]) -> Iterator[Matched]:
        for frame in frames:
            if not frame.name:
                raise InputError(
                    f"{self.name}: has names of images but no stamps, and the frames of a bag or a video have no names"
                )
            yield frame, self._left.pop(frame.name, None)
        self.unused += self._left


def open_reference(
    choice: str | None, source: Path, topology: Topology, within: float = WITHIN, images: Path | None = None
) -> Reference | None:
    """choice: a topic of the bag `source`, another bag, an .npz or a .json; None: the input's own, if it has some.

    within: seconds between the stamps of a frame and its reference. images: folder of a json's images.
    """
    if choice is None:
        if coco.is_file(source):
            return _of_coco(source, [], within, images)
        if not is_bag(source):
            return None
        with open_bag(source) as bag:
            known = bag.topics.get(GROUND_TRUTH) == CLOUD
        return ByStamp(GROUND_TRUTH, [], _of_bag(source, GROUND_TRUTH, topology), within) if known else None
    path = Path(choice)
    if path.suffix == ".npz":
        return _of_npz(path, topology, within)
    if path.suffix == ".json":
        return _of_coco(path, [path], within, images)
    if path.exists():
        with open_bag(path) as bag:
            topics = [topic for topic, kind in bag.topics.items() if kind == CLOUD]
        chosen = [t for t in (GROUND_TRUTH, "/mega/mesh") if t in topics] or topics
        if not chosen:
            raise InputError(f"{path}: no topic carries {CLOUD}, so there is no ground truth in it")
        truths = _of_bag(path, chosen[0], topology, framed=is_bag(source))
        return ByStamp(f"{choice}: {chosen[0]}", [path], truths, within)
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
    return ByStamp(choice, [], _of_bag(source, choice, topology), within)


def _of_bag(path: Path, topic: str, topology: Topology, *, framed: bool = True) -> Iterator[tuple[int, Truth]]:
    """framed: whether the images have a frame, as those of a bag: else it need not be that of the truth."""
    with open_bag(path) as bag:
        for _, stamp, connection, data in bag.in_stamp_order(topic):
            message = bag.read(connection, data)
            try:
                truth = _of_cloud(read_cloud(message), topology)
                yield stamp, replace(truth, frame_id=message.header.frame_id if framed else "")
            except InputError as error:
                raise InputError(f"{path}: {topic}: {error}") from None
            except (ValueError, KeyError) as error:  # fields of no known type, or that lie outside of the point
                raise InputError(f"{path}: {topic}: not readable as points ({error})") from None


def _of_cloud(cloud: np.ndarray, topology: Topology) -> Truth:
    """A structured array [T, V] of `read_cloud`."""
    names = cloud.dtype.names or ()
    missing = [name for name in "xyz" if name not in names]
    if missing:
        raise InputError(f"its points lack the fields {', '.join(missing)}")
    if not len(cloud):
        cloud = np.zeros((0, len(topology.template)), cloud.dtype)
    vertices = positions(cloud)
    _check_body(vertices, topology)
    if not np.isfinite(vertices).all():
        raise InputError("its bodies have vertices that are not finite numbers; leave such people out")
    return Truth(
        topology.joints(vertices),
        vertices,
        cloud["visible"] > 0.5 if "visible" in names else None,
        cloud["id"][:, 0].astype(np.int64) if "id" in names else None,
    )


def _check_body(vertices: np.ndarray, topology: Topology) -> None:
    if vertices.shape[1] != len(topology.template):
        raise InputError(
            f"its bodies have {vertices.shape[1]} vertices, the bundle's {len(topology.template)}; "
            "use a bundle of the same body"
        )


def _of_coco(path: Path, files: list[Path], within: float, images: Path | None) -> Reference:
    photographs = coco.read_file(path, images, must_exist=False)
    if photographs and all(photograph.stamp is not None for photograph in photographs):
        stamped = sorted(((p.stamp or 0, p) for p in photographs), key=lambda pair: pair[0])
        return ByStamp(str(path), files, iter(stamped), within)
    return ByName(str(path), files, list(zip(names_of([p.path for p in photographs]), photographs)))


def _of_npz(path: Path, topology: Topology, within: float) -> Reference:
    """N people, F frames: `vertices` [N, V, 3], `joints` [N, J, 3] or parameters; `stamps` or `names` [F]; `frame` [N].

    docs/evaluate/replay.md has the fields.
    """
    fields = npz_fields(path)
    kind = next((name for name in ("vertices", "joints", "poses") if name in fields), None)
    if kind is None:
        raise InputError(f"{path}: has no 'vertices', 'joints' or 'poses', it has {', '.join(fields)}")
    key = next((name for name in ("stamps", "names") if name in fields), None)
    if key is None:
        raise InputError(f"{path}: has neither 'stamps' nor 'names' of the frames, it has {', '.join(fields)}")
    optional = [name for name in ("frame", "ids", "visible", "joint_names") if name in fields]
    if kind == "poses":
        kind, arrays = "vertices", read_npz(path, [key, *optional]) | _vertices_of(path)
    else:
        arrays = read_npz(path, [kind, key, *optional])
    keys, count = arrays[key], len(arrays[kind])
    frame = arrays.get("frame", np.arange(count))
    if keys.ndim != 1 or keys.dtype.kind not in {"stamps": "iu", "names": "U"}[key]:
        raise InputError(f"{path}: field '{key}' must hold {'whole nanoseconds' if key == 'stamps' else 'texts'}, [F]")
    for name, value in (("frame", frame), ("ids", arrays.get("ids", frame))):
        if value.shape != (count,) or value.dtype.kind not in "iu":
            raise InputError(f"{path}: field '{name}' must hold {count} whole numbers, one per person")
    if count and not 0 <= frame.min() <= frame.max() < len(keys):
        raise InputError(
            f"{path}: field 'frame' must number the {len(keys)} '{key}' from 0; it is for several in a frame"
        )
    if kind == "vertices":
        vertices = floats(path, kind, arrays[kind], (None, None, 3))
        try:
            _check_body(vertices, topology)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        people = Truth(topology.joints(vertices), vertices, _visible(path, arrays, vertices), arrays.get("ids"))
    else:
        people = Truth(_joints(path, arrays, topology), ids=arrays.get("ids"))
    if key == "stamps":
        order = np.argsort(keys, kind="stable")
        return ByStamp(str(path), [path], ((int(keys[k]), _some(people, frame == k)) for k in order), within)
    return ByName(str(path), [path], [(str(name), _some(people, frame == k)) for k, name in enumerate(keys)])


def _vertices_of(path: Path) -> dict[str, np.ndarray]:
    """`vertices` of an .npz of parameters, by `mega vertices`: a process of its own, as only that needs PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "vertices.npz"
        words = [sys.executable, "-m", "mega_ros.cli", "vertices", str(path), "--out", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, errors="backslashreplace")
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
            raise InputError(f"{path}: {said.removeprefix(f'mega vertices: {path}: ')}")
        return read_npz(made, ["vertices"])


def _some(people: Truth, which: np.ndarray) -> Truth:
    parts = (people.joints, people.vertices, people.visible, people.ids)
    joints, *rest = (None if part is None else part[which] for part in parts)
    assert joints is not None
    return Truth(joints, *rest)


def _visible(path: Path, arrays: Mapping[str, np.ndarray], vertices: np.ndarray) -> np.ndarray | None:
    if "visible" not in arrays:
        return None
    if arrays["visible"].shape != vertices.shape[:2]:
        raise InputError(f"{path}: field 'visible' must have the shape {list(vertices.shape[:2])}")
    return arrays["visible"] > 0.5


def _joints(path: Path, arrays: Mapping[str, np.ndarray], topology: Topology) -> np.ndarray:
    """[N, J, 3] in the topology's order; NaN for those that the file lacks."""
    given = arrays["joints"]
    names: Iterable[str] = map(str, arrays.get("joint_names", np.array(topology.joint_names)))
    columns = [topology.joint_names.index(name) if name in topology.joint_names else -1 for name in names]
    if given.ndim != 3 or given.shape[1:] != (len(columns), 3) or given.dtype.kind != "f":
        raise InputError(f"{path}: field 'joints' must have the shape [N, {len(columns)}, 3], in metres")
    if np.isinf(given).any():
        raise InputError(f"{path}: field 'joints' is infinite somewhere; NaN says that a joint is not known")
    known = [k for k, column in enumerate(columns) if column >= 0]
    joints = np.full((len(given), len(topology.joint_names), 3), np.nan, np.float32)
    joints[:, [columns[k] for k in known]] = given[:, known]
    if np.isnan(joints[:, 0]).any():
        raise InputError(f"{path}: field 'joints' must have the pelvis, to which the others are compared")
    return joints
