"""Label probabilities and diversity by hand; claims D7-D9 for each verdict."""

import numpy as np
import pytest

from preflab.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    ablations,
    coordination,
    share_of_verdict,
    win_change,
)
from preflab.claims.ablations import Ablation, ablation_claims
from preflab.judging import Path, at_equal_kl, chances, described, distinct
from preflab.rules import EqualWeights, Until, WhileSign, WithoutNegative
from preflab.stages.drawn_answers import Drawn

SEEDS, PROMPTS = 5, 300


def test_a_label_probability_is_the_mean_over_all_couples_of_answers():
    """Of K = 2 and K = 3, by loops; two rivals share it, and the temperature divides the difference."""
    ours, theirs = np.array([[1.0, 0.4], [0.0, 2.0]]), np.array([[0.7, 0.4, 0.1], [0.5, -1.0, 3.0]])
    found = chances(ours, theirs, temperature=0.5)
    for n in range(2):
        couples = [1 / (1 + np.exp(-(u - v) / 0.5)) for u in ours[n] for v in theirs[n]]
        assert found[n] == pytest.approx(np.mean(couples))
    assert found + chances(theirs, ours, 0.5) == pytest.approx(1)
    assert chances(ours, ours, 0.1) == pytest.approx(0.5)


def test_distinct_is_the_share_of_different_ngrams():
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == pytest.approx(3 / 7)
    assert distinct(texts, 2) == pytest.approx(3 / 5)
    assert distinct([""], 2) == 0


def test_answers_described_by_hand():
    def answers(texts, lengths, log_probs, reference):
        samples = [([1], list(range(n))) for n in lengths]
        return Drawn(samples, texts, np.array(log_probs), np.array(reference))

    one = answers(["a b c", "a b c"], [3, 5], [-2.0, -4.0], [-3.0, -6.0])
    other = answers(["a b", "c d"], [2, 2], [-1.0, -1.0], [-1.0, -1.0])
    assert described([one]) == {"KL": 1.5, "entropy": 0.75, "unique": 0.5, "distinct-2": 0.5, "length": 4}
    assert described([one, other]) == {"KL": 0.75, "entropy": 0.625, "unique": 0.75, "distinct-2": 0.75, "length": 3}


def test_a_path_is_compared_at_the_largest_kl_that_both_reach():
    """By hand: the rival ends at KL 2, where the own path is half-way from 1 to 3. KL that falls back is past."""
    own = Path(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 0.9]))
    rival = Path(np.array([0.0, 2.0, 1.5]), np.array([0.0, 0.4, 0.6]))
    assert at_equal_kl(own, rival) == pytest.approx(0.7 - 0.6)
    assert at_equal_kl(rival, own) == pytest.approx(0.6 - 0.7) and at_equal_kl(own, own) == 0


@pytest.fixture
def claims(rng):
    """claims(label probability early, gap, ...): three verdicts of measurements with these means."""

    def make(early=0.5, gap=0.0, faded=0.3, acted=0.5, without=0.5, prompts=PROMPTS):
        def row(rule, repeats, rate, gap=0.0):
            found = (rng.random((SEEDS, prompts)) < rate).astype(float)
            wider, left = gap + 0.001 * rng.normal(size=SEEDS), np.full(SEEDS, faded)
            return Ablation("dpo", rule, repeats, found, wider, left, np.full(SEEDS, acted))

        rows = [
            row(WhileSign(part="negative"), 1, without),
            row(EqualWeights(0.05), 1, 0.1, 0.5),  # on all pairs: no claim asks for it
            row(Until(0.4, WithoutNegative()), 1, early),
            row(EqualWeights(0.05), 8, 0.5, gap),
        ]
        return {c.id: c.verdict for c in ablation_claims(rows)}

    return make


@pytest.mark.parametrize(
    ("early", "prompts", "expected"),
    [(0.3, 300, REPRODUCED), (0.7, 300, NOT_REPRODUCED), (0.5, 30, INCONCLUSIVE)],
)
def test_d7(early, prompts, expected, claims):
    assert claims(early=early, prompts=prompts)["D7"] == expected


@pytest.mark.parametrize(
    ("gap", "faded", "expected"),
    [
        (0.1, 0.3, REPRODUCED),
        (-0.1, 0.3, NOT_REPRODUCED),
        (0.0, 0.5, NOT_REPRODUCED),
        (0.1, 0.51, INCONCLUSIVE),  # the weight was there all the time
    ],
)
def test_d8(gap, faded, expected, claims):
    assert claims(gap=gap, faded=faded)["D8"] == expected


@pytest.mark.parametrize(
    ("acted", "without", "expected"),
    [(0.5, 0.3, REPRODUCED), (0.5, 0.7, NOT_REPRODUCED), (0.05, 0.3, INCONCLUSIVE)],  # its G was hardly ever negative
)
def test_d9(acted, without, expected, claims):
    assert claims(acted=acted, without=without)["D9"] == expected


def test_rows_that_are_not_there_leave_claims_open():
    assert [c.verdict for c in ablation_claims([])] == [INCONCLUSIVE] * 3


def test_a_win_rate_stays_between_none_and_all():
    """Five seeds that are five coin flips say little, and no interval leaves what can be."""
    flips = np.repeat([0.0, 0.5, 0.0, 0.0, 0.5], 100).reshape(5, 100)
    change = win_change(flips)
    assert (change.value, change.low) == (-0.3, -0.5) and change.high > 0
    assert win_change(flips, 0.5).high < 0


NULLS = [(ablations, name) for name in ablations.TRUE] + [(coordination, name) for name in ("D10", "D12")]


@pytest.mark.parametrize(("rules", "name"), NULLS)
def test_a_rule_seldom_reproduces_what_is_not_there(rules, name):
    """200 simulated experiments in which nothing that is taken away, or controlled, changes anything."""
    spread = {"chances": 0.02, "prompts": 0.05, "rest": 0.1, "gap": 0.03, "n": 64, "rows": 6}
    found = share_of_verdict(lambda rng: rules.simulated(name, 0.0, spread, 6, rng), REPRODUCED, runs=200)
    assert found <= 0.05
