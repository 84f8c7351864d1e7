"""Image files: every format and its size, what is damaged or too large is refused, whatever the bytes are."""

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mega_model.core.errors import InputError
from mega_model.core.image_sizes import format_and_size
from mega_model.core.images import decode, read, without_stderr


def encoded(kind: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(kind, pixels)[1].tobytes()


def plain_jpeg() -> bytes:
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8), (0, 0), 2)
    return encoded(".jpg", pixels)


@pytest.mark.parametrize("padding", [1, 512, 65536])
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_a_jpeg_with_padding_is_whole(padding: int, byte: bytes) -> None:
    jpeg = plain_jpeg()
    np.testing.assert_array_equal(decode(jpeg + byte * padding, turn=False), decode(jpeg, turn=False))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_jpeg_with_missing_data_is_refused(data: st.DataObject) -> None:
    """Wherever a tenth or more of it is missing, with or without an end marker."""
    jpeg = plain_jpeg()
    start = data.draw(st.integers(2, len(jpeg) - len(jpeg) // 10))
    stop = data.draw(st.integers(start + len(jpeg) // 10, len(jpeg)))
    with pytest.raises(InputError, match="cut off or damaged"):
        decode(jpeg[:start] + jpeg[stop:], turn=data.draw(st.booleans()))
    with pytest.raises(InputError, match="cut off or damaged"):
        decode(jpeg[:start] + b"\xff\xd9", turn=False)


SMALL = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
FORMATS = (".jpg", ".png", ".webp", ".tiff", ".bmp", ".ppm")


@pytest.mark.parametrize("ending", FORMATS)
def test_formats_and_their_sizes(ending: str) -> None:
    raw = encoded(ending, SMALL)
    assert format_and_size(raw)[1:] == (7, 9)
    expected = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode(raw, turn=False), expected)


@pytest.mark.parametrize("ending", [".png", ".webp", ".tiff"])
def test_a_file_with_several_images_is_refused(ending: str, tmp_path: Path) -> None:
    """OpenCV gives the first one, as if there were no other."""
    path, image, other = tmp_path / f"a{ending}", Image.fromarray(SMALL), Image.fromarray(255 - SMALL)
    image.save(path, save_all=True, append_images=[other])
    with pytest.raises(InputError, match=r"has several images, .*; save each as a file of its own"):
        read(path, turn=True)


@pytest.mark.parametrize(("tag", "kind"), [(254, 1), (254, 4), (255, 2)])
def test_a_thumbnail_or_a_mask_behind_a_photograph_is_no_second_image(tag: int, kind: int, tmp_path: Path) -> None:
    path, other = tmp_path / "a.tiff", Image.fromarray(SMALL[:3])
    other.encoderinfo = {"tiffinfo": {tag: kind}}
    Image.fromarray(SMALL).save(path, save_all=True, append_images=[other])
    np.testing.assert_array_equal(read(path, turn=True), SMALL[..., ::-1])


def test_a_raw_photograph_is_not_taken_by_its_thumbnail(tmp_path: Path) -> None:
    """Raw files are TIFF whose first image is small, and says so."""
    path = tmp_path / "a.nef"
    for reduced in (0, 1):
        Image.fromarray(SMALL).save(path, format="TIFF", tiffinfo={254: reduced})
        with pytest.raises(InputError, match=r"a\.nef: .* reduced") if reduced else contextlib.nullcontext():
            read(path, turn=True)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_any_bytes_are_an_image_or_refused(ending: str, data: st.DataObject) -> None:
    raw = bytearray(encoded(ending, SMALL))
    del raw[data.draw(st.integers(0, len(raw))) :]
    for at in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=3)) if raw else []:
        raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        image = decode(bytes(raw), turn=False)
        assert image.dtype == np.uint8 and image.ndim == 3


def large(ending: str) -> bytes:
    """Headers that ask for 20000 x 20000 pixels."""
    side = struct.pack("<I", 20000)
    raw = bytearray(encoded(ending, SMALL))
    if ending == ".png":
        raw[16:24] = struct.pack(">II", 20000, 20000)
    elif ending == ".jpg":
        at = raw.index(b"\xff\xc0")
        raw[at + 5 : at + 9] = struct.pack(">HH", 20000, 20000)
    elif ending == ".bmp":
        raw[18:26] = side + struct.pack("<i", -20000)
    elif ending == ".ppm":
        return b"P6\n# large\n20000 20000\n255\n"
    elif ending == ".webp":
        return b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + side[:3] + side[:3]
    else:
        return b"MM\0*" + struct.pack(">IHHHIIHHII", 8, 2, 256, 4, 1, 20000, 257, 4, 1, 20000)
    return bytes(raw)


@pytest.mark.parametrize("ending", FORMATS)
def test_size_is_limited_before_decoding(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=r"2000[01] x 2000[01] pixels; a side may have 32766, the whole 134 million"):
        decode(large(ending), turn=False)


def many_scans() -> bytes:
    """A small JPEG that goes over its 4 million pixels 700 times."""
    jpeg = cv2.imencode(".jpg", np.zeros((2000, 2000), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    return jpeg[:end] + 700 * jpeg[last:end] + jpeg[end:]


def long_chunk() -> bytes:
    """A small PNG with a chunk that says it has 3 GB."""
    png = encoded(".png", SMALL)
    at = png.index(b"IDAT")
    return png[: at - 4] + b"\xd0\0\0\0" + png[at:]


def large_tile() -> bytes:
    """A TIFF of 10 x 10 pixels whose tiles are of 16000 x 16000."""
    tags = {256: 10, 257: 10, 322: 16000, 323: 16000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (many_scans, "the JPEG has 7.. scans of 2000 x 2000 pixels"),
        (long_chunk, "the PNG data are cut off or damaged: .* end inside a chunk"),
        (large_tile, "16000 x 16000 pixels; a side may have"),
    ],
)
def test_small_images_do_not_take_gigabytes_or_minutes(
    make: Callable[[], bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((cv2, "imdecode"), (simplejpeg, "decode_jpeg")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=reason):
        decode(make(), turn=False)


def test_a_video_behind_a_jpeg_is_no_scan_of_it() -> None:
    jpeg = plain_jpeg()
    np.testing.assert_array_equal(decode(jpeg + 10**5 * b"\xff\xda\0\2", turn=False), decode(jpeg, turn=False))


@pytest.mark.parametrize("turned", [False, True])
def test_a_side_is_limited(turned: bool) -> None:
    """OpenCV cannot warp longer images."""
    longest, longer = (np.zeros((1, side, 3) if not turned else (side, 1, 3), np.uint8) for side in (32766, 32767))
    assert decode(encoded(".png", longest), turn=False).shape == longest.shape
    with pytest.raises(InputError, match="a side may have 32766"):
        decode(encoded(".png", longer), turn=False)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match=f"{path}: not a regular file"):
            read(path, turn=False)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"sparse\.png: has 1073741824 bytes; at most"):
        read(tmp_path / "sparse.png", turn=False)


def test_stderr_comes_back_after_several_threads(capfd: pytest.CaptureFixture[str]) -> None:
    def quiet() -> None:
        for _ in range(200):
            with without_stderr():
                os.write(2, b"libpng warning: noise\n")

    threads = [threading.Thread(target=quiet) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"said")
    assert capfd.readouterr().err == "said"
