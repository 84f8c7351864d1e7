"""Compares recovered people with ground truth, frame by frame. Camera frame, metres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mega_model.core import metrics
from mega_model.core.boxes import intersection_over_union
from mega_model.core.cameras import Camera
from mega_model.core.topology import LIMB_JOINTS, Topology

from ..recovery import People
from .bootstrap import interval, ratios, resamples
from .coco import Person, Photograph
from .identities import Identities
from .measures import MEASURES, Row, parts
from .photographs import FEWEST, NOBODY, find, pixel_error, torso
from .reference import Truth

MINIMUM_OVERLAP = 0.3
"""Smallest intersection over union of image boxes with which a recovered person matches a true one."""
MINIMUM_VISIBLE = 0.05
"""A person with a smaller share of visible vertices need not be found."""
NEAREST = 0.01
"""Metres: what is nearer to the camera is not visible."""
POOLED = 1000
"""Largest number of vertices per person, evenly spaced, that are used to compare sigma and error over all people."""
CORRECT = 0.2
"""Torso lengths: the largest error of a correct keypoint."""
DRAWN, DRAWS = 10_000, 200
"""Vertices, and draws of the bootstrap, for the intervals of numbers that need all vertices of a draw."""
COUNTS = ("true_people", "false_negatives", "matched", "false_positives")


@dataclass(frozen=True)
class _Points:
    """Of one compared person: error and sigma [N] in metres, pelvises put together; visible [N]. Vertices or joints."""

    error: np.ndarray
    sigma: np.ndarray
    visible: np.ndarray


@dataclass
class Score:
    """Numbers of frames, and of all frames together. docs/evaluate/scores.md and `MEASURES` define them."""

    topology: Topology
    rows: list[Row] = field(default_factory=list)
    """of the frames with ground truth, in their order."""
    _pool: list[list[_Points]] = field(default_factory=list)
    """the compared people of each of these frames."""
    _identities: Identities = field(default_factory=Identities)

    def add(self, row: Row, people: People, truth: Truth | Photograph, camera: Camera, size: tuple[int, int]) -> None:
        """One frame, whose numbers are added to `row`, which has its stamp. size: width, height of its image.

        People who are occluded or outside the image are not counted, whether they are found or not.
        """
        if isinstance(truth, Photograph):
            truth.must_fit(*size)
            pool = self._add_photograph(row, people, truth, camera)
        else:
            pool = self._add_bodies(row, people, truth, camera, size)
        row["predicted_people"] = row["matched"] + row["false_positives"]
        if row["true_people"]:
            row["recall"] = (row["true_people"] - row["false_negatives"]) / row["true_people"]
        if row["predicted_people"]:
            row["precision"] = row["matched"] / row["predicted_people"]
        row |= _sigma_measures(pool)
        self.rows.append(row)
        self._pool.append(pool)

    def finish(self) -> None:
        """After the last frame: the numbers of frames that depend on all frames."""
        self._identities.finish()

    def _add_bodies(
        self, row: Row, people: People, truth: Truth, camera: Camera, size: tuple[int, int]
    ) -> list[_Points]:
        solid = truth.vertices is not None
        true_points = truth.joints if truth.vertices is None else truth.vertices
        visible = in_view(true_points, camera, size) if truth.visible is None else truth.visible
        overlap = overlaps(people.vertices if solid else people.joints, true_points, camera)
        pairs = match(overlap)
        counted = visible.mean(axis=1) >= MINIMUM_VISIBLE
        found = {t: p for p, t in pairs if counted[t]}
        row |= {
            "true_people": int(counted.sum()),
            "false_negatives": int(counted.sum()) - len(found),
            "matched": len(pairs),
            "false_positives": len(people) - len(pairs),
            "compared": len(found),
        }
        bodies, pool = [], []
        for t in map(int, np.flatnonzero(counted)):
            body: Row = {} if truth.ids is None else {"truth": int(truth.ids[t])}
            limbs = NOBODY.joints
            if t in found:
                p = found[t]
                numbers, points = self._compare(people, p, truth, t, visible[t])
                body |= {"id": int(people.ids[p]), **numbers}
                pool.append(points)
                limbs = people.joints[p, LIMB_JOINTS]
            pixels, seen = _projected(truth.joints[t, LIMB_JOINTS], camera, size)
            if seen.any():
                box = np.concatenate([pixels[seen].min(axis=0), pixels[seen].max(axis=0)])
                body |= _keypoints(camera.project(limbs), Person(box, pixels, seen, False, None))
            bodies.append(body)
        if truth.ids is not None:
            ids = {int(truth.ids[t]): (int(people.ids[p]), people.joints[p], truth.joints[t]) for t, p in found.items()}
            spare = {p for p, t in pairs if not counted[t]}
            near = {
                (int(truth.ids[t]), int(people.ids[p]))
                for p, t in np.argwhere(overlap >= MINIMUM_OVERLAP)
                if counted[t] and p not in spare
            }
            self._identities.add(row, ids, near)
        _summarise_bodies(row, bodies)
        return pool

    def _compare(
        self, people: People, p: int, truth: Truth, t: int, visible: np.ndarray
    ) -> tuple[dict[str, float], _Points]:
        joints, true_joints = people.joints[p], truth.joints[t]
        pelvis, true_pelvis = joints[0], true_joints[0]
        true_vertices = None if truth.vertices is None else truth.vertices[t]
        numbers = _mesh_errors(people.vertices[p], joints, true_vertices, true_joints)
        if len(meshes := people.samples[p]):
            each = _mesh_errors(meshes, self.topology.joints(meshes), true_vertices, true_joints)
            numbers |= {f"best_{name}": metrics.best_of(those) for name, those in each.items()}
        numbers["position"] = metrics.distances(pelvis, true_pelvis)
        some: Any
        if true_vertices is None:
            body, true_body, sigma = joints, true_joints, people.joints_sigma[p]
            some = np.isfinite(true_joints).all(axis=1)
        else:
            body, true_body, sigma = people.vertices[p], true_vertices, people.sigma[p]
            some = slice(None, None, -(-len(sigma) // POOLED))
        # sigma is also about where the person is across the line of sight
        moved = pelvis - metrics.beside(pelvis, true_pelvis)
        errors = metrics.distances(body[some] - moved, true_body[some] - true_pelvis)
        points = _Points(errors.astype(np.float32), sigma[some].astype(np.float32), visible[some])
        return {name: float(value) for name, value in numbers.items()}, points

    def _add_photograph(self, row: Row, people: People, photograph: Photograph, camera: Camera) -> list[_Points]:
        """As `mega evaluate keypoints` does with the detector's boxes."""
        who, wrong = find(people.boxes, people.scores, photograph)
        counts = {n for n, person in enumerate(photograph.people) if person.counts}
        found = {int(n): p for p, n in enumerate(who) if n in counts}
        complete = photograph.all_marked
        row |= {
            "true_people": len(counts),
            "false_negatives": len(counts) - len(found),
            "matched": len(found) if complete else 0,
            "false_positives": int(wrong.sum()) if complete else 0,
        }
        bodies = []
        for n in sorted(counts):
            person = photograph.people[n]
            body: Row = {}
            limbs = NOBODY.joints
            if n in found:
                limbs = people.joints[found[n], LIMB_JOINTS]
                body["id"] = int(people.ids[found[n]])
                if person.joints3d is not None:
                    body["pa_mpjpe"] = float(metrics.pa_mpjpe(limbs, person.joints3d))
            if person.seen.sum() >= FEWEST:
                body |= _keypoints(camera.project(limbs), person)
            bodies.append(body)
        row["compared"] = sum("pa_mpjpe" in body for body in bodies)
        _summarise_bodies(row, bodies)
        return []

    def summary(self) -> dict[str, float]:
        """Counts, and each measure that some frame has. Spearman and AUSE are of the vertices of all frames at once."""
        return totals(self.rows) | _ranks([points for pool in self._pool for points in pool])

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % confidence interval of each measure of `summary`, by `bootstrap`. Empty for a single frame."""
        out = intervals(self.rows)
        if {"spearman", "ause"} & {*out}:
            few = -(-sum(len(p.error) for pool in self._pool for p in pool) // DRAWN)
            thinned = [[_Points(p.error[::few], p.sigma[::few], p.visible[::few]) for p in pool] for pool in self._pool]
            drawn = [
                _ranks([points for k in chosen for points in thinned[k]]) for chosen in resamples(len(self.rows), DRAWS)
            ]
            for name in ("spearman", "ause"):
                if values := [ranks[name] for ranks in drawn if name in ranks]:
                    out[name] = interval(np.array(values))
        return out

    def persons(self) -> list[Row]:
        """Each true person of the recording whose identity is known: frames, those in which they were found, means over
        the frames, and `intervals` as those of the recording."""
        bodies: dict[int, list[Row]] = {}
        for row in self.rows:
            for body in row["bodies"]:
                if "truth" in body:
                    bodies.setdefault(body["truth"], []).append(body)
        out = []
        for person, seen in sorted(bodies.items()):
            found = [body for body in seen if "id" in body]
            summary: Row = {"person": person, "frames": len(seen), "found": len(found)}
            summary["ids"] = sorted({body["id"] for body in found})
            for name in MEASURES:
                if values := [body[name] for body in seen if name in body]:
                    summary[name] = float(np.mean(values))
            summary["intervals"] = intervals(seen, _own)
            out.append(summary)
        return out

    def curves(self, quantiles: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
        """Calibration: share of errors within the radius that promises each level, for all, visible and hidden points.
        quantiles: level -> radius in sigma, of a manifest's calibration; if empty, those of `metrics.radius`.

        Sparsification: mean error of the rest after each share is removed, by sigma and by the error, over that of all.
        Empty where `_sigma_measures` is.
        """
        pooled = _pooled([points for pool in self._pool for points in pool])
        if pooled is None:
            return {}
        error, sigma, visible = pooled
        levels = np.array([*map(float, quantiles)]) if quantiles else metrics.LEVELS
        radii = np.array([*quantiles.values()]) if quantiles else metrics.radius(levels)
        calibration = {"levels": levels.tolist()}
        for name, which in (("all", np.ones_like(visible)), ("visible", visible), ("hidden", ~visible)):
            if which.any():
                calibration[name] = metrics.reliability(error[which], sigma[which], radii).tolist()
        out = {"calibration": calibration}
        if error.any():
            by_sigma, by_error = metrics.sparsification(error, sigma)
            removed = metrics.REMOVED.tolist()
            out["sparsification"] = {"removed": removed, "sigma": by_sigma.tolist(), "error": by_error.tolist()}
        return out


def totals(rows: Sequence[Row]) -> dict[str, float]:
    """Counts of some scored frames, and each measure that some frame has."""
    out: dict[str, float] = {"frames": len(rows)}
    out |= {name: sum(row[name] for row in rows) for name in COUNTS}
    if any("switches" in row for row in rows):
        out["switches"] = sum(row.get("switches", 0) for row in rows)
    for name in MEASURES:
        known = [sums for row in rows if (sums := parts(name, row))]
        if weight := sum(sums[1] for sums in known):
            out[name] = sum(sums[0] for sums in known) / weight
    return out


def intervals(
    rows: Sequence[Row], fraction: Callable[[str, Row], tuple[float, float] | None] = parts
) -> dict[str, tuple[float, float]]:
    """The 95 % confidence interval of each measure of `totals`, by `bootstrap`. Empty for a single frame.

    fraction: numerator and denominator of a measure in a row.
    """
    if len(rows) < 2:
        return {}
    names = [name for name in MEASURES if any(name in row for row in rows)]
    sums = np.array([[fraction(name, row) or (0, 0) for name in names] for row in rows], np.float64)
    return {name: interval(values) for name, values in zip(names, ratios(sums.reshape(-1, len(names), 2)).T)}


def _own(name: str, body: Row) -> tuple[float, float] | None:
    """`parts` of one person in a frame: all their frames weigh the same."""
    return (body[name], 1) if name in body else None


def boxes_of(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Image boxes [P, 4] (x0, y0, x1, y1, pixels) around what the camera sees of people [P, N, 3]."""
    pixels = camera.project(points)
    # unlike nanmin, fmin says nothing of people who are not seen at all
    return np.concatenate([np.fmin.reduce(pixels, axis=1), np.fmax.reduce(pixels, axis=1)], axis=1)


