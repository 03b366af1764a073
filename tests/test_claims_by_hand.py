"""Every claim by hand: its number from few, unequal measurements, its rule at its very bounds, its row of the table."""

import numpy as np
import pytest
from scipy.stats import t as student

from preflab import claims
from preflab.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    SMALLER,
    Claim,
    ablations,
    coordination,
    dynamics,
    sequential,
)
from preflab.claims.ablations import Ablation
from preflab.claims.coordination import Contest
from preflab.claims.dynamics import Curves
from preflab.claims.sequential import Cell
from preflab.margins import Outcome
from preflab.rules import EqualWeights, Until, WhileSign, WithoutNegative, WithoutPositive
from preflab.statistics import Interval, mean_interval

T_OF_2 = 12.706204736432095  # Student's 97.5 % point with one degree of freedom: two seeds
JUST = 1e-9
NOTHING = Interval(0.0, -1.0, 1.0)


def over_two(one, other):
    """Mean and interval over two seeds: half the difference is the error of their mean."""
    mean, error = (one + other) / 2, abs(one - other) / 2
    return mean, mean - T_OF_2 * error, mean + T_OF_2 * error


def cut(interval, bound):
    """A statistic that ends at ±bound has no interval beyond."""
    value, low, high = interval
    return value, max(low, -bound), min(high, bound)


def found(claim):
    return claim.value, *claim.interval


def curves(**given):
    """Curves of two seeds and three steps; what a claim does not read is NaN."""
    nothing = np.full((2, 3), np.nan)
    names = ("whole", "positive", "negative", "bottom", "middle", "top", "weight")
    return Curves(**{name: np.array(given.get(name, nothing), dtype=float) for name in names})


# --- the number, of unequal seeds -----------------------------------------------------------------

TERTILES = {  # sums: top - bottom 4 and -3; all |G| 20 and 12
    "bottom": [[1, -2, 3], [4, 1, 0]],
    "middle": [[-1, 1, 6], [1, -1, 1]],
    "top": [[2, 3, 1], [0, 3, -1]],
}


def test_d1_is_the_least_third_of_g_over_its_parts():
    """Five steps: thirds of two, two and one. Means 0.75, 1/3 and 0.625."""
    positive, negative = np.array([[[1, 2, 3, 0, 5], [2, 0, 1, 1, 1]], [[0, -1, 1, 1, -3], [0, 2, -1, -3, 1]]])
    c = curves(whole=positive + negative, positive=positive, negative=negative)
    assert [c.share("whole", t).tolist() for t in (0, 2)] == [[2 / 4, 4 / 4], [2 / 8, 2 / 2]]
    assert found(dynamics.dpo_stays_positive(c)) == pytest.approx(cut(over_two(5 / 5, -2 / 6), 1))


def test_d2_is_g_over_what_its_parts_amount_to():
    given = {"positive": [[3, -1, 2], [2, 4, 0]], "negative": [[-1, 0, -4], [1, -2, 1]]}
    whole = [[2, -1, -2], [3, 2, 1]]
    claim = dynamics.ppo_near_zero(curves(whole=whole, **given))
    assert found(claim) == pytest.approx(cut(over_two(-1 / 11, 6 / 10), 1))


def test_d3_is_the_change_from_the_first_third_to_the_last():
    """Seven steps: thirds of three, two and two."""
    positive = [[1, 2, 0, 9, 9, -1, 3], [4, 0, 1, 9, 9, 0, 1]]
    negative = [[-1, 1, 1, 0, 0, 2, 2], [1, -1, 1, 0, 0, 5, 2]]
    early, late = (2 / 6, 4 / 8), (-2 / 8, -6 / 8)
    c = curves(positive=positive, negative=negative)
    assert c.dominance(0) == pytest.approx(early) and c.dominance(2) == pytest.approx(late)
    claim = dynamics.roles_cross(c)
    assert found(claim) == pytest.approx(cut(over_two(late[0] - early[0], late[1] - early[1]), 2))


