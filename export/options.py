"""The options of the verbs of export. Nothing here needs torch, see mega_model/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mega_ros import bundle


@dataclass(frozen=True)
class ExportConfig:
    """Export a checkpoint to a bundle, the files that the node runs."""

    checkpoint: Path
    """checkpoint folder, as written by `mega train recover`"""
    out: Path
    """folder of the bundle; its files are replaced"""
    detector: Path | None = None
    """the bundle's detector.onnx: written by `mega import-detector`, or from another bundle"""
    name: str | None = None
    """name of the bundle; by default the names of body and backbone"""
    steps: int = 3
    """T, steps of the sampler"""
    samples: int = 0
    """Q, default number of samples per person"""
    temperature: float = 1.0
    """temperature of the first step"""
    body: tyro.conf.Suppress[bundle.Body | None] = None
    """the body; Anny and SMPL are recognised by their number of vertices, others must be given from Python"""


@dataclass(frozen=True)
class CheckConfig:
    """Compare a bundle's outputs with torch's, on random and on rendered crops.

    The exit code is 1 if tokens differ or vertices differ by more than 0.1 mm.
    """

    checkpoint: Path
    """folder that the bundle was exported from"""
    bundle: tyro.conf.Positional[str] = "default"
    """folder of the bundle"""


@dataclass(frozen=True)
class Clip:
    """Render the demo's clip: two people with held-out motion, as a ROS 2 bag."""

    out: Path = Path("demo/clip")
    """Folder of the bag. Existing content is replaced."""
