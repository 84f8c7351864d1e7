"""The options of each verb of mega_model. Nothing here needs torch, so a wrong argument is refused at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from mega_model.core.settings import (
    NOT_EMPTY,
    Count,
    Existing,
    ExistingPath,
    ExistingSet,
    NotNegative,
    Positive,
    Seed,
    Whole,
)

Several = Annotated[int, Meta(ge=2)]
Side = Annotated[int, Meta(ge=32, le=1023)]
"""Of rendered images, pixels. In smaller ones a person may have no pixel; the noise of `data.sensor` is no larger."""
Beta = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class MeshOptions:
    """Which meshes to train on; by default random Anny bodies."""

    meshes: ExistingPath | None = None
    """Folder with motion files of AMASS or BEDLAM, for training on SMPL bodies."""
    smpl: ExistingPath | None = None
    """SMPL model file, or a folder with one per gender; by default the environment variable MEGA_SMPL."""


STEPS, TEMPERATURE = 2, 2.5
"""Of the sampler of an exported bundle, by default: chosen on calibration people (docs/deploy/samples.md)."""
Preset = Literal["default", "hrnet", "vit", "resnet"]
"""See `mega.PRESETS`."""
Split = Literal["train", "calibration", "test"]
MIXTURE = (0.55, 0.20, 0.12, 0.08, 0.05)
"""Shares of `scenes.PARTS` in training."""


@dataclass(frozen=True)
class Render:
    """Render people: scenes on disk, a folder with one memory-mapped .npy file per field."""

    split: Split
    count: Count
    """Scenes, a multiple of 40."""
    out: Path
    topology: ExistingPath
    size: Side = 320
    """Side of the images, pixels."""
    shares: tuple[NotNegative, NotNegative, NotNegative, NotNegative, NotNegative] = MIXTURE
    """Relative shares of `scenes.PARTS`. Use 1 1 1 1 1 for a test set: equally many of each."""
    seed: Seed = 0
    workers: Count = 1


@dataclass(frozen=True)
class Extract:
    """Compute a frozen BlazePose's outputs for crops of rendered people once, with labels.

    Crops are made as at run time: where the detector's keypoints place the crop, that one; else the first around the
    box, and each further one around the region that the landmarks give.
    """

    scenes: ExistingPath
    """Folder of a rendered set."""
    out: Path
    backbone: ExistingPath = Path("runs/blazepose")
    """What `mega import-backbone` wrote."""
    width: int = 144
    """Of the BlazePose, see `blazepose.VARIANTS`."""
    train: bool = False
    """Store two crops of every scene, with random shift, scale and roll, half of them mirrored. Otherwise store the
    run time's last crop."""
    detector: ExistingPath | None = None
    """What `mega import-detector` wrote. Its keypoints of the people are stored, too."""
    turned: bool = False
    """Roll the image by 90 to 270 degrees: people are upside down or on their side."""
    seed: Seed = 0
    workers: Count = 1


@dataclass(frozen=True)
class Write:
    """Write one image and one label per person to tar files (WebDataset shards) on a disk, a server or an object store.

    mega shards coco:data/coco/coco.npz --out shards/coco
    """

    people: Annotated[str, tyro.conf.Positional, Existing]
    """Data set to convert, KIND:PATH."""
    out: Path
    per_shard: Count = 1000
    """People per file."""


@dataclass(frozen=True)
class ImportReference:
    """Convert a pair of released files to a checkpoint of this project."""

    mega: ExistingPath
    """released file: mega_hrnet, mega_resnet, mega_vit or mega_pretrained"""
    mesh_vqvae: ExistingPath
    """released file: mesh_vqvae_54"""
    connections: ExistingPath
    """folder of the tables that Mesh-VQ-VAE reads: _pool0.npy, _unpool0.npy, ..."""
    out: Path
    """folder of the checkpoint"""
    smpl_model: ExistingPath | None = None
    """SMPL model file: gives the checkpoint template, faces and joints, which the export needs"""
    smpl_faces: ExistingPath | None = None
    """file with SMPL's faces (.npy, .npz or .obj), if there is no model file; they must give the same connections"""
    preset: Literal["hrnet", "vit", "resnet"] = "hrnet"
    """preset of the untrained backbone for mega_pretrained"""


