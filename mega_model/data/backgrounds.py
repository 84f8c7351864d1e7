"""Backgrounds: panoramas, photographs, and rooms and yards in correct perspective. Linear light.

The photographs are in the folder `backgrounds`, whose README.md lists their authors and licences.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from mega_model.data.crops import read

FOLDER = Path(__file__).with_name("backgrounds")
GAMMA = 2.2
LINEAR = (np.arange(256, dtype=np.float32) / 255) ** GAMMA
"""Linear light of an 8-bit value."""


@cache
def photographs(kind: str) -> list[np.ndarray]:
    """All images of a kind: `panorama` (equirectangular), `photo` or `texture`: uint8 [H, W, 3] RGB."""
    return [read(file) for file in sorted(FOLDER.glob(f"{kind}_*.jpg"))]


def draw(rng: np.random.Generator, rays: np.ndarray, eye: float, distance: float) -> np.ndarray:
    """A random background float32 [H, W, 3] for the pixels' rays [H, W, 3] in a level world (y up).

    The camera is `eye` metres above the ground, the person is `distance` metres away.
    """
    kind = rng.random()
    if kind < 0.35:
        image = panorama(rng, rays)
    elif kind < 0.5:
        image = photograph(rng, *rays.shape[:2])
    else:
        image = room(rng, rays, eye, distance)
    return np.clip(image * rng.uniform(0.6, 1.4) * rng.uniform(0.92, 1.08, 3), 0, 1).astype(np.float32)


def panorama(rng: np.random.Generator, rays: np.ndarray) -> np.ndarray:
    images = photographs("panorama")
    image = images[rng.integers(len(images))][:, :: rng.choice([-1, 1])]
    height, width = image.shape[:2]
    x, y, z = np.moveaxis(rays.astype(np.float32), -1, 0)
    turn = np.arctan2(x, -z) / (2 * math.pi) + rng.random()
    pitch = np.arctan2(y, np.hypot(x, z)) / math.pi
    column, row = turn % 1 * width - 0.5, (0.5 - pitch) * height - 0.5
    return LINEAR[cv2.remap(np.ascontiguousarray(image), column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)]


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random part of a photograph, at least 0.6 times as wide as the largest possible part: [height, width, 3]."""
    images = photographs("photo")
    image = images[rng.integers(len(images))]
    most = min(image.shape[0] / height, image.shape[1] / width)
    scale = most * rng.uniform(0.6, 1)
    rows, columns = int(height * scale), int(width * scale)
    top, left = rng.integers(image.shape[0] - rows + 1), rng.integers(image.shape[1] - columns + 1)
    part = image[top : top + rows, left : left + columns][:, :: rng.choice([-1, 1])]
    return LINEAR[cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR)]


