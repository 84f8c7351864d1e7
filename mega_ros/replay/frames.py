"""What `mega replay` reads: a bag, a video, images or a COCO json, as frames in the order of their stamps.

A frame that cannot be read says why, and the rest goes on.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from rosbags.interfaces import Connection

from mega_model.core import images as image_files
from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.files import sha256

from ..ros.camera_info import camera_for, is_rectified, other_frame
from ..ros.images import to_bgr
from . import coco
from .bags import (
    CAMERA_INFO,
    FILES,
    STAMP_END,
    Bag,
    Runs,
    has_metadata,
    inside,
    is_bag,
    left_out,
    open_bag,
    parts_of,
    read_bag,
    with_stamp,
)
from .sources import FRAME, STREAMS, Source, is_still, open_video, read_image

IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".heic", ".heif", ".avif", ".jxl"),  # not read: each is a frame that says so
)
"""How the names of image files end, where a folder of inputs is searched."""
VIDEOS = (
    *(".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".ogv"),
    *(".flv", ".gif", ".h264", ".dav", *STREAMS),
)
"""How the names of video files end, where a folder of inputs is searched. OpenCV may read others, too."""
RATE = 30.0
"""Images per second of a folder of images, which has no stamps."""
NO_INFO = "the input has no camera_info"
FEWER = 1.1
"""By how much more compressed images of a camera there may be than raw ones without a word."""
WITHOUT = "none"
"""In place of a topic: the bag's camera_info is left out, so a field of view is assumed."""


@dataclass(frozen=True)
class Frame:
    stamp: int
    """nanoseconds."""
    image: np.ndarray | None
    """uint8 [H, W, 3] BGR; None if it cannot be read."""
    problem: str = ""
    """why it cannot."""
    camera: Camera | None = None
    camera_problem: str = NO_INFO
    """why there is no camera, or what is wrong with its camera_info; else empty."""
    frame_id: str = FRAME
    """name of the camera's coordinate frame; empty where it is not known."""
    name: str = ""
    """of the file, where every frame has its own: one of `names_of`."""


class Input(Protocol):
    """Something to replay."""

    name: str
    files: list[Path]
    """all that it consists of."""
    count: int | None
    """number of frames, where that is known beforehand."""
    one_camera: bool
    """whether the frames follow each other in time, so that people can be tracked."""
    topics: dict[str, str]
    """which topics of a bag are read: image and, if there is one, camera_info."""
    note: str
    """what the user should know about how it is read; whether frames are missing is known after the last one."""

    def frames(self) -> Iterator[Frame]:
        """In the order of their stamps. May be called again."""
        ...


def open_input(
    paths: Sequence[Path],
    image_topic: str | None = None,
    info_topic: str | None = None,
    rectified: str = "auto",
    images: Path | None = None,
    *,
    turn: bool = True,
) -> Input:
    """A bag, a video, a photograph, a folder of images, a COCO json; or several photographs.

    The topics are those of a bag; info_topic may also be `WITHOUT`. rectified: auto, true or false, see `is_rectified`;
    for the images of a bag. images: folder of a json's images. turn: whether photographs are turned as their EXIF data
    say; a json's images never are, because annotations refer to the stored pixels.
    Raises InputError that says what is wrong with it.
    """
    first = paths[0]
    if len(paths) > 1 or is_image_file(first):
        name = first.name if len(paths) == 1 else f"{len(paths)} images"
        source: Input = ImageFiles(name, in_order(paths), turn)
    elif is_bag(first):
        return Recorded(first, image_topic, info_topic, rectified)
    elif first.is_dir():
        source = ImageFiles(first.name, _image_files_in(first), turn)
    elif first.suffix.lower() == ".json" and first.is_file():
        photographs = coco.read_file(first, images)
        if not photographs:
            raise InputError(f"{first}: field 'images' is empty")
        source = ImageFiles(first.name, [p.path for p in photographs], False, one_camera=False, beside=[first])
    elif first.is_file():
        source = ImageFiles(first.name, [first], turn) if is_still(first) else Video(first)
    else:
        raise InputError(f"{first}: there is no such file or folder")
    if image_topic or info_topic not in (None, WITHOUT):
        raise InputError(f"{first}: --image-topic and --camera-info-topic are for bags, this is none")
    return source


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Folder by folder, and in each by name, numbers by their size: 2 comes before 10, and 1.25 before 1.5."""
    return sorted(paths, key=lambda path: (path.parent, _parts_of_name(path.stem), path.name))


def _parts_of_name(name: str) -> list[tuple[str, int, str]]:
    """Each text with the number behind it: whole part and decimals, which are ordered as texts."""
    found = re.findall(r"([^0-9]*)(?:([0-9]+)(?:\.([0-9]+))?)?", name)
    return [(text, int(whole or -1), decimals) for text, whole, decimals in found]


def names_of(paths: Sequence[Path]) -> list[str]:
    """The names of files. If two are equal, all are paths, from the deepest folder that holds all of the files."""
    names = [path.name for path in paths]
    if len({*names}) == len(names):
        return names
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(common).as_posix() for path in paths]


def is_image_file(path: Path) -> bool:
    """By its name, also where it cannot be read, as a link that leads nowhere: it is a frame that says so."""
    return path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir()


def inputs_in(path: Path) -> list[Path]:
    """The inputs in a folder of many: bags, videos, COCO jsons, folders of images, and the images in it, as one.

    A bag, a folder of nothing but images, and a file are themselves.
    """
    if not path.is_dir() or has_metadata(path):
        return [path]
    inner = inside(path)
    images = [path] if any(is_image_file(p) for p in inner) else []
    others = [p for p in inner if p.is_file() and (p.suffix.lower() in VIDEOS or coco.is_file(p))]
    belong = {p.parent / "images" for p in others if p.suffix.lower() == ".json"}
    if is_bag(path) and not images and not others:  # the parts of one bag
        return [path]
    for p in inner:
        folder_of_images = p.is_dir() and p not in belong and any(is_image_file(file) for file in inside(p))
        if is_bag(p) or folder_of_images:
            others.append(p)
    return [*images, *sorted(others)] or [path]


def digests(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of files; of a folder that is a bag, those in it."""
    out = []
    for path in files:
        if path.is_dir():
            out += digests(parts_of(path))
            continue
        try:
            out.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)})
        except OSError:  # a frame says why
            out.append({"name": path.name})
    return out


