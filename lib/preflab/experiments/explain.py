"""One line for a reader out of pydantic's errors."""

import re
from collections.abc import Mapping
from typing import Any

from preflab.errors import shown


def explain(error: Mapping[str, Any], section: str = "") -> str:
    """Key, value and what was expected, from one of `ValidationError.errors()`."""
    where = [name for name in (section, *map(str, error["loc"])) if name]
    key, value, kind = ".".join(where), error.get("input"), error["type"]
    if kind == "value_error":  # our own words, which begin with the name in the innermost section or row
        said = str(error["ctx"]["error"])
        above = where[:-1] if where and said.startswith(f"{where[-1]}=") else where
        return ".".join([*above, said])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}={shown(value)}: no such parameter"
    if kind == "missing":
        return f"{key}: missing"
    return f"{key}={shown(value)}: {error['msg'][0].lower() + error['msg'][1:]}{hint(value)}"


def hint(value: Any) -> str:
    """What a text should have been: YAML 1.1 reads 1e-6 as text, papermill's -p a list."""
    if isinstance(value, str) and (number := re.fullmatch(r"([+-]?\d+)(\.\d+)?[eE]([+-]?)(\d+)", value)):
        whole, fraction, sign, exponent = number.groups()
        return f" (text in YAML; write {whole}{fraction or '.0'}e{sign or '+'}{exponent} without quotes)"
    if isinstance(value, str) and re.fullmatch(r"[\[{].*[\]}]", value):
        return " (papermill -p gives text; write -y 'name: value' instead)"
    return ""
