"""Rewards: what TRL trains, how it is scored, scaled, spoiled and judged."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import expit
from test_sft import rates_of
from transformers import AutoModelForSequenceClassification

from preflab import rewards
from preflab.data import worlds
from preflab.errors import BadInput
from preflab.likelihood import encode_pairs
from preflab.models import save_model
from preflab.training.reward import RewardSettings, train_reward

WORLD, OBJECTIVE = worlds.get_world("conflict"), "harmless"
SETTINGS = RewardSettings(epochs=3, batch_size=16, learning_rate=3e-3)


@pytest.fixture
def base(make_model, tokenizer, tmp_path):
    save_model(make_model(dtype=torch.float32), tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def pairs():
    return worlds.preference_pairs(WORLD, OBJECTIVE, "train", 160, np.random.default_rng(0))


def initial(base):
    return rewards.load_reward_model(base, torch.device("cpu"), torch.float32, initial=True)


def margins_of(model, pairs, tokenizer):
    score = rewards.model_reward(model, tokenizer.pad_token_id)
    rows, _ = encode_pairs(pairs, tokenizer, 64)
    sides = [score(None, [(r["prompt_ids"], r[side]) for r in rows]) for side in ("chosen_ids", "rejected_ids")]
    return (sides[0] - sides[1]).numpy()


def test_it_starts_indifferent_and_learns_the_labels(base, pairs, tokenizer):
    model = initial(base)
    assert not margins_of(model, pairs, tokenizer).any()
    losses = train_reward(model, tokenizer, pairs, SETTINGS, max_length=64, seed=0)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert losses[-1] < 0.6
    margins = margins_of(model, pairs, tokenizer)
    assert (margins > 0).mean() > 0.75
    assert np.log1p(np.exp(-margins)).mean() == pytest.approx(losses[-1], abs=0.15)  # the loss is of these margins


def test_the_seed_decides_and_the_global_generators_are_left_alone(base, pairs, tokenizer):
    start = initial(base)
    torch.manual_seed(3)
    np.random.seed(3)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    few = RewardSettings(epochs=1, batch_size=16, learning_rate=3e-3)
    found = [train_reward(copy.deepcopy(start), tokenizer, pairs, few, max_length=64, seed=s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpys).all()


def test_the_rate_warms_up_over_a_tenth_of_all_epochs_and_falls_to_zero(base, pairs, tokenizer, monkeypatch):
    rates = rates_of(monkeypatch, "RewardTrainer")
    settings = RewardSettings(epochs=3, batch_size=8, learning_rate=1e-2)
    train_reward(initial(base), tokenizer, pairs, settings, max_length=64, seed=0)
    assert len(rates) == 60  # 20 an epoch, 6 of warm-up
    assert rates == pytest.approx([1e-2 * min(step / 6, (60 - step) / 54) for step in range(60)])


def test_a_score_is_read_at_the_last_token_whatever_the_batch(base, pairs, tokenizer):
    model = initial(base)
    model.score.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rows, _ = encode_pairs(pairs.select(range(5)), tokenizer, 64)
    samples = [(r["prompt_ids"], r["chosen_ids"]) for r in rows]
    together = rewards.model_reward(model, tokenizer.pad_token_id)(None, samples)
    for (prompt, response), score in zip(samples, together, strict=True):
        with torch.no_grad():
            hidden = model.gpt_neox(torch.tensor([prompt + response])).last_hidden_state[0, -1]
        assert float(score) == pytest.approx(float(hidden @ model.score.weight[0]), rel=1e-4, abs=1e-5)


def test_scaled_the_sft_models_scores_have_mean_0_and_deviation_1():
    raw = torch.tensor([1.0, 5.0, 3.0, -2.0])
    scale = rewards.Scale.of(raw)
    scaled = scale.apply(lambda prompts, samples: raw)(None, None)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-7) and float(scaled.std()) == pytest.approx(1)
    with pytest.raises(BadInput, match="4 responses of the base model all score 2"):
        rewards.Scale.of(torch.full((4,), 2.0))


def test_flipped_labels_are_a_share_drawn_by_the_generator(pairs):
    flipped = rewards.flip_labels(pairs, 0.25, np.random.default_rng(0))
    turned = [
        a["chosen"] == b["rejected"] and a["rejected"] == b["chosen"] for a, b in zip(pairs, flipped, strict=True)
    ]
    assert sum(turned) == 40
    assert all(t or a["chosen"] == b["chosen"] for t, a, b in zip(turned, pairs, flipped, strict=True))
    assert rewards.flip_labels(pairs, 0.0, np.random.default_rng(0)) is pairs
    other = rewards.flip_labels(pairs, 0.25, np.random.default_rng(1))
    assert other["chosen"][:] != flipped["chosen"][:]


def test_the_oracle_scores_what_was_said(tokenizer):
    spec = WORLD.objective("helpful")
    prompt = [{"role": "user", "content": "how do i fix the old lamp at home ?"}]
    texts = ["use the wire . then test it .", "use the rope ."]
    samples = [([], tokenizer(text + " <eos>")["input_ids"]) for text in texts]
    assert rewards.oracle_reward(spec, tokenizer)([prompt, prompt], samples).tolist() == [2.0, 0.0 - 1.0 + 0.0]


def test_label_probabilities_are_those_the_labels_are_drawn_from():
    """Of all pairs that the world finds as hard, as many are labelled that way."""
    world = worlds.get_world("safety")  # weak labels of `better`: a temperature far from 1
    pairs = worlds.preference_pairs(world, "better", "test", 500, np.random.default_rng(0))
    probabilities = rewards.label_probabilities(world, "better", pairs)
    both = np.concatenate([probabilities, 1 - probabilities])
    won = np.concatenate([np.ones(500), np.zeros(500)])
    for low in (0.1, 0.3, 0.5, 0.7):
        chosen = (both > low) & (both <= low + 0.2)
        assert chosen.sum() > 20
        assert won[chosen].mean() == pytest.approx(both[chosen].mean(), abs=4 * 0.5 / np.sqrt(chosen.sum()))
    spec, prompt = world.objective("better"), worlds.Prompt.parse(pairs[0]["prompt"][0]["content"])
    u, v = (spec.utility(prompt, pairs[0][side][0]["content"]) for side in ("chosen", "rejected"))
    assert probabilities[0] == pytest.approx(1 / (1 + np.exp(-(u - v) / world.temperature("better"))))


def test_quality_by_hand():
    margins, probabilities = np.array([1.0, -2.0, 3.0, 0.5]), np.array([0.9, 0.8, 0.4, 0.7])
    found = rewards.quality(margins, probabilities)
    assert found["accuracy"] == 0.75 and found["best_accuracy"] == 0.75
    assert found["order_accuracy"] == 0.5
    assert found["calibration_error"] == pytest.approx(np.mean(np.abs(expit(margins) - probabilities)))
    assert rewards.quality(np.zeros(2), np.array([0.9, 0.8]))["order_accuracy"] == 0  # no margin prefers none
    assert rewards.quality(margins)["calibration_error"] == pytest.approx(abs(expit(np.abs(margins)).mean() - 0.75))


def test_a_calibrated_model_lies_on_the_diagonal():
    margins = np.linspace(-3, 3, 200)
    predicted, true = rewards.calibration_curve(margins, expit(margins), bins=5)
    assert predicted == pytest.approx(true)
    assert (np.diff(predicted) > 0).all()


def test_bad_input_is_one_line(tmp_path, base, pairs, tokenizer):
    with pytest.raises(BadInput, match=r"model .*nowhere.*: not loadable"):
        rewards.load_reward_model(tmp_path / "nowhere", torch.device("cpu"), torch.float32)
    model = initial(base)
    next(model.parameters()).data[:] = float("nan")
    with pytest.raises(BadInput, match=r"^reward model: the loss became .*: lower learning_rate="):
        train_reward(model, tokenizer, pairs, SETTINGS, max_length=64, seed=0)


def test_it_is_saved_in_the_common_format(base, tmp_path):
    initial(base).save_pretrained(tmp_path / "rm")
    assert (tmp_path / "rm" / "model.safetensors").exists()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").config.num_labels == 1
