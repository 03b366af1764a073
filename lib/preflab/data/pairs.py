"""Preference pairs from worlds, the hub or files, in one schema.

A source is named `world:NAME`, `hub:REPO` or `files:PATH` (`sources` reads it). Whatever its own columns are (`schemas`
knows them, and shows a row of a reader's own file), it comes out as TRL's conversational preference format with an
`objective` column. Nothing downstream can tell one source from another:

    prompt     [{"role", "content"}, ...]  ending in a user message
    chosen     [{"role": "assistant", "content": str}]
    rejected   [{"role": "assistant", "content": str}]
    objective  str

Two objectives in files are told apart by a column `objective` in one file, by one sub-folder for each, or by a column
of ratings for each.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset

from preflab.data.generators import GENERATORS, Pair, rated_prompt
from preflab.data.keeping import disjoint, divided, fitting, limited, messages, of_part, sampled
from preflab.data.report import Report, Splits, measured
from preflab.data.schemas import check_offered, objectives_in, schema_of
from preflab.data.sizes import check_sizes
from preflab.data.sources import (
    Table,
    check_reach,
    file_tables,
    hub_tables,
    named_objectives,
    parse_source,
    world_tables,
)
from preflab.data.values import Turns
from preflab.errors import BadInput

WHOLE = (0.0, 1.0)  # all training prompts, as a part
Limits = dict[str, int | None]  # pairs of "train" and "test"; None for all
EVERYTHING: Limits = {"train": None, "test": None}


@dataclass(frozen=True)
class LoadedPairs:
    """Train and test pairs, disjoint by prompt, in the schema of this module, and their report."""

    train: Dataset
    test: Dataset
    report: Report


def load_pairs(
    source: str,
    objective: str,
    *,
    revision: str | None = None,
    test_share: float = 0.1,
    max_train: int | None = None,
    max_test: int | None = None,
    pairs_per_prompt: int | None = None,
    part: tuple[float, float] = WHOLE,
    seed: int = 0,
    fits: Callable[[list[dict], list[dict]], bool] | None = None,
) -> LoadedPairs:
    """Load one objective of a source as pairs whose train and test prompts are disjoint.

    If the source has train and test (or validation) splits, train pairs whose prompt occurs in test are dropped. If it
    has not, a hash of the prompt sends about `test_share` of the prompts to test: the same prompts for every seed,
    objective and subset. `max_train` and `max_test` keep a random subset of that many pairs, which `seed` draws after
    everything else; a larger subset contains the smaller one. A world draws its own splits of these sizes.
    `pairs_per_prompt` keeps at most so many pairs of each prompt, drawn by their content: the same for every seed and
    order of rows. `part` keeps the train pairs of some prompts alone, those from a first share of them up to a second;
    a hash decides, so that disjoint parts share no prompt, whatever the seed.

    `revision` is that of a hub source. `fits(prompt, reply)`, both as messages, says whether the context of a model
    holds them; a pair is dropped if either of its replies does not fit.

    Raises BadInput, in one line, if the source cannot be read, does not offer the objective or leaves no pairs. Pairs
    that are merely of no use are dropped and counted.
    """
    limits = {"train": max_train, "test": max_test}
    how = {"revision": revision, "test_share": test_share, "pairs_per_prompt": pairs_per_prompt, "part": part}
    return whole_pairs(source, objective, fits=fits, limits=limits, seed=seed, **how).drawn(limits, seed)


def whole_pairs(
    source: str,
    objective: str,
    *,
    revision: str | None = None,
    test_share: float = 0.1,
    pairs_per_prompt: int | None = None,
    part: tuple[float, float] = WHOLE,
    fits: Callable[[list[dict], list[dict]], bool] | None = None,
    limits: Limits = EVERYTHING,
    seed: int = 0,
) -> "WholePairs":
    """What `load_pairs` draws from. Files and the hub are read once for many seeds; of a world `limits` and `seed`
    decide what there is. Raises BadInput as `load_pairs`."""
    _check_numbers(test_share, limits, pairs_per_prompt)
    tables, commit = _read(source, objective, revision, limits, seed)
    schema = schema_of(tables)
    _check_labels(source, objective, schema, tables)
    dropped: Counter[str] = Counter()
    candidates = _candidates(tables, schema, objective, test_share, dropped)
    pairs, overlap = disjoint(candidates, _held_out(tables, schema), dropped)
    if fits:
        pairs = {split: fitting(members, fits, dropped) for split, members in pairs.items()}
    if pairs_per_prompt:
        pairs = {split: limited(members, pairs_per_prompt, dropped) for split, members in pairs.items()}
    pairs["train"] = of_part(pairs["train"], part, dropped)
    rows_read = sum(len(table.rows) for table in tables)
    return WholePairs(source, objective, schema, commit, rows_read, pairs, dropped, overlap, _notes(schema, candidates))


@dataclass(frozen=True)
class WholePairs:
    """Every pair of a source that is of use, and what was dropped on the way to it."""

    source: str
    objective: str
    schema: str
    commit: str | None
    rows_read: int
    pairs: Splits
    dropped: Counter[str]
    overlap: int
    notes: dict[str, int]

    def drawn(self, limits: Limits, seed: int) -> LoadedPairs:
        """At most so many pairs of each split. Raises BadInput if none are left."""
        dropped = self.dropped.copy()
        pairs = {split: sampled(found, split, limits[split], seed, dropped) for split, found in self.pairs.items()}
        _check_some_left(self.source, self.objective, pairs, dropped)
        report = Report(
            source=self.source,
            objective=self.objective,
            schema=self.schema,
            revision=self.commit,
            rows_read=self.rows_read,
            dropped=dict(dropped),
            overlap=self.overlap,
            notes=self.notes,
            **measured(pairs, self.objective),
        )
        train, test = (Dataset.from_list(_rows(pairs[split], self.objective)) for split in ("train", "test"))
        return LoadedPairs(train, test, report)


def objectives_of(source: str, revision: str | None = None) -> list[str]:
    """The objectives that `load_pairs` accepts for this source, at least one.

    Raises BadInput, in one line, if the source cannot be read or its rows have no ratings.
    """
    kind, name = parse_source(source)
    if named := named_objectives(kind, name):
        return named
    check_sizes(source)
    tables = hub_tables(name, None, revision)[0] if kind == "hub" else file_tables(name, None)
    return objectives_in(schema_of(tables), tables)


def check_there(source: str, objective: str, revision: str | None, here_only: bool) -> None:
    """Raises BadInput, before hours of work, for what can be told without reading any rows.

    That is a path that is not there, a file that holds too much, an objective without a sub-folder and, unless
    `here_only`, a hub source that is neither in reach nor in the cache.
    """
    kind, name = parse_source(source)
    named = named_objectives(kind, name)
    if named:
        check_offered(source, objective, named)
    folder = objective if named else None
    check_reach(source, revision, folder, here_only)
    check_sizes(source, folder)


def _check_numbers(test_share: float, limits: Limits, pairs_per_prompt: int | None) -> None:
    if not 0 < test_share < 1:
        raise BadInput(f"test_share is {test_share}; expected a number between 0 and 1")
    named = {f"max_{split}": limit for split, limit in limits.items()} | {"pairs_per_prompt": pairs_per_prompt}
    for name, limit in named.items():
        if limit is not None and limit < 1:
            raise BadInput(f"{name} is {limit}; expected at least 1, or none for all")


def _read(
    source: str, objective: str, revision: str | None, limits: Limits, seed: int
) -> tuple[list[Table], str | None]:
    """The tables of a source, and the commit of a hub source. An unknown objective is refused early where it can be."""
    kind, name = parse_source(source)
    named = named_objectives(kind, name)
    if named:
        check_offered(source, objective, named)
    if kind == "world":
        return world_tables(name, objective, limits["train"], limits["test"], seed), None
    folder = objective if named else None
    return hub_tables(name, folder, revision) if kind == "hub" else (file_tables(name, folder), None)


def _check_labels(source: str, objective: str, schema: str, tables: list[Table]) -> None:
    """Raises BadInput if the rows have labels, but not for this objective. They may be rows of a sub-folder."""
    kind, name = parse_source(source)
    if kind == "world":
        return
    named, offered = named_objectives(kind, name), objectives_in(schema, tables)
    if not named or offered != ["default"]:
        check_offered(f"{source}/{objective}" if named else source, objective, offered)


def _candidates(tables: list[Table], schema: str, objective: str, test_share: float, dropped: Counter[str]) -> Splits:
    """The pairs of each split: the splits of the source if it has both, otherwise ours.

    Candidates that are of no use are counted by reason.
    """
    pairs: Splits = {"train": [], "test": []}
    for table in tables:
        for outcome in GENERATORS[schema](table.numbered(), objective):
            if isinstance(outcome, Pair):
                pairs[table.split].append(outcome)
            else:
                dropped[outcome] += 1
    return pairs if _both_splits(tables) else divided(pairs["train"] + pairs["test"], test_share)


def _both_splits(tables: list[Table]) -> bool:
    return {table.split for table in tables} == {"train", "test"}


def _held_out(tables: list[Table], schema: str) -> set[Turns]:
    """The prompts of the source's own test split, if its rows are rated; those of the test pairs are held out anyway.

    A prompt whose replies tie for one objective has no test pair there. It is held out all the same, because another
    objective is tested on it.
    """
    if schema != "rated" or not _both_splits(tables):
        return set()
    return {rated_prompt(row, where) for table in tables if table.split == "test" for where, row in table.numbered()}


def _check_some_left(source: str, objective: str, pairs: Splits, dropped: Counter[str]) -> None:
    for split, members in pairs.items():
        if not members:
            lost = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
            found = f"no {split} pairs left for objective {objective!r}"
            raise BadInput(f"{source}: {found}; expected some, dropped: {lost or 'none'}")


def _notes(schema: str, candidates: Splits) -> dict[str, int]:
    if schema != "pku-saferlhf":
        return {}
    return {"pairs read where better != safer": sum(p.conflict for split in candidates.values() for p in split)}


def _rows(pairs: list[Pair], objective: str) -> list[dict]:
    """Pairs in the schema of this module."""
    return [
        {
            "prompt": messages(pair.prompt),
            "chosen": messages((("assistant", pair.chosen),)),
            "rejected": messages((("assistant", pair.rejected),)),
            "objective": objective,
        }
        for pair in pairs
    ]
