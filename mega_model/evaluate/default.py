"""`mega evaluate`: scores of a trained model on rendered people of held-out clips, and the calibration of its sigma.

Errors are those of meshes oriented as in the camera, both centred on the pelvis; metres inside, millimetres printed.
Writes calibration.json (read by the export) and scores.json into the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint, generate, metrics
from mega_model.data.rendered import SceneSet
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega, normalise
from mega_model.tokenizer import MeshTokenizer
from mega_model.topology import Topology


@dataclass(frozen=True)
class Evaluate:
    checkpoint: Path = Path("runs/recover")
    test: Path = Path("runs/crops/test")
    calibration: Path = Path("runs/crops/calibration")
    count: int = 500
    """Pictures of each set."""
    samples: int = 10
    steps: int = 5
    temperature: float = 1.0
    seed: int = 0


@dataclass
class Predictions:
    """What a model says about n pictures, and the truth; oriented, metres, vertex mean at the origin."""

    truth: np.ndarray
    """[n, V, 3]"""
    single: np.ndarray
    """[n, V, 3] deterministic"""
    samples: np.ndarray
    """float16 [n, Q, V, 3]"""
    sigma: np.ndarray
    """[n, V] spread of the samples, as the sampler graph computes it"""
    tokenised: np.ndarray
    """[n, V, 3] the truth through the tokenizer and back: no prediction can be better than about this"""
    visible: np.ndarray
    """bool [n, V]"""


@torch.no_grad()
def predict(model: Mega, tokenizer: MeshTokenizer, crops: SceneSet, config: Evaluate) -> Predictions:
    parts: list[tuple[Tensor, ...]] = []
    fields = crops.fields
    count = min(config.count, len(crops))
    for start in tqdm(range(0, count, 20), desc="evaluate", mininterval=5):
        chunk = slice(start, min(start + 20, count))
        images = torch.from_numpy(fields["images"][chunk]).permute(0, 3, 1, 2).float() / 255
        features = model.backbone(normalise(images))
        rot6d, _ = model.pose(features)
        turn = rot6d_to_matrix(rot6d).transpose(1, 2)
        truth = torch.from_numpy(fields["vertices"][chunk].astype(np.float32))
        true_turn = torch.from_numpy(fields["rotation"][chunk]).transpose(1, 2)
        single = tokenizer.decode(generate.deterministic(model, features))
        tokens = generate.stochastic(
            model, features, config.samples, config.steps, config.temperature, config.seed + start
        )
        samples = tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        sigma = (samples - samples.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
        again = tokenizer.decode(tokenizer.encode(truth))
        parts.append((truth @ true_turn, single @ turn, (samples @ turn[:, None]).half(), sigma, again @ true_turn))
    all_truth, all_single, all_samples, all_sigma, all_again = (torch.cat(part).numpy() for part in zip(*parts))
    return Predictions(all_truth, all_single, all_samples, all_sigma, all_again, fields["visible"][:count])


def vertex_errors(predicted: np.ndarray, truth: np.ndarray, topology: Topology) -> np.ndarray:
    """Distances [..., V] of meshes [..., V, 3] whose pelvises are brought together."""
    pelvis = topology.joint_regressor[:1]
    return metrics.distances(predicted - pelvis @ predicted, truth - pelvis @ truth)


def calibrate(p: Predictions, topology: Topology) -> float:
    """The factor that makes sigma the root mean square error of the deterministic mesh."""
    error = vertex_errors(p.single, p.truth, topology)
    return float(np.sqrt(np.square(error).mean() / np.square(p.sigma).mean()))


def constant_answer(crops: SceneSet, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best constant answers: the mean canonical mesh under the mean rotation, and the mean oriented mesh [V, 3]."""
    vertices = crops.fields["vertices"][:count].astype(np.float32)
    rotation = crops.fields["rotation"][:count]
    u, _, vt = np.linalg.svd(rotation.mean(axis=0))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    return vertices.mean(axis=0) @ turn.T, np.einsum("nij,nvj->nvi", rotation, vertices).mean(axis=0)


def scores(p: Predictions, crops: SceneSet, topology: Topology, scale: float) -> dict[str, float]:
    """All numbers, errors in millimetres."""
    truth, regressor = p.truth, topology.joint_regressor
    joints, true_joints = regressor @ p.single, regressor @ truth
    error = vertex_errors(p.single, truth, topology)
    constant, oriented = constant_answer(crops, len(truth))
    each = np.stack([vertex_errors(x.astype(np.float32), truth, topology).mean(1) for x in p.samples.swapaxes(0, 1)], 1)
    mean = p.samples.mean(axis=1, dtype=np.float32)
    sigma = scale * p.sigma
    mm = 1000.0
    out = {
        "PVE": error.mean() * mm,
        "PVE visible": error[p.visible].mean() * mm,
        "PVE occluded": error[~p.visible].mean() * mm,
        "MPJPE": metrics.mpjpe(joints, true_joints).mean() * mm,
        "PA-MPJPE": metrics.pa_mpjpe(joints, true_joints).mean() * mm,
        "PVE of the tokenizer alone": vertex_errors(p.tokenised, truth, topology).mean() * mm,
        "PVE constant: mean mesh, mean rotation": vertex_errors(constant, truth, topology).mean() * mm,
        "PVE constant: mean oriented mesh": vertex_errors(oriented, truth, topology).mean() * mm,
        "PVE one sample": each.mean() * mm,
        "PVE mean of samples": vertex_errors(mean, truth, topology).mean() * mm,
    }
    for q in (5, 10):
        if q <= each.shape[1]:
            out[f"PVE best of {q}"] = metrics.best_of(each, q).mean() * mm
    out |= {
        "below the constant answer, %": 100 * (1 - out["PVE"] / out["PVE constant: mean mesh, mean rotation"]),
        "Spearman of sigma and error": metrics.spearman(sigma, error),
        "coverage 1 sigma": metrics.coverage(error, sigma, 1),
        "coverage 2 sigma": metrics.coverage(error, sigma, 2),
        "mean sigma visible": sigma[p.visible].mean() * mm,
        "mean sigma occluded": sigma[~p.visible].mean() * mm,
        "pictures": len(truth),
        "samples": each.shape[1],
    }
    return {k: round(float(v), 4) for k, v in out.items()}


def main(args: list[str]) -> None:
    config = tyro.cli(Evaluate, args=args, description=__doc__)
    model, tokenizer, topology = checkpoint.load_mega(config.checkpoint)
    scale = calibrate(predict(model, tokenizer, SceneSet(config.calibration), config), topology)
    test = SceneSet(config.test)
    result = scores(predict(model, tokenizer, test, config), test, topology, scale)
    calibration = {
        "scale": scale,
        "how": "sigma times scale is the root mean square vertex error (pelvis-aligned, oriented) on rendered people "
        "of held-out calibration clips; coverage is that on rendered people of other held-out clips",
        "coverage": {"1 sigma": result["coverage 1 sigma"], "2 sigma": result["coverage 2 sigma"]},
    }
    (config.checkpoint / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")
    (config.checkpoint / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    table = Table("score", "value", title=f"{config.checkpoint} on {config.test}")
    for name, value in result.items():
        table.add_row(name, f"{value:g}")
    Console().print(table)
