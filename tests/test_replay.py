"""Replay: reading and playing bags, scoring against ground truth, and `mega demo` as a user runs it."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from scipy import stats
from sensor_msgs.msg import CameraInfo, CompressedImage

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError
from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import LIMB_JOINTS, SMPL_JOINTS, Topology
from mega_ros import cli
from mega_ros.recovery import People
from mega_ros.replay import score as scoring
from mega_ros.replay import sources
from mega_ros.replay.bags import open_bag, read_bag
from mega_ros.replay.bootstrap import interval, ratios, resamples
from mega_ros.replay.coco import Person, Photograph
from mega_ros.replay.frames import Recorded
from mega_ros.replay.measures import promised
from mega_ros.replay.photographs import torso
from mega_ros.replay.recording import Recording
from mega_ros.replay.reference import Truth
from mega_ros.replay.report import what_is_normal
from mega_ros.replay.score import Score, match, overlaps
from mega_ros.replay.sources import Source
from mega_ros.ros.images import to_bgr
from mega_ros.ros.read import positions, read_cloud, read_stamp
from mega_ros.ros.standard import MESSAGES

K = intrinsics_from_fov(640, 480, 1.0)
BODY = np.random.default_rng(0).normal(size=(60, 3)) * [0.2, 0.5, 0.1]


@pytest.fixture
def topology() -> Topology:
    regressor = np.eye(len(SMPL_JOINTS), len(BODY), dtype=np.float32)
    return Topology(BODY.astype(np.float32), np.array([[0, 1, 2]]), regressor, np.zeros(len(BODY), np.int32))


def found(*places: tuple[float, float, float], sigma: float = 0.0, ids: Sequence[int] | None = None) -> People:
    """BODY at some places."""
    vertices = np.array(places, np.float32).reshape(-1, 1, 3) + BODY.astype(np.float32)
    count, joints = len(vertices), len(SMPL_JOINTS)
    return People(
        vertices,
        np.full((count, len(BODY)), sigma, np.float32),
        vertices[:, :joints],
        np.full((count, joints), sigma, np.float32),
        np.arange(count, dtype=np.uint32) if ids is None else np.array(ids, np.uint32),
        np.zeros((count, 4), np.float32),
        np.ones(count, np.float32),
        np.ones(count, np.float32),
        np.zeros((count, 0, len(BODY), 3), np.float32),
    )


def truth(*places: tuple[float, float, float], visible: float = 1.0, ids: Sequence[int] | None = None) -> Truth:
    people = found(*places, ids=ids)
    seen = np.tile(np.arange(len(BODY)) < visible * len(BODY), (len(people), 1))
    return Truth(people.joints, people.vertices, seen, people.ids)


def scored(topology: Topology, *frames: tuple[People, Truth], times: Sequence[float] | None = None) -> Score:
    """After all frames, by default a tenth of a second apart."""
    score = Score(topology)
    for k, (people, true) in enumerate(frames):
        stamp = round((0.1 * k if times is None else times[k]) * 1e9)
        score.add({"stamp": stamp}, people, true, Camera(K), (640, 480))
    score.finish()
    return score


def test_stamps_of_another_clock_have_no_latency() -> None:
    """As of a simulation, or of a camera that counts from its start."""
    for age, expected in ((10**7, [0.06]), (10**18, [])):
        recording = Recording(sent={5: 1.0}, arrived={5: 1.05}, due={5: 5 + age})
        assert recording.latencies() == pytest.approx([0.05])
        assert recording.latencies_from_stamp() == pytest.approx(expected)


def test_people_are_matched_by_where_they_are_not_by_their_order() -> None:
    vertices = np.array([(-1, 0, 4), (1, 0, 5)])[:, None] + BODY
    assert sorted(match(overlaps(vertices, vertices[::-1], Camera(K)))) == [(0, 1), (1, 0)]


def test_boxes_that_overlap_too_little_part_nobody() -> None:
    """Two overlaps of 0.29 are more than one of 0.35, but neither is enough for a pair."""
    assert match(np.array([[0.35, 0.29], [0.29, 0]])) == [(0, 0)]


def test_a_perfect_answer_has_no_error(topology: Topology) -> None:
    summary = scored(
        topology, (found((1, 0, 5), (-1, 0, 4), sigma=0.03), truth((-1, 0, 4), (1, 0, 5), visible=0.5))
    ).summary()
    assert (summary["true_people"], summary["false_negatives"], summary["false_positives"]) == (2, 0, 0)
    assert summary["pve"] == summary["mpjpe"] == pytest.approx(0, abs=1e-6)
    assert summary["sigma_visible"] == summary["sigma_hidden"] == pytest.approx(0.03)


def test_a_shifted_person_is_off_in_position_only(topology: Topology) -> None:
    summary = scored(topology, (found((0.06, 0, 4.08)), truth((0, 0, 4)))).summary()
    assert summary["position"] == pytest.approx(0.1, abs=1e-5)
    assert summary["pve"] == pytest.approx(0, abs=1e-5)


def test_misses_and_inventions_are_counted(topology: Topology) -> None:
    summary = scored(
        topology,
        (found((-1, 0, 4)), truth((1, 0, 5))),
        (found(), truth((1, 0, 5))),
        (found((1, 0, 5)), truth()),
    ).summary()
    assert (summary["frames"], summary["true_people"], summary["false_negatives"], summary["false_positives"]) == (
        3,
        2,
        2,
        2,
    )
    assert "pve" not in summary


def test_a_hidden_person_may_be_found_or_not(topology: Topology) -> None:
    for answer in (found(), found((0, 0, 4))):
        summary = scored(topology, (answer, truth((0, 0, 4), visible=0.0))).summary()
        assert (summary["true_people"], summary["false_negatives"], summary["false_positives"]) == (0, 0, 0)
        assert "pve" not in summary


def test_joints_alone_are_a_reference(topology: Topology) -> None:
    people = found((0, 0, 4), sigma=0.1)
    joints = people.joints + 0.0
    joints[0, 1:] += [0.03, 0, 0.04]
    joints[0, 5, 1] = np.nan
    (row,) = scored(topology, (people, Truth(joints))).rows
    assert "pve" not in row
    assert row["mpjpe"] == pytest.approx(0.05 * 22 / 23, abs=1e-6)  # of 23 known joints, one is the pelvis
    assert row["coverage_1_sigma"] == 1 and row["coverage_2_sigma_visible"] == 1


def test_keypoints_in_the_image_are_scored_by_the_torso(topology: Topology) -> None:
    """All joints are shifted by a tenth of a metre at the same depth, so all have one error in pixels."""
    people, true = found((0, 0, 4)), truth((0.1, 0, 4))
    score = scored(topology, (people, true), (found(), true))
    first, second = score.rows
    pixels = project(true.joints[0, LIMB_JOINTS], K)
    error = np.linalg.norm(pixels - project(people.joints[0, LIMB_JOINTS], K), axis=1)
    box = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
    length = torso(Person(box, pixels, np.ones(12, bool), False, None))
    assert first["normalised_error"] == pytest.approx(error.mean() / length, rel=1e-5)
    assert first["pck"] == pytest.approx((error <= 0.2 * length).mean())
    assert (second["joints"], second["joints_found"], second["pck"]) == (12, 0, 0)
    summary = score.summary()
    assert summary["pck"] == pytest.approx(first["pck"] / 2)
    assert summary["normalised_error"] == first["normalised_error"]


def test_a_joint_that_is_recovered_behind_the_camera_is_wrong(topology: Topology) -> None:
    """It has no place in the image, but is not without annotation."""
    people, true = found((0, 0, 4)), truth((0, 0, 4))
    joints = people.joints.copy()
    joints[0, LIMB_JOINTS[-1], 2] = -0.1
    (row,) = scored(topology, (replace(people, joints=joints), true)).rows
    assert (row["joints"], row["joints_found"]) == (12, 11) and row["pck"] == pytest.approx(11 / 12)


def test_sigma_is_compared_across_the_line_of_sight_only(topology: Topology) -> None:
    place = np.array((0.4, 0, 4))
    pelvis = place + BODY[0]
    nearer, beside = tuple(place - 0.2 * pelvis), tuple(place + [0.06, 0.08, 0])
    (row,) = scored(topology, (found(nearer, sigma=1e-3), truth(tuple(place)))).rows
    assert row["coverage_1_sigma"] == 1 and row["position"] == pytest.approx(0.2 * np.linalg.norm(pelvis), abs=1e-5)
    (row,) = scored(topology, (found(beside, sigma=0.06), truth(tuple(place)))).rows
    assert row["coverage_1_sigma"] == 0 and row["coverage_2_sigma"] == 1
    assert row["pve"] == pytest.approx(0, abs=1e-5)
    people = found(beside, sigma=0.11)
    people.vertices[:, len(SMPL_JOINTS) :] += [0.06, 0.08, 0]  # these are 20 cm off, the others 10
    (row,) = scored(topology, (people, truth(tuple(place)))).rows
    assert row["coverage_1_sigma"] == pytest.approx(24 / 60) and row["coverage_2_sigma"] == 1


@pytest.mark.parametrize("sigma", [0, np.nan, np.inf])
def test_without_a_sigma_nothing_is_said_of_it(topology: Topology, sigma: float) -> None:
    score = scored(topology, (found((0.1, 0, 4), sigma=sigma), truth((0, 0, 4))))
    assert not [name for name in score.rows[0] if "sigma" in name or name in ("spearman", "ause")]
    assert score.curves({}) == {} and score.summary()["pve"] == pytest.approx(0, abs=1e-5)


def test_sigma_of_visible_and_hidden_vertices(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 of 60 vertices are hidden, 15 cm off, with a sigma of 10 cm."""
    people = found((0, 0, 4), sigma=0.01)
    people.sigma[:, 30:] = 0.1
    people.vertices[:, 30:, 0] += 0.15
    people.joints_sigma[:] = 5
    frame = replace(people, joints=found((0, 0, 4)).joints), truth((0, 0, 4), visible=0.5)
    score = scored(topology, frame)
    (row,) = score.rows
    names = ("sigma", "points", "coverage_1_sigma", "coverage_2_sigma")
    assert [row[f"{name}_visible"] for name in names] == pytest.approx([0.01, 30, 1, 1])
    assert [row[f"{name}_hidden"] for name in names] == pytest.approx([0.1, 30, 0, 1])
    assert row["spearman"] > 0.8 and row["ause"] < 0.1
    calibration = score.curves({"0.50": 1.0})["calibration"]
    assert (calibration["visible"], calibration["hidden"]) == ([1], [0])
    monkeypatch.setattr(scoring, "POOLED", 20)
    (row,) = scored(topology, frame).rows
    assert row["points_visible"] == row["points_hidden"] == 10, "evenly spaced"


