"""CameraInfo to cameras: every field is used, or refused by a line that names it and says what to do."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from mega_model.core.cameras import Camera
from mega_ros.ros.camera_info import camera_for, is_rectified

WIDTH, HEIGHT = 900, 600
K = [900.0, 0.0, 450.0, 0.0, 910.0, 300.0, 0.0, 0.0, 1.0]
BIG = [1800.0, 0.0, 900.0, 0.0, 1820.0, 600.0, 0.0, 0.0, 1.0]
P = [450.0, 0.0, 440.0, -90.0, 0.0, 450.0, 310.0, 0.0, 0.0, 0.0, 1.0, 0.0]
TURN = Rotation.from_rotvec([0.0, 0.1, 0.0]).as_matrix()
DISTORTED: dict[str, Any] = {"distortion_model": "plumb_bob", "d": [-0.3, 0.1, 0.001, -0.002, 0.0]}
SENSOR: dict[str, Any] = {"width": 1800, "height": 1200, "k": BIG, "p": [2 * x for x in P[:10]] + P[10:]}


def info(**changes: Any) -> CameraInfo:
    return CameraInfo(**{"width": WIDTH, "height": HEIGHT, "distortion_model": "plumb_bob", "k": K, "p": P} | changes)


def window(x: int, y: int, width: int = WIDTH, height: int = HEIGHT, do_rectify: bool = False) -> dict[str, Any]:
    roi = RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height, do_rectify=do_rectify)
    return SENSOR | {"roi": roi}


def camera(message: Any, rectified: bool = False) -> Camera:
    found, wrong = camera_for(message, WIDTH, HEIGHT, rectified)
    assert found is not None and not wrong, wrong
    return found


def focal_and_centre(found: Camera) -> list[float]:
    return [found.K[0, 0], found.K[1, 1], found.K[0, 2], found.K[1, 2]]


@pytest.mark.parametrize(
    ("changes", "rectified", "expected"),
    [
        ({}, False, [900, 910, 450, 300]),
        ({"distortion_model": ""}, False, [900, 910, 450, 300]),
        (DISTORTED, True, [450, 450, 440, 310]),
        (SENSOR, False, [900, 910, 450, 300]),
        (SENSOR, True, [450, 450, 440, 310]),
        ({"width": 450, "height": 300, "k": [900.0, 0, 300, 0, 910, 200, 0, 0, 1]}, False, [1800, 1820, 600, 400]),
        ({"width": 600, "height": 400, "k": [600.0, 0, 300, 0, 600, 200, 0, 0, 1]}, False, [900, 900, 450, 300]),
        (SENSOR | {"binning_x": 2, "binning_y": 2}, False, [900, 910, 450, 300]),
        (SENSOR | {"binning_x": 2, "binning_y": 2}, True, [450, 450, 440, 310]),
        (SENSOR | {"binning_x": 1, "binning_y": 1}, False, [900, 910, 450, 300]),
        (SENSOR | {"binning_x": 4, "binning_y": 4}, False, [900, 910, 450, 300]),
        ({"height": 1200, "binning_y": 2, "k": [*K[:4], 1820.0, 600.0, *K[6:]]}, False, [900, 910, 450, 300]),
        ({"width": 1801, "height": 1201, "k": BIG, "binning_x": 2, "binning_y": 2}, False, [900, 910, 450, 300]),
        (window(300, 200), False, [1800, 1820, 600, 400]),
        (window(300, 200), True, [900, 900, 580, 420]),
        (window(0, 0, 1800, 1200, True), True, [450, 450, 440, 310]),
        (window(300, 200, do_rectify=True), False, [1800, 1820, 600, 400]),
        (window(300, 200, 1200, 800) | {"binning_x": 2, "binning_y": 2}, False, [1350, 1365, 450, 300]),
        (window(300, 200, 450, 300), False, [3600, 3640, 1200, 800]),
        (window(300, 200, 1440, 480) | {"binning_x": 2}, False, [1125, 2275, 375, 500]),
        ({"width": 0, "height": 0}, False, [900, 910, 450, 300]),
        (window(800, 200) | {"width": 0, "height": 0}, False, [1800, 1820, 100, 400]),
    ],
)
def test_where_the_pixels_lie(changes: dict[str, Any], rectified: bool, expected: list[float]) -> None:
    message = info(**changes)
    assert focal_and_centre(camera(message, rectified)) == pytest.approx(expected)
    store = get_typestore(Stores.ROS2_JAZZY)
    recorded = store.deserialize_cdr(serialize_message(message), "sensor_msgs/msg/CameraInfo")
    assert focal_and_centre(camera(recorded, rectified)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [("plumb_bob", 4), ("plumb_bob", 5), ("equidistant", 4)] + [("rational_polynomial", n) for n in (8, 12, 14)],
)
def test_lenses_are_those_of_raw_images_only(model: str, coefficients: int) -> None:
    message = info(distortion_model=model, d=[0.01 * (k + 1) for k in range(coefficients)])
    raw, rectified = camera(message), camera(message, True)
    assert (raw.lens, list(raw.distortion)) == (model, list(message.d))
    assert rectified.lens == "" and not np.size(rectified.distortion)


@pytest.mark.parametrize("model", ["", "plumb_bob", "rational_polynomial"])
def test_no_coefficients_are_no_distortion(model: str) -> None:
    assert camera(info(distortion_model=model, d=[])).lens == ""
    assert camera(info(distortion_model=model, d=[0.0] * 8 if model.startswith("r") else [0.0] * 5)).lens == ""
    assert camera(info(distortion_model="equidistant", d=[0.0] * 4)).lens == "equidistant"


def test_people_of_a_rectified_image_are_where_a_point_cloud_of_it_is() -> None:
    """P places them, from the camera's centre and without R, as image_geometry and image_pipeline have it."""
    x, y, z = point = np.array([0.3, -0.2, 2.0])
    rectified = camera(info(r=TURN.ravel()), True)
    np.testing.assert_allclose(rectified.project(point), [450 * x / z + 440, 450 * y / z + 310])


