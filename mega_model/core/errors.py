"""The error that a user can fix: a command prints it as one line. Any other exception is a bug."""


class InputError(ValueError):
    """A file, option or field that cannot be used. One line: its name, the fault, and what to do."""
