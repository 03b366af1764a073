"""D10-D12 of paper D (arXiv 2512.00778, section 4 and App. E): does control of the components pay?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from preflab.claims import POINTS, Claim, corrected, decide, nothing, win_change
from preflab.statistics import mean_interval

ABOUT_TWO = 0.025  # what rounds to two points


@dataclass(frozen=True)
class Contest:
    """A controlled method beside the plain one it controls, both chosen by the same sweep. Win rates are of sampled
    answers to the prompts that nothing was chosen on; (seeds, prompts)."""

    kind: str  # cDPO, cPPO, hPPO
    wins: np.ndarray  # against the plain method of the same seed
    against_sft: np.ndarray
    plain_against_sft: np.ndarray


def coordination_claims(contests: Mapping[str, Contest]) -> list[Claim]:
    """One verdict each. Every claim's intervals are corrected (Bonferroni) for the number of its comparisons."""
    return [
        coordinated_dpo_wins([c for c in contests.values() if c.kind == "cDPO"]),
        controlled_ppo_is_close([c for c in contests.values() if c.kind in ("cPPO", "hPPO")]),
        control_pays(list(contests.values())),
    ]


def coordinated_dpo_wins(contests: list[Contest]) -> Claim:
    return _wins("D10", "cDPO beats DPO in win rate.", "a cDPO schedule against DPO", contests)


def controlled_ppo_is_close(contests: list[Contest]) -> Claim:
    level = corrected(len(contests))
    differences = [mean_interval(c.against_sft - c.plain_against_sft, level, (-1, 1)) for c in contests]
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


def control_pays(contests: list[Contest]) -> Claim:
    statement = "Fine-grained control improves at least one method."
    return _wins("D12", statement, "a controlled method against its plain one", contests)


def _wins(name: str, statement: str, who: str, contests: list[Contest]) -> Claim:
    """That at least one of them beats its rival."""
    gains = [win_change(c.wins, corrected(len(contests))) for c in contests]
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
