"""Mesh sets: what is drawn from motion files in AMASS' and BEDLAM's formats, and training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smpl_files import write_smpl

from mega_model import checkpoint, generate
from mega_model.body.smpl import SmplBody, load_bodies
from mega_model.core.errors import InputError
from mega_model.core.settings import parse
from mega_model.data.mesh_sets import SmplMeshes, read_motion
from mega_model.options import PretrainTraining, TokenizerTraining
from mega_model.train import pretrain, tokenizer


def amass(seed: int, frames: int = 5, width: int = 156, gender: object = "female") -> dict[str, np.ndarray]:
    """The fields of AMASS, for SMPL-H (156) or SMPL-X (165)."""
    rng = np.random.default_rng(seed)
    return {
        "trans": rng.normal(size=(frames, 3)),
        "gender": np.array(gender),
        "mocap_framerate": np.array(120.0),
        "betas": rng.normal(size=16),
        "dmpls": rng.normal(size=(frames, 8)),
        "poses": rng.normal(0, 0.3, (frames, width)),
    }


def bedlam(seed: int, frames: int = 5) -> dict[str, np.ndarray]:
    """The fields of BEDLAM's animations of SMPL bodies."""
    rng = np.random.default_rng(seed)
    return {
        "poses": rng.normal(0, 0.3, (frames, 72)),
        "betas": rng.normal(size=11),
        "trans": rng.normal(size=(frames, 3)),
        "gender": np.array("neutral"),
        "motion_info": np.array(["CMU/01/01_01_poses.npz"]),
    }