@pytest.mark.parametrize(
    ("place", "counts"), [((0, 0, 4), 1), ((1.8, 0, 4), 1), ((0, 0, -4), 0), ((4, 0, 4), 0), ((0, 3, 4), 0)]
)
def test_who_is_in_the_image_counts(topology: Topology, place: tuple[float, float, float], counts: int) -> None:
    true = replace(truth(place), visible=None)
    assert scored(topology, (found(), true)).rows[0]["true_people"] == counts


@pytest.mark.parametrize(("visible", "counts"), [(0.05, 1), (0.03, 0)])
def test_a_person_of_whom_little_is_visible_counts(topology: Topology, visible: float, counts: int) -> None:
    assert scored(topology, (found(), truth((0, 0, 4), visible=visible))).rows[0]["true_people"] == counts


@pytest.mark.parametrize(("overlap", "matched"), [(0.45, 1), (0.2, 0)])
def test_boxes_must_overlap_enough(topology: Topology, overlap: float, matched: int) -> None:
    flat = BODY * [1, 1, 0] + [0, 0, 4]
    shift = np.ptp(flat[:, 0]) * (1 - overlap) / (1 + overlap) * np.array([1, 0, 0])
    people, true = found((0, 0, 4)), truth((0, 0, 4))
    people = replace(people, vertices=(flat + shift).astype(np.float32)[None])
    true = replace(true, vertices=flat.astype(np.float32)[None])
    (row,) = scored(topology, (people, true)).rows
    assert (row["matched"], row["false_negatives"], row["false_positives"]) == (matched, 1 - matched, 1 - matched)


