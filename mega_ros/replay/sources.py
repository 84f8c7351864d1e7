"""What is played live: a user's photograph, video or camera. `frames.Recorded` makes one of a bag.

These yield JPEG images and the camera's intrinsics as ROS messages, as a camera driver does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from msgspec import Meta
from rosbags.typesys.stores import ros2_jazzy as ros

from mega_model.core.errors import InputError
from mega_model.core.geometry import intrinsics_from_fov
from mega_model.core.images import is_image, read, without_stderr

from ..ros.standard import camera_info, header, serialised
from .bags import FILES, Message

Degrees = Annotated[float, Meta(ge=1, le=170)]
"""A field of view, as an option."""
IMAGE = "/camera/image_raw"
COMPRESSED = f"{IMAGE}/compressed"
INFO = "/camera/camera_info"
GROUND_TRUTH = "/mega/ground_truth"
TOPICS = {COMPRESSED: "sensor_msgs/msg/CompressedImage", INFO: "sensor_msgs/msg/CameraInfo"}

FRAME = "camera_optical_frame"
LARGEST = 1280  # pixels: larger images of the user are shrunk to this size
IMAGE_SECONDS, IMAGE_RATE = 8.0, 15.0  # pan and zoom over a photograph
SQUARE = 0.02  # a pixel's width to its height may differ from 1 by this, as encoders round it
WIDEST = 4.0  # more is no pixel's width to its height, but a damaged header
STREAMS = (".mjpeg", ".mjpg")
"""How the names of videos end that begin as a photograph: they are JPEGs, one behind the other."""
CLOSEST = 0.75  # smallest visible share of the photograph


@dataclass(frozen=True)
class Source:
    """A stream of messages to play."""

    name: str
    messages: Iterator[Message]
    image: str = COMPRESSED
    info: str | None = INFO
    topics: Mapping[str, str] = field(default_factory=lambda: TOPICS)
    """Those of the messages, with their types."""
    camera_info: Message | None = None
    """What the node is told before it gets the first image."""
    count: int | None = None
    """Number of images, where that is known."""
    live: bool = False
    """whether it runs until the user stops it."""


def photograph(path: Path, fov: float) -> Source:
    """A slow pan and zoom over one image. `fov`: radians over the larger image side."""
    image = read(path, turn=True)
    count = round(IMAGE_SECONDS * IMAGE_RATE)
    return Source(path.name, _stream(_at_rate(_walk_over(image, count), IMAGE_RATE), fov), count=count)


def is_still(path: Path) -> bool:
    """Whether a file is an image, and no video. Raises InputError if it cannot be read."""
    return is_image(path) and path.suffix.lower() not in STREAMS


def open_video(path: Path) -> cv2.VideoCapture:
    """Raises InputError that names the file."""
    # FFmpeg does not see the damage of an image, and gives a tile of one in HEIC
    if is_still(path):
        raise InputError(f"{path}: an image, not a video; mega demo --image and mega replay read images")
    if path.name.endswith(FILES):
        raise InputError(f"{path}: a bag, not a video; mega replay reads bags")
    try:
        name = os.fsencode(path).decode()
    except UnicodeDecodeError:  # OpenCV would crash
        raise InputError(f"{path}: the name is not UTF-8, so OpenCV cannot open it; rename the file") from None
    with without_stderr():
        capture = cv2.VideoCapture(name)
    # FFmpeg draws a text
    if not capture.isOpened() or capture.get(cv2.CAP_PROP_FOURCC) == cv2.VideoWriter.fourcc(*"ansi"):
        raise InputError(f"{path}: not a video that OpenCV can read")
    return capture


def read_image(capture: cv2.VideoCapture, name: str) -> np.ndarray | None:
    """The next image, uint8 [H, W, 3] BGR, with square pixels; None after the last one.

    Raises InputError with the name for one that cannot be read.
    Since FFmpeg 8, OpenCV cannot convert interlaced images: it gives one of what its memory held before, and prints.
    What another thread's video prints meanwhile would count as this one's.
    """
    with without_stderr() as said:
        good, image = capture.read()
    if any(b"Cannot convert interlaced" in line for line in said):
        convert = "of a file, others are made by ffmpeg -i FILE -vf yadif OUT.mp4"
        raise InputError(f"{name}: OpenCV cannot read interlaced images; {convert}")
    if not good:
        return None
    ratio = capture.get(cv2.CAP_PROP_SAR_NUM) / (capture.get(cv2.CAP_PROP_SAR_DEN) or 1)
    if abs(ratio - 1) < SQUARE or not 1 / WIDEST < ratio < WIDEST:
        return image
    return cv2.resize(image, (max(1, round(image.shape[1] * ratio)), image.shape[0]))


def video(path: Path, fov: float) -> Source:
    """A video file at its frame rate."""
    capture = open_video(path)
    rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    images = _at_rate(_frames(capture, str(path)), rate if 1 <= rate <= 240 else 30.0)
    return Source(path.name, _stream(images, fov), count=int(count) if 0 < count < 1e9 else None)


def camera(name: str, fov: float) -> Source:
    """A camera, live: the number of one of this machine, the path of its device, or the address of a stream."""
    with without_stderr():
        capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
    if not capture.isOpened():
        raise InputError(f"camera {name}: cannot be opened; give a number, a device such as /dev/video0 or a URL")
    images = ((time.time_ns(), image) for image in _frames(capture, f"camera {name}"))
    return Source(f"camera {name}", _stream(images, fov), live=True)


def _frames(capture: cv2.VideoCapture, name: str) -> Iterator[np.ndarray]:
    try:
        while (image := read_image(capture, name)) is not None:
            yield image
    finally:
        capture.release()


def _at_rate(images: Iterable[np.ndarray], rate: float) -> Iterator[tuple[int, np.ndarray]]:
    start = time.time_ns()
    for k, image in enumerate(images):
        yield start + round(k * 1e9 / rate), image


def _walk_over(image: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Views of a window that zooms between all and three quarters of the image and pans from side to side."""
    scale = min(1.0, 640 / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    # warping does not average, so shrink first, to the resolution of the closest view
    image = _shrunk(image, scale / CLOSEST)
    height, width = image.shape[:2]
    for phase in np.linspace(0, 2 * np.pi, count, endpoint=False):
        share = (1 + CLOSEST) / 2 + (1 - CLOSEST) / 2 * np.cos(phase)
        x = (1 - share) * (0.5 + 0.5 * np.sin(phase)) * width
        y = (1 - share) * 0.5 * height
        window = np.array([[size[0] / (share * width), 0, 0], [0, size[1] / (share * height), 0]])
        window[:, 2] = -window[:, :2] @ [x, y]
        yield cv2.warpAffine(image, window, size, flags=cv2.INTER_LINEAR)


def _shrunk(image: np.ndarray, scale: float) -> np.ndarray:
    """An image [H, W, 3] whose sides are `scale` times as long; as it is where that would not be less."""
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _stream(images: Iterable[tuple[int, np.ndarray]], fov: float) -> Iterator[Message]:
    """Images [H, W, 3] BGR with stamps (ns) as camera_info and JPEG messages."""
    for stamp, image in images:
        image = _shrunk(image, LARGEST / max(image.shape[:2]))
        height, width = image.shape[:2]
        head = header(stamp, FRAME)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].ravel()
        messages = {
            INFO: camera_info(head, width, height, intrinsics_from_fov(width, height, fov)),
            COMPRESSED: ros.sensor_msgs__msg__CompressedImage(head, format="jpeg", data=jpeg),
        }
        for topic, message in messages.items():
            yield Message(stamp, topic, TOPICS[topic], serialised(message))
