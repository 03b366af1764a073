"""Every method: its c against autograd of its printed loss, against TRL's, and by hand."""

import math
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from test_from_pairs import Float64Head, close, gradients, trl_trainer
from trl import KTOConfig, KTOTrainer
from trl.data_utils import unpair_preference_dataset
from trl.experimental.orpo import ORPOTrainer

from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.methods import METHODS
from preflab.methods.conservative_dpo import ConservativeDPO
from preflab.methods.dpo import DPO
from preflab.methods.dpo_sft import DPOWithSFT
from preflab.methods.dpop import DPOP
from preflab.methods.grpo import GRPO
from preflab.methods.ipo import IPO
from preflab.methods.kto import KTO
from preflab.methods.method import PairMethod, SampleMethod, Scored
from preflab.methods.orpo import ORPO
from preflab.methods.ppo import PPO
from preflab.methods.rloo import RLOO
from preflab.methods.simpo import SimPO
from preflab.stages.reference import no_reference
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.weightings import Weights, surrogate

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


def dpop(chosen, rejected, **_):
    return -torch.log(torch.sigmoid(0.7 * (chosen - rejected - 0.4 * torch.relu(-chosen))))


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
    "dpop": (DPOP(penalty=0.4, beta=0.7), dpop, True),
    "kto": (KTO(beta=0.7), kto, True),
    "orpo": (ORPO(weight=0.7), orpo, True),
}


def test_every_method_on_pairs_has_its_printed_loss_here():
    assert set(PRINTED) == {name for name, kind in METHODS.items() if issubclass(kind, PairMethod)}
    assert all(isinstance(method, METHODS[name]) for name, (method, *_) in PRINTED.items())


PULL = {"beta": 0.1}
SAMPLED = {"clip": 0.2, "kl_coefficient": 0.05, "kl_target": None, "missing_eos_penalty": 1.0}
VALUES = {"value_clip": 0.2, "value_coefficient": 0.1, "own_value_trunk": True, "gamma": 1.0, "gae_lambda": 0.95}
DEFAULTS = {  # what a row that gives no arguments trains with
    **dict.fromkeys(("dpo", "conservative_dpo", "dpo_sft", "ipo", "simpo", "kto"), PULL),
    "dpop": PULL | {"penalty": 5.0},
    "orpo": {"weight": 0.1},
    "ppo": SAMPLED | VALUES,
    **dict.fromkeys(("grpo", "rloo"), SAMPLED | {"group_size": 4}),
}


@pytest.mark.parametrize("name", METHODS)
def test_defaults_of_a_method_stay(name):
    assert {f.name: f.default for f in fields(METHODS[name]) if f.default is not MISSING} == DEFAULTS[name]


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
    torch.testing.assert_close(c, -gradient * MASK, rtol=1e-12, atol=1e-15)
    assert not c.requires_grad
    if loss_is_its:
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PRINTED)
def test_padding_of_a_batch_changes_nothing_of_a_pair(name, log_probs):
    """Three columns more, and c is what it was and 0 there; loss and margins stay."""
    method = PRINTED[name][0]
    ratios = log_probs.sum(1) - (REFERENCE if method.reference else 0)
    one, other = method.weigh(ratios, MASK), method.weigh(ratios, F.pad(MASK, (0, 3)))
    assert torch.equal(F.pad(one.c, (0, 3)), other.c)
    assert torch.equal(one.loss, other.loss) and torch.equal(one.margins, other.margins)
    assert not one.c[MASK == 0].any()


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
    assert torch.equal(DPOP(penalty=0.0, beta=1.0).weigh(ratios, MASK).c, plain)
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


REGIMES = {  # what the sides' mean log-ratios are: below 0 they are cut, each by itself
    "both are cut": (-1.5, -0.5),
    "that of y+ is cut": (-1.5, 0.5),
    "that of y- is cut": (1.5, -0.5),
    "neither is cut": (1.5, 0.5),
}


def log_ratios_with(means):
    """Three pairs whose sides have these mean log-ratios."""
    around = torch.tensor([-0.7, 0.1, 0.6], dtype=torch.float64)
    return torch.cat([mean + around for mean in means])


