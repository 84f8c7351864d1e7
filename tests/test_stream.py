"""`Stream` on a bundle of known graphs (little_bundle.py): tracks, noise, intrinsics, boxes, and what it reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mega_model.core.cameras import Camera
from mega_model.core.detection import Detections
from mega_model.core.errors import InputError
from mega_model.core.geometry import intrinsics_from_fov
from mega_ros import People, Recovery, Stream, StreamSettings

pytest.importorskip("onnx", reason="graphs are made with the extra export")
import little_bundle
from little_bundle import little_bundle as make_bundle

WIDTH, HEIGHT = 320, 240
K = intrinsics_from_fov(WIDTH, HEIGHT, 1.2)
SECOND = 10**9
FULL = StreamSettings(boxes="full_frame")
FIXED = StreamSettings(boxes="fixed", fixed_box=(110.0, 70.0, 210.0, 170.0))


class Walkers:
    """Stands in for a detector: boxes that the test sets."""

    def __init__(self) -> None:
        self.boxes = np.zeros((0, 4), np.float32)
        self.scores: np.ndarray | None = None
        self.seen: tuple[int, ...] = ()
        """shape of the image that was searched last"""
        self.engine = SimpleNamespace(seconds=0.0, cpu_seconds=0.0)

    def find(self, image: np.ndarray, threshold: float | None = None) -> Detections:
        self.seen = image.shape
        scores = np.ones(len(self.boxes), np.float32) if self.scores is None else self.scores
        good = scores >= (threshold or 0)
        return Detections(self.boxes[good], scores[good], None)


@pytest.fixture
def recovery(tmp_path: Path) -> Callable[..., Recovery]:
    def make(**settings: Any) -> Recovery:
        folder = tmp_path / repr(settings)
        folder.mkdir()
        return Recovery(make_bundle(folder, **settings), "cpu")

    return make


@pytest.fixture
def walkers(recovery: Callable[..., Recovery]) -> tuple[Recovery, Walkers]:
    """Without an error head, so that sigma shows the samples' noise."""
    made, found = recovery(errors=False, samples=4), Walkers()
    made.detector = found  # type: ignore[assignment]
    return made, found


def painted(*colour: int) -> np.ndarray:
    """An image of one colour: blue, green, red."""
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


GREEN = painted(0, 255, 0)


def box(x: float, y: float = 60.0) -> list[float]:
    return [x, y, x + 40, y + 100]


def depth(people: People) -> float:
    """Of the body's origin, metres: the green mesh is the template upside down."""
    return float((people.vertices[0, :, 2] + little_bundle.TEMPLATE[:, 2]).mean())


# ------------------------------------------------------------------------------------------------------------- people


def test_people_are_those_of_recovery(recovery: Callable[..., Recovery]) -> None:
    """Vertices tell red from blue, sigma has the bundle's calibration."""
    made = recovery(scale=2.5)
    image = painted(51, 102, 204)
    people = Stream(made, FIXED).process(image, K, 0)
    origins = people.vertices[0] - (1 + 204 / 255) * little_bundle.TEMPLATE * [1, -1, -1]
    assert np.ptp(origins, axis=0).max() < 1e-4
    np.testing.assert_allclose(people.sigma, 2.5 * (0.1 + 51 / 255), atol=1e-5)
    expected = made.run(image, K, np.array([FIXED.fixed_box], np.float32))
    for name in ("vertices", "sigma", "joints", "joints_sigma", "ids", "boxes", "scores", "distance"):
        np.testing.assert_array_equal(getattr(people, name), getattr(expected, name))


def test_before_the_first_image_there_is_nothing_to_report(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), FULL)
    assert stream.assumed == "" and stream.notes == []
    np.testing.assert_array_equal(stream.camera.K, np.eye(3))


