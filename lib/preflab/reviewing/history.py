"""What was said of a claim before, from the tables at the end of RESULTS.md, which are its only record."""

import re
from dataclasses import dataclass

from preflab.errors import BadInput

SECTION = "What changed, and why"
THE_SAME = "The same."  # as the row above says


@dataclass(frozen=True)
class Change:
    """A verdict, or a part of a rule, that was replaced."""

    before: str
    after: str
    why: str


def changes(results: str) -> dict[str, list[Change]]:
    """By claim, from the text of RESULTS.md, in its order. Raises BadInput if the section is not there."""
    _, heading, rest = results.partition(f"\n## {SECTION}\n")
    if not heading:
        raise BadInput(f"RESULTS.md: no section {SECTION!r}, expected the verdicts and rules of before")
    found: dict[str, list[Change]] = {}
    above = ""
    for name, before, after, why in _rows(rest.partition("\n## ")[0]):
        above = above if why.startswith(THE_SAME) else why
        for claim in claims_in(name):
            found.setdefault(claim, []).append(Change(before, after, why.replace(THE_SAME, above)))
    return found


def _rows(text: str) -> list[list[str]]:
    """The cells of every row with four of them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == 4]


def claims_in(text: str) -> list[str]:
    """The claims that a text names: "D7, D9 to D11" are D7, D9, D10 and D11."""
    found = []
    for letter, first, last in re.findall(r"\b([A-Z])(\d+)(?: to [A-Z](\d+))?\b", text):
        found += [f"{letter}{number}" for number in range(int(first), int(last or first) + 1)]
    return found