def test_d4_and_d6_are_the_separation_of_tertiles():
    c = curves(**TERTILES, weight=[[2, 9, 1], [4, 9, 3]])
    for claim in (dynamics.weight_shrinks_and_tertiles_overlap(c), dynamics.tertiles_distinct(c)):
        assert found(claim) == pytest.approx(cut(over_two(4 / 20, -3 / 12), 1))


def test_d4_looks_at_the_first_weight_and_the_last(monkeypatch):
    seen = []
    monkeypatch.setattr(dynamics, "seed_interval", lambda values: seen.append(values.tolist()) or NOTHING)
    dynamics.weight_shrinks_and_tertiles_overlap(curves(**TERTILES, weight=[[2, 9, 1], [4, 9, 3]]))
    assert seen[0] == [1 / 2, 3 / 4]


def test_d5_is_the_least_share_of_both_parts_with_their_signs():
    """The least of six: positive learning in the second third, 0 of 1 and -1 of 2."""
    c = curves(positive=[[1, 0, 0.5], [2, -1, 1]], negative=[[-0.5, -1, -1], [-1, -1, 0]])
    assert found(dynamics.roles_fixed(c)) == pytest.approx(cut(over_two(0, -1 / 2), 1))


def test_d5_asks_its_opposite_at_a_level_for_six():
    """One share that is below 0 at the level for six, and at that for seven not: Student's t lies between the two."""
    ends = [student.ppf(1 - 0.05 / n / 2, 9) / np.sqrt(10) for n in (6, 7)]
    x = np.linspace(-1, 1, 10)
    x = 0.1 * (x / x.std(ddof=1) - np.mean(ends))
    part = np.repeat(x[:, None], 6, axis=1)
    c = curves(positive=part, negative=np.abs(part) - 1)
    assert dynamics.roles_fixed(c).verdict == NOT_REPRODUCED


def test_what_counts_in_04_is_what_its_registration_says():
    """0.025 for one comparison of D10 and D12, 0.05 against D11, and nothing otherwise."""
    assert coordination.TRUE == {"D10": 0.025, "D11": 0.0, "D12": 0.025}
    assert coordination.FALSE == {"D10": 0.0, "D11": 0.05, "D12": 0.0}


WINS = np.array([[1, 0, 0.5, 0], [0, 0, 1, 0.5]])


EARLY, LESS = Until(0.4, WithoutNegative()), WhileSign(part="negative")


def ablation(rule, chances=WINS, repeats=1, gap=(0.3, 0.1), method="dpo", faded=(0.2, 0.7), acted=(0.3, 0.5)):
    return Ablation(method, rule, repeats, chances, np.array(gap), np.array(faded), np.array(acted))


def test_d7_is_the_label_probability_less_one_half_cut_where_it_ends():
    claim = ablations.early_negative_learning_matters(ablation(EARLY))
    assert claim.value == pytest.approx(3 / 8 - 1 / 2)
    assert claim.interval == pytest.approx((-0.5, 0.5))  # so few prompts say nothing
    many = np.repeat(WINS, 100, axis=1)
    expected = mean_interval(many - 0.5, 0.95)
    assert -0.5 < expected.low < expected.high < 0.5
    claim = ablations.early_negative_learning_matters(ablation(EARLY, many))
    assert claim.interval == (expected.low, expected.high)


def test_d8_is_how_far_the_gap_is_wider():
    claim = ablations.weight_regularises(ablation(EqualWeights(0.05), repeats=2, gap=(0.25, -0.1)))
    assert found(claim) == pytest.approx(over_two(0.25, -0.1))


def test_claims_find_their_own_rows_among_others():
    """D7 asks for a part of training, D8 for weights that stay on few pairs, both of DPO: others come first here."""
    other = 1 - WINS
    rows = [
        ablation(WithoutNegative(), other),
        ablation(EARLY, other, method="kto"),
        ablation(EARLY, other, repeats=2),
        ablation(Until(0.4, WithoutPositive()), other),
        ablation(EARLY),
        ablation(EqualWeights(0.05), gap=(9.0, 9.0)),
        ablation(EqualWeights(), repeats=2, gap=(7.0, 7.0)),
        ablation(EqualWeights(0.05), repeats=2, gap=(8.0, 8.0), method="kto"),
        ablation(EqualWeights(0.05), repeats=2),
    ]
    d7, d8, d9 = ablations.ablation_claims(rows)
    assert d7.value == pytest.approx(3 / 8 - 1 / 2) and d8.value == pytest.approx(0.2)
    assert np.isnan(d9.value) and d9.verdict == INCONCLUSIVE  # no row takes a part away while its G is negative


