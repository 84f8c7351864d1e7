"""docs/licences.md is what scripts/licences.py writes."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("packaging")


@pytest.fixture
def licences(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("licences", root / "scripts" / "licences.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(licences: ModuleType) -> None:
    """Other versions of the packages, and other packages that these require, are those of another environment."""

    def rows(table: str) -> dict[str, list[str]]:
        found = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
        return {name: rest for name, *rest in found}

    page, now = licences.PAGE.read_text(), licences.page()
    (shipped, written), (shipped_now, written_now) = (text.split(licences.PIP) for text in (page, now))
    assert shipped == shipped_now, "run scripts/licences.py"
    before, after = rows(written), rows(written_now)
    for name, (version, licence, _) in after.items():
        if name in before and before[name][0] == version:
            assert before[name][1] == licence, f"{name}: run scripts/licences.py"
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in licences.direct()}
    assert {"numpy", "onnxruntime", "ros-kilted-rclpy"} <= names <= before.keys()


def test_every_licence_is_stated(licences: ModuleType) -> None:
    unstated = re.findall(r"^\| (\S+) \|.*\| not stated \|", licences.PAGE.read_text(), re.MULTILINE)
    assert unstated == ["ros-fastcdr", "ros-fastdds", "ros-kilted-rclpy"], "the page explains these"
    assert len(licences.parts()) == len([*licences.shipped()])


def test_no_fonts_and_no_scripts_are_shipped(licences: ModuleType) -> None:
    assert {path.suffix for path in licences.shipped()} == {".onnx", ".npz", ".jpg", ".png", ".mcap"}
