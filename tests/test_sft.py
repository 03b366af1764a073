"""SFT: the loss on completions alone, falling, seeded, refused when it is no number."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trl
from transformers import TrainerCallback

from preflab.data.worlds import sft_conversations
from preflab.errors import BadInput
from preflab.training.sft import SFTSettings, train_sft
from preflab.weightings import sft_weighting, surrogate

SETTINGS = SFTSettings(steps=30, batch_size=16, learning_rate=1e-2)


@pytest.fixture
def conversations():
    return sft_conversations("answers", 64, np.random.default_rng(0))


def rates_of(monkeypatch, trainer):
    """A list to which a trainer of TRL's will add the learning rate of every update."""
    rates = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
            rates.append(optimizer.param_groups[0]["lr"])

    kind = getattr(trl, trainer)
    monkeypatch.setattr(trl, trainer, lambda *args, **options: kind(*args, callbacks=[Watch()], **options))
    return rates


def completion_nll(model, tokenizer, conversations):
    """Mean NLL over completion tokens, from the model's own cross-entropy with everything else masked."""
    total, tokens = 0.0, 0
    for row in conversations:
        prompt = tokenizer(f"<user>{row['prompt'][0]['content']}<assistant>")["input_ids"]
        completion = tokenizer(f"{row['completion'][0]['content']}<eos>")["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.no_grad():
            loss = model(torch.tensor([prompt + completion]), labels=labels).loss
        total, tokens = total + float(loss) * len(completion), tokens + len(completion)
    return total / tokens


def test_the_loss_is_on_completion_tokens_alone(make_model, tokenizer, conversations):
    model, few = make_model(dtype=torch.float32), conversations.select(range(8))
    expected = completion_nll(model, tokenizer, few)
    losses = train_sft(model, tokenizer, few, replace(SETTINGS, steps=1, batch_size=8), max_length=64, seed=0)
    assert losses == pytest.approx([expected], rel=1e-4)


def test_the_loss_falls_and_the_model_has_learnt(make_model, tokenizer, conversations):
    model = make_model(dtype=torch.float32)
    before = completion_nll(model, tokenizer, conversations)
    losses = train_sft(model, tokenizer, conversations, SETTINGS, max_length=64, seed=0)
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0]
    assert completion_nll(model, tokenizer, conversations) < 0.7 * before
    assert not model.training


def test_the_seed_decides_and_the_global_generator_is_left_alone(make_model, tokenizer, conversations):
    start, settings = make_model(dtype=torch.float32), replace(SETTINGS, steps=6)
    how = {"max_length": 64}
    runs = [train_sft(copy.deepcopy(start), tokenizer, conversations, settings, seed=s, **how) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_training_leaves_the_global_generator_alone(make_model, tokenizer, conversations):
    torch.manual_seed(12345)
    np.random.seed(12345)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = replace(SETTINGS, steps=1)
    train_sft(make_model(dtype=torch.float32), tokenizer, conversations, one, max_length=64, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpys).all()


@pytest.mark.parametrize("cause", ["learning rate", "weights"])
def test_a_loss_that_is_no_number_stops_the_run(cause, make_model, tokenizer, conversations):
    model = make_model(dtype=torch.float32)
    if cause == "weights":
        next(model.parameters()).data[:] = float("nan")
    settings = replace(SETTINGS, steps=4, learning_rate=1e30 if cause == "learning rate" else 1e-2)
    with pytest.raises(BadInput, match=r"^SFT: the loss became .*: lower learning_rate=") as error:
        train_sft(model, tokenizer, conversations, settings, max_length=64, seed=0)
    assert "\n" not in str(error.value)


def test_the_weighting_is_one_on_every_response_token():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    log_probs = torch.tensor([[0.0, -1.0, -2.0], [-4.0, 0.0, 0.0]])
    assert sft_weighting(mask).tolist() == mask.tolist()
    assert float(surrogate(sft_weighting(mask), log_probs)) == 7


def test_the_rate_warms_up_over_a_twentieth_and_falls_as_a_cosine(make_model, tokenizer, conversations, monkeypatch):
    rates = rates_of(monkeypatch, "SFTTrainer")
    settings = replace(SETTINGS, steps=40, batch_size=2)
    train_sft(make_model(dtype=torch.float32), tokenizer, conversations, settings, max_length=64, seed=0)
    assert len(rates) == 40 and rates[:3] == pytest.approx([0, 5e-3, 1e-2])  # 2 steps of warm-up
    falling = [0.5e-2 * (1 + math.cos(math.pi * step / 38)) for step in range(38)]
    assert rates[2:] == pytest.approx(falling)
