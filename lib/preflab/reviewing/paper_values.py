"""Values of params/paper that no source gives: their comments begin with `choice`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from preflab.paths import project_root

CHOICE = re.compile(r"#.*?\bchoice\b[:;]?\s*(.*)$")


@dataclass(frozen=True)
class PaperValue:
    parameter: str  # by its dotted name
    value: str  # as the file has it
    why: str


def chosen_values() -> dict[PaperValue, list[str]]:
    """By value: the names of the files of params/paper that have it, all for the same reason."""
    found: dict[PaperValue, list[str]] = {}
    for file in sorted((project_root() / "params" / "paper").glob("*.yaml")):
        for value in values_in(file.read_text(encoding="utf-8")):
            found.setdefault(value, []).append(file.stem)
    return found


def values_in(text: str) -> Iterator[PaperValue]:
    """The values of a YAML text that are marked as ours, in order."""
    lines = text.splitlines()
    for name, key, value in _nodes(yaml.compose(text)):
        if marked := CHOICE.search(lines[key.start_mark.line]):
            source = text[value.start_mark.index : value.end_mark.index]
            yield PaperValue(name, source if "\n" not in source else "a section", marked[1])


def _nodes(mapping: yaml.MappingNode, before: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Every key with its value, those of sections after the section itself."""
    for key, value in mapping.value:
        yield f"{before}{key.value}", key, value
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _nodes(value, f"{before}{key.value}.")
