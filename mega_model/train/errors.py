"""After stage 3: trains the error head to predict the errors of the published mesh, on held-out people.

First, the modes are computed: the principal components of the model's errors, along which meshes are fitted to the
landmarks and to a detector's keypoints. The head learns the errors of the fitted mesh, as at run time, in the camera
frame apart from the distance of the pelvis. It also learns from crops without a person, whose error is set to one
metre.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mega_model import checkpoint, generate
from mega_model.blazepose import BlazePose, PoseFeatures
from mega_model.core import metrics
from mega_model.core.errors import InputError
from mega_model.core.fit import Bends, fit_people, limb_shares, principal_modes, widened
from mega_model.core.topology import LIMBS, Topology
from mega_model.data.backgrounds import FOLDER
from mega_model.data.crops import read
from mega_model.data.features import FeatureSet
from mega_model.expected_error import KNOTS, ErrorHead, head_inputs
from mega_model.geometry import rot6d_to_matrix
from mega_model.mega import Mega
from mega_model.options import ErrorTraining
from mega_model.tokenizer import MeshTokenizer

MODES = 20
"""Number of modes: they contain 98 % of the variance of the default model's errors; more have no effect."""
NOBODY = 1.0
"""Metres: the error for a crop without a person."""


@dataclass(frozen=True)
class HeadInputs:
    """What the head sees of n crops."""

    states: Tensor
    """[n, N, D]"""
    maps: Tensor
    """[n, C, 4, 4]: what the lifter sees"""
    landmarks: Tensor
    """[n, 39, 5]; this and the next two are BlazePose's, see `PoseFeatures`"""
    world: Tensor
    """[n, 39, 3], metres"""
    presence: Tensor
    """[n]"""
    keypoints: Tensor
    """[n, 12, 3]: the detector's"""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The head's, by name."""
        return {f.name: getattr(self, f.name) for f in fields(HeadInputs)}


@dataclass(frozen=True)
class Known(HeadInputs):
    """Training data of the head: n crops."""

    vertices: Tensor
    """[n, V]: errors, metres"""
    joints: Tensor
    """[n, J]"""
    missed: Tensor
    """[n, V], metres: residuals of the fit, which `widened` adds to sigma"""
    joints_missed: Tensor
    """[n, J]"""
    depth: Tensor
    """[n]: error of the distance to the camera over the true one"""

    def __getitem__(self, index: Tensor | slice) -> Known:
        return Known(*(getattr(self, f.name)[index] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True)
class Predicted(HeadInputs):
    """The model's predictions for the n people of a set, and the ground truth."""

    vertices: Tensor
    """[n, V, 3], canonical"""
    rotation: Tensor
    """[n, 3, 3]"""
    camera: Tensor
    """[n, 3]"""
    true_vertices: Tensor
    true_rotation: Tensor
    true_translation: Tensor
    focal: Tensor
    """[n]"""


Part = TypeVar("Part", Known, Predicted)


def join(parts: list[Part]) -> Part:
    kind = type(parts[0])
    return kind(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(kind)))


@torch.no_grad()
def predict(model: Mega, tokenizer: MeshTokenizer, people: FeatureSet) -> Predicted:
    parts = []
    for start in tqdm(range(0, len(people), 50), desc="meshes", mininterval=5):
        batch = people.batch(np.arange(start, min(start + 50, len(people))), None)
        features = PoseFeatures(*(batch[name] for name in PoseFeatures._fields))
        seen, states, logits = generate.first_pass(model, features)
        mesh = generate.expected_vertices(tokenizer, logits)
        given = head_inputs(states, seen, features, batch["keypoints"])
        posed = {"vertices": mesh, "rotation": rot6d_to_matrix(seen.rot6d), "camera": seen.camera}
        truth = {f"true_{name}": batch[name] for name in ("vertices", "rotation", "translation")}
        parts.append(Predicted(**given, **posed, **truth, focal=batch["focal"]))
    return join(parts)


