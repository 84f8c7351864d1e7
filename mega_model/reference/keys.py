"""Names and shapes of our models' weights in the released files."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

from mega_model.mega import Mega, MegaConfig
from mega_model.tokenizer import MeshConv, MeshPool, MeshTokenizer

UNUSED: dict[type[nn.Module], dict[str, str]] = {
    Mega: {r"backbone\.final_layer\.(weight|bias)": "the joint maps of HRNet's own task"},
    MeshTokenizer: {
        r"decoder\.model\..*": "the tokenizer's layers a second time; they must equal those under encoder.model"
    },
}
"""Model -> pattern of known keys in its file that are not read -> their meaning."""

IMAGE_PART = ("backbone.", "image_embed.", "pose_head.", "rotation_head.", "camera_head.", "lifter.", "error_head.")
"""Parts that the pre-training model does not have."""

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def _layer(match: re.Match[str]) -> str:
    """Place in a Sequential of convolutions, batch norms and ReLUs -> conv1, bn1, conv2 ..."""
    place = int(match[1])
    return f"{('conv', 'bn')[place % 3]}{place // 3 + 1}"


def _plus(more: int, text: str) -> Callable[[re.Match[str]], str]:
    """Replaces # in the text by the matched number plus `more`."""
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
"""Substitutions from our keys to the released ones, applied in order."""

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
    """The released name of one of our keys."""
    for pattern, to in chain(_BACKBONE_RULES.get(config.backbone, []), _RULES):
        key = re.sub(pattern, to, key)
    return key


def tokenizer_names(tokenizer: MeshTokenizer) -> dict[str, str]:
    """Our key -> the released one, which ends with the layer's number."""
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


def released_shape(name: str, own: torch.Size) -> torch.Size:
    """The released shape of a weight, which may differ from ours."""
    if name in ("encoder.cls_token", "decoder.mask_token"):
        return torch.Size([1, 1, *own])
    if name in ("encoder.pos_embedding", "decoder.pos_embedding"):
        return torch.Size([own[0], 1, own[1]])
    if name == "backbone.pos_embed":
        return torch.Size([1, *own])
    if re.fullmatch(r"encoder\.model\.weights\d+", name):  # bases, out x in
        return torch.Size([own[0], own[1] * own[2]])
    return own