@pytest.mark.parametrize("means", REGIMES.values(), ids=REGIMES)
def test_ktos_reference_points_are_cut_at_0_each_by_itself_and_carry_no_gradient(means):
    log_probs = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    ratios = (log_probs * MASK).sum(1) + log_ratios_with(means)
    found = KTO(beta=0.7).weigh(ratios, MASK)
    chosen, rejected = ratios.chunk(2)
    losses, gradients = {}, {}
    for what, stopped in (("held", torch.Tensor.detach), ("moving", torch.clone)):
        z_chosen, z_rejected = (torch.where(z > 0, z, 0) for z in (stopped(rejected.mean()), stopped(chosen.mean())))
        desirable = 1 / (1 + torch.exp(-0.7 * (chosen - z_chosen)))
        undesirable = 1 / (1 + torch.exp(-0.7 * (z_rejected - rejected)))
        losses[what] = 2 - desirable - undesirable
        (gradients[what],) = torch.autograd.grad(losses[what].sum(), log_probs, retain_graph=True)
    assert [float(z) for z in (z_chosen, z_rejected)] == pytest.approx([max(0, means[1]), max(0, means[0])])
    torch.testing.assert_close(found.loss, losses["held"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.c, -gradients["held"], rtol=1e-12, atol=1e-15)
    through_z = (gradients["moving"] - gradients["held"]).abs().max()
    assert (through_z > 0.01) == (max(means) > 0)  # a gradient through z would show


def test_orpo_by_hand():
    """y+ of 2 tokens with p = log(1/2), y- of 3 with p = log(1/4): odds of 1 and of 1/3."""
    log_probs = torch.tensor([2 * math.log(0.5), 3 * math.log(0.25)], dtype=torch.float64)
    c, loss, margins = ORPO(weight=0.4).weigh(log_probs, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert margins.tolist() == pytest.approx([math.log(3)])
    assert loss.tolist() == pytest.approx([math.log(2) + 0.4 * math.log(4 / 3)])
    up, down = (1 + 0.4 * (1 / 4) / (1 / 2)) / 2, -0.4 * (1 / 4) / (3 / 4) / 3
    assert c.tolist() == [pytest.approx([up, up, 0]), pytest.approx([down] * 3)]


def test_orpo_without_its_ratio_is_sft_on_the_chosen_response():
    c, loss, _ = ORPO(weight=0.0).weigh(torch.tensor([-4.0, -6.0]), torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert c.tolist() == [[0, 0.5, 0.5], [0, 0, 0]] and loss.tolist() == [2.0]


def test_orpo_is_exact_for_responses_that_are_nearly_certain():
    """1 - e^p, written so, is 0 for p = -1e-17; the odds of a certain response are 1 / -p."""
    for p in (-1e-17, -1e-9):
        c, _, margins = ORPO(weight=0.5).weigh(torch.tensor([math.log(0.5), p], dtype=torch.float64), torch.ones(2, 1))
        assert margins.tolist() == pytest.approx([math.log(-p)], rel=1e-8)
        assert float(c[1]) == pytest.approx(0.5 / p, rel=1e-7)


def test_the_weight_of_a_pair_is_w_in_dpo_and_the_mean_of_its_sides_elsewhere(log_probs):
    ratios = log_probs.sum(1) - REFERENCE
    c, _, margins = DPO(beta=0.7).weigh(ratios, MASK)
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, 0.7 * torch.sigmoid(-margins))
    c, *_ = SimPO(margin=0.4, beta=0.7).weigh(ratios, MASK)
    expected = (c[:3, 0].abs() + c[3:, 0].abs()) / 2
    torch.testing.assert_close(Weights.of_pairs(c, 0.0).weight, expected)


@pytest.mark.parametrize("name", PRINTED)
def test_the_size_of_the_micro_batch_counts_for_ktos_reference_point_and_for_nothing_else(
    name, make_model, make_rows, tokenizer
):
    method, rows, ends = PRINTED[name][0], make_rows(12), []
    reference = no_reference(12)
    if method.reference:
        reference = pair_log_probs(make_model(seed=1), rows, tokenizer.pad_token_id, 8)
    for size in (6, 4, 1):
        policy = make_model().requires_grad_(True)
        settings = PairTraining(batch_size=6, micro_batch_size=size, learning_rate=1e-2)
        log = train_on_pairs(policy, tokenizer, rows, reference, method, settings, seed=0)
        ends.append((log, {key: p.detach().clone() for key, p in policy.named_parameters()}))
    (log, end), *others = ends
    for other_log, other_end in others:
        if name == "kto":
            assert other_log != log
            continue
        close(other_end, end, rtol=0, atol=1e-10)
        assert [entry.loss for entry in other_log] == pytest.approx([entry.loss for entry in log], rel=1e-10)


# --- parity with TRL ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("means", REGIMES.values(), ids=REGIMES)
def test_kto_is_trls_with_the_other_side_for_its_mismatched_responses(
    means, make_model, make_pairs, make_rows, tokenizer, tmp_path, monkeypatch
):
    """Theirs takes one reference point a batch: one batch of y+ and one of y- have the two of ours."""
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", Float64Head)
    policy, rows = make_model(seed=1).requires_grad_(True), make_rows(3)
    config = KTOConfig(
        str(tmp_path), beta=0.7, max_length=None, gradient_checkpointing=False, per_device_train_batch_size=2,
        use_cpu=True, bf16=False, report_to="none",
    )  # fmt: skip
    alone = unpair_preference_dataset(make_pairs(3).select_columns(["prompt", "chosen", "rejected"]))
    options = {"ref_model": make_model(), "train_dataset": alone, "processing_class": tokenizer}
    trainer = KTOTrainer(policy, args=config, **options)
    trainer.precompute_ref_logps = True

    batch = collate(rows, tokenizer.pad_token_id, policy.device)
    log_probs = token_log_probs(policy, batch)
    reference = log_probs.sum(1).detach() - log_ratios_with(means)
    c, loss, margins = KTO(beta=0.7).weigh(log_probs.sum(1) - reference, batch["completion_mask"][:, 1:])
    chosen, rejected = slice(0, 3), slice(3, 6)
    theirs = 0
    for desirable, own, other in ((True, chosen, rejected), (False, rejected, chosen)):
        inputs = {name: tensor[own] for name, tensor in batch.items()} | {"ref_logps": reference[own]}
        inputs |= {f"KL_{name}": tensor[other] for name, tensor in batch.items()} | {"ref_KL_logps": reference[other]}
        theirs = theirs + trainer.compute_loss(policy, inputs | {"label": torch.full((3,), desirable)})
    metrics = trainer._metrics["eval"]
    assert metrics["kl"] == pytest.approx([max(0, means[1]), max(0, means[0])], abs=1e-12)
    assert float(loss.mean()) == pytest.approx(float(theirs), rel=1e-10)
    rewards = metrics["rewards/chosen"][0] - metrics["rewards/rejected"][0]
    assert float(margins.mean()) == pytest.approx(rewards, rel=1e-10)
    expected = gradients(policy, theirs)
    scale = max(float(g.abs().max()) for g in expected.values())
    close(gradients(policy, surrogate(c, log_probs) / 3), expected, rtol=0, atol=1e-10 * scale)


class Numbers(ORPOTrainer):
    """TRL's trainer without its set-up: what its loss is computed with."""

    beta, padding_value, is_encoder_decoder, aux_loss_enabled = 0.7, 0, False, False
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)

    def __init__(self):
        pass


def test_orpos_odds_ratio_is_trls_in_loss_and_gradient(log_probs):
    p = log_probs.sum(1) / LENGTHS
    theirs = -p[:3] - Numbers().odds_ratio_loss(*p.chunk(2))[0]
    c, loss, _ = ORPO(weight=0.7).weigh(log_probs.sum(1), MASK)
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6, check_dtype=False)  # theirs is float32
    (gradient,) = torch.autograd.grad(theirs.sum(), log_probs)
    torch.testing.assert_close(c, -gradient * MASK, rtol=1e-5, atol=1e-7)


