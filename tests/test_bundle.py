"""Bundles on disk: what is written is read back, and everything that can be wrong is one clear line."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mega_model.core.errors import InputError
from mega_ros import Recovery
from mega_ros.bundle import (
    DEFAULT,
    Body,
    Bundle,
    BundleError,
    Calibration,
    Crop,
    Graph,
    Graphs,
    Sampling,
    Tensor,
    write_bundle,
)

FEATURES = {"features": Tensor("float32", ("P", 4, 1, 1))}
LANDMARKS = {"landmarks": Tensor("float32", ("P", 39, 5))}
TOKENS = Tensor("int64", ("P", 6))
SEEN = {"image": Tensor("float32", ("P", 7, 8)), "logits": Tensor("float32", ("P", 6, 9))}
GRAPHS: Graphs = {
    "backbone": Graph({"crops": Tensor("uint8", ("P", 32, 32, 3))}, FEATURES | LANDMARKS),
    "deterministic": Graph(
        FEATURES,
        {
            "tokens": TOKENS,
            "vertices": Tensor("float32", ("P", 10, 3)),
            "rotation": Tensor("float32", ("P", 3, 3)),
            "camera": Tensor("float32", ("P", 3)),
            **SEEN,
        },
    ),
    "sampler": Graph(
        SEEN | {"uniforms": Tensor("float32", ("P", "Q", 5, 6, 2))},
        {"tokens": Tensor("int64", ("P", "Q", 6)), "vertices": Tensor("float32", ("P", "Q", 10, 3))},
    ),
}


@settings(max_examples=15, deadline=None)
@given(
    graph=st.sampled_from(["backbone", "deterministic", "sampler"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(graph="sampler", changes=[(0.9688747902390786, 128)])  # the name of a dimension is not UTF-8
def test_any_damage_of_a_graph_is_people_or_one_line(graph: str, changes: list[tuple[float, int]]) -> None:
    """Of a bundle whose hashes fit, as a stranger would make it."""
    pytest.importorskip("onnx", reason="graphs are made with the extra export")
    from little_bundle import little_bundle

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        little_bundle(folder)
        data = bytearray((folder / f"{graph}.onnx").read_bytes())
        for at, value in changes:
            data[int(at * (len(data) - 1))] = value
        (folder / f"{graph}.onnx").write_bytes(data)
        manifest = json.loads((folder / "bundle.json").read_bytes())
        manifest["files"][f"{graph}.onnx"] = hashlib.sha256(data).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(manifest))
        try:
            recovery = Recovery(Bundle.load(folder), "cpu")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert recovery.backend


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose graphs are only bytes: bundle.py never runs them."""
    for file in ("topology.npz", "backbone.onnx", "deterministic.onnx", "sampler.onnx"):
        (tmp_path / file).write_bytes(file.encode())
    write_bundle(
        tmp_path,
        name="little",
        graphs=GRAPHS,
        crop=Crop(32, 1.2, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), passes=2),
        sampling=Sampling(steps=5, samples=10, temperature=1.0),
        calibration=Calibration(1.5, "held-out clips", {"1 sigma": 0.61}),
        body=Body("anny", "notoes_collapse10pc", "CC0"),
        training={"epochs": 3, "note": "any JSON"},
        origins={"backbone": "somebody's, Apache-2.0"},
    )
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    edit(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def error(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip(folder: Path) -> None:
    bundle = Bundle.load(folder)
    assert bundle.graphs == GRAPHS
    assert bundle.crop == Crop(32, 1.2, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 2, "ray")
    assert bundle.sampling == Sampling(5, 10, 1.0)
    assert bundle.calibration.coverage == {"1 sigma": 0.61}
    assert bundle.body.licence == "CC0"
    assert bundle.training == {"epochs": 3, "note": "any JSON"}
    assert bundle.origins == {"backbone": "somebody's, Apache-2.0"}
    assert bundle.files["sampler.onnx"] == hashlib.sha256(b"sampler.onnx").hexdigest()
    assert bundle.hash == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    assert bundle.path("sampler").read_bytes() == b"sampler.onnx"


def test_hash_names_the_content(folder: Path) -> None:
    before = Bundle.load(folder).hash
    change(folder, lambda m: m["calibration"].update(scale=2.0))
    assert Bundle.load(folder).hash != before


def test_whole_numbers_are_numbers_too(folder: Path) -> None:
    change(folder, lambda m: m["sampling"].update(temperature=1))
    assert Bundle.load(folder).sampling.temperature == 1


def test_a_relative_folder_outlives_a_change_of_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    bundle = Bundle.load(folder.name)
    monkeypatch.chdir("/")
    assert bundle.folder == folder.absolute() and bundle.path("sampler").is_file()


def test_missing_folder(tmp_path: Path) -> None:
    message = error(tmp_path / "nowhere")
    assert "nowhere/bundle.json" in message and "mega export onnx" in message


def test_not_json(folder: Path) -> None:
    (folder / "bundle.json").write_text("{")
    assert "bundle.json: not JSON" in error(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "one"}'])
def test_not_a_bundle(folder: Path, content: str) -> None:
    (folder / "bundle.json").write_text(content)
    assert "field format is missing" in error(folder)


@pytest.mark.parametrize(("version", "advice"), [(4, "update mega_ros"), (1, "export it again")])
def test_other_format_version(folder: Path, version: int, advice: str) -> None:
    # a newer manifest may lack fields that this version knows: the version must be what is reported
    (folder / "bundle.json").write_text(json.dumps({"format": version}))
    message = error(folder)
    assert f"format {version}" in message and advice in message


@pytest.mark.parametrize("file", ["topology.npz", "backbone.onnx", "deterministic.onnx", "sampler.onnx"])
def test_missing_file(folder: Path, file: str) -> None:
    (folder / file).unlink()
    message = error(folder)
    assert file in message and "copy the whole bundle again" in message


def test_changed_file(folder: Path) -> None:
    with open(folder / "sampler.onnx", "ab") as file:
        file.write(b"!")
    message = error(folder)
    assert "sampler.onnx" in message and "SHA-256" in message


@pytest.mark.parametrize("file", ["topology.npz", "backbone.onnx"])
def test_unlisted_file(folder: Path, file: str) -> None:
    change(folder, lambda m: m["files"].pop(file))
    assert f"files.{file} is missing" in error(folder)


def test_file_outside_the_folder(folder: Path) -> None:
    change(folder, lambda m: m["files"].update({"../secret": "0" * 64}))
    assert "files.../secret points outside" in error(folder)


@pytest.mark.parametrize("graph", ["backbone", "deterministic", "sampler"])
def test_missing_graph(folder: Path, graph: str) -> None:
    change(folder, lambda m: m["graphs"].pop(graph))
    assert f"missing required field `{graph}` - at `$.graphs`" in error(folder)


def test_graph_of_other_outputs(folder: Path) -> None:
    change(folder, lambda m: m["graphs"]["sampler"]["outputs"].pop("vertices"))
    assert "graphs.sampler.outputs are tokens, not tokens, vertices" in error(folder)


def detector(*outputs: str) -> dict[str, Any]:
    image = {"dtype": "uint8", "shape": [1, 192, 256, 3]}
    return {"inputs": {"image": image}, "outputs": dict.fromkeys(outputs, TENSOR)}


def test_a_detector_may_give_keypoints(folder: Path) -> None:
    (folder / "detector.onnx").write_bytes(b"")
    change(folder, lambda m: m["files"].update({"detector.onnx": hashlib.sha256(b"").hexdigest()}))
    for outputs in (["boxes", "scores"], ["boxes", "scores", "keypoints"]):
        change(folder, lambda m, o=outputs: m["graphs"].update(detector=detector(*o)))  # type: ignore[misc]
        assert list(Bundle.load(folder).graphs["detector"].outputs) == outputs
    for outputs in (["boxes", "keypoints"], ["boxes", "scores", "masks"]):
        change(folder, lambda m, o=outputs: m["graphs"].update(detector=detector(*o)))  # type: ignore[misc]
        assert f"graphs.detector.outputs are {', '.join(outputs)}, not boxes, scores" in error(folder)


TENSOR = {"dtype": "float32", "shape": ["P"]}


@pytest.mark.parametrize(
    ("graph", "kind", "names"),
    [
        ("backbone", "outputs", ["landmarks", "world", "presence"]),
        ("deterministic", "inputs", ["landmarks"]),
        ("deterministic", "outputs", ["prior", "sigma", "joints_sigma", "distance"]),
    ],
)
def test_what_a_graph_may_have_as_well(folder: Path, graph: str, kind: str, names: list[str]) -> None:
    shapes = {name: {"dtype": "float32", "shape": ["P", 10] if name == "sigma" else ["P"]} for name in names}
    change(folder, lambda m: m["graphs"][graph][kind].update(shapes))
    assert {*names} <= {*getattr(dict(Bundle.load(folder).graphs)[graph], kind)}
    change(folder, lambda m: m["graphs"][graph][kind].update(more=TENSOR))
    assert f"graphs.{graph}.{kind} are " in error(folder)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda m: m["graphs"]["deterministic"]["inputs"].update(world=TENSOR),
            "graphs.deterministic.inputs: backbone does not give world",
        ),
        (
            lambda m: m["graphs"]["sampler"]["inputs"].update(prior=TENSOR),
            "graphs.sampler.inputs: deterministic does not give prior",
        ),
        (
            lambda m: m["graphs"]["deterministic"]["outputs"].update(sigma=TENSOR),
            "graphs.deterministic.outputs: deterministic does not give joints_sigma",
        ),
        (
            lambda m: m["graphs"]["deterministic"]["outputs"]["camera"].update(shape=["P", 4]),
            "graphs.deterministic.outputs.camera has the shape ['P', 4] in place of ['P', 3]",
        ),
        (
            lambda m: m["graphs"]["deterministic"]["outputs"].update(distance={"dtype": "float32", "shape": ["P", 1]}),
            "graphs.deterministic.outputs.distance has the shape ['P', 1] in place of ['P']",
        ),
        (
            lambda m: m["graphs"]["backbone"]["outputs"].pop("landmarks"),
            "crop.passes: backbone does not give landmarks",
        ),
    ],
)
def test_outputs_that_lack_others_or_have_another_shape(
    folder: Path, edit: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    change(folder, edit)
    assert expected in error(folder)


def test_without_landmarks_one_pass(folder: Path) -> None:
    change(folder, lambda m: m["graphs"]["backbone"]["outputs"].pop("landmarks"))
    change(folder, lambda m: m["crop"].update(passes=1))
    assert Bundle.load(folder).crop.passes == 1


def test_format_2_calls_passes_looks(folder: Path) -> None:
    passes = Bundle.load(folder).crop.passes
    change(folder, lambda m: m.update(format=2))
    change(folder, lambda m: m["crop"].update(looks=m["crop"].pop("passes")))
    assert Bundle.load(folder).crop.passes == passes > 1


def test_older_bundles_say_nothing_of_origins(folder: Path) -> None:
    change(folder, lambda m: m.pop("origins"))
    assert Bundle.load(folder).origins == {}


@pytest.mark.parametrize(
    ("section", "field", "value", "expected"),
    [
        ("crop", "size", 0, "`int` >= 1"),
        ("crop", "margin", -1.0, "`float` > 0.0"),
        ("crop", "passes", 0, "`int` >= 1"),
        ("sampling", "steps", 0, "`int` >= 1"),
        ("sampling", "samples", -1, "`int` >= 0"),
        ("sampling", "temperature", 0.0, "`float` > 0.0"),
        ("calibration", "scale", 0, "`float` > 0.0"),
    ],
)
def test_value_that_makes_no_sense(folder: Path, section: str, field: str, value: float, expected: str) -> None:
    change(folder, lambda m: m[section].update({field: value}))
    assert f"Expected {expected} - at `$.{section}.{field}`; correct it" in error(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(folder: Path, value: float) -> None:
    change(folder, lambda m: m["calibration"].update(scale=value))
    assert "bundle.json: not JSON" in error(folder)


def test_unknown_crop_camera(folder: Path) -> None:
    change(folder, lambda m: m["crop"].update(camera="fisheye"))
    assert "Invalid enum value 'fisheye' - at `$.crop.camera`" in error(folder)


@pytest.mark.parametrize("field", ["name", "files", "graphs", "crop", "sampling", "calibration", "body", "training"])
def test_missing_field(folder: Path, field: str) -> None:
    change(folder, lambda m: m.pop(field))
    assert f"bundle.json: Object missing required field `{field}`; correct it" in error(folder)


def test_missing_inner_field(folder: Path) -> None:
    change(folder, lambda m: m["crop"].pop("margin"))
    assert "missing required field `margin` - at `$.crop`" in error(folder)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m["crop"].update(size="big"), "Expected `int`, got `str` - at `$.crop.size`"),
        (lambda m: m["crop"].update(size=True), "Expected `int`, got `bool` - at `$.crop.size`"),
        (lambda m: m["crop"].update(mean=0.5), "Expected `array`, got `float` - at `$.crop.mean`"),
        (lambda m: m["calibration"].update(scale=None), "Expected `float`, got `null` - at `$.calibration.scale`"),
        (lambda m: m.update(sampling=[5]), "Expected `object`, got `array` - at `$.sampling`"),
        (lambda m: m["files"].update({"sampler.onnx": 3}), "Expected `str`, got `int` - at `$.files.sampler.onnx`"),
        (
            lambda m: m["origins"].update(detector="Google", backbone=3),
            "Expected `str`, got `int` - at `$.origins.backbone`",
        ),
        (
            lambda m: m["origins"].update(backbone=3) or m.update(fp32=3),  # it is the first that is told
            "Expected `str`, got `int` - at `$.origins.backbone`",
        ),
        (
            lambda m: m["graphs"]["sampler"]["outputs"]["vertices"].update(shape=[1.5]),
            "Expected `int | str`, got `float` - at `$.graphs.sampler.outputs.vertices.shape[0]`",
        ),
    ],
)
def test_wrong_type(folder: Path, edit: Callable[[dict[str, Any]], Any], expected: str) -> None:
    change(folder, edit)
    assert expected in error(folder)


