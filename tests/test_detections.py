"""The user's detections: message to boxes, and which image they belong to."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_model.core.detection import Detections
from mega_ros.ros.detections import WAITING, Pairs, to_detections
from mega_ros.ros.read import read_stamp
from mega_ros.ros.standard import MESSAGES, header


def make(name: str, *fields: Any) -> Any:
    return MESSAGES.types[name](*fields)


POSE = make(
    "geometry_msgs/msg/PoseWithCovariance",
    make(
        "geometry_msgs/msg/Pose",
        make("geometry_msgs/msg/Point", 0.0, 0.0, 0.0),
        make("geometry_msgs/msg/Quaternion", 0.0, 0.0, 0.0, 1.0),
    ),
    np.zeros(36),
)


def detection(box: tuple[float, float, float, float], *hypotheses: tuple[str, float]) -> Any:
    """A vision_msgs/Detection2D. box: centre x, y, width, height. hypotheses: class_id and score."""
    x, y, *size = box
    centre = make("vision_msgs/msg/Pose2D", make("vision_msgs/msg/Point2D", x, y), 0.0)
    results = [
        make("vision_msgs/msg/ObjectHypothesisWithPose", make("vision_msgs/msg/ObjectHypothesis", *hypothesis), POSE)
        for hypothesis in hypotheses
    ]
    return make(
        "vision_msgs/msg/Detection2D", header(0, ""), results, make("vision_msgs/msg/BoundingBox2D", centre, *size), ""
    )


def detections(stamp: int, *found: Any) -> Any:
    """A vision_msgs/Detection2DArray. stamp: nanoseconds."""
    return make("vision_msgs/msg/Detection2DArray", header(stamp, "camera"), list(found))


def read(*found: Any, classes: tuple[str, ...] = ("person", "0"), threshold: float = 0.5) -> Detections:
    return to_detections(detections(0, *found), classes, threshold)


def test_the_bytes_are_those_of_vision_msgs_4() -> None:
    """As the messages are defined: an array's header and length; a detection's header, results, box and id."""
    stamp, result = (5, 6, 1, 0), (7, b"person", 0.75, *[0.0] * 43)
    data = struct.pack("<4x iiIB3xI iiIB3xI I7s5x44d 5d IB", *stamp, 1, *stamp, 1, *result, 50, 60, 0, 20, 40, 1, 0)
    message = MESSAGES.deserialize_cdr(b"\0\1" + data[2:], "vision_msgs/msg/Detection2DArray")
    assert read_stamp(message) == 5_000_000_006
    found = to_detections(message, ["person"], 0.5)
    assert found.boxes.tolist() == [[40, 40, 60, 80]] and found.scores.tolist() == [0.75]


def test_boxes_are_corners_and_the_best_comes_first() -> None:
    found = read(detection((50, 60, 20, 40), ("person", 0.6)), detection((10, 20, 10, 20), ("person", 0.9)))
    assert found.boxes.tolist() == [[5, 10, 15, 30], [40, 40, 60, 80]]
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.keypoints is None


NUMBERS = st.one_of(st.floats(), st.sampled_from([1e39, -1e39, 1e9, 1e-30]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[NUMBERS] * 4, st.sampled_from(["person", "dog"]), NUMBERS), max_size=4))
def test_any_numbers_are_boxes_that_can_be_used(many: list[tuple[float, float, float, float, str, float]]) -> None:
    """A detection that cannot be used must not cost the others of its image."""
    usable = detection((50, 60, 20, 40), ("person", 0.6))
    found = read(usable, *(detection((x, y, w, h), (name, s)) for x, y, w, h, name, s in many), threshold=0.0)
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and (np.diff(found.scores) <= 0).all()
    assert [40, 40, 60, 80] in found.boxes.tolist()


def test_only_people_count() -> None:
    box = (50.0, 60.0, 20.0, 40.0)
    assert len(read(detection(box, ("dog", 0.9))).boxes) == 0
    assert len(read(detection(box, ("dog", 0.9), ("person", 0.6))).boxes) == 0
    assert read(detection(box, ("dog", 0.6), ("person", 0.9))).scores.tolist() == pytest.approx([0.9])
    assert len(read(detection(box, ("0", 0.9))).boxes) == 1
    assert len(read(detection(box, ("human", 0.9)), classes=("human",)).boxes) == 1
    assert len(read(detection(box, ("person", 0.4))).boxes) == 0
    assert len(read(detection(box, ("person", 0.5))).boxes) == 1
    assert len(read(detection(box, ("person", 0.4)), threshold=0.3).boxes) == 1
    assert read(detection(box)).scores.tolist() == [1]


@pytest.mark.parametrize("box", [(np.nan, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, -5), (0, np.inf, 5, 5)])
def test_boxes_that_are_none_are_left_out(box: tuple[float, float, float, float]) -> None:
    assert len(read(detection(box, ("person", 0.9))).boxes) == 0
    assert len(read(detection((50, 60, 20, 40), ("person", np.nan))).boxes) == 0
    assert read().boxes.shape == (0, 4)


def test_images_and_detections_pair_by_stamp_whichever_is_first() -> None:
    pairs: Pairs[str] = Pairs()
    one, two = read(detection((9, 9, 8, 8))), read()
    assert pairs.add_image(1, "first") is None
    assert pairs.add_detections(2, two) is None
    assert pairs.add_detections(1, one) == ("first", one)
    assert pairs.add_image(2, "second") == ("second", two)
    assert pairs.add_detections(2, two) is None and pairs.alone == 0


def test_images_that_the_detector_skipped_are_counted() -> None:
    pairs: Pairs[int] = Pairs()
    for stamp in range(5):
        pairs.add_image(stamp, stamp)
    assert pairs.add_detections(3, read()) is not None
    assert pairs.alone == 3 and pairs.alone_since_pair == 0
    assert pairs.add_detections(2, read()) is None
    assert pairs.add_detections(4, read()) is not None


def test_an_image_that_another_of_its_stamp_replaces_is_counted() -> None:
    pairs: Pairs[str] = Pairs()
    assert pairs.add_image(1, "first") is None and pairs.add_image(1, "second") is None
    found = read()
    assert pairs.add_detections(1, found) == ("second", found)
    assert pairs.alone == 1


def test_images_wait_for_a_second() -> None:
    """Of a slow camera, as many as of a fast one would be minutes, and all the memory."""
    pairs: Pairs[int] = Pairs()
    for k in range(20):
        pairs.add_image(k * 400_000_000, k)
    assert pairs.alone == 17
    assert pairs.add_detections(16 * 400_000_000, read()) is None
    assert pairs.add_detections(17 * 400_000_000, read()) is not None


def test_what_never_finds_a_partner_does_not_pile_up() -> None:
    pairs: Pairs[int] = Pairs()
    for stamp in range(3 * WAITING):
        pairs.add_image(stamp, stamp)
        pairs.add_detections(10**9 + stamp, read())
    assert pairs.alone == pairs.alone_since_pair == 2 * WAITING
    assert pairs.add_detections(0, read()) is None
    assert pairs.add_image(10**9, 0) is None
    assert pairs.add_image(10**9 + 3 * WAITING - 1, 0) is not None
