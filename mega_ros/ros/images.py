"""ROS images to arrays. An unsupported image raises InputError with the reason.

Only 8-bit encodings are supported, so `is_bigendian` does not matter. Other encodings hold depth, or sensor data of
unknown range, which would give wrong bodies without a warning. A ROS installation's cv_bridge is not used: it refuses
8UC1, 8UC3 and 8UC4 as colours, and recorded images must give the same pixels without a ROS installation.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.images import decode, without_stderr

# encoding -> bytes per pixel and the OpenCV conversion to BGR; the old and new names of sensor_msgs/image_encodings.hpp
_PACKED: dict[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "8UC4": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, cv2.COLOR_GRAY2BGR),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUYV),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUYV),
    # a colour per pixel; OpenCV names a mosaic by the second row, from its second pixel on
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2BGR),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2BGR),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2BGR),
}
# one byte per pixel, then the two colours at half the resolution in both directions
_PLANAR = {"nv12": cv2.COLOR_YUV2BGR_NV12, "nv21": cv2.COLOR_YUV2BGR_NV21}


# of CompressedImage: image_transport writes the raw image's encoding first, also where it made a grey JPEG of depth
_DEPTH = re.compile(r"(?:16|32|64)[USF]C\d|.*compressedDepth")
_PACKETS = re.compile(r"(?i)h\.?26[3-6]|hevc|av1|vp[89]|mpeg-?[24]|theora")


def to_bgr(message: Any) -> np.ndarray:
    """sensor_msgs Image or CompressedImage (of rclpy or of rosbags) -> uint8 [H, W, 3] BGR. Raises InputError."""
    return _decode(message) if hasattr(message, "format") else _convert(message)


def _convert(message: Any) -> np.ndarray:
    width, height, step, encoding = message.width, message.height, message.step, message.encoding
    if encoding not in _PACKED and encoding not in _PLANAR:
        raise InputError(_refusal(encoding))
    if width == 0 or height == 0:
        raise InputError(f"the image is {width} x {height} pixels")
    planar = encoding in _PLANAR
    channels, conversion = (1, _PLANAR[encoding]) if planar else _PACKED[encoding]
    if (planar and height % 2) or ((planar or channels == 2) and width % 2):
        raise InputError(f"{encoding} shares colours between pixels, so {width} x {height} must be even")
    row, rows = width * channels, height * 3 // 2 if planar else height
    data = np.frombuffer(message.data, np.uint8)
    if step < row:
        raise InputError(f"step is {step} bytes, but a row of {width} {encoding} pixels takes {row}")
    # the last row may lack its padding
    if len(data) < step * (rows - 1) + row:
        raise InputError(f"the data are cut off: {len(data)} bytes, {rows} rows of {step} bytes are {rows * step}")
    pixels = np.lib.stride_tricks.as_strided(data, (rows, row), (step, 1), writeable=False)
    pixels = np.ascontiguousarray(pixels).reshape(rows, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def _decode(message: Any) -> np.ndarray:
    """JPEG, PNG, and the other formats of `core.images`."""
    if not len(message.data):
        raise InputError("the compressed image has no data")
    if _DEPTH.match(message.format) or ("bayer" in message.format and "bgr8" not in message.format):
        raise InputError(_refusal(message.format))
    if _PACKETS.match(message.format):
        raise InputError(f"format '{message.format}' is packets of a video; republish it as raw images or as JPEG")
    try:
        # rotation by EXIF would make the image inconsistent with its camera_info
        with without_stderr():
            return decode(message.data, turn=False)
    except InputError as error:
        raise InputError(f"format '{message.format}': {error}") from None


def _refusal(encoding: str) -> str:
    name = "'" + encoding.replace("'", "")[:40] + "'"  # between quotes, by which diagnostics know one kind of problem
    if "bayer" in encoding and "compressed" in encoding:
        return f"encoding {name} is a raw sensor mosaic; subscribe to the colour image of image_proc's debayer node"
    if re.search("(?<!nv)(?:16|32|64)", encoding):  # nv16 has 8 bits
        return f"encoding {name} has more than 8 bits per channel; subscribe to the camera's 8-bit colour image"
    return f"encoding {name} is unknown; use one of {', '.join([*_PACKED, *_PLANAR])}"
