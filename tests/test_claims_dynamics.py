"""Claims D1-D6: for each, curves that must be reproduced, not reproduced and inconclusive."""

from dataclasses import replace

import numpy as np
import pytest

from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, share_of_verdict
from preflab.claims.dynamics import (
    Curves,
    Truth,
    dpo_stays_positive,
    dynamics_claims,
    ppo_near_zero,
    roles_cross,
    roles_fixed,
    simulated,
    tertiles_distinct,
    weight_shrinks_and_tertiles_overlap,
)

SEEDS, STEPS = 5, 12
TIME = np.linspace(0, 1, STEPS)


@pytest.fixture
def curves(rng):
    """curves(positive, negative, top, ...): shapes over time, each seed with its own noise."""

    def make(positive=1.0, negative=1.0, bottom=0.5, middle=0.5, top=0.5, weight=(1.0, 0.5), noise=0.01, seeds=SEEDS):
        def several(shape):
            return np.broadcast_to(shape, (seeds, STEPS)) + noise * rng.normal(size=(seeds, STEPS))

        up, down = several(positive), several(negative)
        means = np.broadcast_to(weight, (seeds, 2)) * (1 + noise * rng.normal(size=(seeds, 2)))
        return Curves(up + down, up, down, several(bottom), several(middle), several(top), means)

    return make


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"positive": 2.0, "negative": -1.0}, REPRODUCED),
        ({"positive": 1.0, "negative": -2.0}, NOT_REPRODUCED),
        ({"positive": 1.0, "negative": np.where(TIME < 0.5, 1.0, -2.0)}, NOT_REPRODUCED),  # half of the time
        ({"positive": 1.0, "negative": -1.0, "noise": 3.0, "seeds": 2}, INCONCLUSIVE),
        ({"positive": 2.0, "negative": -1.0, "seeds": 1}, INCONCLUSIVE),  # one seed cannot tell
    ],
)
def test_d1_stays_positive(shapes, expected, curves):
    assert dpo_stays_positive(curves(**shapes)).verdict == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"positive": 1.0, "negative": -1.0}, REPRODUCED),
        ({"positive": 1.0, "negative": -1.5}, REPRODUCED),  # slightly negative is what the paper says, too
        ({"positive": 1.0, "negative": -0.5}, NOT_REPRODUCED),
        ({"positive": 1.0, "negative": -0.8, "noise": 1.0}, INCONCLUSIVE),
    ],
)
def test_d2_near_zero(shapes, expected, curves):
    claim = ppo_near_zero(curves(**shapes))
    assert claim.verdict == expected
    if shapes.get("noise", 0) < 0.1:
        up, down = shapes["positive"], shapes["negative"]
        assert claim.value == pytest.approx((up + down) / (abs(up) + abs(down)), abs=0.02)


@pytest.mark.parametrize(
    ("positive", "negative", "noise", "expected"),
    [
        (1 - 2 * TIME, 2 * TIME - 1, 0.01, REPRODUCED),
        (2 * TIME - 1, 1 - 2 * TIME, 0.01, NOT_REPRODUCED),  # the other way round
        (1.0, -1.0, 0.01, NOT_REPRODUCED),  # no crossing: positive stays on top
        (1 - 2 * TIME, 2 * TIME - 1, 6.0, INCONCLUSIVE),
    ],
)
def test_d3_roles_cross(positive, negative, noise, expected, curves):
    assert roles_cross(curves(positive, negative, noise=noise)).verdict == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"weight": (1.0, 0.5)}, REPRODUCED),
        ({"weight": (1.0, 1.5)}, NOT_REPRODUCED),  # w grows
        ({"top": 2.0, "bottom": 0.1}, NOT_REPRODUCED),  # tertiles act apart
        ({"noise": 2.0}, INCONCLUSIVE),
    ],
)
def test_d4_weight_and_tertiles(shapes, expected, curves):
    assert weight_shrinks_and_tertiles_overlap(curves(**shapes)).verdict == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"positive": 1.0, "negative": -1.0}, REPRODUCED),
        ({"positive": 1.0, "negative": 1.0}, NOT_REPRODUCED),
        ({"positive": -1.0, "negative": -1.0}, NOT_REPRODUCED),
        ({"positive": 1.0, "negative": -1.0, "noise": 1.2, "seeds": 2}, INCONCLUSIVE),
    ],
)
def test_d5_roles_fixed(shapes, expected, curves):
    assert roles_fixed(curves(**shapes)).verdict == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"top": 2.0, "bottom": 0.1}, REPRODUCED),
        ({"top": -2.0, "bottom": 0.1}, REPRODUCED),
        ({}, NOT_REPRODUCED),
        ({"top": 0.8, "bottom": 0.4, "noise": 1.0}, INCONCLUSIVE),
    ],
)
def test_d6_tertiles_distinct(shapes, expected, curves):
    assert tertiles_distinct(curves(**shapes)).verdict == expected


def test_separation_and_balance_by_hand(curves):
    found = curves(positive=3.0, negative=-1.0, bottom=1.0, middle=-1.0, top=2.0, noise=0.0)
    assert found.separation == pytest.approx(np.full(SEEDS, 1 / 4))
    assert found.share("whole") == pytest.approx(np.full(SEEDS, 2 / 4))
    assert found.dominance(0) == pytest.approx(np.full(SEEDS, 1.0))


