"""Stage 3: MEGA learns to see: masked mesh tokens, rotation and camera from images (paper 3.3).

With BlazePose's features there are further losses, which are ours: on the lifter's latents, and on meshes in metres,
through the frozen decoder of the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_model import checkpoint
from mega_model.backbones import Backbone, ViT
from mega_model.blazepose import PoseFeatures
from mega_model.core.errors import InputError
from mega_model.core.topology import Topology
from mega_model.data.features import FeatureSet
from mega_model.data.images import ImageSet, Mixture, open_set
from mega_model.data.meshes import MOTION
from mega_model.data.rendered import SceneSet
from mega_model.generate import first_logits
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix
from mega_model.mega import PRESETS, Mega, token_loss
from mega_model.reference import IMAGE_PART
from mega_model.seen import Seen
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse
from mega_model.train.published import load_backbone

EYES = ("backbone", "backbone_width", "image_size", "head_dropout")
"""The fields of a `MegaConfig` that say how it sees."""


@dataclass(frozen=True)
class RecoverTraining(LoopConfig):
    pretrained: Path = Path("runs/lift")
    """Checkpoint to start from, with its tokenizer."""
    sets: tuple[str, ...] = ("features:runs/features/train",)
    """Image sets, KIND:PATH each (see mega_model.data.images)."""
    proportions: tuple[float, ...] = ()
    """Of each set in a batch. By default, sets count as often as they have people."""
    body: Path | None = None
    """SMPL model that makes the meshes of sets which have none; see `images.open_set`."""
    preset: Literal["default", "hrnet", "vit", "resnet"] | None = None
    """Begin to see anew, with this preset's backbone: only the transformer comes from `pretrained`."""
    backbone: Path | None = None
    """What the backbone starts from: published weights, see `published.load_backbone`."""
    pixels: int | None = None
    """Side of the crops, by default the model's: steps on small ones are cheap."""
    rotation: Literal["rot6d", "matrix"] = "rot6d"
    """What the rotation loss compares. The released code compares matrices. A network that is unsure can answer small
    numbers, but not a small matrix, and so learns sooner."""
    trained_blocks: int | None = None
    """Blocks of the backbone, from its last, that learn; 0: it is frozen. By default all of it learns."""


class RecoverObjective(Objective):
    model: Mega

    def __init__(
        self, model: Mega, tokenizer: MeshTokenizer, config: RecoverTraining, linear: LinearDecoder | None = None
    ) -> None:
        super().__init__(model)
        self.linear = linear
        self.frozen = (tokenizer,)  # in a tuple, so that it is not trained, not saved, and never in training mode
        self.config = config
        if config.trained_blocks is not None:
            freeze(model.backbone, config.trained_blocks)

    def train(self, mode: bool = True) -> RecoverObjective:
        super().train(mode)
        if self.config.trained_blocks is not None:
            self.model.backbone.eval()  # what does not learn keeps the statistics of its batch norms
        return self

    def forward(self, batch: Batch) -> Losses:
        seen = see(self.model, batch)
        tokenizer = self.frozen[0].to(seen.camera.device)
        with torch.no_grad(), all_digits(seen.camera):
            tokens = batch["tokens"] if "tokens" in batch else tokenizer.encode(batch["vertices"])
        losses = {
            "tokens": token_loss(self.model, seen.image, tokens),
            **pose_losses(seen.rot6d, seen.camera, batch, self.config.rotation),
        }
        if self.linear is not None:
            codes = first_logits(self.model, seen.image).softmax(dim=-1) @ tokenizer.quantizer.codebook
            with all_digits(seen.camera):
                losses |= latent_losses(seen, tokens, tokenizer)
                losses |= self.linear.losses(codes.float(), seen, batch)
        return losses


def see(model: Mega, batch: Batch) -> Seen:
    """What the model reads off images, which are augmented first, or off the features that a set holds."""
    if "maps" in batch:
        return model.see(PoseFeatures(*(batch[name] for name in PoseFeatures._fields)))
    images = model.normalise(augment(batch["images"]))
    return model.see(model.backbone(images.contiguous(memory_format=torch.channels_last)))  # CPUs convolve faster so


