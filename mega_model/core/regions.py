"""Where to look for a person: the square that holds the whole body, turned so that the body stands upright in it.

From what a network has already seen of the person: BlazePose's landmarks or COCO keypoints, in any image coordinates
(pixels, or a crop's own) with x right and y down. Functions over any leading shape [...].

A region is centre [..., 2], side [...] (in the units of what was given) and roll [...], radians: how far the body is
turned clockwise from upright, -pi to pi.
"""

from __future__ import annotations

import numpy as np

from mega_model.core.geometry import square_cameras

MARGIN = 1.25
"""Side of a region over the diameter of the circle about the body: BlazePose's own, which it was trained with."""
SHOULDERS, HIPS = [5, 6], [11, 12]  # of the COCO keypoints

# BlazePose's circle over the torso's length, upright, and over the distance of the farthest keypoint, where the torso
# is foreshortened or the limbs reach out. Fitted to its own landmarks of 54 people in photographs, whose circles they
# meet within 7 % on average.
_OVER_TORSO, _OVER_FARTHEST = 1.75, 1.1


def region_of_interest(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The region that BlazePose would look at next: landmarks [..., 39, >= 2] -> centre, side, roll.

    Landmark 33 is the middle of the hips; landmark 34, on the circle about it that holds the body, points to the head.
    """
    landmarks = np.asarray(landmarks)[..., :2]
    return _region(landmarks[..., 33, :], landmarks[..., 34, :] - landmarks[..., 33, :])


def keypoint_region(
    keypoints: np.ndarray, threshold: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same region from COCO's 17 keypoints [..., 17, 3] (x, y, score) -> centre, side, roll, found.

    found: bool [...], False where a shoulder or a hip scores less than `threshold`; the region means nothing there.
    """
    keypoints = np.asarray(keypoints)
    seen = keypoints[..., 2] >= threshold
    centre, shoulders = (keypoints[..., pair, :2].mean(-2) for pair in (HIPS, SHOULDERS))
    torso = shoulders - centre
    length = np.linalg.norm(torso, axis=-1)
    distances = np.linalg.norm(keypoints[..., :2] - centre[..., None, :], axis=-1)
    radius = np.maximum(_OVER_TORSO * length, _OVER_FARTHEST * (seen * distances).max(-1))
    found = np.asarray(seen[..., SHOULDERS + HIPS].all(-1))
    return *_region(centre, torso * (radius / np.where(length > 0, length, 1))[..., None]), found


def _region(centre: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the circle's centre and the vector [..., 2] from it to its top as the body sees it."""
    return centre, 2 * MARGIN * np.linalg.norm(up, axis=-1), np.arctan2(up[..., 0], -up[..., 1])


def next_cameras(
    landmarks: np.ndarray, crop_intrinsics: np.ndarray, crop_from_camera: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The virtual cameras of the next crops: they look at the regions of interest that the landmarks give.

    landmarks [P, 39, >= 2]: in the crops, -1 to 1. crop_intrinsics and crop_from_camera [P, 3, 3]: what
    `geometry.crop_cameras` gives for `size` pixels. Returns both for the next crops. The centre of a region is clipped
    to a quarter of the crop's side beyond its edges, and its side to 0.5 to 1.6 times the crop's.
    """
    centre, side, roll = region_of_interest((np.asarray(landmarks, np.float64)[..., :2] + 1) * (size / 2))
    next_intrinsics, next_from_crop = square_cameras(
        np.clip(centre, -size / 4, 1.25 * size), np.clip(side, 0.5 * size, 1.6 * size), roll, crop_intrinsics, size
    )
    return next_intrinsics, next_from_crop @ crop_from_camera
