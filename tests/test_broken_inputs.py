"""Every verb is fed what users feed by mistake, and what strangers make: it ends with a line, never with a traceback.

All in this process, where a traceback is an exception that leaves `main`.
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from little_bundle import little_bundle

from mega_model.core import metrics
from mega_model.core.errors import InputError
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
    "list.yaml": b"- 1",
    "cut.yaml": b"steps: [1",
    "cut.safetensors": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    "code.pt": pickle.dumps(os.getcwd),
    "caf\udce9.jpg": b"\xff\xd8",
}
"""Name -> content. The last name is not UTF-8."""


ANY = ("empty", "page", "folder", "gone")
"""What every argument is given."""
KINDS = {
    "MEDIA": ("text.txt", "pipe", *(name for name in FILES if name.endswith((".png", ".jpg", ".mp4", ".json")))),
    "BAG": tuple(name for name in FILES if name.startswith(("cut.mcap", "cut.db3", "cut.bag"))),
    "NPZ": tuple(name for name in FILES if name.endswith(".npz")),
    "JSON": tuple(name for name in FILES if name.endswith(".json")),
    "YAML": ("list.yaml", "cut.yaml", "gone.yaml"),
    "WEIGHTS": ("cut.safetensors", "code.pt", "/dev/zero"),
    "FOLDER": ("cut.json",),
}
"""Word in an argument -> the inputs that it is given beside `ANY`. Arguments with one reader get all of them once."""
FEW = ["--steps", "1", "--batch", "1", "--lr", "1", "--out", "OUT"]
RUNTIME: dict[str, Sequence[Sequence[str]]] = {
    "demo": [["--image", "MEDIA"], ["--video", "MEDIA"], ["--video", "BAG"], ["--bundle", "FOLDER", "--image", "GOOD"]],
    "replay": [
        ["MEDIA", "--out", "OUT"],
        ["BAG", "--out", "OUT"],
        ["GOOD", "--bundle", "FOLDER", "--out", "OUT"],
        *(["GOOD", "--reference", kind, "--out", "OUT"] for kind in ("NPZ", "JSON", "BAG")),
    ],
    "replay compare": [["JSON", "JSON"]],
    "evaluate keypoints": [["--set", "coco-keypoints:JSON"], ["--set", "coco-keypoints:COCO", "--bundle", "FOLDER"]],
    "vertices": [["NPZ"]],
    "view": [["NPZ"]],
    "bench": [["FOLDER"], ["--compare", "JSON", "JSON"]],
}
EVALUATED = [["--checkpoint", "FOLDER", "--set", "rendered:FOLDER"]]
TRAINING: dict[str, Sequence[Sequence[str]]] = {
    "train tokenizer": [["YAML"], ["--meshes", "FOLDER", *FEW]],
    "train pretrain": [["--tokenizer", "FOLDER", *FEW]],
    "train lift": [["--pretrained", "FOLDER", "--sets", "features:.", *FEW]],
    "train recover": [["--pretrained", "FOLDER", "--sets", "features:.", *FEW]],
    "train errors": [["--checkpoint", "FOLDER", "--sets", "."]],
    "train default": [["--detector", "WEIGHTS", "--out", "OUT"]],
    "render": [["--topology", "NPZ", "--count", "40", "--out", "OUT", "--split", "test"]],
    "features": [["--scenes", "FOLDER", "--backbone", ".", "--out", "OUT"]],
    "shards": [
        ["coco:NPZ", "--out", "OUT"],
        *([f"{kind}:FOLDER", "--out", "OUT"] for kind in ("3dpw", "emdb", "none")),
    ],
    "import-reference": [["--mega", "WEIGHTS", "--mesh-vqvae", "WEIGHTS", "--connections", "folder", "--out", "OUT"]],
    "import-backbone": [["--tflite", "WEIGHTS", "--out", "OUT"]],
    "import-detector": [["--onnx", "WEIGHTS", "--out", "OUT"]],
    "calibrate": [["--checkpoint", "FOLDER", "--set", "."]],
    "evaluate": [["--checkpoint", "FOLDER", "--test", "."]],
    "evaluate deterministic": EVALUATED,
    "evaluate stochastic": EVALUATED,
    "evaluate mean": EVALUATED,
    "evaluate random": [["--checkpoint", "FOLDER"]],
    "evaluate uncertainty": EVALUATED,
    "evaluate figures": EVALUATED,
    "export onnx": [["--checkpoint", "FOLDER", "--out", "OUT"]],
    "export check": [["FOLDER", "--checkpoint", "FOLDER"]],
}
"""Verb -> its arguments."""
ELSEWHERE = {
    "node": "test_node.py",
    "bench node": "has no input",
    "clip": "has no input",
    "export trt": "test_tensorrt.py",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the broken files, a folder that holds all that a bundle or checkpoint should, and a pipe."""
    root = tmp_path_factory.mktemp("broken")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "folder" / "tokenizer").mkdir(parents=True)
    for name in ("bundle.json", "config.json", "metadata.yaml", "index.npz", "model.safetensors", "topology.npz"):
        for folder in (root / "folder", root / "folder" / "tokenizer"):
            (folder / name).write_bytes(b"{")
    os.mkfifo(root / "pipe")
    return root


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
    # wrong options are explained in several lines; compare has the code 2 for reports that it cannot compare
    explained = code == 2 and verb != "replay compare"
    assert len(lines) == 1 or explained, f"{verb} {arguments}: {shown.err}"


