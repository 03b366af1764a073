"""The one error a reader is meant to see, and errors as one line."""

import errno
import os
import reprlib
from typing import Any

LONGEST = 293  # characters of a line; "error: " before it makes 300
LONGEST_WORD = 161  # in it: of a path the end tells most
LONGEST_VALUE = 80  # of a value in it
DISK = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
MAKE_ROOM = "make room and give the same command again; what is finished is kept"


class BadInput(ValueError):
    """A user-facing error; its message is one line naming file, key, value and what was expected."""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Short(reprlib.Repr):
    """repr() of the beginning of a value: that of all of it may fill the memory."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 20
        self.maxstring = self.maxlong = self.maxother = 4 * LONGEST_VALUE


def shown(value: Any) -> str:
    """A value as text, shortened in its middle."""
    try:
        text = _Short().repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE // 2]} … {text[-LONGEST_VALUE // 4 :]}"


def one_line(text: str) -> str:
    """A text as one line that a terminal can show: control characters escaped; what is long loses its middle."""
    words = (word if len(word) <= LONGEST_WORD else f"{word[:60]}…{word[-100:]}" for word in text.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 93]} … {line[-90:]}"


def disk_fault(text: str) -> str | None:
    """What to tell of an error's text if a full or broken disk is behind it, else None.

    Python, safetensors, tokenizers and Arrow raise types of their own; the words are the system's.
    """
    said = next((line.strip() for line in text.splitlines() if any(words in line for words in DISK)), None)
    return said and f"{said}; {MAKE_ROOM}"


def machine_fault(error: Exception) -> str | None:
    """What to tell of an error that is the disk's or a file's; None for any other."""
    named = isinstance(error, OSError) and error.filename is not None
    return disk_fault(str(error)) or (f"{error.filename}: {error.strerror}" if named else None)
