"""Image sets: each format that data come in, what is said of damaged ones, augmentation, mixtures and shards."""

from __future__ import annotations

import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from smpl_files import python2_pickle, write_smpl

from mega_model.body.smpl import SmplBody
from mega_model.core.errors import InputError
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.data import rendered, shards
from mega_model.data.annotations import read_people
from mega_model.data.images import ImageSet, Mixture, open_set
from mega_model.data.people import SPIN_JOINTS, mirrored
from mega_model.data.rendered import SceneSet
from mega_model.options import Write

K = np.array([[600.0, 0, 160], [0, 600, 120], [0, 0, 1]])
FIELDS = {"images", "vertices", "joints", "rotation", "joints2d", "confidence"}


@pytest.fixture(scope="session")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a made-up SMPL of each gender, and a made-up regressor of Human3.6M's joints."""
    folder = tmp_path_factory.mktemp("smpl")
    for seed, gender in enumerate(("NEUTRAL", "MALE", "FEMALE")):
        write_smpl(folder / f"SMPL_{gender}.npz", seed=seed)
    smpl = SmplBody(folder / "SMPL_NEUTRAL.npz").topology().joint_regressor
    names = [name.replace("jaw", "head").replace("spine", "spine2") for name in SPIN_JOINTS]
    h36m = np.zeros((17, smpl.shape[1]))
    h36m[[6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9]] = smpl[[SMPL_JOINTS.index(n) for n in names]]
    np.save(folder / "J_regressor_h36m.npy", h36m)
    return folder


def write_images(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(path), image)


def poses(count: int, seed: int = 0) -> np.ndarray:
    """[count, 72]: people who stand before the camera (y down) and move a little."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.2, (count, 72))
    upright = Rotation.from_euler("x", np.pi)
    pose[:, :3] = (upright * Rotation.from_rotvec(rng.normal(0, 0.3, (count, 3)))).as_rotvec()
    return pose


def spin_arrays(count: int = 4) -> dict[str, Any]:
    """COCO in BEDLAM's layout; the labels on images are not those of the poses."""
    rng = np.random.default_rng(1)
    part = np.concatenate([rng.uniform(60, 200, (count, 24, 2)), np.ones((count, 24, 1))], axis=2)
    part[:, 14, 2] = 0
    return {
        "imgname": np.array([f"train2014/{k:012d}.jpg" for k in range(count)]),
        "center": rng.uniform(110, 180, (count, 2)),
        "scale": rng.uniform(0.6, 1.2, count),
        "pose_cam": poses(count),
        "betas": rng.normal(0, 0.5, (count, 10)),
        "part": part,
        "gender": np.array(["m", "f", "neutral", "m"])[:count],
    }


def write_spin(folder: Path) -> Path:
    arrays = spin_arrays()
    write_images(folder, list(arrays["imgname"]))
    np.savez(folder / "coco.npz", **arrays)
    return folder / "coco.npz"


def test_people_without_a_body_are_left_out(tmp_path: Path) -> None:
    arrays = spin_arrays()
    count = len(arrays["imgname"])
    has = np.arange(count) != 1
    arrays["pose_cam"][1], arrays["scale"][1], arrays["gender"][1] = np.nan, 0, "none"  # nobody reads them
    for flags in (has, has.astype(np.float32)[:, None]):
        np.savez(tmp_path / "coco.npz", **arrays, has_smpl=flags)
        people = read_people(f"coco:{tmp_path / 'coco.npz'}")
        assert len(people) == count - 1
        np.testing.assert_allclose(people.side, np.delete(200 * arrays["scale"], 1), rtol=1e-6)
        assert people.gender.tolist() == ["male", "neutral", "male"]
    np.savez(tmp_path / "coco.npz", **spin_arrays(1), has_smpl=np.ones((1, 1)))
    assert len(read_people(f"coco:{tmp_path / 'coco.npz'}")) == 1
    np.savez(tmp_path / "coco.npz", **arrays, has_smpl=np.zeros(count))
    with pytest.raises(InputError, match=r"coco\.npz: field 'has_smpl' is 0 for all"):
        read_people(f"coco:{tmp_path / 'coco.npz'}")


def world(body: Path, gender: str, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """SMPL's joints [n, 24, 3] of bodies whose vertex mean is at the world's origin."""
    smpl = SmplBody(body / f"SMPL_{gender}.npz")
    joints = smpl.topology().joints(smpl.canonical(pose, np.repeat(betas[None], len(pose), axis=0)))
    return joints @ Rotation.from_rotvec(pose[:, :3]).as_matrix().transpose(0, 2, 1)


def cameras(count: int) -> np.ndarray:
    """[count, 4, 4]: they turn around, and have the origin before them."""
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, :3] = Rotation.from_euler("y", np.linspace(0, 1, count)[:, None]).as_matrix()
    matrices[:, 2, 3] = 4
    return matrices


def seen(joints: np.ndarray, camera: np.ndarray) -> np.ndarray:
    x = np.einsum("nij,nkj->nki", camera[:, :3, :3], joints) + camera[:, None, :3, 3]
    return (x @ K.T)[..., :2] / x[..., 2:]


