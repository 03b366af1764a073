"""D1-D6 of paper D (arXiv 2512.00778, sections 3.1 and 3.2): G of DPO and of PPO along training.

Every rule divides by what the parts amount to, |G+| + |G-|. So all numbers lie in [-1, 1], and those of DPO and PPO can
be compared. `registered/02_g_dynamics.yaml` holds the effects and the power.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preflab.claims import Claim, corrected, decide, powers_of
from preflab.statistics import Interval, seed_interval

SMALL = 0.15  # |G| as a share of what its two parts amount to: "near zero", half of the effect that counts
APART = 0.2  # difference of the outer tertiles as a share of what all three amount to: "distinct"
THIRDS = range(3)
STEPS = 16  # checkpoints of a simulated run


@dataclass(frozen=True)
class Curves:
    """G of one method along training: (seeds, steps) each, and mean weight (|c| of a unit) at the first and last.

    Tertiles are G for each unit of weight: a heavier part would have a larger G for that reason alone.
    """

    whole: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    bottom: np.ndarray
    middle: np.ndarray
    top: np.ndarray
    weight: np.ndarray  # mean w of a pair, or |A| of a token

    def share(self, part: str, third: int | None = None) -> np.ndarray:
        """Sum of G of a part over that of |G+| + |G-|, in a third of the steps or in all: (seeds,)."""
        up, down, wanted = (_third(g, third) for g in (self.positive, self.negative, getattr(self, part)))
        return wanted.sum(1) / (np.abs(up) + np.abs(down)).sum(1)

    def dominance(self, third: int) -> np.ndarray:
        """(G+ - G-) over (|G+| + |G-|), each summed over the first (0) to last (2) third of the steps: (seeds,)."""
        return self.share("positive", third) - self.share("negative", third)

    @property
    def separation(self) -> np.ndarray:
        """Sum over steps of top - bottom, over that of the sizes of the three tertiles: (seeds,). Steps at which all
        weights are equal have no tertiles (NaN) and do not count; a run that has no others has no separation (NaN)."""
        parts = np.nansum(np.abs([self.bottom, self.middle, self.top]), axis=(0, 2))
        apart = np.nansum(self.top - self.bottom, axis=1)
        return np.divide(apart, parts, out=np.full_like(apart, np.nan), where=parts > 0)


def _third(g: np.ndarray, third: int | None) -> np.ndarray:
    return g if third is None else np.array_split(g, 3, axis=1)[third]


def dynamics_claims(dpo: Curves, ppo: Curves) -> list[Claim]:
    """One verdict each. Intervals are Student's, over seeds."""
    return [
        dpo_stays_positive(dpo),
        ppo_near_zero(ppo),
        roles_cross(dpo),
        weight_shrinks_and_tertiles_overlap(dpo),
        roles_fixed(ppo),
        tertiles_distinct(ppo),
    ]


def dpo_stays_positive(dpo: Curves) -> Claim:
    def of(level: float) -> list[Interval]:
        return [seed_interval(dpo.share("whole", third), level) for third in THIRDS]

    plain, strict = of(0.95), of(corrected(3))
    return _claim(
        "D1",
        "G of DPO stays positive.",
        "G over |G+| + |G-| in each third of the measurements; shown is the least. Reproduced: all intervals above 0; "
        f"not reproduced: one below {SMALL}, at a level corrected for three.",
        _least(plain),
        all(share.low > 0 for share in plain),
        any(share.high < SMALL for share in strict),
    )


def ppo_near_zero(ppo: Curves) -> Claim:
    balance = seed_interval(ppo.share("whole"))
    return _claim(
        "D2",
        "G of PPO stays near zero, fluctuates or turns slightly negative.",
        f"G over |G+| + |G-|, over all measurements. Reproduced: interval below {SMALL}; not reproduced: above it.",
        balance,
        balance.high < SMALL,
        balance.low > SMALL,
    )


def roles_cross(dpo: Curves) -> Claim:
    early, late = (seed_interval(dpo.dominance(third)) for third in (0, 2))
    change = seed_interval(dpo.dominance(2) - dpo.dominance(0))
    return _claim(
        "D3",
        "In DPO positive learning dominates early, negative learning late.",
        "Change of (G+ - G-) / (|G+| + |G-|) from the first to the last third. Reproduced: early above 0 and late "
        "below 0, by their intervals; not reproduced: the change, or early, or late clearly has the other sign.",
        change,
        early.low > 0 and late.high < 0,
        change.low > 0 or early.high < 0 or late.low > 0,
        bound=2.0,
    )


def weight_shrinks_and_tertiles_overlap(dpo: Curves) -> Claim:
    shrinkage = seed_interval(dpo.weight[:, -1] / dpo.weight[:, 0])
    separation = seed_interval(dpo.separation)
    return _claim(
        "D4",
        "DPO's weight shrinks as margins grow, and its tertiles act alike.",
        f"(top - bottom) over the sum of the tertiles' sizes, G for each unit of weight. Reproduced: interval "
        f"within ±{APART} and mean w smaller at the end than at the start; not reproduced: outside, or w larger.",
        separation,
        separation.within(APART) and shrinkage.high < 1,
        _outside(separation, APART) or shrinkage.low > 1,
    )


