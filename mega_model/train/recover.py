"""Stage 3: MEGA learns to see: masked mesh tokens, rotation and camera from pictures (paper 3.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mega_model import checkpoint
from mega_model.data.rendered import SceneSet
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix
from mega_model.mega import Mega, normalise, token_loss
from mega_model.tokenizer import MeshTokenizer
from mega_model.topology import Topology
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse


@dataclass(frozen=True)
class RecoverTraining(LoopConfig):
    pretrained: Path = Path("runs/backbone")
    """Checkpoint to start from, with its tokenizer."""
    crops: Path = Path("runs/crops/train")
    pixels: int = 128
    """Crops are shrunk to this size; steps on small ones are cheap."""


class RecoverObjective(Objective):
    model: Mega

    def __init__(self, model: Mega, tokenizer: MeshTokenizer, config: RecoverTraining) -> None:
        super().__init__(model)
        self.frozen = (tokenizer,)  # in a tuple, so that it is not trained, not saved, and never in training mode
        self.pixels = config.pixels

    def forward(self, batch: Batch) -> Losses:
        features = self.model.backbone(pictures(batch["images"], self.pixels))
        with torch.no_grad():
            tokens = self.frozen[0].to(features.device).encode(batch["vertices"])
        return {"tokens": token_loss(self.model, features, tokens), **pose_losses(*self.model.pose(features), batch)}


def pose_losses(rot6d: Tensor, camera: Tensor, batch: Batch) -> Losses:
    """Of the rotation [B, 6], and of rotation and camera [B, 3] on the picture."""
    rotation = rot6d_to_matrix(rot6d)
    # tokens pass no gradient, so the true body stands in for the predicted one
    joints = batch["joints"] @ rotation.transpose(1, 2)
    return {
        # on the six numbers, not their matrix: a network that is unsure can answer small ones, and learns sooner
        "rotation": F.mse_loss(rot6d, matrix_to_rot6d(batch["rotation"])) * 5,
        "reprojection": F.l1_loss(project_weak(joints, camera), batch["joints2d"]),
    }


def pictures(images: Tensor, pixels: int) -> Tensor:
    """uint8 [B, 3, H, W] -> augmented, `pixels` square, as the backbone wants them."""
    x = F.interpolate(augment(images), size=(pixels, pixels), mode="bilinear", antialias=True)
    return normalise(x).contiguous(memory_format=torch.channels_last)  # CPUs convolve faster so


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


def twins(topology: Topology) -> np.ndarray:
    """int [V]: for each vertex the one on the body's other side. ValueError if the topology is not symmetric."""
    distance = np.linalg.norm(topology.template[:, None] * np.array([-1, 1, 1]) - topology.template, axis=-1)
    twin = distance.argmin(axis=1)
    if distance.min(axis=1).max() > 0.001 or (twin[twin] != np.arange(len(twin))).any():
        raise ValueError("the body's left and right do not have the same vertices")
    return twin


def draw(rng: np.random.Generator, crops: SceneSet, count: int, twin: np.ndarray, regressor: np.ndarray) -> Batch:
    """Random crops, half of them mirrored.

    images uint8 [B, 3, S, S], vertices [B, V, 3] and joints [B, J, 3] (canonical), rotation [B, 3, 3] (canonical to
    camera), vertices2d [B, V, 2] and joints2d [B, J, 2] (-1 to 1 in the crop), visible bool [B, V].
    """
    pick = np.sort(rng.choice(len(crops), count, replace=False))
    images, vertices, rotation, translation, focal, visible = (
        crops.fields[name][pick] for name in ("images", "vertices", "rotation", "translation", "focal", "visible")
    )
    vertices = vertices.astype(np.float32)
    flip = rng.random(count) < 0.5
    across = np.array([-1, 1, 1], np.float32)
    images[flip] = images[flip][:, :, ::-1]
    vertices[flip] = vertices[flip][:, twin] * across
    visible[flip] = visible[flip][:, twin]
    rotation[flip] *= across * across[:, None]
    translation[flip] *= across

    def seen(points: np.ndarray) -> np.ndarray:
        x = points @ rotation.transpose(0, 2, 1) + translation[:, None]
        return focal[:, None, None] * x[..., :2] / x[..., 2:]

    joints = regressor @ vertices
    batch = {"images": images.transpose(0, 3, 1, 2), "vertices": vertices, "joints": joints, "rotation": rotation}
    batch |= {"vertices2d": seen(vertices), "joints2d": seen(joints), "visible": visible}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def run(config: RecoverTraining, objective: Callable[[Mega, MeshTokenizer, Topology], Objective]) -> SceneSet:
    """Train a copy of the `pretrained` checkpoint on rendered crops. Returns these."""
    torch.manual_seed(config.seed)
    pretrained, tokenizer, topology = checkpoint.load_mega(config.pretrained)
    crops = SceneSet(config.crops)
    model = checkpoint.begin_mega(config.out, config.pretrained / "tokenizer", pretrained.config)
    model.load_state_dict(pretrained.state_dict())
    twin = twins(topology)
    fit(
        config,
        objective(model, tokenizer, topology),
        lambda rng: draw(rng, crops, config.batch, twin, topology.joint_regressor),
    )
    return crops


def main(args: list[str]) -> None:
    config = parse(RecoverTraining, args)
    crops = run(config, lambda model, tokenizer, _: RecoverObjective(model, tokenizer, config))
    provenance = {
        "pictures": f"{len(crops)} rendered people, seen {config.steps * config.batch} times",
        "motion": "CMU motion capture, mocap.cs.cmu.edu, created with funding from NSF EIA-0196217",
        "steps": config.steps,
        "batch": config.batch,
        "seed": config.seed,
    }
    (config.out / "training.json").write_text(json.dumps(provenance, indent=1) + "\n")
