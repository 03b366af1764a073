"""D1-D6 of paper D (arXiv 2512.00778, sections 3.1 and 3.2): G of DPO and of PPO along training."""

from dataclasses import dataclass

import numpy as np

from preflab.claims import Claim, decide
from preflab.statistics import Interval, seed_interval

MOSTLY = 0.8  # share of measurements from which "stays" and "steadily" speak
SMALL = 0.1  # |G| as a share of what its two parts amount to: "near zero"
APART = 0.2  # difference of the outer tertiles as a share of what all three amount to: "distinct"


@dataclass(frozen=True)
class Curves:
    """G of one method along training: (seeds, steps) each, and mean weight (|c| of a unit) at the first and last."""

    whole: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    bottom: np.ndarray
    middle: np.ndarray
    top: np.ndarray
    weight: np.ndarray  # mean w of a pair, or |A| of a token

    @property
    def balance(self) -> np.ndarray:
        """Sum over steps of G, over that of |G+| + |G-|: 0 where the parts offset each other, (seeds,)."""
        return self.whole.sum(1) / (np.abs(self.positive) + np.abs(self.negative)).sum(1)

    @property
    def separation(self) -> np.ndarray:
        """Sum over steps of G(top) - G(bottom), over that of |G| of the three tertiles: (seeds,). Steps at which all
        weights are equal have no tertiles (NaN) and do not count."""
        parts = np.nansum(np.abs([self.bottom, self.middle, self.top]), axis=(0, 2))
        return np.nansum(self.top - self.bottom, axis=1) / parts

    def dominance(self, third: int) -> np.ndarray:
        """(G+ - G-) over (|G+| + |G-|), each summed over the first (0) or last (2) third of the steps: (seeds,)."""
        up, down = (np.array_split(g, 3, axis=1)[third] for g in (self.positive, self.negative))
        return (up - down).sum(1) / (np.abs(up) + np.abs(down)).sum(1)


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
    share = seed_interval((dpo.whole > 0).mean(1))
    return _claim(
        "D1",
        "G of DPO stays positive.",
        f"Share of measurements with G > 0. Reproduced: interval above {MOSTLY}; not reproduced: below it.",
        share,
        share.low >= MOSTLY,
        share.high < MOSTLY,
    )


def ppo_near_zero(ppo: Curves) -> Claim:
    balance = seed_interval(ppo.balance)
    return _claim(
        "D2",
        "G of PPO stays near zero, fluctuates or turns slightly negative.",
        f"Sum of G over that of |G+| + |G-|. Reproduced: interval below {SMALL}; not reproduced: above it.",
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
    )


def weight_shrinks_and_tertiles_overlap(dpo: Curves) -> Claim:
    shrinkage = seed_interval(dpo.weight[:, -1] / dpo.weight[:, 0])
    separation = seed_interval(dpo.separation)
    return _claim(
        "D4",
        "DPO's weight shrinks as margins grow, and its tertiles act alike.",
        f"(G(top) - G(bottom)) over the sum of the tertiles' |G|. Reproduced: interval within ±{APART} and mean w "
        "smaller at the end than at the start; not reproduced: interval outside, or w clearly larger.",
        separation,
        separation.within(APART) and shrinkage.high < 1,
        _outside(separation, APART) or shrinkage.low > 1,
    )


def roles_fixed(ppo: Curves) -> Claim:
    both = seed_interval(((ppo.positive > 0) & (ppo.negative < 0)).mean(1))
    return _claim(
        "D5",
        "In PPO G of positive learning stays above zero and that of negative learning below.",
        f"Share of measurements with G+ > 0 and G- < 0. Reproduced: interval above {MOSTLY}; not reproduced: below it.",
        both,
        both.low >= MOSTLY,
        both.high < MOSTLY,
    )


def tertiles_distinct(ppo: Curves) -> Claim:
    separation = seed_interval(ppo.separation)
    return _claim(
        "D6",
        "The tertiles of |A| play distinct parts.",
        f"(G(top) - G(bottom)) over the sum of the tertiles' |G|. Reproduced: interval outside ±{APART}; "
        "not reproduced: within.",
        separation,
        _outside(separation, APART),
        separation.within(APART),
    )


def _outside(interval: Interval, bound: float) -> bool:
    return interval.low > bound or interval.high < -bound


def _claim(id_: str, statement: str, statistic: str, found: Interval, holds: bool, fails: bool) -> Claim:
    return Claim(id_, statement, statistic, found.value, (found.low, found.high), decide(holds, fails))
