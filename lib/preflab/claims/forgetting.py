"""S1-S6 of paper S (arXiv 2606.19744) over many worlds: what Stage 2 does as a function of how objectives relate.

A row is one objective of one world, with the share of its gain that Stage 2 took or added. Two rows share a world, so
worlds are random effects (`preflab.mixed`). Strengths are centred, so an effect is that at the mean strength.
`registered/06_forgetting_map.yaml` holds the effects and the power.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom

from preflab.claims import Claim, decide, nothing, powers_of
from preflab.claims.both_orders import BothOrders, order_matters
from preflab.margins import independent_score, quartiles, shared_spread
from preflab.mixed import Mixed, fit
from preflab.statistics import Interval, jackknife_interval, seed_interval

# What counts is what the worlds of `full` can see: single objectives stray by 0.8 of their gain on tuning worlds.
SLOPE = 0.55  # of the share, for compatibility from 0 to 1: less does not count
STRENGTH = 3.0  # of the share, for a strength (accuracy of labels) from 0 to 1: 0.6 over 0.2
ORDER = 0.5  # of the gain
FEW = 8  # worlds: less than twice the fixed effects
ERROR = 0.05  # of a single verdict
COLUMNS = (
    *("world", "own", "compatibility", "strength", "other_strength", "gain", "share", "order", "both", "transfer"),
    *("early", "early_top", "outcome"),
)
CELLS = ("the most opposed", "the most alike")  # worlds that S5 asks, by their compatibility


@dataclass(frozen=True)
class Fate(BothOrders):
    """What became of one objective of a world, `own`, beside the other one."""

    world: str
    own: str
    compatibility: float  # correlation of the two utilities
    strength: float  # accuracy of own labels
    other_strength: float
    both: np.ndarray  # margins after both at once
    early: np.ndarray  # after own, then the first part of other

    def confident(self) -> np.ndarray:
        """Which pairs are in the top quartile, by the own margin after Stage 1: bool (seeds, pairs)."""
        return quartiles(self.alone)[3]

    @property
    def stray(self) -> float:
        """How far single pairs stray from proportional forgetting: the spread, shared by seeds, of what an affine fit
        of a pair's change on its gain leaves, a share of the gain. NaN for one seed."""
        if len(self.base) < 2:
            return float("nan")
        gained = (self.alone - self.base).mean(0)
        slope, level = np.polyfit(gained, self.change.mean(0), 1)
        return shared_spread(self.change - slope * gained - level) / self.gain

    def row(self) -> dict[str, object]:
        """What the models and the tables see."""
        top = self.confident()
        return {
            "world": self.world,
            "own": self.own,
            "compatibility": self.compatibility,
            "strength": self.strength,
            "other_strength": self.other_strength,
            "gain": self.gain,
            "share": self.share,
            "order": self.order,
            "both": self.end("both") - 1,
            "transfer": self.transfer(),
            "early": float((self.early - self.alone).mean()) / self.gain,
            "early_top": float((self.early - self.alone)[top].mean()) / self.gain,
            "outcome": self.outcome.verdict,
        }


def table_of_fates(fates: Sequence[Fate]) -> pd.DataFrame:
    """A row for each fate that Stage 1 had taught something, strengths also centred (`own_c`, `other_c`)."""
    return _centred(pd.DataFrame([fate.row() for fate in fates if fate.learned], columns=COLUMNS))


def _centred(rows: pd.DataFrame) -> pd.DataFrame:
    own, other = rows.strength, rows.other_strength
    return rows.assign(own_c=own - own.mean(), other_c=other - other.mean())


def model_of(rows: pd.DataFrame) -> Mixed | None:
    """The mixed model of the share on compatibility, both strengths, and the product of compatibility and the other's
    strength; None for FEW worlds or less."""
    return fit(rows, "share ~ compatibility * other_c + own_c", "world") if rows.world.nunique() > FEW else None


def fitted(model: Mixed | None, rows: pd.DataFrame, x: np.ndarray) -> dict[str, np.ndarray]:
    """The fitted share at compatibilities x, where the other's labels are the noisiest and the cleanest of the rows:
    value, low and high, (3, x) each; none without a model."""
    if model is None:
        return {}
    ends = {"the other's labels are noisy": rows.other_c.min(), "the other's labels are clean": rows.other_c.max()}
    found = {}
    for label, other in ends.items():
        at = [{"Intercept": 1, "compatibility": r, "other_c": other, "compatibility:other_c": r * other} for r in x]
        found[label] = np.array([(i.value, i.low, i.high) for i in map(model.at, at)]).T
    return found


