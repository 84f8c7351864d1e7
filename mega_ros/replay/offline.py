"""An input through the product, frame by frame: what `mega replay` computes. It knows no clock, so two runs agree.

Most of the time goes into what an image shows, which does not depend on other images, so workers may do that. Who is
who, and smoothing, depend on the images before: this process does them, in order. So results do not depend on the
workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError

from ..recovery import PELVIS, Observation, People, Recovery
from ..ros.read import positions
from ..stream import Seen, Stream, StreamSettings
from . import many
from .drawings import Film
from .frames import Frame, Input, open_input
from .measures import Row
from .meshes import Format, Grouping, write_frame, write_tracks
from .progress import progress
from .reference import Matched, Reference, Truth, open_reference
from .report_page import Worst, write_page
from .results import MeshBag, MeshFile, put_in_place, write_csv, write_json, write_parquet
from .score import Score
from .sheets import PageFrame

NAMES = (
    "meshes.npz",
    "meshes",
    "video.webm",
    "frames.csv",
    "people.csv",
    "frames.parquet",
    "report.html",
    "report.json",
)
"""What a replay may write into its folder."""

PERSON = ("stamp", "frame", "id", "x", "y", "z", "distance", "sigma", "pelvis_sigma", "score")
"""Columns of people.csv: a person in a frame. x, y, z: the pelvis. distance: `People.distance`. sigma: the vertices'
mean."""


@dataclass
class Counts:
    """What became of the frames."""

    frames: int = 0
    unreadable: int = 0
    people: int = 0
    assumed: int = 0
    """frames whose intrinsics are assumed."""
    without_reference: int = 0
    """frames without ground truth, where others have some."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written beside the report and meshes.npz."""

    export: Format | None = None
    by: Grouping = "frame"
    parquet: bool = False
    video: bool = False
    bag: Path | None = None


def _observe(job: tuple[Recovery, StreamSettings, Frame]) -> Seen | str:
    """What a frame's image shows, or why it cannot be used."""
    recovery, settings, frame = job
    if frame.image is None:
        return frame.problem
    try:
        seen = Stream(recovery, settings).observe(frame.image, frame.camera, frame.camera_problem)
    except InputError as error:
        return str(error)
    # the graphs' outputs are large, and only samples need them
    return seen if settings.samples else replace(seen, observation=replace(seen.observation, outputs=None))


_Identifying = tuple[Recovery, StreamSettings, Observation, np.ndarray]


def _identify(job: _Identifying | None) -> People | None:
    """Those of an observation with their ids and samples; None where there is none."""
    if job is None:
        return None
    recovery, settings, observation, ids = job
    assert settings.samples != "auto"  # that depends on the images before
    return recovery.identified(observation, ids, settings.samples, settings.seed, settings.keep_samples)


