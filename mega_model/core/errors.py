"""The one error that is the user's to mend: a command prints it as one line. Every other exception is a bug."""


class InputError(ValueError):
    """A file, option or field that cannot be used. One line: which one, what is wrong, and what to do about it."""
