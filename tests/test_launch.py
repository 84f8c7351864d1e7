"""The launch files. `launch` comes with a ROS installation only, so stand-ins take its classes' arguments here."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from mega_ros.environment import share


class StandIn:
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments
        self.named = named


class LaunchConfiguration(StandIn):
    def perform(self, context: dict[str, str]) -> str:
        return context[self.arguments[0]]


MODULES = {
    "launch": "LaunchContext LaunchDescription",
    "launch.actions": "DeclareLaunchArgument ExecuteProcess OpaqueFunction Shutdown",
    "launch.substitutions": "LaunchConfiguration PathJoinSubstitution",
    "launch_ros": "",
    "launch_ros.actions": "Node",
    "launch_ros.substitutions": "FindPackageShare",
}


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A launch file as a module. `monkeypatch` must live as long as it is used."""
    for name, classes in MODULES.items():
        module = ModuleType(name)
        for each in classes.split():
            kind = LaunchConfiguration if each == "LaunchConfiguration" else type(each, (StandIn,), {})
            setattr(module, each, kind)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("mega_launch", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["mega.launch.py"])
def launch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, root: Path) -> Any:
    return load(root / "launch" / request.param, monkeypatch)


def context(launch: Any, **given: str) -> dict[str, str]:
    """What launch knows after its arguments are declared."""
    declared = [a for a in launch.generate_launch_description().arguments[0] if "default_value" in a.named]
    values = {a.arguments[0]: a.named["default_value"] for a in declared}
    assert all(a.named["description"] for a in declared)
    assert given.keys() <= values.keys()
    return values | {"params": str(share() / "config" / "mega.yaml")} | given


def test_arguments_become_parameters_of_their_type(launch: Any) -> None:
    given = {
        "rotate": "90",
        "fov": "1",
        "tf": "true",
        "autostart": "false",
        "boxes": "full_frame",
        "provider": "cpu",
    }
    (node,) = launch.nodes(context(launch, **given))
    file, *others = node.named["parameters"]
    assert file == str(share() / "config" / "mega.yaml")
    chosen = {name: value for other in others for name, value in other.items()}
    right = {"rotate": 90, "fov": 1.0, "tf": True, "autostart": False, "boxes": "full_frame", "provider": "cpu"}
    assert chosen == right
    assert {name: type(value) for name, value in chosen.items()} == {n: type(v) for n, v in right.items()}
    for name, text in (("tf", " ON"), ("predict", "on "), ("autostart", "No"), ("autostart", "0")):
        (node,) = launch.nodes(context(launch, **{name: text}))
        assert node.named["parameters"][1] == {name: text.strip().lower() == "on"}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("fov", "wide", "is not of type float"),
        ("tf", "ture", "is none of true, 1, yes, on, false, 0, no, off"),
        ("predict", " ", "is none of true"),
        ("emulate_tty", "fales", "is none of true"),
        ("respawn", "ja", "is none of true"),
        ("rviz", "ture", "is none of true"),
        ("on_exit", "shut", "is none of shutdown, continue"),
    ],
)
def test_a_value_that_is_none_of_the_argument_is_named(launch: Any, name: str, text: str, reason: str) -> None:
    """Before anything starts."""
    given = context(launch, **{name: text})
    with pytest.raises(ValueError, match=f"^{name}: '{text}' {reason}"):
        launch.check(given)
        launch.nodes(given)


def test_every_parameter_among_the_arguments_is_one_of_the_node(launch: Any) -> None:
    known = yaml.safe_load((share() / "config" / "mega.yaml").read_text())["/**"]["ros__parameters"]
    for name, (kind, _) in launch.PARAMETERS.items():
        assert isinstance(known[name], kind)


def test_several_cameras_and_their_topics(launch: Any) -> None:
    given = {"cameras": "front=/front_camera/image_raw, rear", "rviz": "true", "namespace": "robot"}
    node, rviz = launch.nodes(context(launch, **given))
    assert node.named["remappings"] == [("front/image", "/front_camera/image_raw")]
    assert node.named["parameters"][-1] == {"cameras": ["front", "rear"]}
    assert dict(rviz.named["remappings"])["/mega/overlay"] == "mega/front/overlay"
    with pytest.raises(ValueError, match="cameras: two have one name: front"):
        launch.nodes(context(launch, cameras="front,front=/image"))
    with pytest.raises(ValueError, match="camera_info: each of several cameras has its own"):
        launch.nodes(context(launch, cameras="front", camera_info="/camera_info"))
    (node,) = launch.nodes(context(launch, image="camera/image_raw"))
    assert dict(node.named["remappings"]) == {"image": "camera/image_raw", "camera_info": "camera/camera_info"}


