"""The authors' released checkpoints as models of this project.

`load_mega` and `load_tokenizer` read the files that the released code of MEGA and Mesh-VQ-VAE writes, and
`mega import-reference` makes of them a checkpoint of this project, to train, evaluate and export. Of a file, the
weights under `model` are read, not the optimizer's state and scores beside them. Every key and shape is checked; keys
that are not used are in `UNUSED`.

Files do not tell everything. Attention has 4 heads. The cameras of a released model are relative to a square crop whose
edges are at -1 and 1; only one that was trained with the released loader of 256 x 192 crops, as mega_vit should be, saw
them at -0.5 and 0.5, so that its scale is half of what this project expects of a camera. Numbers are left as they are.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from mega_model import checkpoint
from mega_model.body.smpl import HIERARCHY_SEEDS, SmplBody
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.core.files import must_exist, npz_fields, read_npy, read_npz
from mega_model.core.topology import Topology
from mega_model.mega import PRESETS, Mega, MegaConfig
from mega_model.tokenizer import Layer, MeshConv, MeshPool, MeshTokenizer, TokenizerConfig

UNUSED: dict[type[nn.Module], dict[str, str]] = {
    Mega: {r"backbone\.final_layer\.(weight|bias)": "the joint maps of HRNet's own task"},
    MeshTokenizer: {
        r"decoder\.model\..*": "the tokenizer's layers a second time; they must equal those under encoder.model"
    },
}
"""Model -> pattern of keys of its file that are known and not read -> what they are."""

Preset = Literal["hrnet", "vit", "resnet"]
Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def load_mega(path: Path | str, preset: str = "hrnet") -> Mega:
    """A released MEGA, of whichever backbone; or the pre-training checkpoint, which knows no images.

    The latter gets the untrained backbone and heads of `preset`. A file with image heads but no backbone gives a model
    that takes feature maps for images. The weights stay on disk until they are used. Raises InputError
    that names the file and the keys that are missing, unexpected or of another shape.
    """
    weights = _read(path)
    config = _mega_config(path, weights, preset)
    with torch.device("meta"):  # what is in the file needs no start
        model = Mega(config)
    names = {key: released_name(key, config) for key in model.state_dict()}
    image = {key: name for key, name in names.items() if key.startswith(IMAGE_PART)}
    if weights.keys().isdisjoint(image.values()):  # pre-trained
        with torch.random.fork_rng():
            torch.manual_seed(0)  # what the file does not have starts the same every time
            model = Mega(config)
        names = {key: name for key, name in names.items() if key not in image}
    model.load_state_dict(_matched(path, model, names, weights), strict=False, assign=True)
    return model.eval()


def load_tokenizer(path: Path | str, connections: Path | str, residual: Sequence[float] = ()) -> MeshTokenizer:
    """A released Mesh-VQ-VAE, whose graphs are in the folder `connections` (`_pool0.npy`, `_unpool0.npy` ...).

    `residual` is the residual rate of every layer, encoder and decoder; a file tells only those that are 0 or 1, as all
    of the released model's are. Raises InputError that names the file and what is wrong with it.
    """
    weights = _read(path)
    layers = _layers(path, weights, residual)
    _check_twins(path, weights)
    codebook = _get(path, weights, "vq_vae._embedding.weight")
    levels = hierarchy.load(Path(connections))
    if len(layers) > 2 * len(levels):
        raise InputError(
            f"{connections}: {len(levels)} levels of tables, but the {len(layers)} layers of {path} need more"
        )
    seeds = _seeds(len(levels[0].centres))
    config = TokenizerConfig(seeds=seeds, codes=len(codebook), from_template=False, layers=layers)
    tokenizer = MeshTokenizer(unknown_body(len(levels[0].centres)), config, levels)
    tokenizer.load_state_dict(_matched(path, tokenizer, _tokenizer_names(tokenizer), weights), strict=False)
    return tokenizer.eval()


def unknown_body(vertices: int, faces: np.ndarray | None = None) -> Topology:
    """A topology of which only the number of vertices is known, and maybe the faces [F, 3]: its template is zero."""
    return Topology(
        template=np.zeros((vertices, 3), np.float32),
        faces=np.zeros((0, 3), np.int32) if faces is None else faces,
        joint_regressor=np.zeros((0, vertices), np.float32),
        parts=np.zeros(vertices, np.int32),
        joint_names=(),
    )


def read_faces(path: Path) -> np.ndarray:
    """int32 [F, 3] of an .npy, of `f` or `faces` in an .npz (a SMPL model, for one), or of an .obj.

    Raises InputError that names the file.
    """
    if path.suffix == ".npy":
        faces = read_npy(path)
    elif path.suffix == ".npz":
        field = "f" if "f" in npz_fields(path) else "faces"
        faces = read_npz(path, [field])[field]
    elif path.suffix == ".obj":
        must_exist(path)
        corners = [line.split()[1:] for line in path.read_text().splitlines() if line.startswith("f ")]
        try:  # a corner is vertex/texture/normal, counted from one
            faces = np.array([[int(corner.split("/")[0]) - 1 for corner in face] for face in corners])
        except ValueError as error:
            raise InputError(f"{path}: its faces are not all triangles of vertex numbers") from error
    else:
        raise InputError(f"{path}: faces are read from .npy, .npz and .obj files")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise InputError(f"{path}: its faces are {faces.dtype} {list(faces.shape)}, not whole numbers [F, 3]")
    return faces.astype(np.int32)


def check_faces(path: Path, faces: np.ndarray, levels: Sequence[hierarchy.Level]) -> None:
    """Raises InputError unless the faces [F, 3] of a file give just these levels."""
    vertices = len(levels[0].centres)
    if faces.min() < 0 or faces.max() >= vertices:
        raise InputError(f"{path}: faces of vertex {faces.max()}, but the connections are those of {vertices} vertices")
    strides = [1 + i % 2 for i in range(len(levels))]
    for i, (computed, level) in enumerate(zip(hierarchy.build(faces, vertices, strides, _seeds(vertices)), levels)):
        for kind in ("pool", "unpool"):
            if not np.array_equal(getattr(computed, kind).published(), getattr(level, kind).published()):
                raise InputError(
                    f"{path}: its faces give another table _{kind}{i} than the one in the connections folder"
                )


# ------------------------------------------------------------------------------------------------------ files and keys


def read_torch(path: Path | str) -> Any:
    """What torch saved in a file. Raises InputError if torch would have to run code of it."""
    must_exist(Path(path))
    try:
        # mapped, because the optimizer's state, which is not needed, is twice as large
        return torch.load(str(path), map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not a checkpoint that torch can read without running code in it ({reason})"
        ) from error


def are_tensors(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether it is a mapping from names to tensors."""
    return isinstance(value, Mapping) and all(isinstance(v, Tensor) for v in value.values())


