"""Training on pairs: the surrogate's gradient, parity with TRL, configurations that must agree, resuming, faults."""

import copy
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, PartialState
from safetensors import safe_open
from trl import DPOConfig, DPOTrainer

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs, collate, pair_log_probs, token_log_probs
from preflab.margins import accuracy, dpo_margin, policy_margin
from preflab.methods.dpo import DPO
from preflab.methods.method import PairMethod, Weighted
from preflab.training import from_pairs
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.training.schedule import batches, lr_factor
from preflab.weightings import surrogate

CPU = torch.device("cpu")
MODELS = [("gpt_neox", 0), ("llama", 0), ("gpt_neox", 2), ("llama", 2)]
SETTINGS = PairTraining(
    batch_size=8, micro_batch_size=8, learning_rate=1e-2, epochs=2, warmup_share=0.1, checkpoint_every=3
)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def close(a, b, **tolerance):
    assert a.keys() == b.keys() and a
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.fixture
def setup(make_model, make_rows, tokenizer):
    """A policy, rows, and the log-probs of a reference that is not the policy."""

    def make(architecture="gpt_neox", rank=0, n=8, dtype=torch.float64, **options):
        policy, rows = make_model(architecture, rank=rank, dtype=dtype, **options), make_rows(n)
        reference = make_model(architecture, dtype=dtype, seed=0 if rank else 1)
        return policy, rows, pair_log_probs(reference, rows, tokenizer.pad_token_id, 8)

    return make


@pytest.fixture
def train(tokenizer):
    def run(model, rows, reference, settings=SETTINGS, method=DPO(beta=0.3), **options):  # noqa: B008  a frozen value
        return train_on_pairs(model, tokenizer, rows, reference, method, settings, seed=3, **options)

    return run


def ours(policy, rows, reference, beta, pad):
    batch = collate(rows, pad, CPU)
    log_probs = token_log_probs(policy, batch)
    ref = torch.cat([reference.chosen, reference.rejected])
    c, loss, margins = DPO(beta=beta).weigh(log_probs.sum(1) - ref, batch["completion_mask"][:, 1:])
    return batch, surrogate(c, log_probs) / len(rows), loss, margins


# --- the weighting --------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_the_surrogate_has_the_gradient_of_the_loss(architecture, rank, setup, tokenizer, exact_norm):
    policy, rows, reference = setup(architecture, rank)
    batch, proxy, loss, margins = ours(policy, rows, reference, 0.7, tokenizer.pad_token_id)
    got = gradients(policy, proxy)

    nll = torch.zeros(16, dtype=torch.float64)
    for i in range(16):  # written from the paper, one sequence at a time
        ids, mask = batch["input_ids"][i], batch["completion_mask"][i].bool()
        logits = policy(ids[None], attention_mask=batch["attention_mask"][i][None]).logits[0, :-1]
        nll[i] = F.cross_entropy(logits[mask[1:]], ids[1:][mask[1:]], reduction="sum")
    delta = (-nll[:8] - reference.chosen) - (-nll[8:] - reference.rejected)
    expected = -torch.log(1 / (1 + torch.exp(-0.7 * delta)))
    close(got, gradients(policy, expected.mean()), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(margins, 0.7 * delta, rtol=1e-6, atol=1e-8)


def test_c_by_hand():
    log_ratios = torch.tensor([0.5, -1.0, 0.2, 1.0], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
    c, loss, margins = DPO(beta=2.0).weigh(log_ratios, mask)
    w = [2 / (1 + math.exp(2 * 0.3)), 2 / (1 + math.exp(-2 * 2.0))]
    assert margins.tolist() == pytest.approx([0.6, -4.0])
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.6)), math.log(1 + math.exp(4))])
    expected = torch.tensor([w[0], w[1], -w[0], -w[1]], dtype=torch.float64)[:, None] * mask
    torch.testing.assert_close(c, expected)
    assert not c.requires_grad and c[:2].min() >= 0 >= c[2:].max()
    torch.testing.assert_close(c.sum(1), expected.sum(1))


