"""S1-S6 of paper S (arXiv 2606.19744): what a second DPO stage does to the first objective."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from preflab.claims import Claim, corrected, decide, nothing
from preflab.margins import Outcome, independent_score, quartile_changes, shared_spread
from preflab.statistics import Interval, difference_interval, mean_error, ratio

DECIDED = ("degraded", "transferred", "redistributed", "stable")


@dataclass(frozen=True)
class Cell:
    """One setting and order: policy margins of the first objective's held-out pairs, (seeds, pairs)."""

    setting: str
    first: str
    second: str
    base: np.ndarray
    stage1: np.ndarray
    stage2: np.ndarray
    compatibility: float = float("nan")  # correlation of the objectives' utilities, where known
    clusters: np.ndarray | None = None  # (pairs,) the prompt of each; None: they all differ

    @property
    def name(self) -> str:
        return f"{self.setting}: {self.first} → {self.second}"

    @property
    def change(self) -> np.ndarray:
        return self.stage2 - self.stage1

    @property
    def relative(self) -> np.ndarray:
        """Whose mean is the mean change over the mean gain of Stage 1."""
        return ratio(self.change, self.stage1 - self.base)


def sequential_claims(
    cells: list[Cell], outcomes: Mapping[str, Outcome], rng: np.random.Generator, resamples: int
) -> list[Claim]:
    """S1-S6 of arXiv 2606.19744 (abstract, results): one verdict each. What Stage 1 did not teach takes no part."""
    cells = [cell for cell in cells if outcomes[cell.name].verdict != "not learned"]
    return [
        no_single_pattern(outcomes),
        depends_on_relationship(cells, rng, resamples),
        depends_on_order(cells),
        aggregates_hide_pairs(cells, rng, resamples),
        high_confidence_pairs(cells),
        strong_signal_kept(cells, outcomes),
    ]


def no_single_pattern(outcomes: Mapping[str, Outcome]) -> Claim:
    decided = [o.verdict for o in outcomes.values() if o.verdict in DECIDED]
    kinds = len(set(decided))
    return Claim(
        "S1",
        "Sequential DPO has no single pattern of forgetting.",
        "Number of different outcomes over settings and orders. Reproduced: 2 or more; "
        "not reproduced: all decided and the same.",
        kinds,
        None,
        decide(kinds >= 2, kinds == 1 and len(decided) == len(outcomes) > 1),
    )


def depends_on_relationship(cells: list[Cell], rng: np.random.Generator, resamples: int) -> Claim:
    known = [cell for cell in cells if np.isfinite(cell.compatibility)]
    value, low, high = float("nan"), float("nan"), float("nan")
    if len({cell.compatibility for cell in known}) > 2:
        mean, error, freedom = np.transpose([mean_error(cell.relative, cell.clusters) for cell in known])
        draws = mean + error * rng.standard_t(freedom, (resamples, len(known)))
        compatibility = [cell.compatibility for cell in known]
        value = float(spearmanr(compatibility, mean).statistic)
        low, high = np.quantile([spearmanr(compatibility, draw).statistic for draw in draws], [0.025, 0.975])
    return Claim(
        "S2",
        "What happens depends on the relation of the objectives.",
        "Spearman correlation, over settings and orders, of compatibility with the change relative to "
        "Stage 1's gain (interval: each change drawn from its own Student's distribution). Reproduced: above 0; not "
        "reproduced: below 0.2.",
        value,
        (float(low), float(high)),
        decide(low > 0, high < 0.2),
    )


def depends_on_order(cells: list[Cell]) -> Claim:
    """The two orders of a setting measure different pairs. A setting with one objective has one order."""
    settings = [[c for c in cells if c.setting == name] for name in dict.fromkeys(c.setting for c in cells)]
    orders = [both for both in settings if len(both) == 2]
    level = corrected(len(orders))
    gaps = [difference_interval(a.relative, b.relative, level, (a.clusters, b.clusters)) for a, b in orders]
    widest = max(gaps, key=lambda gap: max(gap.low, -gap.high), default=nothing())  # the gap clearest of zero
    return Claim(
        "S3",
        "What happens depends on the training order.",
        "Difference between a setting's two orders in change relative to Stage 1's gain, where clearest; intervals "
        "corrected for the number of settings. Reproduced: one excludes 0; not reproduced: all within ±0.1.",
        widest.value,
        (widest.low, widest.high),
        decide(any(g.low * g.high > 0 for g in gaps), bool(gaps) and all(g.within(0.1) for g in gaps)),
    )


def aggregates_hide_pairs(cells: list[Cell], rng: np.random.Generator, resamples: int) -> Claim:
    def ratio(change: np.ndarray) -> float:
        return shared_spread(change) / abs(change.mean())

    def over_prompts(cell: Cell) -> Interval:  # seeds stay: a seed drawn twice shares its own noise
        prompts = np.arange(cell.change.shape[1]) if cell.clusters is None else cell.clusters
        members = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
        n, draws = len(members), []
        for _ in range(resamples):
            drawn = np.concatenate([members[i] for i in rng.integers(n, size=n)])
            draws.append(ratio(cell.change[:, drawn]))
        return Interval(ratio(cell.change), *map(float, np.quantile(draws, [0.025, 0.975])))

    ratios = [over_prompts(cell) for cell in cells]
    above, below = (np.mean([hit(r) for r in ratios]) for hit in (lambda r: r.low > 1, lambda r: r.high < 1))
    return Claim(
        "S4",
        "Aggregates hide changes of single pairs.",
        "Share of settings and orders in which the pairs' changes, as far as seeds share them, spread wider "
        "than the mean change is large (interval over prompts above 1). Reproduced: half or more; "
        "not reproduced: the spread is clearly narrower in more than half. Needs two seeds.",
        float(above),
        None,
        decide(above >= 0.5, below > 0.5),
    )


def high_confidence_pairs(cells: list[Cell]) -> Claim:
    level = corrected(len(cells))
    known = [cell for cell in cells if len(cell.stage1) > 1]
    tops = [quartile_changes(c.change, independent_score(c.stage1), level, c.clusters)[3] for c in known]
    fell, rose = sum(t.high < 0 for t in tops), sum(t.low > 0 for t in tops)
    return Claim(
        "S5",
        "High-confidence pairs may degrade or improve.",
        "Settings and orders in which the top quartile (by the other seeds' Stage-1 margin) rises. Reproduced: at "
        "least one clearly falls and one clearly rises, corrected for their number; not reproduced: all clearly "
        "move one way. Needs two seeds.",
        rose,
        None,
        decide(fell > 0 and rose > 0, len(tops) > 1 and max(fell, rose) == len(tops)),
    )


def strong_signal_kept(cells: list[Cell], outcomes: Mapping[str, Outcome]) -> Claim:
    name = next((c.name for c in cells if (c.setting, c.first) == ("safety", "safer")), None)
    relative = outcomes[name].relative if name else nothing()
    verdict = outcomes[name].verdict if name else "inconclusive"
    return Claim(
        "S6",
        "The strong safety signal survives the other stage.",
        "Change of the safety margins relative to Stage 1's gain. Reproduced: outcome stable, redistributed or "
        "transferred; not reproduced: degraded.",
        relative.value,
        (relative.low, relative.high),
        decide(verdict in DECIDED[1:], verdict == "degraded"),
    )
