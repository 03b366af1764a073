"""S1-S3 of paper S (arXiv 2606.19744) over every ordered pair of several objectives.

A row is one objective, `own`, and another one that came after it. Rows share objectives, so intervals are jackknives
over objectives (`preflab.dyads`). The relation of two objectives is what can be known before any training: the cosine
of their gradients at the base, without its noise.
`registered/07_objective_map.yaml` holds the effects and the power.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from preflab.claims import Claim, decide, powers_of
from preflab.claims.both_orders import BothOrders, order_matters
from preflab.claims.forgetting import no_single_pattern
from preflab.dyads import FEWEST, by_renaming, correlation, names_of, over_objectives, spearman
from preflab.statistics import Interval

CORRELATION = 0.5  # of ranks: less orders too little to be of use
ORDER = 0.25  # of the gain
ONE_SIDED = 0.025
DRAWS = 2000  # of names
COLUMNS = ("own", "other", "gain", "share", "order", "transfer", "cosine", "agreement", "outcome")


@dataclass(frozen=True)
class Succession(BothOrders):
    """What became of an objective, `own`, beside the `other` one."""

    own: str
    other: str
    cosine: float  # disattenuated, of both objectives' gradients at the base
    agreement: float  # share of the pairs that both order which they order alike; NaN where they order none

    def row(self) -> dict[str, object]:
        """What tables and rules see; shares of what the own objective gains alone."""
        return {
            "own": self.own,
            "other": self.other,
            "gain": self.gain,
            "share": self.share,
            "order": self.order,
            "transfer": self.transfer(),
            "cosine": self.cosine,
            "agreement": self.agreement,
            "outcome": self.outcome.verdict,
        }


def learned(successions: Sequence[Succession]) -> list[str]:
    """The objectives that their own stage teaches."""
    return list(dict.fromkeys(s.own for s in successions if s.learned))


def table_of_successions(successions: Sequence[Succession]) -> pd.DataFrame:
    """A row for each ordered pair of objectives that are both learnt."""
    known = learned(successions)
    return pd.DataFrame([s.row() for s in successions if {s.own, s.other} <= {*known}], columns=COLUMNS)


def map_claims(rows: pd.DataFrame) -> list[Claim]:
    """One verdict each."""
    return [several_patterns(rows), goes_with_relation(rows), goes_with_order(rows)]


def several_patterns(rows: pd.DataFrame) -> Claim:
    return no_single_pattern(rows if len(names_of(rows)) >= FEWEST else None, "own", "own objectives")


def goes_with_relation(rows: pd.DataFrame) -> Claim:
    found = correlation(rows, "cosine", "share")
    p = by_renaming(rows, "cosine", "share", np.random.default_rng(0), DRAWS)
    return Claim(
        "S2",
        "What happens depends on the relation of the objectives.",
        "Spearman correlation of Stage 2's change, a share of the gain, with the disattenuated cosine of gradients "
        f"at the base. Reproduced: as large under at most {ONE_SIDED:.1%} of the renamings of the objectives; not "
        f"reproduced: interval below {CORRELATION}.",
        found.value,
        (found.low, found.high),
        decide(p <= ONE_SIDED, found.high < CORRELATION),
    )


def goes_with_order(rows: pd.DataFrame) -> Claim:
    contrast = over_objectives(rows, lambda some: float(some.order.mean()))
    return order_matters(contrast, "ordered pairs", ORDER)


# --- what can be foretold -------------------------------------------------------------------------


def foretold(rows: pd.DataFrame, measures: Mapping[str, str], rng: np.random.Generator, draws: int) -> pd.DataFrame:
    """How well each cheap measure (title: column of `rows`) orders what Stage 2 did: ordered pairs that have it, the
    Spearman correlation with the share, and how often renamed objectives have one as large (NaN where some lack it)."""
    found = {
        title: {
            "ordered pairs": int(rows[column].notna().sum()),
            "correlation with the share": correlation(rows, column, "share"),
            "as large by renaming": by_renaming(rows, column, "share", rng, draws),
        }
        for title, column in measures.items()
    }
    return pd.DataFrame(found).T


def better(rows: pd.DataFrame, one: str, other: str) -> Interval:
    """By how much the correlation of one measure with the share is above that of another one, on pairs with both."""
    known = rows.dropna(subset=[one, other])
    return over_objectives(
        known, lambda some: spearman(some[one], some["share"]) - spearman(some[other], some["share"])
    )


# --- power ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What endless objectives would show."""

    slope: float = 0.0  # of the share over the cosine
    order: float = 0.0


def simulated(truth: Truth, spread: Mapping[str, float], seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """Rows of an experiment with `objectives`, random directions in a space of few `dimensions`. `spread` has those and
    standard deviations: of what belongs to the `own` objective, to the `other` one, to the ordered `pair`, and to
    chance in one `seed`."""
    objectives = int(spread["objectives"])
    directions = rng.normal(size=(objectives, int(spread["dimensions"])))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = directions @ directions.T
    own, other, order = (spread[key] * rng.normal(size=objectives) for key in ("own", "other", "own"))
    rest = np.hypot(spread["pair"], spread["seed"] / np.sqrt(seeds)) * rng.normal(size=(2, objectives, objectives))
    rows = [
        {"own": f"{i}", "other": f"{j}", "cosine": cosines[i, j], "outcome": "degraded",
         "share": -0.5 + truth.slope * cosines[i, j] + own[i] + other[j] + rest[0, i, j],
         "order": truth.order + order[i] + rest[1, i, j]}
        for i in range(objectives) for j in range(objectives) if i != j
    ]  # fmt: skip
    return pd.DataFrame(rows)


EFFECTS: dict[str, tuple[Callable[[pd.DataFrame], Claim], Truth, Truth]] = {
    # claim: its rule, the claim's own truth, and what speaks against it
    "S2": (goes_with_relation, Truth(slope=0.75), Truth()),
    "S3": (goes_with_order, Truth(order=2 * ORDER), Truth()),
}


def powers(id_: str, spread: Mapping[str, float], seeds: int, runs: int = 200) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`."""
    rule, true, false = EFFECTS[id_]
    return powers_of(lambda truth, rng: rule(simulated(truth, spread, seeds, rng)), true, false, runs)