@dataclass
class ImportBackbone:
    """Import the published weights of BlazePose GHUM (Apache-2.0), to start training from."""

    out: Path
    """Folder for model.safetensors and origin.json."""
    tflite: ExistingPath | None = None
    """The pose_landmark file, of any size. By default `npm pack @mediapipe/pose` downloads it."""
    size: Literal["lite", "full", "heavy"] = "full"
    """Size of the file to download."""


@dataclass
class ImportDetector:
    """MoveNet MultiPose (Apache-2.0) as the person detector of a bundle, see docs/robot/detector.md."""

    onnx: ExistingPath
    """The model as tf2onnx converts it: image int32 [1, H, W, 3] -> people [1, N, 56]."""
    out: Path
    """The file to write, for `mega export onnx --detector`."""


@dataclass(frozen=True)
class LoopConfig:
    """What all training stages have in common."""

    out: Path
    """Folder of the run. If it holds a checkpoint, the run resumes."""
    steps: Count
    batch: Count
    """Examples per step, over all processes."""
    lr: NotNegative
    micro_batch: Count | None = None
    """Examples that a process computes at once; smaller ones need less memory, and their gradients are accumulated. By
    default the process's share of the batch."""
    warmup: Whole = 200
    weight_decay: NotNegative = 0.05
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    clip: Positive = 1.0
    """Largest gradient norm."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the computation; weights and data have 32 bits."""
    seed: Seed = 0
    save_every: Count = 200
    loaders: Count = 1
    """Threads per process that prefetch micro-batches."""


@dataclass(frozen=True)
class TokenizerTraining(MeshOptions, LoopConfig):
    """Stage 1: the Mesh-VQ-VAE learns to reconstruct bodies."""

    preset: Literal["default", "paper", "autoencoder"] = "default"
    quantize_from: Whole = 500
    """Step at which k-means on the latents of random bodies initialises the codebook."""


@dataclass(frozen=True)
class PretrainTraining(MeshOptions, LoopConfig):
    """Stage 2: MEGA learns masked mesh tokens without images."""

    preset: Preset = "default"
    """Size of the model, and its backbone, which this stage does not train."""
    tokenizer: ExistingPath = Path("runs/tokenizer")
    bodies: Count = 20000
    """Number of random bodies, tokenised once before training."""


@dataclass(frozen=True)
class ImageTraining(LoopConfig):
    """A stage on images. `train lift` trains only the lifter, for BlazePose."""

    pretrained: ExistingPath = Path("runs/lift")
    """Checkpoint to start from, with its tokenizer."""
    sets: Annotated[tuple[ExistingSet, ...], NOT_EMPTY] = ("features:runs/features/train",)
    """Image sets, KIND:PATH each (see mega_model.data.images)."""
    validate: ExistingSet | None = None
    """Image set, KIND:PATH, whose losses are logged at every save, beside those of the training. At most 500 people."""
    proportions: tuple[NotNegative, ...] = ()
    """Share of each set in a batch. By default proportional to the number of people."""
    body: ExistingPath | None = None
    """SMPL model for sets without meshes, see `images.open_set`."""
    preset: Preset | None = None
    """Use this preset's backbone instead of that of `pretrained`, of which only the transformer is used then."""
    backbone: ExistingPath | None = None
    """Published weights that the backbone starts from, see `published.load_backbone`. What the eyes of a lifter have
    learned is lost: they begin as BlazePose's later layers again. A BlazePose of another size than that of `pretrained`
    takes its place, and the lifter begins anew."""
    pixels: Annotated[int, Meta(ge=32)] | None = None
    """Side of the crops, by default the model's. Smaller crops are faster."""
    rotation: Literal["rot6d", "matrix"] = "rot6d"
    """What the rotation loss compares. The released code compares matrices. With rot6d, an uncertain network can output
    small numbers, and learns faster."""