def _read(path: Path | str) -> dict[str, Tensor]:
    """The weights of a released file by key, without the prefix that training on several GPUs leaves."""
    content = read_torch(path)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not are_tensors(weights):
        raise InputError(f"{path}: not a released checkpoint, it has no tensors by name under 'model'")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _get(path: Path | str, weights: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in weights:
        raise InputError(f"{path}: {key} is missing, so this is not the released model that was expected")
    return weights[key]


def _matched(
    path: Path | str, model: nn.Module, names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict for `model`, whose keys are called in the file as `names` says."""
    own = {key: value for key, value in model.state_dict().items() if key in names}
    shapes = {names[key]: _released_shape(names[key], value.shape) for key, value in own.items()}
    problems = [f"{name} is missing" for name in shapes if name not in weights]
    for name, value in weights.items():
        if name in shapes:
            if value.shape != shapes[name]:
                problems.append(f"{name} has the shape {list(value.shape)} in place of {list(shapes[name])}")
        elif not any(re.fullmatch(pattern, name) for pattern in UNUSED[type(model)]):
            problems.append(f"{name} is unexpected")
    if problems:
        more = f", and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise InputError(f"{path}: {', '.join(problems[:10])}{more}")
    return {key: weights[names[key]].reshape(value.shape).to(value.dtype) for key, value in own.items()}


def _released_shape(name: str, own: torch.Size) -> torch.Size:
    """Where the released model's shape is another than ours."""
    if name in ("encoder.cls_token", "decoder.mask_token"):
        return torch.Size([1, 1, *own])
    if name in ("encoder.pos_embedding", "decoder.pos_embedding"):
        return torch.Size([own[0], 1, own[1]])
    if name == "backbone.pos_embed":
        return torch.Size([1, *own])
    if re.fullmatch(r"encoder\.model\.weights\d+", name):  # bases, out x in
        return torch.Size([own[0], own[1] * own[2]])
    return own


# ---------------------------------------------------------------------------------------------------------------- MEGA

IMAGE_PART = ("backbone.", "image_embed.", "pose_head.", "rotation_head.", "camera_head.", "lifter.", "error_head.")
"""What the pre-training model does not have."""

_FAMILIES = {"hrnet": ("backbone.stage4.", 15), "resnet": ("backbone.7.", 32), "vit": ("backbone.blocks.", 1)}
"""Preset -> how some of its backbone's keys begin, and the channels that come out over its width."""


def _mega_config(path: Path | str, weights: Mapping[str, Tensor], preset: str) -> MegaConfig:
    """All sizes, by the shapes."""
    codes, width = _get(path, weights, "encoder.proj.weight").shape

    def blocks(part: str) -> int:
        return len({key.split(".")[2] for key in weights if key.startswith(f"{part}.transformer.")})

    base = replace(
        PRESETS[preset],
        tokens=len(_get(path, weights, "encoder.pos_embedding")),
        codes=codes,
        width=width,
        encoder_blocks=blocks("encoder"),
        decoder_blocks=blocks("decoder"),
        heads=4,
    )
    found = [name for name, (start, _) in _FAMILIES.items() if any(key.startswith(start) for key in weights)]
    if found:
        channels = _get(path, weights, "decoder.cond_emb.weight").shape[1]
        family = PRESETS[found[0]]
        return replace(
            base,
            backbone=family.backbone,
            backbone_width=channels // _FAMILIES[found[0]][1],
            image_size=family.image_size,
        )
    if "decoder.cond_emb.weight" in weights:
        return replace(base, backbone="given", backbone_width=weights["decoder.cond_emb.weight"].shape[1])
    return base


def _layer(match: re.Match[str]) -> str:
    """Place in a Sequential of convolutions, batch norms and ReLUs -> conv1, bn1, conv2 ..."""
    place = int(match[1])
    return f"{('conv', 'bn')[place % 3]}{place // 3 + 1}"


def _plus(more: int, text: str) -> Callable[[re.Match[str]], str]:
    """The number that was found, with `more` added, in the place of # in the text."""
    return lambda match: text.replace("#", str(int(match[1]) + more))


_RULES: Rules = [
    (r"(\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^embed\.", "encoder.proj."),
    (r"^cls$", "encoder.cls_token"),
    (r"^(encoder|decoder)_position$", r"\1.pos_embedding"),
    (r"^(encoder|decoder)\.(\d+)\.", r"\1.transformer.\2."),
    (r"^encoder_norm\.", "encoder.layer_norm."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^head\.", "decoder.head."),
    (r"^image_embed\.", "decoder.cond_emb."),
    (r"^pose_head\.", "decoder.rotcam_head."),
    (r"^rotation_head\.", "decoder.rot_predictor."),
    (r"^camera_head\.", "decoder.cam_predictor."),
]
"""What of our keys becomes what of the released ones, one after the other."""

_BLOCKS: Rules = [(r"residual\.(\d)", _layer), (r"shortcut\.", "downsample.")]

_BACKBONE_RULES: dict[str, Rules] = {
    "resnet50": [
        *_BLOCKS,
        (r"^backbone\.stem\.", "backbone."),
        (r"^backbone\.stages\.(\d)", _plus(4, "backbone.#")),
    ],
    "hrnet": [
        *_BLOCKS,
        (r"(?<=^backbone\.)stem\.(\d)", _layer),
        (r"^backbone\.first\.", "backbone.layer1."),
        (r"^backbone\.start\.", "backbone.transition1.0."),
        (r"^backbone\.grow\.(\d)", _plus(1, "backbone.transition#.#.0")),
        (r"^backbone\.stages\.(\d)", _plus(2, "backbone.stage#")),
        (r"\.fuse\.", ".fuse_layers."),
        (r"^backbone\.down\.(\d)", _plus(1, "backbone.downsample_stage_#")),
    ],
    "vit": [
        (r"^backbone\.patches\.", "backbone.patch_embed.proj."),
        (r"^backbone\.position$", "backbone.pos_embed"),
        (r"^backbone\.norm\.", "backbone.last_norm."),
    ],
}


def released_name(key: str, config: MegaConfig) -> str:
    """What the released model calls one of our keys."""
    for pattern, to in chain(_BACKBONE_RULES.get(config.backbone, []), _RULES):
        key = re.sub(pattern, to, key)
    return key


# ----------------------------------------------------------------------------------------------------------- tokenizer


def _seeds(vertices: int) -> tuple[int, ...]:
    return HIERARCHY_SEEDS if vertices == 6890 else ()


def _check_twins(path: Path | str, weights: Mapping[str, Tensor]) -> None:
    """The whole network is in the file as encoder.model and once more as decoder.model."""
    ours = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith("encoder.model.")}
    twins = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith("decoder.model.")}
    for key in ours.keys() | twins.keys():
        for half, there in (("encoder", ours), ("decoder", twins)):
            if key not in there:
                raise InputError(f"{path}: {half}.{key} is missing")
        if not torch.equal(ours[key], twins[key]):
            raise InputError(f"{path}: decoder.{key} is not the same as encoder.{key}")


def _layers(path: Path | str, weights: Mapping[str, Tensor], residual: Sequence[float]) -> tuple[Layer, ...]:
    """What the keys and shapes say of the layers."""
    numbers = [int(match[1]) for key in weights if (match := re.fullmatch(r"encoder\.model\.\D+(\d+)", key))]
    if not numbers:
        raise InputError(f"{path}: not a Mesh-VQ-VAE, encoder.model is missing")
    if residual and len(residual) != max(numbers) + 1:
        raise InputError(f"{path}: {len(residual)} residual rates for {max(numbers) + 1} layers")
    layers = []
    channels = 3
    for number in range(max(numbers) + 1):
        kernels = weights.get(f"encoder.model.weights{number}")
        shortcut = weights.get(f"encoder.model.weight_res{number}")
        around = shortcut is not None or f"encoder.model.p_neighbors{number}" in weights
        if kernels is not None and around and not residual:
            raise InputError(f"{path}: layer {number} mixes convolution and shortcut, and only its rate says how much")
        if kernels is not None:
            channels = kernels.shape[-1] // channels
        elif shortcut is not None:
            channels = len(shortcut)
        rate = residual[number] if residual else float(kernels is None)
        layers.append(Layer(channels, 0 if kernels is None else len(kernels), rate))
    return tuple(layers)


def _tokenizer_names(tokenizer: MeshTokenizer) -> dict[str, str]:
    """Our key -> the released one, where a layer's number comes last."""
    names = {
        "quantizer.codebook": "vq_vae._embedding.weight",
        "quantizer.total": "vq_vae._ema_w",
        "quantizer.size": "vq_vae._ema_cluster_size",
    }
    parts: dict[type[nn.Module], dict[str, str]] = {
        MeshConv: {"weights": "weights", "mixing": "w_weights", "bias": "bias"},
        MeshPool: {"weights": "p_neighbors"},
        nn.Linear: {"weight": "weight_res"},
    }
    layers = [
        (f"{half}.{place}", layer)
        for half in ("encoder", "decoder")
        for place, layer in tokenizer.get_submodule(half).named_children()
        if not isinstance(layer, nn.ELU)  # it belongs to the layer before
    ]
    for number, (start, layer) in enumerate(layers):
        for name, part in layer.named_modules(prefix=start):
            for own, released in parts.get(type(part), {}).items():
                names[f"{name}.{own}"] = f"encoder.model.{released}{number}"
    return names


# ------------------------------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class ImportReference:
    mega: Path
    """released file: mega_hrnet, mega_resnet, mega_vit or mega_pretrained"""
    mesh_vqvae: Path
    """released file: mesh_vqvae_54"""
    connections: Path
    """folder of the tables that Mesh-VQ-VAE reads: _pool0.npy, _unpool0.npy, ..."""
    out: Path
    """folder of the checkpoint"""
    smpl_model: Path | None = None
    """SMPL model file: the checkpoint then knows template, faces and joints, which the export puts into a bundle"""
    smpl_faces: Path | None = None
    """file with SMPL's faces (.npy, .npz or .obj), for who has no model file; they must give the same connections"""
    preset: Preset = "hrnet"
    """whose untrained backbone mega_pretrained gets"""


def import_reference(config: ImportReference) -> Mega:
    """Write the checkpoint. Raises InputError that says which file is wrong and how."""
    model = load_mega(config.mega, config.preset)
    tokenizer = load_tokenizer(config.mesh_vqvae, config.connections)
    has, needs = (tokenizer.length, tokenizer.config.codes), (model.config.tokens, model.config.codes)
    if has != needs:
        raise InputError(
            f"{config.mega} is of {needs[0]} tokens of {needs[1]} codes, {config.mesh_vqvae} of {has[0]} of {has[1]}"
        )
    levels = hierarchy.load(config.connections)
    faces = None
    if config.smpl_faces:
        faces = read_faces(config.smpl_faces)
        check_faces(config.smpl_faces, faces, levels)
    topology = unknown_body(len(levels[0].centres), faces)
    if config.smpl_model:
        topology = SmplBody(config.smpl_model).topology()
        check_faces(config.smpl_model, topology.faces, levels)
    checkpoint.save_mega(config.out, model, tokenizer, topology, levels)
    imported: dict[str, Any] = {"imported": [config.mega.name, config.mesh_vqvae.name]}
    (config.out / "training.json").write_text(json.dumps(imported, indent=1) + "\n")
    return model


def main(args: list[str]) -> None:
    config = tyro.cli(ImportReference, args=args, description=__doc__)
    model = import_reference(config)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{config.out}: {model.config.backbone}, {size:.1f} million parameters")
    for path, kind in ((config.mega, Mega), (config.mesh_vqvae, MeshTokenizer)):
        for pattern, what in UNUSED[kind].items():
            count = sum(bool(re.fullmatch(pattern, key)) for key in _read(path))
            if count:
                print(f"{path}: {count} keys {pattern} are not used: {what}")
    if config.smpl_model is None:
        print(
            "The checkpoint has no template and no joints: an export, or training on rendered sets, needs --smpl-model."
        )
