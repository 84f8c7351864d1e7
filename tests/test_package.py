"""What holds the package together: import rules, installed files, one version, commands that answer."""

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from mega_model.core import commands, verbs
from mega_model.core.commands import EXTRAS, call
from mega_model.core.errors import InputError
from mega_ros import cli
from mega_ros.cli import OF_CHECKOUT, OF_RUNTIME, VERBS

ROOT = Path(__file__).resolve().parents[1]


def modules_of(folder: str) -> list[str]:
    paths = (ROOT / folder).rglob("*.py")
    return sorted(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths)


FOLDERS = ("mega_model", "mega_ros", "export", "examples", "tests")
"""With all of the project's Python, but for scripts."""
RUNTIME, CORE = modules_of("mega_ros"), modules_of("mega_model/core")

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def imports(modules: Sequence[str], forbidden: str) -> list[str]:
    """Which of `modules` import the package `forbidden`, directly or not. All in one process, so in a fixed order."""
    code = """
import importlib, sys
forbidden, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
    if forbidden in sys.modules:
        sys.exit(f"{module} imports {forbidden}")
"""
    end = python(code, forbidden, *modules)
    return [end.stderr] if end.returncode else []


def imported_by(folder: str) -> dict[Path, list[str]]:
    """For each file of a folder, the names of the modules it imports: by statement, at any depth."""
    found: dict[Path, list[str]] = {}
    for path in (ROOT / folder).rglob("*.py"):
        names = found.setdefault(path, [])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and not node.level:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_runtime_never_imports_torch() -> None:
    assert len(RUNTIME) > 10 and len(CORE) > 8
    assert not imports([*RUNTIME, *CORE], "torch")


WITHOUT_ROS = """
import importlib, sys
hidden, modules = (text.split(",") for text in sys.argv[1:])
class Hidden:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Hidden())
for module in modules:
    importlib.import_module(module)
"""


def test_only_two_folders_of_the_runtime_need_ros() -> None:
    """The node's, and the live half of the replay. The rest is imported where neither ROS nor torch is installed."""
    modules = [name for name in RUNTIME if not name.startswith(("mega_ros.ros.", "mega_ros.replay.live."))]
    assert {"mega_ros.node", "mega_ros.stream", "mega_ros.replay.demo", "mega_ros.replay.sources"} <= set(modules)
    ros = re.findall("<exec_depend>(rclpy|[a-z_]+_(?:msgs|interfaces))<", (ROOT / "package.xml").read_text())
    assert {"rclpy", "sensor_msgs"} <= set(ros)
    end = python(WITHOUT_ROS, ",".join([*ros, "builtin_interfaces", "torch"]), ",".join([*CORE, *modules]))
    assert end.returncode == 0, end.stderr


def test_public_names_are_listed_before_they_are_loaded() -> None:
    end = python(
        "import sys, mega_ros\n"
        "assert {'Recovery', 'Stream', 'InputError'} <= set(dir(mega_ros)) == set(mega_ros.__all__)\n"
        "assert 'mega_ros.recovery' not in sys.modules\n"
        "from mega_ros import *\n"
        "from mega_model.core import errors\n"
        "assert InputError is errors.InputError and issubclass(BundleError, InputError)"
    )
    assert end.returncode == 0, end.stderr


def test_the_node_is_found_under_both_names() -> None:
    end = python("from mega_ros import node, ros\nimport mega_ros.ros.node\nassert node.MegaNode is ros.node.MegaNode")
    assert end.returncode == 0, end.stderr


def test_model_knows_nothing_of_the_runtime() -> None:
    for path, names in imported_by("mega_model").items():
        assert not {name.split(".")[0] for name in names} & {"mega_ros", "rclpy", "export"}, path


def test_runtime_uses_only_the_core_of_the_model() -> None:
    for folder in ("mega_ros", "mega_model/core"):
        for path, names in imported_by(folder).items():
            used = {name for name in names if name.split(".")[0] == "mega_model"}
            assert all(name.startswith("mega_model.core.") for name in used), path