@pytest.fixture
def feed(
    tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str, Sequence[Sequence[str]]], None]:
    """Calls a verb with each of its arguments, once for each input of the kind that they name."""
    monkeypatch.chdir(broken)
    good, coco = tmp_path / "good.png", tmp_path / "coco.json"
    cv2.imwrite(str(good), np.full((64, 64, 3), 90, np.uint8))
    limbs = [f"{side}_{part}" for part in "shoulder elbow wrist hip knee ankle".split() for side in ("left", "right")]
    coco.write_text(json.dumps({"categories": [{"id": 1, "keypoints": limbs}], "images": [], "annotations": []}))
    words = {"GOOD": good, "COCO": coco, "OUT": tmp_path / "out"}

    def fill(argument: str, words: Mapping[str, object]) -> str:
        kind, _, name = argument.rpartition(":")
        return f"{kind}:{words.get(name, name)}".removeprefix(":")

    def feed(verb: str, commands: Sequence[Sequence[str]]) -> None:
        for arguments in commands:
            (kind,) = {word.rpartition(":")[2] for word in arguments} & {*KINDS}
            for name in (*ANY, *KINDS[kind]):
                refuses(verb, [fill(word, words | {kind: name}) for word in arguments], capfd)

    return feed


@pytest.mark.parametrize("verb", RUNTIME)
def test_the_runtime_refuses(
    verb: str, feed: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    little, load = Recovery(little_bundle(tmp_path_factory.mktemp("little"))), Recovery.load
    once = staticmethod(lambda name, **more: little if name == "default" else load(name, **more))
    monkeypatch.setattr(Recovery, "load", once)
    feed(verb, RUNTIME[verb])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a list": lambda content: b"[1, 2]",
    "other fields": lambda content: b'{"scale": "big", "quantiles": {"0.5": null}}',
    "not UTF-8": lambda content: b"\xff" + content[1:],
}


def each_file_damaged(folder: Path, copy: Path) -> Iterator[Path]:
    """A folder as `folder`, in which one file after the other is damaged in each way: the path of that file."""
    shutil.copytree(folder, copy)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for damage in DAMAGES.values():
            path.write_bytes(damage(whole))
            yield path
        path.write_bytes(whole)


def test_each_file_of_a_bundle_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "good.png"), np.full((64, 64, 3), 90, np.uint8))
    words = ["replay", tmp_path / "good.png", "--bundle", tmp_path / "copy", "--out", tmp_path / "out"]
    (tmp_path / "bundle").mkdir()
    for path in each_file_damaged(little_bundle(tmp_path / "bundle").folder, tmp_path / "copy"):
        assert main([*map(str, words)]) == 1, path
        (line,) = capfd.readouterr().err.splitlines()
        assert path.name in line


@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
def test_each_file_of_a_checkpoint_is_checked(tmp_path: Path) -> None:
    from test_export import torus

    from mega_model import checkpoint
    from mega_model.evaluate.uncertainty import error_model, saved_scale
    from mega_model.mega import MegaConfig
    from mega_model.tokenizer import TokenizerConfig

    sizes = TokenizerConfig(channels=(8, 8), latent=4, codes=16, bases=2)
    tokenizer = checkpoint.begin_tokenizer(tmp_path / "tokenizer", torus(), sizes)
    checkpoint.save_weights(tokenizer, tmp_path / "tokenizer")
    config = MegaConfig(tokens=tokenizer.length, codes=16, width=16, heads=2, backbone="resnet18", backbone_width=4)
    checkpoint.save_weights(checkpoint.begin_mega(tmp_path / "mega", tmp_path / "tokenizer", config), tmp_path / "mega")
    quantiles = {str(share): 1.0 for share in metrics.LEVELS}
    (tmp_path / "mega" / "calibration.json").write_text(json.dumps({"scale": 1.5}))
    (tmp_path / "mega" / "scores.json").write_text(json.dumps({"quantiles": quantiles}))
    damaged = set()
    for path in each_file_damaged(tmp_path / "mega", tmp_path / "copy"):
        with pytest.raises(InputError, match=re.escape(f"{path}: ")):
            checkpoint.load_mega(tmp_path / "copy")
            saved_scale(tmp_path / "copy")
            error_model(tmp_path / "copy")
        damaged.add(path.name)
    assert damaged == {"config.json", "model.safetensors", "topology.npz", "calibration.json", "scores.json"}
    assert saved_scale(tmp_path / "copy") == 1.5 and (error_model(tmp_path / "copy")[0] == 1).all()


@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")
@pytest.mark.parametrize("verb", TRAINING)
def test_training_refuses(verb: str, feed: Callable[..., None]) -> None:
    feed(verb, TRAINING[verb])
