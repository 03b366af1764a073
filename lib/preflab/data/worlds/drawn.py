"""Random worlds: two objectives drawn by a seed, with a wanted compatibility, strengths, overlap and mix of prompts."""

from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.optimize import brentq

from preflab.data.worlds.made import rounded, unit
from preflab.data.worlds.objectives import Objective, World, pool
from preflab.data.worlds.oracles import ORACLES
from preflab.errors import BadInput
from preflab.settings import Count, Proportion, Seed, settings

LANGUAGE = "guides"
OWN = 4  # attributes that each objective rewards or punishes


@settings
class RandomWorld:
    """How a world is drawn. Each of these can be changed with the others held fixed."""

    seed: Seed  # draws which attributes count, and how much
    compatibility: Annotated[float, Field(gt=-1, lt=1)]  # correlation of the two utilities
    strength: Annotated[float, Field(gt=0.5, lt=1)] = 0.85  # Bayes accuracy of the labels of `first`
    strength2: Annotated[float, Field(gt=0.5, lt=1)] = 0.85  # likewise of `second`
    shared: Annotated[Count, Field(le=OWN)] = OWN  # attributes that both objectives look at
    hazard: Proportion = 0.2  # share of hazardous prompts among the pairs of `first`
    hazard2: Proportion = 0.2  # likewise of `second`
    shift: Annotated[float, Field(ge=-3, le=3)] = 0.0  # of the generator of the pairs (`language.tilted`)

    def world(self, name: str) -> World:
        """The world of objectives `first` and `second`.

        `first` has random weights on four attributes. `second` has the weights cos(a) d_shared + sin(a) d_own, where
        d_shared is `first` on the shared attributes alone, d_own has random weights on attributes that `first` does
        not look at, both of unit variance over the pool, and the angle a gives the wanted correlation.

        Raises BadInput if no angle does: with few shared attributes the correlation cannot be large.
        """
        known = [k for k in ORACLES[LANGUAGE].attributes if k != "faults"]
        rng = np.random.default_rng([self.seed, 3])
        order = rng.permutation(len(known))
        weights = rng.choice([-1, 1], len(known)) * rng.uniform(0.5, 1.5, len(known))
        mixed = pool(LANGUAGE, (self.hazard + self.hazard2) / 2, self.shift)
        x = np.array([[float(getattr(a, k)) for k in known] for _, *both in mixed for a in both])  # (4000, 8)
        covariance = np.cov(x, rowvar=False)
        weights = weights / np.sqrt(np.diag(covariance))  # every attribute counts alike, whatever its scale
        first = unit(_only(weights, order[:OWN]), covariance)
        shared = unit(_only(weights, order[: self.shared]), covariance)
        own = unit(_only(weights, order[OWN:]), covariance)
        second = self._at_wanted(first, shared, own, covariance)
        return World(name, self._objectives(known, first, second), self.shift)

    def _at_wanted(self, first: np.ndarray, shared: np.ndarray, own: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        def at(angle: float) -> np.ndarray:
            return unit(np.cos(angle) * shared + np.sin(angle) * own, covariance)

        def correlation(angle: float) -> float:
            return float(first @ covariance @ at(angle))

        angles = np.linspace(0, np.pi, 181)  # from as much alike as can be to as much opposed
        found = np.array([correlation(angle) for angle in angles])
        high, low = angles[found.argmax()], angles[found.argmin()]
        if not found.min() <= self.compatibility <= found.max():
            limits = f"from {found.min():.2f} to {found.max():.2f}"
            raise BadInput(f"compatibility={self.compatibility}: expected {limits} with shared={self.shared}")
        return at(brentq(lambda angle: correlation(angle) - self.compatibility, *sorted((high, low)), xtol=1e-12))

    def _objectives(self, known: list[str], first: np.ndarray, second: np.ndarray) -> tuple[Objective, Objective]:
        shares, strengths = (self.hazard, self.hazard2), (self.strength, self.strength2)
        one, other = (
            Objective(
                name,
                {k: w for k, w in zip(known, rounded(weights), strict=True) if w},
                hazard_share=share,
                strength=strength,
                language=LANGUAGE,
            )
            for name, weights, share, strength in zip(
                ("first", "second"), (first, second), shares, strengths, strict=True
            )
        )
        return one, other


def _only(weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(weights)
    kept[indices] = weights[indices]
    return kept
