"""What a release consists of: built, checked, and used from an environment that has nothing of the checkout."""

import os
import shutil
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from domains import free_domain

pytest.importorskip("build")
ROOT = Path(__file__).resolve().parents[1]
LARGEST = 60e6
"""Bytes of the wheel."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("this is not a git checkout")
    for name in files.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def dist(checkout: Path) -> Path:
    """A folder with the source archive and the wheel that was built from it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    end = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(dist.glob("*.whl")))


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone. Its requirements are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, str(next(dist.glob("*.whl")))], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    # a path in a .pth file comes last, and .pth files that lie there, as of an editable mega_ros, have no effect
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "requirements.pth").write_text("\n".join(others))
    return folder


def run(environment: Path, folder: Path, *words: str) -> str:
    """What a command of the environment prints, in a folder."""
    end = subprocess.run(words, cwd=folder, env=variables(environment), capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    return end.stdout


def variables(environment: Path) -> dict[str, str]:
    """Of a shell in which the environment is active."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment)}


def test_both_archives_can_be_uploaded(dist: Path) -> None:
    if not find_spec("twine"):
        pytest.skip("twine is not installed")
    assert sorted(path.name.split("-")[0] for path in dist.iterdir()) == ["mega_ros", "mega_ros"]
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    end = subprocess.run(check, capture_output=True, text=True)
    assert end.returncode == 0, end.stdout
    assert all(path.stat().st_size < LARGEST for path in dist.iterdir())


def test_a_program_beside_the_clone_finds_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    """Python takes a folder `mega_ros` beside the program for a package if all others are behind an import hook."""
    build = "from setuptools import build_meta; print(build_meta.build_editable('editable'))"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    zipfile.ZipFile(next((checkout / "editable").iterdir())).extractall(tmp_path / "site")
    (tmp_path / "mega_ros").mkdir()
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import mega_ros; print(mega_ros.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    end = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert end.stdout.strip() == str(checkout / "mega_ros" / "__init__.py"), end.stderr


def test_pip_installs_what_ros_looks_for(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    data = next(name.split("/")[0] for name in names if ".data/" in name)
    shipped = [path for folder in "launch config rviz foxglove demo".split() for path in (ROOT / folder).rglob("*.*")]
    assert len(shipped) > 15
    for path in (
        "share/ament_index/resource_index/packages/mega_ros",
        "share/mega_ros/package.xml",
        "lib/mega_ros/node",
        *(f"share/mega_ros/{path.relative_to(ROOT)}" for path in shipped if "__pycache__" not in path.parts),
    ):
        assert f"{data}/data/{path}" in names
    assert wheel.getinfo(f"{data}/data/lib/mega_ros/node").external_attr >> 16 & 0o111, "node must be executable"
    assert {"mega_ros/py.typed", "mega_model/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name]
    packages = {name.split("/")[0] for name in names if ".data/" not in name and ".dist-info/" not in name}
    assert packages == {"mega_ros", "mega_model"}, "other people's packages may have these names"


def test_pip_installs_the_default_model(wheel: zipfile.ZipFile) -> None:
    installed = {name for name in wheel.namelist() if name.startswith("mega_ros/models/default/")}
    present = {f"mega_ros/models/default/{path.name}" for path in (ROOT / "mega_ros/models/default").iterdir()}
    assert installed == present


def test_runtime_requirements_have_no_torch(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert any("onnxruntime" in line for line in required)
    assert not [line for line in required if "torch" in line or "ros-" in line]


def test_the_installed_command_says_its_version(environment: Path, tmp_path: Path) -> None:
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert run(environment, tmp_path, "mega", "--version") == f"mega_ros {version}\n"
    where = run(environment, tmp_path, "python", "-c", "import mega_ros; print(mega_ros.__file__)")
    assert Path(where.strip()).is_relative_to(environment)


def test_the_installed_command_finds_people_in_a_photograph(environment: Path, tmp_path: Path) -> None:
    photograph = environment / "share" / "mega_ros" / "demo" / "photographer.png"
    run(environment, tmp_path, "mega", "replay", str(photograph), "--out", "out")
    people = np.load(tmp_path / "out" / "meshes.npz")
    assert people["vertices"].shape[0] == 1 and np.isfinite(people["sigma"]).all()
    assert "photographer.png" in (tmp_path / "out" / "report.html").read_text()


def test_the_installed_node_answers_an_image(environment: Path, root: Path) -> None:
    """Started as `ros2 run` starts it, with the parameter file that is installed."""
    rclpy = pytest.importorskip("rclpy")
    from sensor_msgs.msg import Image
    from test_node import PATIENCE, Peer, image

    from mega_ros.ros.read import read_cloud

    domain = free_domain()
    parameters = environment / "share" / "mega_ros" / "config" / "mega.yaml"
    process = subprocess.Popen(
        [str(environment / "lib" / "mega_ros" / "node"), "--ros-args", "--params-file", str(parameters)],
        env=variables(environment) | {"ROS_DOMAIN_ID": str(domain)},
        cwd=environment,
    )
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    peer = Peer(context, Image, "image", "/")
    photograph = cv2.imread(str(root / "demo" / "photographer.png"))
    assert photograph is not None
    try:
        mesh, _ = peer.ask(image(photograph))
        assert mesh.height == 1 and np.isfinite(read_cloud(mesh)["sigma"]).all()
    finally:
        process.terminate()
        code = process.wait(PATIENCE)
        peer.executor_.shutdown()
        peer.destroy_node()
        rclpy.shutdown(context=context)
    assert code == 0
