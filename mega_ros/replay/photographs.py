"""Measures recovered people on annotated photographs: who is found, and how far the joints are from the annotated ones.

`mega evaluate keypoints` reports all of it. The scores of `mega replay` share its rules: who is found, and how long the
torso is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mega_model.core import metrics
from mega_model.core.boxes import intersection_over_union, share_inside
from mega_model.core.detection import Detections, keypoints_of
from mega_model.core.geometry import intrinsics_from_fov, project
from mega_model.core.topology import LIMB_JOINTS, LIMBS, Topology

from ..detect import find_people
from ..recovery import FOV_DEFAULT, Recovery
from .coco import SMALLEST, Person, Photograph

ENOUGH = 0.5
"""Smallest intersection over union with which a detection matches a person."""
FEWEST = 4
"""Smallest number of annotated joints with which a person is scored."""
IN_IMAGE = np.sqrt(2 / 3)
"""Root mean square of an isotropic error in the two directions of the image, over that in all three."""
PARTS = {
    f"{part}s": [k for k, limb in enumerate(LIMBS) if part in limb]
    for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
}

Row = Mapping[str, float | int | None]
"""The numbers of `summary` by name."""


@dataclass(frozen=True)
class DetectionCounts:
    """Counts of detections in one image."""

    group: str
    people: int
    """who must be detected."""
    found: int
    """of these people."""
    wrong: int
    """detections without a person."""
    all_marked: bool
    """Whether all people are annotated, so that wrong detections can be counted."""


@dataclass(frozen=True)
class Scored:
    """One annotated person; L joints of `LIMBS`. Errors of joints without annotation are NaN, those of people who were
    not recovered are infinite. `pa_mpjpe` and the like are metres, NaN without annotated 3D joints."""

    group: str
    torso: float
    """`torso`, pixels."""
    error: np.ndarray
    """[L], pixels, in the annotated box."""
    error_end_to_end: np.ndarray
    """[L], pixels, in the detector's box."""
    error_constant: np.ndarray
    """[L], pixels, of `rest_pose`."""
    error_metres: np.ndarray
    """[L]: `error` at the joint's predicted depth."""
    sigma: np.ndarray
    """[L], metres."""
    pa_mpjpe: float
    pa_mpjpe_end_to_end: float
    pa_mpjpe_constant: float


@dataclass(frozen=True)
class Limbs:
    """The recovered joints of one person."""

    joints: np.ndarray
    """[L, 3], metres, camera frame."""
    sigma: np.ndarray
    """[L], metres."""


NOBODY = Limbs(np.full((len(LIMBS), 3), np.nan), np.full(len(LIMBS), np.nan))
"""The joints of a person who was not recovered."""


def torso(person: Person) -> float:
    """The reference length of PCK, pixels.

    The mean of the annotated diagonals from shoulder to hip; without any, 0.35 of the larger side of the box. At least
    0.2 of that side, because a torso seen from above or below is short.
    """
    shoulders, hips = PARTS["shoulders"], PARTS["hips"]
    diagonals = [
        np.linalg.norm(person.keypoints[a] - person.keypoints[b])
        for a, b in zip(shoulders, reversed(hips))
        if person.seen[a] and person.seen[b]
    ]
    side = (person.box[2:] - person.box[:2]).max()
    return float(max(np.mean(diagonals) if diagonals else 0.35 * side, 0.2 * side))


def pixel_error(pixels: np.ndarray, person: Person) -> np.ndarray:
    """Distances [L] of projected joints [L, 2] from the annotated ones, pixels.

    NaN for a joint without annotation; infinite for one that is not recovered, or that the camera does not see.
    """
    error = np.linalg.norm(pixels - person.keypoints, axis=-1)
    return np.where(person.seen, np.where(np.isnan(error), np.inf, error), np.nan)


