"""Every method: its c against autograd of its printed loss, against TRL's, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_from_pairs import Float64Head, trl_trainer

from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.methods import METHODS
from preflab.methods.conservative_dpo import ConservativeDPO
from preflab.methods.dpo import DPO
from preflab.methods.dpo_sft import DPOWithSFT
from preflab.methods.grpo import GRPO
from preflab.methods.ipo import IPO
from preflab.methods.kto import KTO
from preflab.methods.method import PairMethod, Scored
from preflab.methods.orpo import ORPO
from preflab.methods.rloo import RLOO
from preflab.methods.simpo import SimPO
from preflab.weightings import Weights

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


def dpo(chosen, rejected, **_):
    return -torch.log(torch.sigmoid(0.7 * (chosen - rejected)))


def kto(chosen, rejected, **_):
    """Eq. 7 and 8 of KTO with lambda 1 on both sides; no gradient through z."""
    z_chosen, z_rejected = (x.detach().mean().clamp(min=0) for x in (rejected, chosen))
    return (1 - torch.sigmoid(0.7 * (chosen - z_chosen))) + (1 - torch.sigmoid(0.7 * (z_rejected - rejected)))


def orpo(chosen, rejected, **_):
    """Eq. 6 and 7 of ORPO, from probabilities."""
    p_chosen, p_rejected = (chosen / LENGTHS[:3]).exp(), (rejected / LENGTHS[3:]).exp()
    ratio = (p_chosen / (1 - p_chosen)) / (p_rejected / (1 - p_rejected))
    return -torch.log(p_chosen) - 0.7 * torch.log(torch.sigmoid(torch.log(ratio)))


PRINTED = {  # of every method on pairs: a value, its loss as printed, and whether `loss` is all of it
    "dpo": (DPO(beta=0.7), dpo, True),
    "conservative_dpo": (ConservativeDPO(smoothing=0.1, beta=0.7), conservative, True),
    "dpo_sft": (DPOWithSFT(sft=0.3, beta=0.7), with_sft, False),
    "ipo": (IPO(beta=0.7), ipo, True),
    "simpo": (SimPO(margin=0.4, beta=0.7), simpo, True),
    "kto": (KTO(beta=0.7), kto, True),
    "orpo": (ORPO(weight=0.7), orpo, True),
}


def test_every_method_on_pairs_has_its_printed_loss_here():
    assert set(PRINTED) == {name for name, kind in METHODS.items() if issubclass(kind, PairMethod)}
    assert all(isinstance(method, METHODS[name]) for name, (method, *_) in PRINTED.items())


@pytest.mark.parametrize("shift", [0.0, 4.0, -4.0])
@pytest.mark.parametrize("name", PRINTED)
def test_c_is_the_gradient_of_the_printed_loss(name, shift, log_probs):
    """With the reference moved, so that KTO's reference points are above zero, and not."""
    method, by_hand, loss_is_its = PRINTED[name]
    reference = REFERENCE + shift if method.reference else torch.zeros_like(REFERENCE)
    ratios = log_probs.sum(1) - reference
    c, loss, _ = method.weigh(ratios, MASK)
    expected = by_hand(*ratios.chunk(2), log_probs=log_probs)
    (gradient,) = torch.autograd.grad(expected.sum(), log_probs)
    torch.testing.assert_close(c, -gradient * MASK, rtol=1e-10, atol=1e-14)
    assert not c.requires_grad
    if loss_is_its:
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)


def test_margins_say_which_pairs_are_right(log_probs):
    ratios = log_probs.sum(1) - REFERENCE
    for method in (ConservativeDPO(smoothing=0.1, beta=0.7), DPOWithSFT(sft=1.0, beta=0.7), KTO(beta=0.7)):
        torch.testing.assert_close(method.weigh(ratios, MASK).margins, DPO(beta=0.7).weigh(ratios, MASK).margins)
    chosen, rejected = (ratios / LENGTHS).detach().chunk(2)
    torch.testing.assert_close(IPO(beta=0.7).weigh(ratios, MASK).margins, chosen - rejected)
    margins = SimPO(margin=0.5, beta=2.0).weigh(ratios, MASK).margins
    torch.testing.assert_close(margins, 2 * (chosen - rejected) - 0.5)
    p = (log_probs.sum(1) / LENGTHS).detach()
    odds = p - torch.log(1 - p.exp())
    torch.testing.assert_close(ORPO().weigh(log_probs.sum(1), MASK).margins, odds[:3] - odds[3:])