def test_an_own_detector_replaces_the_bundles(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    own = Walkers()
    detector.boxes, own.boxes = np.array([box(20)], np.float32), np.array([box(200)], np.float32)
    assert Stream(made, detector=own).process(GREEN, K, 0).boxes.tolist() == [box(200)]


def test_nobody_found_is_nobody(walkers: tuple[Recovery, Walkers]) -> None:
    made, _ = walkers
    stream = Stream(made)
    people = stream.process(GREEN, K, 0)
    assert len(people) == 0 and people.scores.shape == (0,) and people.vertices.shape[0] == 0
    assert stream.notes == []


def test_full_frame_is_one_person_who_fills_the_image(recovery: Callable[..., Recovery]) -> None:
    people = Stream(recovery(), FULL).process(GREEN, K, 0)
    assert people.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]] and people.scores.tolist() == [1]


def test_detections_have_the_threshold_and_their_scores(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    detector.boxes = np.array([box(20), box(120), box(220)], np.float32)
    detector.scores = np.array([0.9, 0.3, 0.6], np.float32)
    strict, lenient = (Stream(made, StreamSettings(score_threshold=threshold)) for threshold in (0.5, 0.2))
    assert strict.process(GREEN, K, 0).scores.tolist() == pytest.approx([0.9, 0.6])
    assert lenient.process(GREEN, K, 0).scores.tolist() == pytest.approx([0.9, 0.3, 0.6])
    image = GREEN.copy()
    image[:, :140] = 0  # no finite mesh of the first
    people = strict.process(image, K, 1)
    assert people.scores.tolist() == pytest.approx([0.6]) and people.ids.tolist() == [1]


def test_settings_count_from_the_next_image_on(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), FULL)
    stream.settings = FIXED
    assert stream.process(GREEN, K, 0).boxes.tolist() == [list(FIXED.fixed_box)]


def test_a_bundle_without_detector_needs_other_boxes(recovery: Callable[..., Recovery]) -> None:
    made = recovery()
    with pytest.raises(ValueError, match="boxes: the bundle little has no detector; set boxes to full_frame or fixed"):
        Stream(made)
    stream = Stream(made, FULL)
    with pytest.raises(ValueError, match="no detector"):
        stream.settings = StreamSettings()
    assert stream.settings == FULL


def test_samples_that_cannot_be_kept_are_refused(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), replace(FULL, samples="auto", keep_samples=True))
    with pytest.raises(ValueError, match=r"samples: .*keep_samples"):
        stream.process(GREEN, K, 0)


@pytest.mark.parametrize(
    ("image", "intrinsics", "reason"),
    [(np.zeros((4, 4), np.uint8), K, "image: must be"), (GREEN, np.zeros((3, 3)), "K: must be")],
)
def test_bad_input_is_named(
    recovery: Callable[..., Recovery], image: np.ndarray, intrinsics: np.ndarray, reason: str
) -> None:
    stream = Stream(recovery(), FULL)
    with pytest.raises(ValueError, match=reason):
        stream.process(image, intrinsics, 0)
    assert len(stream.process(GREEN, K, 1)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"boxes": "fixed_box"},
        {"fixed_box": (0, 0, 9)},
        {"fixed_box": "none"},
        *({"score_threshold": value} for value in (np.nan, -0.1, 50, "0.5")),
        *({"max_people": value} for value in (-1, 2.5, None)),
        *({"fov": value} for value in (0, np.nan, 60, None)),
        *({"smoothing": value} for value in (np.nan, -1, 2, None)),
        {"rotate": 90.0},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"^{name}: must "):
        replace(FIXED, **wrong)


def test_settings_may_be_numpys(recovery: Callable[..., Recovery]) -> None:
    numpys: dict[str, Any] = {
        "boxes": "fixed",
        "fixed_box": np.array(FIXED.fixed_box),
        "score_threshold": np.float32(0.4),
        **{name: np.int64(3) for name in ("max_people", "samples", "seed")},
        "fov": np.float64(1),
    }
    stamp: Any = np.uint64(5)
    assert len(Stream(recovery(), StreamSettings(**numpys)).process(GREEN, None, stamp)) == 1


