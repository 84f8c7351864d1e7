#!/usr/bin/env python3
"""Draws docs/images/sigma_*.svg: what sigma promises and what was measured, on rendered people and on photographs.

    scripts/plot_sigma.py --checkpoint runs/recover --test runs/features/test
    scripts/plot_sigma.py --set coco-keypoints:keypoints.json --bundle default

Run it again when the default model changes. The first command draws the errors of all vertices of held-out rendered
people (`mega evaluate`), the second those of annotated joints in photographs (`mega evaluate keypoints`). Needs the
extra `train`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

import matplotlib
import numpy as np
import tyro
from matplotlib.figure import Figure

from mega_model import checkpoint
from mega_model.core import metrics
from mega_model.evaluate.held_out import open_people
from mega_model.evaluate.predict import collect, device_of, predict
from mega_model.evaluate.protocols import Protocol
from mega_model.evaluate.uncertainty import error_model, vertex_fields
from mega_model.options import Conventions, Evaluate
from mega_ros.recovery import Recovery
from mega_ros.replay import coco, photographs

ROOT = Path(__file__).resolve().parents[1]

GROUPS = 10
"""Of equally many errors, by sigma."""


@dataclass(frozen=True)
class PlotOptions:
    checkpoint: Path | None = None
    """Trained model; with --test."""
    test: Path = Path("runs/features/test")
    """Folder of a rendered set, or of its features."""
    set: str | None = None
    """Annotated photographs: coco-keypoints:FILE.json."""
    bundle: str = "default"
    """The model for photographs."""
    out: Path = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Measured:
    """Errors and sigma, metres, of one shape, and the radii [L] in sigma of the shares `metrics.LEVELS`."""

    error: np.ndarray
    sigma: np.ndarray
    radii: np.ndarray

    def __getitem__(self, pick: np.ndarray) -> Measured:
        return Measured(self.error[pick], self.sigma[pick], self.radii)

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Root mean squares [G] of sigma and error in groups of increasing sigma."""
        order = np.argsort(self.sigma, axis=None, kind="stable")

        def rms(values: np.ndarray) -> np.ndarray:
            parts = np.array_split(values.ravel()[order], GROUPS)
            return np.array([np.sqrt(np.mean(np.square(part))) for part in parts])

        return rms(self.sigma), rms(self.error)


def on_renders(options: PlotOptions) -> dict[str, Measured]:
    assert options.checkpoint is not None
    config = Evaluate(checkpoint=options.checkpoint, test=options.test, samples=0)
    model = checkpoint.load(options.checkpoint).to(device_of(config))
    people = open_people(options.test, model)
    protocol = Protocol.of(people, Conventions())
    predictions = predict(model, people, config, config)
    found = collect(vertex_fields(p, protocol) | {"visible": p.batch["visible"].numpy()} for p in predictions)
    measured = Measured(found["error"], found["sigma"], error_model(options.checkpoint)[0])
    return {
        f"all vertices of {len(people)} people": measured,
        "visible": measured[found["visible"]],
        "hidden": measured[~found["visible"]],
    }


def on_photographs(options: PlotOptions) -> dict[str, Measured]:
    """In the image, which shows two of the three directions of an error: so sigma is sqrt(2/3) as large there."""
    assert options.set is not None
    recovery = Recovery.load(options.bundle)
    people = [p for photograph in coco.read(options.set) for p in photographs.evaluate(recovery, photograph)[1]]
    error = np.array([person.error_metres for person in people])
    sigma = photographs.IN_IMAGE * np.array([person.sigma for person in people])
    known = np.isfinite(error * sigma)
    radii = np.array([*recovery.bundle.calibration.quantiles.values()])
    return {f"{known.sum()} joints of {len(people)} people": Measured(error[known], sigma[known], radii)}


def draw(measured: dict[str, Measured]) -> Figure:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 100], [0, 100], color="0.6", linestyle=":", label="as promised")
    for name, each in measured.items():
        shares = metrics.reliability(each.error, each.sigma, each.radii)
        left.plot(100 * metrics.LEVELS, 100 * shares, marker=".", label=name)
        right.plot(*each.groups(), marker=".")
    left.set(xlabel="share of errors promised within a radius, %", ylabel="share measured, %", xlim=(0, 100))
    left.set(ylim=(0, 100))
    left.legend()
    end = right.get_xlim()[1]
    right.plot([0, end], [0, end], color="0.6", linestyle=":")
    right.set(xlabel="sigma, m (a tenth of the errors each)", ylabel="root mean square of these errors, m")
    right.set(xlim=(0, end), ylim=(0, None))
    return figure


def main(options: PlotOptions) -> None:
    # the same picture gives the same file
    matplotlib.rcParams.update({"svg.hashsalt": "mega", "svg.fonttype": "none", "font.family": "sans-serif"})
    if options.checkpoint is not None:
        save(on_renders(options), options.out / "sigma_renders.svg")
    if options.set is not None:
        save(on_photographs(options), options.out / "sigma_photographs.svg")


def save(measured: dict[str, Measured], path: Path) -> None:
    draw(measured).savefig(path, metadata={"Date": None}, facecolor="white")
    print(path)
    for name, each in measured.items():
        shares = np.interp([50, 90], 100 * metrics.LEVELS, metrics.reliability(each.error, each.sigma, each.radii))
        print(f"  {name}: {shares[0]:.0%} of the errors within the radius of 50 %, {shares[1]:.0%} within that of 90 %")
        for sigma, error in zip(*each.groups()):
            print(f"    sigma {sigma:.3f} m: error {error:.3f} m")


if __name__ == "__main__":
    main(tyro.cli(PlotOptions, description=__doc__))