def test_the_embedded_bundle_is_written_as_it_is_read(tmp_path: Path) -> None:
    """Its manifest, which may have format 2, says what one of today would."""
    shutil.copytree(DEFAULT, tmp_path / "copy")
    old = Bundle.load(tmp_path / "copy")
    parts = ("name", "graphs", "crop", "sampling", "calibration", "body", "training", "origins", "fp32")
    new = write_bundle(tmp_path / "copy", **{name: getattr(old, name) for name in parts})
    for name in ("files", *parts):
        assert getattr(new, name) == getattr(old, name), name


def test_bundle_error_is_an_input_error() -> None:
    assert issubclass(BundleError, InputError)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m["crop"].update(size=64), r"backbone.inputs.crops has the shape ['P', 32, 32, 3] in place of "),
        (lambda m: m["sampling"].update(steps=7), "sampler.inputs.uniforms has the shape ['P', 'Q', 5, 6, 2] in place"),
        (
            lambda m: m["graphs"]["sampler"]["outputs"]["vertices"].update(shape=["P", "Q", 11, 3]),
            "sampler.outputs.vertices has the shape",
        ),
        (
            lambda m: m["graphs"]["deterministic"]["outputs"].update(
                sigma={"dtype": "float32", "shape": ["P", 9]}, joints_sigma=TENSOR
            ),
            "deterministic.outputs.sigma has the shape ['P', 9] in place of ['P', 10]",
        ),
        (
            lambda m: m["graphs"]["deterministic"]["outputs"].update(
                modes={"dtype": "float32", "shape": [20, 9, 3]},
            ),
            "deterministic.outputs.modes has the shape [20, 9, 3] in place of [20, 10, 3]",
        ),
        (
            lambda m: m["graphs"]["sampler"]["inputs"]["logits"]["shape"].__setitem__(1, "N"),
            "sampler.inputs.logits has the shape ['P', 'N', 9] in place of ['P', 'a number', 9]",
        ),
        (lambda m: m["crop"].update(size=10**9), "Expected `int` <= 4096"),
        (lambda m: m["sampling"].update(steps=10**9), "Expected `int` <= 1000"),
        (lambda m: m["graphs"]["backbone"]["inputs"]["crops"]["shape"].append(10**12), "Expected `int` <= 16777216"),
    ],
)
def test_sizes_that_do_not_fit(folder: Path, edit: Callable[[dict[str, Any]], Any], expected: str) -> None:
    change(folder, edit)
    assert expected in error(folder)


