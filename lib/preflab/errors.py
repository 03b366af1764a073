"""The one error a reader is meant to see."""


class BadInput(ValueError):
    """A user-facing error; its message is one line naming file, key, value and what was expected."""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
