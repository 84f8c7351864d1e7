"""The error that a user can fix: a command prints it as one line. Any other exception is a bug."""

from __future__ import annotations

import re

import numpy as np


class InputError(ValueError):
    """A file, option or field that cannot be used. One line: its name, the fault, and what to do."""

    def __str__(self) -> str:
        # names in files and messages may break lines, or steer the terminal
        return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], super().__str__())


def numbers(name: str, value: object) -> np.ndarray:
    """`value` as float64. Raises InputError that names the argument."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biufO":  # no text, times or complex numbers, which numpy would convert
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name}: must hold numbers only, it is {shown(value)}")


def whole_numbers(name: str, value: object, most: int) -> np.ndarray:
    """`value` as int64, from 0 to `most`. Raises InputError that names the argument."""
    array = numbers(name, value)
    if not ((array == np.floor(array)) & (array >= 0) & (array <= most)).all():
        raise InputError(f"{name}: must be whole numbers from 0 to {most}, it is {shown(value)}")
    return array.astype(np.int64)


def shown(value: object) -> str:
    """The beginning of a value, in one line."""
    return " ".join(repr(value).split())[:80]


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
