"""Fits rotation, translation and shape of bodies to landmarks, so that projected joints fall on the landmarks.

The model's mesh, rotation and translation are the prior, the landmarks are the measurements. A mesh can change along
its modes, the principal components of the model's errors. Numpy only. Functions work on any leading shape [...], with
broadcasting.

Frame: the crop's virtual camera (x right, y down, z forward), metres. *Crop coordinates* run from -1 to 1, x right and
y down. `focal` [...] is the camera's focal length in half crop sides: a point falls on focal * (x / z, y / z).
K joints, L observations of each, M modes, P people.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mega_model.core.geometry import crop_translation
from mega_model.core.topology import LIMB_JOINTS

LANDMARK_SIGMA = 0.07
"""Crop units: deviation, along x and along y, of a landmark of weight 1 that is on the right joint."""
OUTLIER = 0.2
"""Crop units: a landmark with this residual has a quarter of its weight; with a much larger one, none."""
LATERAL_PRIOR = 0.3
"""Crop units: standard deviation of the predicted position of the body's origin in the crop."""
NEAREST = 0.1
"""Metres: joints that are closer, or behind the camera, are projected with this depth."""

UNSEEN = 0.1
"""Total weight of a limb's landmark and keypoint below which their residual hardly counts."""
MISSED = 1.6
"""Factor from a limb's residual to its error. The residual shows two of the three axes, which alone gives 1.22. On
renders, 1.2 to 1.5 is likeliest; on photographs, sigma follows the errors better with more: see
docs/train/experiments.md."""
REACH = 0.15
"""Metres on the template: standard deviation of a limb's share of the surface around its joint."""

