"""Package of mega_ros, for pip and for colcon alike."""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "mega_ros"

# A ROS installation brings its own rclpy, so the wheels are an extra and `colcon build` asks for nothing.
ROS = [
    "ros-kilted-rclpy[fastrtps]",
    "ros-ament-index-python",
    "ros-diagnostic-msgs",
    "ros-geometry-msgs",
    "ros-rosgraph-msgs",
    "ros-sensor-msgs",
    "ros-shape-msgs",
    "ros-std-msgs",
    "ros-visualization-msgs",
    "psutil>=5.9",
]
TRAIN = [
    "torch>=2.4",
    "anny==0.6.2",
    "fsspec>=2023.1",
    "lightning>=2.4",
    "matplotlib>=3.6",
    "onnx>=1.16",
    "safetensors>=0.4",
    "tensorboard>=2.16",
    "tqdm>=4.60",
]
EXPORT = ["torch>=2.6", "matplotlib>=3.6", "onnx>=1.16", "onnxscript>=0.3", "safetensors>=0.4"]
IMPORT = ["torch>=2.4", "onnx>=1.16", "safetensors>=0.4", "tflite>=2.10"]
# apart from `train`, because the licence of smplx allows research only
SMPL = ["smplx>=0.1.28"]
# `mega replay --export obj|ply|glb`
MESH = ["trimesh>=4"]
# `mega replay --parquet`
PARQUET = ["pyarrow>=15"]
# `mega view`
VIEW = ["viser>=1.0"]
# `mega replay --engine ray`
CLUSTER = ["ray>=2.40"]
# `make docs`; Material 10 and MkDocs 2 would need another configuration
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.5,<10",
    "mkdocstrings-python>=1.12",
    # the last mkdocstrings for Python 3.10 fails with newer ones
    "pymdown-extensions<12; python_version < '3.11'",
]
# without torch; `colcon test` looks for pytest under this name
TEST = [
    "build>=1",
    "filelock>=3.12",
    *MESH,
    *VIEW,
    "hypothesis>=6",
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "rosbags-image>=0.10",
    "setuptools>=69",
    "wheel",
]
DEV = [*TEST, *DOCS, *IMPORT, *SMPL, "mutmut>=3.8", "mypy>=1.11", "ruff>=0.6", "twine>=6", "types-PyYAML"]


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file of `folders` under share/mega_ros, at the path it has here."""
    return [
        (f"share/{PACKAGE}/{folder}", [f"{folder}/{name}" for name in names if not name.endswith(".pyc")])
        for root in folders
        for folder, _, names in os.walk(root)
        if names and "__pycache__" not in folder
    ]


setup(
    name=PACKAGE,
    version=ElementTree.parse("package.xml").findtext("version"),  # pip and colcon build in this folder
    description="People as 3D surfaces with a calibrated uncertainty for every vertex, from any camera topic",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    maintainer="mega_ros maintainers",
    maintainer_email="maintainers@mega-ros.example",
    keywords=["ROS 2", "human mesh recovery", "3D human pose", "uncertainty", "masked generative model", "ONNX"],
    project_urls={"Paper": "https://arxiv.org/abs/2405.18839"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    # export/ is run from a checkout; its name is too general to install
    packages=find_packages(include=["mega_ros*", "mega_model*"]),
    # with this, an editable install is a path, not an import hook that a folder `mega_ros` beside a program would hide
    package_dir={"": "."},
    package_data={
        "mega_ros": ["py.typed", "models/default/*", "replay/report.html"],
        "mega_model": ["py.typed", "data/*.npz", "data/backgrounds/*"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        # `ros2 run` and launch files look for executables here, pip would put a console script elsewhere
        (f"lib/{PACKAGE}", ["scripts/node"]),
        *shared("launch", "config", "rviz", "foxglove", "demo"),
    ],
    install_requires=[
        "jinja2>=3",
        "leather>=0.4",
        "msgspec>=0.19",
        "numpy>=1.23",
        "onnxruntime>=1.21",
        "opencv-python-headless>=4.8",
        "pyyaml>=6",
        "rich>=13",
        "rosbags>=0.11.9",
        "scipy>=1.9",
        "simplejpeg>=1.7",
        "tyro>=0.9",
    ],
    extras_require={
        "ros": ROS,
        "train": TRAIN,
        "import": IMPORT,
        "smpl": SMPL,
        "export": EXPORT,
        "mesh": MESH,
        "parquet": PARQUET,
        "view": VIEW,
        "cluster": CLUSTER,
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["mega = mega_ros.cli:main"]},
    zip_safe=False,
)
