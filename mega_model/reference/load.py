"""Loads released files as models of this project. Keys and shapes give the sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mega_model.body.smpl import hierarchy_seeds
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.reference.files import get, matched, read_weights
from mega_model.reference.keys import IMAGE_PART, released_name, tokenizer_names
from mega_model.tokenizer import Layer, MeshTokenizer, TokenizerConfig

_FAMILIES = {"hrnet": ("backbone.stage4.", 15), "resnet": ("backbone.7.", 32), "vit": ("backbone.blocks.", 1)}
"""Preset -> prefix of some of its backbone's keys, and the output channels over the width."""


def load_mega(path: Path | str, preset: str = "hrnet") -> Mega:
    """A released MEGA with any backbone, or the pre-training checkpoint, which has no image part.

    The latter gets the untrained backbone and heads of `preset`. A file with image heads but no backbone gives a model
    that takes feature maps for images. The weights stay on disk until they are used. Raises InputError that names the
    file and the keys that are missing, unexpected or of another shape.
    """
    weights = read_weights(path)
    config = _mega_config(path, weights, preset)
    with torch.device("meta"):  # the file's weights need no initialisation
        model = Mega(config)
    names = {key: released_name(key, config) for key in model.state_dict()}
    image = {key: name for key, name in names.items() if key.startswith(IMAGE_PART)}
    if weights.keys().isdisjoint(image.values()):  # pre-trained
        with torch.random.fork_rng():
            torch.manual_seed(0)  # reproducible initialisation of what the file lacks
            model = Mega(config)
        names = {key: name for key, name in names.items() if key not in image}
    model.load_state_dict(matched(path, model, names, weights), strict=False, assign=True)
    return model.eval()


def load_tokenizer(path: Path | str, connections: Path | str, residual: Sequence[float] = ()) -> MeshTokenizer:
    """A released Mesh-VQ-VAE, whose graphs are in the folder `connections` (`_pool0.npy`, `_unpool0.npy` ...).

    `residual` is the residual rate of every layer, encoder and decoder; a file tells only those that are 0 or 1, as all
    of the released model's are. Raises InputError that names the file and what is wrong with it.
    """
    weights = read_weights(path)
    layers = _layers(path, weights, residual)
    _check_copies(path, weights)
    codebook = get(path, weights, "vq_vae._embedding.weight", 2)
    levels = hierarchy.load(Path(connections))
    if len(layers) > 2 * len(levels):
        raise InputError(
            f"{connections}: {len(levels)} levels of tables, but the {len(layers)} layers of {path} need more"
        )
    seeds = hierarchy_seeds(len(levels[0].centres))
    config = TokenizerConfig(seeds=seeds, codes=len(codebook), from_template=False, layers=layers)
    tokenizer = MeshTokenizer(unknown_body(len(levels[0].centres)), config, levels)
    tokenizer.load_state_dict(matched(path, tokenizer, tokenizer_names(tokenizer), weights), strict=False)
    return tokenizer.eval()


def unknown_body(vertices: int, faces: np.ndarray | None = None) -> Topology:
    """A topology with only the number of vertices, and perhaps the faces [F, 3], known. Its template is zero."""
    return Topology(
        template=np.zeros((vertices, 3), np.float32),
        faces=np.zeros((0, 3), np.int32) if faces is None else faces,
        joint_regressor=np.zeros((0, vertices), np.float32),
        parts=np.zeros(vertices, np.int32),
        joint_names=(),
    )


def _mega_config(path: Path | str, weights: Mapping[str, Tensor], preset: str) -> MegaConfig:
    """All sizes, from the shapes."""
    codes, width = get(path, weights, "encoder.proj.weight", 2).shape

    def blocks(part: str) -> int:
        return len({key.split(".")[2] for key in weights if key.startswith(f"{part}.transformer.")})

    try:
        base = replace(
            PRESETS[preset],
            tokens=len(get(path, weights, "encoder.pos_embedding", 3)),
            codes=codes,
            width=width,
            encoder_blocks=blocks("encoder"),
            decoder_blocks=blocks("decoder"),
            heads=4,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    found = [name for name, (start, _) in _FAMILIES.items() if any(key.startswith(start) for key in weights)]
    if found:
        channels = get(path, weights, "decoder.cond_emb.weight", 2).shape[1]
        family = PRESETS[found[0]]
        return replace(
            base,
            backbone=family.backbone,
            backbone_width=channels // _FAMILIES[found[0]][1],
            image_size=family.image_size,
        )
    if "decoder.cond_emb.weight" in weights:
        return replace(base, backbone="given", backbone_width=get(path, weights, "decoder.cond_emb.weight", 2).shape[1])
    return base


def _check_copies(path: Path | str, weights: Mapping[str, Tensor]) -> None:
    """Check that the two copies of the network in the file, encoder.model and decoder.model, are equal."""
    ours = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith("encoder.model.")}
    copies = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith("decoder.model.")}
    for key in ours.keys() | copies.keys():
        for half, there in (("encoder", ours), ("decoder", copies)):
            if key not in there:
                raise InputError(f"{path}: {half}.{key} is missing")
        if not torch.equal(ours[key], copies[key]):
            raise InputError(f"{path}: decoder.{key} is not the same as encoder.{key}")


def _layers(path: Path | str, weights: Mapping[str, Tensor], residual: Sequence[float]) -> tuple[Layer, ...]:
    """The layers, from keys and shapes."""
    numbers = [int(match[1]) for key in weights if (match := re.fullmatch(r"encoder\.model\.\D+(\d+)", key))]
    if not numbers:
        raise InputError(f"{path}: not a Mesh-VQ-VAE, encoder.model is missing")
    if residual and len(residual) != max(numbers) + 1:
        raise InputError(f"{path}: {len(residual)} residual rates for {max(numbers) + 1} layers")
    layers = []
    channels = 3
    for number in range(max(numbers) + 1):
        kernels = weights.get(f"encoder.model.weights{number}")
        shortcut = weights.get(f"encoder.model.weight_res{number}")
        around = shortcut is not None or f"encoder.model.p_neighbors{number}" in weights
        if kernels is not None and around and not residual:
            raise InputError(f"{path}: layer {number} mixes convolution and shortcut, and only its rate says how much")
        if kernels is not None:
            channels = kernels.shape[-1] // channels
        elif shortcut is not None:
            channels = len(shortcut)
        rate = residual[number] if residual else float(kernels is None)
        layers.append(Layer(channels, 0 if kernels is None else len(kernels), rate))
    return tuple(layers)
