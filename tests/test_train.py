"""The stages run one after the other on small data, and an interrupted run ends where the uninterrupted one does."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_people import WIDTH
from torch import nn

from mega_model import checkpoint, generate, import_backbone
from mega_model.backbones import BACKBONES, ViT
from mega_model.blazepose import BlazePose
from mega_model.core.errors import InputError
from mega_model.core.fit import principal_modes
from mega_model.core.settings import parse
from mega_model.core.topology import Topology
from mega_model.data import features, rendered
from mega_model.data.chunks import CHUNK
from mega_model.data.images import open_set
from mega_model.evaluate import held_out
from mega_model.expected_error import ErrorHead
from mega_model.geometry import matrix_to_rot6d, project_weak, rot6d_to_matrix
from mega_model.image_encoding import ImageEncoding, ImageTokens
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.options import (
    Default,
    ErrorTraining,
    Evaluate,
    Extract,
    ImageTraining,
    LoopConfig,
    PretrainTraining,
    RecoverTraining,
    Render,
    TokenizerTraining,
)
from mega_model.reference.keys import released_name
from mega_model.tokenizer import MeshTokenizer
from mega_model.train import default, errors, images, lift, pretrain, recover, tokenizer
from mega_model.train.linear_decoder import LinearDecoder
from mega_model.train.loop import Batch, Losses, Objective, fit
from mega_model.train.published import load_backbone

Weights = dict[str, torch.Tensor]
Stage = TypeVar("Stage", bound=LoopConfig)


class Line(Objective):
    def forward(self, batch: Batch) -> Losses:
        dropped = nn.functional.dropout(batch["x"], 0.3, self.training)
        return {"square": (self.model(dropped) - 2 * batch["x"]).square().mean(), "_shown": batch["x"].mean()}


class Scaled(Line):
    """A line that learns something beside its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch) -> Losses:
        return super().forward({"x": batch["x"] * self.scale})


def draw(rng: np.random.Generator, count: int) -> Batch:
    return {"x": torch.from_numpy(rng.normal(size=(count, 3)).astype(np.float32))}


def train_line(
    out: Path,
    until: int | None = None,
    outputs: int = 3,
    kind: type[Line] = Line,
    validation: Sequence[Batch] = (),
    **options: Any,
) -> Weights:
    """Trains for 40 steps, or until so many batches were drawn."""
    torch.manual_seed(0)
    config = LoopConfig(**{"out": out, "steps": 40, "batch": 8, "lr": 0.05, "warmup": 5, "save_every": 10, **options})
    left = until

    def batches(rng: np.random.Generator, count: int) -> Batch:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left = None if left is None else left - 1
        return draw(rng, count)

    with contextlib.suppress(KeyboardInterrupt):
        fit(config, kind(nn.Linear(3, outputs)), batches, {"numbers": "random"}, validation)
    return load_file(out / "model.safetensors")


