"""A checkpoint with random weights, to measure the speed of a model that is not trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mega_model import checkpoint
from mega_model.blazepose import BlazePose
from mega_model.core.topology import Topology
from mega_model.expected_error import ErrorHead
from mega_model.mega import MegaConfig
from mega_model.tokenizer import TokenizerConfig
from mega_ros.bundle import DEFAULT, TOPOLOGY


def random_checkpoint(config: MegaConfig, folder: Path) -> Path:
    """Writes a checkpoint to `folder`, for the default bundle's body, with an error head for BlazePose."""
    torch.manual_seed(0)
    topology = Topology.load(DEFAULT / TOPOLOGY)
    tokenizer = checkpoint.begin_tokenizer(folder / "of meshes", topology, TokenizerConfig())
    checkpoint.save_weights(tokenizer, folder / "of meshes")
    config = replace(config, tokens=tokenizer.length, codes=len(tokenizer.quantizer.codebook), latent=tokenizer.latent)
    model = checkpoint.begin_mega(folder, folder / "of meshes", config)
    if model.lifter is not None:
        model.lifter.set_codebook(tokenizer.quantizer.codebook)
        assert isinstance(model.backbone, BlazePose)
        maps = torch.rand(40, model.backbone.branch_channels, 4, 4)
        modes = 0.01 * torch.randn(3, len(topology.template), 3)
        checkpoint.save_errors(folder, ErrorHead.begin(config.width, tokenizer, topology, maps, modes))
    checkpoint.save_weights(model, folder)
    return folder
