"""SMPL bodies from model files of every format, and what is said of files that are none."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from smpl_files import python2_pickle, smpl_arrays, write_smpl
from smplx.lbs import lbs

from mega_model.body.smpl import H36M_14, SmplBody, gender_of, load_bodies, load_regressor
from mega_model.body.vertices import main
from mega_model.core.errors import InputError
from mega_model.core.files import npz_fields
from mega_model.core.topology import SMPL_JOINTS
from mega_model.pickles import read_pickle

RNG = np.random.default_rng(0)
POSE = RNG.normal(0, 0.4, (3, 63))
BETAS = RNG.normal(0, 1, (3, 10))


def whole(joints: int, root: np.ndarray) -> np.ndarray:
    """`posed`, centred."""
    vertices = posed(joints, root)
    return vertices - vertices.mean(axis=1, keepdims=True)


def posed(joints: int, root: np.ndarray) -> np.ndarray:
    """POSE and BETAS with root rotations [3, 3], by smplx with all of the model's joints."""
    arrays = smpl_arrays(joints=joints).items()
    a = {name: torch.from_numpy(value.astype(np.float64)) for name, value in arrays if value.dtype.kind != "U"}
    pose = np.pad(np.hstack([root, POSE]), ((0, 0), (0, 3 * (joints - 22))))
    parents = a["kintree_table"][0].long()
    posedirs = a["posedirs"].flatten(0, 1).T
    vertices, _ = lbs(
        torch.from_numpy(BETAS), torch.from_numpy(pose), a["v_template"], a["shapedirs"][..., :10], posedirs,
        a["J_regressor"], parents, a["weights"],
    )  # fmt: skip
    return vertices.numpy()


@pytest.mark.parametrize(("name", "joints"), [("SMPL_NEUTRAL.npz", 24), ("model.npz", 52), ("basicmodel_f.pkl", 24)])
def test_canonical_bodies(tmp_path: Path, name: str, joints: int) -> None:
    body = SmplBody(write_smpl(tmp_path / name, joints=joints))
    vertices = body.canonical(POSE, BETAS)
    assert vertices.shape == (3, 162, 3) and vertices.dtype == np.float32
    np.testing.assert_allclose(vertices, whole(joints, np.zeros((3, 3))), atol=1e-5)

    # a global rotation turns the centred mesh, and nothing else
    root = RNG.normal(0, 1, (3, 3))
    turned = vertices @ Rotation.from_rotvec(root).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(turned, whole(joints, root), atol=1e-5)


def test_root_and_hands_are_left_out(tmp_path: Path) -> None:
    body = SmplBody(write_smpl(tmp_path / "model.npz", joints=52))
    alone = body.canonical(POSE, BETAS)
    for width in (66, 72, 156, 165):
        pose = RNG.normal(size=(3, width))
        pose[:, 3:66] = POSE
        np.testing.assert_array_equal(body.canonical(pose, np.hstack([BETAS, BETAS])), alone)


