"""Appearance of people: skin, hair, clothes and light. Clothes are looser than the body, which is the label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mega_model.core.topology import SMPL_JOINTS, Topology
from mega_model.data.backgrounds import random_colours

HEAD, TRUNK, ARM, HAND, LEG, FOOT = range(6)
SKIN, TOP, BOTTOM, SHOES, HAIR = range(5)
_GROUP = {"shoulder": ARM, "elbow": ARM, "wrist": HAND, "hip": LEG, "knee": LEG, "ankle": FOOT, "neck": HEAD}
_GROUP |= {"head": HEAD}
_SKIN_TONES = np.array([[0.87, 0.67, 0.55], [0.78, 0.57, 0.44], [0.55, 0.36, 0.25], [0.30, 0.19, 0.13]]) ** 1.6


@dataclass
class Figure:
    """The regions of clothes and hair on the template of a topology with V vertices."""

    group: np.ndarray
    """int [V]: HEAD to FOOT"""
    place: np.ndarray
    """float32 [V, 4]: the template, and the position along the limb: 0 at shoulder or hip, 1 at wrist or ankle"""

    @classmethod
    def of(cls, topology: Topology) -> Figure:
        group = np.array([_GROUP.get(SMPL_JOINTS[part].split("_")[-1], TRUNK) for part in topology.parts])
        joints = dict(zip(SMPL_JOINTS, topology.joints(topology.template)))
        along = np.zeros(len(group))
        for first, last, groups in (("shoulder", "wrist", (ARM, HAND)), ("hip", "ankle", (LEG, FOOT))):
            for side in ("left", "right"):
                start, axis = joints[f"{side}_{first}"], joints[f"{side}_{last}"] - joints[f"{side}_{first}"]
                mine = np.isin(group, groups) & (topology.template[:, 0] * start[0] > 0)
                along[mine] = ((topology.template - start) @ axis / (axis @ axis))[mine]
        return cls(group, np.column_stack([topology.template, along]).astype(np.float32))


@dataclass
class Appearance:
    """Appearance of one person. Heights refer to the template; lengths along limbs are 0 to 1."""

    colours: np.ndarray
    """[5, 2, 3]: the two colours of the patterns of SKIN to HAIR, linear light"""
    pattern: np.ndarray
    """int [5]: 0 plain, 1 stripes, 2 checks, 3 blobs"""
    waves: np.ndarray
    """[5, 3]: the pattern's waves per metre along the template's axes"""
    sleeve: float
    hem: float
    """Lengths of the clothes along arms and legs."""
    waist: float
    collar: float
    """Heights."""
    loose: tuple[float, float]
    """Distance of the clothes from trunk and legs, metres."""
    hairline: float
    """Height at the forehead; above the head for no hair."""
    hair: float
    """Height of the lower end of the hair at the back."""
    volume: float
    """Distance of the hair from the head, metres."""
    beard: float
    """0 to 1"""
    folds: np.ndarray
    """[2, 3]: waves per metre of the folds of clothes"""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Appearance:
        colours = random_colours(rng, (5, 2))
        colours[SKIN] = _SKIN_TONES[rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])] * rng.uniform(0.75, 1.15)
        if rng.random() < 0.85:  # else a cap or dyed
            hair = np.array([0.25, 0.15, 0.08]) * rng.choice([0.1, 0.3, 0.8, 1.8]) * rng.uniform(0.5, 1.3)
            colours[HAIR] = hair + rng.uniform(0, 0.03) + (rng.uniform(0.1, 0.4) if rng.random() < 0.12 else 0)
        if rng.random() < 0.3:  # blue or black trousers
            colours[BOTTOM, :] = np.array([0.05, 0.08, 0.18]) * rng.uniform(0.2, 2.5)
        if rng.random() < 0.15:  # one piece from top to bottom
            colours[BOTTOM] = colours[TOP]
        pattern = rng.choice(4, size=5, p=[0.6, 0.17, 0.08, 0.15])
        pattern[[SKIN, HAIR]] = 0
        long = rng.random() < 0.5
        sleeve = rng.choice([0.0, rng.uniform(0.2, 0.5), rng.uniform(0.85, 1.0)], p=[0.08, 0.42, 0.5])
        hem = rng.choice([rng.uniform(0.2, 0.6), rng.uniform(0.6, 0.85), rng.uniform(0.92, 1.02)], p=[0.25, 0.1, 0.65])
        loose = rng.beta(1.2, 2, 2) * 0.04
        return cls(
            colours=colours,
            pattern=pattern,
            waves=rng.uniform(4, 20, (5, 1)) * rng.normal(size=(5, 3)),
            sleeve=float(sleeve),
            hem=float(hem),
            waist=float(rng.uniform(-0.2, 0.03)),
            collar=float(rng.uniform(0.33, 0.44)),
            loose=(float(loose[0]), float(loose[1])),
            hairline=float(rng.uniform(0.585, 0.625)) if rng.random() < 0.92 else 1.0,
            hair=float(rng.uniform(0.1, 0.42) if long else rng.uniform(0.44, 0.52)),
            volume=float(rng.uniform(0.004, 0.03)),
            beard=float(rng.uniform(0.3, 0.9)) if not long and rng.random() < 0.4 else 0.0,
            folds=rng.normal(size=(2, 3)) * [[18], [35]],
        )

    def standoff(self, figure: Figure) -> np.ndarray:
        """Distance of the drawn surface from the body [V], metres; smooth over the template."""
        _, y, _, along = figure.place.T
        group = figure.group
        off = np.zeros(len(group))
        trunk = group == TRUNK
        off[trunk] = (self.loose[0] * _ramp(0.41 - y, 0.1))[trunk]
        arm = group == ARM
        off[arm] = (0.7 * self.loose[0] * _ramp(self.sleeve - along, 0.15) * _ramp(along + 0.1, 0.2))[arm]
        leg = group == LEG
        off[leg] = (self.loose[1] * _ramp(self.hem - along, 0.15))[leg]
        off[group == FOOT] = 0.006
        return np.maximum(off, self.volume * self.hairy(figure.place, group, 0.02))

    def hairy(self, place: np.ndarray, group: np.ndarray, soft: float = 1e-6) -> np.ndarray:
        """Hair at places [N, 4], 0 to 1. Its edge is `soft` metres wide."""
        x, y, z, _ = place.T
        if self.hairline > 0.7:
            return np.zeros(len(place))
        head = group == HEAD
        # the line falls from the forehead over the ears to the back
        line = np.where(z > -0.01, self.hairline - 0.6 * np.abs(x), np.maximum(self.hair, 0.56 + 3.5 * (z + 0.01)))
        back = np.where(z < -0.05, self.hair, line)
        falls = _ramp(0.13 - np.abs(x), soft) * _ramp(-0.075 - z, soft) * _ramp(y - self.hair, soft)
        return np.where(head, _ramp(y - back, soft), np.where(group == TRUNK, falls, 0))

    def paint(self, place: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Colours [N, 3] of places [N, 4] on the template (see `Figure`), which are in groups [N]."""
        x, y, z, along = place.T
        region = np.where(y > self.waist, TOP, BOTTOM)
        region = np.where((y > self.collar + 0.8 * np.abs(x) - 0.02 * (z > -0.06)) & (group == TRUNK), SKIN, region)
        region = np.where(group == ARM, np.where(along < self.sleeve, TOP, SKIN), region)
        region = np.where(group == LEG, np.where(along < self.hem, BOTTOM, SKIN), region)
        region = np.select([group == FOOT, (group == HAND) | (group == HEAD)], [SHOES, SKIN], region)
        region = np.where(self.hairy(place, group) > 0.5, HAIR, region)
        phase = place[:, :3] * self.waves[region].astype(np.float32)
        kind = self.pattern[region]
        mix = np.zeros(len(place), np.float32)
        if self.pattern.any():
            mix = np.select(
                [kind == 1, kind == 2, kind == 3],
                [
                    phase.sum(-1) % 1 < 0.5,
                    np.floor(phase).sum(-1) % 2,
                    np.clip(np.sin(phase * 2 + 3 * np.sin(phase[:, [1, 2, 0]])).sum(-1) * 2 + 0.5, 0, 1),
                ],
                0,
            ).astype(np.float32)
        first, second = self.colours.astype(np.float32)[region].transpose(1, 0, 2)
        colour = first + (second - first) * mix[:, None]
        cloth = (region == TOP) | (region == BOTTOM)
        a, b = (place[:, :3] @ self.folds.astype(np.float32).T).T
        colour *= (1 + np.where(cloth, 0.12 * np.sin(a + 2 * np.sin(b)), 0))[:, None]
        face = (group == HEAD) & (z > -0.02) & (region == SKIN)
        colour[face] = self._face(x[face], y[face], colour[face])
        return colour

    def _face(self, x: np.ndarray, y: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """Eyes, brows, mouth and beard: [N, 3]. They show the direction of the head."""
        side = np.abs(x)

        def spot(u: np.ndarray, v: float, wide: float, high: float) -> np.ndarray:
            return np.exp(-((u / wide) ** 2) - ((y - v) / high) ** 2)[:, None]

        hair = self.colours[HAIR, 0].astype(np.float32)
        beard = self.beard * (_ramp(0.5 - y, 0.015) * _ramp(y - 0.435, 0.01) * _ramp(0.06 - side, 0.02))[:, None]
        colour = colour + (hair - colour) * beard
        lips = np.array([0.35, 0.08, 0.07], np.float32) * colour[:, :1] * 2
        colour = colour + (lips - colour) * spot(x, 0.478, 0.02, 0.006) * 0.7
        colour = colour * (1 - 0.85 * spot(side - 0.031, 0.545, 0.012, 0.006))
        colour = colour * (1 - 0.6 * spot(side - 0.032, 0.563, 0.017, 0.005))
        return colour * (1 - 0.4 * spot(x, 0.502, 0.014, 0.005))


def _ramp(x: np.ndarray, width: float) -> np.ndarray:
    """0 below 0, 1 above `width`."""
    return np.clip(x / width, 0, 1)


@dataclass
class Light:
    """Light of a scene: a sky of second-order spherical harmonics and a key light. World frame, y up."""

    constant: np.ndarray
    """[3]"""
    linear: np.ndarray
    """[3, 3]: per colour"""
    quadratic: np.ndarray
    """[3, 3, 3]: per colour, symmetric and without trace"""
    key: np.ndarray
    """[3]: direction to it"""
    power: np.ndarray
    """[3]"""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        constant = rng.uniform(0.35, 0.8) * rng.uniform(0.9, 1.1, 3)
        linear = constant[:, None] * (rng.uniform(0.1, 0.5) * np.array([0, 1, 0]) + rng.normal(0, 0.12, (3, 3)) * 0.5)
        linear = linear + constant[:, None] * rng.normal(0, 0.15, 3)
        quadratic = constant[:, None, None] * (rng.normal(0, 0.1, (3, 3)) + rng.normal(0, 0.03, (3, 3, 3)))
        quadratic = (quadratic + quadratic.transpose(0, 2, 1)) / 2
        quadratic -= np.trace(quadratic, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3
        key = rng.normal(size=3) * [1, 0.5, 1] + [0, 0.8, 0]
        power = rng.uniform(0, 0.8) * rng.uniform(0.9, 1.1, 3)
        return cls(constant, linear, quadratic, key / np.linalg.norm(key), power)

    def on(self, normals: np.ndarray) -> np.ndarray:
        """Irradiance [N, 3] of surfaces with normals [N, 3]."""
        sky = self.constant + normals @ self.linear.T + np.einsum("ni,cij,nj->nc", normals, self.quadratic, normals)
        return np.maximum(sky, 0.05) + np.maximum(normals @ self.key, 0)[:, None] * self.power
