"""What a second stage does to pairs: margins, accuracies, quartiles, transitions, outcomes. Pure NumPy.

Arrays over held-out pairs have shape (seeds, pairs) if a docstring does not say otherwise.
"""

from dataclasses import dataclass

import numpy as np

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs
from preflab.statistics import Interval, mean_interval, ratio

STAGES = ("base", "Stage 1", "Stage 2")
TRANSITIONS = ("kept", "lost", "gained", "never")


def dpo_margin(policy: PairLogProbs, base: PairLogProbs, beta: float) -> np.ndarray:
    """DPO-relative margin against the fixed base model, TRL's `rewards/margins`: (pairs,), in nats.

    M_i = beta * [log pi(y+)/pi_base(y+) - log pi(y-)/pi_base(y-)]. Zero for the base itself.
    """
    return (beta * ((policy.chosen - base.chosen) - (policy.rejected - base.rejected))).numpy()


def policy_margin(policy: PairLogProbs) -> np.ndarray:
    """Length-normalised, reference-free margin of paper S: (pairs,), in nats per token.

    m_i = log pi(y+|x) / |y+| - log pi(y-|x) / |y-|
    """
    return (policy.chosen / policy.chosen_tokens - policy.rejected / policy.rejected_tokens).numpy()


def accuracy(margins: np.ndarray) -> np.ndarray:
    """Share of margins above zero over the last axis. Of DPO margins it is the relative accuracy, which
    says nothing of the base (all its margins are 0); of policy margins it is the policy accuracy."""
    return (margins > 0).mean(-1)


def transitions(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """2x2 table of right (margin > 0) before and after, as shares of all pairs and seeds that add up to 1."""
    right, still = before > 0, after > 0
    cells = (right & still, right & ~still, ~right & still, ~right & ~still)
    return {name: float(cell.mean()) for name, cell in zip(TRANSITIONS, cells, strict=True)}


def independent_score(score: np.ndarray) -> np.ndarray:
    """For each seed the mean score of the *other* seeds: what a pair's margin is worth without this run's
    own noise. Binning on it removes regression to the mean. Raises BadInput for fewer than two seeds."""
    seeds = len(score)
    if seeds < 2:
        raise BadInput("seeds: an independent score needs at least two, got 1")
    return (score.sum(0, keepdims=True) - score) / (seeds - 1)


def quartiles(score: np.ndarray) -> np.ndarray:
    """Which pairs are in which quartile of the score: bool (4, seeds, pairs). Quartiles are of each seed's
    pairs, of equal size up to one, ties by position."""
    rank = score.argsort(-1, kind="stable").argsort(-1)
    return rank * 4 // score.shape[-1] == np.arange(4)[:, None, None]


def shared_spread(change: np.ndarray) -> float:
    """Standard deviation over pairs of the change that seeds share: sqrt of the mean covariance of two
    seeds' changes. Noise of a single run, however large, does not enter. NaN for one seed."""
    if len(change) < 2:
        return float("nan")
    covariance = np.cov(change)
    off_diagonal = covariance[~np.eye(len(change), dtype=bool)]
    return float(np.sqrt(max(off_diagonal.mean(), 0.0)))


def quartile_changes(
    change: np.ndarray, score: np.ndarray, level: float = 0.95, clusters: np.ndarray | None = None
) -> list[Interval]:
    """Mean change in each quartile of the score. `clusters`: the prompt of each pair (`statistics.by_cluster`)."""
    return [mean_interval(ratio(change * inside, inside), level, clusters=clusters) for inside in quartiles(score)]


def quartile_curves(
    stage1: np.ndarray, change: np.ndarray, clusters: np.ndarray | None = None
) -> dict[str, list[Interval]]:
    """`quartile_changes` by the run's own Stage-1 margin, and by that of the other seeds, if there are any."""
    scores = {"own": stage1}
    if len(stage1) > 1:
        scores["independent"] = independent_score(stage1)
    return {kind: quartile_changes(change, score, clusters=clusters) for kind, score in scores.items()}


# --- the verdict on one setting and order -------------------------------------------------------

TOLERANCE = 0.10  # of what Stage 1 gained: smaller mean changes count as none
LEARNED = 0.55  # of the relative accuracy after Stage 1: a stage that barely orders its own pairs taught nothing
CHURN = 0.10  # share of pairs that change sides: more of it is a redistribution


@dataclass(frozen=True)
class Outcome:
    """What Stage 2 did to the objective of Stage 1, in policy margins (nats per token)."""

    verdict: str  # degraded, transferred, redistributed, stable, inconclusive, not learned
    gain: Interval  # base to Stage 1
    change: Interval  # Stage 1 to Stage 2
    relative: Interval  # change / gain
    churn: Interval  # share of pairs lost or gained


def outcome(
    base: np.ndarray,
    stage1: np.ndarray,
    stage2: np.ndarray,
    stage1_dpo: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
) -> Outcome:
    """The rule, fixed before any run was looked at. With d = TOLERANCE * gain:

    not learned    the interval of the gain is not above zero, or that of the relative accuracy not above LEARNED
    degraded       the interval of the change lies below -d
    transferred    it lies above +d
    redistributed  it lies within +-d and the interval of the churn lies above CHURN
    stable         it lies within +-d and the churn does not
    inconclusive   it crosses -d or +d

    Args: policy margins (seeds, pairs) of the Stage-1 objective's held-out pairs after each stage; their DPO margins
    after Stage 1, whose signs are the relative accuracy; the prompt of each pair, (pairs,).
    """

    gained, changed = stage1 - base, stage2 - stage1
    gain, change, relative = (mean_interval(x, clusters=clusters) for x in (gained, changed, ratio(changed, gained)))
    churn = mean_interval(((stage1 > 0) != (stage2 > 0)).astype(float), bounds=(0, 1), clusters=clusters)
    tolerance = TOLERANCE * gain.value
    learned = stage1_dpo is None or mean_interval((stage1_dpo > 0) * 1.0, clusters=clusters).low > LEARNED
    if gain.low <= 0 or not learned:
        verdict = "not learned"
    elif change.high < -tolerance:
        verdict = "degraded"
    elif change.low > tolerance:
        verdict = "transferred"
    elif not change.within(tolerance):
        verdict = "inconclusive"
    else:
        verdict = "redistributed" if churn.low > CHURN else "stable"
    return Outcome(verdict, gain, change, relative, churn)