def _image_files_in(folder: Path) -> list[Path]:
    found = [path for path in inside(folder) if is_image_file(path)]
    if not found:
        try:
            os.listdir(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
        raise InputError(
            f"{folder}: no bag, video or images in it: no metadata.yaml, "
            f"{', '.join((*FILES, *VIDEOS, *IMAGE_ENDINGS))}; deeper folders are not searched"
        )
    return in_order(found)


class ImageFiles:
    """Image files, `RATE` to the second."""

    def __init__(
        self, name: str, images: Sequence[Path], turn: bool, one_camera: bool = True, beside: Sequence[Path] = ()
    ) -> None:
        """turn: whether each is turned as its EXIF data say. beside: the file that lists the images."""
        self.name, self.images, self.one_camera = name, images, one_camera
        self.files = [*beside, *images]
        self.count: int | None = len(images)
        self.topics, self.note, self._turn = dict[str, str](), "", turn

    def frames(self) -> Iterator[Frame]:
        for k, (path, name) in enumerate(zip(self.images, names_of(self.images))):
            stamp = round(k * 1e9 / RATE)
            try:
                yield Frame(stamp, image_files.read(path, turn=self._turn), name=name)
            except InputError as error:
                yield Frame(stamp, None, str(error), name=name)


class Video:
    """A video file with the times of its frames, from zero on."""

    one_camera = True

    def __init__(self, path: Path) -> None:
        self.name, self.files, self.topics, self.note = path.name, [path], dict[str, str](), ""
        capture = open_video(path)
        announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        try:
            read_image(capture, str(path))  # where the first cannot be read, the others need no try
        finally:
            capture.release()
        self.count = int(announced) if 0 < announced < 1e9 else None

    def frames(self) -> Iterator[Frame]:
        capture, last = open_video(self.files[0]), -1
        rate = capture.get(cv2.CAP_PROP_FPS)
        step = round(1e9 / (rate if 0.01 < rate < 1000 else RATE))
        try:
            for number in count():
                image, problem = None, ""
                try:
                    image = read_image(capture, str(self.files[0]))
                except InputError as error:
                    problem = str(error)
                if image is None and not problem:
                    # in a container that holds no count, it is one that OpenCV took from length and mean rate
                    if self.count and number < self.count and last + 1.5 * step < self.count * step:
                        self.note = f"{number} of the {self.count} frames that the file announces could be read"
                    return
                stamp = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                if stamp <= last:  # a container without times
                    stamp = last + step if last >= 0 else 0
                last = stamp
                yield Frame(stamp, image, problem)
        finally:
            capture.release()


class Recorded:
    """The images on one topic of a bag, with the camera_info that goes with each."""

    one_camera = True

    def __init__(
        self, path: Path, image_topic: str | None = None, info_topic: str | None = None, rectified: str = "auto"
    ) -> None:
        self.name, self.path = path.name, path
        parts, notes = parts_of(path), []
        self.files = [*parts, *([path / "metadata.yaml"] if has_metadata(path) else [])]
        if len(self.files) == len(parts) > 1:
            notes.append(f"no metadata.yaml: {parts[0].name} to {parts[-1].name} are taken for the parts of one bag")
        if others := left_out(path):
            notes.append(f"metadata.yaml does not list {', '.join(others)}: left out; ros2 bag reindex adds it")
        with open_bag(path) as bag:
            image, unread = _image_topic(bag, image_topic)
            announced_compressed = bag.announced(f"{image}/compressed")
            info, self._why_no_info = _info_topic(bag, info_topic, image)
            self._rectified = is_rectified(image, rectified)
            self._types = {topic: bag.topics[topic] for topic in (image, info) if topic}
            self.topics = {"image": image} | ({"camera_info": info} if info else {})
            self._infos = list(_infos(bag, info)) if info else []
            stamps = [bag.stamp(data) for _, _, data in bag.messages([image])]
            announced = bag.announced(image)
        self.count: int | None = len(stamps)
        lost = f"of {announced} messages that the bag announces on {image}, {len(stamps)} are in it"
        if not stamps:
            raise InputError(f"{path}: {lost if announced else f'{image} has no messages'}")
        if len(stamps) < announced:
            notes.append(lost)
        if unread:
            notes.append(f"left out, as their images cannot be read: {', '.join(unread)}")
        if announced_compressed > FEWER * len(stamps):
            more = f"{image}/compressed {announced_compressed}"
            notes.append(f"{image} has {len(stamps)} images, {more}; --image-topic chooses")
        self._notes = [*notes, *_notes_on(stamps)]
        self.note = "; ".join(self._notes)

    def frames(self) -> Iterator[Frame]:
        frame_ids = set[str]()
        with open_bag(self.path) as bag:
            for time, stamp, connection, data in bag.in_stamp_order(self.topics["image"]):
                try:
                    message = bag.read(connection, data)
                except InputError as error:
                    yield Frame(stamp, None, str(error), frame_id="")
                    continue
                frame_id = message.header.frame_id
                frame_ids.add(frame_id)
                try:
                    image = to_bgr(message)
                except InputError as error:
                    yield Frame(stamp, None, f"{self.path}: {self.topics['image']}: {error}", frame_id=frame_id)
                    continue
                camera, problem = self._camera(time, image.shape[1], image.shape[0], frame_id)
                yield Frame(stamp, image, camera=camera, camera_problem=problem, frame_id=frame_id)
        if len(frame_ids) > 1:
            several = f"the images have several frame_ids, {', '.join(sorted(frame_ids))}: are they of one camera?"
            self.note = "; ".join([*self._notes, several])

    def played(self) -> Source:
        """To be played live: the messages as they were recorded, with the stamps that `frames` has."""
        info = self.topics.get("camera_info")
        first = next(read_bag(self.path, [info]), None) if info else None
        messages = map(with_stamp, read_bag(self.path, self._types))
        return Source(self.name, messages, self.topics["image"], info, self._types, first, self.count)

    def _camera(self, time: int, width: int, height: int, frame_id: str) -> tuple[Camera | None, str]:
        """Of the last camera_info up to the image, or of the first: it may have been recorded once, and late.

        time: the image's, of `Runs.time`.
        """
        topic = self.topics.get("camera_info")
        if topic is None:
            return None, self._why_no_info
        if not self._infos:
            return None, f"{topic}: no camera_info has come"
        info = self._infos[max(0, bisect_right(self._infos, time, key=lambda info: info[0]) - 1)][1]
        camera, problem = camera_for(info, width, height, self._rectified)
        if not problem and (other := other_frame(info.header.frame_id, frame_id)):
            problem = f"{other}: is it another camera's?"
        return camera, f"{topic}: {problem}" if problem else ""


def _notes_on(stamps: Sequence[int]) -> Iterator[str]:
    """What the user should know about the stamps (ns) of images, in the order in which they were recorded."""
    given, runs = [stamp for stamp in stamps if stamp], Runs()
    for stamp in given:
        runs.time(stamp)
    if runs.count:
        often = "once" if runs.count == 1 else f"{runs.count} times"
        yield f"the stamps go back by more than a second {often}; people get new ids each time"
    if unstamped := len(stamps) - len(given):
        yield f"{unstamped} of {len(stamps)} images have the stamp 0: the time of recording is used instead"
    if repeated := len(given) - len({*given}):
        yield f"{repeated} of {len(stamps)} images have the stamp of another, live they count as one"


def _image_topic(bag: Bag, named: str | None) -> tuple[str, list[str]]:
    """The topic, and others that are left out because their images cannot be read."""
    if named is not None:
        # the name of the camera's topic, as the node takes it, also where only its compressed images were recorded
        compressed = f"{named}/compressed"
        alone = compressed in bag.topics and next(bag.messages([named]), None) is None
        return _named(bag, compressed if alone else named, IMAGES), []
    # the node's own drawings are no input
    found = every = [t for t, kind in bag.topics.items() if kind in IMAGES and not t.startswith("/mega/")]
    if len(found) > 1:
        found = [t for t in found if _is_readable(bag, t)] or found
    unread = sorted(t for t in every if t not in found and bag.announced(t))
    # one camera, raw and compressed: the raw images
    found = [t for t in found if not (t.endswith("/compressed") and t.removesuffix("/compressed") in found)]
    return _only(bag, found, "image", "--image-topic") or _nothing(bag, IMAGES), unread


def _is_readable(bag: Bag, topic: str) -> bool:
    """Whether its images can be read, by the first few.

    Those of depth cannot, and image_transport has topics of all its plugins recorded beside those of the camera.
    """

    def can_read(connection: Connection, data: bytes) -> bool:
        try:
            to_bgr(bag.read(connection, data))
        except InputError:
            return False
        return True

    return any(can_read(connection, data) for connection, _, data in islice(bag.messages([topic]), 3))


def _info_topic(bag: Bag, named: str | None, image: str) -> tuple[str | None, str]:
    """The topic, or None and the reason.

    Beside the images, as for the node. Elsewhere, only its frame_id says that it is of the same camera.
    """
    beside = image.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"
    if named not in (None, WITHOUT):
        return _named(bag, named, (CAMERA_INFO,)), ""
    found = [t for t, kind in bag.topics.items() if kind == CAMERA_INFO]
    if not found:
        return None, f"{beside}: the bag has no camera_info"
    if named == WITHOUT:
        return None, f"{beside}: left out, as asked for"
    if beside in found:
        return beside, ""
    frame = _frame_id(bag, image)
    same = [t for t in found if frame and _frame_id(bag, t) == frame]
    others = f"{', '.join(sorted(found))}, of another frame_id; --camera-info-topic takes it all the same"
    return _only(bag, same, "camera_info", "--camera-info-topic"), f"{beside}: the bag has only {others}"


def _infos(bag: Bag, topic: str) -> Iterator[tuple[int, Any]]:
    """Each camera_info and its time, of `Runs.time`, but for those that only repeat the one before, as most do."""
    before = None
    for time, _, connection, data in sorted(bag.timed(topic), key=lambda found: found[0]):
        rest = bytes(data[STAMP_END:])
        if rest != before:
            yield time, bag.read(connection, data)
        before = rest


def _frame_id(bag: Bag, topic: str) -> str:
    """Of the first message, without the slash that ROS 1 allows; empty without messages."""
    found = (str(bag.read(c, data).header.frame_id) for c, _, data in bag.messages([topic]))
    return next(found, "").removeprefix("/")


def _named(bag: Bag, topic: str, kinds: Sequence[str]) -> str:
    if topic not in bag.topics:
        raise InputError(f"{bag.path}: there is no topic {topic}; it has {_listed(bag)}")
    if bag.topics[topic] not in kinds:
        raise InputError(f"{bag.path}: {topic} carries {bag.topics[topic]}, not {' or '.join(kinds)}")
    return topic


def _only(bag: Bag, found: list[str], what: str, option: str) -> str | None:
    if len(found) > 1:
        raise InputError(f"{bag.path}: has several {what} topics; choose by {option}: {', '.join(sorted(found))}")
    return found[0] if found else None


def _nothing(bag: Bag, kinds: Sequence[str]) -> str:
    if drawn := [topic for topic, kind in sorted(bag.topics.items()) if kind in kinds]:
        what = f"images only under /mega, where the node has its drawings: {', '.join(drawn)}"
        raise InputError(f"{bag.path}: has {what}; --image-topic takes one all the same")
    republish = "images of other types, as packets of a video, must be republished as one of these"
    raise InputError(f"{bag.path}: no topic carries {' or '.join(kinds)}; it has {_listed(bag)}; {republish}")


def _listed(bag: Bag) -> str:
    return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(bag.topics.items())) or "no topics"
