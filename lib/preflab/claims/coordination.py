"""D10-D12 of paper D (arXiv 2512.00778, section 4 and App. E): does control of the components pay?

The outcome is that of `preflab.claims.ablations`.
"""

from collections.abc import Mapping
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
from preflab.claims.ablations import simulated_chances
from preflab.statistics import mean_interval


@dataclass(frozen=True)
class Contest:
    """A controlled method beside the plain one it controls, both chosen by the same sweep. Label probabilities, K
    answers a prompt against K, on prompts that nothing was chosen on; (seeds, prompts)."""

    kind: str  # cDPO, cPPO, hPPO
    chances: np.ndarray  # against the plain method of the same seed
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
        "Largest difference in label probability against the SFT model. Reproduced: every interval within "
        f"±{EFFECT}; not reproduced: one wholly outside.",
        farthest.value,
        (farthest.low, farthest.high),
        decide(
            bool(differences) and all(d.within(EFFECT) for d in differences),
            any(d.low > EFFECT or d.high < -EFFECT for d in differences),
        ),
    )


def control_pays(contests: list[Contest]) -> Claim:
    statement = "Fine-grained control improves at least one method."
    return _wins("D12", statement, "a controlled method against its plain one", contests)


def _wins(name: str, statement: str, who: str, contests: list[Contest]) -> Claim:
    """That at least one of them beats its rival."""
    gains = [win_change(c.chances, corrected(len(contests))) for c in contests]
    clearest = max(gains, key=lambda gain: gain.low, default=nothing())
    return Claim(
        name,
        statement,
        f"Clearest label probability of {who}, less one half. Reproduced: an interval above 0; not reproduced: all "
        f"below {EFFECT}.",
        clearest.value,
        (clearest.low, clearest.high),
        decide(any(g.low > 0 for g in gains), bool(gains) and all(g.high < EFFECT for g in gains)),
    )


# --- power -----------------------------------------------------------------------------------------

TRUE = {"D10": EFFECT, "D11": 0.0, "D12": EFFECT}  # of one comparison; the others of a claim have none
FALSE = {"D10": 0.0, "D11": 2 * EFFECT, "D12": 0.0}
KINDS = {"D10": ["cDPO"] * 2, "D11": ["cPPO"] + ["hPPO"] * 3, "D12": ["cDPO"] * 2 + ["cPPO"] + ["hPPO"] * 3}


def simulated(id_: str, effect: float, spread: Mapping[str, float], seeds: int, rng: np.random.Generator) -> Claim:
    """What one claim's rule says of a simulated experiment, in which the first comparison has the effect.

    `spread` is that of `preflab.claims.ablations`. How two methods differ against the SFT model is taken to vary as one
    against the other does.
    """
    contests = {}
    for number, kind in enumerate(KINDS[id_]):
        chances = simulated_chances(effect if number == 0 else 0.0, spread, seeds, rng)
        contests[str(number)] = Contest(kind, chances, chances, np.full_like(chances, 0.5))
    return next(claim for claim in coordination_claims(contests) if claim.id == id_)


def powers(id_: str, spread: Mapping[str, float], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`."""
    return powers_of(lambda effect, rng: simulated(id_, effect, spread, seeds, rng), TRUE[id_], FALSE[id_], runs)
