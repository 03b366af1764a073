"""Stable or fluctuating: closed forms, a null that is one, and an interval of a share that covers what it says."""

import numpy as np
import pytest

from preflab.errors import BadInput
from preflab.fluctuation import (
    deviation,
    fluctuations,
    noise_of,
    null_curves,
    roughness,
    share_interval,
    sign_changes,
)

ONE = np.ones(6)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([3, 4, 5, 3, 9, 3], 0.0),
        ([3, -3, 3, -3, 3, -3], 1.0),
        ([3, 3, 3, -3, -3, -3], 0.2),
        ([3, 1, -1, 1, -1.9, 3], 0.0),  # what lies within two standard errors of zero has no sign
        ([3, 1, -1, 1, -1.9, -3], 0.2),
        ([1, 1, -1, 1, 1, 3], 0.0),
    ],
)
def test_sign_changes_count_points_beyond_noise(x, expected):
    assert sign_changes(np.array(x, dtype=float), ONE) == pytest.approx(expected)


def test_statistics_of_several_curves_are_those_of_each(rng):
    x, noise = 3 * rng.normal(size=(4, 6)), rng.uniform(0.5, 1, 6)
    for statistic in (sign_changes, deviation, roughness):
        assert statistic(x, noise) == pytest.approx([statistic(row, noise) for row in x])


def test_closed_forms():
    x = np.array([1.0, 3.0, 1.0, 3.0, 1.0, 3.0])
    assert deviation(x, 2 * ONE) == pytest.approx(np.sqrt(6 / 5) / 2)
    assert roughness(x, 2 * ONE) == pytest.approx(np.sqrt(5 * 4 / (5 * 8)))
    assert noise_of(np.array([[1.0, 3.0], [0.0, 0.0]])) == pytest.approx([1.0, 0.0])


def test_independent_noise_has_deviation_and_roughness_one(rng):
    noise = rng.uniform(0.5, 2, 4000)
    x = 7 + noise * rng.normal(size=4000)
    assert deviation(x, noise) == pytest.approx(1, abs=0.05)
    assert roughness(x, noise) == pytest.approx(1, abs=0.05)


def test_a_trend_deviates_and_is_not_rough():
    x = np.linspace(0, 100, 200)
    assert deviation(x, np.ones(200)) > 20 and roughness(x, np.ones(200)) < 0.5


def test_the_null_has_the_measured_covariance(rng):
    units = rng.normal(size=(5, 1)) + rng.normal(size=(5, 5)) @ rng.normal(size=(5, 40))
    null = null_curves(units, rng, 40_000)
    assert null.mean(0) == pytest.approx(np.full(5, units.mean()), abs=0.05)
    expected = np.cov(units) / 40
    assert np.cov(null.T) == pytest.approx(expected, abs=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("shared", [0.0, 2.0])
@pytest.mark.parametrize("level", [0.0, 4.0])
def test_pure_noise_is_called_fluctuating_as_often_as_it_should(shared, level, rng):
    """p is below 0.05 in about 5 % of constant curves: near zero and far from it, with errors that go together too."""
    found = {"sign changes": [], "deviation": [], "roughness": []}
    for _ in range(200):
        units = level + rng.normal(size=(12, 60)) + shared * rng.normal(size=60)
        for name, result in fluctuations(units, rng, 99).items():
            found[name].append(result.p)
    for name, p in found.items():
        assert np.mean(np.array(p) < 0.05) <= 0.1, name
    for name in ("deviation", "roughness"):
        assert np.mean(np.array(found[name]) < 0.05) >= 0.02, name


def test_what_fluctuates_is_found(rng):
    units = np.tile([2.0, -2.0], 6)[:, None] + rng.normal(size=(12, 60))
    found = fluctuations(units, rng, 500)
    assert all(result.p < 0.01 for result in found.values())
    assert found["sign changes"].value == 1


def test_the_interval_of_a_share_covers_and_stays_within(rng):
    for concentration, seeds in ((1e6, 5), (8.0, 5), (3.0, 8)):
        for share in (0.5, 0.85):
            inside = []
            for _ in range(200):
                p = rng.beta(share * concentration, (1 - share) * concentration, size=(seeds, 1))
                found = share_interval(rng.random((seeds, 9)) < p)
                assert 0 <= found.low <= found.value <= found.high <= 1
                inside.append(found.low <= share <= found.high)
            assert np.mean(inside) >= 0.92, (concentration, seeds, share)


def test_the_interval_of_a_share_is_wilsons_for_independent_trials():
    hits = np.tile([1, 1, 1, 0], (300, 1))  # seeds that agree: no more than binomial
    found, n, z = share_interval(hits), 1200, 1.968
    centre, half = (0.75 + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * np.sqrt(0.1875 / n + z**2 / 4 / n**2)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, centre - half, centre + half), abs=1e-4)


def test_the_interval_of_a_share_has_students_quantile_of_the_seeds():
    """Three seeds that agree on one half: z is 4.3027, Student's of two degrees of freedom, and n is 12."""
    found, z2 = share_interval(np.tile([1, 0, 1, 0], (3, 1))), 4.3027**2
    half = np.sqrt(z2 * (0.25 / 12 + z2 / 4 / 144)) / (1 + z2 / 12)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_one_seed_has_no_interval_and_seeds_that_agree_have_one_of_some_width():
    assert np.isnan(share_interval(np.ones((1, 9))).low)
    sure = share_interval(np.ones((5, 9)))
    assert sure.high == 1 and 0.5 < sure.low < 1


@pytest.mark.parametrize("shape", [(5,), (5, 1), (1, 5)])
def test_too_few_units_or_moments(shape):
    with pytest.raises(BadInput, match="expected \\(moments, units\\)"):
        noise_of(np.zeros(shape))
