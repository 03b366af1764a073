"""Intervals: against scipy, and that they cover what they say."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_ind

from preflab.likelihood import PairLogProbs
from preflab.margins import (
    quartile_changes,
)
from preflab.statistics import (
    Interval,
    by_cluster,
    difference_interval,
    jackknife_interval,
    mean_error,
    mean_interval,
    ratio,
    seed_interval,
)


def quartile_means(change, score):
    return [interval.value for interval in quartile_changes(change, score)]


def log_probs(chosen, rejected, chosen_tokens=(4, 2), rejected_tokens=(5, 1)):
    sides = (chosen, rejected, chosen_tokens, rejected_tokens)
    return PairLogProbs(*(torch.tensor(side, dtype=torch.float64) for side in sides))


def test_interval():
    interval = Interval(0.05, -0.1, 0.2)
    assert interval.within(0.2) and not interval.within(0.19) and not Interval(0, -0.3, 0.1).within(0.2)
    assert str(interval) == "+0.050 [-0.100, +0.200]"


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize(
    "sizes", [(5, 60, 0.3, 0.0, 0.1), (5, 60, 0.1, 1.0, 0.5), (2, 60, 0.3, 0.0, 0.1), (1, 60, 0, 1, 0)]
)
def test_the_interval_of_a_mean_covers_also_with_few_seeds(sizes, level, rng):
    seeds, prompts, of_seeds, of_prompts, rest = sizes
    hits = []
    for _ in range(600):
        x = 0.7 + of_seeds * rng.normal(size=(seeds, 1)) + of_prompts * rng.normal(size=(1, prompts))
        interval = mean_interval(x + rest * rng.normal(size=x.shape), level)
        hits.append(interval.low <= 0.7 <= interval.high)
    assert level - 0.03 <= np.mean(hits) <= min(level + 0.03, 1)


def test_the_interval_of_a_mean_where_one_axis_is_all(rng):
    """Seeds that agree leave the t interval over prompts, prompts that agree that over seeds."""
    one = rng.normal(size=(1, 30))
    x = np.repeat(one, 4, axis=0)
    low, high = student.interval(0.9, 29, x[0].mean(), x[0].std(ddof=1) / np.sqrt(30))
    for data in (x, one):
        interval = mean_interval(data, 0.9)
        assert (interval.value, interval.low, interval.high) == pytest.approx((x.mean(), low, high))
    values = rng.normal(size=5)
    expected, found = seed_interval(values), mean_interval(np.repeat(values[:, None], 30, axis=1))
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_the_interval_of_a_mean_that_nothing_moves():
    assert mean_interval(np.full((3, 4), 0.25)) == Interval(0.25, 0.25, 0.25)
    assert mean_interval(np.array([[0.0, 1.0], [1.0, 0.0]]), bounds=(0, 1)) == Interval(0.5, 0, 1)


def test_a_ratio_of_means_and_its_error(rng):
    """Against many worlds: the mean of what stands for the ratio is the ratio, its error that of the ratio."""

    def world():
        below = 2 + 0.1 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 200)) + 0.3 * rng.normal(size=(4, 200))
        return -0.5 * below + 0.2 * rng.normal(size=(1, 200)) + 0.3 * rng.normal(size=(4, 200)), below

    found = [mean_error(ratio(*world())) for _ in range(300)]
    ratios = [above.mean() / below.mean() for above, below in (world() for _ in range(300))]
    assert np.mean([mean for mean, _, _ in found]) == pytest.approx(-0.5, abs=0.005)
    assert np.mean([error for _, error, _ in found]) == pytest.approx(np.std(ratios), rel=0.15)
    above, below = world()
    assert ratio(above, below).mean() == pytest.approx(above.mean() / below.mean())


def test_a_ratio_with_a_mask_is_a_mean_within_it(rng):
    values, inside = rng.normal(size=(1, 400)), rng.random((1, 400)) < 0.3
    found = mean_interval(ratio(values * inside, inside))
    expected = mean_interval(values[inside][None])
    assert found.value == pytest.approx(expected.value)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.02)


def test_the_difference_of_two_means_is_welchs(rng):
    x, y = rng.normal(size=(1, 12)), 1 + 3 * rng.normal(size=(1, 30))
    expected = ttest_ind(x[0], y[0], equal_var=False).confidence_interval(0.9)
    found = difference_interval(x, y, 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((x.mean() - y.mean(), expected.low, expected.high))
    same = np.ones((2, 5))
    assert difference_interval(3 * same, same) == Interval(2, 2, 2)


LEFT_RIGHT = np.tile([1.0, -1.0], 100)


def test_seed_interval_is_students():
    values = np.array([1.0, 2.0, 4.0])
    expected = ttest_1samp(values, 0).confidence_interval(0.9)
    found = seed_interval(values, level=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, expected.low, expected.high))
    two = seed_interval(np.array([1.0, 3.0]))  # Student's quantile with one degree of freedom is 12.706
    assert (two.low, two.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert np.isnan(seed_interval(np.array([])).value)
    one = seed_interval(np.array([3.0]))
    assert one.value == 3 and np.isnan(one.low) and np.isnan(one.high)


def test_the_jackknife_of_the_mean_of_ten_is_students_interval(rng):
    x = rng.normal(size=10)
    without = np.array([np.delete(x, i).mean() for i in range(10)])
    found, expected = jackknife_interval(x.mean(), without), seed_interval(x)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_cluster_is_the_sum_of_its_pairs_scaled():
    x = np.array([[1.0, 2.0, 4.0, 5.0], [0.0, 1.0, 1.0, 2.0]])
    clusters = np.array([7, 3, 7, 7])
    by_hand = np.array([[2.0, 10.0], [1.0, 3.0]]) * 2 / 4  # clusters 3 and 7
    assert by_cluster(x, clusters).tolist() == by_hand.tolist()
    assert by_cluster(x, clusters).mean() == x.mean()
    assert mean_interval(x, clusters=clusters) == mean_interval(by_hand)
    y = x[:, ::-1]
    assert difference_interval(x, y, 0.9, (clusters, clusters)) == difference_interval(
        by_hand, by_cluster(y, clusters), 0.9
    )


def test_clusters_of_one_pair_each_change_nothing(rng):
    x = rng.normal(size=(3, 20))
    one, other = mean_interval(x), mean_interval(x, clusters=rng.permutation(20))
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_intervals_over_pairs_of_few_prompts_cover_only_with_clusters(rng):
    """40 prompts with 10 pairs each that share an effect: the plain interval is far too narrow."""
    clusters, hits = np.repeat(np.arange(40), 10), {"plain": 0, "clustered": 0}
    for _ in range(400):
        x = (rng.normal(size=40)[clusters] + 0.5 * rng.normal(size=400))[None]
        for how, found in (("plain", mean_interval(x)), ("clustered", mean_interval(x, clusters=clusters))):
            hits[how] += found.low <= 0 <= found.high
    assert hits["clustered"] / 400 == pytest.approx(0.95, abs=0.03) and hits["plain"] / 400 < 0.6
