"""Ablations: each rule by hand, in both trainers, and a new one in one function and one row."""

import inspect
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from preflab import rules
from preflab.errors import BadInput
from preflab.experiments.variants import Variant
from preflab.likelihood import collate, pair_log_probs, token_log_probs
from preflab.measured import PARTS
from preflab.methods.dpo import DPO
from preflab.paths import project_root
from preflab.rules import Rule, Until, Weights
from preflab.running.identity import identity
from preflab.running.reading import resolve
from preflab.training.from_pairs import PairTraining, train_on_pairs

NOTEBOOK = project_root() / "notebooks" / "src" / "03_component_ablations.py"
ROWS = {
    "DPO": {"method": "dpo"},
    "half": {"method": "dpo", "rule": "without_negative"},
    "PPO": {"method": "ppo"},
    "no positive": {"method": "ppo", "rule": "without_positive", "until": 0.5},
}
TINY = {
    "train_pairs": 32, "test_pairs": 16, "max_new_tokens": 8, "seeds": [0], "variants": ROWS,
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "base": {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 10, "batch_size": 16}},
    "pair_training": {"batch_size": 8, "micro_batch_size": 8}, "reward": {"epochs": 1},
    "sample_training": {"iterations": 2, "batch_size": 8, "minibatch_size": 4},
    "measurement": {"checkpoints": 4, "probe": 6, "finals": 6, "shown": 1},
    "outcome": {"samples": 2, "path_prompts": 4},
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("module_cache")


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


EARLY, LATE = (samples_with(1.0, -2.0, 3.0, -0.5, 0.0, progress=t) for t in (0.25, 0.75))
LOOKED = replace(EARLY, live=(-0.1, 0.3))
WORKED = {  # of every rule: a value, what it sees, and the c that it makes of c = (1, -2, 3, -0.5, 0)
    "plain": [(rules.Plain(), EARLY, [1, -2, 3, -0.5, 0])],
    "without_negative": [(rules.WithoutNegative(), EARLY, [1, 0, 3, 0, 0])],
    "without_positive": [(rules.WithoutPositive(), EARLY, [0, -2, 0, -0.5, 0])],
    "while_sign": [  # LOOKED has a G of -0.1 for positive learning, 0.3 for negative learning
        (rules.WhileSign(part="positive", dose=0.75), LOOKED, [0.25, -2, 0.75, -0.5, 0]),
        (rules.WhileSign(part="positive", sign="positive"), LOOKED, [1, -2, 3, -0.5, 0]),
        (rules.WhileSign(part="negative"), LOOKED, [1, -2, 3, -0.5, 0]),
        (rules.WhileSign(part="negative", sign="positive", dose=0.5), LOOKED, [1, -1, 3, -0.25, 0]),
    ],
    "equal_weights": [
        (rules.EqualWeights(), EARLY, [1.625, -1.625, 1.625, -1.625, 0]),
        (rules.EqualWeights(size=0.25), EARLY, [0.25, -0.25, 0.25, -0.25, 0]),
    ],
    "only_tertile": [
        (rules.OnlyTertile(which="bottom"), EARLY, [1, 0, 0, -0.5, 0]),
        (rules.OnlyTertile(which="middle"), EARLY, [0, -2, 0, 0, 0]),
        (rules.OnlyTertile(which="top"), EARLY, [0, 0, 3, 0, 0]),
    ],
    "without_tertile": [(rules.WithoutTertile(which="top"), EARLY, [1, -2, 0, -0.5, 0])],
    "positive_then_negative": [
        (rules.PositiveThenNegative(), EARLY, [1, 0, 3, 0, 0]),
        (rules.PositiveThenNegative(), LATE, [0, -2, 0, -0.5, 0]),
        (rules.PositiveThenNegative(at=0.2), EARLY, [0, -2, 0, -0.5, 0]),
    ],
    "coordinated": [  # 0.1 of 4 is negative at the start, 0.9 of 4 at the end
        (rules.Coordinated(start=0.1, end=0.9, total=4.0), EARLY, [4 * 0.7, -8 * 0.3, 12 * 0.7, -2 * 0.3, 0]),
        (rules.Coordinated(start=0.1, end=0.9, total=4.0), LATE, [4 * 0.3, -8 * 0.7, 12 * 0.3, -2 * 0.7, 0]),
        (rules.Coordinated(), EARLY, [1.25, -1.5, 3.75, -0.375, 0]),
    ],
    "adaptive": [  # the share of negative learning is 1/2 + 0.5/2 * (0.3 + 0.1) / 0.4 = 3/4
        (rules.Adaptive(gain=0.5), LOOKED, [0.5, -3, 1.5, -0.75, 0]),
        (rules.Adaptive(gain=0.5, total=1.0), LOOKED, [0.25, -1.5, 0.75, -0.375, 0]),
    ],
    "thresholded": [
        (rules.Thresholded(tau=2.0, reading="keep_above"), EARLY, [0, -2, 3, 0, 0]),
        (rules.Thresholded(tau=1.0, reading="keep_negative_above"), EARLY, [1, -2, 3, 0, 0]),
        (rules.Thresholded(tau=2.0, reading="drop_above"), EARLY, [1, -2, 0, -0.5, 0]),
    ],
}


