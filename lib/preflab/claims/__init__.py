"""Claims of the papers and the rules that decide them, each fixed before its run."""

from dataclasses import dataclass

from preflab.evaluation import Interval

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