@dataclass
class Run:
    """An input that is being replayed."""

    recovery: Recovery
    settings: StreamSettings
    reference: Reference | None
    counts: Counts = field(default_factory=Counts)
    rows: list[Row] = field(default_factory=list)
    """of each frame: its number, stamp, people, ids, and its own scores; `problem` says why it has none."""
    people: list[Row] = field(default_factory=list)
    """each person in each frame: `PERSON`, without what is not known."""
    one_camera: bool = True
    """whether an id is the same person in all frames."""
    why_assumed: str = ""
    """of the first frame whose intrinsics are assumed."""
    camera_problem: str = ""
    """what is wrong with the first camera_info that is used all the same."""
    note: str = ""
    """on how the input was read."""
    watch: Callable[[int], None] = lambda done: None
    """called after each frame with the number of frames that are done."""

    def __post_init__(self) -> None:
        self.score = Score(self.recovery.topology)
        if self.settings.samples is None:
            self.settings = replace(self.settings, samples=self.recovery.bundle.sampling.samples)

    def process(self, source: Input, pool: many.Pool = many.HERE) -> Iterator[tuple[Frame, People | None, Camera]]:
        """Frames with the people in them and the camera; None where the frame cannot be used.

        Raises InputError where none can.
        """
        self.one_camera = source.one_camera
        drawing = pool if self.settings.samples else many.HERE  # else a job is too small to send
        for ((frame, truth), stream, seen), people in many.in_order(drawing, _identify, self._seen(source, pool)):
            row: Row = {"frame": self.counts.frames, "stamp": frame.stamp}
            row |= {"name": frame.name} if frame.name else {}
            if not isinstance(seen, Seen) or people is None:
                why = seen if isinstance(seen, str) else f"its worker died {many.ATTEMPTS} times"
                row["problem"] = frame.problem or f"{source.name}: {why}"
                self.counts.unreadable += 1
            else:
                people = stream.finish(seen, people, frame.stamp)
                row |= {"people": len(people), "ids": people.ids.tolist()}
                if people.sigma.size and np.isfinite(people.sigma).all():
                    row["sigma"] = float(people.sigma.mean())
                row |= {"notes": stream.notes} if stream.notes else {}
                self.camera_problem = self.camera_problem or ("" if stream.assumed else frame.camera_problem)
                self.counts.people += len(people)
                self.people += _rows_of(people, row)
                self.counts.assumed += bool(stream.assumed)
                self.why_assumed = self.why_assumed or stream.assumed
                if truth is not None:
                    assert frame.image is not None
                    if isinstance(truth, Truth) and not source.one_camera:
                        truth = replace(truth, ids=None)  # they may start again in each image, as ours do
                    height, width = frame.image.shape[:2]
                    self.score.add(row, people, truth, stream.camera, (width, height))
                self.counts.without_reference += self.reference is not None and truth is None
            self.counts.frames += 1
            self.rows.append(row)
            self.watch(self.counts.frames)
            yield frame, people, stream.camera
        self.note = source.note
        if self.counts.unreadable == self.counts.frames:
            raise InputError(self.rows[0]["problem"] if self.rows else f"{source.name}: no images in it")
        if self.reference is not None:
            self.note = "; ".join(filter(None, (self.note, self.reference.note)))
        self.score.finish()

    def _seen(
        self, source: Input, pool: many.Pool
    ) -> Iterator[tuple[tuple[Matched, Stream, Seen | str | None], _Identifying | None]]:
        """Frames, their references and streams, what they show, and the jobs of `_identify`."""
        stream = Stream(self.recovery, self.settings)
        frames: Iterator[Matched] = ((frame, None) for frame in source.frames())
        if self.reference is not None:
            frames = self.reference.matched(source.frames())
        # those of frames that cannot be used are matched, too, and not left for others
        jobs = ((matched, (self.recovery, self.settings, matched[0])) for matched in frames)
        for matched, seen in many.in_order(pool, _observe, jobs):
            if not source.one_camera:
                stream = Stream(self.recovery, self.settings)
            job = None
            if isinstance(seen, Seen):
                job = self.recovery, self.settings, seen.observation, stream.identify(seen, matched[0].stamp)
            yield (matched, stream, seen), job

    def results(self) -> dict[str, Any]:
        """The report's part that says what was found."""
        out: dict[str, Any] = asdict(self.counts)
        if self.why_assumed:
            out["assumed_because"] = f"{self.why_assumed}; a field of view of {np.degrees(self.settings.fov):g} degrees"
        if self.note:
            out["note"] = self.note
        if self.camera_problem:
            out["camera_problem"] = self.camera_problem
        if self.reference is not None:
            out["reference"] = {
                "name": self.reference.name,
                "matching": self.reference.matching,
                "frames_without": [
                    row.get("name", row["frame"])
                    for row in self.rows
                    if "true_people" not in row and "problem" not in row
                ],
                "unused": self.reference.unused,
            }
            out |= {
                "scores": self.score.summary(),
                "intervals": self.score.intervals(),
                "persons": self.score.persons(),
                "curves": self.score.curves(self.recovery.bundle.calibration.quantiles),
            }
        if self.one_camera:
            out["tracks"] = tracks(self.people)
        out["table"] = self.rows
        return out


def _rows_of(people: People, row: Row) -> list[Row]:
    """The people of a frame whose row this is, to a tenth of a millimetre."""
    sigmas = people.sigma.mean(axis=1), people.joints_sigma[:, PELVIS]
    columns = [*people.joints[:, PELVIS].T, people.distance, *sigmas, people.scores]
    rows = []
    for person, *numbers in zip(people.ids.tolist(), *(column.tolist() for column in columns)):
        known = {name: round(number, 4) for name, number in zip(PERSON[3:], numbers) if np.isfinite(number)}
        rows.append({"stamp": row["stamp"], "frame": row["frame"], "id": person} | known)
    return rows