@pytest.mark.parametrize("degrees", [1, 170])  # the range of mega replay --fov
def test_a_field_of_view_may_be_narrow_or_wide(degrees: float) -> None:
    assert StreamSettings(fov=float(np.radians(degrees))).fov == pytest.approx(degrees * np.pi / 180)


@pytest.mark.parametrize("stamp", [None, 1.7e9, np.nan, "now", 2**63])
def test_a_stamp_is_whole_nanoseconds(recovery: Callable[..., Recovery], stamp: Any) -> None:
    with pytest.raises(InputError, match=r"^stamp: must be whole nanoseconds"):
        Stream(recovery(), FULL).process(GREEN, K, stamp)


BOX = [[110.0, 70.0, 210.0, 170.0]]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.array(BOX), ": must be Detections"),
        ((np.array(BOX), np.ones(1)), ": must be Detections"),
        (Detections(np.array(BOX[0]), np.ones(1), None), r"\.boxes: must have the shape \[1, 4\], it is \[4\]"),
        (Detections(np.array(BOX), np.ones(0), None), r"\.boxes: must have the shape"),
        (Detections(np.array(BOX), np.ones((1, 1)), None), r"\.scores: must have the shape"),
        (Detections(np.array(BOX), np.ones(1), np.zeros((1, 13, 3))), r"\.keypoints: must have the shape"),
        (Detections(np.array([["a"] * 4]), np.ones(1), None), r"\.boxes: must hold numbers"),
    ],
)
def test_detections_of_another_shape_are_named(recovery: Callable[..., Recovery], found: Any, message: str) -> None:
    """Those that come with the image, and those of an own detector."""
    made, own = recovery(), SimpleNamespace(find=lambda *_: found)
    with pytest.raises(InputError, match=f"^found{message}"):
        Stream(made, StreamSettings(boxes="detections")).process(GREEN, K, 0, found=found)
    with pytest.raises(InputError, match=f"^detector{message}"):
        Stream(made, StreamSettings(rotate=90), detector=own).process(GREEN, K, 0)


@pytest.mark.parametrize("people", [0, 1])
def test_detections_may_be_lists(recovery: Callable[..., Recovery], people: int) -> None:
    boxes: Any = BOX[:people]
    scores: Any = [0.5] * people
    found = Detections(boxes, scores, None)
    made, own = recovery(), SimpleNamespace(find=lambda *_: found)
    assert len(Stream(made, StreamSettings(boxes="detections")).process(GREEN, K, 0, found=found)) == people
    assert len(Stream(made, StreamSettings(rotate=180), detector=own).process(GREEN, K, 0)) == people


# -------------------------------------------------------------------------------------------------------------- boxes


def test_boxes_beside_the_image_are_left_out_and_reported(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made)
    detector.boxes = np.array([box(20), box(2 * WIDTH), box(200)], np.float32)
    people = stream.process(GREEN, K, 0)
    np.testing.assert_array_equal(people.boxes, detector.boxes[[0, 2]])
    assert people.ids.tolist() == [0, 1]
    (note,) = stream.notes
    assert note.startswith("1 of 3 boxes are left out: ")


def test_boxes_that_show_too_little_are_noted(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made)
    detector.boxes = np.array([box(20), [50, 50, 53, 90], box(WIDTH - 3)], np.float32)
    assert len(stream.process(GREEN, K, 0)) == 1
    assert stream.notes == ["2 of 3 boxes are left out: the image shows less than 4 x 4 pixels of them"]
    detector.boxes = detector.boxes[:1]
    stream.process(GREEN, K, 1)
    assert stream.notes == []


