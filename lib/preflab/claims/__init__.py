"""Claims of the papers and the rules that decide them, each fixed before its run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from preflab.statistics import Interval, mean_interval

T = TypeVar("T")  # what a simulation takes for the truth
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
WITHHELD = "none: "  # how the words in the place of a verdict begin
SMALLER = "smaller than counts"  # the effect is there, and not as large as the rule asks for
EFFECT = 0.025  # of a label probability: the smallest that counts, more than rounds to two points
FEWEST = 50  # held-out pairs or prompts: from fewer, a share is known to 14 points at best, and no verdict is given


@dataclass(frozen=True)
class Claim:
    id: str
    statement: str  # the paper's, in our words
    statistic: str  # what is measured, and the rule
    value: float
    interval: tuple[float, float] | None
    verdict: str
    power: float | None = None  # to see the registered effect; None where the run is not a registered one


def decide(holds: bool, fails: bool) -> str:
    """The verdict. Both are true where an effect is clearly there and clearly below what counts."""
    if holds:
        return SMALLER if fails else REPRODUCED
    return NOT_REPRODUCED if fails else INCONCLUSIVE


def nothing() -> Interval:
    """Where there is nothing to measure."""
    return Interval(*[float("nan")] * 3)


def win_change(chances: np.ndarray, level: float = 0.95) -> Interval:
    """How likely the judge is to prefer one of our answers, less one half: of chances (seeds, prompts) against a rival
    with the same seed. The interval is over both."""
    return mean_interval(chances - 0.5, level, (-0.5, 0.5))


def corrected(comparisons: int) -> float:
    """Level at which so many intervals hold together with 95 % (Bonferroni)."""
    return 1 - 0.05 / max(comparisons, 1)


def share_of_verdict(experiment: Callable[[np.random.Generator], Claim], verdict: str, runs: int = 1000) -> float:
    """The share of simulated experiments that end in the verdict."""
    rng = np.random.default_rng(0)
    return sum(experiment(rng).verdict == verdict for _ in range(runs)) / runs


def powers_of(simulate: Callable[[T, np.random.Generator], Claim], true: T, false: T, runs: int) -> dict[str, float]:
    """The power of a claim's rule, by verdict: to reproduce what is true, and to reject what is not."""
    return {
        verdict: share_of_verdict(lambda rng, truth=truth: simulate(truth, rng), verdict, runs)
        for verdict, truth in ((REPRODUCED, true), (NOT_REPRODUCED, false))
    }


def withheld(claims: Sequence[Claim], judged_on: int, what: str) -> list[Claim]:
    """The claims; without verdicts if they rest on fewer than FEWEST held-out pairs or prompts (`what`)."""
    if judged_on >= FEWEST:
        return list(claims)
    return [replace(claim, verdict=f"{WITHHELD}{judged_on} {what}, {FEWEST} needed") for claim in claims]


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a reader sees them: a row each, with the rule that decides."""
    rows = [[c.statement, c.statistic, measured(c.value, c.interval), c.verdict] for c in claims]
    return pd.DataFrame(rows, index=[c.id for c in claims], columns=["claim", "rule", "measured", "verdict"])


def measured(value: float | None, interval: Sequence[float | None] | None) -> str:
    """A number with its interval as text; a dash for what could not be measured."""
    if value is None or not np.isfinite(value):
        return "—"
    ends = [end for end in interval or () if end is not None and np.isfinite(end)]
    return f"{value:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if len(ends) == 2 else "")
