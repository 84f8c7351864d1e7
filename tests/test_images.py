"""ROS images to BGR: every encoding against OpenCV's or rosbags-image's own conversion, every refusal by its reason."""

import array
import contextlib
import io
import os
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Photograph
from sensor_msgs.msg import CompressedImage, Image

from mega_model.core.errors import InputError
from mega_model.core.images import without_stderr
from mega_ros.ros.images import to_bgr

HEIGHT, WIDTH = 6, 8


def message(pixels: np.ndarray, encoding: str, padding: int = 0, **changes: Any) -> Image:
    """pixels [H, W] or [H, W, C] of any type as an image whose rows end with `padding` bytes of rubbish."""
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    values = {"height": len(pixels), "width": pixels.shape[1], "step": rows.shape[1]} | changes
    return Image(encoding=encoding, data=array.array("B", rows.tobytes()), **values)


@pytest.fixture
def bgr() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["bgr8", "8UC3", "rgb8", "bgra8", "8UC4", "rgba8", "mono8", "8UC1"])
def test_packed_colours(bgr: np.ndarray, encoding: str, padding: int) -> None:
    codes = {
        "bgr8": None,
        "8UC3": None,
        "rgb8": cv2.COLOR_BGR2RGB,
        "bgra8": cv2.COLOR_BGR2BGRA,
        "8UC4": cv2.COLOR_BGR2BGRA,
        "rgba8": cv2.COLOR_BGR2RGBA,
        "mono8": cv2.COLOR_BGR2GRAY,
        "8UC1": cv2.COLOR_BGR2GRAY,
    }
    pixels = bgr if (code := codes[encoding]) is None else cv2.cvtColor(bgr, code)
    image = to_bgr(message(pixels, encoding, padding))
    expected = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else bgr
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    padding=st.integers(0, 7),
    encoding=st.sampled_from(["bgr8", "rgb8", "bgra8", "rgba8", "mono8", "8UC1", "8UC3"]),
)
def test_every_size_and_step(width: int, height: int, padding: int, encoding: str) -> None:
    """Padding changes nothing, and the padding of the last row may be missing."""
    channels = {"mono8": 1, "8UC1": 1, "bgra8": 4, "rgba8": 4}.get(encoding, 3)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, channels), np.uint8)
    image = to_bgr(message(pixels, encoding))
    assert image.shape == (height, width, 3)
    padded = message(pixels, encoding, padding)
    np.testing.assert_array_equal(to_bgr(padded), image)
    if padding:
        del padded.data[-padding:]
        np.testing.assert_array_equal(to_bgr(padded), image)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8", "bgra8"])
