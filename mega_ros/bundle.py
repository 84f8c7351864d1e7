"""An exported model on disk: a folder with a manifest (`bundle.json`), ONNX graphs and the body's topology.

Only this module depends on the manifest's format: `write_bundle` writes it, `Bundle.load` reads and checks it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import msgspec

from mega_model.core.errors import InputError
from mega_model.core.files import check_file, read_bytes, sha256

FORMAT = 3
MANIFEST = "bundle.json"
TOPOLOGY = "topology.npz"
LANDMARKS = ("landmarks", "world", "presence")
"""Further outputs of a backbone that was trained on 2D poses, such as BlazePose."""
GRAPHS = {  # required inputs and outputs, then optional ones; keypoints [P, 12, 3] are a detector's, of the limbs
    "backbone": (["crops"], ["features"], [], [*LANDMARKS]),
    "deterministic": (
        ["features"],
        ["tokens", "vertices", "rotation", "camera", "image", "logits"],
        [*LANDMARKS, "keypoints"],
        ["prior", "sigma", "joints_sigma", "distance", "modes"],
    ),
    "sampler": (["image", "logits", "uniforms"], ["tokens", "vertices"], ["prior"], []),
    "detector": (["image"], ["boxes", "scores"], [], ["keypoints"]),
}
GraphName = Literal["backbone", "deterministic", "sampler", "detector"]
MOST_BYTES = {"manifest": 2**22, "topology": 2**26, "graph": 2**31}
"""Of the files of a bundle. A graph is a protobuf message, which cannot be larger; the default manifest has 14 kB."""
MOST_SAMPLES = 1000
"""Per person and call: they take memory in proportion."""
DEFAULT = Path(__file__).parent / "models" / "default"


class BundleError(InputError):
    """A bundle that cannot be used: one line that names the file or field and what to do."""


Pixels = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**24)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[str, msgspec.Meta(pattern=r"^0\.\d+$")]


@dataclass(frozen=True)
class Tensor:
    dtype: str
    """The numpy name: uint8, int64, float32."""
    shape: tuple[Size | str, ...]
    """A name ("P", "Q") is a dynamic size."""

    def sized(self, people: int, samples: int) -> tuple[int, ...]:
        """The shape for these numbers of people and samples."""
        sizes = {"P": people, "Q": samples}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class Graph:
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class NeededGraphs(TypedDict):
    backbone: Graph
    deterministic: Graph
    sampler: Graph


class Graphs(NeededGraphs, total=False):
    detector: Graph


@dataclass(frozen=True)
class Crop:
    size: Pixels
    """Pixels; crops are square."""
    margin: Positive
    """Side of the crop over the larger side of the box."""
    mean: tuple[float, ...]
    """RGB normalisation, 0 to 1. For information only: the backbone graph applies it."""
    std: tuple[float, ...]
    passes: Count
    """Number of crops per person, each a pass of the backbone: the first around the box, the others around the region
    that the landmarks give. If there are several, a detector's keypoints place the only crop of those who have them."""
    camera: Literal["ray"] = "ray"
    """Crops come from the cameras of `mega_model.core.geometry.square_cameras`."""


@dataclass(frozen=True)
class Sampling:
    steps: Count
    """T, fixed in the sampler graph."""
    samples: Annotated[int, msgspec.Meta(ge=0, le=MOST_SAMPLES)]
    """Default Q; 0 for the deterministic mesh only."""
    temperature: Positive
    """tau, fixed in the sampler graph."""


@dataclass(frozen=True)
class Calibration:
    scale: Positive
    """Factor on the graph's sigma, or on the samples' spread if the graph has no sigma."""
    how: str
    coverage: dict[str, float]
    """Radius ("1 sigma") -> fraction of held-out vertices whose error is inside."""
    quantiles: dict[Fraction, float] = field(default_factory=dict)
    """Fraction -> radius in sigma that contains it: half of the errors are below quantiles["0.50"] * sigma."""


@dataclass(frozen=True)
class Body:
    name: str
    topology: str
    licence: str


@dataclass(frozen=True)
class Manifest:
    """The content of `bundle.json`: this declaration is used to write, read and check it."""

    format: int
    name: str
    files: dict[str, str]
    """SHA-256 of every other file, by name."""
    graphs: Graphs
    crop: Crop
    sampling: Sampling
    calibration: Calibration
    body: Body
    training: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict, kw_only=True)
    """Graph -> origin and licence of published weights. Older bundles lack this field."""
    fp32: list[GraphName] = field(default_factory=list, kw_only=True)
    """Graphs that stay in fp32 among engines of fp16, because their measured error is too large. Older bundles
    lack this field."""


