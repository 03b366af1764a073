"""Baselines of pairs and group advantages: each c against autograd of its printed loss, and TRL's."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_dpo import Float64Head, trl_trainer

from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.weightings import (
    Weights,
    conservative_dpo_weighting,
    dpo_sft_weighting,
    dpo_weighting,
    group_advantages,
    ipo_weighting,
    kl_weighting,
    simpo_weighting,
)

LENGTHS = torch.tensor([3, 5, 2, 4, 1, 5])  # three pairs
MASK = (torch.arange(6)[None] < LENGTHS[:, None]).long()


@pytest.fixture
def log_probs():
    generator = torch.Generator().manual_seed(0)
    drawn = -3 * torch.rand(6, 6, generator=generator, dtype=torch.float64)
    return (drawn * MASK).requires_grad_(True)


REFERENCE = torch.tensor([-4.0, -7.0, -2.0, -5.0, -3.0, -6.0], dtype=torch.float64)


def conservative(chosen, rejected, **_):
    margin = 0.7 * (chosen - rejected)
    return -(1 - 0.1) * F.logsigmoid(margin) - 0.1 * F.logsigmoid(-margin)


def with_sft(chosen, rejected, log_probs):
    return -F.logsigmoid(0.7 * (chosen - rejected)) - 0.3 * log_probs[:3].sum(1) / LENGTHS[:3]


def ipo(chosen, rejected, **_):
    return (chosen / LENGTHS[:3] - rejected / LENGTHS[3:] - 1 / (2 * 0.7)) ** 2


def simpo(chosen, rejected, **_):
    return -F.logsigmoid(0.7 * (chosen / LENGTHS[:3] - rejected / LENGTHS[3:]) - 0.4)


@pytest.mark.parametrize(
    ("weighting", "own", "by_hand", "loss_is_its"),
    [
        (conservative_dpo_weighting, {"smoothing": 0.1}, conservative, True),
        (dpo_sft_weighting, {"sft": 0.3}, with_sft, False),
        (ipo_weighting, {}, ipo, True),
        (simpo_weighting, {"margin": 0.4}, simpo, True),
    ],
)
def test_c_is_the_gradient_of_the_printed_loss(weighting, own, by_hand, loss_is_its, log_probs):
    reference = torch.zeros_like(REFERENCE) if weighting is simpo_weighting else REFERENCE
    ratios = log_probs.sum(1) - reference
    c, loss, _ = weighting(ratios, MASK, 0.7, **own)
    expected = by_hand(*ratios.chunk(2), log_probs=log_probs)
    (gradient,) = torch.autograd.grad(expected.sum(), log_probs)
    torch.testing.assert_close(c, -gradient * MASK, rtol=1e-12, atol=1e-15)
    assert not c.requires_grad
    if loss_is_its:
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_margins_say_which_pairs_are_right(log_probs):
    ratios = log_probs.sum(1) - REFERENCE
    for weighting, own in ((conservative_dpo_weighting, {"smoothing": 0.1}), (dpo_sft_weighting, {"sft": 1.0})):
        torch.testing.assert_close(weighting(ratios, MASK, 0.7, **own)[2], dpo_weighting(ratios, MASK, 0.7)[2])
    chosen, rejected = (ratios / LENGTHS).detach().chunk(2)
    torch.testing.assert_close(ipo_weighting(ratios, MASK, 0.7)[2], chosen - rejected)
    torch.testing.assert_close(simpo_weighting(ratios, MASK, 2.0, margin=0.5)[2], 2 * (chosen - rejected) - 0.5)


def test_baselines_fall_back_on_dpo_and_turn_round_where_they_say():
    ratios = torch.tensor([9.0, -1.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    plain, *_ = dpo_weighting(ratios, MASK, 1.0)
    assert torch.equal(conservative_dpo_weighting(ratios, MASK, 1.0, smoothing=0.0)[0], plain)
    assert torch.equal(dpo_sft_weighting(ratios, MASK, 1.0, sft=0.0)[0], plain)
    c, *_ = conservative_dpo_weighting(ratios, MASK, 1.0, smoothing=0.2)
    assert c[0, 0] < 0 < c[3, 0] and c[1, 0] > 0 > c[4, 0]  # surer than 0.8, and not
    c, *_ = ipo_weighting(ratios, MASK, 1.0)  # a margin of 1/2 is asked for; 9/3 - 0.5/4 is more
    assert c[0, 0] < 0 < c[3, 0] and c[1, 0] > 0 > c[4, 0]


def test_ipo_is_trls(make_model, make_pairs, make_rows, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", Float64Head)
    policy, rows = make_model(seed=1).requires_grad_(True), make_rows(8)
    reference = pair_log_probs(make_model(), rows, tokenizer.pad_token_id, 8)
    options = {"config": {"loss_type": "ipo"}, "ref_model": make_model()}
    trainer = trl_trainer(policy, tokenizer, make_pairs(8), tmp_path, **options)
    trainer.precompute_ref_logps = True
    batch = collate(rows, tokenizer.pad_token_id, policy.device)
    log_probs = token_log_probs(policy, batch)
    ref = torch.cat([reference.chosen, reference.rejected])
    _, loss, _ = ipo_weighting(log_probs.sum(1) - ref, batch["completion_mask"][:, 1:], 0.7)
    inputs = batch | {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
    assert float(loss.mean()) == pytest.approx(float(trainer.compute_loss(policy, inputs)), rel=1e-9)


def test_the_weight_of_a_pair_is_w_in_dpo_and_the_mean_of_its_sides_elsewhere(log_probs):
    ratios = log_probs.sum(1) - REFERENCE
    c, _, margins = dpo_weighting(ratios, MASK, 0.7)
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, 0.7 * torch.sigmoid(-margins))
    c, *_ = simpo_weighting(ratios, MASK, 0.7, margin=0.4)
    expected = (c[:3, 0].abs() + c[3:, 0].abs()) / 2
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, expected)


# --- groups -------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0])
    rloo = group_advantages(scores, 4, "rloo")
    assert rloo.tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3, 0, 0, 0, 0])
    grpo = group_advantages(scores, 4, "grpo")
    assert grpo.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], rel=1e-3)


def test_a_groups_advantages_add_up_to_nothing_and_forget_a_shift():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in ("grpo", "rloo"):
        found = group_advantages(scores, 3, method)
        torch.testing.assert_close(found.view(-1, 3).sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(group_advantages(scores + 5, 3, method), found)


def test_the_kl_weighting_is_the_gradient_of_grpos_penalty(log_probs):
    reference = -2 * torch.ones_like(log_probs) * MASK
    ratio = (reference - log_probs).exp()
    (gradient,) = torch.autograd.grad((0.3 * (ratio - 1 - ratio.log()) * MASK).sum(), log_probs)
    torch.testing.assert_close(kl_weighting(log_probs, reference, MASK, 0.3), -gradient, rtol=1e-10, atol=1e-14)
    at_reference = kl_weighting(reference, reference, MASK, 0.3)
    assert not at_reference.any() and math.isfinite(float(at_reference.sum()))