@pytest.mark.parametrize(
    ("full", "size"), [((1242, 375), (621, 187)), ((1242, 375), (621, 188)), ((1241, 376), (620, 188))]
)
def test_sides_of_a_scaled_image_are_rounded(full: tuple[int, int], size: tuple[int, int]) -> None:
    """KITTI's images, halved."""
    found, wrong = camera_for(info(width=full[0], height=full[1]), *size)
    assert found is not None and not wrong, wrong
    assert focal_and_centre(found)[:2] == pytest.approx([900 * size[0] / full[0], 910 * size[1] / full[1]])
    assert camera_for(info(width=full[0], height=full[1]), size[0], size[1] + 2)[0] is None


STAND_INS: list[tuple[dict[str, Any], bool, list[float], str]] = [
    (
        {"k": [0.0] * 9} | DISTORTED,
        False,
        [450, 450, 440, 310],
        "K is all zero, so P is used instead, without D; fill in",
    ),
    (
        {"p": [0.0] * 12} | DISTORTED,
        True,
        [900, 910, 450, 300],
        "P is all zero, so K is used instead; fill in P, or set",
    ),
]


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (9000.0, 300.0), (450.0, -1.0)])
def test_a_principal_point_beside_the_sensor_is_said(x: float, y: float) -> None:
    found, wrong = camera_for(info(k=[900.0, 0, x, 0, 910, y, 0, 0, 1]), WIDTH, HEIGHT)
    assert found is not None and focal_and_centre(found)[2:] == [x, y]
    assert wrong.startswith(f"K's principal point {x:g}, {y:g} is not inside width x height, 900 x 600, so people")


@pytest.mark.parametrize(("changes", "rectified", "expected", "warning"), STAND_INS)
def test_a_stand_in_is_said(changes: dict[str, Any], rectified: bool, expected: list[float], warning: str) -> None:
    found, wrong = camera_for(info(**changes), WIDTH, HEIGHT, rectified)
    assert found is not None and focal_and_centre(found) == expected and found.lens == ""
    assert wrong.startswith(warning)


def test_the_matrix_that_is_not_used_may_be_missing() -> None:
    assert focal_and_centre(camera(info(k=[0.0] * 9), True)) == [450, 450, 440, 310]
    assert focal_and_centre(camera(info(p=[0.0] * 12))) == [900, 910, 450, 300]


@pytest.mark.parametrize(
    ("x", "y", "near"),
    [(0.3, 0.3, True), (0.7, 0.7, True), (0.2, 0.5, False), (0.8, 0.5, False), (0.5, 0.2, False), (0.5, 0.8, False)],
)
def test_without_a_size_the_principal_point_is_near_the_middle(x: float, y: float, near: bool) -> None:
    message = info(width=0, height=0, k=[900.0, 0, x * WIDTH, 0, 910, y * HEIGHT, 0, 0, 1])
    assert (camera_for(message, WIDTH, HEIGHT)[0] is not None) == near


