"""The released checkpoints: parity with recorded outputs, full-size layouts, and the command that imports them.

The recorded numbers in fixtures/ are outputs of the released code with random weights. Where that code has a defect,
the test shows that its rule gives the recorded result, and that ours differs just there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from smpl_files import smpl_arrays
from torch import Tensor

from mega_model import Mega, checkpoint, generate, reference
from mega_model.body.smpl import HIERARCHY_SEEDS
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.core.geometry import crop_translation, project
from mega_model.generate import temperatures
from mega_model.geometry import project_weak, rot6d_to_matrix
from mega_model.mega import PRESETS, MegaConfig
from mega_model.reference.faces import check_faces, read_faces
from mega_model.tokenizer import MeshConv
from mega_ros.cli import main as mega

FIXTURES = Path(__file__).parent / "fixtures"
Arrays = Mapping[str, np.ndarray]


def recorded(name: str) -> Arrays:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as data:
        return dict(data)


def save(weights: Mapping[str, Tensor], path: Path, prefix: str = "") -> Path:
    """A file as the released code writes it."""
    model = {prefix + key: value for key, value in weights.items()}
    torch.save({"model": model, "optimizer": {"state": {}}, "scheduler": {}, "epoch": 3, "loss": 0.5}, path)
    return path


def weights_of(arrays: Arrays) -> dict[str, Tensor]:
    return {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd/")}


@pytest.fixture(scope="module")
def cvqmae() -> Arrays:
    return recorded("tiny_cvqmae")


@pytest.fixture(scope="module")
def vqmae() -> Arrays:
    return recorded("tiny_vqmae")


@pytest.fixture(scope="module")
def model(cvqmae: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Mega:
    return reference.load_mega(save(weights_of(cvqmae), tmp_path_factory.mktemp("mega") / "mega_tiny"))


@pytest.fixture(scope="module")
def pretrained(vqmae: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Mega:
    file = save(weights_of(vqmae), tmp_path_factory.mktemp("mega") / "mega_pretrained", prefix="module.")
    return reference.load_mega(file, preset="default")


def close(ours: Tensor, theirs: np.ndarray, limit: float) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs).to(ours.dtype), atol=limit, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- MEGA


@torch.no_grad()
def test_masked_tokens_give_the_recorded_logits_rotation_and_camera(model: Mega, cvqmae: Arrays) -> None:
    tokens, visible = (torch.from_numpy(cvqmae[f"masked/{name}"]) for name in ("tokens_in", "visible"))
    out = model(model.backbone(torch.from_numpy(cvqmae["cond"])), tokens, visible.bool())
    close(out.logits, cvqmae["masked/logits"], 1e-4)
    close(out.rot6d, cvqmae["masked/rot6d"], 1e-5)
    close(out.camera, cvqmae["masked/cam"], 1e-5)


@torch.no_grad()
def test_encoder_gives_the_recorded_tokens(model: Mega, cvqmae: Arrays) -> None:
    index = torch.from_numpy(cvqmae["masked/visible"]).nonzero()[:, 1].reshape(2, -1)
    encoded = model.encode(torch.from_numpy(cvqmae["masked/tokens_in"]).gather(1, index), index)
    close(encoded[:, 0], cvqmae["masked/enc_cls"], 1e-5)
    close(encoded[:, 1:], np.take_along_axis(cvqmae["masked/enc_by_position"], index[..., None].numpy(), 1), 1e-5)


@torch.no_grad()
def test_decoder_sees_image_cls_and_mesh_tokens_in_that_order(model: Mega, cvqmae: Arrays) -> None:
    """Also pins the order of image tokens (row by row, on a grid of 4 x 3) and their sinusoid."""
    inputs: list[Tensor] = []
    hook = model.decoder[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    generate.first_logits(model, model.encode_image(torch.from_numpy(cvqmae["cond"])).image)
    hook.remove()
    close(inputs[0], cvqmae["det/act/dec_in"], 1e-5)


@torch.no_grad()
def test_deterministic_tokens_have_no_hole(model: Mega, cvqmae: Arrays) -> None:
    """The released code keeps its input at one random place (its mask is off by one); the paper predicts all tokens.

    In the demos the input is code 0. In the evaluation it is the truth, of which one token leaks into the scores.
    """
    features = torch.from_numpy(cvqmae["cond"])
    close(generate.first_logits(model, model.encode_image(features).image), cvqmae["det/logits"], 1e-4)
    tokens = generate.deterministic(model, features).numpy()
    assert cvqmae["det/margin"] > 1e-4
    assert (tokens == cvqmae["det/argmax"]).all()

    def released(given: np.ndarray) -> np.ndarray:
        return np.where(cvqmae["det/official_masked"] == 1, tokens, given)

    assert (released(np.zeros_like(tokens)) == cvqmae["det/official_tokens"]).all()
    truth = (tokens + 1) % 64  # of which the model knows nothing
    assert (released(truth) == truth).sum(axis=1).tolist() == [1, 1]


def steps_of(arrays: Arrays, run: str) -> Iterator[tuple[int, Arrays, Tensor]]:
    """(t, what was recorded of step t, the places shown before it)."""
    for t in range(int(arrays[f"{run}/nb_steps"])):
        start = f"{run}/step{t}/"
        step = {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
        shown = torch.from_numpy(step["visible_in"]).bool()
        yield t, step, torch.stack([row.nonzero()[:, 0] for row in shown])


def chosen(step: Arrays, index: Tensor, noise: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Our choice rule on the recorded logits and Gumbel noise: tokens with 0 where masked, and the visible mask."""
    logits = torch.from_numpy(step["logits"])
    code_noise, place_noise = (torch.from_numpy(noise * step[f"{k}_noise"]).float() for k in ("logits", "conf"))
    candidates = (logits + code_noise).argmax(dim=-1)  # Gumbel-max
    before = torch.from_numpy(step["tokens_in"]).long()
    tokens, shown = generate.show(logits, candidates, before, index, count, place_noise)
    visible = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, shown, True)
    return torch.where(visible, tokens, 0).numpy(), visible.numpy()


