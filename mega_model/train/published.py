"""Backbones that others have published, or that a bundle holds, as the start of a training on pictures (paper 3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mega_model.backbones import Backbone
from mega_model.checkpoint import load_weights
from mega_model.files import must_exist
from mega_model.mega import Mega
from mega_model.reference import are_tensors, read_torch, released_name

_UNREAD = r"(fc|final_layer|keypoint_head)\..*"
"""Heads of the backbones' own tasks."""
_BEGUN = r"downsample_stage_\d\..*|stage4\.2\.fuse_layers\.[123]\..*|.*\.num_batches_tracked"
"""What no file needs to have: what MEGA puts behind HRNet, what only that hears (a pose network ends in its finest
branch), and a count that evaluation does not use, which old files lack."""


def load_backbone(path: Path, model: Mega) -> None:
    """Put the weights of a published file into `model.backbone`, all but HRNet's way down to stride 32 and the last
    exchange of its coarse branches.

    The file is HRNet's pose network (pose_hrnet_w48), ViTPose with ViT-H, or torchvision's ResNet-50; a folder is what
    `mega import-backbone` wrote. Raises FileNotFoundError, or ValueError that names the file and what is missing,
    unexpected or of another shape in it.
    """
    if path.is_dir():
        load_imported(path, model.backbone)
        return
    own = {key: v for key, v in model.state_dict().items() if key.startswith("backbone.")}
    names = {_published(released_name(key, model.config)): key for key in own}
    weights = _read(path)
    problems = [f"{name} is missing" for name in names if name not in weights and not re.fullmatch(_BEGUN, name)]
    problems += [f"{name} is unexpected" for name in weights if name not in names and not re.fullmatch(_UNREAD, name)]
    found = {names[name]: value for name, value in weights.items() if name in names}
    for key, value in found.items():
        # position codes have a batch of one in front
        if value.numel() != own[key].numel() or value.shape[-1:] != own[key].shape[-1:]:
            problems.append(f"{key} has the shape {list(value.shape)} in place of {list(own[key].shape)}")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path}: not a {model.config.backbone} backbone: {', '.join(problems[:5])}{more}")
    model.load_state_dict({key: value.reshape(own[key].shape) for key, value in found.items()}, strict=False)


def load_imported(folder: Path, backbone: Backbone) -> None:
    """Put what `mega import-backbone` wrote into `backbone`.

    Raises FileNotFoundError, or ValueError that names the folder if the backbone is another.
    """
    try:
        load_weights(backbone, folder)
    except RuntimeError as error:
        raise ValueError(
            f"{folder}: not the weights of this model's backbone; origin.json says which they are of"
        ) from error


@torch.no_grad()
def load_exported(bundle: Path, backbone: Backbone, images: Tensor) -> None:
    """Put the ResNet of a bundle into `backbone`, to go on from where its checkpoint is not at hand.

    In a bundle, each batch norm is merged into its convolution. Here it gets the statistics of `images` [B, 3, H, W]
    (normalised) and undoes them, so that training begins with the bundle's maps of these. Raises FileNotFoundError, or
    ValueError that names the file and what is missing or of another shape in it.
    """
    import onnx  # needed by this alone
    from google.protobuf.message import DecodeError

    file = bundle / "backbone.onnx"
    must_exist(file)
    try:
        graph = onnx.load(file).graph
    except DecodeError as error:
        raise ValueError(f"{file}: not a readable ONNX file ({error})") from error
    found = {
        part.name.removeprefix("backbone.").removesuffix("_half"): torch.tensor(onnx.numpy_helper.to_array(part))
        for part in graph.initializer
    }
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    merged = {f"{name}.bias": f"{_one_before(name)}.bias" for name in norms}
    own = backbone.state_dict()
    names = {key: merged.get(key, key) for key in own if key in merged or key.rpartition(".")[0] not in norms}
    for key, name in names.items():
        if name not in found or found[name].shape != own[key].shape:
            raise ValueError(f"{file}: not the backbone of this model: {name} is missing or of another shape")
    backbone.load_state_dict({key: found[name] for key, name in names.items()}, strict=False)

    def undo(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)

    hooks = [norm.register_forward_pre_hook(undo) for norm in norms.values()]
    backbone.train()(images)
    for hook in hooks:
        hook.remove()


def _one_before(name: str) -> str:
    """`stem.1` -> `stem.0`: a norm stands behind its convolution."""
    before, _, place = name.rpartition(".")
    return f"{before}.{int(place) - 1}"


def _read(path: Path) -> dict[str, Tensor]:
    content = read_torch(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not are_tensors(weights):
        raise ValueError(f"{path}: not published weights, it has no tensors by name, nor any under 'state_dict'")
    return {key.removeprefix("backbone."): value for key, value in weights.items()}


def _published(name: str) -> str:
    """What a key of the released MEGA is called where its backbone comes from."""
    name = name.removeprefix("backbone.")
    # the released ResNet is torchvision's in a Sequential
    name = re.sub(r"^([01])\.", lambda m: ("conv1.", "bn1.")[int(m[1])], name)
    return re.sub(r"^([4-7])\.", lambda m: f"layer{int(m[1]) - 3}.", name)
