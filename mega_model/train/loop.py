"""The loop that all training stages share: AdamW, warm-up and cosine, progress, TensorBoard, resumable checkpoints.

A run is a folder: a checkpoint (see mega_model.checkpoint), `training.json` (data and settings), TensorBoard's events,
and `state.pt`, from which the run resumes.

A step's batch is a list of micro-batches, divided evenly among the processes. Everything random about a micro-batch
(data, augmentation, masks, dropout) is a function of (seed, step, index in the list). So a resumed run equals an
uninterrupted one, and equal micro-batches give equal losses on any number of processes.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from mega_model import checkpoint
from mega_model.core.errors import InputError, first_line
from mega_model.core.files import make_folder
from mega_model.options import LoopConfig

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]
Batches = Callable[[np.random.Generator, int], Batch]
"""(rng, count) -> `count` examples. It may use no other randomness than `rng`; several threads call it."""
A = TypeVar("A")
B = TypeVar("B")


class Objective(nn.Module):
    """A model and its losses: forward(batch) -> losses.

    The sum of the losses is minimised. Values whose names start with "_" are only logged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def before_step(self, step: int) -> None:
        """Called before each step, without gradient."""

    def learned(self) -> list[dict[str, Any]]:
        """What is trained: parameter groups of torch, each with `rate`, a factor on the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "rate": 1.0}]


def fit(
    config: LoopConfig,
    objective: Objective,
    batches: Batches,
    data: Mapping[str, Any],
    validation: Sequence[Batch] = (),
) -> None:
    """Train `objective.model` in place, and save its weights and the state of the run in `config.out`.

    data: entries on the training data for training.json. After SIGTERM, saves and raises SystemExit. Raises InputError
    if the batch cannot be divided among the processes, or if `config.out` holds another run. validation: batches whose
    losses are logged at every save.
    """
    fabric = _fabric(config)
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    micro, share = _shares(config, fabric.world_size)
    groups = objective.learned()
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    rates = [group["rate"] for group in groups]  # not from the optimizer, which a resumed run loads
    trained, optimizer = fabric.setup(objective, optimizer)
    make_folder(config.out)
    if fabric.is_global_zero:
        _put_in_place(config.out)
    fabric.barrier()
    settings = _settings(config, micro)
    first = _resume(config.out, objective, optimizer, settings)
    trained.train()

    mine = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    places = ((step, place) for step in range(first, config.steps) for place in mine)

    def draw(place: tuple[int, int]) -> tuple[int, Batch]:
        rng = np.random.default_rng([config.seed, *place])
        return int(rng.integers(2**31)), batches(rng, micro)

    shown: dict[str, float] = {}
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=config.out.name,
        mininterval=5,
        disable=not fabric.is_global_zero,
    )
    with _sigterm() as came, closing(_prefetch(draw, places, config.loaders)) as drawn:
        for step in bar:
            torch.manual_seed(config.seed + step)
            objective.before_step(step)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * config.lr * _schedule(step, config)
            losses = _backward(fabric, trained, drawn, share, config.precision == "bf16-mixed")
            _clip(fabric, trained, optimizer, config, step)
            optimizer.step()
            optimizer.zero_grad()
            now, stop = _agree(fabric, losses, came())
            fabric.log_dict(now, step)
            shown = {name: 0.98 * shown.get(name, v) + 0.02 * v for name, v in now.items()}
            if step % 20 == 0:
                bar.set_postfix({name: f"{v:.4g}" for name, v in shown.items()})
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps or stop:
                if fabric.is_global_zero:
                    made = {**data, **_progress(config, step + 1, fabric.world_size, shown)}
                    _save(config.out, objective, optimizer, made, settings)
                    if validation:
                        fabric.log_dict(_validate(fabric, objective, validation, config.seed), step)
                    fabric.logger.save()
                fabric.barrier()  # torchrun would kill this process if another one ended first
            if stop:
                raise SystemExit(128 + signal.SIGTERM)


def _backward(fabric: Fabric, trained: Any, drawn: Iterator[tuple[int, Batch]], share: int, mixed: bool) -> Losses:
    """Accumulate the gradients of a step's `share` of micro-batches. Returns the means of their losses."""
    means: Losses = {}
    for k in range(share):
        seed, batch = next(drawn)
        torch.manual_seed(seed)  # masks, dropout, augmentation
        with fabric.no_backward_sync(trained, enabled=k + 1 < share):
            # not by Fabric, which would also round the data
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed):
                losses = trained(fabric.to_device(dict(batch)))
            losses = {name: v.float() / share for name, v in losses.items()}
            fabric.backward(torch.stack([v for name, v in losses.items() if name[0] != "_"]).sum())
        means = {name: means.get(name, 0) + v.detach() for name, v in losses.items()}
    return means


def _clip(fabric: Fabric, trained: Any, optimizer: Optimizer, config: LoopConfig, step: int) -> None:
    """Clip the gradients. Raises InputError if one is not finite."""
    norm = fabric.clip_gradients(trained, optimizer, max_norm=config.clip, error_if_nonfinite=False)
    if norm is not None and not norm.isfinite():  # the same in all processes
        raise InputError(
            f"{config.out}: step {step + 1}: a gradient is not finite, so the run cannot go on; what it has "
            "saved stays. Train into another folder with a smaller lr, a longer warmup or a smaller clip"
        )


@torch.no_grad()
def _validate(fabric: Fabric, objective: Objective, validation: Sequence[Batch], seed: int) -> dict[str, float]:
    """The mean losses of the batches, in full precision and by the same masks every time, as `validation/NAME`."""
    torch.manual_seed(seed)
    objective.eval()
    found = [objective(fabric.to_device(dict(batch))) for batch in validation]
    objective.train()
    means = {name: torch.stack([losses[name].float() for losses in found]).mean() for name in found[0]}
    return {f"validation/{name.lstrip('_')}": float(value) for name, value in means.items()}


