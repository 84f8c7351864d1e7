"""`mega replay` on photographs, folders and videos."""

import base64
import errno
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import short_clip
from little_bundle import VERTICES
from recordings import (
    HEIGHT,
    JPEG,
    START,
    STEP,
    WIDTH,
    Recorder,
    bag,
    clip,
    pattern,
    photographs,
    replay,
    report,
    with_exif,
    without_metadata,
)

from mega_model.core.errors import InputError
from mega_ros.replay import frames


def test_one_photograph_in_one_result_out(bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.jpg"), pattern(0))
    assert replay(bundle, tmp_path / "out", tmp_path / "photo.jpg") == 0
    assert np.load(tmp_path / "out" / "meshes.npz")["vertices"].shape == (1, VERTICES, 3)
    assert [row["name"] for row in report(tmp_path / "out")["table"]] == ["photo.jpg"]


def test_images_are_searched_in_tiles_and_videos_if_asked(clip_frames: list[Any], tmp_path: Path) -> None:
    """The clip at less than half its size, in a corner of a large image: the detector sees two people in tiles only."""
    image = np.full((600, 800, 3), 127, np.uint8)
    small = cv2.resize(clip_frames[4].image, None, fx=0.45, fy=0.45, interpolation=cv2.INTER_AREA)
    image[: small.shape[0], -small.shape[1] :] = small
    photo, film, out = tmp_path / "photo.png", tmp_path / "film.avi", tmp_path / "out"
    cv2.imwrite(str(photo), image)
    video = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 15, (800, 600))
    video.write(image)
    video.release()
    for path, tiles, searched in (
        (photo, "auto", True),
        (photo, "false", False),
        (film, "auto", False),
        (film, "true", True),
    ):
        assert replay(Path("default"), out, path, "--tiles", tiles, "--boxes", "detector") == 0
        assert report(out)["provenance"]["settings"]["tiles"] == searched
        assert (len(np.load(out / "meshes.npz")["vertices"]) == 2) == searched


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(cv2.imencode(".jpg", pattern(0))[1].tobytes()))
    (frame,) = frames.open_input([tmp_path / "a.jpg"]).frames()
    assert frame.image is not None and frame.image.shape == (WIDTH, HEIGHT, 3)


def test_files_are_in_the_order_of_all_their_numbers(tmp_path: Path) -> None:
    names = ["a9_1", "a9_2", "a9_10", "a10_1", "b1", "1699999999.1234567", "1699999999.25", "1699999999.5"]
    paths = [tmp_path / f"{name}.png" for name in names]
    assert [path.stem for path in frames.in_order(paths[::-1])] == [*names[5:], *names[:5]]


def test_an_image_that_is_a_link_to_nowhere_is_a_frame_that_says_so(bundle: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 1)
    (tmp_path / "photos" / "1.png").symlink_to("gone.png")
    assert replay(bundle, tmp_path / "out", tmp_path / "photos") == 0
    said = report(tmp_path / "out")
    assert said["unreadable"] == 1 and said["table"][1]["problem"].endswith("photos/1.png: there is no such file")
    assert [file["name"] for file in said["provenance"]["inputs"]] == ["0.png", "1.png"]


def test_photographs_one_behind_the_other_are_a_video(tmp_path: Path) -> None:
    """As cameras send them, and ffmpeg and curl save them."""
    path = tmp_path / "film.mjpeg"
    path.write_bytes(b"".join(cv2.imencode(".jpg", pattern(k))[1].tobytes() for k in range(3)))
    assert len(list(frames.open_input([path]).frames())) == 3


@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_folder_or_a_pattern_of_images_in_the_order_of_their_numbers(
    bundle: Path, tmp_path: Path, by_pattern: bool
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(11):
        cv2.imwrite(str(folder / f"{k}.png"), pattern(k))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    assert replay(bundle, tmp_path / "out", f"{folder}/*.png" if by_pattern else folder) == 0
    said = report(tmp_path / "out")
    assert [row["name"] for row in said["table"]] == [f"{k}.png" for k in range(11)]
    assert said["unreadable"] == 1 and "3.png: the PNG data are cut off" in said["table"][3]["problem"]
    assert np.load(tmp_path / "out" / "meshes.npz")["frame"].tolist() == [k for k in range(11) if k != 3]


@pytest.mark.parametrize("rate", [30.0, 0.5])
def test_a_video_keeps_its_times(bundle: Path, tmp_path: Path, rate: float) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (WIDTH, HEIGHT))
    for k in range(5):
        writer.write(pattern(k))
    writer.release()
    assert replay(bundle, tmp_path / "out", path) == 0
    stamps = np.load(tmp_path / "out" / "meshes.npz")["stamps"]
    np.testing.assert_allclose(stamps, np.arange(5) * 1e9 / rate, atol=1e6)
    assert "note" not in report(tmp_path / "out")