def write(file: Path, fields: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **fields)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty motions of all kinds in subfolders, and what AMASS puts beside them."""
    kinds = [amass, lambda k: amass(k, 3, 165, b"male"), bedlam]
    for k in range(40):
        write(tmp_path / "motions" / f"set{k % 4}" / f"{k:02d}_poses.npz", kinds[k % 3](k))
    write(tmp_path / "motions" / "set0" / "shape.npz", {"gender": np.array("male"), "betas": np.zeros(16)})
    for gender in ("neutral", "male", "female"):
        write_smpl(tmp_path / "smplh" / gender / "model.npz", joints=52, seed=len(gender))
    return tmp_path


def test_every_frame_is_drawn_as_its_person(folder: Path) -> None:
    bodies = load_bodies(folder / "smplh")
    meshes = SmplMeshes(folder / "motions", bodies, "test")
    motions = [read_motion(file) for file in meshes.files]
    wanted = np.concatenate([bodies[m.gender].canonical(m.pose, np.tile(m.betas, (len(m.pose), 1))) for m in motions])
    drawn = meshes.draw(np.random.default_rng(0), 300)
    assert drawn.shape == (300, 162, 3) and drawn.dtype == np.float32
    apart = np.linalg.norm(drawn[:, None] - wanted, axis=-1).max(axis=-1)
    assert apart.min(axis=1).max() < 1e-5, "what is drawn is in the files"
    assert apart.min(axis=0).max() < 1e-5, "and all that is in the files is drawn"
    np.testing.assert_array_equal(meshes.draw(np.random.default_rng(0), 300), drawn)


def test_files_are_split_and_not_their_frames(folder: Path) -> None:
    bodies = load_bodies(folder / "smplh")
    splits = [set(SmplMeshes(folder / "motions", bodies, s).files) for s in ("train", "calibration", "test")]
    assert sum(map(len, splits)) == 40 == len(set.union(*splits))
    assert len(splits[0]) > 25
    write(folder / "motions" / "a_new_one.npz", amass(0))
    again = SmplMeshes(folder / "motions", bodies, "test").files
    assert splits[2] <= set(again), "a file stays in its split"


def test_folders_may_be_links(folder: Path) -> None:
    for number, name in enumerate(("motions/set1", "smplh/male")):
        (folder / name).rename(folder / f"disk_{number}")
        (folder / name).symlink_to(folder / f"disk_{number}")
    bodies = load_bodies(folder / "smplh")
    assert sum(len(SmplMeshes(folder / "motions", bodies, s).files) for s in ("train", "calibration", "test")) == 40


def test_readers_of_both_formats(tmp_path: Path) -> None:
    fields = amass(0)
    motion = read_motion(write(tmp_path / "a.npz", fields))
    np.testing.assert_allclose(motion.pose, fields["poses"][:, 3:66], atol=1e-6)
    np.testing.assert_allclose(motion.betas, fields["betas"], atol=1e-6)
    assert motion.gender == "female"
    assert read_motion(write(tmp_path / "x.npz", amass(0, 7, 165, "neutral"))).pose.shape == (7, 63)
    assert read_motion(write(tmp_path / "b.npz", bedlam(0))).gender == "neutral"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses": None}, "field 'poses' is missing"),
        ({"betas": None}, "field 'betas' is missing"),
        ({"gender": None}, "field 'gender' is missing"),
        ({"gender": np.array("both")}, "field 'gender': 'both' is none of the genders"),
        ({"poses": np.zeros((5, 52, 3))}, r"field 'poses' has the shape \[5, 52, 3\]"),
        ({"poses": np.zeros((5, 100))}, r"field 'poses': poses of the shape \[5, 100\]"),
        ({"poses": np.full((5, 156), np.inf)}, "field 'poses' holds something other than finite numbers"),
        ({"poses": np.zeros((0, 156))}, "field 'poses' has no frames"),
        ({"poses": np.full((5, 156), 90)}, "field 'poses' holds rotations of up to 90 radians, so they may be degrees"),
        ({"betas": np.zeros(3)}, "field 'betas' has 3 shapes"),
        ({"poses": np.array([{}])}, "field 'poses' cannot be read"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    fields = {name: value for name, value in {**amass(0), **change}.items() if value is not None}
    with pytest.raises(InputError, match=rf"a\.npz: {message}"):
        read_motion(write(tmp_path / "a.npz", fields))


def test_missing_and_corrupt_files(folder: Path) -> None:
    bodies = load_bodies(folder / "smplh" / "male" / "model.npz")
    with pytest.raises(InputError, match=r"a\.npz: there is no such file"):
        read_motion(folder / "a.npz")
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        SmplMeshes(folder / "nowhere", bodies, "train")
    with pytest.raises(InputError, match=r"smplh: none of its 0 \.npz files"):
        SmplMeshes(write(folder / "empty" / "smplh" / "shape.npz", {}).parent, bodies, "train")
    with pytest.raises(InputError, match=r"_poses\.npz: field 'gender' is 'male', for which there is no SMPL model"):
        SmplMeshes(folder / "motions", {"female": bodies["male"], "neutral": bodies["male"]}, "train")
    damaged = SmplMeshes(folder / "motions", bodies, "train").files[3]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(InputError, match=rf"{damaged.name}: not an \.npz file, or cut short"):
        SmplMeshes(folder / "motions", bodies, "train")


def test_smpl_size(tmp_path: Path) -> None:
    """The paper's surface has as many vertices as this one; only it has the vertices at which its hierarchy starts."""
    body = SmplBody(write_smpl(tmp_path / "SMPL_FEMALE.npz", vertices=6890))
    for k in range(5):
        write(tmp_path / "motions" / f"{k}.npz", amass(k))
    meshes = SmplMeshes(tmp_path / "motions", {"female": body}, "train")
    assert meshes.draw(np.random.default_rng(0), 3).shape == (3, 6890, 3)
    assert max(meshes.seeds) < 6890


def test_the_stages_train_on_them(folder: Path) -> None:
    few = ["--steps", "4", "--warmup", "1", "--lr", "0.001", "--batch", "4"]
    smpl = ["--meshes", str(folder / "motions"), "--smpl", str(folder / "smplh")]
    out = {"tokenizer": folder / "tokenizer", "pretrain": folder / "pretrain"}
    tokenizer.main(parse(TokenizerTraining, [*few, *smpl, "--out", str(out["tokenizer"]), "--quantize-from", "2"]))
    on_tokens = [*few, "--tokenizer", str(out["tokenizer"]), "--bodies", "100", "--out", str(out["pretrain"])]
    pretrain.main(parse(PretrainTraining, [*on_tokens, *smpl]))

    model, mesh, topology = checkpoint.load_mega(out["pretrain"])
    assert topology.template.shape == (162, 3)
    tokens = generate.unconditional(model, 2, steps=3, temperature=1.0, seed=0)
    assert mesh.decode(tokens).shape == (2, 162, 3)
    made = json.loads((out["pretrain"] / "training.json").read_text())
    assert made["meshes"] == "SMPL bodies of 162 vertices" and "files" in made["motion"]

    smpl[-1] = str(write_smpl(folder / "SMPL_NEUTRAL.npz", vertices=200))
    with pytest.raises(InputError, match="its tokenizer is for meshes of 162 vertices, these have 200"):
        pretrain.main(parse(PretrainTraining, [*on_tokens, *smpl]))
