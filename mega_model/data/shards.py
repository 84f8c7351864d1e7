r"""WebDataset shards: tar files with one image and one label per person, on a disk, a server or an object store.

mega shards coco:data/coco/coco.npz --out shards/coco

writes shard-000000.tar, shard-000001.tar, ... with NUMBER.jpg and NUMBER.json (the fields of `people.LabelledPeople`)
for each person. index.npz holds the file, offset and size of each of them, so a person is one range read, through
fsspec. `open_set("shards:s3://bucket/coco")` opens the shards as an image set.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import cv2
import fsspec
import numpy as np
from tqdm import tqdm

from mega_model.core.errors import InputError
from mega_model.core.files import floats, make_folder
from mega_model.data.annotations import read_people
from mega_model.data.crops import Square, affine_crop, decode
from mega_model.data.people import COLUMNS, ImageReader, LabelledPeople
from mega_model.options import Joints, Write

REACH = 1.8
"""Side of a stored image over that of the person's square: enough for augmentation (1.25 times as large, turned)."""

LARGEST = 448
"""Pixels: a larger square is shrunk to this side."""


def write(config: Write) -> None:
    people = read_people(config.people)
    make_folder(config.out)
    index = config.out / "index.npz"
    index.unlink(missing_ok=True)  # that of earlier shards would fit none of those that follow
    places = np.zeros((len(people), 5), np.int64)
    with ThreadPoolExecutor() as pool:
        for shard, first in enumerate(tqdm(range(0, len(people), config.per_shard), desc=str(config.out))):
            rows = np.arange(first, min(first + config.per_shard, len(people)))
            some, readers = people.fetch(rows)
            path = config.out / _name(shard)
            with tarfile.open(path, "w") as tar:
                for row, files in zip(rows, pool.map(_sample, [some] * len(rows), range(len(rows)), readers)):
                    for ending, data in files.items():
                        member = tarfile.TarInfo(f"{row:08d}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            with tarfile.open(path) as tar:
                found = [(member.offset_data, member.size) for member in tar]
            places[rows] = np.insert(np.reshape(found, (-1, 4)), 0, shard, axis=1)
    np.savez(index, places=places, joints=people.joints, compared=people.compared)


class ShardedPeople:
    """A `people.PeopleSource` in the shards of a folder or URL."""

    def __init__(self, place: str) -> None:
        """Raises InputError that names what is wrong with the index."""
        try:
            self.files, folder = fsspec.core.url_to_fs(place)
        except (ValueError, ImportError) as error:  # fsspec loads what it needs for a protocol
            raise InputError(f"shards:{place}: cannot be opened ({error})") from error
        self.folder = folder.rstrip("/")
        index = f"{self.folder}/index.npz"
        if not self.files.exists(index):
            raise InputError(f"{index}: there is no such file; `mega shards` writes it")
        try:
            with np.load(io.BytesIO(self.files.cat_file(index)), allow_pickle=False) as data:
                self.places, self.joints = data["places"], int(data["joints"])
                self.compared = cast(Joints, str(data["compared"]))
        except Exception as error:  # damaged archives raise anything
            raise InputError(f"{index}: not the index of shards ({error})") from error
        if self.places.ndim != 2 or self.places.shape[1] != 5 or self.places.dtype.kind != "i":
            raise InputError(f"{index}: field 'places' has the shape {list(self.places.shape)} in place of [any, 5]")
        if not len(self.places) or (self.places < 0).any():
            raise InputError(f"{index}: field 'places' holds no places in files")
        if self.compared not in get_args(Joints):
            raise InputError(f"{index}: field 'compared' is '{self.compared}', none of {', '.join(get_args(Joints))}")

    def __len__(self) -> int:
        return len(self.places)

    def fetch(self, index: np.ndarray) -> tuple[LabelledPeople, Sequence[ImageReader]]:
        places = self.places[index]
        paths = [f"{self.folder}/{_name(shard)}" for shard in places[:, 0]]
        starts, sizes = places[:, [1, 3]].T.ravel(), places[:, [2, 4]].T.ravel()
        try:
            data = self.files.cat_ranges(paths * 2, starts.tolist(), (starts + sizes).tolist(), on_error="raise")
        except FileNotFoundError as error:
            raise InputError(f"{error}: there is no such shard") from error
        names = [f"{path}, person {k}" for path, k in zip(paths, index)]
        images, labels = data[: len(index)], data[len(index) :]
        people = [_read_label(name, label, self.joints) for name, label in zip(names, labels)]
        columns = {name: np.stack(values) for name, values in zip(COLUMNS, zip(*people))}
        readers = [partial(decode, image, name) for image, name in zip(images, names)]
        return LabelledPeople(**columns, compared=self.compared), readers


def _name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def _sample(people: LabelledPeople, k: int, read_image: ImageReader) -> dict[str, bytes]:
    """The files of person k: the image around the square, and the label in this image."""
    square = Square(people.centre[k], REACH * float(people.side[k]))
    pixels = max(1, round(REACH * min(float(people.side[k]), LARGEST)))
    crop = cv2.cvtColor(affine_crop(read_image(), square, pixels, smooth=True), cv2.COLOR_RGB2BGR)
    xy, confidence = people.joints2d[k, :, :2], people.joints2d[k, :, 2:]
    label = {
        "centre": [pixels / 2, pixels / 2],
        "side": pixels / REACH,
        "pose": people.pose[k].tolist(),
        "betas": people.betas[k].tolist(),
        "gender": str(people.gender[k]),
        "joints2d": np.concatenate([(square.points(xy) + 1) * pixels / 2, confidence], axis=1).tolist(),
    }
    jpg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return {"jpg": jpg, "json": json.dumps(label).encode()}


def _read_label(name: str, data: bytes, joints: int) -> tuple[Any, ...]:
    """The fields `COLUMNS` of `LabelledPeople` for one person."""
    path = Path(name)
    try:
        label = json.loads(data)
        values = [label[name] for name in COLUMNS[1:]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a label of a person ({error!r})") from error
    centre, side, pose, betas, gender, joints2d = values
    return (
        name,
        floats(path, "centre", centre, (2,)),
        floats(path, "side", side, ()),
        floats(path, "pose", pose, (66,)),
        floats(path, "betas", betas, (10,)),
        str(gender),
        floats(path, "joints2d", joints2d, (joints, 3)),
    )
