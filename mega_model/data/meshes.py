"""Random bodies: motion-capture poses (split by clip), augmented, on random phenotypes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from mega_model.body.anny import AnnyBody

POSES = Path(__file__).with_name("cmu_anny_poses.npz")
MOTION = "CMU motion capture, mocap.cs.cmu.edu, created with funding from NSF EIA-0196217"
"""Where the poses come from, as whoever uses them is asked to say."""
Split = Literal["train", "calibration", "test"]

_LEGS = ("upperleg01", "lowerleg01", "foot")


class BodySampler:
    """Draws canonical meshes of one split. Every tenth clip is for calibration, every tenth for tests."""

    def __init__(self, split: Split) -> None:
        self.body = AnnyBody()
        self.augment = split == "train"
        with np.load(POSES, allow_pickle=False) as data:
            clip = data["clip"].astype(int)
            keep = {"test": clip % 10 == 0, "calibration": clip % 10 == 5, "train": clip % 5 != 0}[split]
            self.poses = data["pose"][keep].astype(np.float32)
            self.bones: list[str] = data["joints"].tolist()
        # frames of long clips count less, or salsa would be half of everything
        weight = 1 / np.sqrt(np.bincount(clip)[clip[keep]])
        self.probability = weight / weight.sum()
        sides = str.maketrans("LR", "RL")
        self.mirror = [self.bones.index(b[:-1] + b[-1].translate(sides) if b[-2] == "." else b) for b in self.bones]
        self.legs = np.flatnonzero([b.partition(".")[0] in _LEGS for b in self.bones])

    def draw_poses(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Rotation vectors [count, K, 3] in Anny's axes; the root faces -y up to a tilt and the training noise."""
        pick = rng.choice(len(self.poses), size=(2, count), p=self.probability)
        poses = self.poses[pick[0]]
        if self.augment:
            swap = rng.random(count) < 0.3  # the legs of another frame
            poses[np.ix_(np.flatnonzero(swap), self.legs)] = self.poses[pick[1, swap]][:, self.legs]
            flip = rng.random(count) < 0.5
            poses[flip] = poses[flip][:, self.mirror] * np.array([1, -1, -1], np.float32)
            poses = poses + rng.normal(0, 0.03, poses.shape)
        return poses

    def draw_phenotypes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count, 6] gender, age, muscle, weight, height, proportions, each in 0..1; mostly adults."""
        phenotypes = rng.random((count, 6))
        phenotypes[:, 1] = np.where(
            rng.random(count) < 0.85, rng.uniform(0.55, 0.95, count), rng.uniform(0.2, 0.55, count)
        )
        phenotypes[:, 3] = rng.beta(2, 2, count)
        return phenotypes

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Canonical vertices [count, V, 3] and root rotations [count, 3, 3]: upright with any heading, some tilted."""
        vertices, _, root = self.body.canonical(
            self.draw_poses(rng, count), self.bones, self.draw_phenotypes(rng, count)
        )
        heading = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi, (count, 1)))
        anyhow = Rotation.random(count, random_state=rng).as_matrix()
        turn = np.where((rng.random(count) < 0.1)[:, None, None], anyhow, heading.as_matrix())
        return vertices.astype(np.float32), (turn @ root).astype(np.float32)
