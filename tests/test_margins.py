"""Margins and tables by hand, regression to the mean, the verdict."""

import numpy as np
import pytest
import torch

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs
from preflab.margins import (
    CHURN,
    TOLERANCE,
    TRANSITIONS,
    accuracy,
    dpo_margin,
    independent_score,
    outcome,
    policy_margin,
    quartile_changes,
    shared_spread,
    transitions,
)


def quartile_means(change, score):
    return [interval.value for interval in quartile_changes(change, score)]


def log_probs(chosen, rejected, chosen_tokens=(4, 2), rejected_tokens=(5, 1)):
    sides = (chosen, rejected, chosen_tokens, rejected_tokens)
    return PairLogProbs(*(torch.tensor(side, dtype=torch.float64) for side in sides))


def test_margins_by_hand():
    policy, base = log_probs([-8.0, -3.0], [-15.0, -2.0]), log_probs([-9.0, -1.0], [-12.0, -4.0])
    assert dpo_margin(policy, base, 0.5).tolist() == [0.5 * (1 + 3), 0.5 * (-2 - 2)]
    assert dpo_margin(base, base, 0.5).tolist() == [0, 0]
    assert policy_margin(policy).tolist() == [-8 / 4 + 15 / 5, -3 / 2 + 2 / 1]


