"""Visibility of meshes in a camera: a z-buffer in plain torch (CPU or GPU).

B images, P people each, V vertices, F faces, H x W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mega_model.core.geometry import project

NEAR = 0.1
"""Metres: faces closer to the camera are not drawn, so a body behind the camera is invisible."""
TOLERANCE = 0.05
"""Metres: vertices this far behind the surface at their pixel count as visible, because it is steep at silhouettes."""


class Rasteriser:
    """The z-buffer of meshes with one set of faces, for images of one size."""

    def __init__(self, faces: np.ndarray, height: int, width: int, device: str = "cpu") -> None:
        self.height, self.width, self.device = height, width, torch.device(device)
        self.faces = torch.from_numpy(faces).long().to(self.device)

    def rasterise(self, vertices: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest front faces. vertices [B, P, V, 3] camera frame, intrinsics [B, 3, 3].

        Returns the face [B, H W] (index into the P * F faces of an image, -1: none) and its depth [B, H W] in metres.
        """
        batch, people, count = vertices.shape[:3]
        offsets = torch.arange(people, device=self.device)[:, None, None] * count
        faces = (self.faces + offsets).flatten(0, 1)
        points = vertices.flatten(1, 2)
        pixels = project(points, intrinsics)
        corner = torch.cat([pixels, points[..., 2:]], dim=-1)[:, faces]  # [B, P F, 3 corners, (x, y, z)]
        low, high = corner.amin(2), corner.amax(2)
        # pixel centres within the bounding box
        first, last = (low[..., :2] - 0.5).ceil(), (high[..., :2] - 0.5).floor()
        a, b, c = corner[..., :2].unbind(2)
        area = _cross(b - a, c - a)
        size = torch.tensor([self.width, self.height], device=self.device)
        drawn = (
            (area < 0) & (low[..., 2] > NEAR) & (last >= first).all(-1) & (last >= 0).all(-1) & (first < size).all(-1)
        )
        extent = (last - first).amax(-1) + 1
        empty = torch.iinfo(torch.int64).max
        # depth in the upper bits, face in the lower: the minimum is the nearest face. Positive floats sort as integers.
        buffer = torch.full((batch * self.height * self.width,), empty, device=self.device)
        smaller, limit = 0, 2
        # group faces of similar size, otherwise the largest one determines the cost
        while smaller < max(self.width, self.height):
            pick, face = (drawn & (extent > smaller) & (extent <= limit)).nonzero(as_tuple=True)
            smaller, limit = limit, limit * 2
            at_once = 200_000_000 // limit**2 + 1  # bounds the memory
            for p, f in zip(pick.split(at_once), face.split(at_once)):
                self._draw(buffer, corner[p, f], area[p, f], first[p, f], p, f, smaller)
        buffer = buffer.view(batch, -1)
        face = torch.where(buffer == empty, -1, buffer & 0xFFFFFFFF)
        depth = (buffer >> 32).int().view(torch.float32)
        return face, torch.where(face < 0, torch.inf, depth)

    def _draw(
        self, buffer: Tensor, corner: Tensor, area: Tensor, first: Tensor, pick: Tensor, face: Tensor, extent: int
    ) -> None:
        """Faces [N] whose bounding boxes are at most `extent` pixels wide into the buffer."""
        k = torch.arange(extent, device=self.device)
        x = (first[:, :1] + k)[:, None, :] + 0.5
        y = (first[:, 1:] + k)[:, :, None] + 0.5

        def edge(i: int, j: int) -> Tensor:
            (xi, yi), (xj, yj) = corner[:, i, :2].T[..., None, None], corner[:, j, :2].T[..., None, None]
            return ((xj - xi) * (y - yi) - (yj - yi) * (x - xi)) / area[:, None, None]

        w2, w0 = edge(0, 1), edge(1, 2)
        w1 = 1 - w0 - w2
        inside = (w0 >= 0) & (w1 >= 0) & (w2 >= 0) & (x > 0) & (x < self.width) & (y > 0) & (y < self.height)
        n, row, column = inside.nonzero(as_tuple=True)
        near = 1 / corner[n, :, 2]
        depth = 1 / (
            w0[n, row, column] * near[:, 0] + w1[n, row, column] * near[:, 1] + w2[n, row, column] * near[:, 2]
        )
        pixel = (pick[n] * self.height + y[n, row, 0].long()) * self.width + x[n, 0, column].long()
        buffer.scatter_reduce_(0, pixel, (depth.view(torch.int32).long() << 32) | face[n], "amin")

    def seen(self, vertices: Tensor, intrinsics: Tensor, depth: Tensor) -> Tensor:
        """bool [B, P, V]: vertices in the image that face the camera and are not occluded; depth: from `rasterise`."""
        column, row = project(vertices, intrinsics[:, None]).floor().long().unbind(-1)
        inside = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        pixel = row.clamp(0, self.height - 1) * self.width + column.clamp(0, self.width - 1)
        surface = depth.gather(1, pixel.flatten(1)).view_as(pixel)
        turned = (self.normals(vertices) * vertices).sum(-1) < 0
        return inside & turned & (vertices[..., 2] > NEAR) & (vertices[..., 2] < surface + TOLERANCE)

    def normals(self, vertices: Tensor) -> Tensor:
        """Outwards, of length 1: [B, P, V, 3]."""
        a, b, c = (vertices[..., self.faces[:, i], :] for i in range(3))
        across = torch.linalg.cross(b - a, c - a, dim=-1)
        normals = torch.zeros_like(vertices)
        for i in range(3):
            normals.index_add_(2, self.faces[:, i], across)
        return F.normalize(normals, dim=-1)


@torch.no_grad()
def facing(meshes: np.ndarray, faces: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Vertices bool [B, V] of meshes [B, V, 3] (camera frame, metres) that are not hidden by their own body.

    The view is along z, nearly orthographic, in an image that the body fills.
    """
    side, distance = 256, 20.0  # pixels, metres
    points = torch.from_numpy(np.asarray(meshes, np.float32)).to(device)
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    points = points - (low + high) / 2
    reach = (high - low)[:, 0].amax(-1) / 2
    points[..., 2] += distance + reach[:, None]
    intrinsics = torch.eye(3, device=device).repeat(len(points), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = distance / reach * side / 2
    intrinsics[:, :2, 2] = side / 2
    z_buffer = Rasteriser(faces, side, side, device)
    bodies = points[:, None]
    return z_buffer.seen(bodies, intrinsics, z_buffer.rasterise(bodies, intrinsics)[1])[:, 0].cpu().numpy()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