def test_a_hidden_person_who_is_found_is_right_but_not_compared(topology: Topology) -> None:
    people, true = found((-1, 0, 4), (1, 0, 4)), truth((-1, 0, 4), (1, 0, 4))
    assert true.visible is not None
    true.visible[1] = False
    (row,) = scored(topology, (people, true)).rows
    assert (row["true_people"], row["matched"], row["compared"], row["false_positives"]) == (1, 2, 1, 0)
    assert row["recall"] == row["precision"] == 1


def test_the_best_sample_is_that_of_the_least_error(topology: Topology) -> None:
    people = found((0, 0, 4))
    wrong = people.vertices + np.random.default_rng(1).normal(0, 0.1, people.vertices.shape).astype(np.float32)
    samples = np.stack([wrong, people.vertices], axis=1)
    (row,) = scored(topology, (replace(people, vertices=wrong, samples=samples), truth((0, 0, 4)))).rows
    assert row["pve"] > 0.1
    assert [row[f"best_{name}"] for name in ("pve", "mpjpe", "pa_mpjpe")] == pytest.approx([0, 0, 0], abs=1e-5)


def test_people_weigh_the_same_in_all_frames_together(topology: Topology) -> None:
    """Two people 0 and one 30 cm off, in two frames."""
    both = truth((-1, 0, 4), (1, 0, 4), ids=[1, 2])
    far = found((1, 0, 4.3))
    score = scored(topology, (found((-1, 0, 4), (1, 0, 4)), both), (far, truth((1, 0, 4), ids=[2])))
    assert score.summary()["position"] == pytest.approx(0.1, abs=1e-5)
    assert [person["position"] for person in score.persons()] == pytest.approx([0, 0.15], abs=1e-5)


