"""The science: Mesh-VQ-VAE and MEGA in PyTorch. Names load lazily: what needs no torch does not import it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"Mega": "mega", "MeshTokenizer": "tokenizer", "Topology": "core.topology"}
__all__ = ["Mega", "MeshTokenizer", "Topology", "generate", "reference"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mega_model.{_HOME[name]}"), name)
    if name in ("generate", "reference"):
        return import_module(f"mega_model.{name}")
    raise AttributeError(f"module 'mega_model' has no attribute '{name}'")
