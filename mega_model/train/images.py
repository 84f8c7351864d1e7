"""Shared by the training stages on images: options, batches, losses and initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mega_model import checkpoint
from mega_model.blazepose import PoseFeatures
from mega_model.core.files import read_json
from mega_model.data.features import FeatureSet
from mega_model.data.images import ImageSet, Mixture, open_for
from mega_model.data.live import LiveSet
from mega_model.data.meshes import MOTION
from mega_model.data.rendered import CroppedScenes
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix
from mega_model.image_encoding import ImageEncoding
from mega_model.mega import PRESETS, Mega
from mega_model.options import ImageTraining
from mega_model.reference.keys import IMAGE_PART
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.linear_decoder import LinearDecoder, weighted_mean
from mega_model.train.loop import Batch, Losses, Objective, fit, own_device
from mega_model.train.published import load_backbone

BACKBONE_FIELDS = ("backbone", "backbone_width", "image_size", "head_dropout")
"""Fields of `MegaConfig` that depend on the backbone."""
VALIDATED = 500
"""The most people of a validation set that are used, drawn at random."""
C = TypeVar("C", bound="ImageTraining")


def encode_images(model: Mega, batch: Batch) -> ImageEncoding:
    """The image encoding of a batch of images, which are augmented in training, or of stored features.

    In full precision, as rotations and distances to codes are part of it; only the backbone may compute in less.
    """
    faster = torch.channels_last  # on CPUs
    if "maps" in batch:
        features: Any = PoseFeatures(*(batch[name] for name in PoseFeatures._fields))
        features = features._replace(maps=features.maps.contiguous(memory_format=faster))
    else:
        images = model.normalise(augment(batch["images"]) if model.training else batch["images"].float() / 255)
        features = model.backbone(images.contiguous(memory_format=faster))
    with full_precision(model.cls):
        if isinstance(features, PoseFeatures):
            return model.encode_image(PoseFeatures(*(part.float() for part in features)))
        return model.encode_image(features.float())


@torch.no_grad()
def tokens_of(batch: Batch, tokenizer: MeshTokenizer) -> Tensor:
    """int64 [B, N]: those that are stored, or of the meshes, in full precision."""
    with full_precision(batch["vertices"]):
        return batch["tokens"] if "tokens" in batch else tokenizer.encode(batch["vertices"])


def latent_losses(seen: ImageEncoding, tokens: Tensor, tokenizer: MeshTokenizer) -> Losses:
    """Loss on the lifter's latents, in units of the codes' standard deviation."""
    assert seen.latents is not None
    codes = tokenizer.quantizer.codebook
    unit = codes.std(dim=0)
    return {"latents": F.mse_loss(seen.latents.float() / unit, codes[tokens] / unit)}


def pose_losses(rot6d: Tensor, camera: Tensor, batch: Batch, compared: Literal["rot6d", "matrix"]) -> Losses:
    """The rotation loss of rot6d [B, 6], and the reprojection loss of rotation and camera [B, 3]."""
    with full_precision(rot6d):
        rot6d, camera = rot6d.float(), camera.float()
        rotation = rot6d_to_matrix(rot6d)
        if compared == "matrix":
            rotation_loss = F.mse_loss(rotation, batch["rotation"])
        else:
            rotation_loss = 5 * F.mse_loss(rot6d, matrix_to_rot6d(batch["rotation"]))
        # tokens pass no gradient, so project the true body
        points = project_weak(batch["joints"] @ rotation.transpose(1, 2), camera)
        distance = weighted_mean((points - batch["joints2d"]).abs(), batch["confidence"])
    return {"rotation": rotation_loss, "reprojection": distance}


def full_precision(x: Tensor) -> torch.autocast:
    """A context that disables mixed precision on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def augment(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float in 0..1.

    Gamma, saturation, low resolution, contrast, brightness, colour cast, blur, noise, and black image edges.
    """
    batch, _, height, width = images.shape

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(batch, channels, 1, 1, device=images.device).uniform_(low, high)

    x = (images.float() / 255).pow(uniform(-0.5, 0.5).exp())
    saturation = torch.where(uniform(0, 1) < 0.1, 0, uniform(0.5, 1.3))
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, saturation)
    # people who are far away; all of a batch have the same number of pixels
    far = torch.rand(batch, device=images.device) < 0.25
    small = F.interpolate(x[far], scale_factor=float(torch.empty(()).uniform_(0.2, 0.6)), mode="area")
    x[far] = F.interpolate(small, size=(height, width), mode="bilinear")
    x = (x * uniform(0.6, 1.4) * uniform(0.9, 1.1, 3) + uniform(-0.15, 0.15)).clamp(0, 1)
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1), uniform(0, 1).square())
    x = (x + torch.randn_like(x) * uniform(0, 0.06)).clamp(0, 1)
    # a crop is black outside the image
    edge = torch.where(uniform(0, 1) < 0.15, uniform(0, 0.3), 0)
    side = torch.randint(4, (batch, 1, 1, 1), device=images.device)
    column = torch.linspace(0, 1, width, device=images.device)[None, None, None]
    row = torch.linspace(0, 1, height, device=images.device)[None, None, :, None]
    place = torch.where(side == 0, column, torch.where(side == 1, 1 - column, torch.where(side == 2, row, 1 - row)))
    return x * (place >= edge)


def run(config: C, begin: Callable[[Mega, MeshTokenizer, C, LinearDecoder | None], Objective]) -> None:
    """Train a copy of the `pretrained` checkpoint on images, with the objective that `begin` creates.

    Raises InputError if the model cannot read a set.
    """
    with ExitStack() as rendering:
        _run(config, begin, rendering)


def _run(
    config: C, begin: Callable[[Mega, MeshTokenizer, C, LinearDecoder | None], Objective], rendering: ExitStack
) -> None:
    torch.manual_seed(config.seed)
    pretrained, tokenizer, topology = checkpoint.load_mega(config.pretrained)
    weights, size = pretrained.state_dict(), pretrained.config
    if config.preset:
        preset = PRESETS[config.preset]
        size = replace(size, **{name: getattr(preset, name) for name in BACKBONE_FIELDS}, latent=tokenizer.latent)
    if size.backbone == "blazepose" and config.backbone:
        size = replace(size, backbone_width=origin_of(config.backbone).get("backbone_width", size.backbone_width))
    if config.preset or size != pretrained.config:
        weights = {name: v for name, v in weights.items() if not name.startswith(IMAGE_PART)}
    sets = [open_for(size, topology, name, config.body, config.pixels) for name in config.sets]
    model = checkpoint.begin_mega(config.out, config.pretrained / "tokenizer", size)
    model.load_state_dict(model.state_dict() | weights)
    if config.backbone:
        load_backbone(config.backbone, model)
    if model.lifter is not None:
        model.lifter.set_codebook(tokenizer.quantizer.codebook)
    for images in sets:
        if isinstance(images, FeatureSet):
            images.tokenise(tokenizer)
        if isinstance(images, LiveSet):
            rendering.enter_context(images.rendering(model.backbone, config.steps * config.batch, own_device()))
    mixture = Mixture(sets, config.proportions)
    linear = None
    if model.lifter is not None:
        bodies = mixture.batch(np.random.default_rng(config.seed), min(1500, len(mixture)))["vertices"]
        linear = LinearDecoder(tokenizer, topology, bodies)
    validation = []
    if config.validate:
        held_out = open_for(size, topology, config.validate, config.body, config.pixels)
        some = np.random.default_rng(config.seed).permutation(len(held_out))[:VALIDATED]
        validation = [held_out.batch(np.sort(part), None) for part in np.array_split(some, -(-len(some) // 20))]
    objective = begin(model, tokenizer, config, linear)
    fit(config, objective, mixture.batch, provenance(config, sets), validation)


def origin_of(backbone: Path) -> dict[str, Any]:
    """What `mega import-backbone` noted in the folder `backbone`; nothing for another one, or a file."""
    file = backbone / "origin.json"
    return read_json(file) if file.exists() else {}


def provenance(config: ImageTraining, sets: Sequence[ImageSet]) -> dict[str, Any]:
    """Entries of training.json on the images and on the previous stages."""
    counts = (None if isinstance(images, LiveSet) else len(images) for images in sets)  # a live set is still growing
    about: dict[str, Any] = {"images": dict(zip(config.sets, counts))}
    if config.backbone:
        about["backbone"] = origin_of(config.backbone) or config.backbone.name
    if config.proportions:
        about["proportions"] = config.proportions
    if any(isinstance(images, CroppedScenes | FeatureSet) for images in sets):
        about["motion"] = MOTION
    before = config.pretrained / "training.json"
    if before.exists():
        about["before"] = read_json(before)
    return about
