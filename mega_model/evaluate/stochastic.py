"""`mega evaluate stochastic`: table 2 of the paper, the best of Q meshes per image."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mega_model.core import metrics
from mega_model.evaluate.predict import collect, facts_of, open_subject, predict, publish_table
from mega_model.evaluate.protocols import METRICS, Protocol, sample_counts
from mega_model.evaluate.report import Report
from mega_model.options import Best, Stochastic


def evaluate(config: Stochastic) -> Report:
    model, images = open_subject(config)
    protocol = Protocol.of(images, config)
    parts = predict(model, images, config, config)
    both = [(protocol.errors(p.single, p.truth), protocol.errors(p.samples, p.truth[:, None])) for p in parts]
    single, samples = (collect(side) for side in zip(*both))
    table = best_of_table(single, samples, config.best)
    protocol_name = f"{protocol.name}, best by {config.best}"
    return Report(
        "Stochastic mode (table 2)",
        {**facts_of(config, protocol_name, len(images)), "samples": config.describe()},
        {"Error of the best of Q samples, mm; Imp: how much the last Q improves on the first, %": table},
        {"Error of the best of Q samples": by_count(table)},
    )


def best_of_table(
    single: dict[str, np.ndarray], samples: dict[str, np.ndarray], best: Best
) -> dict[str, dict[str, float]]:
    """Table 2 from errors of the deterministic mesh [n] and of the samples [n, Q], by metric, metres."""
    table = {}
    for metric in METRICS:
        row = {}
        for q in sample_counts(samples[metric].shape[1]):
            errors = samples[metric][:, :q]
            if best == "metric":
                chosen = metrics.best_of(errors)
            else:
                chosen = np.take_along_axis(errors, samples["PVE"][:, :q].argmin(axis=1, keepdims=True), axis=1)
            row[f"Q = {q}"] = 1000 * float(chosen.mean())
        values = list(row.values())
        row["Imp, %"] = metrics.improvement(values[0], values[-1])
        row["deterministic"] = 1000 * float(single[metric].mean())
        table[metric] = row
    return table


def by_count(table: dict[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for metric, row in table.items():
        counts = [column for column in row if column.startswith("Q")]
        (line,) = axes.plot(counts, [row[c] for c in counts], marker="o", label=metric)
        axes.axhline(row["deterministic"], color=line.get_color(), linestyle=":")
    axes.set(ylabel="error, mm (dotted: deterministic)")
    axes.legend()
    return figure


def main(config: Stochastic) -> None:
    publish_table(config, "stochastic", evaluate(config))