def turning_point(model: Mixed | None) -> Interval:
    """The compatibility at which forgetting turns into transfer, at the mean strengths (`Mixed.crossing`)."""
    return model.crossing("compatibility") if model else nothing()


def forgetting_claims(fates: Sequence[Fate]) -> list[Claim]:
    """One verdict each."""
    rows = table_of_fates(fates)
    model, learned = model_of(rows), [fate for fate in fates if fate.learned]
    return [
        no_single_pattern(rows if model else None, "world", "worlds"),
        depends_on_relation(model),
        depends_on_order(rows if model else None),
        pairs_stray(learned),
        confident_pairs(learned),
        strong_signal_survives(model),
    ]


def no_single_pattern(rows: pd.DataFrame | None, unit: str, units: str) -> Claim:
    """S1, of rows with an `outcome`. Rows of one `unit` (a column; `units` in words) are not independent: an outcome
    counts once in each, and its chance to be an error there is at most the sum of the rows' (Bonferroni)."""
    groups = [some for _, some in rows.groupby(unit).outcome] if rows is not None else []
    kinds = [{*some} - {"inconclusive", "not learned"} for some in groups]
    chance = min(1.0, ERROR * max(map(len, groups), default=0))
    counts = Counter(kind for found in kinds for kind in found)
    sure = [kind for kind, n in counts.items() if binom.sf(n - 1, len(kinds), chance) < ERROR]
    return Claim(
        "S1",
        "Sequential DPO has no single pattern of forgetting.",
        f"Number of outcomes that occur in more {units} than errors of 5 % a row explain. "
        "Reproduced: 2 or more; not reproduced: one, and three quarters of all rows have it.",
        len(sure),
        None,
        decide(len(sure) >= 2, len(sure) == 1 and (rows.outcome == sure[0]).mean() >= 0.75),
    )


def depends_on_relation(model: Mixed | None) -> Claim:
    return _rises(
        "S2",
        "What happens depends on the relation of the objectives.",
        "Slope of Stage 2's change, a share of the gain, over compatibility (mixed model, worlds as random effects).",
        model.interval("compatibility") if model else nothing(),
        SLOPE,
    )


def depends_on_order(rows: pd.DataFrame | None) -> Claim:
    contrast = fit(rows, "order ~ 1", "world").interval("Intercept") if rows is not None else nothing()
    return order_matters(contrast, "worlds", ORDER)


def pairs_stray(fates: Sequence[Fate]) -> Claim:
    """S4. A ratio of root mean squares over worlds: a world where the mean change is near zero cannot decide alone."""
    ratio = _over_worlds(fates, lambda some: _root_mean_square(some, "stray") / _root_mean_square(some, "share"))
    return Claim(
        "S4",
        "Aggregates hide changes of single pairs.",
        "What proportional forgetting leaves of the spread of single pairs' changes, over the mean change, both shares "
        "of the gain and root mean squares over objectives; jackknife over worlds, of the logarithm. Reproduced: "
        "interval above 1; not reproduced: below 1. Needs two seeds.",
        ratio.value,
        (ratio.low, ratio.high),
        decide(ratio.low > 1, ratio.high < 1),
    )


def confident_pairs(fates: Sequence[Fate]) -> Claim:
    ends = [f.compatibility for f in fates]
    cells = [
        seed_interval(_by_world([f for f in fates if np.isclose(f.compatibility, end(ends), atol=0.05)], _top), 0.975)
        if fates
        else nothing()
        for end in (min, max)
    ]
    opposed, alike = cells
    return Claim(
        "S5",
        "High-confidence pairs may degrade or improve.",
        f"Change of the top quartile (by the other seeds' Stage-1 margin), a share of the gain, in {CELLS[0]} and in "
        f"{CELLS[1]} worlds, at 97.5 % each; shown is the latter. Reproduced: one clearly falls and the other clearly "
        "rises; not reproduced: both clearly move one way. Needs two seeds.",
        alike.value,
        (alike.low, alike.high),
        decide(
            (opposed.high < 0 < alike.low) or (alike.high < 0 < opposed.low),
            max(opposed.high, alike.high) < 0 or min(opposed.low, alike.low) > 0,
        ),
    )


