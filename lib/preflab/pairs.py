"""Preference pairs from worlds, the hub or files, in one schema.

A source is named `world:NAME`, `hub:REPO` or `files:PATH` (read by `sources`). Whatever its own
columns (known to `schemas`), it comes out as TRL's conversational preference format with an
`objective` column, and nothing downstream can tell one source from another:

    prompt     [{"role", "content"}, ...]  ending in a user message
    chosen     [{"role": "assistant", "content": str}]
    rejected   [{"role": "assistant", "content": str}]
    objective  str
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from datasets import Dataset

from preflab.errors import BadInput
from preflab.schemas import GENERATORS, Pair, Turns, objectives_in, schema_of
from preflab.sources import (
    Table,
    file_tables,
    hub_tables,
    named_objectives,
    parse_source,
    world_tables,
)


@dataclass(frozen=True)
class Report:
    """What was read, kept and lost. Lengths are in words, shares are of the kept pairs.

    dropped      candidates lost, by reason: pairs, or rows that offer no pair at all
    overlap      prompts that stood in both splits, before their train copies were removed
    fingerprint  sha256 over the kept pairs in their order
    """

    source: str
    objective: str
    schema: str
    revision: str | None
    rows_read: int
    pairs_kept: dict[str, int]
    dropped: dict[str, int]
    lengths: dict[str, dict[str, float]]
    balance: dict[str, float | None]
    overlap: int
    fingerprint: str
    notes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """The report as JSON-safe dictionaries."""
        return asdict(self)

    def __str__(self) -> str:
        share = self.balance["chosen_first"]
        lines = [
            ("source", self.source),
            ("objective", self.objective),
            ("schema", self.schema),
            ("revision", self.revision or "-"),
            ("rows read", f"{self.rows_read:,}"),
            *((f"{split} pairs", f"{n:,}") for split, n in self.pairs_kept.items()),
            *(("dropped", f"{n:,} {reason}") for reason, n in sorted(self.dropped.items())),
            ("overlap", f"{self.overlap:,} prompts in both splits, now in test only"),
            *(
                (f"{name} words", f"median {words['median']:.0f}, 95 % below {words['p95']:.0f}")
                for name, words in self.lengths.items()
            ),
            ("chosen longer", f"{self.balance['chosen_longer']:.1%}"),
            ("chosen first", "-" if share is None else f"{share:.1%}"),
            *(("note", f"{n:,} {note}") for note, n in self.notes.items()),
            ("sha256", self.fingerprint),
        ]
        return "\n".join(f"{name:<16}{value}" for name, value in lines)


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
    test_fraction: float = 0.1,
    max_train: int | None = None,
    max_test: int | None = None,
    seed: int = 0,
    fits: Callable[[list[dict], list[dict]], bool] | None = None,
) -> LoadedPairs:
    """Load one objective of a source as pairs whose train and test prompts are disjoint.

    Where the source has train and test (or validation) splits, train pairs whose prompt occurs in
    test are dropped. Where it has not, a hash of the prompt sends about `test_fraction` of the
    prompts to test: the same ones for every seed, objective and subset. `max_train` and `max_test`
    keep a random subset of that many pairs, drawn by `seed` after everything else; a larger subset
    contains the smaller one. A world draws its own splits of these sizes. `revision` is the hub's.
    `fits(prompt, reply)`, of messages, says whether a model's context holds both; pairs it refuses
    on either side are dropped.

    Raises BadInput, in one line, where the source cannot be read, does not offer the objective or
    leaves no pairs. Pairs that are merely unusable are dropped and counted.
    """
    kind, name = parse_source(source)
    if not 0 < test_fraction < 1:
        raise BadInput(f"test_fraction is {test_fraction}; expected a number between 0 and 1")
    limits = {"train": max_train, "test": max_test}
    for split, limit in limits.items():
        if limit is not None and limit < 1:
            raise BadInput(f"max_{split} is {limit}; expected at least 1, or none for all")

    commit = None
    named = named_objectives(kind, name)
    if named:
        _check_offered(source, objective, named)
    if kind == "world":
        tables = world_tables(name, objective, max_train, max_test, seed)
    elif kind == "hub":
        tables, commit = hub_tables(name, objective if named else None, revision)
    else:
        tables = file_tables(name, objective if named else None)
    schema = schema_of(tables)
    if not named:
        _check_offered(source, objective, objectives_in(schema, tables))

    pairs, dropped = _read(tables, schema, objective)
    conflicts = sum(pair.conflict for split in pairs.values() for pair in split)
    if {table.split for table in tables} != {"train", "test"}:
        pairs = _split(pairs["train"] + pairs["test"], test_fraction)
    pairs = {split: _unique(members, dropped) for split, members in pairs.items()}
    overlap = {p.prompt for p in pairs["train"]} & {p.prompt for p in pairs["test"]}
    pairs["train"] = _without(pairs["train"], overlap, dropped)
    if fits:
        pairs = {split: _fitting(members, fits, dropped) for split, members in pairs.items()}
    for split, members in pairs.items():
        pairs[split] = _sample(members, split, limits[split], seed, dropped)
        if not members:
            lost = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
            found = f"no {split} pairs left for objective {objective!r}"
            raise BadInput(f"{source}: {found}; expected some, dropped: {lost or 'none'}")

    report = Report(
        source=source,
        objective=objective,
        schema=schema,
        revision=commit,
        rows_read=sum(len(table.rows) for table in tables),
        pairs_kept={split: len(members) for split, members in pairs.items()},
        dropped=dict(dropped),
        **_measure(pairs["train"] + pairs["test"]),
        overlap=len(overlap),
        fingerprint=_fingerprint(pairs, objective),
        notes={"pairs read where better != safer": conflicts} if schema == "pku-saferlhf" else {},
    )
    train, test = (Dataset.from_list(_rows(pairs[split], objective)) for split in ("train", "test"))
    return LoadedPairs(train, test, report)


def objectives_of(source: str, revision: str | None = None) -> list[str]:
    """The objectives that `load_pairs` accepts for this source."""
    kind, name = parse_source(source)
    if named := named_objectives(kind, name):
        return named
    tables = hub_tables(name, None, revision)[0] if kind == "hub" else file_tables(name, None)
    return objectives_in(schema_of(tables), tables)


def _check_offered(source: str, objective: str, offered: list[str]) -> None:
    if objective not in offered:
        known = ", ".join(offered) or "some, but its rows hold none"
        raise BadInput(f"{source}: objective is {objective!r}; expected one of: {known}")


def _read(tables: list[Table], schema: str, objective: str) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of each split, and the count of the candidates that are none, by reason."""
    pairs: dict[str, list[Pair]] = {"train": [], "test": []}
    dropped: Counter[str] = Counter()
    for table in tables:
        for outcome in GENERATORS[schema](table.numbered(), objective):
            if isinstance(outcome, Pair):
                pairs[table.split].append(outcome)
            else:
                dropped[outcome] += 1
    return pairs, dropped