def test_a_number_of_all_frames_weighs_each_frame_by_what_it_counts(topology: Topology) -> None:
    one, *more = (0.0, 0, 5), (-2, 0, 5), (2, 0, 5)
    summary = scored(topology, (found(one), truth(one, *more)), (found(one, *more), truth(one))).summary()
    assert summary["recall"] == summary["precision"] == 2 / 4, "of all people, not the mean of 1 and 1/3"

    beside = (0.15, 0, 5)
    summary = scored(
        topology,
        (found(beside, sigma=0.1), truth(one, visible=0.5)),  # all points are 15 cm off
        (found(beside, sigma=0.2), truth(one, visible=0.9)),
    ).summary()
    for name, first, second in (("visible", 30, 54), ("hidden", 30, 6)):
        assert summary[f"sigma_{name}"] == pytest.approx((0.1 * first + 0.2 * second) / (first + second))
        assert summary[f"coverage_1_sigma_{name}"] == pytest.approx(second / (first + second))

    score = scored(topology, (found(beside), truth(one, *more)), (found((0.05, 0, 5)), truth(one)))
    wide, narrow = (row["normalised_error"] for row in score.rows)
    assert score.summary()["normalised_error"] == pytest.approx((wide + narrow) / 2), "both of one person who is found"


def test_annotated_photographs_by_hand(topology: Topology) -> None:
    """One is exact but for the scale, one with 4 joints is all wrong, two are missed, and one is invented."""
    people = found((-1.2, 0, 4), (0, 0, 4), (1.2, 0, 4))
    pixels = project(people.joints[:, LIMB_JOINTS], K)
    boxes = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
    people = replace(people, boxes=boxes.astype(np.float32))
    every, four, three = (np.arange(12) < count for count in (12, 4, 3))
    elsewhere = np.array([0.0, 300, 50, 480])
    annotated = [
        Person(boxes[0], pixels[0], every, False, 1.3 * people.joints[0, LIMB_JOINTS].astype(float)),
        Person(boxes[1], pixels[1] + 1000, four, False, None),
        Person(elsewhere, pixels[0], every, False, None),
        Person(elsewhere + [500, 0, 500, 0], pixels[0], three, False, None),
    ]
    for complete in (True, False):
        photograph = Photograph(Path("a.png"), 640, 480, "", annotated, np.zeros((0, 4)), complete)
        score = Score(topology)
        score.add({"stamp": 0}, people, photograph, Camera(K), (640, 480))
        (row,) = score.rows
        assert (row["true_people"], row["false_negatives"], row["recall"]) == (4, 2, 0.5)
        assert (row["matched"], row["false_positives"]) == ((2, 1) if complete else (0, 0))
        assert row.get("precision") == (pytest.approx(2 / 3) if complete else None)
        assert row["pck"] == pytest.approx(12 / 28), "three joints are too few"
        assert row["compared"] == 1 and row["pa_mpjpe"] == pytest.approx(0, abs=1e-5)


LEFT, RIGHT = (-1, 0, 4), (1, 0, 4)