def test_d9_is_the_worst_of_rows_that_take_a_part_while_its_g_is_negative(monkeypatch):
    """Two of five: of the others one waits for a positive G, one hardly ever acted, one takes no part away."""
    levels = []
    monkeypatch.setattr(
        ablations, "win_change", lambda wins, level: levels.append(level) or Interval(wins, wins - 0.1, wins + 0.2)
    )
    rows = [
        ablation(LESS, -0.1),
        ablation(WhileSign(part="negative", sign="positive"), -0.5),
        ablation(LESS, -0.4, acted=(0.05, 0.14)),
        ablation(EqualWeights(), -0.4),
        ablation(WhileSign(part="positive", dose=0.5), -0.3, method="ppo", acted=(0.1, 0.1)),
    ]
    claim = ablations.negative_g_can_help(rows)
    assert found(claim) == pytest.approx((-0.3, -0.4, -0.1)) and claim.verdict == REPRODUCED
    assert levels == [claims.corrected(2)] * 2


def contest(kind, wins=WINS, ours=WINS, plain=WINS):
    return Contest(kind, wins, ours, plain)


def test_d10_and_d12_are_the_clearest_win_among_their_own(monkeypatch):
    levels = []
    monkeypatch.setattr(
        coordination, "win_change", lambda wins, level: levels.append(level) or Interval(wins, wins - 0.1, wins + 0.2)
    )
    monkeypatch.setattr(coordination, "mean_interval", lambda *_: NOTHING)
    of = {"a": contest("cDPO", 0.02), "b": contest("cDPO", 0.05), "c": contest("hPPO", 0.11), "d": contest("cPPO", 0.0)}
    d10, _, d12 = coordination.coordination_claims(of)
    assert found(d10) == pytest.approx((0.05, -0.05, 0.25)) and d10.verdict == INCONCLUSIVE
    assert found(d12) == pytest.approx((0.11, 0.01, 0.31)) and d12.verdict == REPRODUCED
    assert levels == [claims.corrected(2)] * 2 + [claims.corrected(4)] * 4


def test_d11_is_the_farthest_of_ppos_whichever_way(monkeypatch):
    asked = []
    monkeypatch.setattr(
        coordination, "mean_interval", lambda x, *how: asked.append(how) or Interval(x, x - 0.001, x + 0.002)
    )
    monkeypatch.setattr(coordination, "win_change", lambda *_: NOTHING)
    of = {
        "a": contest("cDPO", ours=0.9, plain=0.1),  # not asked about
        "b": contest("cPPO", ours=0.71, plain=0.70),
        "c": contest("hPPO", ours=0.68, plain=0.70),
    }
    claim = coordination.coordination_claims(of)[1]
    assert found(claim) == pytest.approx((-0.02, -0.021, -0.018)) and claim.verdict == REPRODUCED
    assert asked == [(claims.corrected(2), (-1, 1))] * 2


# --- S: settings and orders -----------------------------------------------------------------------


def cell(gain, change, compatibility=float("nan"), setting="s", first="a", clusters=None):
    """Two seeds whose margins gain and change by these numbers, a pair each."""
    gain, change = np.broadcast_to(gain, (2, 3)), np.broadcast_to(change, (2, 3))
    base = np.array([[0.5, -1.0, 2.0], [0.0, 1.5, -3.0]])
    return Cell(setting, first, "z", base, base + gain, base + gain + change, compatibility, clusters)