def test_how_the_process_runs(launch: Any) -> None:
    (node,) = launch.nodes(context(launch))
    assert (node.named["emulate_tty"], node.named["respawn"]) == (True, False)
    assert node.named["ros_arguments"] == ["--log-level", "info"]
    other = context(launch, emulate_tty="false", respawn="true", log_level="debug")
    (node,) = launch.nodes(other)
    assert (node.named["emulate_tty"], node.named["respawn"], node.named["on_exit"]) == (False, True, None)
    assert node.named["ros_arguments"] == ["--log-level", "debug"]
    (node,) = launch.nodes(context(launch, on_exit="Continue"))
    assert node.named["on_exit"] is None
    empty = context(launch, on_exit="", emulate_tty="", respawn="", rviz="")
    (node,) = launch.nodes(empty)  # the defaults
    assert (node.named["emulate_tty"], node.named["respawn"], bool(node.named["on_exit"])) == (True, False, True)


def test_a_node_that_fails_makes_launch_fail(launch: Any) -> None:
    """launch returns 1 after an exception, and stops what runs; after Shutdown it returns 0."""
    (node,) = launch.nodes(context(launch))
    with pytest.raises(RuntimeError, match="the node ended with code 1"):
        node.named["on_exit"](SimpleNamespace(returncode=1), None)
    assert type(node.named["on_exit"](SimpleNamespace(returncode=0), None)).__name__ == "Shutdown"


def test_the_shared_part_needs_only_what_the_python_of_ros2_has(root: Path) -> None:
    """That is the system's, without the packages of a virtual environment."""
    subprocess.run([sys.executable, "-S", "-c", "import mega_ros.ros.launch_files"], cwd=root, check=True)


def test_what_is_missing_is_named_before_anything_starts(
    launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages = tmp_path / "share" / "ament_index" / "resource_index" / "packages"
    packages.mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    functions = [
        a.named["function"] for a in launch.generate_launch_description().arguments[0] if a.named.get("function")
    ]
    assert functions == [launch.check, launch.nodes]
    launch.check(context(launch))
    with pytest.raises(FileNotFoundError, match=r"params: there is no file nowhere\.yaml"):
        launch.check(context(launch, params="nowhere.yaml"))
    with pytest.raises(RuntimeError, match="rviz2 is not installed: apt install"):
        launch.check(context(launch, rviz="true"))
    (packages / "rviz2").touch()
    launch.check(context(launch, rviz="true"))


def test_rviz_follows_namespace_topic_and_frame(launch: Any, root: Path) -> None:
    """Every topic of the file is remapped, relative to the namespace."""
    given = {"rviz": "true", "namespace": "robot", "image": "front/image_raw/compressed", "frame": "front_optical"}
    _, rviz = launch.nodes(context(launch, **given))
    assert rviz.named["namespace"] == "robot"
    moved = dict(rviz.named["remappings"])
    assert moved["/mega/mesh"] == "mega/mesh"
    content = yaml.safe_load((root / "rviz" / "mega.rviz").read_text())
    topics = [d["Topic"]["Value"] for d in content["Visualization Manager"]["Displays"] if "Topic" in d]
    assert "/mega/overlay" in topics and set(topics) == set(moved), "no topic is shown without being moved, or dead"
    assert rviz.named["arguments"][-2:] == ["-f", "front_optical"]
    _, rviz = launch.nodes(context(launch, rviz="true"))
    assert "-f" not in rviz.named["arguments"]


@pytest.mark.parametrize("launch", ["replay.launch.py"], indirect=True)
def test_a_bag_is_replayed_by_the_command(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch file's command is one that `mega replay` takes, in the domain of the shell."""
    import tyro

    from mega_ros.replay.command import ReplayOptions

    declared = {a.arguments[0]: a.named for a in launch.generate_launch_description().arguments[0] if a.arguments}
    assert all(named["description"] for named in declared.values())
    assert [name for name, named in declared.items() if "default_value" not in named] == ["bag"]
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    given = {name: named.get("default_value", "") for name, named in declared.items()}
    (process,) = launch.replay(given | {"bag": "my bag", "rate": "0.5", "boxes": "full_frame"})
    python, _, module, verb, *words = process.named["cmd"]
    assert (python, module, verb) == ("python3", "mega_ros.cli", "replay")
    options = tyro.cli(ReplayOptions, args=words)
    chosen = (options.input, options.live, options.rate, options.domain, options.boxes, options.bundle)
    assert chosen == (("my bag",), True, 0.5, 42, "full_frame", "default")
    with pytest.raises(RuntimeError, match="the replay ended with code 1"):
        process.named["on_exit"](SimpleNamespace(returncode=1), None)
