"""`mega calibrate`: how many times the samples' spread is sigma, for a model without an error head.

Sigma is then the root mean square error of the vertices. `mega train errors` calibrates a model with an error head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mega_model import checkpoint
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.evaluate.held_out import open_people
from mega_model.evaluate.predict import ImageSelection, SamplingOptions, collect, predict
from mega_model.evaluate.protocols import Conventions, Protocol
from mega_model.evaluate.uncertainty import vertex_fields


@dataclass(frozen=True, kw_only=True)
class Calibrate(ImageSelection, SamplingOptions):
    checkpoint: Path = Path("runs/recover")
    set: Path = Path("runs/features/calibration")
    """Rendered people that the model has not seen, or their features."""
    steps: int = 3
    """T, as the export's."""


def calibration(config: Calibrate) -> dict[str, object]:
    """What calibration.json holds. Raises InputError for a model that has an error head."""
    if checkpoint.load_errors(config.checkpoint):
        raise InputError(f"{config.checkpoint}: has an error head, which mega train errors calibrates")
    model, tokenizer, topology = checkpoint.load_mega(config.checkpoint)
    people = open_people(config.set, topology)
    protocol = Protocol.of(people, Conventions())
    predictions = predict(model.to(config.device), tokenizer.to(config.device), people, config, config)
    found = collect(vertex_fields(p, protocol) for p in predictions)
    error, spread = found["error"], found["sigma"]
    scale = float(np.sqrt(np.square(error).mean() / np.square(spread).mean()))
    return {
        "scale": scale,
        "how": f"the spread of samples ({config.describe()}) times scale is the root mean square vertex error "
        "(pelvis-aligned, oriented) on rendered people of held-out clips",
        **metrics.coverages(error, scale * spread),
    }


def main(args: list[str]) -> None:
    config = tyro.cli(Calibrate, args=args, description=__doc__)
    (config.checkpoint / "calibration.json").write_text(json.dumps(calibration(config), indent=1) + "\n")
