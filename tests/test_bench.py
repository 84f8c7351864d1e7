"""The loop that `mega bench` times computes what `generate` computes, so that the ratio compares like with like."""

from __future__ import annotations

import pytest
import torch

from mega_model import generate
from mega_model.evaluate.bench import loop_deterministic, loop_stochastic, main, random_features
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.options import GenerationBench


@torch.no_grad()
def test_the_loop_gives_the_same_people() -> None:
    torch.manual_seed(0)
    config = MegaConfig(codes=32, width=32, encoder_blocks=1, decoder_blocks=2, backbone="given", backbone_width=8)
    model = Mega(config).eval()
    for p in model.parameters():  # away from the start, or all logits are alike
        torch.nn.init.normal_(p, std=0.2)
    features = torch.randn(2, 8, 3, 3)
    people = features.split(1)
    assert torch.equal(loop_deterministic(model, people), generate.deterministic(model, features))
    want = generate.stochastic(model, features, samples=3, steps=4, temperature=1.0, seed=5)
    assert (loop_stochastic(model, people, 3, 4, 1.0, 5) == want).float().mean() > 0.99  # a near tie may fall otherwise
    assert want[0, 0].ne(want[0, 1]).any()


@torch.no_grad()
def test_features_have_the_backbones_size() -> None:
    features = {name: random_features(config) for name, config in PRESETS.items()}
    maps = features.pop("default").maps
    shapes = {name: tuple(given.shape[1:]) for name, given in [("default", maps), *features.items()]}
    assert shapes == {"default": (288, 4, 4), "hrnet": (720, 7, 7), "vit": (1280, 16, 12), "resnet": (2048, 7, 7)}


def test_the_table_has_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    main(GenerationBench(preset="default", samples=2, steps=2, repeats=1))
    shown = capsys.readouterr().out
    assert "ratio" in shown and "Q = 2, T = 2" in shown
