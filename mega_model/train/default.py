"""`mega train default`: the stages of the default model, see `options.Default`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mega_model import import_backbone, onnx_files
from mega_model.checkpoint import ERRORS
from mega_model.core.commands import must_have
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

T = TypeVar("T")
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
    needs: str = ""
    """A package of an extra."""


def stages(c: Default) -> list[Stage]:
    """All stages, in the order in which they run."""
    runs, bundle = c.out, c.bundle or c.out / "bundle"
    blazepose, recovered = runs / "blazepose", runs / "recover"
    seen = "--sets", f"features:{runs / 'features' / 'train'}"
    held = tuple(runs / "features" / part for part in ("calibration", "calibration_turned"))
    drawn = c.scenes // (1200 * c.workers) + 1

    def render(what: str, minutes: int, split: Split, count: int, shares: Shares = MIXTURE) -> Stage:
        place, topology = runs / "scenes" / split, runs / "tokenizer" / "topology.npz"
        config = Render(split, count, place, topology, shares=shares, workers=c.workers)
        return _marked(what, minutes, place, lambda: rendered.render(config))

    def extract(what: str, minutes: int, split: Split, train: bool = False, turned: bool = False) -> Stage:
        place = runs / "features" / (f"{split}_turned" if turned else split)
        config = Extract(
            runs / "scenes" / split, place, blazepose,
            train=train, turned=turned, detector=c.detector, workers=c.workers,
        )  # fmt: skip
        return _marked(what, minutes, place, lambda: features.extract(config))

    def train(what: str, minutes: int, name: str, main: Callable[[T], None], kind: type[T], *more: str | Path) -> Stage:
        words = [SETTINGS / f"{name}.yaml", "--out", runs / name, *more]
        return _marked(what, minutes, runs / name, lambda: main(parse(kind, [*map(str, words)])))

    return [
        train("meshes to tokens and back", 30, "tokenizer", tokenizer.main, TokenizerTraining),
        Stage(
            "BlazePose's published weights", 1, blazepose / "origin.json",
            lambda: import_backbone.main(ImportBackbone(blazepose)), "tflite",
        ),
        render("people to train on", drawn, "train", c.scenes),
        render("people to calibrate on", 2, "calibration", 2000),
        render("people to test on", 1, "test", 1000, (1, 1, 1, 1, 1)),
        extract("features to train on", drawn, "train", train=True),
        extract("features to calibrate on", 2, "calibration"),
        extract("features of people upside down", 2, "calibration", turned=True),
        extract("features to test on", 1, "test"),
        train(
            "masked meshes, without images", 10,
            "pretrain", pretrain.main, PretrainTraining, "--tokenizer", runs / "tokenizer",
        ),
        train(
            "the lifter alone", 30,
            "lift", lift.main, ImageTraining, "--pretrained", runs / "pretrain", "--backbone", blazepose, *seen,
        ),
        train("images to meshes", 100, "recover", recover.main, RecoverTraining, "--pretrained", runs / "lift", *seen),
        Stage("how wrong a mesh is", 5, recovered / ERRORS, lambda: errors.main(ErrorTraining(recovered, held))),
        Stage(
            "scores", 5, recovered / "scores.json",
            lambda: held_out.main(Evaluate(checkpoint=recovered, test=runs / "features" / "test")),
        ),
        Stage("the bundle", 1, bundle / "bundle.json", lambda: export(recovered, bundle, c.detector), "onnxscript"),
    ]  # fmt: skip


def _marked(what: str, minutes: int, folder: Path, make: Callable[[], object]) -> Stage:
    """A stage that marks its folder when it is complete."""

    def run() -> None:
        make()
        (folder / "done").touch()

    return Stage(what, minutes, folder / "done", run)


def export(checkpoint: Path, bundle: Path, detector: Path | None) -> None:
    """`mega export onnx`, as a process: export/ is in checkouts only, and mega_model imports nothing of it."""
    options = ["--checkpoint", checkpoint, "--out", bundle, *(["--detector", detector] if detector else [])]
    subprocess.run([sys.executable, str(EXPORT), *map(str, options)], check=True)


def main(config: Default) -> None:
    todo = [stage for stage in stages(config) if not stage.made.exists()]
    # what later stages need, before the first one takes half an hour
    rendered.must_be_chunks("scenes", config.scenes)
    for stage in todo:
        if stage.needs:
            must_have(stage.needs)
    if config.detector:
        onnx_files.read(config.detector)
    print(f"{config.out}: {len(todo)} stages to do, about {sum(stage.minutes for stage in todo)} minutes", flush=True)
    for number, stage in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {stage.what}: about {stage.minutes} minutes", flush=True)
        stage.run()
