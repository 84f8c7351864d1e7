"""Rendered people, a tokenizer that does not know them, and a tiny BlazePose: made once per run of the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from mega_model import checkpoint
from mega_model.blazepose import LANDMARKS, BlazePose, PoseFeatures
from mega_model.body.anny import HIERARCHY_SEEDS
from mega_model.data import features, rendered
from mega_model.data.meshes import BodySampler
from mega_model.options import Extract, Render
from mega_model.tokenizer import TokenizerConfig

WIDTH = 16
"""Of the smallest BlazePose."""
UPRIGHT = {"left_shoulder": (0.2, -0.5), "right_shoulder": (-0.2, -0.5), "left_hip": (0.1, 0), "right_hip": (-0.1, 0)}


def make(folder: Path) -> None:
    """`topology.npz`; `tokenizer`, whose meshes look like bodies; `scenes`, 40 people, eight of each part; `blazepose`.

    And what that sees of the people: `features/train`, `features/test` and `features/turned`.
    """
    bodies, rng = BodySampler("test"), np.random.default_rng(0)
    topology = bodies.body.topology(bodies.draw_poses(rng, 20), bodies.bones, bodies.draw_phenotypes(rng, 20))
    topology.save(folder / "topology.npz")
    torch.manual_seed(0)
    tokenizer = checkpoint.begin_tokenizer(folder / "tokenizer", topology, TokenizerConfig(seeds=HIERARCHY_SEEDS))
    tokenizer.quantizer.codebook.mul_(0.03)  # small codes: small steps away from the template
    checkpoint.save_weights(tokenizer, folder / "tokenizer")
    scenes = folder / "scenes"
    rendered.render(Render("test", 40, scenes, folder / "topology.npz", size=96, shares=(1, 1, 1, 1, 1)))
    blazepose(folder / "blazepose")
    with patch.object(features, "compiled", in_torch):  # to compile takes longer than a few crops
        for name in ("train", "test", "turned"):
            config = Extract(
                scenes, folder / "features" / name, folder / "blazepose", WIDTH,
                train=name == "train", turned=name == "turned",
            )  # fmt: skip
            features.extract(config)


def in_torch(backbone: BlazePose) -> Callable[[np.ndarray], PoseFeatures]:
    """What `features.compiled` gives."""

    @torch.no_grad()
    def run(crops: np.ndarray) -> PoseFeatures:
        return backbone(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)

    return run


@torch.no_grad()
def blazepose(folder: Path) -> None:
    """Random weights in the place of published ones. It takes everybody to stand upright in the middle of the crop."""
    torch.manual_seed(1)
    network = BlazePose(WIDTH)
    for layer in (m for m in network.modules() if isinstance(m, torch.nn.Conv2d)):
        torch.nn.init.kaiming_normal_(layer.weight)  # or nothing of the image would be left behind so many layers
    network.landmarks.weight.mul_(0.3)
    network.world.weight.mul_(0.01)
    network.presence.weight.mul_(0.3)
    landmarks, where, present = network.landmarks.bias, network.world.bias, network.presence.bias
    assert landmarks is not None and where is not None and present is not None
    places = landmarks.view(len(LANDMARKS), 5)
    places[:] = torch.tensor([128.0, 128, 0, 2, 2])
    places[LANDMARKS.index("body_circle"), 1] = 28
    world = where.view(len(LANDMARKS), 3)
    for name, (x, y) in UPRIGHT.items():
        world[LANDMARKS.index(name)] = torch.tensor([x, y, 0.0])
    present.fill_(2)
    folder.mkdir()
    checkpoint.save_weights(network, folder)
    (folder / "origin.json").write_text(json.dumps({"model": "little", "license": "CC0"}))