def test_every_rule_has_a_worked_example_here():
    assert set(WORKED) == set(rules.RULES)
    assert all(type(rule) is rules.RULES[name] for name, examples in WORKED.items() for rule, *_ in examples)


@pytest.mark.parametrize("name", WORKED)
def test_a_rule_makes_the_c_of_its_worked_example(name):
    for rule, seen, expected in WORKED[name]:
        before = seen.c.clone()
        assert rule(seen)[0].tolist() == pytest.approx(expected), rule
        assert torch.equal(seen.c, before)


@pytest.mark.parametrize("name", WORKED)
def test_padding_of_a_batch_changes_nothing_of_a_rule(name):
    """Columns of zeros on both sides, and rows of unequal lengths: means and tertiles are of what there is."""
    for rule, seen, _ in WORKED[name]:
        c = torch.tensor([[0.3, -1.1, 2.0, 0.0], [-0.2, 0.9, 0.0, 0.0], [1.4, -0.7, -0.6, 0.5]])
        of_tokens = Weights.of_tokens(c, c != 0, seen.progress, (-0.1, 0.3))
        of_pairs = Weights.of_pairs(torch.cat([c, -c.flip(0)]), seen.progress, (-0.1, 0.3))
        for narrow, remade in ((of_tokens, Weights.of_tokens), (of_pairs, Weights.of_pairs)):
            wide = F.pad(narrow.c, (2, 3))
            rest = (wide != 0,) if remade == Weights.of_tokens else ()
            padded = rule(remade(wide, *rest, seen.progress, (-0.1, 0.3)))
            torch.testing.assert_close(padded, F.pad(rule(narrow), (2, 3)))


def test_signs():
    w = samples_with(1.0, -2.0, 3.0, 0.0)
    assert rules.Plain()(w) is w.c
    assert rules.WithoutNegative()(w).tolist() == [[1, 0, 3, 0]]
    assert rules.WithoutPositive()(w).tolist() == [[0, -2, 0, 0]]
    assert rules.EqualWeights()(w).tolist() == [[2, -2, 2, 0]]


def test_equal_weights_of_pairs_have_the_mean_of_pairs():
    assert rules.EqualWeights()(pairs_with(0.1, 0.3))[:, 0].tolist() == pytest.approx([0.2, 0.2, -0.2, -0.2])


def test_tertiles_of_pairs_are_of_both_sides_and_those_of_ppo_of_tokens():
    w = pairs_with(0.3, 0.1, 0.2)
    assert rules.OnlyTertile(which="top")(w)[:, 0].tolist() == pytest.approx([0.3, 0, 0, -0.3, 0, 0])
    assert rules.WithoutTertile(which="bottom")(w)[:, 0].tolist() == pytest.approx([0.3, 0, 0.2, -0.3, 0, -0.2])
    w = samples_with(1.0, -2.0, 3.0, 0.0)
    assert rules.OnlyTertile(which="middle")(w).tolist() == [[0, -2, 0, 0]]
    assert rules.WithoutTertile(which="top")(w).tolist() == [[1, -2, 0, 0]]
    assert rules.OnlyTertile(which="top")(samples_with(0.0, 0.0)).tolist() == [[0, 0]]  # nobody said anything


