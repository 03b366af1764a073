"""JSON that others wrote, with a check."""

import json
import re
from pathlib import Path
from typing import Any

from preflab.errors import BadInput

LONGEST_NUMBER, DEEPEST = 4300, 200  # Python refuses longer integers, and gives up on brackets some way beyond
TOKENS = re.compile(
    rf"""
    "(?:[^"\\]|\\.)*"  # a text, whatever is in it
    | (?P<number>\d{{{LONGEST_NUMBER + 1},}}) | (?P<open>[\[{{]) | (?P<close>[\]}}])
    """,
    re.VERBOSE | re.DOTALL,
)


def parse_json(text: str, where: str, line: int = 1) -> Any:
    """The value of a JSON text whose first line is number `line` of a file. Raises BadInput that names the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{where}: line {line + error.lineno - 1}, column {error.colno}"
        raise BadInput(f"{at}: {error.msg.removesuffix(' at')}; expected valid JSON") from None
    except (ValueError, RecursionError):  # which do not tell where
        at, what = _monster(text)
        raise BadInput(f"{where}: line {line + text.count(chr(10), 0, at)}: {what}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises BadInput for a file that is none, OSError for one that cannot be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8; expected UTF-8 text") from None


def _monster(text: str) -> tuple[int, str]:
    """Where the first number is that is too long, or else the first bracket that is too deep, and what is wrong."""
    depth, deep = 0, None
    for token in TOKENS.finditer(text):
        if token["number"]:
            return token.start(), f"a number of {len(token['number'])} digits; expected at most {LONGEST_NUMBER}"
        depth += bool(token["open"]) - bool(token["close"])
        if depth > DEEPEST and deep is None:
            deep = token.start()
    return deep or 0, f"brackets in brackets; expected at most {DEEPEST} in one another"