def test_against_itself_the_loss_is_ln_2(make_model, make_rows, tokenizer, train):
    model, rows = make_model(rank=2), make_rows(16)
    reference = pair_log_probs(model, rows, tokenizer.pad_token_id, 8)
    first = train(model, rows, reference, replace(SETTINGS, epochs=1))[0]
    assert first.loss == pytest.approx(math.log(2), abs=1e-7) and first.margin == pytest.approx(0, abs=1e-6)
    assert first.grad_norm > 0.01


@dataclass(frozen=True)
class Told(PairMethod):
    """Margins that are given; nothing is learnt."""

    margins: tuple[float, ...]

    def weigh(self, log_ratios, completion_mask):
        margins = torch.tensor(self.margins, dtype=log_ratios.dtype)
        return Weighted(torch.zeros_like(completion_mask, dtype=log_ratios.dtype), 2 - margins, margins)


def test_a_pair_with_a_margin_of_0_is_not_right(setup, train):
    (log,) = train(*setup(), replace(SETTINGS, epochs=1), Told((1.0, 0.0, 0.0, -2.0, 0.5, -0.1, 0.0, 3.0)))
    assert (log.accuracy, log.margin, log.loss) == pytest.approx((3 / 8, 2.4 / 8, 2 - 2.4 / 8))


def test_the_surrogate_does_not_differentiate_c():
    c = torch.tensor([2.0, -1.0], requires_grad=True)
    log_probs = torch.tensor([-1.0, -3.0], requires_grad=True)
    value = surrogate(c * log_probs, log_probs)
    value.backward()
    assert c.grad is None and log_probs.grad.tolist() == [2.0, -3.0]


# --- parity with TRL ------------------------------------------------------------------------------


def trl_trainer(model, tokenizer, pairs, folder, **options):
    config = DPOConfig(
        str(folder),
        per_device_train_batch_size=8,
        max_length=None,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        disable_dropout=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **{"beta": 0.7, "loss_type": "sigmoid", **options.pop("config", {})},
    )
    return DPOTrainer(model, args=config, train_dataset=pairs, processing_class=tokenizer, **options)


class Float64Head:
    """Stands in for TRL's LM-head kernel, which computes in float32 whatever the model's dtype."""

    @staticmethod
    def apply(hidden, weight, bias, labels, *_):
        log_probs = torch.log_softmax(F.linear(hidden, weight, bias), -1)
        zeros = torch.zeros_like(log_probs[:, 0])
        return log_probs.gather(-1, labels[:, None])[:, 0], zeros, zeros, zeros, zeros.bool()


@pytest.mark.parametrize("tolerance", [1e-5, 1e-10])
@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_one_batch_is_trls(
    architecture, rank, tolerance, setup, make_model, make_pairs, tokenizer, tmp_path, monkeypatch, exact_norm
):
    if tolerance < 1e-6:
        monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", Float64Head)
    policy, rows, reference = setup(architecture, rank)
    theirs = copy.deepcopy(policy)
    trainer = trl_trainer(theirs, tokenizer, make_pairs(8), tmp_path, ref_model=make_model())
    trainer.precompute_ref_logps = True
    batch, proxy, loss, margins = ours(policy, rows, reference, 0.7, tokenizer.pad_token_id)
    inputs = batch | {"ref_chosen_logps": reference.chosen, "ref_rejected_logps": reference.rejected}
    their_loss = trainer.compute_loss(theirs, inputs)
    assert float(loss.mean()) == pytest.approx(float(their_loss), rel=tolerance)
    metrics = trainer._metrics["eval"]
    assert metrics["rewards/margins"][0] == pytest.approx(float(margins.mean()), rel=tolerance)
    assert metrics["rewards/accuracies"][0] == pytest.approx(float((margins > 0).double().mean()))
    their_gradients = gradients(theirs, their_loss)
    scale = max(float(g.abs().max()) for g in their_gradients.values())
    close(gradients(policy, proxy), their_gradients, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("architecture", "rank"), [("llama", 0), ("gpt_neox", 4)])
