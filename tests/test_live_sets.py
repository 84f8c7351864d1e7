"""Training on scenes that are rendered meanwhile: what is drawn from them, and that no renderer is left or missed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
from noise_renderer import render_noise
from safetensors.torch import load_file
from tiny_people import WIDTH
from torch import Tensor

from mega_model import checkpoint
from mega_model.backbones import Backbone
from mega_model.blazepose import LANDMARKS, PoseFeatures
from mega_model.core.errors import InputError
from mega_model.core.geometry import crop_images
from mega_model.core.settings import parse
from mega_model.core.topology import Topology
from mega_model.data import live
from mega_model.data.chunks import CHUNK
from mega_model.data.images import Mixture, open_for, open_set
from mega_model.data.live import LiveSet
from mega_model.data.rendered import SceneSet, intrinsics_of, mirror
from mega_model.data.scenes import PARTS
from mega_model.mega import MegaConfig
from mega_model.options import RecoverTraining
from mega_model.train import recover

PATIENCE = 120
"""Seconds: for a busy machine."""
CPU = torch.device("cpu")
TINY = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone_width=WIDTH)


class Sideways(Backbone):
    """Takes everybody to lie in the middle of the crop, the head on the right."""

    def forward(self, images: Tensor) -> PoseFeatures:
        points = torch.zeros(len(images), len(LANDMARKS), 5)
        points[:, LANDMARKS.index("body_circle"), 0] = 0.8
        return PoseFeatures(images, points, points[..., :3], points[:, 0, 0])


def renderers() -> list[psutil.Process]:
    """Of this process."""
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


@pytest.fixture(scope="module", autouse=True)
def three_cores() -> Iterator[None]:
    """Of which one renders."""
    with patch.object(os, "sched_getaffinity", lambda _: range(3)):
        yield


@pytest.fixture(scope="module")
def topology(people: Path) -> Topology:
    return Topology.load(people / "topology.npz")


@pytest.fixture(scope="module")
def scenes(topology: Topology) -> Iterator[LiveSet]:
    """With a chunk of them, while more are rendered."""
    rendered, free = LiveSet("test", topology), psutil.virtual_memory().available
    with rendered.rendering(Sideways(), 1, CPU):
        assert sum(array.nbytes for array in rendered.fields.values()) < 0.6 * free
        yield rendered


def first_chunk(scenes: LiveSet) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[:CHUNK]) for name, array in scenes.fields.items()}


def test_labels_are_those_of_the_same_scenes_on_disk(scenes: LiveSet, topology: Topology, tmp_path: Path) -> None:
    for name, array in first_chunk(scenes).items():
        np.save(tmp_path / name, array)
    found, wanted = scenes.batch(np.arange(CHUNK), None), SceneSet(tmp_path, topology).batch(np.arange(CHUNK), None)
    for name in found.keys() - {"images"}:
        torch.testing.assert_close(found[name], wanted[name])
    assert (found["images"].float() - wanted["images"].float()).abs().mean() < 0.5
    assert np.bincount(found["part"]).tolist() == [14, 8, 7, 7, 4], "more difficult ones than in a rendered set"
    mixed = Mixture([scenes, SceneSet(tmp_path, topology)], [1, 1]).batch(np.random.default_rng(0), 8)
    assert mixed["images"].shape == (8, 3, 256, 256) and "part" in mixed


def test_crops_show_what_their_labels_say(scenes: LiveSet) -> None:
    """Placed by joints or by landmarks, rolled, mirrored: the crop is that of the camera in which the labels are."""
    rows, every = first_chunk(scenes), np.arange(CHUNK)
    batch = scenes.batch(every, np.random.default_rng(1))
    rotation, translation = batch["rotation"].numpy(), batch["translation"].numpy()
    mirrored = (batch["vertices"].numpy() != rows["vertices"]).any(axis=(1, 2))
    assert 10 < mirrored.sum() < 30
    mirror(mirrored, rotation, translation)
    crop_from_camera = rotation @ rows["rotation"].transpose(0, 2, 1)
    np.testing.assert_allclose(np.einsum("bij,bj->bi", crop_from_camera, rows["translation"]), translation, atol=1e-4)
    crop = np.zeros((CHUNK, 3, 3)) + [[0, 0, 128], [0, 0, 128], [0, 0, 1]]
    crop[:, [0, 1], [0, 1]] = 128 * batch["focal"][:, None].numpy()
    for k, K in enumerate(intrinsics_of(rows)):
        wanted = crop_images(rows["images"][k], K, crop[[k]], crop_from_camera[[k]], 256)[0]
        shown = batch["images"][k].permute(1, 2, 0).numpy()
        shown = shown[:, ::-1] if mirrored[k] else shown
        assert np.abs(shown.astype(float) - wanted).mean() < 2, k
    torch.testing.assert_close(
        batch["joints"], torch.from_numpy(scenes.topology.joint_regressor) @ batch["vertices"], atol=1e-5, rtol=0
    )


def angles(batch: dict[str, Tensor]) -> np.ndarray:
    """[B], degrees: of the bodies from upright in their crops."""
    hips, shoulders = (batch["joints2d"][:, pair].mean(dim=1) for pair in ([1, 2], [16, 17]))
    x, y = (shoulders - hips).T
    return torch.atan2(x, -y).abs().rad2deg().numpy()


def test_crops_are_placed_as_at_run_time(scenes: LiveSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """By joints, most clear people; by landmarks the others, once or twice: these turn the crop by 90 degrees."""
    rng, part = np.random.default_rng(2), first_chunk(scenes)["kind"]
    clear, occluded = (np.flatnonzero(part == PARTS.index(name)) for name in ("clear", "occluded"))
    found = [[angles(scenes.batch(index, rng)) < 50 for _ in range(10)] for index in (clear, occluded)]
    # one body in 50 is turned by any angle
    assert 0.75 < np.mean(found[0]) < 0.99 and 0.4 < np.mean(found[1]) < 0.8
    monkeypatch.setattr(live, "PLACED", np.zeros(5))
    for twice, turn in ((0, 90), (1, 180)):
        monkeypatch.setattr(live, "TWICE", twice)
        assert abs(np.median(angles(scenes.batch(clear, rng))) - turn) < 45
    monkeypatch.setattr(live, "TURNED", 1)
    assert len({*(angles(scenes.batch(clear, rng)) // 45)}) > 2


def test_a_renderer_that_dies_ends_the_training(scenes: LiveSet) -> None:
    """The last test with these scenes."""
    for process in renderers():
        process.kill()
    ends = time.time() + PATIENCE
    with pytest.raises(InputError, match="live:test: a renderer failed: it ended with code -9"):
        while time.time() < ends:
            scenes.batch(np.arange(1), None)


def test_only_what_can_be_trained_is_opened(topology: Topology) -> None:
    with pytest.raises(InputError, match="live:nonsense: must be one of live:train, live:calibration, live:test"):
        open_set("live:nonsense", topology=topology)
    with pytest.raises(InputError, match="live:train: needs the topology of a model"):
        open_set("live:train")
    with pytest.raises(InputError, match="live:train: only training renders it"):
        Mixture([open_for(TINY, topology, "live:train")])
    with pytest.raises(InputError, match="live:train: landmarks place its crops"):
        open_for(replace(TINY, backbone="resnet18"), topology, "live:train")


def test_a_renderer_says_what_failed(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_render", render_noise)
    other = LiveSet("train", replace(topology, template=np.zeros((1300, 3), np.float32)))
    wanted = "live:train: a renderer failed: its bodies have 1229 vertices, the model's 1300"
    with pytest.raises(InputError, match=wanted), other.rendering(Sideways(), 1, CPU):
        pass


def test_the_latest_scenes_replace_the_oldest(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_render", render_noise)
    monkeypatch.setattr(live, "MOST", 3 * CHUNK + 7)
    monkeypatch.setattr(live, "FIRST", 2 * CHUNK)
    few, others = LiveSet("train", topology), renderers()  # those of the other scenes, if they live
    with few.rendering(Sideways(), 10**6, CPU):
        assert len(few) >= 2 * CHUNK
        for process in renderers():
            process.terminate()  # as a batch system does, while training saves
        first, ends = np.zeros(1, int), time.time() + PATIENCE
        oldest = few.rows(first)["translation"]
        while (few.rows(first)["translation"] == oldest).all():
            assert time.time() < ends
            time.sleep(0.05)
        assert len(few) == 3 * CHUNK < few.rendered
        assert renderers() != others
    assert renderers() == others


def test_training_ends_without_a_trace_and_goes_on(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM goes to all its processes, as batch systems send it. The second part sees noise."""
    model = checkpoint.begin_mega(tmp_path / "start", people / "tokenizer", TINY)
    checkpoint.save_weights(model, tmp_path / "start")
    out = tmp_path / "out"
    words = f"--out {out} --pretrained {tmp_path}/start --sets live:train --batch 1 --warmup 1 --lr 0.01 --save-every 1"
    command = [sys.executable, "-m", "mega_model", "train", "recover", *words.split(), "--steps", "40"]
    cores = [*psutil.Process().cpu_affinity()][:3]
    with psutil.Popen(command, start_new_session=True) as training:
        try:
            training.cpu_affinity(cores)
            ends = time.time() + PATIENCE
            while not (out / "state.pt").exists():
                assert training.poll() is None and time.time() < ends
                time.sleep(0.05)
            its = training.children()
            os.killpg(training.pid, signal.SIGTERM)
            assert training.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            if training.poll() is None:
                training.kill()
    assert its and not psutil.wait_procs(its, timeout=PATIENCE)[1]
    steps = json.loads((out / "training.json").read_text())["steps"]

    monkeypatch.setattr(live, "_render", render_noise)
    others = renderers()
    recover.main(parse(RecoverTraining, [*words.split(), "--steps", str(steps + 2)]))
    made = json.loads((out / "training.json").read_text())
    assert made["steps"] == steps + 2 and made["images"] == {"live:train": None} and "CMU" in made["motion"]
    assert renderers() == others
    begun, trained = (load_file(folder / "model.safetensors") for folder in (tmp_path / "start", out))
    changed = {name.split(".")[0] for name, value in trained.items() if not torch.equal(value, begun[name])}
    assert changed >= {"lifter", "decoder", "encoder", "head"} and "backbone" not in changed
