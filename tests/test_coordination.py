"""Notebook 04: equal budgets, splits for choosing and for reporting, methods as rows, claims, AlpacaEval's files."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch

from preflab import alpaca
from preflab.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, corrected
from preflab.claims.coordination import Contest, coordination_claims
from preflab.data.dialogues import instructions
from preflab.errors import BadInput
from preflab.experiments.coordination import Coordination
from preflab.experiments.variants import Variant
from preflab.measured import PARTS
from preflab.methods.dpo import DPO
from preflab.methods.grpo import GRPO
from preflab.methods.simpo import SimPO
from preflab.paths import project_root
from preflab.rewards import correct
from preflab.running.cache import Cache
from preflab.running.identity import identity
from preflab.running.reading import read_yaml, resolve
from preflab.stages.answers import Texts
from preflab.stages.stage import keep_in, store

NOTEBOOK = project_root() / "notebooks" / "src" / "04_coordinated_objectives.py"
ROWS = {
    "DPO": {"method": "dpo", "sweep": [{"beta": 0.1}, {"beta": 0.5}]},
    "IPO": {"method": "ipo", "against": "DPO", "sweep": [{"beta": 0.1}, {"beta": 1.0}]},
    "SimPO": {"method": "simpo", "arguments": {"beta": 2.0}, "sweep": [{"margin": 0.3}, {"margin": 0.6}]},
    "ORPO": {"method": "orpo", "against": "DPO", "sweep": [{"weight": 0.1}, {"weight": 1.0}]},
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
TINY = {
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "base": {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 10, "batch_size": 16}},
    "pair_training": {"batch_size": 8, "micro_batch_size": 8}, "reward": {"epochs": 1},
    "sample_training": {"iterations": 2, "batch_size": 8, "minibatch_size": 4},
    "measurement": {"checkpoints": 4, "probe": 6, "finals": 4, "shown": 1, "detail": False},
    "train_pairs": 32, "test_pairs": 16, "max_new_tokens": 8,
    "validation": 5, "report": 6, "sweep_seeds": 1, "seeds": [0, 1], "variants": ROWS,
}  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "coordination"))


def parameters(**given):
    sections = {k: {**TINY[k], **v} for k, v in given.items() if k in ("hardware", "base", "measurement")}
    return resolve(NOTEBOOK, {**TINY, **given, **sections}, "test")


def on_top_of_first(p):
    """Every row's candidates as if every rival had chosen its first."""
    return p.on_top({name: some.of(0)[0].row for name, some in p.plain_candidates().items()})


def test_three_splits_share_no_prompt():
    p = parameters()
    splits = (None, p.validation_prompts, p.report_prompts)
    texts = [{m[-1]["content"] for m in p.prompts(which).messages()} for which in splits]
    assert [len(t) for t in texts] == [4, 5, 6]
    assert len(set.union(*texts)) == 15


def test_candidates_and_their_own_arguments():
    p = parameters()
    tried = on_top_of_first(p)
    assert {name: len(some) for name, some in tried.items()} == dict.fromkeys(ROWS, 2)
    second = tried["cDPO"].runs[1]
    assert second.row.arguments == {"start": 0.4, "end": 0.6, "beta": 0.5} and second.training.method == DPO(0.5)
    assert str(second) == "cDPO beta=0.5 start=0.4 end=0.6, seed 0"
    assert (second.training.rule.start, second.training.rule.end) == (0.4, 0.6)
    assert tried["SimPO"].runs[1].training.method == SimPO(margin=0.6, beta=2.0)
    training = tried["GRPO"].runs[1].training
    assert training.method == GRPO(group_size=2, kl_coefficient=0.5) and training.reward == p.reward_stage("oracle")


def test_arguments_of_the_sections_are_what_rows_start_from():
    p = parameters(dpo={"beta": 0.7}, ppo={"clip": 0.3}, variants={"DPO": {"method": "dpo"}, "PPO": {"method": "ppo"}})
    tried = p.plain_candidates()
    assert tried["DPO"].runs[0].training.method.beta == 0.7 and tried["PPO"].runs[0].training.method.clip == 0.3
    own = {"method": "ppo", "arguments": {"clip": 0.4}}
    tried = parameters(ppo={"clip": 0.3, "gamma": 0.9}, variants={"PPO": own}).plain_candidates()
    assert (tried["PPO"].runs[0].training.method.clip, tried["PPO"].runs[0].training.method.gamma) == (0.4, 0.9)