def test_twenty_steps_are_trls(architecture, rank, make_model, make_pairs, make_rows, tokenizer, tmp_path, train):
    """Their whole trainer against ours: encoding, reference, schedule, clipping, Adam."""
    settings = replace(SETTINGS, learning_rate=3e-3, epochs=5, max_grad_norm=0.5, weight_decay=1.0, adam_beta2=0.9)
    policy, base = (
        make_model(architecture, rank=rank, dtype=torch.float32),
        make_model(architecture, dtype=torch.float32),
    )
    theirs, rows = copy.deepcopy(policy), make_rows(32)
    log = train(policy, rows, pair_log_probs(base, rows, tokenizer.pad_token_id, 8), settings, DPO(beta=0.7))

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.9), weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, 20, 0.1))
    trainer = trl_trainer(
        theirs,
        tokenizer,
        make_pairs(32).select(np.concatenate(batches(32, 8, 5, seed=3))),
        tmp_path,
        ref_model=base,
        optimizers=(optimizer, schedule),
        config={"logging_steps": 1, "max_grad_norm": 0.5, "num_train_epochs": 1},
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(log) == len(history) == 20 and log[-1].loss < 0.8 * log[0].loss
    assert [s.loss for s in log] == pytest.approx([h["loss"] for h in history], abs=1e-4)
    assert [s.margin for s in log] == pytest.approx([h["rewards/margins"] for h in history], abs=1e-3)
    accuracies = [h["rewards/accuracies"] for h in history]
    assert [s.accuracy for s in log][1:] == pytest.approx(accuracies[1:])  # the first margins are 0
    assert [s.grad_norm for s in log] == pytest.approx([h["grad_norm"] for h in history], rel=1e-3)
    assert sum(s.grad_norm > 0.5 for s in log) > 3  # the clip was at work
    close(weights(policy), weights(theirs), rtol=0, atol=1e-4)


# --- configurations that must agree ---------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_micro_batches_agree(rank, setup, train):
    results = []
    for size in (16, 8, 4, 5):
        policy, rows, reference = setup(rank=rank, n=40)
        log = train(policy, rows, reference, replace(SETTINGS, batch_size=16, micro_batch_size=size))
        results.append((log, weights(policy)))
    for log, end in results[1:]:
        for one, other in zip(log, results[0][0], strict=True):
            assert vars(one) == pytest.approx(vars(other), abs=1e-10)
        close(end, results[0][1], rtol=0, atol=1e-10)


def _train_and_save(setup, train, settings, path):
    torch.set_num_threads(1)
    policy, rows, reference = setup(n=16)
    log = train(policy, rows, reference, settings)
    rank = PartialState().process_index
    torch.save(([vars(entry) for entry in log], weights(policy)), f"{path}.{rank}")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("micro_batch_size", [3, 8])  # unequal shares; a process with nothing
def test_two_processes_agree_with_one(micro_batch_size, setup, train, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = replace(SETTINGS, micro_batch_size=micro_batch_size, epochs=2)
    _train_and_save(setup, train, settings, tmp_path / "one")
    before = dict(PartialState._shared_state)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        debug_launcher(_train_and_save, (setup, train, settings, tmp_path / "two"))
    finally:
        PartialState._shared_state.update(before)
    one, *two = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for log, end in two:
        for entry, expected in zip(log, one[0], strict=True):
            assert entry == pytest.approx(expected, abs=1e-10)
        close(end, one[1], rtol=0, atol=1e-10)


# --- interruption ---------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_at(n):
    def on_step(step, steps, log):
        if step == n:
            raise Killed

    return on_step


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("killed_at", [2, 5, 10])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(rank, killed_at, setup, train, tmp_path):
    settings, options = replace(SETTINGS, weight_decay=0.1, epochs=5), {"rank": rank, "dropout": 0.3}
    policy, rows, reference = setup(**options, n=16, dtype=torch.float32)
    whole, end = train(policy, rows, reference, settings), weights(policy)

    checkpoint, steps = tmp_path / "state.safetensors", []
    policy = setup(**options, n=16, dtype=torch.float32)[0]
    with pytest.raises(Killed):
        train(policy, rows, reference, settings, checkpoint=checkpoint, on_step=kill_at(killed_at))
    assert checkpoint.exists() == (killed_at > 3) and not list(tmp_path.glob("*.tmp"))
    torch.rand(7)  # the global generator is elsewhere by then
    policy = setup(**options, n=16, dtype=torch.float32)[0]
    resumed = train(
        policy, rows, reference, settings, checkpoint=checkpoint, on_step=lambda *entry: steps.append(entry)
    )
    assert resumed == whole and steps[0][0] == (killed_at - 1) // 3 * 3 + 1 and steps[-1][:2] == (10, 10)
    assert [entry[2] for entry in steps] == whole[steps[0][0] - 1 :]
    close(weights(policy), end, rtol=0, atol=0)


@pytest.mark.parametrize(("every", "kept"), [(2, 2), (3, 3), (4, None)])
def test_the_end_of_a_run_is_no_checkpoint(every, kept, setup, train, tmp_path):
    """Of four updates: what is whole is kept elsewhere."""
    checkpoint = tmp_path / "state.safetensors"
    log = train(*setup(n=16), replace(SETTINGS, epochs=2, checkpoint_every=every), checkpoint=checkpoint)
    assert len(log) == 4 and checkpoint.exists() == (kept is not None)
    if kept:
        with safe_open(checkpoint, "pt") as file:
            assert len(json.loads(file.metadata()["record"])["history"]) == kept


def test_dropout_is_at_work_and_seeded(setup, train):
    logs = [
        train(*setup(rank=2, dropout=p, n=16), replace(SETTINGS, epochs=1))
        for p in (0.0, 0.3, 0.3)
    ]  # fmt: skip
    assert logs[0] != logs[1] == logs[2]


def test_every_update_draws_dropout_of_its_own(setup, train, monkeypatch):
    drawn = []

    def watched(model, batch):
        drawn.append(torch.initial_seed())
        return token_log_probs(model, batch)

    monkeypatch.setattr(from_pairs, "token_log_probs", watched)
    log = train(*setup(rank=2, dropout=0.3, n=16))
    assert len(set(drawn)) == len(drawn) == len(log) == 4


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_activation_checkpointing_changes_memory_and_no_number(architecture, rank, setup, train):
    ends = []
    for recompute in (False, True):
        policy, rows, reference = setup(architecture, rank, dropout=0.2 if rank else 0.0)
        log = train(policy, rows, reference, replace(SETTINGS, activation_checkpointing=recompute))
        ends.append((log, weights(policy)))
    assert ends[0][0] == ends[1][0]
    close(ends[1][1], ends[0][1], rtol=0, atol=0)


def test_micro_batches_are_of_like_length(setup, train, monkeypatch):
    seen = []

    def watched(model, batch):
        seen.append(int(batch["attention_mask"].sum()))
        return token_log_probs(model, batch)

    monkeypatch.setattr(from_pairs, "token_log_probs", watched)
    policy, rows, reference = setup(n=8)
    train(policy, rows, reference, replace(SETTINGS, batch_size=8, micro_batch_size=2, epochs=1))
    assert len(seen) == 4 and seen == sorted(seen) and seen[0] < seen[-1]


def test_training_leaves_the_global_generator_alone_and_the_model_in_eval(setup, train):
    policy, rows, reference = setup()
    state = torch.get_rng_state()
    train(policy, rows, reference)
    assert torch.equal(torch.get_rng_state(), state) and not policy.training


def test_gradients_left_by_a_measurement_do_not_count(setup, train):
    policy, rows, reference = setup()
    expected = train(policy, rows, reference)
    policy, *_ = setup()
    for p in policy.parameters():
        p.grad = torch.ones_like(p)
    assert train(policy, rows, reference) == expected


# --- faults ---------------------------------------------------------------------------------------


def one_line(error):
    return "\n" not in str(error.value)


def test_a_broken_checkpoint_is_named(setup, train, tmp_path):
    policy, rows, reference = setup(n=16)
    checkpoint = tmp_path / "state.safetensors"
    train(policy, rows, reference, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    for broken in (whole[:100], whole[:-100], b""):
        checkpoint.write_bytes(broken)
        with pytest.raises(BadInput, match=r"^checkpoint .*state\.safetensors: unreadable \(.*delete it") as error:
            train(policy, rows, reference, checkpoint=checkpoint)
        assert one_line(error)


@pytest.mark.parametrize("cause", ["learning rate", "weights"])
def test_a_loss_that_is_no_number_stops_the_run(cause, setup, train):
    policy, rows, reference = setup(n=16, dtype=torch.float32)
    settings = replace(SETTINGS, learning_rate=1e30) if cause == "learning rate" else SETTINGS
    if cause == "weights":
        next(policy.parameters()).data[:] = float("nan")
    with pytest.raises(BadInput, match=r"^training on pairs, update \d: loss .* lower learning_rate=") as error:
        train(policy, rows, reference, settings)
    assert one_line(error)


def test_what_does_not_fit_is_refused(setup, train):
    policy, rows, reference = setup()
    with pytest.raises(BadInput, match=r"^reference log-probs for 8 pairs, expected 7$"):
        train(policy, rows[:7], reference)
    with pytest.raises(BadInput, match=r"^batch_size=9: only 8 training pairs$"):
        train(policy, rows, reference, replace(SETTINGS, batch_size=9))


# --- schedules ------------------------------------------------------------------------------------


def test_lr_warms_up_and_decays_to_zero():
    factors = [lr_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3]) and factors[9:11] == pytest.approx([1, 1])
    assert factors[55] == pytest.approx(0.5) and factors[99] == pytest.approx(1 / 90) and factors[100] == 0
    assert [lr_factor(step, 4, 0.0) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert 0 < lr_factor(0, 1, 0.1) <= 1 and all(0 < f <= 1 for f in factors[:-1])


def test_batches_are_fresh_permutations():
    schedule = batches(n=10, batch_size=3, epochs=4, seed=0)
    assert [len(b) for b in schedule] == [3] * 12
    epochs = [np.concatenate(schedule[i : i + 3]) for i in range(0, 12, 3)]
    assert all(len(set(e)) == 9 and set(e) <= set(range(10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert np.array_equal(schedule, batches(10, 3, 4, seed=0)) and not np.array_equal(schedule, batches(10, 3, 4, 1))


def test_updates_end_training_before_the_epochs_do_with_a_schedule_of_their_own(setup, train, monkeypatch):
    asked = []
    monkeypatch.setattr(from_pairs, "lr_factor", lambda *how: asked.append(how) or lr_factor(*how))
    policy, rows, reference = setup(n=16)
    seen = []
    log = train(policy, rows, reference, updates=3, on_step=lambda step, steps, _: seen.append((step, steps)))
    assert len(log) == 3 and seen == [(1, 3), (2, 3), (3, 3)]
    assert asked == [(step, 3, SETTINGS.warmup_share) for step in range(3)]
    assert len(train(*setup(n=16), updates=None)) == len(train(*setup(n=16), updates=99)) == 4


# --- it learns ------------------------------------------------------------------------------------


def test_training_raises_held_out_accuracy(make_model, make_rows, tokenizer, train):
    model = make_model(dtype=torch.float32)
    rows, held_out = make_rows(256), make_rows(200, seed=1, split="test")
    pad = tokenizer.pad_token_id
    reference, before = (pair_log_probs(model, r, pad, 32) for r in (rows, held_out))
    settings = PairTraining(learning_rate=1e-2, batch_size=16, epochs=3, warmup_share=0.1)
    train(model, rows, reference, settings)
    after = pair_log_probs(model, held_out, pad, 32)
    assert isinstance(after, PairLogProbs)
    assert accuracy(dpo_margin(before, before, 0.3)) == 0
    assert accuracy(dpo_margin(after, before, 0.3)) > 0.65
    assert policy_margin(after).mean() > policy_margin(before).mean()