def test_accuracy_counts_what_is_above_zero():
    margins = np.array([[1.0, 0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
    assert accuracy(margins).tolist() == [0.5, 0.25]
    assert accuracy(np.array([margins, 1 - margins, margins])).tolist() == [[0.5, 0.25], [0.5, 0.75], [0.5, 0.25]]


def test_transitions_by_hand():
    before = np.array([[1.0, 1.0, 1.0, -1.0, -1.0], [1.0, 0.0, -2.0, -1.0, 3.0]])
    after = np.array([[2.0, -1.0, 0.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0, -3.0]])
    table = transitions(before, after)
    assert table == pytest.approx({"kept": 0.2, "lost": 0.3, "gained": 0.2, "never": 0.3})
    assert tuple(table) == TRANSITIONS and sum(table.values()) == pytest.approx(1)
    assert table["kept"] + table["lost"] == accuracy(before).mean()
    assert table["kept"] + table["gained"] == accuracy(after).mean()


@pytest.mark.parametrize("n", [4, 5, 6, 7, 100, 101])
def test_quartile_means_are_of_equal_parts_in_order(n, rng):
    """Against the ranks, written out: rank r of n is in quartile 4 r // n."""
    change, score = rng.normal(size=(3, n)), rng.normal(size=(3, n)).round(1)  # with ties
    expected = np.zeros(4)
    for values, scores in zip(change, score, strict=True):
        parts = [[], [], [], []]
        for rank, i in enumerate(sorted(range(n), key=lambda i, s=scores: (s[i], i))):
            parts[4 * rank // n].append(values[i])
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        expected += [np.mean(part) / 3 for part in parts]
    assert quartile_means(change, score) == pytest.approx(expected)


def test_quartile_means_by_hand():
    change = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    score = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    assert quartile_means(change, score) == pytest.approx([20.5, 16, 11.5, 7])


def test_independent_score_by_hand():
    score = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    assert independent_score(score).tolist() == [[4, 40], [3.5, 35], [1.5, 15]]
    with pytest.raises(BadInput, match=r"^seeds: an independent score needs at least two, got 1$"):
        independent_score(score[:1])


def test_noise_alone_shows_a_slope_on_the_own_score_and_none_on_the_independent(rng):
    worth = rng.normal(size=2000)
    stage1, stage2 = worth + rng.normal(size=(2, 5, 2000))  # Stage 2 changes nothing but the noise
    own = quartile_means(stage2 - stage1, stage1)
    independent = quartile_means(stage2 - stage1, independent_score(stage1))
    assert own[3] - own[0] < -1 and own == sorted(own, reverse=True)
    assert np.abs(independent).max() < 0.12  # 4 standard errors of a quartile's mean


def test_shared_spread_is_what_seeds_share(rng):
    planted, noise = rng.normal(scale=0.5, size=4000), rng.normal(scale=2.0, size=(6, 4000))
    assert shared_spread(3 + planted + noise) == pytest.approx(0.5, abs=0.08)
    assert shared_spread(3 + noise) < 0.25 and np.std(3 + noise) > 1.9
    assert np.isnan(shared_spread(noise[:1]))
    assert shared_spread(np.array([[0.0, 1, 5], [1.0, 2, 3]])) == pytest.approx(np.sqrt(5 / 2))  # by hand, two seeds


LEFT_RIGHT = np.tile([1.0, -1.0], 100)


@pytest.mark.parametrize(
    ("gain", "change", "spread", "verdict"),
    [
        (1.0, -0.5, 0.0, "degraded"),
        (1.0, -0.5 * TOLERANCE, 0.0, "stable"),  # within the tolerance
        (1.0, -TOLERANCE, 0.0, "inconclusive"),  # the interval crosses -d
        (1.0, TOLERANCE, 0.0, "inconclusive"),
        (1.0, 0.5, 0.0, "transferred"),
        (1.0, 0.0, 0.0, "stable"),
        (1.0, 0.0, 1.0, "redistributed"),  # the mean stays, every second pair changes sides
        (1.0, -0.5, 1.0, "degraded"),  # a change of the mean comes first
        (0.0, -0.5, 0.0, "not learned"),
        (-1.0, 0.5, 0.0, "not learned"),
    ],
)
def test_every_branch_of_the_verdict(gain, change, spread, verdict, rng):
    noise = rng.normal(scale=0.05, size=(3, 4, 200))
    base = -gain + 0.2 * spread * LEFT_RIGHT + noise[0]
    stage1 = base + gain + noise[1]
    stage2 = stage1 + change - 0.4 * spread * LEFT_RIGHT + noise[2]
    if spread == 0:
        base, stage1, stage2 = base + 2, stage1 + 2, stage2 + 2  # far from 0: nobody changes sides
    result = outcome(base, stage1, stage2)
    assert result.verdict == verdict
    assert result.gain.value == pytest.approx(gain, abs=0.02)
    assert result.change.value == pytest.approx(change, abs=0.02)
    churn = ((stage1 > 0) != (stage2 > 0)).mean()
    assert result.churn.value == pytest.approx(churn) and (churn > CHURN) == (spread > 0)
    if gain:
        assert result.relative.value == pytest.approx((stage2 - stage1).mean() / (stage1 - base).mean())
        assert result.relative.low < result.relative.value < result.relative.high


def test_a_gain_that_noise_can_explain_is_not_learned(rng):
    base, stage1 = rng.normal(size=(2, 3, 50))
    assert outcome(base, stage1 + 0.05, stage1 - 5).verdict == "not learned"


def test_what_barely_orders_its_own_pairs_was_not_learned():
    """The policy margins gain clearly; the relative accuracy is 0.56 of 100 pairs, which may be 0.5."""
    base, stage1 = np.zeros((2, 100)), np.ones((2, 100))
    dpo = np.where(np.arange(100) < 56, 1.0, -1.0) * np.ones((2, 1))
    assert outcome(base, stage1, stage1).verdict == outcome(base, stage1, stage1, np.ones((2, 100))).verdict == "stable"
    assert outcome(base, stage1, stage1, dpo).verdict == "not learned"
    many = np.repeat(np.where(np.arange(100) < 70, 1.0, -1.0)[None], 2, 0)
    assert outcome(base, stage1, stage1, many).verdict == "stable"
    few = np.repeat([0, 1, 2], [34, 33, 33])  # three prompts: 0.7 is known to no better than a half
    assert outcome(base, stage1, stage1, many, few).verdict == "not learned"