class Drawn:
    """Draws that are given, in the place of a generator's."""

    def __init__(self, draws):
        self.draws, self.asked = draws, []

    def standard_t(self, freedom, size):
        self.asked.append((np.asarray(freedom).tolist(), size))
        return np.array(self.draws, dtype=float)

    def integers(self, n, size):
        self.asked.append((n, size))
        return np.array(next(self.draws))


def test_s2_is_spearmans_and_its_interval_is_of_draws_around_each_mean():
    """Ranks of compatibility 1 2 3 4 against those of relative changes 2 1 3 4: 1 - 6 * 2 / 60."""
    changes, compatibilities = (-0.2, -0.6, 0.3, 1.2), (-0.5, 0.0, 0.1, 0.9)
    cells = [cell(2.0, c, k) for c, k in zip(changes, compatibilities, strict=True)]
    claim = sequential.depends_on_relationship([*cells, cell(1.0, -9.0)], Drawn([[0] * 4] * 5), 5)
    assert found(claim) == pytest.approx((0.8, 0.8, 0.8)) and claim.verdict == REPRODUCED


@pytest.mark.parametrize(
    ("turned", "ends"),
    [(2, (1, 1)), (4, (-1, 1)), (97, (-1, 1)), (99, (-1, -1))],
)
def test_s2_leaves_out_two_and_a_half_percent_at_each_end(turned, ends, monkeypatch):
    """Of 101 draws so many have the other order; the error of every mean is 1."""
    monkeypatch.setattr(sequential, "mean_error", lambda relative, clusters: (relative.mean(), 1.0, 5.0))
    cells = [cell(1.0, c, c) for c in (0.1, 0.2, 0.3)]
    draws = [[0.0, -0.5, -1.0]] * turned + [[0.0, 0.0, 0.0]] * (101 - turned)
    claim = sequential.depends_on_relationship(cells, Drawn(draws), 101)
    assert claim.interval == pytest.approx(ends)


def test_s3_is_the_gap_clearest_of_zero_among_settings_with_two_orders(monkeypatch):
    gaps = {
        (0.1, 0.3): Interval(-0.2, -0.5, 0.1),
        (0.2, 0.6): Interval(-0.4, -0.9, -0.3),
        (0.5, 0.4): Interval(1, 0.2, 2),
    }
    asked = []

    def difference(x, y, level, clusters):
        asked.append((level, clusters))
        return gaps[round(x.mean(), 9), round(y.mean(), 9)]

    monkeypatch.setattr(sequential, "difference_interval", difference)
    cells = [
        cell(1.0, both[i], setting=f"s{n}", first="ab"[i], clusters=(n, i))
        for n, both in enumerate(gaps)
        for i in (0, 1)
    ]
    claim = sequential.depends_on_order([*cells, cell(1.0, 9.0, setting="one order")])
    assert found(claim) == (-0.4, -0.9, -0.3) and claim.verdict == REPRODUCED
    assert asked == [(claims.corrected(3), ((n, 0), (n, 1))) for n in range(3)]


CHANGES = [[1.0, 2.0, 6.0], [2.0, 1.0, 9.0]]  # covariance (4 + 3 + 15) / 2, mean 3.5: sqrt(11) / 3.5 is 0.95


@pytest.mark.parametrize(
    ("less", "verdict"), [(0.0, NOT_REPRODUCED), (0.2, REPRODUCED), (11**0.5 + 3.5 + 0.1, NOT_REPRODUCED)]
)
def test_s4_sets_the_shared_spread_against_the_mean_change(less, verdict):
    """The mean is 3.5, then 3.3, below sqrt(11) = 3.32; then -3.4, whose size counts. A draw of all prompts."""
    one = cell(1.0, np.array(CHANGES) - less)
    rng = Drawn(iter([[0, 1, 2], [2, 1, 0]]))
    claim = sequential.aggregates_hide_pairs([one], rng, 2)
    assert (claim.value, claim.verdict) == (float(verdict == REPRODUCED), verdict)
    assert rng.asked == [(3, 3)] * 2