@pytest.fixture
def orpo_of(make_model, monkeypatch):
    """orpo_of(rows): their loss, and ours as surrogate and value, of one model in float64."""
    as_it_is = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else as_it_is(x))
    policy = make_model(seed=1).requires_grad_(True)

    def compute(rows):
        batch = collate(rows, Numbers.padding_value, policy.device)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        named = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
        halves = {name: tensor.chunk(2) for name, tensor in named.items()}
        sides = (("chosen", 0), ("rejected", 1))
        theirs, _ = Numbers().get_batch_loss_metrics(
            policy, {f"{side}_{name}": both[i] for side, i in sides for name, both in halves.items()}
        )
        log_probs = token_log_probs(policy, batch)
        c, loss, _ = ORPO(weight=0.7).weigh(log_probs.sum(1), batch["completion_mask"][:, 1:])
        return policy, theirs, surrogate(c, log_probs) / len(rows), loss

    return compute


def rows_of_lengths(prompt, *chosen):
    """Rows of random tokens: one pair for each length of y+; y- have lengths of their own."""
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(5, 60, n).tolist()

    return [
        {"prompt_ids": draw(prompt), "chosen_ids": draw(n), "rejected_ids": draw(3 + i)} for i, n in enumerate(chosen)
    ]


@pytest.mark.parametrize("lengths", [(4, 4, 4), (6,)])
def test_orpo_is_trls_where_both_average_the_same_tokens(lengths, orpo_of):
    """A prompt of one token, of which nothing is predicted, and responses y+ of one length."""
    policy, theirs, proxy, loss = orpo_of(rows_of_lengths(1, *lengths))
    assert float(loss.mean()) == pytest.approx(float(theirs), rel=1e-10)
    expected = gradients(policy, theirs)
    scale = max(float(g.abs().max()) for g in expected.values())
    policy.zero_grad()
    close(gradients(policy, proxy), expected, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize(("prompt", "lengths"), [(1, (2, 7)), (5, (4, 4))])
def test_trls_orpo_averages_its_nll_over_all_tokens_of_prompts_and_responses_and_ours_over_responses(
    prompt, lengths, orpo_of
):
    rows = rows_of_lengths(prompt, *lengths)
    policy, theirs, _, loss = orpo_of(rows)
    with torch.no_grad():
        texts = [torch.tensor([row["prompt_ids"] + row["chosen_ids"]]) for row in rows]
        nll = [F.cross_entropy(policy(ids).logits[0, :-1], ids[0, 1:], reduction="none") for ids in texts]
    of_tokens = torch.cat(nll).mean()
    of_responses = torch.stack([x[prompt - 1 :].mean() for x in nll]).mean()
    assert abs(float(of_tokens - of_responses)) > 0.01
    assert float(loss.mean() - theirs) == pytest.approx(float(of_responses - of_tokens), rel=1e-9)


# --- methods on samples -------------------------------------------------------------------------

# Two samples to one prompt: scores 3 and 1, of which the second has no end. Two response tokens, and three.
SCORED = Scored(
    scores=torch.tensor([3.0, 1.0], dtype=torch.float64),
    finished=torch.tensor([True, False]),
    log_ratios=torch.tensor([[0.0, 1.0, -0.5, 0.0], [0.2, 0.4, -1.0, 0.0]], dtype=torch.float64),
    values=torch.tensor([[0.0, 0.5, 1.5, 0.0], [0.3, -0.2, 0.6, 0.0]], dtype=torch.float64),
    mask=torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]]),
)


