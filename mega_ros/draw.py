"""Draws meshes with OpenCV and numpy: over an image, coloured by uncertainty, from the side.

Images are uint8 BGR. Vertices are metres in the camera frame (x right, y down, z forward).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mega_model.core.cameras import Camera

FINER = 2  # supersampling factor, for smooth outlines
OVER_IMAGE = 0.88  # opacity of a mesh over an image
TEXT = 0.45  # of OpenCV's font
WIDEST = 640  # pixels: larger images are shown this wide where time counts
NEAREST = 0.1  # metres: triangles closer to the camera than this are left out

PEOPLE = np.array([[214, 158, 92], [108, 158, 240], [134, 192, 118], [190, 138, 192], [110, 196, 222]], np.float32)
"""BGR colours of surfaces, by id."""
SCALE = np.array([[196, 98, 38], [232, 190, 140], [222, 222, 226], [120, 156, 244], [44, 36, 196]], np.float32)
"""BGR colours of sigma: blue (certain), grey, red (uncertain)."""
RED = 0.5
"""Metres: from this sigma on a vertex is red, where the scale must stay the same over time."""
PAPER = (250, 248, 247)
"""BGR colour of the background where there is no image."""


@dataclass(frozen=True)
class Surface:
    """For each of N covered pixels the visible triangle and its barycentric coordinates; the light at the vertices."""

    pixels: tuple[np.ndarray, np.ndarray]
    """rows and columns, [N] each."""
    corners: np.ndarray
    """int [N, 3]: indices into the flat list of vertices."""
    weights: np.ndarray
    """float32 [N, 3]."""
    light: np.ndarray
    """float32 [P*V]."""


def trace(vertices: np.ndarray, faces: np.ndarray, camera: Camera | np.ndarray, size: tuple[int, int]) -> Surface:
    """Surfaces [P, V, 3] with triangles [F, 3] in an image of `size` (width, height), by the painter's algorithm.

    camera: of that image, or its intrinsics [3, 3]. The surface has FINER times as many pixels in each direction.
    """
    camera = Camera.of(camera).moved(np.diag([FINER, FINER, 1]))
    width, height = size[0] * FINER, size[1] * FINER
    points = vertices.reshape(-1, 3).astype(np.float32)
    triangles = (faces[None] + vertices.shape[1] * np.arange(len(vertices))[:, None, None]).reshape(-1, 3)
    corners = camera.project(points)[triangles]  # [F, 3, 2]
    (ax, ay), (bx, by) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    area = ax * by - ay * bx  # negative: the front side is visible
    depth = points[triangles, 2]
    low, high = corners.min(axis=1), corners.max(axis=1)
    in_view = (high >= 0).all(axis=1) & (low <= [width, height]).all(axis=1)
    in_view &= (np.abs(corners) < 1e4 + max(width, height)).all(axis=(1, 2))
    drawn = np.flatnonzero((area < 0) & in_view & (depth.min(axis=1) > NEAREST))
    drawn = drawn[np.argsort(-depth[drawn].mean(axis=1))]

    index = np.full((height, width), -1, np.int32)
    shift = 4  # OpenCV takes coordinates in 1/16 pixel, with pixel centres at integers
    fixed = np.round((corners[drawn] - 0.5) * 2**shift).astype(np.int32)
    for face, triangle in zip(drawn.tolist(), fixed):
        cv2.fillConvexPoly(index, triangle, face, shift=shift)

    rows, columns = np.nonzero(index >= 0)
    seen = index[rows, columns]
    x, y = columns + 0.5 - corners[seen, 0, 0], rows + 0.5 - corners[seen, 0, 1]
    second, third = (by[seen] * x - bx[seen] * y) / area[seen], (ax[seen] * y - ay[seen] * x) / area[seen]
    weights = np.stack([1 - second - third, second, third], axis=1).astype(np.float32)
    weights = np.clip(weights, 0, 1)  # pixels at the outline may lie outside the triangle
    weights /= weights.sum(axis=1, keepdims=True)
    return Surface((rows, columns), triangles[seen], weights, light(points, triangles))


def light(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Brightness of points [N, 3] of triangles [F, 3]: ambient light, the camera's, and a lamp above and left of it."""
    normals = vertex_normals(points, triangles)
    facing = -np.einsum("ni,ni->n", normals, points) / (np.linalg.norm(points, axis=1) + 1e-9)
    lamp = np.array([-0.45, -0.7, -0.55]) / np.linalg.norm([-0.45, -0.7, -0.55])
    return (0.42 + 0.28 * np.maximum(facing, 0) + 0.42 * np.maximum(normals @ lamp, 0)).astype(np.float32)


def vertex_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """[N, 3] points and [F, 3] triangles -> unit normals [N, 3], outwards."""
    p0, p1, p2 = points[triangles[:, 0]], points[triangles[:, 1]], points[triangles[:, 2]]
    normal = np.cross(p1 - p0, p2 - p0)
    out = np.zeros_like(points)
    for axis in range(3):
        out[:, axis] = np.bincount(triangles.ravel(), np.repeat(normal[:, axis], 3), len(points))
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-12)


