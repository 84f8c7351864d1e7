"""`mega evaluate`: scores of a trained model on rendered people of held-out clips, and the calibration of its sigma.

Errors are those of meshes oriented as in the camera, both centred on the pelvis; metres inside, millimetres printed.
Writes calibration.json and scores.json (read by the export) into the checkpoint, and a report into its folder
`evaluation`. The paper's tables: mega evaluate deterministic|stochastic|mean|random|uncertainty|figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from mega_model import checkpoint, metrics
from mega_model.data.rendered import SceneSet
from mega_model.evaluate.predict import Pictures, Prediction, Sampling, collect, predict
from mega_model.evaluate.protocols import Conventions, Protocol
from mega_model.evaluate.report import Report, publish
from mega_model.evaluate.uncertainty import ERROR_MODEL, by_visibility, curves, vertex_fields
from mega_model.tokenizer import MeshTokenizer


@dataclass(frozen=True, kw_only=True)
class Evaluate(Pictures, Sampling):
    checkpoint: Path = Path("runs/recover")
    test: Path = Path("runs/crops/test")
    calibration: Path = Path("runs/crops/calibration")
    count: int | None = 500
    """Pictures of each set, drawn at random."""
    samples: int = 10
    """Q, meshes per picture."""
    steps: int = 3
    """T, as the export's: sigma is calibrated for the sampling that the bundle does."""


Found = dict[str, np.ndarray]
"""What `look` gives, of all pictures."""


@torch.no_grad()
def look(p: Prediction, tokenizer: MeshTokenizer, protocol: Protocol) -> Found:
    """Errors of B pictures in metres: per picture [B], per sample [B, Q], per vertex [B, V]; and the true bodies."""
    vertices = p.batch["vertices"]
    again = tokenizer.decode(tokenizer.encode(vertices.to(tokenizer.template.device))).cpu()
    return {
        **vertex_fields(p, protocol),
        "visible": p.batch["visible"].numpy(),
        **protocol.errors(p.single, p.truth),
        "samples": protocol.errors(p.samples, p.truth[:, None])["PVE"],
        "mean": protocol.errors(p.samples.mean(axis=1), p.truth)["PVE"],
        "tokenizer": protocol.errors(again.numpy(), vertices.numpy())["PVE"],
        "vertices": vertices.numpy(),
        "rotation": p.batch["rotation"].numpy(),
    }


def calibrate(found: Found) -> float:
    """The factor that makes sigma the root mean square error of the deterministic mesh."""
    return float(np.sqrt(np.square(found["error"]).mean() / np.square(found["sigma"]).mean()))


def constant_answers(found: Found, protocol: Protocol) -> tuple[float, float]:
    """PVE of the best constant answers: the mean canonical mesh under the mean rotation, and the mean oriented mesh."""
    vertices, rotation = found["vertices"], found["rotation"]
    u, _, vt = np.linalg.svd(rotation.mean(axis=0))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    truth = np.einsum("nij,nvj->nvi", rotation, vertices)
    answers = vertices.mean(axis=0) @ turn.T, truth.mean(axis=0)
    mesh, oriented = (float(protocol.vertex_errors(answer, truth).mean()) for answer in answers)
    return mesh, oriented


def error_scores(found: Found, protocol: Protocol) -> dict[str, float]:
    """Millimetres, but for the share."""
    mesh, oriented = constant_answers(found, protocol)
    metres = {
        "PVE": found["PVE"].mean(),
        "PVE visible": found["error"][found["visible"]].mean(),
        "PVE occluded": found["error"][~found["visible"]].mean(),
        "MPJPE": found["MPJPE"].mean(),
        "PA-MPJPE": found["PA-MPJPE"].mean(),
        "PVE of the tokenizer alone": found["tokenizer"].mean(),
        "PVE constant: mean mesh, mean rotation": mesh,
        "PVE constant: mean oriented mesh": oriented,
        "PVE one sample": found["samples"].mean(),
        "PVE mean of samples": found["mean"].mean(),
    }
    for q in (5, 10):
        if q <= found["samples"].shape[1]:
            metres[f"PVE best of {q}"] = metrics.best_of(found["samples"], q).mean()
    share = metrics.improvement(mesh, float(metres["PVE"]))
    return {name: 1000 * float(value) for name, value in metres.items()} | {"below the constant answer, %": share}


def evaluate(config: Evaluate) -> tuple[Report, dict[str, float], dict[str, Any]]:
    """The report, and what scores.json and calibration.json hold."""
    model, tokenizer, topology = checkpoint.load_mega(config.checkpoint)
    model, tokenizer = model.to(config.device), tokenizer.to(config.device)
    protocol = Protocol.of(SceneSet(config.test, topology), Conventions())

    def run(folder: Path) -> Found:
        predictions = predict(model, tokenizer, SceneSet(folder, topology), config, config)
        return collect(look(p, tokenizer, protocol) for p in predictions)

    scale = calibrate(run(config.calibration))
    found = run(config.test)
    error, sigma = found["error"], scale * found["sigma"]
    errors = error_scores(found, protocol)
    groups = by_visibility(error, sigma, found["visible"])
    within = {f"{factor} sigma": round(metrics.coverage(error, sigma, factor), 4) for factor in (1, 2)}
    scores = {
        **errors,
        **{f"{name}, {group}": value for group, values in groups.items() for name, value in values.items()},
        **{f"coverage {name}": value for name, value in within.items()},
        "pictures": len(error),
        "samples": config.samples,
    }
    calibration = {
        "scale": scale,
        "how": f"the spread of samples ({config.describe()}) times scale is the root mean square vertex error "
        "(pelvis-aligned, oriented) on rendered people of held-out calibration clips; coverage is that on rendered "
        "people of other held-out clips",
        "coverage": within,
    }
    facts = {
        "model": str(config.checkpoint),
        "set": str(config.test),
        "pictures": str(len(error)),
        "protocol": protocol.name,
        "sigma": f"{scale:g} times the spread of {config.describe()}; calibrated on {config.calibration}",
        "error model": ERROR_MODEL,
    }
    report = Report(
        "Scores on held-out rendered people",
        facts,
        {
            "Errors, mm": {name: {"value": value} for name, value in errors.items()},
            "Vertices; error and sigma in mm": groups,
        },
        {"Sparsification, and promised against measured coverage": curves(error, sigma)},
    )
    return report, {name: round(value, 4) for name, value in scores.items()}, calibration


def main(args: list[str]) -> None:
    config = tyro.cli(Evaluate, args=args, description=__doc__)
    report, scores, calibration = evaluate(config)
    (config.checkpoint / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    (config.checkpoint / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")
    publish(report, config.checkpoint / "evaluation", "default")