@pytest.mark.parametrize("run", ["sto", "hot"])
@torch.no_grad()
def test_every_sampling_step_with_an_image(model: Mega, cvqmae: Arrays, run: str) -> None:
    features = torch.from_numpy(cvqmae["cond"])
    image = model.encode_image(features).image
    noise = temperatures(int(cvqmae[f"{run}/nb_steps"]), float(cvqmae[f"{run}/gen_temp"]))
    assert cvqmae[f"{run}/margins"].min() > 1e-5
    for t, step, index in steps_of(cvqmae, run):
        before = torch.from_numpy(step["tokens_in"]).long()
        logits = model(features, before, torch.from_numpy(step["visible_in"]).bool()).logits
        close(logits, step["logits"], 1e-4)
        states = model.decode(image, model.encode(before.gather(1, index), index), index)
        close(model.read(states, image), step["logits"], 1e-4)
        counts = step["visible_out"].sum(axis=1)
        assert counts[0] == counts[1]
        tokens, visible = chosen({**step, "logits": logits.numpy()}, index, noise[t], int(counts[0]))
        assert (visible == step["visible_out"]).all() and (tokens == step["tokens_out"]).all(), t


@torch.no_grad()
def test_every_sampling_step_without_an_image(pretrained: Mega, vqmae: Arrays) -> None:
    assert vqmae["gen/margins"].min() > 1e-5
    states = [step for _, step, _ in steps_of(vqmae, "gen")]
    for (t, step, index), after in zip(steps_of(vqmae, "gen"), [*states[1:], None]):
        before = torch.from_numpy(step["tokens_in"]).long()
        logits = pretrained(None, before, torch.from_numpy(step["visible_in"]).bool()).logits
        close(logits, step["logits"], 1e-4)
        count = 53 if after is None else int(after["visible_in"][0].sum())
        tokens, visible = chosen({**step, "logits": logits.numpy()}, index, float(vqmae["gen/temperatures"][t]), count)
        assert (tokens == step["tokens_out"]).all(), t
        assert after is None or (visible == after["visible_in"]).all(), t


@torch.no_grad()
def test_unconditional_model_gives_the_recorded_logits(pretrained: Mega, vqmae: Arrays) -> None:
    tokens, visible = (torch.from_numpy(vqmae[f"masked/{name}"]) for name in ("tokens_in", "visible"))
    out = pretrained(None, tokens, visible.bool())
    close(out.logits, vqmae["masked/logits"], 1e-4)
    assert out.rot6d is None and out.camera is None


