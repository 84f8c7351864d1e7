#!/usr/bin/env python3
"""Writes docs/licences.md: licences of everything that the wheel ships, and of what the runtime asks pip to install."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

from mega_ros.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
BUNDLE = "mega_ros/models/default"
BACKGROUNDS = "mega_model/data/backgrounds"
CODE = (".py", ".yaml", ".xml", ".json", ".html", ".rviz", ".md", ".typed", "")
"""How the names of files end that are this project's own text."""
TRAINED = "trained by this project on rendered bodies of Anny", "Apache-2.0; Anny: Apache-2.0, its assets CC0-1.0"
OTHERS = {
    f"{BUNDLE}/deterministic.onnx": TRAINED,
    f"{BUNDLE}/sampler.onnx": TRAINED,
    f"{BUNDLE}/topology.npz": ("Anny, Copyright (C) 2025 NAVER Corporation", "Apache-2.0, its assets CC0-1.0"),
    "mega_model/data/cmu_anny_poses.npz": (
        "mocap.cs.cmu.edu, created with funding from NSF EIA-0196217; put on Anny's skeleton by this project",
        "free to use, also in products; not to be resold as data",
    ),
    "demo/clip/clip.mcap": ("rendered by this project, with the body and the poses above", "Apache-2.0"),
    "demo/photographer.png": ("Lav Varshney, out of PyPI scikit-image 0.26.0, skimage/data/camera.png", "CC0-1.0"),
}
"""What neither the bundle's manifest nor the table of the backgrounds describes: path -> origin, licence."""
PIP = "## Installed by pip"
TEXT = f"""# Licences

What the wheel ships, and what pip installs beside it. `scripts/licences.py` writes this page; a test checks that
it is current.

The code is under Apache-2.0 (`LICENSE`; `NOTICE` has the acknowledgements). No fonts and no JavaScript are shipped.

## Shipped in the wheel

| file | origin | licence |
| --- | --- | --- |
{{shipped}}

{PIP}

Requirements of the runtime and of its extra `ros`, with what these require, and the licence that each package's
metadata state. eProsima publishes Fast DDS and Fast CDR under Apache-2.0; their wheels do not state it.
`ros-kilted-rclpy` is only a list of others. Wheels may contain libraries of others, such as FFmpeg (LGPL-2.1) in
OpenCV's: see their `*.dist-info`.

| package | version | licence | required by |
| --- | --- | --- | --- |
{{pip}}
"""


def shipped() -> Iterator[Path]:
    """The files that setup.py puts into the wheel, relative to the checkout, but for code and settings."""
    for folder in ("mega_ros", "mega_model", "launch", "config", "rviz", "foxglove", "demo"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in CODE:
                yield path.relative_to(ROOT)


def parts() -> dict[str, tuple[str, str]]:
    """Path -> origin and licence."""
    found = dict(OTHERS)
    for graph, origin in Bundle.load(ROOT / BUNDLE).origins.items():
        origin, _, rest = origin.partition("; licence: ")
        licence, _, note = rest.partition("; ")
        found[f"{BUNDLE}/{graph}.onnx"] = "; ".join(filter(None, (origin, note))), licence
    rows = re.findall(
        r"^\| (\S+\.jpg) \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / BACKGROUNDS / "README.md").read_text(), re.M
    )
    return found | {f"{BACKGROUNDS}/{name}": (f"{author}; {source}", licence) for name, author, source, licence in rows}


def required(*names: str) -> dict[str, str]:
    """The packages that these requirements bring here: name -> the first package that asks for it."""
    found: dict[str, str] = {}
    waiting = [(Requirement(name), "mega_ros") for name in names]
    while waiting:
        requirement, by = waiting.pop(0)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        try:
            texts = requires(name) or []
        except PackageNotFoundError:  # as the system's packages, which are not pip's
            continue
        found[name] = by
        for text in texts:
            needed = Requirement(text)
            extras = [{"extra": extra} for extra in (*requirement.extras, "")]
            if not needed.marker or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append((needed, name))
    return found


def licence_of(name: str) -> str:
    """As a package's metadata say; a wheel of ROS has them in its package.xml."""
    package = distribution(name)

    def said(field: str) -> list[str]:
        return package.metadata.get_all(field) or []

    classifiers = [c.split(" :: ")[-1] for c in said("Classifier") if c.startswith("License ::")]
    stated = ", ".join(said("License-Expression") or classifiers) or "".join(said("License")).split("\n")[0]
    manifests = [Path(str(file.locate())) for file in package.files or [] if file.name == "package.xml"]
    of_ros = [found.text or "" for path in manifests for found in ElementTree.parse(path).iter("license")]
    return stated or ", ".join(of_ros) or "not stated"


def direct() -> list[str]:
    """The requirements in setup.py of the runtime, and of its extra `ros`."""
    source = (ROOT / "setup.py").read_text()
    lists = re.findall(r"^ROS = \[(.*?)\]\n|install_requires=\[(.*?)\n    \]", source, re.DOTALL | re.MULTILINE)
    return [name for pair in lists for name in re.findall(r'"(.+?)"', "".join(pair))]


def page() -> str:
    """The text of docs/licences.md. Raises KeyError that names a file whose licence is not known."""
    known = parts()
    files = [str(path) for path in shipped()]
    shipped_rows = [f"| {path} | {' | '.join(known[path])} |" for path in files]
    pip_rows = [
        f"| {name} | {distribution(name).version} | {licence_of(name)} | {by} |"
        for name, by in sorted(required(*direct()).items())
    ]
    return TEXT.format(shipped="\n".join(shipped_rows), pip="\n".join(pip_rows))


if __name__ == "__main__":
    PAGE.write_text(page())
