"""Notebook 04: equal budgets, splits for choosing and for reporting, methods as rows, claims, AlpacaEval's files."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from test_rules import TINY

from preflab import bases, dynamics, judging, measurement, selection
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, corrected
from preflab.claims.coordination import Contest, coordination_claims
from preflab.errors import BadInput
from preflab.parameters import resolve
from preflab.paths import project_root
from preflab.sources import instructions

NOTEBOOK = project_root() / "notebooks" / "src" / "04_coordinated_objectives.py"
ROWS = {
    "DPO": {"method": "dpo", "sweep": [{"beta": 0.1}, {"beta": 0.5}]},
    "IPO": {"method": "ipo", "against": "DPO", "sweep": [{"beta": 0.1}, {"beta": 1.0}]},
    "SimPO": {"method": "simpo", "arguments": {"beta": 2.0}, "sweep": [{"margin": 0.3}, {"margin": 0.6}]},
    "cDPO": {
        "method": "dpo", "rule": "coordinated", "against": "DPO",
        "sweep": [{"start": 0.4, "end": 0.6}, {"start": 0.4, "end": 0.6, "beta": 0.5}],
    },
    "GRPO": {
        "method": "grpo", "reward": "oracle", "arguments": {"group_size": 2},
        "sweep": [{"kl_coefficient": 0.05}, {"kl_coefficient": 0.5}],
    },
}  # fmt: skip
PLAIN = {"DPO": {"method": "dpo"}}
SIZES = {"finals": 4, "validation": 5, "report": 6, "sweep_seeds": 1, "seeds": [0, 1], "variants": ROWS}


@pytest.fixture(autouse=True)
def results(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path_factory.getbasetemp() / "selection"))


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **SIZES, **given}, "test")


def test_three_splits_share_no_prompt():
    p = parameters()
    splits = (None, selection.validation_prompts(p), selection.report_prompts(p))
    texts = [{m[-1]["content"] for m in dynamics.held_out_prompts(p, which)} for which in splits]
    assert [len(t) for t in texts] == [4, 5, 6]
    assert len(set.union(*texts)) == 15


def test_candidates_and_their_own_arguments():
    p = parameters()
    tried = selection.candidates(p)
    assert {name: len(some) for name, some in tried.items()} == dict.fromkeys(ROWS, 2)
    second = tried["cDPO"][1]
    assert second.own == {"beta": 0.5} and dynamics.dpo_settings(p, second).beta == 0.5
    assert str(second) == "cDPO beta=0.5 start=0.4 end=0.6, seed 0"
    simpo = tried["SimPO"][1]
    assert simpo.weighting.keywords == {"margin": 0.6} and dynamics.dpo_settings(p, simpo).beta == 2.0
    settings = dynamics.ppo_settings(p, tried["GRPO"][1])
    assert (settings.method, settings.group_size, settings.kl_coefficient, settings.prompts) == ("grpo", 2, 0.5, 4)


def test_what_is_compared_starts_from_what_its_rival_has_chosen(monkeypatch):
    """cDPO takes DPO's beta unless its own sweep says another; who has no rival takes nothing."""
    p = parameters()
    for best, beta in ((0, 0.1), (1, 0.5)):
        monkeypatch.setattr(selection, "merits", lambda p, tried, best=best: np.eye(2)[best])
        tried = selection.candidates(p)
        assert [t.own for t in tried["cDPO"]] == [{"beta": beta}, {"beta": 0.5}]
        assert [t.own["beta"] for t in tried["IPO"]] == [0.1, 1.0]
        assert [t.own["beta"] for t in tried["DPO"]] == [0.1, 0.5]
        assert "kl_coefficient" not in tried["SimPO"][0].own and list(tried) == list(ROWS)


def test_rows_are_checked_before_any_rival_has_trained(monkeypatch):
    monkeypatch.setattr(selection.dynamics, "load_answers", None)
    rows = PLAIN | {"x": {"method": "dpo", "rule": "coordinatd", "against": "DPO"}}
    with pytest.raises(BadInput, match="coordinatd"):
        selection.plain_candidates(parameters(variants=rows))


def test_a_plain_candidate_is_the_run_of_notebook_02_and_others_are_not():
    p = parameters(beta=0.1)
    keys = {name: [dynamics.training_key(p, t) for t in some] for name, some in selection.candidates(p).items()}
    assert keys["DPO"][0] == dynamics.training_key(p, dynamics.Training("dpo", 0))
    every = [json.dumps(key, sort_keys=True) for some in keys.values() for key in some]
    assert len(set(every)) == len(every)


