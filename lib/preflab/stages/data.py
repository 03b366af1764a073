"""Pairs and prompts as values: what a stage is trained or measured on."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from preflab.data.pairs import WHOLE, LoadedPairs, WholePairs, load_pairs, whole_pairs
from preflab.data.sources import parse_source
from preflab.data.worlds import Objective, World, get_world
from preflab.errors import BadInput
from preflab.likelihood import encode_pairs
from preflab.stages.base import Base


@dataclass(frozen=True)
class PairSource:
    """One objective of a source, and how many of its pairs are asked for."""

    source: str  # world:NAME, hub:REPO or files:PATH
    objective: str
    revision: str | None = None  # the hub's
    train: int | None = None  # None: all
    test: int | None = None
    fitting: Base | None = None  # leave out pairs that are longer than this model's context
    pairs_per_prompt: int | None = None  # None: all
    test_share: float = 0.1  # of the prompts, where the source has no test split
    part: tuple[float, float] = WHOLE  # of the training prompts, from a share up to another

    def load(self, seed: int) -> LoadedPairs:
        """The pairs, read once a process. The seed draws the training pairs; test pairs are those of seed 0."""
        return _load(self, seed)

    def train_pairs(self, seed: int) -> "Pairs":
        return Pairs(self, "train", seed)

    @property
    def test_pairs(self) -> "Pairs":
        """The held-out pairs: the same for every seed."""
        return Pairs(self, "test", 0)

    @property
    def world(self) -> World | None:
        """The world it comes from; None for files and the hub. Raises BadInput for a world that does not exist."""
        return world_of(self.source)

    @property
    def utility(self) -> Objective | None:
        """The oracle's objective; None if there is no oracle."""
        return self.world.objective(self.objective) if self.world else None


@lru_cache(maxsize=64)
def _load(of: PairSource, seed: int) -> LoadedPairs:
    if of.world:  # it draws its own splits
        return load_pairs(of.source, of.objective, max_train=of.train, max_test=of.test, seed=seed, **_how(of))
    return _whole(replace(of, train=None, test=None)).drawn({"train": of.train, "test": of.test}, seed)


@lru_cache(maxsize=32)
def _whole(of: PairSource) -> WholePairs:
    """What every seed draws from: to read and to pair some files takes ten seconds."""
    return whole_pairs(of.source, of.objective, **_how(of))


def _how(of: PairSource) -> dict[str, Any]:
    return {
        "revision": of.revision,
        "test_share": of.test_share,
        "pairs_per_prompt": of.pairs_per_prompt,
        "part": of.part,
        "fits": of.fitting.fits if of.fitting else None,
    }


def world_of(source: str) -> World | None:
    """The world that a source names; None for files and the hub. Raises BadInput for one that does not exist."""
    kind, name = parse_source(source)
    return get_world(name) if kind == "world" else None


@dataclass(frozen=True)
class Pairs:
    """One split of a source, or of it the pairs from `start` up to `stop`."""

    of: PairSource
    split: str  # train or test
    seed: int
    start: int = 0
    stop: int | None = None

    def rows(self) -> Dataset:
        """Preference pairs in TRL's conversational format."""
        loaded = self.of.load(self.seed)
        rows = loaded.train if self.split == "train" else loaded.test
        whole = self.start == 0 and self.stop is None
        return rows if whole else rows.select(range(self.start, len(rows) if self.stop is None else self.stop))

    def encoded(self, base: Base) -> list[dict]:
        """prompt_ids, chosen_ids, rejected_ids of every pair, once a process."""
        return _encoded(self, base)

    def fingerprint(self) -> dict:
        """What identifies the pairs: the hash of their content. Beside it the oracle that can judge their prompts."""
        return {"sha256": _sha256(self), "utility": self.of.utility}


@dataclass(frozen=True)
class Joined:
    """Pairs of several kinds as one set: of two objectives at once, or of one with a few of another to replay."""

    parts: tuple[Pairs, ...]

    def rows(self) -> Dataset:
        """The rows of every part, one part after the other."""
        return concatenate_datasets([part.rows() for part in self.parts])

    def encoded(self, base: Base) -> list[dict]:
        return _encoded(self, base)

    def fingerprint(self) -> dict:
        return {"sha256": _sha256(self)}


@dataclass(frozen=True)
class Relabelled:
    """The same pairs, labelled by the toss of a coin: a control that keeps all but the preference."""

    pairs: Pairs
    seed: int

    def rows(self) -> Dataset:
        """Chosen and rejected change places in half of the pairs, on average."""
        rows = self.pairs.rows()
        turned = np.random.default_rng([self.seed, 7]).random(len(rows)) < 0.5
        return Dataset.from_list(
            [
                row | {"chosen": row["rejected"], "rejected": row["chosen"]} if turn else row
                for row, turn in zip(rows, turned, strict=True)
            ]
        )

    def encoded(self, base: Base) -> list[dict]:
        return _encoded(self, base)

    def fingerprint(self) -> dict:
        return {"sha256": _sha256(self)}


@lru_cache(maxsize=256)
def _sha256(pairs: Pairs | Joined | Relabelled) -> str:
    return hashlib.sha256(json.dumps(pairs.rows().to_list()).encode()).hexdigest()


@lru_cache(maxsize=64)
def _encoded(pairs: Pairs | Joined | Relabelled, base: Base) -> list[dict]:
    return encode_pairs(pairs.rows(), base.tokenizer(), base.settings.context)[0]  # too long ones have gone before


@dataclass(frozen=True)
class Prompts:
    """Some of a source's different held-out prompts, from `start` up to `stop`."""

    of: PairSource
    start: int
    stop: int

    def messages(self) -> list[list[dict]]:
        """No prompt comes twice. Raises BadInput if there are not so many."""
        different = {json.dumps(prompt): prompt for prompt in self.of.test_pairs.rows()["prompt"]}
        if len(different) < self.stop:
            found = f"{len(different)} held-out prompts, expected at least {self.stop}"
            raise BadInput(f"{self.of.source}, {self.of.objective}: {found}")
        return list(different.values())[self.start : self.stop]

    def fingerprint(self) -> dict:
        return {"of": self.of.test_pairs.fingerprint(), "from": self.start, "to": self.stop}
