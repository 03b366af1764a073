"""D7-D9 of paper D (arXiv 2512.00778, section 4): what is lost with a component.

The outcome is the world's own label probability: K answers a prompt of a run against K answers of the plain run with
the same seed, mean of sigma(du / T), less one half. `registered/03_component_ablations.yaml` holds effects and power.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preflab.claims import (
    EFFECT,
    Claim,
    corrected,
    decide,
    nothing,
    powers_of,
    win_change,
)
from preflab.rules import EqualWeights, Rule, Until, WhileSign, WithoutNegative
from preflab.statistics import seed_interval

GAP = 0.05  # of accuracy: how much wider a gap must be to count
FADED = 0.5  # of a weight at the start: one that stays above regularises little, and taking it away tells nothing
ACTED = 0.1  # of the updates: a rule that follows G and acts less often says nothing of what it takes away


@dataclass(frozen=True)
class Ablation:
    """One variant beside the plain method of its kind, all seeds."""

    method: str
    rule: Rule
    repeats: int  # how often every pair is seen, compared with the other rows
    chances: np.ndarray  # (seeds, prompts) label probability against the plain method of the same seed
    gap: np.ndarray  # (seeds,) how far the gap is wider: accuracy of DPO margins on training less on held-out pairs
    faded: np.ndarray  # (seeds,) the plain method's mean weight at the end, a share of that at the start
    acted: np.ndarray  # (seeds,) share of updates at which the rule took something away


def ablation_claims(ablations: Sequence[Ablation]) -> list[Claim]:
    """One verdict each, of ablations in any order."""
    return [
        early_negative_learning_matters(_first(ablations, _no_negative_early)),
        weight_regularises(_first(ablations, _weights_that_stay)),
        negative_g_can_help(ablations),
    ]


def early_negative_learning_matters(row: Ablation | None) -> Claim:
    change = win_change(row.chances) if row else nothing()
    return Claim(
        "D7",
        "Without negative learning early, DPO performs worse: negative learning regularises.",
        "Label probability against plain DPO less one half. Reproduced: interval below 0; not reproduced: above "
        f"−{EFFECT}.",
        change.value,
        (change.low, change.high),
        decide(change.high < 0, change.low > -EFFECT),
    )


def weight_regularises(row: Ablation | None) -> Claim:
    change = seed_interval(row.gap) if row and row.faded.mean() <= FADED else nothing()
    return Claim(
        "D8",
        "DPO's weight is a regulariser: without it the gap between training and held-out pairs widens.",
        "Change of that gap in accuracy of DPO margins, where few pairs are seen often, |c| stays as large as at the "
        f"start, and plain DPO's falls to {FADED:.0%} or less. Reproduced: interval above 0; not reproduced: below "
        f"{GAP}.",
        change.value,
        (change.low, change.high),
        decide(change.low > 0, change.high < GAP),
    )


def negative_g_can_help(ablations: Sequence[Ablation]) -> Claim:
    taken = [a for a in ablations if _negative_g(a.rule) and a.acted.mean() >= ACTED]
    changes = [win_change(a.chances, corrected(len(taken))) for a in taken]
    worst = min(changes, key=lambda change: change.high, default=nothing())
    return Claim(
        "D9",
        "Parts with negative G can help.",
        "A part goes while its live G is negative: lowest label probability against the plain method, less one half, "
        f"of all parts and doses for which that is so in {ACTED:.0%} of the updates, corrected for their number. "
        f"Reproduced: interval below 0; not reproduced: all above −{EFFECT}.",
        worst.value,
        (worst.low, worst.high),
        decide(any(c.high < 0 for c in changes), bool(changes) and all(c.low > -EFFECT for c in changes)),
    )


def _first(ablations: Sequence[Ablation], wanted: Callable[[Ablation], bool]) -> Ablation | None:
    return next((a for a in ablations if a.method == "dpo" and wanted(a)), None)


def _no_negative_early(row: Ablation) -> bool:
    return row.repeats == 1 and isinstance(row.rule, Until) and isinstance(row.rule.rule, WithoutNegative)


def _weights_that_stay(row: Ablation) -> bool:
    return row.repeats > 1 and isinstance(row.rule, EqualWeights) and row.rule.size is not None


def _negative_g(rule: Rule) -> bool:
    return isinstance(rule, WhileSign) and rule.sign == "negative"


# --- power -----------------------------------------------------------------------------------------


def simulated(id_: str, effect: float, spread: Mapping[str, float], seeds: int, rng: np.random.Generator) -> Claim:
    """What one claim's rule says of a simulated experiment.

    `effect` is the true one. `spread` holds standard deviations over seeds (`chances`,
    `gap`), over prompts (`prompts`) and of what is left (`rest`), and the number of prompts and of rows of D9.
    """
    if id_ == "D8":
        return weight_regularises(_row(gap=effect + spread["gap"] * rng.normal(size=seeds)))
    rows = [_row(chances=simulated_chances(effect, spread, seeds, rng)) for _ in range(int(spread["rows"]))]
    return early_negative_learning_matters(rows[0]) if id_ == "D7" else negative_g_can_help(rows)


def simulated_chances(effect: float, spread: Mapping[str, float], seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Label probabilities, (seeds, prompts), of a method that is better by `effect`."""
    shape = seeds, int(spread["n"])
    of_seed, of_prompt = spread["chances"] * rng.normal(size=shape[0]), spread["prompts"] * rng.normal(size=shape[1])
    return 0.5 + effect + of_seed[:, None] + of_prompt + spread["rest"] * rng.normal(size=shape)


def _row(chances: np.ndarray | None = None, gap: np.ndarray | None = None) -> Ablation:
    return Ablation("dpo", WhileSign(part="negative"), 1, chances, gap, faded=np.zeros(1), acted=np.ones(1))


TRUE = {"D7": -EFFECT, "D8": GAP, "D9": -EFFECT}  # the smallest effect that counts; 0 speaks against each


def powers(id_: str, spread: Mapping[str, float], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`."""
    return powers_of(lambda effect, rng: simulated(id_, effect, spread, seeds, rng), TRUE[id_], 0.0, runs)