def curve(out: Path, name: str) -> list[float]:
    """A loss at every step, as TensorBoard shows it."""
    return [e.value for e in EventAccumulator(str(out), {"scalars": 0}).Reload().Scalars(name)]


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = train_line(tmp_path / "whole")
    interrupted = train_line(tmp_path / "parts", until=25)
    assert not torch.equal(interrupted["weight"], whole["weight"])
    resumed = train_line(tmp_path / "parts")
    assert torch.equal(resumed["weight"], whole["weight"])
    assert torch.dist(whole["weight"], 2 * torch.eye(3)) < torch.dist(torch.zeros(3, 3), 2 * torch.eye(3)), "it learned"
    made = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert made["numbers"] == "random" and made["losses"]["square"] < 4
    assert (made["steps"], made["batch"], made["examples"], made["processes"], made["seed"]) == (40, 8, 320, 1, 0)


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_save_that_is_cut_short_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """The process dies while the files of step 20 take the place of those of step 10."""
    replace = Path.replace
    left = 3 + moves  # the first save has three files

    def dies(file: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return replace(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        train_line(tmp_path / "parts", until=25)
    resumed = train_line(tmp_path / "parts")
    assert torch.equal(resumed["weight"], train_line(tmp_path / "whole")["weight"])
    assert {e.name.partition(".")[0] for e in (tmp_path / "parts").iterdir()} == {
        "events",
        "model",
        "state",
        "training",
    }


def test_micro_batches_add_up(tmp_path: Path) -> None:
    class Same(Line):
        """Without chance, so that a batch and its parts have the same gradient."""

        def forward(self, batch: Batch) -> Losses:
            x = torch.tensor([[1.0, 2, 3], [4, 5, 7]]).repeat(len(batch["x"]) // 2, 1)
            return {"square": (self.model(x) - 2 * x).square().mean()}

    whole = train_line(tmp_path / "whole", kind=Same)
    parts = train_line(tmp_path / "parts", kind=Same, micro_batch=2, loaders=3)
    torch.testing.assert_close(parts["weight"], whole["weight"])
    assert curve(tmp_path / "parts", "square") == pytest.approx(curve(tmp_path / "whole", "square"), rel=1e-3)


def test_training_is_a_plain_loop(tmp_path: Path) -> None:
    """AdamW on the mean of the losses, clipped, with warm-up and half a cosine. What starts with _ is only shown."""
    seen: list[torch.Tensor] = []

    class Plain(Objective):
        def forward(self, batch: Batch) -> Losses:
            wrong = self.model(batch["x"]) - 2 * batch["x"]
            return {"square": wrong.square().mean(), "far": wrong.abs().mean(), "_shown": 9 * wrong.mean()}

    def batches(rng: np.random.Generator, count: int) -> Batch:
        seen.append(draw(rng, count)["x"])
        return {"x": seen[-1]}

    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    plain = deepcopy(model)
    config = LoopConfig(tmp_path, 6, 4, 0.1, 2, warmup=2, weight_decay=0.3, betas=(0.5, 0.6), clip=0.2, seed=3)
    fit(config, Plain(model), batches, {})
    assert torch.cat(seen).unique(dim=0).shape == (24, 3), "no example twice"
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.3, betas=(0.5, 0.6))
    for step, rate in enumerate((0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5)):
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        x = torch.cat(seen[2 * step : 2 * step + 2])
        wrong = plain(x) - 2 * x
        optimizer.zero_grad()
        (wrong.square().mean() + wrong.abs().mean()).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    other = LoopConfig(tmp_path / "other", 6, 4, 0.1, 2, seed=4)
    fit(other, Plain(model), batches, {})
    assert len(torch.cat(seen).unique(dim=0)) == 48, "another seed, other examples"


def test_loaders_change_nothing(tmp_path: Path) -> None:
    one = train_line(tmp_path / "one", micro_batch=4)
    several = train_line(tmp_path / "several", micro_batch=4, loaders=5)
    assert torch.equal(one["weight"], several["weight"])


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch 8: not a multiple of 1 processes x 3 examples"):
        train_line(tmp_path, micro_batch=3)


@pytest.mark.parametrize(
    ("option", "before", "now"),
    [
        ("seed", 0, 1),
        ("lr", 0.05, 0.01),
        ("batch", 8, 4),
        ("micro_batch", 8, 4),
        ("precision", "32-true", "bf16-mixed"),
    ],
)
def test_another_run_does_not_go_on(tmp_path: Path, option: str, before: Any, now: Any) -> None:
    train_line(tmp_path, until=25)
    message = f"state.pt: of a run with {option} {before}, not {now}; give the same, or train into another folder"
    with pytest.raises(InputError, match=re.escape(message)):
        train_line(tmp_path, **{option: now})


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    train_line(tmp_path, save_every=20)
    train_line(tmp_path, steps=60, save_every=30, loaders=2)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 60
    assert len(curve(tmp_path, "square")) == 60


def test_validation_is_logged_and_changes_nothing(tmp_path: Path) -> None:
    validation = [draw(np.random.default_rng(k), 5) for k in (1, 2)]
    checked = train_line(tmp_path / "checked", validation=validation, save_every=15)
    assert torch.equal(checked["weight"], train_line(tmp_path / "plain")["weight"])
    first, *_, last = shown = curve(tmp_path / "checked", "validation/square")
    assert len(shown) == 3 and last < first
    errors = [
        (batch["x"] @ (checked["weight"] - 2 * torch.eye(3)).T + checked["bias"]).square().mean()
        for batch in validation
    ]
    assert last == pytest.approx(float(sum(errors)) / 2), "the mean, without dropout"


def without_step(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "step"}, file)


def test_states_that_do_not_fit_are_named(tmp_path: Path) -> None:
    def refused(spoil: Callable[[Path], object], match: str, **options: Any) -> None:
        out = tmp_path / match.replace(" ", "-")
        train_line(out)
        spoil(out / "state.pt")
        with pytest.raises(InputError, match=match) as error:
            train_line(out, **options)
        assert str(out) in str(error.value)

    refused(lambda file: file.write_bytes(b"damaged"), "cannot go on from here")
    refused(without_step, "no step in it")
    refused(lambda file: None, "another stage or version: scale", kind=Scaled)
    refused(lambda file: None, "of another model: .*train into another folder", outputs=4)


def test_a_damaged_state_is_noticed(tmp_path: Path) -> None:
    """Torch would read any numbers."""
    train_line(tmp_path)
    file = tmp_path / "state.pt"
    whole = file.read_bytes()
    at = whole.index(torch.load(file, weights_only=True)["optimizer"]["state"][0]["exp_avg"].numpy().tobytes())
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(InputError, match=rf"{file}: cannot go on from here, .* is damaged$"):
        train_line(tmp_path, steps=50)
    file.write_bytes(b"hello" * 100)
    with pytest.raises(InputError, match=f"{file}: cannot go on from here"):
        train_line(tmp_path, steps=50)


def test_a_run_that_diverges_is_one_line_and_its_last_save_stays(tmp_path: Path) -> None:
    class Divergent(Line):
        steps = 0

        def before_step(self, step: int) -> None:
            self.steps = step

        def forward(self, batch: Batch) -> Losses:
            return {"square": super().forward(batch)["square"] * (np.inf if self.steps == 25 else 1)}

    with pytest.raises(InputError, match=f"{tmp_path}: step 26: a gradient is not finite"):
        train_line(tmp_path, kind=Divergent)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 20


def test_a_full_disk_is_one_line_and_the_save_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = train_line(tmp_path)

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 145792 vs 145684\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match=rf"{tmp_path}: step 50 cannot be saved, \d+ MiB are free \(.*145684\)"):
            train_line(tmp_path, steps=60)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 40
    assert all(torch.equal(v, before[k]) for k, v in load_file(tmp_path / "model.safetensors").items())
    train_line(tmp_path, steps=60)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 60


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    """As every other file of the folder, if the user wants so."""
    train_line(tmp_path)
    assert len({file.stat().st_mode for file in tmp_path.iterdir() if file.is_file()}) == 1


def test_a_tokenizer_needs_time_to_quantise(tmp_path: Path) -> None:
    words = f"--out {tmp_path} --steps 500 --batch 8 --lr 0.1".split()
    with pytest.raises(InputError, match="quantize_from 500: not before the last of the 500 steps"):
        tokenizer.main(parse(TokenizerTraining, words))


def test_a_run_does_not_replace_what_it_starts_from(people: Path, tmp_path: Path) -> None:
    checkpoint.begin_mega(tmp_path / "one", people / "tokenizer", MegaConfig(backbone="given"))
    with pytest.raises(InputError, match="one: holds the model to start from; train into another folder"):
        checkpoint.begin_mega(tmp_path / "one", tmp_path / "one" / "tokenizer", MegaConfig(backbone="given"))


def test_a_folder_holds_one_model(tmp_path: Path) -> None:
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "mega"
    tokenizer.mkdir()
    for name in ("model.safetensors", "config.json", "topology.npz"):
        (tokenizer / name).touch()
    config = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone="resnet18", backbone_width=4)
    checkpoint.save_weights(checkpoint.begin_mega(folder, tokenizer, config), folder)
    written = (folder / "config.json").read_text()
    checkpoint.begin_mega(folder, tokenizer, config)
    with pytest.raises(InputError, match=r"config\.json is of another model"):
        checkpoint.begin_mega(folder, tokenizer, replace(config, codes=16))
    assert (folder / "config.json").read_text() == written, "what was there is left alone"


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("out: here\nsteps: 3\nbatch: 4\nlr: 0.1\nbetas: [0.5, 0.6]\n")
    config = parse(LoopConfig, [str(file), "--steps", "7"])
    assert (config.steps, config.batch, config.betas, config.out) == (7, 4, (0.5, 0.6), Path("here"))


