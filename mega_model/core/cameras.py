"""A camera: directions in its frame to pixels, through its lens, and back. Pure functions of numpy arrays.

Frame: REP-103 optical (x right, y down, z forward). Pixel (0, 0) is the image's upper left corner. The lens models are
those of sensor_msgs/distortion_models.hpp, with OpenCV's formulas and order of coefficients. OpenCV's own inverses are
not used: its fixed-point iteration fails near the edge of wide lenses, and nothing tells where a polynomial turns back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from mega_model.core.errors import InputError, numbers

LENSES = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
"""Numbers of coefficients of each lens model. 12: with a thin prism; 14: with a tilted sensor, too."""

WIDEST_CROP = np.radians(60.0)
"""Half of the angle that a virtual camera spans at most. A flat image that spans more shows people stretched, and the
distances that follow from it are a few centimetres."""
SAMPLES = 2000
"""Angles at which a lens is sampled: to find its limit, and where to start its inversion."""
NEWTON_STEPS = 8
NARROWEST = 1e-3
"""Of what an image spans at depth 1: the focal length would be 1000 times its side."""
BEYOND = np.cos(np.radians(89.9))
"""Depth of a unit vector up to which it counts as 90 degrees off the axis: no point at depth 1 lies there."""


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics and lens. Raises InputError that names the argument.

    A pixel is K @ distorted(point). Without a lens, K may be a stack [P, 3, 3] of as many cameras.
    """

    K: np.ndarray
    """[3, 3], pixels: fx s cx, 0 fy cy, 0 0 1."""
    lens: str = ""
    """One of LENSES; empty: a pinhole."""
    distortion: np.ndarray | Sequence[float] = ()
    """Of the lens: k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tx ty]]]]; of equidistant: k1 k2 k3 k4."""

    def __post_init__(self) -> None:
        K, distortion = numbers("K", self.K), numbers("distortion", self.distortion)
        good = K.shape[-2:] == (3, 3) and np.isfinite(K).all()
        good = good and (abs(K[..., 2, :] - [0, 0, 1]) <= [1e-8, 1e-8, 1e-5]).all()
        if not good or K[..., 1, 0].any():
            raise InputError(f"K: must be a finite 3 x 3 camera matrix fx s cx 0 fy cy 0 0 1, it is {K.tolist()}")
        if self.lens and self.lens not in LENSES:
            raise InputError(f"lens: '{self.lens}' is unknown; known are {', '.join(LENSES)}")
        counts = LENSES.get(self.lens, (0,))
        if distortion.shape not in [(count,) for count in counts]:
            model, wanted = self.lens or "no lens", " or ".join(map(str, counts))
            raise InputError(f"distortion: {model} has {wanted} coefficients, these are {distortion.size}")
        if not np.isfinite(distortion).all():
            raise InputError(f"distortion: must be finite, it is {distortion.tolist()}")
        if self.lens and K.ndim > 2:
            raise InputError(f"K: a camera with a lens has one 3 x 3 matrix, this has the shape {list(K.shape)}")
        pinhole = self.lens != "equidistant" and not distortion.any()
        lens, distortion = ("", distortion[:0]) if pinhole else (self.lens, distortion)
        for name, value in (("K", K), ("distortion", distortion), ("lens", lens)):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, camera: Camera | ArrayLike) -> Camera:
        """A camera as it is, or that of intrinsics [3, 3] without a lens. Raises InputError."""
        return camera if isinstance(camera, Camera) else cls(numbers("K", camera))

    @property
    def focal(self) -> np.ndarray:
        """[...]: the focal length, pixels; the geometric mean of those in x and y."""
        return np.sqrt(self.K[..., 0, 0] * self.K[..., 1, 1])

    def must_fit(self, width: int, height: int, matrix: str = "K", distortion: str = "distortion") -> None:
        """Raises InputError if focal lengths or lens cannot be those of an image of this size.

        matrix, distortion: what the user calls them.
        """
        if self.K.ndim > 2:
            raise InputError(f"{matrix}: must be one 3 x 3 camera matrix, its shape is {list(self.K.shape)}")
        larger = max(width, height)
        # 1/50 of the image side is a field of view of 175 degrees without a lens: probably the unit is not pixels
        if not all(larger / 50 < focal < 1000 * larger for focal in (self.K[0, 0], self.K[1, 1])):
            focals = f"{self.K[0, 0]:g}, {self.K[1, 1]:g}"
            raise InputError(
                f"{matrix}: focal lengths {focals} pixels do not fit an image of {width} x {height}; calibrate the "
                "camera anew"
            )
        given = self.lens, tuple(map(float, self.distortion)), tuple(map(float, self.K.ravel()))
        if self.lens and not _span(*given, width, height) > NARROWEST:
            raise InputError(
                f"{distortion}: the image shows next to nothing through {self.lens}, {list(given[1])}; calibrate the "
                "camera anew"
            )

    # -------------------------------------------------------------------------------------------------------- to pixels

    def moved(self, matrix: np.ndarray) -> Camera:
        """The camera of an image whose pixels were moved by matrix [3, 3], for example scaled."""
        return replace(self, K=matrix @ self.K)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] -> pixels [..., 2]; NaN where the lens shows nothing: behind it, or beyond its limit."""
        return np.stack(self.pixels(*np.moveaxis(np.asarray(points), -1, 0)), axis=-1)

    def pixels(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`project` of coordinates [...], in the precision that they have."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.lens == "equidistant":
                radius = np.hypot(x, y)
                angle = np.arctan2(radius, z)
                stretch = np.where(radius > 0, self._equidistant(angle)[0] / radius, 1 / z)
                x, y, seen = x * stretch, y * stretch, angle <= self._limit
            else:
                x, y, seen = x / z, y / z, z > 0
                if self.lens:
                    seen &= x * x + y * y <= np.tan(self._limit) ** 2
                    x, y = self._tilted(*self._brown(x, y)[:2])
            nowhere = np.where(seen, 0, np.nan).astype(np.result_type(x))
            (fx, skew, cx), (_, fy, cy) = self.K[:2].tolist()
            return fx * x + skew * y + (cx + nowhere), fy * y + (cy + nowhere)

    # ---------------------------------------------------------------------------------------------------------- to rays

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] -> the points [..., 3] at depth 1 that they show.

        NaN where there is none: 90 degrees or more off the axis, or beyond the limit of the lens.
        """
        if not self.lens:
            return self._undistorted(pixels)
        directions, seen = self._directions(pixels)
        depth = directions[..., 2:]
        seen = seen[..., None] & (depth > BEYOND)
        return np.where(seen, directions / np.where(seen, depth, 1), np.nan)

    def spans(self, centre: np.ndarray, side: np.ndarray, roll: np.ndarray) -> np.ndarray:
        """The sides [P], at depth 1, of what virtual cameras that look at squares of the image have to show.

        centre [P, 2] and side [P]: of the squares, pixels. roll [P]: as for `geometry.square_cameras`. Not more than
        `WIDEST_CROP` allows.
        """
        if not self.lens:
            # off the axis, a pixel spans a smaller angle, so take the focal length along the ray
            half = np.arctan(side / (2 * np.linalg.norm(self._undistorted(centre), axis=-1) * self.focal))
        else:
            right = np.stack([np.cos(roll), np.sin(roll)], axis=-1) * side[:, None] / 2
            ends = np.stack([right, -right, right[:, ::-1] * [-1, 1], right[:, ::-1] * [1, -1]])
            towards, *edges = self._directions(np.stack([centre, *(centre + ends)]))[0]
            cosines = np.einsum("epi,pi->ep", edges, towards)
            right_left, down_up = np.arccos(np.clip(cosines, -1, 1)).reshape(2, 2, -1).mean(axis=1)
            half = np.maximum(right_left, down_up)
        return 2 * np.tan(np.minimum(half, WIDEST_CROP))

    def _undistorted(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] -> [..., 3]: what a pinhole with this K would see there."""
        pixels, K = np.asarray(pixels, np.float64), self.K
        y = (pixels[..., 1] - K[..., 1, 2]) / K[..., 1, 1]
        x = (pixels[..., 0] - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]
        return np.stack([x, y, np.ones_like(x)], axis=-1)

    def _directions(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With a lens: unit vectors [..., 3] of pixels [..., 2], and whether it shows anything there, bool [...].

        A pixel beyond its limit gets the direction of the limit on its side.
        """
        ray = self._undistorted(pixels)
        x, y = self._level(ray[..., 0], ray[..., 1])
        wanted = np.hypot(x, y)
        angles, radii = self._samples
        angle = np.interp(wanted, radii, angles)
        seen = wanted <= radii[-1]
        if self.lens == "equidistant":
            for _ in range(NEWTON_STEPS):
                radius, slope = self._equidistant(angle)
                angle = np.clip(angle - (radius - wanted) / np.maximum(slope, 1e-9), 0, self._limit)
        shrink = np.sin(angle) / np.where(wanted > 0, wanted, 1)
        ray = np.stack([x * shrink, y * shrink, np.cos(angle)], axis=-1)
        if self.lens != "equidistant":
            ray[seen], found = self._inverse_brown(ray[seen], x[seen], y[seen])
            seen[seen] = found
        return ray / np.linalg.norm(ray, axis=-1, keepdims=True), seen

    # ------------------------------------------------------------------------------------------------------- the lenses

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Angles off the axis [N], rising, and the distances [N] from the centre at which they are seen.

        They end where the distance would become smaller again: there, the polynomial is no lens any more.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.lens == "equidistant":
                angles = np.linspace(0, np.pi, SAMPLES)
                radii = self._equidistant(angles)[0]
            else:
                angles = np.linspace(0, np.arccos(BEYOND), SAMPLES)
                radii = np.tan(angles) * self._radial(np.tan(angles) ** 2)[0]
            rises = np.diff(radii) > 0
        end = SAMPLES if rises.all() else int(np.argmin(rises)) + 1
        return angles[:end], radii[:end]

    @property
    def _limit(self) -> float:
        return float(self._samples[0][-1])

    def _equidistant(self, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distance from the centre at which a ray is seen, in focal lengths, and its derivative."""
        k1, k2, k3, k4 = np.asarray(self.distortion).tolist()
        square = angle * angle
        radius = angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        return radius, 1 + square * (3 * k1 + square * (5 * k2 + square * (7 * k3 + square * 9 * k4)))

    @cached_property
    def _coefficients(self) -> list[float]:
        """All 14: k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tx ty."""
        given = np.asarray(self.distortion).tolist()
        return given + [0.0] * (14 - len(given))

    def _radial(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of plumb_bob and rational_polynomial: the factor, and its derivative by the squared radius."""
        k1, k2, _, _, k3, k4, k5, k6 = self._coefficients[:8]
        above = 1 + square * (k1 + square * (k2 + square * k3))
        slope = k1 + square * (2 * k2 + square * 3 * k3)
        if not (k4 or k5 or k6):
            return above, slope
        below = 1 + square * (k4 + square * (k5 + square * k6))
        factor = above / below
        return factor, (slope - factor * (k4 + square * (2 * k5 + square * 3 * k6))) / below

    def _brown(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, y at depth 1 -> where they are seen, without the tilt; the radial factor and its derivative."""
        _, _, p1, p2, _, _, _, _, s1, s2, s3, s4, _, _ = self._coefficients
        square, product = x * x + y * y, x * y
        factor, slope = self._radial(square)
        across = x * factor + 2 * p1 * product + p2 * (square + 2 * x * x) + square * (s1 + square * s2)
        down = y * factor + p1 * (square + 2 * y * y) + 2 * p2 * product + square * (s3 + square * s4)
        return across, down, factor, slope

    def _inverse_brown(self, start: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Newton's method from rays `start` [N, 3] to those that are seen at x, y [N], and whether it got there [N]."""
        _, _, p1, p2, _, _, _, _, s1, s2, s3, s4, _, _ = self._coefficients
        u, v = start[:, 0] / start[:, 2], start[:, 1] / start[:, 2]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for _ in range(NEWTON_STEPS):
                across, down, factor, slope = self._brown(u, v)
                left, up = across - x, down - y
                if np.abs([left, up]).max(initial=0) < 1e-12:
                    break
                square = u * u + v * v
                prism_x, prism_y = 2 * (s1 + 2 * s2 * square), 2 * (s3 + 2 * s4 * square)
                xx = factor + u * (2 * u * slope + 6 * p2 + prism_x) + 2 * p1 * v
                xy = v * (2 * u * slope + 2 * p2 + prism_x) + 2 * p1 * u
                yx = u * (2 * v * slope + 2 * p1 + prism_y) + 2 * p2 * v
                yy = factor + v * (2 * v * slope + 6 * p1 + prism_y) + 2 * p2 * u
                area = xx * yy - xy * yx
                u, v = u - (yy * left - xy * up) / area, v - (xx * up - yx * left) / area
            across, down, _, _ = self._brown(u, v)
            found = np.hypot(across - x, down - y) < 1e-6 * (1 + np.hypot(x, y))
            found &= u * u + v * v <= np.tan(self._limit) ** 2
        return np.where(found[:, None], np.stack([u, v, np.ones_like(u)], axis=-1), start), found

    @cached_property
    def _tilt(self) -> np.ndarray | None:
        """[3, 3]: from the level image to that on a tilted sensor, as OpenCV has it."""
        tx, ty = self._coefficients[12:]
        if not (tx or ty):
            return None
        about_x = np.array([[1, 0, 0], [0, np.cos(tx), np.sin(tx)], [0, -np.sin(tx), np.cos(tx)]])
        about_y = np.array([[np.cos(ty), 0, -np.sin(ty)], [0, 1, 0], [np.sin(ty), 0, np.cos(ty)]])
        turn = about_y @ about_x
        return np.array([[turn[2, 2], 0, -turn[0, 2]], [0, turn[2, 2], -turn[1, 2]], [0, 0, 1]]) @ turn

    def _tilted(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (x, y) if self._tilt is None else _mapped(self._tilt, x, y)

    def _level(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `_tilted`."""
        return (x, y) if self._tilt is None else _mapped(np.linalg.inv(self._tilt), x, y)


def _mapped(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x, y through a homography [3, 3]."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    below = g * x + h * y + i
    return (a * x + b * y + c) / below, (d * x + e * y + f) / below


@lru_cache(maxsize=64)
def _span(lens: str, distortion: tuple[float, ...], K: tuple[float, ...], width: int, height: int) -> float:
    """What an image spans at depth 1. Kept, because each image is checked, and lenses seldom change."""
    camera = Camera(np.reshape(K, (3, 3)), lens, distortion)
    return float(
        camera.spans(np.array([[width / 2, height / 2]]), np.array([float(max(width, height))]), np.zeros(1))[0]
    )