def test_identities_by_hand(topology: Topology) -> None:
    """Two people in four frames: 7 and 8 are their true ids. Found as 0 and 1; then 0 as 2; then only one, swapped."""
    both = truth(LEFT, RIGHT, ids=[7, 8])
    score = scored(
        topology,
        (found(LEFT, RIGHT, ids=[0, 1]), both),
        (found(LEFT, RIGHT, ids=[2, 1]), both),
        (found(LEFT, RIGHT, ids=[2, 1]), both),
        (found(RIGHT, ids=[2]), both),
    )
    summary = score.summary()
    assert [row["switches"] for row in score.rows] == [0, 1, 0, 1]
    assert summary["switches"] == 2 and summary["switch_rate"] == pytest.approx(2 / 8)
    # 7 is 2 in two frames, 8 is 1 in three: 5 right ones; 8 true, 7 recovered
    assert summary["idf1"] == pytest.approx(2 * 5 / (8 + 7))
    assert [(p["person"], p["frames"], p["found"], p["ids"]) for p in score.persons()] == [
        (7, 4, 3, [0, 2]),
        (8, 4, 4, [1, 2]),
    ]


def test_another_id_after_a_miss_is_a_switch(topology: Topology) -> None:
    true = truth(LEFT, ids=[7])
    score = scored(topology, (found(LEFT, ids=[0]), true), (found(), true), (found(LEFT, ids=[1]), true))
    assert [row["switches"] for row in score.rows] == [0, 0, 1]


def test_an_id_stays_right_while_somebody_else_overlaps_more(topology: Topology) -> None:
    """Ristani's IDF1 counts each overlap of true and recovered, not only the frame's best pairs; CLEAR's switches do.

    In two of four frames, the recovered 1 stands 5 cm beside the true person, and the recovered 0 nearer. TrackEval
    1.3.0 gives the same IDF1.
    """
    true = truth(LEFT, ids=[7])
    alone = found((-0.95, 0, 4), ids=[1])
    both = found((-0.95, 0, 4), (-1.01, 0, 4), ids=[1, 0])
    score = scored(topology, (alone, true), (both, true), (both, true), (alone, true))
    assert [row["switches"] for row in score.rows] == [0, 1, 0, 1]
    assert score.summary()["idf1"] == pytest.approx(2 * 4 / (4 + 6))


def test_who_need_not_be_found_has_no_part_in_identities(topology: Topology) -> None:
    """8 is hidden, 5 cm beside another person: neither whom 8 overlaps counts, nor who is recovered as 8."""
    beside = (-1.05, 0, 4)

    def true(shown: int) -> Truth:
        both = truth(LEFT, beside, ids=[shown, 8])
        assert both.visible is not None
        both.visible[1] = False
        return both

    for frames in (
        ((found(LEFT, ids=[1]), true(7)), (found(LEFT, ids=[1]), true(6))),  # only 8 overlaps 1 in both frames
        (
            (found(LEFT, beside, ids=[2, 1]), true(7)),
            (found(LEFT, beside, ids=[3, 1]), true(7)),
        ),  # and only 1 is near 7
    ):
        assert scored(topology, *frames).summary()["idf1"] == pytest.approx(2 * 1 / (2 + 2))


def test_people_without_a_true_identity_have_no_track(topology: Topology) -> None:
    true = truth(LEFT)
    score = scored(topology, (found(LEFT), Truth(true.joints, true.vertices)))
    assert "idf1" not in score.summary() and score.persons() == []


def test_acceleration_by_hand(topology: Topology) -> None:
    """The right hand is recovered at 0, 0.1, 0.4 m and rests in truth; three frames at 0.1 s: 20 m/s² of one joint."""
    frames, hand = [], SMPL_JOINTS.index("right_hand")
    for place in (0.0, 0.1, 0.4):
        people = found(LEFT)
        people.joints[0, hand, 0] += place
        frames.append((people, truth(LEFT, ids=[3])))
    moved = scored(topology, *frames)
    assert ["acceleration" in row for row in moved.rows] == [False, False, True]
    assert moved.summary()["acceleration"] == pytest.approx(20 / 24, rel=1e-4)
    gap = scored(topology, *frames[:2], (found(), truth(LEFT, ids=[3])), frames[2])
    assert "acceleration" not in gap.summary()
    uneven = scored(topology, *frames, times=(0, 0.1, 0.3))  # 1.0 and 1.5 m/s
    assert uneven.summary()["acceleration"] == pytest.approx(0.5 / 0.15 / 24, rel=1e-4)
    both = found(LEFT, RIGHT), truth(LEFT, RIGHT, ids=[3, 4])
    both[0].joints[0, hand, 0] += 0.4
    joined = scored(topology, *frames[:2], both, both, both)  # 20, then 30 m/s², while 4 is new; then both rest
    assert joined.summary()["acceleration"] == pytest.approx((20 + 30 + 2 * 0) / 24 / 4, rel=1e-4)
    known = frames[0][1].joints.copy()
    known[0, 5] = np.nan
    partly = scored(topology, *((people, Truth(known, ids=np.array([3]))) for people, _ in frames))
    assert partly.summary()["acceleration"] == pytest.approx(20 / 23, rel=1e-4)
    as_a_whole = scored(topology, *((found((-1, 0, z)), truth(LEFT, ids=[3])) for z in (4, 4.1, 4.4)))
    assert as_a_whole.summary()["acceleration"] == pytest.approx(0, abs=1e-3), "the pelvises are put together"
    again = scored(topology, *frames, frames[0], times=(0.2, 0.3, 0.1, 0.2))
    assert "acceleration" not in again.summary(), "the recording starts again"


