"""Does a curve along training stay or fluctuate? Statistics of a curve against its noise, with a null. Pure NumPy.

A curve x, (T,), is the mean of n units (responses of D') at T moments. Its noise is the standard error of that mean.
The same units are measured at every moment, so errors of different moments go together. The null keeps that:

    null_t = c + (1/n) sum_i w_i (x[t,i] - mean_i x[t,i]),    w_i ~ N(0, 1), the same at every moment,

is a curve that stays at one value c, and its errors have the measured covariance over moments (multiplier bootstrap).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from preflab.errors import BadInput
from preflab.statistics import Interval

BEYOND = 2.0  # standard errors: what is nearer to zero has no sign


def noise_of(units: np.ndarray) -> np.ndarray:
    """Standard error of the mean over units, (T, n) -> (T,). Raises BadInput for fewer than two units or moments."""
    if units.ndim != 2 or min(units.shape) < 2:
        raise BadInput(f"units of shape {units.shape}: expected (moments, units), two of each at least")
    return units.std(1, ddof=1) / np.sqrt(units.shape[1])


def sign_changes(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sign changes beyond noise, as a share of the T - 1 that are possible, of curves (..., T): (...,).

    Points within `BEYOND` standard errors of zero have no sign and are passed over: a curve that only touches zero
    changes no sign. 0 for a curve that stays on one side or within its noise, 1 for one that goes to and fro.
    """
    x = np.asarray(x)
    last = changes = np.zeros(x.shape[:-1])
    for now in np.moveaxis(np.where(np.abs(x) > BEYOND * noise, np.sign(x), 0.0), -1, 0):
        changes = changes + (now * last < 0)
        last = np.where(now != 0, now, last)
    return changes / (x.shape[-1] - 1)


def deviation(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Temporal deviation over its standard error, of curves (..., T): (...,).

        sqrt( sum_t (x_t - mean x)^2 / (T - 1)  /  mean_t noise_t^2 )

    About 1 if the curve is constant and its errors are independent. A trend counts as deviation.
    """
    return np.std(x, axis=-1, ddof=1) / np.sqrt(np.mean(noise**2))


def roughness(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The same of differences of neighbours, which a slow trend leaves alone, of curves (..., T): (...,).

        sqrt( sum_t (x_{t+1} - x_t)^2  /  sum_t (noise_{t+1}^2 + noise_t^2) )

    (von Neumann's mean square of successive differences). About 1 for independent errors around a smooth curve.
    """
    squares = np.sum(np.diff(x, axis=-1) ** 2, axis=-1)
    return np.sqrt(squares / np.sum(noise[1:] ** 2 + noise[:-1] ** 2))


Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
STATISTICS: dict[str, Statistic] = {"sign changes": sign_changes, "deviation": deviation, "roughness": roughness}


@dataclass(frozen=True)
class Fluctuation:
    """A statistic of one curve and how rare it is if the curve is constant."""

    value: float
    p: float  # share of constant curves with noise that reach it


def null_curves(units: np.ndarray, rng: np.random.Generator, runs: int = 1000) -> np.ndarray:
    """Curves that stay at the mean of all units, with the measured noise: (T, n) -> (runs, T)."""
    n = units.shape[1]
    off = (units - units.mean(1, keepdims=True)) * np.sqrt(n / (n - 1))
    return units.mean() + rng.standard_normal((runs, n)) @ off.T / n


def fluctuations(units: np.ndarray, rng: np.random.Generator, runs: int = 1000) -> dict[str, Fluctuation]:
    """Every statistic of the curve of `units`, (T, n), with its p against a constant curve."""
    x, noise, null = units.mean(1), noise_of(units), null_curves(units, rng, runs)
    found = {}
    for name, statistic in STATISTICS.items():
        value = float(statistic(x, noise))
        found[name] = Fluctuation(value, float((1 + np.sum(statistic(null, noise) >= value)) / (1 + runs)))
    return found


def share_interval(hits: np.ndarray, level: float = 0.95) -> Interval:
    """A share of hits, (seeds, trials) of 0 and 1, with an interval within [0, 1]. The seed is the unit.

    Trials of one seed go together. So Wilson's interval takes as many trials as would be worth as much if they were
    independent, trials / design effect (variance between seeds over the binomial one, at least 1), and Student's
    quantile of seeds - 1 (Korn and Graubard, 1998, with Wilson's interval for Clopper and Pearson's). NaN ends for one
    seed, which says nothing of others.
    """
    hits = np.asarray(hits, dtype=float)
    seeds, trials = hits.shape
    share = float(hits.mean())
    if seeds < 2:
        return Interval(share, float("nan"), float("nan"))
    binomial = share * (1 - share) / trials
    effect = max(1.0, float(hits.mean(1).var(ddof=1) / binomial)) if binomial else 1.0
    z2 = float(student.ppf((1 + level) / 2, seeds - 1)) ** 2
    n = hits.size / effect
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return Interval(share, float(max(centre - half, 0)), float(min(centre + half, 1)))