def test_what_is_compared_starts_from_what_its_rival_has_chosen(monkeypatch):
    """cDPO takes DPO's beta unless its own sweep says another; who has no rival takes nothing."""
    p = parameters()
    for best, beta in ((0, 0.1), (1, 0.5)):
        monkeypatch.setattr(Coordination, "merits", lambda p, tried, best=best: np.eye(2)[best])
        tried = p.candidates()
        arguments = {name: [run.row.arguments for run in some.runs] for name, some in tried.items()}
        assert [own["beta"] for own in arguments["cDPO"]] == [beta, 0.5]
        assert [own["beta"] for own in arguments["IPO"]] == [0.1, 1.0]
        assert [own["beta"] for own in arguments["DPO"]] == [0.1, 0.5]
        assert arguments["ORPO"] == [{"weight": 0.1}, {"weight": 1.0}]  # it has no beta to take
        assert "kl_coefficient" not in arguments["SimPO"][0] and list(tried) == list(ROWS)


def test_rows_are_checked_before_anything_starts():
    rows = PLAIN | {"x": {"method": "dpo", "rule": "coordinatd", "against": "DPO"}}
    with pytest.raises(BadInput, match=r"^test: variants\.x\.rule='coordinatd': no such rule, expected one of: plain,"):
        parameters(variants=rows)


def test_a_plain_candidate_is_the_run_of_notebook_02_and_others_are_not():
    p = parameters()
    tried = {name: [run.training for run in some.runs] for name, some in on_top_of_first(p).items()}
    assert tried["DPO"][0] == p.training(Variant(method="dpo"), 0)
    every = [identity(training) for some in tried.values() for training in some]
    assert len(set(every)) == len(every)


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "sweep_seeds", "won", "merits"),
    [
        # by (beta, seed): the share of validation prompts that a run wins; unequal over seeds and candidates
        ([3, 5], 1, {(0.1, 3): 0.2, (0.5, 3): 0.6, (0.9, 3): 0.4}, [0.2, 0.6, 0.4]),
        (
            [3, 5],
            2,
            {(0.1, 3): 1.0, (0.1, 5): 0.0, (0.5, 3): 0.4, (0.5, 5): 0.8, (0.9, 3): 0.0, (0.9, 5): 1.0},
            [0.5, 0.6, 0.5],
        ),
        (
            [3, 5, 7, 9],
            3,
            {
                **{(0.1, 3): 0.0, (0.1, 5): 0.2, (0.1, 7): 0.4},
                **{(0.5, 3): 1.0, (0.5, 5): 0.2, (0.5, 7): 0.0},
                **{(0.9, 3): 0.8, (0.9, 5): 0.8, (0.9, 7): 0.0},
            },
            [0.2, 0.4, 8 / 15],
        ),
    ],
)
def test_the_best_on_the_validation_prompts_is_chosen_with_every_seed(seeds, sweep_seeds, won, merits, monkeypatch):
    rows = {"DPO": {"method": "dpo", "sweep": [{"beta": 0.1}, {"beta": 0.5}, {"beta": 0.9}]}}
    p = parameters(variants=rows, seeds=seeds, sweep_seeds=sweep_seeds)
    (tried,) = p.plain_candidates().values()
    assert len(tried) == 3 and len(tried.runs) == 3 * sweep_seeds
    for number, beta in enumerate((0.1, 0.5, 0.9)):
        assert [(run.training.method.beta, run.seed, run.training.seed) for run in tried.of(number)] == [
            (beta, seed, seed) for seed in seeds[:sweep_seeds]
        ]

    class Answered:
        def __init__(self, training):
            self.training = training

        def load(self):
            return [self.training]

    def drawn_stage(self, training, which):
        assert which == p.validation_prompts
        return Answered(training)

    def scores(self, training, prompts):
        if training is None:
            return np.zeros((5, 2))
        wins = round(5 * won[training.method.beta, training.seed])
        return np.array([[1e6, 1e6]] * wins + [[-1e6, -1e6]] * (5 - wins))

    monkeypatch.setattr(Coordination, "drawn_stage", drawn_stage)
    monkeypatch.setattr(Coordination, "scores", scores)
    assert p.merits(tried) == pytest.approx(merits)
    best = [0.1, 0.5, 0.9][int(np.argmax(merits))]
    chosen = p.chosen({"DPO": tried})["DPO"]
    assert [(run.training.method.beta, run.seed, run.training.pairs.seed) for run in chosen] == [
        (best, seed, seed) for seed in seeds
    ]
    assert [run.training.order for run in chosen] == seeds