def pw3d_sequence(body: Path, count: int = 3) -> dict[str, Any]:
    """Two people; of the first the last frame's camera is not valid, of the second nothing is found in the first."""
    camera = cameras(count)
    pose = [poses(count, 1), poses(count, 2)]
    betas = [np.linspace(-1, 1, 10), np.linspace(1, 0, 10)]
    joints = [world(body, g, p, b) for g, p, b in zip(("MALE", "FEMALE"), pose, betas)]
    detected = [np.concatenate([seen(j, camera), np.ones((count, 24, 1))], axis=2)[:, :18] for j in joints]
    detected[0][:, 3] = 0
    detected[1][0] = 0
    valid = np.ones((2, count), int)
    valid[0, -1] = 0
    return {
        "sequence": "downtown_stairs_00",
        "poses": pose,
        "betas": [np.pad(b, (0, 290)) for b in betas],
        "genders": ["m", "f"],
        "cam_poses": camera,
        "cam_intrinsics": K,
        "campose_valid": list(valid),
        "poses2d": [d.transpose(0, 2, 1) for d in detected],
        "jointPositions": [j.reshape(count, 72) for j in joints],
        "img_frame_ids": np.arange(count),
    }


def write_3dpw(folder: Path, body: Path) -> Path:
    for split, name in (("test", "downtown_stairs_00"), ("train", "courtyard_hug_00"), ("train", "courtyard_box_00")):
        path = folder / "sequenceFiles" / split / f"{name}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(python2_pickle(pw3d_sequence(body) | {"sequence": name}))
        write_images(folder / "imageFiles" / name, [f"image_{k:05d}.jpg" for k in range(3)])
    return folder


def emdb_sequence(body: Path, count: int = 4) -> dict[str, Any]:
    camera, pose, betas = cameras(count), poses(count, 3), np.linspace(0, 1, 10)
    points = seen(world(body, "FEMALE", pose, betas), camera)
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    good = np.ones(count, bool)
    good[1] = False
    boxes[1] = np.nan
    return {
        "gender": "female",
        "name": "P1_14_outdoor_climb",
        "emdb1": True,
        "emdb2": False,
        "n_frames": count,
        "good_frames_mask": good,
        "camera": {"intrinsics": K, "extrinsics": camera, "width": 320, "height": 240},
        "smpl": {"poses_root": pose[:, :3], "poses_body": pose[:, 3:], "trans": np.zeros((count, 3)), "betas": betas},
        "kp2d": points,
        "bboxes": {"bboxes": boxes, "invalid_idxs": np.array([1, 2])},
    }


def write_emdb(folder: Path, body: Path) -> Path:
    for part, name, first in (("P1", "14_outdoor_climb", True), ("P2", "20_outdoor_walk", False)):
        sequence = folder / part / name
        sequence.mkdir(parents=True)
        data = emdb_sequence(body) | {"emdb1": first}
        (sequence / f"{part}_{name}_data.pkl").write_bytes(pickle.dumps(data))
        write_images(sequence / "images", [f"{k:05d}.jpg" for k in range(4)])
    return folder


def whole(images: ImageSet) -> dict[str, torch.Tensor]:
    return images.batch(np.arange(len(images)), None)


def project_joints(batch: dict[str, torch.Tensor], camera: np.ndarray) -> np.ndarray:
    """The batch's joints, at the world's origin, in pixels."""
    x = (batch["joints"] @ batch["rotation"].transpose(1, 2)).numpy() + camera[:, None, :3, 3]
    return (x @ K.T)[..., :2] / x[..., 2:]


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["coco", "mpii", "h36m", "mpi-inf-3dhp"])
def test_spin_layout(kind: str, tmp_path: Path, body: Path) -> None:
    path, arrays = write_spin(tmp_path), spin_arrays()
    images = open_set(f"{kind}:{path}", body=body)
    batch = whole(images)
    assert batch.keys() == FIELDS and len(images) == 4
    assert batch["images"].shape == (4, 3, 224, 224) and batch["images"].dtype == torch.uint8
    for k, name in enumerate(("MALE", "FEMALE", "NEUTRAL", "MALE")):
        smpl = SmplBody(body / f"SMPL_{name}.npz")
        vertices = smpl.canonical(arrays["pose_cam"][k : k + 1, 3:66], arrays["betas"][k : k + 1])
        np.testing.assert_allclose(batch["vertices"][k].numpy(), vertices[0], atol=1e-5)
    rotation = Rotation.from_rotvec(arrays["pose_cam"][:, :3]).as_matrix()
    np.testing.assert_allclose(batch["rotation"].numpy(), rotation, atol=1e-5)
    half = 100 * arrays["scale"][:, None, None]
    want = ((arrays["part"][..., :2] - arrays["center"][:, None]) / half)[:, [*range(13), 18, 14, 16, 17]]
    want[:, 14] = 0  # not labelled
    np.testing.assert_allclose(batch["joints2d"][:, :17].numpy(), want, atol=1e-4)
    assert batch["confidence"].sum(dim=1).tolist() == [16] * 4 and not batch["confidence"][:, 14].any()
    assert batch["joints"].shape == (4, 24, 3) and not batch["joints"][:, 17:].any()
    knee = images.topology.joints(batch["vertices"].numpy())[:, SMPL_JOINTS.index("right_knee")]
    np.testing.assert_allclose(batch["joints"][:, SPIN_JOINTS.index("right_knee")].numpy(), knee, atol=1e-5)


def test_narrow_crops_hold_the_middle(tmp_path: Path, body: Path) -> None:
    path = write_spin(tmp_path)
    narrow, square = (whole(open_set(f"coco:{path}", size, body)) for size in ((256, 192), (256, 256)))
    assert narrow["images"].shape == (4, 3, 256, 192)
    assert torch.equal(narrow["joints2d"], square["joints2d"]), "points are those of the square"
    off = narrow["images"].float() - square["images"][..., 32:-32].float()
    assert off.abs().mean() < 3


