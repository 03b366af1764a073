"""Win rates and diversity by hand; claims D7-D9 for each verdict."""

import numpy as np
import pytest

from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, win_change
from preflab.claims.ablations import Ablation, ablation_claims
from preflab.judging import described, distinct, wins
from preflab.stages.answers import Answers

SEEDS, PROMPTS = 5, 300


def test_wins_count_ties_half():
    ours, theirs = np.array([1.0, 2.0, 0.5, 0.1 + 0.2]), np.array([0.0, 2.0, 1.5, 0.3])
    assert wins(ours, theirs).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert (wins(ours, theirs) + wins(theirs, ours) == 1).all()


def test_distinct_is_the_share_of_different_ngrams():
    texts = ["a b a b", "a b c"]
    assert distinct(texts, 1) == pytest.approx(3 / 7)
    assert distinct(texts, 2) == pytest.approx(3 / 5)
    assert distinct([""], 2) == 0


def test_answers_described_by_hand():
    def answers(texts, lengths, log_probs, reference):
        samples = [([1], list(range(n))) for n in lengths]
        return Answers(samples, texts, samples, texts, np.array(log_probs), np.array(reference))

    one = answers(["a b c", "a b c"], [3, 5], [-2.0, -4.0], [-3.0, -6.0])
    other = answers(["a b", "c d"], [2, 2], [-1.0, -1.0], [-1.0, -1.0])
    assert described([one]) == {"KL": 1.5, "entropy": 0.75, "unique": 0.5, "distinct-2": 0.5, "length": 4}
    assert described([one, other]) == {"KL": 0.75, "entropy": 0.625, "unique": 0.75, "distinct-2": 0.75, "length": 3}


@pytest.fixture
def claims(rng):
    """claims(win rate early, gap, ...): three verdicts of measurements with these means."""

    def make(early=0.5, gap=0.0, part=-1.0, without=0.5, noise=0.0, prompts=PROMPTS):
        def won(rate):
            return (rng.random((SEEDS, prompts)) < rate).astype(float)

        def row(rule, until, rate, gap=0.0):
            return Ablation("dpo", rule, until, won(rate), gap + 0.001 * rng.normal(size=SEEDS))

        rows = [
            row("without_negative", 1.0, without),
            row("equal_weights", 0.4, 0.1, 0.5),  # for a part of training: no claim asks for it
            row("without_negative", 0.4, early),
            row("equal_weights", 1.0, 0.5, gap),
        ]
        parts = {
            "dpo": {"negative": part + (0.01 + noise) * rng.normal(size=(SEEDS, 4)), "positive": np.ones((SEEDS, 4))}
        }
        return {c.id: c.verdict for c in ablation_claims(rows, np.zeros(SEEDS), parts)}

    return make


@pytest.mark.parametrize(
    ("early", "prompts", "expected"),
    [(0.3, 300, REPRODUCED), (0.7, 300, NOT_REPRODUCED), (0.5, 30, INCONCLUSIVE)],
)
def test_d7(early, prompts, expected, claims):
    assert claims(early=early, prompts=prompts)["D7"] == expected


@pytest.mark.parametrize(("gap", "expected"), [(0.1, REPRODUCED), (-0.1, NOT_REPRODUCED), (0.0, NOT_REPRODUCED)])
def test_d8(gap, expected, claims):
    assert claims(gap=gap)["D8"] == expected


@pytest.mark.parametrize(
    ("part", "without", "expected"),
    [(-1.0, 0.3, REPRODUCED), (-1.0, 0.7, NOT_REPRODUCED), (1.0, 0.3, INCONCLUSIVE)],  # no part with a negative G
)
def test_d9(part, without, expected, claims):
    assert claims(part=part, without=without)["D9"] == expected


def test_rows_that_are_not_there_leave_claims_open():
    found = ablation_claims([], np.zeros(2), {})
    assert [c.verdict for c in found] == [INCONCLUSIVE] * 3


def test_a_win_rate_stays_between_none_and_all():
    """Five seeds that are five coin flips say little, and no interval leaves what can be."""
    flips = np.repeat([0.0, 0.5, 0.0, 0.0, 0.5], 100).reshape(5, 100)
    change = win_change(flips)
    assert (change.value, change.low) == (-0.3, -0.5) and change.high > 0
    assert win_change(flips, 0.5).high < 0