def test_baselines_fall_back_on_dpo_and_turn_round_where_they_say():
    ratios = torch.tensor([9.0, -1.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    plain = DPO(beta=1.0).weigh(ratios, MASK).c
    assert torch.equal(ConservativeDPO(smoothing=0.0, beta=1.0).weigh(ratios, MASK).c, plain)
    assert torch.equal(DPOWithSFT(sft=0.0, beta=1.0).weigh(ratios, MASK).c, plain)
    c, *_ = ConservativeDPO(smoothing=0.2, beta=1.0).weigh(ratios, MASK)
    assert c[0, 0] < 0 < c[3, 0] and c[1, 0] > 0 > c[4, 0]  # surer than 0.8, and not
    c, *_ = IPO(beta=1.0).weigh(ratios, MASK)  # a margin of 1/2 is asked for; 9/3 - 0.5/4 is more
    assert c[0, 0] < 0 < c[3, 0] and c[1, 0] > 0 > c[4, 0]


def test_ktos_reference_point_by_hand():
    """Each side's is the other side's mean, and never below 0: sigmoid' falls with the distance from it."""
    ratios = torch.tensor([1.0, 3.0, -2.0, -4.0])
    c, loss, margins = KTO(beta=0.5).weigh(ratios, torch.ones(4, 1, dtype=torch.long))
    z_plus, z_minus = 0.0, 2.0  # the rejected side's mean is -3: cut at 0

    def v(x):
        return 1 / (1 + math.exp(-x))

    up = [v(0.5 * (1 - z_plus)), v(0.5 * (3 - z_plus))]
    down = [v(0.5 * (z_minus + 2)), v(0.5 * (z_minus + 4))]
    weights = [0.5 * x * (1 - x) for x in (*up, *down)]
    assert c[:, 0].tolist() == pytest.approx([weights[0], weights[1], -weights[2], -weights[3]])
    assert loss.tolist() == pytest.approx([2 - up[0] - down[0], 2 - up[1] - down[1]])
    assert margins.tolist() == pytest.approx([1.5, 3.5])


def test_orpo_is_trls(log_probs):
    from trl.experimental.orpo import ORPOTrainer

    class Numbers:
        beta = 0.7
        accelerator = type("A", (), {"device": torch.device("cpu")})

    p = (log_probs.sum(1) / LENGTHS).detach()
    losses, *_ = ORPOTrainer.odds_ratio_loss(Numbers(), *p.chunk(2))
    found = ORPO(weight=0.7).weigh(log_probs.sum(1), MASK).loss
    torch.testing.assert_close(found, -p[:3] - losses.double(), rtol=1e-5, atol=1e-6)  # theirs is float32


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
    _, loss, _ = IPO(beta=0.7).weigh(log_probs.sum(1) - ref, batch["completion_mask"][:, 1:])
    inputs = batch | {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
    assert float(loss.mean()) == pytest.approx(float(trainer.compute_loss(policy, inputs)), rel=1e-9)


def test_the_weight_of_a_pair_is_w_in_dpo_and_the_mean_of_its_sides_elsewhere(log_probs):
    ratios = log_probs.sum(1) - REFERENCE
    c, _, margins = DPO(beta=0.7).weigh(ratios, MASK)
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, 0.7 * torch.sigmoid(-margins))
    c, *_ = SimPO(margin=0.4, beta=0.7).weigh(ratios, MASK)
    expected = (c[:3, 0].abs() + c[3:, 0].abs()) / 2
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, expected)


# --- groups -------------------------------------------------------------------------------------


def advantages(kind, scores, size, **own):
    """Of responses of one token that ended, on the reference."""
    one = torch.ones(len(scores), 1, dtype=scores.dtype)
    scored = Scored(scores, torch.ones(len(scores), dtype=torch.bool), 0 * one, 0 * one, one)
    return kind(group_size=size, **own).advantages(scored)[0][:, 0]


def test_group_advantages_by_hand():
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0])
    assert advantages(RLOO, scores, 4).tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3, 0, 0, 0, 0])
    assert advantages(GRPO, scores, 4).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0], rel=1e-3)


def test_a_groups_advantages_add_up_to_nothing_and_forget_a_shift():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kind in (GRPO, RLOO):
        found = advantages(kind, scores, 3)
        torch.testing.assert_close(found.view(-1, 3).sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(advantages(kind, scores + 5, 3), found)


def test_the_kl_in_grpos_loss_is_the_gradient_of_its_penalty(log_probs):
    reference, method = -2 * torch.ones_like(log_probs) * MASK, GRPO(kl_coefficient=0.3)
    ratio = (reference - log_probs).exp()
    penalty = 0.3 * (ratio - 1 - ratio.log()) * MASK / MASK.sum(1, keepdim=True)
    (gradient,) = torch.autograd.grad(penalty.sum(), log_probs)
    torch.testing.assert_close(method.kl_in_loss(log_probs, reference, MASK), -gradient, rtol=1e-10, atol=1e-14)
    at_reference = method.kl_in_loss(reference, reference, MASK)
    assert not at_reference.any() and math.isfinite(float(at_reference.sum()))
    assert not RLOO(kl_coefficient=0.3).kl_in_loss(log_probs, reference, MASK).any()


def test_a_missing_end_costs_a_sample_of_a_group_the_penalty():
    one, method = torch.ones(4, 1), RLOO(group_size=4, kl_coefficient=0.0, missing_eos_penalty=3.0)
    finished = torch.tensor([True, True, False, True])
    found, _ = method.advantages(Scored(torch.ones(4), finished, 0 * one, 0 * one, one))
    assert found.flatten().tolist() == pytest.approx([1.0, 1.0, -3.0, 1.0])


def test_a_group_of_one_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        GRPO(group_size=1)