def test_3dpw_is_read_from_its_own_files(tmp_path: Path, body: Path) -> None:
    images = open_set(f"3dpw:{write_3dpw(tmp_path, body)}", body=body)
    assert len(images) == 4, "two frames of each person"
    batch = whole(images)
    camera = cameras(3)[[0, 1, 1, 2]]
    people = read_people(f"3dpw:{tmp_path}")
    np.testing.assert_allclose(project_joints(batch, camera), people.joints2d[..., :2], atol=0.05)
    assert people.gender.tolist() == ["male", "male", "female", "female"]
    assert people.images[2].endswith("imageFiles/downtown_stairs_00/image_00001.jpg")
    labels = np.delete(people.joints2d[0, :18, :2], 3, axis=0)
    np.testing.assert_allclose(people.centre[0], (labels.min(axis=0) + labels.max(axis=0)) / 2, atol=1e-3)
    np.testing.assert_allclose(people.side[0], 1.2 * np.ptp(labels, axis=0).max(), rtol=1e-5)
    assert images.evaluation_regressor is not None and images.evaluation_regressor.shape == (14, 162)
    assert batch["joints2d"].abs().amax() < 1.5 and batch["confidence"].all()


def test_3dpw_splits_and_the_occluded_scenes(tmp_path: Path, body: Path) -> None:
    write_3dpw(tmp_path, body)
    scenes = [Path(name).parent.name for name in read_people(f"3dpw:{tmp_path / 'sequenceFiles' / 'train'}").images]
    assert set(scenes) == {"courtyard_hug_00", "courtyard_box_00"}
    occluded = open_set(f"3dpw-occ:{tmp_path}", body=body)
    scenes = [Path(name).parent.name for name in read_people(f"3dpw-occ:{tmp_path}").images]
    assert set(scenes) == {"downtown_stairs_00", "courtyard_box_00"} and len(occluded) == 8
    assert whole(occluded)["images"].shape[0] == 8, "all images were found"


def test_3dpw_npz_of_spin_and_of_the_released_code(tmp_path: Path, body: Path) -> None:
    people = read_people(f"3dpw:{write_3dpw(tmp_path, body)}")
    names = [str(Path(name).relative_to(tmp_path)) for name in people.images]
    shared: dict[str, Any] = {"imgname": names, "center": people.centre, "gender": ["m", "m", "f", "f"]}
    pose = np.pad(people.pose, ((0, 0), (0, 6)))
    np.savez(tmp_path / "3dpw_test.npz", **shared, scale=people.side / 200, pose=pose, shape=people.betas)
    depth = people.joints2d + np.array([0, 0, 3], np.float32)
    released: dict[str, Any] = {
        "scale": 200 / people.side,
        "root_orient": pose[:, :3],
        "pose_body": pose[:, 3:66],
        "j2d": depth,
    }
    np.savez(tmp_path / "3DPW_occ.npz", **shared, **released, betas=people.betas)
    want = whole(open_set(f"3dpw:{tmp_path}", body=body))
    spin = whole(open_set(f"3dpw:{tmp_path / '3dpw_test.npz'}", body=body))
    (tmp_path / "3DPW_occ.npz").rename(tmp_path / "3DPW_OCC.NPZ")
    own = whole(open_set(f"3dpw-occ:{tmp_path / '3DPW_OCC.NPZ'}", body=body))
    for name in FIELDS:
        torch.testing.assert_close(own[name], want[name], atol=1e-4, rtol=0)
        if name not in ("joints2d", "confidence"):
            torch.testing.assert_close(spin[name], want[name], atol=1e-4, rtol=0)
    assert not spin["confidence"].any() and not spin["joints2d"].any(), "this file labels no joints on images"


def test_emdb_is_read_from_its_own_files(tmp_path: Path, body: Path) -> None:
    images = open_set(f"emdb:{write_emdb(tmp_path, body)}", body=body)
    people = read_people(f"emdb:{tmp_path}")
    assert [Path(name).name for name in people.images] == ["00000.jpg", "00003.jpg"], "good frames of EMDB 1"
    batch = whole(images)
    np.testing.assert_allclose(project_joints(batch, cameras(4)[[0, 3]]), people.joints2d[..., :2], atol=0.05)
    inside = batch["joints2d"].abs().amax(dim=(1, 2))
    np.testing.assert_allclose(inside.numpy(), 1 / 1.2, atol=1e-3), "the square is 1.2 times the box"


def test_parts_of_a_set_may_lie_elsewhere(tmp_path: Path, body: Path) -> None:
    """Behind links to folders, which `Path.rglob` leaves out; a link to a folder above adds nothing."""
    emdb = write_emdb(tmp_path / "emdb", body)
    shutil.copytree(emdb / "P1", tmp_path / "disk" / "P3")
    (emdb / "P3").symlink_to(tmp_path / "disk" / "P3")
    (emdb / "P3" / "all").symlink_to(emdb)
    images = open_set(f"emdb:{emdb}", body=body)
    assert len(images) == 4 and len(whole(images)["images"]) == 4
    path = write_spin(tmp_path / "coco")
    path.rename(tmp_path / "disk" / "labels.npz")
    path.symlink_to(tmp_path / "disk" / "labels.npz")
    assert len(whole(open_set(f"coco:{path}", body=body))["images"]) == 4, "images are beside the link"
    pw3d = write_3dpw(tmp_path / "3dpw", body)
    (pw3d / "sequenceFiles").rename(tmp_path / "disk" / "sequences")
    (pw3d / "sequenceFiles").symlink_to(tmp_path / "disk" / "sequences")
    assert len(whole(open_set(f"3dpw:{pw3d}", body=body))["images"]) == 4