NAN = float("nan")
REFUSED: dict[str, tuple[dict[str, Any], bool, str]] = {
    "all zero": ({"k": [0.0] * 9, "p": [0.0] * 12}, False, "K is all zero, and P, too: .*; calibrate it, or set fov"),
    "K not finite": ({"k": [NAN, *K[1:]]}, False, "K is not finite: .*calibrate"),
    "K infinite": ({"k": [*K[:2], float("inf"), *K[3:]]}, False, "K is not finite"),
    "P not finite": ({"p": [NAN, *P[1:]]}, True, "P is not finite"),
    "D not finite": ({"d": [0.1, NAN, 0, 0, 0]}, False, "D is not finite: .*calibrate"),
    "K negative": ({"k": [-900.0, *K[1:]]}, False, "K is no camera matrix in pixels"),
    "K in metres": ({"k": [0.0035, *K[1:]]}, False, "K is no camera matrix in pixels"),
    "K too short": (
        {"k": [15.0, 0, 450, 0, 15, 300, 0, 0, 1]},
        False,
        "K: focal lengths 15, 15 pixels do not fit .*; cal",
    ),
    "P too short": (
        {"p": [15.0, 0, 450, 0, 0, 15, 300, 0, 0, 0, 1, 0]},
        True,
        "P: focal lengths 15, 15 pixels do not fit an image of 900 x 600; calibrate the camera anew",
    ),
    "K by columns": ({"k": [900.0, 0, 0, 0, 900, 0, 450, 300, 1]}, False, "K is no camera matrix in pixels"),
    "P no matrix": ({"p": [0.0, *P[1:]]}, True, "P is no camera matrix"),
    "unknown lens": ({"distortion_model": "fov", "d": [0.9]}, False, "distortion_model 'fov' is unknown; known are"),
    "unknown, long": (
        {"distortion_model": "x" * 10**6, "d": [0.9]},
        False,
        "distortion_model 'xxxxxxxxxxxx...xxxxxxxxxxxxx'",
    ),
    "unknown, zero": ({"distortion_model": "none", "d": [0.0]}, False, "distortion_model 'none' is unknown"),
    "unknown, none": ({"distortion_model": "none", "d": []}, False, "distortion_model 'none' is unknown"),
    "unnamed lens": ({"distortion_model": "", "d": [0.1] * 5}, False, "distortion_model is empty, but D has 5"),
    "few": ({"d": [0.1] * 3}, False, "D has 3 coefficients, plumb_bob has 4 or 5; .*rectified image"),
    "many": ({"d": [0.1] * 8}, False, "D has 8 coefficients, plumb_bob has 4 or 5"),
    "rational": ({"distortion_model": "rational_polynomial", "d": [0.1] * 5}, False, "D has 5 coefficients, rational_"),
    "fisheye": ({"distortion_model": "equidistant", "d": []}, False, "D has 0 coefficients, equidistant has 4"),
    "D without a lens": ({"d": [1e30] * 5}, False, "D: the image shows next to nothing through .*; calibrate"),
    "ratio": (
        {"width": 1800},
        False,
        "it is for 1800 x 600 pixels, the image has 900 x 600, of another ratio; publish",
    ),
    "one side": ({"width": 0}, False, "it is for 0 x 600 pixels"),
    "binning": (SENSOR | {"binning_x": 2}, False, "it is for 900 x 1200 pixels, the image has 900 x 600"),
    "much binning": ({"binning_x": 2**31, "binning_y": 2**31}, False, "it is for 0 x 0 pixels"),
    "roi outside": (window(1000, 200), False, "roi is 900 x 600 at 1000, 200, beyond width x height, 1800 x 1200"),
    "roi below": (window(200, 1000), False, "roi is 900 x 600 at 200, 1000, beyond width x height, 1800 x 1200"),
    "roi empty": (window(10, 0, 0, 0), False, "roi is 0 x 0 at 10, 0, which is empty; fill in"),
    "roi half": (window(0, 0, 900, 0), False, "roi is 900 x 0 at 0, 0, which is empty"),
    "do_rectify": (window(300, 200, do_rectify=True), True, "roi.do_rectify: .*; subscribe to the raw image"),
    "size unknown": (
        {"width": 0, "height": 0, "k": BIG},
        False,
        "width and height are 0, and K's principal point 900, 600",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_one_line(kind: str) -> None:
    changes, rectified, reason = REFUSED[kind]
    found, wrong = camera_for(info(**changes), WIDTH, HEIGHT, rectified)
    assert found is None
    assert "\n" not in wrong
    assert re.match(reason, wrong), wrong


# Each field of the message: changes to one in use, whether the images are rectified, and what then is another.
USES: dict[str, tuple[dict[str, Any], bool]] = {
    "width": ({"width": 450, "height": 300}, False),
    "height": ({"width": 450, "height": 300}, False),
    "distortion_model": ({"distortion_model": "rational_polynomial"}, False),
    "d": (DISTORTED, False),
    "k": ({"k": BIG}, False),
    "p": ({"p": [500.0, *P[1:]]}, True),
    "binning_x": (SENSOR | {"binning_x": 2, "binning_y": 1}, False),
    "binning_y": (SENSOR | {"binning_y": 2, "binning_x": 1}, False),
    "roi.x_offset": (window(300, 0), False),
    "roi.y_offset": (window(0, 200), False),
    "roi.width": (window(0, 0, 450, 600), False),
    "roi.height": (window(0, 0, 900, 300), False),
    "roi.do_rectify": (window(300, 200, do_rectify=True), True),
}
ELSEWHERE = {
    "header": "the stamp, by which a replay chooses it; the frame, which must be the image's (test_transport.py)",
    "r": "what turns the raw image into the rectified one, and no image is rectified here",
}


def test_every_field_is_used_or_refused() -> None:
    """A field that ROS adds must be decided about here, and in docs/robot/cameras.md."""
    fields = [name for name in CameraInfo.get_fields_and_field_types() if name != "roi"]
    fields += [f"roi.{name}" for name in RegionOfInterest.get_fields_and_field_types()]
    assert set(fields) == set(USES) | set(ELSEWHERE)
    for name, (changes, rectified) in USES.items():
        before = {"distortion_model": {"d": [0.1] * 5}, "roi.do_rectify": window(300, 200)}.get(name, {})
        usual, changed = (camera_for(info(**before | more), WIDTH, HEIGHT, rectified) for more in ({}, changes))
        assert usual[0] is not None and not usual[1], name
        if changed[0] is None:
            assert changed[1], name
        else:
            assert any(
                not np.array_equal(getattr(usual[0], part), getattr(changed[0], part))
                for part in ("K", "lens", "distortion")
            ), name


def test_docs_list_every_field(root: Any) -> None:
    text = (root / "docs" / "robot" / "cameras.md").read_text()
    assert all(f"`{name}`" in text for name in [*USES, *ELSEWHERE])


numbers = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(0, 2**32 - 1) | st.integers(0, 2000)


@given(
    st.lists(numbers, min_size=9, max_size=9) | st.just(K) | st.just([0.0] * 9),
    st.lists(numbers, max_size=15) | st.lists(st.floats(-1, 1), min_size=4, max_size=5),
    st.sampled_from(["", "plumb_bob", "rational_polynomial", "equidistant", "ds"]),
    st.lists(counts, min_size=8, max_size=8),
    st.lists(numbers, min_size=21, max_size=21) | st.just([*np.eye(3).ravel(), *P]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_message_is_a_crash(
    k: list[float], d: list[float], model: str, sizes: list[int], more: list[float], flag: bool
) -> None:
    roi = RegionOfInterest(x_offset=sizes[0], y_offset=sizes[1], width=sizes[2], height=sizes[3], do_rectify=flag)
    for changes in (
        {},
        {"width": sizes[4], "height": sizes[5], "binning_x": sizes[6], "binning_y": sizes[7], "roi": roi},
    ):
        message = info(k=k, d=d, distortion_model=model, r=more[:9], p=more[9:], **changes)
        for rectified in (False, True):
            found, wrong = camera_for(message, WIDTH, HEIGHT, rectified)
            assert found is not None or wrong
            if found is not None:
                pixels = np.array([[1.0, 1], [450, 300], [899, 599]])
                rays = found.rays(pixels)
                assert rays.shape == (3, 3) and not np.isinf(rays).any()


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/camera/image_raw", False),
        ("/camera/image_rect", True),
        ("/camera/image_rect_color/compressed", True),
        ("/stereo/left_rect/image", True),
        ("/camera/rectified/image", True),
        ("/camera/imageRect", True),
        ("/rect/image", True),
        ("/camera/infra1/image_rect_raw", True),
        ("/left/rect/image/compressed", True),
        ("image_rect", True),
        ("/rect_robot/front/image_raw", False),
        ("/rect/front/image_raw", False),
        ("/rect_robot/image_raw", False),
        ("/recto/image_raw", False),
        ("/direct_camera/image_raw", False),
        ("/corrected/image", False),
        ("/image_unrectified", False),
        ("/rectangle/image", False),
        ("/image", False),
    ],
)
def test_rectified_images_are_known_by_their_topic(topic: str, rectified: bool) -> None:
    assert is_rectified(topic, "auto") == rectified
    assert is_rectified(topic, "true") and not is_rectified(topic, "false")
