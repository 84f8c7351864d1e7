"""Sets of features: what is stored of a crop belongs to what the crop shows; what was stopped goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_image_sets import SPOT, write_rendered
from tiny_people import WIDTH, blazepose

from mega_model.blazepose import LANDMARKS, BlazePose, PoseFeatures
from mega_model.checkpoint import load_weights
from mega_model.core.detection import KEYPOINTS
from mega_model.core.errors import InputError
from mega_model.core.topology import LIMB_JOINTS, SMPL_JOINTS, Topology
from mega_model.data import features, rendered
from mega_model.data.features import FeatureSet, extract
from mega_model.data.images import Mixture, open_set
from mega_model.data.scenes import LabelledCrops
from mega_model.options import Extract, Render, Split
from mega_model.tokenizer import MeshTokenizer, TokenizerConfig

NOSE, CENTRE, CIRCLE = (LANDMARKS.index(name) for name in ("nose", "body_centre", "body_circle"))


def find_spot(crops: np.ndarray) -> PoseFeatures:
    """A backbone that finds the bright spot, which is its nose, and takes people to stand in the crop's middle."""
    light = crops.astype(float).sum(axis=3)
    at = (np.arange(crops.shape[1]) + 0.5) / (crops.shape[1] / 2) - 1
    places = np.stack([(light * x).sum(axis=(1, 2)) for x in (at, at[:, None])], axis=1)
    landmarks = torch.zeros(len(crops), len(LANDMARKS), 5)
    landmarks[:, NOSE, :2] = torch.from_numpy(places / np.maximum(light.sum(axis=(1, 2)), 1)[:, None])
    landmarks[:, CIRCLE, 1] = -0.7
    return PoseFeatures(
        torch.zeros(len(crops), 4, 16, 16), landmarks, torch.zeros(len(crops), 39, 3), torch.ones(len(crops))
    )


@pytest.fixture
def spots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """How to extract features of six images that show one joint each."""
    write_rendered(tmp_path / "scenes", 160)
    blazepose(tmp_path / "blazepose")
    (tmp_path / "detector.onnx").write_bytes(b"what `SpotDetector` stands for")
    monkeypatch.setattr(features, "compiled", lambda backbone: find_spot)
    return Extract(tmp_path / "scenes", tmp_path / "features", tmp_path / "blazepose", width=WIDTH)


def whole(people: Any) -> dict[str, torch.Tensor]:
    return people.batch(np.arange(len(people)), None)