OBSERVED = (11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""BlazePose's landmarks of `topology.LIMBS`."""

# Factors on OUTLIER, one per step, so that a body which starts far from its landmarks does not treat all as outliers.
_WIDENING = (4.0, 2.0, 1.0, 1.0)

_ONE = np.eye(3)
_CROSS = np.cross(_ONE[:, None], _ONE).swapaxes(1, 2)  # cross(a, b)[j] = sum of a[i] * _CROSS[i, j, k] * b[k]
_TURNS = _CROSS.swapaxes(0, 1).reshape(9, 3)  # row 3 j + i, times b: part j of cross(axis i, b)


class Fit(NamedTuple):
    rotation: np.ndarray
    """[..., 3, 3]"""
    translation: np.ndarray
    """[..., 3], metres"""
    shape: np.ndarray
    """[..., M]: coefficient of each mode, in standard deviations"""
    residuals: np.ndarray
    """[..., L, K], crop units: distances of the projected joints from their landmarks"""


class FittedPeople(NamedTuple):
    vertices: np.ndarray
    """[..., V, 3], canonical, metres"""
    body_to_crop: np.ndarray
    """[..., 3, 3]"""
    translation: np.ndarray
    """[..., 3], metres, in the crop's camera"""
    residuals: np.ndarray
    """[..., 12], metres: root mean square distance in the image between each of LIMBS and its landmark and keypoint,
    at the depth of the body; 0 where nothing was seen"""


def principal_modes(errors: np.ndarray, count: int) -> np.ndarray:
    """Errors of meshes [n, V, 3] (true less predicted, canonical, metres) -> modes [count, V, 3], metres.

    The principal components of the errors around their mean, each with the length of one standard deviation.
    """
    spread = (errors - errors.mean(axis=0)).reshape(len(errors), -1)
    _, length, modes = np.linalg.svd(spread, full_matrices=False)
    modes = modes[:count] * (length[:count, None] / np.sqrt(len(errors)))
    return modes.reshape(-1, *errors.shape[1:]).astype(np.float32)


def fit_pose(
    joints: np.ndarray,
    translation: np.ndarray,
    focal: np.ndarray | float,
    landmarks: np.ndarray,
    weights: np.ndarray,
    modes: np.ndarray,
    rotation_prior: float = 0.2,
    depth_prior: float = 0.2,
) -> Fit:
    """The rotation update, translation and shape that fit projected joints to their landmarks.

    joints [..., K, 3], metres: rotated into the crop's camera, not translated. translation [..., 3], metres, z > 0: as
    predicted. landmarks [..., L, K, 2]: crop coordinates, finite. weights [..., L, K], 0 to 1. modes [..., M, K, 3],
    metres: rotated like the joints, with the length of one standard deviation. rotation_prior, rad: standard deviation
    of the predicted rotation about each axis. depth_prior: standard deviation of the log of the predicted depth.

    Returns the rotation to apply to joints + shape @ modes before the translation. If all weights are zero, it is the
    identity, the translation is the predicted one, and the shape is zero.

    Four Gauss-Newton steps on a Geman-McClure loss, whose weights are the square of 1 / (1 + (distance / OUTLIER)^2).
    The first begins where the joints fit the landmarks in weak perspective.
    """
    joints, modes, landmarks, weights, learned, focal = (
        np.asarray(x, np.float64) for x in (joints, modes, landmarks, weights, translation, focal)
    )
    target = landmarks.swapaxes(-1, -2)  # [..., L, 2, K]
    # the joints, then what each mode adds to them: [..., 3, 1 + M, K]
    body = np.empty(
        (*np.broadcast_shapes(joints.shape[:-2], modes.shape[:-3]), 3, 1 + modes.shape[-3], joints.shape[-2])
    )
    body[..., 0, :], body[..., 1:, :] = joints.swapaxes(-1, -2), np.moveaxis(modes, -1, -3)
    shapes = body.shape[:-3], target.shape[:-3], weights.shape[:-2], learned.shape[:-1], focal.shape
    precision = np.array([rotation_prior] * 3 + [LATERAL_PRIOR] * 2 + [depth_prior] + [1.0] * modes.shape[-3]) ** -2.0
    priors = np.diag(precision)

    pose = np.zeros((*np.broadcast_shapes(*shapes), len(precision)))
    pose[..., :6] = _weak_perspective(body[..., 0, :], learned, focal, target, weights)
    for widening in _WIDENING:
        off, slope = _linearised(pose, body, learned, focal, target)
        normal, gradient = _normal_equations(off, slope, _pull(off, weights, widening * OUTLIER))
        pose = pose - np.linalg.solve(normal + priors, (gradient + precision * pose)[..., None])[..., 0]
    off, _ = _linearised(pose, body, learned, focal, target)
    return Fit(_rotation(pose), _translation(pose, learned, focal), pose[..., 6:], np.linalg.norm(off, axis=-2))


class Bends(NamedTuple):
    """How bodies of a topology can change, computed once."""

    regressor: np.ndarray
    """[12, V]: of the joints of LIMBS."""
    modes: np.ndarray
    """[M, V, 3], metres: see `principal_modes`."""
    of_joints: np.ndarray
    """[M, 12, 3], metres: the same of the joints."""

    @classmethod
    def of(cls, regressor: np.ndarray, modes: np.ndarray) -> Bends:
        """regressor [24, V]: of SMPL's joints."""
        regressor = regressor[LIMB_JOINTS]
        return cls(regressor, modes, regressor @ modes)


def fit_people(
    vertices: np.ndarray,
    body_to_crop: np.ndarray,
    camera: np.ndarray,
    focal: np.ndarray,
    landmarks: np.ndarray,
    keypoints: np.ndarray,
    bends: Bends,
) -> FittedPeople:
    """A model's predictions for people in crops, fitted to the BlazePose landmarks of the same crops.

    vertices [..., V, 3]: canonical, metres. body_to_crop [..., 3, 3], a rotation, and camera [..., 3] (s, tx, ty): as
    the model predicts them. focal [...]: in half crop sides. landmarks [..., 39, 5]: see `blazepose.PoseFeatures`.
    keypoints [..., 12, 3]: a detector's, of the same joints, in crop coordinates, with scores; score 0 if unknown.
    """
    crop_to_body = np.swapaxes(body_to_crop, -1, -2)
    limbs = landmarks[..., OBSERVED, :]
    weights = np.stack([limbs[..., 3] * limbs[..., 4], keypoints[..., 2]], axis=-2)
    fit = fit_pose(
        bends.regressor @ vertices @ crop_to_body,
        crop_translation(camera, focal),
        focal,
        np.stack([limbs[..., :2], keypoints[..., :2]], axis=-3),
        weights,
        bends.of_joints @ crop_to_body[..., None, :, :],
    )
    mesh = vertices + np.tensordot(fit.shape.astype(bends.modes.dtype), bends.modes, axes=1)
    turned = fit.rotation @ body_to_crop
    squares = (weights * fit.residuals**2).sum(-2) / (weights.sum(-2) + UNSEEN)
    scale = fit.translation[..., 2] / focal  # metres of one crop unit at the body's depth
    return FittedPeople(mesh, turned, fit.translation, np.sqrt(squares) * scale[..., None])


def limb_shares(points: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """How much each point of a body belongs to each joint of LIMBS: [N, 12], rows sum to one.

    points [N, 3] and joints [24, 3]: of the template, metres.
    """
    near = -((points[:, None] - joints[LIMB_JOINTS]) ** 2).sum(-1) / (2 * REACH**2)
    shares = np.exp(near - near.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def widened(sigma: np.ndarray, residuals: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """sigma [..., N] of points, with `MISSED` times the residuals [..., 12] of their limbs added in quadrature.

    shares [N, 12]: see `limb_shares`. A mesh that misses its landmarks is wrong by at least as much, whatever the model
    expects.
    """
    return np.sqrt(sigma**2 + (MISSED * residuals) ** 2 @ shares.T)


# A pose [..., 6 + M] is the change from the prediction; zero is no change. It holds the rotation's Cayley vector (its
# axis times 2 tan(angle / 2), close to its rotation vector), the shift of the body's origin in the crop (crop units),
# the log of the depth over the predicted one, and the shape. Landmarks are almost linear in these parameters. The first
# three numbers of a step are a further rotation vector, added to the Cayley vector, which is correct to first order; at
# convergence the two agree. The gradient of the prior is pose / deviation^2. For the rotation, this is the gradient of
# 4 log(1 + tan(angle / 2)^2), which equals the squared angle within 1 % up to half a radian.


def _rotation(pose: np.ndarray) -> np.ndarray:
    """[..., 3, 3]."""
    turn = pose[..., :3]
    skew = (turn @ _CROSS.reshape(3, 9)).reshape(*turn.shape, 3)  # skew @ x = cross(turn, x)
    return _ONE + (skew + skew @ skew / 2) / (1 + (turn * turn).sum(-1) / 4)[..., None, None]


def _translation(pose: np.ndarray, learned: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """The translation [..., 3], metres."""
    moved = np.zeros((*pose.shape[:-1], 3))
    moved[..., :2] = pose[..., 3:5] * (learned[..., 2] / focal)[..., None]
    return (learned + moved) * np.exp(pose[..., 5:6])


def _moves(translation: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """The Jacobian [..., 3, 3] of a translation by its three parameters in a step: the last axis."""
    moves = np.zeros((*translation.shape, 3))
    moves[..., 0, 0] = moves[..., 1, 1] = translation[..., 2] / focal
    moves[..., 2] = translation
    return moves


def _linearised(
    pose: np.ndarray, body: np.ndarray, learned: np.ndarray, focal: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """-> residuals [..., L, 2, K], crop units, and their Jacobian by a step [..., 2, 6 + M, K], the same for all L."""
    rotation, translation = _rotation(pose), _translation(pose, learned, focal)
    flat = body.reshape(*body.shape[:-2], body.shape[-2] * body.shape[-1])
    turned = (rotation @ flat).reshape(*rotation.shape[:-1], *body.shape[-2:])
    bent = turned[..., 0, :] + (pose[..., None, None, 6:] @ turned[..., 1:, :])[..., 0, :]
    placed = bent + translation[..., None]
    nearness = 1 / np.maximum(placed[..., 2:, :], NEAREST)
    place = placed[..., :2, :] * nearness
    slope = np.empty((*bent.shape[:-1], pose.shape[-1], bent.shape[-1]))  # of the placed joints: [..., 3, 6 + M, K]
    slope[..., :3, :] = (_TURNS @ bent).reshape(*bent.shape[:-1], 3, bent.shape[-1])
    slope[..., 3:6, :] = _moves(translation, focal)[..., None]
    slope[..., 6:, :] = turned[..., 1:, :]
    slope = slope[..., :2, :, :] - place[..., None, :] * slope[..., 2:, :, :]
    slope *= (focal[..., None, None] * nearness)[..., None, :]
    return (focal[..., None, None] * place)[..., None, :, :] - target, slope


def _pull(off: np.ndarray, weights: np.ndarray, outlier: float) -> np.ndarray:
    """Weights [..., L, K] of landmarks with residuals [..., L, 2, K] in the next step."""
    trust = 1 / (1 + (off * off).sum(-2) / outlier**2)
    return weights * trust * trust


def _normal_equations(off: np.ndarray, slope: np.ndarray, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The landmarks' part of the normal equations: matrix [..., 6 + M, 6 + M] and right side [..., 6 + M]."""
    pull = pull / LANDMARK_SIGMA**2
    right = slope @ (pull[..., None, :] * off).sum(-3)[..., None]  # [..., 2, 6 + M, 1]
    weighted = slope * pull.sum(-2)[..., None, None, :]
    return (weighted @ slope.swapaxes(-1, -2)).sum(-3), right.sum(-3)[..., 0]


def _weak_perspective(
    seen: np.ndarray, learned: np.ndarray, focal: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The pose [..., 6] of the least-squares translation in weak perspective; zero if there is none."""
    share = weights / np.maximum(weights.sum((-1, -2), keepdims=True), 1e-9)
    wanted = (share[..., None, :] * target).sum(-3)  # [..., 2, K]
    share = share.sum(-2)[..., None, :]
    middle = (share * seen[..., :2, :]).sum(-1)
    spread = seen[..., :2, :] - middle[..., None]
    scale = (spread * wanted).sum((-1, -2)) / np.maximum((share * spread**2).sum((-1, -2)), 1e-9)
    before = focal / learned[..., 2]
    good = scale > 0  # otherwise this rotation fits at no depth
    scale = np.where(good, scale, before)
    shift = wanted.sum(-1) - scale[..., None] * middle - before[..., None] * learned[..., :2]
    pose = np.concatenate([np.zeros((*shift.shape[:-1], 3)), shift, np.log(before / scale)[..., None]], axis=-1)
    return np.where(good[..., None], pose, 0)
