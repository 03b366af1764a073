"""The report of a source: what was read, kept and lost, and whether the pairs are too few."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

import numpy as np

from preflab.data.generators import Pair

Splits = dict[str, list[Pair]]  # "train" and "test"

FEW_TEST = 50  # a share of 50 pairs is known to about +-14 points: 1.96 sqrt(0.5 * 0.5 / 50) = 0.139
FEW_TRAIN = 200  # our choice: with fewer pairs, what a model learns depends more on the draw than on the method


@dataclass(frozen=True)
class Report:
    """What was read, kept and lost. Lengths are in words; shares are of all kept pairs, train and test together.

    pairs_kept   pairs of each split
    dropped      candidates lost, by reason; a candidate is a pair, or a row that offers no pair at all
    lengths      median and 95th percentile of the words in prompt, chosen and rejected
    balance      share of pairs whose chosen reply is longer; share whose chosen reply stood first in the source,
                 None if the source has no order of replies
    overlap      prompts that stood in both splits, before their training pairs were removed
    fingerprint  sha256 over the kept pairs in their order
    """

    source: str
    objective: str
    schema: str
    revision: str | None  # the commit of a hub source; None if unknown
    rows_read: int
    pairs_kept: dict[str, int]
    dropped: dict[str, int]
    lengths: dict[str, dict[str, float]]
    balance: dict[str, float | None]
    overlap: int
    fingerprint: str
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def few(self) -> str:
        """A warning in one line if there are fewer than `FEW_TRAIN` or `FEW_TEST` pairs, otherwise ""."""
        train, test = self.pairs_kept["train"], self.pairs_kept["test"]
        few = []
        if train < FEW_TRAIN:
            few.append(f"only {train:,} train pairs, expected at least {FEW_TRAIN}")
        if test < FEW_TEST:
            known = f"a share of {FEW_TEST} pairs is known to about ±14 points"
            few.append(f"only {test:,} test pairs, expected at least {FEW_TEST}: {known}")
        return "; ".join(few)

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
            *([("warning", self.few)] if self.few else []),
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


def measured(splits: Splits, objective: str) -> dict:
    """The fields `pairs_kept`, `lengths`, `balance` and `fingerprint` of a report on these pairs."""
    pairs = splits["train"] + splits["test"]
    words = {
        "prompt": [sum(len(text.split()) for _, text in pair.prompt) for pair in pairs],
        "chosen": [len(pair.chosen.split()) for pair in pairs],
        "rejected": [len(pair.rejected.split()) for pair in pairs],
    }
    first = [pair.first for pair in pairs if pair.first is not None]
    return {
        "pairs_kept": {split: len(members) for split, members in splits.items()},
        "lengths": {
            name: {"median": float(np.median(n)), "p95": float(np.percentile(n, 95))} for name, n in words.items()
        },
        "balance": {
            "chosen_longer": float(np.mean(np.greater(words["chosen"], words["rejected"]))),
            "chosen_first": float(np.mean(first)) if first else None,
        },
        "fingerprint": _fingerprint(splits, objective),
    }


def _fingerprint(splits: Splits, objective: str) -> str:
    """sha256 over one JSON line for each pair."""
    sha = hashlib.sha256()
    for split, members in splits.items():
        for pair in members:
            line = [split, objective, pair.prompt, pair.chosen, pair.rejected]
            sha.update(json.dumps(line).encode() + b"\n")
    return sha.hexdigest()