def paint(image: np.ndarray, surface: Surface, colours: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """A copy of `image` [H, W, 3] with a `surface` that was traced in it, vertex `colours` [P*V, 3] BGR."""
    out = image.copy()
    rows, columns = surface.pixels
    if not len(rows):
        return out
    y, x = rows.min() // FINER, columns.min() // FINER
    region = out[y : rows.max() // FINER + 1, x : columns.max() // FINER + 1]  # only the covered region
    height, width = region.shape[:2]
    lit = colours * surface.light[:, None]
    layer = np.zeros((height * FINER, width * FINER, 4), np.float32)  # BGR times coverage, and coverage
    place = rows - y * FINER, columns - x * FINER
    layer[(*place, slice(3))] = np.minimum(np.einsum("nk,nki->ni", surface.weights, lit[surface.corners]), 255)
    layer[(*place, 3)] = 1
    layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA) * alpha
    region[:] = region * (1 - layer[..., 3:]) + layer[..., :3] + 0.5
    return out


def label(image: np.ndarray, words: str, at: tuple[int, int]) -> None:
    """White text with a dark edge, readable on any image, in place; `at` is the left end of the base line."""
    for colour, thickness in (((20, 20, 20), 3), ((255, 255, 255), 1)):
        cv2.putText(image, words, at, cv2.FONT_HERSHEY_SIMPLEX, TEXT, colour, thickness, cv2.LINE_AA)


def paint_people(image: np.ndarray, surface: Surface, ids: np.ndarray) -> np.ndarray:
    """`paint` with a colour per person, and the ids [P] over the highest points of what is seen of each."""
    vertices = len(surface.light) // len(ids)
    out = paint(image, surface, np.repeat(PEOPLE[np.asarray(ids, int) % len(PEOPLE)], vertices, axis=0), OVER_IMAGE)
    owner = surface.corners[:, 0] // vertices
    for person, words in enumerate(map(str, ids.tolist())):
        mine = owner == person
        if mine.any():
            first = mine.argmax()  # pixels go from the top down
            x, y = surface.pixels[1][first] // FINER, surface.pixels[0][first] // FINER
            (width, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, TEXT, 1)
            label(out, words, (int(x) - width // 2, max(int(y) - 4, height + 2)))
    return out


def shrunk(image: np.ndarray, camera: Camera) -> tuple[np.ndarray, Camera]:
    """An image, at most WIDEST wide, and its camera."""
    height, width = image.shape[:2]
    if width <= WIDEST:
        return image, camera
    size = WIDEST, max(1, round(height * WIDEST / width))
    scale = np.diag([size[0] / width, size[1] / height, 1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), camera.moved(scale)


def sigma_colours(sigma: np.ndarray, limit: float) -> np.ndarray:
    """Sigma of any shape -> colours [N, 3]: blue at 0, red from `limit` metres; grey if it is NaN."""
    at = np.clip(np.ravel(sigma) / limit, 0, 1)
    known = np.isfinite(at)
    stops = np.linspace(0, 1, len(SCALE))
    colours = np.stack([np.interp(np.where(known, at, 0.5), stops, SCALE[:, c]) for c in range(3)], axis=1)
    return np.where(known[:, None], colours, 200).astype(np.float32)


def overlay(
    image: np.ndarray, vertices: np.ndarray, ids: np.ndarray, faces: np.ndarray, camera: Camera | np.ndarray
) -> np.ndarray:
    """The surfaces [P, V, 3] over their image, one colour per person, with their ids [P]."""
    if not len(vertices):
        return image.copy()
    return paint_people(image, trace(vertices, faces, camera, (image.shape[1], image.shape[0])), ids)


def side_view(
    vertices: np.ndarray, sigma: np.ndarray, faces: np.ndarray, size: tuple[int, int], limit: float
) -> np.ndarray:
    """Surfaces [P, V, 3] coloured by sigma [P, V], from the side; an image of `size` (width, height)."""
    paper = np.full((size[1], size[0], 3), PAPER, np.uint8)
    if not len(vertices):
        return paper
    turned, camera = from_the_side(vertices, size)
    return paint(paper, trace(turned, faces, camera, size), sigma_colours(sigma, limit))


def from_the_side(vertices: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Camera]:
    """People [P, V, 3] in the frame of a second camera that looks along x, and this camera: all fit into `size`."""
    centre = (vertices.max(axis=(0, 1)) + vertices.min(axis=(0, 1))) / 2
    x, y, z = np.moveaxis(vertices - centre, -1, 0)
    turned = np.stack([-z, y, x], axis=-1)  # the first camera is to the right
    extent = np.ptp(turned, axis=(0, 1))
    distance = 8 + extent.max()  # far away, so that the view is nearly orthographic
    turned[..., 2] += distance
    near = distance - extent[2] / 2
    focal = 0.9 * min(size[0] * near / max(extent[0], 1e-3), size[1] * near / max(extent[1], 1e-3))
    return turned, Camera(np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]]))
