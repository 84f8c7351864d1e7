"""Recovered people as files for other programs. Needs trimesh, but for npz."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np

from mega_model.core.topology import Topology

from ..recovery import People

Format = Literal["obj", "ply", "glb", "npz"]
Grouping = Literal["frame", "track"]
TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])
"""glTF has y up and looks along -z; the camera frame has y down and z forward."""


def write_frame(path: Path, people: People, topology: Topology) -> None:
    """All people of a frame into one file, whose suffix says the format; nothing for nobody, but for npz.

    Metres in the camera frame (x right, y down, z forward); glb: glTF's axes (x right, y up, z back). obj and glb have
    an object per person, `person_<id>`. ply and glb have sigma (metres) as an attribute of the vertices.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, faces=topology.faces, **{f.name: getattr(people, f.name) for f in fields(people)})
        return
    if not len(people):
        return
    import trimesh

    scene = trimesh.Scene()
    for vertices, sigma, person in zip(people.vertices, people.sigma, people.ids):
        attributes = {} if path.suffix == ".obj" else {"sigma": sigma}
        mesh = trimesh.Trimesh(vertices, topology.faces, process=False, vertex_attributes=attributes)
        scene.add_geometry(mesh, node_name=f"person_{person}", geom_name=f"person_{person}")
    if path.suffix == ".glb":
        scene.apply_transform(TO_GLTF)
    content = scene.export(file_type=path.suffix[1:])
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tracks(folder: Path, meshes: Path, kind: Format, topology: Topology) -> None:
    """Each person of `meshes`, a meshes.npz: folder/person_<id>.npz with `stamps` [F] and what `People` has.

    For other formats a folder/person_<id>/ with a file per frame, as `write_frame` writes them.
    """
    folder.mkdir()
    arrays = dict(np.load(meshes))
    people = People(*(arrays[f.name] for f in fields(People)))
    for person in np.unique(people.ids):
        rows = np.flatnonzero(people.ids == person)
        frames = arrays["frame"][rows]
        if kind == "npz":
            own = {f.name: getattr(people, f.name)[rows] for f in fields(people)}
            stamps = arrays["stamps"][frames]
            np.savez(folder / f"person_{person}.npz", stamps=stamps, faces=topology.faces, **own)
            continue
        for row, frame in zip(rows, frames):
            write_frame(folder / f"person_{person}" / f"{frame:06}.{kind}", people[row : row + 1], topology)
