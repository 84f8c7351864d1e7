"""Exports a checkpoint to a bundle: `mega export onnx --checkpoint FOLDER --out FOLDER` or `python export/to_onnx.py`.

Every graph wraps the functions that training and evaluation use; export/check.py compares the results.
Weight matrices are rounded to float16 for storage; all arithmetic is float32.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed works too

from export import half
from export.options import ExportConfig
from mega_model import checkpoint, generate, onnx_files
from mega_model.blazepose import PoseFeatures
from mega_model.checkpoint import LoadedModel
from mega_model.core.commands import call
from mega_model.core.errors import InputError
from mega_model.core.files import make_folder, read_json
from mega_model.core.regions import BOX_MARGIN, PASSES
from mega_model.core.settings import parse
from mega_model.core.topology import LIMBS
from mega_model.expected_error import ErrorHead
from mega_model.geometry import rot6d_to_matrix
from mega_model.image_encoding import ImageTokens
from mega_model.mega import Mega
from mega_model.tokenizer import MeshConv, MeshPool, MeshTokenizer
from mega_ros import bundle

OPSET = 20
DENSE_LIMIT = 2**23
"""Largest number of elements of a dense mesh operator: 32 MB. SMPL's would have 480 MB, so it keeps gathers."""


BODIES = {
    1229: bundle.Body("anny", "notoes_collapse10pc", "Apache-2.0 code, CC0 assets"),
    6890: bundle.Body("smpl", "smpl", "SMPL's licence: not for products, and the bundle may not be passed on"),
}
"""Number of vertices -> body and licence."""
FEATURES = ("features", "landmarks", "world", "presence")
"""Outputs of the backbone graph, see `PoseFeatures`; without BlazePose only the first."""
DETERMINISTIC = (
    *("tokens", "vertices", "rotation", "camera", "image", "logits", "prior"),
    *("sigma", "joints_sigma", "distance", "modes"),
)
"""Outputs of the deterministic graph; `prior` only with a lifter, the last four only with an error head."""
NOT_CALIBRATED = bundle.Calibration(1.0, "not calibrated: sigma is the samples' own spread", {})


class BackboneGraph(nn.Module):
    """crops uint8 [P, H, W, 3] RGB -> features [P, C, h, w], or the parts of `PoseFeatures`"""

    def __init__(self, model: Mega) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Any:
        # to float first: TensorRT has bytes only as inputs
        features = self.model.backbone(self.model.normalise(crops.float().permute(0, 3, 1, 2) / 255))
        return tuple(features) if isinstance(features, PoseFeatures) else features


class DeterministicGraph(nn.Module):
    """The backbone graph's outputs -> tokens [P, N], vertices [P, V, 3], rotation [P, 3, 3], camera [P, 3], and the
    sampler's inputs image [P, L, D], logits [P, N, S]. With an error head, there is a further input, keypoints
    [P, 12, 3], and further outputs, sigma [P, V], joints_sigma [P, J], distance [P] and modes [M, V, 3].
    """

    def __init__(self, model: Mega, tokenizer: MeshTokenizer, errors: ErrorHead | None) -> None:
        super().__init__()
        self.model, self.errors = model, errors
        self.decoder = MeshDecoder(tokenizer)
        # without visible tokens, the encoder's output is a constant, so the graph has no encoder
        nothing = torch.zeros(1, 0, dtype=torch.long)
        self.register_buffer("nothing", nothing)
        self.register_buffer("encoded", model.encode_nothing().detach())
        self.nothing: Tensor
        self.encoded: Tensor

    def forward(
        self,
        maps: Tensor,
        landmarks: Tensor | None = None,
        world: Tensor | None = None,
        presence: Tensor | None = None,
        keypoints: Tensor | None = None,
    ) -> tuple[Any, ...]:
        features: Any = maps
        if landmarks is not None and world is not None and presence is not None:
            features = PoseFeatures(maps, landmarks, world, presence)
        seen = self.model.encode_image(features)
        people = len(seen.image.tokens)
        encoded, nothing = self.encoded.expand(people, -1, -1), self.nothing.expand(people, -1)
        states = self.model.decode(seen.image, encoded, nothing)
        logits = self.model.read(states, seen.image)
        vertices = self.decoder.expected(logits)
        out = logits.argmax(dim=-1), vertices, rot6d_to_matrix(seen.rot6d), seen.camera, seen.image.tokens, logits
        prior = () if seen.image.prior is None else (seen.image.prior,)
        if self.errors is None:
            return (*out, *prior)
        return (*out, *prior, *self.errors(states, seen.maps, landmarks, world, presence, keypoints))