def _split(pairs: list[Pair], test_fraction: float) -> dict[str, list[Pair]]:
    """Send a prompt to test if its hash, as a number in [0, 1), is below test_fraction."""
    found: dict[str, list[Pair]] = {"train": [], "test": []}
    for pair in pairs:
        digest = hashlib.sha256(json.dumps(pair.prompt).encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        found["test" if share < test_fraction else "train"].append(pair)
    return found


def _unique(pairs: list[Pair], dropped: Counter[str]) -> list[Pair]:
    unique = {(pair.prompt, pair.chosen, pair.rejected): pair for pair in reversed(pairs)}
    _count(dropped, "duplicate pair", len(pairs) - len(unique))
    return list(reversed(unique.values()))


def _without(pairs: list[Pair], prompts: set[Turns], dropped: Counter[str]) -> list[Pair]:
    kept = [pair for pair in pairs if pair.prompt not in prompts]
    _count(dropped, "prompt in test split", len(pairs) - len(kept))
    return kept


def _fitting(pairs: list[Pair], fits: Callable, dropped: Counter[str]) -> list[Pair]:
    rows = _rows(pairs, "")
    kept = [
        pair
        for pair, row in zip(pairs, rows, strict=True)
        if fits(row["prompt"], row["chosen"]) and fits(row["prompt"], row["rejected"])
    ]
    _count(dropped, "longer than the context", len(pairs) - len(kept))
    return kept


def _sample(pairs: list[Pair], split: str, limit: int | None, seed: int, dropped: Counter[str]) -> list[Pair]:
    """At most `limit` random pairs in their old order; train and test are drawn independently."""
    if limit is None or limit >= len(pairs):
        return pairs
    _count(dropped, f"over max_{split}", len(pairs) - limit)
    order = np.random.default_rng([seed, split == "test"]).permutation(len(pairs))
    return [pairs[i] for i in sorted(order[:limit])]


def _count(dropped: Counter[str], reason: str, n: int) -> None:
    if n:  # a reason is listed only where it applied
        dropped[reason] += n


def _measure(pairs: list[Pair]) -> dict[str, dict]:
    """Report's `lengths` and `balance`."""
    words = {
        "prompt": [sum(len(text.split()) for _, text in pair.prompt) for pair in pairs],
        "chosen": [len(pair.chosen.split()) for pair in pairs],
        "rejected": [len(pair.rejected.split()) for pair in pairs],
    }
    first = [pair.first for pair in pairs if pair.first is not None]
    return {
        "lengths": {
            name: {"median": float(np.median(n)), "p95": float(np.percentile(n, 95))} for name, n in words.items()
        },
        "balance": {
            "chosen_longer": float(np.mean(np.greater(words["chosen"], words["rejected"]))),
            "chosen_first": float(np.mean(first)) if first else None,
        },
    }


def _fingerprint(pairs: dict[str, list[Pair]], objective: str) -> str:
    sha = hashlib.sha256()
    for split, members in pairs.items():
        for pair in members:
            line = [split, objective, pair.prompt, pair.chosen, pair.rejected]
            sha.update(json.dumps(line).encode() + b"\n")
    return sha.hexdigest()


def _rows(pairs: list[Pair], objective: str) -> list[dict]:
    return [
        {
            "prompt": [{"role": role, "content": text} for role, text in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "objective": objective,
        }
        for pair in pairs
    ]