def test_the_best_on_the_validation_prompts_is_chosen_with_every_seed(monkeypatch):
    p = parameters()
    tried = selection.plain_candidates(p)
    won = {0.1: 0.2, 0.5: 0.7}

    def answers(p, training, which):
        assert which == selection.validation_prompts(p)
        return training

    monkeypatch.setattr(selection.dynamics, "load_answers", answers)

    def judged(p, training, greedy, which):
        return np.full(5, won[training.own["beta"]] if training else 0.5)

    monkeypatch.setattr(selection.judging, "judged", judged)
    assert selection.merits(p, tried["DPO"]).tolist() == [0.0, 1.0]
    best = selection.chosen(p, {"DPO": tried["DPO"]})["DPO"]
    assert [(t.own["beta"], t.seed) for t in best] == [(0.5, 0), (0.5, 1)]


def test_every_method_trains_and_what_it_trains_on_is_what_is_measured():
    """G of the parts adds up for each method, and GRPO's c holds its KL term."""
    p = parameters()
    for name, some in selection.candidates(p).items():
        selection.work(p, selection.Task(some[0], final=False))
        assert selection.is_done(p, selection.Task(some[0], final=False)), name
        assert not selection.is_done(p, selection.Task(some[0], final=True)), name
        selection.work(p, selection.Task(some[0], final=True))
        measured = measurement.load_measured(p, some[0])
        g = dict(zip(measurement.PARTS, measured.g.T, strict=True))
        assert g["positive"] + g["negative"] == pytest.approx(g["whole"], rel=1e-6, abs=1e-9), name
        assert np.isfinite(measured.g).all() and np.abs(g["whole"]).max() > 0, name
        if name == "cDPO":
            assert g["trained"][0] == pytest.approx(2 * (0.6 * g["positive"][0] + 0.4 * g["negative"][0]), rel=1e-6)
        elif ROWS[name].get("rule") is None:
            assert g["trained"] == pytest.approx(g["whole"])


def test_what_grpo_has_in_its_loss_is_measured_too(monkeypatch, tmp_path):
    p = parameters()
    training = selection.candidates(p)["GRPO"][0]
    plain = measurement.load_measured(p, training).total_weight[0, 0]
    monkeypatch.setattr(measurement, "kl_in_loss", lambda log_probs, reference, mask, settings: 100.0 * mask)
    measurement._build(p, training, tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())[0]["total_weight"][0] > plain + 90


def test_no_rule_touches_the_kl_that_is_in_grpos_loss(monkeypatch, tmp_path):
    row = ROWS["GRPO"] | {"rule": "without_negative"}
    p = parameters(variants=PLAIN | {"GRPO": row | {"sweep": [{"kl_coefficient": 0.05}]}})
    training = selection.plain_candidates(p)["GRPO"][0]
    measurement.measure(p, training)
    monkeypatch.setattr(measurement, "kl_in_loss", lambda log_probs, reference, mask, settings: -100.0 * mask)
    measurement._build(p, training, tmp_path)
    weight = json.loads((tmp_path / "record.json").read_text())[0]["total_weight"]
    assert weight[measurement.PARTS.index("trained")] > 90


def test_a_look_at_live_g_depends_on_how_long_its_answers_may_be():
    rows = PLAIN | {"x": {"method": "dpo", "rule": "adaptive", "live_every": 1, "arguments": {"gain": 0.5}}}
    short, long = (parameters(variants=rows, max_new_tokens=n) for n in (4, 8))
    for name, differs in (("DPO", False), ("x", True)):
        keys = [dynamics.training_key(p, selection.plain_candidates(p)[name][0]) for p in (short, long)]
        assert (keys[0] != keys[1]) is differs


def test_simpo_has_no_reference():
    p = parameters()
    rows = bases.encoded(p, dynamics.pairs_of(p, 0).train)
    by_name = {name: some[0] for name, some in selection.candidates(p).items()}
    assert not dynamics.reference_log_probs(p, by_name["SimPO"], rows).chosen.any()
    assert dynamics.reference_log_probs(p, by_name["IPO"], rows).chosen.all()


def test_the_budget_cuts_updates_and_passes_count_the_looks():
    adaptive = {"rule": "adaptive", "live_every": 1, "arguments": {"gain": 0.5}, "budget": 0.5}
    rows = {"DPO": {"method": "dpo"}, "a": {"method": "dpo", **adaptive}, "b": {"method": "ppo", **adaptive}}
    p = parameters(variants=rows | {"PPO": {"method": "ppo"}})
    by_name = {name: some[0] for name, some in selection.candidates(p).items()}
    assert dynamics.updates_of(p, by_name["DPO"])[0] == 4 and dynamics.updates_of(p, by_name["a"])[0] == 2
    assert dynamics.passes(p, by_name["DPO"]) == 4 * 16 * 3
    assert dynamics.passes(p, by_name["a"]) == 2 * 16 * 3 + 2 * 8 * (4 + 8)
    iteration = 8 * 3 + p.ppo_epochs * 8 * 3 * 2  # sample, score, values; both trunks forwards and backwards
    assert dynamics.passes(p, by_name["PPO"]) == 2 * iteration
    assert dynamics.passes(p, by_name["b"]) == iteration + 8 * 7
    assert len(dynamics.load_history(p, by_name["a"])) == 2 and len(dynamics.load_history(p, by_name["b"])) == 1


