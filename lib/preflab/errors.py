"""The one error a reader is meant to see."""


class BadInput(ValueError):
    """A user-facing error; its message is one line naming file, key, value and what was expected."""
