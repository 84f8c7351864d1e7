"""`mega evaluate`: scores of a trained model on rendered people of held-out clips, see `options.Evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mega_model import checkpoint
from mega_model.checkpoint import LoadedModel
from mega_model.core import metrics
from mega_model.data.images import ImageSet, open_for
from mega_model.data.scenes import PARTS
from mega_model.evaluate.predict import Prediction, collect, device_of, mesh_of, predict
from mega_model.evaluate.protocols import Protocol
from mega_model.evaluate.report import Report, publish
from mega_model.evaluate.uncertainty import by_visibility, curves, must_have_sigma, saved_scale, vertex_fields
from mega_model.options import Conventions, Evaluate
from mega_model.tokenizer import MeshTokenizer

Comparison = dict[str, np.ndarray]
"""The results of `compare` for all images."""


@torch.no_grad()
def compare(p: Prediction, tokenizer: MeshTokenizer, protocol: Protocol) -> Comparison:
    """Errors for B images in metres: per image [B], per sample [B, Q], per vertex [B, V]; and the true bodies."""
    vertices = p.batch["vertices"]
    again = tokenizer.decode(tokenizer.encode(vertices.to(tokenizer.template.device))).cpu()
    mean = p.samples.mean(axis=1) if p.samples.shape[1] else p.single
    apart = np.einsum("bij,bij->b", p.rotation, p.batch["rotation"].numpy())
    return {
        **vertex_fields(p, protocol),
        **protocol.errors(p.single, p.truth),
        "vertex": protocol.vertex_errors(p.single, p.truth),
        "visible": p.batch["visible"].numpy(),
        "part": p.batch["part"].numpy(),
        "apart": np.degrees(np.arccos(np.clip((apart - 1) / 2, -1, 1))),
        "samples": protocol.vertex_errors(p.samples, p.truth[:, None]).mean(axis=-1),
        "mean": protocol.vertex_errors(mean, p.truth).mean(axis=-1),
        "tokenizer": protocol.errors(again.numpy(), vertices.numpy())["PVE"],
        "vertices": vertices.numpy(),
        "rotation": p.batch["rotation"].numpy(),
    }


def open_people(folder: Path, model: LoadedModel) -> ImageSet:
    """A rendered set, or its features."""
    kind = "features" if (folder / "maps.npy").exists() else "rendered"
    return open_for(model.mega.config, model.topology, f"{kind}:{folder}")


def constant_answer(compared: Comparison, protocol: Protocol) -> np.ndarray:
    """Vertex errors [n, V] of the best constant prediction: the mean canonical mesh with the mean rotation."""
    vertices, rotation = compared["vertices"], compared["rotation"]
    u, _, vt = np.linalg.svd(rotation.mean(axis=0))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
    truth = np.einsum("nij,nvj->nvi", rotation, vertices)
    return protocol.vertex_errors(vertices.mean(axis=0) @ turn.T, truth)


def error_scores(compared: Comparison, constant: np.ndarray) -> dict[str, float]:
    """Millimetres, degrees and percents."""
    metres = {
        "PVE": compared["PVE"],
        "MPJPE": compared["MPJPE"],
        "PA-MPJPE": compared["PA-MPJPE"],
        "PVE visible": compared["vertex"][compared["visible"]],
        "PVE hidden": compared["vertex"][~compared["visible"]],
        "PVE of the tokenizer alone": compared["tokenizer"],
        "PVE constant answer": constant,
        "PVE one sample": compared["samples"],
        "PVE mean of samples": compared["mean"],
    }
    counts = [q for q in (5, 10, 25) if q <= compared["samples"].shape[1]]
    metres |= {f"PVE best of {q}": metrics.best_of(compared["samples"], q) for q in counts}
    scores = {name: 1000 * float(value.mean()) for name, value in metres.items() if value.size}
    return scores | {
        "rotation off, median, degrees": float(np.median(compared["apart"])),
        "rotation off by over 90 degrees, %": 100 * float((compared["apart"] > 90).mean()),
        "images": len(compared["PVE"]),
    }


def evaluate(config: Evaluate) -> tuple[Report, dict[str, Any]]:
    """The report, and the contents of scores.json."""
    model = checkpoint.load(config.checkpoint).to(device_of(config))
    must_have_sigma(model, config)
    test = open_people(config.test, model)
    protocol = Protocol.of(test, Conventions())

    def run(people: ImageSet, how: Evaluate) -> Comparison:
        return collect(compare(p, model.tokenizer, protocol) for p in predict(model, people, how, how))

    compared = run(test, config)
    scale = saved_scale(config.checkpoint)
    error, sigma = compared["error"], scale * compared["sigma"]
    constant = constant_answer(compared, protocol)
    parts = {"all": error_scores(compared, constant)}
    for number, part in enumerate(PARTS):
        of = compared["part"] == number
        if of.any():
            parts[part] = error_scores({name: array[of] for name, array in compared.items()}, constant[of])
    others = {
        "as published": replace(config, decode="expected", fit=True, samples=0),
        "most likely tokens": replace(config, decode="argmax", fit=True, samples=0),
        "not tied to the landmarks": replace(config, decode="expected", fit=False, samples=0),
    }
    ways = {
        name: parts["all"] if replace(how, samples=config.samples) == config else error_scores(run(test, how), constant)
        for name, how in others.items()
    }
    ways = {name: {key: scores[key] for key in ("PVE", "MPJPE", "PA-MPJPE")} for name, scores in ways.items()}
    # these people are those of neither a training nor a calibration, so what sigma promises is measured on them
    promise = metrics.coverages(error, sigma)
    radii = np.array([*promise["quantiles"].values()])
    groups = by_visibility(error, sigma, compared["visible"], radii)
    scores = {"parts": parts, "ways": ways, "sigma": groups, **promise, "samples": config.samples}
    source = "the error head" if model.errors else f"{scale:g} times the spread of {config.describe()}"
    facts = {
        "model": str(config.checkpoint),
        "set": str(config.test),
        "protocol": protocol.name,
        "mesh": mesh_of(config) or "as published",
        "sigma": source,
        "error model": "the radii that contain given shares of the errors are measured, in sigma, on these people",
    }
    report = Report(
        "Scores on held-out rendered people",
        facts,
        {
            "Errors, mm": parts,
            "What the mesh is made of, mm": ways,
            "Vertices; error and sigma in mm": groups,
        },
        {"Sparsification, and promised against measured coverage": curves(error, sigma, radii)},
    )
    return report, scores


def main(config: Evaluate) -> None:
    report, scores = evaluate(config)
    if not mesh_of(config):  # the export publishes this mesh
        (config.checkpoint / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    else:
        print("scores.json is left as it is: the export publishes another mesh")
    publish(report, config.checkpoint / "evaluation", "held_out")
