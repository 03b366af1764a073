"""Intervals of means over seeds and pairs (or prompts): Student's, of crossed random effects. Pure NumPy.

Arrays have shape (seeds, pairs) if a docstring does not say otherwise; the pairs are the same for every seed, the
training data, adapters and batch order are not.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval."""

    value: float
    low: float
    high: float

    def within(self, bound: float) -> bool:
        return -bound <= self.low and self.high <= bound

    def __str__(self) -> str:
        if np.isnan(self.low) and np.isnan(self.high):  # one seed says nothing of others
            return f"{self.value:+.3f}"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def by_cluster(x: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """What stands for each cluster of pairs: (seeds, clusters), with the mean of x, (seeds, pairs), over both.

    Pairs of one prompt are no independent witnesses, so a prompt is the unit. `clusters` is (pairs,), the number of
    each pair's prompt; None: every pair is a cluster of its own. The sum over a cluster is scaled by clusters / pairs.
    """
    if clusters is None:
        return x
    found, which = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(x), len(found)))
    np.add.at(sums, (slice(None), which), x)
    return sums * len(found) / x.shape[1]


def mean_error(x: np.ndarray, clusters: np.ndarray | None = None) -> tuple[float, float, float]:
    """Mean of x, (seeds, pairs or prompts), its standard error for other seeds and other pairs (or clusters of them),
    and the error's degrees of freedom.

    Seeds and pairs are crossed random effects, x[s,i] = mu + a_s + b_i + e_si, so that with their mean squares

        Var(mean) = (MS_seeds + MS_pairs - MS_rest) / (S n)        (degrees of freedom: Satterthwaite's)

    where neither counts for less than the rest. With one seed it speaks of pairs alone.
    """
    x = by_cluster(x, clusters)
    seeds, pairs = x.shape
    mean = float(x.mean())
    if seeds == 1:
        return mean, float(x.std(ddof=1) / np.sqrt(pairs)), pairs - 1
    a, b = x.mean(1) - mean, x.mean(0) - mean
    freedom = np.array([seeds - 1, pairs - 1, (seeds - 1) * (pairs - 1)])
    sums = np.array([pairs * (a @ a), seeds * (b @ b), np.sum((x - mean - a[:, None] - b) ** 2)])
    squares = np.maximum(sums / freedom, sums[2] / freedom[2])
    total = squares[0] + squares[1] - squares[2]
    satterthwaite = total**2 / np.sum(squares**2 / freedom) if total else x.size - 1
    return mean, float(np.sqrt(total / x.size)), float(satterthwaite)


def mean_interval(
    x: np.ndarray,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    clusters: np.ndarray | None = None,
) -> Interval:
    """Student's interval of the mean of x, (seeds, pairs or prompts), for both (`mean_error`), cut at `bounds`.

    Percentiles of a bootstrap over as few as five seeds would cover 83 % where they say 95 %.
    """
    interval = _students(*mean_error(x, clusters), level)
    return Interval(interval.value, max(interval.low, bounds[0]), min(interval.high, bounds[1]))


def difference_interval(
    x: np.ndarray,
    y: np.ndarray,
    level: float = 0.95,
    clusters: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> Interval:
    """Of the difference of two means, of arrays (seeds, pairs) that have no pair in common (Welch)."""
    (one, error, freedom), (other, error_, freedom_) = mean_error(x, clusters[0]), mean_error(y, clusters[1])
    whole = error**2 + error_**2
    welch = whole**2 / (error**4 / freedom + error_**4 / freedom_) if whole else freedom + freedom_
    return _students(one - other, np.sqrt(whole), welch, level)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """What stands for mean(above) / mean(below), arrays of one shape: its mean is that ratio, and its mean's error
    that of the ratio to first order (delta method). With a mask below, `above` restricted to it: a mean within it."""
    value = above.mean() / below.mean()
    return value + (above - value * below) / below.mean()


def seed_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Mean over seeds, (seeds,), with Student's interval; NaN ends for one seed, which says nothing of others. NaN for
    none."""
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else float("nan"), float("nan"), float("nan"))
    return _students(np.mean(values), np.std(values, ddof=1) / np.sqrt(n), n - 1, level)


def jackknife_interval(value: float, without: np.ndarray, level: float = 0.95) -> Interval:
    """Student's interval of a statistic, from its values `without` each of n units, (n,):

    Var = (n - 1) / n * sum of (without_i - their mean)^2        (Tukey's jackknife)
    """
    n = len(without)
    error = np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    return _students(value, error, n - 1, level)


def _students(value: float, error: float, freedom: float, level: float) -> Interval:
    half = student.ppf((1 + level) / 2, freedom) * error
    return Interval(float(value), float(value - half), float(value + half))
