"""What a bundle's graphs compute, in torch: `mega export check` compares with it, `mega bench` times it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from export.to_onnx import FEATURES
from mega_model import generate
from mega_model.blazepose import PoseFeatures
from mega_model.expected_error import ErrorHead
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega
from mega_model.tokenizer import MeshTokenizer
from mega_ros.bundle import GraphName


def outputs(
    model: Mega, tokenizer: MeshTokenizer, errors: ErrorHead | None, given: dict[str, np.ndarray], temperature: float
) -> dict[GraphName, dict[str, Tensor]]:
    """The outputs of each graph, from `gates.inputs`. Without samples, there are none of the sampler."""
    keypoints, uniforms = (torch.from_numpy(given[name]).to(model.cls.device) for name in ("keypoints", "uniforms"))
    return of_images(model, tokenizer, errors, pixels(model, given["crops"]), keypoints, uniforms, temperature)


@torch.no_grad()
def of_images(
    model: Mega,
    tokenizer: MeshTokenizer,
    errors: ErrorHead | None,
    images: Tensor,
    keypoints: Tensor,
    uniforms: Tensor,
    temperature: float,
) -> dict[GraphName, dict[str, Tensor]]:
    """The same from tensors on the model's device, the images as `pixels` gives them."""
    features = model.backbone(images)
    parts = dict(zip(FEATURES, features)) if isinstance(features, PoseFeatures) else {FEATURES[0]: features}
    seen = model.encode_image(features)
    states = generate.first_states(model, seen.image)
    logits = model.read(states, seen.image)
    answers = {
        "tokens": logits.argmax(dim=-1),
        "vertices": generate.expected_vertices(tokenizer, logits),
        "rotation": rot6d_to_matrix(seen.rot6d),
        "camera": seen.camera,
        "image": seen.image.tokens,
        "logits": logits,
    }
    if seen.image.prior is not None:
        answers["prior"] = seen.image.prior
    if errors is not None:
        answers |= errors(states, seen.maps, *features[1:], keypoints)._asdict()
    found: dict[GraphName, dict[str, Tensor]] = {"backbone": parts, "deterministic": answers}
    if uniforms.shape[1]:
        tokens = generate.sample(model, seen.image, logits, uniforms, temperature)
        vertices = tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        found["sampler"] = {"tokens": tokens, "vertices": vertices}
    return found


def pixels(model: Mega, crops: np.ndarray) -> Tensor:
    """Crops uint8 [P, H, W, 3] RGB -> the backbone's input [P, 3, H, W]."""
    return model.normalise(torch.from_numpy(crops).to(model.cls.device).permute(0, 3, 1, 2).float() / 255)
