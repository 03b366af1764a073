"""Angles of gradients against autograd, against closed forms, and against draws whose true angle is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from preflab import geometry
from preflab.alignment import parameters_of
from preflab.errors import BadInput
from preflab.geometry import Labelled
from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.methods.dpo import DPO

BETA = 0.3
ONE, OTHER = slice(0, 4), slice(4, 8)


@pytest.fixture
def case(make_model, make_rows, exact_norm):
    """A policy off its reference, its parameters, and 10 labelled pairs."""
    policy, rows = make_model("llama", rank=2), make_rows(10)
    reference = pair_log_probs(make_model("llama", seed=1), rows, 0, 10)
    return policy, parameters_of(policy), Labelled(rows, reference, DPO(beta=BETA), 0)


def by_autograd(policy, parameters, labelled, rows, turned=False):
    """Gradient of DPO's mean loss, written with its logarithm."""
    batch = collate([labelled.rows[i] for i in rows], 0, policy.device)
    at = slice(rows.start, rows.stop)
    reference = torch.cat([labelled.reference.chosen[at], labelled.reference.rejected[at]])
    chosen, rejected = (token_log_probs(policy, batch).sum(1) - reference).chunk(2)
    loss = -F.logsigmoid(BETA * (rejected - chosen if turned else chosen - rejected)).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))]), loss.item()


def test_the_parts_are_gradients_of_the_loss_and_add_up_to_the_whole(case):
    policy, parameters, labelled = case
    parts, single, loss = geometry.part_gradients(labelled, policy, parameters, parts=2, batch=3, size=2)
    for i, rows in enumerate((range(0, 5), range(5, 10))):
        torch.testing.assert_close(parts[i], by_autograd(policy, parameters, labelled, rows)[0], rtol=1e-9, atol=1e-12)
        some = range(rows.start, rows.start + 3)
        torch.testing.assert_close(single[i], by_autograd(policy, parameters, labelled, some)[0], rtol=1e-9, atol=1e-12)
    whole, its_loss = by_autograd(policy, parameters, labelled, range(10))
    torch.testing.assert_close(parts.mean(0), whole, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(its_loss, rel=1e-12)


def test_shuffled_labels_are_the_mean_over_both_labellings(case):
    policy, parameters, labelled = case
    shuffled = Labelled(labelled.rows, labelled.reference, labelled.method, 0, shuffled=True)
    found, loss = shuffled.gradient(policy, parameters, range(10), 4)
    both = [by_autograd(policy, parameters, labelled, range(10), turned) for turned in (False, True)]
    torch.testing.assert_close(found, (both[0][0] + both[1][0]) / 2, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx((both[0][1] + both[1][1]) / 2, rel=1e-12)


def test_every_pair_is_in_one_backward_pass(case, monkeypatch):
    """Gradient, ceilings, single batches and errors of a set cost one pass over its pairs."""
    policy, parameters, labelled = case
    seen = []
    monkeypatch.setattr(
        geometry,
        "token_log_probs",
        lambda model, batch: seen.append(len(batch["input_ids"])) or token_log_probs(model, batch),
    )
    geometry.part_gradients(labelled, policy, parameters, parts=2, batch=3, size=2)
    assert sum(seen) == 2 * len(labelled.rows)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        (
            "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_A.default.weight",
            ("0", "query_key_value"),
        ),
        ("base_model.model.model.layers.11.mlp.up_proj.lora_B.default.weight", ("11", "up_proj")),
        ("model.layers.3.self_attn.q_proj.weight", ("3", "q_proj")),
        ("model.layers.3.input_layernorm.weight", ("", "elsewhere")),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.bias", ("", "elsewhere")),
        ("gpt_neox.embed_in.weight", ("", "elsewhere")),
    ],
)
def test_places(name, where):
    assert geometry.place(name) == where


def test_inner_products_of_places_add_up(case):
    _, parameters, _ = case
    where = geometry.places(parameters)
    assert len(where) == 2 * 7 and sum(map(len, where.values())) == sum(p.numel() for p in parameters.values())
    vectors = torch.randn(3, sum(p.numel() for p in parameters.values()), dtype=torch.float64)
    torch.testing.assert_close(geometry.gram(vectors, where).sum(0), vectors @ vectors.T)


def drawn(rng, cosine, noise, parts=4, width=40):
    """Inner products of parts of two objectives whose true gradients have this cosine."""
    one, other = np.zeros(width), np.zeros(width)
    one[0], other[:2] = 1.0, (cosine, np.sqrt(1 - cosine**2))
    parts = [mean + noise * rng.normal(size=(parts, width)) for mean in (one, other)]
    vectors = np.concatenate(parts)
    return vectors @ vectors.T, parts


