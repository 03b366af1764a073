"""S7 and S8 of paper S (arXiv 2606.19744): are the directions orthogonal, and does opposition drive what is lost?

Near-orthogonality comes free in noise, so S7 is judged by disattenuated cosines (`preflab.geometry`). Whatever a loss
does is the sum of its first-order terms along the path, so S8 asks for what the gradient at the end of Stage 1 alone
says of it.
`registered/05_mechanism.yaml` holds the effects and the power.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from preflab.claims import Claim, corrected, decide, nothing, powers_of
from preflab.statistics import Interval, seed_interval

SMALL = 0.2  # of a cosine: less than 4 % of the one's squared length lies along the other
HALF = 0.5  # of the loss: more is most of it


@dataclass(frozen=True)
class Opposition:
    """What was measured of one setting and order."""

    name: str
    cosines: np.ndarray  # disattenuated, of both gradients, over early and over late points: (seeds, 2)
    updates: np.ndarray  # cosine of the two stages' changes of the weights: (seeds,)
    lost: np.ndarray  # what Stage 2 added to the loss of the first objective's held-out pairs: (seeds,)
    foretold: np.ndarray  # what the gradient at the end of Stage 1 says of it: (seeds,)

    @property
    def directions(self) -> np.ndarray:
        """Every cosine that is to be small: (3, seeds)."""
        return np.array([*self.cosines.T, self.updates])


def mechanism_claims(found: Sequence[Opposition]) -> list[Claim]:
    """One verdict each. Intervals are Student's, over seeds."""
    return [near_orthogonal(found), opposition_is_not_the_driver(found)]


def near_orthogonal(found: Sequence[Opposition]) -> Claim:
    def of(level: float) -> list[Interval]:
        return [seed_interval(cosines, level) for one in found for cosines in one.directions]

    plain, strict = of(0.95), of(corrected(3 * len(found)))
    farthest = max(plain, key=lambda i: abs(i.value) if np.isfinite(i.value) else -1, default=nothing())
    return Claim(
        "S7",
        "Gradients and updates of Stage 2 are near-orthogonal to those of the previous objective, in all settings.",
        "Disattenuated cosine of both full-data gradients over early and over late points, and the cosine of both "
        f"stages' dW, of every setting and order; shown is the largest. Reproduced: all intervals within ±{SMALL}; not "
        "reproduced: one outside, at a level corrected for their number.",
        float(np.clip(farthest.value, -1, 1)),  # noise may carry an estimate over the ends
        (max(farthest.low, -1.0), min(farthest.high, 1.0)),
        decide(
            bool(plain) and all(i.within(SMALL) for i in plain),
            any(i.low > SMALL or i.high < -SMALL for i in strict),
        ),
    )


def opposition_is_not_the_driver(found: Sequence[Opposition]) -> Claim:
    lost = [one for one in found if seed_interval(one.lost).low > 0]
    share = nothing()
    if lost:
        share = seed_interval(np.sum([o.foretold for o in lost], 0) / np.sum([o.lost for o in lost], 0))
    return Claim(
        "S8",
        "Direct opposition of gradients does not drive what is lost.",
        "Where the held-out loss of the first objective clearly rose: the share of that rise which its gradient at the "
        "end of Stage 1 foretells, along the way that Stage 2 went. Reproduced: interval below one half; not "
        "reproduced: above it.",
        share.value,
        (share.low, share.high),
        decide(share.high < HALF, share.low > HALF),
    )


def goes_with(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, draws: int) -> Interval:
    """Spearman correlation over settings and orders; its ends are what 95 % of random pairings have, and no error."""
    if len(x) < 4 or not np.isfinite([x, y]).all():
        return nothing()
    null = [spearmanr(rng.permutation(x), y).statistic for _ in range(draws)]
    low, high = np.quantile(null, [0.025, 0.975])
    return Interval(float(spearmanr(x, y).statistic), float(low), float(high))


# --- power ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What a simulated experiment would find with endless seeds."""

    cosine: float = 0.0  # of one setting and order; 0 in the others
    share: float = 0.0  # of the loss that is foretold


def simulated(
    truth: Truth, spread: Mapping[str, float], sequences: int, seeds: int, rng: np.random.Generator
) -> list[Opposition]:
    """Every cosine of gradients (`cosine`), cosine of dW (`updates`) and share has an error of its own, of the standard
    deviations `spread`."""
    deviations = np.array([spread["cosine"], spread["cosine"], spread["updates"]])
    found = []
    for i in range(sequences):
        cosines = (truth.cosine if i == 0 else 0.0) + deviations * rng.normal(size=(seeds, 3))
        lost = 1 + 0.1 * rng.normal(size=seeds)
        foretold = (truth.share + spread["share"] * rng.normal(size=seeds)) * lost
        found.append(Opposition(str(i), cosines[:, :2], cosines[:, 2], lost, foretold))
    return found


EFFECTS: dict[str, tuple[Callable[[Sequence[Opposition]], Claim], Truth, Truth]] = {
    # claim: its rule, the claim's own truth, and the smallest that counts against it
    "S7": (near_orthogonal, Truth(cosine=0.0), Truth(cosine=0.4)),
    "S8": (opposition_is_not_the_driver, Truth(share=0.2), Truth(share=0.8)),
}


def powers(id_: str, spread: Mapping[str, float], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`."""
    rule, true, false = EFFECTS[id_]
    sequences = int(spread["sequences"])
    return powers_of(lambda truth, rng: rule(simulated(truth, spread, sequences, seeds, rng)), true, false, runs)
