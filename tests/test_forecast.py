"""Forecasts against finite steps in float64, and their scores in closed form."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from preflab.alignment import parameters_of
from preflab.forecast import along, mean_quality, pair_slopes, placed, quality
from preflab.likelihood import pair_log_probs
from preflab.margins import policy_margin


@pytest.fixture(params=[2, 0], ids=["adapter", "all weights"])
def case(request, make_model, make_rows, exact_norm):
    """A policy, its parameters, a direction, and held-out pairs."""
    policy = make_model("gpt_neox", rank=request.param)
    policy.requires_grad_(True) if not request.param else None
    parameters = parameters_of(policy)
    g = torch.Generator().manual_seed(3)
    direction = {n: 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in parameters.items()}
    return policy, parameters, direction, make_rows(5)


def shifted(parameters, direction, by):
    return {name: p.detach() + by * direction[name] for name, p in parameters.items()}


def margins_at(policy, parameters, rows, weights):
    with placed(parameters, weights):
        return policy_margin(pair_log_probs(policy, rows, 0, 3))


def test_slopes_are_those_of_finite_steps(case):
    policy, parameters, direction, rows = case
    found = policy_margin(pair_slopes(policy, rows, 0, 3, direction))
    h = 1e-5
    up, down = (margins_at(policy, parameters, rows, shifted(parameters, direction, by)) for by in (h, -h))
    np.testing.assert_allclose(found, (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    assert np.abs(found).min() > 1e-3


def test_the_middle_of_a_segment_is_right_to_third_order(case):
    """Half the step, an eighth of the error. At its beginning: a quarter."""
    policy, parameters, direction, rows = case
    here = shifted(parameters, direction, 0.0)

    def error(by, at):
        end = shifted(parameters, direction, by)
        forecast = policy_margin(along(policy, parameters, rows, 0, 3, here, end, at))
        happened = margins_at(policy, parameters, rows, end) - margins_at(policy, parameters, rows, here)
        return np.linalg.norm(forecast - happened)

    assert error(0.02, 0.5) / error(0.01, 0.5) == pytest.approx(8, rel=0.25)
    assert error(0.02, 0.0) / error(0.01, 0.0) == pytest.approx(4, rel=0.25)


def test_a_path_in_segments_finds_what_happened_to_every_pair(case):
    """The sum of many midpoint terms against the finite step, in float64."""
    policy, parameters, direction, rows = case
    points = [shifted(parameters, direction, by) for by in np.linspace(0, 0.01, 9)]
    terms = [policy_margin(along(policy, parameters, rows, 0, 5, a, b)) for a, b in pairwise(points)]
    happened = margins_at(policy, parameters, rows, points[-1]) - margins_at(policy, parameters, rows, points[0])
    np.testing.assert_allclose(np.sum(terms, 0), happened, atol=1e-6)


def test_the_parameters_come_back(case):
    policy, parameters, direction, rows = case
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(ZeroDivisionError), placed(parameters, shifted(parameters, direction, 1.0)):
        assert not all(torch.equal(p, before[n]) for n, p in parameters.items())
        raise ZeroDivisionError
    along(policy, parameters, rows, 0, 3, before, shifted(parameters, direction, 1.0))
    assert all(torch.equal(p, before[n]) for n, p in parameters.items())


def test_a_perfect_forecast_and_one_of_half_the_size(rng):
    happened = rng.normal(size=50) - 1
    perfect = quality(happened, happened)
    assert (perfect.slope, perfect.r2, perfect.explained, perfect.signs) == pytest.approx((1, 1, 1, 1))
    assert perfect.commonest == pytest.approx((happened < 0).mean())
    half = quality(happened / 2, happened)
    assert (half.slope, half.r2, half.signs) == pytest.approx((2, 1, 1))
    assert half.explained == pytest.approx(1 - np.sum(happened**2) / 4 / np.sum((happened - happened.mean()) ** 2))


def test_an_opposite_forecast_and_one_that_says_the_same_of_all(rng):
    happened = rng.normal(size=50)
    turned = quality(-happened, happened)
    assert (turned.slope, turned.r2, turned.signs) == pytest.approx((-1, 1, 0)) and turned.explained < 0
    assert np.isnan(quality(np.ones(50), happened).r2)


def test_means_over_runs(rng):
    runs = rng.normal(size=(2, 2, 30))
    found = mean_quality(runs[0], runs[1])
    assert found["r2"] == pytest.approx(np.mean([quality(f, h).r2 for f, h in zip(*runs, strict=True)]))
    unscaled = mean_quality(runs[0], runs[1], scaled=False)
    assert np.isnan([unscaled["slope"], unscaled["explained"]]).all() and unscaled["signs"] == found["signs"]
