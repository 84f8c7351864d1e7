"""Reads torch files and checks their keys and shapes, without running code from them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mega_model.checkpoint import must_be_finite
from mega_model.core.errors import InputError, first_line
from mega_model.core.files import must_exist
from mega_model.reference.keys import UNUSED, released_shape


def read_torch(path: Path | str) -> Any:
    """The content of a torch file. Raises InputError if reading it would run code."""
    must_exist(Path(path))
    try:
        # memory-mapped, because the unused optimizer state is twice as large
        return torch.load(str(path), map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # damaged files raise anything
        raise InputError(
            f"{path}: not a checkpoint that torch can read without running code in it ({first_line(error)})"
        ) from error


def are_tensors(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether it is a mapping from names to tensors."""
    return isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values())


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The weights of a released file by key."""
    content = read_torch(path)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not are_tensors(weights):
        raise InputError(f"{path}: not a released checkpoint, it has no tensors by name under 'model'")
    return without_prefix(weights)


def without_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefix that training on several GPUs leaves."""
    return {key.removeprefix("module."): value for key, value in weights.items()}


def get(path: Path | str, weights: Mapping[str, Tensor], key: str, axes: int) -> Tensor:
    if key not in weights:
        raise InputError(f"{path}: {key} is missing, so this is not the released model that was expected")
    if weights[key].ndim != axes:
        raise InputError(f"{path}: {key} has the shape {list(weights[key].shape)}, not one of {axes} axes")
    return weights[key]


def matched(
    path: Path | str, model: nn.Module, names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict for `model`. `names`: our key -> key in the file."""
    own = {key: value for key, value in model.state_dict().items() if key in names}
    shapes = {names[key]: released_shape(names[key], value.shape) for key, value in own.items()}
    problems = [f"{name} is missing" for name in shapes if name not in weights]
    for name, value in weights.items():
        if name in shapes:
            if value.shape != shapes[name]:
                problems.append(f"{name} has the shape {list(value.shape)} in place of {list(shapes[name])}")
        elif not any(re.fullmatch(pattern, name) for pattern in UNUSED[type(model)]):
            problems.append(f"{name} is unexpected")
    if problems:
        more = f", and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise InputError(f"{path}: {', '.join(problems[:10])}{more}")
    must_be_finite(path, {names[key]: weights[names[key]] for key in own})
    return {key: weights[names[key]].reshape(value.shape).to(value.dtype) for key, value in own.items()}