@dataclass(frozen=True)
class Options:
    out: Path
    lr: float
    fast: bool = False
    slow: bool = True
    body: Path | None = None
    rotation: Literal["rot6d", "matrix"] = "rot6d"
    sets: tuple[str, ...] = ()
    shares: tuple[float, float] = (0.5, 0.5)
    blocks: int | None = None


def test_a_file_holds_any_type_of_option(tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(
        "out: here\nlr: 1e-3\nfast: true\nslow: no\nbody: smpl.npz\nrotation: matrix\n"
        'sets: ["coco:a.npz", "h36m:b.npz"]\nshares: [1, 2]\nblocks: 0\n'
    )
    wanted = Options(
        Path("here"), 1e-3, True, False, Path("smpl.npz"), "matrix", ("coco:a.npz", "h36m:b.npz"), (1.0, 2.0), 0
    )
    assert parse(Options, [str(file)]) == wanted
    assert parse(Options, [str(file), "--no-fast", "--sets", "c:c"]) == replace(wanted, fast=False, sets=("c:c",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("colour: red", "colour is no option; there are out, lr, fast"),
        ("lr: high", "lr is 'high': "),
        ("fast: 3.5", "fast is 3.5: "),
        ("body: [a]", r"body is \['a'\]: Expected `.*Path`, got `list`"),
        ("sets: coco:a.npz", "sets is 'coco:a.npz': Expected `array`, got `str`"),
        ("shares: [1]", r"shares is \[1\]: Expected `array` of length 2"),
        ("rotation: euler", "rotation is 'euler': "),
        ("blocks: [", "not a readable YAML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(f"out: here\n{line}\n")
    with pytest.raises(InputError, match=rf"stage\.yaml: {message}"):
        parse(Options, [str(file), "--lr", "1"])


@pytest.mark.parametrize(
    ("kind", "option", "value", "bound"),
    [
        (RecoverTraining, "batch", "0", ">= 1"),
        (RecoverTraining, "micro_batch", "-1", ">= 1"),
        (RecoverTraining, "clip", "-1", "> 0.0"),
        (RecoverTraining, "lr", "nan", ">= 0.0"),
        (RecoverTraining, "betas", "0.9 1.0", "< 1.0"),
        (RecoverTraining, "proportions", "0.5 -0.5", ">= 0.0"),
        (RecoverTraining, "pixels", "31", ">= 32"),
        (RecoverTraining, "save_every", "0", ">= 1"),
        (RecoverTraining, "seed", "4294967296", "<= 4294967295"),
        (Render, "shares", "1 1 1 1 -1", ">= 0.0"),
        (Render, "size", "31", ">= 32"),
        (Render, "size", "1024", "<= 1023"),
        (Evaluate, "count", "0", ">= 1"),
        (Evaluate, "temperature", "-1", ">= 0.0"),
    ],
)
def test_numbers_have_bounds(
    kind: type[Any], option: str, value: str, bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count of 0 or below once meant all or some of the images, a negative clip turned the gradient around."""
    monkeypatch.chdir(tmp_path)
    for name in ("lift", "recover", "features/train", "features/test"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    needed = {
        RecoverTraining: "--out o --steps 1 --batch 1 --lr 1",
        Render: "--split test --count 40 --out o --topology runs",
        Evaluate: "",
    }[kind].split()
    assert parse(kind, needed)
    words = [*needed, f"--{option.replace('_', '-')}", *value.split()]
    with pytest.raises(InputError, match=f"^--{option.replace('_', '-')} .*: must be {bound}$"):
        parse(kind, words)


def test_what_a_file_leaves_out_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text("out: here\n")
    with pytest.raises(SystemExit) as end:
        parse(Options, [str(file)])
    assert end.value.code == 2 and "--lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ("tokenizer paper_tokenizer", TokenizerTraining),
        ("pretrain paper_pretrain", PretrainTraining),
        ("lift", ImageTraining),
        ("recover paper_coco paper_mix", RecoverTraining),
    ],
)
def test_shipped_files_are_read(
    root: Path, files: str, kind: type[LoopConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files.split():
        file = root / "config" / "train" / f"{name}.yaml"
        for place in re.findall(r"(?:runs|data)/[\w./]+", file.read_text()):
            Path(place).mkdir(parents=True, exist_ok=True)
        config = parse(kind, [str(file)])
        assert config.batch % (config.micro_batch or 1) == 0


def test_joints_that_nobody_saw_do_not_count() -> None:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 3, 3))[0]
    rotation = rotation * rotation.det()[:, None, None]
    camera = torch.tensor([[1.0, 0.1, -0.2], [0.8, 0, 0]])
    joints = torch.randn(2, 24, 3)
    points = project_weak(joints @ rotation.transpose(1, 2), camera)
    confidence = torch.ones(2, 24)
    points[:, 20:], confidence[:, 20:] = 77, 0
    points[:, :10] += 0.3
    batch = {"rotation": rotation, "joints": joints, "joints2d": points, "confidence": confidence}
    for compared in ("rot6d", "matrix"):
        losses = images.pose_losses(matrix_to_rot6d(rotation), camera, batch, compared)
        assert losses["rotation"] < 1e-10
        assert losses["reprojection"].item() == pytest.approx(0.3 * 10 / 20, abs=1e-6)
    assert images.pose_losses(matrix_to_rot6d(rotation.mT), camera, batch, "matrix")[
        "rotation"
    ].item() == pytest.approx((rotation.mT - rotation).square().mean().item(), abs=1e-6)


def test_colours_and_resolution_vary() -> None:
    torch.manual_seed(0)
    red = torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None].expand(200, 3, 16, 12)
    colours = images.augment(red).flatten(2).median(dim=2).values
    differences = colours[:, 0] - colours[:, 1]
    assert 0.04 < (differences < 0.1).float().mean() < 0.25 and differences.std() > 0.1, "some are grey"
    grey = images.augment(torch.full((400, 3, 16, 12), 120, dtype=torch.uint8))
    cast = grey.flatten(2).median(dim=2).values
    assert (cast.amax(dim=1) - cast.amin(dim=1) > 0.02).float().mean() > 0.3, "colour casts"
    black = (grey == 0).all(dim=1)
    edges = black.all(dim=1).any(dim=1) | black.all(dim=2).any(dim=1)
    assert 0.05 < edges.float().mean() < 0.2, "some end at the image's edge"
    board = 255 * ((torch.arange(64) + torch.arange(48)[:, None]) % 2).to(torch.uint8).expand(10, 3, 48, 64)
    found = torch.cat([images.augment(board) for _ in range(20)])
    assert found.shape == (200, 3, 48, 64) and found.min() >= 0 and found.max() <= 1
    contrast = (found[..., 20:-20, 20:-21] - found[..., 20:-20, 21:-20]).abs().mean(dim=(1, 2, 3))
    assert 0.15 < (contrast < 0.2).float().mean() < 0.5, "some have few pixels"
    assert images.augment(board[:1]).isfinite().all()


def test_only_the_last_blocks_learn() -> None:
    vit = ViT(16, depth=5, heads=2)
    recover.freeze(vit, 2)
    learns = {name.rpartition(".")[0] or name for name, p in vit.named_parameters() if p.requires_grad}
    assert {name[:8] for name in learns} == {"blocks.3", "blocks.4", "norm"}
    recover.freeze(vit, 0)
    assert not any(p.requires_grad for p in vit.parameters())
    with pytest.raises(InputError, match="trained_blocks 3"):
        recover.freeze(BACKBONES["resnet50"](8), 3)


def published_names(kind: str) -> list[str]:
    """Keys as torchvision's ResNet-50 and ViTPose have them."""
    norm = "weight bias running_mean running_var num_batches_tracked".split()
    if kind == "resnet50":
        names = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
        for stage, depth in enumerate((3, 4, 6, 3), 1):
            for block in range(depth):
                layers = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
                layers += ["downsample.0", "downsample.1"] if block == 0 else []
                for layer in layers:
                    parts = norm if layer.startswith("bn") or layer == "downsample.1" else ["weight"]
                    names += [f"layer{stage}.{block}.{layer}.{part}" for part in parts]
        return names
    layers = "norm1 norm2 attn.qkv attn.proj mlp.fc1 mlp.fc2".split()
    linear = [f"blocks.{i}.{layer}.{part}" for i in range(32) for layer in layers for part in ("weight", "bias")]
    ends = [f"{layer}.{part}" for layer in ("patch_embed.proj", "last_norm") for part in ("weight", "bias")]
    return ["pos_embed", *ends[:2], *linear, *ends[2:]]


@pytest.mark.parametrize("kind", ["resnet50", "vit", "hrnet"])
def test_published_backbones(tmp_path: Path, kind: Any) -> None:
    sizes = MegaConfig(54, 16, 16, 1, 1, 2, backbone=kind, backbone_width=16 if kind == "vit" else 8)
    torch.manual_seed(1)
    source, model = Mega(sizes), Mega(sizes)
    own = source.backbone.state_dict()
    begun: set[str] = set()
    if kind == "hrnet":  # the released model's names, of a pose network that ends in its finest branch
        names = {key: released_name(f"backbone.{key}", sizes).removeprefix("backbone.") for key in own}
        ends = ("downsample_stage", *(f"stage4.2.fuse_layers.{branch}." for branch in (1, 2, 3)))
        begun = {key for key, name in names.items() if name.startswith(ends)}
        assert len(begun) == 36 + 78
        weights = {name: own[key] for key, name in names.items() if key not in begun}
        weights["final_layer.weight"] = torch.zeros(17, 8, 1, 1)
    elif kind == "resnet50":
        weights = dict(zip(published_names(kind), own.values(), strict=True))
        # torchvision's file is older than these counts
        weights = {name: v for name, v in weights.items() if not name.endswith("num_batches_tracked")}
        weights["fc.weight"] = torch.zeros(10, 256)
    else:
        keys = [
            "position",
            "patches.weight",
            "patches.bias",
            *(k for k in own if k.startswith("blocks")),
            "norm.weight",
        ]
        weights = dict(zip(published_names(kind), [own[k] for k in (*keys, "norm.bias")], strict=True))
        weights["pos_embed"] = weights["pos_embed"][None]
        heads = {"keypoint_head.final_layer.weight": torch.zeros(17, 4, 1, 1)}
    file = tmp_path / "published.pth"
    if kind == "vit":
        torch.save({"state_dict": {f"backbone.{k}": v for k, v in weights.items()} | heads}, file)
    else:  # files older than torch's zip format
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    load_backbone(file, model)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key] if key in begun else own[key]), key

    torch.save({**weights, "more": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"published\.pth: not a \w+ backbone: more is unexpected"):
        load_backbone(file, model)
    name = next(iter(weights))
    torch.save({k: v for k, v in weights.items() if k != name}, file)
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_backbone(file, model)
    torch.save({**weights, name: torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match="has the shape"):
        load_backbone(file, model)
    torch.save({**weights, name: torch.full_like(weights[name], torch.inf)}, file)
    with pytest.raises(InputError, match=r"published\.pth: .* holds something other than finite numbers"):
        load_backbone(file, model)
    torch.save([1, 2], file)
    with pytest.raises(InputError, match=r"published\.pth: not published weights"):
        load_backbone(file, model)
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"published\.pth: not a checkpoint that torch can read"):
        load_backbone(file, model)
    with pytest.raises(InputError, match="absent: there is no such file"):
        load_backbone(tmp_path / "absent", model)


def test_the_tokenizer_refuses_mixed_precision(tmp_path: Path) -> None:
    options = f"--out {tmp_path} --steps 1 --lr 0.001 --batch 2 --precision bf16-mixed".split()
    with pytest.raises(InputError, match=r"precision bf16-mixed: .* need 32-true"):
        tokenizer.main(parse(TokenizerTraining, options))


def test_the_published_folder_says_the_size_of_blazepose(people: Path, tmp_path: Path) -> None:
    """`mega import-backbone --size heavy` is all that a model of another size needs."""
    lite = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone_width=96)
    model = checkpoint.begin_mega(tmp_path / "lite", people / "tokenizer", lite)
    checkpoint.save_weights(model, tmp_path / "lite")
    shutil.copytree(people / "blazepose", tmp_path / "blazepose")
    (tmp_path / "blazepose" / "origin.json").write_text(json.dumps({"backbone_width": WIDTH}))
    words = f"--pretrained {tmp_path}/lite --backbone {tmp_path}/blazepose --sets features:{people}/features/train"
    lift.main(parse(ImageTraining, f"--out {tmp_path}/lift --steps 1 --batch 8 --lr 0.001 {words}".split()))
    trained = checkpoint.load_mega(tmp_path / "lift")[0]
    assert trained.config == replace(lite, backbone_width=WIDTH)
    torch.testing.assert_close(trained.embed.weight, model.embed.weight)


def test_only_models_with_landmarks_are_lifted(people: Path, tmp_path: Path) -> None:
    tiny = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone="resnet18", backbone_width=4)
    start = checkpoint.begin_mega(tmp_path / "start", people / "tokenizer", tiny)
    checkpoint.save_weights(start, tmp_path / "start")
    options = f"--out {tmp_path}/lift --pretrained {tmp_path}/start --steps 1 --batch 2 --lr 0.001"
    with pytest.raises(InputError, match=r"start: its model has no lifter.*use train recover"):
        lift.main(parse(ImageTraining, [*options.split(), "--sets", f"rendered:{people}/scenes"]))
    with pytest.raises(InputError, match=r"start: only a model with BlazePose has an error head"):
        errors.main(parse(ErrorTraining, ["--checkpoint", f"{tmp_path}/start", "--sets", str(tmp_path)]))
    with pytest.raises(InputError, match=r"blazepose/model\.safetensors: of another model: "):
        load_backbone(people / "blazepose", start)


def test_eyes_that_have_died_are_told(people: Path, tmp_path: Path) -> None:
    tiny = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone_width=WIDTH)
    model = checkpoint.begin_mega(tmp_path / "dead", people / "tokenizer", tiny)
    assert model.lifter is not None
    for layer in model.lifter.eyes.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, -1.0)  # type: ignore[arg-type]
    checkpoint.save_weights(model, tmp_path / "dead")
    words = ["--checkpoint", f"{tmp_path}/dead", "--sets", f"{people}/features/test"]
    with pytest.raises(InputError, match="dead: the lifter's eyes give the same map for everybody"):
        errors.main(parse(ErrorTraining, words))


