"""What a notebook's own cells tell of its parameters."""

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from preflab.errors import BadInput

INJECTED = "# Parameters"  # how the cell begins that papermill puts after the parameters cell


def injected_names(inputs: Iterable[str]) -> Iterator[str]:
    """The names that papermill has set, from the kernel's history of inputs (`In`)."""
    for source in inputs:
        if source.startswith(INJECTED):
            yield from literals(source)


def literals(source: str) -> dict[str, Any]:
    """The names that a cell assigns literals to, read without running it. Raises BadInput for what is no Python."""
    found = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise BadInput(f"parameters cell, line {error.lineno}: {error.msg}, expected Python") from None
    for node in statements:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            try:
                found[target.id] = ast.literal_eval(node.value)
            except (ValueError, AttributeError):
                continue  # a reader's own expression, or a target that is no name
    return found


def warn_of_near_misses(names: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Print a line for a variable of the last parameters cell that is nearly a parameter: perhaps it is misspelt."""
    fields = list(fields)
    cell = next((s for s in reversed(list(names.get("In", []))) if "profile: str" in s), "")
    for name in literals(cell) if cell else ():
        near = difflib.get_close_matches(name, fields, 1, cutoff=0.75)
        if name not in fields and near:
            print(f"note: {name} is no parameter of this notebook; did you mean {near[0]}?")
