"""Crops, and the cameras that see them: pure functions, no state. Lenses are in `cameras`.

Frames (metres, radians): *canonical* is SMPL's (x to the person's left, y up, z forward, vertex mean at the origin);
*camera* is REP-103 optical (x right, y down, z forward). A crop is the image of a virtual pinhole camera at the same
position whose optical axis passes through the centre of the box, so one rotation maps it to the full camera exactly.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from mega_model.core.cameras import Camera

STEP = 4
"""Pixels of a crop. Between two that are so far apart, what the lens does differs from a straight line by less than 0.1
pixels for crops of up to 60 degrees."""

TO_CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
"""[3, 3]: from OpenCV's pixels, whose centres are at integers, to those of K, where they are at half-integers."""


def crop_translation(camera: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """The translation [..., 3] of a body in the crop's camera, metres, from a weak-perspective camera.

    camera [..., 3] = (s, tx, ty); focal [...]: of the crop's camera, in half crop sides.
    """
    return np.concatenate([camera[..., 1:], (focal / np.maximum(camera[..., 0], 1e-3))[..., None]], axis=-1)


def project(points: Any, intrinsics: Any) -> Any:
    """Perspective: points [..., V, 3] in the camera frame, intrinsics [..., 3, 3] -> pixels [..., V, 2].

    Works on numpy arrays and torch tensors.
    """
    focal = intrinsics[..., [0, 1], [0, 1]]
    return focal[..., None, :] * points[..., :2] / points[..., 2:] + intrinsics[..., None, :2, 2]


def intrinsics_from_fov(width: int, height: int, fov: float) -> np.ndarray:
    """Intrinsics [3, 3] of a centred pinhole camera whose larger image side spans `fov` radians."""
    focal = max(width, height) / 2 / np.tan(fov / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def look_at(direction: np.ndarray) -> np.ndarray:
    """The smallest rotations [P, 3, 3] that map camera directions [P, 3] to +z; they have no roll."""
    z = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    x, y, w = z[:, 0], z[:, 1], z[:, 2]
    k = 1 / (1 + w)  # w > 0, as visible points lie in front of the camera
    rows = [1 - k * x * x, -k * x * y, -x, -k * x * y, 1 - k * y * y, -y, x, y, w]
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)


def box_squares(boxes: np.ndarray, margin: float, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The squares of crops around boxes: centre [P, 2], side [P] and roll [P], as `square_cameras` takes them.

    boxes [P, 4]: x0, y0, x1, y1, pixels. A square has `margin` times the larger side of its box.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    side = margin * np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return (boxes[:, :2] + boxes[:, 2:]) / 2, side, np.full(len(boxes), roll)


def square_cameras(
    centre: np.ndarray, side: np.ndarray, roll: np.ndarray, camera: Camera | np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Virtual cameras that look at squares of an image, turned about the optical axis.

    centre [P, 2] and side [P]: of the squares, pixels. roll [P], radians: the crop's x axis is the direction
    (cos roll, sin roll) of the image, so a positive roll is clockwise in the image. camera: that of the image, or its
    intrinsics [3, 3] or [P, 3, 3].

    Returns `crop_intrinsics` [P, 3, 3] of crops of `size` pixels square, whose principal point is the centre, and the
    rotations `crop_from_camera` [P, 3, 3] from the full camera to each virtual camera; NaN where the centre has no ray.
    """
    camera = Camera.of(camera)
    crop_intrinsics = np.zeros((len(centre), 3, 3))
    crop_intrinsics[:, 0, 0] = crop_intrinsics[:, 1, 1] = size / camera.spans(centre, side, roll)
    crop_intrinsics[:, :2, 2] = size / 2
    crop_intrinsics[:, 2, 2] = 1
    rolled = np.zeros((len(centre), 3, 3))
    rolled[:, 0, 0] = rolled[:, 1, 1] = np.cos(roll)
    rolled[:, 0, 1], rolled[:, 1, 0], rolled[:, 2, 2] = np.sin(roll), -np.sin(roll), 1
    return crop_intrinsics, rolled @ look_at(camera.rays(centre))


class Pyramid:
    """An image in full, half, quarter, ... size, each made when first asked for, so that crops share them.

    OpenCV averages 2 x 2 pixels several times as fast as any other number.
    """

    def __init__(self, image: np.ndarray) -> None:
        """image: [H, W, C]."""
        self._sizes = [image]
        self._padded: dict[int, np.ndarray] = {}

    @classmethod
    def of(cls, image: np.ndarray | Pyramid) -> Pyramid:
        """A pyramid as it is, or that of an image."""
        return image if isinstance(image, Pyramid) else cls(image)

    @property
    def full(self) -> np.ndarray:
        return self._sizes[0]

    def at(self, shrink: float) -> np.ndarray:
        """The smallest one that is not smaller than the image divided by `shrink`; the image itself below 2."""
        level = int(np.log2(max(shrink, 1)))
        while len(self._sizes) <= level:
            height, width = self._sizes[-1].shape[:2]
            half = max(1, width // 2), max(1, height // 2)
            self._sizes.append(cv2.resize(self._sizes[-1], half, interpolation=cv2.INTER_AREA))
        return self._sizes[level]

    def padded(self, shrink: float) -> np.ndarray:
        """The same; colours get a fourth channel, because OpenCV warps four in two thirds of the time of three."""
        source = self.at(shrink)
        if self.full.shape[2] != 3:
            return source
        if len(source) not in self._padded:
            self._padded[len(source)] = cv2.cvtColor(source, cv2.COLOR_BGR2BGRA)
        return self._padded[len(source)]


def crop_images(
    image: np.ndarray | Pyramid,
    camera: Camera | np.ndarray,
    crop_intrinsics: np.ndarray,
    crop_from_camera: np.ndarray,
    size: int,
) -> np.ndarray:
    """The images of the virtual cameras: image [H, W, C] -> crops uint8 [P, size, size, C], black outside.

    image: its pyramid, where several calls crop the same one. camera: that of the image, or its intrinsics [3, 3]. A
    lens is undone in the crops only, not in all of the image.
    """
    camera, pyramid = Camera.of(camera), Pyramid.of(image)
    height, width, channels = pyramid.full.shape
    out = np.zeros((len(crop_intrinsics), size, size, channels), np.uint8)
    to_rays = np.linalg.inv(crop_intrinsics)
    # a homography would mirror what is behind the camera into the crop
    mapped = _reach_behind(to_rays, crop_from_camera, size) | bool(camera.lens)
    to_image = camera.K @ crop_from_camera.swapaxes(1, 2) @ to_rays @ TO_CENTRE
    for p, shrink in enumerate(camera.focal / crop_intrinsics[:, 0, 0]):
        # downscale by averaging first, because warping alone would alias
        source = pyramid.padded(shrink)
        scale = np.array([source.shape[1] / width, source.shape[0] / height])
        if mapped[p]:
            crop = _mapped(source, scale, camera, crop_intrinsics[p], crop_from_camera[p], size)
        else:
            crop = _flat(source, scale, to_image[p], size)
        if channels == 3:
            cv2.cvtColor(crop, cv2.COLOR_BGRA2BGR, dst=out[p])
        else:
            out[p] = crop.reshape(out[p].shape)
    return out


def _flat(source: np.ndarray, scale: np.ndarray, to_image: np.ndarray, size: int) -> np.ndarray:
    """One crop of an image without distortion. scale [2], x and y: from the camera's pixels to those of `source`.

    to_image [3, 3]: from OpenCV's pixels of the crop to the camera's.
    """
    # OpenCV has pixel centres at integers, K at half-integers
    to_source = np.array([[scale[0], 0, -0.5], [0, scale[1], -0.5], [0, 0, 1]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(source, to_source @ to_image, (size, size), flags=how)


def _reach_behind(to_rays: np.ndarray, crop_from_camera: np.ndarray, size: int) -> np.ndarray:
    """bool [P]: whether a corner of a crop lies 90 degrees or more off the axis of the image's camera."""
    corners = to_rays @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]])
    return (crop_from_camera[:, None, :, 2] @ corners).min(axis=(1, 2)) <= 0