@dataclass(frozen=True)
class Bundle(Manifest):
    """A checked bundle: all files exist and have the hashes of the export."""

    folder: Path
    """Absolute, as a program may change its working folder."""
    hash: str
    """SHA-256 of `bundle.json`. As that holds the hashes of all other files, it identifies the whole model."""

    @classmethod
    def load(cls, name: str | Path = "default") -> Bundle:
        """`name` is "default" (the embedded bundle) or a folder. Raises BundleError."""
        folder = DEFAULT if name == "default" else Path(name)
        path = folder / MANIFEST
        try:
            raw = read_bytes(path, MOST_BYTES["manifest"])
        except InputError as error:
            raise BundleError(f"{error}; give a folder made by mega export onnx") from None
        manifest = _decode(raw, path)
        _check_tensors(manifest, path)
        _check_links(manifest, path)
        _check_shapes(manifest, path)
        for file in (TOPOLOGY, *(f"{graph}.onnx" for graph in manifest.graphs)):
            if file not in manifest.files:
                raise BundleError(f"{path}: files.{file} is missing; export the bundle again")
        for file, expected in manifest.files.items():
            _check_file(folder, file, expected)
        values = {f.name: getattr(manifest, f.name) for f in fields(manifest)}
        return cls(**values, folder=folder.absolute(), hash=hashlib.sha256(raw).hexdigest())

    def path(self, graph: str) -> Path:
        return self.folder / f"{graph}.onnx"


def write_bundle(
    folder: Path,
    *,
    name: str,
    graphs: Graphs,
    crop: Crop,
    sampling: Sampling,
    calibration: Calibration,
    body: Body,
    training: dict[str, Any],
    origins: dict[str, str],
    fp32: Sequence[GraphName] = (),
) -> Bundle:
    """Hash `topology.npz` and the .onnx files in a folder, write the manifest, and load the bundle."""
    files = {file: sha256(folder / file) for file in (TOPOLOGY, *(f"{graph}.onnx" for graph in graphs))}
    parts = (FORMAT, name, files, graphs, crop, sampling, calibration, body, training)
    manifest = Manifest(*parts, origins=origins, fp32=[*fp32])
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return Bundle.load(folder)


@dataclass(frozen=True)
class _Header:
    """The part common to all formats. It is read first, because other formats may lack fields of this one."""

    format: int


def _decode(raw: bytes, path: Path) -> Manifest:
    try:
        content = msgspec.json.decode(raw)
        version = msgspec.convert(content, _Header).format
    except msgspec.ValidationError:
        raise BundleError(f"{path}: field format is missing; this is not a mega_ros bundle") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not JSON ({error}); export the bundle again") from None
    if version > FORMAT:
        raise BundleError(f"{path}: format {version} is newer than this mega_ros reads ({FORMAT}); update mega_ros")
    if version < 2:
        raise BundleError(f"{path}: format {version} is older than this mega_ros reads (2); export it again")
    crop = content.get("crop")
    if version == 2 and isinstance(crop, dict) and "looks" in crop:  # that format's name of `passes`
        crop["passes"] = crop.pop("looks")
    try:
        return msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        why = _with_keys(str(error), content)
        raise BundleError(f"{path}: {why}; correct it or export the bundle again") from None


def _with_keys(why: str, content: Any) -> str:
    """msgspec's message, with the key of the entry that it means where it says `[...]`, as in `$.files[...]`."""
    place = re.search(r"\$\.([\w.]+)\[\.\.\.\]", why)
    if not place:
        return why
    entries = reduce(getitem, place[1].split("."), content)
    for key, value in [*entries.items()][:100]:  # a bundle has fewer
        entries.clear()
        entries[key] = value  # alone: if an entry is still refused, it is this one
        try:
            msgspec.convert(content, Manifest)
        except msgspec.ValidationError as error:
            if place[0] in str(error):
                return why.replace("[...]", f".{key}")
    return why


def _check_tensors(manifest: Manifest, path: Path) -> None:
    for name, graph in cast(Mapping[str, Graph], manifest.graphs).items():
        inputs, outputs, more_inputs, more_outputs = GRAPHS[name]
        for kind, tensors, wanted, more in (
            ("inputs", graph.inputs, inputs, more_inputs),
            ("outputs", graph.outputs, outputs, more_outputs),
        ):
            if not set(wanted) <= set(tensors) <= {*wanted, *more}:
                raise BundleError(
                    f"{path}: graphs.{name}.{kind} are {', '.join(tensors)}, not {', '.join(wanted)}; "
                    "export the bundle again"
                )


