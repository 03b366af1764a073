"""D7-D9 of paper D (arXiv 2512.00778, section 4): what is lost with a component."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from preflab.claims import POINTS, Claim, decide, nothing
from preflab.evaluation import Interval, bootstrap, seed_interval


@dataclass(frozen=True)
class Ablation:
    """One variant beside the plain method of its kind, all seeds. Win rates are of greedy answers."""

    name: str
    method: str
    removes: str | None  # positive or negative, for all of training; None for anything else
    wins: np.ndarray  # (seeds, prompts) against the plain method of the same seed
    gap: np.ndarray  # (seeds,) accuracy of DPO margins on training less on held-out pairs


def ablation_claims(
    ablations: Mapping[str, Ablation],
    plain_gap: np.ndarray,
    parts: Mapping[str, Mapping[str, np.ndarray]],
    rng: np.random.Generator,
    resamples: int,
) -> list[Claim]:
    """One verdict each.

    Args:
        ablations: by the rows of the YAML that D7 and D8 ask for ("DPO, no negative early", "DPO, equal
            weights"), and others.
        plain_gap: (seeds,) of plain DPO.
        parts: parts[method][positive or negative] is G of the part in the plain run, (seeds, steps).
    """
    return [
        early_negative_learning_matters(ablations.get("DPO, no negative early"), rng, resamples),
        weight_regularises(ablations.get("DPO, equal weights"), plain_gap),
        negative_g_can_help(ablations, parts, rng, resamples),
    ]


def early_negative_learning_matters(row: Ablation | None, rng: np.random.Generator, resamples: int) -> Claim:
    change = _win_change(row, rng, resamples, 0.95) if row else nothing()
    return Claim(
        "D7",
        "Without negative learning early, DPO performs worse: it regularises.",
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
        "Change of that gap in accuracy of DPO margins, weights made equal, interval over seeds. Reproduced: above 0; "
        f"not reproduced: below {POINTS}.",
        change.value,
        (change.low, change.high),
        decide(change.low > 0, change.high < POINTS),
    )


def negative_g_can_help(
    ablations: Mapping[str, Ablation],
    parts: Mapping[str, Mapping[str, np.ndarray]],
    rng: np.random.Generator,
    resamples: int,
) -> Claim:
    removed = [a for a in ablations.values() if a.removes]
    negative = [a for a in removed if seed_interval(parts[a.method][a.removes].mean(1)).high < 0]
    level = 1 - 0.05 / max(len(negative), 1)
    changes = [_win_change(a, rng, resamples, level) for a in negative]
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


def _win_change(row: Ablation, rng: np.random.Generator, resamples: int, level: float) -> Interval:
    return bootstrap(lambda w: w.mean() - 0.5, row.wins, rng=rng, resamples=resamples, level=level)