@pytest.mark.parametrize("joints", [24, 52])
def test_topology(tmp_path: Path, joints: int) -> None:
    arrays = smpl_arrays(joints=joints)
    topology = SmplBody(write_smpl(tmp_path / "model.npz", joints=joints)).topology()
    np.testing.assert_allclose(topology.template.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(topology.faces, arrays["f"])
    assert topology.faces.dtype == np.int32
    assert topology.joint_regressor.shape == (24, 162) and topology.joint_regressor.dtype == np.float32
    np.testing.assert_allclose(topology.joint_regressor.sum(axis=1), 1, atol=1e-5)
    # SMPL-H has no hand joint: its middle finger begins there
    knuckles = arrays["J_regressor"][[25, 40] if joints == 52 else [22, 23]]
    np.testing.assert_allclose(topology.joint_regressor[22:], knuckles, atol=1e-6)

    tips = topology.template[:, 0].argmax(), topology.template[:, 0].argmin()
    assert [SMPL_JOINTS[topology.parts[tip]] for tip in tips] == ["left_hand", "right_hand"]
    assert SMPL_JOINTS[topology.parts[topology.template[:, 1].argmax()]] == "head"


def test_any_number_of_vertices(tmp_path: Path) -> None:
    body = SmplBody(write_smpl(tmp_path / "SMPL_MALE.npz", vertices=300))
    assert body.canonical(POSE, BETAS).shape == (3, 300, 3)


def test_the_genders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_smpl(tmp_path / "smplh" / "male" / "model.npz", joints=52, seed=1)
    write_smpl(tmp_path / "basicmodel_f_lbs_10_207_0_v1.1.0.pkl", seed=2)
    write_smpl(tmp_path / "notes.npz", seed=3)
    monkeypatch.setenv("MEGA_SMPL", str(tmp_path))
    bodies = load_bodies()
    assert set(bodies) == {"male", "female"}
    female = SmplBody(tmp_path / "basicmodel_f_lbs_10_207_0_v1.1.0.pkl").canonical(POSE, BETAS)
    np.testing.assert_array_equal(bodies[gender_of(np.array(b"female"))].canonical(POSE, BETAS), female)
    assert [gender_of(word) for word in ("m", "F", np.array(["neutral"]))] == ["male", "female", "neutral"]
    with pytest.raises(ValueError, match="'robot' is none of the genders"):
        gender_of("robot")

    one = load_bodies(tmp_path / "notes.npz")
    assert one["male"] is one["neutral"]
    write_smpl(tmp_path / "SMPL_MALE.npz")
    with pytest.raises(InputError, match="two male bodies in it"):
        load_bodies(tmp_path)


def test_a_missing_file_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGA_SMPL", raising=False)
    with pytest.raises(InputError, match=r"smpl\.is\.tue\.mpg\.de .*basicmodel_neutral.* set MEGA_SMPL"):
        SmplBody()
    monkeypatch.setenv("MEGA_SMPL", str(tmp_path / "gone.npz"))
    for load in (SmplBody, load_bodies):
        with pytest.raises(InputError, match=r"gone\.npz: there is no .*smpl\.is\.tue\.mpg\.de"):
            load()
    with pytest.raises(InputError, match=r"no \.npz or \.pkl file"):
        load_bodies(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weights", None, "field 'weights' is missing"),
        ("posedirs", np.zeros((162, 3, 93)), r"field 'posedirs' has the shape \[162, 3, 93\]"),
        ("shapedirs", np.zeros((162, 3, 4)), "field 'shapedirs' has 4 shapes"),
        ("v_template", np.full((162, 3), np.nan), "field 'v_template' holds something other than finite numbers"),
        ("J_regressor", np.full((55, 162), 1 / 162), "it has 55 joints"),
        ("J_regressor", np.array([{}]), "field 'J_regressor' cannot be read"),
        ("f", np.array([[0, 1, 162]]), "field 'f' names vertices"),
        ("kintree_table", np.full((2, 24), 7), "field 'kintree_table'"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, field: str, value: np.ndarray | None, message: str) -> None:
    arrays = {**smpl_arrays(), field: value}
    np.savez(tmp_path / "model.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=rf"model\.npz: {message}"):
        SmplBody(tmp_path / "model.npz")


def test_damaged_files(tmp_path: Path) -> None:
    for name in ("model.npz", "model.pkl"):
        file = write_smpl(tmp_path / name)
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(InputError, match=rf"{name}: not "):
            SmplBody(file)
    (tmp_path / "other.pkl").write_bytes(python2_pickle({"poses": [1, 2]}))
    with pytest.raises(InputError, match="not an SMPL model file, it lacks v_template"):
        SmplBody(tmp_path / "other.pkl")


def test_fields_of_an_archive(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez(file, pose=np.zeros((2, 72)), betas=np.zeros((2, 10)))
    assert npz_fields(file) == ["pose", "betas"]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"set\.npz: not an \.npz file, or cut short"):
        npz_fields(file)
    with pytest.raises(InputError, match=r"gone\.npz: there is no such file"):
        npz_fields(tmp_path / "gone.npz")


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    file = tmp_path / "trap.pkl"
    file.write_bytes(pickle.dumps({"v_template": Trap()}))
    with pytest.raises(InputError, match=r"trap\.pkl: not a readable pickle file \(it holds a posix\.mkdir"):
        SmplBody(file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_hold_data(tmp_path: Path, protocol: int) -> None:
    data = {"poses": [np.ones((2, 3))], "genders": ["m"], "rate": np.float32(60), "raw": b"\xe9", "ids": {1}}
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(data, protocol))
    read = read_pickle(tmp_path / "data.pkl")
    np.testing.assert_array_equal(read.pop("poses"), data.pop("poses"))
    assert read == data


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.zeros((0, 3), np.float32),
        np.array(7, ">i2"),
        np.array(["m", "female"]),
        np.array([b"m"]),
        np.array([True, False]),
        np.array([["m", None], [[1, 2], 3]], object),
    ],
)
def test_pickles_hold_arrays(tmp_path: Path, array: np.ndarray, protocol: int) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(array, protocol))
    read = read_pickle(tmp_path / "data.pkl")
    np.testing.assert_array_equal(read, array)
    assert read.dtype.str[1:] == array.dtype.str[1:] and read.shape == array.shape
    (tmp_path / "data.pkl").write_bytes(python2_pickle({"array": array}))
    if array.dtype.kind not in "UO":  # whose strings are bytes there
        np.testing.assert_array_equal(read_pickle(tmp_path / "data.pkl")["array"], array)


