"""`mega evaluate deterministic`: tables 1 and 3 of the paper, one mesh per image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tyro
from matplotlib.figure import Figure

from mega_model import checkpoint
from mega_model.evaluate.predict import Subject, collect, predict
from mega_model.evaluate.protocols import METRICS, Conventions, Protocol
from mega_model.evaluate.report import Report


@dataclass(frozen=True, kw_only=True)
class Deterministic(Subject, Conventions):
    pass


def evaluate(config: Deterministic) -> Report:
    model, tokenizer, images = config.open()
    protocol = Protocol.of(images, config)
    predictions = predict(model, tokenizer, images, config, errors=checkpoint.load_errors(config.checkpoint))
    errors = collect(protocol.errors(p.single, p.truth) for p in predictions)
    return Report(
        "Deterministic mode (tables 1 and 3)",
        config.facts(protocol.name, len(images)),
        {"Errors, mm": {config.images: {metric: 1000 * float(errors[metric].mean()) for metric in METRICS}}},
        {"Cumulative distribution of the errors": distribution(errors)},
    )


def distribution(errors: dict[str, np.ndarray]) -> Figure:
    """Cumulative distribution of each of `METRICS` [n], metres."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    share = np.arange(1, len(errors["PVE"]) + 1) / len(errors["PVE"])
    for metric in METRICS:
        axes.plot(1000 * np.sort(errors[metric]), share, label=metric)
    axes.set(xlabel="error, mm", ylabel="share of the images", xlim=(0, None))
    axes.legend()
    return figure


def main(args: list[str]) -> None:
    config = tyro.cli(Deterministic, args=args, description=__doc__)
    config.publish("deterministic", evaluate(config))