@dataclass(frozen=True)
class RecoverTraining(ImageTraining):
    """Stage 3: MEGA learns masked mesh tokens, rotation and camera from images."""

    trained_blocks: Whole | None = None
    """How many of the backbone's last blocks are trained; 0 freezes the backbone. By default all of it is trained, but
    for BlazePose, which is always frozen."""


@dataclass(frozen=True)
class ErrorTraining:
    """After stage 3: the error head learns to predict the errors of the published mesh, on held-out people."""

    checkpoint: ExistingPath
    """Folder that `mega train recover` wrote; the head is added to it."""
    sets: Annotated[tuple[ExistingPath, ...], NOT_EMPTY] = (
        Path("runs/features/calibration"),
        Path("runs/features/calibration_turned"),
    )
    """Folders with features of held-out people."""
    steps: Count = 3000
    batch: Count = 128
    lr: Positive = 0.001
    nobody: Count = 600
    """Number of crops without a person."""
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.3
    """Share of each set, its last scenes, that is used for calibration only."""
    seed: Seed = 0


@dataclass(frozen=True)
class Default:
    """Train the default model from scratch, stage by stage. Completed stages are skipped.

    Every stage is also a separate command and can resume, so after an interruption, run the same command again. The
    times are for two CPU cores.
    """

    out: Path = Path("runs")
    """Folder of all the stages."""
    scenes: Count = 10000
    """Rendered people to train on, a multiple of 40."""
    detector: ExistingPath | None = None
    """See `mega import-detector`; without it the bundle has no detector, and sigma knows no keypoints."""
    bundle: Path | None = None
    """Folder of the bundle; by default inside `out`."""
    workers: Count = 2


@dataclass(frozen=True, kw_only=True)
class ImageSelection:
    """Which images are evaluated, and on which device."""

    count: Count | None = None
    """Number of images, drawn at random; by default all."""
    seed: Seed = 0
    batch: Count = 20
    """Images per batch."""
    device: str | None = None
    """cpu, cuda or cuda:1; by default a GPU if there is one."""
    decode: Literal["expected", "argmax"] = "expected"
    """Decode the deterministic mesh from the expected codes, as at run time, or from the most likely ones, as in the
    paper."""
    fit: bool = True
    """Fit meshes and samples to landmarks and keypoints, as the run time fits its mesh, if there is an error head and
    the set has focal lengths."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The stochastic mode; defaults are the paper's for HRNet. For ResNet-50 it takes 2 steps at temperature 10."""

    samples: Whole = 25
    """Q, meshes per image."""
    steps: Count = 5
    """T"""
    temperature: NotNegative = 1.0
    """Temperature of the first step."""

    def describe(self) -> str:
        return f"{self.samples} in {self.steps} steps, temperature {self.temperature:g}"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The model, and the folder of its report."""

    checkpoint: ExistingPath
    """Folder of a trained or imported model."""
    out: Path | None = None
    """Folder of the report; by default the checkpoint's folder `evaluation`."""

    @property
    def folder(self) -> Path:
        return self.out or self.checkpoint / "evaluation"


@dataclass(frozen=True, kw_only=True)
class Subject(Trained, ImageSelection):
    """A model on an image set."""

    images: Annotated[str, tyro.conf.arg(name="set"), Existing]
    """KIND:PATH of an image set, for example rendered:runs/crops/test or 3dpw:/data/3DPW."""
    body: ExistingPath | None = None
    """SMPL model file of the set's meshes, or a folder with one for each gender; by default the environment variable
    MEGA_SMPL. A rendered set needs none."""