class SamplerGraph(nn.Module):
    """image [P, L, D], logits [P, N, S], uniforms [P, Q, T, N, 2], prior [P, N, S] if the model has one
    -> tokens [P, Q, N], vertices [P, Q, V, 3]"""

    def __init__(self, model: Mega, tokenizer: MeshTokenizer, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.decoder = MeshDecoder(tokenizer)
        self.temperature = temperature

    def forward(
        self, image: Tensor, logits: Tensor, uniforms: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        tokens = generate.sample(self.model, ImageTokens(image, prior), logits, uniforms, self.temperature)
        return tokens, self.decoder(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])


class MeshDecoder(nn.Module):
    """`MeshTokenizer.decode` with every pool merged into the next convolution, if the result is small enough."""

    def __init__(self, tokenizer: MeshTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        layers: list[nn.Module] = []
        for layer in tokenizer.decoder:
            if isinstance(layer, MeshConv) and layers and isinstance(layers[-1], MeshPool):
                coarse = int(layers[-1].index.max()) + 1
                if len(layer.index) * coarse * len(layer.weights) <= DENSE_LIMIT:
                    layer = PoolConv(layers.pop(), layer, coarse)
            layers.append(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, N] -> [B, V, 3]"""
        return self.reconstruct(self.tokenizer.quantizer.codebook[tokens])

    def expected(self, logits: Tensor) -> Tensor:
        """`generate.expected_vertices`: [B, N, S] -> [B, V, 3]"""
        return self.reconstruct(logits.softmax(dim=-1) @ self.tokenizer.quantizer.codebook)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """[B, N, latent] -> [B, V, 3]"""
        return self.layers(latents.transpose(0, 1)).transpose(0, 1) + self.tokenizer.template


class PoolConv(nn.Module):
    """A pool to a finer graph and the next convolution as one matrix: 4 times as fast as gathers on a CPU.

    The graph computes the matrix from the small weights; onnxruntime does this once, at loading.
    """

    def __init__(self, pool: nn.Module, conv: MeshConv, coarse: int) -> None:
        super().__init__()
        self.pool, self.conv, self.coarse = pool, conv, coarse

    def forward(self, x: Tensor) -> Tensor:
        """[coarse, B, C] -> [V, B, C']"""
        bases, outputs, inputs = self.conv.weights.shape
        batch = x.shape[1]
        pool = self.pool(torch.eye(self.coarse)[:, None])[:, 0]  # [fine, coarse]
        mixing = self.conv.mixing * self.conv.mask[..., None]  # [V, slots, bases]
        matrix = (pool[self.conv.index].transpose(1, 2) @ mixing).flatten(1)  # [V, coarse * bases]
        kernels = self.conv.weights.permute(2, 0, 1).reshape(inputs, bases * outputs)
        y = (x @ kernels).reshape(self.coarse, batch, bases, outputs).transpose(1, 2)
        return (matrix @ y.reshape(self.coarse * bases, batch * outputs)).reshape(-1, batch, outputs) + self.conv.bias


def as_stored(model: LoadedModel) -> None:
    """Convert a model to its form in a bundle: batch norms merged into convolutions, matrices rounded to float16."""
    with torch.no_grad():
        for network in model.networks:
            for layers in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
                for i in range(len(layers) - 1):
                    convolution, norm = layers[i], layers[i + 1]
                    if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                        layers[i], layers[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
            for parameter in network.parameters():
                if parameter.ndim >= 2:
                    parameter.copy_(parameter.half())


def export(config: ExportConfig) -> bundle.Bundle:
    sampling = _sampling(config)
    model = checkpoint.load(config.checkpoint)
    mega, vertices = model.mega, len(model.topology.template)
    if not len(model.topology.joint_names):
        raise InputError(f"{config.checkpoint}: has no joints; import it again with --smpl-model")
    body = config.body or BODIES.get(vertices)
    if body is None:
        raise InputError(f"{config.checkpoint}: no known body has {vertices} vertices; see ExportConfig.body")
    scores = _notes(config.checkpoint / "scores.json")
    calibration = _calibration(config.checkpoint / "calibration.json", scores)
    training = _notes(config.checkpoint / "training.json")
    make_folder(config.out)
    # the export takes minutes, so the old bundle stays complete until the new one is
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        new = Path(folder)
        detector = save_detector(new, config.detector) if config.detector else None  # first, as it may be refused
        graphs = save_graphs(new, model, config)
        origins = backbone_origin(training)
        if detector:
            graphs["detector"], of_detector = detector
            origins |= of_detector
        model.topology.save(new / bundle.TOPOLOGY)
        write = functools.partial(
            bundle.write_bundle,
            new,
            name=config.name or f"{body.name}-{mega.config.backbone}",
            graphs=graphs,
            crop=bundle.Crop(
                mega.config.image_size,
                BOX_MARGIN,
                mega.backbone.mean,
                mega.backbone.std,
                passes=PASSES if mega.lifter is not None else 1,
            ),
            sampling=sampling,
            calibration=calibration,
            body=body,
            training={**training, "scores": scores, "model": dataclasses.asdict(mega.config)},
            origins=origins,
        )
        write(fp32=half.stay_fp32(write()) if config.fp32 is None else config.fp32)
        for old in config.out.glob("*.onnx"):
            old.unlink()
        for file in new.iterdir():
            file.replace(config.out / file.name)
    return bundle.Bundle.load(config.out)


def _sampling(config: ExportConfig) -> bundle.Sampling:
    """As the bundle will be read, where what is not finite is no number. Raises InputError that names the option."""
    written = msgspec.json.encode(bundle.Sampling(config.steps, config.samples, config.temperature))
    try:
        return msgspec.json.decode(written, type=bundle.Sampling)
    except msgspec.ValidationError as error:
        raise InputError(str(error).replace("$.", "--")) from None


def _calibration(file: Path, scores: dict[str, Any]) -> bundle.Calibration:
    """As the bundle will be read, with shares that were measured on people who took no part in the calibration.

    Raises InputError that names the file.
    """
    if not file.exists():
        return NOT_CALIBRATED
    shares = {name: scores.get(name, {}) for name in ("coverage", "quantiles")}
    try:
        return msgspec.json.decode(msgspec.json.encode(_notes(file) | shares), type=bundle.Calibration)
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: with the scores beside it, no calibration ({error}); calibrate again") from None


def backbone_origin(training: dict[str, Any]) -> dict[str, str]:
    """The manifest's `origins` for a backbone from `mega import-backbone`, of the stage that began with it."""
    notes = training.get("backbone")
    if notes is None and isinstance(training.get("before"), dict):
        return backbone_origin(training["before"])
    if not isinstance(notes, dict) or "license" not in notes:
        return {}
    file = f"{notes['file']} of npm {notes['package']} {notes['version']}"
    return {"backbone": f"{notes['model']} ({file}), as published; licence: {notes['license']}"}


def save_detector(folder: Path, source: Path) -> tuple[bundle.Graph, dict[str, str]]:
    """Copy the detector `source`. Returns its entries in the manifest's `graphs` and `origins`.

    Raises InputError that names the file.
    """
    proto = onnx_files.read(source)
    graph = bundle.Graph(_tensors(proto.graph.input), _tensors(proto.graph.output))
    inputs, outputs, _, _ = bundle.GRAPHS["detector"]
    if list(graph.inputs) != inputs or not set(outputs) <= set(graph.outputs):
        raise InputError(f"{source}: not a bundle's detector; make one with mega import-detector")
    shutil.copyfile(source, folder / "detector.onnx")
    notes = {note.key: note.value for note in proto.metadata_props}
    return graph, {"detector": notes["origin"]} if "origin" in notes else {}


def save_graphs(folder: Path, model: LoadedModel, config: ExportConfig) -> bundle.Graphs:
    """The three graphs of a model, by name."""
    as_stored(model)
    mega, tokenizer, errors, _ = model
    # example sizes P, Q that differ from all other dimensions
    crops = torch.zeros(11, mega.config.image_size, mega.config.image_size, 3, dtype=torch.uint8)
    backbone, deterministic = BackboneGraph(mega).eval(), DeterministicGraph(mega, tokenizer, errors).eval()
    with torch.no_grad():
        parts = backbone(crops)
        features = dict(zip(FEATURES, parts)) if isinstance(parts, tuple) else {FEATURES[0]: parts}
        outputs = [*features]
        names = [name for name in DETERMINISTIC if name != "prior" or mega.lifter is not None]
        if errors is not None:
            features["keypoints"] = torch.zeros(len(crops), len(LIMBS), 3)
        made = dict(zip(names, deterministic(*features.values())))
    uniforms = torch.rand(11, 13, config.steps, tokenizer.length, 2)
    sampled = {"image": made["image"], "logits": made["logits"], "uniforms": uniforms}
    if "prior" in made:
        sampled["prior"] = made["prior"]
    return {
        "backbone": save_graph(folder / "backbone.onnx", backbone, {"crops": crops}, [{0: "P"}], outputs),
        "deterministic": save_graph(
            folder / "deterministic.onnx", deterministic, features, [{0: "P"}] * len(features), [*made]
        ),
        "sampler": save_graph(
            folder / "sampler.onnx",
            SamplerGraph(mega, tokenizer, config.temperature),
            sampled,
            [{0: "P"}, {0: "P"}, {0: "P", 1: "Q"}, {0: "P"}][: len(sampled)],
            ["tokens", "vertices"],
        ),
    }


def _notes(path: Path) -> dict[str, Any]:
    """Nothing if there is no such file. Raises InputError unless it holds names and values."""
    notes = read_json(path) if path.exists() else {}
    if not isinstance(notes, dict):
        raise InputError(f"{path}: damaged, it holds no names and values")
    return notes


def save_graph(
    path: Path, module: nn.Module, inputs: dict[str, Tensor], dynamic: list[dict[int, str]], outputs: list[str]
) -> bundle.Graph:
    """Export one module; `dynamic`: names of each input's dynamic sizes. Returns its entry in the manifest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        # strict, so that len(tensor) is traced as a dynamic size
        sizes = {name: torch.export.Dim(name) for dims in dynamic for name in dims.values()}
        shapes = tuple({axis: sizes[name] for axis, name in dims.items()} for dims in dynamic)
        exported = torch.export.export(module.eval(), tuple(inputs.values()), dynamic_shapes=shapes, strict=True)
        program = torch.onnx.export(
            exported, input_names=list(inputs), output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _name_sizes(proto, dynamic)
    onnx_files.halve(proto.graph)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return bundle.Graph(_tensors(proto.graph.input), _tensors(proto.graph.output))


def _strip(proto: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which contain stack traces with paths of this machine."""
    del proto.graph.value_info[:]
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _name_sizes(proto: onnx.ModelProto, dynamic: list[dict[int, str]]) -> None:
    """Rename the exporter's size names, such as s6 and s27, to P and Q."""
    inputs = [value.type.tensor_type.shape.dim for value in proto.graph.input]
    outputs = [value.type.tensor_type.shape.dim for value in proto.graph.output]
    names = {inputs[i][axis].dim_param: name for i, dims in enumerate(dynamic) for axis, name in dims.items()}
    for size in (size for shape in [*inputs, *outputs] for size in shape if size.dim_param):
        size.dim_param = names[size.dim_param]


def _tensors(values: Any) -> dict[str, bundle.Tensor]:
    return {
        value.name: bundle.Tensor(
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def main(config: ExportConfig) -> None:
    logging.disable(logging.WARNING)  # the exporter logs its own internals
    made = export(config)
    size = sum((made.folder / file).stat().st_size for file in made.files) / 1e6
    print(f"{made.folder}: bundle {made.name}, {size:.1f} MB, SHA-256 {made.hash}")
    if made.calibration == NOT_CALIBRATED:
        print(f"{config.checkpoint}: sigma is not calibrated; run mega calibrate, then export again")


if __name__ == "__main__":
    sys.exit(call("export/to_onnx.py", lambda: main(parse(ExportConfig, sys.argv[1:]))))