def test_full_gives_adaptive_runs_no_more_compute_than_static_ones():
    file = project_root() / "params" / "full" / "04_coordinated_objectives.yaml"
    from preflab.parameters import read_yaml

    p = resolve(NOTEBOOK, read_yaml(file), "full")
    tried = selection.on_top(p, selection.plain_candidates(p))
    cost = {name: dynamics.passes(p, some[0]) for name, some in tried.items()}
    for plain, adaptive in (("DPO", "cDPO, adaptive"), ("PPO", "cPPO, adaptive")):
        assert 0.97 < cost[adaptive] / cost[plain] <= 1, (plain, cost[adaptive] / cost[plain])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PLAIN | {"x": {"method": "dpo", "sweep": [{}, {}]}}, "sizes {'DPO': 1, 'x': 2}, expected one size"),
        (PLAIN | {"x": {"method": "dpo", "against": "PPO"}}, "variants.x.against='PPO': expected one of: DPO"),
        ({"x": {"method": "dpo", "rule": "adaptive"}}, "rule='adaptive' with live_every=None"),
        ({"x": {"method": "dpo", "live_every": 3}}, "rule='plain' with live_every=3"),
        ({"x": {"method": "dpo", "budget": 0.0}}, "variants.x.budget=0.0"),
        ({"x": {"method": "ddpo"}}, "variants.x.method='ddpo'"),
        ({"SFT": {"method": "dpo"}}, "variants.SFT: expected another name"),
        ({"x": {"method": "dpo", "sweep": [{"beta": 0.0}]}}, "variants.x.sweep.0.beta=0.0: input should be greater"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be(rows, message):
    with pytest.raises(BadInput) as error:
        parameters(variants=rows)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "simpo", "arguments": {"beta": 1.0}}, "x beta=1.0: margin: missing, method simpo needs it"),
        (
            {"method": "dpo", "arguments": {"margin": 1.0}},
            "margin=1.0: no such argument, expected ['beta']",
        ),
        ({"method": "ppo", "arguments": {"group_size": 4}}, "group_size=4: no such argument, expected ['kl_coeff"),
    ],
)
def test_arguments_that_a_method_does_not_take(row, message):
    with pytest.raises(BadInput) as error:
        selection.plain_candidates(parameters(variants={"x": row}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"report": 60}, "test_pairs=16: expected at least finals + validation + report = 69"),
        ({"sweep_seeds": 3}, "sweep_seeds=3: expected at most the 2 seeds"),
        ({"source": "files:x", "objective": "y"}, "variants.GRPO.reward='oracle': only a world has one"),
    ],
)
def test_parameters_that_cannot_go_together(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value)


# --- claims ---------------------------------------------------------------------------------------

SEEDS, PROMPTS = 5, 400


@pytest.fixture
def verdicts():
    """verdicts(kind=win rate against the plain method, ...); a win rate against SFT of 0.7 moves by what is `off`."""

    def won(rate, prompts):
        return (np.arange(SEEDS * prompts).reshape(SEEDS, prompts) % 100 < 100 * rate).astype(float)

    def make(prompts=PROMPTS, off=0.0, **rates):
        contests = {
            kind: Contest(kind, won(rate, prompts), won(0.7 + off, prompts), won(0.7, prompts))
            for kind, rate in rates.items()
        }
        return {c.id: c.verdict for c in coordination_claims(contests)}

    return make


@pytest.mark.parametrize(
    ("rate", "prompts", "expected"),
    [(0.6, 400, REPRODUCED), (0.4, 400, NOT_REPRODUCED), (0.5, 400, INCONCLUSIVE), (0.55, 20, INCONCLUSIVE)],
)
def test_d10(rate, prompts, expected, verdicts):
    assert verdicts(prompts, cDPO=rate, cPPO=0.9)["D10"] == expected


@pytest.mark.parametrize(
    ("off", "prompts", "expected"),
    [
        (0.0, 400, REPRODUCED),
        (0.1, 400, NOT_REPRODUCED),
        (-0.1, 400, NOT_REPRODUCED),
        (0.03, 400, INCONCLUSIVE),
        (-0.03, 400, INCONCLUSIVE),
    ],
)
def test_d11(off, prompts, expected, verdicts):
    assert verdicts(prompts, off, cDPO=0.5, cPPO=0.5, hPPO=0.5)["D11"] == expected


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"cDPO": 0.4, "hPPO": 0.6}, REPRODUCED),
        ({"cDPO": 0.4, "hPPO": 0.4}, NOT_REPRODUCED),
        ({"cDPO": 0.4, "hPPO": 0.5}, INCONCLUSIVE),
        ({}, INCONCLUSIVE),
    ],
)
def test_d12(rates, expected, verdicts):
    assert verdicts(**rates)["D12"] == expected


