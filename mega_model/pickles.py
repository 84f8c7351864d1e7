"""Reads arrays from untrusted pickles without running code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mega_model.core.errors import InputError
from mega_model.core.files import must_exist


def read_pickle(path: Path) -> Any:
    """The content of a pickle of Python 2 or 3: builtins, numpy arrays, and `Record`s for objects of chumpy and scipy.

    Raises InputError for anything else, before any of its code runs.
    """
    must_exist(path)
    with path.open("rb") as file:
        try:
            return _DataUnpickler(file, encoding="latin1").load()
        except Exception as error:  # damaged pickles raise anything
            raise InputError(f"{path}: not a readable pickle file ({error})") from error


class Record:
    """The fields of an object of another library."""

    fields: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.fields = state

    def array(self) -> np.ndarray:
        """The array of a chumpy array, of a selection of one, or of a scipy csc_matrix; else ValueError."""
        has = self.fields.keys()
        if "x" in has:
            return as_array(self.fields["x"])
        if {"a", "idxs", "preferred_shape"} <= has:
            return as_array(self.fields["a"]).ravel()[self.fields["idxs"]].reshape(self.fields["preferred_shape"])
        if {"data", "indices", "indptr", "_shape"} <= has:
            dense = np.zeros(self.fields["_shape"])
            columns = np.repeat(np.arange(dense.shape[1]), np.diff(self.fields["indptr"]))
            dense[self.fields["indices"], columns] = self.fields["data"]
            return dense
        raise ValueError(f"an object with the fields {', '.join(sorted(has))} is not an array")


def as_array(value: Any) -> np.ndarray:
    """An array that `read_pickle` found, whichever library wrote it."""
    return value.array() if isinstance(value, Record) else np.asarray(value)


class _Kind:
    """A dtype of numbers, words or objects. A pickle may set its byte order, not fields or flags."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"it holds arrays of {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that restores itself from a pickle, without objects from bytes."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        is_list = kind.dtype.kind == "O" and isinstance(data, list)
        flat = np.fromiter(data, object, len(data)) if is_list else _from_bytes(data, kind)
        safe: Any = flat.reshape(shape, order="F" if fortran else "C").__reduce__()
        super().__setstate__(safe[2])


def _from_bytes(data: bytes | str, kind: _Kind, shape: Any = -1, order: Any = "C", axes: Any = None) -> np.ndarray:
    """`data` as numpy's pickles have it, a string if Python 2 wrote it. ValueError for a `kind` of objects."""
    flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind.dtype)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


_KNOWN = {
    "numpy.ndarray": "an argument, not to be called",
    "numpy.dtype": _Kind,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(0),
    "numpy.core.numeric._frombuffer": _from_bytes,
    "numpy.core.multiarray.scalar": lambda kind, data: _from_bytes(data, kind)[0],
    "copyreg._reconstructor": lambda *_: Record(),
    "builtins.object": "an argument, not to be called",
    "builtins.set": set,
    # Python 3 writes bytes so where it writes for Python 2, empty ones first
    "builtins.bytes": lambda: b"",
    "_codecs.encode": lambda text, _: text.encode("latin1"),
}
"""Allowed name -> replacement. numpy's own constructors are replaced, because they trust the pickle's sizes."""

_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}


class _DataUnpickler(pickle.Unpickler):
    """Creates data objects only."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{_RENAMED.get(module, module)}.{name}")
        if known is not None:
            return known
        if module.split(".")[0] in ("chumpy", "scipy"):
            return Record
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not data")