def test_s4_draws_prompts_with_all_of_their_pairs(monkeypatch):
    seen = []
    monkeypatch.setattr(sequential, "shared_spread", lambda change: seen.append(change[0].tolist()) or 1.0)
    one = cell(1.0, CHANGES, clusters=np.array([7, 3, 7]))
    sequential.aggregates_hide_pairs([one], Drawn(iter([[0, 0], [1, 0]])), 2)
    assert [sorted(pairs) for pairs in seen] == [[2, 2], [1, 2, 6], [1, 2, 6]]


def test_s4_leaves_out_two_and_a_half_percent_at_each_end(monkeypatch):
    """Of 101 draws 3 have no spread, and the interval begins above 1 no more; 2 do not matter."""
    for low, verdict in ((2, REPRODUCED), (4, INCONCLUSIVE)):
        spreads = iter([0.0] * low + [20.0] * (102 - low))
        monkeypatch.setattr(sequential, "shared_spread", lambda _, spreads=spreads: next(spreads))
        rng = Drawn(iter([[0, 1, 2]] * 101))
        assert sequential.aggregates_hide_pairs([cell(1.0, CHANGES)], rng, 101).verdict == verdict
    for high, verdict in ((2, NOT_REPRODUCED), (4, INCONCLUSIVE)):
        spreads = iter([20.0] * high + [0.0] * (102 - high))
        monkeypatch.setattr(sequential, "shared_spread", lambda _, spreads=spreads: next(spreads))
        rng = Drawn(iter([[0, 1, 2]] * 101))
        assert sequential.aggregates_hide_pairs([cell(1.0, CHANGES)], rng, 101).verdict == verdict


@pytest.mark.parametrize(
    ("tops", "rose", "verdict"),
    [
        ([(JUST, 1), (-1, -JUST)], 1, REPRODUCED),
        ([(0, 1), (-1, -JUST)], 0, INCONCLUSIVE),
        ([(JUST, 1), (-1, 0)], 1, INCONCLUSIVE),
        ([(JUST, 1), (JUST, 2), (0.2, 3)], 3, NOT_REPRODUCED),
        ([(-2, -JUST), (-1, -0.1)], 0, NOT_REPRODUCED),
        ([(JUST, 1), (JUST, 2), (0, 3)], 2, INCONCLUSIVE),
    ],
)
def test_s5_counts_top_quartiles_that_clearly_move(tops, rose, verdict, monkeypatch):
    asked, left = [], iter(tops)

    def quartiles(change, score, level, clusters):
        asked.append((score.tolist(), level))
        return [NOTHING, NOTHING, NOTHING, Interval(0.0, *next(left))]

    monkeypatch.setattr(sequential, "quartile_changes", quartiles)
    cells = [cell(1.0, 0.1)] * len(tops)
    claim = sequential.high_confidence_pairs(cells)
    assert (claim.value, claim.verdict) == (rose, verdict)
    other_seed = cells[0].stage1[::-1].tolist()
    assert asked == [(other_seed, claims.corrected(len(tops)))] * len(tops)


# --- the rule, at its bounds ----------------------------------------------------------------------

