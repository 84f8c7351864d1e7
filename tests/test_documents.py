"""Every shell and Python block of README.md and docs/ is run, or says why not; the words of all commands are checked.

    python tests/test_documents.py        lists the blocks that are run, and those that are not, with the reasons

A block that is not run has a comment before it: `<!-- not run: it needs a GPU -->`. A block of ```text that follows a
block is its output, in which `...` stands for anything. The blocks of a page are run in their order, in a folder with
the inputs that pages name (`inputs`), and Python's have the names in `given`. Whether a block is run or not, every
option, parameter, launch argument, make target and extra in it must exist.

Sybil and mktestdocs run blocks as well; neither checks the words of a command that it does not run, nor compares the
output of a shell. pytest-markdown-docs knows Python only. What is left for them is to find the blocks: a line of ours.
"""

import contextlib
import doctest
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL, PYTHON = ("sh", "bash", "shell", "console"), ("python", "py")
FENCE = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>.+?) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$"
    r"(?:\n\s*^ *```text\n(?P<output>.*?)^ *```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CodeBlock:
    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty if it is."""
    output: str
    """Empty if the page does not show it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[CodeBlock]:
    """The blocks with a language, in their order."""
    content, found = page.read_text(), []
    for match in FENCE.finditer(content):
        line = content.count("\n", 0, match.start("text"))
        text, output = (textwrap.dedent(match[name] or "") for name in ("text", "output"))
        name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
        found.append(CodeBlock(name, line, match["language"], text, match["reason"] or "", output))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNABLE = [block for block in BLOCKS if block.language in SHELL + PYTHON]


# --- running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages name: the beginning of the demo's clip as bag and as film, a photograph, and two reports."""
    pytest.importorskip("trimesh")  # of `mega replay --export glb`
    import short_clip

    from mega_model.core.detection import KEYPOINTS
    from mega_ros.cli import main

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "demo").mkdir()
    bag = short_clip.bag(folder / "demo" / "clip", seconds=0.14)
    shutil.copy(ROOT / "demo" / "photographer.png", folder / "demo")
    shutil.copy(ROOT / "demo" / "photographer.png", folder / "photo.jpg")
    shutil.copytree(bag, folder / "my_bag")
    for k in range(2):
        shutil.copytree(bag, folder / "folder_of_bags" / f"bag_{k}")
    short_clip.film(folder / "film.mp4", seconds=0.14)
    assert main(["replay", str(bag), "--out", str(folder / "before")]) == 0
    shutil.copytree(folder / "before", folder / "after")
    shutil.copy(folder / "before" / "meshes.npz", folder / "truth.npz")
    person: dict[str, Any] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 50, 250, 450], "area": 1e5}
    person["keypoints"] = [200, 100, 2] * len(KEYPOINTS)  # marked and visible
    photograph = {"id": 1, "file_name": "photo.jpg", "width": 512, "height": 512}
    categories = [{"id": 1, "name": "person", "keypoints": KEYPOINTS}]
    annotated = {"images": [photograph], "annotations": [person], "categories": categories}
    (folder / "keypoints.json").write_text(json.dumps(annotated))
    return folder


@pytest.fixture
def given() -> dict[str, Any]:
    """What a page's Python may take as there: a loaded model, an image, its intrinsics and stamp, and some pixels."""
    import cv2
    import numpy as np

    from mega_ros import Recovery

    image = cv2.imread(str(ROOT / "demo" / "photographer.png"))
    K = np.array([[600.0, 0, 256], [0, 600, 256], [0, 0, 1]])
    pixels = np.array([[100.0, 200.0], [300.0, 200.0]])
    names = {"recovery": Recovery.load("default"), "image": image, "image_bgr": image}
    return names | {"K": K, "stamp": 10**9, "pixels": pixels}


