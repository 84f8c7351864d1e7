"""`mega train default`: trains the default model from scratch, stage by stage. Completed stages are skipped.

Every stage is also a separate command and can resume, so after an interruption, run the same command again. The times
are for two CPU cores.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mega_model import import_backbone, onnx_files
from mega_model.checkpoint import ERRORS
from mega_model.core.settings import parse
from mega_model.data import features, rendered
from mega_model.evaluate import held_out
from mega_model.options import (
    MIXTURE,
    Default,
    ErrorTraining,
    Evaluate,
    Extract,
    ImageTraining,
    ImportBackbone,
    PretrainTraining,
    RecoverTraining,
    Render,
    Split,
    TokenizerTraining,
)
from mega_model.train import errors, lift, pretrain, recover, tokenizer

Training = TypeVar("Training")
Shares = tuple[float, float, float, float, float]
"""Shares of `scenes.PARTS`."""
SETTINGS = Path(__file__).parents[2] / "config" / "train"
EXPORT = Path(__file__).parents[2] / "export" / "to_onnx.py"


@dataclass(frozen=True)
class Stage:
    what: str
    minutes: int
    made: Path
    """The last file that the stage writes."""
    run: Callable[[], object]


def stages(c: Default) -> list[Stage]:
    """All stages, in the order in which they run."""
    runs = c.out

    def render(part: str, split: Split, count: int, shares: Shares = MIXTURE) -> Callable[[], None]:
        config = Render(
            split, count, runs / "scenes" / part, runs / "tokenizer" / "topology.npz", shares=shares, workers=c.workers
        )
        return lambda: finish(rendered.render, config)

    def extract(part: str, scenes: str, train: bool = False, turned: bool = False) -> Callable[[], None]:
        config = Extract(
            runs / "scenes" / scenes, runs / "features" / part, runs / "blazepose",
            train=train, turned=turned, detector=c.detector, workers=c.workers,
        )  # fmt: skip
        return lambda: finish(features.extract, config)

    def finish(make: Callable[..., None], config: Render | Extract) -> None:
        make(config)
        (config.out / "done").touch()

    def train(
        stage: str, main: Callable[[Training], None], kind: type[Training], *more: str | Path
    ) -> Callable[[], None]:
        def run() -> None:
            main(parse(kind, [str(SETTINGS / f"{stage}.yaml"), "--out", str(runs / stage), *map(str, more)]))
            (runs / stage / "done").touch()

        return run

    backbone, seen = ("--backbone", runs / "blazepose"), ("--sets", f"features:{runs / 'features' / 'train'}")
    held = tuple(str(runs / "features" / part) for part in ("calibration", "calibration_turned"))
    drawn = c.scenes // (1200 * c.workers) + 1
    scenes, features_ = runs / "scenes", runs / "features"

    def done(folder: Path) -> Path:
        return folder / "done"

    table: tuple[tuple[str, int, Path, Callable[[], object]], ...] = (
        (
            "meshes to tokens and back",
            30,
            done(runs / "tokenizer"),
            train("tokenizer", tokenizer.main, TokenizerTraining),
        ),
        (
            "BlazePose's published weights",
            1,
            runs / "blazepose" / "origin.json",
            lambda: import_backbone.main(ImportBackbone(runs / "blazepose")),
        ),
        ("people to train on", drawn, done(scenes / "train"), render("train", "train", c.scenes)),
        ("people to calibrate on", 2, done(scenes / "calibration"), render("calibration", "calibration", 2000)),
        ("people to test on", 1, done(scenes / "test"), render("test", "test", 1000, (1, 1, 1, 1, 1))),
        ("features to train on", drawn, done(features_ / "train"), extract("train", "train", train=True)),
        ("features to calibrate on", 2, done(features_ / "calibration"), extract("calibration", "calibration")),
        (
            "features of people upside down",
            2,
            done(features_ / "calibration_turned"),
            extract("calibration_turned", "calibration", turned=True),
        ),
        ("features to test on", 1, done(features_ / "test"), extract("test", "test")),
        (
            "masked meshes, without images",
            10,
            done(runs / "pretrain"),
            train("pretrain", pretrain.main, PretrainTraining, "--tokenizer", runs / "tokenizer"),
        ),
        (
            "the lifter alone",
            135,
            done(runs / "lift"),
            train("lift", lift.main, ImageTraining, "--pretrained", runs / "pretrain", *backbone, *seen),
        ),
        (
            "images to meshes",
            100,
            done(runs / "recover"),
            train("recover", recover.main, RecoverTraining, "--pretrained", runs / "lift", *seen),
        ),
        (
            "how wrong a mesh is",
            5,
            runs / "recover" / ERRORS,
            lambda: errors.main(ErrorTraining(runs / "recover", held)),
        ),
        (
            "scores",
            5,
            runs / "recover" / "scores.json",
            lambda: held_out.main(Evaluate(checkpoint=runs / "recover", test=features_ / "test")),
        ),
        (
            "the bundle",
            1,
            (c.bundle or runs / "bundle") / "bundle.json",
            lambda: export(runs / "recover", c.bundle or runs / "bundle", c.detector),
        ),
    )
    return [Stage(*row) for row in table]


def export(checkpoint: Path, bundle: Path, detector: Path | None) -> None:
    """`mega export onnx`, as a process: export/ is in checkouts only, and mega_model imports nothing of it."""
    options = ["--checkpoint", checkpoint, "--out", bundle, *(["--detector", detector] if detector else [])]
    subprocess.run([sys.executable, str(EXPORT), *map(str, options)], check=True)


def main(config: Default) -> None:
    if config.detector:
        onnx_files.read(config.detector)  # an hour before the export needs it
    todo = [stage for stage in stages(config) if not stage.made.exists()]
    print(f"{config.out}: {len(todo)} stages to do, about {sum(stage.minutes for stage in todo)} minutes", flush=True)
    for number, stage in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {stage.what}: about {stage.minutes} minutes", flush=True)
        stage.run()
