"""Random bodies: motion-capture poses (split by clip), further postures that these lack, and random phenotypes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from mega_model.body.anny import AnnyBody
from mega_model.options import Split

POSES = Path(__file__).with_name("cmu_anny_poses.npz")
MOTION = "CMU motion capture, mocap.cs.cmu.edu, created with funding from NSF EIA-0196217"
"""The acknowledgement that the authors of the poses request."""
Kind = Literal["adult", "child", "low"]
"""Adults and children stand and move; `low` are adults who lie, sit, kneel or squat."""
KINDS: tuple[Kind, ...] = ("adult", "child", "low")
SHARES = (0.8, 0.1, 0.1)
"""Default share of each kind."""

_LEGS = ("upperleg01", "lowerleg01", "foot")
_DEGREES = np.pi / 180

# (joints at the ends, radius in metres at a height of 1.70 m): these must not intersect
_CAPSULES = {
    "trunk": ("root", "neck01", 0.08),
    "head": ("neck03", "head", 0.07),
    **{f"thigh.{s}": (f"upperleg01.{s}", f"lowerleg01.{s}", 0.045) for s in "LR"},
    **{f"calf.{s}": (f"lowerleg01.{s}", f"foot.{s}", 0.035) for s in "LR"},
    **{f"arm.{s}": (f"upperarm01.{s}", f"lowerarm01.{s}", 0.03) for s in "LR"},
    **{f"forearm.{s}": (f"lowerarm01.{s}", f"wrist.{s}", 0.02) for s in "LR"},
}
# adjacent parts always intersect
_TOUCHING = {
    frozenset(pair)
    for s in "LR"
    for pair in (
        ("trunk", f"thigh.{s}"), (f"thigh.{s}", f"calf.{s}"), ("trunk", f"arm.{s}"), (f"arm.{s}", f"forearm.{s}"),
        ("thigh.L", "thigh.R"), ("trunk", "head"),
    )
}  # fmt: skip


class BodySampler:
    """Draws canonical meshes of one split. One in ten clips is for calibration, one in ten for tests."""

    def __init__(self, split: Split) -> None:
        self.body = AnnyBody()
        self.augment = split == "train"
        with np.load(POSES, allow_pickle=False) as data:
            clip = data["clip"].astype(int)
            keep = {"test": clip % 10 == 0, "calibration": clip % 10 == 5, "train": clip % 5 != 0}[split]
            self.poses = data["pose"][keep].astype(np.float32)
            self.bones: list[str] = data["joints"].tolist()
        # frames of long clips count less, otherwise salsa would be half of all frames
        weight = 1 / np.sqrt(np.bincount(clip)[clip[keep]])
        self.probability = weight / weight.sum()
        sides = str.maketrans("LR", "RL")
        self.mirror = [self.bones.index(b[:-1] + b[-1].translate(sides) if b[-2] == "." else b) for b in self.bones]
        self.legs = np.flatnonzero([b.partition(".")[0] in _LEGS for b in self.bones])

    def draw_poses(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Rotation vectors [count, K, 3] in Anny's axes; the root faces -y, up to a tilt and training noise."""
        pick = rng.choice(len(self.poses), size=(2, count), p=self.probability)
        poses = self.poses[pick[0]]
        if self.augment:
            swap = rng.random(count) < 0.3  # the legs of another frame
            poses[np.ix_(np.flatnonzero(swap), self.legs)] = self.poses[pick[1, swap]][:, self.legs]
            flip = rng.random(count) < 0.5
            poses[flip] = poses[flip][:, self.mirror] * np.array([1, -1, -1], np.float32)
            poses = poses + rng.normal(0, 0.03, poses.shape).astype(np.float32)
        return poses

    def draw_phenotypes(self, rng: np.random.Generator, count: int, kind: Kind = "adult") -> np.ndarray:
        """[count, 6] gender, age, muscle, weight, height, proportions, each in 0..1.

        Adults are 1.70 m tall with a deviation of 0.10 m; children 1.0 to 1.5 m, between 4 and 13 years.
        """
        phenotypes = rng.random((count, 6))
        phenotypes[:, 0] = np.where(rng.random(count) < 0.5, 0.0, 0.8) + 0.2 * phenotypes[:, 0]
        phenotypes[:, 1] = rng.uniform(0.18, 0.48, count) if kind == "child" else rng.uniform(0.62, 0.98, count)
        phenotypes[:, 3] = rng.beta(2, 2, count)
        # Anny's heights are linear in the number: 1.36 (men) and 1.22 (women) + 1.09 times it, metres
        phenotypes[:, 4] = rng.normal(0.38, 0.075, count).clip(0.1, 0.7)
        return phenotypes

    def draw(self, rng: np.random.Generator, count: int, kind: Kind | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Canonical vertices [count, V, 3] and root rotations [count, 3, 3] in a level world (canonical axes).

        One kind of people, or all in their `SHARES`. Random heading; 1 in 50 has an arbitrary rotation.
        """
        return self._draw(rng, np.array([kind] * count) if kind else rng.choice(KINDS, size=count, p=SHARES))

    def _draw(self, rng: np.random.Generator, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`draw` for kinds str [count]."""
        count = len(kinds)
        poses = self.draw_poses(rng, count)
        phenotypes = np.empty((count, 6))
        for each in KINDS:
            of = kinds == each
            phenotypes[of] = self.draw_phenotypes(rng, int(of.sum()), each)
        lying = (kinds == "low") & (rng.random(count) < 0.5)
        self._recline(rng, poses, np.flatnonzero(lying))
        self._sit(rng, poses, np.flatnonzero((kinds == "low") & ~lying))
        self._raise_arms(rng, poses, np.flatnonzero(rng.random(count) < 0.15))
        vertices, heads, root = self.body.canonical(poses, self.bones, phenotypes)

        heading = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi, (count, 1))).as_matrix()
        side = rng.choice([0, np.pi, np.pi / 2, -np.pi / 2], size=count, p=[0.4, 0.3, 0.15, 0.15])
        down = Rotation.from_euler("x", -np.pi / 2) * Rotation.from_euler(
            "zxy", np.column_stack([rng.normal(0, 0.1, (count, 2)), side + rng.normal(0, 0.25, count)])
        )
        root[lying] = down[lying].as_matrix()
        turn = heading @ root
        anyhow = rng.random(count) < 0.02
        turn[anyhow] = Rotation.random(count, random_state=rng).as_matrix()[anyhow]
        vertices, turn = vertices.astype(np.float32), turn.astype(np.float32)
        again = self.penetrates(heads)
        if again.any():
            vertices[again], turn[again] = self._draw(rng, kinds[again])
        return vertices, turn

    def penetrates(self, heads: np.ndarray) -> np.ndarray:
        """bool [B]: whether limbs, trunk or head intersect; bone heads [B, bones, 3] in metres."""
        labels = self.body.model.bone_labels
        scale = np.linalg.norm(heads[:, labels.index("head")] - heads[:, labels.index("root")], axis=-1) / 0.58
        along = np.linspace(0, 1, 6)[:, None]
        points = {}
        for name, (first, last, _) in _CAPSULES.items():
            a, b = (heads[:, labels.index(bone), None] for bone in (first, last))
            points[name] = a + along * (b - a)
        bad = np.zeros(len(heads), bool)
        for one, other in combinations(_CAPSULES, 2):
            if frozenset((one, other)) not in _TOUCHING:
                gap = np.linalg.norm(points[one][:, :, None] - points[other][:, None], axis=-1).min(axis=(1, 2))
                bad |= gap < scale * (_CAPSULES[one][2] + _CAPSULES[other][2])
        return bad

    def _recline(self, rng: np.random.Generator, poses: np.ndarray, rows: np.ndarray) -> None:
        """Legs of people who lie: straight or drawn up. In place, poses[rows]."""
        drawn_up = rng.random((len(rows), 2)) < 0.4
        flexion = np.where(drawn_up, rng.uniform(20, 80, drawn_up.shape), rng.uniform(-5, 15, drawn_up.shape))
        knee = np.where(drawn_up, rng.uniform(40, 110, drawn_up.shape), rng.uniform(0, 20, drawn_up.shape))
        self._set_legs(poses, rows, flexion, rng.uniform(0, 20, drawn_up.shape), knee)

    def _sit(self, rng: np.random.Generator, poses: np.ndarray, rows: np.ndarray) -> None:
        """Legs of people who sit, squat or kneel on one or both knees. In place, poses[rows]."""
        shape = (len(rows), 2)
        how = rng.choice(4, size=(len(rows), 1), p=[0.55, 0.15, 0.15, 0.15])
        kneels = (how == 2) | ((how == 3) & (np.arange(2) == rng.integers(2, size=(len(rows), 1))))
        base = rng.uniform(70, 105, (len(rows), 1)) + rng.normal(0, 8, shape)
        flexion = np.where(how == 1, rng.uniform(90, 120, (len(rows), 1)) + rng.normal(0, 5, shape), base)
        knee = np.where(how == 1, flexion + rng.uniform(10, 25, shape), flexion + rng.uniform(-35, 25, shape))
        flexion = np.where(kneels, rng.uniform(-10, 30, shape), flexion)
        knee = np.where(kneels, rng.uniform(85, 145, shape), knee)
        self._set_legs(poses, rows, flexion, rng.uniform(-4, 28, shape), knee.clip(0, 145))

    def _set_legs(
        self, poses: np.ndarray, rows: np.ndarray, flexion: np.ndarray, abduction: np.ndarray, knee: np.ndarray
    ) -> None:
        """Angles [rows, 2] in degrees, left and right: of the hip forwards and outwards, and of the knee."""
        for k, (side, sign) in enumerate((("L", 1), ("R", -1))):
            f, a = flexion[:, k] * _DEGREES, abduction[:, k] * _DEGREES
            thigh = np.stack([sign * np.sin(a), -np.sin(f) * np.cos(a), -np.cos(f) * np.cos(a)], axis=-1)
            poses[rows, self.bones.index(f"upperleg01.{side}")] = _shortest_turn(np.array([0, 0, -1.0]), thigh)
            poses[rows, self.bones.index(f"lowerleg01.{side}")] = np.outer(knee[:, k] * _DEGREES, [1, 0, 0])

    def _raise_arms(self, rng: np.random.Generator, poses: np.ndarray, rows: np.ndarray) -> None:
        """One or both upper arms above the shoulder, as the motion seldom has them. In place, poses[rows]."""
        for side, sign in (("L", 1), ("R", -1)):
            of = rows[rng.random(len(rows)) < 0.75]
            low, high = [-0.2, -0.8, 0.1], [1.0, 0.3, 1.2]
            up = rng.uniform(low, high, (len(of), 3)) * [sign, 1, 1]
            # upper arms hang at 45 degrees in the rest pose; collarbones follow half-way
            turn = _shortest_turn(np.array([0.67 * sign, -0.02, -0.74]), up / np.linalg.norm(up, axis=1, keepdims=True))
            poses[of, self.bones.index(f"clavicle.{side}")] = 0.12 * turn
            poses[of, self.bones.index(f"shoulder01.{side}")] = 0
            poses[of, self.bones.index(f"upperarm01.{side}")] = 0.88 * turn


def _shortest_turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rotation vectors [n, 3] from the direction `start` [3] to the directions `end` [n, 3] (of length 1)."""
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    return axis / np.maximum(sine, 1e-9) * np.arctan2(sine[:, 0], end @ start)[:, None]
