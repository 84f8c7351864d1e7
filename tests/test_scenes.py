"""Synthetic people: bodies are canonical, and the labels of pictures are true of the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mega_model.data.meshes import BodySampler
from mega_model.data.scenes import Look, Renderer, Shapes, backgrounds, draw_crops, draw_groups, noise
from mega_model.topology import SMPL_JOINTS, Topology


@pytest.fixture(scope="module")
def bodies() -> BodySampler:
    return BodySampler("train")


@pytest.fixture(scope="module")
def topology(bodies: BodySampler) -> Topology:
    rng = np.random.default_rng(0)
    return bodies.body.topology(bodies.draw_poses(rng, 100), bodies.bones, bodies.draw_phenotypes(rng, 100))


def test_splits_share_no_clip() -> None:
    sizes = [len(BodySampler(split).poses) for split in ("train", "calibration", "test")]  # type: ignore[arg-type]
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


def test_what_is_hidden_is_called_hidden(topology: Topology) -> None:
    rng = np.random.default_rng(4)
    renderer = Renderer(topology, 96, 96)
    near, far = (topology.template * [1, -1, -1] + [0, 0.15, z] for z in (2.5, 4.0))
    k = np.array([[[110.0, 0, 48], [0, 110, 48], [0, 0, 1]]])
    none, wall = (Shapes.draw(rng, 1, 1, presence, (2.0, 2.1)) for presence in (0.0, 1.0))
    scene = (Look.draw(rng, 1, 2), backgrounds(rng, 1, 96, 96))
    grain = 1 + 0 * noise(rng, 1, 96, 96, 4)
    images, visible, who = renderer.render(np.stack([near, far])[None], k, *scene, none, grain)
    assert images.shape == (1, 96, 96, 3) and set(np.unique(who)) <= {-1, 0, 1}
    assert visible[0, 0].mean() > 0.3, "the front of the near one is seen"
    assert visible[0, 1].mean() < 0.5 * visible[0, 0].mean(), "most of the far one is behind the near one"
    _, visible, who = renderer.render(np.stack([near, far])[None], k, *scene, wall, grain)
    assert not visible.any() and (who == -1).all()


def test_crops_agree_with_their_labels(bodies: BodySampler, topology: Topology) -> None:
    crops = draw_crops(np.random.default_rng(5), bodies, Renderer(topology, 64, 64), 12)
    assert crops.images.shape == (12, 64, 64, 3) and crops.images.dtype == np.uint8
    seen = np.einsum("bij,bvj->bvi", crops.rotation, crops.vertices.astype(np.float32)) + crops.translation[:, None]
    uv = crops.focal[:, None, None] * seen[..., :2] / seen[..., 2:]
    assert (np.abs(uv[crops.visible]) <= 1).all(), "visible vertices lie within the picture"
    assert (seen[..., 2] > 0).all() and crops.visible.any(axis=1).mean() > 0.8


def test_groups_have_boxes_of_people(bodies: BodySampler, topology: Topology) -> None:
    groups = draw_groups(np.random.default_rng(6), bodies, Renderer(topology, 96, 128), 12, people=3)
    there = np.isfinite(groups.boxes).all(axis=-1)
    assert 0 < there.sum() < there.size, "some pictures hold fewer people than others"
    boxes = groups.boxes[there]
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes <= [128, 96, 128, 96]).all()