def turns(batch: dict[str, torch.Tensor], scenes: Path) -> np.ndarray:
    """Degrees, from how the camera saw people to how the crop shows them."""
    turned = batch["rotation"].numpy() @ np.load(scenes / "rotation.npy").transpose(0, 2, 1)
    return np.degrees(np.arccos(((np.trace(turned, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))


@pytest.mark.parametrize("turned", [False, True])
def test_labels_are_of_what_the_last_crop_shows(spots: Extract, turned: bool) -> None:
    config = Extract(**{**vars(spots), "turned": turned})
    extract(config)
    batch = whole(open_set(f"features:{config.out}"))
    assert batch["maps"].shape == (6, 4, 16, 16) and batch["maps"].dtype == torch.float32
    torch.testing.assert_close(batch["landmarks"][:, NOSE, :2], batch["joints2d"][:, SPOT], atol=0.03, rtol=0)
    angles = turns(batch, config.scenes)
    assert (angles > 85).all() if turned else (angles < 15).all()
    seen = batch["joints"] @ batch["rotation"].mT + batch["translation"][:, None]
    projected = batch["focal"][:, None, None] * seen[..., :2] / seen[..., 2:]
    torch.testing.assert_close(projected, batch["joints2d"])
    assert batch["part"].tolist() == [0, 1, 2, 3, 4, 0]
    assert not (batch["visible"] & (batch["vertices2d"].abs() > 1).any(dim=-1)).any()


class SpotDetector:
    """A detector's graph: one person who fills the image, upright in it; the bright spot is the left wrist."""

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image", shape=[1, 192, 256, 3])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("boxes", "scores", "keypoints")]

    def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        light = given["image"][0].astype(float).sum(axis=2)
        x, y = ((light * (np.arange(light.shape[axis]) + 0.5).reshape(shape)).sum() / light.sum()
                for axis, shape in ((1, (1, -1)), (0, (-1, 1))))  # fmt: skip
        keypoints = np.zeros((1, 17, 3), np.float32)
        for name, (at_x, at_y) in UPRIGHT_TORSO.items():
            keypoints[0, KEYPOINTS.index(name)] = at_x, at_y, 0.9
        keypoints[0, KEYPOINTS.index("left_wrist")] = x, y, 0.8
        return [np.array([[15, 15, 177, 177]], np.float32), np.ones(1, np.float32), keypoints]


UPRIGHT_TORSO = {"left_shoulder": (110, 70), "right_shoulder": (80, 70), "left_hip": (105, 115), "right_hip": (85, 115)}


@pytest.mark.parametrize("turned", [False, True])
def test_keypoints_place_the_crop_and_are_kept_in_it(
    spots: Extract, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "open_graph", lambda file: SpotDetector())
    monkeypatch.setattr(features, "WIDEST", 1.01)
    alone = Extract(**{**vars(spots), "turned": turned, "out": spots.out / "alone"})
    config = Extract(**{**vars(spots), "turned": turned, "detector": spots.out.with_name("detector.onnx")})
    extract(alone)
    extract(config)
    batch, without = whole(FeatureSet(config.out)), whole(FeatureSet(alone.out))
    wrist = batch["keypoints"][:, LIMB_JOINTS.index(SPOT)]
    found = wrist[:, 2] > 0  # the box is not always where the detector says
    assert found.sum() >= 4
    torch.testing.assert_close(wrist[found, :2], batch["joints2d"][found, SPOT], atol=0.03, rtol=0)
    torch.testing.assert_close(wrist[:, 2], 0.8 * found)
    assert (batch["keypoints"][:, LIMB_JOINTS.index(SMPL_JOINTS.index("left_knee")), 2] == 0).all()
    shoulder, hip = (LIMB_JOINTS.index(SMPL_JOINTS.index(f"left_{name}")) for name in ("shoulder", "hip"))
    torso = (batch["keypoints"][:, shoulder, :2] - batch["keypoints"][:, hip, :2])[found]
    assert (torso[:, 1] < -0.1).all() and (torso[:, 0].abs() < 0.2).all(), "upright in the crop"
    assert (without["keypoints"] == 0).all()
    assert not torch.isclose(batch["focal"], without["focal"], rtol=1e-3)[found].any()


def test_the_detector_sees_rgb_and_more_than_the_crop(spots: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its views are of several sizes."""
    seen: list[np.ndarray] = []

    class Watching(SpotDetector):
        def run(self, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(given["image"][0].astype(float))
            return super().run(names, given)

    monkeypatch.setattr(features, "open_graph", lambda file: Watching())
    np.save(spots.scenes / "images.npy", np.load(spots.scenes / "images.npy") * np.array([1, 0, 0], np.uint8))
    extract(Extract(**{**vars(spots), "detector": spots.out.with_name("detector.onnx")}))
    colours = np.array([image.sum(axis=(0, 1)) for image in seen])
    assert (colours[:, 0] > 0).all() and not colours[:, 1:].any(), "the spots are red"
    assert colours[:, 0].max() > 1.5 * colours[:, 0].min()


def test_training_keeps_keypoints_of_both_crops_mirrored_or_not(
    spots: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "open_graph", lambda file: SpotDetector())
    monkeypatch.setattr(features, "WIDEST", 1.01)
    config = Extract(**{**vars(spots), "train": True, "seed": 3, "detector": spots.out.with_name("detector.onnx")})
    extract(config)
    people = FeatureSet(config.out)
    batch, mirrored = whole(people), torch.from_numpy(np.array(people.fields["mirrored"]))
    wrist = batch["keypoints"][:, LIMB_JOINTS.index(SPOT)]
    found = wrist[:, 2] > 0
    assert (found & mirrored).any() and (found & ~mirrored).any() and torch.equal(found[::2], found[1::2])
    # the stand-in calls the spot a left wrist, also where it is a mirrored one
    shown = torch.from_numpy(np.where(mirrored, SMPL_JOINTS.index("right_wrist"), SPOT))
    torch.testing.assert_close(wrist[found, :2], batch["joints2d"][torch.arange(12), shown][found], atol=0.03, rtol=0)


def test_training_sees_two_crops_of_everybody_half_of_them_mirrored(spots: Extract) -> None:
    config = Extract(**{**vars(spots), "train": True, "seed": 3})
    extract(config)
    people = FeatureSet(config.out)
    batch, mirrored = whole(people), people.fields["mirrored"]
    assert people.fields["scene"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert 0 < mirrored.sum() < 12 and (mirrored[::2] == mirrored[1::2]).all()
    # a mirrored left wrist is a right one
    shown = np.where(mirrored, SMPL_JOINTS.index("right_wrist"), SPOT)
    nose = batch["landmarks"][:, NOSE, :2]
    torch.testing.assert_close(nose, batch["joints2d"][torch.arange(12), torch.from_numpy(shown)], atol=0.03, rtol=0)
    assert not torch.isclose(nose[::2], nose[1::2], atol=1e-3).all(), "the second crop is another one"
    visible = people.scenes.fields["visible"][people.fields["scene"]]
    visible[mirrored] = visible[mirrored][:, people.scenes.mirror_index]
    inside = (batch["vertices2d"].abs() < 1).all(dim=-1).numpy()
    np.testing.assert_array_equal(batch["visible"], visible & inside)


def test_tokens_are_those_of_the_bodies_that_are_seen(spots: Extract) -> None:
    extract(Extract(**{**vars(spots), "train": True, "seed": 3}))
    people = FeatureSet(spots.out)
    faces = np.array([[a, a + 1, a + 2] for a in range(24)], np.int32)
    topology = Topology(people.topology.template, faces, people.topology.joint_regressor, people.topology.parts)
    torch.manual_seed(0)
    tokenizer = MeshTokenizer(topology, TokenizerConfig(channels=(4,), latent=3, codes=16)).eval()
    assert "tokens" not in whole(people)
    with torch.no_grad():  # codes that tell people and their mirror images apart
        tokenizer.quantizer.start(tokenizer.latents(whole(people)["vertices"]))
    people.tokenise(tokenizer)
    batch = whole(people)
    with torch.no_grad():
        assert torch.equal(batch["tokens"], tokenizer.encode(batch["vertices"]))


def test_features_and_images_cannot_be_mixed(spots: Extract) -> None:
    extract(spots)
    with pytest.raises(InputError, match="different crops cannot be mixed"):
        Mixture([FeatureSet(spots.out), rendered.SceneSet(spots.scenes)])
    with pytest.raises(InputError, match="no features; make some"):
        open_set(f"features:{spots.scenes / 'nowhere'}")


def test_extraction_goes_on_where_it_stopped(spots: Extract) -> None:
    extract(spots)
    file = spots.out / "landmarks.npy"
    made = np.load(file)
    np.save(file, 0 * made)
    extract(spots)
    assert not np.load(file).any(), "what is done is left alone"
    (spots.out / "progress" / "0").unlink()
    extract(spots)
    np.testing.assert_array_equal(np.load(file), made)


def test_features_know_their_scenes_from_anywhere(
    spots: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another set lies at the path that was given, and after a move."""
    monkeypatch.chdir(tmp_path)
    extract(replace(spots, scenes=Path("scenes"), out=Path("features")))
    (tmp_path / "other").mkdir()
    write_rendered(tmp_path / "other" / "scenes", 160)
    focal = np.load(tmp_path / "scenes" / "focal.npy")
    np.save(tmp_path / "other" / "scenes" / "focal.npy", 2 * focal)
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(FeatureSet(tmp_path / "features").scenes.fields["focal"], focal)
    (tmp_path / "moved").mkdir()
    for name in ("scenes", "features"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    np.testing.assert_array_equal(FeatureSet(tmp_path / "moved" / "features").scenes.fields["focal"], focal)


def test_features_go_on_with_the_same_detector_only(spots: Extract) -> None:
    """The keypoints of the other half would have been zeros."""
    extract(spots)
    detector = spots.out.with_name("detector.onnx")
    with pytest.raises(InputError, match=r"features: a set with detector None, not of SHA-256 "):
        extract(replace(spots, detector=detector))


def test_features_of_other_scenes_are_refused(spots: Extract) -> None:
    """Where the scenes were rendered anew: labels would be of other people than the maps."""
    extract(spots)
    rotation = np.load(spots.scenes / "rotation.npy")
    np.save(spots.scenes / "rotation.npy", rotation[::-1])
    with pytest.raises(InputError, match=r"features: not made of the scenes that are in .*scenes now"):
        open_set(f"features:{spots.out}")
    with pytest.raises(InputError, match=r"features: a set with scenes of SHA-256 "):
        extract(spots)


def test_features_of_older_versions_are_refused(spots: Extract) -> None:
    extract(spots)
    file = spots.out / "maps.npy"
    np.save(file, np.zeros((6, 288, 4, 4), np.float16))
    message = r"features/maps\.npy: an older version's maps, .* make the features again with mega features"
    with pytest.raises(InputError, match=message):
        open_set(f"features:{spots.out}")
    with pytest.raises(InputError, match=message):
        extract(spots)


def random_crops(rng: np.random.Generator, bodies: None, renderer: None, count: int, shares: object) -> LabelledCrops:
    return LabelledCrops(
        images=rng.integers(0, 256, (count, 8, 8, 3), np.uint8),
        vertices=rng.normal(size=(count, 26, 3)).astype(np.float16),
        rotation=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        translation=np.ones((count, 3), np.float32),
        focal=np.ones(count, np.float32),
        visible=np.ones((count, 26), bool),
        box=np.ones((count, 4), np.float32),
        kind=np.zeros(count, np.int8),
    )


def test_rendering_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rendered(tmp_path / "scenes", 32)  # for its topology
    monkeypatch.setattr(rendered, "draw_crops", random_crops)
    for name in ("BodySampler", "Renderer"):
        monkeypatch.setattr(rendered, name, lambda *_: None)
    config = Render("train", 120, tmp_path / "whole", tmp_path / "scenes" / "topology.npz")
    rendered.render(config)
    file = config.out / "images.npy"
    made = np.load(file)
    assert len(np.unique(made.reshape(120, -1), axis=0)) == 120, "no two chunks are the same"
    spoilt = made.copy()
    spoilt[40:] = 0
    np.save(file, spoilt)
    (config.out / "progress" / "2").unlink()
    rendered.render(config)
    np.testing.assert_array_equal(np.load(file)[80:], made[80:])
    assert not np.load(file)[40:80].any(), "what is done is left alone"
    other = write_rendered(tmp_path / "others", 32).topology
    replace(other, template=2 * other.template).save(tmp_path / "others" / "topology.npz")
    with pytest.raises(InputError, match=r"whole: a set with topology of SHA-256 "):
        rendered.render(replace(config, topology=tmp_path / "others" / "topology.npz"))


def test_splits_and_seeds_are_other_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rendered(tmp_path / "scenes", 32)  # for its topology
    drawn: list[Any] = []

    def crops(rng: np.random.Generator, bodies: str, renderer: None, count: int, shares: object) -> LabelledCrops:
        drawn.append((bodies, shares))
        return random_crops(rng, None, None, count, shares)

    monkeypatch.setattr(rendered, "draw_crops", crops)
    monkeypatch.setattr(rendered, "BodySampler", lambda split: split)
    monkeypatch.setattr(rendered, "Renderer", lambda *_: None)
    made: list[np.ndarray] = []
    splits: tuple[Split, ...] = ("train", "train", "calibration", "test")
    for k, split in enumerate(splits):
        shares, out = (0, 1, 0, 0, k), tmp_path / str(k)
        rendered.render(Render(split, 40, out, tmp_path / "scenes" / "topology.npz", shares=shares, seed=int(k == 1)))
        made.append(np.load(out / "images.npy"))
    assert drawn == [(split, (0, 1, 0, 0, k)) for k, split in enumerate(splits)]
    assert len(np.unique(np.stack(made).reshape(160, -1), axis=0)) == 160


@torch.no_grad()
def test_compiled_features_are_those_of_torch(people: Path) -> None:
    network = BlazePose(WIDTH).eval()
    load_weights(network, people / "blazepose")
    crops = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = network(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    for found, part in zip(features.compiled(network)(crops), expected):
        torch.testing.assert_close(found, part.cpu(), atol=1e-4, rtol=1e-4)


def test_a_little_blazepose_looks_at_people(people: Path) -> None:
    batch = whole(FeatureSet(people / "features" / "test"))
    assert batch["maps"].shape == (40, 10, 16, 16) and batch["maps"].std(dim=0).max() > 1e-3, "they look different"
    assert (batch["joints2d"][:, 0].abs() < 1).all(dim=1).float().mean() > 0.8, "but for those who are cut off"
    assert len(FeatureSet(people / "features" / "train")) == 80
