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
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: must hold numbers only, it is {value!r:.80}") from None


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
