"""Published backbone weights, from which training on images starts (paper 3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mega_model.blazepose import BlazePose
from mega_model.checkpoint import load_weights, must_be_finite
from mega_model.core.errors import InputError
from mega_model.mega import Mega
from mega_model.reference.files import are_tensors, read_torch, without_prefix
from mega_model.reference.keys import released_name

_UNUSED = r"(fc|final_layer|keypoint_head)\..*"
"""Keys that are not read: the heads of the backbones' own tasks."""
_NOT_PUBLISHED = r"downsample_stage_\d\..*|stage4\.2\.fuse_layers\.[123]\..*|.*\.num_batches_tracked"
"""Keys that a file may lack: the layers that MEGA adds after HRNet; the last fusion into HRNet's coarse branches, which
pose networks do not use; and a count of batches that evaluation does not use."""


def load_backbone(path: Path, model: Mega) -> None:
    """Load published weights into `model.backbone`; a lifter's eyes begin as BlazePose's later layers.

    path: HRNet's pose network (pose_hrnet_w48), ViTPose with ViT-H, or torchvision's ResNet-50; or a folder that `mega
    import-backbone` wrote. HRNet's layers of `_NOT_PUBLISHED` keep their weights. Raises InputError that names the file
    and the keys that are missing, unexpected or of another shape.
    """
    if path.is_dir():
        load_weights(model.backbone, path)
        if model.lifter is not None:
            assert isinstance(model.backbone, BlazePose)
            model.lifter.eyes.load_state_dict(model.backbone.later_layers().state_dict())
        return
    own = {key: v for key, v in model.state_dict().items() if key.startswith("backbone.")}
    names = {_published(released_name(key, model.config)): key for key in own}
    weights = _read(path)
    problems = [
        f"{name} is missing" for name in names if name not in weights and not re.fullmatch(_NOT_PUBLISHED, name)
    ]
    problems += [f"{name} is unexpected" for name in weights if name not in names and not re.fullmatch(_UNUSED, name)]
    found = {names[name]: value for name, value in weights.items() if name in names}
    for key, value in found.items():
        # position codes have a batch of one in front
        if value.numel() != own[key].numel() or value.shape[-1:] != own[key].shape[-1:]:
            problems.append(f"{key} has the shape {list(value.shape)} in place of {list(own[key].shape)}")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{path}: not a {model.config.backbone} backbone: {', '.join(problems[:5])}{more}")
    must_be_finite(path, found)
    model.load_state_dict({key: value.reshape(own[key].shape) for key, value in found.items()}, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    content = read_torch(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not are_tensors(weights):
        raise InputError(f"{path}: not published weights, it has no tensors by name, nor any under 'state_dict'")
    return {key.removeprefix("backbone."): value for key, value in without_prefix(weights).items()}


def _published(name: str) -> str:
    """The name, in the backbone's own published file, of a key of the released MEGA."""
    name = name.removeprefix("backbone.")
    # the released ResNet is torchvision's in a Sequential
    name = re.sub(r"^([01])\.", lambda m: ("conv1.", "bn1.")[int(m[1])], name)
    return re.sub(r"^([4-7])\.", lambda m: f"layer{int(m[1]) - 3}.", name)