def test_joint_regressors(tmp_path: Path) -> None:
    regressor = RNG.dirichlet(np.ones(162), size=17)
    np.save(tmp_path / "J_regressor_h36m.npy", regressor)
    read = load_regressor(tmp_path / "J_regressor_h36m.npy", 162)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, regressor, atol=1e-6)
    assert read[list(H36M_14)].shape == (14, 162) and len(set(H36M_14)) == 14

    with pytest.raises(InputError, match=r"J_regressor_h36m\.npy: .*\[17, 162\] in place of \[any, 6890\]"):
        load_regressor(tmp_path / "J_regressor_h36m.npy", 6890)
    np.save(tmp_path / "zero.npy", np.zeros((17, 162)))
    with pytest.raises(InputError, match="not a joint regressor"):
        load_regressor(tmp_path / "zero.npy", 162)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.npy: not a readable \.npy file"):
        load_regressor(tmp_path / "broken.npy", 162)
    with pytest.raises(InputError, match=r"gone\.npy: there is no such file"):
        load_regressor(tmp_path / "gone.npy", 162)


@pytest.mark.parametrize(
    ("pose", "betas"), [((3, 69), (3, 10)), ((63,), (1, 10)), ((3, 63), (2, 10)), ((3, 63), (3, 9))]
)
def test_parameters_that_do_not_fit(tmp_path: Path, pose: tuple[int, ...], betas: tuple[int, ...]) -> None:
    body = SmplBody(write_smpl(tmp_path / "model.npz"))
    with pytest.raises(ValueError, match="shape"):
        body.canonical(np.zeros(pose), np.zeros(betas))


def vertices_of(folder: Path, *words: object, **arrays: Any) -> dict[str, np.ndarray]:
    """What `mega vertices` makes of parameters."""
    np.savez(folder / "parameters.npz", **arrays)
    main([str(word) for word in (folder / "parameters.npz", "--out", folder / "out", *words)])
    return dict(np.load(folder / "out"))


def test_vertices_of_smpl_are_those_of_smplx(tmp_path: Path) -> None:
    model = write_smpl(tmp_path / "SMPL_NEUTRAL.npz")
    root, trans = RNG.normal(0, 1, (3, 3)), RNG.normal(0, 1, (3, 3)) + [0, 0, 5]
    poses = np.pad(np.hstack([root, POSE]), ((0, 0), (0, 6)))
    frames: dict[str, Any] = {"stamps": np.array([5, 6]), "frame": np.array([0, 1, 1]), "ids": np.array([2, 2, 7])}
    made = vertices_of(tmp_path, "--smpl", model, poses=poses, betas=BETAS, trans=trans, **frames)
    np.testing.assert_allclose(made["vertices"], posed(24, root) + trans[:, None], atol=1e-5)
    for name, values in frames.items():
        np.testing.assert_array_equal(made[name], values)


def test_vertices_of_anny_face_the_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rotation: the head is up, left is to the right in the image. Anny's z axis is -y here."""
    pytest.importorskip("anny")
    from mega_model.body import anny

    body = anny.AnnyBody()
    monkeypatch.setattr(anny, "AnnyBody", lambda: body)  # it takes seconds
    root, trans = np.array([[0, 0, 0], [0, 0, np.pi / 2]]), np.array([[1.0, 2, 8], [1, 2, 8]])
    parameters: dict[str, Any] = {"phenotypes": np.full((2, 6), 0.5), "trans": trans, "names": np.array(["a", "b"])}
    made = vertices_of(tmp_path, poses=root[:, None], bones=np.array(["root"]), **parameters)
    at_rest, heads, _ = body.canonical(np.zeros((1, 1, 3)), ["root"], parameters["phenotypes"][:1])
    from_root = (at_rest - heads[:, [body.model.bone_labels.index("root")]])[0]
    np.testing.assert_allclose(made["vertices"][0] - trans[0], from_root * [1, -1, -1], atol=1e-5)
    x, y, z = (made["vertices"][0] - trans[0]).T
    np.testing.assert_allclose(made["vertices"][1] - trans[1], np.stack([-z, y, x], axis=1), atol=1e-5)
    assert made["names"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"betas": np.zeros((1, 10))}, "field 'poses' is missing"),
        ({"poses": np.zeros((1, 70))}, "has 70 numbers per person"),
        ({"poses": np.full((1, 72), 90)}, "field 'poses' holds rotations of up to 90 radians, so they may be degrees"),
        ({"poses": np.zeros((1, 72))}, "field 'betas' is missing"),
        ({"poses": np.zeros((1, 72)), "betas": np.zeros(10)}, "field 'trans' is missing"),
        ({"poses": np.zeros((2, 72)), "betas": np.zeros((3, 10)), "trans": np.zeros((2, 3))}, "'betas'"),
        ({"poses": np.zeros((2, 72)), "betas": np.zeros(10), "trans": np.zeros((1, 3))}, "'trans'"),
        ({"poses": np.zeros((1, 72)), "betas": np.zeros(10), "trans": np.zeros((1, 3)), "gender": "x"}, "'gender'"),
    ],
)
def test_parameters_that_give_no_vertices(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        vertices_of(tmp_path, "--smpl", write_smpl(tmp_path / "SMPL_NEUTRAL.npz"), **arrays)
    assert str(tmp_path / "parameters.npz") in str(caught.value)