BOUNDS = {  # claim: the intervals that it asks for in order, and its verdict
    dynamics.dpo_stays_positive: [
        ([(JUST, 1)] * 3 + [(-1, 1)] * 3, REPRODUCED),  # at 95 %, and at the corrected level
        ([(JUST, 1), (0, 1), (JUST, 1)] + [(-1, 1)] * 3, INCONCLUSIVE),
        ([(-1, 0.05)] * 3 + [(-1, 1), (-1, 0.15), (-1, 1)], INCONCLUSIVE),
        ([(-1, 0.05)] * 3 + [(-1, 1), (-1, 0.15 - JUST), (-1, 1)], NOT_REPRODUCED),
    ],
    dynamics.ppo_near_zero: [
        ([(-2.0, 0.15 - JUST)], REPRODUCED),
        ([(-2.0, 0.15)], INCONCLUSIVE),
        ([(0.15, 0.5)], INCONCLUSIVE),
        ([(0.15 + JUST, 0.5)], NOT_REPRODUCED),
    ],
    dynamics.roles_cross: [  # early, late, change
        ([(JUST, 1), (-1, -JUST), (-2, -1)], REPRODUCED),
        ([(0, 1), (-1, -JUST), (-2, -1)], INCONCLUSIVE),
        ([(JUST, 1), (-1, 0), (-2, -1)], INCONCLUSIVE),
        ([(0, 1), (-1, 0), (0, 1)], INCONCLUSIVE),
        ([(0, 1), (-1, 0), (JUST, 1)], NOT_REPRODUCED),
        ([(-1, -JUST), (-1, 0), (-1, 0)], NOT_REPRODUCED),
        ([(-1, 0), (-1, 0), (-1, 0)], INCONCLUSIVE),
        ([(0, 1), (JUST, 1), (-1, 0)], NOT_REPRODUCED),
        ([(0, 1), (0, 1), (-1, 0)], INCONCLUSIVE),
    ],
    dynamics.weight_shrinks_and_tertiles_overlap: [  # shrinkage, separation
        ([(0.2, 1 - JUST), (-0.2, 0.2)], REPRODUCED),
        ([(0.2, 1), (-0.2, 0.2)], INCONCLUSIVE),
        ([(0.2, 0.9), (-0.2 - JUST, 0.2)], INCONCLUSIVE),
        ([(0.2, 0.9), (-0.2, 0.2 + JUST)], INCONCLUSIVE),
        ([(1, 2), (0, 0.15)], INCONCLUSIVE),
        ([(1 + JUST, 2), (0, 0.15)], NOT_REPRODUCED),
        ([(0.2, 0.9), (0.2 + JUST, 1)], NOT_REPRODUCED),
        ([(0.2, 2.0), (0.2, 1)], INCONCLUSIVE),
    ],
    dynamics.roles_fixed: [
        ([(JUST, 1)] * 6 + [(-1, 1)] * 6, REPRODUCED),
        ([(JUST, 1)] * 5 + [(0, 1)] + [(-1, 1)] * 6, INCONCLUSIVE),
        ([(-1, -0.05)] * 6 + [(-1, 0)] * 6, INCONCLUSIVE),
        ([(-1, -0.05)] * 6 + [(-1, 0)] * 5 + [(-1, -JUST)], NOT_REPRODUCED),
    ],
    dynamics.tertiles_distinct: [
        ([(0.2 + JUST, 1)], REPRODUCED),
        ([(-1, -0.2 - JUST)], REPRODUCED),
        ([(0.2, 1)], INCONCLUSIVE),
        ([(-1, -0.2)], INCONCLUSIVE),
        ([(-0.2, 0.2)], NOT_REPRODUCED),
        ([(-0.2 - JUST, 0.2)], INCONCLUSIVE),
    ],
    ablations.early_negative_learning_matters: [
        ([(-0.4, -JUST)], REPRODUCED),
        ([(-0.4, 0)], INCONCLUSIVE),
        ([(-0.025, -JUST)], REPRODUCED),
        ([(-0.025 + JUST, -JUST)], SMALLER),
        ([(-0.025, 0.4)], INCONCLUSIVE),
        ([(-0.025 + JUST, 0.4)], NOT_REPRODUCED),
    ],
    ablations.weight_regularises: [
        ([(JUST, 0.4)], REPRODUCED),
        ([(0, 0.4)], INCONCLUSIVE),
        ([(-0.4, 0.05)], INCONCLUSIVE),
        ([(-0.4, 0.05 - JUST)], NOT_REPRODUCED),
    ],
    ablations.negative_g_can_help: [
        ([(-0.4, -JUST), (0, 1)], REPRODUCED),
        ([(-0.4, 0), (0, 1)], INCONCLUSIVE),
        ([(-0.025, 0.4), (0, 1)], INCONCLUSIVE),
        ([(-0.025 + JUST, 0.4), (0, 1)], NOT_REPRODUCED),
    ],
    coordination.coordinated_dpo_wins: [
        ([(JUST, 1), (-1, -0.5)], REPRODUCED),
        ([(0, 1), (-1, -0.5)], INCONCLUSIVE),
        ([(-1, 0.025), (-1, -0.5)], INCONCLUSIVE),
        ([(-1, 0.025 - JUST), (-1, -0.5)], NOT_REPRODUCED),
    ],
    coordination.controlled_ppo_is_close: [
        ([(-0.025, 0.025), (0, 0)], REPRODUCED),
        ([(-0.025 - JUST, 0.025), (0, 0)], INCONCLUSIVE),
        ([(0.025, 1), (0, 0)], INCONCLUSIVE),
        ([(0.025 + JUST, 1), (0, 0)], NOT_REPRODUCED),
        ([(0, 0), (-1, -0.025 - JUST)], NOT_REPRODUCED),
        ([(0, 0), (-1, -0.025)], INCONCLUSIVE),
    ],
    coordination.control_pays: [
        ([(JUST, 1), (-1, -0.5)], REPRODUCED),
        ([(-1, 0.025 - JUST), (-1, -0.5)], NOT_REPRODUCED),
    ],
    sequential.depends_on_order: [
        ([(JUST, 1), (-0.05, 0.05)], REPRODUCED),
        ([(-1, -JUST), (-0.05, 0.05)], REPRODUCED),
        ([(-0.1, 0.1), (0, 0.05)], NOT_REPRODUCED),
        ([(-0.1 - JUST, 0.1), (0, 0.05)], INCONCLUSIVE),
        ([(-0.1, 0.1 + JUST), (0, 0.05)], INCONCLUSIVE),
    ],
}
ROWS = [ablation(LESS), ablation(WhileSign(part="positive"))]
GIVEN = {
    **dict.fromkeys(
        [
            *(dynamics.dpo_stays_positive, dynamics.ppo_near_zero, dynamics.roles_cross, dynamics.roles_fixed),
            *(dynamics.weight_shrinks_and_tertiles_overlap, dynamics.tertiles_distinct),
        ],
        (curves(),),
    ),
    ablations.early_negative_learning_matters: (ROWS[0],),
    ablations.weight_regularises: (ROWS[0],),
    ablations.negative_g_can_help: (ROWS,),
    coordination.coordinated_dpo_wins: ([contest("cDPO")] * 2,),
    coordination.controlled_ppo_is_close: ([contest("cPPO")] * 2,),
    coordination.control_pays: ([contest("cPPO")] * 2,),
    sequential.depends_on_order: ([cell(1.0, 0.1, setting=s, first=f) for s in "xy" for f in "ab"],),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # curves of NaN
@pytest.mark.parametrize(
    ("rule", "intervals", "verdict"),
    [
        pytest.param(rule, *case, id=f"{rule.__name__}-{i}")
        for rule, cases in BOUNDS.items()
        for i, case in enumerate(cases)
    ],
)
def test_a_verdict_turns_where_its_rule_says(rule, intervals, verdict, monkeypatch):
    left = iter(intervals)
    for module in (ablations, coordination, dynamics, sequential):
        for name in ("seed_interval", "win_change", "mean_interval", "difference_interval"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_: Interval(0.0, *next(left)))
    assert rule(*GIVEN[rule]).verdict == verdict
    assert next(left, None) is None


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [((JUST, 1), REPRODUCED), ((0, 0.2 - JUST), NOT_REPRODUCED), ((0, 0.2), INCONCLUSIVE), ((JUST, 0.1), SMALLER)],
)
def test_s2_turns_where_its_rule_says(ends, verdict, monkeypatch):
    monkeypatch.setattr(sequential.np, "quantile", lambda *_: ends)
    cells = [cell(1.0, c, c) for c in (0.1, 0.2, 0.3)]
    assert sequential.depends_on_relationship(cells, Drawn([[0] * 3]), 1).verdict == verdict


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [  # how many have a spread wider than the mean, narrower, and neither
        ((1, 1, 0), REPRODUCED),
        ((1, 0, 1), REPRODUCED),
        ((1, 2, 0), NOT_REPRODUCED),
        ((0, 1, 1), INCONCLUSIVE),
        ((0, 2, 1), NOT_REPRODUCED),
    ],
)
def test_s4_turns_at_one_half(cells, verdict, monkeypatch):
    ends = [(1 + JUST, 2)] * cells[0] + [(0.5, 1 - JUST)] * cells[1] + [(1, 1)] * cells[2]
    left = iter(ends)
    monkeypatch.setattr(sequential, "Interval", lambda *_: Interval(0.0, *next(left)))
    rng = Drawn(iter([[0, 1, 2]] * len(ends)))
    claim = sequential.aggregates_hide_pairs([cell(1.0, CHANGES)] * len(ends), rng, 1)
    assert (claim.value, claim.verdict) == (pytest.approx(cells[0] / sum(cells)), verdict)


