"""Paths of installed files."""

from __future__ import annotations

from pathlib import Path


def share() -> Path:
    """The folder that holds config/, launch/, rviz/ and demo/: share/mega_ros of an installation, or the checkout."""
    here = Path(__file__)
    # a symlinked colcon build needs the real path
    for parent in (*here.parents, *here.resolve().parents):
        for folder in (parent / "share" / "mega_ros", parent):
            if (folder / "config" / "mega.yaml").is_file():
                return folder
    raise FileNotFoundError("mega_ros is not installed completely: no share/mega_ros/config/mega.yaml")