@pytest.mark.parametrize("run", ["sto", "hot"])
def test_the_last_step_shows_every_token(cvqmae: Arrays, run: str) -> None:
    """The released code keeps one token masked even then, and returns code 0 for it."""
    *_, (_, step, index) = steps_of(cvqmae, run)
    tokens, visible = chosen(step, index, 0.0, 54)
    assert visible.all()
    masked = step["visible_out"] == 0
    assert masked.sum(axis=1).tolist() == [1, 1]
    official = cvqmae[f"{run}/tokens"]
    assert (official == np.where(masked, 0, tokens)).all()
    assert (tokens[masked] == step["logits"].argmax(-1)[masked]).all()


@torch.no_grad()
def test_one_noiseless_step_is_the_deterministic_mode(model: Mega, cvqmae: Arrays) -> None:
    """In the released code it is not: the least confident token becomes 0."""
    features = torch.from_numpy(cvqmae["cond"])
    tokens = generate.stochastic(model, features, samples=1, steps=1, temperature=0.0)[:, 0]
    assert torch.equal(tokens, generate.deterministic(model, features))
    least = cvqmae["det/logits"].max(-1).argmin(-1)
    official = tokens.numpy().copy()
    official[[0, 1], least] = 0
    assert (official == cvqmae["onestep/tokens"]).all()


@torch.no_grad()
def test_half_precision_does_not_round_the_random_numbers(model: Mega, cvqmae: Arrays) -> None:
    half = deepcopy(model).bfloat16()
    features = torch.from_numpy(cvqmae["cond"]).bfloat16()
    image = half.encode_image(features).image
    uniforms = generate.uniforms((2, 8, 5, 54, 2), seed=3)
    exact = generate.sample(half, image, generate.first_logits(half, image), uniforms, temperature=1.0)
    assert torch.equal(generate.stochastic(half, features, samples=8, seed=3), exact)


@pytest.mark.parametrize("steps", [5, 20])
def test_counts_of_the_paper_and_of_the_released_code(steps: int) -> None:
    """The paper rounds the visible tokens down, the released code the masked ones."""
    ours = generate.visible_counts(54, steps)
    masked = [int(54 * np.cos(np.pi * t / (2 * steps))) for t in range(steps)]
    assert ours[0] == 0 and ours[-1] == 54
    assert all(54 - theirs - mine in (0, 1) for mine, theirs in zip(ours, masked))
    if steps == 5:
        assert [54 - m for m in masked] == [0, 3, 11, 23, 38]


# ----------------------------------------------------------------------------------------------------------- tokenizer

MIXED = (0.3, 0.5, 0.25, 0.25, 1.0, 0.4)


@pytest.mark.parametrize(("name", "residual"), [("medium", ()), ("mixed", MIXED)])
@torch.no_grad()
def test_tokenizer_gives_the_recorded_meshes(name: str, residual: tuple[float, ...], tmp_path: Path) -> None:
    data = recorded(f"tiny_mesh_{name}")
    assert not residual or list(residual) == json.loads(str(data["config"]))["modelconv"]["residual_rate_lst"]
    file = save(weights_of(data), tmp_path / "mesh_vqvae")
    tokenizer = reference.load_tokenizer(file, connections=FIXTURES / "tiny_connections", residual=residual)
    meshes = torch.from_numpy(data["meshes"])
    close(tokenizer.latents(meshes), data["latent"], 1e-5)
    tokens = tokenizer.encode(meshes)
    assert (tokens.numpy() == data["indices"]).all()
    close(tokenizer.quantizer.codebook[tokens], data["quantized"], 0)
    close(tokenizer.decode(tokens), data["recon"], 1e-5)
    close(tokenizer.decode(torch.from_numpy(data["decode_indices"])), data["decode_mesh"], 1e-5)
    out = tokenizer(meshes)
    close(out.vertices, data["recon_forward"], 1e-5)
    close(out.commitment, data["vq_loss"], 1e-5)


def test_rates_that_a_file_cannot_tell_are_asked_for(tmp_path: Path) -> None:
    file = save(weights_of(recorded("tiny_mesh_mixed")), tmp_path / "mesh_vqvae")
    with pytest.raises(InputError, match="layer 0 mixes convolution and shortcut"):
        reference.load_tokenizer(file, FIXTURES / "tiny_connections")
    with pytest.raises(InputError, match="2 residual rates for 6 layers"):
        reference.load_tokenizer(file, FIXTURES / "tiny_connections", residual=(0.5, 1.0))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of published tables of SMPL's graph."""
    folder = tmp_path_factory.mktemp("dfaust2")
    for name, table in recorded("connections_dfaust2").items():
        np.save(folder / f"_{name}.npy", table)
    return folder


