"""How many samples each person gets, and that sigma comes from as many."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_model.core.detection import Detections
from mega_ros import Recovery, Stream, StreamSettings
from mega_ros.samples import MOST, allotted

NEAR, MIDDLE, FAR = 2.0, 4.0, 6.0


def share(affordable: float, new: tuple[bool, ...] = (False, False, False), least: int = 10) -> list[int]:
    return allotted(np.array([FAR, NEAR, MIDDLE]), np.array(new), least, affordable).tolist()


def test_who_is_new_comes_first_and_then_who_is_near() -> None:
    assert share(0) == share(30) == [10, 10, 10], "never fewer than sigma needs"
    assert share(45) == [10, 25, 10]
    assert share(140) == [10, MOST, 30]
    assert share(140, new=(True, False, False)) == [MOST, 30, 10]
    assert share(1e9) == [MOST] * 3
    assert share(1e9, least=2 * MOST) == [2 * MOST] * 3
    assert allotted(np.zeros(0), np.zeros(0, bool), 10, 50).tolist() == []


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=6), st.integers(2, 50), st.floats(-1e3, 1e4))
def test_any_people_and_any_time(people: list[tuple[float, bool]], least: int, affordable: float) -> None:
    distance, new = np.array([d for d, _ in people]), np.array([n for _, n in people], bool)
    samples = allotted(distance, new, least, affordable)
    assert (samples >= least).all() and (samples <= max(least, MOST)).all()
    assert samples.sum() <= max(least * len(people), affordable)


@pytest.fixture
def recovery(tmp_path: Path) -> Recovery:
    pytest.importorskip("onnx", reason="graphs are made with the extra export")
    from little_bundle import little_bundle

    return Recovery(little_bundle(tmp_path, errors=False, samples=4), "cpu")


@pytest.fixture
def stream(recovery: Recovery) -> Stream:
    return Stream(recovery, StreamSettings(boxes="detections", samples="auto"))


IMAGE = np.full((240, 320, 3), (0, 255, 0), np.uint8)
BOXES = np.array([[20, 60, 60, 160], [200, 40, 260, 200]], np.float32)
"""The second one is nearer."""


def sigma(stream: Stream, stamp: int, boxes: np.ndarray = BOXES, **settings: object) -> np.ndarray:
    stream.settings = StreamSettings(boxes="detections", **settings)  # type: ignore[arg-type]
    found = Detections(boxes, np.ones(len(boxes), np.float32), None)
    return stream.process(IMAGE, None, stamp, found=found).sigma[:, 0]


def test_samples_follow_the_period(stream: Stream) -> None:
    """By default, and without any time, everybody has the bundle's number; with much, the most."""
    few = sigma(stream, 0)
    for stamp, period in enumerate((np.nan, 1e-9), 1):
        np.testing.assert_array_equal(sigma(stream, stamp, samples="auto", period=period), few)
    most = sigma(stream, 5, samples="auto", period=1e9)
    np.testing.assert_array_equal(most, sigma(stream, 6, samples=MOST))
    assert (most != few).all()


@pytest.mark.parametrize(("errors", "samples", "drawn"), [(True, 4, 0), (False, 0, 2)])
def test_sigma_has_the_samples_that_it_needs(tmp_path: Path, errors: bool, samples: int, drawn: int) -> None:
    """None if the bundle has an error head; else two, if the bundle's own number is less."""
    pytest.importorskip("onnx", reason="graphs are made with the extra export")
    from little_bundle import little_bundle

    recovery = Recovery(little_bundle(tmp_path, errors=errors, samples=samples), "cpu")
    stream = Stream(recovery, StreamSettings(boxes="detections"))
    assert np.isfinite(sigma(stream, 0, samples="auto")).all()
    assert stream.samples.tolist() == [drawn] * 2


@pytest.fixture
def measured(recovery: Recovery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next image takes 58 s, of them 8 for its samples, and the one after it no time."""
    clock, sampling = iter([0.0, 58.0, 60.0, 60.0]), iter([0.0, 8.0, 8.0, 8.0])
    monkeypatch.setattr("mega_ros.stream.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(recovery, "seconds", lambda: {"sampling": next(sampling)})


def test_the_near_one_has_what_time_is_left(recovery: Recovery, stream: Stream, request: pytest.FixtureRequest) -> None:
    few, most = sigma(stream, 0, samples=4), sigma(stream, 1, samples=MOST)
    request.getfixturevalue("measured")
    np.testing.assert_array_equal(sigma(stream, 2, samples="auto"), few)
    found = sigma(stream, 3, samples="auto", period=50.0 + 100 + 4)
    np.testing.assert_array_equal(found, [few[0], most[1]])
    assert stream.samples.tolist() == [4, MOST]


@pytest.mark.usefixtures("measured")
def test_a_new_one_has_it_before_a_near_one(stream: Stream) -> None:
    """The near one was there before, and the first image had 4 samples."""
    sigma(stream, 0, BOXES[1:], samples="auto")
    sigma(stream, 1, samples="auto", period=50.0 + 2 * (MOST + 4))
    assert stream.samples.tolist() == [MOST, 4]