def test_of_equal_candidates_the_first_is_chosen(monkeypatch):
    p = parameters(variants={"DPO": ROWS["DPO"]})
    monkeypatch.setattr(Coordination, "merits", lambda *_: np.array([0.5, 0.5]))
    assert [run.training.method.beta for run in p.chosen_of(p.plain_candidates()["DPO"])] == [0.1, 0.1]


def test_merits_are_of_real_answers_on_the_validation_prompts():
    """Against a plain count: a run's sampled answers, the SFT model's, the oracle's utility."""
    from preflab.rewards import utilities

    p = parameters(variants={"DPO": ROWS["DPO"]}, sweep_seeds=2)
    tried = p.plain_candidates()["DPO"]
    prompts = p.prompts(p.validation_prompts).messages()

    def scored(training):
        texts = p.answers_stage(training, p.validation_prompts).load().sampled_texts
        return utilities(p.utility, prompts, texts)

    expected = []
    for number in range(2):
        of_seeds = []
        for run in tried.of(number):
            pairs = list(zip(scored(run.training), scored(None), strict=True))
            of_seeds.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))
        expected.append(sum(of_seeds) / 2)
    assert p.merits(tried) == pytest.approx(expected)


# --- work -----------------------------------------------------------------------------------------


def make(stages):
    for stage in stages:
        _ = stage.folder


def done(stages):
    return all(store().holds(stage) for stage in stages)


def test_every_method_trains_and_what_it_trains_on_is_what_is_measured():
    """G of the parts adds up for each method, and GRPO's c holds its KL term."""
    p = parameters()
    for name, some in on_top_of_first(p).items():
        run = some.runs[0]
        make(p.tried_stages(run))
        assert done(p.tried_stages(run)), name
        assert not done(p.final_stages(run)), name
        make(p.final_stages(run))
        measured = p.alignment(run.training).load()
        g = dict(zip(PARTS, measured.g.T, strict=True))
        assert g["positive"] + g["negative"] == pytest.approx(g["whole"], rel=1e-6, abs=1e-9), name
        every = np.array([g[part] for part in PARTS if part not in ("bottom", "middle", "top")])
        assert np.isfinite(every).all() and np.abs(g["whole"]).max() > 0, name
        if name == "cDPO":
            assert g["trained"][0] == pytest.approx(2 * (0.6 * g["positive"][0] + 0.4 * g["negative"][0]), rel=1e-6)
        elif ROWS[name].get("rule") is None:
            assert g["trained"] == pytest.approx(g["whole"])


def first_weights(stage, folder):
    stage.build(folder)
    return json.loads((folder / "record.json").read_text())[0]["total_weight"]


def test_what_grpo_has_in_its_loss_is_measured_too(monkeypatch, tmp_path):
    p = parameters()
    stage = p.alignment(p.plain_candidates()["GRPO"].runs[0].training)
    plain = stage.load().total_weight[0, 0]
    monkeypatch.setattr(GRPO, "kl_in_loss", lambda self, log_probs, reference, mask: 100.0 * mask)
    assert first_weights(stage, tmp_path)[0] > plain + 90