def test_frames_that_show_nearly_nothing_are_left_out(tmp_path: Path, body: Path) -> None:
    """One detected joint, or a box of two pixels: a crop of it would be a plain colour."""
    name, labels, _ = pw3d_set(tmp_path / "3dpw", body)
    rewrite(labels, lambda values: values["poses2d"][0][0, 2].__setitem__(slice(1, None), 0))
    assert [Path(image).name for image in read_people(name).images] == [f"image_0000{k}.jpg" for k in (1, 1, 2)]
    name, labels, _ = emdb_set(tmp_path / "emdb", body)
    rewrite(labels, lambda values: values["bboxes"]["bboxes"].__setitem__(0, [100, 100, 102, 102]))
    assert [Path(image).name for image in read_people(name).images] == ["00003.jpg"]


# ------------------------------------------------------------------------------------------------------- wrong inputs


Damage = Callable[[dict[str, Any]], Any]


def rewrite(path: Path, damage: Damage) -> None:
    """Damage the arrays of an .npz file or the content of a pickle."""
    if path.suffix == ".npz":
        with np.load(path) as data:
            values = dict(data)
        damage(values)
        np.savez(path, **values)
    else:
        values = pickle.loads(path.read_bytes(), encoding="latin1")
        damage(values)
        path.write_bytes(pickle.dumps(values))


def drop(field: str) -> Damage:
    return lambda values: values.pop(field)


def put(field: str, value: Any) -> Damage:
    return lambda values: values.update({field: value})


def spin_set(folder: Path, body: Path) -> tuple[str, Path, Path]:
    path = write_spin(folder)
    return f"coco:{path}", path, folder / "train2014" / "000000000000.jpg"


def pw3d_set(folder: Path, body: Path) -> tuple[str, Path, Path]:
    path = write_3dpw(folder, body) / "sequenceFiles" / "test" / "downtown_stairs_00.pkl"
    return f"3dpw:{folder}", path, folder / "imageFiles" / "downtown_stairs_00" / "image_00000.jpg"


def emdb_set(folder: Path, body: Path) -> tuple[str, Path, Path]:
    sequence = write_emdb(folder, body) / "P1" / "14_outdoor_climb"
    return f"emdb:{folder}", sequence / "P1_14_outdoor_climb_data.pkl", sequence / "images" / "00000.jpg"


SETS = [spin_set, pw3d_set, emdb_set]
DAMAGED = [
    (spin_set, "center", np.zeros((4, 3)), r"field 'center' has the shape \[4, 3\] in place of \[any, 2\]"),
    (spin_set, "scale", np.zeros(4), "field 'scale' holds numbers that are not positive"),
    (spin_set, "pose_cam", np.zeros((4, 9)), r"field 'pose_cam' has the shape \[4, 9\], but its rows need 66"),
    (spin_set, "betas", np.zeros((3, 10)), r"field 'betas' has the shape \[3, 10\]"),
    (spin_set, "part", np.zeros((4, 17, 3)), "field 'part' has 17 joints in place of 24"),
    (spin_set, "gender", ["m"] * 3, r"field 'gender' has the shape \[3\] in place of \[4\]"),
    (spin_set, "gender", ["cat"] * 4, "field 'gender': 'cat' is none of"),
    (spin_set, "imgname", np.zeros((0,), str), "field 'imgname'"),
    (spin_set, "imgname", np.array("one.jpg"), r"field 'imgname' has the shape \[\]"),
    (pw3d_set, "poses", [np.zeros((3, 71))] * 2, r"field 'poses' has the shape \[2, 71\]"),
    (
        pw3d_set,
        "cam_poses",
        np.zeros((2, 4, 4)),
        r"field 'cam_poses' has the shape \[2, 4, 4\], but there are 3 rows",
    ),
    (pw3d_set, "cam_intrinsics", np.zeros(9), r"field 'cam_intrinsics' has the shape \[9\]"),
    (pw3d_set, "betas", [np.zeros(4)] * 2, r"field 'betas' has the shape \[1, 4\]"),
    (pw3d_set, "genders", ["m"], "field 'genders' is of 1 people"),
    (pw3d_set, "campose_valid", [np.zeros(3)] * 2, "no 3DPW sequence in it has a frame with a valid camera"),
    (emdb_set, "kp2d", np.zeros((4, 17, 2)), r"field 'kp2d' has the shape \[2, 17, 2\]"),
    (emdb_set, "smpl", {"poses_root": np.zeros((4, 3))}, r"field 'smpl\.poses_body' is missing"),
    (emdb_set, "good_frames_mask", np.ones((4, 2)), r"field 'good_frames_mask' has the shape \[4, 2\]"),
    (emdb_set, "emdb1", False, "no sequence in it belongs to EMDB 1"),
    (emdb_set, "good_frames_mask", np.zeros(4, bool), "no sequence in it belongs to EMDB 1 and has a good frame"),
    (spin_set, "has_smpl", np.ones(3), "field 'has_smpl' is of 3 people, but 'imgname' of 4"),
    (spin_set, "pose_cam", np.degrees(poses(4)), "field 'pose_cam' holds rotations of up to .* may be degrees"),
    (pw3d_set, "poses", [np.degrees(poses(3))] * 2, "field 'poses' holds rotations of up to .* may be degrees"),
    (pw3d_set, "poses", None, "field 'poses' has no entry per person"),
    (pw3d_set, "betas", 1.0, "field 'betas' has no entry per person"),
    (pw3d_set, "cam_poses", np.zeros((3, 4, 4)), "field 'cam_poses' holds something other than rotations"),
    (pw3d_set, "cam_poses", cameras(3) * [1, 1, -1, 1], "field 'cam_poses' holds something other than rotations"),
    # labels that do not fit together
    (spin_set, "center", np.full((4, 2), 5000), "the joints of most people lie outside of the squares"),
    (spin_set, "scale", np.full(4, 180), "the joints of most people fill less than a twentieth of the squares"),
    (pw3d_set, "jointPositions", [np.full((3, 72), 9000.0)] * 2, "the joints of most people lie outside"),
    (pw3d_set, "cam_intrinsics", np.zeros((3, 3)), "the joints of most people lie outside of the squares"),
]