def test_published_tables_follow_from_the_first(published: Path) -> None:
    """The first table lists every vertex's neighbours, which is all that the faces tell: it gives the other fifteen."""
    levels = hierarchy.load(published)
    assert [len(level.centres) for level in levels] == [6890, 1925, 1925, 400, 400, 54, 54, 7]
    first = levels[0].pool
    graph = [row[1:n].tolist() for row, n in zip(first.index, first.count)]
    for ours, theirs in zip(hierarchy.coarsen(graph, [1, 2] * 4, HIERARCHY_SEEDS), levels, strict=True):
        assert (ours.centres == theirs.centres).all()
        assert (ours.pool.published() == theirs.pool.published()).all()
        assert (ours.unpool.published() == theirs.unpool.published()).all()


def test_tables_from_faces_are_those_of_the_files(tmp_path: Path) -> None:
    faces, file = recorded("tiny_mesh_medium")["faces"], Path("faces.npy")
    levels = hierarchy.load(FIXTURES / "tiny_connections")
    check_faces(file, faces, levels)
    with pytest.raises(InputError, match=r"faces\.npy: .* another table _pool0"):
        check_faces(file, faces[::-1], levels)
    with pytest.raises(InputError, match=r"faces\.npy: faces of vertex 171"):
        check_faces(file, faces + 10, levels)
    hierarchy.save(tmp_path, levels)
    for file in (FIXTURES / "tiny_connections").iterdir():
        assert np.array_equal(np.load(tmp_path / file.name), np.load(file)), file.name


def test_faces_are_read_in_three_formats(tmp_path: Path) -> None:
    faces = recorded("tiny_mesh_medium")["faces"]
    np.save(tmp_path / "a.npy", faces)
    np.savez(tmp_path / "b.npz", f=faces.astype(np.uint32))
    np.savez(tmp_path / "c.npz", faces=faces)
    lines = ["# comment", "v 0 0 0", *(f"f {a + 1}/1/1 {b + 1}//2 {c + 1}" for a, b, c in faces)]
    (tmp_path / "d.obj").write_text("\n".join(lines))
    for file in tmp_path.iterdir():
        assert (read_faces(file) == faces).all(), file.name
    np.save(tmp_path / "wrong.npy", faces.astype(float))
    np.save(tmp_path / "none.npy", faces[:0])
    (tmp_path / "squares.obj").write_text("f 1 2 3\nf 1 2 3 4\n")
    for name in ("wrong.npy", "none.npy", "squares.obj", "faces.stl"):
        with pytest.raises(InputError, match=name):
            read_faces(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ geometry


def test_rotations_and_cameras_are_as_recorded() -> None:
    data = recorded("geometry")
    rot6d, turn, camera = (torch.from_numpy(data[name]) for name in ("rot6d", "orient_rot6d", "cam"))
    np.testing.assert_allclose(rot6d_to_matrix(rot6d), data["rotmat"], atol=1e-6)
    oriented = torch.from_numpy(data["verts"]) @ rot6d_to_matrix(turn).mT
    np.testing.assert_allclose(oriented, data["oriented"], atol=1e-6)
    np.testing.assert_allclose(project_weak(oriented, camera), data["projected"], atol=1e-6)
    half = data["box_size"] / 2
    translation = crop_translation(data["cam"], data["focal"] / half)
    # the released code looks at the crop through the whole image's camera, and so shifts the body to the box
    aside = (data["box_center"] - data["img_size"] / 2) / (half * data["cam"][:, 0])[:, None]
    translation = translation + np.pad(aside, ((0, 0), (0, 1)))
    np.testing.assert_allclose(translation, data["cam_t"], rtol=1e-5)
    width, height = data["img_size"].T
    zero, one = np.zeros(4), np.ones(4)
    rows = [data["focal"] * one, zero, width / 2, zero, data["focal"] * one, height / 2, zero, zero, one]
    pixels = project(oriented.numpy() + translation[:, None], np.stack(rows, axis=-1).reshape(4, 3, 3))
    np.testing.assert_allclose(pixels, data["pixels"], rtol=1e-4, atol=1e-2)


# -------------------------------------------------------------------------------------------------------- wrong inputs


def test_every_wrong_key_and_shape_is_named(cvqmae: Arrays, tmp_path: Path) -> None:
    weights = weights_of(cvqmae)
    weights["decoder.extra"] = torch.zeros(1)
    weights["decoder.head.bias"] = torch.zeros(3)
    del weights["encoder.cls_token"]
    with pytest.raises(InputError) as error:
        reference.load_mega(save(weights, tmp_path / "wrong"))
    text = str(error.value)
    assert str(tmp_path / "wrong") in text
    assert "encoder.cls_token is missing" in text and "decoder.extra is unexpected" in text
    assert "decoder.head.bias has the shape [3] in place of [64]" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.proj.weight", torch.zeros(3), r"has the shape \[3\], not one of 2 axes"),
        ("encoder.proj.weight", torch.zeros(64, 6), "its width of 6 cannot be divided among 4 heads"),
        ("encoder.pos_embedding", torch.zeros(()), r"has the shape \[\], not one of 3 axes"),
        ("decoder.cond_emb.weight", torch.zeros(3), r"has the shape \[3\], not one of 2 axes"),
        ("decoder.head.bias", torch.full((64,), torch.nan), "holds something other than finite numbers"),
    ],
)
def test_weights_that_tell_no_size_or_no_numbers_are_named(
    key: str, value: torch.Tensor, message: str, cvqmae: Arrays, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"wrong: .*{message}"):
        reference.load_mega(save(weights_of(cvqmae) | {key: value}, tmp_path / "wrong"))


