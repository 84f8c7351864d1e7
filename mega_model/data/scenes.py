"""Synthetic pictures of people, with exact labels: a batch renderer in plain torch (CPU or GPU) and random scenes.

A picture is drawn from back to front: a procedural background with shapes, the bodies (z-buffer, patterned clothes,
two lights), and shapes in front that hide them. B pictures, P people each, V vertices, F faces, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from mega_model.data.meshes import BodySampler
from mega_model.data.raster import Rasteriser
from mega_model.topology import SMPL_JOINTS, Topology

SKIN, TOP, BOTTOM, SHOES, HAIR = range(5)

_SIMPLE = dict.fromkeys(("neck", "head", "wrist"), SKIN) | {"ankle": SHOES, "hip": BOTTOM, "pelvis": BOTTOM}
_SKIN_TONES = np.array([[0.87, 0.67, 0.55], [0.78, 0.57, 0.44], [0.55, 0.36, 0.25], [0.30, 0.19, 0.13]])


@dataclass
class Look:
    """What people wear and how they are lit, for B pictures of P people; regions R are SKIN to HAIR."""

    region: Tensor
    """int64 [B, P, 25]: region of each body part, and of hair as the last one"""
    colours: Tensor
    """[B, P, R, 2, 3]: the two colours of each region's pattern"""
    pattern: Tensor
    """[B, P, R]: 0 plain, 1 stripes, 2 checks, 3 blobs"""
    frequency: Tensor
    """[B, P, R, 3]: the pattern's waves per metre along the template's axes"""
    light: Tensor
    """[B, 2, 3]: directions to the key light and the fill light, camera frame"""
    power: Tensor
    """[B, 3]: strength of key, fill and ambient light"""

    @classmethod
    def draw(cls, rng: np.random.Generator, batch: int, people: int) -> Look:
        shape = (batch, people)
        region = np.zeros((*shape, 25), int)
        # how far the clothes reach down each limb
        reach = {
            "shoulder": rng.random(shape) < 0.9,
            "elbow": rng.random(shape) < 0.5,
            "knee": rng.random(shape) < 0.65,
        }
        for part, joint in enumerate(SMPL_JOINTS):
            name = joint.split("_")[-1]
            if name in reach:
                region[..., part] = np.where(reach[name], BOTTOM if name == "knee" else TOP, SKIN)
            else:
                region[..., part] = _SIMPLE.get(name, TOP)
        region[..., 24] = np.where(rng.random(shape) < 0.9, HAIR, SKIN)
        whole = rng.random(shape) < 0.15  # one piece from top to bottom
        region[whole] = np.where(region[whole] == BOTTOM, TOP, region[whole])
        colours = random_colours(rng, (*shape, 5, 2))
        tone = _SKIN_TONES[rng.integers(len(_SKIN_TONES), size=shape)] * rng.uniform(0.8, 1.15, (*shape, 1))
        colours[..., SKIN, :, :] = tone[..., None, :]
        hair = np.array([0.25, 0.17, 0.1]) * rng.uniform(0.1, 1.5, (*shape, 1)) + rng.uniform(0, 0.05, (*shape, 1))
        colours[..., HAIR, :, :] = hair[..., None, :]
        pattern = rng.choice(4, size=(*shape, 5), p=[0.5, 0.2, 0.1, 0.2])
        pattern[..., [SKIN, HAIR]] = 0
        frequency = rng.uniform(4, 20, (*shape, 5, 1)) * rng.normal(size=(*shape, 5, 3))
        light = rng.normal(size=(batch, 2, 3)) * [1, 0.5, 0.5] + [
            0,
            -0.7,
            -0.7,
        ]  # mostly from above and the camera's side
        light /= np.linalg.norm(light, axis=-1, keepdims=True)
        power = np.stack(
            [rng.uniform(0.3, 0.9, batch), rng.uniform(0, 0.3, batch), rng.uniform(0.2, 0.6, batch)], axis=1
        )

        def tensor(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x.astype(np.float32))

        drawn = (colours, pattern, frequency, light, power)
        return cls(torch.from_numpy(region), *map(tensor, drawn))


