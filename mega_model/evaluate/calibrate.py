"""`mega calibrate`: how many times the samples' spread is sigma, for a model without an error head.

Sigma is then the root mean square error of the vertices. `mega train errors` calibrates a model with an error head.
"""

from __future__ import annotations

import numpy as np

from mega_model import checkpoint
from mega_model.core.errors import InputError
from mega_model.evaluate.held_out import open_people
from mega_model.evaluate.predict import collect, device_of, predict
from mega_model.evaluate.protocols import Protocol
from mega_model.evaluate.uncertainty import must_have_sigma, vertex_fields
from mega_model.options import Calibrate, Conventions


def calibration(config: Calibrate) -> dict[str, object]:
    """What calibration.json holds. Raises InputError for a model that has an error head."""
    model = checkpoint.load(config.checkpoint).to(device_of(config))
    if model.errors:
        raise InputError(f"{config.checkpoint}: has an error head, which mega train errors calibrates")
    must_have_sigma(model, config)
    people = open_people(config.set, model)
    protocol = Protocol.of(people, Conventions())
    found = collect(vertex_fields(p, protocol) for p in predict(model, people, config, config))
    error, spread = found["error"], found["sigma"]
    scale = float(np.sqrt(np.square(error).mean() / np.square(spread).mean()))
    return {
        "scale": scale,
        "how": f"the spread of samples ({config.describe()}) times scale is the root mean square vertex error "
        "(pelvis-aligned, oriented) on rendered people of held-out clips",
    }


def main(config: Calibrate) -> None:
    checkpoint.save_calibration(config.checkpoint, calibration(config))