Joints = Literal["h36m14", "smpl24"]
Align = Literal["pelvis", "mean"]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Conventions that differ in the literature."""

    joints: Joints | None = None
    """Joints that are regressed from both meshes: 14 of Human3.6M's, or SMPL's 24. By default h36m14 if the set has its
    regressor, as in tables on 3DPW, else smpl24."""
    align: Align = "pelvis"
    """Point at which predicted and true body are aligned: the pelvis, as in published tables, or the mean of the
    vertices, as in the released code."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ImageSelection, SamplingOptions):
    """Score a trained model on rendered people of held-out clips, for each kind of image.

    Errors are computed in the camera's orientation, with both meshes centred at the pelvis, in millimetres. Writes a
    report into the checkpoint's folder `evaluation`, and scores.json, which the export reads, into the checkpoint, if
    the mesh is the published one: not with --decode argmax or --no-fit.
    The paper's tables: mega evaluate deterministic|stochastic|mean|random|uncertainty|figures.
    """

    checkpoint: ExistingPath = Path("runs/recover")
    test: ExistingPath = Path("runs/features/test")
    """Folder of a rendered set, or of its features."""
    steps: Count = STEPS
    """T, as in the export."""
    temperature: NotNegative = TEMPERATURE
    """As in the export."""


@dataclass(frozen=True, kw_only=True)
class Calibrate(ImageSelection, SamplingOptions):
    """How many times the samples' spread is sigma, for a model without an error head."""

    checkpoint: ExistingPath = Path("runs/recover")
    set: ExistingPath = Path("runs/features/calibration")
    """Rendered people that the model has not seen, or their features."""
    samples: Several = 25
    """Q, meshes per image."""
    steps: Count = STEPS
    """T, as the export's."""
    temperature: NotNegative = TEMPERATURE
    """As the export's."""


@dataclass(frozen=True, kw_only=True)
class Deterministic(Subject, Conventions):
    """Tables 1 and 3 of the paper, one mesh per image."""


Best = Literal["metric", "sample"]


@dataclass(frozen=True, kw_only=True)
class Stochastic(Subject, SamplingOptions, Conventions):
    """Table 2 of the paper, the best of Q meshes per image."""

    samples: Count = 25
    """Q, meshes per image."""
    best: Best = "metric"
    """`metric`: the smallest error of all samples for each metric, as in published tables. `sample`: all metrics of the
    sample with the smallest PVE."""


@dataclass(frozen=True, kw_only=True)
class Mean(Subject, SamplingOptions, Conventions):
    """Table 4 and figure 6 of the paper, the mean of Q meshes beside the deterministic mesh."""

    samples: Count = 100
    """Q, meshes per image: the largest Q in the table."""


@dataclass(frozen=True, kw_only=True)
class Random(MeshOptions, Trained):
    """Random bodies of a pre-trained model, their diversity and plausibility (paper 4.4, figure 3).

    They are compared with the meshes of the pre-training. Only FIDs of the same autoencoder can be compared.
    """

    count: Several = 500
    """Number of random bodies."""
    compared: Several = 5000
    """Number of bodies of the mesh set to compare with."""
    steps: Count = 20
    temperature: NotNegative = 1.2
    """Temperature of the first step."""
    autoencoder: ExistingPath | None = None
    """Tokenizer checkpoint whose latents, before quantisation, the FID compares; by default the model's own. The
    paper's has 7 x 9 numbers: a tokenizer with one more level than SMPL's."""
    batch: Count = 50
    """Bodies per batch."""
    seed: Seed = 0
    device: str | None = None
    """cpu, cuda or cuda:1; by default a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Subject, SamplingOptions, Conventions):
    """How well does sigma predict the error of each vertex? (The paper: figure 4.)"""

    scale: Positive | None = None
    """Factor on the samples' spread; by default the one in the checkpoint's calibration.json."""


@dataclass(frozen=True, kw_only=True)
class Figures(Subject, SamplingOptions, Conventions):
    """Figures 4 to 7 and 9 of the paper, on the first images of a random draw."""

    samples: Several = 25
    """Q, meshes per image."""
    count: Count | None = 100
    """Number of images of figure 6, drawn at random."""
    rows: Count = 4
    """Number of images in each of the other figures."""
    pretrained: ExistingPath | None = None
    """Pre-training checkpoint, for the random bodies of figure 7."""
