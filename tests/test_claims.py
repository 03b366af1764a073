"""Claims S1-S6: for each, measurements that must be reproduced, not reproduced and inconclusive."""

from dataclasses import replace

import numpy as np
import pytest

from preflab.claims import FEWEST, INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, SMALLER, Claim, decide, withheld
from preflab.claims.sequential import (
    Cell,
    aggregates_hide_pairs,
    depends_on_order,
    depends_on_relationship,
    high_confidence_pairs,
    no_single_pattern,
    sequential_claims,
    strong_signal_kept,
)
from preflab.margins import Outcome, outcome
from preflab.statistics import Interval

NOTHING = Interval(0.0, -1.0, 1.0)
SEEDS, PAIRS, RESAMPLES = 4, 200, 100
WORTH = np.linspace(-1, 1, PAIRS)  # what Stage 1 makes of each pair, beyond its mean gain of 1


def outcome_of(verdict, relative=NOTHING):
    return Outcome(verdict, NOTHING, NOTHING, relative, NOTHING)


@pytest.fixture
def cell(rng):
    """cell(change): Stage 1 gains 1 on average; Stage 2 adds `change` (a number or one a pair) and noise."""

    def make(change, setting="s", first="a", second="b", noise=0.05, seeds=SEEDS, **known):
        base = rng.normal(scale=noise, size=(seeds, PAIRS))
        stage1 = base + 1 + WORTH + rng.normal(scale=noise, size=(seeds, PAIRS))
        stage2 = stage1 + change + rng.normal(scale=noise, size=(seeds, PAIRS))
        return Cell(setting, first, second, base, stage1, stage2, **known)

    return make


def test_a_verdict_says_whether_an_effect_is_there_and_whether_it_counts():
    assert [decide(*case) for case in ((True, True), (True, False), (False, True), (False, False))] == [
        SMALLER,
        REPRODUCED,
        NOT_REPRODUCED,
        INCONCLUSIVE,
    ]


@pytest.mark.parametrize(
    ("verdicts", "kinds", "expected"),
    [
        (["degraded", "stable", "inconclusive"], 2, REPRODUCED),
        (["degraded", "degraded"], 1, NOT_REPRODUCED),
        (["degraded", "degraded", "inconclusive"], 1, INCONCLUSIVE),  # not all decided
        (["degraded"], 1, INCONCLUSIVE),  # one alone cannot differ
        (["inconclusive", "not learned"], 0, INCONCLUSIVE),  # no outcomes
    ],
)
def test_s1_no_single_pattern(verdicts, kinds, expected):
    claim = no_single_pattern({str(i): outcome_of(v) for i, v in enumerate(verdicts)})
    assert (claim.id, claim.value, claim.verdict) == ("S1", kinds, expected)


COMPATIBILITIES = (-0.8, -0.4, 0.0, 0.4, 0.8)


@pytest.mark.parametrize(
    ("slope", "noise", "expected"),
    [(0.5, 0.05, REPRODUCED), (-0.5, 0.05, NOT_REPRODUCED), (0.0, 2.0, INCONCLUSIVE)],
)
def test_s2_depends_on_relationship(slope, noise, expected, cell, rng):
    cells = [cell(slope * c, noise=noise, compatibility=c) for c in COMPATIBILITIES]
    claim = depends_on_relationship(cells, rng, RESAMPLES)
    assert claim.verdict == expected and claim.interval[0] <= claim.value <= claim.interval[1]
    if slope:
        assert claim.value == pytest.approx(np.sign(slope))


def test_s2_is_relative_to_the_gain_and_needs_three_known_compatibilities(cell, rng):
    cells = [cell(c, compatibility=c) for c in (-0.5, 0.5)]
    unknown = cell(9.0)  # real data: its compatibility is not known, and it does not count
    assert depends_on_relationship([*cells, unknown], rng, RESAMPLES).verdict == INCONCLUSIVE
    cells = [cell(0.0, compatibility=c) for c in COMPATIBILITIES]
    for i, one in enumerate(cells):  # the change rises with compatibility, relative to the gain it falls
        gain = 10.0**i
        cells[i] = Cell("s", "a", "b", one.base, one.base + gain, one.base + gain * (1.5 - 0.1 * i), compatibility=i)
    assert depends_on_relationship(cells, rng, RESAMPLES).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("gap", "noise", "expected"),
    [
        (0.5, 0.05, REPRODUCED),
        (-0.5, 0.05, REPRODUCED),
        (0.0, 0.05, NOT_REPRODUCED),
        (0.0, 3.0, INCONCLUSIVE),
    ],
)
def test_s3_depends_on_order(gap, noise, expected, cell):
    cells = [cell(-0.2, setting=s, first=f, second=g, noise=noise) for s in "xy" for f, g in ("ab", "ba")]
    cells[3] = cell(-0.2 - gap, setting="y", first="b", second="a", noise=noise)
    claim = depends_on_order(cells)
    assert claim.verdict == expected
    if noise < 1:
        assert claim.value == pytest.approx(gap, abs=0.05)


def test_s3_more_settings_ask_for_more(cell):
    found = [cell(change, setting="x", first=f) for change, f in ((-0.2, "a"), (-0.7, "b"))]
    others = [cell(-0.2, setting=f"y{i}", first=f) for i in range(20) for f in "ab"]
    alone, among = (depends_on_order(cells).interval for cells in (found, [*found, *others]))
    assert 1.3 * (alone[1] - alone[0]) < among[1] - among[0]