@pytest.mark.parametrize(("make", "field", "value", "message"), DAMAGED)
def test_a_damaged_field_is_named(make: Any, field: str, value: Any, message: str, tmp_path: Path, body: Path) -> None:
    name, labels, _ = make(tmp_path, body)
    rewrite(labels, put(field, value))
    with pytest.raises(InputError, match=message) as error:
        open_set(name, body=body)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("make", SETS)
def test_a_missing_field_is_named(make: Any, tmp_path: Path, body: Path) -> None:
    name, labels, _ = make(tmp_path, body)
    field = "kp2d" if make is emdb_set else "betas"
    rewrite(labels, drop(field))
    with pytest.raises(InputError, match=rf"{re.escape(str(labels))}: field '{field}' is missing"):
        open_set(name, body=body)


@pytest.mark.parametrize("make", SETS)
def test_a_missing_file_is_named(make: Any, tmp_path: Path, body: Path) -> None:
    name, labels, image = make(tmp_path, body)
    images = open_set(name, body=body)
    image.unlink()
    with pytest.raises(InputError, match=re.escape(f"{image}: there is no such file")):
        whole(images)
    for path in tmp_path.rglob(f"*{labels.suffix}"):
        path.unlink()
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}.*: there is no "):
        open_set(name, body=body)


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("damaged", [b"", b"\xff\xd8\xff\xe0 not much of an image"])
def test_a_corrupt_image_is_named(make: Any, damaged: bytes, tmp_path: Path, body: Path) -> None:
    name, _, image = make(tmp_path, body)
    image.write_bytes(damaged)
    images = open_set(name, body=body)
    with pytest.raises(InputError, match=re.escape(f"{image}: ")):
        whole(images)


@pytest.mark.parametrize("make", SETS)
def test_labels_run_no_code(make: Any, tmp_path: Path, body: Path) -> None:
    name, labels, _ = make(tmp_path, body)

    class Evil:
        def __init__(self, *made: Any) -> None:
            self.made = made

        def __reduce__(self) -> tuple[Any, ...]:
            return self.made

    fake = np.zeros(0).__reduce__()[:2]
    flagless = Evil(np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0))
    evils = [
        Evil(Path.touch, (tmp_path / "run",)),
        # bytes that are to be the addresses of objects: a crash, or worse
        Evil(np.ndarray, ((4,), "O", b"A" * 32)),
        Evil(*fake, (1, (4,), np.dtype("O"), False, b"A" * 32)),
        Evil(*fake, (1, (4,), flagless, False, b"A" * 32)),
        Evil(*fake, (1, (4,), np.dtype([("address", "O")]), False, b"A" * 32)),
        Evil(*fake, (1, (4,), np.dtype("O"), False, ["m"])),
        Evil(np.float64(0).__reduce__()[0], (flagless, b"A" * 8)),
    ]
    undamaged = labels.read_bytes()
    for evil in evils:
        labels.write_bytes(undamaged)
        rewrite(labels, put("gender" if make is emdb_set else "betas", evil if labels.suffix == ".pkl" else [evil]))
        with pytest.raises(InputError, match=re.escape(str(labels))):
            open_set(name, body=body)
    assert not (tmp_path / "run").exists()


def test_other_wrong_inputs(tmp_path: Path, body: Path) -> None:
    path = write_spin(tmp_path)
    for name in ("coco", "coco:", "cats:here"):
        with pytest.raises(
            InputError, match=r"write KIND:PATH, with one of the kinds coco, .*, rendered, features, shards"
        ):
            open_set(name, body=body)
    with pytest.raises(InputError, match=r"'rendered:scenes': has no labels of SMPL; those of coco, .*, emdb have"):
        shards.write(Write("rendered:scenes", tmp_path / "shards"))
    neutral = tmp_path / "smpl" / "SMPL_NEUTRAL.npz"
    write_smpl(neutral)
    with pytest.raises(InputError, match=r"J_regressor_h36m\.npy: .* labels Human3\.6M's joints"):
        open_set(f"coco:{path}", body=neutral)
    np.save(neutral.with_name("J_regressor_h36m.npy"), np.load(body / "J_regressor_h36m.npy"))
    with pytest.raises(InputError, match="the data need a female SMPL body, but there are neutral ones"):
        whole(open_set(f"coco:{path}", body=neutral.parent))
    assert len(whole(open_set(f"coco:{path}", body=neutral))["images"]) == 4, "one file is for everybody"
    with pytest.raises(InputError, match="there is no such file or folder"):
        open_set(f"emdb:{tmp_path / 'nowhere'}", body=body)


# ------------------------------------------------------------------------------------------------------- augmentation