def test_a_video_with_fewer_frames_than_it_announces(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (WIDTH, HEIGHT))
    for _ in range(5):
        writer.write(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert replay(bundle, tmp_path / "out", path) == 0
    said = report(tmp_path / "out")
    note = f"{said['frames']} of the 5 frames that the file announces could be read"
    assert 0 < said["frames"] < 5 and said["note"] == note
    printed = "".join(c if c.isascii() else " " for c in capsys.readouterr().out)
    assert note in " ".join(printed.split()) and note in (tmp_path / "out/report.html").read_text()


def test_a_video_whose_frames_are_not_evenly_spaced_lacks_none(tmp_path: Path) -> None:
    """Ten to the second but for three: Matroska holds no count, so OpenCV takes it from the length."""
    (tmp_path / "film.mkv").write_bytes(zlib.decompress(base64.b85decode(UNEVEN)))
    film = frames.open_input([tmp_path / "film.mkv"])
    assert [frame.stamp for frame in film.frames()] == [k * STEP for k in (0, 1, 2, 5, 6, 8, 9)]
    assert film.note == ""


UNEVEN = (
    b"c-oV4y}x*|Q(GgW({~{L)X3uWxsk)EsUtVBq$s~QJJG2fDAd}>BoW+@&d2})OyPpQvr7)_Z&^`!@qzE|?%>reqMj?$g4Z-"
    b"Igz&^d)@1{EXMA_}0C_?ohtq@CG%-"
    b"3uxH7@Jfs##3)^8xDF$6PEAAsDmY=28sSBk0D^^MK^P7b~eEk225Y2l7w%B8czq2B?l6y(@X`&<6$RO_yTx+wX2BV+N=4yaj-"
    b"a~c_xw$5oT%}eQMWN7OTi}ww1bvM!X4EEP|3=U{+WK@3K+`{_xA;W{t4UG!B8Wm<WG9@pX2h_O%XdvU(PGKMkGDv~pNN)#2C?gAth%+cuuI+Ex"
    b"WHonVaq-#Y1Kr683)4?bcU|1>>gVk5;u_@A-"
    b"UW1VvO;b_YPw1KiAAo9J6uA8978<){ao6o7#LWAkfELd3@|XrJ8vs>n7+Sdm&EnN=Zy@D7c??3Gysj=%pkxHq_znhSUm0ivD<YF42Rrx_xEo5y"
    b"Ldt)Lkh^^ZGjKm>w&`gAdwSbk)Q)`5ymfIkx+yhrU<Y|7(xxR0$3yhp@z8yED{M-1B!m2+fr=#Q+M}oZe-Zr1x$7yn;7SPXygO{%rDJd"
)
"""An MPEG-4 video of 32 x 32 grey pixels."""
INTERLACED = b"c-muNVBE~apdkGJ{{smI2F9%-O$>|-K)|?zfrG(;0mR||{{tk`|NnCXNP<y2)GO%c>ep{Iy<9*Fn9%sRjXOZHaR6z%E}Z"
"""An MPEG-2 video of two frames of 32 x 32 pixels."""


def test_interlaced_video_is_read_right_or_refused(tmp_path: Path) -> None:
    """OpenCV with FFmpeg 8 gives what its memory held before."""
    (tmp_path / "film.m2v").write_bytes(zlib.decompress(base64.b85decode(INTERLACED)))
    try:
        film = frames.open_input([tmp_path / "film.m2v"])
    except InputError as error:
        assert str(error).startswith(f"{tmp_path / 'film.m2v'}: OpenCV cannot read interlaced images; of a file")
    else:
        seen = [frame.image for frame in film.frames() if frame.image is not None]
        assert len(seen) == 2 and max(np.abs(image - [50.0, 100.0, 200.0]).max() for image in seen) < 8


def test_an_interlaced_image_in_a_video_is_a_frame_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As broadcasts mix them: the others are read."""
    film = frames.open_input([short_clip.film(tmp_path / "film.avi", 0.3)])
    reads = iter(range(99))

    class Mixed:
        def __init__(self, name: str) -> None:
            self._film = opened(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._film, name)

        def read(self) -> Any:
            if next(reads) == 1:
                os.write(2, b"[swscaler @ 0x1] Cannot convert interlaced to progressive frames or vice versa.\n")
            return self._film.read()

    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Mixed)
    first, second, *others = film.frames()
    assert first.image is not None and second.image is None and all(frame.image is not None for frame in others)
    assert second.problem.startswith(f"{tmp_path / 'film.avi'}: OpenCV cannot read interlaced images")


def test_a_video_of_wide_pixels_is_stretched(tmp_path: Path) -> None:
    """As those of camcorders: 4 to 3."""
    (tmp_path / "film.m2v").write_bytes(zlib.decompress(base64.b85decode(WIDE)))
    for frame in frames.open_input([tmp_path / "film.m2v"]).frames():
        assert frame.image is not None and frame.image.shape == (24, 43, 3)


WIDE = b"c-muNVBE~aAYuIf{{smI2F9%-T?~v2K)|?zfrG(;0mR||{{tk`|NpaN1CYU}y=uzR&*9haEY%bQDP%(9<2LR9$;JTy2`4bi"
"""An MPEG-2 video of two frames of 32 x 24 pixels, for a screen of 16 to 9."""


@pytest.mark.parametrize("name", ["photograph", "photograph.jfif", "photograph.MPO"])
def test_a_photograph_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(JPEG)
    (frame,) = frames.open_input([tmp_path / name]).frames()
    assert frame.image is not None and frame.name == name


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_a_photograph_in_heic_is_a_frame_that_says_so(brand: bytes, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "2.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(99))
    first, second = frames.open_input([tmp_path]).frames()
    assert first.image is not None and second.image is None
    assert (
        second.problem == f"{tmp_path / '2.heic'}: an image in HEIC or AVIF, which is not read; save it as JPEG or PNG"
    )
    (alone,) = frames.open_input([tmp_path / "2.heic"]).frames()
    assert alone.problem == second.problem


@pytest.mark.parametrize(
    ("steps", "rate", "count"),
    [
        ((0, 1, 2, 7), 10, 8),  # 0.1 s each, the third is shown for 0.5 s
        ((0, 2, 3, 4, 5, 6), 5, 4),  # the first for 0.2 s, and of the others every second one
        ((50, 51, 53, 0, 1), 10, 6),  # the recording starts again: the last before that is shown once
    ],
)
def test_a_video_of_the_result_keeps_the_times(
    steps: tuple[int, ...], rate: int, count: int, bundle: Path, tmp_path: Path
) -> None:
    r = Recorder()
    raw = [(topic, START + n * STEP, message) for n, (topic, _, message) in enumerate(map(r.raw, steps))]
    path = bag(tmp_path / "bag", r.info(0), *raw)
    assert replay(bundle, tmp_path / "out", path, "--video") == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "video.webm"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(rate)
    assert len([*iter(lambda: video.read()[0], False)]) == count
    assert replay(bundle, tmp_path / "out", path) == 0
    assert not (tmp_path / "out" / "video.webm").exists()  # that was of another run


def test_images_of_several_sizes_are_all_in_the_video(bundle: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 3)
    cv2.imwrite(str(tmp_path / "photos" / "1.png"), pattern(1))
    assert replay(bundle, tmp_path / "out", tmp_path / "photos", "--video") == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "video.webm"))
    shown = [image for good, image in iter(video.read, (False, None)) if good]
    assert len(shown) == 3 and len({image.shape for image in shown}) == 1


def test_images_are_inputs_wherever_they_lie(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other inputs, beside folders of images, beside a metadata.yaml of something else, and in this folder."""
    photographs(tmp_path / "photos", 1)
    photographs(tmp_path / "photos" / "left", 1)
    bag(tmp_path / "photos" / "bag", *clip(Recorder()))
    (tmp_path / "photos" / "metadata.yaml").write_text("rig: 2\n")
    monkeypatch.chdir(tmp_path / "photos" / "left")
    for word, out in (("..", tmp_path / "out"), (tmp_path / "photos", tmp_path / "again")):
        assert replay(bundle, out, word) == 0
        assert sorted(path.name for path in out.iterdir()) == ["bag", "inputs.csv", "left", "photos", "report.json"]
    assert replay(bundle, tmp_path / "here", ".") == 0 and report(tmp_path / "here")["input"] == "left"


def test_hidden_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    """As macOS leaves them on other systems' disks."""
    parts = without_metadata(tmp_path)
    (parts / "._parts_0.mcap").write_bytes(b"Mac OS X")
    assert frames.inputs_in(parts) == [parts] and len(list(frames.open_input([parts]).frames())) == 4
    photographs(tmp_path / "photos", 1)
    for name in ("._0.png", "._film.mp4"):
        (tmp_path / "photos" / name).write_bytes(b"Mac OS X")
    assert frames.inputs_in(tmp_path / "photos") == [tmp_path / "photos"]
    assert [frame.problem for frame in frames.open_input([tmp_path / "photos"]).frames()] == [""]


def test_camcorders_videos_in_a_folder_are_inputs(tmp_path: Path) -> None:
    names = ["00000.MTS", "door.dav", "film.mpg", "live.ts", "moving.gif", "phone.3gp", "web.mjpeg"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in frames.inputs_in(tmp_path)] == names


def test_a_folder_that_may_not_be_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lost+found on a disk. Permissions do not keep root out, so the system call fails here."""
    disk = tmp_path / "disk"
    closed = disk / "lost+found"
    closed.mkdir(parents=True)
    bag(disk / "a", *clip(Recorder()))

    def only_open(name: str, call: Callable[[Any], Any]) -> None:
        def called(path: Any) -> Any:
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path)

        monkeypatch.setattr(os, name, called)

    only_open("listdir", os.listdir)
    only_open("scandir", os.scandir)
    assert frames.inputs_in(disk) == [disk / "a"]
    assert replay(bundle, tmp_path / "out", closed) == 1
    assert f"{closed}: cannot be read (Permission denied)" in capsys.readouterr().err
