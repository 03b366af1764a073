"""M1-M6 of notebook 09: what follows for common mode from E_q[grad log pi] = - grad KL(q || pi). They are ours.

Each rule has one number a seed. Shares are of what the sizes of the three sources of C amount to, so they lie in
[-1, 1]. `registered/09_common_mode.yaml` holds the effects and the power.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preflab.claims import Claim, decide, powers_of
from preflab.common_mode import Split, share
from preflab.statistics import Interval, seed_interval

NOISE = 1.0  # standard errors of one measurement, on average: "no more than noise"
HALF = 0.5  # of what samples and ratio amount to: "takes it back"


@dataclass(frozen=True)
class Rule:
    """Reproduced: the interval lies above 0 (`sign` 1), below 0 (-1), or within ±`bound`; else the opposite."""

    statement: str
    statistic: str
    sign: int = 0
    bound: float = 0.0

    def verdict(self, found: Interval) -> str:
        if self.bound:
            outside = found.low > self.bound or found.high < -self.bound
            return decide(found.within(self.bound), outside)
        return decide(*((found.low > 0, found.high < 0)[:: self.sign]))

    @property
    def words(self) -> str:
        if self.bound:
            return f"Reproduced: interval within ±{self.bound:g}; not reproduced: outside."
        one, other = ("above", "below")[:: self.sign]
        return f"Reproduced: interval {one} 0; not reproduced: {other} 0."


RULES = {
    "M1": Rule(
        "On the policy's own samples nothing comes from whose samples they are.",
        "samples part over its standard error, mean over methods and policies.",
        bound=NOISE,
    ),
    "M2": Rule(
        "If D' is greedy, samples of a sharper decoding make C larger.",
        "share of the samples part at the lowest temperature, mean over methods and policies.",
        sign=1,
    ),
    "M3": Rule(
        "Samples of a hotter decoding make C smaller.",
        "share of the samples part at the highest temperature, mean over methods and policies.",
        sign=-1,
    ),
    "M4": Rule(
        "Stale samples make C smaller.",
        "share of the samples part on samples of the SFT model, mean over methods, half-way and at the end.",
        sign=-1,
    ),
    "M5": Rule(
        "PPO's ratio takes back what stale samples bring.",
        "samples and ratio part together over the sum of their sizes, on samples of the SFT model, half-way and at "
        "the end.",
        bound=HALF,
    ),
    "M6": Rule(
        "The pairs that DPO learns from make C smaller at its end.",
        "share of the samples part on the pairs of the data.",
        sign=-1,
    ),
}


@dataclass(frozen=True)
class Names:
    """Of the sources that the rules look at."""

    own: str
    sharper: str
    hotter: str
    sft: str  # samples of the SFT model
    data: str  # pairs that DPO learns from
    final: str  # the D' of all rules


def seeds_of(runs: Mapping[str, Sequence[Iterable[Split]]], names: Names) -> dict[str, np.ndarray]:
    """The number of each rule for each seed: (seeds,). `runs[method]` holds a run of each seed, in one order."""
    of_seeds = [_of_seed(dpo, ppo, names) for dpo, ppo in zip(runs["dpo"], runs["ppo"], strict=True)]
    return {name: np.array([found[name] for found in of_seeds]) for name in RULES}


def _of_seed(dpo: Iterable[Split], ppo: Iterable[Split], names: Names) -> dict[str, float]:
    by_method = [[x for x in run if x.final == names.final] for run in (dpo, ppo)]
    both = [x for run in by_method for x in run]

    def of(source: str, among: list[Split] = both) -> list[Split]:
        return [x for x in among if x.source == source]

    ends = [x for x in of(names.data, by_method[0]) if x.step == max(y.step for y in by_method[0])]
    return {
        "M1": float(np.mean([x.value("samples") / x.error("samples") for x in of(names.own)])),
        "M2": _share(of(names.sharper)),
        "M3": _share(of(names.hotter)),
        "M4": _share(of(names.sft)),
        "M5": float(np.mean([_left(x) for x in of(names.sft, by_method[1])])),
        "M6": _share(ends),
    }


def _share(splits: list[Split]) -> float:
    return float(np.mean([share(x, "samples") for x in splits])) if splits else np.nan


def _left(split: Split) -> float:
    samples, ratio = split.value("samples"), split.value("ratio")
    return (samples + ratio) / (abs(samples) + abs(ratio))


def common_mode_claims(numbers: Mapping[str, np.ndarray]) -> list[Claim]:
    """One verdict each, from `seeds_of`. Intervals are Student's, over seeds."""
    return [_claim(name, rule, numbers[name]) for name, rule in RULES.items()]


def _claim(name: str, rule: Rule, numbers: np.ndarray) -> Claim:
    found = seed_interval(numbers)
    interval = (found.low, found.high)
    if name != "M1":  # a share ends at ±1
        interval = float(np.maximum(found.low, -1)), float(np.minimum(found.high, 1))
    return Claim(name, rule.statement, f"{rule.statistic} {rule.words}", found.value, interval, rule.verdict(found))


# --- power -----------------------------------------------------------------------------------------

EFFECTS = {  # rule: the least that counts for it, and what speaks against it
    "M1": (0.0, 2.0),
    "M2": (0.5, -0.5),
    "M3": (-0.5, 0.5),
    "M4": (-0.5, 0.5),
    "M5": (0.0, 1.0),
    "M6": (-0.5, 0.5),
}


def powers(name: str, spread: Mapping[str, float], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a rule: see `powers_of`. Numbers of seeds are normal around the truth, with the standard deviation
    `spread`: of standard errors for M1, of shares for the others."""
    deviation = spread["errors" if name == "M1" else "shares"]

    def simulated(truth: float, rng: np.random.Generator) -> Claim:
        return _claim(name, RULES[name], truth + deviation * rng.normal(size=seeds))

    return powers_of(simulated, *EFFECTS[name], runs)