def of_people(found: Predicted, topology: Topology, modes: np.ndarray) -> Known:
    """The errors of the published meshes, which are fitted to the landmarks and keypoints."""
    regressor = topology.joint_regressor
    fitted = fit_people(
        found.vertices.numpy(),
        found.rotation.numpy(),
        found.camera.numpy(),
        found.focal.numpy(),
        found.landmarks.numpy(),
        found.keypoints.numpy(),
        Bends.of(regressor, modes),
    )
    place = found.true_translation.numpy()
    depth = np.abs(fitted.translation[:, 2] - place[:, 2]) / place[:, 2]
    posed = fitted.vertices @ fitted.body_to_crop.swapaxes(1, 2)
    truth = (found.true_vertices @ found.true_rotation.mT).numpy()
    shift = metrics.beside(regressor[0] @ posed + fitted.translation, regressor[0] @ truth + place)
    posed, truth = metrics.centre(posed, regressor[0]) + shift[:, None], metrics.centre(truth, regressor[0])
    template, joints = topology.template, topology.joints(topology.template)
    arrays = {
        "vertices": metrics.distances(posed, truth),
        "joints": metrics.distances(regressor @ posed, regressor @ truth),
        "missed": widened(np.zeros(1), fitted.residuals, limb_shares(template, joints)),
        "joints_missed": widened(np.zeros(1), fitted.residuals, limb_shares(joints, joints)),
        "depth": depth,
    }
    errors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    return Known(**found.inputs, **errors)