def latent_losses(seen: Seen, tokens: Tensor, tokenizer: MeshTokenizer) -> Losses:
    """Of the lifter's latents, in units of the codes' deviation."""
    assert seen.latents is not None
    codes = tokenizer.quantizer.codebook
    unit = codes.std(dim=0)
    return {"latents": F.mse_loss(seen.latents.float() / unit, codes[tokens] / unit)}


class LinearDecoder(nn.Module):
    """The tokenizer's decoder as a linear map from latents to some vertices and the joints, by least squares.

    It is off by a centimetre, and so cheap that every mesh of a batch can be compared with the true one.
    """

    def __init__(self, tokenizer: MeshTokenizer, topology: Topology, bodies: Tensor, vertices: int = 300) -> None:
        """bodies [n, V, 3]: as many as there are latents in a mesh, or more."""
        super().__init__()
        with torch.no_grad():
            latents, meshes = [], []
            for part in bodies.split(100):
                codes = tokenizer.quantizer.codebook[tokenizer.encode(part)]
                latents.append(codes.flatten(1))
                meshes.append(tokenizer.reconstruct(codes))
            z, mesh = torch.cat(latents), torch.cat(meshes)
            some = torch.randperm(mesh.shape[1])[:vertices]
            joints = torch.from_numpy(topology.joint_regressor) @ mesh
            points = torch.cat([mesh[:, some], joints], dim=1).flatten(1)
            centre, middle = z.mean(dim=0), points.mean(dim=0)
            # a little ridge, for directions in which few bodies vary
            ridge = 0.3 * z.std() * torch.eye(z.shape[1])
            left = torch.cat([z - centre, ridge])
            right = torch.cat([points - middle, points.new_zeros(z.shape[1], points.shape[1])])
            weight = torch.linalg.lstsq(left, right).solution
        self.joints = len(topology.joint_regressor)  # an imported tokenizer may know no joints
        for name, value in {"some": some, "weight": weight, "bias": middle - centre @ weight}.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, N, latent] -> points [B, vertices + joints, 3]"""
        return (latents.flatten(1) @ self.get_buffer("weight") + self.get_buffer("bias")).unflatten(1, (-1, 3))

    def losses(self, latents: Tensor, seen: Seen, batch: Batch) -> Losses:
        """Of the meshes of latents: as they are, and turned, decimetres apart; and of their joints in the crop."""
        points = self(latents)
        joints = batch["joints"][:, : self.joints]
        truth = torch.cat([batch["vertices"][:, self.get_buffer("some")], joints], dim=1)
        posed = points @ rot6d_to_matrix(seen.rot6d.float()).mT
        losses = {
            "mesh": 5 * (points - truth).norm(dim=-1).mean(),
            "posed": 5 * (posed - truth @ batch["rotation"].mT).norm(dim=-1).mean(),
        }
        if self.joints:
            joints2d = project_weak(posed[:, -self.joints :], seen.camera.float())
            losses["joints2d"] = 2 * (joints2d - batch["joints2d"]).abs().clamp(max=1).mean()
        return losses


def freeze(backbone: Backbone, trained_blocks: int) -> None:
    """Only the last blocks and the norm behind them go on learning. InputError if the backbone has no such blocks."""
    backbone.requires_grad_(False)
    if trained_blocks:
        if not isinstance(backbone, ViT) or trained_blocks > len(backbone.blocks):
            raise InputError(
                f"trained_blocks {trained_blocks}: only the ViT has blocks that can learn alone, at most 32"
            )
        for module in (*backbone.blocks[-trained_blocks:], backbone.norm):
            module.requires_grad_(True)


def all_digits(x: Tensor) -> torch.autocast:
    """A context without mixed precision on the device of x, for what must be exact."""
    return torch.autocast(x.device.type, enabled=False)


def pose_losses(rot6d: Tensor, camera: Tensor, batch: Batch, compared: Literal["rot6d", "matrix"]) -> Losses:
    """Of the rotation [B, 6], and of rotation and camera [B, 3] on the picture."""
    with all_digits(rot6d):
        rot6d, camera = rot6d.float(), camera.float()
        rotation = rot6d_to_matrix(rot6d)
        if compared == "matrix":
            rotation_loss = F.mse_loss(rotation, batch["rotation"])
        else:
            rotation_loss = 5 * F.mse_loss(rot6d, matrix_to_rot6d(batch["rotation"]))
        # tokens pass no gradient, so the true body stands in for the predicted one
        points = project_weak(batch["joints"] @ rotation.transpose(1, 2), camera)
        confidence = batch["confidence"][..., None].expand_as(points)
        distance = (confidence * (points - batch["joints2d"]).abs()).sum() / confidence.sum().clamp(min=1e-6)
    return {"rotation": rotation_loss, "reprojection": distance}


def augment(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float in 0..1: contrast, brightness, colour cast, blur, noise, and frames' black edges."""
    batch, _, height, width = images.shape

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(batch, channels, 1, 1, device=images.device).uniform_(low, high)

    x = images.float() / 255
    x = (x * uniform(0.6, 1.4) * uniform(0.9, 1.1, 3) + uniform(-0.15, 0.15)).clamp(0, 1)
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1), uniform(0, 1).square())
    x = (x + torch.randn_like(x) * uniform(0, 0.06)).clamp(0, 1)
    # a crop that reaches over the frame's edge is black there
    edge = torch.where(uniform(0, 1) < 0.15, uniform(0, 0.3), 0)
    side = torch.randint(4, (batch, 1, 1, 1), device=images.device)
    column = torch.linspace(0, 1, width, device=images.device)[None, None, None]
    row = torch.linspace(0, 1, height, device=images.device)[None, None, :, None]
    place = torch.where(side == 0, column, torch.where(side == 1, 1 - column, torch.where(side == 2, row, 1 - row)))
    return x * (place >= edge)


