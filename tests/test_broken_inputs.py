"""Every verb is fed what users feed by mistake, and what strangers make: it ends with a line, never with a traceback.

All in this process, where a traceback is an exception that leaves `main`.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from mega_ros import Recovery
from mega_ros.cli import VERBS, main


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def bomb() -> bytes:
    """An .npz file whose array has a header that asks for 8 PB."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("template", "faces", "imgname", "stamps", "poses", "vertices"):
            archive.writestr(f"{name}.npy", header.getvalue())
    return file.getvalue()


def half_photograph() -> bytes:
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8), (0, 0), 2)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


FILES = {
    "empty": b"",
    "text.txt": b"not what you think\n",
    "page": b"<!DOCTYPE html>\n<html><body>404</body></html>",
    "huge.png": png(60000, 40000),
    "half.jpg": half_photograph(),
    "cut.mcap": b"\x89MCAP0\r\n\x01" + bytes(20),
    "cut.db3": b"SQLite format 3\0" + bytes(100),
    "cut.bag": b"#ROSBAG V2.0\n\x45\x00",
    "cut.mcap.zstd": b"\x28\xb5\x2f\xfd\x00",
    "cut.mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
    "list.json": b"[1, 2]",
    "deep.json": b"[" * 100_000,
    "cut.json": b'{"format": 2, "name": "\xff',
    "other.npz": npz(other=np.zeros(3)),
    "strange.npz": npz(template=np.array(["a"]), faces=np.zeros(()), imgname=np.zeros((2, 2)), stamps=np.zeros((0,))),
    "bomb.npz": bomb(),
    "cut.npz": npz(template=np.zeros((10, 3)))[:-30],
    "cut.safetensors": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "code.pt": pickle.dumps(os.getcwd),
    "caf\udce9.jpg": b"\xff\xd8",
}
"""Name -> content. The last name is not UTF-8."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The broken files, a folder that holds all that a bundle or checkpoint should, a pipe, and no file at all."""
    root = tmp_path_factory.mktemp("broken")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "folder" / "tokenizer").mkdir(parents=True)
    for name in ("bundle.json", "config.json", "metadata.yaml", "index.npz", "model.safetensors", "topology.npz"):
        for folder in (root / "folder", root / "folder" / "tokenizer"):
            (folder / name).write_bytes(b"{")
    os.mkfifo(root / "pipe")
    return [str(path) for path in (*sorted(root.iterdir()), root / "gone", Path("/dev/zero"))]


FEW = ["--steps", "1", "--batch", "1", "--lr", "1", "--out", "OUT"]
RUNTIME: dict[str, Sequence[Sequence[str]]] = {
    "demo": [["--image", "IN"], ["--video", "IN"], ["--bundle", "IN", "--image", "GOOD"]],
    "replay": [
        ["IN", "--out", "OUT"],
        ["GOOD", "--bundle", "IN", "--out", "OUT"],
        ["GOOD", "--reference", "IN", "--out", "OUT"],
    ],
    "replay compare": [["IN", "IN"]],
    "evaluate keypoints": [["--set", "coco-keypoints:IN"], ["--set", "coco-keypoints:COCO", "--bundle", "IN"]],
}
EVALUATED = [["--checkpoint", "IN", "--set", "rendered:IN"]]
TRAINING: dict[str, Sequence[Sequence[str]]] = {
    "train tokenizer": [["IN"], ["--meshes", "IN", *FEW]],
    "train pretrain": [["IN"], ["--tokenizer", "IN", *FEW]],
    "train lift": [["IN"], ["--pretrained", "IN", *FEW], ["--sets", "IN", *FEW]],
    "train recover": [["IN"], ["--pretrained", "IN", *FEW], ["--sets", "coco:IN", *FEW]],
    "train errors": [["--checkpoint", "IN"]],
    "train default": [["--detector", "IN", "--out", "OUT"]],
    "render": [["--topology", "IN", "--count", "40", "--out", "OUT", "--split", "test"]],
    "features": [["--scenes", "IN", "--out", "OUT"], ["--scenes", "IN", "--backbone", "IN", "--out", "OUT"]],
    "shards": [[f"{kind}:IN", "--out", "OUT"] for kind in ("coco", "3dpw", "emdb", "nonsense")],
    "import-reference": [["--mega", "IN", "--mesh-vqvae", "IN", "--connections", "IN", "--out", "OUT"]],
    "import-backbone": [["--tflite", "IN", "--out", "OUT"]],
    "import-detector": [["--onnx", "IN", "--out", "OUT"]],
    "calibrate": [["--checkpoint", "IN"]],
    "evaluate": [["--checkpoint", "IN"]],
    "evaluate deterministic": EVALUATED,
    "evaluate stochastic": EVALUATED,
    "evaluate mean": EVALUATED,
    "evaluate random": [["--checkpoint", "IN"]],
    "evaluate uncertainty": EVALUATED,
    "evaluate figures": EVALUATED,
    "export onnx": [["--checkpoint", "IN", "--out", "OUT"]],
    "export check": [["IN", "--checkpoint", "IN"]],
}
"""Verb -> its arguments, where IN is a broken input."""
ELSEWHERE = {"node": "test_node.py", "bench": "has no input", "clip": "has no input"}


def test_every_verb_is_fed() -> None:
    assert {*RUNTIME, *TRAINING, *ELSEWHERE} == {*VERBS}


def refuses(verb: str, arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([*verb.split(), *arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    shown = capfd.readouterr()
    assert code, f"{verb} {arguments} passes: {shown.out}"
    assert "Traceback" not in shown.err + shown.out
    lines = [line for line in shown.err.splitlines() if line.startswith("mega ")]
    assert len(lines) == 1 or code == 2, f"{verb} {arguments}: {shown.err}"


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str], str], list[str]]:
    """Arguments with files in place of the words in capital letters."""
    monkeypatch.chdir(tmp_path)
    good, coco = tmp_path / "good.png", tmp_path / "coco.json"
    cv2.imwrite(str(good), np.full((64, 64, 3), 90, np.uint8))
    limbs = [f"{side}_{part}" for part in "shoulder elbow wrist hip knee ankle".split() for side in ("left", "right")]
    coco.write_text(json.dumps({"categories": [{"id": 1, "keypoints": limbs}], "images": [], "annotations": []}))
    words = {"GOOD": str(good), "COCO": str(coco), "OUT": str(tmp_path / "out")}

    def fill(arguments: Sequence[str], broken: str) -> list[str]:
        out = []
        for word in arguments:
            for name, value in (words | {"IN": broken}).items():
                word = value if word == name else word.removesuffix(name) + value if word.endswith(f":{name}") else word
            out.append(word)
        return out

    return fill


@pytest.mark.parametrize("verb", RUNTIME)
def test_the_runtime_refuses(
    verb: str,
    inputs: list[str],
    filled: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default, load = Recovery.load("default"), Recovery.load
    once = staticmethod(lambda name="default", **more: default if name == "default" else load(name, **more))
    monkeypatch.setattr(Recovery, "load", once)
    for arguments in RUNTIME[verb]:
        for broken in inputs:
            refuses(verb, filled(arguments, broken), capfd)


@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("verb", TRAINING)
def test_training_refuses(
    verb: str, inputs: list[str], filled: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments in TRAINING[verb]:
        for broken in inputs:
            refuses(verb, filled(arguments, broken), capfd)