def test_only_a_tokenizer_has_its_layers_twice(cvqmae: Arrays, tmp_path: Path) -> None:
    weights = weights_of(cvqmae) | {"decoder.model.bias0": torch.zeros(3)}
    with pytest.raises(InputError, match=r"decoder\.model\.bias0 is unexpected"):
        reference.load_mega(save(weights, tmp_path / "mega"))


def test_heads_of_a_pretrained_model_start_the_same(vqmae: Arrays, tmp_path: Path) -> None:
    file = save(weights_of(vqmae), tmp_path / "mega_pretrained")
    before = torch.get_rng_state()
    one, two = (reference.load_mega(file, preset="default").lifter for _ in range(2))
    assert one is not None and two is not None
    assert torch.equal(one.turn.weight, two.turn.weight) and torch.equal(torch.get_rng_state(), before)


def test_halves_of_a_tokenizer_must_be_equal(tmp_path: Path) -> None:
    weights = weights_of(recorded("tiny_mesh_medium"))
    other = {**weights, "decoder.model.bias0": weights["decoder.model.bias0"] + 1}
    with pytest.raises(InputError, match=r"decoder\.model\.bias0 is not the same"):
        reference.load_tokenizer(save(other, tmp_path / "a"), FIXTURES / "tiny_connections")
    del other["decoder.model.bias0"]
    with pytest.raises(InputError, match=r"decoder\.model\.bias0 is missing"):
        reference.load_tokenizer(save(other, tmp_path / "b"), FIXTURES / "tiny_connections")


def test_files_that_are_something_else(tmp_path: Path, cvqmae: Arrays) -> None:
    (tmp_path / "text").write_text("no checkpoint")
    torch.save(weights_of(cvqmae), tmp_path / "bare")
    torch.save({"model": {"a": Path("runs code")}}, tmp_path / "unsafe")
    for name in ("text", "bare", "unsafe"):
        with pytest.raises(InputError, match=name):
            reference.load_mega(tmp_path / name)
    with pytest.raises(InputError):
        reference.load_mega(tmp_path / "absent")
    mesh = save(weights_of(recorded("tiny_mesh_medium")), tmp_path / "mesh")
    with pytest.raises(InputError, match=r"encoder\.proj\.weight is missing"):
        reference.load_mega(mesh)
    with pytest.raises(InputError, match="not a Mesh-VQ-VAE"):
        reference.load_tokenizer(save(weights_of(cvqmae), tmp_path / "mega"), FIXTURES / "tiny_connections")