def test_no_rule_touches_the_kl_that_is_in_grpos_loss(monkeypatch, tmp_path):
    row = ROWS["GRPO"] | {"rule": "without_negative"}
    p = parameters(variants=PLAIN | {"GRPO": row | {"sweep": [{"kl_coefficient": 0.05}]}})
    stage = p.alignment(p.plain_candidates()["GRPO"].runs[0].training)
    stage.load()
    monkeypatch.setattr(GRPO, "kl_in_loss", lambda self, log_probs, reference, mask: -100.0 * mask)
    assert first_weights(stage, tmp_path)[PARTS.index("trained")] > 90


def test_simpo_and_orpo_have_no_reference():
    p = parameters()
    tried = on_top_of_first(p)
    rows = p.pairs.train_pairs(0).encoded(p.base_model)
    for name, has in (("SimPO", False), ("ORPO", False), ("IPO", True), ("DPO", True)):
        reference = tried[name].runs[0].training._base_log_probs(rows)
        assert reference.chosen.all() == reference.rejected.all() == has, name
        assert reference.chosen.any() == has and len(reference.chosen) == 32, name


def test_the_budget_cuts_updates_and_passes_count_the_looks():
    adaptive = {"rule": "adaptive", "live_every": 1, "arguments": {"gain": 0.5}, "budget": 0.5}
    rows = {"DPO": {"method": "dpo"}, "a": {"method": "dpo", **adaptive}, "b": {"method": "ppo", **adaptive}}
    p = parameters(variants=rows | {"PPO": {"method": "ppo"}})
    by_name = {name: some.runs[0].training for name, some in p.plain_candidates().items()}
    assert p.updates_of(by_name["DPO"]) == 4 and p.updates_of(by_name["a"]) == 2
    assert p.passes(by_name["DPO"]) == 4 * 16 * 3
    assert p.passes(by_name["a"]) == 2 * 16 * 3 + 2 * 8 * (4 + 8)
    epochs = p.sample_training.epochs
    iteration = 8 * 3 + epochs * 8 * 3 * 2  # sample, score, values; both trunks forwards and backwards
    assert p.passes(by_name["PPO"]) == 2 * iteration
    assert p.passes(by_name["b"]) == iteration + 8 * 7
    assert len(by_name["a"].load()) == 2 and len(by_name["b"].load()) == 1


def test_looks_are_counted_by_how_often_they_are_due():
    """Four updates, a look before the first and the fourth; two iterations, a look before the first."""
    adaptive = {"rule": "adaptive", "arguments": {"gain": 0.5}, "live_every": 3}
    rows = PLAIN | {"a": {"method": "dpo", **adaptive}, "b": {"method": "ppo", **adaptive}, "PPO": {"method": "ppo"}}
    p = parameters(variants=rows)
    cost = {name: p.passes(some.runs[0].training) for name, some in p.plain_candidates().items()}
    assert cost["a"] - cost["DPO"] == 2 * 8 * 12 and cost["b"] - cost["PPO"] == 8 * 7


