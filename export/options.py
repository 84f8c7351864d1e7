"""The options of the verbs of export. Nothing here needs torch, see mega_model/options.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from mega_model.core.settings import NOT_EMPTY, Count, ExistingPath, Positive, Whole
from mega_model.options import STEPS, TEMPERATURE, Preset
from mega_ros import bundle
from mega_ros.engine_cache import Precision
from mega_ros.engines import Provider


@dataclass(frozen=True)
class ExportConfig:
    """Export a checkpoint to a bundle, the files that the node runs."""

    checkpoint: ExistingPath
    """checkpoint folder, as written by `mega train recover`"""
    out: Path
    """folder of the bundle; its files are replaced"""
    detector: ExistingPath | None = None
    """the bundle's detector.onnx: written by `mega import-detector`, or from another bundle"""
    name: str | None = None
    """name of the bundle; by default the names of body and backbone"""
    steps: int = STEPS
    """T, steps of the sampler; the paper takes 5 at temperature 1 for HRNet, and 2 at 10 for ResNet-50"""
    samples: int = 0
    """Q, default number of samples per person"""
    temperature: float = TEMPERATURE
    """of the sampler; it falls to 0 in the last step"""
    body: tyro.conf.Suppress[bundle.Body | None] = None
    """the body; Anny and SMPL are recognised by their number of vertices, others must be given from Python"""
    fp32: tyro.conf.Suppress[list[bundle.GraphName] | None] = None
    """graphs that stay in fp32 among engines of fp16; None measures which. Random weights, whose tokens are all near
    ties, would keep all"""


@dataclass(frozen=True)
class CheckConfig:
    """Compare a bundle's outputs with torch's: of each graph in fp32, and of the whole bundle.

    export/gates.py has what is allowed. The exit code is 1 if something exceeds it.
    """

    checkpoint: ExistingPath
    """folder that the bundle was exported from"""
    bundle: tyro.conf.Positional[str] = "default"
    """folder of the bundle"""
    provider: Provider = "cpu"
    """what runs the bundle"""
    precision: Precision = "fp32"
    """of the engines of tensorrt; the others have fp32"""


@dataclass(frozen=True)
class TrtConfig:
    """Build the TensorRT engines of a bundle for this GPU, where the node looks for them, and check them.

    Engines that miss a gate of export/gates.py are removed.
    """

    bundle: tyro.conf.Positional[str] = "default"
    """folder of the bundle"""
    people: Annotated[tuple[Count, ...], NOT_EMPTY] = (1, 2, 4, 8)
    """numbers of people per frame: engines take up to the largest, and are fastest at the middle one"""
    samples: Annotated[tuple[Count, ...], NOT_EMPTY] = (1, 10, 25)
    """numbers of samples per person, likewise"""
    precision: Precision = "fp16"
    out: Path | None = None
    """folder of all engines; by default MEGA_ENGINES, else ~/.cache/mega_ros/engines"""


Way = Literal["plain", "eager", "compiled", "cpu", "cuda", "tensorrt fp32", "tensorrt fp16"]
"""plain: the paper in torch, straightforwardly (mega_model/evaluate/plain.py); eager, compiled: this project in torch;
the others: the bundle in onnxruntime."""
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class BenchConfig:
    """What recovering people costs, from crops to meshes, by each way of running the same weights.

    Without --checkpoint and --preset, only the ways that need no torch run.
    """

    bundle: tyro.conf.Positional[str | None] = None
    """folder of the bundle; by default the default bundle, or one that is exported from the checkpoint or preset"""
    checkpoint: ExistingPath | None = None
    """folder that the bundle was exported from: the weights of torch"""
    preset: Preset | None = None
    """random weights of this size take the place of a checkpoint"""
    steps: Count = 5
    """T, of a bundle that is exported here, at temperature 1"""
    people: Annotated[tuple[Count, ...], NOT_EMPTY] = (1, 2, 4, 8)
    """P"""
    samples: Annotated[tuple[Whole, ...], NOT_EMPTY] = (0, 1, 5, 10, 25, 100)
    """Q; 0 for the deterministic mesh with its sigma only"""
    ways: Annotated[tuple[Way, ...], NOT_EMPTY] = WAYS
    """what to compare"""
    repeats: Count = 20
    """calls of each way and size, at most"""
    seconds: Positive = 5.0
    """time for a way and size, after which no further call begins"""
    longest: Positive = 60.0
    """a size whose calls would take longer, judging by the last one, is left out"""
    out: Path = Path("bench")
    """folder of bench.json and bench.png"""
    compare: tuple[ExistingPath, ExistingPath] | None = None
    """two files bench.json: only compare them"""


@dataclass(frozen=True)
class Clip:
    """Render the demo's clip: two people with held-out motion, as a ROS 2 bag."""

    out: Path = Path("demo/clip")
    """Folder of the bag. Existing content is replaced."""
    crowd: bool = False
    """Instead, five people for 20 s, who cross, turn around, and walk behind a wall for seconds."""
