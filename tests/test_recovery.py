"""The embedded default bundle on images: shapes, frames, seeds, and what must be refused."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mega_model.geometry import intrinsics_from_fov, project
from mega_ros import People, Recovery
from mega_ros.bundle import DEFAULT
from mega_ros.detect import fixed_box, full_frame
from mega_ros.track import intersection_over_union

WIDTH, HEIGHT = 320, 240
K = intrinsics_from_fov(WIDTH, HEIGHT, np.radians(60))
BOXES = np.array([[40, 20, 120, 220], [180, 60, 300, 230]], np.float32)


@pytest.fixture(scope="module")
def recovery() -> Recovery:
    return Recovery.load("default", provider="cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Not a person, but an image with structure: stripes and noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def people(recovery: Recovery, image: np.ndarray) -> People:
    return recovery.run(image, K, BOXES, ids=np.array([7, 3]))


def test_shapes_and_types(recovery: Recovery, people: People) -> None:
    vertices, joints = len(recovery.topology.template), len(recovery.topology.joint_names)
    assert len(people) == 2
    for name, shape, dtype in (
        ("vertices", (2, vertices, 3), np.float32),
        ("sigma", (2, vertices), np.float32),
        ("joints", (2, joints, 3), np.float32),
        ("joints_sigma", (2, joints), np.float32),
        ("ids", (2,), np.uint32),
        ("boxes", (2, 4), np.float32),
        ("scores", (2,), np.float32),
    ):
        value = getattr(people, name)
        assert (value.shape, value.dtype) == (shape, dtype), name
        assert np.isfinite(value).all(), name
    assert people.ids.tolist() == [7, 3]
    assert (people.boxes == BOXES).all()
    assert recovery.backend == "onnxruntime CPUExecutionProvider"


def test_people_stand_where_their_boxes_are(people: People) -> None:
    """In front of the camera, each projected into its own box (widened by the crop's margin), of human size."""
    assert (people.vertices[..., 2] > 0.3).all()
    centres = project(people.vertices, K[None]).mean(axis=1)
    side = 1.5 * (BOXES[:, 2:] - BOXES[:, :2]).max(axis=1, keepdims=True)
    assert (np.abs(centres - (BOXES[:, :2] + BOXES[:, 2:]) / 2) < side / 2).all()
    height = np.linalg.norm(np.ptp(people.vertices, axis=1), axis=1)
    assert ((height > 0.5) & (height < 3)).all()


def test_joints_are_the_regressors(recovery: Recovery, people: People) -> None:
    regressor = recovery.topology.joint_regressor
    np.testing.assert_allclose(people.joints, np.einsum("jv,pvc->pjc", regressor, people.vertices), atol=1e-5)
    np.testing.assert_allclose(people.joints_sigma, people.sigma @ np.abs(regressor).T, rtol=1e-5)
    assert (people.sigma >= 0).all() and people.sigma.max() > 0


def test_same_seed_same_people(recovery: Recovery, image: np.ndarray, people: People) -> None:
    again = recovery.run(image, K, BOXES, ids=np.array([7, 3]))
    assert (again.vertices == people.vertices).all() and (again.sigma == people.sigma).all()
    other = recovery.run(image, K, BOXES, ids=np.array([7, 3]), seed=1)
    assert (other.vertices == people.vertices).all()
    assert (other.sigma != people.sigma).any()


def test_noise_does_not_depend_on_who_else_is_there(recovery: Recovery, image: np.ndarray, people: People) -> None:
    alone = recovery.run(image, K, BOXES[1:], ids=np.array([3]))
    np.testing.assert_allclose(alone.vertices[0], people.vertices[1], atol=1e-4)
    # a token on the edge between two codes may fall to either side: not every bit, but nearly every vertex
    assert np.mean(np.abs(alone.sigma[0] - people.sigma[1]) < 1e-4) > 0.9


def test_no_samples_no_sigma(recovery: Recovery, image: np.ndarray, people: People) -> None:
    for samples in (0, 1):
        plain = recovery.run(image, K, BOXES, samples=samples)
        assert np.isnan(plain.sigma).all() and np.isnan(plain.joints_sigma).all()
        np.testing.assert_allclose(plain.vertices, people.vertices, atol=1e-5)


def test_nobody(recovery: Recovery, image: np.ndarray, people: People) -> None:
    nobody = recovery.run(image, K, np.zeros((0, 4)))
    assert len(nobody) == 0
    for name in vars(people):
        some, none = getattr(people, name), getattr(nobody, name)
        assert none.shape == (0, *some.shape[1:]) and none.dtype == some.dtype, name


def test_unknown_camera_is_60_degrees(recovery: Recovery, image: np.ndarray) -> None:
    assumed = recovery.run(image, None, BOXES, samples=0)
    given = recovery.run(image, K, BOXES, samples=0)
    np.testing.assert_allclose(assumed.vertices, given.vertices, atol=1e-6)


def test_longer_focal_length_puts_people_further_away(recovery: Recovery, image: np.ndarray) -> None:
    long = K * np.array([[2], [2], [1]]) - [[0, 0, WIDTH / 2], [0, 0, HEIGHT / 2], [0, 0, 0]]
    near, far = (recovery.run(image, camera, BOXES, samples=0).vertices[..., 2].mean() for camera in (K, long))
    assert far > 1.5 * near


def test_hopeless_box_is_left_out_and_the_others_stay(recovery: Recovery, image: np.ndarray) -> None:
    boxes = np.array([BOXES[0], [0, 0, 1e37, 1e37]])
    with np.errstate(all="ignore"):
        found = recovery.run(image, K, boxes, samples=0)
    assert np.isfinite(found.vertices).all() and 0 in found.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((8, 8, 3), np.float32)}, "image: must be a uint8"),
        ({"image": np.zeros((8, 8), np.uint8)}, "image: must be a uint8"),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "image: must be a uint8"),
        ({"image": [[1, 2, 3]]}, "image: must be a uint8"),
        ({"image": np.zeros((0, 8, 3), np.uint8)}, "image: is empty"),
        ({"K": np.eye(4)}, "K: must be a finite 3 x 3"),
        ({"K": np.full((3, 3), np.nan)}, "K: must be a finite 3 x 3"),
        ({"K": np.diag([300.0, 300.0, 2.0])}, "K: must be a finite 3 x 3"),
        ({"K": "camera"}, "K: must hold numbers"),
        ({"K": np.eye(3)}, "K: focal lengths 1, 1 pixels do not fit"),
        ({"K": np.diag([-300.0, 300.0, 1.0])}, "K: focal lengths -300, 300"),
        ({"boxes": [[0, 0, 10]]}, "boxes: must have shape"),
        ({"boxes": [[0, 0, 10, np.inf]]}, "boxes: number 0"),
        ({"boxes": [[0, 0, 10, 10], [5, 5, 5, 9]]}, "boxes: number 1"),
        ({"boxes": [["a", 0, 1, 1]]}, "boxes: must hold numbers"),
        ({"ids": [1]}, "ids: must be 2 whole numbers"),
        ({"ids": [0.5, 1]}, "ids: must be 2 whole numbers"),
        ({"ids": [-1, 1]}, "ids: must fit"),
        ({"samples": -1}, "samples and seed"),
        ({"seed": -1}, "samples and seed"),
    ],
)
def test_bad_input_is_named(recovery: Recovery, image: np.ndarray, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recovery.run(**{"image": image, "K": K, "boxes": BOXES, **change})


def test_detector_answers_in_image_pixels(recovery: Recovery, image: np.ndarray) -> None:
    assert recovery.detector is not None
    recovery.detector.threshold = 0.0
    try:
        # a wide image: the letterbox leaves a third of the detector's input empty
        boxes, scores = recovery.detector(np.concatenate([image, image], axis=1))
    finally:
        recovery.detector.threshold = 0.5
    assert boxes.shape == (len(scores), 4) and len(boxes) > 0
    assert (boxes >= 0).all() and (boxes <= [2 * WIDTH, HEIGHT, 2 * WIDTH, HEIGHT]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(scores) <= 0).all()
    assert np.triu(intersection_over_union(boxes, boxes), 1).max() <= 0.5, "one person, one box"


def test_an_empty_image_has_nobody(recovery: Recovery) -> None:
    assert len(recovery.run(np.full((HEIGHT, WIDTH, 3), 128, np.uint8))) == 0


def test_box_sources(image: np.ndarray) -> None:
    boxes, scores = full_frame(image)
    assert boxes.tolist() == [[0, 0, WIDTH, HEIGHT]] and scores.tolist() == [1]
    boxes, scores = fixed_box([1, 2, 30, 40])(image)
    assert boxes.tolist() == [[1, 2, 30, 40]] and scores.tolist() == [1]


@pytest.fixture
def without_detector(tmp_path: Path) -> Iterator[Recovery]:
    import json
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(DEFAULT, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["graphs"].pop("detector", None)
    manifest["files"].pop("detector.onnx", None)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    yield Recovery.load(folder, provider="cpu")


def test_bundle_without_detector_needs_boxes(without_detector: Recovery, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"boxes: the bundle .* has no detector"):
        without_detector.run(image)
    assert len(without_detector.run(image, boxes=BOXES, samples=0)) == 2