def run(
    config: RecoverTraining, begin: Callable[[Mega, MeshTokenizer, RecoverTraining, LinearDecoder | None], Objective]
) -> None:
    """Train a copy of the `pretrained` checkpoint on pictures. InputError if a set's bodies are not the model's."""
    torch.manual_seed(config.seed)
    pretrained, tokenizer, topology = checkpoint.load_mega(config.pretrained)
    weights, size = pretrained.state_dict(), pretrained.config
    if config.preset:
        weights = {name: v for name, v in weights.items() if not name.startswith(IMAGE_PART)}
        eyes = PRESETS[config.preset]
        size = replace(size, **{name: getattr(eyes, name) for name in EYES}, latent=tokenizer.latent)
    side = config.pixels or size.image_size
    sets = [open_set(name, (side, side), config.body, topology) for name in config.sets]
    for name, images in zip(config.sets, sets):
        if len(images.topology.template) != len(topology.template):
            raise InputError(
                f"{name}: its bodies have {len(images.topology.template)} vertices, those of "
                f"{config.pretrained} {len(topology.template)}"
            )
    mixture = Mixture(sets, config.proportions)
    model = checkpoint.begin_mega(config.out, config.pretrained / "tokenizer", size)
    model.load_state_dict(model.state_dict() | weights)
    if config.backbone:
        load_backbone(config.backbone, model)
    if model.lifter is not None:
        model.lifter.know(tokenizer.quantizer.codebook)
    for images in sets:
        if isinstance(images, FeatureSet):
            images.tokenise(tokenizer)
    linear = None
    if model.lifter is not None:
        bodies = mixture.batch(np.random.default_rng(config.seed), min(1500, len(mixture)))["vertices"]
        linear = LinearDecoder(tokenizer, topology, bodies)
    fit(config, begin(model, tokenizer, config, linear), mixture.batch, provenance(config, sets))


def provenance(config: RecoverTraining, sets: Sequence[ImageSet]) -> dict[str, Any]:
    """What training.json says of the pictures, and of what was learned before them."""
    about: dict[str, Any] = {"pictures": {name: len(images) for name, images in zip(config.sets, sets)}}
    if config.backbone:
        origin = config.backbone / "origin.json"
        about["backbone"] = json.loads(origin.read_text()) if origin.exists() else config.backbone.name
    if config.proportions:
        about["proportions"] = config.proportions
    if any(isinstance(images, SceneSet | FeatureSet) for images in sets):
        about["motion"] = MOTION
    before = config.pretrained / "training.json"
    if before.exists():
        about["before"] = json.loads(before.read_text())
    return about


def main(args: list[str]) -> None:
    config = parse(RecoverTraining, args)
    run(config, RecoverObjective)
