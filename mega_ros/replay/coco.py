"""Reads annotated photographs in COCO's keypoint format: "coco-keypoints:FILE.json".

COCO's own fields are sufficient. In addition, an image may have `group` (with its own row of scores), `ignore`
(regions [x0, y0, x1, y1], pixels, with people who are not annotated), `all_people_marked` (false if unmatched
detections may be correct) and `stamp` (nanoseconds, of a recording's frame). An annotation may have `joints3d` (the
joints of `LIMBS`, metres, camera frame). Faults raise InputError with one line that names the file and the field.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mega_model.core import images as image_files
from mega_model.core.detection import in_image
from mega_model.core.errors import InputError
from mega_model.core.files import read_json
from mega_model.core.topology import LIMBS

KIND = "coco-keypoints"
SMALLEST = 60
"""Pixels: smaller heights of a box are not evaluated."""


@dataclass(frozen=True)
class Person:
    """One annotation."""

    box: np.ndarray
    """float64 [4]: x0, y0, x1, y1, pixels."""
    keypoints: np.ndarray
    """float64 [L, 2], pixels."""
    seen: np.ndarray
    """bool [L]: whether the joint is annotated, visible or not."""
    crowd: bool
    joints3d: np.ndarray | None
    """float64 [L, 3], metres, camera frame."""

    @property
    def counts(self) -> bool:
        """Whether the person must be detected: no crowd, and not smaller than `SMALLEST`."""
        return not self.crowd and self.box[3] - self.box[1] >= SMALLEST


@dataclass(frozen=True)
class Photograph:
    """One image and its annotations."""

    path: Path
    width: int
    height: int
    group: str
    """Empty if there is none."""
    people: list[Person]
    ignore: np.ndarray
    """float64 [R, 4]: x0, y0, x1, y1, pixels: ignored regions, and crowds."""
    all_marked: bool
    """Whether all people are annotated, so that an unmatched detection is wrong."""
    stamp: int | None = None
    """Nanoseconds, for a frame of a recording."""

    def load(self) -> np.ndarray:
        """uint8 [H, W, 3] BGR: the stored pixels, as annotations refer to, not rotated by EXIF. Raises InputError."""
        image = image_files.read(self.path, turn=False)
        self.must_fit(image.shape[1], image.shape[0])
        return image

    def must_fit(self, width: int, height: int) -> None:
        """Raises InputError unless its annotations are of an image of this size, pixels."""
        if (width, height) != (self.width, self.height):
            said = f"'width' and 'height' say {self.width} x {self.height}"
            raise InputError(f"{self.path}: {width} x {height} pixels, but {said}")


def read(name: str, folder: Path | None = None) -> list[Photograph]:
    """The photographs of the set "coco-keypoints:FILE.json", in `folder`, by default `images` beside the file, else
    beside the file.

    People are the annotations of all categories whose `keypoints` name the limbs, in any order, perhaps among others.
    """
    kind, _, place = name.partition(":")
    if kind != KIND or not place:
        raise InputError(f"set {name!r}: write {KIND}:FILE.json")
    return read_file(Path(place), folder)


def is_file(path: Path) -> bool:
    """Whether it is a json that could be annotations in COCO's format."""
    if path.suffix.lower() != ".json" or not path.is_file() or not path.stat().st_size:
        return False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"annotations"') >= 0
    except OSError:
        return True  # who reads it says why it cannot be read


def read_file(path: Path, folder: Path | None = None, *, must_exist: bool = True) -> list[Photograph]:
    """`read` of a file. must_exist: whether the images must be there. Raises InputError."""
    root = _Record(path, "", read_json(path))
    # others may stand beside it: animals, or an empty one above all
    categories = [category for category in root.records("categories") if category.has("keypoints")]
    if not categories:
        raise root.error("categories", "has none with 'keypoints', the names of the joints")
    nearest = min(categories, key=lambda category: len(_missing(category)))
    if missing := _missing(nearest):
        raise nearest.error("keypoints", f"lacks {', '.join(missing)}")
    names = {c.get("id", int): c.get("keypoints", list) for c in categories if not _missing(c)}

    images = root.records("images")
    people: dict[Any, list[Person]] = {}
    sizes: dict[Any, tuple[int, int]] = {}
    for image in images:
        image_id = image.get("id", int)
        if image_id in people:
            raise image.error("id", f"is {image_id}, as that of another image")
        people[image_id], sizes[image_id] = [], (image.get("width", int), image.get("height", int))
    for annotation in root.records("annotations"):
        category = annotation.get("category_id", int)
        if category not in names:
            continue
        image_id = annotation.get("image_id", int)
        if image_id not in people:
            raise annotation.error("image_id", f"is {image_id}, which no image has")
        people[image_id].append(_person(annotation, names[category], sizes[image_id]))
    if folder is None:
        folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    return [_photograph(image, folder, people[image.get("id", int)], must_exist) for image in images]


