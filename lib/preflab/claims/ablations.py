"""D7-D9 of paper D (arXiv 2512.00778, section 4): what is lost with a component."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preflab.claims import POINTS, Claim, corrected, decide, nothing, win_change
from preflab.statistics import seed_interval

PART_WITHOUT = {"without_negative": "negative", "without_positive": "positive"}  # rule: the part it takes away


@dataclass(frozen=True)
class Ablation:
    """One variant beside the plain method of its kind, all seeds. Win rates are of greedy answers."""

    method: str
    rule: str
    until: float  # share of training
    wins: np.ndarray  # (seeds, prompts) against the plain method of the same seed
    gap: np.ndarray  # (seeds,) accuracy of DPO margins on training less on held-out pairs


def ablation_claims(
    ablations: Sequence[Ablation], plain_gap: np.ndarray, parts: Mapping[str, Mapping[str, np.ndarray]]
) -> list[Claim]:
    """One verdict each.

    Args:
        ablations: in any order; D7 asks for DPO without_negative for a part of training, D8 for DPO with
            equal_weights for all of it.
        plain_gap: (seeds,) of plain DPO.
        parts: parts[method][positive or negative] is G of the part in the plain run, (seeds, steps).
    """

    def of_dpo(rule: str, whole: bool) -> Ablation | None:
        return next((a for a in ablations if (a.method, a.rule, a.until == 1) == ("dpo", rule, whole)), None)

    return [
        early_negative_learning_matters(of_dpo("without_negative", False)),
        weight_regularises(of_dpo("equal_weights", True), plain_gap),
        negative_g_can_help(ablations, parts),
    ]


def early_negative_learning_matters(row: Ablation | None) -> Claim:
    change = win_change(row.wins) if row else nothing()
    return Claim(
        "D7",
        "Without negative learning early, DPO performs worse: negative learning regularises.",
        f"Win rate against plain DPO less one half. Reproduced: interval below 0; not reproduced: above −{POINTS}.",
        change.value,
        (change.low, change.high),
        decide(change.high < 0, change.low > -POINTS),
    )


def weight_regularises(row: Ablation | None, plain_gap: np.ndarray) -> Claim:
    change = seed_interval(row.gap - plain_gap) if row else nothing()
    return Claim(
        "D8",
        "DPO's weight is a regulariser: without it the gap between training and held-out pairs widens.",
        "Change of that gap in accuracy of DPO margins (all training pairs), weights made equal, interval over seeds. "
        f"Reproduced: above 0; not reproduced: below {POINTS}.",
        change.value,
        (change.low, change.high),
        decide(change.low > 0, change.high < POINTS),
    )


def negative_g_can_help(ablations: Sequence[Ablation], parts: Mapping[str, Mapping[str, np.ndarray]]) -> Claim:
    removed = [a for a in ablations if a.rule in PART_WITHOUT and a.until == 1]
    negative = [a for a in removed if seed_interval(parts[a.method][PART_WITHOUT[a.rule]].mean(1)).high < 0]
    changes = [win_change(a.wins, corrected(len(negative))) for a in negative]
    worst = min(changes, key=lambda change: change.high, default=nothing())
    return Claim(
        "D9",
        "Parts with negative G can help.",
        "Of positive and negative learning, those whose G in the plain run is below 0 on average (interval over "
        "seeds): lowest win rate without the part, less one half, corrected for their number. Reproduced: interval "
        f"below 0; not reproduced: all above −{POINTS}; inconclusive also where no part has a negative G.",
        worst.value,
        (worst.low, worst.high),
        decide(any(c.high < 0 for c in changes), bool(changes) and all(c.low > -POINTS for c in changes)),
    )
