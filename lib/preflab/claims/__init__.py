"""Claims of the papers and the rules that decide them, each fixed before its run."""

from dataclasses import dataclass

import numpy as np

from preflab.evaluation import Interval, mean_interval

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
POINTS = 0.02  # of a win rate or an accuracy: a smaller difference is none


@dataclass(frozen=True)
class Claim:
    id: str
    statement: str  # the paper's, in our words
    statistic: str  # what is measured, and the rule
    value: float
    interval: tuple[float, float] | None
    verdict: str


def decide(holds: bool, fails: bool) -> str:
    return REPRODUCED if holds else NOT_REPRODUCED if fails else INCONCLUSIVE


def nothing() -> Interval:
    """Where there is nothing to measure."""
    return Interval(*[float("nan")] * 3)


def win_change(wins: np.ndarray, level: float = 0.95) -> Interval:
    """Win rate less one half, of wins (seeds, prompts) against a rival with the same seed, over both."""
    return mean_interval(wins - 0.5, level, (-0.5, 0.5))


def corrected(comparisons: int) -> float:
    """Level at which so many intervals hold together with 95 % (Bonferroni)."""
    return 1 - 0.05 / max(comparisons, 1)