def test_agrees_with_rosbags_image(encoding: str) -> None:
    """rosbags-image ignores `step`, so without padding."""
    message_to_cvimage = pytest.importorskip("rosbags.image").message_to_cvimage
    channels = 1 if encoding == "mono8" else len(encoding) - 1
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, channels), np.uint8)
    image = message(pixels, encoding)
    np.testing.assert_array_equal(to_bgr(image), message_to_cvimage(image, "bgr8"))


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics(pattern: str, padding: int) -> None:
    """A row of the sensor has the first two colours, the next one the other two."""
    colour = {"b": 30, "g": 120, "r": 220}
    pixels = np.tile(np.array([colour[c] for c in pattern], np.uint8).reshape(2, 2), (HEIGHT // 2, WIDTH // 2))
    image = to_bgr(message(pixels, f"bayer_{pattern}8", padding))
    np.testing.assert_array_equal(image, np.full((HEIGHT, WIDTH, 3), [*colour.values()], np.uint8))


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_yuv_422(encoding: str, padding: int) -> None:
    """Luma 81, colour 90 / 240 is pure red in the studio range; left and right neighbours share their colours."""
    pair = [90, 81, 240, 81] if encoding in ("uyvy", "yuv422") else [81, 90, 81, 240]
    pixels = np.tile(np.array(pair, np.uint8), (HEIGHT, WIDTH // 2)).reshape(HEIGHT, WIDTH, 2)
    image = to_bgr(message(pixels, encoding, padding)).astype(int)
    assert np.abs(image - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_yuv_420(encoding: str, padding: int) -> None:
    pixels = np.full((HEIGHT * 3 // 2, WIDTH), 81, np.uint8)
    pixels[HEIGHT:] = np.tile(
        np.array([90, 240] if encoding == "nv12" else [240, 90], np.uint8), (HEIGHT // 2, WIDTH // 2)
    )
    image = to_bgr(message(pixels, encoding, padding, height=HEIGHT)).astype(int)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image - [0, 0, 255]).max() <= 2


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("mono16", "'mono16' has more than 8 bits"),
        ("16UC1", "'16UC1' has more than 8 bits"),
        ("32FC1", "'32FC1' has more than 8 bits"),
        ("rgb16", "'rgb16' has more than 8 bits"),
        ("bayer_gbrg16", "'bayer_gbrg16' has more than 8 bits"),
        ("nv16", "'nv16' is unknown"),
        ("nv24", "'nv24' is unknown"),
        ("hsv8", "'hsv8' is unknown; use one of bgr8"),
        ("", "'' is unknown"),
    ],
)
def test_refused_encodings(encoding: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        to_bgr(message(np.zeros((HEIGHT, WIDTH, 2), np.uint8), encoding))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 0}, "0 x 6 pixels"),
        ({"height": 0}, "8 x 0 pixels"),
        ({"step": 23}, "step is 23 bytes, but a row of 8 bgr8 pixels takes 24"),
        ({"step": 0}, "step is 0"),
        ({"height": 7}, "cut off: 144 bytes, 7 rows of 24 bytes are 168"),
        ({"height": 2**32 - 1, "step": 2**32 - 1}, "cut off"),
    ],
)
def test_refused_geometry(bgr: np.ndarray, changes: dict[str, int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        to_bgr(message(bgr, "bgr8", **changes))


SIZES = st.one_of(st.integers(0, 9), st.sampled_from([2**16, 2**31 - 1, 2**31, 2**32 - 1]))


ENCODINGS = st.one_of(
    st.sampled_from(["bgr8", "rgba8", "mono8", "yuyv", "nv12", "nv21", "bayer_rggb8"]),
    st.text("bayer8_16' \n\r\x1b\x85\u2028", max_size=9),
)


@settings(max_examples=60, deadline=None)
@given(
    encoding=ENCODINGS,
    width=SIZES, height=SIZES, step=SIZES, data=st.binary(max_size=80), bigendian=st.integers(0, 255),
)  # fmt: skip
def test_any_fields_are_an_image_or_a_reason(
    encoding: str, width: int, height: int, step: int, data: bytes, bigendian: int
) -> None:
    fields = {"width": width, "height": height, "step": step, "is_bigendian": bigendian, "encoding": encoding}
    try:
        image = to_bgr(Image(data=array.array("B", data), **fields))
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert image.shape == (height, width, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("encoding", ["yuyv", "nv12"])
def test_odd_width_has_no_shared_colours(encoding: str) -> None:
    with pytest.raises(InputError, match="must be even"):
        to_bgr(message(np.zeros((HEIGHT, 7, 2), np.uint8), encoding))


def compressed(data: bytes, kind: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=kind, data=array.array("B", data))


def encoded(kind: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(kind, pixels)[1].tobytes()


def test_png_is_exact(bgr: np.ndarray) -> None:
    np.testing.assert_array_equal(to_bgr(compressed(encoded(".png", bgr), "bgr8; png compressed bgr8")), bgr)


def test_jpeg_is_close() -> None:
    ramp = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[None], 64, axis=0)
    pixels = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)
    image = to_bgr(compressed(encoded(".jpg", pixels)))
    assert image.shape == pixels.shape
    assert np.abs(image.astype(int) - pixels).mean() < 3


def test_grey_jpeg_has_three_channels(bgr: np.ndarray) -> None:
    assert to_bgr(compressed(encoded(".jpg", bgr[..., 0]), "mono8; jpeg compressed")).shape == bgr.shape


def test_pixels_stay_where_the_camera_info_has_them() -> None:
    """A camera's note of how it was held turns nothing; a mosaic that was made a colour image is one."""
    file, note = io.BytesIO(), Photograph.Exif()
    note[274] = 6  # turn by 90 degrees to see it upright
    Photograph.new("RGB", (32, 24), (220, 120, 30)).save(file, "JPEG", exif=note)
    turned = to_bgr(compressed(file.getvalue(), "bayer_rggb8; jpeg compressed bgr8"))
    assert turned.shape == (24, 32, 3) and np.abs(turned.astype(int) - [30, 120, 220]).max() <= 3


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", "jpeg", "has no data"),
        (b"no image at all", "jpeg", "format 'jpeg': not an image: its 15 bytes"),
        (encoded(".jpg", np.zeros((64, 64, 3), np.uint8))[:-200], "jpeg", "JPEG data are cut off or damaged: "),
        (encoded(".png", np.zeros((64, 64, 3), np.uint8))[:60], "png", "PNG data are cut off or damaged: 60 bytes"),
        (encoded(".png", np.zeros((4, 4), np.uint16)), "16UC1; png compressed", "more than 8 bits"),
        (encoded(".jpg", np.zeros((4, 4), np.uint8)), "bayer_rggb8; jpeg compressed", "raw sensor mosaic; .*debayer"),
        (encoded(".jpg", np.zeros((4, 4), np.uint8)), "16UC1; jpeg compressed ", "'16UC1; .* has more than 8 bits"),
        (encoded(".jpg", np.zeros((4, 4), np.uint8)), "32FC1; jpeg compressed mono8", "has more than 8 bits"),
        (
            b"\0\0\0\1\x67" + bytes(9),
            "h264",
            "format 'h264' is packets of a video; republish it as raw images or as JPEG",
        ),
        (
            bytes(12) + encoded(".png", np.zeros((4, 4), np.uint16)),
            "16UC1; compressedDepth png",
            "subscribe to .* colour",
        ),
    ],
)
def test_refused_files(data: bytes, kind: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        to_bgr(compressed(data, kind))


def test_codecs_do_not_print(capfd: pytest.CaptureFixture[str]) -> None:
    """They write to the process' standard error; what others write there meanwhile stays."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for suffix in (".jpg", ".png"):
        data = cv2.imencode(suffix, noise)[1].tobytes()
        damaged = CompressedImage(format=suffix, data=array.array("B", data[:800] + data[850:]))
        with contextlib.suppress(InputError):
            to_bgr(damaged)
    with without_stderr():
        os.write(2, b"libpng error: damaged\n[WARN] of another thread\n")
    assert capfd.readouterr().err == "[WARN] of another thread\n"
