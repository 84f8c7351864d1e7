"""Images from the bytes of a file: one rule for damage and size, for whoever reads files or messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist

LONGEST_SIDE = 32766
"""Pixels: OpenCV warps no larger images."""


@contextmanager
def without_stderr() -> Iterator[None]:
    """Keeps quiet what OpenCV and its libraries print beside our own message."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def decode(data: np.ndarray | bytes, *, turn: bool) -> np.ndarray:
    """JPEG, PNG and any other format that OpenCV reads -> uint8 [H, W, 3] BGR.

    turn: whether to rotate the image as its EXIF data say: True for a user's photograph, False where a camera_info or
    an annotation refers to the stored pixels.
    Raises InputError that does not name the file, which only the caller knows.
    """
    data = np.frombuffer(data, np.uint8)
    # libjpeg fills up what is missing with grey and only warns
    if data[:2].tobytes() == b"\xff\xd8" and _is_cut(data.tobytes()):
        raise InputError(f"the JPEG data are cut off after {len(data)} bytes")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error as error:
        raise InputError(f"not an image: {len(data)} bytes do not decode ({error.err})") from None
    if image is None:
        raise InputError(f"not an image: {len(data)} bytes do not decode")
    if image.dtype != np.uint8:
        raise InputError(f"the image has more than 8 bits per channel ({image.dtype}); save it with 8")
    if max(image.shape) > LONGEST_SIDE:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise InputError(f"the image has {size} pixels; a side may have {LONGEST_SIDE}")
    return image


def read(path: Path, *, turn: bool) -> np.ndarray:
    """`decode` of a file. Raises InputError that names it."""
    must_exist(path)
    try:
        with without_stderr():
            return decode(path.read_bytes(), turn=turn)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _is_cut(jpeg: bytes) -> bool:
    """Whether the end marker is missing behind the start of the scan. What is before may hold a whole thumbnail."""
    at = 2
    while at + 4 <= len(jpeg):
        if jpeg[at] != 0xFF:
            return False  # not a marker: damage of another kind, which the decoder sees
        if jpeg[at + 1] == 0xDA:
            return jpeg.find(b"\xff\xd9", at) < 0
        filler = jpeg[at + 1] == 0xFF
        at += 1 if filler else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return True