def test_schedules():
    early, late = samples_with(1.0, -2.0, progress=0.49), samples_with(1.0, -2.0, progress=0.5)
    assert rules.PositiveThenNegative()(early).tolist() == [[1, 0]]
    assert rules.PositiveThenNegative()(late).tolist() == [[0, -2]]
    rule = Until(0.5, rules.WithoutNegative())
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
    found = rules.Coordinated(start=0.2, end=0.8, shape=shape, total=2.0)(samples_with(1.0, -3.0, progress=progress))
    assert found[0].tolist() == pytest.approx([2 * (1 - share), -6 * share])


def test_coordination_half_and_half_is_the_plain_method():
    w = samples_with(1.0, -3.0, 0.5, progress=0.3)
    assert rules.Coordinated(start=0.5, end=0.5)(w).tolist() == w.c.tolist()


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
    assert rules.Adaptive(gain=gain)(w)[0].tolist() == pytest.approx([2 * (1 - share), -6 * share])


def test_adaptive_coordination_needs_live_g():
    with pytest.raises(BadInput, match="rule adaptive: expected live_every beside it"):
        rules.Adaptive(gain=0.5)(samples_with(1.0))


@pytest.mark.parametrize(
    ("reading", "expected"),
    [("keep_above", [0, -2, 3, 0]), ("keep_negative_above", [0.5, -2, 3, 0]), ("drop_above", [0.5, 0, 0, -0.1])],
)
def test_three_readings_of_the_threshold(reading, expected):
    found = rules.Thresholded(tau=1.0, reading=reading)(samples_with(0.5, -2.0, 3.0, -0.1))
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("without_negativ", {}, "rule='without_negativ': no such rule, expected one of: plain, without_negative, "),
        ("Weights", {}, "no such rule"),
        ("tertile_components", {}, "no such rule"),
        ("without_negative", {"which": "top"}, "x: which='top': no such argument, expected one of: ['beta']"),
        ("only_tertile", {}, "x: which: missing, rule only_tertile needs it"),
        ("coordinated", {"shape": "square"}, "x: shape='square': input should be 'linear', 'cosine' or 'step'"),
        ("thresholded", {"tau": 1.0, "reading": "x"}, "x: reading='x': input should be 'keep_above', "),
    ],
)
def test_rules_and_arguments_that_do_not_exist(name, arguments, message):
    with pytest.raises(BadInput) as error:
        parameters(variants={**ROWS, "x": {"method": "dpo", "rule": name, "arguments": arguments}})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_dpo_trains_on_what_the_rule_makes_of_c(make_model, make_rows, tokenizer):
    """Without negative learning, a step of DPO is a step of weighted SFT on the chosen responses."""
    rows, settings = make_rows(8), PairTraining(learning_rate=1e-3, batch_size=8, micro_batch_size=8, warmup_share=0.0)
    start = make_model().requires_grad_(True)
    reference = pair_log_probs(start, rows, tokenizer.pad_token_id, 8)
    seen = []

    def rule(w):
        seen.append(w.progress)
        return rules.WithoutNegative()(w)

    trained = make_model().requires_grad_(True)
    settings = replace(settings, epochs=2)
    train_on_pairs(trained, tokenizer, rows, reference, DPO(beta=0.3), settings, seed=0, rule=rule)
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


def test_every_row_is_trained_by_its_rule_and_a_plain_row_needs_none():
    p = parameters()
    runs = p.planned()
    assert [run.row.method for run in runs] == ["ppo", "ppo", "dpo", "dpo"]
    assert len({identity(run.training) for run in runs}) == 4
    assert p.training(Variant(method="dpo"), 0) in [run.training for run in runs]
    assert p.training(Variant(method="dpo", until=0.5), 0) == p.training(Variant(method="dpo"), 0)
    assert len({run.training.folder for run in runs}) == 4


