"""`mega evaluate mean`: table 4 and figure 6 of the paper, the mean of Q meshes beside the deterministic mesh."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from mega_model.core import metrics
from mega_model.evaluate.predict import Prediction, collect, facts_of, open_subject, predict, publish_table
from mega_model.evaluate.protocols import METRICS, Protocol, sample_counts
from mega_model.evaluate.report import Report, Rows
from mega_model.options import Mean

DISTANCE, DEVIATION, SINGLE = "Dist. to det.", "SD", "deterministic"


def evaluate(config: Mean) -> Report:
    model, images = open_subject(config)
    protocol = Protocol.of(images, config)
    errors = errors_by_mode(predict(model, images, config, config), protocol)
    table = mean_table(errors, sample_counts(config.samples))
    return Report(
        "Mean of the samples (table 4)",
        {**facts_of(config, protocol.name, len(images)), "samples": config.describe()},
        {"Errors of the mean mesh, its distance to the deterministic mesh, deviation of the samples, mm": table},
        {"Distribution of the errors (figure 6)": error_distribution(errors)},
    )


Errors = dict[tuple[str, str], np.ndarray]
"""(mode, metric) -> [n] metres. Modes: "deterministic", "mean of Q", "best of Q"."""


def errors_by_mode(predictions: Iterable[Prediction], protocol: Protocol) -> Errors:
    """Errors of the single mesh, of the mean and of the best of the paper's Q samples, and table 4's further rows."""

    def of(p: Prediction) -> Errors:
        out = {(SINGLE, metric): e for metric, e in protocol.errors(p.single, p.truth).items()}
        each = protocol.errors(p.samples, p.truth[:, None])
        for q in sample_counts(p.samples.shape[1]):
            mean = p.samples[:, :q].mean(axis=1)
            mode = f"mean of {q}"
            out |= {(mode, metric): e for metric, e in protocol.errors(mean, p.truth).items()}
            out[mode, DISTANCE] = metrics.distances(mean, p.single).mean(axis=-1)
            out[mode, DEVIATION] = metrics.spread(p.samples[:, :q]).mean(axis=-1)
            out |= {(f"best of {q}", metric): metrics.best_of(e, q) for metric, e in each.items()}
        return out

    return collect(map(of, predictions))


def mean_table(errors: Errors, counts: list[int]) -> Rows:
    """Rows and columns as in table 4; a single sample has no deviation."""
    table: dict[str, dict[str, float | None]] = {}
    for row in (*METRICS, DISTANCE, DEVIATION):
        values = {f"Q = {q}": 1000 * float(errors[f"mean of {q}", row].mean()) for q in counts}
        table[row] = {**values, SINGLE: 1000 * float(errors[SINGLE, row].mean()) if row in METRICS else 0.0}
    table[DEVIATION]["Q = 1"] = None
    return table


def error_distribution(errors: Errors) -> Figure:
    """Figure 6: a violin per mode, with its mean and its middle 95 %."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    modes = list(dict.fromkeys(mode for mode, _ in errors))
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS):
        values = [1000 * errors[mode, metric] for mode in modes]
        axes.violinplot(values, showmeans=True, showextrema=False, quantiles=[[0.025, 0.975]] * len(modes))
        axes.set_xticks(range(1, len(modes) + 1), modes, rotation=60, ha="right")
        axes.set(title=f"{metric}, mm", ylim=(0, None))
    return figure


def main(config: Mean) -> None:
    publish_table(config, "mean", evaluate(config))
