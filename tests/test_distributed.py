"""Real processes: two of them learn what one learns with their batches put together, and SIGTERM loses nothing.

Started by torchrun or python, this file is the training that its tests look at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hierarchy import icosphere

from mega_model.core.topology import Topology
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega, MegaConfig
from mega_model.options import LoopConfig, RecoverTraining, TokenizerTraining
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig
from mega_model.train.loop import Batch, fit
from mega_model.train.pretrain import PretrainObjective
from mega_model.train.recover import RecoverObjective
from mega_model.train.tokenizer import TokenizerObjective

STEPS, PER_PROCESS = 12, 3
STAGES = ("pretrain", "recover")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def sphere() -> Topology:
    """The faces of a sphere, and vertices anywhere."""
    faces, size = icosphere(2)
    template = np.random.default_rng(0).normal(size=(size, 3)).astype(np.float32)
    regressor = np.full((24, size), 1 / size, np.float32)
    return Topology(template, faces.astype(np.int32), regressor, np.zeros(size, np.int32))


def train(out: Path, processes: int, pause: float = 0.0, **options: Any) -> None:
    """Both stages of MEGA, tiny, on noise. A step takes PER_PROCESS examples for each of `processes`."""
    torch.manual_seed(0)
    topology = sphere()
    template = topology.template
    tokenizer = MeshTokenizer(topology, TokenizerConfig(channels=(4,), latent=3, codes=16))
    model = Mega(MegaConfig(tokenizer.length, 16, 32, 1, 1, 2, "resnet18", backbone_width=8, image_size=32))

    def tokens(rng: np.random.Generator, count: int) -> Batch:
        return {"tokens": torch.from_numpy(rng.integers(16, size=(count, tokenizer.length)))}

    def images(rng: np.random.Generator, count: int) -> Batch:
        time.sleep(pause)
        floats = {"vertices": template.shape, "joints": (24, 3), "joints2d": (24, 2), "rotation": (6,)}
        batch = {k: torch.from_numpy(rng.normal(size=(count, *s)).astype(np.float32)) for k, s in floats.items()}
        batch |= {"rotation": rot6d_to_matrix(batch["rotation"]), "confidence": torch.ones(count, 24)}
        return batch | {"images": torch.from_numpy(rng.integers(256, size=(count, 3, 32, 32), dtype=np.uint8))}

    sizes: dict[str, Any] = {
        "steps": STEPS,
        "batch": PER_PROCESS * processes,
        "micro_batch": PER_PROCESS,
        "lr": 0.003,
        "warmup": 2,
    }
    sizes |= options
    fit(LoopConfig(out / "pretrain", **sizes), PretrainObjective(model), tokens, {})
    recover = RecoverTraining(out / "recover", **sizes, loaders=2)
    fit(recover, RecoverObjective(model, tokenizer, recover), images, {})


class NoiseMeshes:
    """What the codebook starts from."""

    def __init__(self) -> None:
        self.template = sphere().template
        self.made_of = {"meshes": "noise"}
        self.seeds = (0,)

    def topology(self) -> Topology:
        return sphere()

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.template + 0.3 * rng.normal(size=(count, *self.template.shape)).astype(np.float32)


def train_tokenizer(out: Path) -> None:
    """Each process takes its share of every step's 2 * PER_PROCESS meshes. Codes die fast, and start again."""
    torch.manual_seed(0)
    meshes, rank, steps = NoiseMeshes(), int(os.environ.get("RANK", 0)), count()
    tokenizer = MeshTokenizer(meshes.topology(), TokenizerConfig(channels=(4,), latent=3, codes=64))
    tokenizer.quantizer.decay = 0.5

    def share(_: np.random.Generator, size: int) -> Batch:
        whole = meshes.draw(np.random.default_rng(next(steps)), 2 * PER_PROCESS)
        return {"vertices": torch.from_numpy(whole[rank * size : (rank + 1) * size])}

    sizes: dict[str, Any] = {"steps": STEPS, "batch": 2 * PER_PROCESS, "lr": 0.003, "warmup": 2}
    config = TokenizerTraining(out=out / "tokenizer", **sizes, quantize_from=2)
    fit(config, TokenizerObjective(tokenizer, config, meshes), share, meshes.made_of)


def curves(out: Path, stage: str) -> dict[str, list[float]]:
    """Every loss at every step, as TensorBoard shows them."""
    events = EventAccumulator(str(out / stage), {"scalars": 0}).Reload()
    scalars = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    assert all([e.step for e in events] == list(range(STEPS)) for events in scalars.values()), "each step once"
    return {name: [e.value for e in events] for name, events in scalars.items()}


def start(launcher: list[str], out: Path, pause: float = 0.0) -> subprocess.Popen[bytes]:
    """All trainings, one after the other. pause: before each batch of MEGA's second stage, seconds."""
    return subprocess.Popen([sys.executable, *launcher, __file__, str(out), str(pause)])


def terminate(launcher: list[str], out: Path) -> int:
    """Start the training, send SIGTERM in the middle of the second stage, and return the exit code."""
    process = start(launcher, out, pause=0.5)
    while not list((out / "recover").glob("events*")):
        assert process.poll() is None, "it ended before it was told to"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    done = torch.load(out / "recover" / "state.pt", weights_only=True)["step"]
    assert 0 < done < STEPS, "it was saved where it was stopped"
    return code


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the double batch."""
    out = tmp_path_factory.mktemp("one")
    train(out, processes=2)
    train_tokenizer(out)
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, told to stop in the middle and started again."""
    out = tmp_path_factory.mktemp("two")
    assert terminate(TORCHRUN, out) != 0
    assert start(TORCHRUN, out).wait() == 0
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_what_one_does_with_the_double_batch(one: Path, two: Path, stage: str) -> None:
    expected, found = curves(one, stage), curves(two, stage)
    assert expected.keys() == found.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
        assert len(set(found[name])) == STEPS, "the curve is not flat"
    weights, others = (load_file(out / stage / "model.safetensors") for out in (one, two))
    for name in weights:
        if "running_" not in name and "num_batches" not in name:  # of these, each process keeps its own
            torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_learn_the_codebook_of_one_with_the_double_batch(one: Path, two: Path) -> None:
    expected, found = curves(one, "tokenizer"), curves(two, "tokenizer")
    for name in ("v2v", "commitment"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    weights, others = (load_file(out / "tokenizer" / "model.safetensors") for out in (one, two))
    assert (weights["quantizer.size"] > 0).all()
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_sigterm_saves_and_the_next_start_goes_on(one: Path, tmp_path: Path) -> None:
    assert terminate([], tmp_path) == 128 + signal.SIGTERM
    train(tmp_path, processes=2)
    assert curves(tmp_path, "recover") == curves(one, "recover")
    whole, parts = (load_file(out / "recover" / "model.safetensors") for out in (one, tmp_path))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_mixed_precision_computes_about_the_same(one: Path, tmp_path: Path) -> None:
    train(tmp_path, processes=2, precision="bf16-mixed")
    for stage in STAGES:
        exact, mixed = curves(one, stage), curves(tmp_path, stage)
        for name in exact:
            assert mixed[name][0] != exact[name][0]
            # of the same weights; later ones drift apart
            assert mixed[name][0] == pytest.approx(exact[name][0], rel=0.01), name
        assert np.mean(mixed["tokens"]) == pytest.approx(np.mean(exact["tokens"]), rel=0.02)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    train(folder, processes=2, pause=float(sys.argv[2]))
    train_tokenizer(folder)
