"""Trained models on disk: a folder with `model.safetensors`, `config.json`, and the tokenizer's `topology.npz`.

A MEGA checkpoint holds its tokenizer's in the folder `tokenizer`. An imported tokenizer's tables are in `connections`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mega_model.blazepose import BlazePose
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder, must_exist, read_json
from mega_model.core.topology import Topology
from mega_model.expected_error import AGREEMENT, ErrorHead
from mega_model.mega import Mega, MegaConfig
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig

C = TypeVar("C")
ERRORS = "errors.safetensors"
"""File of the error head in a MEGA checkpoint."""


class LoadedModel(NamedTuple):
    """What a MEGA checkpoint holds, on one device."""

    mega: Mega
    tokenizer: MeshTokenizer
    errors: ErrorHead | None
    topology: Topology

    @property
    def networks(self) -> list[nn.Module]:
        return [self.mega, self.tokenizer, *([self.errors] if self.errors else [])]

    def to(self, device: str) -> LoadedModel:
        """Moves the networks."""
        for network in self.networks:
            network.to(device)
        return self


def save_weights(model: nn.Module, folder: Path, name: str = "model.safetensors") -> None:
    file = folder / name
    file.touch()
    mode = file.stat().st_mode
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    file.chmod(mode)  # safetensors writes files that nobody else may read


def load_weights(model: nn.Module, folder: Path) -> None:
    """Raises InputError that names the file, and the first key that is missing, unexpected, of another shape or not
    finite.
    """
    file = folder / "model.safetensors"
    must_exist(file)
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file}: not a readable safetensors file ({error})") from error
    own = model.state_dict()
    for key in [*own, *weights]:
        here, there = own.get(key), weights.get(key)
        if here is None or there is None or here.shape != there.shape:
            shapes = ["nothing" if part is None else str(list(part.shape)) for part in (there, here)]
            raise InputError(f"{file}: of another model: {key} is {shapes[0]}, the model has {shapes[1]}")
    must_be_finite(file, weights)
    model.load_state_dict(weights)


def must_be_finite(file: Path | str, weights: Mapping[str, Tensor]) -> None:
    """Raises InputError that names the first of a file's weights that are not all numbers."""
    for key, values in weights.items():
        if not values.isfinite().all():
            raise InputError(f"{file}: {key} holds something other than finite numbers")


def begin_tokenizer(folder: Path, topology: Topology, config: TokenizerConfig) -> MeshTokenizer:
    """A new tokenizer. Writes its checkpoint without the weights."""
    make_folder(folder)
    topology.save(folder / "topology.npz")
    _begin_config(folder, config)
    return MeshTokenizer(topology, config)


def load_tokenizer(folder: Path) -> tuple[MeshTokenizer, Topology]:
    topology = Topology.load(folder / "topology.npz")
    levels = hierarchy.load(folder / "connections") if (folder / "connections").exists() else None
    model = MeshTokenizer(topology, _read_config(TokenizerConfig, folder), levels)
    load_weights(model, folder)
    return model.eval(), topology


def begin_mega(folder: Path, tokenizer: Path, config: MegaConfig) -> Mega:
    """A new model for the tokenizer in a folder. Writes its checkpoint without the weights.

    InputError if this is the folder of the checkpoint that the tokenizer belongs to.
    """
    make_folder(folder / "tokenizer")
    if (folder / "tokenizer").samefile(tokenizer):
        raise InputError(f"{folder}: holds the model to start from; train into another folder")
    for name in ("model.safetensors", "config.json", "topology.npz"):
        shutil.copy(tokenizer / name, folder / "tokenizer" / name)
    if (tokenizer / "connections").exists():
        shutil.copytree(tokenizer / "connections", folder / "tokenizer" / "connections", dirs_exist_ok=True)
    _begin_config(folder, config)
    return Mega(config)


def save_mega(
    folder: Path, model: Mega, tokenizer: MeshTokenizer, topology: Topology, levels: Sequence[hierarchy.Level]
) -> None:
    """Write the checkpoint of an imported model, with the tables of its tokenizer."""
    hierarchy.save(folder / "tokenizer" / "connections", levels)
    topology.save(folder / "tokenizer" / "topology.npz")
    for part, place in ((tokenizer, folder / "tokenizer"), (model, folder)):
        _write_config(place, part.config)
        save_weights(part, place)


def load_mega(folder: Path) -> tuple[Mega, MeshTokenizer, Topology]:
    with torch.device("meta"):  # the weights are in the file
        model = Mega(_read_config(MegaConfig, folder))
    load_weights(model.to_empty(device="cpu"), folder)
    return model.eval(), *load_tokenizer(folder / "tokenizer")


def load(folder: Path) -> LoadedModel:
    """All of a MEGA checkpoint, on the CPU."""
    mega, tokenizer, topology = load_mega(folder)
    return LoadedModel(mega, tokenizer, load_errors(folder, mega), topology)


def save_calibration(folder: Path, calibration: Mapping[str, Any]) -> None:
    """Write how sigma was calibrated. The scores that there are belong to an earlier sigma, so they go."""
    (folder / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")
    (folder / "scores.json").unlink(missing_ok=True)


def save_errors(folder: Path, head: ErrorHead) -> None:
    save_weights(head, folder, ERRORS)


def load_errors(folder: Path, model: Mega) -> ErrorHead | None:
    """The error head of the MEGA checkpoint that holds `model`; None if it has none.

    InputError for a damaged file, or the head of another model.
    """
    file = folder / ERRORS
    if not file.exists():
        return None
    try:
        weights = load_file(file)
        (vertices, tokens), (joints, _) = weights["shares"].shape, weights["joint_shares"].shape
        width, channels = weights["token.0.weight"].shape[1] - AGREEMENT, len(weights["centre"])
        head = ErrorHead(width, tokens, vertices, joints, channels, len(weights["modes"]))
        head.load_state_dict(weights)
        must_be_finite(file, weights)
        backbone = model.backbone
        if not isinstance(backbone, BlazePose) or (width, channels) != (model.config.width, backbone.branch_channels):
            raise ValueError(f"of another model: states of width {width} and maps of {channels} channels")
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{file}: not the weights of an error head ({error}); train it again with mega train errors"
        ) from error
    return head.eval()


def _begin_config(folder: Path, config: Any) -> None:
    """Write the config, or check it if there are weights, because another process may be reading it."""
    if not (folder / "model.safetensors").exists():
        _write_config(folder, config)
    elif _read_config(type(config), folder) != config:
        raise InputError(f"{folder / 'config.json'} is of another model; train this one into another folder")


def _write_config(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def _read_config(kind: type[C], folder: Path) -> C:
    file = folder / "config.json"
    values = read_json(file)
    try:
        config = msgspec.convert(values, kind)
        if unknown := values.keys() - asdict(config).keys():  # type: ignore[call-overload]
            raise ValueError(f"it has no {min(unknown)}")
        return config
    except (ValueError, msgspec.ValidationError) as error:
        raise InputError(f"{file}: not the config of a {kind.__name__.removesuffix('Config')} ({error})") from error
