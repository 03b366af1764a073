"""Statistics over ordered pairs of a few objectives: rows with the columns `own` and `other`.

An objective is in many pairs, so pairs are not independent witnesses. Errors come from leaving out one objective with
all its pairs. A null comes from giving the objectives of a measure each other's names (quadratic assignment procedure,
QAP; Krackhardt 1988).
"""

from collections.abc import Callable
from itertools import chain, permutations
from math import factorial

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from preflab.statistics import Interval, jackknife_interval

INNER = 0.999  # of a correlation: at 1 its Fisher transform is infinite
FEWEST = 5  # objectives: of 24 namings of four, one alone is as large in 4 % of all


def names_of(rows: pd.DataFrame) -> list[str]:
    """The objectives, in the order in which they come first."""
    return list(dict.fromkeys([*rows.own, *rows.other]))


def over_objectives(rows: pd.DataFrame, statistic: Callable[[pd.DataFrame], float]) -> Interval:
    """A statistic of the rows, with the jackknife's interval over objectives; NaN ends for fewer than FEWEST.

    If pairs differ by chance alone, and not by objective, the interval is too wide by a factor of up to sqrt(2). It is
    too narrow where some objectives are nearly the same one.
    """
    names, value = names_of(rows), statistic(rows)
    if len(names) < FEWEST:
        return Interval(float(value), float("nan"), float("nan"))
    left = [statistic(rows[(rows.own != name) & (rows.other != name)]) for name in names]
    return jackknife_interval(value, np.array(left))


def correlation(rows: pd.DataFrame, one: str, other: str) -> Interval:
    """Spearman's, of two columns, over the rows that have both. The interval is made for its Fisher transform."""
    known = rows.dropna(subset=[one, other])
    found = over_objectives(known, lambda some: np.arctanh(np.clip(spearman(some[one], some[other]), -INNER, INNER)))
    return Interval(*(float(np.tanh(x)) for x in (found.value, found.low, found.high)))


def by_renaming(rows: pd.DataFrame, measure: str, outcome: str, rng: np.random.Generator, draws: int) -> float:
    """How often Spearman's correlation of a measure with an outcome is as large when the objectives of the measure have
    each other's names: a one-sided p-value, the measured naming counted in. All namings, or `draws` of them if there
    are more. NaN unless every ordered pair has both.
    """
    names = names_of(rows)
    complete = len(rows) == len(names) * (len(names) - 1) and rows[[measure, outcome]].notna().all().all()
    if len(names) < FEWEST or not complete:
        return float("nan")
    ranks = rows[["own", "other"]].assign(x=rows[measure].rank(), y=rows[outcome].rank())
    table = ranks.pivot(index="own", columns="other", values="x").loc[names, names].to_numpy()
    at = tuple(np.array([[names.index(name) for name in rows[side]] for side in ("own", "other")]))
    y = (ranks.y - ranks.y.mean()).to_numpy()

    def under(order: np.ndarray) -> float:  # renaming keeps the ranks, so this orders namings as the correlation does
        return float(table[order[at[0]], order[at[1]]] @ y)

    here = np.arange(len(names))
    few = factorial(len(names)) <= draws
    others = permutations(here) if few else chain([here], (rng.permutation(here) for _ in range(draws)))
    null = np.array([under(np.array(order)) for order in others])
    return float(np.mean(null >= under(here) - 1e-9))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two columns, (rows,). NaN for fewer than three rows, or where nothing differs."""
    if len(one) < 3 or min(np.ptp(one), np.ptp(other)) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)