def test_the_trained_part_is_the_whole_of_plain_methods_and_what_the_rule_leaves_of_others():
    p = parameters()
    for run in p.planned():
        measured = p.alignment(run.training).load()
        g = dict(zip(PARTS, measured.g.T, strict=True))
        same_as = {"half": g["positive"], "no positive": g["negative"]}.get(run.name, g["whole"])
        half = len(same_as) // 2 + 1 if run.name == "no positive" else len(same_as)
        assert g["trained"][: half - 1] == pytest.approx(same_as[: half - 1]), run.name
        if run.name == "no positive":  # until half of training
            assert g["trained"][-1] == pytest.approx(g["whole"][-1])
        assert measured.held_out.shape[1:] == (2, 16)


def test_answers_along_a_run_begin_with_the_sft_model_and_end_with_the_final_policy():
    p = parameters()
    (run,) = p.by_row()["DPO"]
    along, (final,) = p.path_stage(run).load(), p.drawn_stage(run.training, range(4)).load()
    assert len(along) == 4 and [len(state.samples) for state in along] == [8] * 4
    assert along[0].kl == pytest.approx(0, abs=1e-12) and along[-1].texts == final.texts
    assert along[0].texts == p.drawn_stage(None, range(4)).load()[0].texts
    tokenizer = p.base_model.tokenizer()
    asked = tokenizer.apply_chat_template(p.prompts(range(4)).messages(), add_generation_prompt=True)["input_ids"]
    assert [prompt for prompt, _ in final.samples] == [ids for ids in asked for _ in range(2)]
    with run.training.final_policy() as policy, torch.no_grad():
        for (prompt, response), found in zip(final.samples, final.log_probs, strict=True):
            logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            one = logits.log_softmax(-1)[torch.arange(len(response)), response].sum()
            assert found == pytest.approx(one.item(), abs=1e-9)
    path = p.paths([run])[0]
    assert path.kl.tolist() == [state.kl for state in along] and path.score.shape == (4,)


def test_what_is_learnt_is_the_change_on_every_training_pair(module_cache):
    p = parameters()
    training = next(run.training for run in p.planned() if run.row.from_pairs)
    pairs, base, pad = training.pairs, p.base_model, p.base_model.tokenizer().pad_token_id
    with training.final_policy() as policy:
        after = pair_log_probs(policy, pairs.encoded(base), pad, 5)
    before = pair_log_probs(base.load(), pairs.encoded(base), pad, 5)
    assert not module_cache.holds(p.learnt(training))
    change = p.learnt(training).load()
    assert module_cache.holds(p.learnt(training))
    assert change.shape == (2, len(pairs.rows())) and len(pairs.rows()) == p.train_pairs
    np.testing.assert_allclose(change[1], after.rejected - before.rejected, atol=1e-9)
    np.testing.assert_allclose(change[0], after.chosen - before.chosen, atol=1e-9)


@dataclass(frozen=True)
class FirstTokenOnly(Rule):
    """Everything else is left alone: where a response begins, most is decided."""

    def __call__(self, w: Weights) -> torch.Tensor:
        held = w.c != 0
        return w.c * (held & (held.cumsum(1) == 1))