def test_boxes_beside_the_lens_and_people_who_cannot_be_are_noted(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made)
    fisheye = Camera(np.array([[80.0, 0, 160], [0, 80, 120], [0, 0, 1]]), "equidistant", [0.0] * 4)
    detector.boxes = np.array([box(0), box(100), box(290)], np.float32)
    np.testing.assert_array_equal(stream.process(GREEN, fisheye, 0).boxes, detector.boxes[[1]])
    assert stream.camera is fisheye
    assert stream.notes == [
        "2 of 3 boxes are left out: the lens shows nothing there, or 90 degrees or more off its axis"
    ]
    detector.boxes = detector.boxes[:2]
    assert len(stream.process(GREEN, K * [[80], [80], [1]], 1)) == 0
    assert re.fullmatch("2 of 2 boxes are left out: .* nearer than 100 m; check camera_info", stream.notes[0])


# ------------------------------------------------------------------------------------------------------- turned cameras


@pytest.mark.parametrize(
    ("rotate", "shape", "found", "there"),
    [
        (0, (HEIGHT, WIDTH), [20, 60, 60, 160], [20, 60, 60, 160]),
        (90, (WIDTH, HEIGHT), [20, 60, 60, 160], [60, 180, 160, 220]),
        (180, (HEIGHT, WIDTH), [20, 60, 60, 160], [260, 80, 300, 180]),
        (270, (WIDTH, HEIGHT), [20, 60, 60, 160], [160, 20, 260, 60]),
    ],
)
def test_a_turned_camera_is_searched_upright(
    walkers: tuple[Recovery, Walkers], rotate: int, shape: tuple[int, int], found: list[float], there: list[float]
) -> None:
    """The detector sees people as they stand; boxes are told in the pixels of the image as it is."""
    made, detector = walkers
    detector.boxes = np.array([found], np.float32)
    stream = Stream(made, StreamSettings(rotate=rotate))
    people = stream.process(GREEN, K, 0)
    assert detector.seen == (*shape, 3)
    assert people.boxes.tolist() == [there]


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_a_turned_camera_shows_turned_people(recovery: Callable[..., Recovery], rotate: int) -> None:
    made = recovery()
    upright, turned = (Stream(made, replace(FIXED, rotate=r)).process(GREEN, K, 0).vertices[0] for r in (0, rotate))
    # whoever must be turned clockwise stands counterclockwise; y points down, so that is a negative angle
    angle = np.radians(-rotate)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    np.testing.assert_allclose(turned, upright @ turn.T, atol=1e-5)


def test_a_turn_of_another_angle_is_named(recovery: Callable[..., Recovery]) -> None:
    with pytest.raises(ValueError, match="rotate: must be one of 0, 90, 180, 270 degrees, it is 45"):
        Stream(recovery(), replace(FIXED, rotate=45)).process(GREEN, K, 0)


def test_nobody(walkers: tuple[Recovery, Walkers]) -> None:
    made, _ = walkers
    stream = Stream(made)
    assert len(stream.process(GREEN, K, 0)) == 0
    assert stream.notes == []


# --------------------------------------------------------------------------------------------------------- intrinsics


def test_intrinsics_are_given_or_assumed_with_a_reason(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), replace(FIXED, fov=0.8))
    people = stream.process(GREEN, K, 0)
    assert stream.assumed == ""
    np.testing.assert_array_equal(stream.camera.K, K)
    per_pixel = depth(people) / K[0, 0]
    people = stream.process(GREEN, None, 1)
    assert stream.assumed == "no intrinsics are given"
    np.testing.assert_allclose(stream.camera.K, intrinsics_from_fov(WIDTH, HEIGHT, 0.8))
    assert depth(people) / stream.camera.K[0, 0] == pytest.approx(per_pixel, rel=1e-3)
    stream.process(GREEN, None, 2, "the camera is not calibrated")
    assert stream.assumed == "the camera is not calibrated"
    stream.process(GREEN, K, 3)
    assert stream.assumed == ""


def test_without_anything_60_degrees_are_assumed(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), FULL)
    stream.process(GREEN, None, 0)
    assert 2 * np.arctan(WIDTH / 2 / stream.camera.K[0, 0]) == pytest.approx(np.radians(60))


