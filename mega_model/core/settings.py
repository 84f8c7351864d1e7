"""A verb's options: a YAML file whose keys are option names, if there is one, then options that override it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
import tyro
from msgspec import Meta

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist

C = TypeVar("C")


class Existing:
    """Marks an option that names a file or a folder to read."""


ExistingPath = Annotated[Path, Existing]
ExistingSet = Annotated[str, Existing]
"""KIND:PATH, where PATH may also be a URL."""
Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NOT_EMPTY = Meta(min_length=1)
NotNegative = Annotated[float, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
"""Numpy's generators take no larger ones."""


def parse(config: type[C], args: list[str]) -> C:
    """`[FILE.yaml] [--field value ...]` -> a config dataclass.

    Raises InputError that names the file and the key, an `Existing` file or folder that is not there, or an option
    whose number is out of its type's bounds.
    """
    options = _parse(config, args)
    for name, kind in get_type_hints(config, include_extras=True).items():
        value, notes = getattr(options, name), [*_notes(kind)]
        if Existing in notes:
            for place in value if isinstance(value, tuple) else (value,):
                _check_place(place)
        if any(isinstance(note, Meta) for note in notes):
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                given = " ".join(map(str, value)) if isinstance(value, tuple) else value
                bound = str(error).partition(" - at")[0].partition("` ")[2]
                raise InputError(f"--{name.replace('_', '-')} {given}: must be {bound}") from error
    return options


def _notes(kind: Any) -> Iterator[Any]:
    """All that `Annotated` says of a type and of its parts."""
    yield from getattr(kind, "__metadata__", ())
    for part in get_args(kind):
        yield from _notes(part)


def _check_place(place: Path | str | None) -> None:
    if isinstance(place, str):
        kind, colon, rest = place.partition(":")
        # what is live is rendered when it is used
        place = None if "://" in rest or kind == "live" else Path(rest if colon else kind)
    if place is not None and not os.path.exists(place):  # Path.exists raises for some names
        raise InputError(f"{place}: there is no such file or folder")


def _parse(config: type[C], args: list[str]) -> C:
    if not args or not args[0].endswith(".yaml"):
        return tyro.cli(config, args=args)
    given = _read(config, Path(args[0]))
    needed = {f.name: tyro.MISSING for f in fields(config) if f.default is f.default_factory is MISSING}  # type: ignore[arg-type]
    return tyro.cli(config, args=args[1:], default=config(**{**needed, **given}))


def _read(config: type[Any], file: Path) -> dict[str, Any]:
    """The values in the file, converted to the types of the config's fields."""
    import yaml  # only for files

    must_exist(file)
    try:
        values = yaml.safe_load(file.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not a readable YAML file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{file}: it should have an `option: value` on each line")
    types = get_type_hints(config)
    read = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in types:
            raise InputError(f"{file}: {key} is no option; there are {', '.join(types)}")
        try:
            # not strict, because YAML reads 1e-3 as text
            read[name] = msgspec.convert(value, types[name], strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise InputError(f"{file}: {key} is {value!r}: {error}") from error
    return read


def _path(kind: type[Any], value: Any) -> Path:
    """Conversion of types that msgspec does not support."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")