def test_damaged_connections_are_named(tmp_path: Path) -> None:
    file = save(weights_of(recorded("tiny_mesh_medium")), tmp_path / "mesh")
    folder = tmp_path / "connections"
    with pytest.raises(InputError, match=r"_pool0\.npy"):
        reference.load_tokenizer(file, folder)
    hierarchy.save(folder, hierarchy.load(FIXTURES / "tiny_connections"))
    table = np.load(folder / "_pool1.npy")
    table[0, 1] = 162  # one past the last vertex
    np.save(folder / "_pool1.npy", table)
    with pytest.raises(InputError, match=r"_pool1\.npy: the connections do not fit a graph of 162 vertices"):
        reference.load_tokenizer(file, folder)
    hierarchy.save(folder, hierarchy.load(FIXTURES / "tiny_connections")[:2])
    for name in ("_pool2.npy", "_pool3.npy", "_pool4.npy"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="2 levels of tables"):
        reference.load_tokenizer(file, folder)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def small(cvqmae: Arrays, tmp_path: Path) -> list[str]:
    """Options for a released pair that fits: the recorded model, cut to the tokens and codes of the tokenizer."""
    weights = weights_of(cvqmae)
    for key, size in (("encoder.pos_embedding", 10), ("decoder.pos_embedding", 11)):
        weights[key] = weights[key][:size].clone()
    for key in ("encoder.proj.weight", "decoder.head.weight", "decoder.head.bias"):
        weights[key] = weights[key][:32].clone()
    files = {"mega": save(weights, tmp_path / "mega_tiny", "module.")}
    files["mesh-vqvae"] = save(weights_of(recorded("tiny_mesh_medium")), tmp_path / "mesh_vqvae")
    files |= {"connections": FIXTURES / "tiny_connections", "out": tmp_path / "out"}
    return ["import-reference", *(word for name, file in files.items() for word in (f"--{name}", str(file)))]


