"""`mega evaluate random`: random bodies of a pre-trained model, their diversity and plausibility (paper 4.4, figure 3).

They are compared with the meshes of the pre-training. APD uses the joints of canonical bodies, aligned at the pelvis.
FID compares the latents of a mesh autoencoder, so only FIDs of the same autoencoder can be compared.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from mega_model import checkpoint, generate
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.data.mesh_sets import MeshSet, open_meshes
from mega_model.evaluate import draw
from mega_model.evaluate.predict import device_of
from mega_model.evaluate.report import Report, publish
from mega_model.mega import Mega
from mega_model.options import Random
from mega_model.tokenizer import MeshTokenizer


def evaluate(config: Random) -> Report:
    model, tokenizer, known = checkpoint.load_mega(config.checkpoint)
    device = device_of(config)
    model, tokenizer = model.to(device), tokenizer.to(device)
    autoencoder = checkpoint.load_tokenizer(config.autoencoder)[0].to(device) if config.autoencoder else tokenizer
    meshes = open_meshes(config)
    topology = meshes.topology()
    here, there = len(known.template), len(topology.template)
    if here != there:
        raise InputError(f"the mesh set has {there} vertices, the model of {config.checkpoint} {here}: give --meshes")
    rng = np.random.default_rng(config.seed)
    reference = latents(autoencoder, draw_bodies(meshes, rng, config.compared, config.batch), config)
    bodies = {
        "random bodies": random_bodies(model, tokenizer, config),
        "as many of the mesh set": draw_bodies(meshes, rng, config.count, config.batch),
    }
    table = {}
    for name, vertices in bodies.items():
        joints = topology.joints(vertices)
        fid = metrics.fid(latents(autoencoder, vertices, config), reference)
        table[name] = {"APD, cm": 100 * metrics.apd(joints - joints[:, :1]), "FID": fid}
    whose = config.autoencoder or "the model's own tokenizer"
    facts = {
        "model": str(config.checkpoint),
        "mesh set": f"{meshes.made_of['meshes']}, {config.compared} of them",
        "random bodies": f"{config.count} in {config.steps} steps, temperature {config.temperature:g}, "
        f"seed {config.seed}",
        "FID": f"of the {reference.shape[1]} latents of {whose}",
    }
    figure = gallery(bodies["random bodies"], topology.faces)
    return Report("Random bodies", facts, {"Diversity and plausibility": table}, {"Figure 3: random bodies": figure})


@torch.no_grad()
def random_bodies(model: Mega, tokenizer: MeshTokenizer, config: Random) -> np.ndarray:
    """[count, V, 3] canonical, metres. The random numbers of a body do not depend on its batch."""
    uniforms = generate.uniforms((config.count, config.steps, tokenizer.length, 2), config.seed)
    parts = []
    for part in uniforms.split(config.batch):
        *_, (tokens, _) = generate.unmask_bodies(model, part.to(device_of(config)), config.temperature)
        parts.append(tokenizer.decode(tokens).cpu())
    return torch.cat(parts).numpy()


def draw_bodies(meshes: MeshSet, rng: np.random.Generator, count: int, batch: int) -> np.ndarray:
    """[count, V, 3] canonical, metres."""
    return np.concatenate([meshes.draw(rng, min(batch, count - start)) for start in range(0, count, batch)])


@torch.no_grad()
def latents(autoencoder: MeshTokenizer, vertices: np.ndarray, config: Random) -> np.ndarray:
    """[n, V, 3] -> float64 [n, D]"""
    parts = torch.from_numpy(vertices).split(config.batch)
    device = device_of(config)
    return torch.cat([autoencoder.latents(part.to(device)).flatten(1).cpu() for part in parts]).double().numpy()


def gallery(bodies: np.ndarray, faces: np.ndarray, rows: int = 3, columns: int = 8) -> Figure:
    """Figure 3: the first bodies, seen from the front."""
    figure, axes = draw.grid(rows, columns, [])
    for ax, vertices in zip(axes.flat, bodies):
        draw.alone(ax, vertices @ draw.UPRIGHT, faces)
    return figure


def main(config: Random) -> None:
    publish(evaluate(config), config.folder, "random")