def test_training_stages_do_not_import_each_other() -> None:
    stages = {f"mega_model.train.{stage}" for stage in ("tokenizer", "pretrain", "lift", "recover", "errors")}
    for path, names in imported_by("mega_model/train").items():
        if path.stem != "default":  # which runs them all
            assert not [n for n in names if n in stages or n.rpartition(".")[0] in stages], path


def test_a_class_name_is_used_once() -> None:
    names: dict[str, list[str]] = {}
    for path in (path for folder in (*FOLDERS, "launch", "scripts") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in names.items() if len(files) > 1} == {}


def test_every_optional_package_has_a_remedy() -> None:
    """A missing package is one line that says how to install it, or comes with every installation."""
    setup = (ROOT / "setup.py").read_text()
    always = re.search(r"install_requires=\[(.*?)\]", setup, re.DOTALL)[1]  # type: ignore[index]
    required = {name.replace("-", "_") for name in re.findall(r'"([\w-]+?)>=', always)}
    required |= {"cv2", "yaml"}  # of opencv-python-headless and pyyaml
    required |= {"backports", "compression"}  # come with rosbags, or with Python
    required |= {"google"}  # comes with onnx, which is imported before
    required |= {"launch"}  # what imports it is for launch files
    for folder in ("mega_model", "mega_ros", "export"):
        for path, names in imported_by(folder).items():
            packages = {name.split(".")[0] for name in names} - {*sys.stdlib_module_names, *required, *EXTRAS}
            assert packages <= {"mega_model", "mega_ros", "export"}, path


