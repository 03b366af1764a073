"""Which pairs are held out, kept and drawn. What is lost is counted by reason in `dropped`."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from preflab.data.generators import Pair
from preflab.data.report import Splits
from preflab.data.values import Turns


def divided(pairs: list[Pair], test_share: float) -> Splits:
    """Sends a prompt to test if its hash, as a number in [0, 1), is below test_share."""
    found: Splits = {"train": [], "test": []}
    for pair in pairs:
        found["test" if hashed(pair.prompt) < test_share else "train"].append(pair)
    return found


def of_part(pairs: list[Pair], part: tuple[float, float], dropped: Counter[str]) -> list[Pair]:
    """Those whose prompt's hash is in the part; it has nothing to do with the one that holds prompts out."""
    kept = [pair for pair in pairs if part[0] <= hashed(["part", pair.prompt]) < part[1]]
    _count(dropped, "in another part of the prompts", len(pairs) - len(kept))
    return kept


def hashed(content: Any) -> float:
    """A hash as a number in [0, 1)."""
    digest = hashlib.sha256(json.dumps(content).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def disjoint(pairs: Splits, held_out: set[Turns], dropped: Counter[str]) -> tuple[Splits, int]:
    """The pairs without duplicates, and without train pairs whose prompt is in test; how many prompts were in both."""
    train, test = _unique(pairs["train"], dropped), _unique(pairs["test"], dropped)
    overlap = {pair.prompt for pair in train} & ({pair.prompt for pair in test} | held_out)
    kept = [pair for pair in train if pair.prompt not in overlap]
    _count(dropped, "prompt in test split", len(train) - len(kept))
    return {"train": kept, "test": test}, len(overlap)


def _unique(pairs: list[Pair], dropped: Counter[str]) -> list[Pair]:
    """The first of equal pairs, in order."""
    unique = {(pair.prompt, pair.chosen, pair.rejected): pair for pair in reversed(pairs)}
    _count(dropped, "duplicate pair", len(pairs) - len(unique))
    return list(reversed(unique.values()))


def fitting(pairs: list[Pair], fits: Callable, dropped: Counter[str]) -> list[Pair]:
    """Those whose prompt fits with either reply: see `load_pairs`."""

    @cache  # a reply may be in many pairs
    def fits_in(prompt: Turns, reply: str) -> bool:
        return fits(messages(prompt), messages((("assistant", reply),)))

    kept = [pair for pair in pairs if fits_in(pair.prompt, pair.chosen) and fits_in(pair.prompt, pair.rejected)]
    _count(dropped, "longer than the context", len(pairs) - len(kept))
    return kept


def limited(pairs: list[Pair], limit: int, dropped: Counter[str]) -> list[Pair]:
    """At most `limit` random pairs of each prompt, in their old order.

    Each pair draws a lot, and the lowest of a prompt are kept. All sets of pairs are equally likely, so one reply may
    come more often than another.
    """
    groups: dict[Turns, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt, []).append(pair)
    kept = {pair for members in groups.values() for pair in sorted(members, key=_lot)[:limit]}
    _count(dropped, "over pairs_per_prompt", len(pairs) - len(kept))
    return [pair for pair in pairs if pair in kept]


def _lot(pair: Pair) -> tuple[bytes, str]:
    """A hash of the prompt and both replies. Which reply is chosen does not matter, so every objective draws alike."""
    content = json.dumps([pair.prompt, sorted([pair.chosen, pair.rejected])])
    return hashlib.sha256(content.encode()).digest(), pair.chosen


def sampled(pairs: list[Pair], split: str, limit: int | None, seed: int, dropped: Counter[str]) -> list[Pair]:
    """At most `limit` random pairs in their old order; train and test are drawn independently."""
    if limit is None or limit >= len(pairs):
        return pairs
    _count(dropped, f"over max_{split}", len(pairs) - limit)
    order = np.random.default_rng([seed, split == "test"]).permutation(len(pairs))
    return [pairs[i] for i in sorted(order[:limit])]


def _count(dropped: Counter[str], reason: str, n: int) -> None:
    if n:  # a reason is listed only if it applied
        dropped[reason] += n


def messages(turns: Turns) -> list[dict]:
    return [{"role": role, "content": text} for role, text in turns]