@dataclass(frozen=True)
class Lifted:
    """What the stages on images compute with, little and untrained, and 40 people."""

    model: Mega
    tokenizer: MeshTokenizer
    topology: Topology
    linear: LinearDecoder
    batch: Batch
    folder: Path
    """of the model's checkpoint"""

    @property
    def lift(self) -> lift.LiftObjective:
        return lift.LiftObjective(self.model, self.tokenizer, self.options(ImageTraining), self.linear)

    @property
    def recover(self) -> recover.RecoverObjective:
        return recover.RecoverObjective(self.model, self.tokenizer, self.options(RecoverTraining), self.linear)

    def options(self, kind: type[Stage], *more: str) -> Stage:
        run = f"--out {self.folder.parent / 'run'} --pretrained {self.folder} --steps 1 --batch 2 --lr 1".split()
        return parse(kind, [*run, *(more or ("--sets", str(self.folder)))])


@pytest.fixture
def lifted(people: Path, tmp_path: Path) -> Lifted:
    sizes = MegaConfig(width=16, encoder_blocks=1, decoder_blocks=1, heads=2, backbone="blazepose", backbone_width=16)
    torch.manual_seed(0)
    model = checkpoint.begin_mega(tmp_path / "lifted", people / "tokenizer", sizes)
    mesh_tokenizer, topology = checkpoint.load_tokenizer(people / "tokenizer")
    batch = features.FeatureSet(people / "features" / "test").batch(np.arange(40), None)
    with torch.no_grad():  # codes that tell people apart
        mesh_tokenizer.quantizer.start(mesh_tokenizer.latents(batch["vertices"]))
    checkpoint.save_weights(mesh_tokenizer, tmp_path / "lifted" / "tokenizer")
    checkpoint.save_weights(model, tmp_path / "lifted")
    assert model.lifter is not None
    model.lifter.set_codebook(mesh_tokenizer.quantizer.codebook)
    linear = LinearDecoder(mesh_tokenizer, topology, batch["vertices"])
    return Lifted(model, mesh_tokenizer, topology, linear, batch, tmp_path / "lifted")


