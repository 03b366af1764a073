"""Objectives and worlds: linear utilities over the attributes, and two of them with a known relation.

Because the utilities are known, two numbers are known that no real data set offers: the *compatibility* of two
objectives (correlation of their utilities) and the *strength* of a signal (Bayes accuracy of its labels).
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from preflab.data.worlds.language import Attributes, Language, Prompt
from preflab.data.worlds.languages import LANGUAGES
from preflab.data.worlds.oracles import ORACLES
from preflab.errors import BadInput


@dataclass(frozen=True)
class Objective:
    """A linear utility over attributes, u = sum_k (weights_k + [hazardous] * hazard_weights_k) a_k - faults.

    `strength` is the Bayes accuracy of its labels, E[sigmoid(|u - u'| / T)] over pairs that are not tied. It fixes
    the temperature T (`World.temperature`). Raises BadInput for an unknown attribute and for a strength outside
    (0.5, 1).
    """

    name: str
    weights: dict[str, float]  # attribute: weight
    hazard_weights: dict[str, float] = field(default_factory=dict)  # added to `weights` for hazardous prompts
    hazard_share: float = 0.4  # the share of hazardous prompts among its pairs
    strength: float = 0.85
    language: str = "answers"  # a name of `LANGUAGES`

    def __post_init__(self):
        known = ORACLES[self.language].attributes
        for attribute in (*self.weights, *self.hazard_weights):
            if attribute not in known:
                raise BadInput(f"objective {self.name}: weight of {attribute!r}, expected of {', '.join(known)}")
        if not 0.5 < self.strength < 1:
            raise BadInput(f"objective {self.name}: strength {self.strength}, expected 0.5 < strength < 1")

    def utility(self, prompt: Prompt, response: str) -> float:
        """The utility u of any text as a response to the prompt."""
        return self.utility_of(ORACLES[self.language].read(prompt, response), prompt.hazardous)

    def utility_of(self, attributes: Attributes, hazardous: bool) -> float:
        """The utility u of a response with these attributes."""
        value_of = vars(attributes)
        u = sum(w * value_of[k] for k, w in self.weights.items())
        if hazardous:
            u += sum(w * value_of[k] for k, w in self.hazard_weights.items())
        return u - attributes.faults


@dataclass(frozen=True)
class World:
    """Two objectives over one language: a setting of paper S (arXiv 2606.19744) with known numbers.

    `shift` says how far the generator of the pairs lies from the one that the base model learned from
    (`language.tilted`). In a world of `same_pairs` both objectives label one and the same pairs, as some data sets do.
    Raises BadInput if the objectives have different languages, or the same pairs and different shares of hazard.
    """

    name: str
    objectives: tuple[Objective, Objective]
    shift: float = 0.0
    same_pairs: bool = False

    def __post_init__(self):
        one, other = self.objectives
        if one.language != other.language:
            raise BadInput(f"world:{self.name}: {one.language} and {other.language}, expected one language")
        if self.same_pairs and one.hazard_share != other.hazard_share:
            raise BadInput(f"world:{self.name}: labels on the same pairs, expected one hazard_share")

    @property
    def language(self) -> Language:
        """What its prompts and responses are written in."""
        return LANGUAGES[self.objectives[0].language]

    def objective(self, name: str) -> Objective:
        """The objective of this name. Raises BadInput if the world does not have it."""
        for objective in self.objectives:
            if objective.name == name:
                return objective
        offered = ", ".join(o.name for o in self.objectives)
        raise BadInput(f"world:{self.name}: objective {name!r} does not exist, expected one of: {offered}")

    def temperature(self, name: str) -> float:
        """The T that gives the labels of this objective their strength, in units of utility.

        Raises BadInput if the world does not have the objective, if no T gives the strength, and if all responses
        to prompts of one kind are tied.
        """
        objective = self.objective(name)
        u, v = self._pool_utilities(objective, objective.hazard_share)
        hazardous = np.array([prompt.hazardous for prompt, _, _ in self.pool(objective.hazard_share)])
        untied = ~np.isclose(u, v)
        if self.same_pairs:  # a pair that either objective ties is drawn again
            untied = np.all([~np.isclose(*self._pool_utilities(o, o.hazard_share)) for o in self.objectives], axis=0)
        # Ties are redrawn within a prompt, so each kind of prompt keeps its share, however many ties it has.
        weight = np.zeros_like(u)
        for kind in (hazardous, ~hazardous):
            if kind.any() and not (kind & untied).any():
                which = "hazardous" if kind is hazardous else "harmless"
                raise BadInput(f"objective {name}: all responses to {which} prompts are tied, expected other weights")
            weight[kind & untied] = kind.sum() / max((kind & untied).sum(), 1)
        gaps, weight = np.abs(u - v)[untied], weight[untied]

        def excess(t: float) -> float:
            return np.average(expit(gaps / t), weights=weight) - objective.strength

        coldest, hottest = 1e-3, 1e6
        if not excess(hottest) <= 0 <= excess(coldest):
            raise BadInput(f"objective {name}: no T gives strength {objective.strength}, expected 0.51 to 0.99")
        return float(brentq(excess, coldest, hottest))

    def compatibility(self) -> dict[str, float]:
        """How the two objectives relate, over one pool of prompts and responses.

        Returns `correlation`, the correlation of their utilities, and `disagreement`, the share of response pairs
        that they order differently. Pairs that are tied under either objective do not count.
        """
        a, b = self.objectives
        share = (a.hazard_share + b.hazard_share) / 2
        (ua, va), (ub, vb) = self._pool_utilities(a, share), self._pool_utilities(b, share)
        untied = ~np.isclose(ua, va) & ~np.isclose(ub, vb)
        opposed = np.sign(ua - va) != np.sign(ub - vb)
        return {
            "correlation": float(np.corrcoef(np.r_[ua, va], np.r_[ub, vb])[0, 1]),
            "disagreement": float(opposed[untied].mean()),
        }

    def pool(self, hazard_share: float) -> "Pool":
        """What compatibility and strength are computed on."""
        return pool(self.objectives[0].language, hazard_share, self.shift)

    def _pool_utilities(self, objective: Objective, hazard_share: float) -> tuple[np.ndarray, np.ndarray]:
        """The utilities of the first and of the second responses of the pool: two arrays (2000,)."""
        responses = self.pool(hazard_share)
        u = np.array([objective.utility_of(first, prompt.hazardous) for prompt, first, _ in responses])
        v = np.array([objective.utility_of(second, prompt.hazardous) for prompt, _, second in responses])
        return u, v


Pool = tuple[tuple[Prompt, Attributes, Attributes], ...]


@cache
def pool(language: str, hazard_share: float, shift: float = 0.0) -> Pool:
    """2,000 fixed training prompts, each with the attributes of two independent responses."""
    speaks, reads, rng = LANGUAGES[language], ORACLES[language], np.random.default_rng(20250101)
    prompts = speaks.sample_prompts("train", 2000, hazard_share, rng)

    def attributes(prompt: Prompt) -> Attributes:
        return reads.read(prompt, speaks.respond(prompt, rng, shift))

    return tuple((prompt, attributes(prompt), attributes(prompt)) for prompt in prompts)