def _missing(category: _Record) -> list[str]:
    """The limbs that a category lacks."""
    names = category.get("keypoints", list)
    return [limb for limb in LIMBS if limb not in names]


def _person(annotation: _Record, names: list[str], size: tuple[int, int]) -> Person:
    """size: width and height of the image, pixels."""
    x, y, width, height = annotation.numbers("bbox", 4)
    if width <= 0 or height <= 0:
        raise annotation.error("bbox", f"has no area: width {width:g}, height {height:g}")
    box = np.array([x, y, x + width, y + height])
    if not in_image(box[None], *size):
        raise annotation.error("bbox", f"lies outside of its image of {size[0]} x {size[1]} pixels")
    crowd = annotation.has("iscrowd") and bool(annotation.get("iscrowd", int))
    # crowds, and people of whom no joint is annotated, may have none
    none = not annotation.get("keypoints", list) if annotation.has("keypoints") else crowd
    points = np.zeros(3 * len(names)) if none else annotation.numbers("keypoints", 3 * len(names))
    points = points.reshape(-1, 3)[[names.index(limb) for limb in LIMBS]]
    return Person(
        box=box,
        keypoints=points[:, :2],
        seen=points[:, 2] > 0,
        crowd=crowd,
        joints3d=annotation.numbers("joints3d", len(LIMBS), 3) if annotation.has("joints3d") else None,
    )


def _photograph(image: _Record, folder: Path, people: list[Person], must_exist: bool) -> Photograph:
    path = folder / image.get("file_name", str)
    if must_exist and not path.is_file():
        raise image.error("file_name", f"is of no file: {path}")
    regions = len(image.get("ignore", list)) if image.has("ignore") else 0
    ignore = image.numbers("ignore", regions, 4) if regions else np.zeros((0, 4))
    return Photograph(
        path=path,
        width=image.get("width", int),
        height=image.get("height", int),
        group=image.get("group", str) if image.has("group") else "",
        people=people,
        ignore=np.concatenate([ignore, *(p.box[None] for p in people if p.crowd)]),
        all_marked=image.get("all_people_marked", bool) if image.has("all_people_marked") else True,
        stamp=image.get("stamp", int) if image.has("stamp") else None,
    )


class _Record:
    """A JSON object. Its errors name the file and the field."""

    def __init__(self, path: Path, where: str, fields: Any) -> None:
        self._path, self._where = path, where
        if not isinstance(fields, Mapping):
            raise InputError(f"{path}: {where.rstrip('.') or 'the whole'} is not an object with fields")
        self._fields = fields

    def error(self, name: str, what: str) -> InputError:
        return InputError(f"{self._path}: field '{self._where}{name}' {what}")

    def has(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def get(self, name: str, kind: type) -> Any:
        if not self.has(name):
            raise self.error(name, "is missing")
        if not isinstance(self._fields[name], kind):
            raise self.error(name, f"is {self._fields[name]!r:.40} in place of {_KINDS[kind]}")
        return self._fields[name]

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """A finite float64 array of this shape."""
        value = self.get(name, list)
        try:
            array = np.array(value, np.float64)
        except (TypeError, ValueError):  # of several lengths, or no numbers
            array = np.array(np.nan)
        if array.shape != shape or not np.isfinite(array).all():
            raise self.error(name, f"does not hold {' x '.join(map(str, shape))} finite numbers")
        return array

    def records(self, name: str) -> list[_Record]:
        where = f"{self._where}{name}"
        return [_Record(self._path, f"{where}[{n}].", value) for n, value in enumerate(self.get(name, list))]


_KINDS = {int: "a whole number", str: "a text", list: "a list", bool: "true or false"}
