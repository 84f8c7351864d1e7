"""The size of an image from the header of its file, before anything is decoded.

JPEG, PNG, WebP, TIFF, BMP and PNM: the formats that this project reads. HEIC and AVIF are known, to be refused by
name. Sources: the formats' specifications.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import suppress

import simplejpeg

from mega_model.core.errors import InputError

_TIFF_TYPES = {3: "H", 4: "I", 16: "Q"}
"""Types of a TIFF's whole numbers."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""One that a length follows, or the end marker."""
_SEVERAL = "it has several images, as an animation or a document; save each as a file of its own"


def format_of(data: bytes) -> str | None:
    """Name of the format, by the first bytes; None if they are no image's."""
    return next((name for name, start in _STARTS.items() if re.match(start, data, re.DOTALL)), None)


def format_and_size(data: bytes) -> tuple[str, int, int]:
    """Name of the format, width and height in pixels of what is decoded. Raises InputError, which does not name the
    file."""
    name = format_of(data)
    if name is None:
        raise InputError(f"not an image: its {len(data)} bytes are none of {', '.join(_SIZES)}")
    if name not in _SIZES:
        raise InputError(f"an image in {name}, which is not read; save it as JPEG or PNG")
    try:
        width, height = _SIZES[name](data)
    except InputError:
        raise
    except (struct.error, IndexError, ValueError, KeyError):
        raise InputError(f"the {name} data are cut off or damaged: no header in {len(data)} bytes") from None
    return name, width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return width, height


def jpeg_scans(data: bytes) -> int:
    """How often a JPEG goes over its pixels. What lies behind its end marker, as a phone's video, does not count."""
    at, scans = 0, 0
    while (marker := _JPEG_MARKER.search(data, at)) and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _png(data: bytes) -> tuple[int, int]:
    """All chunks must be there: OpenCV takes as much memory as one says that it is long."""
    at, kind = 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        at += 12 + length
        if at > len(data):
            raise InputError(f"the PNG data are cut off or damaged: {len(data)} bytes end inside a chunk")
        if kind == b"acTL":
            raise InputError(_SEVERAL)
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 2:  # animated
            raise InputError(_SEVERAL)
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no size")


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    offset, counter, step = (f"{order}Q", f"{order}Q", 20) if big else (f"{order}I", f"{order}H", 12)

    def directory(at: int) -> tuple[dict[int, int], int]:
        """Tag -> value, of one image, and where the directory of the next one is; 0 after the last, and if cut off."""
        count, entries = struct.unpack_from(counter, data, at)[0], at + struct.calcsize(counter)
        found = {}
        for entry in range(entries, min(entries + count * step, len(data)), step):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag in (254, 255, 256, 257, 322, 323):
                found[tag] = struct.unpack_from(order + _TIFF_TYPES[kind], data, entry + (12 if big else 8))[0]
        end = entries + count * step
        return found, int.from_bytes(data[end : end + struct.calcsize(offset)], "little" if order == "<" else "big")

    first, following = directory(struct.unpack_from(offset, data, 8 if big else 4)[0])
    if first.get(254, 0) & 1:
        raise InputError("its first image is a reduced one, as in a camera's raw file; develop it, and save it as JPEG")
    if following:
        with suppress(struct.error, KeyError):  # what OpenCV does not read need not be whole
            second = directory(following)[0]
            # neither a reduced one of the first, also by the older tag, nor a mask
            if not second.get(254, 0) & 5 and second.get(255) != 2:
                raise InputError(_SEVERAL)
    # OpenCV has room for a whole tile, which may be larger than the image
    return max(first[256], first.get(322, 0)), max(first[257], first.get(323, 0))


def _bmp(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # of OS/2
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # negative: the rows begin at the top


def _pnm(data: bytes) -> tuple[int, int]:
    found = re.match(rb"P[1-6](?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s", data[:4096])
    if found is None:
        raise ValueError("no size")
    return int(found[1]), int(found[2])


_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _webp,
    "TIFF": _tiff,
    "BMP": _bmp,
    "PNM": _pnm,
}
"""Format -> what reads the size."""
_STARTS = {
    "JPEG": rb"\xff\xd8",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM",
    "PNM": rb"P[1-6][\s#]",
    "HEIC or AVIF": rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1|avi[fs])",
}
"""Format -> how its files begin."""