def test_s6_is_of_the_setting_and_order_that_it_names():
    relative = Interval(-0.3, -0.4, -0.1)
    cells = [cell(1.0, 0.1, setting="safety", first="better"), cell(1.0, 0.1, setting="other", first="safer")]
    named = cell(1.0, 0.1, setting="safety", first="safer")
    outcomes = {c.name: Outcome("degraded", NOTHING, NOTHING, NOTHING, NOTHING) for c in cells}
    outcomes[named.name] = Outcome("stable", NOTHING, NOTHING, relative, NOTHING)
    claim = sequential.strong_signal_kept([*cells, named], outcomes)
    assert found(claim) == (-0.3, -0.4, -0.1) and claim.verdict == REPRODUCED
    without = sequential.strong_signal_kept(cells, outcomes)
    assert np.isnan(found(without)).all() and without.verdict == INCONCLUSIVE


# --- the table ------------------------------------------------------------------------------------


def test_a_claim_is_a_row_of_the_table_with_its_rule_number_and_verdict():
    nan = float("nan")
    rows = [
        Claim("S1", "It varies.", "2 or more.", 3, None, REPRODUCED),
        Claim("D7", "It falls.", "Below 0.", -0.12345, (-0.25049, 0.0037), INCONCLUSIVE),
        Claim("D8", "One seed.", "Above 0.", 0.5, (nan, nan), INCONCLUSIVE),
        Claim("D9", "Nothing.", "None.", nan, (nan, nan), INCONCLUSIVE),
    ]
    table = claims.table(rows)
    assert table.index.tolist() == ["S1", "D7", "D8", "D9"]
    assert table.columns.tolist() == ["claim", "rule", "measured", "verdict"]
    assert table["measured"].tolist() == ["3", "-0.123 [-0.25, 0.0037]", "0.5", "—"]
    assert table.loc["D7"].tolist() == ["It falls.", "Below 0.", "-0.123 [-0.25, 0.0037]", INCONCLUSIVE]
    assert claims.measured(None, None) == "—" and claims.measured(1.0, (0.5, None)) == "1"


def test_the_bounds_that_rules_print_are_those_that_decide():
    """A text that names another number than the rule would mislead: every bound stands in its statistic."""
    assert (claims.EFFECT, claims.FEWEST) == (0.025, 50)
    assert (dynamics.SMALL, dynamics.APART) == (0.15, 0.2)
    d = {c.id: c.statistic for c in dynamics.dynamics_claims(curves(), curves())}
    assert all("0.15" in d[name] for name in ("D1", "D2")) and "±0.2" in d["D4"] and "±0.2" in d["D6"]
    d = {c.id: c.statistic for c in ablations.ablation_claims([])}
    assert all("0.025" in d[name] for name in ("D7", "D9")) and "10%" in d["D9"]
    assert (ablations.GAP, ablations.FADED) == (0.05, 0.5) and "0.05" in d["D8"] and "50%" in d["D8"]
    d = {c.id: c.statistic for c in coordination.coordination_claims({})}
    assert all("0.025" in d[name] for name in ("D10", "D11", "D12"))


def test_nothing_is_no_number():
    assert np.isnan([claims.nothing().value, claims.nothing().low, claims.nothing().high]).all()
    assert [c.verdict for c in coordination.coordination_claims({})] == [INCONCLUSIVE] * 3
