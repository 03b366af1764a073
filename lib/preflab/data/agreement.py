"""How far two objectives of one source prefer the same replies."""

import json
from dataclasses import dataclass
from itertools import chain, combinations

from preflab.data.pairs import LoadedPairs

Preferences = dict[tuple[str, str, str], bool]  # (prompt, two replies in alphabetical order): the first is chosen


@dataclass(frozen=True)
class Agreement:
    """Two objectives, and how many pairs of replies they order alike or in opposite ways.

    A pair that only one of them orders is tied, unrated or not labelled by the other. Copies of a reply count once.
    What an objective orders both ways, because it rates copies differently, counts as not ordered.
    """

    one: str
    other: str
    agree: int
    conflict: int
    only_one: int
    only_other: int

    @property
    def both(self) -> int:
        """The pairs that both objectives order."""
        return self.agree + self.conflict

    def __str__(self) -> str:
        shares = f" ({self.agree / self.both:.1%} agree, {self.conflict / self.both:.1%} conflict)" if self.both else ""
        only = f"{self.only_one:,} by {self.one} only, {self.only_other:,} by {self.other} only"
        return f"{self.one} and {self.other}: {self.both:,} pairs ordered by both{shares}, {only}"


def agreements(loaded: list[LoadedPairs]) -> list[Agreement]:
    """The agreement of every two objectives that have a prompt in common, over their train and test pairs.

    The pairs should be all of a source's, because a subset of one objective's misses those of another's. Objectives on
    prompts of their own are left out: nobody can say whether they agree.
    """
    preferences = {pairs.report.objective: _preferences(pairs) for pairs in loaded}
    prompts = {objective: {prompt for prompt, _, _ in found} for objective, found in preferences.items()}
    return [
        _agreement(one, other, preferences[one], preferences[other])
        for one, other in combinations(preferences, 2)
        if prompts[one] & prompts[other]
    ]


def _preferences(pairs: LoadedPairs) -> Preferences:
    ways: dict[tuple[str, str, str], set[bool]] = {}
    for row in chain(pairs.train, pairs.test):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        key = json.dumps(row["prompt"]), *sorted([chosen, rejected])
        ways.setdefault(key, set()).add(chosen < rejected)
    return {key: first for key, (first, *second) in ways.items() if not second}


def _agreement(one: str, other: str, ones: Preferences, others: Preferences) -> Agreement:
    both = ones.keys() & others.keys()
    agree = sum(ones[pair] == others[pair] for pair in both)
    return Agreement(one, other, agree, len(both) - agree, len(ones) - len(both), len(others) - len(both))
