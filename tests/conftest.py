"""Shared by several test files."""

import os

# before numpy loads: test machines are small, and several processes run at once
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import shutil
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from filelock import FileLock
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from mega_model.core.geometry import project

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["recordings"]
ROOT = Path(__file__).resolve().parents[1]
OF_TRAINING = re.compile("No module named '(torch|fsspec|lightning|matplotlib|onnx|safetensors)'")
"""What only the extras `train` and `export` bring."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A runtime installation has no torch: there, test files of training and export are skipped."""
    report = yield
    missing = OF_TRAINING.search(str(report.longrepr)) if report.failed and not find_spec("torch") else None
    if missing:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"{missing[1]} is not installed")
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip elsewhere."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("reference data beside the checkout (../shared) are not here")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tiny_people.make` fills. Only to be read."""
    from tiny_people import make  # needs torch

    return made_once(tmp_path_factory, "people", make)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once per run: the processes of pytest-xdist share it."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder, finished = run / name, run / f"{name}.finished"
    with FileLock(run / f"{name}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder


@dataclass(frozen=True)
class ClipFrame:
    """Of the embedded clip, where its truth is known."""

    image: np.ndarray
    """uint8 [480, 640, 3] BGR"""
    K: np.ndarray
    """[3, 3]"""
    vertices: np.ndarray
    """float32 [2, V, 3], metres: the true people"""

    @property
    def boxes(self) -> np.ndarray:
        """float32 [2, 4]: about all of each person."""
        points = project(self.vertices, self.K[None])
        return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float32)


@pytest.fixture(scope="session")
def clip_frames(root: Path) -> list[ClipFrame]:
    images, K, frames = {}, np.eye(3), []
    with AnyReader([root / "demo" / "clip"], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as bag:
        for connection, stamp, raw in bag.messages():
            message: Any = bag.deserialize(raw, connection.msgtype)
            if connection.topic == "/camera/camera_info":
                K = message.k.reshape(3, 3)
            elif connection.topic == "/camera/image_raw/compressed":
                image = cv2.imdecode(message.data, cv2.IMREAD_COLOR)
                assert image is not None
                images[stamp] = image
            else:
                columns = message.data.view(np.float32).reshape(message.height, message.width, -1)
                frames.append(ClipFrame(images[stamp], K, columns[..., :3].copy()))
    return frames