def test_augmented_labels_fit_their_images(tmp_path: Path, body: Path) -> None:
    """A weak-perspective camera explains the joints of each augmented crop, as it did before."""
    arrays = spin_arrays()
    arrays["gender"], arrays["betas"] = np.array(["neutral"] * 4), np.zeros((4, 10))
    path = write_spin(tmp_path)
    np.savez(path, **arrays)
    images = open_set(f"coco:{path}", (64, 64), body)
    plain = whole(images)
    x = (plain["joints"] @ plain["rotation"].transpose(1, 2)).numpy()[:, :17, :2]
    order = [*range(13), 18, 14, 16, 17]
    arrays["part"][:, order, :2] = 60 * x + arrays["center"][:, None]
    arrays["part"][..., 2] = 1
    np.savez(path, **arrays)
    images = open_set(f"coco:{path}", (64, 64), body)
    mirrored_ones, residuals = 0, []
    for seed in range(12):
        batch = images.batch(np.arange(4), np.random.default_rng(seed))
        assert torch.equal(batch["images"], images.batch(np.arange(4), np.random.default_rng(seed))["images"])
        np.testing.assert_allclose(torch.linalg.det(batch["rotation"]).numpy(), 1, atol=1e-5)
        x = (batch["joints"] @ batch["rotation"].transpose(1, 2)).numpy()[:, :17, :2].astype(float)
        for points, seen_at in zip(x, batch["joints2d"][:, :17].numpy()):
            centred = points - points.mean(axis=0)
            scale = (centred * (seen_at - seen_at.mean(axis=0))).sum() / np.square(centred).sum()
            residuals.append(np.abs(seen_at - seen_at.mean(axis=0) - scale * centred).max() / scale)
        mirrored_ones += int((torch.linalg.matrix_norm(batch["vertices"] - plain["vertices"]) > 0.1).sum())
    assert 15 < mirrored_ones < 35, "of 48"
    assert max(residuals) < 0.1, "metres; the made-up body is not quite symmetric"
    assert np.median(residuals) < 0.01


def test_mirrored_names() -> None:
    swap = mirrored(SPIN_JOINTS)
    assert swap[:6] == [5, 4, 3, 2, 1, 0] and swap[12:] == [12, 13, 14, 15, 16]
    assert np.array_equal(np.array(swap)[swap], np.arange(17))


# ----------------------------------------------------------------------------------------------------------- mixtures


def test_mixtures_keep_their_proportions(tmp_path: Path, body: Path) -> None:
    coco = open_set(f"coco:{write_spin(tmp_path / 'coco')}", (32, 32), body)
    emdb = open_set(f"emdb:{write_emdb(tmp_path / 'emdb', body)}", (32, 32), body)
    mixture = Mixture([coco, emdb], [3, 1])
    batch = mixture.batch(np.random.default_rng(0), 200)
    assert batch.keys() == FIELDS and all(len(v) == 200 for v in batch.values())
    share = (batch["confidence"].sum(dim=1) == 24).float().mean()
    assert 0.15 < share < 0.35, "EMDB's people have 24 joints"
    again = mixture.batch(np.random.default_rng(0), 200)
    assert all(torch.equal(batch[name], again[name]) for name in FIELDS)
    only = Mixture([coco, emdb], [0, 1]).batch(np.random.default_rng(0), 2)
    assert (only["confidence"].sum(dim=1) == 24).all()
    by_size = Mixture([coco, emdb]).proportions
    np.testing.assert_allclose(by_size, [4 / 6, 2 / 6])


def test_what_cannot_be_mixed(tmp_path: Path, body: Path) -> None:
    path = write_spin(tmp_path)
    small, large = (open_set(f"coco:{path}", size, body) for size in ((32, 32), (64, 64)))
    with pytest.raises(InputError, match=r"different crops cannot be mixed: .*\(3, 32, 32\), \(3, 64, 64\)"):
        Mixture([small, large])
    for wrong in ([1.0], [1, -1], [0, 0], [1, np.inf]):
        with pytest.raises(InputError, match="do not fit 2 image sets"):
            Mixture([small, small], wrong)
    with pytest.raises(InputError, match="different bodies cannot be mixed"):
        Mixture([large, write_rendered(tmp_path / "rendered", 32)])


# ----------------------------------------------------------------------------------------------------- rendered scenes


SPOT = SMPL_JOINTS.index("left_wrist")