def test_imported_checkpoint_is_like_any_other(
    small: list[str], tmp_path: Path, cvqmae: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recorded("tiny_mesh_medium")
    np.save(tmp_path / "faces.npy", data["faces"])
    assert mega([*small, "--smpl-faces", str(tmp_path / "faces.npy")]) == 0
    printed = capsys.readouterr().out
    assert "22 keys decoder" in printed and "no template and no joints" in printed
    _, tokenizer, topology = checkpoint.load_mega(tmp_path / "out")
    assert (topology.faces == data["faces"]).all() and topology.joint_names == ()
    close(tokenizer.decode(torch.from_numpy(data["decode_indices"])), data["decode_mesh"], 1e-5)
    # the next stage begins with a copy
    model = checkpoint.begin_mega(tmp_path / "next", tmp_path / "out" / "tokenizer", MegaConfig(tokens=10))
    checkpoint.save_weights(model, tmp_path / "next")
    _, copied, _ = checkpoint.load_mega(tmp_path / "next")
    first, second = copied.decoder[0], tokenizer.decoder[0]
    assert isinstance(first, MeshConv) and isinstance(second, MeshConv) and torch.equal(first.mixing, second.mixing)
    with torch.no_grad():
        before = reference.load_mega(tmp_path / "mega_tiny")
        after, *_ = checkpoint.load_mega(tmp_path / "out")
        logits = [
            generate.first_logits(model, model.encode_image(torch.from_numpy(cvqmae["cond"])).image)
            for model in (before, after)
        ]
        assert torch.equal(*logits)


def test_a_model_file_gives_the_body(small: list[str], tmp_path: Path) -> None:
    data = recorded("tiny_mesh_medium")
    np.savez(tmp_path / "smpl.npz", **{**smpl_arrays(162), "f": data["faces"]})
    assert mega([*small, "--smpl-model", str(tmp_path / "smpl.npz")]) == 0
    _, tokenizer, topology = checkpoint.load_mega(tmp_path / "out")
    assert len(topology.joint_names) == 24 and topology.template.std() > 0.01
    close(tokenizer.decode(torch.from_numpy(data["decode_indices"])), data["decode_mesh"], 1e-5)


def test_the_command_says_what_does_not_fit(
    small: list[str], tmp_path: Path, cvqmae: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = recorded("tiny_mesh_medium")["faces"]
    np.save(tmp_path / "other.npy", faces[::-1])
    assert mega([*small, "--smpl-faces", str(tmp_path / "other.npy")]) == 1
    assert re.search(r"^mega import-reference: .* another table _pool0", capsys.readouterr().err)
    save(weights_of(cvqmae), tmp_path / "mega_tiny")
    assert mega(small) == 1
    assert re.search(r"54 tokens of 64 codes, .* of 10 of 32", capsys.readouterr().err)


# ----------------------------------------------------------------------------------------------------------- backbones


def backbone_weights(name: str, unit: int) -> dict[str, Tensor]:
    """Random weights by the keys of a released file, where every size that is a multiple of `unit` is an eighth."""
    torch.manual_seed(0)
    weights: dict[str, Tensor] = {}
    for line in (FIXTURES / "reference_keys" / f"{name}.tsv").read_text().splitlines()[1:]:
        key, shape, dtype, _ = line.split("\t")
        if key.startswith("backbone."):
            sizes = [] if shape == "scalar" else [int(n) if int(n) % unit else int(n) // 8 for n in shape.split("x")]
            x = torch.randn(sizes)
            if len(sizes) == 1:
                x = 1 + 0.1 * x if key.endswith(("weight", "running_var")) else 0.1 * x
            elif sizes and "pos_embed" not in key:
                x = x / x[0].numel() ** 0.5
            weights[key] = torch.tensor(0) if dtype == "int64" else x
    return weights


class Released:
    """The published networks, computed from weights by their released names."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.w = {key.removeprefix("backbone."): x for key, x in weights.items()}

    def conv(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = self.w[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var, weight, bias = (self.w[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def block(self, x: Tensor, at: str, stride: int = 1) -> Tensor:
        layers, strided = (3, 2) if f"{at}.conv3.weight" in self.w else (2, 1)
        y = x
        for i in range(1, layers + 1):
            y = self.conv(y.relu() if i > 1 else y, f"{at}.conv{i}", f"{at}.bn{i}", stride if i == strided else 1)
        if f"{at}.downsample.0.weight" in self.w:
            x = self.conv(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
        return (x + y).relu()

    def resnet(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x, "0", "1", 2).relu(), 3, 2, 1)
        for stage, depth in zip((4, 5, 6, 7), (3, 4, 6, 3)):
            for i in range(depth):
                x = self.block(x, f"{stage}.{i}", 2 if i == 0 and stage > 4 else 1)
        return x

    def hrnet(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "conv1", "bn1", 2).relu(), "conv2", "bn2", 2).relu()
        for i in range(4):
            x = self.block(x, f"layer1.{i}")
        branches, coarsest = [self.conv(x, "transition1.0.0", "transition1.0.1").relu()], x
        for stage, count in ((2, 1), (3, 4), (4, 3)):
            at = f"transition{stage - 1}.{stage - 1}.0"
            branches.append(self.conv(coarsest, f"{at}.0", f"{at}.1", 2).relu())
            for i in range(count):
                branches = self.exchange(branches, f"stage{stage}.{i}")
            coarsest = branches[-1]
        for b in range(3):
            for i in range(3 - b):
                at = f"downsample_stage_{b + 1}"
                branches[b] = self.conv(branches[b], f"{at}.{3 * i}", f"{at}.{3 * i + 1}", 2).relu()
        return torch.cat(branches, dim=1)

    def exchange(self, branches: list[Tensor], at: str) -> list[Tensor]:
        for i in range(4):
            branches = [self.block(x, f"{at}.branches.{b}.{i}") for b, x in enumerate(branches)]
        sums = []
        for to in range(len(branches)):
            total = branches[to]
            for b, x in enumerate(branches):
                path = f"{at}.fuse_layers.{to}.{b}"
                if b > to:
                    total = total + F.interpolate(self.conv(x, f"{path}.0", f"{path}.1"), scale_factor=2 ** (b - to))
                elif b < to:
                    for k in range(to - b):
                        x = self.conv(x.relu() if k else x, f"{path}.{k}.0", f"{path}.{k}.1", 2)
                    total = total + x
            sums.append(total.relu())
        return sums

    def vit(self, x: Tensor) -> Tensor:
        def linear(x: Tensor, at: str) -> Tensor:
            return F.linear(x, self.w[f"{at}.weight"], self.w[f"{at}.bias"])

        def norm(x: Tensor, at: str) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], self.w[f"{at}.weight"], self.w[f"{at}.bias"], 1e-6)

        patches = F.conv2d(x, self.w["patch_embed.proj.weight"], self.w["patch_embed.proj.bias"], 16, 2)
        x = patches.flatten(2).mT + self.w["pos_embed"][:, 1:] + self.w["pos_embed"][:, :1]
        for i in range(32):
            at = f"blocks.{i}"
            q, k, v = linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").unflatten(2, (3, 16, -1)).permute(2, 0, 3, 1, 4)
            heads = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
            x = x + linear(heads.transpose(1, 2).flatten(2), f"{at}.attn.proj")
            x = x + linear(F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        return norm(x, "last_norm").mT.reshape(patches.shape)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "unit", "channels", "size"),
    [("hrnet", 48, 90, (64, 96)), ("resnet", 64, 256, (64, 96)), ("vit", 1280, 160, (256, 192))],
)
def test_backbones_compute_what_the_published_networks_do(
    name: str, unit: int, channels: int, size: tuple[int, int], cvqmae: Arrays, tmp_path: Path
) -> None:
    weights = weights_of(cvqmae) | backbone_weights(f"cvqmae_{name}", unit)
    for key in ("decoder.cond_emb.weight", "decoder.rotcam_head.0.weight"):
        weights[key] = torch.randn(len(weights[key]), channels)
    model = reference.load_mega(save(weights, tmp_path / name))
    images = torch.randn(2, 3, *size)
    found, expected = model.backbone(images), getattr(Released(weights), name)(images)
    assert found.shape[1:] == ((channels, 16, 12) if name == "vit" else (channels, 2, 3))
    assert expected.std() > 0.1 and (expected[0] - expected[1]).std() > 0.1, "it tells images apart"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# ---------------------------------------------------------------------------------------------------- full-size layouts


def layout(name: str) -> dict[str, Tensor]:
    """Random weights by the keys and shapes of a released file: views into one pool, so that they cost nothing."""
    pool = torch.randn(9_000_000)
    rng = np.random.default_rng(0)
    weights: dict[str, Tensor] = {}
    for line in (FIXTURES / "reference_keys" / f"{name}.tsv").read_text().splitlines()[1:]:
        key, shape, dtype, _ = line.split("\t")
        sizes = [] if shape == "scalar" else [int(n) for n in shape.split("x")]
        start = int(rng.integers(len(pool) - np.prod(sizes)))
        weights[key] = torch.tensor(start) if dtype == "int64" else pool[start:][: int(np.prod(sizes))].reshape(sizes)
        if key.startswith("decoder.model."):
            weights[key] = weights[key.replace("decoder", "encoder", 1)]
    return weights


def lost(weights: Mapping[str, Tensor], model: torch.nn.Module) -> list[str]:
    """Keys whose tensor is nowhere in the model. By content, so whatever the model calls it."""

    def content(x: Tensor) -> tuple[int, float, float]:
        return x.numel(), float(x.flatten()[0]), float(x.flatten()[-1])

    there = {content(x): x.flatten() for x in model.state_dict().values()}
    return [key for key, x in weights.items() if not torch.equal(x.flatten(), there.get(content(x), x[..., None]))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys", "preset", "parameters"),
    [
        ("cvqmae_hrnet", 2063, "hrnet", 271_077_889),
        ("cvqmae_resnet", 513, "resnet", 231_418_441),
        ("cvqmae_vit", 584, "vit", 837_249_545),
        ("vqmae_pretrained", 185, "resnet", 202_655_232),
    ],
)
def test_every_released_layout(
    name: str,
    keys: int,
    preset: str,
    parameters: int,
    folder: Path,
    published: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command and through real files: nothing of the released model and of its tokenizer is lost."""
    files = {"--mega": layout(name), "--mesh-vqvae": layout("mesh_vqvae_54")}
    weights, mesh_weights = files.values()
    assert (len(weights), len(mesh_weights)) == (keys, 63)
    assert sum(x.numel() for k, x in weights.items() if not k.endswith(("running_mean", "running_var", "tracked"))) == (
        parameters
    )
    paths = ["--connections", str(published), "--out", str(folder / "out"), "--preset", preset]
    for option, tensors in files.items():
        own = {key: x.clone() for key, x in tensors.items()}  # each its own bytes, as in the released files
        paths += [option, str(save(own, folder / option, "module." if option == "--mega" else ""))]
        del own
    assert mega(["import-reference", *paths]) == 0
    printed = capsys.readouterr().out
    model, tokenizer, topology = checkpoint.load_mega(folder / "out")
    assert lost(weights, model) == [key for key in weights if "final_layer" in key]
    assert lost(mesh_weights, tokenizer) == []
    if name.startswith("cvqmae"):
        assert f"{model.config.backbone}, {parameters / 1e6:.1f} million parameters" in printed
        assert model.config == PRESETS[preset]
        assert len(model.state_dict()) == len(weights) - len(lost(weights, model))
    assert topology.template.shape == (6890, 3)
    with torch.no_grad():
        if preset == "resnet":
            assert model.backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 2048, 7, 7)
        assert tokenizer.decode(torch.zeros(1, 54, dtype=torch.long)).shape == (1, 6890, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For gigabytes, which pytest would keep for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)