def roles_fixed(ppo: Curves) -> Claim:
    def of(level: float) -> list[Interval]:
        signed = [(ppo.share("positive", third), -ppo.share("negative", third)) for third in THIRDS]
        return [seed_interval(share, level) for both in signed for share in both]

    plain, strict = of(0.95), of(corrected(6))
    return _claim(
        "D5",
        "In PPO G of positive learning stays above zero and that of negative learning below.",
        "G+ and -G- over |G+| + |G-| in each third of the measurements; shown is the least. Reproduced: all intervals "
        "above 0; not reproduced: one below 0, at a level corrected for six.",
        _least(plain),
        all(share.low > 0 for share in plain),
        any(share.high < 0 for share in strict),
    )


def tertiles_distinct(ppo: Curves) -> Claim:
    separation = seed_interval(ppo.separation)
    return _claim(
        "D6",
        "The tertiles of |A| play distinct parts.",
        f"(top - bottom) over the sum of the tertiles' sizes, G for each unit of weight. Reproduced: interval outside "
        f"±{APART}; not reproduced: within.",
        separation,
        _outside(separation, APART),
        separation.within(APART),
    )


def _least(intervals: Sequence[Interval]) -> Interval:
    return min(intervals, key=lambda interval: interval.value)


def _outside(interval: Interval, bound: float) -> bool:
    return interval.low > bound or interval.high < -bound


def _claim(
    id_: str, statement: str, statistic: str, found: Interval, holds: bool, fails: bool, bound: float = 1.0
) -> Claim:
    """The interval is cut where the statistic ends, at ±bound."""
    interval = float(np.maximum(found.low, -bound)), float(np.minimum(found.high, bound))
    return Claim(id_, statement, statistic, found.value, interval, decide(holds, fails))


# --- power -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What a simulated experiment would find with endless seeds, in shares of |G+| + |G-|."""

    positive: tuple[float, float, float]  # in each third
    negative: tuple[float, float, float]
    top: float = 1.0  # of the tertiles, for each unit of weight
    bottom: float = 1.0
    shrinkage: float = 0.8


def simulated(truth: Truth, spread: Mapping[str, float], seeds: int, rng: np.random.Generator) -> Curves:
    """Curves of `seeds` runs. `spread` holds standard deviations, in shares of |G+| + |G-|:

    whole              of G, from run to run, a third at a time
    dominance          of G+ - G-, from run to run, the same in all thirds
    dominance_third    of G+ - G-, a third at a time
    weight             of the last mean weight over the first
    tertile            of each tertile, from run to run, a third at a time
    measurement, tertile_measurement    of one measurement
    """
    sizes = [len(part) for part in np.array_split(np.arange(STEPS), 3)]

    def curve(thirds: np.ndarray, noise: float) -> np.ndarray:
        return np.repeat(thirds, sizes, axis=1) + noise * rng.normal(size=(seeds, STEPS))

    whole = spread["whole"] * rng.normal(size=(seeds, 3))
    dominance = spread["dominance"] * rng.normal(size=(seeds, 1)) + spread["dominance_third"] * rng.normal(
        size=(seeds, 3)
    )
    positive = curve(np.asarray(truth.positive) + (whole + dominance) / 2, spread["measurement"])
    negative = curve(np.asarray(truth.negative) + (whole - dominance) / 2, spread["measurement"])
    tertiles = [
        curve(value + spread["tertile"] * rng.normal(size=(seeds, 3)), spread["tertile_measurement"])
        for value in (truth.bottom, (truth.bottom + truth.top) / 2, truth.top)
    ]
    weight = np.stack([np.ones(seeds), truth.shrinkage + spread["weight"] * rng.normal(size=seeds)], axis=1)
    return Curves(positive + negative, positive, negative, *tertiles, weight)


def _throughout(positive: float, negative: float, **other: float) -> Truth:
    return Truth((positive,) * 3, (negative,) * 3, **other)


ALIKE = _throughout(0.5, 0.5)
DIFFERENT = _throughout(0.5, 0.5, top=1.6, bottom=0.4)  # by 0.4 of the three
AHEAD, LEVEL = _throughout(0.65, -0.35), _throughout(0.5, -0.5)  # G is 0.3 of its parts, and 0
CROSSING, STAYING = Truth((0.65, 0.5, 0.35), (0.35, 0.5, 0.65)), _throughout(0.65, 0.35)

EFFECTS = {  # claim: its rule, the smallest truth of the claim that counts, and one that speaks against it
    "D1": (dpo_stays_positive, AHEAD, LEVEL),
    "D2": (ppo_near_zero, LEVEL, AHEAD),
    "D3": (roles_cross, CROSSING, STAYING),
    "D4": (weight_shrinks_and_tertiles_overlap, ALIKE, DIFFERENT),
    "D5": (roles_fixed, LEVEL, ALIKE),
    "D6": (tertiles_distinct, DIFFERENT, ALIKE),
}


def powers(id_: str, spread: Mapping[str, Mapping[str, float]], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`.

    `spread` is, for each method, that of `simulated`.
    """
    rule, true, false = EFFECTS[id_]
    of = spread["dpo" if id_ in ("D1", "D3", "D4") else "ppo"]
    return powers_of(lambda truth, rng: rule(simulated(truth, of, seeds, rng)), true, false, runs)