def test_a_new_ablation_is_one_class_and_one_row(monkeypatch):
    """The exercise of notebook 03: under 15 lines, and nothing that is trained already trains again."""
    assert len(inspect.getsource(FirstTokenOnly).splitlines()) < 15
    before = identity(parameters().planned()[0].training)
    monkeypatch.setitem(rules.RULES, "first_token_only", FirstTokenOnly)
    p = parameters(variants={**ROWS, "first": {"method": "dpo", "rule": "first_token_only"}})
    (run,) = [run for run in p.planned() if run.name == "first"]
    measured = p.alignment(run.training).load()
    trained, whole = (measured.total_weight[0, PARTS.index(k)] for k in ("trained", "whole"))
    assert 0 < trained < whole / 3
    assert identity(p.planned()[0].training) == before


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
        (
            {"variants": {**ROWS, "x": {"method": "dpo", "rule": "equal_weights", "arguments": {"beta": 0.3}}}},
            "expected one of method 'dpo' with rule 'plain', repeats 1 and the same arguments, to compare with",
        ),
        ({"variants": {"x": {"method": "dpo", "untill": 0.5}}}, "variants.x.untill=0.5: no such parameter"),
        ({"outcome": {"path_prompts": 7}}, "outcome.path_prompts=7: expected at most measurement.finals=6"),
        (
            {"variants": {**ROWS, "few": {"method": "dpo", "repeats": 8}}},
            "repeats=8: leaves 4 pairs of 32, expected 8",
        ),
        ({"variants": {**ROWS, "few": {"method": "ppo", "repeats": 2}}}, "repeats=2: expected 1, method ppo learns"),
    ],
)
def test_parameters_that_cannot_be(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value)


def test_a_path_may_ask_all_prompts_of_d():
    assert parameters(outcome={"path_prompts": 6}).outcome.path_prompts == 6


@dataclass(frozen=True)
class Fails(Rule):
    power: int

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c / self.power[0]


@dataclass(frozen=True)
class Sums(Rule):
    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c.sum()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rule": "fails", "arguments": {"power": 2}}, "x: the rule fails on an example: TypeError"),
        ({"rule": "sums"}, "x: the rule makes c () of c (2, 2), expected the same shape"),
        (
            {"rule": "only_tertile", "arguments": {"wich": "top"}},
            "x: wich='top': no such argument, expected one of: ['which', 'beta']",
        ),
    ],
)
def test_rules_that_do_not_run_are_told_before_anything_trains(row, message, monkeypatch):
    for name, rule in (("fails", Fails), ("sums", Sums)):
        monkeypatch.setitem(rules.RULES, name, rule)
    with pytest.raises(BadInput) as error:
        parameters(variants={**ROWS, "x": {"method": "dpo", **row}})
    assert message in str(error.value)


def test_a_misspelt_argument_of_a_plain_row_is_told():
    rows = {"DPO": {"method": "dpo", "rule": "equal_weights"}}
    with pytest.raises(BadInput, match=r"x: bta=0\.2: no such argument"):
        parameters(variants={**rows, "x": {"method": "dpo", "arguments": {"beta": 0.1, "bta": 0.2}}})


@pytest.mark.parametrize(
    ("method", "rule", "arguments", "message"),
    [
        ("dpo", "without_negative", {"beta": -0.1}, "x: method dpo: beta=-0.1: input should be greater than 0"),
        ("dpo", "without_negative", {"beta": "0.1"}, "beta='0.1': input should be a valid number"),
        ("conservative_dpo", "plain", {"smoothing": 0.5}, "x: smoothing=0.5: input should be less than 0.5"),
        ("dpo", "thresholded", {"tau": float("nan"), "reading": "keep_above"}, "x: tau=nan"),
        ("dpo", "coordinated", {"start": 2}, "x: start=2: input should be less than or equal to 1"),
        ("dpo", "only_tertile", {"which": "topp"}, "x: which='topp': input should be 'bottom', 'middle' or 'top'"),
        ("grpo", "plain", {"group_size": 1}, "x: group_size=1: input should be greater than or equal to 2"),
        ("grpo", "plain", {"group_size": 3}, "x: group_size=3: expected a divisor of sample_training.batch_size=8"),
    ],
)
def test_arguments_that_cannot_be(method, rule, arguments, message):
    with pytest.raises(BadInput) as error:
        parameters(variants={**ROWS, "x": {"method": method, "rule": rule, "arguments": arguments}})
    assert message in str(error.value)


def test_a_gain_that_cannot_be_is_told():
    row = {"method": "dpo", "rule": "adaptive", "live_every": 1, "arguments": {"gain": -3}}
    with pytest.raises(BadInput, match="x: gain=-3: input should be greater than or equal to -1"):
        parameters(variants={**ROWS, "x": row})
