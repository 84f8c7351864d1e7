"""Synthetic people: bodies are canonical, labels are true of the images, and parts are what they claim."""

from __future__ import annotations

import re
from copy import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mega_model.core.geometry import project
from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.data import backgrounds, sensor
from mega_model.data.appearance import FOOT, HAND, Appearance, Figure, Light
from mega_model.data.chunks import CHUNK
from mega_model.data.meshes import BodySampler
from mega_model.data.raster import Rasteriser
from mega_model.data.rendered import SceneSet, render
from mega_model.data.scenes import (
    HIDDEN,
    PARTS,
    LabelledCrops,
    NoView,
    Renderer,
    Scene,
    Thing,
    View,
    draw_bodies,
    draw_crops,
    standing,
)
from mega_model.options import MIXTURE, Render


@pytest.fixture(scope="module")
def bodies() -> BodySampler:
    return BodySampler("train")


@pytest.fixture(scope="module")
def topology(bodies: BodySampler) -> Topology:
    rng = np.random.default_rng(0)
    return bodies.body.topology(bodies.draw_poses(rng, 100), bodies.bones, bodies.draw_phenotypes(rng, 100))


def test_splits_share_no_clip() -> None:
    sizes = [len(BodySampler(split).poses) for split in ("train", "calibration", "test")]
    assert sum(sizes) == 28070 and min(sizes) > 1000