def test_intervals_cover_the_numbers_of_all_frames(topology: Topology) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(40):
        people = found(LEFT)
        sigma = rng.uniform(0.01, 0.1, people.sigma.shape).astype(np.float32)
        vertices = people.vertices + rng.normal(0, 1, people.vertices.shape) * sigma[..., None] / np.sqrt(3)
        vertices[:, 0] = people.vertices[:, 0]  # the pelvis
        vertices = vertices.astype(np.float32)
        frames.append((replace(people, vertices=vertices, sigma=sigma, joints=vertices[:, :24]), truth(LEFT)))
    score = scored(topology, *frames)
    summary, intervals = score.summary(), score.intervals()
    for name in ("pve", "mpjpe", "spearman", "ause", "coverage_1_sigma_visible"):
        low, high = intervals[name]
        assert low < summary[name] < high, name
        assert high - low < 0.2 * summary[name], name
    assert abs(summary["coverage_1_sigma"] - 0.608) < 0.03  # the error model of `metrics.radius` holds here
    curves = score.curves({})
    calibration = curves["calibration"]
    np.testing.assert_allclose(calibration["all"], calibration["levels"], atol=0.04)
    assert "hidden" not in calibration  # all are visible
    assert score.curves({"0.50": 1e-3, "0.90": 1e3})["calibration"] == {
        "levels": [0.5, 0.9],
        "all": pytest.approx([0, 1], abs=0.1),
        "visible": pytest.approx([0, 1], abs=0.1),
    }
    assert curves["sparsification"]["sigma"][0] == pytest.approx(1)
    assert all(a >= b - 1e-9 for a, b in zip(curves["sparsification"]["sigma"], curves["sparsification"]["error"]))


def test_a_share_is_promised_by_the_manifest_or_by_the_error_model() -> None:
    assert promised("coverage_1_sigma_visible", {"1 sigma": 0.7}) == 0.7
    assert promised("coverage_2_sigma", {"1 sigma": 0.7}) == pytest.approx(stats.chi(3).cdf(2 * np.sqrt(3)))


def test_the_bootstrap_draws_blocks() -> None:
    """Of frames whose error changes slowly, blocks are alike, so the interval is wider than that of single frames."""
    slow = np.repeat([0.0, 1.0] * 6, 18)
    sums = np.stack([slow, np.ones_like(slow)], axis=1)[:, None]
    low, high = interval(ratios(sums)[:, 0])
    single = 2 * 1.96 * slow.std() / np.sqrt(len(slow))
    assert high - low > 1.8 * single
    assert interval(np.array([np.nan, *range(1001)])) == pytest.approx((25, 975)), "95 % of them lie within"
    np.testing.assert_array_equal([*resamples(27, 5)], [*resamples(27, 5)])
    for chosen in resamples(27, 5):
        assert len(chosen) == 27
        assert (np.diff(chosen.reshape(-1, 3), axis=1) % 27 == 1).all()


