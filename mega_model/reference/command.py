"""`mega import-reference`: converts a pair of released files to a checkpoint of this project."""

from __future__ import annotations

import json
import re
from typing import Any

from mega_model import checkpoint
from mega_model.body.smpl import SmplBody
from mega_model.core import hierarchy
from mega_model.core.errors import InputError
from mega_model.mega import Mega
from mega_model.options import ImportReference
from mega_model.reference.faces import check_faces, read_faces
from mega_model.reference.files import read_weights
from mega_model.reference.keys import UNUSED
from mega_model.reference.load import load_mega, load_tokenizer, unknown_body
from mega_model.tokenizer import MeshTokenizer


def import_reference(config: ImportReference) -> Mega:
    """Write the checkpoint. Raises InputError that names the file and the fault."""
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


def main(config: ImportReference) -> None:
    model = import_reference(config)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{config.out}: {model.config.backbone}, {size:.1f} million parameters")
    for path, kind in ((config.mega, Mega), (config.mesh_vqvae, MeshTokenizer)):
        for pattern, what in UNUSED[kind].items():
            count = sum(bool(re.fullmatch(pattern, key)) for key in read_weights(path))
            if count:
                print(f"{path}: {count} keys {pattern} are not used: {what}")
    if config.smpl_model is None:
        print(
            "The checkpoint has no template and no joints: an export, or training on rendered sets, needs --smpl-model."
        )