def test_without_noise_all_cosines_are_the_true_one(rng):
    products, _ = drawn(rng, -0.4, 0.0)
    for found in (geometry.raw_cosine, geometry.disattenuated, geometry.single_cosine):
        assert found(products, ONE, OTHER) == pytest.approx(-0.4)
    assert geometry.ceiling(products, ONE) == pytest.approx(1)
    assert geometry.jackknife_error(products, ONE, OTHER) == pytest.approx(0, abs=1e-9)


def test_cosines_are_those_of_the_means_and_of_the_halves(rng):
    products, (a, b) = drawn(rng, 0.3, 0.5)

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    assert geometry.raw_cosine(products, ONE, OTHER) == pytest.approx(cosine(a.mean(0), b.mean(0)))
    assert geometry.ceiling(products, OTHER) == pytest.approx(cosine(b[::2].mean(0), b[1::2].mean(0)))
    apart = [cosine(a[i], b[j]) for i in range(4) for j in range(4) if i != j]
    assert geometry.single_cosine(products, ONE, OTHER) == pytest.approx(np.mean(apart))


def test_noise_hides_an_angle_and_disattenuation_finds_it(rng):
    """The raw cosine of noisy gradients of one direction is small; the ratio of unbiased parts is right on the mean."""
    many = np.mean([drawn(rng, 0.8, 0.5, parts=8)[0] for _ in range(400)], axis=0)
    one, other = slice(0, 8), slice(8, 16)
    assert geometry.raw_cosine(many, one, other) < 0.4
    assert geometry.disattenuated(many, one, other) == pytest.approx(0.8, abs=0.03)


def test_pairs_in_common_do_not_make_gradients_alike(rng):
    """Part i of both objectives has the same noise, and the true gradients are orthogonal."""
    found = []
    for _ in range(400):
        noise = 0.3 * rng.normal(size=(4, 40))
        vectors = np.concatenate([np.eye(1, 40, 0) + noise, np.eye(1, 40, 1) + noise])
        found.append(vectors @ vectors.T)
    many = np.mean(found, axis=0)
    assert abs(geometry.disattenuated(many, ONE, OTHER)) < 0.03 < 0.3 < geometry.raw_cosine(many, ONE, OTHER)


def test_the_jackknife_tells_the_spread_over_other_pairs(rng):
    found = [(geometry.disattenuated(p, *s), geometry.jackknife_error(p, *s)) for p, s in (
        (drawn(rng, 0.3, 0.15, parts=8)[0], (slice(0, 8), slice(8, 16))) for _ in range(300))]  # fmt: skip
    values, errors = np.transpose(found)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.3)


def test_the_jackknife_by_its_formula(rng):
    """sqrt((n - 1) / n sum_i (x_i - mean)^2) of the cosines without part i of both, n = 4."""
    products, _ = drawn(rng, 0.3, 0.15)
    left = [np.delete(np.arange(8), [i, 4 + i]) for i in range(4)]
    x = np.array([geometry.disattenuated(products[np.ix_(k, k)], slice(0, 3), slice(3, 6)) for k in left])
    expected = np.sqrt(3 / 4 * ((x - x.mean()) ** 2).sum())
    assert geometry.jackknife_error(products, ONE, OTHER) == pytest.approx(expected)


def test_a_gradient_that_is_noise_alone_has_no_cosine():
    products = np.eye(8) - 0.1 * (1 - np.eye(8))
    assert np.isnan(geometry.disattenuated(products, ONE, OTHER))


def test_leading_axes_stay(rng):
    products = np.stack([drawn(rng, 0.1, 0.1)[0] for _ in range(6)]).reshape(2, 3, 8, 8)
    for function in (geometry.raw_cosine, geometry.disattenuated, geometry.single_cosine, geometry.jackknife_error):
        assert function(products, ONE, OTHER).shape == (2, 3)
        assert function(products, ONE, OTHER)[1, 2] == pytest.approx(function(products[1, 2], ONE, OTHER))
    assert geometry.ceiling(products, ONE).shape == (2, 3)


def test_the_mean_of_what_is_known():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, 5.0]])
    assert geometry.known_mean(values) == 3
    np.testing.assert_array_equal(geometry.known_mean(values, 0), [1, np.nan, 4])


def test_too_few_pairs_for_the_parts():
    assert geometry.cut(11, 2) == [range(0, 5), range(5, 10)]
    with pytest.raises(BadInput, match="parts=4: only 3 pairs, expected one for each part at least"):
        geometry.cut(3, 4)