def tracks(people: Sequence[Row]) -> list[Row]:
    """`PERSON` rows -> of each id: first and last stamp, frames, nearest distance from the camera, mean sigma."""
    by_id: dict[int, list[Row]] = {}
    for row in people:
        by_id.setdefault(row["id"], []).append(row)
    out = []
    for person, rows in sorted(by_id.items()):
        track = {"id": person, "first": rows[0]["stamp"], "last": rows[-1]["stamp"], "frames": len(rows)}
        track["nearest"] = min(hypot(row["x"], row["y"], row["z"]) for row in rows)
        sigmas = [row["sigma"] for row in rows if "sigma" in row]
        out.append(track | ({"sigma": float(np.mean(sigmas))} if sigmas else {}))
    return out


def write(
    run: Run, source: Input, out: Path, outputs: OutputOptions, finished: Callable[[], dict[str, Any]], pool: many.Pool
) -> None:
    """Replays `source` and writes `NAMES`; those of an earlier run are replaced when these are complete.

    `finished` gives the report at the end. `outputs.bag` is a bag of its own.
    Raises InputError, also for tracks of images whose ids start again in each.
    """
    if outputs.export and outputs.by == "track" and not source.one_camera:
        raise InputError(f"{source.name}: --export-by track: ids start again in each image of a json; export by frame")
    with ExitStack() as stack:
        fresh = stack.enter_context(put_in_place(out, NAMES))
        meshes = MeshFile(fresh, run.recovery.topology)
        recorded = None
        if outputs.bag is not None:
            folder = stack.enter_context(put_in_place(outputs.bag.parent, (outputs.bag.name,)))
            recorded = MeshBag(folder / outputs.bag.name, run.recovery.topology)
        film = Film(fresh / "video.webm", run.recovery.topology) if outputs.video else None
        worst = Worst()
        for k, (frame, people, camera) in enumerate(run.process(source, pool)):
            meshes.add(frame.stamp, people)
            if people is None:
                continue
            assert frame.image is not None
            if recorded:
                recorded.add(frame, people, camera)
            if outputs.export and outputs.by == "frame":
                write_frame(fresh / "meshes" / f"{k:06}.{outputs.export}", people, run.recovery.topology)
            shown = PageFrame(frame.image, camera, people.vertices, people.sigma, people.ids)
            worst.add(run.rows[-1], shown)
            if film:
                film.add(frame.stamp, shown)
        meshes.close()
        if outputs.export and outputs.by == "track":
            write_tracks(fresh / "meshes", fresh / "meshes.npz", outputs.export, run.recovery.topology)
        if recorded:
            recorded.close()
        if film:
            film.close()
        report = finished()
        write_json(fresh / "report.json", report)
        write_csv(fresh / "frames.csv", run.rows)
        write_csv(fresh / "people.csv", run.people, PERSON)
        if outputs.parquet:
            write_parquet(fresh / "frames.parquet", run.rows)
        write_page(fresh / "report.html", report, worst.drawn(run.recovery.topology.faces))


def scores_of(bag: Path, recovery: Recovery, console: Console) -> dict[str, float]:
    """The scores of all frames of a bag against its own ground truth, without files."""
    source = open_input([bag])
    run = Run(recovery, StreamSettings(), open_reference(None, bag, recovery.topology))
    with progress(console) as bar:
        task = bar.add_task(f"scoring every frame of {source.name}", total=source.count)
        for _ in run.process(source):
            bar.advance(task)
    return run.score.summary()


def agreement(source: Input, recovery: Recovery, settings: StreamSettings, clouds: Mapping[int, np.ndarray]) -> Row:
    """How far the meshes of a live replay are from those of the same frames offline.

    clouds: stamp -> people x vertices with x, y, z, as the node published them. What follows a person over time depends
    on the frames before, so offline only the frames are run that the node answered.
    Returns `frames`, the number of frames with the same ids, `largest`, the largest distance of a vertex in them in
    metres, and `other_people`, the number of frames with other ids.
    """
    stream, largest, frames, others = Stream(recovery, settings), 0.0, 0, 0
    for frame in source.frames():
        if frame.stamp not in clouds or frame.image is None:
            continue
        people = stream.process(frame.image, frame.camera, frame.stamp, frame.camera_problem)
        cloud = clouds[frame.stamp]
        if cloud["id"][:, 0].tolist() != people.ids.tolist():
            others += 1
            continue
        frames += 1
        if len(people):
            largest = max(largest, float(np.linalg.norm(positions(cloud) - people.vertices, axis=-1).max()))
    return {"frames": frames, "largest": largest, "other_people": others}