def test_more_comparisons_ask_for_more(verdicts):
    """One clear win among many that are none is weaker evidence: the level rises with their number."""
    assert verdicts(cDPO=0.555)["D10"] == verdicts(cDPO=0.555)["D12"] == REPRODUCED
    assert verdicts(cDPO=0.555, **{f"other {i}": 0.5 for i in range(40)})["D12"] == INCONCLUSIVE
    assert corrected(1) == 0.95 and corrected(5) == 0.99
    assert corrected(0) == 0.95


# --- AlpacaEval -----------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "alpaca_eval.json"
    rows = [{"instruction": f"how do i fix the old {thing} at home ?", "dataset": "x"} for thing in ("lamp", "gate")]
    path.write_text(json.dumps(rows))
    return path


def test_answers_for_alpaca_eval_are_in_its_format(asked, tmp_path, monkeypatch):
    p = parameters()
    rows = instructions(f"files:{asked}")
    trainings = {"cDPO, linear": selection.candidates(p)["DPO"][0]}

    def exported(name):
        return judging.export_for_alpaca_eval(p, trainings, rows, tmp_path / name)

    assert exported("a") == [
        "alpaca_eval --model_outputs 01_cDPO_linear/model_outputs.json --reference_outputs 00_SFT/model_outputs.json"
        " --annotators_config weighted_alpaca_eval_gpt4_turbo --output_path 01_cDPO_linear"
    ]
    for folder, generator in (("01_cDPO_linear", "cDPO, linear"), ("00_SFT", "SFT")):
        outputs = json.loads((tmp_path / "a" / folder / "model_outputs.json").read_text())
        assert [set(row) for row in outputs] == [{"instruction", "dataset", "output", "generator"}] * 2
        assert outputs[0]["generator"] == generator and all(isinstance(row["output"], str) for row in outputs)
    monkeypatch.setattr(judging, "_answer", None)  # kept: not asked again
    exported("b")
    exported("b")  # the cell may be run again
    of = "00_SFT/model_outputs.json"
    assert (tmp_path / "b" / of).read_text() == (tmp_path / "a" / of).read_text()


def test_who_answers_for_alpaca_eval_and_what(asked, tmp_path, monkeypatch):
    p = parameters()
    rows = [{"instruction": f"{row['instruction']} please"} for row in instructions(f"files:{asked}")]  # not asked yet
    tried = {f"DPO {i}": training for i, training in enumerate(selection.candidates(p)["DPO"])}
    answered = []

    def answer(p, training, asked, folder):
        answered.append((training, asked))
        (folder / "outputs.json").write_text(json.dumps(["an answer"] * len(asked)))

    monkeypatch.setattr(judging, "_answer", answer)
    judging.export_for_alpaca_eval(p, tried, rows, tmp_path / "a")
    both = [row["instruction"] for row in rows]
    assert answered == [(training, both) for training in (None, *tried.values())]
    judging.export_for_alpaca_eval(p, {}, rows[:1], tmp_path / "b")
    assert answered[-1] == (None, both[:1])  # other questions are asked anew


def test_instructions_come_from_the_hubs_file(asked, monkeypatch):
    seen = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **how: seen.append((a, how)) or str(asked))
    assert len(instructions("hub:tatsu-lab/alpaca_eval", "abc")) == 2
    assert seen == [(("tatsu-lab/alpaca_eval", "alpaca_eval.json"), {"repo_type": "dataset", "revision": "abc"})]


def test_instructions_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('[{"instruction": "x"}, {"prompt": "y"}]')
    with pytest.raises(BadInput, match="row 2: key 'instruction' expected text"):
        instructions(f"files:{path}")
    path.write_text("[]")
    with pytest.raises(BadInput, match="no rows, expected AlpacaEval's prompts"):
        instructions(f"files:{path}")
    with pytest.raises(BadInput, match="expected hub:REPO or files:PATH"):
        instructions("world:conflict")

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(BadInput, match="out of reach; expected a network"):
        instructions("hub:tatsu-lab/alpaca_eval")


def test_the_verifiable_reward_is_the_right_tool_alone(tokenizer):
    from preflab.rewards import correct

    prompts = [[{"role": "user", "content": "how do i fix the old lamp at home ?"}]] * 4
    texts = ["use the wire .", "use the key .", "use the wire . use the key .", "sorry i can not help ."]
    assert correct(prompts, texts).tolist() == [1, 0, 0, 0]
    assert torch.tensor(correct(prompts, texts)).dtype == torch.float64