def test_bodies_are_canonical_and_the_same_for_a_seed(bodies: BodySampler) -> None:
    vertices, root = bodies.draw(np.random.default_rng(1), 8)
    again, _ = bodies.draw(np.random.default_rng(1), 8)
    np.testing.assert_array_equal(vertices, again)
    np.testing.assert_allclose(vertices.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(root @ root.transpose(0, 2, 1), np.tile(np.eye(3), (8, 1, 1)), atol=1e-5)
    assert 0.7 < np.ptp(vertices[..., 1], axis=1).mean() < 2.2, "metres, y up"


def test_mirrored_poses_give_mirrored_joints(bodies: BodySampler, topology: Topology) -> None:
    rng = np.random.default_rng(2)
    poses, shape = bodies.poses[rng.integers(len(bodies.poses), size=4)], bodies.draw_phenotypes(rng, 4)
    mirrored = poses[:, bodies.mirror] * np.array([1, -1, -1], np.float32)
    a, _, _ = bodies.body.canonical(poses, bodies.bones, shape)
    b, _, _ = bodies.body.canonical(mirrored, bodies.bones, shape)
    swap = [
        SMPL_JOINTS.index(j.replace("left", "#").replace("right", "left").replace("#", "right")) for j in SMPL_JOINTS
    ]
    np.testing.assert_allclose(topology.joints(a)[:, swap] * [-1, 1, 1], topology.joints(b), atol=0.03)


def test_training_mirrors_half_of_the_poses_and_adds_noise(bodies: BodySampler) -> None:
    for sampler, augmented in ((copy(bodies), True), (BodySampler("calibration"), False)):
        sampler.poses, sampler.probability = bodies.poses[[1000]], np.ones(1)
        (pose,) = sampler.poses
        mirrored = pose[sampler.mirror] * np.array([1, -1, -1], np.float32)
        drawn = sampler.draw_poses(np.random.default_rng(0), 200)
        plain, other = (np.abs(drawn - x).mean(axis=(1, 2)) for x in (pose, mirrored))
        if augmented:
            assert 70 < (other < plain).sum() < 130
            np.testing.assert_allclose(np.minimum(plain, other), 0.03 * np.sqrt(2 / np.pi), rtol=0.3)
        else:
            assert not plain.any(), "as recorded"


def test_knees_bend_backwards_and_both_sides_are_alike(bodies: BodySampler, topology: Topology) -> None:
    """Canonical axes: x left, y up, z forward."""
    rng = np.random.default_rng(1)
    low, upright = (
        dict(zip(SMPL_JOINTS, topology.joints(vertices).transpose(1, 0, 2)))
        for vertices, _ in (bodies.draw(rng, 60, "low"), bodies.draw(rng, 250, "adult"))
    )
    raised = {}
    for side, sign in (("left", 1), ("right", -1)):
        thigh, calf = low[f"{side}_knee"] - low[f"{side}_hip"], low[f"{side}_ankle"] - low[f"{side}_knee"]
        assert (np.cross(thigh, calf)[:, 0] > -0.02).mean() > 0.95, "knees"
        assert (thigh[:, 2] > -0.1).mean() > 0.95, "hips bend forwards"
        assert (sign * thigh[:, 0]).mean() > 0.02, "legs spread outwards"
        arm = upright[f"{side}_elbow"] - upright[f"{side}_shoulder"]
        up = arm[arm[:, 1] > 0]
        assert len(up) > 10, "some arms are raised"
        raised[side] = sign * up[:, 0].mean()
    assert raised["left"] == pytest.approx(raised["right"], abs=0.06)


def test_joint_regressor_finds_the_bones(bodies: BodySampler, topology: Topology) -> None:
    np.testing.assert_allclose(topology.joint_regressor.sum(axis=1), 1, atol=1e-5)
    rng = np.random.default_rng(3)
    vertices, heads, _ = bodies.body.canonical(
        bodies.draw_poses(rng, 30), bodies.bones, bodies.draw_phenotypes(rng, 30)
    )
    joints = topology.joints(vertices)
    for joint, bone in (
        ("pelvis", "root"),
        ("left_wrist", "wrist.L"),
        ("right_elbow", "lowerarm01.R"),
        ("head", "head"),
    ):
        head = heads[:, bodies.body.model.bone_labels.index(bone)]
        assert np.linalg.norm(joints[:, SMPL_JOINTS.index(joint)] - head, axis=-1).mean() < 0.015


def test_rasteriser_against_rays(topology: Topology) -> None:
    """Each pixel shows the nearest front face that its ray hits."""
    size = 24
    renderer = Renderer(topology, size, size)
    body = topology.template * [1, -1, -1] + [0, 0.2, 2.5]
    k = np.array([[26.0, 0, 12], [0, 26, 12], [0, 0, 1]])
    face, depth = renderer.rasterise(torch.tensor(body[None, None]).float(), torch.tensor(k[None]).float())
    rows, columns = np.mgrid[:size, :size] + 0.5
    rays = np.stack([(columns - 12) / 26, (rows - 12) / 26, np.ones_like(rows)], axis=-1).reshape(-1, 3)
    a, b, c = (body[topology.faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    along = (normal * a).sum(-1) / (rays @ normal.T)  # [pixels, faces]
    hit = rays[:, None] * along[..., None]
    inside = np.stack([(np.cross(q - p, hit - p) * normal).sum(-1) >= 0 for p, q in ((a, b), (b, c), (c, a))]).all(0)
    front = (normal * a).sum(-1) < 0
    want = np.where(inside & front, along, np.inf).min(axis=1)
    got = depth[0].numpy()
    assert (np.isfinite(want) == np.isfinite(got)).mean() > 0.99  # edges may round either way
    both = np.isfinite(want) & np.isfinite(got)
    assert both.sum() > 30
    np.testing.assert_allclose(got[both], want[both], atol=1e-3)
    assert (face[0].numpy()[both] >= 0).all()


def plain(people: list[np.ndarray], intrinsics: np.ndarray, things: list[Thing]) -> Scene:
    """People over black; the first one looks the same each time."""
    rng = np.random.default_rng(4)
    black = np.zeros((96, 96, 3), np.float32)
    appearances = [Appearance.draw(rng) for _ in people]
    return Scene(np.stack(people), appearances, intrinsics, np.eye(3), Light.draw(rng), black, things)


def test_what_is_hidden_is_called_hidden(topology: Topology) -> None:
    renderer = Renderer(topology, 96, 96)
    near, far = (topology.template * [1, -1, -1] + [0, 0.15, z] for z in (2.5, 4.0))
    k = np.array([[110.0, 0, 48], [0, 110, 48], [0, 0, 1]])
    right = Thing(np.array([[0.5, -1], [2, -1], [2, 2], [0.5, 2]]), np.ones((4, 4, 3), np.float32))
    alone, both, half = renderer.render(
        [plain(people, k, things) for people, things in (([far], []), ([far, near], []), ([far], [right]))]
    )
    image, visible, who = alone
    assert image.shape == (96, 96, 3) and set(np.unique(who)) == {-1, 0}
    assert ((image > 0).any(axis=-1) == (who == 0)).mean() > 0.99, "who says where somebody is drawn"
    pixel = np.floor(project(far, k)).astype(int)[visible[0]]
    near_by = cv2.dilate((who == 0).astype(np.uint8), np.ones((3, 3), np.uint8))
    assert near_by[pixel[:, 1], pixel[:, 0]].mean() > 0.97, "visible vertices lie on the person's pixels"
    _, hidden, who = both
    assert set(np.unique(who)) == {-1, 0, 1}
    assert hidden[1].mean() > 0.3, "the front of the near one is seen"
    assert hidden[0].sum() < 0.5 * visible.sum(), "most of the far one is behind the near one"
    image, covered, who = half
    assert (who[:, 48:] == -1).all() and (who[:, :48] == alone[2][:, :48]).all()
    np.testing.assert_array_equal(covered[0], visible[0] & (project(far, k)[:, 0] < 48))


def test_clothes_stand_off_what_they_cover(topology: Topology) -> None:
    figure = Figure.of(topology)
    rng = np.random.default_rng(0)
    for _ in range(50):
        off = Appearance.draw(rng).standoff(figure)
        assert off.min() >= 0 and off.max() <= 0.04
        assert (off[figure.group == HAND] == 0).all() and (off[figure.group == FOOT] > 0).all()
    nose = figure.place[:, 2].argmax() if figure.group[figure.place[:, 2].argmax()] == 0 else None
    assert nose is None or off[nose] == 0, "no hair on the nose"


def test_light_is_that_of_its_world(topology: Topology) -> None:
    """A level surface is as bright whichever way the camera is turned."""
    light = Light.draw(np.random.default_rng(0))
    light.linear[:], light.quadratic[:], light.power[:] = [0, 0.5, 0], 0, 0
    up, down = light.on(np.array([[0.0, 1, 0], [0, -1, 0]]))
    assert (up > down).all()


def test_panoramas_are_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:32] = 255
    monkeypatch.setattr(backgrounds, "photographs", lambda kind: [image])
    rays = np.array([[[0, 1, 0.1], [1, 0.2, 0], [0, 0.2, -1], [1, -0.2, 1], [-1, -1, 0.3]]], np.float32)
    seen = backgrounds.panorama(np.random.default_rng(0), rays)
    np.testing.assert_allclose(seen[0, :, 0], [1, 1, 1, 0, 0], atol=1e-6)


def test_backgrounds_and_sensor_fill_the_image() -> None:
    rng = np.random.default_rng(0)
    intrinsics = np.array([[60.0, 0, 50], [0, 60, 40], [0, 0, 1]])
    view = View(np.array([0, 1.5, 0]), np.diag([1.0, -1, -1]), intrinsics, np.array([100, 80]))
    for _ in range(20):
        image = backgrounds.draw(rng, view.rays(40, 50), 1.5, 4)
        assert image.shape == (40, 50, 3) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1, "and no NaN"
        stored = sensor.photograph(rng, image)
        assert stored.shape == image.shape and stored.dtype == np.uint8
    np.testing.assert_allclose(backgrounds.LINEAR[sensor.display(image)], image, atol=0.01)


def test_every_photograph_has_an_author_and_a_licence() -> None:
    text = (backgrounds.FOLDER / "README.md").read_text()
    rows = re.findall(r"^\| (\w+\.jpg) \|[^|]*\w[^|]*\|[^|]*\w[^|]*\| (CC0 1.0|CC BY 4.0) ", text, re.M)
    assert sorted(name for name, _ in rows) == sorted(file.name for file in backgrounds.FOLDER.glob("*.jpg"))
    assert sum(len(backgrounds.photographs(kind)) for kind in ("panorama", "photo", "texture")) == len(rows)
    assert sum(file.stat().st_size for file in backgrounds.FOLDER.iterdir()) < 1_200_000


def test_cameras_see_bodies_as_wanted(bodies: BodySampler) -> None:
    rng = np.random.default_rng(7)
    for body in standing(*bodies.draw(rng, 6)):
        for cut in (False, True):
            real = View.draw(rng, body, cut)
            inside = real.shows(body).mean()
            assert 0.4 < inside < 0.9 if cut else inside == 1
            assert 0.8 <= real.eye[1] <= 3
            np.testing.assert_allclose(real.rotation @ real.rotation.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(real.rotation) > 0 and real.rotation[1, 1] < 0, "upright"
            view = real.crop_view(rng, body, 64)
            pixel = np.floor(project(view.camera(body), view.intrinsics)).astype(int)
            shown = ((pixel >= 1) & (pixel < 63)).all(axis=1)
            framed = real.frame_in(view, 64)
            agree = framed[pixel[shown, 1], pixel[shown, 0]] == real.shows(body[shown])
            assert agree.mean() > 0.95, "where the frame ends, to a pixel"


@pytest.fixture(scope="module")
def held_out() -> BodySampler:
    return BodySampler("test")


@pytest.fixture(scope="module")
def crops(held_out: BodySampler, topology: Topology) -> LabelledCrops:
    return draw_crops(np.random.default_rng(5), held_out, Renderer(topology, 128, 128), 40, (1, 1, 1, 1, 1))


def points(crops: LabelledCrops) -> np.ndarray:
    """Vertices [B, V, 2] in pixels, from the labels."""
    seen = np.einsum("bij,bvj->bvi", crops.rotation, crops.vertices.astype(np.float32)) + crops.translation[:, None]
    assert (seen[..., 2] > 0).all()
    return (crops.focal[:, None, None] * seen[..., :2] / seen[..., 2:] + 1) * crops.images.shape[1] / 2


def test_boxes_hold_what_is_seen(crops: LabelledCrops) -> None:
    assert crops.images.shape == (40, 128, 128, 3) and crops.images.dtype == np.uint8
    assert (crops.box >= 0).all() and (crops.box <= 128).all() and (crops.box[:, 2:] > crops.box[:, :2]).all()
    uv = points(crops)
    for box, at, visible, kind in zip(crops.box, uv, crops.visible, crops.kind):
        seen = at[visible]
        assert ((seen > box[:2] - 2) & (seen < box[2:] + 2)).all(), "the box holds every visible vertex"
        if PARTS[kind] == "clear":
            # hair and clothes stand off by up to 4 cm
            np.testing.assert_allclose(np.concatenate([at.min(axis=0), at.max(axis=0)]), box, atol=3)
            assert 0.5 < (box[2:] - box[:2]).max() / 128 < 0.85


def test_parts_are_what_they_claim(crops: LabelledCrops, topology: Topology) -> None:
    np.testing.assert_array_equal(np.bincount(crops.kind), [8] * 5)
    uv, size = points(crops), crops.images.shape[1]
    pixel = np.floor(uv).astype(int)
    inside = ((pixel >= 0) & (pixel < size)).all(axis=-1)
    row, column = pixel.clip(0, size - 1)[..., ::-1].transpose(2, 0, 1)
    black = (crops.images[np.arange(40)[:, None], row, column] == 0).all(axis=-1)
    beyond = (black | ~inside).mean(axis=1)

    # what the camera would see of the body if there were nothing else
    body = np.einsum("bij,bvj->bvi", crops.rotation, crops.vertices.astype(np.float32)) + crops.translation[:, None]
    k = np.tile(np.eye(3), (40, 1, 1))
    k[:, 0, 0] = k[:, 1, 1] = crops.focal * size / 2
    k[:, :2, 2] = size / 2
    alone, intrinsics = torch.from_numpy(body[:, None]), torch.from_numpy(k).float()
    z_buffer = Rasteriser(topology.faces, size, size)
    could = z_buffer.seen(alone, intrinsics, z_buffer.rasterise(alone, intrinsics)[1])[:, 0].numpy()
    # vertices stand for their share of the surface: the head has a quarter of them
    a, b, c = (topology.template[topology.faces[:, i]] for i in range(3))
    area = np.zeros(len(topology.template))
    np.add.at(area, topology.faces, np.linalg.norm(np.cross(b - a, c - a), axis=-1)[:, None])
    hidden = 1 - (crops.visible & could) @ area / (could @ area)

    def of(part: str, values: np.ndarray) -> np.ndarray:
        return values[crops.kind == PARTS.index(part)]

    for part in ("clear", "occluded", "lying", "children"):
        assert (of(part, beyond) < 0.05).all(), f"{part}: the whole body lies within the frame"
    assert (of("truncated", beyond) > 0.05).all()
    assert (of("clear", hidden) < 0.1).all()
    slack = 0.15  # surface is not pixels
    assert (of("occluded", hidden) > HIDDEN[0] - slack).all() and (of("occluded", hidden) < HIDDEN[1] + slack).all()
    assert (of("children", hidden) < HIDDEN[0] + slack).all()


def test_parts_have_their_kinds_of_people(held_out: BodySampler, topology: Topology) -> None:
    parts = np.repeat(np.arange(5, dtype=np.int8), 12)
    vertices, root = draw_bodies(np.random.default_rng(0), held_out, parts)
    joints = dict(zip(SMPL_JOINTS, topology.joints(vertices).transpose(1, 0, 2)))
    thigh = np.linalg.norm(joints["left_hip"] - joints["left_knee"], axis=-1)
    high = np.ptp(standing(vertices, root)[..., 1], axis=1)

    def mean(values: np.ndarray, part: str) -> float:
        return float(values[parts == PARTS.index(part)].mean())

    for part in ("clear", "occluded", "truncated"):
        assert mean(high, part) > 1.4 and mean(thigh, part) > 0.35
    assert mean(high, "lying") < 0.8 * mean(high, "clear") and mean(thigh, "lying") > 0.35
    assert mean(thigh, "children") < 0.85 * mean(thigh, "clear")


def test_sets_are_the_same_for_any_number_of_workers(bodies: BodySampler, topology: Topology, tmp_path: Path) -> None:
    topology.save(tmp_path / "topology.npz")
    render(Render("train", 3 * CHUNK, tmp_path / "set", tmp_path / "topology.npz", size=32, seed=3, workers=2))
    every = SceneSet(tmp_path / "set").fields
    np.testing.assert_array_equal(np.bincount(every["kind"][:CHUNK]), np.round(CHUNK * np.array(MIXTURE)))
    second = draw_crops(np.random.default_rng([3, 0, 1]), bodies, Renderer(topology, 32, 32), CHUNK)
    for name, array in every.items():
        np.testing.assert_array_equal(array[CHUNK : 2 * CHUNK], getattr(second, name))
        assert (array[CHUNK : 2 * CHUNK] != array[:CHUNK]).any(), "chunks differ"


def test_bodies_without_a_camera_make_way_for_others(
    bodies: BodySampler, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, tries = View.draw, iter(range(100))

    def unlucky(rng: np.random.Generator, body: np.ndarray, cut: bool) -> View:
        if next(tries) == 1:
            raise NoView
        return draw(rng, body, cut)

    monkeypatch.setattr(View, "draw", unlucky)
    assert len(draw_crops(np.random.default_rng(0), bodies, Renderer(topology, 32, 32), 2).images) == 2
    assert next(tries) == 4