def _check_links(manifest: Manifest, path: Path) -> None:
    """Check that the outputs which other graphs or fields need exist."""
    deterministic, sampler = manifest.graphs["deterministic"], manifest.graphs["sampler"]
    giver: GraphName
    for where, needed, giver in (
        ("graphs.deterministic.inputs", set(deterministic.inputs) - {"keypoints"}, "backbone"),
        (
            "graphs.deterministic.outputs",
            {"joints_sigma"} if "sigma" in deterministic.outputs else set(),
            "deterministic",
        ),
        ("graphs.sampler.inputs", set(sampler.inputs) - {"uniforms"}, "deterministic"),
        ("crop.passes", {"landmarks"} if manifest.crop.passes > 1 else set(), "backbone"),
        ("graphs.deterministic.outputs", {"landmarks"} if "modes" in deterministic.outputs else set(), "backbone"),
    ):
        lacking = sorted(needed - set(manifest.graphs[giver].outputs))
        if lacking:
            raise BundleError(f"{path}: {where}: {giver} does not give {', '.join(lacking)}; export the bundle again")


def _check_shapes(manifest: Manifest, path: Path) -> None:
    """Check the sizes that the runtime computes with: a wrong one would fail at the first image, or take all memory."""
    backbone, deterministic, sampler = (manifest.graphs[name] for name in ("backbone", "deterministic", "sampler"))
    size = manifest.crop.size
    vertices, tokens = (deterministic.outputs[name].shape[1:2] for name in ("vertices", "tokens"))
    wanted: list[tuple[str, Tensor, list[Any]]] = [
        ("backbone.inputs.crops", backbone.inputs["crops"], ["P", size, size, 3]),
        ("deterministic.outputs.vertices", deterministic.outputs["vertices"], ["P", *vertices, 3]),
        ("deterministic.outputs.rotation", deterministic.outputs["rotation"], ["P", 3, 3]),
        ("deterministic.outputs.camera", deterministic.outputs["camera"], ["P", 3]),
        ("sampler.inputs.uniforms", sampler.inputs["uniforms"], ["P", "Q", manifest.sampling.steps, *tokens, 2]),
        ("sampler.outputs.vertices", sampler.outputs["vertices"], ["P", "Q", *vertices, 3]),
    ]
    for name in ("image", "logits"):  # their sizes tell how much memory a sample takes
        tensor = sampler.inputs[name]
        sizes = [size if isinstance(size, int) else "a number" for size in tensor.shape[1:]]
        wanted.append((f"sampler.inputs.{name}", tensor, ["P", *sizes]))
    for name, shape in (("sigma", ["P", *vertices]), ("distance", ["P"])):
        if name in deterministic.outputs:
            wanted.append((f"deterministic.outputs.{name}", deterministic.outputs[name], shape))
    if "modes" in deterministic.outputs:
        modes = deterministic.outputs["modes"]
        wanted.append(("deterministic.outputs.modes", modes, [*modes.shape[:1], *vertices, 3]))
    if "detector" in manifest.graphs:
        image = manifest.graphs["detector"].inputs["image"]
        sides = [side if isinstance(side, int) and 1 <= side <= 4096 else "1 to 4096" for side in image.shape[1:3]]
        wanted.append(("detector.inputs.image", image, [1, *sides, 3]))
    for name, tensor, shape in wanted:
        if list(tensor.shape) != shape:
            raise BundleError(
                f"{path}: graphs.{name} has the shape {list(tensor.shape)} in place of {shape}; export the bundle again"
            )


def _check_file(folder: Path, file: str, expected: str) -> None:
    if Path(file).name != file:
        raise BundleError(f"{folder / MANIFEST}: files.{file} points outside the bundle; export the bundle again")
    try:
        check_file(folder / file, MOST_BYTES["topology" if file == TOPOLOGY else "graph"])
        actual = sha256(folder / file)
    except InputError as error:
        raise BundleError(f"{error}; copy the whole bundle again") from None
    except OSError as error:
        raise BundleError(f"{folder / file}: cannot be read ({error.strerror}); copy the whole bundle again") from None
    if actual != expected:
        raise BundleError(f"{folder / file}: its SHA-256 is not the one in {MANIFEST}; copy or export the bundle again")
