"""An input through the product, frame by frame: what `mega replay` computes. It knows no clock, so two runs agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mega_model.core.cameras import Camera
from mega_model.core.errors import InputError

from ..recovery import People, Recovery
from ..ros.read import points_of
from ..stream import Stream, StreamSettings
from .frames import Frame, Input, open_input
from .meshes import Format, write_meshes
from .reference import WITHIN, Reference, open_reference, with_visible
from .results import MeshBag, MeshFile, put_in_place
from .score import Score

Row = dict[str, Any]
"""Of one frame: its number, stamp, people, ids, and its own scores; `problem` says why it has none, `notes` why some
boxes have no person."""


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


@dataclass
class Run:
    """An input that is being replayed."""

    recovery: Recovery
    settings: StreamSettings
    reference: Reference | None
    counts: Counts = field(default_factory=Counts)
    rows: list[Row] = field(default_factory=list)
    why_assumed: str = ""
    """of the first frame whose intrinsics are assumed."""
    camera_problem: str = ""
    """what is wrong with the first camera_info that is used all the same."""
    watch: Callable[[int], None] = lambda done: None
    """called after each frame with the number of frames that are done."""

    def __post_init__(self) -> None:
        self.score = Score(self.recovery.topology)

    def process(self, source: Input) -> Iterator[tuple[Frame, People | None]]:
        """Frames with the people in them; None where the frame cannot be used. Raises InputError where none can."""
        stream = Stream(self.recovery, self.settings)
        for frame in source.frames():
            row: Row = {"frame": self.counts.frames, "stamp": frame.stamp} | (
                {"name": frame.name} if frame.name else {}
            )
            people = None
            problem = frame.problem
            if frame.image is not None:
                try:
                    people = stream.process(frame.image, frame.camera, frame.stamp, frame.camera_problem)
                except InputError as error:
                    problem = f"{source.name}: {error}"
            if people is None:
                row["problem"] = problem
                self.counts.unreadable += 1
            else:
                row |= {"people": len(people), "ids": people.ids.tolist()}
                row |= {"notes": stream.notes} if stream.notes else {}
                self.camera_problem = self.camera_problem or ("" if stream.assumed else frame.camera_problem)
                self.counts.people += len(people)
                self.counts.assumed += bool(stream.assumed)
                self.why_assumed = self.why_assumed or stream.assumed
                row |= self._scores(frame, people, stream.camera)
            self.counts.frames += 1
            self.rows.append(row)
            self.watch(self.counts.frames)
            yield frame, people
        if self.counts.unreadable == self.counts.frames:
            raise InputError(self.rows[0]["problem"] if self.rows else f"{source.name}: no images in it")
        if self.reference is not None:
            self.reference.finish()

    def _scores(self, frame: Frame, people: People, camera: Camera) -> dict[str, float]:
        truth = None if self.reference is None else self.reference.at(frame.stamp)
        if truth is None:
            self.counts.without_reference += self.reference is not None
            return {}
        assert frame.image is not None
        truth = with_visible(truth, camera, frame.image.shape[1], frame.image.shape[0])
        return self.score.add(points_of(people.vertices, people.sigma, people.ids), truth, camera.K)

    def results(self) -> dict[str, Any]:
        """The report's part that says what was found."""
        out: dict[str, Any] = asdict(self.counts)
        if self.why_assumed:
            out["assumed_because"] = f"{self.why_assumed}; a field of view of {np.degrees(self.settings.fov):g} degrees"
        if self.camera_problem:
            out["camera_problem"] = self.camera_problem
        if self.reference is not None:
            out["reference"] = {
                "name": self.reference.name,
                "matched_within_seconds": WITHIN / 1e9,
                "unused": self.reference.unused,
            }
            out["scores"] = self.score.summary()
        out["table"] = self.rows
        return out


def write(
    run: Run, source: Input, out: Path, export: Format | None, bag: Path | None, report: Callable[[], str]
) -> None:
    """Replays `source` and writes its results; those of an earlier run are replaced when these are complete.

    Into `out`: meshes.npz, report.json with the text that `report` gives at the end, meshes/ with a file per frame if
    there is an `export`. `bag` is one of its own.
    """
    with ExitStack() as stack:
        fresh = stack.enter_context(put_in_place(out, ("meshes.npz", "meshes", "report.json")))
        meshes = MeshFile(fresh, run.recovery.topology)
        recorded = None
        if bag is not None:
            recorded = MeshBag(stack.enter_context(put_in_place(bag.parent, (bag.name,))) / bag.name)
        if export:
            (fresh / "meshes").mkdir()
        for k, (frame, people) in enumerate(run.process(source)):
            meshes.add(frame.stamp, people)
            if people is None:
                continue
            if recorded:
                recorded.add(frame.stamp, frame.frame_id, people)
            if export:
                write_meshes(fresh / "meshes" / f"{k:06}.{export}", people, run.recovery.topology)
        meshes.close()
        if recorded:
            recorded.close()
        (fresh / "report.json").write_text(report())


def scores_of(bag: Path, recovery: Recovery) -> dict[str, float]:
    """The scores of all frames of a bag against its own ground truth, without files."""
    source = open_input([bag])
    run = Run(recovery, StreamSettings(), open_reference(None, bag, len(recovery.topology.template)))
    for _ in run.process(source):
        pass
    return run.score.summary()