def test_full_gives_adaptive_runs_no_more_compute_than_static_ones():
    file = project_root() / "params" / "full" / "04_coordinated_objectives.yaml"
    p = resolve(NOTEBOOK, read_yaml(file), "full")
    cost = {name: p.passes(some.runs[0].training) for name, some in on_top_of_first(p).items()}
    for plain, adaptive in (("DPO", "cDPO, adaptive"), ("PPO", "cPPO, adaptive")):
        assert 0.97 < cost[adaptive] / cost[plain] <= 1, (plain, cost[adaptive] / cost[plain])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PLAIN | {"x": {"method": "dpo", "sweep": [{}, {}]}}, "sizes {'DPO': 1, 'x': 2}, expected one size"),
        (PLAIN | {"x": {"method": "dpo", "against": "PPO"}}, "variants.x.against='PPO': expected one of: DPO"),
        ({"x": {"method": "dpo", "rule": "adaptive"}}, "variants.x.rule='adaptive' with live_every=None"),
        ({"x": {"method": "dpo", "live_every": 3}}, "variants.x.rule='plain' with live_every=3"),
        ({"x": {"method": "dpo", "budget": 0.0}}, "variants.x.budget=0.0"),
        ({"x": {"method": "ddpo"}}, "variants.x.method='ddpo'"),
        ({"SFT": {"method": "dpo"}}, "variants.SFT: expected another name"),
        (
            {"x": {"method": "dpo", "sweep": [{"beta": 0.0}]}},
            "variants.x: method dpo: beta=0.0: input should be greater than 0",
        ),
    ],
)
def test_rows_that_cannot_be(rows, message):
    with pytest.raises(BadInput) as error:
        parameters(variants=rows)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "simpo", "arguments": {"beta": 1.0}}, "variants.x: margin: missing, method simpo needs it"),
        (
            {"method": "dpo", "arguments": {"margin": 1.0}},
            "variants.x: margin=1.0: no such argument, expected one of: ['beta']",
        ),
        (
            {"method": "ppo", "arguments": {"group_size": 4}},
            "variants.x: group_size=4: no such argument, expected one of: ['clip', 'kl_coeff",
        ),
        (
            {"method": "grpo", "arguments": {"group_size": 3}},
            "variants.x: group_size=3: expected a divisor of sample_training.batch_size=8",
        ),
    ],
)
def test_arguments_that_a_method_does_not_take(row, message):
    with pytest.raises(BadInput) as error:
        parameters(variants={"x": row})
    assert message in str(error.value) and "\n" not in str(error.value)


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
    assert message in str(error.value) and "\n" not in str(error.value)


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
    [(0.6, 400, REPRODUCED), (0.4, 400, NOT_REPRODUCED), (0.5, 4000, NOT_REPRODUCED), (0.55, 20, INCONCLUSIVE)],
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
    trainings = {"cDPO, linear": p.plain_candidates()["DPO"].runs[0].training}

    def exported(name):
        return alpaca.export(p.base_model, trainings, rows, tmp_path / name, 4)

    assert exported("a") == [
        "alpaca_eval --model_outputs 01_cDPO_linear/model_outputs.json --reference_outputs 00_SFT/model_outputs.json"
        " --annotators_config weighted_alpaca_eval_gpt4_turbo --output_path 01_cDPO_linear"
    ]
    for folder, generator in (("01_cDPO_linear", "cDPO, linear"), ("00_SFT", "SFT")):
        outputs = json.loads((tmp_path / "a" / folder / "model_outputs.json").read_text())
        assert [set(row) for row in outputs] == [{"instruction", "dataset", "output", "generator"}] * 2
        assert outputs[0]["generator"] == generator and all(isinstance(row["output"], str) for row in outputs)
    monkeypatch.setattr(Texts, "build", None)  # kept: not asked again
    exported("b")
    exported("b")  # the cell may be run again
    of = "00_SFT/model_outputs.json"
    assert (tmp_path / "b" / of).read_text() == (tmp_path / "a" / of).read_text()


def test_who_answers_for_alpaca_eval_and_what(asked, tmp_path, monkeypatch):
    p = parameters()
    rows = [{"instruction": f"{row['instruction']} please"} for row in instructions(f"files:{asked}")]  # not asked yet
    tried = {f"DPO {i}": run.training for i, run in enumerate(p.plain_candidates()["DPO"].runs)}
    answered = []

    def build(stage, folder):
        answered.append((stage.training, stage.asked))
        (folder / "texts.json").write_text(json.dumps(["an answer"] * len(stage.asked)))

    monkeypatch.setattr(Texts, "build", build)
    alpaca.export(p.base_model, tried, rows, tmp_path / "a", 4)
    both = tuple(row["instruction"] for row in rows)
    assert answered == [(training, both) for training in (None, *tried.values())]
    alpaca.export(p.base_model, {}, rows[:1], tmp_path / "b", 4)
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


def test_the_verifiable_reward_is_the_right_tool_alone():
    prompts = [[{"role": "user", "content": "how do i fix the old lamp at home ?"}]] * 4
    texts = ["use the wire .", "use the key .", "use the wire . use the key .", "sorry i can not help ."]
    assert correct("answers", prompts, texts).tolist() == [1, 0, 0, 0]
    assert torch.tensor(correct("answers", prompts, texts)).dtype == torch.float64