@pytest.mark.parametrize("storage", StoragePlugin)
def test_a_bag_is_read_in_time_order_with_the_wanted_topics_only(tmp_path: Path, storage: StoragePlugin) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    text = store.types["std_msgs/msg/String"]
    with Writer(tmp_path / "bag", version=9, storage_plugin=storage) as writer:
        topics = [writer.add_connection(name, text.__msgtype__, typestore=store) for name in ("/a", "/b", "/c")]
        for stamp in (30, 10, 20):
            for topic in topics:
                data = store.serialize_cdr(text(f"{topic.topic} {stamp}"), text.__msgtype__)
                writer.write(topic, stamp, data)
    messages = list(read_bag(tmp_path / "bag", ["/a", "/c"]))
    assert [m.time for m in messages] == [10, 10, 20, 20, 30, 30]
    assert {m.topic for m in messages} == {"/a", "/c"}
    first: Any = store.deserialize_cdr(messages[0].data, messages[0].type)
    assert first.data == f"{messages[0].topic} 10"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    storage=st.sampled_from([*StoragePlugin]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    missing=st.floats(0, 1),
)
def test_any_damage_of_a_bag_is_messages_or_one_line(
    tmp_path: Path, storage: StoragePlugin, changes: list[tuple[float, int]], missing: float
) -> None:
    folder = tmp_path / storage.name
    if not folder.exists():
        with Writer(folder, version=9, storage_plugin=storage) as writer:
            topic = writer.add_connection("/a", "std_msgs/msg/String", typestore=MESSAGES)
            for stamp in range(3):
                writer.write(topic, stamp, MESSAGES.serialize_cdr(MESSAGES.types[topic.msgtype]("a"), topic.msgtype))
    (whole,) = (path for path in folder.iterdir() if path.name != "metadata.yaml")
    data = bytearray(whole.read_bytes())
    for at, value in changes:
        data[int(at * (len(data) - 1))] = value
    damaged = tmp_path / f"damaged{whole.suffix}"
    damaged.write_bytes(data[: len(data) - int(missing**8 * len(data))])
    try:
        with open_bag(damaged) as bag:
            for connection, _, raw in bag.messages(bag.topics):
                bag.read(connection, raw)
    except InputError as error:
        assert "\n" not in str(error) and str(damaged) in str(error)


def test_a_photograph_becomes_a_moving_stream_at_a_steady_rate(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    messages = list(sources.photograph(tmp_path / "photo.png", 1.0).messages)
    images = [m for m in messages if m.topic == sources.COMPRESSED]
    assert len(images) == len(messages) / 2 == 120
    np.testing.assert_allclose(np.diff([m.time for m in images]), 1e9 / 15, atol=1)
    assert images[0].data != images[40].data
    info, image = (deserialize_message(m.data, kind) for m, kind in zip(messages, (CameraInfo, CompressedImage)))
    assert info.header == image.header and info.header.frame_id == "camera_optical_frame"
    assert read_stamp(info) == messages[0].time
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), intrinsics_from_fov(400, 300, 1.0))
    assert to_bgr(image).shape == (300, 400, 3) and (info.height, info.width) == (300, 400)


@pytest.mark.parametrize("address", [False, True])
def test_a_camera_is_a_device_or_an_address(address: bool, tmp_path: Path) -> None:
    """The file stands for a device; a server on this machine, for a camera in the network."""
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = f"http://127.0.0.1:{server.server_port}/film.avi" if address else str(tmp_path / "film.avi")
        source = sources.camera(name, 1.0)
        images = [m.read() for m in source.messages if m.topic == sources.COMPRESSED]
        server.shutdown()
    assert source.live and len(images) == 3 and to_bgr(images[0]).shape == (48, 64, 3)


def truth_of(folder: Path) -> dict[int, np.ndarray]:
    """Stamp -> cloud."""
    clouds = [message.read() for message in read_bag(folder, [sources.GROUND_TRUTH])]
    return {read_stamp(cloud): read_cloud(cloud) for cloud in clouds}


def test_the_embedded_clip(root: Path) -> None:
    folder = root / "demo" / "clip"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    source = Recorded(folder).played()
    assert source.count == 90
    messages = list(source.messages)
    images = [m for m in messages if m.topic == sources.COMPRESSED]
    np.testing.assert_allclose([m.time - images[0].time for m in images], np.arange(90) * 1e9 / 15, atol=1)
    image = to_bgr(deserialize_message(images[0].data, CompressedImage))
    info = next(m for m in messages if m.topic == sources.INFO)
    K = deserialize_message(info.data, CameraInfo).k.reshape(3, 3)
    assert image.shape == (480, 640, 3)
    truth = truth_of(folder)
    assert set(truth) <= {m.time for m in images}
    shares = []
    for people in truth.values():
        visible = people["visible"] == 1
        pixels = project(positions(people), K)[visible]
        assert ((pixels >= -0.1) & (pixels <= [640.1, 480.1])).all()  # truth is kept to the millimetre
        shares.append(visible.mean(axis=1))
    assert np.shape(shares) == (30, 2)
    assert np.min(shares) < 0.15 < 0.45 < np.max(shares)  # half of a body faces the camera; one passes behind something