# ------------------------------------------------------------------------------------------------- tracks and noise


def test_a_hidden_walker_comes_back_with_the_same_id(walkers: tuple[Recovery, Walkers]) -> None:
    """Who walks on behind an occluder comes out elsewhere. Another person stays, and a third comes meanwhile."""
    made, detector = walkers
    stream = Stream(made)
    for k in range(40):
        hidden = 20 <= k < 32
        walker, standing, late = box(4 * k), box(20, 5), box(250)
        detector.boxes = np.array([standing, *([] if hidden else [walker]), *([late] if k >= 25 else [])], np.float32)
        people = stream.process(GREEN, K, k * SECOND // 15)
        expected = [0, *([] if hidden else [1]), *([2] if k >= 25 else [])]
        assert people.ids.tolist() == expected, k


def test_a_track_keeps_its_noise_and_others_have_their_own(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    detector.boxes = np.array([box(60), box(200)], np.float32)
    stream = Stream(made, StreamSettings(seed=3))
    first, later = (stream.process(GREEN, K, stamp) for stamp in (0, 2 * SECOND))
    np.testing.assert_array_equal(first.sigma, later.sigma)
    assert (first.sigma[0] != first.sigma[1]).all()
    other_seed = Stream(made, StreamSettings(seed=4)).process(GREEN, K, 0)
    assert (other_seed.sigma != first.sigma).all()


def test_samples_are_the_bundles_unless_set(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    detector.boxes = np.array([box(60)], np.float32)
    usual, four, three = (Stream(made, StreamSettings(samples=n)).process(GREEN, K, 0).sigma for n in (None, 4, 3))
    np.testing.assert_array_equal(usual, four)
    assert (usual != three).all()


def test_a_recording_that_starts_again_has_new_people(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made)

    def play() -> list[People]:
        people = []
        for k, x in enumerate([20] + 32 * [180]):  # at 180 it is somebody else, for longer than a track is remembered
            detector.boxes = np.array([box(x)], np.float32)
            people.append(stream.process(GREEN, K, 100 * SECOND + k * SECOND // 10))
        return people

    once, again = play(), play()
    assert [p.ids[0] for p in once] == [0] + 32 * [1]
    assert [p.ids[0] for p in again] == [2] + 32 * [3], "an id is one person's, as long as the stream lives"
    np.testing.assert_array_equal([p.vertices for p in once], [p.vertices for p in again])


def test_images_out_of_order_do_not_end_tracks(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made)
    for stamp, x in ((0, 20), (SECOND, 200), (SECOND // 2, 200), (2 * SECOND, 200), (SECOND, 200), (2 * SECOND, 200)):
        detector.boxes = np.array([box(x)], np.float32)
        people = stream.process(GREEN, K, stamp)
    assert people.ids.tolist() == [1]


def test_cameras_share_a_recovery_but_not_their_tracks(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    left, right = Stream(made), Stream(made)
    for x, expected in ((20, 0), (200, 1)):
        detector.boxes = np.array([box(x)], np.float32)
        assert left.process(GREEN, K, 0).ids.tolist() == [expected]
    assert right.process(GREEN, K, 0).ids.tolist() == [0]


# --------------------------------------------------------------------------------------------- how many, and how steady


def test_the_likeliest_people_stay_and_the_others_are_noted(walkers: tuple[Recovery, Walkers]) -> None:
    made, detector = walkers
    stream = Stream(made, StreamSettings(max_people=2))
    detector.boxes = np.array([box(20), box(2 * WIDTH), box(120), box(220)], np.float32)
    detector.scores = np.array([0.7, 0.95, 0.6, 0.9], np.float32)
    people = stream.process(GREEN, K, 0)
    assert people.scores.tolist() == pytest.approx([0.7, 0.9]) and people.ids.tolist() == [0, 1]
    np.testing.assert_array_equal(people.boxes, detector.boxes[[0, 3]])
    assert stream.notes[1] == "1 of 4 boxes are left out: max_people is 2, and the others are likelier"
    stream.settings = StreamSettings(max_people=3)
    assert len(stream.process(GREEN, K, 1)) == 3


def test_boxes_may_be_given_with_the_image(recovery: Callable[..., Recovery]) -> None:
    stream = Stream(recovery(), StreamSettings(boxes="detections"))
    given = Detections(np.array([box(20), box(120)], np.float32), np.array([0.9, 0.4], np.float32), None)
    people = stream.process(GREEN, K, 0, found=given)
    np.testing.assert_array_equal(people.boxes, given.boxes)
    assert people.scores.tolist() == pytest.approx([0.9, 0.4])
    with pytest.raises(ValueError, match=r"^found: boxes is detections, so those of the image must be given$"):
        stream.process(GREEN, K, 1)


def test_keypoints_go_with_the_people_who_are_kept(recovery: Callable[..., Recovery]) -> None:
    """Those of a box beside the image are not looked at; those of the others have to be numbers."""
    stream = Stream(recovery(), StreamSettings(boxes="detections"))
    keypoints = np.ones((2, 17, 3), np.float32)
    for lost, there in ((1, True), (0, False)):
        keypoints[:], keypoints[lost] = 1, np.nan
        given = Detections(np.array([box(20), box(2 * WIDTH)], np.float32), np.ones(2, np.float32), keypoints)
        if there:
            assert len(stream.process(GREEN, K, 0, found=given)) == 1
        else:
            with pytest.raises(ValueError, match="keypoints: must be finite"):
                stream.process(GREEN, K, 1, found=given)


@pytest.mark.parametrize(("blue", "expected"), [(0, 1), (199, 0)])
def test_an_uncertain_pelvis_may_be_farther_off(
    walkers: tuple[Recovery, Walkers], recovery: Callable[..., Recovery], blue: int, expected: int
) -> None:
    """A box that does not overlap, 1.3 m from the last one. Sigma of the pelvis is the image's blue."""
    stream = Stream(recovery(), detector=walkers[1])
    for k, x in enumerate((20, 100)):
        walkers[1].boxes = np.array([box(x)], np.float32)
        people = stream.process(painted(blue, 255, 0), K, k * SECOND // 10)
    assert people.ids.tolist() == [expected]


def test_people_are_smoothed_and_predicted_where_asked(recovery: Callable[..., Recovery]) -> None:
    made = recovery()
    dark, bright = painted(0, 255, 0), painted(0, 255, 255)
    raw = Stream(made, FIXED).process(bright, K, 0)
    steady, plain = (Stream(made, replace(FIXED, smoothing=smoothing)) for smoothing in (1.0, 0.0))
    for k in range(10):
        before = [stream.process(dark, K, k * SECOND // 10).vertices for stream in (steady, plain)]
    now = steady.process(bright, K, SECOND)
    np.testing.assert_array_equal(plain.process(bright, K, SECOND).vertices, raw.vertices)
    assert np.abs(now.vertices - raw.vertices).max() > 0.02
    ahead = steady.predict(now, SECOND + SECOND // 5)
    assert np.abs(ahead.vertices - before[0]).max() > np.abs(now.vertices - before[0]).max()
    restarted = steady.process(bright, K, 0)
    np.testing.assert_allclose(restarted.vertices, Stream(made, FIXED).process(bright, K, 0).vertices, atol=1e-5)


def test_who_stops_behind_a_wall_keeps_the_id(walkers: tuple[Recovery, Walkers]) -> None:
    """Two seconds on, the box is not where it was expected; where the mesh has the pelvis, it may be the same."""
    made, detector = walkers
    stream = Stream(made)
    for k in range(60):
        detector.boxes = np.array([box(20 + 4 * min(k, 20))] if not 20 <= k < 50 else [], np.float32).reshape(-1, 4)
        people = stream.process(GREEN, K, k * SECOND // 15)
        assert people.ids.tolist() == ([] if 20 <= k < 50 else [0]), k
