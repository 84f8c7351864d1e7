"""Sets that processes fill chunk by chunk: equal for any number of them, and after an interruption."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from mega_model.core.commands import call
from mega_model.core.errors import InputError
from mega_model.data.chunks import begun, fill, open_fields

COUNT, EACH = 14, 4
"""Four chunks, the last one of two rows."""
PATIENCE = 60.0
"""Seconds."""


@dataclass
class SetOptions:
    out: Path
    scenes: Path = Path("scenes")
    seed: int = 3
    workers: int = 1


class Numbers:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        rng, rows = np.random.default_rng([self.seed, chunk]), min(EACH, COUNT - chunk * EACH)
        return {"places": rng.normal(size=(rows, 3)), "kind": rng.integers(9, size=rows)}


class Endless(Numbers):
    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        if chunk:
            time.sleep(3600)
        return super().draw(chunk)


def store(out: Path, workers: int) -> dict[str, np.ndarray]:
    out.mkdir(exist_ok=True)
    fill(out, SetOptions(out, workers=workers), partial(Numbers, 3), COUNT, EACH, workers)
    return {name: np.array(rows) for name, rows in open_fields(out, "nothing").items()}


def test_a_set_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    alone, together = store(tmp_path / "alone", 1), store(tmp_path / "together", 2)
    parts = [Numbers(3).draw(chunk) for chunk in range(4)]
    for name in ("places", "kind"):
        np.testing.assert_array_equal(alone[name], np.concatenate([part[name] for part in parts]))
        np.testing.assert_array_equal(alone[name], together[name])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_stopped_goes_on(tmp_path: Path, workers: int) -> None:
    assert not begun(tmp_path)
    made = store(tmp_path, 1)
    assert begun(tmp_path)
    np.save(tmp_path / "places.npy", 0 * made["places"])
    for chunk in (1, 3):
        (tmp_path / "progress" / str(chunk)).unlink()
    found = store(tmp_path, workers)["places"]
    for rows in (slice(4, 8), slice(12, 14)):
        np.testing.assert_array_equal(found[rows], made["places"][rows])
    assert not found[:4].any() and not found[8:12].any(), "what is done is left alone"


class Interrupted(Numbers):
    def draw(self, chunk: int) -> dict[str, np.ndarray]:
        if chunk:
            raise KeyboardInterrupt
        return {"rows": np.ones((EACH, 100_000))}


def test_the_whole_set_has_its_place_on_the_disk_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, SetOptions(tmp_path), partial(Interrupted, 3), COUNT, EACH, 1)
    state = (tmp_path / "rows.npy").stat()
    assert state.st_blocks * 512 >= state.st_size > COUNT * 800_000


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        store(tmp_path, 1)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert call("mega render", write) == 1
    assert capsys.readouterr().err == f"mega render: {tmp_path / 'places.npy'}: No space left on device\n"


def test_what_is_not_complete_is_not_read(tmp_path: Path) -> None:
    """Rows that are not stored yet are zeros."""
    store(tmp_path, 1)
    (tmp_path / "progress" / "2").unlink()
    with pytest.raises(InputError, match=f"{tmp_path}: only 3 of 4 parts are stored"):
        open_fields(tmp_path, "nothing")
    store(tmp_path, 1)


def test_a_set_does_not_go_on_with_other_options(tmp_path: Path) -> None:
    store(tmp_path, 1)
    other = SetOptions(tmp_path, seed=5)
    with pytest.raises(InputError, match=f"{tmp_path}: a set with seed 3, not 5; give the same, or another folder"):
        fill(tmp_path, other, partial(Numbers, 5), COUNT, EACH, 1)
    fill(tmp_path, SetOptions(tmp_path, scenes=Path("moved")), partial(Numbers, 3), COUNT, EACH, 1)


def test_a_set_does_not_go_on_with_files_of_other_content(tmp_path: Path) -> None:
    network, out = tmp_path / "network", tmp_path / "out"
    network.write_text("weights")
    out.mkdir()

    def go(file: Path | None) -> None:
        fill(out, SetOptions(out), partial(Numbers, 3), COUNT, EACH, 1, {"network": file})

    go(network)
    go(network.rename(tmp_path / "moved"))
    (tmp_path / "moved").write_text("other weights")
    with pytest.raises(InputError, match=f"{out}: a set with network of SHA-256 .*, not of SHA-256 .*; give the same"):
        go(tmp_path / "moved")
    with pytest.raises(InputError, match="network: there is no such file"):
        go(network)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    call = f"fill(Path({str(tmp_path)!r}), SetOptions(Path()), partial(Endless, 3), COUNT, EACH, 2)"
    code = f"from test_chunks import *; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    try:
        workers: list[psutil.Process] = []
        while len(workers) < 3:  # two, and what multiprocessing starts
            assert process.poll() is None
            workers = psutil.Process(process.pid).children()
    finally:
        process.send_signal(number)
        process.wait()
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]


def test_without_a_worker_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers: 0, at least one is needed"):
        store(tmp_path, 0)
    assert not begun(tmp_path)
