"""The loop that all training stages share: AdamW, warm-up and cosine, progress, TensorBoard, resumable checkpoints.

A run is a folder: a checkpoint (see mega_model.checkpoint) and `state.pt`, from which it goes on where it stopped.
Data is a function of (seed, step), so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import tyro
import yaml
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from torch import Tensor, nn
from tqdm import tqdm

from mega_model import checkpoint


@dataclass(frozen=True)
class LoopConfig:
    out: Path
    """Folder of the run; one that holds a checkpoint is resumed."""
    steps: int
    batch: int
    lr: float
    warmup: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    """Largest gradient norm."""
    precision: Any = "32-true"
    """Lightning Fabric's name: 32-true, bf16-mixed, ..."""
    seed: int = 0
    save_every: int = 200


Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]
C = TypeVar("C")


class Objective(nn.Module):
    """A model and how it is trained: forward(batch) -> losses.

    Their sum is minimised; those whose names start with "_" are only shown.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def before_step(self, step: int, batch: Batch) -> None:
        """Called before each step, outside of the gradient."""


def parse(config: type[C], args: list[str]) -> C:
    """`[FILE.yaml] [--field value ...]` -> a config dataclass. The file's keys are option names; options come after."""
    if args and args[0].endswith(".yaml"):
        values = yaml.safe_load(Path(args[0]).read_text())
        given = [[f"--{k}", *map(str, v if isinstance(v, list) else [v])] for k, v in values.items()]
        args = [*chain.from_iterable(given), *args[1:]]
    return tyro.cli(config, args=args)


def fit(config: LoopConfig, objective: Objective, batches: Callable[[np.random.Generator], Batch]) -> None:
    """Train `objective.model` in place, and leave its weights and the state of the run in `config.out`."""
    fabric = _fabric(config)
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    model = objective.model
    trained, optimizer = fabric.setup(objective, optimizer)
    config.out.mkdir(parents=True, exist_ok=True)
    first = 0
    if (config.out / "state.pt").exists():
        state = torch.load(config.out / "state.pt", map_location="cpu", weights_only=True)
        checkpoint.load_weights(model, config.out)
        objective.load_state_dict(state["objective"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    trained.train()
    shown: dict[str, float] = {}
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=config.out.name,
        mininterval=5,
        disable=not fabric.is_global_zero,
    )
    for step in bar:
        rng = np.random.default_rng([config.seed, fabric.global_rank, step])
        torch.manual_seed(int(rng.integers(2**31)))  # masks, dropout, augmentation
        batch = {k: fabric.to_device(v) for k, v in batches(rng).items()}
        objective.before_step(step, batch)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        losses = trained(batch)
        fabric.backward(torch.stack([v for k, v in losses.items() if k[0] != "_"]).sum())
        fabric.clip_gradients(trained, optimizer, max_norm=config.clip)
        optimizer.step()
        optimizer.zero_grad()
        for k, v in losses.items():
            shown[k] = 0.98 * shown.get(k, v.item()) + 0.02 * v.item()
        if step % 20 == 0:
            bar.set_postfix({k.lstrip("_"): f"{v:.4g}" for k, v in shown.items()})
            fabric.log_dict({k.lstrip("_"): v for k, v in shown.items()}, step)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            if not fabric.is_global_zero:
                continue
            checkpoint.save_weights(model, config.out)
            rest = {k: v for k, v in objective.state_dict().items() if not k.startswith("model.")}
            state = {"optimizer": optimizer.state_dict(), "objective": rest, "step": step + 1}
            torch.save(state, config.out / "state.pt")


def _fabric(config: LoopConfig) -> Fabric:
    """One process, or as many as torchrun started; each takes `config.batch` of its own."""
    many: dict[str, Any] = {}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        # a stage may leave parts of the model alone
        many = {"strategy": "ddp_find_unused_parameters_true", "devices": local, "num_nodes": world // local}
    logger = TensorBoardLogger(config.out.parent, config.out.name, version="")
    return Fabric(precision=config.precision, loggers=logger, **many)


def _schedule(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup))
