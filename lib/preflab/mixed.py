"""Linear mixed models: fixed effects of what is known of a world, and the world itself as a random effect.

statsmodels fits them (REML). Its own intervals are normal; ours are Student's, because worlds are few.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy.stats import t as student
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from preflab.statistics import Interval


@dataclass(frozen=True)
class Mixed:
    """Fixed effects of a fit, with the covariance of their errors. Terms are named as in the formula."""

    effects: pd.Series
    covariance: pd.DataFrame
    freedom: int  # worlds less fixed effects

    def interval(self, term: str, level: float = 0.95) -> Interval:
        """Student's interval of one fixed effect."""
        return self.at({term: 1.0}, level)

    def at(self, terms: dict[str, float], level: float = 0.95) -> Interval:
        """Of a sum of effects, each times its value: the fitted mean where the terms have these values."""
        x = np.array([terms.get(name, 0.0) for name in self.effects.index])
        value, error = float(x @ self.effects), float(np.sqrt(x @ self.covariance.to_numpy() @ x))
        half = student.ppf((1 + level) / 2, self.freedom) * error
        return Interval(value, value - half, value + half)

    def crossing(self, term: str, level: float = 0.95) -> Interval:
        """Where the fitted mean is 0 along one term, with every other term at 0.

        Fieller's interval: all x with (b0 + b1 x)^2 <= t^2 Var(b0 + b1 x). Its ends are NaN where that is no interval,
        which is so where the slope is not clearly different from 0.
        """
        b0, b1 = self.effects["Intercept"], self.effects[term]
        names = ["Intercept", term]
        (v00, v01), (_, v11) = self.covariance.loc[names, names].to_numpy()
        t2 = student.ppf((1 + level) / 2, self.freedom) ** 2
        a, b, c = b1**2 - t2 * v11, b0 * b1 - t2 * v01, b0**2 - t2 * v00
        inside = b**2 - a * c
        if a <= 0 or inside < 0:
            return Interval(-b0 / b1, float("nan"), float("nan"))
        return Interval(-b0 / b1, (-b - np.sqrt(inside)) / a, (-b + np.sqrt(inside)) / a)


def fit(table: pd.DataFrame, formula: str, groups: str) -> Mixed:
    """A mixed model with a random intercept for each of `groups`, a column of the table.

    Groups that do not differ beyond chance get a variance of 0, on which statsmodels warns; the fixed effects are then
    those of least squares.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = smf.mixedlm(formula, table, groups=groups).fit(reml=True, method="powell")  # lbfgs overshoots
    names = found.fe_params.index
    covariance = found.cov_params().loc[names, names]
    return Mixed(found.fe_params, covariance, table[groups].nunique() - len(names))
