"""Reading values from rows with a check: each function returns the value or raises BadInput in one line.

Errors name file, row and key. They never quote a prompt or a reply, because some preference data are offensive on
purpose.
"""

import re
import sys

from preflab.errors import BadInput

Turns = tuple[tuple[str, str], ...]  # ((role, content), ...)


def value_of(row: dict, key: str, kind: type, where: str):
    """row[key], which must be of type `kind`. A null counts as the empty value of that type.

    `where` names file and row in errors. Raises BadInput for a missing key, another type, and broken Unicode.
    """
    if not isinstance(row, dict) or key not in row:
        raise BadInput(f"{where}: key {key!r} is missing; expected a {kind.__name__}")
    value = kind() if row[key] is None else row[key]
    if not isinstance(value, kind):
        found = type(value).__name__
        raise BadInput(f"{where}: key {key!r} is of type {found}; expected a {kind.__name__}")
    if kind is str and re.search("[\ud800-\udfff]", value):
        raise BadInput(f"{where}: key {key!r} holds half a surrogate pair; expected Unicode text")
    return value


def rating_of(row: dict, key: str, scale: tuple[int, int], where: str) -> float | None:
    """row[key] as a number, so that "10" > "9"; None if it is null or "N/A".

    Raises BadInput for a missing key and for anything but a number within the scale, ends included.
    """
    value = _given(row, key, "expected a rating", where)
    if value is None:
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # an integer may be larger than any float
        number = float("nan")
    if not scale[0] <= number <= scale[1]:  # also false for nan
        expected = f"expected a number from {scale[0]} to {scale[1]}, or 'N/A'"
        raise BadInput(f"{where}: key {key!r} is {value!r:.20}; {expected}")
    return number


def number_of(row: dict, key: str, where: str) -> float | None:
    """row[key] as a number, true as 1 and false as 0; None if it is null or "N/A".

    Raises BadInput for a missing key and for anything else, a number as text, NaN and infinity included.
    """
    expected = "expected a finite number, or null if unrated"
    value = _given(row, key, expected, where)
    if value is None:
        return None
    if not is_number(value) or not abs(value) <= sys.float_info.max:  # NaN too
        raise BadInput(f"{where}: key {key!r} is {value!r:.20}; {expected}")
    return value


def is_number(value) -> bool:
    """Whether a value is a number or a bool. Text is none, whatever it says."""
    return isinstance(value, int | float)


def _given(row: dict, key: str, expected: str, where: str):
    """row[key], or None for the text "N/A". Raises BadInput for a missing key."""
    if key not in row:
        raise BadInput(f"{where}: key {key!r} is missing; {expected}")
    return None if row[key] == "N/A" else row[key]


def turns_of(row: dict, key: str, role: str, where: str) -> Turns:
    """row[key] as turns: a list of messages, or plain text, which is one turn of the given role.

    Raises BadInput for a missing key, and for messages without a known role or without content.
    """
    if not isinstance(row.get(key), list):
        return ((role, value_of(row, key, str, where)),)
    turns = []
    for message in row[key]:
        turn = tuple(value_of(message, part, str, f"{where}, {key}") for part in ("role", "content"))
        if turn[0] not in ("system", "user", "assistant"):
            expected = "expected system, user or assistant"
            raise BadInput(f"{where}: key '{key}.role' is {turn[0]!r:.20}; {expected}")
        turns.append(turn)
    return tuple(turns)


def objective_of(row: dict, where: str) -> str:
    """The name in the column `objective`. Raises BadInput for a row without one."""
    name = value_of(row, "objective", str, where)
    if not name.strip():
        raise BadInput(f"{where}: key 'objective' is empty; expected the name of an objective")
    return name