def write_rendered(folder: Path, pixels: int) -> SceneSet:
    """Six images of a symmetric body of 26 vertices, in the layout of `rendered.render`: black but for one joint."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    template = np.stack(np.meshgrid(*[[-0.3, 0, 0.3]] * 3), axis=-1).reshape(-1, 3)
    template = template[np.abs(template).sum(axis=1) > 0].astype(np.float32)
    regressor = np.zeros((24, 26), np.float32)
    mirror_index = np.linalg.norm(template[:, None] * [-1, 1, 1] - template, axis=-1).argmin(axis=1)
    for k, name in enumerate(SMPL_JOINTS):
        side, _, joint = name.partition("_")
        if side == "right":
            regressor[k] = regressor[SMPL_JOINTS.index(f"left_{joint}"), mirror_index]
        else:
            regressor[k, np.flatnonzero(template[:, 0] > 0 if side == "left" else template[:, 0] == 0)[k % 2 :: 2]] = 1
    regressor /= regressor.sum(axis=1, keepdims=True)
    Topology(template, np.zeros((1, 3), np.int32), regressor, np.zeros(26, np.int32)).save(folder / "topology.npz")
    vertices = (template + rng.normal(0, 0.02, (6, 26, 3))).astype(np.float16)
    rotation = Rotation.random(6, random_state=0).as_matrix()
    translation, focal = np.array([0.1, 0.2, 5]), 6.0
    spot = rotation @ (regressor @ vertices.astype(float))[:, SPOT, :, None]
    x, y, z = (spot[..., 0] + translation).T
    images = np.zeros((6, pixels, pixels, 3), np.uint8)
    row, column = np.mgrid[:pixels, :pixels] + 0.5
    for image, u, v in zip(images, (focal * x / z + 1) * pixels / 2, (focal * y / z + 1) * pixels / 2):
        image[np.hypot(column - u, row - v) < pixels / 25] = 255
    fields = {
        "images": images,
        "vertices": vertices,
        "rotation": rotation.astype(np.float32),
        "translation": np.tile(translation.astype(np.float32), (6, 1)),
        "focal": np.full(6, focal, np.float32),
        "visible": rng.random((6, 26)) < 0.5,
        "box": np.tile(np.array([0.2, 0.25, 0.85, 0.9], np.float32) * pixels, (6, 1)),
        "kind": np.arange(6, dtype=np.int8) % 5,
    }
    for name, array in fields.items():
        np.save(folder / f"{name}.npy", array)
    return SceneSet(folder, size=(64, 64))


def spots(batch: dict[str, torch.Tensor]) -> np.ndarray:
    """[B, 2]: where the bright spots of images are, -1 to 1."""
    light = batch["images"].double().sum(dim=1).numpy()
    at = (np.arange(64) + 0.5) / 32 - 1
    return np.stack([(light * x).sum(axis=(1, 2)) for x in (at, at[:, None])], axis=1) / light.sum(axis=(1, 2))[:, None]


def test_rendered_crops_are_cut_turned_and_mirrored_as_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendered, "PLACED", 0)
    scenes = write_rendered(tmp_path / "crops", 96)
    plain = whole(scenes)
    assert plain.keys() == FIELDS | {"vertices2d", "visible", "part", "translation", "focal"}
    assert plain["part"].tolist() == [0, 1, 2, 3, 4, 0]
    np.testing.assert_allclose(spots(plain), plain["joints2d"][:, SPOT], atol=0.03)
    seen = plain["joints"] @ plain["rotation"].mT + plain["translation"][:, None]
    torch.testing.assert_close(plain["focal"][:, None, None] * seen[..., :2] / seen[..., 2:], plain["joints2d"])
    # the box, widened by the margin, is the crop: its middle is the crop's
    middle = (scenes.fields["box"][:, :2] + scenes.fields["box"][:, 2:]) / 96 - 1
    np.testing.assert_allclose(middle, 0.1, atol=0.06)
    index, right = np.tile(np.arange(6), 5), SMPL_JOINTS.index("right_wrist")
    batch = scenes.batch(index, np.random.default_rng(0))
    found, joints = spots(batch), batch["joints2d"].numpy()
    left, mirrored = (np.linalg.norm(found - joints[:, k], axis=-1) < 0.04 for k in (SPOT, right))
    assert (left | mirrored).all() and 5 < left.sum() < 25
    turned = batch["rotation"].numpy() @ plain["rotation"][index].numpy().transpose(0, 2, 1)
    angle = np.arccos(((np.trace(turned, axis1=1, axis2=2) - 1) / 2).clip(-1, 1))[left]
    assert 0.1 < angle.mean() < 0.4 and len(np.unique(angle.round(3))) > 5, "turned by about 15 degrees"
    size = np.linalg.norm(batch["vertices2d"].numpy().std(axis=1), axis=-1)[index == 0]
    assert size.std() > 0.05 * size.mean(), "of several sizes"
    hidden = (batch["vertices2d"].abs() > 1).any(dim=-1)
    assert not (batch["visible"] & hidden).any(), "nothing beyond the crop is visible"


TORSO = [[SMPL_JOINTS.index(f"{side}_{name}") for side in ("left", "right")] for name in ("shoulder", "hip")]


def write_torsos(folder: Path) -> SceneSet:
    """`write_rendered`, but of torsos: upright, lying, and upside down with the shoulders beyond the image's edge."""
    write_rendered(folder, 32)
    old = Topology.load(folder / "topology.npz")
    regressor = np.zeros((24, 26), np.float32)
    for joints, y in zip(TORSO, (0.3, -0.3)):
        for joint, x in zip(joints, (0.3, -0.3)):
            regressor[joint, np.linalg.norm(old.template - [x, y, 0], axis=1).argmin()] = 1
    Topology(old.template, old.faces, regressor, old.parts).save(folder / "topology.npz")
    turns = Rotation.from_euler("z", [[0], [90], [180]] * 2, degrees=True).as_matrix() * [1, -1, -1]
    np.save(folder / "rotation.npy", turns.astype(np.float32))
    np.save(folder / "translation.npy", np.array([[0, 0, 5], [0, 0, 5], [0, 0.7, 5]] * 2, np.float32))
    return SceneSet(folder, size=(64, 64))


def test_keypoints_place_most_crops_of_a_training_and_the_body_is_upright_in_them(tmp_path: Path) -> None:
    scenes = write_torsos(tmp_path / "crops")

    def lean(rng: np.random.Generator | None) -> np.ndarray:
        """[3, 100]: degrees between torso and crop."""
        joints = scenes.batch(np.tile(np.arange(3), 100), rng)["joints2d"].numpy()
        x, y = (joints[:, TORSO[0]].mean(axis=1) - joints[:, TORSO[1]].mean(axis=1)).T
        return np.abs(np.degrees(np.arctan2(x, -y))).reshape(100, 3).T

    np.testing.assert_allclose(lean(None), np.repeat([[0], [90], [180]], 100, axis=1), atol=10)
    upright, lying, beyond = lean(np.random.default_rng(0))
    assert upright.max() < 60 and np.median(upright) < 10
    assert 0.55 < (lying < 30).mean() < 0.85, "others are around the box"
    assert np.unique(lying[lying < 30]).size > 40, "keypoints are not exact"
    assert beyond.min() > 120, "whose shoulders nobody sees is placed by the box"


