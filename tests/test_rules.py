"""Ablations: each rule by hand, in both trainers, and a new one in one function and one row."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from preflab import bases, dynamics, measurement, rules
from preflab.errors import BadInput
from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.parameters import resolve
from preflab.paths import project_root
from preflab.rules import Weights, resolve_rule, rule_key
from preflab.training.dpo import DPOSettings, train_dpo

NOTEBOOK = project_root() / "notebooks" / "src" / "03_component_ablations.py"
ROWS = {
    "DPO": {"method": "dpo"},
    "half": {"method": "dpo", "rule": "without_negative"},
    "PPO": {"method": "ppo"},
    "no positive": {"method": "ppo", "rule": "without_positive", "until": 0.5},
}
TINY = {
    "device": "cpu", "dtype": "float64", "workers": 1, "train_pairs": 32, "test_pairs": 16, "max_new_tokens": 8,
    "seeds": [0], "hidden_size": 16, "layers": 1, "heads": 2, "sft_steps": 10, "sft_batch_size": 16,
    "dpo_batch_size": 8, "dpo_micro_batch_size": 8, "reward_epochs": 1, "ppo_iterations": 2, "ppo_batch_size": 8,
    "ppo_minibatch_size": 4, "dpo_measure_every": 2, "ppo_measure_every": 1, "probe": 6, "finals": 6, "shown": 1,
    "variants": ROWS,
}  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path_factory.getbasetemp() / "rules"))


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **given}, "test")


def pairs_with(*weights, tokens=2, progress=0.0):
    """A DPO batch with these w: chosen rows above rejected ones."""
    w = torch.tensor(weights)
    return Weights(torch.cat([w, -w])[:, None].repeat(1, tokens), w, torch.ones_like(w, dtype=torch.bool), progress)


def samples_with(*advantages, progress=0.0):
    """A PPO batch of one row; 0 stands for padding."""
    a = torch.tensor([advantages])
    return Weights(a, a.abs(), a != 0, progress)


def test_signs():
    w = samples_with(1.0, -2.0, 3.0, 0.0)
    assert rules.plain(w) is w.c
    assert rules.without_negative(w).tolist() == [[1, 0, 3, 0]]
    assert rules.without_positive(w).tolist() == [[0, -2, 0, 0]]
    assert rules.equal_weights(w).tolist() == [[2, -2, 2, 0]]


def test_equal_weights_of_pairs_have_the_mean_of_pairs():
    assert rules.equal_weights(pairs_with(0.1, 0.3))[:, 0].tolist() == pytest.approx([0.2, 0.2, -0.2, -0.2])


def test_tertiles_of_pairs_are_of_both_sides_and_those_of_ppo_of_tokens():
    w = pairs_with(0.3, 0.1, 0.2)
    assert rules.only_tertile(w, which="top")[:, 0].tolist() == pytest.approx([0.3, 0, 0, -0.3, 0, 0])
    assert rules.without_tertile(w, which="bottom")[:, 0].tolist() == pytest.approx([0.3, 0, 0.2, -0.3, 0, -0.2])
    w = samples_with(1.0, -2.0, 3.0, 0.0)
    assert rules.only_tertile(w, which="middle").tolist() == [[0, -2, 0, 0]]
    assert rules.without_tertile(w, which="top").tolist() == [[1, -2, 0, 0]]


def test_schedules():
    early, late = samples_with(1.0, -2.0, progress=0.49), samples_with(1.0, -2.0, progress=0.5)
    assert rules.positive_then_negative(early).tolist() == [[1, 0]]
    assert rules.positive_then_negative(late).tolist() == [[0, -2]]
    rule = resolve_rule("without_negative", {}, until=0.5)
    assert rule(early).tolist() == [[1, 0]] and rule(late).tolist() == [[1, -2]]


@pytest.mark.parametrize(
    ("shape", "progress", "share"),
    [
        ("linear", 0.0, 0.2),
        ("linear", 0.5, 0.5),
        ("cosine", 0.25, 0.2 + 0.6 * 0.1464466),
        ("step", 0.49, 0.2),
        ("step", 0.5, 0.8),
    ],
)
def test_coordination_moves_weight_from_positive_to_negative(shape, progress, share):
    found = rules.coordinated(samples_with(1.0, -3.0, progress=progress), start=0.2, end=0.8, shape=shape, total=2.0)
    assert found[0].tolist() == pytest.approx([2 * (1 - share), -6 * share])


def test_coordination_half_and_half_is_the_plain_method():
    w = samples_with(1.0, -3.0, 0.5, progress=0.3)
    assert rules.coordinated(w, start=0.5, end=0.5).tolist() == w.c.tolist()


@pytest.mark.parametrize(
    ("gain", "live", "share"),
    [
        (0.5, (0.1, 0.3), 0.5 + 0.25 * 0.5),  # negative learning pulls harder: more of it
        (-0.5, (0.1, 0.3), 0.5 - 0.25 * 0.5),
        (1.0, (-1.0, 0.0), 1.0),
        (0.5, (0.0, 0.0), 0.5),
    ],
)
def test_adaptive_coordination_follows_live_g(gain, live, share):
    w = replace(samples_with(1.0, -3.0), live=live)
    assert rules.adaptive(w, gain=gain)[0].tolist() == pytest.approx([2 * (1 - share), -6 * share])


def test_adaptive_coordination_needs_live_g():
    with pytest.raises(BadInput, match="rule adaptive: expected live_every beside it"):
        rules.adaptive(samples_with(1.0), gain=0.5)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [("keep_above", [0, -2, 3, 0]), ("keep_negative_above", [0.5, -2, 3, 0]), ("drop_above", [0.5, 0, 0, -0.1])],
)
def test_three_readings_of_the_threshold(reading, expected):
    found = rules.thresholded(samples_with(0.5, -2.0, 3.0, -0.1), tau=1.0, reading=reading)
    assert found[0].tolist() == pytest.approx(expected)


def test_an_unknown_schedule_or_reading_is_one_line():
    with pytest.raises(BadInput, match="shape='square', expected one of: linear, cosine, step"):
        rules.coordinated(samples_with(1.0), shape="square")
    with pytest.raises(BadInput, match="reading='x', expected one of: keep_above, "):
        rules.thresholded(samples_with(1.0), tau=1.0, reading="x")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("without_negativ", {}, "rule='without_negativ': no such rule, expected one of: adaptive, "),
        ("Weights", {}, "no such rule"),
        ("tertile_components", {}, "no such rule"),
        ("without_negative", {"which": "top"}, "which='top': no such argument, expected none"),
        ("only_tertile", {}, "rule only_tertile: missing a required argument: 'which'"),
    ],
)
def test_rules_that_do_not_exist(name, arguments, message):
    with pytest.raises(BadInput) as error:
        resolve_rule(name, arguments, 1.0)
    assert message in str(error.value)
    rows = {"DPO": {"method": "dpo"}, "bad": {"method": "dpo", "rule": name, "arguments": arguments}}
    with pytest.raises(BadInput):
        dynamics.trainings(parameters(variants=rows))


def test_dpo_trains_on_what_the_rule_makes_of_c(make_model, make_rows, tokenizer):
    """Without negative learning, a step of DPO is a step of weighted SFT on the chosen responses."""
    rows, settings = make_rows(8), DPOSettings(learning_rate=1e-3, batch_size=8, micro_batch_size=8, warmup_share=0.0)
    start = make_model().requires_grad_(True)
    reference = pair_log_probs(start, rows, tokenizer.pad_token_id, 8)
    seen = []

    def rule(w):
        seen.append(w.progress)
        return rules.without_negative(w)

    trained = make_model().requires_grad_(True)
    settings = replace(settings, epochs=2)
    train_dpo(trained, rows, reference, settings, pad_token_id=tokenizer.pad_token_id, seed=0, rule=rule)
    assert seen == [0.0, 0.5]
    by_hand = make_model().requires_grad_(True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.0)
    for factor in (1.0, 0.5):
        batch = collate(rows, tokenizer.pad_token_id, torch.device("cpu"))
        chosen, rejected = token_log_probs(by_hand, batch).sum(1).chunk(2)
        w = 0.3 * torch.sigmoid(-0.3 * ((chosen - reference.chosen) - (rejected - reference.rejected)))
        optimizer.zero_grad()
        (-(w.detach() * chosen).mean()).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        optimizer.step()
    for a, b in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_every_row_is_trained_by_its_rule_and_plain_rows_are_shared_with_other_notebooks():
    p = parameters()
    keys = [dynamics.training_key(p, t) for t in dynamics.trainings(p)]
    assert [t.method for t in dynamics.trainings(p)] == ["ppo", "ppo", "dpo", "dpo"]
    assert len({str(key) for key in keys}) == 4
    assert dynamics.training_key(p, dynamics.Training("dpo", 0)) in keys
    ends = [dynamics.run_training(p, t) for t in dynamics.trainings(p)]
    assert len(set(ends)) == 4


def test_the_trained_part_is_the_whole_of_plain_methods_and_what_the_rule_leaves_of_others():
    p = parameters()
    for training in dynamics.trainings(p):
        measured = measurement.load_measured(p, training)
        g = dict(zip(measurement.PARTS, measured.g.T, strict=True))
        same_as = {"half": g["positive"], "no positive": g["negative"]}.get(training.name, g["whole"])
        half = len(same_as) // 2 + 1 if training.name == "no positive" else len(same_as)
        assert g["trained"][: half - 1] == pytest.approx(same_as[: half - 1]), training.name
        if training.name == "no positive":  # until half of training
            assert g["trained"][-1] == pytest.approx(g["whole"][-1])
        assert measured.held_out.shape[1:] == (2, 16)


def test_what_is_learnt_is_the_change_on_every_training_pair():
    p = parameters()
    training = next(t for t in dynamics.trainings(p) if t.from_pairs)
    assert not measurement.is_examined(p, training)
    measurement.examine(p, training)
    assert measurement.is_examined(p, training)
    pairs, tokenizer = dynamics.pairs_of(p, training.seed).train, bases.base_tokenizer(p)
    rows = bases.encoded(p, pairs)
    with dynamics.final_model(p, training) as policy:
        after = pair_log_probs(policy, rows, tokenizer.pad_token_id, 5)
    before = pair_log_probs(bases.base_model(p), rows, tokenizer.pad_token_id, 5)
    change = measurement.load_learnt(p, training)
    assert change.shape == (2, len(pairs)) and len(pairs) == p.train_pairs
    np.testing.assert_allclose(change[1], after.rejected - before.rejected, atol=1e-9)
    np.testing.assert_allclose(change[0], after.chosen - before.chosen, atol=1e-9)


def first_token_only(w: Weights) -> torch.Tensor:
    """Everything else is left alone: where a response begins, most is decided."""
    held = w.c != 0
    return w.c * (held & (held.cumsum(1) == 1))


def test_a_new_ablation_is_one_function_and_one_row(monkeypatch):
    """The exercise of notebook 03: under 15 lines, and nothing that is trained already trains again."""
    assert len(inspect.getsource(first_token_only).splitlines()) < 15
    before = dynamics.training_key(parameters(), dynamics.trainings(parameters())[0])
    monkeypatch.setattr(rules, "first_token_only", first_token_only, raising=False)
    p = parameters(variants={**ROWS, "first": {"method": "dpo", "rule": "first_token_only"}})
    (training,) = [t for t in dynamics.trainings(p) if t.name == "first"]
    measured = measurement.load_measured(p, training)
    trained, whole = (measured.total_weight[0, measurement.PARTS.index(k)] for k in ("trained", "whole"))
    assert 0 < trained < whole / 3
    assert dynamics.training_key(p, dynamics.trainings(p)[0]) == before
    assert "first_token_only" in rule_key("first_token_only", {}, 1.0)["rule"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"variants": {"x": {"method": "dpo", "rule": "equal_weights"}}},
            "expected one of method 'dpo' with rule 'plain'",
        ),
        ({"variants": {"x": {"method": "sft"}}}, "variants.x.method='sft'"),
        ({"variants": {"x": {"method": "dpo"}}}, "expected one with another rule than 'plain'"),
        ({"variants": {key: {"method": "dpo"} for key in "xyz"}}, "expected one of method 'dpo' with rule 'plain'"),
        ({"variants": {"x": {"method": "dpo", "untill": 0.5}}}, "variants.x.untill=0.5: no such parameter"),
        ({"final_temperature": 1.0}, "final_temperature=1.0: expected 0.0"),
    ],
)
def test_parameters_that_cannot_be(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value)


def fails(w: Weights, power: int) -> torch.Tensor:
    return w.c / power[0]


def sums(w: Weights) -> torch.Tensor:
    return w.c.sum()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rule": "fails", "arguments": {"power": 2}}, "x: the rule fails on an example: TypeError"),
        ({"rule": "sums"}, "x: the rule makes c () of c (2, 2), expected the same shape"),
        ({"rule": "withot_negative"}, "x: rule='withot_negative': no such rule"),
        (
            {"rule": "only_tertile", "arguments": {"wich": "top"}},
            "x: wich='top': no such argument, expected ['which', 'beta']",
        ),
        ({"rule": "plain", "arguments": {"beta": 0.1, "bta": 0.2}}, "x: bta=0.2: no such argument"),
    ],
)
def test_rules_that_do_not_run_are_told_before_anything_trains(row, message, monkeypatch):
    for rule in (fails, sums):
        monkeypatch.setattr(rules, rule.__name__, rule, raising=False)
    with pytest.raises(BadInput) as error:
        dynamics.trainings(parameters(variants={**ROWS, "x": {"method": "dpo", **row}} | _plain_only_once(row)))
    assert message in str(error.value)


def _plain_only_once(row):
    """Where the row is plain itself, it stands for DPO's."""
    return {"DPO": {"method": "dpo", "rule": "equal_weights"}} if row["rule"] == "plain" else {}


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("dpo", {"beta": -0.1}, "arguments.beta=-0.1: input should be greater than 0"),
        ("dpo", {"beta": "0.1"}, "arguments.beta='0.1': input should be a valid number"),
        ("conservative_dpo", {"smoothing": 0.5}, "arguments.smoothing=0.5: input should be less than 0.5"),
        ("dpo", {"tau": float("nan")}, "arguments.tau=nan"),
        ("dpo", {"start": 2}, "arguments.start=2: input should be less than or equal to 1"),
        ("dpo", {"gain": -3}, "arguments.gain=-3: input should be greater than or equal to -1"),
        ("dpo", {"which": "topp"}, "arguments.which='topp': input should be 'bottom', 'middle' or 'top'"),
        ("grpo", {"group_size": 1}, "arguments.group_size=1: input should be greater than or equal to 2"),
        ("grpo", {"group_size": 3}, "variants.x: group_size=3, expected a divisor of ppo_batch_size=8"),
    ],
)
def test_arguments_that_cannot_be(method, arguments, message):
    with pytest.raises(BadInput) as error:
        parameters(variants={**ROWS, "x": {"method": method, "rule": "without_negative", "arguments": arguments}})
    assert message in str(error.value)