def _agree(fabric: Fabric, losses: Losses, stop: bool) -> tuple[dict[str, float], bool]:
    """The losses' means over all processes, and whether any process must stop."""
    values = torch.stack([*losses.values()])
    all_values = fabric.all_reduce(torch.cat([values, values.new_tensor([stop])]))
    assert isinstance(all_values, Tensor)
    *means, stops = all_values.tolist()
    return dict(zip((name.lstrip("_") for name in losses), means)), stops > 0


def own_device() -> torch.device:
    """The GPU that is this process's among those that torchrun started, or the CPU."""
    gpu = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")


def _fabric(config: LoopConfig) -> Fabric:
    """One process, or those that torchrun started."""
    many: dict[str, Any] = {"devices": 1}  # by default, Fabric takes all devices
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        # a stage may not use all parameters
        many = {"strategy": "ddp_find_unused_parameters_true", "devices": local, "num_nodes": world // local}
    logger = TensorBoardLogger(config.out.parent, config.out.name, version="")
    return Fabric(loggers=logger, **many)


def _shares(config: LoopConfig, processes: int) -> tuple[int, int]:
    """Examples of a micro-batch, and micro-batches of each process in a step."""
    micro = config.micro_batch or max(1, config.batch // processes)
    if config.batch % (micro * processes):
        raise InputError(
            f"batch {config.batch}: not a multiple of {processes} processes x {micro} examples; "
            "change batch, micro_batch or the number of processes"
        )
    return micro, config.batch // (micro * processes)


def _schedule(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup))


def _prefetch(make: Callable[[A], B], jobs: Iterable[A], threads: int) -> Generator[B, None, None]:
    """make(job) for each job, in order, computed in advance by `threads` threads."""
    left = iter(jobs)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(make, job) for job in islice(left, threads))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, job) for job in islice(left, 1))
            yield made


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Catches SIGTERM inside the context. The function returns whether it was received."""
    came = False

    def note(*_: Any) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)


def _progress(config: LoopConfig, steps: int, processes: int, losses: Mapping[str, float]) -> dict[str, Any]:
    """Entries of training.json after so many steps."""
    return {
        "steps": steps,
        "batch": config.batch,
        "examples": steps * config.batch,
        "processes": processes,
        "seed": config.seed,
        "losses": {name: float(f"{v:.4g}") for name, v in losses.items()},
    }


def _rest(objective: Objective) -> dict[str, Tensor]:
    """The objective's own parameters, without those of its model."""
    return {k: v for k, v in objective.state_dict().items() if not k.startswith("model.")}


_FREE = {"out", "steps", "save_every", "loaders", "validate"}
"""Settings with which a run may go on differently: more steps make it longer."""


def _settings(config: LoopConfig, micro: int) -> dict[str, str]:
    """What defines a run, by option."""
    return {name: str(value) for name, value in vars(config).items() if name not in _FREE} | {"micro_batch": str(micro)}


def _save(
    folder: Path, objective: Objective, optimizer: Optimizer, made: Mapping[str, Any], settings: Mapping[str, str]
) -> None:
    """Write all files, then replace the old ones. InputError if they cannot be written, as on a full disk."""
    new = folder / "unfinished"
    step = made["steps"]
    state = {"optimizer": optimizer.state_dict(), "objective": _rest(objective), "step": step, "settings": settings}
    try:
        new.mkdir(exist_ok=True)
        checkpoint.save_weights(objective.model, new)
        torch.save(state, new / "state.pt")
        (new / "training.json").write_text(json.dumps(made, indent=1) + "\n")
        new.rename(folder / "finished")
        _put_in_place(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # libraries do not always say that the disk is full
        free = shutil.disk_usage(folder).free // 2**20
        raise InputError(
            f"{folder}: step {step} cannot be saved, {free} MiB are free ({first_line(error)}); the save before stays. "
            "Make room, and give the same command again"
        ) from error


def _put_in_place(folder: Path) -> None:
    """Move the files of a complete save into place. The next start does this if it was interrupted."""
    finished = folder / "finished"
    if finished.exists():
        for file in finished.iterdir():
            file.replace(folder / file.name)
        finished.rmdir()


def _resume(folder: Path, objective: Objective, optimizer: Optimizer, settings: Mapping[str, str]) -> int:
    """Load the last save, if there is one. Returns the number of completed steps. InputError if it is another run's."""
    file = folder / "state.pt"
    if not file.exists():
        return 0
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch does not check the sums
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(file, map_location="cpu", weights_only=True)
        missing = {"optimizer", "objective", "step", "settings"} - state.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))} in it")
        differ = state["objective"].keys() ^ _rest(objective).keys()
        if differ:
            raise ValueError(f"it was left by another stage or version: {', '.join(sorted(differ))} not in both")
        objective.load_state_dict(state["objective"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
    except (
        ValueError,
        RuntimeError,
        EOFError,
        AttributeError,
        KeyError,
        TypeError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(
            f"{file}: cannot go on from here, so delete it or train into another folder: {first_line(error)}"
        ) from error
    there = state["settings"]
    for name in {**there, **settings}:
        if there.get(name) != settings.get(name):
            raise InputError(
                f"{file}: of a run with {name} {there.get(name)}, not {settings.get(name)}; "
                f"give the same, or train into another folder"
            )
    try:
        checkpoint.load_weights(objective.model, folder)
    except InputError as error:
        raise InputError(f"{error}; train into another folder") from error
    return int(state["step"])