def test_rendered_crops_at_another_size(tmp_path: Path) -> None:
    write_rendered(tmp_path / "crops", 96)
    for size in ((16, 16), (64, 48)):
        batch = whole(open_set(f"rendered:{tmp_path / 'crops'}", size))
        assert batch["images"].shape == (6, 3, *size)
    with pytest.raises(InputError, match="no rendered scenes"):
        open_set(f"rendered:{tmp_path}")


def test_damaged_rendered_crops_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    write_rendered(folder, 32)
    focal = np.load(folder / "focal.npy")
    np.save(folder / "focal.npy", focal[:4])
    with pytest.raises(InputError, match=r"crops: its fields are of different lengths, .*'focal': 4, 'images': 6"):
        open_set(f"rendered:{folder}")
    (folder / "focal.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"focal\.npy: not a readable \.npy file"):
        open_set(f"rendered:{folder}")
    (folder / "focal.npy").unlink()
    with pytest.raises(InputError, match=r"crops: no rendered crops, it lacks focal\.npy"):
        whole(open_set(f"rendered:{folder}"))


# ------------------------------------------------------------------------------------------------------------- shards


def test_shards_give_what_the_set_gave(tmp_path: Path, body: Path) -> None:
    name = f"coco:{write_spin(tmp_path)}"
    shards.write(Write(name, tmp_path / "shards", per_shard=3))
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == [
        "index.npz", "shard-000000.tar", "shard-000001.tar"
    ]  # fmt: skip
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        assert tar.getnames()[:2] == ["00000000.jpg", "00000000.json"], "WebDataset: one sample's files have one name"
    plain = open_set(name, (64, 64), body)
    sharded = open_set(f"shards:{tmp_path / 'shards'}", (64, 64), body)
    assert len(sharded) == 4
    assert plain.evaluation_regressor is not None
    np.testing.assert_array_equal(sharded.evaluation_regressor, plain.evaluation_regressor)
    for rng in (None, 7):
        index = np.array([3, 0, 2])
        a, b = (s.batch(index, None if rng is None else np.random.default_rng(rng)) for s in (plain, sharded))
        for field in FIELDS - {"images"}:
            torch.testing.assert_close(a[field], b[field], atol=0.02 if field == "joints2d" else 1e-4, rtol=0)
        assert (a["images"].float() - b["images"].float()).abs().mean() < 6


def test_shards_far_away(tmp_path: Path, body: Path) -> None:
    name = f"emdb:{write_emdb(tmp_path, body)}"
    shards.write(Write(name, tmp_path / "shards"))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "shards"), "/bucket/emdb", recursive=True)
    far = open_set("shards:memory://bucket/emdb", (32, 32), body)
    near = open_set(f"shards:{tmp_path / 'shards'}", (32, 32), body)
    assert all(torch.equal(a, b) for a, b in zip(whole(far).values(), whole(near).values()))
    assert far.evaluation_regressor is None, "EMDB is compared on SMPL's joints, wherever it lies"
    assert open_set(name, (32, 32), body).evaluation_regressor is None


def test_damaged_shards_are_named(tmp_path: Path, body: Path) -> None:
    folder = tmp_path / "shards"
    with pytest.raises(InputError, match=r"shards/index\.npz: there is no such file"):
        open_set(f"shards:{folder}", body=body)
    shards.write(Write(f"coco:{write_spin(tmp_path)}", folder))
    images = open_set(f"shards:{folder}", body=body)
    tar = folder / "shard-000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    with pytest.raises(InputError, match=r"shard-000000\.tar, person 2: not an image: its "):
        images.batch(np.array([2]), None)
    tar.write_bytes(data.replace(b'"pose"', b'"rose"'))
    with pytest.raises(InputError, match=r"shard-000000\.tar, person 1: not a label of a person .*pose"):
        images.batch(np.array([1]), None)
    tar.unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar"):
        images.batch(np.array([1]), None)
    np.savez(folder / "index.npz", places=np.zeros((3, 2), int), joints=17, compared="h36m14")
    with pytest.raises(InputError, match=r"index\.npz: field 'places' has the shape \[3, 2\]"):
        open_set(f"shards:{folder}", body=body)
    np.savez(folder / "index.npz", places=np.zeros((3, 5), int), joints=17, compared="all")
    with pytest.raises(InputError, match=r"index\.npz: .*'compared' is 'all'"):
        open_set(f"shards:{folder}", body=body)
    for places in (np.zeros((0, 5), int), np.full((3, 5), -1)):
        np.savez(folder / "index.npz", places=places, joints=17, compared="h36m14")
        with pytest.raises(InputError, match=r"index\.npz: field 'places' holds no places in files"):
            open_set(f"shards:{folder}", body=body)
    (folder / "index.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"index\.npz: not the index of shards"):
        open_set(f"shards:{folder}", body=body)
    with pytest.raises(InputError, match=r"shards:cloud://bucket/coco: cannot be opened .*cloud"):
        open_set("shards:cloud://bucket/coco", body=body)


def test_shards_that_are_half_replaced_are_not_read(
    tmp_path: Path, body: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of what was there would be those of other people's files."""
    name = f"coco:{write_spin(tmp_path)}"
    shards.write(Write(name, tmp_path / "shards"))
    (tmp_path / "train2014" / "000000000003.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000003\.jpg: there is no such file"):
        shards.write(Write(name, tmp_path / "shards", per_shard=2))
    with pytest.raises(InputError, match=r"index\.npz: there is no such file"):
        open_set(f"shards:{tmp_path / 'shards'}", body=body)