def strong_signal_survives(model: Mixed | None) -> Claim:
    return _rises(
        "S6",
        "A strong signal survives the other stage.",
        "Slope of Stage 2's change, a share of the gain, over the accuracy of the own labels, at fixed compatibility "
        "(the same model).",
        model.interval("own_c") if model else nothing(),
        STRENGTH,
    )


def _rises(id_: str, statement: str, what: str, slope: Interval, least: float) -> Claim:
    """That a slope is above zero, where `least` is the smallest that counts."""
    return Claim(
        id_,
        statement,
        f"{what} Reproduced: interval above 0; not reproduced: below {least}.",
        slope.value,
        (slope.low, slope.high),
        decide(slope.low > 0, slope.high < least),
    )


def _by_world(fates: Sequence[Fate], what: Callable[[Fate], float]) -> np.ndarray:
    """The mean of a number over the objectives of each world: (worlds,)."""
    rows: dict[str, list[float]] = {}
    for fate in fates:
        rows.setdefault(fate.world, []).append(what(fate))
    return np.array([np.mean(found) for found in rows.values()])


def _over_worlds(fates: Sequence[Fate], ratio: Callable[[Sequence[Fate]], float]) -> Interval:
    """A ratio, with the interval of a jackknife of its logarithm over worlds."""
    worlds = dict.fromkeys(fate.world for fate in fates)
    if len(worlds) < 2:
        return nothing()
    without = [np.log(ratio([fate for fate in fates if fate.world != world])) for world in worlds]
    logs = jackknife_interval(np.log(ratio(fates)), np.array(without))
    return Interval(*np.exp([logs.value, logs.low, logs.high]))


def _root_mean_square(fates: Sequence[Fate], name: str) -> float:
    return float(np.sqrt(np.mean([getattr(fate, name) ** 2 for fate in fates])))


def _top(fate: Fate) -> float:
    if len(fate.base) < 2:
        return float("nan")
    inside = quartiles(independent_score(fate.alone))[3]
    return float(fate.change[inside].mean()) / fate.gain


# --- power ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What endless worlds would show."""

    slope: float = 0.0  # of the share over compatibility
    own: float = 0.0  # over the own strength
    order: float = 0.0


def simulated(truth: Truth, spread: Mapping[str, object], rng: np.random.Generator) -> pd.DataFrame:
    """Rows of an experiment. `spread` has standard deviations of the `share` and of the `order` contrast, over worlds
    (`world`) and of what is left (`rest`), the share of objectives that are `learned`, the grid of compatibilities
    and strengths, and how many draws each cell has."""
    share, order = spread["share"], spread["order"]
    rows = []
    for compatibility in spread["compatibilities"]:
        for first in spread["strengths"]:
            for second in spread["strengths"]:
                for draw in range(int(spread["draws"])):
                    world = f"{compatibility} {first} {second} {draw}"
                    shift = np.array([share["world"], order["world"]]) * rng.normal(size=2)
                    rows += [
                        {"world": world, "compatibility": compatibility, "strength": own, "other_strength": other,
                         "share": -0.5 + truth.slope * compatibility + truth.own * (own - 0.8) + shift[0]
                         + share["rest"] * rng.normal(),
                         "order": truth.order + shift[1] + order["rest"] * rng.normal()}
                        for own, other in ((first, second), (second, first)) if rng.random() < spread["learned"]
                    ]  # fmt: skip
    return _centred(pd.DataFrame(rows))


EFFECTS: dict[str, tuple[Callable[[pd.DataFrame], Claim], Truth, Truth]] = {
    # claim: its rule, the smallest truth of the claim that counts, and what speaks against it
    "S2": (lambda rows: depends_on_relation(model_of(rows)), Truth(slope=SLOPE), Truth()),
    "S3": (depends_on_order, Truth(order=2 * ORDER), Truth()),
    "S6": (lambda rows: strong_signal_survives(model_of(rows)), Truth(own=STRENGTH), Truth()),
}


def powers(id_: str, spread: Mapping[str, object], seeds: int, runs: int = 1000) -> dict[str, float]:
    """The power of a claim's rule: see `powers_of`. The seeds are those of worlds: `spread["draws"]` of each cell."""
    rule, true, false = EFFECTS[id_]
    return powers_of(lambda truth, rng: rule(simulated(truth, {**spread, "draws": seeds}, rng)), true, false, runs)
