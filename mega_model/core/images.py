"""Images from the bytes of a file: one rule for damage and size, for whoever reads files or messages."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist, read_bytes
from mega_model.core.image_sizes import format_and_size, format_of, jpeg_scans

LONGEST_SIDE = 32766
"""Pixels: OpenCV warps no larger images."""
MOST_PIXELS = 2**27
"""Of one image: it then takes 400 MB."""
MOST_SCANNED = 2**31
"""Pixels of a JPEG times its scans: each scan goes over all of them, whatever it holds. They take three seconds."""
MOST_BYTES = 2**29
"""Of an image file."""
_lock, _inside, _stderr, _caught = threading.Lock(), 0, -1, -1
"""Of `without_stderr`: threads inside, the descriptor that stderr had, and the one in its place."""

_OF_CODECS = re.compile(
    rb"Corrupt JPEG|Premature end|Invalid SOS|Inconsistent progression|Unknown Adobe|Warning: unknown JFIF|libpng "
    rb"|Unexpected element|\[ ?[A-Z]+:\d+@|\[[\w,]+ @ 0x|OpenCV: FFMPEG:|\s*$| \([\w ]+\): fmt:"
)
"""How lines of libjpeg, libpng, OpenCV and FFmpeg begin."""


@contextmanager
def without_stderr() -> Iterator[list[bytes]]:
    """Keeps quiet what OpenCV, libjpeg and libpng print beside our own message. Several threads may be inside.

    They write to the process' standard error. What others write there meanwhile follows at the end.
    The list holds, at the end, all lines that were written meanwhile.
    """
    global _inside, _stderr, _caught
    with _lock:
        if not _inside:
            _stderr, _caught = os.dup(2), os.memfd_create("stderr")
            os.dup2(_caught, 2)
        _inside += 1
        start = os.fstat(_caught).st_size
    said: list[bytes] = []
    try:
        yield said
    finally:
        with _lock:
            _inside -= 1
            said += os.pread(_caught, os.fstat(_caught).st_size - start, start).splitlines()
            if not _inside:
                os.dup2(_stderr, 2)
                os.lseek(_caught, 0, os.SEEK_SET)
                with os.fdopen(_caught, "rb") as lines:
                    for line in lines:
                        if not _OF_CODECS.match(line):
                            os.write(_stderr, line)
                os.close(_stderr)


def decode(data: np.ndarray | bytes, *, turn: bool) -> np.ndarray:
    """JPEG, PNG, WebP, TIFF, BMP or PNM -> uint8 [H, W, 3] BGR.

    turn: whether to rotate the image as its EXIF data say: True for a user's photograph, False where a camera_info or
    an annotation refers to the stored pixels.
    Raises InputError that does not name the file, which only the caller knows: for an image that is too large, before
    it is decoded, and for one of which a part is missing.
    """
    data = np.frombuffer(data, np.uint8)
    raw = data.tobytes()
    kind, width, height = format_and_size(raw)
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        limits = f"a side may have {LONGEST_SIDE}, the whole {MOST_PIXELS // 10**6} million"
        raise InputError(f"the image has {width} x {height} pixels; {limits}")
    if kind == "JPEG" and (scans := jpeg_scans(raw)) * width * height > MOST_SCANNED:
        raise InputError(f"the JPEG has {scans} scans of {width} x {height} pixels; save it without progressive scans")
    image: np.ndarray | None
    try:
        # OpenCV fills up what a JPEG lacks, and only warns
        image = simplejpeg.decode_jpeg(raw, "BGR") if kind == "JPEG" else None
        if image is None or turn:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION)
            image = cv2.imdecode(data, flags)
    except (ValueError, cv2.error) as error:
        reason = error.err if isinstance(error, cv2.error) else error
        raise InputError(f"the {kind} data are cut off or damaged: {len(data)} bytes ({reason})") from None
    if image is None:
        raise InputError(f"the {kind} data are cut off or damaged: {len(data)} bytes do not decode")
    if image.dtype != np.uint8:
        raise InputError(f"the image has more than 8 bits per channel ({image.dtype}); save it with 8")
    return image


def is_image(path: Path) -> bool:
    """Whether a file begins as one of an image. Raises InputError if it cannot be read."""
    must_exist(path)
    with path.open("rb") as file:
        return format_of(file.read(16)) is not None


def read(path: Path, *, turn: bool) -> np.ndarray:
    """`decode` of a file. Raises InputError that names it."""
    data = read_bytes(path, MOST_BYTES)
    try:
        with without_stderr():
            return decode(data, turn=turn)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
