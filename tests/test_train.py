"""The stages run one after the other on small data, and an interrupted run ends where the uninterrupted one does."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mega_model import checkpoint, generate
from mega_model.data import rendered
from mega_model.evaluate import default as evaluate
from mega_model.train import backbone, detector, pretrain, recover, tokenizer
from mega_model.train.loop import Batch, LoopConfig, Losses, Objective, fit, parse


class Line(Objective):
    def forward(self, batch: Batch) -> Losses:
        dropped = nn.functional.dropout(batch["x"], 0.3, self.training)
        return {"square": (self.model(dropped) - 2 * batch["x"]).square().mean(), "_shown": batch["x"].mean()}


def line_batches(rng: np.random.Generator) -> Batch:
    return {"x": torch.from_numpy(rng.normal(size=(8, 3)).astype(np.float32))}


def train_line(out: Path, until: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    config = LoopConfig(out=out, steps=40, batch=8, lr=0.05, warmup=5, save_every=10)
    left = until

    def batches(rng: np.random.Generator) -> Batch:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left = None if left is None else left - 1
        return line_batches(rng)

    with contextlib.suppress(KeyboardInterrupt):
        fit(config, Line(nn.Linear(3, 3)), batches)
    return load_file(out / "model.safetensors")


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = train_line(tmp_path / "whole")
    interrupted = train_line(tmp_path / "parts", until=25)
    assert not torch.equal(interrupted["weight"], whole["weight"])
    resumed = train_line(tmp_path / "parts")
    assert torch.equal(resumed["weight"], whole["weight"])
    assert torch.dist(whole["weight"], 2 * torch.eye(3)) < torch.dist(torch.zeros(3, 3), 2 * torch.eye(3)), "it learned"


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("out: here\nsteps: 3\nbatch: 4\nlr: 0.1\nbetas: [0.5, 0.6]\n")
    config = parse(LoopConfig, [str(file), "--steps", "7"])
    assert (config.steps, config.batch, config.betas, config.out) == (7, 4, (0.5, 0.6), Path("here"))


def test_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "4", "--warmup", "1", "--lr", "0.001", "--batch"]
    names = "tokenizer pretrain backbone recover detector crops groups".split()
    folder = {name: str(tmp_path / name) for name in names}
    tokenizer.main([*few, "4", "--out", folder["tokenizer"], "--quantize-from", "2"])
    topology = tmp_path / "tokenizer" / "topology.npz"
    size = rendered.CHUNK
    rendered.render(rendered.Render("crops", "train", size, tmp_path / "crops", topology))
    rendered.render(rendered.Render("groups", "train", size, tmp_path / "groups", topology, 96, 128, 2))
    pretrain.main([*few, "4", "--out", folder["pretrain"], "--tokenizer", folder["tokenizer"], "--bodies", "100"])
    on_crops = [*few, "4", "--crops", folder["crops"]]
    backbone.main([*on_crops, "--out", folder["backbone"], "--pretrained", folder["pretrain"]])
    recover.main([*on_crops, "--out", folder["recover"], "--pretrained", folder["backbone"]])
    detector.main([*few, "4", "--out", folder["detector"], "--groups", folder["groups"]])

    crops = folder["crops"]
    count = ["--count", "4", "--samples", "3"]
    evaluate.main(["--checkpoint", folder["recover"], "--test", crops, "--calibration", crops, *count])
    scores = json.loads((tmp_path / "recover" / "scores.json").read_text())
    assert scores["pictures"] == 4 and scores["PVE"] > 0
    assert "PVE" in capsys.readouterr().out
    assert json.loads((tmp_path / "recover" / "calibration.json").read_text())["scale"] > 0

    model, mesh, _ = checkpoint.load_mega(tmp_path / "recover")
    features = model.backbone(torch.zeros(1, 3, 128, 128))
    assert mesh.decode(generate.deterministic(model, features)).shape == (1, 1229, 3)
    boxes, found = checkpoint.load_detector(tmp_path / "detector")(torch.zeros(1, 96, 128, 3, dtype=torch.uint8))
    assert boxes.shape == (20, 4) and (found.diff() <= 0).all()