@dataclass
class Shapes:
    """K rectangles and ellipses over a picture, in units of its larger side. Size zero: no shape."""

    centre: Tensor
    """[B, K, 2]"""
    size: Tensor
    """[B, K, 2] half axes"""
    angle: Tensor
    """[B, K]"""
    round: Tensor
    """bool [B, K]"""
    colour: Tensor
    """[B, K, 3]"""

    @classmethod
    def draw(
        cls, rng: np.random.Generator, batch: int, count: int, presence: float, size: tuple[float, float]
    ) -> Shapes:
        half = rng.uniform(*size, (batch, count, 2)) * (rng.random((batch, count, 1)) < presence)
        arrays = [
            rng.uniform(0, 1, (batch, count, 2)), half, rng.uniform(0, math.pi, (batch, count)),
            rng.random((batch, count)) < 0.4, random_colours(rng, (batch, count)),
        ]  # fmt: skip
        return cls(*(torch.from_numpy(a if a.dtype == bool else a.astype(np.float32)) for a in arrays))

    def cover(self, height: int, width: int) -> Tensor:
        """bool [B, K, H, W]: the pixels that each shape covers."""
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        grid = torch.stack([x, y]).to(self.centre) / max(height, width)
        dx, dy = (grid - self.centre[..., None, None]).unbind(2)
        cos, sin = self.angle.cos()[..., None, None], self.angle.sin()[..., None, None]
        half = self.size.clamp(min=1e-6)[..., None, None]
        u, v = (cos * dx + sin * dy) / half[:, :, 0], (cos * dy - sin * dx) / half[:, :, 1]
        return torch.where(self.round[..., None, None], u * u + v * v < 1, (u.abs() < 1) & (v.abs() < 1))

    def paint(self, images: Tensor, texture: Tensor) -> Tensor:
        """Over images [B, H, W, 3], in order; texture [B, H, W] is the shapes' brightness."""
        for covered, colour in zip(self.cover(*images.shape[1:3]).unbind(1), self.colour.unbind(1)):
            images = torch.where(covered[..., None], colour[:, None, None] * texture[..., None], images)
        return images


def random_colours(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """[*shape, 3], linear light: greys more often than strong colours, as in real rooms and wardrobes."""
    grey = rng.random((*shape, 1))
    return (grey + rng.beta(0.8, 2, (*shape, 1)) * (rng.random((*shape, 3)) - grey)) ** 1.7


def noise(rng: np.random.Generator, batch: int, height: int, width: int, cells: int, octaves: int = 4) -> Tensor:
    """Smooth random fields [B, H, W] about 0, within about 1; `cells` blobs across at the coarsest."""
    total = torch.zeros(batch, height, width)
    for octave in range(octaves):
        n = cells << octave
        field = torch.from_numpy(rng.uniform(-1, 1, (batch, 1, n + 2, n + 2)).astype(np.float32))
        total += F.interpolate(field, (height, width), mode="bilinear", align_corners=False)[:, 0] * 0.6**octave
    return total


def backgrounds(rng: np.random.Generator, batch: int, height: int, width: int) -> Tensor:
    """Procedural rooms and landscapes [B, H, W, 3], linear light."""

    def colour() -> Tensor:
        return torch.from_numpy(random_colours(rng, (batch, 1, 1)).astype(np.float32))

    def amount(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, 1, 1)).astype(np.float32))

    y = torch.linspace(0, 1, height)[None, :, None]
    blend = (y * amount(-1, 1) + noise(rng, batch, height, width, 2) * amount(0, 1) + amount(0, 1)).clamp(0, 1)[
        ..., None
    ]
    images = colour() * (1 - blend) + colour() * blend
    floor = (y > amount(0.4, 1.1)).expand(batch, height, width)[..., None]
    images = torch.where(floor, colour() * (1 + 0.3 * noise(rng, batch, height, width, 12, 3)[..., None]), images)
    texture = 0.9 + 0.3 * noise(rng, batch, height, width, 8)
    shapes = Shapes.draw(rng, batch, 10, 0.6, (0.02, 0.35))
    return shapes.paint(images * (1 + 0.15 * noise(rng, batch, height, width, 24, 3)[..., None]), texture).clamp(0, 1)