def test_one_version() -> None:
    """package.xml has it, and setup.py takes it from there; test_wheel.py asks what is built."""
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    setup = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert setup.stdout.strip() == version, setup.stderr
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    newest = re.search("^## (?!Unreleased).*", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[0] == f"## {version} ({citation['date-released']})"


def test_workflows_run_what_the_project_has() -> None:
    """They cannot run here: that they parse, and that targets, folders and Python versions in them exist."""
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir()}
    targets = re.findall(r"^([\w./ ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.search("extras_require={(.*?)}", (ROOT / "setup.py").read_text(), re.DOTALL)[1]  # type: ignore[index]
    runs = [
        step["run"] for w in workflows.values() for job in w["jobs"].values() for step in job["steps"] if "run" in step
    ]
    used = {target for run in runs for target in re.findall(r"\bmake (\S+)", run)}
    assert used and used <= {target for line in targets for target in line.split()}
    installed = {extra for run in runs for group in re.findall(r"'\.\[(.*?)\]'", run) for extra in group.split(",")}
    assert installed and installed <= set(re.findall('"(.*?)":', extras))
    pythons = workflows["tests"]["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]


@pytest.mark.parametrize("name", ["a b.jpg", 'it\'s "one" `x`;.jpg', "-dash.jpg", "写真.jpg"])
def test_make_run_takes_any_name_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    mega = tmp_path / ".venv" / "bin" / "mega"
    mega.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    mega.chmod(0o755)
    words = [
        "make",
        "--silent",
        "--file",
        str(ROOT / "Makefile"),
        "--assume-old",
        ".venv/runtime",
        "run",
        f"IMAGE={name}",
    ]
    (tmp_path / ".venv" / "runtime").touch()
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["demo", f"--image={name}"]


def test_the_ros_installation_is_the_same_on_both_pages() -> None:
    pages = ((ROOT / name).read_text() for name in ("README.md", "docs/robot/install.md"))
    readme, page = (re.search(r"git clone <.*?colcon build [^\n]*", text, re.DOTALL) for text in pages)
    assert readme and page and readme[0] == page[0]


def test_package_xml_is_one_that_colcon_takes() -> None:
    """colcon treats a package with a malformed maintainer as plain Python, without saying so."""
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.get("format") == "3"
    assert package.findtext("name") == "mega_ros"
    assert package.findtext("export/build_type") == "ament_python"
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", package.find("maintainer").get("email"))  # type: ignore[union-attr, arg-type]


def test_launch_file() -> None:
    """`launch` comes with a ROS installation only: here, that it parses, and that what it refers to is there."""
    source = (ROOT / "launch" / "mega.launch.py").read_text()
    tree = ast.parse(source)
    assert "generate_launch_description" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {"image", "camera_info", "node"} <= texts
    assert (ROOT / "scripts" / "node").stat().st_mode & 0o111
    for folder, suffix in (("config", ".yaml"), ("rviz", ".rviz")):
        named = [text for text in texts if text.endswith(suffix)]
        assert named and all((ROOT / folder / name).is_file() for name in named)


def test_rviz_shows_the_topics() -> None:
    content = yaml.safe_load((ROOT / "rviz" / "mega.rviz").read_text())
    topics = [d["Topic"]["Value"] for d in content["Visualization Manager"]["Displays"] if "Topic" in d]
    assert "/mega/mesh" in topics


def test_rviz_looks_along_the_camera_and_shows_people_upright() -> None:
    """RViz' orbit: yaw and pitch say where the viewer is, z is up; `Invert Z Axis` negates all three."""
    view = yaml.safe_load((ROOT / "rviz" / "mega.rviz").read_text())["Visualization Manager"]["Views"]["Current"]
    assert view["Class"] == "rviz_default_plugins/Orbit"
    sign = -1 if view["Invert Z Axis"] else 1
    yaw, pitch = sign * view["Yaw"], sign * view["Pitch"]
    towards = -np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.cross(towards, [0, 0, sign])
    assert towards[2] > 0.9 and right[0] > 0 and np.cross(right, towards)[1] < 0, "x right, y down, z ahead"


def mega(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("import sys; from mega_ros.cli import main; sys.exit(main(sys.argv[1:]))", *arguments)


@needs_torch
def test_every_verb_answers_help() -> None:
    """All in one process: most import torch."""
    code = """
from mega_ros.cli import VERBS, main
for verb in VERBS:
    try:
        main([*verb.split(), "--help"])
    except SystemExit as end:
        print(f"{verb}: {end.code}")
"""
    end = python(code)
    assert end.returncode == 0, end.stderr
    assert end.stdout.count("usage:") == len(VERBS)
    assert [f"{verb}: 0" for verb in VERBS] == [line for line in end.stdout.splitlines() if line.endswith(": 0")]


def test_neither_package_names_the_modules_of_the_other() -> None:
    for package, table in (("mega_model", verbs.VERBS), ("mega_ros", OF_RUNTIME), ("export", OF_CHECKOUT)):
        assert {place.split(".")[0] for v in table.values() for place in (v.function, v.options) if place} == {package}
    assert len(VERBS) == len(verbs.VERBS) + len(OF_RUNTIME) + len(OF_CHECKOUT)


@needs_torch
def test_training_does_not_go_through_the_runtime() -> None:
    """As torchrun starts it on many GPUs."""
    code = """
import runpy, sys
class NoRuntime:
    def find_spec(self, name, *rest):
        assert name.split(".")[0] not in ("mega_ros", "rclpy"), name
sys.meta_path.insert(0, NoRuntime())
sys.argv[1:] = ["train", "recover", "--help"]
runpy.run_module("mega_model", run_name="__main__")
"""
    end = python(code)
    assert end.returncode == 0 and "usage: mega train recover" in end.stdout, end.stderr


def test_without_a_checkout_the_verbs_of_export_say_so() -> None:
    code = """
import sys
class Hidden:
    def find_spec(self, name, *rest):
        if name == "export":
            raise ModuleNotFoundError("hidden", name=name)
sys.meta_path.insert(0, Hidden())
from mega_ros.cli import main
sys.exit(main(["export", "onnx"]))
"""
    end = python(code)
    assert end.returncode == 1
    assert end.stderr.startswith("mega export onnx: export is not installed: this verb needs a checkout")


def test_an_input_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise InputError("a.npz: field 'poses' has no frames")

    assert call("mega fly", refuse) == 1
    assert capsys.readouterr().err == "mega fly: a.npz: field 'poses' has no frames\n"


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        raise KeyboardInterrupt

    assert call("mega fly", wait) == 130
    assert capsys.readouterr().err == "mega fly: interrupted\n"


@pytest.mark.parametrize("bug", [ValueError, FileNotFoundError, ModuleNotFoundError])
def test_any_other_error_is_a_bug(bug: type[Exception]) -> None:
    def fail() -> None:
        raise bug("of ours")

    with pytest.raises(bug, match="of ours"):
        call("mega fly", fail)


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_help_lists_verbs(arguments: tuple[str, ...]) -> None:
    end = mega(*arguments)
    assert end.returncode == 0
    assert "train tokenizer" in end.stdout
    assert ("node" in end.stdout) == (arguments != ("train", "--help"))


def test_a_newcomer_sees_five_commands_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  mega ")]
    assert shown == ["demo", "replay", "node", "train", "export"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"mega_ros \d+\.\d+\.\d+", capsys.readouterr().out.strip())


def test_advice_fits_the_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ROS", tmp_path / "ros")
    assert commands.remedy("rclpy") == f"in {ROOT}, pip install -e '.[ros]'"
    (tmp_path / "ros" / "jazzy").mkdir(parents=True)
    (tmp_path / "ros" / "jazzy" / "setup.bash").touch()
    assert commands.remedy("rclpy") == f"source {tmp_path}/ros/jazzy/setup.bash"
    assert commands.remedy("torch") == f"in {ROOT}, pip install -e '.[train]'"
    monkeypatch.setattr(commands, "CHECKOUT", tmp_path)
    assert commands.remedy("trimesh") == "pip install 'trimesh>=4'"
    monkeypatch.setattr(
        commands, "requires", lambda package: ["numpy", "Torch>=2; extra == 'train'", "mkdocs; extra == 'docs'"]
    )
    assert commands.remedy("torch") == "pip install 'Torch>=2'"
    monkeypatch.setattr(commands, "requires", lambda package: None)
    assert commands.remedy("torch") == "pip install torch"


@pytest.mark.parametrize("arguments", [("fly",), ("train",), ("train", "fly"), ("node", "--fly")])
def test_unknown_verbs_and_options(arguments: tuple[str, ...]) -> None:
    end = mega(*arguments)
    assert end.returncode == 2
    assert not end.stdout and end.stderr
    assert "Traceback" not in end.stderr


WITHOUT_TRAINING = """
import sys
HIDDEN = {"anny", "fsspec", "lightning", "matplotlib", "onnx", "safetensors", "torch", "tqdm"}
class Hidden:
    def find_spec(self, name, *rest):
        if name in HIDDEN:
            raise ModuleNotFoundError("hidden", name=name)
sys.meta_path.insert(0, Hidden())
from mega_ros.cli import VERBS, main
"""
"""A runtime installation has none of these. (yaml comes with rclpy.)"""


def test_verbs_answer_help_without_the_training_extra() -> None:
    code = """
for verb in VERBS:
    try:
        print(f"mega {verb}: code {main([*verb.split(), '--help'])}", file=sys.stderr)
    except SystemExit as end:
        print(f"mega {verb}: code {end.code}", file=sys.stderr)
"""
    end = python(WITHOUT_TRAINING + code)
    assert end.returncode == 0, end.stderr
    assert end.stderr.splitlines() == [f"mega {verb}: code 0" for verb in VERBS]


def test_missing_extra_is_one_line() -> None:
    few = "--out out --steps 1 --batch 1 --lr 1".split()
    end = python(WITHOUT_TRAINING + "sys.exit(main(sys.argv[1:]))", "train", "tokenizer", *few)
    assert end.returncode == 1
    assert end.stderr.strip() == f"mega train tokenizer: torch is not installed: in {ROOT}, pip install -e '.[train]'"


def test_a_missing_package_is_said_before_the_work() -> None:
    code = """
import sys
from mega_ros.cli import main
sys.modules |= dict.fromkeys(["trimesh", "pyarrow", "ray"])  # as good as not installed
for words in (["--export", "glb"], ["--parquet"], ["--engine", "ray"]):
    assert main(["replay", "demo/clip", *words]) == 1
assert "onnxruntime" not in sys.modules
"""
    end = python(code)
    packages = [line.split()[2] for line in end.stderr.splitlines() if "is not installed: in" in line]
    assert (end.returncode, packages) == (0, ["trimesh", "pyarrow", "ray"]), end.stderr


def test_a_wrong_argument_is_refused_before_slow_packages_load() -> None:
    code = r"""
import sys
from mega_ros.cli import VERBS, main
wrong = [[*verb.split(), "--fly"] for verb in VERBS]
wrong += [["replay", "gone.jpg"], ["replay", "gone.jpg", "--parquet", "--export", "glb", "--engine", "ray"]]
wrong += [["replay", "compare", "gone", "gone"], ["demo", "--image", "gone.jpg"]]
wrong += [["evaluate", "keypoints", "--set", "coco-keypoints:gone.json"], ["vertices", "gone.npz"]]
wrong += [["evaluate", "--checkpoint", "gone"], ["train", "default", "--detector", "gone"]]
few = ["--out", "out", "--steps", "1", "--batch", "1", "--lr", "1"]
wrong += [["train", "recover", "--pretrained", "demo", "--sets", f"features:{place}", *few] for place in ("gone", "\0")]
wrong += [["shards", "coco:gone.npz", "--out", "out"], ["export", "onnx", "--checkpoint", "gone", "--out", "out"]]
for words in wrong:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    loaded = {"torch", "matplotlib", "scipy", "onnxruntime", "trimesh", "pyarrow", "ray"} & {*sys.modules}
    assert code and not loaded, (words, code, loaded)
"""
    end = python(code)
    assert end.returncode == 0, end.stderr


def test_node_starts_without_torch() -> None:
    end = python(WITHOUT_TRAINING + "sys.exit(main(sys.argv[1:]))", "node", "--help")
    assert end.returncode == 0
    assert "mega node" in end.stdout


@needs_torch
def test_missing_files_are_one_line(tmp_path: Path) -> None:
    """Each of these once ended in somebody else's code. All in one process: they import torch."""
    (tmp_path / "checkpoint" / "tokenizer").mkdir(parents=True)
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    for name in ("wrong", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "wrong" / "config.json").write_text('{"wings": 2}')
    (tmp_path / "empty.yaml").write_text("")
    few = ["--steps", "1", "--batch", "1", "--lr", "1", "--out", "out"]
    commands = {
        "train tokenizer: gone.yaml: there is no such file": ["train", "tokenizer", "gone.yaml"],
        "train tokenizer: empty.yaml: it should have an `option: value` on each line": [
            *("train", "tokenizer", "empty.yaml")
        ],
        "train pretrain: empty/topology.npz: there is no such file": [
            *("train", "pretrain", "--tokenizer", "empty", *few)
        ],
        "evaluate: empty/config.json: there is no such file": ["evaluate", "--checkpoint", "empty", "--test", "."],
        "evaluate: checkpoint/model.safetensors: there is no such file": [
            *("evaluate", "--checkpoint", "checkpoint", "--test", ".")
        ],
        "evaluate: wrong/config.json: not the config of a Mega (it has no wings)": [
            *("evaluate", "--checkpoint", "wrong", "--test", ".")
        ],
    }
    code = f"""
import os
from mega_ros.cli import main
os.chdir({str(tmp_path)!r})
for command in {[*commands.values()]!r}:
    assert main(command) == 1, command
"""
    end = python(code)
    assert end.returncode == 0, end.stderr
    lines = [line for line in end.stderr.splitlines() if line.startswith("mega ")]
    assert lines == [f"mega {line}" for line in commands]
