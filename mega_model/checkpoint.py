"""Trained models on disk: a folder with `model.safetensors`, `config.json`, and the tokenizer's `topology.npz`.

A MEGA checkpoint holds its tokenizer's in the folder `tokenizer`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from mega_model.detector import Detector, DetectorConfig
from mega_model.mega import Mega, MegaConfig
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.topology import Topology

C = TypeVar("C")


def save_weights(model: nn.Module, folder: Path) -> None:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Raises RuntimeError that names missing, unexpected and misshapen keys."""
    model.load_state_dict(load_file(folder / "model.safetensors"))


def begin_tokenizer(folder: Path, topology: Topology, config: TokenizerConfig) -> MeshTokenizer:
    """A new tokenizer, and all of its checkpoint but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    topology.save(folder / "topology.npz")
    _write_config(folder, config)
    return MeshTokenizer(topology, config)


def load_tokenizer(folder: Path) -> tuple[MeshTokenizer, Topology]:
    topology = Topology.load(folder / "topology.npz")
    model = MeshTokenizer(topology, _read_config(TokenizerConfig, folder))
    load_weights(model, folder)
    return model.eval(), topology


def begin_mega(folder: Path, tokenizer: Path, config: MegaConfig) -> Mega:
    """A new model on the tokenizer of a folder, and all of its checkpoint but the weights."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json", "topology.npz"):
        shutil.copy(tokenizer / name, folder / "tokenizer" / name)
    _write_config(folder, config)
    return Mega(config)


def load_mega(folder: Path) -> tuple[Mega, MeshTokenizer, Topology]:
    model = Mega(_read_config(MegaConfig, folder))
    load_weights(model, folder)
    return model.eval(), *load_tokenizer(folder / "tokenizer")


def begin_detector(folder: Path, config: DetectorConfig) -> Detector:
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, config)
    return Detector(config)


def load_detector(folder: Path) -> Detector:
    model = Detector(_read_config(DetectorConfig, folder))
    load_weights(model, folder)
    return model.eval()


def _write_config(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def _read_config(kind: type[C], folder: Path) -> C:
    values = json.loads((folder / "config.json").read_text())
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