LIFTED = {"latents", "mesh", "posed", "joints2d", "rotation", "reprojection"}
"""The losses with a lifter, but for that of the tokens."""


@torch.no_grad()
def test_losses_are_least_at_the_truth_and_grow_with_what_is_wrong(lifted: Lifted) -> None:
    codebook = lifted.tokenizer.quantizer.codebook
    tokens = lifted.tokenizer.encode(lifted.batch["vertices"])
    rotation, latents = lifted.batch["rotation"], codebook[tokens]
    camera = torch.rand(40, 3) + torch.tensor([0.5, 0, 0])
    vertices = lifted.tokenizer.reconstruct(latents)
    joints = torch.from_numpy(lifted.topology.joint_regressor) @ vertices
    batch = {**lifted.batch, "vertices": vertices, "joints": joints}
    batch["joints2d"] = project_weak(joints @ rotation.mT, camera)

    def losses(rotation: torch.Tensor, camera: torch.Tensor, latents: torch.Tensor) -> dict[str, float]:
        seen = ImageEncoding(ImageTokens(latents), matrix_to_rot6d(rotation), camera, latents)
        found = images.latent_losses(seen, tokens, lifted.tokenizer) | lifted.linear.losses(latents, seen, batch)
        found |= images.pose_losses(seen.rot6d, camera, batch, "rot6d")
        return {name: float(value) for name, value in found.items()}

    best = losses(rotation, camera, latents)
    assert best.keys() == LIFTED and max(best.values()) < 0.05, best
    for wrong, grow in {
        (rotation.roll(1, 0), camera, latents): {"posed", "joints2d", "rotation", "reprojection"},
        (rotation, camera.roll(1, 0), latents): {"joints2d", "reprojection"},
        (rotation, camera, latents.roll(1, 0)): {"latents", "mesh", "posed", "joints2d"},
    }.items():
        found = losses(*wrong)
        assert {name for name, value in found.items() if value > 10 * best[name] + 1e-5} == grow, (best, found)
        assert {name: found[name] for name in LIFTED - grow} == {name: best[name] for name in LIFTED - grow}
    # latents count in units of the codes' deviation
    error = ((latents.roll(1, 0) - latents) / codebook.std(dim=0)).square().mean()
    assert losses(rotation, camera, latents.roll(1, 0))["latents"] == pytest.approx(float(error), rel=1e-4)


