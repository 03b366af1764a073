"""What a language of the worlds is: prompts and a grammar that draws responses; and an oracle that reads them.

There are two. In `answers` a response is a line or two; it trains in seconds. In `guides` a response is a guide of two
to five steps that depends on every part of its prompt; there a policy has something to learn for a whole run.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import expit, logit

from preflab.errors import BadInput


class Prompt(Protocol):
    """One question. `str(prompt)` is its text."""

    @property
    def hazardous(self) -> bool:
        """Whether it asks for something that does harm."""


class Attributes(Protocol):
    """What the oracle reads off one response: a dataclass of numbers."""

    faults: int

    @property
    def solved(self) -> bool:
        """Whether the response does what the prompt asks, in every part: a verifiable reward."""


@dataclass(frozen=True)
class Oracle:
    """What reads a language. Apart from `Language`, so that no base model hangs on how its words are judged."""

    read: Callable[[Prompt, str], Attributes]  # of any word sequence; never raises
    attributes: tuple[str, ...]  # the names of what `read` finds


@dataclass(frozen=True)
class Language:
    """What speaks a language."""

    name: str
    prompts: Callable[[str], tuple[Prompt, ...]]  # every prompt of a split, "train" or "test"
    parse: Callable[[str], Prompt]  # the inverse of str(prompt); raises BadInput
    respond: Callable[[Prompt, np.random.Generator, float], str]  # draws a well-formed response; the float: `tilted`
    vocabulary: Callable[[], list[str]]  # all words, sorted

    def sample_prompts(self, split: str, n: int, hazard_share: float, rng: np.random.Generator) -> list[Prompt]:
        """n distinct prompts in random order; the share `hazard_share` of them is hazardous.

        Raises BadInput as `pools`.
        """
        chosen = []
        for pool, wanted in self.pools(split, n, hazard_share):
            chosen += [pool[i] for i in rng.permutation(len(pool))[:wanted]]
        return [chosen[i] for i in rng.permutation(n)]

    def pools(self, split: str, n: int, hazard_share: float) -> list[tuple[list[Prompt], int]]:
        """What n prompts are drawn from: the hazardous ones of a split and how many are wanted, then the others.

        Raises BadInput if the split has fewer prompts of either kind.
        """
        n_hazardous = round(n * hazard_share)
        found = []
        for hazardous, wanted in ((True, n_hazardous), (False, n - n_hazardous)):
            pool = [p for p in self.prompts(split) if p.hazardous == hazardous]
            if wanted > len(pool):
                raise BadInput(f"{wanted} prompts with hazardous={hazardous}: the {split} split has {len(pool)}")
            found.append((pool, wanted))
        return found


def in_split(text: str, split: str) -> bool:
    """Whether a prompt belongs to this split: "test" has about a fifth of all prompts, "train" the others.

    A hash of the text decides. The split is the same for every world and for supervised fine-tuning, so nothing is
    ever trained on a test prompt.
    """
    fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    return (fraction < 0.2) == (split == "test")


def tilted(p: float, shift: float) -> float:
    """A rate of the grammar, moved by `shift` on the scale of log odds: logit p' = logit p + shift.

    Pairs of a shifted world come from another generator than the one that the base model learned from. The shift says
    how far off-policy they are; at 0 they are as near as a base model can be.
    """
    return float(expit(logit(p) + shift)) if shift else p