def test_steps_without_tertiles_do_not_count(curves):
    """At the first step all weights of DPO are equal: there are no thirds, and their G is NaN."""
    whole = curves(bottom=1.0, middle=-1.0, top=np.linspace(2.0, 3.0, STEPS), noise=0.0)
    parts = {part: getattr(whole, part).copy() for part in ("bottom", "middle", "top")}
    for values in parts.values():
        values[:, 0] = np.nan
    without = replace(whole, **parts)
    rest = replace(whole, **{part: values[:, 1:] for part, values in parts.items()})
    assert without.separation == pytest.approx(rest.separation) and np.isfinite(without.separation).all()
    assert (without.separation != whole.separation).all()
    claim = weight_shrinks_and_tertiles_overlap(without)
    assert np.isfinite([claim.value, *claim.interval]).all()


def test_all_six_in_order(curves):
    found = dynamics_claims(curves(), curves())
    assert [claim.id for claim in found] == ["D1", "D2", "D3", "D4", "D5", "D6"]
    assert all(claim.interval[0] <= claim.value <= claim.interval[1] for claim in found)


# --- shares, nulls and power -----------------------------------------------------------------------


def test_shares_of_thirds_by_hand():
    positive, negative = np.array([[3.0, 1.0, 2.0, -1.0, 0.5, 0.5]]), np.array([[-1.0, -1.0, 1.0, 2.0, -1.5, -0.5]])
    nothing = np.ones_like(positive)
    curves = Curves(positive + negative, positive, negative, nothing, nothing, nothing, nothing[:, :2])
    assert curves.share("whole", 0) == pytest.approx([2 / 6])
    assert curves.share("whole", 1) == pytest.approx([4 / 6])
    assert curves.share("whole", 2) == pytest.approx([-1 / 3])
    assert curves.share("whole") == pytest.approx([5 / 15])
    assert curves.share("positive", 1) == pytest.approx([1 / 6]) and curves.share("negative", 1) == pytest.approx(
        [3 / 6]
    )
    assert curves.dominance(0) == pytest.approx([(4 - -2) / 6])


def spread(runs, measurement):
    """All standard deviations over runs alike, and all of a measurement."""
    over_runs = dict.fromkeys(("whole", "dominance", "dominance_third", "tertile"), runs)
    return over_runs | {"measurement": measurement, "tertile_measurement": measurement, "weight": 0.02}


def power(rule, truth, verdict, spread, seeds, runs):
    """The share of simulated experiments in which the rule gives the verdict."""
    return share_of_verdict(lambda rng: rule(simulated(truth, spread, seeds, rng)), verdict, runs)


NOTHING = Truth((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), top=1.0, bottom=1.0, shrinkage=1.0)


@pytest.mark.parametrize("seeds", [5, 8])
@pytest.mark.parametrize("within", [0.05, 0.5])
def test_where_there_is_nothing_no_rule_reproduces_a_pattern(within, seeds):
    """Nulls: labels that say nothing give parts around zero, and shuffled weights give tertiles that are alike."""
    for rule in (dpo_stays_positive, roles_cross, roles_fixed, tertiles_distinct):
        found = power(rule, NOTHING, REPRODUCED, spread(0.1, within), seeds, runs=200)
        assert found <= 0.05, rule.__name__


def test_where_a_pattern_is_there_its_opposite_is_not_found():
    far = {"spread": spread(0.1, 0.2), "seeds": 5, "runs": 200}
    crossing = Truth((0.6, 0.2, -0.2), (-0.1, 0.3, 0.5))
    assert power(roles_cross, crossing, REPRODUCED, **far) > 0.9
    assert power(roles_cross, crossing, NOT_REPRODUCED, **far) == 0
    fixed = Truth((0.5, 0.5, 0.5), (-0.5, -0.5, -0.5))
    assert power(roles_fixed, fixed, REPRODUCED, **far) > 0.9
    assert power(ppo_near_zero, fixed, NOT_REPRODUCED, **far) <= 0.05
    assert power(dpo_stays_positive, fixed, REPRODUCED, **far) <= 0.05


def test_power_grows_with_seeds_and_falls_with_spread():
    half = Truth((0.3, 0.3, 0.3), (0.05, 0.05, 0.05))
    few, many, wide = (
        power(dpo_stays_positive, half, REPRODUCED, spread(over_runs, 0.2), seeds, runs=250)
        for over_runs, seeds in ((0.3, 3), (0.3, 8), (0.9, 8))
    )
    assert few < many and wide < many


def test_simulated_runs_vary_as_they_are_told_to():
    """Of 4000 runs: G and dominance by thirds, and the part of dominance that all thirds of a run share."""
    how = {"whole": 0.1, "dominance": 0.4, "dominance_third": 0.2, "measurement": 0.0, "weight": 0.1}
    rng = np.random.default_rng(1)
    found = simulated(Truth((3.0,) * 3, (1.0,) * 3), how | {"tertile": 0.3, "tertile_measurement": 0.0}, 4000, rng)
    assert found.whole[:, 0].std() == pytest.approx(0.1, rel=0.05) and found.whole.mean() == pytest.approx(4, abs=0.01)
    apart = found.positive - found.negative
    assert apart[:, 0].std() == pytest.approx(np.hypot(0.4, 0.2), rel=0.05)
    assert (apart[:, 0] - apart[:, -1]).std() == pytest.approx(np.sqrt(2) * 0.2, rel=0.05)
    assert (
        found.top[:, 0].std() == pytest.approx(0.3, rel=0.05) and (found.positive[:, 0] == found.positive[:, 1]).all()
    )