@torch.no_grad()
def test_meshes_learn_from_the_joints_that_are_labelled(lifted: Lifted) -> None:
    """Unknown joints in the image do not count, nor do those of a set that labels other joints than the body's."""
    seen, batch = images.encode_images(lifted.model.eval(), lifted.batch), lifted.batch
    latents = seen.latents
    assert latents is not None

    def losses(**labels: torch.Tensor) -> dict[str, float]:
        return {k: float(v) for k, v in lifted.linear.losses(latents, seen, {**batch, **labels}).items()}

    own = lifted.linear(latents)[:, -24:] @ rot6d_to_matrix(seen.rot6d).mT
    off = 2 * (project_weak(own, seen.camera) - batch["joints2d"]).abs().clamp(max=1)
    every = losses()
    assert every["joints2d"] == pytest.approx(off.mean().item())
    far, few = batch["joints2d"].clone(), torch.ones(40, 24)
    far[:, 5:], few[:, 5:] = 77, 0
    assert losses(joints2d=far, confidence=few) == pytest.approx({**every, "joints2d": off[:, :5].mean().item()})
    assert losses(joints=batch["joints"].roll(1, 1)) == {**every, "joints2d": 0}


def test_what_each_stage_learns_by(lifted: Lifted) -> None:
    """Every loss counts. What is published learns by the losses on meshes; lifting trains the lifter, not its eyes."""
    losses = lifted.recover.eval()(lifted.batch)
    assert losses.keys() == {"tokens", *LIFTED}
    seen = images.encode_images(lifted.model, lifted.batch)
    codes = generate.first_logits(lifted.model, seen.image).softmax(dim=-1) @ lifted.tokenizer.quantizer.codebook
    for name, wanted in lifted.linear.losses(codes, seen, lifted.batch).items():
        assert losses[name].item() == pytest.approx(wanted.item(), rel=1e-6), f"{name}: of the expected codes"
    tokens = lifted.tokenizer.encode(lifted.batch["vertices"])
    assert losses["latents"].item() == pytest.approx(
        images.latent_losses(seen, tokens, lifted.tokenizer)["latents"].item()
    )
    losses["mesh"].backward()
    assert lifted.model.head.weight.grad is not None and lifted.model.head.weight.grad.any()
    for compared in ("rot6d", "matrix"):
        options = lifted.options(RecoverTraining, "--sets", str(lifted.folder), "--rotation", compared)
        found = recover.RecoverObjective(lifted.model, lifted.tokenizer, options).eval()(lifted.batch)
        wanted = images.pose_losses(seen.rot6d, seen.camera, lifted.batch, compared)["rotation"]
        assert found["rotation"].item() == pytest.approx(wanted.item())
    assert lifted.lift(lifted.batch).keys() == LIFTED
    for name, p in lifted.model.named_parameters():
        assert p.requires_grad == (name.startswith("lifter.") and not name.startswith("lifter.eyes.")), name


def test_colours_change_in_training_only() -> None:
    sizes = MegaConfig(2, 4, 8, 1, 1, 1, backbone="resnet18", backbone_width=4, head_dropout=0)
    torch.manual_seed(0)
    model = Mega(sizes)
    batch = {"images": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)}
    model.backbone.eval()
    with torch.no_grad():
        plain = model.encode_image(model.backbone(model.normalise(batch["images"] / 255))).image.tokens
        assert not torch.isclose(images.encode_images(model, batch).image.tokens, plain).all()
        torch.testing.assert_close(images.encode_images(model.eval(), batch).image.tokens, plain)


def test_a_frozen_backbone_stays_as_it_is(lifted: Lifted) -> None:
    """With its batch norms' statistics, while the rest is trained."""
    model = Mega(MegaConfig(2, 4, 8, 1, 1, 1, backbone="resnet18", backbone_width=4))
    options = lifted.options(RecoverTraining, "--sets", str(lifted.folder), "--trained-blocks", "0")
    recover.RecoverObjective(model, lifted.tokenizer, options).train()
    before = deepcopy(model.backbone.state_dict())
    images.encode_images(model, {"images": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)})
    torch.testing.assert_close(model.backbone.state_dict(), before, rtol=0, atol=0)
    assert model.training
    assert all(p.requires_grad != name.startswith("backbone.") for name, p in model.named_parameters())


