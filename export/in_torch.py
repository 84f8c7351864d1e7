"""What a bundle computes, in torch: `mega export check` compares with it, `mega bench` times it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from export.gates import Arrays, BundleOutputs
from export.to_onnx import FEATURES
from mega_model import generate
from mega_model.blazepose import PoseFeatures
from mega_model.checkpoint import LoadedModel
from mega_model.evaluate import plain
from mega_model.expected_error import head_inputs
from mega_model.geometry import rot6d_to_matrix
from mega_ros.bundle import GraphName

GraphOutputs = dict[GraphName, dict[str, Tensor]]


class GraphInputs(NamedTuple):
    """`gates.inputs` on the model's device."""

    images: Tensor
    """[P, 3, H, W]: the backbone's input"""
    keypoints: Tensor
    """[P, 12, 3]"""
    uniforms: Tensor
    """[P, Q, T, N, 2]"""

    @classmethod
    def of(cls, model: LoadedModel, arrays: Arrays) -> GraphInputs:
        crops, keypoints, uniforms = (
            torch.from_numpy(arrays[name]).to(model.mega.cls.device) for name in ("crops", "keypoints", "uniforms")
        )
        return cls(model.mega.normalise(crops.permute(0, 3, 1, 2).float() / 255), keypoints, uniforms)


def people(found: GraphOutputs) -> BundleOutputs:
    """On the host, from `outputs`."""
    of = {graph: {name: x.cpu().numpy() for name, x in parts.items()} for graph, parts in found.items()}
    return BundleOutputs.of(of["deterministic"], of.get("sampler"))


def plain_people(model: LoadedModel, given: GraphInputs, temperature: float) -> BundleOutputs:
    """On the host, from the straightforward implementation of the paper. It neither turns people nor knows sigma."""
    mega, tokenizer, *_ = model
    tokens, vertices = (x.cpu().numpy() for x in plain.deterministic(mega, tokenizer, given.images))
    samples = tokens[:, None][:, :0]
    if given.uniforms.shape[1]:
        samples = plain.sample(mega, tokenizer, given.images, given.uniforms, temperature)[0].cpu().numpy()
    return BundleOutputs(tokens, vertices, vertices[:, :0, 0], samples)


@torch.no_grad()
def outputs(model: LoadedModel, given: GraphInputs, temperature: float) -> GraphOutputs:
    """The outputs of each graph. Without samples, there are none of the sampler."""
    mega, tokenizer, errors, _ = model
    images, keypoints, uniforms = given
    features = mega.backbone(images)
    parts = dict(zip(FEATURES, features)) if isinstance(features, PoseFeatures) else {FEATURES[0]: features}
    seen, states, logits = generate.first_pass(mega, features)
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
        answers |= errors(**head_inputs(states, seen, features, keypoints))._asdict()
    found: GraphOutputs = {"backbone": parts, "deterministic": answers}
    if uniforms.shape[1]:
        tokens = generate.sample(mega, seen.image, logits, uniforms, temperature)
        vertices = tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        found["sampler"] = {"tokens": tokens, "vertices": vertices}
    return found