@torch.no_grad()
def of_nobody(model: Mega, count: int, vertices: int, seed: int) -> Known:
    """Crops without people (photographs, noise and plain colours), with the error `NOBODY`."""
    rng = np.random.default_rng(seed)
    images = [read(file) for file in sorted(FOLDER.glob("*.jpg"))]
    size, crops = BlazePose.SIDE, np.empty((count, BlazePose.SIDE, BlazePose.SIDE, 3), np.uint8)
    for crop in crops:
        kind = rng.random()
        if kind < 0.6:
            image = images[rng.integers(len(images))]
            side = int(rng.integers(48, min(image.shape[:2]) + 1))
            top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
            crop[:] = cv2.resize(image[top : top + side, left : left + side], (size, size))
        elif kind < 0.8:
            cells = int(2 ** rng.integers(2, 9))
            crop[:] = cv2.resize(rng.integers(0, 256, (cells, cells, 3), np.uint8), (size, size))
        else:
            crop[:] = rng.integers(0, 256, 3)
    parts = []
    for part in np.array_split(crops, max(1, count // 20)):
        features = model.backbone(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255)
        seen, states, _ = generate.first_pass(model, features)
        off, joints_off = (torch.full((len(part), n), NOBODY) for n in (vertices, 24))
        known = {
            **head_inputs(states, seen, features, torch.zeros(len(part), len(LIMBS), 3)),
            "vertices": off,
            "joints": joints_off,
            "missed": torch.zeros_like(off),
            "joints_missed": torch.zeros_like(joints_off),
            "depth": torch.full((len(part),), torch.nan),
        }
        parts.append(Known(**known))
    return join(parts)


def loss(head: ErrorHead, known: Known) -> Tensor:
    """Negative log-likelihood of exponentially distributed errors: less sensitive to outliers than a Gaussian one."""
    vertices, joints, _ = head.log_errors(**known.inputs)
    both = (vertices, known.missed, known.vertices), (joints, known.joints_missed, known.joints)
    sigmas = [((2 * log).exp() + missed.square()).sqrt() for log, missed, _ in both]
    return torch.stack([(sigma.log() + error / sigma).mean() for sigma, (_, _, error) in zip(sigmas, both)]).sum()


@torch.no_grad()
def calibrate(head: ErrorHead, known: Known) -> None:
    """Set the curve with which sigma is the root mean square error, for small and large errors; it never falls.

    Points are sorted into equal groups by expected error: each gives a point of the curve. The mean square of the
    residuals, which are added later, is taken off.
    """
    logs = head.log_errors(**known.inputs)
    both = (known.vertices, known.missed), (known.joints, known.joints_missed)
    for curve, (log, (error, missed)) in zip(head.calibration, zip(logs, both)):
        groups = log.flatten().argsort().tensor_split(KNOTS)
        at, square, less = (
            torch.stack([x.flatten()[part].mean() for part in groups]) for x in (log, error.square(), missed.square())
        )
        values = torch.maximum(square - less, 0.1 * square).sqrt().log()
        curve.copy_(torch.stack([at, values.cummax(dim=0).values]))


@torch.no_grad()
def root_mean_squares(head: ErrorHead, known: Known) -> dict[str, float]:
    """Of errors and of sigma, metres: equal where sigma tells the truth."""
    found = {"error": known.vertices, "sigma": sigmas(head, known)[0]}
    return {name: float(x.square().mean().sqrt()) for name, x in found.items()}


@torch.no_grad()
def sigmas(head: ErrorHead, known: Known) -> tuple[Tensor, Tensor]:
    """Calibrated, of vertices [n, V] and joints [n, J]."""
    found = head(**known.inputs)
    return found.sigma.hypot(known.missed), found.joints_sigma.hypot(known.joints_missed)


def main(config: ErrorTraining) -> None:
    torch.manual_seed(config.seed)
    model, tokenizer, topology = checkpoint.load_mega(config.checkpoint)
    if not isinstance(model.backbone, BlazePose):
        raise InputError(f"{config.checkpoint}: only a model with BlazePose has an error head")
    found = [predict(model, tokenizer, FeatureSet(folder, topology)) for folder in config.sets]
    splits = [int(len(part.focal) * (1 - config.held_out)) for part in found]
    if not all(0 < split < len(part.focal) for part, split in zip(found, splits)):
        raise InputError(f"held_out {config.held_out:g}: of some set, nobody is left to learn from, or to be held out")
    off = [(part.true_vertices - part.vertices)[:split].numpy() for part, split in zip(found, splits)]
    modes = principal_modes(np.concatenate(off), MODES)
    known = [of_people(part, topology, modes) for part in found]
    nobody = of_nobody(model, config.nobody, len(topology.template), config.seed)
    train = join([*(part[:split] for part, split in zip(known, splits)), nobody])
    usual = known[0][: splits[0]].maps
    if not usual.std(dim=0).any():
        raise InputError(
            f"{config.checkpoint}: the lifter's eyes give the same map for everybody, as their ReLUs have died; "
            "train it again with a smaller lr"
        )
    head = ErrorHead.begin(model.config.width, tokenizer, topology, usual, torch.from_numpy(modes))
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in tqdm(range(config.steps), desc="error head", mininterval=5):
        value = loss(head, train[torch.randint(len(train), (config.batch,))])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    held_out, *turned = (part[split:] for part, split in zip(known, splits))
    # people upside down are rarer than upright ones, but sigma must be large for them, too
    calibrate(head, join([held_out, *(part[::10] for part in turned)]))
    checkpoint.save_errors(config.checkpoint, head)
    expected, joints_expected = (sigma.numpy() for sigma in sigmas(head, held_out))
    error = held_out.vertices.numpy()
    depth = np.quantile(held_out.depth.numpy(), [0.5, 0.9])
    calibration = {
        "scale": 1.0,
        "how": "sigma is the expected root mean square distance of a vertex of the published mesh from the true one in "
        "the camera frame, if the person's distance from the camera were known; fitted to rendered people of "
        "calibration clips, one in ten of them upside down or on the side; its shares of the errors are those of "
        "rendered people of test clips; the distance itself is off by "
        f"{depth[0]:.0%} in the median and {depth[1]:.0%} in one of ten",
    }
    checkpoint.save_calibration(config.checkpoint, calibration)
    scores = {
        "loss": float(loss(head, held_out).detach()),
        "Spearman": metrics.spearman(expected, error),
        "Spearman joints": metrics.spearman(joints_expected, held_out.joints.numpy()),
        "root mean squares": [root_mean_squares(head, part[split:]) for part, split in zip(known, splits)],
    }
    print(json.dumps(scores))