def run_python(block: CodeBlock, names: dict[str, Any]) -> str:
    """Returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
    return printed.getvalue()


def run_shell(block: CodeBlock) -> str:
    """Returns what it prints. Commands of `mega` alone are run in this process, which is many times faster."""
    commands = list(commands_of(block))
    if any(words[0] != "mega" for words in commands):
        Path("bin").mkdir(exist_ok=True)
        Path("bin/mega").write_text(f'#!/bin/sh\nexec {sys.executable} -m mega_ros.cli "$@"\n')
        Path("bin/mega").chmod(0o755)
        environment = os.environ | {
            "PATH": f"{Path('bin').resolve()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        end = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert end.returncode == 0, f"{block}: {end.stdout}{end.stderr}"
        return end.stdout
    from mega_ros.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as said:
        for words in commands:
            try:
                code = main(words[1:])
            except SystemExit as end:
                code = end.code  # type: ignore[assignment]
            assert not code, f"{block}: {shlex.join(words)}: code {code}: {said.getvalue()}"
    return printed.getvalue()


def run_page(blocks: list[CodeBlock], names: dict[str, Any]) -> None:
    """Runs what is to be run, here, and compares the outputs."""
    for block in blocks:
        if block.reason or block.language not in SHELL + PYTHON:
            continue
        printed = run_python(block, names) if block.language in PYTHON else run_shell(block)
        if block.output:
            alike = doctest.OutputChecker().check_output(
                block.output, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            )
            assert alike, f"{block}: it prints\n{printed}"


@pytest.mark.parametrize("page", sorted({block.page for block in RUNNABLE if not block.reason}))
def test_blocks_run(
    page: str, inputs: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(inputs, tmp_path / "here")
    (folder / ".venv").symlink_to(sys.prefix)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mega"])
    monkeypatch.setenv("COLUMNS", "120")
    environment = dict(os.environ)
    try:
        run_page([block for block in BLOCKS if block.page == page], given)
    finally:  # commands set variables
        os.environ.clear()
        os.environ.update(environment)


# --- the words of commands


class Parsed(Exception):
    """The arguments of a command are right."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb ends when its arguments are read. From the checkout, where settings files are."""
    import tyro

    cli = tyro.cli

    def read(*arguments: Any, **named: Any) -> None:
        cli(*arguments, **named)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", read)
    monkeypatch.setattr(sys, "argv", ["mega"])
    monkeypatch.chdir(ROOT)


def commands_of(block: CodeBlock) -> Iterator[list[str]]:
    """The words of each command of a shell block, or of the `run:` lines of a workflow."""
    text = block.text
    if block.language == "yaml":
        text = "\n".join(re.sub(r"\n *", " ", run) for run in re.findall(r"\brun: (.*(?:\n +--.*)*)", text))
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        for end, words in itertools.groupby(lexer, lambda word: word in ("&&", "|", ";")):
            command = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
            if command and not end:
                yield command


def check_mega(words: list[str]) -> None:
    """Of `mega`, without that word."""
    from mega_ros.cli import main

    if words[:1] == ["node"] and "--help" not in words:
        return check_node(words[1:])
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = main(words)
    except Parsed:
        return
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert not code, said.getvalue()


def check_node(words: list[str]) -> None:
    """Arguments of the node: parameters are those of config/mega.yaml, or of its kinds of topic."""
    known = yaml.safe_load((ROOT / "config" / "mega.yaml").read_text())["/**"]["ros__parameters"]
    assert words[:1] in ([], ["--ros-args"]), words
    for option, value in itertools.pairwise(words):
        if option in ("-p", "--param"):
            name, given = value.split(":=")
            assert name in known or name.startswith(("qos_overrides.", "use_sim_time")), name
            number = name == "samples" and re.fullmatch(r"-1|\d+", given)  # its default is auto
            assert number or isinstance(yaml.safe_load(given), type(known.get(name, yaml.safe_load(given)))), value
        if option in ("-r", "--remap"):
            assert re.fullmatch(r"[\w/~]+:=[\w/~{}]+", value), value


def check_launch(file: str, words: list[str]) -> None:
    """Arguments of a launch file."""
    from test_launch import context, load

    with pytest.MonkeyPatch.context() as patch:
        launch = load(ROOT / "launch" / file, patch)
        given = dict(word.split(":=") for word in words if not word.startswith("--"))
        assert set(words) - {f"{name}:={value}" for name, value in given.items()} <= {"--show-args"}, words
        required = [a for a in launch.generate_launch_description().arguments[0] if a.arguments]
        assert given.keys() <= {a.arguments[0] for a in required}, given
        if file == "mega.launch.py":
            launch.nodes(context(launch, **given))


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w./ -]+):(?!=)", makefile, re.MULTILINE)
    for word in words:
        name, variable, _ = word.partition("=")
        known = re.findall(r"\$\((?:if \$\()?(\w+)", makefile) if variable else " ".join(targets).split()
        assert name in known, f"make has no {name}"


def check_pip(words: list[str]) -> None:
    extras = re.search("extras_require={(.*?)}", (ROOT / "setup.py").read_text(), re.DOTALL)
    assert extras
    for word in words:
        for group in re.findall(r"^(?:mega_ros|\.)\[(.*)\]$", word):
            assert set(group.split(",")) <= set(re.findall('"(.*?)":', extras[1])), word


def check_file(words: list[str]) -> None:
    """A script of the checkout, and its options if it is one of export/."""
    path = ROOT / words[0]
    assert path.is_file(), words[0]
    verbs = {
        "to_onnx": "export onnx",
        "to_trt": "export trt",
        "check": "export check",
        "clip": "clip",
        "bench": "bench",
    }
    if words[0].startswith("export/"):
        check_mega([*verbs[path.stem].split(), *words[1:]])
    elif options := {word for word in words[1:] if word.startswith("--")}:
        source = path.read_text()
        assert not [option for option in options if option not in source and option[2:] not in source], words


