"""`mega evaluate deterministic`: tables 1 and 3 of the paper, one mesh per image."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mega_model.evaluate.predict import collect, facts_of, open_subject, predict, publish_table
from mega_model.evaluate.protocols import METRICS, Protocol
from mega_model.evaluate.report import Report
from mega_model.options import Deterministic


def evaluate(config: Deterministic) -> Report:
    model, images = open_subject(config)
    protocol = Protocol.of(images, config)
    errors = collect(protocol.errors(p.single, p.truth) for p in predict(model, images, config))
    return Report(
        "Deterministic mode (tables 1 and 3)",
        facts_of(config, protocol.name, len(images)),
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


def main(config: Deterministic) -> None:
    publish_table(config, "deterministic", evaluate(config))
