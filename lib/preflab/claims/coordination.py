"""D10-D12 of paper D (arXiv 2512.00778, section 4 and App. E): does control of the components pay?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from preflab.claims import POINTS, Claim, decide, nothing
from preflab.evaluation import bootstrap

ABOUT_TWO = 0.025  # what rounds to two points


@dataclass(frozen=True)
class Contest:
    """A controlled method beside the plain one it controls, both chosen by the same sweep. Win rates are of sampled
    answers to the prompts that nothing was chosen on; (seeds, prompts)."""

    kind: str  # cDPO, cPPO, hPPO
    wins: np.ndarray  # against the plain method of the same seed
    against_sft: np.ndarray
    plain_against_sft: np.ndarray


def coordination_claims(contests: Mapping[str, Contest], rng: np.random.Generator, resamples: int) -> list[Claim]:
    """One verdict each. Every claim's intervals are corrected (Bonferroni) for the number of its comparisons."""
    return [
        coordinated_dpo_wins([c for c in contests.values() if c.kind == "cDPO"], rng, resamples),
        controlled_ppo_is_close([c for c in contests.values() if c.kind in ("cPPO", "hPPO")], rng, resamples),
        control_pays(list(contests.values()), rng, resamples),
    ]


def coordinated_dpo_wins(contests: list[Contest], rng: np.random.Generator, resamples: int) -> Claim:
    return _wins("D10", "cDPO beats DPO in win rate.", "a cDPO schedule against DPO", contests, rng, resamples)


def controlled_ppo_is_close(contests: list[Contest], rng: np.random.Generator, resamples: int) -> Claim:
    level = corrected(len(contests))
    differences = [
        bootstrap(
            lambda a, b: a.mean() - b.mean(),
            c.against_sft,
            c.plain_against_sft,
            rng=rng,
            resamples=resamples,
            level=level,
        )
        for c in contests
    ]
    farthest = max(differences, key=lambda d: abs(d.value), default=nothing())
    return Claim(
        "D11",
        "hPPO and cPPO differ from PPO by no more than about two points.",
        "Largest difference in win rate against the SFT model. Reproduced: every interval within "
        f"±{ABOUT_TWO}; not reproduced: one wholly outside.",
        farthest.value,
        (farthest.low, farthest.high),
        decide(
            bool(differences) and all(d.within(ABOUT_TWO) for d in differences),
            any(d.low > ABOUT_TWO or d.high < -ABOUT_TWO for d in differences),
        ),
    )


def control_pays(contests: list[Contest], rng: np.random.Generator, resamples: int) -> Claim:
    statement = "Fine-grained control improves at least one method."
    return _wins("D12", statement, "a controlled method against its plain one", contests, rng, resamples)


def _wins(name: str, statement: str, who: str, contests: list[Contest], rng: np.random.Generator, resamples) -> Claim:
    """That at least one of them beats its rival."""
    level = corrected(len(contests))
    gains = [bootstrap(lambda w: w.mean() - 0.5, c.wins, rng=rng, resamples=resamples, level=level) for c in contests]
    clearest = max(gains, key=lambda gain: gain.low, default=nothing())
    return Claim(
        name,
        statement,
        f"Clearest win rate of {who}, less one half. Reproduced: an interval above 0; not reproduced: all below "
        f"{POINTS}.",
        clearest.value,
        (clearest.low, clearest.high),
        decide(any(g.low > 0 for g in gains), bool(gains) and all(g.high < POINTS for g in gains)),
    )


def corrected(comparisons: int) -> float:
    """Level at which so many intervals hold together with 95 % (Bonferroni)."""
    return 1 - 0.05 / max(comparisons, 1)
