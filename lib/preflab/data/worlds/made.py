"""Worlds made to order: two objectives with a wanted compatibility and wanted strengths."""

import numpy as np

from preflab.data.worlds.answers.oracle import ATTRIBUTES
from preflab.data.worlds.objectives import Objective, World, pool
from preflab.errors import BadInput

HAZARD_SHARE = 0.2  # of hazardous prompts, for both objectives
DIGITS = 12  # of a weight: further ones can differ between machines, and would make a different world of each


def unit(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Weights of attributes, scaled to a utility of unit variance where the attributes have this covariance."""
    return weights / np.sqrt(weights @ covariance @ weights)


def rounded(weights: np.ndarray) -> list[float]:
    """To as many digits as all machines agree on."""
    return [round(float(w), DIGITS) + 0.0 for w in weights]  # + 0.0: no minus zero


def make_world(compatibility: float, strength: float | tuple[float, float], name: str = "made") -> World:
    """A world whose objectives `first` and `second` have the wanted correlation and label strengths.

    `first` rewards a right and complete answer. `second` is rho * z(first) + sqrt(1 - rho^2) * z(rest), where rho is
    the compatibility, `rest` rewards warnings, politeness and fillers and is made uncorrelated with `first` over the
    pool, and z(.) scales to unit variance. One strength serves both objectives, a tuple gives each its own.

    Raises BadInput unless -1 <= compatibility <= 1 and each strength lies in (0.5, 1).
    """
    if not -1 <= compatibility <= 1:
        raise BadInput(f"compatibility={compatibility}: expected a number from -1 to 1")
    strengths = strength if isinstance(strength, tuple) else (strength, strength)
    x = np.array([a.vector() for _, *both in pool("answers", HAZARD_SHARE) for a in both])  # (4000, 7)
    covariance = np.cov(x, rowvar=False)  # (7, 7)

    def weights_of(**wanted: float) -> np.ndarray:
        return np.array([wanted.get(k, 0.0) for k in ATTRIBUTES])

    w_first = unit(weights_of(correct=1, complete=1, refusal=-1), covariance)
    w_rest = weights_of(warning=1, polite=0.5, verbosity=0.5)
    w_rest = unit(w_rest - (w_rest @ covariance @ w_first) * w_first, covariance)
    w_second = compatibility * w_first + np.sqrt(1 - compatibility**2) * w_rest
    first, second = (
        Objective(label, dict(zip(ATTRIBUTES, rounded(w), strict=True)), hazard_share=HAZARD_SHARE, strength=s)
        for label, w, s in zip(("first", "second"), (w_first, w_second), strengths, strict=True)
    )
    return World(name, (first, second))