def ppos_returns():
    """Rewards -0.1 * log-ratio a token, scores 3 and 1 - 2 at the end; gamma 0.5, lambda 0.4."""
    last = [0.05 + 3 - 1.5, 0.1 + 1 - 2 - 0.6]  # r - V, of the last tokens
    first = -0.1 + 0.5 * 1.5 - 0.5 + 0.5 * 0.4 * last[0]
    middle = -0.04 + 0.5 * 0.6 + 0.2 + 0.5 * 0.4 * last[1]
    start = -0.02 + 0.5 * -0.2 - 0.3 + 0.5 * 0.4 * middle
    return [[0, first, last[0], 0], [start, middle, last[1], 0]]


def whitened_by_hand(rows):
    held = [a for row in rows for a in row if a]
    mean = sum(held) / 5
    spread = math.sqrt(sum((a - mean) ** 2 for a in held) / 5)
    return [[(a - mean) / spread if a else 0 for a in row] for row in rows]


GRPOS = 2 / math.sqrt(8)  # scores 3 and 1 - 2, mean 1, standard deviation sqrt(8)
RLOOS = (3 - 0.05) - (1 - 2 + 0.04)  # less 0.1 * KL, of 0.5 and of -0.4
WORKED = {  # of every method on samples: a value, its advantages, what it adds to A if the reference is twice as sure
    "ppo": (PPO(kl_coefficient=0.1, gamma=0.5, gae_lambda=0.4), whitened_by_hand(ppos_returns()), 0),
    "grpo": (
        GRPO(kl_coefficient=0.1, group_size=2),
        [[0, GRPOS / 2, GRPOS / 2, 0], [-GRPOS / 3, -GRPOS / 3, -GRPOS / 3, 0]],
        0.1 * (2 - 1),
    ),
    "rloo": (RLOO(kl_coefficient=0.1, group_size=2), [[0, RLOOS, RLOOS, 0], [-RLOOS, -RLOOS, -RLOOS, 0]], 0),
}