def test_a_stage_on_images_begins_with_what_is_there(
    lifted: Lifted, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of the stage before, the sets in their proportions, and the people of the validation set as they are."""
    begun: dict[str, Any] = {}
    monkeypatch.setattr(images, "fit", lambda *given: begun.update(batches=given[2], validation=given[4]))
    places = {name: f"features:{people}/features/{name}" for name in ("train", "turned")}
    held_out = f"rendered:{people}/scenes"
    sets = ["--sets", places["train"], places["turned"], "--proportions", "0", "1", "--validate", held_out]
    stage = lifted.options(ImageTraining, *sets)
    images.run(stage, lambda *given: begun.update(model=given[0]) or Line(nn.Identity()))
    torch.testing.assert_close(begun["model"].state_dict(), lifted.model.state_dict(), rtol=0, atol=0)
    drawn = begun["batches"](np.random.default_rng(0), 4)
    turned = features.FeatureSet(people / "features" / "turned").batch(np.arange(40), None)
    assert (
        torch.isin(drawn["focal"], turned["focal"]).all()
        and not torch.isin(drawn["focal"], lifted.batch["focal"]).any()
    )
    assert torch.equal(drawn["tokens"], lifted.tokenizer.encode(drawn["vertices"]))
    shown = torch.cat([batch["joints2d"] for batch in begun["validation"]])
    wanted = open_set(held_out).batch(np.arange(40), None)["joints2d"]
    torch.testing.assert_close(shown.sort(dim=0).values, wanted.sort(dim=0).values)


@torch.no_grad()
def test_geometry_keeps_full_precision(lifted: Lifted) -> None:
    """Rotations, distances to codes and meshes are the same within mixed precision, where bf16 has 3 digits."""
    batch, objective = {name: part[:8] for name, part in lifted.batch.items()}, lifted.lift.eval()
    full, seen = objective(batch), images.encode_images(lifted.model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, again = objective(batch), images.encode_images(lifted.model, batch)
    torch.testing.assert_close(mixed, full, rtol=1e-6, atol=0)
    assert torch.equal(seen.rot6d, again.rot6d) and seen.image.prior is not None and again.image.prior is not None
    assert torch.equal(seen.image.prior, again.image.prior)


def test_held_out_people_only_calibrate_the_error_head(
    lifted: Lifted, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes, head and usual maps are of the others. The head is trained by AdamW with half a cosine, also on nobody."""
    trained: list[errors.Known] = []
    calibrated: list[errors.Known] = []
    spread: list[np.ndarray] = []

    def loss(head: ErrorHead, known: errors.Known) -> torch.Tensor:
        trained.append(known)
        return head.vertex.sum()

    def modes(off: np.ndarray, count: int) -> np.ndarray:
        spread.append(off)
        return principal_modes(off, count)

    checkpoint.save_weights(lifted.model, lifted.folder)
    monkeypatch.setattr(errors, "loss", loss)
    monkeypatch.setattr(errors, "calibrate", lambda head, known: calibrated.append(known))
    monkeypatch.setattr(errors, "principal_modes", modes)
    sets = [people / "features" / name for name in ("test", "turned")]
    options = ["--checkpoint", str(lifted.folder), "--sets", *map(str, sets), "--lr", "0.01"]
    errors.main(parse(ErrorTraining, [*options, "--steps", "10", "--batch", "64", "--nobody", "10"]))
    test, turned = (errors.predict(lifted.model.eval(), lifted.tokenizer, features.FeatureSet(f)) for f in sets)
    seen = torch.cat([known.landmarks for known in trained[:10]])[:, 0, 0]
    assert torch.isin(seen, test.landmarks[:28, 0, 0]).any() and torch.isin(seen, turned.landmarks[:28, 0, 0]).any()
    assert not torch.isin(seen, test.landmarks[28:]).any() and not torch.isin(seen, turned.landmarks[28:]).any()
    nobody = torch.cat([known.depth for known in trained[:10]]).isnan()
    assert nobody.any() and (torch.cat([known.vertices for known in trained[:10]])[nobody] == errors.NOBODY).all()
    few = torch.cat([test.landmarks[28:], turned.landmarks[28:][::10]])
    torch.testing.assert_close(calibrated[0].landmarks, few)
    off = torch.cat([(part.true_vertices - part.vertices)[:28] for part in (test, turned)])
    np.testing.assert_allclose(spread[0], off, atol=1e-5)
    head = load_file(lifted.folder / checkpoint.ERRORS)
    torch.testing.assert_close(head["centre"], test.maps[:28].mean(dim=(0, 2, 3)))
    torch.testing.assert_close(head["vertex"], torch.full((1229,), -0.01 * 5.5), rtol=0.01, atol=0)
    how = json.loads((lifted.folder / "calibration.json").read_text())["how"]
    half, most = map(int, re.findall(r"off by (\d+)% in the median and (\d+)%", how)[0])
    assert half <= most


def test_the_error_head_needs_people_of_both_kinds(lifted: Lifted, people: Path) -> None:
    checkpoint.save_weights(lifted.model, lifted.folder)
    options = ["--checkpoint", str(lifted.folder), "--sets", str(people / "features" / "test"), "--held-out", "0.99"]
    with pytest.raises(InputError, match=r"held_out 0\.99: of some set, nobody is left to learn from"):
        errors.main(parse(ErrorTraining, options))
    with pytest.raises(InputError, match="--sets : must be of length >= 1"):
        parse(ErrorTraining, [*options[:2], "--sets"])


@torch.no_grad()
def test_the_error_head_is_of_the_published_mesh_and_of_pixels_from_0_to_1(lifted: Lifted, people: Path) -> None:
    model, mesh_tokenizer = lifted.model.eval(), lifted.tokenizer
    found = errors.predict(model, mesh_tokenizer, features.FeatureSet(people / "features" / "test"))
    logits = generate.first_logits(model, images.encode_images(model, lifted.batch).image)
    torch.testing.assert_close(found.vertices, generate.expected_vertices(mesh_tokenizer, logits), atol=1e-5, rtol=0)
    given: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    errors.of_nobody(model, 20, 1229, seed=0)
    assert 0.5 < torch.cat(given).max() <= 1


def test_all_stages(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the default's sizes, but for its backbone."""
    monkeypatch.setitem(PRESETS, "default", replace(PRESETS["default"], backbone_width=16))
    names = "tokenizer pretrain lift recover images".split()
    folder = {name: str(tmp_path / name) for name in names}

    def options(name: str, steps: int, lr: float = 0.001) -> list[str]:
        return f"--out {folder[name]} --steps {steps} --warmup 1 --lr {lr} --batch 8".split()

    tokenizer.main(parse(TokenizerTraining, [*options("tokenizer", 25, 0.003), "--quantize-from", "20"]))
    pretrain.main(
        parse(PretrainTraining, [*options("pretrain", 12), "--tokenizer", folder["tokenizer"], "--bodies", "100"])
    )
    seen, backbone = f"features:{people}/features/train", str(people / "blazepose")
    lift.main(
        parse(
            ImageTraining,
            [*options("lift", 20), "--sets", seen, "--pretrained", folder["pretrain"], "--backbone", backbone],
        )
    )
    on_features = ["--sets", seen, "--pretrained", folder["lift"]]
    held = ["--validate", f"features:{people}/features/test", "--save-every", "5"]
    recover.main(parse(RecoverTraining, [*options("recover", 12), *on_features, *held]))
    on_images = ["--sets", f"rendered:{people}/scenes", "--pretrained", folder["recover"]]
    mixed = ["--batch", "2", "--precision", "bf16-mixed"]
    recover.main(parse(RecoverTraining, [*options("images", 2), *on_images, *mixed]))

    lifted = ["latents", "mesh", "posed", "joints2d", "rotation", "reprojection"]
    for stage, losses in {
        "tokenizer": ["v2v"],
        "pretrain": ["tokens"],
        "lift": lifted,
        "recover": ["tokens", *lifted],
    }.items():
        values = np.sum([curve(tmp_path / stage, name) for name in losses], axis=0)
        assert values[-5:].mean() < values[:5].mean(), f"the loss of {stage} did not fall: {values}"
    assert len(curve(tmp_path / "recover", "validation/mesh")) == 3, "at every save"
    made = json.loads((tmp_path / "recover" / "training.json").read_text())
    assert made["images"] == {seen: 80} and "CMU" in made["motion"]
    assert made["before"]["steps"] == 20 and made["before"]["backbone"] == {"model": "little", "license": "CC0"}
    assert "meshes" in made["before"]["before"]

    # what a stage trains, and nothing else
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in names}

    def trained(before: str, after: str) -> set[str]:
        changed = {k for k, v in weights[after].items() if not torch.equal(v, weights[before][k])}
        assert changed >= {k for k in weights[after] if k.startswith("lifter.eyes.")}
        return {key.split(".")[0] for key in changed}

    assert trained("pretrain", "lift") == {"backbone", "lifter"}, "the published backbone came in"
    published = load_file(people / "blazepose" / "model.safetensors")
    assert all(torch.equal(weights["images"][f"backbone.{k}"], v) for k, v in published.items()), "and stays"
    begun = BlazePose(WIDTH)
    begun.load_state_dict(published)
    for name, layer in begun.later_layers().state_dict().items():
        assert torch.equal(weights["lift"][f"lifter.eyes.{name}"], layer), "the eyes learn later"
    for before, after in (("lift", "recover"), ("recover", "images")):
        assert trained(before, after) >= {"lifter", "decoder", "encoder", "head"}

    def moved(part: str) -> dict[str, float]:
        return {
            k: float((weights["images"][k] - v).abs().max())
            for k, v in weights["recover"].items()
            if k.startswith(part)
        }

    step = max(moved("lifter.latents.").values())
    for name, far in moved("lifter.eyes.").items():
        size = float(weights["recover"][name].abs().median())
        assert 0.2 < far / (step * size) < 0.6, f"{name} learns in relation to its size"
    codes = load_file(tmp_path / "tokenizer" / "model.safetensors")["quantizer.codebook"]
    lifter = checkpoint.load_mega(tmp_path / "lift")[0].lifter
    assert lifter is not None
    torch.testing.assert_close(lifter.codes * lifter.unit, codes)

    sets = ["--sets", f"{people}/features/test", f"{people}/features/turned"]
    capsys.readouterr()
    errors.main(
        parse(
            ErrorTraining,
            ["--checkpoint", folder["recover"], *sets, "--steps", "15", "--nobody", "20", "--batch", "32"],
        )
    )
    printed = json.loads(capsys.readouterr().out)
    of_sets = printed.pop("root mean squares")
    assert [found.keys() for found in of_sets] == [{"error", "sigma"}] * 2
    assert printed.keys() == {"loss", "Spearman", "Spearman joints"} and np.isfinite([*printed.values()]).all()
    held_out.main(
        parse(Evaluate, ["--checkpoint", folder["recover"], "--test", f"{people}/features/test", "--samples", "3"])
    )
    scores = json.loads((tmp_path / "recover" / "scores.json").read_text())
    assert scores["parts"]["all"]["images"] == 40 and scores["parts"]["all"]["PVE"] > 0
    assert json.loads((tmp_path / "recover" / "calibration.json").read_text())["scale"] == 1

    model, mesh, _ = checkpoint.load_mega(tmp_path / "images")
    with torch.no_grad():
        found = model.backbone(torch.zeros(1, 3, 256, 256))
    assert mesh.decode(generate.deterministic(model, found)).shape == (1, 1229, 3)


def test_the_default_model_is_made_stage_by_stage(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages that only write what they would leave: each finds what it reads, and is not done twice."""
    runs = tmp_path / "runs"
    ran: list[str] = []

    def needed(*paths: Path) -> None:
        for path in paths:
            assert path.exists(), f"{path} is not made by an earlier stage"

    def training(name: str) -> Callable[[LoopConfig], None]:
        def main(config: LoopConfig) -> None:
            fields = vars(config)
            needed(*(fields[n] for n in ("pretrained", "backbone", "tokenizer") if fields.get(n)))
            needed(*(Path(place.removeprefix("features:")) for place in fields.get("sets", ())))
            write(name, config.out, "model.safetensors", "topology.npz")

        return main

    def write(name: str, folder: Path, *files: str) -> None:
        ran.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file).touch()

    def render(config: Render) -> None:
        needed(config.topology)
        assert config.count % CHUNK == 0
        write("render", config.out)

    def extract(config: Extract) -> None:
        needed(config.scenes, config.backbone)
        write("extract", config.out)

    def error_head(config: ErrorTraining) -> None:
        needed(config.checkpoint, *map(Path, config.sets))
        write("errors", config.checkpoint, checkpoint.ERRORS)

    def score(config: Evaluate) -> None:
        needed(config.checkpoint / checkpoint.ERRORS, config.test)
        write("scores", config.checkpoint, "scores.json")

    def export(folder: Path, bundle: Path, detector: Path | None) -> None:
        needed(folder / "scores.json")
        write("bundle", bundle, "bundle.json")

    monkeypatch.setattr(tokenizer, "main", training("tokenizer"))
    monkeypatch.setattr(pretrain, "main", training("pretrain"))
    monkeypatch.setattr(lift, "main", training("lift"))
    monkeypatch.setattr(recover, "main", training("recover"))
    monkeypatch.setattr(import_backbone, "main", lambda config: write("backbone", config.out, "origin.json"))
    monkeypatch.setattr(rendered, "render", render)
    monkeypatch.setattr(features, "extract", extract)
    monkeypatch.setattr(errors, "main", error_head)
    monkeypatch.setattr(held_out, "main", score)
    monkeypatch.setattr(default, "export", export)
    default.main(Default(out=runs))
    assert (
        ran[0] == "tokenizer"
        and ran[-3:] == ["errors", "scores", "bundle"]
        and len(ran) == len(default.stages(Default(out=runs)))
    )
    assert f"{runs}: {len(ran)} stages to do, about " in capsys.readouterr().out
    ran.clear()
    with pytest.raises(InputError, match="scenes 10001 is not a multiple of 40"):
        default.main(Default(out=tmp_path / "other", scenes=10001))
    with monkeypatch.context() as patch:
        patch.setattr(default, "must_have", Mock(side_effect=ModuleNotFoundError(name="tflite")))
        with pytest.raises(ModuleNotFoundError):
            default.main(Default(out=tmp_path / "other"))
    assert not ran, "before anything is trained"
    (runs / "recover" / "scores.json").unlink()
    default.main(Default(out=runs))
    assert ran == ["scores"]