def test_a_detector_has_an_image_of_some_size(folder: Path) -> None:
    (folder / "detector.onnx").write_bytes(b"")
    change(folder, lambda m: m["files"].update({"detector.onnx": hashlib.sha256(b"").hexdigest()}))
    change(folder, lambda m: m["graphs"].update(detector=detector("boxes", "scores")))
    change(folder, lambda m: m["graphs"]["detector"]["inputs"]["image"].update(shape=[1, 100_000, 256, 3]))
    assert "detector.inputs.image has the shape [1, 100000, 256, 3]" in error(folder)


@pytest.mark.parametrize("file", ["bundle.json", "topology.npz", "sampler.onnx"])
def test_only_files_of_limited_size_are_read(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert f"{file}: not a regular file" in error(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    assert f"{file}: not a regular file" in error(folder)
    (folder / file).unlink()
    with (folder / file).open("wb") as large:
        large.truncate(2**32)  # without blocks on the disk
    assert f"{file}: has 4294967296 bytes; at most " in error(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_manifest_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    """One value anywhere in it is of another type or size, or the file is cut."""
    path = folder / "bundle.json"
    whole = path.read_bytes()
    manifest = json.loads(whole)
    part: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = data.draw(
        st.sampled_from([None, True, -1, 0, 2**31, 2**70, 1e308, "", "P", [], {}, [[]], {"a": None}, "../x"])
    )
    changed = json.dumps(manifest).encode()
    try:
        path.write_bytes(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed)
        with contextlib.suppress(BundleError):
            Bundle.load(folder)
    finally:
        path.write_bytes(whole)


def test_the_page_about_sigma_says_what_the_default_bundle_promises(root: Path) -> None:
    calibration = Bundle.load().calibration
    section = (root / "docs" / "sigma.md").read_text().split("\n## ")[1]
    quoted = re.findall(r"^> (.*)", section, re.MULTILINE)
    assert " ".join(quoted) == calibration.how
    shares, radii = (
        re.findall(r"([\d.]+) (?:%|\|)", line)
        for line in section.splitlines()
        if line.startswith(("| share of the errors", "| within"))
    )
    promised = {f"{radius:.2f}": f"{100 * float(share):.0f}" for share, radius in calibration.quantiles.items()}
    promised |= {within.split()[0]: f"{100 * share:.0f}" for within, share in calibration.coverage.items()}
    assert len(radii) == 6
    assert dict(zip(radii, shares)) == {radius: promised[radius] for radius in radii}


def test_graphs_that_stay_in_fp32_are_optional_and_known(folder: Path) -> None:
    change(folder, lambda m: m.pop("fp32"))  # as version 0.1 wrote it
    assert Bundle.load(folder).fp32 == []
    change(folder, lambda m: m.update(fp32=["sampler"]))
    assert Bundle.load(folder).fp32 == ["sampler"]
    change(folder, lambda m: m.update(fp32=["decoder"]))
    assert "`$.fp32[0]`" in error(folder)