def rest_pose(topology: Topology, box: np.ndarray) -> np.ndarray:
    """A baseline that does not use the image: the template, upright and frontal, scaled to the box and centred in it.

    box [4] (x0, y0, x1, y1, pixels) -> [L, 2] pixels.
    """
    low, high = topology.template.min(axis=0)[:2], topology.template.max(axis=0)[:2]
    scale = (box[3] - box[1]) / (high[1] - low[1])
    joints = topology.joints(topology.template)[LIMB_JOINTS, :2]
    return (box[:2] + box[2:]) / 2 + scale * np.array([1, -1]) * (joints - (low + high) / 2)


def find(boxes: np.ndarray, scores: np.ndarray, photograph: Photograph) -> tuple[np.ndarray, np.ndarray]:
    """Match detections [D, 4] with scores [D] to people -> index of the person int [D], -1 for none; wrong bool [D].

    In order of decreasing score, each detection takes the free person with the largest intersection over union, which
    must be at least `ENOUGH`. People who count (`Person.counts`) take precedence. An unmatched detection is wrong,
    unless it is lower than `SMALLEST` pixels or more than half of it lies in an ignored region or a crowd.
    """
    people = photograph.people
    overlap = intersection_over_union(boxes, np.array([p.box for p in people]).reshape(-1, 4))
    wish = np.where(overlap >= ENOUGH, overlap + np.array([p.counts for p in people]), 0)
    who = np.full(len(boxes), -1)
    for d in np.argsort(-scores, kind="stable"):
        if wish[d].max(initial=0) > 0:
            who[d] = wish[d].argmax()
            wish[:, who[d]] = 0
    ignored = (share_inside(boxes, photograph.ignore) > 0.5).any(axis=1)
    return who, (who < 0) & ~ignored & (boxes[:, 3] - boxes[:, 1] >= SMALLEST)


def evaluate(recovery: Recovery, photograph: Photograph) -> tuple[DetectionCounts | None, list[Scored]]:
    """One photograph: counts of the detector (None without one), and all people to score, who count and have at least
    `FEWEST` annotated joints."""
    image = photograph.load()
    people = {n: p for n, p in enumerate(photograph.people) if p.counts and p.seen.sum() >= FEWEST}
    detector = recovery.detector
    found = None if detector is None else find_people(detector, image, detector.threshold)
    answers = recover(recovery, image, {n: p.box for n, p in people.items()}, found)
    detections, end_to_end = None, {}
    if found is not None:
        who, wrong = find(found.boxes, found.scores, photograph)
        end_to_end = recover(recovery, image, {int(who[d]): found.boxes[d] for d in np.flatnonzero(who >= 0)}, found)
        counts = np.array([p.counts for p in photograph.people], bool)
        detections = DetectionCounts(
            group=photograph.group,
            people=int(counts.sum()),
            found=int(counts[who[who >= 0]].sum()),
            wrong=int(wrong.sum()),
            all_marked=photograph.all_marked,
        )
    scored = [
        score(photograph, p, answers.get(n, NOBODY), end_to_end.get(n, NOBODY), recovery.topology)
        for n, p in people.items()
    ]
    return detections, scored


def recover(
    recovery: Recovery, image: np.ndarray, boxes: Mapping[int, np.ndarray], found: Detections | None
) -> dict[int, Limbs]:
    """The recovered people for boxes [4], by the same keys. People may be missing. found: by the detector."""
    if not boxes:
        return {}
    places = np.stack(list(boxes.values()))
    keypoints = None if found is None or found.keypoints is None else keypoints_of(places, found)
    people = recovery.run(image, boxes=places, keypoints=keypoints)
    keys = list(boxes)
    limbs = (
        Limbs(joints, sigma)
        for joints, sigma in zip(people.joints[:, LIMB_JOINTS], people.joints_sigma[:, LIMB_JOINTS])
    )
    return {keys[k]: person for k, person in zip(people.ids, limbs)}