def overlaps(predicted: np.ndarray, truth: np.ndarray, camera: Camera) -> np.ndarray:
    """Intersections over union [P, T] of the image boxes of people [P, N, 3] and [T, N, 3]; 0 if one is not known."""
    return np.nan_to_num(intersection_over_union(boxes_of(predicted, camera), boxes_of(truth, camera)))


def match(overlap: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (recovered, true) of people whose image boxes overlap enough, and most in total; see `overlaps`."""
    from scipy.optimize import linear_sum_assignment  # slow to load

    # pairs that overlap too little would otherwise count in the total, and part people who overlap enough
    pairs = zip(*linear_sum_assignment(np.where(overlap >= MINIMUM_OVERLAP, -overlap, 0)))
    return [(int(p), int(t)) for p, t in pairs if overlap[p, t] >= MINIMUM_OVERLAP]


def _projected(points: np.ndarray, camera: Camera, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points [..., N, 3] -> pixels [..., N, 2], and whether they lie in the image [..., N]."""
    before = points[..., 2] > NEAREST
    pixels = camera.project(np.where(before[..., None], points, 1))
    return pixels, before & ((pixels >= 0) & (pixels <= size)).all(axis=-1)


def in_view(points: np.ndarray, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """Which points [T, N, 3] lie in front of the camera and in the image of `size`: bool [T, N]."""
    return _projected(points, camera, size)[1]


def _mesh_errors(
    vertices: np.ndarray, joints: np.ndarray, true_vertices: np.ndarray | None, true_joints: np.ndarray
) -> dict[str, np.ndarray]:
    """Errors [...] of meshes [..., V, 3] with joints [..., J, 3] of one person, whose joints may be partly unknown."""
    known, pelvis, true_pelvis = np.isfinite(true_joints).all(axis=1), joints[..., :1, :], true_joints[0]
    out = {}
    if true_vertices is not None:
        out["pve"] = metrics.mean_distance(vertices - pelvis, true_vertices - true_pelvis)
    joints, true_joints = joints[..., known, :], true_joints[known]
    out["mpjpe"] = metrics.mean_distance(joints - pelvis, true_joints - true_pelvis)
    out["pa_mpjpe"] = metrics.pa_mpjpe(joints, true_joints)
    return out


def _keypoints(pixels: np.ndarray, person: Person) -> Row:
    """2D numbers of a person whose recovered limbs are at `pixels` [L, 2]; NaN: nowhere in the image."""
    error, length = pixel_error(pixels, person), torso(person)
    annotated, found = ~np.isnan(error), np.isfinite(error)
    row: Row = {"joints": int(annotated.sum()), "joints_found": int(found.sum())}
    if annotated.any():
        row["pck"] = metrics.pck(error[None], np.array([length]), CORRECT)
    if found.any():
        row["normalised_error"] = float(error[found].mean() / length)
    return row


def _summarise_bodies(row: Row, bodies: Sequence[Row]) -> None:
    """The means over a frame's people, and the people themselves, into its row."""
    for weight in ("joints", "joints_found"):
        row[weight] = sum(body.get(weight, 0) for body in bodies)
    for name, measure in MEASURES.items():
        values = [(body[name], body.get(measure.weight, 1)) for body in bodies if name in body]
        if values:
            row[name] = float(np.average([v for v, _ in values], weights=[w for _, w in values]))
    row["bodies"] = [*bodies]


def _pooled(people: Sequence[_Points]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Error, sigma, visible [N] of some people; None without people, or without sigma."""
    if not people:
        return None
    error, sigma, visible = (
        np.concatenate([getattr(p, name) for p in people]) for name in ("error", "sigma", "visible")
    )
    return (error, sigma, visible) if np.isfinite(sigma).all() and sigma.min() > 0 else None


def _ranks(people: Sequence[_Points]) -> dict[str, float]:
    """How well sigma sorts the errors of some people."""
    pooled = _pooled(people)
    if pooled is None:
        return {}
    error, sigma, _ = pooled
    out = {"ause": metrics.ause(error, sigma)} if error.any() else {}
    if np.ptp(sigma) > 0 and np.ptp(error) > 0:
        out["spearman"] = metrics.spearman(sigma, error)
    return out


def _sigma_measures(people: Sequence[_Points]) -> dict[str, float]:
    """How well sigma tells the error of the points of some people. Empty where `_pooled` is None."""
    pooled = _pooled(people)
    if pooled is None:
        return {}
    error, sigma, visible = pooled
    out = _ranks(people)
    for name, which in (("", np.ones_like(visible)), ("_visible", visible), ("_hidden", ~visible)):
        if name:
            out[f"points{name}"] = int(which.sum())
        if which.any():
            for factor in (1, 2):
                out[f"coverage_{factor}_sigma{name}"] = metrics.coverage(error[which], sigma[which], factor)
            if name:
                out[f"sigma{name}"] = float(sigma[which].mean())
    return out