def room(rng: np.random.Generator, rays: np.ndarray, eye: float, distance: float) -> np.ndarray:
    """A rectangular room around camera and person, or a yard under the sky."""
    outside = rng.random() < 0.3
    turn = rng.uniform(-math.pi, math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    x, y, z = np.moveaxis(rays, -1, 0)
    x, z = cos * x + sin * z, cos * z - sin * x
    walls = (distance + rng.uniform(0.4, 4, 4) * (10 if outside else 1)).astype(np.float32)
    top = max(eye + 0.2, rng.uniform(2.3, 4)) * rng.uniform(1, 3 if outside else 1)
    tiny = 1e-6
    reach = np.stack([
        np.where(x > 0, walls[0], walls[1]) / np.maximum(np.abs(x), tiny),
        np.where(z > 0, walls[2], walls[3]) / np.maximum(np.abs(z), tiny),
        np.where(y > 0, np.inf if outside else top - eye, eye) / np.maximum(np.abs(y), tiny),
    ])  # fmt: skip
    nearest = reach.argmin(axis=0)
    depth = np.minimum(reach.min(axis=0), 1e4)
    point = np.stack([x, y, z], axis=-1) * depth[..., None]
    pixel = depth * np.float32(np.linalg.norm(rays[0, 1] - rays[0, 0]))  # metres per pixel
    surface = 2 * nearest + (np.choose(nearest, [x, z, y]) > 0)
    image = np.zeros((*x.shape, 3), np.float32)
    painted: dict[str, np.ndarray] = {}
    height, width = x.shape
    for k in np.unique(surface):
        wall = k < 4
        key = rng.random() < 0.6 and wall  # most walls have the same texture
        tile = painted.get("wall") if key else None
        if tile is None:
            tile = texture(rng, ground=k == 4)
            if wall:
                painted.setdefault("wall", tile)
        u, v = ((point[..., 2], point[..., 1]), (point[..., 0], point[..., 1]), (point[..., 0], point[..., 2]))[k // 2]
        metres = rng.uniform(0.6, 3)
        side = len(tile)
        flat = tile[::4, ::4].mean(axis=(0, 1))
        shown = cv2.remap(
            tile, (u / metres % 1 * side).astype(np.float32), (-v / metres % 1 * side).astype(np.float32),
            cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP,
        )  # fmt: skip
        sharp = np.clip(1.5 * metres / side / pixel, 0, 1)[..., None]  # far tiles would alias
        shown = (flat + (shown - flat) * sharp) * np.float32(rng.uniform(0.6, 1.1))
        np.copyto(image, shown, where=(surface == k)[..., None])
    if outside:
        sky = (nearest < 2) & (point[..., 1] > top - eye) | (surface == 5)
        low, high = (np.array([0.5, 0.65, 0.9]) * rng.uniform(0.4, 1.3) + rng.uniform(-0.2, 0.4) for _ in range(2))
        up = np.clip(y / np.linalg.norm(rays, axis=-1), 0, 1)[..., None]
        clouds = 1 + 0.3 * noise(rng, height, width, 3, 4)[..., None]
        image = np.where(sky[..., None], (low + (high - low) * up) * clouds, image)
    return image * (1 + 0.2 * noise(rng, height, width, 2, 2)[..., None])


def texture(rng: np.random.Generator, ground: bool = False) -> np.ndarray:
    """A square tile float32 [S, S, 3]: a photographed material, boards, tiles or paint."""
    colour = random_colours(rng, ()).astype(np.float32)
    kind = rng.random()
    if kind < 0.4:
        tile = photographs("texture")[rng.integers(len(photographs("texture")))]
        tile = LINEAR[tile]
        tint = colour / max(colour.mean(), 0.05)
        return tile * (1 + rng.uniform(0, 0.8) * (np.clip(tint, 0.3, 2) - 1)) * np.float32(rng.uniform(0.6, 1.8))
    side = 96
    grain = 1 + rng.uniform(0.02, 0.2) * noise(rng, side, side, int(rng.integers(2, 24)), 3)
    if kind < 0.75:
        count = int(rng.integers(1, 9))
        index = np.arange(side) * count // side
        edge = np.minimum(np.arange(side) * count % side, side - 1) < rng.uniform(0, 4) * count / 2
        shade = 1 + rng.uniform(0, 0.2) * rng.normal(size=(count, count))
        across = rng.random() < 0.5  # boards rather than tiles
        grain = grain * (shade[0][index][None, :] if across else shade[np.ix_(index, index)])
        gap = edge[None, :] | (edge[:, None] & (not across))
        grain = np.where(gap, grain * rng.uniform(0.3, 1.3), grain)
    if ground:
        colour = colour * 0.7
    return (np.clip(grain, 0, 3)[..., None] * colour).astype(np.float32)


def random_colours(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """[*shape, 3], linear light: greys more often than strong colours, as in real rooms and wardrobes."""
    grey = rng.random((*shape, 1))
    return (grey + rng.beta(0.8, 2, (*shape, 1)) * (rng.random((*shape, 3)) - grey)) ** 1.7


def noise(rng: np.random.Generator, height: int, width: int, cells: int, octaves: int) -> np.ndarray:
    """A smooth random field float32 [height, width] about 0, within about 1; `cells` blobs across at the coarsest."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        n = (cells << octave) + 2
        field = rng.uniform(-1, 1, (n, n)).astype(np.float32)
        total += cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR) * 0.6**octave
    return total
