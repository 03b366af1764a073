"""Pair-level measurements: margins, accuracies, transitions, quartiles, intervals. Pure NumPy.

Arrays over held-out pairs have shape (seeds, pairs) unless a docstring says otherwise; the pairs are
the same for every seed, the training data, adapters and batch order are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs

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


def quartile_means(change: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Mean change in each quartile of the score, averaged over seeds: (4,). Quartiles are of each seed's
    pairs, of equal size up to one, ties by position."""
    pairs = score.shape[-1]
    in_order = np.take_along_axis(change, score.argsort(-1, kind="stable"), -1)
    starts = -(-np.arange(5) * pairs // 4)  # where quartile q = rank * 4 // pairs begins
    return (np.add.reduceat(in_order, starts[:4], axis=-1) / np.diff(starts)).mean(0)


def shared_spread(change: np.ndarray) -> float:
    """Standard deviation over pairs of the change that seeds share: sqrt of the mean covariance of two
    seeds' changes. Noise of a single run, however large, does not enter. NaN for one seed."""
    if len(change) < 2:
        return float("nan")
    covariance = np.cov(change)
    off_diagonal = covariance[~np.eye(len(change), dtype=bool)]
    return float(np.sqrt(max(off_diagonal.mean(), 0.0)))


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval."""

    value: float
    low: float
    high: float

    def within(self, bound: float) -> bool:
        return -bound <= self.low and self.high <= bound

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval over seeds and pairs: both axes of every (seeds, pairs) array are resampled,
    the same way for all arrays. With one seed it speaks of pairs alone; with few seeds the seed part
    is rough, and is too narrow rather than too wide."""
    (interval,) = bootstrap_each(lambda *a: [statistic(*a)], *arrays, rng=rng, resamples=resamples, level=level)
    return interval


def bootstrap_each(
    statistics: Callable[..., Sequence[float]],
    *arrays: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[Interval]:
    """`bootstrap` of several statistics that are computed together, on the same resamples."""
    seeds, pairs = arrays[0].shape
    draws = []
    for _ in range(resamples):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(pairs, size=pairs)
        draws.append(statistics(*(a[np.ix_(rows, columns)] for a in arrays)))
    ends = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Interval(*map(float, triple)) for triple in zip(statistics(*arrays), *ends, strict=True)]


def mean_interval(x: np.ndarray, level: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """Mean of x, (seeds, prompts), with an interval that speaks of other seeds and other prompts, cut at `bounds`.

    Seeds and prompts are crossed random effects, x[s,p] = mu + a_s + b_p + e_sp, so that

        Var(mean) = (MS_seeds + MS_prompts - MS_rest) / (S P),    Student's t with Satterthwaite's degrees of freedom

    where no mean square counts for less than that of the rest. With one seed it speaks of prompts alone. Unlike
    percentiles of a bootstrap it is not too narrow for few seeds.
    """
    seeds, prompts = x.shape
    mean = float(x.mean())
    if seeds == 1:
        scale, freedom = x.var(ddof=1) / prompts, prompts - 1
    else:
        a, b = x.mean(1) - mean, x.mean(0) - mean
        free = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)])
        rest = np.sum((x - mean - a[:, None] - b) ** 2) / free[2]
        squares = np.array([*np.maximum([prompts * (a @ a) / free[0], seeds * (b @ b) / free[1]], rest), rest])
        total = squares[0] + squares[1] - squares[2]
        scale, freedom = total / x.size, total**2 / max(np.sum(squares**2 / free), np.finfo(float).tiny)
    half = student.ppf((1 + level) / 2, freedom) * np.sqrt(scale) if scale else 0.0
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]))


def seed_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Mean over seeds, (seeds,), with Student's interval; NaN ends for one seed, which says nothing of others."""
    n = len(values)
    if n < 2:
        return Interval(float(np.mean(values)), float("nan"), float("nan"))
    half = student.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return Interval(float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half))


# --- the verdict on one setting and order -------------------------------------------------------

TOLERANCE = 0.10  # of what Stage 1 gained: smaller mean changes count as none
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
    base: np.ndarray, stage1: np.ndarray, stage2: np.ndarray, rng: np.random.Generator, resamples: int
) -> Outcome:
    """The rule, fixed before any run was looked at. With d = TOLERANCE * gain:

    not learned    the interval of the gain is not above zero
    degraded       the interval of the change lies below -d
    transferred    it lies above +d
    redistributed  it lies within +-d and the interval of the churn lies above CHURN
    stable         it lies within +-d and the churn does not
    inconclusive   it crosses -d or +d

    Args: policy margins (seeds, pairs) of the Stage-1 objective's held-out pairs after each stage.
    """

    def interval(statistic, *arrays):
        return bootstrap(statistic, *arrays, rng=rng, resamples=resamples)

    gain = interval(np.mean, stage1 - base)
    change = interval(np.mean, stage2 - stage1)
    relative = interval(lambda c, g: c.mean() / g.mean(), stage2 - stage1, stage1 - base)
    churn = interval(np.mean, ((stage1 > 0) != (stage2 > 0)).astype(float))
    tolerance = TOLERANCE * gain.value
    if gain.low <= 0:
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