@pytest.mark.parametrize(
    ("change", "noise", "seeds", "expected"),
    [
        (0.1 + WORTH, 0.05, 4, REPRODUCED),
        (1 + 0.1 * WORTH, 0.05, 4, NOT_REPRODUCED),
        (1.0, 4.0, 4, NOT_REPRODUCED),  # noise of single runs, however wide, is no spread of pairs
        (0.1 + WORTH, 0.05, 1, INCONCLUSIVE),  # one seed cannot tell
        (0.5 + 0.87 * WORTH, 0.05, 4, INCONCLUSIVE),  # spread and mean alike
    ],
)
def test_s4_aggregates_hide_pairs(change, noise, seeds, expected, cell, rng):
    claim = aggregates_hide_pairs([cell(change, noise=noise, seeds=seeds)], rng, RESAMPLES)
    assert claim.verdict == expected and claim.value == float(expected == REPRODUCED)


def test_s4_half_of_the_cells_suffice(cell, rng):
    wide, narrow = cell(0.1 + WORTH), cell(1.0)
    assert aggregates_hide_pairs([wide, narrow], rng, RESAMPLES).value == 0.5
    assert aggregates_hide_pairs([wide, narrow], rng, RESAMPLES).verdict == REPRODUCED
    assert aggregates_hide_pairs([wide, narrow, narrow], rng, RESAMPLES).verdict == NOT_REPRODUCED


TOP = (WORTH > 0.5).astype(float)


@pytest.mark.parametrize(
    ("changes", "rose", "expected"),
    [
        ((0.5 * TOP - 0.1, -0.5 * TOP + 0.1), 1, REPRODUCED),  # the means say the opposite
        ((0.5 * TOP, 0.5 * TOP), 2, NOT_REPRODUCED),
        ((-0.5 * TOP, -0.5 * TOP), 0, NOT_REPRODUCED),
        ((0.5 * TOP, 0.0), 1, INCONCLUSIVE),
        ((-TOP,), 0, INCONCLUSIVE),  # one alone
    ],
)
def test_s5_high_confidence_pairs(changes, rose, expected, cell):
    claim = high_confidence_pairs([cell(c) for c in changes])
    assert (claim.verdict, claim.value) == (expected, rose)


def test_s5_needs_two_seeds_and_is_not_fooled_by_regression_to_the_mean(cell, rng):
    cells = [cell(c, seeds=1) for c in (0.5 * TOP, -0.5 * TOP)]
    assert high_confidence_pairs(cells).verdict == INCONCLUSIVE
    noise = rng.normal(size=(4, SEEDS, PAIRS))
    noisy = [Cell("s", "a", "b", np.zeros((SEEDS, PAIRS)), 1 + noise[i], 1 + noise[i + 1]) for i in (0, 2)]
    own = [(c.change * (c.stage1 > 1.7)).sum() / (c.stage1 > 1.7).sum() for c in noisy]
    assert max(own) < -1 and high_confidence_pairs(noisy).verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [(v, REPRODUCED) for v in ("stable", "redistributed", "transferred")]
    + [("degraded", NOT_REPRODUCED), ("inconclusive", INCONCLUSIVE), ("not learned", INCONCLUSIVE)],
)
def test_s6_strong_signal_kept(verdict, expected, cell):
    safe, other = cell(0.0, "safety", "safer", "better"), cell(0.0, "safety", "better", "safer")
    outcomes = {
        safe.name: outcome_of(verdict, Interval(-0.3, -0.4, -0.2)),
        other.name: outcome_of("degraded"),
    }
    claim = strong_signal_kept([other, safe], outcomes)
    assert (claim.verdict, claim.value, claim.interval) == (expected, -0.3, (-0.4, -0.2))
    assert strong_signal_kept([other], outcomes).verdict == INCONCLUSIVE


def test_all_six_from_measurements(cell, rng):
    cells = [
        cell(-0.5 + 0.8 * WORTH, "conflict", "helpful", "harmless", compatibility=-0.4),
        cell(-0.2, "conflict", "harmless", "helpful", compatibility=-0.4),
        cell(0.0, "safety", "safer", "better", compatibility=0.1),
        cell(0.1, "safety", "better", "safer", compatibility=0.1),
        cell(0.5, "compatible", "one", "two", compatibility=0.7),
        cell(0.6, "compatible", "two", "one", compatibility=0.7),
    ]
    outcomes = {c.name: outcome(c.base, c.stage1, c.stage2) for c in cells}
    assert next(iter(outcomes)) == "conflict: helpful → harmless"
    claims = sequential_claims(cells, outcomes, rng, RESAMPLES)
    assert [c.id for c in claims] == ["S1", "S2", "S3", "S4", "S5", "S6"]
    assert [c.verdict for c in claims[:3]] == [REPRODUCED] * 3 and claims[5].verdict == REPRODUCED
    assert claims[3].verdict == NOT_REPRODUCED
    assert all(c.statement and c.statistic for c in claims)


def test_verdicts_that_rest_on_too_few_pairs_are_withheld_and_numbers_are_not():
    claim = Claim("S1", "statement", "rule", 0.3, (0.1, 0.5), REPRODUCED)
    assert withheld([claim], FEWEST, "held-out pairs") == [claim]
    (without,) = withheld([claim], FEWEST - 1, "held-out pairs")
    assert without.verdict == "none: 49 held-out pairs, 50 needed"
    assert replace(without, verdict=REPRODUCED) == claim
