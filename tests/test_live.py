"""Live G: by hand through autograd, its proxy, its smoothing, and what it costs and changes in training."""

from dataclasses import replace

import pytest
import torch
from test_rules import parameters

from preflab import rules
from preflab.generation import respond, sample
from preflab.likelihood import collate, collate_responses, pair_log_probs, token_log_probs
from preflab.live import Live, smoothed
from preflab.measured import PARTS
from preflab.methods.dpo import DPO
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.weightings import Weights

SETTINGS = PairTraining(
    batch_size=4, micro_batch_size=2, learning_rate=1e-2, epochs=2, warmup_share=0.1, checkpoint_every=3
)


def plain_g(model, tokenizer, batch, c, n, max_new_tokens):
    """v . grad of each part's loss, a backward pass each."""
    ids = [
        row[: int(m.argmax())].tolist()
        for row, m in zip(batch["input_ids"][:n], batch["completion_mask"], strict=False)
    ]
    finals = collate_responses(respond(model, tokenizer, ids, max_new_tokens), tokenizer.pad_token_id, model.device)
    parameters_ = list(model.parameters())
    v = torch.autograd.grad(-token_log_probs(model, finals).sum() / n, parameters_)
    found = []
    for part in (c.clamp(min=0), c.clamp(max=0)):
        g = torch.autograd.grad(-(part * token_log_probs(model, batch)).sum() / n, parameters_)
        found.append(sum(float((a * b).sum()) for a, b in zip(v, g, strict=True)))
    return found


@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_it_is_g_with_greedy_answers_of_the_current_policy(architecture, size, make_model, make_rows, tokenizer):
    model = make_model(architecture, dtype=torch.float32).requires_grad_(True).train()
    batch = collate(make_rows(5), tokenizer.pad_token_id, model.device)
    mask = batch["completion_mask"][:, 1:]
    c, *_ = DPO(beta=0.3).weigh(torch.linspace(-2, 2, 10), mask)
    found = Live(1, max_new_tokens=6, size=size).look(model, tokenizer, batch, c, 5)
    assert found == pytest.approx(plain_g(model, tokenizer, batch, c, 5, 6), rel=2e-3)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_a_look_is_without_dropout(make_model, make_rows, tokenizer):
    model = make_model(rank=2, dropout=0.5).train()
    batch = collate(make_rows(4), tokenizer.pad_token_id, model.device)
    c = torch.ones(8, batch["input_ids"].shape[1] - 1)
    first, again = (Live(1, max_new_tokens=5, size=8).look(model, tokenizer, batch, c, 4) for _ in range(2))
    assert first == again and model.training


def test_the_proxy_answers_the_prompts_of_the_batch(make_model, make_pairs, make_rows, tokenizer, monkeypatch):
    """The prompts are cut out of the rows; the same as those that a chat template makes."""
    model, pairs, seen = make_model().requires_grad_(True), make_pairs(4), []
    monkeypatch.setattr("preflab.live.respond", lambda m, t, ids, n: seen.append(respond(m, t, ids, n)) or seen[-1])
    batch = collate(make_rows(4), tokenizer.pad_token_id, model.device)
    c = torch.ones(8, batch["input_ids"].shape[1] - 1)
    Live(1, max_new_tokens=5, size=8).look(model, tokenizer, batch, c, 4)
    assert seen == [sample(model, tokenizer, pairs["prompt"], max_new_tokens=5)]


def test_smoothing_starts_at_the_first_look():
    assert smoothed(None, (2.0, -1.0)) == [2.0, -1.0]
    assert smoothed([2.0, -1.0], (0.0, 1.0)) == [1.0, 0.0]


class Told:
    """Live G that is made up, every second update."""

    every = 2

    def __init__(self, values):
        self.values = iter(values)

    def look(self, policy, tokenizer, batch, c, units):
        return next(self.values)


@pytest.fixture
def run(make_model, make_rows, tokenizer):
    def train(live, settings=SETTINGS, rule=rules.Plain(), **options):  # noqa: B008  a frozen value
        rows = make_rows(12)
        reference = pair_log_probs(make_model(), rows, tokenizer.pad_token_id, 8)
        model = make_model().requires_grad_(True)
        how = {"seed": 0, "rule": rule, "live": live, **options}
        return model, train_on_pairs(model, tokenizer, rows, reference, DPO(beta=0.3), settings, **how)

    return train


def test_training_looks_every_so_often_and_the_rule_sees_it(run):
    seen = []

    def rule(w: Weights):
        seen.append(w.live)
        return w.c

    _, log = run(Told([(1.0, 0.0), (3.0, 2.0), (0.0, 0.0)]), rule=rule)
    expected = [[1.0, 0.0], [1.0, 0.0], [2.0, 1.0], [2.0, 1.0], [1.0, 0.5], [1.0, 0.5]]
    assert [entry.live for entry in log] == expected
    assert seen == [x for x in expected for _ in range(2)]  # micro-batches


def test_looking_alone_changes_nothing(run, tokenizer, make_model):
    plain, _ = run(None)

    class Checked(Live):
        def look(self, policy, tokenizer, batch, c, units):
            assert units == 4 and c.shape[0] == 8 and not c.requires_grad
            return super().look(policy, tokenizer, batch, c, units)

    model, log = run(Checked(2, max_new_tokens=4, size=8))
    assert log[0].live is not None
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_stopped_between_two_looks_it_goes_on_with_the_last_one(run, tmp_path):
    rule = rules.Adaptive(gain=0.9)
    whole, log = run(Told([(1.0, 0.0), (3.0, 2.0), (0.5, 4.0)]), rule=rule)
    path = tmp_path / "state.safetensors"

    def stop(step, steps, entry):
        if step == 4:
            raise KeyboardInterrupt

    settings = replace(SETTINGS, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(Told([(1.0, 0.0), (3.0, 2.0)]), settings, rule, checkpoint=path, on_step=stop)
    resumed, again = run(Told([(0.5, 4.0)]), settings, rule, checkpoint=path)
    assert [list(entry.live) for entry in again][-1] == log[-1].live
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.usefixtures("module_cache")
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_an_adaptive_run_leaves_its_looks_and_is_measured_with_them(method):
    row = {"method": method, "rule": "adaptive", "live_every": 1, "arguments": {"gain": 0.9}}
    p = parameters(variants={"plain": {"method": method}, "x": row})
    (training,) = [run.training for run in p.planned() if run.name == "x"]
    history = training.load()
    assert all(len(entry["live"]) == 2 and all(map(abs, entry["live"])) for entry in history)
    w = Weights(torch.tensor([[1.0], [-1.0]]), torch.ones(1), torch.ones(1).bool(), 0.0, history[0]["live"])
    up, down = training.rule(w).flatten().tolist()
    assert up != 1
    measured = p.alignment(training).load()
    g = dict(zip(PARTS, measured.g[0], strict=True))
    assert g["trained"] == pytest.approx(up * g["positive"] - down * g["negative"], rel=1e-6)
