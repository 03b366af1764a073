"""Docstrings of the house as reStructuredText.

They are plain text: paragraphs, names in `backticks`, formulas that are indented or stand in columns, and `Args:`. As
they are, |A|, c_i and * would mean something else to Sphinx.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{5})")
ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")  # of Args:
STRESSED = re.compile(r"(?<!\S)\\\*(\w[\w -]*)\\\*(?!\w)")  # once * is escaped
ITEM = re.compile(r"(- |\d+\. )(.*)")
COLUMNS = re.compile(r"\S {3,}\S")


def as_rst(lines: Sequence[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    made: list[str] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines).strip("\n")):
        made += [*_block(block.split("\n")), ""]
    return made


def _block(lines: list[str]) -> list[str]:
    if all(line.startswith("    ") for line in lines) or any(COLUMNS.search(line) for line in lines):
        return literal(textwrap.dedent("\n".join(lines)).split("\n"))
    if lines[0] in ("Args:", "Returns:", "Raises:"):
        return [f"**{lines[0][:-1]}**", "", *_entries(lines[1:])]
    if ITEM.match(lines[0]):
        return [_item(line) for line in lines]
    formula = next((i for i, line in enumerate(lines) if i and line.startswith("    ")), None)
    if formula:  # a formula that stands right below its sentence
        return [*map(marked, lines[:formula]), "", *_block(lines[formula:])]
    return [marked(line) for line in lines]


def literal(lines: Sequence[str]) -> list[str]:
    """A block that is shown as it is."""
    return [".. code-block:: text", "", *(f"   {line}" for line in lines)]


def _entries(lines: Sequence[str]) -> list[str]:
    """Args: as a list."""
    return [
        f"- ``{found[1]}``: {marked(found[2])}" if (found := ENTRY.fullmatch(line)) else f"  {marked(line.strip())}"
        for line in lines
    ]


def _item(line: str) -> str:
    found = ITEM.match(line)
    return f"{found[1]}{marked(found[2])}" if found else f"  {marked(line.strip())}"


def marked(text: str) -> str:
    """A line of prose: names as code, papers as links, and nothing else with a meaning."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(_name(part) if i % 2 else _prose(part) for i, part in enumerate(parts))


def _name(text: str) -> str:
    return f":py:obj:`{text}`" if re.fullmatch(r"preflab(\.\w+)+", text) else f"``{text}``"


def _prose(text: str) -> str:
    escaped = re.sub(r"([\\*|_`])", r"\\\1", text)
    return ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", STRESSED.sub(r"*\1*", escaped))


def fields_of(cls: type) -> list[str]:
    """The lines of a class's source that say its fields, with their defaults and comments."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time
        return []
    (node,) = ast.parse(source).body
    lines = source.split("\n")
    fields = [n for n in getattr(node, "body", []) if isinstance(n, ast.AnnAssign) and not _is_private(n)]
    return textwrap.dedent("\n".join(line for n in fields for line in lines[n.lineno - 1 : n.end_lineno])).split("\n")


def _is_private(node: ast.AnnAssign) -> bool:
    return isinstance(node.target, ast.Name) and node.target.id.startswith("_")


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """For the event autodoc-process-docstring."""
    lines[:] = as_rst(lines)
    fields = fields_of(obj) if what == "class" and isinstance(obj, type) else []
    if any(fields):
        lines += [".. code-block:: python", "", *(f"   {line}" for line in fields), ""]


def signature(app: Any, what: str, name: str, obj: Any, options: Any, args: str, returns: str) -> tuple | None:
    """For the event autodoc-process-signature: a class with fields needs no signature, they say all of it."""
    return ("", "") if what == "class" and isinstance(obj, type) and any(fields_of(obj)) else None


def foreign(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """For the event autodoc-skip-member: what another project has defined has its documentation there."""
    return True if not str(getattr(obj, "__module__", None) or "preflab").startswith("preflab") else None