OURS = ("export/", "examples/", "scripts/", "tests/")
"""Folders of the checkout with scripts."""


def check(words: list[str]) -> None:
    """Raises AssertionError if the command has a word that this project does not know."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "mega":
        check_mega(rest)
    elif program in ("torchrun", "python", "python3") and "-m" in rest:
        at = rest.index("-m")
        module, arguments = rest[at + 1], rest[at + 2 :]
        if module == "mega_model":
            check_mega(arguments)
        elif module.startswith("mega_"):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    elif program in ("python", "python3") and rest and rest[0].startswith(OURS):
        check_file(rest)
    elif words[0].startswith("scripts/"):
        check_file(words)
    elif [program, *rest[:2]] == ["ros2", "launch", "mega_ros"]:
        check_launch(rest[2], rest[3:])
    elif [program, *rest[:3]] == ["ros2", "run", "mega_ros", "node"]:
        check_node(rest[3:])
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in (*SHELL, "yaml")], ids=str)
def test_commands_have_words_that_exist(block: CodeBlock, only_parse: None) -> None:
    for words in commands_of(block):
        check(words)


# --- the tests of the above


def page_with(tmp_path: Path, text: str) -> list[CodeBlock]:
    (tmp_path / "page.md").write_text(textwrap.dedent(text))
    return blocks_of(tmp_path / "page.md")


def test_blocks_are_found_with_reason_and_output(tmp_path: Path) -> None:
    blocks = page_with(
        tmp_path,
        """
        <!-- not run: it takes a day -->
        ```sh
        mega train default
        ```

        === "Jazzy"

            ```python
            print(1)
            ```

            ```text
            1
            ```
        """,
    )
    assert blocks == [
        CodeBlock("page.md", 3, "sh", "mega train default\n", "it takes a day", ""),
        CodeBlock("page.md", 9, "python", "print(1)\n", "", "1\n"),
    ]


def test_outputs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "```python\nprint('about', 7, 'frames')\n```\n```text\n{}\n```\n```sh\necho one two\n```\n```text\n{}\n```"
    run_page(page_with(tmp_path, text.format("about 7 frames", "one two")), {})
    run_page(page_with(tmp_path, text.format("about ... frames", "one ...")), {})
    for outputs in (("about 8 frames", "one two"), ("about 7 frames", "one")):
        with pytest.raises(AssertionError, match="it prints"):
            run_page(page_with(tmp_path, text.format(*outputs)), {})


def test_a_block_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, problem in (("false", ""), ("mega replay gone.jpg", "there is no such file")):
        with pytest.raises(AssertionError, match=f"page.md:2: .*{problem}"):
            run_page(page_with(tmp_path, f"\n```sh\n{command}\n```"), {})


@pytest.mark.parametrize(
    "command",
    [
        "mega replay my_bag --workrs 2",
        "mega replay my_bag --workers two",
        "mega fly",
        ".venv/bin/mega view --prot 1",
        "source x && mega train recover config/train/gone.yaml",
        "OMP_NUM_THREADS=1 mega bench node --speed 3",
        "torchrun --nproc-per-node 4 -m mega_model train recover --micro-batches 8",
        "python export/to_trt.py my_bundle --peoples 1",
        "python export/bench.py my_bundle --peoples 1",
        "python export/gone.py",
        "python -m mega_model.data.contact_sheets",
        "ros2 launch mega_ros mega.launch.py images:=/camera/image_raw",
        "ros2 launch mega_ros mega.launch.py fov:=wide",
        "ros2 launch mega_ros replay.launch.py bag:=my_bag speed:=2",
        "ros2 run mega_ros node --ros-args -p smooth:=1.0",
        "mega node --ros-args -p smoothing:=strong",
        "mega node --ros-args -p samples:=2.5",
        "make runs",
        "make run PHOTO=photo.jpg",
        "pip install -e '.[trains]'",
        "scripts/gpu_night --out results",
    ],
)
def test_a_wrong_word_is_found(command: str, only_parse: None) -> None:
    block = CodeBlock("page.md", 1, "sh", f"{command}  # a comment's words are free\n", "", "")
    with pytest.raises((AssertionError, ValueError, FileNotFoundError)):
        for words in commands_of(block):
            check(words)


def listing() -> Iterator[str]:
    """A line for each block, those that are run first."""
    done, left = ([b for b in RUNNABLE if bool(b.reason) == without] for without in (False, True))
    yield f"{len(done)} blocks are run:"
    yield from (f"  {block}: {block.text.splitlines()[0]}" for block in done)
    yield f"{len(left)} blocks are not run, only their commands' words are checked:"
    yield from (f"  {block}: {block.text.splitlines()[0]}\n    {block.reason}" for block in left)


if __name__ == "__main__":
    print(*listing(), sep="\n")