def score(photograph: Photograph, person: Person, answer: Limbs, end_to_end: Limbs, topology: Topology) -> Scored:
    """Score one person, recovered from the annotated box and from the detector's."""
    intrinsics = intrinsics_from_fov(photograph.width, photograph.height, FOV_DEFAULT)

    def in_space(joints: np.ndarray) -> float:
        if person.joints3d is None or np.isnan(joints).any():
            return np.nan
        return float(metrics.pa_mpjpe(joints, person.joints3d))

    error = pixel_error(project(answer.joints, intrinsics), person)
    return Scored(
        group=photograph.group,
        torso=torso(person),
        error=error,
        error_end_to_end=pixel_error(project(end_to_end.joints, intrinsics), person),
        error_constant=pixel_error(rest_pose(topology, person.box), person),
        error_metres=error * answer.joints[:, 2] / intrinsics[0, 0],
        sigma=answer.sigma,
        pa_mpjpe=in_space(answer.joints),
        pa_mpjpe_end_to_end=in_space(end_to_end.joints),
        pa_mpjpe_constant=in_space(topology.joints(topology.template)[LIMB_JOINTS]),
    )


def summary(detections: Sequence[DetectionCounts], scored: Sequence[Scored]) -> Row:
    """The numbers for some images and people; None if a number is not defined. Metres; shares from 0 to 1.

    recall: detected people over people who count. wrong: unmatched detections in images where all people are annotated.
    precision: detected people in these images over detected people and wrong detections.
    pck: `metrics.pck` with the length `torso`. pa_mpjpe: mean over people. constant: `rest_pose`.
    spearman, within_1_sigma, within_2_sigma: compare a joint's sigma with its error in the image, in metres at the
    predicted depth. The image shows two of the three directions of an isotropic error with root mean square sigma.
    """
    count, found = sum(d.people for d in detections), sum(d.found for d in detections)
    complete = [d for d in detections if d.all_marked]
    right, wrong = sum(d.found for d in complete), sum(d.wrong for d in complete)

    def stack(name: str) -> np.ndarray:
        return np.array([getattr(person, name) for person in scored])

    length, error = stack("torso"), stack("error").reshape(-1, len(LIMBS))
    known = np.isfinite(stack("error_metres") * stack("sigma"))
    metres, sigma = stack("error_metres")[known], stack("sigma")[known]
    row = {
        "people": count if detections else None,
        "found": found if detections else None,
        "wrong": wrong if detections else None,
        "recall": found / count if count else None,
        "precision": right / (right + wrong) if right + wrong else None,
        "scored": len(scored),
        "joints": int((~np.isnan(error)).sum()),
        **{f"pck_{part}": metrics.pck(error[:, columns], length) for part, columns in PARTS.items()},
        "pck": metrics.pck(error, length),
        "pck_end_to_end": metrics.pck(stack("error_end_to_end"), length) if detections else None,
        "pck_constant": metrics.pck(stack("error_constant"), length),
        "people_3d": int(np.isfinite(stack("pa_mpjpe_constant")).sum()),
        **{name: _mean(stack(name)) for name in ("pa_mpjpe", "pa_mpjpe_end_to_end", "pa_mpjpe_constant")},
        "spearman": metrics.spearman(sigma, metres) if len(sigma) > 2 else None,
        "within_1_sigma": metrics.coverage(metres, IN_IMAGE * sigma) if len(sigma) else None,
        "within_2_sigma": metrics.coverage(metres, IN_IMAGE * sigma, 2) if len(sigma) else None,
        "median_sigma": float(np.median(sigma)) if len(sigma) else None,
        "median_error": float(np.median(metres)) if len(sigma) else None,
    }
    return {name: None if value is None or np.isnan(value) else value for name, value in row.items()}


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def rows(
    detections: Sequence[DetectionCounts], scored: Sequence[Scored], without: Sequence[str] = ()
) -> dict[str, Row]:
    """`summary` for each group, for all, and for all except the groups in `without`."""
    groups = dict.fromkeys([d.group for d in detections] + [p.group for p in scored])
    chosen = {group: [group] for group in groups if group} | {"all": list(groups)}
    if without:
        chosen[f"all but {', '.join(without)}"] = [group for group in groups if group not in without]
    return {
        name: summary([d for d in detections if d.group in some], [p for p in scored if p.group in some])
        for name, some in chosen.items()
    }
