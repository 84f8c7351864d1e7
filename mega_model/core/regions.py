"""Where a person's crops are: the first around the box, the next ones around the region of the whole body.

A region is a square, rolled so that the body is upright in it. Regions are computed from BlazePose landmarks or COCO
keypoints, in any image coordinates with x right and y down (pixels or crop coordinates), of any leading shape [...].

A region has a centre [..., 2], a side [...] (in the units of the input) and a roll [...], radians: the clockwise
rotation of the body from upright, -pi to pi.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mega_model.core.cameras import Camera
from mega_model.core.geometry import square_cameras

BOX_MARGIN = 1.2
"""Side of a person's first crop over the larger side of the box, as in SPIN: the mean in training."""
PASSES = 3
"""Crops of a person for a backbone with landmarks, unless keypoints place one; the last one's features are used."""
MARGIN = 1.25
"""Side of a region over the diameter of the circle around the body: the value that BlazePose was trained with."""
Cameras = tuple[np.ndarray, np.ndarray]
"""Of crops, what `geometry.square_cameras` gives: crop_intrinsics and crop_from_camera, both [P, 3, 3]."""
SHOULDERS, HIPS = [5, 6], [11, 12]  # of the COCO keypoints

# The radius of BlazePose's circle over the torso's length for upright people, and over the distance of the farthest
# keypoint for foreshortened torsos or extended limbs. Fitted to BlazePose's landmarks of 54 people in photographs; the
# mean deviation from its circles is 7 %.
_OVER_TORSO, _OVER_FARTHEST = 1.75, 1.1


def region_of_interest(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BlazePose's next region: landmarks [..., 39, >= 2] -> centre, side, roll.

    Landmark 33 is the midpoint of the hips. Landmark 34 lies on the circle around the body, towards the head.
    """
    landmarks = np.asarray(landmarks)[..., :2]
    return _region(landmarks[..., 33, :], landmarks[..., 34, :] - landmarks[..., 33, :])


def keypoint_region(
    keypoints: np.ndarray, threshold: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same region from COCO's 17 keypoints [..., 17, 3] (x, y, score) -> centre, side, roll, found.

    found: bool [...], False where the region is not valid: a shoulder or a hip scores less than `threshold`, or the
    shoulders' middle is that of the hips, so that the body has no direction.
    """
    keypoints = np.asarray(keypoints)
    seen = keypoints[..., 2] >= threshold
    centre, shoulders = (keypoints[..., pair, :2].mean(-2) for pair in (HIPS, SHOULDERS))
    torso = shoulders - centre
    length = np.linalg.norm(torso, axis=-1)
    distances = np.linalg.norm(keypoints[..., :2] - centre[..., None, :], axis=-1)
    radius = np.maximum(_OVER_TORSO * length, _OVER_FARTHEST * (seen * distances).max(-1))
    found = np.asarray(seen[..., SHOULDERS + HIPS].all(-1) & (length > 0))
    return *_region(centre, torso * (radius / np.where(length > 0, length, 1))[..., None]), found


def _region(centre: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The region of a circle, from its centre and the vector [..., 2] to the circle in the body's upward direction."""
    return centre, 2 * MARGIN * np.linalg.norm(up, axis=-1), np.arctan2(up[..., 0], -up[..., 1])


def last_cameras(
    squares: tuple[np.ndarray, np.ndarray, np.ndarray],
    keypoints: np.ndarray | None,
    camera: Camera | np.ndarray,
    size: int,
    passes: int,
    landmarks: Callable[[np.ndarray, Cameras], np.ndarray],
) -> Cameras:
    """The virtual cameras of P people's last crops.

    squares (centre, side and roll of the first crops) and camera: as `square_cameras` takes them. keypoints
    [P, 17, 3]: x, y in pixels and score. If there are several passes, the only crop of those whom keypoints place is
    theirs. For the others, each further crop shows the region that the landmarks in the one before give.
    landmarks: a function of some people, int [n], and their crops' cameras [n, 3, 3], see `next_cameras`.
    """
    camera, unknown = Camera.of(camera), np.arange(len(squares[0]))
    centre, side, roll = (part.copy() for part in squares)
    if keypoints is not None and passes > 1:
        *regions, placed = keypoint_region(keypoints)
        placed &= np.isfinite(camera.rays(regions[0])).all(axis=-1)
        centre[placed], side[placed], roll[placed] = (part[placed] for part in regions)
        unknown = np.flatnonzero(~placed)
    cameras = square_cameras(centre, side, roll, camera, size)
    for _ in range(passes - 1 if len(unknown) else 0):
        seen = cameras[0][unknown], cameras[1][unknown]
        for part, closer in zip(cameras, next_cameras(landmarks(unknown, seen), *seen, size)):
            part[unknown] = closer
    return cameras


def next_cameras(
    landmarks: np.ndarray, crop_intrinsics: np.ndarray, crop_from_camera: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The virtual cameras of the next crops: they look at the regions of interest that the landmarks give.

    landmarks [P, 39, >= 2]: in the crops, -1 to 1. crop_intrinsics and crop_from_camera [P, 3, 3]: what
    `geometry.square_cameras` gives for `size` pixels. Returns both for the next crops. The centre of a region is
    clipped to a quarter of the crop's side beyond its edges, and its side to 0.5 to 1.6 times the crop's.
    """
    centre, side, roll = region_of_interest((np.asarray(landmarks, np.float64)[..., :2] + 1) * (size / 2))
    next_intrinsics, next_from_crop = square_cameras(
        np.clip(centre, -size / 4, 1.25 * size), np.clip(side, 0.5 * size, 1.6 * size), roll, crop_intrinsics, size
    )
    return next_intrinsics, next_from_crop @ crop_from_camera