def _mapped(
    source: np.ndarray, scale: np.ndarray, camera: Camera, crop: np.ndarray, rotation: np.ndarray, size: int
) -> np.ndarray:
    """One crop of any image. Every `STEP`-th pixel goes through the lens, those between are interpolated."""
    nodes = (np.arange(-1, size / STEP + 1) + 0.5) * STEP  # as `cv2.resize` places them; one more at each end
    across = ((nodes - crop[0, 2]) / crop[0, 0]).astype(np.float32)
    down = ((nodes - crop[1, 2]) / crop[1, 1]).astype(np.float32)[:, None]
    pixels = np.stack(camera.pixels(*(across * a + (down * b + c) for a, b, c in rotation.T.tolist())), axis=-1)
    pixels = pixels * scale.astype(np.float32) - np.float32(0.5)  # OpenCV has pixel centres at integers
    pixels = cv2.resize(pixels, None, fx=STEP, fy=STEP)[STEP : STEP + size, STEP : STEP + size]
    pixels = np.nan_to_num(pixels, nan=-size)
    return cv2.remap(source, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR)


def place(
    vertices: np.ndarray, body_to_crop: np.ndarray, translation: np.ndarray, crop_from_camera: np.ndarray
) -> np.ndarray:
    """Canonical points into the full camera.

    vertices [..., V, 3]: canonical. body_to_crop [..., 3, 3] and translation [..., 3]: from the canonical frame to the
    crop's camera. crop_from_camera [..., 3, 3]: what `square_cameras` gives. Returns [..., V, 3], metres, camera frame.
    """
    return (vertices @ body_to_crop.swapaxes(-1, -2) + translation[..., None, :]) @ crop_from_camera


def in_crops(
    points: np.ndarray, camera: Camera | np.ndarray, crop_intrinsics: np.ndarray, crop_from_camera: np.ndarray
) -> np.ndarray:
    """Points [P, N, 3] (x, y in pixels of the image, score) in crop coordinates, -1 to 1.

    camera: that of the image, or its intrinsics [3, 3] or [P, 3, 3]. crop_intrinsics and crop_from_camera [P, 3, 3]:
    what `square_cameras` gives. A point behind the crop's camera, or beyond what the lens shows, gets the score 0.
    """
    camera = camera if isinstance(camera, Camera) else Camera(camera[..., None, :, :])
    in_crop = np.nan_to_num(camera.rays(points[..., :2])) @ crop_from_camera.transpose(0, 2, 1)
    in_front = in_crop[..., 2:] > 0.1
    focal = crop_intrinsics[:, None, :1, 0] / crop_intrinsics[:, None, :1, 2]
    xy = focal * in_crop[..., :2] / np.where(in_front, in_crop[..., 2:], 1)
    return np.concatenate([xy, points[..., 2:] * in_front], axis=-1)
