"""Stage 3: MEGA learns to see: masked mesh tokens, rotation and camera from pictures (paper 3.3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint
from mega_model.data.rendered import SceneSet
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix
from mega_model.mega import Mega, normalise, random_mask, token_loss
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse


@dataclass(frozen=True)
class RecoverTraining(LoopConfig):
    pretrained: Path = Path("runs/backbone")
    """Checkpoint to start from, with its tokenizer."""
    crops: Path = Path("runs/crops/train")


class RecoverObjective(Objective):
    model: Mega

    def forward(self, batch: Batch) -> Losses:
        images, tokens = normalise(augment(batch["images"])), batch["tokens"]
        features = self.model.backbone(images.contiguous(memory_format=torch.channels_last))  # CPUs convolve faster so
        visible = random_mask(len(tokens), tokens.shape[1], tokens.device)
        token_losses = []
        # rows that show similar numbers of tokens together: the encoder pads to the longest row
        for part in visible.sum(dim=1).argsort().chunk(4):
            out = self.model(features[part], tokens[part], visible[part])
            token_losses.append(token_loss(out.logits, tokens[part], visible[part]) * (~visible[part]).sum())
        rot6d, camera = self.model.pose(features)
        return {
            "tokens": torch.stack(token_losses).sum() / (~visible).sum(),
            **pose_losses(rot6d, camera, batch),
        }


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


def pose_answers(crops: SceneSet, regressor: np.ndarray) -> dict[str, Tensor]:
    """Of every crop of a set: joints [n, J, 3] (canonical), joints2d [n, J, 2] (-1 to 1), rotation [n, 3, 3]."""
    fields = crops.fields
    joints = torch.from_numpy(regressor @ fields["vertices"].astype(np.float32))
    rotation, translation, focal = (torch.from_numpy(np.array(fields[k])) for k in ("rotation", "translation", "focal"))
    seen = joints @ rotation.transpose(1, 2) + translation[:, None]
    joints2d = focal[:, None, None] * seen[..., :2] / seen[..., 2:]
    return {"joints": joints, "joints2d": joints2d, "rotation": rotation}


@torch.no_grad()
def token_answers(crops: SceneSet, tokenizer: MeshTokenizer) -> Tensor:
    """int64 [n, N]: the tokens of every crop's body."""
    vertices = crops.fields["vertices"]
    return torch.cat(
        [
            tokenizer.encode(torch.from_numpy(vertices[start : start + 200].astype(np.float32)))
            for start in tqdm(range(0, len(crops), 200), desc="tokens", mininterval=5)
        ]
    )


def run(config: RecoverTraining, objective: type[Objective], with_tokens: bool) -> SceneSet:
    """Train a copy of the `pretrained` checkpoint on rendered crops. Returns these."""
    torch.manual_seed(config.seed)
    pretrained, tokenizer, topology = checkpoint.load_mega(config.pretrained)
    crops = SceneSet(config.crops)
    known = pose_answers(crops, topology.joint_regressor)
    if with_tokens:
        known["tokens"] = token_answers(crops, tokenizer)
    model = checkpoint.begin_mega(config.out, config.pretrained / "tokenizer", pretrained.config)
    model.load_state_dict(pretrained.state_dict())

    def batches(rng: np.random.Generator) -> Batch:
        pick = np.sort(rng.choice(len(crops), config.batch, replace=False))
        images = torch.from_numpy(crops.fields["images"][pick]).permute(0, 3, 1, 2)
        return {"images": images} | {k: v[torch.from_numpy(pick)] for k, v in known.items()}

    fit(config, objective(model), batches)
    return crops


def main(args: list[str]) -> None:
    config = parse(RecoverTraining, args)
    crops = run(config, RecoverObjective, with_tokens=True)
    provenance = {
        "pictures": f"{len(crops)} rendered people, seen {config.steps * config.batch} times",
        "motion": "CMU motion capture, mocap.cs.cmu.edu, created with funding from NSF EIA-0196217",
        "steps": config.steps,
        "batch": config.batch,
        "seed": config.seed,
    }
    (config.out / "training.json").write_text(json.dumps(provenance, indent=1) + "\n")