def test_every_method_on_samples_has_a_worked_example_here():
    assert set(WORKED) == {name for name, kind in METHODS.items() if issubclass(kind, SampleMethod)}
    assert set(WORKED) | set(PRINTED) == set(METHODS)
    assert all(type(method) is METHODS[name] for name, (method, *_) in WORKED.items())


@pytest.mark.parametrize("name", WORKED)
def test_advantages_are_those_of_the_worked_example(name):
    method, expected, pull = WORKED[name]
    method = replace(method, missing_eos_penalty=2.0)
    found, returns = method.advantages(SCORED)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-12)
    if method.has_values:
        raw = torch.tensor(ppos_returns(), dtype=torch.float64)
        torch.testing.assert_close(returns * SCORED.mask, raw + SCORED.values)
    mine = torch.zeros_like(SCORED.values)
    added = method.kl_in_loss(mine, mine + math.log(2), SCORED.mask)
    a_token = SCORED.mask / SCORED.mask.sum(1, keepdim=True).double()
    torch.testing.assert_close(added, pull * a_token)


@pytest.mark.parametrize("name", WORKED)
def test_padding_of_a_batch_changes_nothing_of_a_sample(name):
    """Three columns more, whatever stands there, at either side: advantages, returns, c, loss and clip stay."""
    method, mask = WORKED[name][0], SCORED.mask.bool()
    near = 0.5 * SCORED.log_ratios
    for sides in ((0, 3), (2, 1)):
        wide = replace(SCORED, mask=F.pad(SCORED.mask, sides), values=F.pad(SCORED.values, sides))
        wide = replace(wide, log_ratios=F.pad(SCORED.log_ratios, sides))
        found = []
        for scored, old in ((SCORED, near), (wide, F.pad(near, sides, value=-7.0))):
            new = old + 0.4 * old.sign()
            advantages, returns = method.advantages(scored)
            c, loss, clipped = method.clipped_weighting(new, old, advantages, scored.mask)
            added = method.kl_in_loss(new, old, scored.mask)
            found.append((advantages, returns, c, loss, clipped, added))
            assert not any(x[scored.mask == 0].any() for x in (advantages, c, loss, clipped, added))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other[wide.mask.bool()], one[mask])


@pytest.mark.parametrize("name", WORKED)
def test_every_method_on_samples_clips_as_ppo_does(name):
    """c = r A, and nothing where r has gone where A wants it by more than the clip; the loss is PPO's, by autograd."""
    method = replace(WORKED[name][0], clip=0.3)
    log_probs = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.25, 0.5, -0.5, 9.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 0.0, 0.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    c, loss, clipped = method.clipped_weighting(log_probs, torch.zeros_like(advantages), advantages, mask)
    ratio = log_probs.exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.7, 1.3) * advantages) * mask
    (gradient,) = torch.autograd.grad(expected.sum(), log_probs)
    torch.testing.assert_close(c, -gradient)
    torch.testing.assert_close(loss, expected)
    assert clipped.tolist() == [[True, False, False, True, *[False] * 4]] and not c.requires_grad


def test_a_ratio_that_lies_just_at_the_clip_is_not_clipped_yet():
    log_probs = torch.tensor([[1.25, 0.75]], dtype=torch.float64).log()
    advantages, mask = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.ones(1, 2)
    ratio = log_probs.exp()
    method = replace(PPO(), clip=float(ratio[0, 0]) - 1)
    _, _, clipped = method.clipped_weighting(log_probs, torch.zeros(1, 2), advantages, mask)
    assert ratio[0, 0] == 1 + method.clip and not clipped[0, 0]


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


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_a_group_of_one_is_refused(kind):
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        kind(group_size=1)
    assert kind(group_size=2).samples_a_prompt == 2
