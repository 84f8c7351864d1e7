"""CameraInfo messages, of rclpy or of rosbags, to cameras.

Every field is used or refused by name; docs/robot/cameras.md.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

import numpy as np

from mega_model.core.cameras import LENSES, Camera
from mega_model.core.errors import InputError

_RECT = "(?:^|[/_]|(?<=[a-z])(?=R))[Rr]ect(?:ified)?"
_RECTIFIED = re.compile(f"{_RECT}(?:[_A-Z][^/]*)?$|{_RECT}/[^/]*$")
RAW = "or subscribe to the rectified image"


def is_rectified(topic: str, choice: str) -> bool:
    """Whether the images on a topic are rectified.

    choice: true, false, or auto: they are if rect, or rectified, is a word of the topic's last part, as in
    image_rect_color, or ends the part before, as in left_rect/image. What comes earlier names a robot or a camera.
    """
    return choice == "true" or (choice == "auto" and bool(_RECTIFIED.search(topic.removesuffix("/compressed"))))


def camera_for(info: Any, width: int, height: int, rectified: bool = False) -> tuple[Camera | None, str]:
    """The camera that took images of `width` x `height`, or None; and what is wrong with the message, or nothing.

    rectified: whether these images are, see `is_rectified`. Never raises for a CameraInfo, whatever is in it.
    """
    try:
        window = _window(info, width, height, rectified)
        name, wrong = _which(info, rectified)
        matrix = window @ (_matrix(info, "P")[:, :3] if name == "P" else _matrix(info, "K"))
        # a rectified image has no distortion, whatever D says of the lens
        lens, distortion = ("", np.zeros(0)) if rectified or name == "P" else _lens(info)
        camera = Camera(matrix, lens, distortion)
        camera.must_fit(width, height, name, "D")
        if not (info.width or info.roi.width) and not _in_the_middle(matrix, width, height):
            x, y = matrix[:2, 2]
            raise InputError(
                f"width and height are 0, and {name}'s principal point {x:g}, {y:g} is not near the middle of an "
                f"image of {width} x {height} pixels; fill in width and height"
            )
    except InputError as error:
        return None, str(error)
    return camera, wrong or _why_beside(info, name)


def other_frame(frame_id: str, of_images: str) -> str:
    """That a message is in another frame than the images; nothing if it is not, or if a name is missing."""
    frame_id, of_images = (name.removeprefix("/") for name in (frame_id, of_images))  # ROS 1 allows a slash
    differ = frame_id and of_images and frame_id != of_images
    return f"the frame_id is {frame_id}, that of the images {of_images}" if differ else ""


def _which(info: Any, rectified: bool) -> tuple[str, str]:
    """Which of K and P says where the pixels of the image lie, and what is wrong with that."""
    K, P = np.any(info.k), np.any(info.p)
    if not K and not P:
        raise InputError("K is all zero, and P, too: the camera is not calibrated; calibrate it, or set fov")
    if rectified and not P:
        return "K", "P is all zero, so K is used instead; fill in P, or set rectified to false if the images are raw"
    if not rectified and not K:
        return (
            "P",
            "K is all zero, so P is used instead, without D; fill in K, or set rectified to true if the images are",
        )
    return ("P" if rectified else "K"), ""


def _matrix(info: Any, name: str) -> np.ndarray:
    """K [3, 3] or P [3, 4], pixels of the full resolution."""
    matrix = np.asarray(getattr(info, name.lower()), np.float64).reshape(3, -1)
    if not np.isfinite(matrix).all():
        raise InputError(f"{name} is not finite: {matrix.ravel().tolist()}; calibrate the camera anew")
    if matrix[0, 0] < 1 or matrix[1, 1] < 1 or matrix[1, 0] or not np.array_equal(matrix[2, :3], [0, 0, 1]):
        numbers = matrix.ravel().tolist()
        raise InputError(f"{name} is no camera matrix in pixels: {numbers}; calibrate the camera anew")
    return matrix


def _lens(info: Any) -> tuple[str, np.ndarray]:
    """The lens model and its coefficients."""
    model, distortion = info.distortion_model, np.asarray(info.d, np.float64)
    if not model and not distortion.any():
        return "", np.zeros(0)
    if model not in LENSES:
        what = f"{reprlib.repr(model)} is unknown" if model else f"is empty, but D has {distortion.size} coefficients"
        raise InputError(f"distortion_model {what}; known are {', '.join(LENSES)}: calibrate for one, {RAW}")
    if not distortion.size and model != "equidistant":
        return "", distortion
    if distortion.size not in LENSES[model]:
        counts = " or ".join(map(str, LENSES[model]))
        raise InputError(
            f"D has {distortion.size} coefficients, {model} has {counts}; calibrate the camera anew, {RAW}"
        )
    if not np.isfinite(distortion).all():
        raise InputError(f"D is not finite: {distortion.tolist()}; calibrate the camera anew, {RAW}")
    return model, distortion


def _window(info: Any, width: int, height: int, rectified: bool) -> np.ndarray:
    """[3, 3]: from pixels of the full resolution to those of an image of `width` x `height`: roi, binning, scaling."""
    roi, binning = info.roi, (max(1, info.binning_x), max(1, info.binning_y))
    full, size, corner = (info.width, info.height), (roi.width, roi.height), (roi.x_offset, roi.y_offset)
    where = f"{roi.width} x {roi.height} at {roi.x_offset}, {roi.y_offset}"
    if size == (0, 0) and corner == (0, 0):
        size = full
    elif 0 in size:
        raise InputError(f"roi is {where}, which is empty; fill in all of it, or zeros for the full image")
    elif any(full) and (corner[0] + size[0] > full[0] or corner[1] + size[1] > full[1]):
        raise InputError(f"roi is {where}, beyond width x height, {full[0]} x {full[1]}; it counts unbinned pixels")
    elif rectified and roi.do_rectify and size != full:
        raise InputError("roi.do_rectify: the window of the rectified image is not given; subscribe to the raw image")
    scale = 1.0, 1.0
    if any(size):
        expected = size[0] // binning[0], size[1] // binning[1]
        # the sides of a scaled image are rounded: some factor gives both, with less than a pixel of difference
        if 0 in expected or abs(width * expected[1] - height * expected[0]) >= sum(expected):
            raise InputError(
                f"it is for {expected[0]} x {expected[1]} pixels, the image has {width} x {height}, of another ratio; "
                "publish one for the image, with width, height, binning and roi as they are"
            )
        scale = width / expected[0], height / expected[1]
    x, y = scale[0] / binning[0], scale[1] / binning[1]
    return np.array([[x, 0, -corner[0] * x], [0, y, -corner[1] * y], [0, 0, 1]])


def _why_beside(info: Any, name: str) -> str:
    """That the principal point is not on the sensor: nothing was filled in there, or the image is a window."""
    x, y = _matrix(info, name)[:2, 2]
    if not info.width or (0 < x < info.width and 0 < y < info.height):
        return ""
    return (
        f"{name}'s principal point {x:g}, {y:g} is not inside width x height, {info.width} x {info.height}, so people "
        "are placed far to the side; calibrate the camera anew, or fill in roi if the image is a window"
    )


def _in_the_middle(matrix: np.ndarray, width: int, height: int) -> bool:
    """Whether the principal point lies in the middle half of the image, in both directions."""
    return bool((np.abs(matrix[:2, 2] / [width, height] - 0.5) < 0.25).all())
