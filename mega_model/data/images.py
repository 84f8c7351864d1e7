"""Image sets: images of people with meshes. One interface for all data sets, and mixtures of them.

`open_set("KIND:PATH")` opens a set. Its batches have the fields that `ImageSet.batch` lists.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mega_model.blazepose import VARIANTS
from mega_model.body.smpl import VARIABLE, load_bodies, load_regressor
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.data.annotations import read_people
from mega_model.data.features import FeatureSet
from mega_model.data.live import LiveSet
from mega_model.data.people import SPIN_JOINTS, PeopleSet
from mega_model.data.rendered import SceneSet
from mega_model.data.shards import ShardedPeople
from mega_model.mega import MegaConfig


class ImageSet(Protocol):
    """Crops of people with their meshes."""

    evaluation_regressor: np.ndarray | None
    """float32 [J, V]: regressor of the joints of the set's evaluation protocol; None for the topology's joints."""

    @property
    def topology(self) -> Topology: ...

    def __len__(self) -> int: ...

    def batch(self, index: np.ndarray, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """The people `index` int [B], augmented if `rng` is given.

        images uint8 [B, 3, H, W] RGB; vertices [B, V, 3] canonical, metres; rotation [B, 3, 3] canonical to camera;
        joints [B, 24, 3] canonical; joints2d [B, 24, 2] in the crop, -1 to 1; confidence [B, 24] of each joints2d, 0
        if it is unknown. float32. Missing joints are zero. A set may have further fields.
        """
        ...


class Mixture:
    """Draws people from several image sets in given proportions."""

    def __init__(self, sets: Sequence[ImageSet], proportions: Sequence[float] = ()) -> None:
        """`proportions` are relative; by default proportional to the numbers of people."""
        self.sets = sets
        weights = np.array(proportions or [len(s) for s in sets], float)
        if len(weights) != len(sets) or not len(sets) or (weights < 0).any() or not 0 < weights.sum() < np.inf:
            raise InputError(f"proportions {weights.tolist()} do not fit {len(sets)} image sets")
        first = [s.batch(np.zeros(1, int), None) for s in sets]
        self.names = [name for name in first[0] if all(name in batch for batch in first)]
        """The fields common to all sets."""
        for field, what in (("images", "crops"), ("maps", "features"), ("vertices", "bodies")):
            shapes = [tuple(batch[field].shape[1:]) if field in batch else None for batch in first]
            if len(set(shapes)) > 1:
                raise InputError(f"image sets of different {what} cannot be mixed: their shapes are {shapes}")
        self.proportions = weights / weights.sum()

    def __len__(self) -> int:
        return sum(len(s) for s in self.sets)

    def batch(self, rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        """`count` random people, augmented, with the fields `names`."""
        counts = rng.multinomial(count, self.proportions)
        parts = []
        for images, n in zip(self.sets, counts):
            if n:
                # without repetition, unless the set is too small; sorted for sequential reads
                index = np.sort(rng.choice(len(images), n, replace=n > len(images)))
                parts.append(images.batch(index, rng))
        devices = {name: parts[0][name].device for name in self.names}  # live images may be on a GPU
        return {name: torch.cat([part[name].to(device) for part in parts]) for name, device in devices.items()}


def open_set(
    name: str,
    size: tuple[int, int] | None = None,
    body: Path | None = None,
    topology: Topology | None = None,
) -> ImageSet:
    """The image set "KIND:PATH" as crops of `size` (H, W), by default 224 x 224 (rendered ones 256 x 256).

    KIND:PATH is one of those that `annotations.read_people` lists, or
    `rendered:FOLDER`  written by `mega render`
    `features:FOLDER`  written by `mega features`
    `shards:FOLDER`    or URL, written by `mega shards`
    `live:SPLIT`       rendered while a stage trains on it: train, calibration or test, see `live.LiveSet`

    body: for the first kinds and `shards`, the SMPL model file, or a folder with one per gender (by default the
    environment variable MEGA_SMPL). This folder holds J_regressor_h36m.npy, the regressor of Human3.6M's joints. Data
    sets with labels of these joints need it, and so does the evaluation on 14 joints. topology: of a rendered set, by
    default the one in its folder; a live set needs one. Raises InputError that names the file and the fault.
    """
    kind, _, place = name.partition(":")
    if kind == "rendered":
        return SceneSet(Path(place), topology, size)
    if kind == "features":
        return FeatureSet(Path(place), topology)
    if kind == "live":
        if topology is None:
            raise InputError(f"{name}: needs the topology of a model")
        return LiveSet(place, topology, size)
    source = ShardedPeople(place) if kind == "shards" else read_people(name)
    bodies = load_bodies(body)
    vertices = len(next(iter(bodies.values())).topology().template)
    folder = Path(body or os.environ[VARIABLE])
    file = (folder if folder.is_dir() else folder.parent) / "J_regressor_h36m.npy"
    h36m = load_regressor(file, vertices) if file.exists() else None
    if h36m is None and source.joints == len(SPIN_JOINTS):
        raise InputError(f"{file}: {name} labels Human3.6M's joints; this regressor of them is part of SPIN's data")
    return PeopleSet(source, bodies, h36m, size or (224, 224))


def open_for(
    model: MegaConfig, topology: Topology, name: str, body: Path | None = None, pixels: int | None = None
) -> ImageSet:
    """`open_set` for a model of this body, as crops of `pixels`, by default the model's.

    Raises InputError also if the set's bodies are not the model's, or its features not of the model's backbone.
    """
    side = pixels or model.image_size
    images = open_set(name, (side, side), body, topology)
    has, wanted = len(images.topology.template), len(topology.template)
    if has != wanted:
        raise InputError(f"{name}: its bodies have {has} vertices, the model's {wanted}")
    if isinstance(images, FeatureSet):
        channels = images.fields["maps"].shape[1]
        if model.backbone != "blazepose" or channels != VARIANTS[model.backbone_width].trunk[-2][0]:
            raise InputError(
                f"{name}: features of {channels} channels are not of the model's backbone, {model.backbone} of width "
                f"{model.backbone_width}; use the rendered set instead"
            )
    if isinstance(images, LiveSet) and model.backbone != "blazepose":
        raise InputError(f"{name}: landmarks place its crops, and the model's backbone has none; use a rendered set")
    return images