class Renderer(Rasteriser):
    """Draws people of one topology into pictures of one size."""

    def __init__(self, topology: Topology, height: int, width: int, device: str = "cpu") -> None:
        super().__init__(topology.faces, height, width, device)
        self.template = torch.from_numpy(topology.template).to(self.device)
        parts = topology.parts.copy()
        head = parts == SMPL_JOINTS.index("head")
        top, front = topology.template[head, 1].max(), topology.template[head, 2].max()
        # hair: the crown, and all but the lower part of the back of the head
        height_in_head, depth = top - topology.template[:, 1], front - topology.template[:, 2]
        parts[head & ((height_in_head < 0.08) | ((height_in_head < 0.2) & (depth > 0.1)))] = 24
        self.parts = torch.from_numpy(parts).long().to(self.device)

    @torch.no_grad()
    def render(
        self, vertices: np.ndarray, intrinsics: np.ndarray, look: Look, background: Tensor, front: Shapes, grain: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures of people.

        vertices [B, P, V, 3] in the camera frame, intrinsics [B, 3, 3], background [B, H, W, 3], `front` the shapes
        that hide people, grain [B, H, W] their brightness.
        Returns images uint8 [B, H, W, 3] RGB, visible bool [B, P, V] (the camera sees the vertex) and who int
        [B, H, W] (the person at each pixel, -1: nobody).
        """
        v = torch.from_numpy(np.asarray(vertices, np.float32)).to(self.device)
        k = torch.from_numpy(np.asarray(intrinsics, np.float32)).to(self.device)
        face, depth = self.rasterise(v, k)
        images = background.clone().to(self.device).flatten(1, 2)
        b, pixel = (face >= 0).nonzero(as_tuple=True)
        images[b, pixel] = self._shade(v, k, look, b, pixel, face[b, pixel])
        images = images.view(-1, self.height, self.width, 3)
        images = front.paint(images, grain)
        hidden = front.cover(self.height, self.width).any(1)

        who = torch.where(face < 0, -1, face // len(self.faces)).view(-1, self.height, self.width)
        who = torch.where(hidden, -1, who)
        seen = self.seen(v, k, depth.masked_fill(hidden.flatten(1), -torch.inf))
        images = images.clamp(0, 1).pow(1 / 2.2).mul(255).round().byte()
        return images.cpu().numpy(), seen.cpu().numpy(), who.cpu().numpy()

    def _shade(self, v: Tensor, k: Tensor, look: Look, b: Tensor, pixel: Tensor, face: Tensor) -> Tensor:
        """Colours [N, 3] (linear light) of the faces at pixels of pictures b."""
        person, f = face // len(self.faces), self.faces[face % len(self.faces)]
        x, y = pixel % self.width + 0.5, pixel // self.width + 0.5
        ray = torch.stack([(x - k[b, 0, 2]) / k[b, 0, 0], (y - k[b, 1, 2]) / k[b, 1, 1], torch.ones_like(x)], dim=1)
        p0, p1, p2 = v[b[:, None], person[:, None], f].unbind(1)
        # the ray's barycentric coordinates, in space rather than on the picture
        weight = torch.stack(
            [(ray * torch.linalg.cross(q, r, dim=-1)).sum(-1) for q, r in ((p1, p2), (p2, p0), (p0, p1))], dim=1
        )
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        normal = F.normalize((self.normals(v)[b[:, None], person[:, None], f] * weight).sum(1), dim=-1)
        at = (self.template[f] * weight).sum(1)
        part = self.parts[f.gather(1, weight.argmax(1))[:, 0]]
        region = look.region.to(self.device)[b, person, part]
        kind, waves = look.pattern.to(self.device)[b, person, region], look.frequency.to(self.device)[b, person, region]
        phase = at * waves
        stripes = (phase.sum(-1) % 1 < 0.5).float()
        checks = (phase.floor().sum(-1) % 2).float()
        blobs = (torch.sin(phase * 2 + 3 * torch.sin(phase.roll(1, -1))).sum(-1) * 2 + 0.5).clamp(0, 1)
        mix = torch.where(kind == 1, stripes, torch.where(kind == 2, checks, torch.where(kind == 3, blobs, 0 * blobs)))
        first, second = look.colours.to(self.device)[b, person, region].unbind(1)
        albedo = first + (second - first) * mix[:, None]
        light, power = look.light.to(self.device)[b], look.power.to(self.device)[b]
        shine = (light @ normal[..., None])[..., 0].clamp(min=0)
        ambient = power[:, 2] * (0.75 - 0.25 * normal[:, 1])  # more from the sky
        return albedo * ((shine * power[:, :2]).sum(1) + ambient)[:, None] * math.pi / 2


@dataclass
class Crops:
    """Pictures of one person each, seen by the virtual camera of a crop, with the answers."""

    images: np.ndarray
    """uint8 [B, S, S, 3] RGB"""
    vertices: np.ndarray
    """float16 [B, V, 3] canonical"""
    rotation: np.ndarray
    """float32 [B, 3, 3]: canonical to camera"""
    translation: np.ndarray
    """float32 [B, 3]: of the vertex mean, camera frame"""
    focal: np.ndarray
    """float32 [B]: in half crop sizes"""
    visible: np.ndarray
    """bool [B, V]"""


VIEW_AXES = np.diag([1.0, -1, -1])
"""The canonical axes of an upright person who faces the camera, in the camera frame."""


def random_views(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rotations [count, 3, 3] from a level world (canonical axes) to cameras: looking down a little, nearly upright."""
    tilt = Rotation.from_euler("zx", np.stack([rng.normal(0, 0.07, count), rng.normal(-0.12, 0.2, count)], axis=1))
    return tilt.as_matrix() @ VIEW_AXES


def draw_crops(rng: np.random.Generator, bodies: BodySampler, renderer: Renderer, count: int) -> Crops:
    """Random people in crops like those of `geometry.crop_cameras`: margins and offsets vary, some are cut off."""
    vertices, root = bodies.draw(rng, count)
    rotation = random_views(rng, count) @ root
    oriented = np.einsum("bij,bvj->bvi", rotation, vertices)
    distance = rng.uniform(1.4, 6, count) * np.ptp(oriented, axis=1)[:, :2].max(axis=1)
    translation = np.stack([0 * distance, 0 * distance, distance], axis=1)
    for _ in range(2):  # bring the middle of the picture to the axis
        uv = (oriented + translation[:, None])[..., :2] / (oriented + translation[:, None])[..., 2:]
        low, high = uv.min(axis=1), uv.max(axis=1)
        translation[:, :2] -= (low + high) / 2 * distance[:, None]
    side = (high - low).max(axis=1)
    cut = rng.random(count) < 0.15
    scale = np.where(cut, rng.uniform(0.5, 0.85, count), rng.uniform(1.05, 1.4, count))
    shift = rng.uniform(-0.06, 0.06, (count, 2)) + cut[:, None] * rng.uniform(-0.25, 0.25, (count, 2))
    translation[:, :2] += shift * (side * distance)[:, None]
    focal = 2 / (side * scale)
    size = renderer.width
    intrinsics = np.zeros((count, 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal * size / 2
    intrinsics[:, :2, 2] = size / 2
    intrinsics[:, 2, 2] = 1
    shapes = Shapes.draw(rng, count, 2, 0.35, (0.05, 0.3))
    grain = 0.9 + 0.3 * noise(rng, count, size, size, 6, 3)
    seen = (oriented + translation[:, None])[:, None]
    background = backgrounds(rng, count, size, size)
    images, visible, _ = renderer.render(seen, intrinsics, Look.draw(rng, count, 1), background, shapes, grain)
    return Crops(
        images, vertices.astype(np.float16), rotation.astype(np.float32), translation.astype(np.float32),
        focal.astype(np.float32), visible[:, 0],
    )  # fmt: skip


@dataclass
class Groups:
    """Pictures of several people, with their boxes."""

    images: np.ndarray
    """uint8 [B, H, W, 3] RGB"""
    boxes: np.ndarray
    """float32 [B, P, 4] x0, y0, x1, y1 pixels: all of the body that lies within the picture; NaN: nobody to be found"""


def draw_groups(rng: np.random.Generator, bodies: BodySampler, renderer: Renderer, count: int, people: int) -> Groups:
    """Rooms with up to `people` people on one floor, seen by a level or tilted camera at robot to ceiling height."""
    height, width = renderer.height, renderer.width
    vertices, root = (x.reshape(count, people, *x.shape[1:]) for x in bodies.draw(rng, count * people))
    standing = np.einsum("bpij,bpvj->bpvi", root, vertices)
    standing[..., 1] -= standing[..., 1].min(axis=-1, keepdims=True)
    focal = max(height, width) / 2 / np.tan(np.radians(rng.uniform(40, 80, count)) / 2)
    depth = np.exp(rng.uniform(np.log(1.5), np.log(9), (count, people)))
    spread = (width / 2 / focal)[:, None] * depth
    standing[..., 0] += (rng.uniform(-0.95, 0.95, (count, people)) * spread)[..., None]
    standing[..., 2] -= depth[..., None]
    standing[..., 1] -= rng.uniform(0.3, 2.2, (count, 1, 1))
    tilt = Rotation.from_euler("zx", np.stack([rng.normal(0, 0.05, count), rng.normal(0, 0.12, count)], axis=1))
    points = np.einsum("bij,bpvj->bpvi", tilt.as_matrix() @ VIEW_AXES, standing)
    absent = rng.random((count, people)) < rng.uniform(0, 1, (count, 1))
    points[absent, :, 2] = -1
    intrinsics = np.zeros((count, 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = width / 2, height / 2, 1
    shapes = Shapes.draw(rng, count, 3, 0.4, (0.03, 0.2))
    grain = 0.9 + 0.3 * noise(rng, count, height, width, 6, 3)
    background = backgrounds(rng, count, height, width)
    images, visible, who = renderer.render(points, intrinsics, Look.draw(rng, count, people), background, shapes, grain)
    uv = points[..., :2] / np.maximum(points[..., 2:], 1e-3) * focal[:, None, None, None] + [width / 2, height / 2]
    limit = np.array([width, height])
    boxes = np.concatenate([uv.min(axis=2).clip(0, limit), uv.max(axis=2).clip(0, limit)], axis=-1).astype(np.float32)
    pixels = (who[:, None] == np.arange(people)[:, None, None]).sum(axis=(2, 3))
    area = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    boxes[absent | (pixels < 30) | (pixels < 0.1 * area) | ~visible.any(axis=2)] = np.nan
    return Groups(images, boxes)
