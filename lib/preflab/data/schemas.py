"""Which schema a source has, known by its columns, and which objectives its rows have labels for.

A reader's own pairs are easiest in TRL's format. A row of a JSONL file is one line, for example

    {"prompt": "How do I boil an egg?", "chosen": "Eight minutes.", "rejected": "No idea.", "objective": "helpful"}

The column `objective` is optional. With it, one file holds the pairs of several objectives. Another way is one
sub-folder for each objective: `mine/helpful/train.jsonl`, `mine/harmless/train.jsonl`, and so on. Without either, the
one objective is called "default".

A reader's own ratings are rows of one reply each. Every column of numbers is an objective:

    {"prompt": "How do I boil an egg?", "response": "Eight minutes.", "helpful": 4.5, "brief": 5}

The rows of one prompt are compared with each other and need not be adjacent. A null or "N/A" is no rating, true counts
as 1 and false as 0. Columns that are named as identifiers are (`id`, `seed`, `prompt_id`, `row_index`) are no
objectives, and neither are columns of text.
"""

import re
from collections.abc import Iterable

from preflab.data.sources import Table
from preflab.data.values import is_number, objective_of, value_of
from preflab.errors import BadInput

HELPSTEER_ATTRIBUTES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
ULTRAFEEDBACK_ASPECTS = ["instruction_following", "honesty", "truthfulness", "helpfulness"]

# The columns by which a schema is known, the more specific schemas first.
SIGNATURES = {
    "unieval": ("source", "context", "system_output", "scores"),
    "ultrafeedback": ("instruction", "completions"),
    "pku-saferlhf": ("prompt", "response_0", "response_1"),
    "helpsteer2": ("prompt", "response", *HELPSTEER_ATTRIBUTES),
    "trl": ("prompt", "chosen", "rejected"),
    "hh-rlhf": ("chosen", "rejected"),
    "rated": ("prompt", "response"),
}

# Columns of numbers that rate nothing: identifiers and seeds, and the index that pandas writes.
BOOKKEEPING = re.compile(r"(.*_)?(id|idx|index|seed)|__index_level_\d+__|Unnamed: \d+", re.IGNORECASE)


def schema_of(tables: list[Table]) -> str:
    """The one schema of all tables, a key of `SIGNATURES`.

    The columns of a table's first row decide. If they fit no schema but that of ratings, the columns of all its rows
    decide, and the generator will name the row that lacks one.

    Raises BadInput for an empty table, for unknown columns, and if the tables have different schemas.
    """
    found = set()
    for table in tables:
        if not len(table.rows):
            raise BadInput(f"{table.name}: is empty; expected at least one row")
        row = table.rows[0]
        name = _known_by(row)
        if name in (None, "rated"):
            name = _known_by(table.columns())
        if name is None:
            raise _unknown(table)
        messages = name == "hh-rlhf" and isinstance(row.get("chosen"), list)
        found.add("trl" if messages else name)
    if len(found) > 1:
        names = listed(table.name for table in tables)
        raise BadInput(f"{names}: schemas {', '.join(sorted(found))}; expected one schema")
    return found.pop()


def objectives_in(schema: str, tables: list[Table]) -> list[str]:
    """The objectives that the rows have labels for; ["default"] if there is only one and it has no name.

    Raises BadInput if rated rows have no ratings, or if only some rows name their objective.
    """
    where, row = next(tables[0].numbered())
    match schema:
        case "helpsteer2":
            return HELPSTEER_ATTRIBUTES
        case "pku-saferlhf":
            return ["better", "safer"]
        case "ultrafeedback":
            return ULTRAFEEDBACK_ASPECTS
        case "unieval":
            rated, expected = list(value_of(row, "scores", dict, where)), "some in its key 'scores'"
        case "rated":
            rated, expected = _rated_by(tables), "a column of numbers beside prompt and response"
        case _:
            return _named_in(tables) or ["default"]
    if not rated:
        raise BadInput(f"{where}: no ratings of the {schema} format; expected {expected}")
    return rated


def check_offered(where: str, objective: str, offered: list[str]) -> None:
    """Raises BadInput, which lists what is offered, if the objective is not among it."""
    if objective not in offered:
        raise BadInput(f"{where}: objective is {objective!r:.40}; expected one of: {listed(offered)}")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names with commas between them, cut short so that an error stays one readable line."""
    names = list(names)
    more = [f"... ({len(names)} in all)"] if len(names) > most else []
    return ", ".join([name if len(name) <= 60 else f"{name[:57]}..." for name in names[:most]] + more)


def _known_by(columns: Iterable[str]) -> str | None:
    columns = set(columns)
    return next((name for name, signature in SIGNATURES.items() if columns.issuperset(signature)), None)


def _unknown(table: Table) -> BadInput:
    """The error for columns that fit no schema: what is missing from the nearest one, if any is near."""
    columns = table.columns()

    def share(name: str) -> float:
        """How much of a schema's signature is there."""
        return sum(column in columns for column in SIGNATURES[name]) / len(SIGNATURES[name])

    nearest = max(SIGNATURES, key=share)  # the first of several that are equally near
    if not share(nearest):
        formats = "; ".join(f"{name}: {listed(signature, 4)}" for name, signature in SIGNATURES.items())
        return BadInput(f"{table.name}: columns {listed(columns, 4) or 'none'}; expected those of a format ({formats})")
    missing = [repr(column) for column in SIGNATURES[nearest] if column not in columns]
    lack = f"column {missing[0]} is missing" if len(missing) == 1 else f"columns {', '.join(missing)} are missing"
    expected = f"those of the {nearest} format: {', '.join(SIGNATURES[nearest])}"
    others = ", ".join(name for name in SIGNATURES if name != nearest)
    return BadInput(f"{table.name}: {lack}; expected {expected} (other formats: {others})")


def _rated_by(tables: list[Table]) -> list[str]:
    """The columns that hold a number somewhere, in the order in which they are first met.

    One number is enough, so that text among the ratings is an error that names its row and no silent loss.
    """
    columns = dict.fromkeys(
        column for table in tables for _, row in table.numbered() for column, value in row.items() if is_number(value)
    )
    return [column for column in columns if column not in SIGNATURES["rated"] and not BOOKKEEPING.fullmatch(column)]


def _named_in(tables: list[Table]) -> list[str]:
    """The values of the column `objective`, sorted; [] if there is no such column."""
    if not any("objective" in table.columns() for table in tables):
        return []
    return sorted({objective_of(row, where) for table in tables for where, row in table.numbered()})
