"""Synthetic images of people, with exact labels: random scenes and the renderer that draws them.

An image is drawn from back to front: a background with shadows on the floor, clothed bodies under one light, objects in
front of them, then the effects of the sensor. B images, P people, V vertices, S pixels per side.
docs/train/synthetic_data.md describes what is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mega_model.core.geometry import project, square_cameras
from mega_model.core.topology import Topology
from mega_model.data import backgrounds, sensor
from mega_model.data.appearance import Appearance, Figure, Light
from mega_model.data.meshes import BodySampler, Kind
from mega_model.data.raster import Rasteriser
from mega_model.options import MIXTURE

PARTS = ("clear", "occluded", "truncated", "lying", "children")
"""Kinds of images. clear: an upright adult, all in the frame, nothing in front. occluded: objects and people hide 20 to
60 % of the body's pixels. truncated: the frame's edge cuts the body. lying: lying and sitting. children: upright."""
HIDDEN = (0.2, 0.6)
"""Share of the pixels of an occluded body that are hidden."""
PLAN = 4
"""Occlusion is planned on images smaller by this factor."""
VIEW_AXES = np.diag([1.0, -1, -1])
"""The canonical axes of an upright person who faces the camera, in the camera frame."""


@dataclass
class Thing:
    """A flat object in front of people."""

    outline: np.ndarray
    """[N, 2]: a polygon; the image runs from 0 to 1"""
    surface: np.ndarray
    """float32 [h, w, 3]: stretched over the outline's bounds, linear light"""

    @classmethod
    def draw(cls, rng: np.random.Generator, centre: np.ndarray) -> Thing:
        """A board, a post, a disc or an irregular shape around `centre` [2]."""
        kind = rng.choice(4, p=[0.45, 0.15, 0.2, 0.2])
        half = np.exp(rng.uniform(math.log(0.06), math.log(0.4), 2))
        if kind == 1:
            half = np.array([rng.uniform(0.02, 0.08), rng.uniform(0.5, 1)])
        if kind < 2:
            corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + rng.normal(0, 0.05, (4, 2))
        else:
            angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = 1 if kind == 2 else 1 + sum(
                rng.normal(0, 0.3 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7)
            )  # fmt: skip
            corners = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.reshape(radius, (-1, 1))
        turn = rng.normal(0, 0.15) if kind < 2 else rng.uniform(0, np.pi)
        cos, sin = math.cos(turn), math.sin(turn)
        outline = centre + corners * half @ np.array([[cos, sin], [-sin, cos]])
        surface = backgrounds.photograph(rng, 64, 64) if rng.random() < 0.3 else backgrounds.texture(rng)
        fall = 1 + rng.uniform(-0.4, 0.4) * np.linspace(-1, 1, len(surface))
        return cls(outline, (surface * fall[:, None, None] * rng.uniform(0.4, 1.2)).astype(np.float32))

    def cover(self, height: int, width: int) -> np.ndarray:
        """bool [height, width]: the covered pixels."""
        mask = np.zeros((height, width), np.uint8)
        corners = np.rint((self.outline * [width, height] - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1, shift=4)
        return mask > 0

    def paint(self, image: np.ndarray) -> np.ndarray:
        """Draw over the image [H, W, 3], in place. Returns the covered pixels."""
        covered = self.cover(*image.shape[:2])
        rows, columns = (np.flatnonzero(covered.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            size = (columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
            image[part][covered[part]] = cv2.resize(self.surface, size)[covered[part]]
        return covered


@dataclass
class Scene:
    """The content of one image."""

    people: np.ndarray
    """[P, V, 3] camera frame, metres"""
    appearances: Sequence[Appearance]
    """P"""
    intrinsics: np.ndarray
    """[3, 3]"""
    view: np.ndarray
    """[3, 3]: rotation from the light's world to the camera"""
    light: Light
    background: np.ndarray
    """float32 [H, W, 3] linear light"""
    things: Sequence[Thing]
    """In front of people."""


class Renderer(Rasteriser):
    """Draws people of one topology into images of one size."""

    def __init__(self, topology: Topology, height: int, width: int) -> None:
        super().__init__(topology.faces, height, width)
        self.topology = topology
        self.figure = Figure.of(topology)
        self.triangles = topology.faces.astype(np.int64)

    @torch.no_grad()
    def render(self, scenes: Sequence[Scene]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each scene the image float32 [H, W, 3] in linear light, visible bool [P, V] and who int [H, W].

        visible: the camera sees the (clothed) vertex. who: the person at each pixel, -1 for none.
        """
        counts = [len(scene.people) for scene in scenes]
        off = np.stack([each.standoff(self.figure) for scene in scenes for each in scene.appearances])[:, None, :, None]
        bodies = torch.from_numpy(np.concatenate([scene.people for scene in scenes]).astype(np.float32))[:, None]
        drawn = bodies + self.normals(bodies) * torch.from_numpy(off.astype(np.float32))
        k = np.repeat(np.stack([scene.intrinsics for scene in scenes]), counts, axis=0)
        face, depth = self.rasterise(drawn, torch.from_numpy(k.astype(np.float32)))
        parts = (x.split(counts) for x in (drawn, self.normals(drawn), face, depth))
        return [self._compose(scene, *part) for scene, *part in zip(scenes, *parts)]

    def _compose(
        self, scene: Scene, bodies: Tensor, normals: Tensor, face: Tensor, depth: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bodies as drawn and their normals [P, 1, V, 3]; face and depth [P, H W] of each body at the pixels."""
        nearest, first = depth.min(dim=0)
        who = torch.where(nearest < torch.inf, first, -1).numpy().reshape(self.height, self.width)
        pixels = scene.background.reshape(-1, 3).copy()
        for p, appearance in enumerate(scene.appearances):
            pixel = np.flatnonzero(who == p)
            lit = scene.light.on(normals[p, 0].numpy() @ scene.view).astype(np.float32)
            pixels[pixel] = self._shade(
                bodies[p, 0].numpy(), lit, appearance, scene.intrinsics, pixel, face[p].numpy()[pixel]
            )
        image = pixels.reshape(self.height, self.width, 3)
        hidden = np.zeros((self.height, self.width), bool)
        for thing in scene.things:
            hidden |= thing.paint(image)
        who[hidden] = -1
        nearest[torch.from_numpy(hidden.reshape(-1))] = -torch.inf
        k = torch.from_numpy(scene.intrinsics.astype(np.float32))[None]
        return image, self.seen(bodies[None, :, 0], k, nearest[None])[0].numpy(), who

    def _shade(
        self,
        v: np.ndarray,
        lit: np.ndarray,
        appearance: Appearance,
        intrinsics: np.ndarray,
        pixel: np.ndarray,
        face: np.ndarray,
    ) -> np.ndarray:
        """Colours [N, 3] of one body's faces [N] at pixels [N]; vertices and their irradiance [V, 3]."""
        x = ((pixel % self.width + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]).astype(np.float32)
        y = ((pixel // self.width + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]).astype(np.float32)
        # barycentric coordinates of the ray, in space
        a, b, c = (v[self.triangles[:, i]] for i in range(3))
        weight = np.stack(
            [s[0] * x + s[1] * y + s[2] for s in (_cross(*e).T[:, face] for e in ((b, c), (c, a), (a, b)))]
        )
        weight /= weight.sum(axis=0)
        corner = self.triangles[face].T
        attributes = np.concatenate([self.figure.place, lit], axis=1)
        values = sum(attributes[corner[i]] * weight[i][:, None] for i in range(3))
        group = self.figure.group[np.take_along_axis(corner, weight.argmax(axis=0)[None], axis=0)[0]]
        return appearance.paint(values[:, :4], group) * values[:, 4:]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product [N, 3]; numpy's is many times slower."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


@dataclass
class LabelledCrops:
    """Images of one person each, from a virtual camera that looks at the person, with labels."""

    images: np.ndarray
    """uint8 [B, S, S, 3] RGB; black outside the image of the true camera"""
    vertices: np.ndarray
    """float16 [B, V, 3] canonical"""
    rotation: np.ndarray
    """float32 [B, 3, 3]: canonical to camera"""
    translation: np.ndarray
    """float32 [B, 3]: of the vertex mean, camera frame"""
    focal: np.ndarray
    """float32 [B]: in half image sides"""
    visible: np.ndarray
    """bool [B, V]"""
    box: np.ndarray
    """float32 [B, 4] x0, y0, x1, y1 pixels: the visible part of the person"""
    kind: np.ndarray
    """int8 [B]: index into PARTS"""


class NoView(RuntimeError):
    """Chance found no camera for a body; others will have one."""


@dataclass
class View:
    """A camera on a level floor (world: y up) and its frame."""

    eye: np.ndarray
    """[3]"""
    rotation: np.ndarray
    """[3, 3]: world to camera"""
    intrinsics: np.ndarray
    """[3, 3]"""
    frame: np.ndarray
    """[2]: width and height, pixels"""

    @classmethod
    def draw(cls, rng: np.random.Generator, body: np.ndarray, cut: bool) -> View:
        """A camera that sees a body [V, 3]: all of it, or 40 to 90 % of it if `cut`. Raises NoView."""
        middle = (body.min(axis=0) + body.max(axis=0)) / 2
        size = np.linalg.norm(np.ptp(body, axis=0))
        for attempt in range(5000):
            fov = np.radians(rng.uniform(30, 110))
            frame = 1000 * np.array(
                [(1, 0.75), (1, 0.5625), (0.75, 1), (0.5625, 1)][rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])]
            )
            focal = 500 / np.tan(fov / 2)
            fill = (
                rng.uniform(0.9, 2.5) if cut else np.exp(rng.uniform(np.log(0.15), 0)) * (1 if attempt < 100 else 0.4)
            )
            distance = size * focal / (fill * frame.min())
            eye = middle + [0, rng.triangular(0.8, 1.4, 3) - middle[1], 0]
            rise = eye[1] - middle[1]
            if distance < 0.5 or abs(rise) > distance * np.sin(np.radians(55)):
                continue
            eye[2] += np.sqrt(distance**2 - rise**2)
            # position of the body's centre in the frame
            across, down = (rng.uniform(-0.5, 0.5, 2) * (0.8 if cut else 1 - 0.8 * min(fill, 1)) * frame) / focal
            tilt = np.arctan(down) - np.arctan2(rise, eye[2] - middle[2])
            roll = _turn(2, rng.normal(0, np.radians(5)))
            rotation = roll @ _turn(0, tilt) @ VIEW_AXES @ _turn(1, -np.arctan(across))
            intrinsics = np.array([[focal, 0, frame[0] / 2], [0, focal, frame[1] / 2], [0, 0, 1]])
            view = cls(eye, rotation, intrinsics, frame)
            points = view.camera(body)
            if points[:, 2].min() < 0.25:
                continue
            uv = project(points, intrinsics)
            inside = ((uv > 0) & (uv < frame)).all(axis=1).mean()
            if 0.4 < inside < 0.9 if cut else inside == 1:
                return view
        raise NoView("no camera sees the body as wanted")

    def camera(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] in the camera frame."""
        return (points - self.eye) @ self.rotation.T

    def crop_view(self, rng: np.random.Generator, body: np.ndarray, size: int) -> View:
        """The virtual camera, `size` pixels square, in which the body's box spans 55 to 75 % of the side."""
        uv = project(self.camera(body), self.intrinsics)
        low, high = uv.min(axis=0).clip(0, self.frame), uv.max(axis=0).clip(0, self.frame)
        side = (high - low).max() / rng.uniform(0.55, 0.75)
        crop_intrinsics, crop_from_camera = square_cameras(
            (low + high)[None] / 2, side.reshape(1), np.zeros(1), self.intrinsics, size
        )
        rotation = crop_from_camera[0] @ self.rotation
        return View(self.eye, rotation, crop_intrinsics[0], np.full(2, float(size)))

    def rays(self, height: int, width: int) -> np.ndarray:
        """float32 [height, width, 3]: world directions of the pixels of this camera's image at any resolution."""
        x, y = ((np.arange(n) + 0.5) * side / n for n, side in zip((width, height), self.frame))
        x, y = np.meshgrid(x, y)
        rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ (np.linalg.inv(self.intrinsics).T @ self.rotation)
        return rays.astype(np.float32)

    def shows(self, points: np.ndarray) -> np.ndarray:
        """bool [N]: which world points [N, 3] lie in the frame."""
        x, y, z = (self.camera(points) @ self.intrinsics.T).T
        return (z > 0) & (x > 0) & (x < self.frame[0] * z) & (y > 0) & (y < self.frame[1] * z)

    def frame_in(self, view: View, pixels: int) -> np.ndarray:
        """bool [pixels, pixels]: where the square image of another camera at the same place shows this one's frame."""
        h = self.intrinsics @ self.rotation @ view.rotation.T @ np.linalg.inv(view.intrinsics)
        at = (np.arange(pixels) + 0.5) * view.frame[0] / pixels
        x, y, z = ((row[0] * at + row[2] + row[1] * at[:, None]).astype(np.float32) for row in h)
        return (z > 0) & (x > 0) & (x < self.frame[0] * z) & (y > 0) & (y < self.frame[1] * z)


def _turn(axis: int, angle: float) -> np.ndarray:
    """Rotation matrix about one axis, counter-clockwise."""
    c, s = math.cos(angle), math.sin(angle)
    return np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), axis, axis=(0, 1))


def draw_bodies(rng: np.random.Generator, bodies: BodySampler, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [B, V, 3] and root rotations [B, 3, 3] of people for images of the parts [B]."""
    kinds: dict[str, Kind] = {"lying": "low", "children": "child"}
    drawn = {
        part: bodies.draw(rng, int((parts == part).sum()), kinds.get(PARTS[part], "adult"))
        for part in sorted(set(parts))
    }
    vertices, root = (np.empty((len(parts), *x.shape[1:]), x.dtype) for x in drawn[parts[0]])
    for part, (meshes, turns) in drawn.items():
        vertices[parts == part], root[parts == part] = meshes, turns
    return vertices, root


def standing(vertices: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Bodies [B, V, 3] with their root rotations on the floor of a level world: the lowest point has y = 0."""
    world = np.einsum("bij,bvj->bvi", root, vertices)
    world[..., 1] -= world[..., 1].min(axis=1, keepdims=True)
    return world


def draw_crops(
    rng: np.random.Generator,
    bodies: BodySampler,
    renderer: Renderer,
    count: int,
    shares: Sequence[float] = MIXTURE,
) -> LabelledCrops:
    """Images of random people, PARTS in their shares (relative), in random order."""
    bounds = np.cumsum(shares) / np.sum(shares)
    parts = rng.permutation(np.searchsorted(bounds, (np.arange(count) + 0.5) / count)).astype(np.int8)
    while True:
        vertices, root = draw_bodies(rng, bodies, parts)
        world = standing(vertices, root)
        crowd = iter(standing(*bodies.draw(rng, count // 2 + 1)))  # a third of the images needs one
        with suppress(NoView):
            real = [View.draw(rng, body, PARTS[part] == "truncated") for body, part in zip(world, parts)]
            break
    drawer = _SceneDrawer(rng, renderer)
    views = [camera.crop_view(rng, body, renderer.width) for camera, body in zip(real, world)]
    others, things = drawer.company(parts, world, real, views, crowd)
    scenes = [
        drawer.scene(np.stack([body, *beside]), view, front)
        for body, beside, view, front in zip(world, others, views, things)
    ]
    images, visible, boxes = [], [], []
    for b, (image, seen, who) in enumerate(renderer.render(scenes)):
        image = sensor.photograph(rng, image)
        beyond = ~real[b].frame_in(views[b], renderer.width)
        image[beyond], who[beyond] = 0, -1
        rows, columns = (np.flatnonzero((who == 0).any(axis=axis)) for axis in (1, 0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        images.append(image)
        visible.append(seen[0] & real[b].shows(world[b]))
    middle = world.mean(axis=1)
    return LabelledCrops(
        images=np.stack(images),
        vertices=vertices.astype(np.float16),
        rotation=np.stack([view.rotation for view in views]).astype(np.float32) @ root,
        translation=np.stack([view.camera(m) for view, m in zip(views, middle)]).astype(np.float32),
        focal=np.array([2 * view.intrinsics[0, 0] / renderer.width for view in views], np.float32),
        visible=np.stack(visible),
        box=np.array(boxes, np.float32),
        kind=parts,
    )


class _SceneDrawer:
    """Composes scenes around bodies that stand in the world."""

    def __init__(self, rng: np.random.Generator, renderer: Renderer) -> None:
        self.rng, self.size = rng, renderer.width
        self.plan = Rasteriser(renderer.topology.faces, renderer.height // PLAN, renderer.width // PLAN)

    def scene(self, people: np.ndarray, view: View, things: Sequence[Thing]) -> Scene:
        """People [P, V, 3] of the world, seen by the camera before a random background."""
        rng = self.rng
        rays = view.rays(self.size // 2, self.size // 2)
        distance = float(np.linalg.norm(people[0].mean(axis=0) - view.eye))
        floor = backgrounds.draw(rng, rays, view.eye[1], distance) * _shadows(people, view, rays)[..., None]
        background = cv2.resize(floor, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        appearances = [Appearance.draw(rng) for _ in people]
        return Scene(
            view.camera(people), appearances, view.intrinsics, view.rotation, Light.draw(rng), background, things
        )

    def company(
        self,
        parts: np.ndarray,
        world: np.ndarray,
        real: Sequence[View],
        views: Sequence[View],
        crowd: Iterator[np.ndarray],
    ) -> tuple[list[list[np.ndarray]], list[list[Thing]]]:
        """For each body [B, V, 3] other bodies and objects, which occlude it as its part requires."""
        rng = self.rng
        others = []
        for part, body, view in zip(parts, world, views):
            occluded = PARTS[part] == "occluded"
            count = rng.choice(3, p=[0.3, 0.5, 0.2] if occluded else [0.8, 0.15, 0.05])
            front = [occluded and rng.random() < 0.8 for _ in range(count)]
            others.append([_beside(rng, view.eye, body, other, before) for before, other in zip(front, crowd)])
        owners = [b for b, beside in enumerate(others) for _ in range(1 + len(beside))]
        depth = self._depths(
            np.stack([x for body, beside in zip(world, others) for x in (body, *beside)]), [views[b] for b in owners]
        )
        things = []
        for b, view in enumerate(views):
            own, *before = (d for d, owner in zip(depth, owners) if owner == b)
            target = np.isfinite(own) & real[b].frame_in(view, len(own))
            hidden = target & np.any([other < own for other in before], axis=0)
            least, most = HIDDEN if PARTS[parts[b]] == "occluded" else (0, HIDDEN[0])
            if hidden.sum() > (most if least else 0) * target.sum():
                others[b], hidden = [], target & False
            wanted = least or (PARTS[parts[b]] != "clear" and rng.random() < 0.3)
            things.append(self._cover(target, hidden, least, most) if wanted else [])
        return others, things

    def _cover(self, target: np.ndarray, hidden: np.ndarray, least: float, most: float) -> list[Thing]:
        """Objects with which the hidden share of a target, both bool [h, w], is between `least` and `most`."""
        rng = self.rng
        enough = rng.uniform(least, most)  # uniform over shares
        places = (np.argwhere(target)[:, ::-1] + 0.5) / len(target)
        things: list[Thing] = []
        for _ in range(100):
            if hidden.sum() >= enough * target.sum():
                break
            thing = Thing.draw(rng, places[rng.integers(len(places))] + rng.normal(0, 0.1, 2))
            more = hidden | (target & thing.cover(*target.shape))
            if more.sum() <= most * target.sum():
                things.append(thing)
                hidden = more
        return things

    @torch.no_grad()
    def _depths(self, bodies: np.ndarray, views: Sequence[View]) -> np.ndarray:
        """[N, h, w] metres: depth of bodies [N, V, 3] of the world in small images, infinite elsewhere."""
        points = np.stack([view.camera(body) for view, body in zip(views, bodies)])[:, None]
        intrinsics = np.stack([view.intrinsics / [[PLAN], [PLAN], [1]] for view in views])
        meshes, cameras = (torch.from_numpy(x.astype(np.float32)) for x in (points, intrinsics))
        return self.plan.rasterise(meshes, cameras)[1].view(len(bodies), self.plan.height, -1).numpy()


def _beside(rng: np.random.Generator, eye: np.ndarray, body: np.ndarray, other: np.ndarray, before: bool) -> np.ndarray:
    """Another body of the world, moved in front of the first one (`before`), or behind it."""
    away = body.mean(axis=0)[[0, 2]] - eye[[0, 2]]
    distance = np.linalg.norm(away)
    away = away / distance
    if before:
        place = distance * away * rng.uniform(0.4, 0.85) + rng.normal(0, 0.35) * away[::-1] * [1, -1]
    else:
        place = (distance + rng.uniform(0.5, 4)) * away + rng.uniform(-2, 2) * away[::-1] * [1, -1]
    shift = eye[[0, 2]] + place - other.mean(axis=0)[[0, 2]]
    return other + [shift[0], 0, shift[1]]


def _shadows(people: np.ndarray, view: View, rays: np.ndarray) -> np.ndarray:
    """Shadows of people [P, V, 3] on the floor at rays [H, W, 3]: factors [H, W], 1 without shadow."""
    cells, cell = 128, 0.05  # metres
    first = people[0].mean(axis=0) - cells * cell / 2
    points = people.reshape(-1, 3)
    at = ((points - first) / cell)[:, [2, 0]]
    bounds = ((0, cells), (0, cells))
    density, _, _ = np.histogram2d(at[:, 0], at[:, 1], cells, bounds, weights=np.exp(-points[:, 1] / 0.25))
    density = cv2.GaussianBlur(density.astype(np.float32), (0, 0), 2)
    dark = 0.7 * (1 - np.exp(-density / 4))
    reach = np.where(rays[..., 1] < -1e-3, view.eye[1] / np.maximum(-rays[..., 1], 1e-3), 1e4)
    where = ((view.eye + rays * reach[..., None] - first) / cell - 0.5).astype(np.float32)
    return 1 - cv2.remap(dark, where[..., 0].copy(), where[..., 2].copy(), cv2.INTER_LINEAR)
