"""`mega evaluate uncertainty`: how well does sigma predict the error of each vertex? (The paper: figure 4.)

Sigma comes from the checkpoint's error head. Without one, it is the samples' spread times the calibration factor. The
error is that of the deterministic mesh. `core.metrics` defines each number, `metrics.radius` the error model behind
coverage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from matplotlib.figure import Figure

from mega_model import generate
from mega_model.checkpoint import LoadedModel
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.core.files import read_json
from mega_model.data.features import FeatureSet
from mega_model.data.raster import facing
from mega_model.data.rendered import SceneSet
from mega_model.evaluate.predict import Prediction, collect, device_of, facts_of, open_subject, predict, publish_table
from mega_model.evaluate.protocols import Protocol
from mega_model.evaluate.report import Report
from mega_model.options import SamplingOptions, Uncertainty

GAUSSIAN = (
    "the error is an isotropic 3D Gaussian whose root mean square radius is sigma, "
    "so the radius that contains a share of the errors follows from the chi distribution with 3 degrees of freedom"
)
MEASURED = (
    "the radius that contains a given share of the errors was measured, in sigma, by mega evaluate on test people"
)

BY_ITSELF = "not occluded by the person's own body; this set has no labels of other occlusion"


def evaluate(config: Uncertainty) -> Report:
    model, images = open_subject(config)
    must_have_sigma(model, config)
    protocol = Protocol.of(images, config)
    rendered = isinstance(images, SceneSet | FeatureSet)

    def visible(p: Prediction) -> np.ndarray:
        return p.batch["visible"].numpy() if rendered else facing(p.truth, images.topology.faces, device_of(config))

    scale, source = 1.0, "the error head"
    if model.errors is None:
        scale = saved_scale(config.checkpoint) if config.scale is None else config.scale
        source = f"{scale:g} times the spread of {config.describe()}"
    predictions = predict(model, images, config, config)
    found = collect(vertex_fields(p, protocol) | {"visible": visible(p)} for p in predictions)
    error, sigma = found["error"], scale * found["sigma"]
    facts = facts_of(config, protocol.name, len(images))
    radii, model_of_errors = error_model(config.checkpoint)
    facts |= {"sigma": source, "error model": model_of_errors}
    facts["visible"] = "visible to the camera" if rendered else BY_ITSELF
    return Report(
        "Uncertainty per vertex",
        facts,
        {"Vertices; error and sigma in mm": by_visibility(error, sigma, found["visible"], radii)},
        {"Sparsification, and promised against measured coverage": curves(error, sigma, radii)},
    )


def must_have_sigma(model: LoadedModel, sampling: SamplingOptions) -> None:
    """Raises InputError if the model has no error head, and the samples are too few for a spread, or all the same."""
    if model.errors is not None:
        return
    if sampling.samples < 2:
        raise InputError(f"--samples {sampling.samples}: without an error head, sigma is the spread of at least 2")
    if not any(generate.temperatures(sampling.steps, sampling.temperature)):
        raise InputError(
            f"--steps {sampling.steps} --temperature {sampling.temperature:g}: all samples are the same, and without "
            "an error head, sigma is their spread"
        )


class SavedCalibration(msgspec.Struct):
    """What is read of calibration.json, which `mega calibrate` and `mega train errors` write."""

    scale: float = 1.0


class SavedScores(msgspec.Struct):
    """What is read of scores.json, which `mega evaluate` writes."""

    quantiles: dict[str, float] = {}


S = TypeVar("S")


def _saved(file: Path, kind: type[S], again: str) -> S:
    """The defaults if there is no file. Raises InputError for a damaged one."""
    if not file.exists():
        return kind()
    try:
        return msgspec.convert(read_json(file), kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: damaged ({error}); {again} again") from None


def saved_scale(checkpoint: Path) -> float:
    """How many times the samples' spread is sigma: 1 for a checkpoint that was not calibrated."""
    return _saved(checkpoint / "calibration.json", SavedCalibration, "calibrate").scale


def error_model(checkpoint: Path) -> tuple[np.ndarray, str]:
    """Radii in sigma [L] that contain the shares `metrics.LEVELS` of the errors, and the source of these radii."""
    file = checkpoint / "scores.json"
    known = _saved(file, SavedScores, "evaluate").quantiles
    if len(known) not in (0, len(metrics.LEVELS)):
        raise InputError(f"{file}: field 'quantiles' must have {len(metrics.LEVELS)} numbers; evaluate again")
    return (np.array([*known.values()]), MEASURED) if known else (metrics.radius(metrics.LEVELS), GAUSSIAN)


def vertex_fields(p: Prediction, protocol: Protocol) -> dict[str, np.ndarray]:
    """[B, V]: `error` of the deterministic mesh and its `sigma`, metres.

    With an error head, sigma is also about where the person is across the line of sight.
    """
    single = metrics.centre(p.single, protocol.origin) + p.beside[:, None]
    return {"error": metrics.distances(single, metrics.centre(p.truth, protocol.origin)), "sigma": p.sigma}


def by_visibility(
    error: np.ndarray, sigma: np.ndarray, visible: np.ndarray, radii: np.ndarray
) -> dict[str, dict[str, float]]:
    """`measure` for all vertices [n, V], for the visible ones and for the occluded ones."""
    groups = {"all": np.ones(error.shape, bool), "visible": visible, "occluded": ~visible}
    return {group: measure(error[pick], sigma[pick], radii) for group, pick in groups.items() if pick.any()}


def measure(error: np.ndarray, sigma: np.ndarray, radii: np.ndarray) -> dict[str, float]:
    """The scores of sigma; error and sigma have one shape and are in metres. The two means are in millimetres.

    radii [L]: see `error_model`. `within`: share of the errors inside the radius.
    """
    half, most = np.interp([0.5, 0.9], metrics.LEVELS, radii)
    return {
        "error": 1000 * float(error.mean()),
        "sigma": 1000 * float(sigma.mean()),
        "Spearman": metrics.spearman(sigma, error),
        "AUSE": metrics.ause(error, sigma),
        "within 50 %": metrics.coverage(error, sigma, half),
        "within 90 %": metrics.coverage(error, sigma, most),
        "ECE": metrics.calibration_error(error, sigma, radii),
    }


def curves(error: np.ndarray, sigma: np.ndarray, radii: np.ndarray) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_sigma, best = metrics.sparsification(error, sigma)
    left.plot(metrics.REMOVED, by_sigma, label="largest sigma removed")
    left.plot(metrics.REMOVED, best, label="largest error removed (the best possible)")
    left.fill_between(metrics.REMOVED, best, by_sigma, alpha=0.15)
    left.set(xlabel="share of the vertices removed", ylabel="error of the rest / error of all", ylim=(0, None))
    left.legend()
    right.plot([0, 1], [0, 1], color="0.7")
    right.plot(metrics.LEVELS, metrics.reliability(error, sigma, radii), marker="o")
    right.set(xlabel="probability promised", ylabel="share of the errors within", xlim=(0, 1), ylim=(0, 1))
    return figure


def main(config: Uncertainty) -> None:
    publish_table(config, "uncertainty", evaluate(config))
