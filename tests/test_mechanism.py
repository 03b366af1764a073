"""Notebook 05's stage against independent derivatives on a tiny model, its protocol, and its rules by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import t as student

from preflab import adapters
from preflab.alignment import parameters_of
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from preflab.claims.mechanism import SMALL, Opposition, goes_with, mechanism_claims
from preflab.errors import BadInput
from preflab.experiments.mechanism import angles, forecast_scores, losses, opposition
from preflab.forecast import placed
from preflab.likelihood import collate, token_log_probs
from preflab.paths import project_root
from preflab.running.reading import resolve
from preflab.stages.course import SETS, UNSCALED

NOTEBOOK = project_root() / "notebooks" / "src" / "05_mechanism.py"
TINY = {
    "train_pairs": 16, "test_pairs": 12, "prompts": 1, "max_new_tokens": 2, "seeds": [0], "resamples": 100,
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "base": {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 4, "batch_size": 8}},
    "pair_training": {"batch_size": 4, "micro_batch_size": 4, "epochs": 1, "learning_rate": 0.02},
    "lora": {"rank": 2, "alpha": 4}, "course": {"points": 4, "parts": 4, "batch": 16},
    "settings": {"conflict": ["world:conflict", "helpful", "harmless"]}, "full_learning_rate": 0.003,
}  # fmt: skip
HELD_OUT = SETS.index("held out")
pytestmark = pytest.mark.usefixtures("module_cache")


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **given}, "test")


@pytest.fixture(params=[False, True], ids=["adapter", "all weights"])
def case(request):
    """Parameters, the run of helpful → harmless, and its course."""
    p = parameters()
    p, run = (p.without_adapter(), p.full_runs()[0]) if request.param else (p, p.runs()[0])
    return p, run, p.gradient_course(run).load()


def loss_and_gradient(p, run, n, under, objective_path):
    """DPO's mean loss, written with its logarithm, under the weights after n stages, and its gradient, flat."""
    base = p.base_model
    rows = p.trained_on(run.setting, objective_path, run.seed).encoded(base)
    batch = collate(rows, base.tokenizer().pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        reference = token_log_probs(base.load(), batch).sum(1)
    with p.training(run.setting, run.path, run.seed).final_policy() as policy:
        weights = parameters_of(policy)
        with placed(weights, under[n]):
            chosen, rejected = (token_log_probs(policy, batch).sum(1) - reference).chunk(2)
            loss = -F.logsigmoid(p.dpo.beta * (chosen - rejected)).mean()
            found = torch.autograd.grad(loss, list(weights.values()))
    return loss.item(), torch.cat([g.flatten() for g in found])


def test_the_course_holds_the_gradients_of_both_objectives(case):
    """Losses, raw cosine and first-order terms at both ends of Stage 2, by autograd."""
    p, run, course = case
    under = {n: p._weights(run, run.path[:n]) for n in (1, 2)}
    for point, n in ((0, 1), (-1, 2)):
        (one, g1), (other, g2) = (loss_and_gradient(p, run, n, under, run.path[:k]) for k in (1, 2))
        assert course.losses[point, :2] == pytest.approx([one, other], rel=1e-6)
        assert course.raw()[point] == pytest.approx(float(F.cosine_similarity(g1, g2, dim=0)), abs=1e-6)
        if n == 1:
            moved = torch.cat([(under[2][name] - under[1][name]).flatten() for name in under[1]])
            assert course.start_terms[:2] == pytest.approx([float(g1 @ moved), float(g2 @ moved)], rel=1e-5, abs=1e-9)


def test_the_points_are_even_in_log_updates_and_the_path_adds_up(case):
    _, _, course = case
    assert course.steps.tolist() == [0, 1, 2, 4] and len(course.terms) == len(course.path) == 3
    moves = np.abs(course.happened).max()
    np.testing.assert_allclose(course.forecasts["along the path"], course.happened, atol=0.02 * moves)
    assert np.abs(course.forecasts["in one shot, where training went"] - course.happened).max() > 0.02 * moves
    assert course.summed == pytest.approx(course.lost, abs=0.02 * abs(course.lost) + 1e-5)
    assert set(course.forecasts) >= {UNSCALED} and np.isfinite(course.forecasts[UNSCALED]).all()


def test_what_is_kept_of_the_course_is_finite_and_of_one_size(case):
    _, _, course = case
    assert course.products.shape[:2] == (4, len(course.places)) and course.halves().shape == (2,)
    assert course.losses.shape == (4, len(SETS)) and course.single().shape == course.ceiling("first").shape == (4,)
    np.testing.assert_allclose(course.whole, np.swapaxes(course.whole, 1, 2), atol=1e-12)
    changes = course.losses[-1] - course.losses[0]
    assert changes[SETS.index("second")] < 0  # Stage 2 learns


def test_moves_of_the_weights():
    p = parameters()
    run = p.runs()[0]
    move = p.moves(run)
    assert adapters.norm(move.fresh) == 0 and adapters.norm(move.stage1) > 0
    whole = adapters.difference(move.end, move.fresh)
    assert adapters.norm(whole) == pytest.approx(adapters.norm(move.end))
    row = angles([move], rank=2)
    assert row["cos(ΔW₁, ΔW₂)"] == adapters.cosine(move.stage1, move.stage2)
    full = p.without_adapter().moves(p.full_runs()[0])
    assert adapters.norm(full.fresh) == 0 and adapters.norm(full.stage2) > 0


def test_tables_of_sequences():
    p = parameters()
    courses = p.by_sequence()
    assert list(courses) == ["conflict: helpful → harmless", "conflict: harmless → helpful"]
    scores = forecast_scores(courses)
    assert len(scores) == 6 and np.isnan(scores["conflict: helpful → harmless", UNSCALED]["slope"])
    table = losses(courses)["conflict: helpful → harmless"]
    (course,) = courses["conflict: helpful → harmless"]
    assert list(table.values()) == [course.lost, course.summed, course.foretold, course.halves()[0]]
    assert course.halves()[0] != course.halves()[1]
    found = opposition("x", courses["conflict: helpful → harmless"], [p.moves(p.runs()[0])])
    assert found.cosines.shape == (1, 2) and found.directions.shape == (3, 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stage2_reference": "stage1"}, "stage2_reference='stage1'"),
        ({"course": {"parts": 18}}, "course.parts=18: expected at most train_pairs=16"),
        ({"course": {"parts": 5}}, "course.parts=5"),
        ({"lora": {"rank": 0}}, "lora.rank=0: expected an adapter"),
        ({"full_learning_rate": -1.0}, "full_learning_rate=-1.0"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_its_name(given, expected):
    with pytest.raises(BadInput, match=expected):
        parameters(**given)


def test_without_a_rate_there_is_no_run_of_all_weights():
    p = parameters(full_learning_rate=None)
    assert p.without_adapter() is None and not p.full_runs() and len(p.courses()) == 2


# --- the rules, by hand ---------------------------------------------------------------------------


def made(cosines=0.0, updates=0.0, lost=1.0, foretold=0.1, spread=0.01):
    wobble = spread * np.array([-1.0, 0.0, 1.0])
    return Opposition("x", cosines + np.stack([wobble, wobble], 1), updates + wobble, lost + wobble, foretold + wobble)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([made(), made()], REPRODUCED),
        ([made(), made(cosines=-0.5)], NOT_REPRODUCED),
        ([made(), made(updates=0.5)], NOT_REPRODUCED),
        ([made(), made(cosines=SMALL)], INCONCLUSIVE),
        ([made(spread=0.5)], INCONCLUSIVE),
        ([made(cosines=np.nan)], INCONCLUSIVE),
        ([], INCONCLUSIVE),
    ],
)
def test_near_orthogonal(found, verdict):
    assert mechanism_claims(found)[0].verdict == verdict


@pytest.mark.parametrize(("beyond", "verdict"), [(1e-6, NOT_REPRODUCED), (-1e-6, INCONCLUSIVE)])
def test_against_near_orthogonal_speaks_one_of_three_intervals_of_each_sequence(beyond, verdict):
    """Two sequences: six intervals, each at 1 - 0.05 / 6. Three seeds, whose standard deviation is 0.01."""
    half = student.ppf(1 - 0.05 / 6 / 2, 2) * 0.01 / np.sqrt(3)
    assert mechanism_claims([made(), made(updates=SMALL + half + beyond)])[0].verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict", "value"),
    [
        ([made(), made(foretold=0.3)], REPRODUCED, 0.2),
        ([made(foretold=0.9)], NOT_REPRODUCED, 0.9),
        ([made(foretold=0.5)], INCONCLUSIVE, 0.5),
        ([made(foretold=0.9), made(lost=-1.0, foretold=0.0)], NOT_REPRODUCED, 0.9),  # what was not lost does not count
        ([made(lost=0.0)], INCONCLUSIVE, np.nan),
    ],
)
def test_opposition_is_not_the_driver(found, verdict, value):
    claim = mechanism_claims(found)[1]
    assert claim.verdict == verdict and claim.value == pytest.approx(value, abs=0.01, nan_ok=True)


def test_exactly_one_half_is_neither_side():
    lost = np.array([1.0, 1.5, 2.0])
    same = replace(made(), lost=lost, foretold=lost / 2)
    claim = mechanism_claims([same])[1]
    assert claim.interval == (0.5, 0.5) and claim.verdict == INCONCLUSIVE


def test_one_seed_decides_nothing():
    one = made()
    single = replace(
        one, cosines=one.cosines[:1], updates=one.updates[:1], lost=one.lost[:1], foretold=one.foretold[:1]
    )
    assert {claim.verdict for claim in mechanism_claims([single])} == {INCONCLUSIVE}


def test_a_correlation_beside_that_of_random_pairings(rng):
    x = np.arange(8.0)
    found = goes_with(x, x**2, rng, 200)
    assert found.value == pytest.approx(1) and -1 < found.low < -0.5 and 0.5 < found.high < 1
    assert np.isnan(goes_with(x[:3], x[:3], rng, 200).value)
