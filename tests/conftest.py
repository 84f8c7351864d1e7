"""Shared by several test files."""

import os

# before numpy loads: test machines are small, and several processes run at once
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

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