def test_the_embedded_clip_shows_what_its_script_makes(root: Path) -> None:
    pytest.importorskip("anny", reason="bodies need the extra train")
    from export.clip import camera, scene
    from mega_model.body.anny import AnnyBody

    truth = truth_of(root / "demo" / "clip")
    made = camera().camera(scene(AnnyBody())[::3])
    np.testing.assert_allclose([positions(truth[stamp]) for stamp in sorted(truth)], made, atol=2e-3)


@pytest.fixture
def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def demo(*args: str) -> list[str]:
    return [sys.executable, "-m", "mega_ros.cli", "demo", *args]


def test_demo_on_the_embedded_clip(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        demo("--seconds", "2", "--out", str(tmp_path)), env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sent"] == 31
    assert sum(report[name] for name in ("received", "dropped", "rejected", "lost")) == report["sent"]
    assert report["received"] > 0
    assert 0 < report["latency_p50"] <= report["latency_p95"]
    assert report["truth"]["frames"] == 30  # all, whatever the node caught
    said = " ".join(done.stdout.split())
    assert "The camera sent 31 images in 2 s; " in said
    for line in ("images sent", "latency p50, p95, p99", "PA-MPJPE", "overlay.webm"):
        assert line in done.stdout
    video = cv2.VideoCapture(str(tmp_path / "overlay.webm"))
    count = 0
    while video.read()[0]:
        count += 1
    assert count == report["sent"]
    if report["people_per_frame"]:
        assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None


def test_a_demo_without_people_leaves_no_contact_sheet_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mega_ros.replay.demo import main
    from mega_ros.replay.live import play

    def without_answers(source: Source, *arguments: Any, **options: Any) -> tuple[Recording, bool]:
        recording = Recording()
        for message in islice(source.messages, 4):
            recording.sending(message)
        return recording, False

    monkeypatch.setattr(play, "play", without_answers)
    out = tmp_path / "out[a]"
    out.mkdir()
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((60, 80, 3), 90, np.uint8))
    (out / "report.json").write_text("{}")
    (out / "contact_sheet.png").write_text("of another run")
    assert main(["--image", str(tmp_path / "grey.png"), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"overlay.webm", "report.json"}
    assert f"  {out / 'report.json'}\n" in capsys.readouterr().out, "the path as it is"


def test_a_bug_in_the_demo_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mega_ros.replay.demo import main

    def fail(path: Path, fov: float) -> Source:
        raise FileNotFoundError("of ours")

    monkeypatch.setattr(sources, "photograph", fail)
    with pytest.raises(FileNotFoundError, match="of ours"):
        main(["--image", "a.png", "--out", str(tmp_path)])


def test_dropped_frames_are_explained() -> None:
    live = {"sent": 90, "seconds": 5.93, "dropped": 60, "lost": 0, "received": 30, "rate_hz": 5.04}
    assert what_is_normal(live).startswith(
        "The camera sent 90 images in 6 s; this machine keeps up with 5.0 per second."
    )
    assert "all of them" in what_is_normal(live | {"received": 90, "dropped": 0}) and "all of" not in what_is_normal(
        live
    )
    assert what_is_normal(live).endswith("that is normal.")
    for few in ({"received": 3, "dropped": 87, "rate_hz": 0.5}, {"received": 30, "dropped": 5, "lost": 55}):
        assert "far fewer than usual" in what_is_normal(live | few) and "normal" not in what_is_normal(live | few)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_demo_and_node(tmp_path: Path, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        demo("--out", str(tmp_path)),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # tests in the background of a shell ignore Ctrl-C, and all that they start would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (node := children(process.pid)) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    assert all(alive(pid) for pid in node)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=600) == 130
    assert not any(alive(pid) for pid in node)


@pytest.mark.parametrize(
    "args",
    [
        ("--image", "nowhere.jpg"),
        ("--image", __file__),
        ("--video", "nowhere.mp4"),
        ("--video", __file__),
        ("--camera", "987"),
        ("--camera", "/dev/nowhere"),
        ("--camera", "http://127.0.0.1:9/stream"),
        ("--bundle", "nowhere"),
        ("--fov", "180"),
        ("--out", __file__),
    ],
)
def test_what_cannot_be_played_is_one_line_and_code_1(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *args]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mega demo: ")
    assert args[1] in line
