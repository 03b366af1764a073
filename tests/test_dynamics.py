"""Paper D's protocol: snapshots, D', and G along a run against the plain definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from preflab import alignment
from preflab.data.worlds import get_world, preference_pairs
from preflab.errors import BadInput
from preflab.experiments.variants import Variant
from preflab.likelihood import collate, collate_responses, pair_log_probs, token_log_probs
from preflab.measured import COMPONENTS, PARTS, common_mode, per_weight
from preflab.paths import project_root
from preflab.rewards import oracle_reward
from preflab.running.cache import Cache
from preflab.running.identity import identity
from preflab.running.reading import defaults, resolve
from preflab.stages import data as data_module
from preflab.stages.probe import probe_rows
from preflab.stages.stage import keep_in, store
from preflab.training.from_samples import trained_parameters

NOTEBOOK = project_root() / "notebooks" / "src" / "02_g_dynamics.py"
TINY = {
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1}, "source": "world:conflict",
    "train_pairs": 32, "test_pairs": 16, "max_new_tokens": 8, "seeds": [0, 1],
    "base": {
        "architecture": "gpt_neox", "hidden_size": 16, "layers": 2, "heads": 2, "sft": {"steps": 10, "batch_size": 16}
    },
    "pair_training": {"batch_size": 8, "micro_batch_size": 8, "epochs": 2, "learning_rate": 3e-3},
    "reward": {"kind": "model", "epochs": 1},
    "sample_training": {"iterations": 3, "batch_size": 8, "minibatch_size": 4},
    "measurement": {"checkpoints": 4, "probe": 10, "finals": 8, "batch": 5, "shown": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "dynamics"))


def parameters(**given):
    """Sections are laid over those of TINY."""
    sections = {k: {**TINY[k], **v} for k, v in given.items() if isinstance(v, dict) and k in TINY}
    return resolve(NOTEBOOK, {**TINY, **given, **sections}, "test")


def training(p, method, seed=0):
    return p.training(Variant(method=method), seed)


def measured_of(p, method):
    return p.alignment(training(p, method)).load()


def states(p, method):
    """Every kept state: step -> weights."""
    found = {}

    def keep(step, policy, values):
        found[step] = {n: t.detach().clone() for n, t in trained_parameters(policy, values).items()}

    p.alignment(training(p, method)).snapshots.visit(keep)
    return found


def test_defaults_are_the_notebooks():
    sections = {"lora", "dpo", "ppo", "pair_training", "sample_training", "reward", "measurement", "base", "hardware"}
    assert set(defaults(NOTEBOOK)) == set(type(parameters()).model_fields)
    assert all(defaults(NOTEBOOK)[name] == {} for name in sections)


def test_the_runs_of_the_notebook_are_both_methods_with_every_seed_the_longer_ones_first():
    p = parameters()
    assert [str(run) for run in p.planned()] == ["PPO, seed 0", "PPO, seed 1", "DPO, seed 0", "DPO, seed 1"]
    assert [run.training for run in p.planned()] == [training(p, m, s) for m in ("ppo", "dpo") for s in (0, 1)]


# The update after a measurement, and (PPO's 4 updates an iteration, 2 epochs) where the second epoch begins.
@pytest.mark.parametrize(
    ("method", "steps", "kept"),
    [("dpo", (0, 1, 3, 8), [0, 1, 2, 3, 4, 8]), ("ppo", (0, 4, 8, 12), [0, 1, 2, 4, 5, 6, 8, 9, 10, 12])],
)
def test_snapshots_are_the_measured_steps_the_update_after_each_and_later_inner_epochs(method, steps, kept):
    p = parameters()
    assert p.measured_steps(training(p, method)) == steps
    assert sorted(states(p, method)) == kept
    plain = replace(p.alignment(training(p, method)), detail=False)
    assert plain.snapshots.steps == steps


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_training_starts_at_the_base_and_the_last_snapshot_is_the_final_model(method, rank):
    p = parameters(lora={"rank": rank})
    base = {n: t.clone() for n, t in p.base_model.load().state_dict().items()}
    kept = states(p, method)
    first, last = kept[0], kept[max(kept)]
    if rank == 0:
        assert all(torch.equal(base[n.removeprefix("policy.")], t) for n, t in first.items() if n.startswith("policy."))
    assert any(not torch.equal(first[n], last[n]) for n in first)
    with training(p, method).final_policy() as final:
        assert not final.training
        for name, t in trained_parameters(final, None).items():
            assert torch.equal(t, last[name]), name
    after = p.base_model.load().state_dict()
    assert all(torch.equal(t, after[n]) for n, t in base.items())  # the base is nobody's to change


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_replayed_and_kept_snapshots_measure_the_same(method, tmp_path):
    kept = measured_of(parameters(), method)
    keep_in(Cache(tmp_path / "replayed"))  # the same stage: it would be loaded from the other one
    p = parameters(measurement={"snapshots": "replay"})
    stage = p.alignment(training(p, method))
    assert stage.replay and identity(stage) == identity(parameters().alignment(training(p, method)))
    replayed = stage.load()
    assert not store().holds(stage.snapshots)
    assert kept.steps.tolist() == replayed.steps.tolist()
    for name in ("contributions", "cosine", "nll", "predicted", "changed", "step_cosine", "held_out", "inner"):
        assert getattr(kept, name).tobytes() == getattr(replayed, name).tobytes(), name


def probe_pairs(p, seed=0):
    run = training(p, "dpo", seed)
    return [run.pairs.rows()[i] for i in probe_rows(run, p.measurement.probe)]


def plain_dpo_g(p, step):
    """G of the whole loss and of its positive part at a kept step, by one backward pass of DPO's own loss."""
    base, tokenizer, beta = p.base_model.load(), p.base_model.tokenizer(), p.dpo.beta
    run = training(p, "dpo")
    rows = [run.pairs.encoded(p.base_model)[i] for i in probe_rows(run, p.measurement.probe)]
    reference = pair_log_probs(base, rows, tokenizer.pad_token_id, 64)
    policy = p.base_model.fresh_policy(p.lora, 0).eval()
    with torch.no_grad():
        for name, t in trained_parameters(policy, None).items():
            t.copy_(states(p, "dpo")[step][name])
    weights = list(policy.parameters())
    chosen, rejected = token_log_probs(policy, collate(rows, tokenizer.pad_token_id, base.device)).sum(1).chunk(2)
    delta = (chosen - reference.chosen) - (rejected - reference.rejected)
    whole = torch.autograd.grad(-torch.nn.functional.logsigmoid(beta * delta).mean(), weights, retain_graph=True)
    w = (beta * torch.sigmoid(-beta * delta)).detach()
    positive = torch.autograd.grad(-(w * chosen).mean(), weights)
    final = collate_responses(p.answers_stage(run).load().final, tokenizer.pad_token_id, base.device)
    v = torch.autograd.grad(-token_log_probs(policy, final).sum(1).mean(), weights)
    return [float(sum((a * b).sum() for a, b in zip(v, g, strict=True))) for g in (whole, positive)]


@pytest.mark.parametrize("step", [0, 3])
def test_g_of_a_dpo_run_is_that_of_its_own_loss(step):
    p = parameters()
    measured = measured_of(p, "dpo")
    g = measured.g[measured.steps.tolist().index(step)]
    whole, positive = plain_dpo_g(p, step)
    assert g[COMPONENTS.index("whole")] == pytest.approx(whole, rel=1e-5)
    assert g[COMPONENTS.index("positive")] == pytest.approx(positive, rel=1e-5)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_components_and_layers_add_up(method):
    """Of eleven pairs or samples too, whose halves are of six and five."""
    measured = measured_of(parameters(measurement={"probe": 11}), method)
    whole, positive, negative, *thirds, trained, _ = measured.g.T
    assert trained == pytest.approx(whole, rel=1e-6)
    assert positive + negative == pytest.approx(whole, rel=1e-5, abs=1e-6)
    known = slice(1, None) if method == "dpo" else slice(None)  # DPO's weights are equal before its first update
    assert np.isnan(thirds)[:, 0].all() == (method == "dpo")
    assert sum(thirds)[known] == pytest.approx(whole[known], rel=1e-5, abs=1e-6)
    for g, step in zip(measured.g, measured.layers, strict=True):
        for i, part in enumerate(("whole", "positive", "negative")):
            assert sum(step[part].values()) == pytest.approx(g[i], rel=1e-4, abs=1e-6)
        assert list(step["whole"]) == ["embedding", "layer 0", "layer 1", "head"]


def test_common_mode_has_two_sources_and_with_equal_weights_only_one():
    for method in ("dpo", "ppo"):
        found = measured_of(parameters(), method)
        common = common_mode([found, found])
        up, down = found.g[:, COMPONENTS.index("positive")], found.g[:, COMPONENTS.index("negative")]
        assert common["C"] == pytest.approx(np.array([up - down] * 2) / 2)
        assert common["samples"] + common["weights"] == pytest.approx(common["C"])
        assert (np.abs(common["weights"][:, 1:]) > 1e-6).all()
    dpo = common_mode([measured_of(parameters(), "dpo")])
    assert dpo["weights"][0, 0] == pytest.approx(0, abs=1e-6 * abs(dpo["C"][0, 0]))  # before DPO's first update


def test_g_for_each_unit_of_weight():
    found = measured_of(parameters(), "dpo")
    units = per_weight([found])
    assert units["whole"][0] == pytest.approx(found.g[:, 0] / found.total_weight[:, 0])
    assert np.isnan(units["top"][0, 0]) and np.isfinite(units["top"][0, 1:]).all()


def test_weights_and_margins_of_dpo_are_those_of_the_formula():
    p = parameters()
    measured, beta = measured_of(p, "dpo"), p.dpo.beta
    assert measured.weights[0] == pytest.approx(np.full(10, beta / 2))
    assert measured.margins[0] == pytest.approx(0, abs=1e-12)
    assert measured.margins[-1].mean() > 0
    assert measured.weights[-1] == pytest.approx(beta / (1 + np.exp(measured.margins[-1])), rel=1e-5)


def test_held_out_log_probs_are_those_of_the_kept_states():
    """(steps, 2 sides, pairs): the first row is the base's, the last the final policy's."""
    p = parameters()
    run = training(p, "dpo")
    held_out, pad = measured_of(p, "dpo").held_out, p.base_model.tokenizer().pad_token_id
    rows = p.pairs.test_pairs.encoded(p.base_model)
    with run.final_policy() as policy:
        for found, model in ((held_out[-1], policy), (held_out[0], p.base_model.load())):
            expected = pair_log_probs(model, rows, pad, 64)
            assert found == pytest.approx(torch.stack([expected.chosen, expected.rejected]).numpy(), rel=1e-5)
    assert held_out.shape == (4, 2, 16) and (held_out[0] != held_out[-1]).any()


def test_ppo_is_measured_on_whitened_advantages_of_its_own_samples():
    measured = measured_of(parameters(), "ppo")
    for weights in measured.weights:
        assert np.mean(weights**2) == pytest.approx(1, rel=1e-3)
    tokens = measured.tokens[0]
    assert len(tokens) == 2 and all(len(row["tokens"]) == len(row["c"]) == len(row["pull"]) for row in tokens)
    for shown, of_unit in zip(measured.tokens, measured.contributions, strict=True):  # a unit is one response here
        pulls = [sum(row["pull"]) for row in shown]
        assert pulls == pytest.approx(of_unit[:, PARTS.index("trained"), :2].mean(0), rel=1e-4, abs=1e-6)


def test_predictions_are_of_the_real_step():
    """First order holds for a small enough step, and both ends come from kept weights."""
    p = parameters(pair_training={"learning_rate": 1e-5}, sample_training={"learning_rate": 1e-5})
    for method in ("dpo", "ppo"):
        measured = measured_of(p, method)
        assert np.isnan(measured.predicted[-1]) and np.isnan(measured.changed[-1])
        assert measured.predicted[:-1] == pytest.approx(measured.changed[:-1], rel=0.02, abs=1e-7)
        assert (measured.changed[:-1] != 0).all()
        assert (np.abs(measured.step_cosine[:-1]) <= 1).all()


def test_what_only_a_measurement_in_detail_has_is_nan_or_empty_without_it():
    p = parameters(measurement={"detail": False})
    for method in ("dpo", "ppo"):
        plain, detailed = measured_of(p, method), measured_of(parameters(), method)
        assert plain.contributions.tobytes() == detailed.contributions.tobytes()
        for name in ("cosine", "ceilings", "predicted", "changed", "step_cosine"):
            assert np.isnan(getattr(plain, name)).all() and not np.isnan(getattr(detailed, name)[:-1]).any()
            assert getattr(plain, name).shape == getattr(detailed, name).shape
        assert (plain.nll == detailed.nll).all()
        assert plain.layers == [{}] * len(plain.steps) and plain.inner.shape[1] == 0
        assert detailed.inner.shape[1] == (method == "ppo")


def test_noise_is_that_of_a_mean_over_the_probe_and_half_the_difference_of_the_halves_of_d():
    contributions = np.zeros((1, 2, 6, 4))
    contributions[0, :, 0] = [[1, 3, 5, 7], [2, 2, 2, 2]]
    nothing = measured_of(parameters(), "dpo")
    measured = replace(nothing, contributions=contributions)
    assert measured.g[0, 0] == 3
    of_probe = np.std([1.5, 2.5, 3.5, 4.5], ddof=1) / 2  # the mean of both halves of D', over four units
    assert measured.noise()[0, 0] == pytest.approx(np.hypot(of_probe, (4 - 2) / 2))


def test_finals_are_answers_to_prompts_never_trained_on():
    p = parameters()
    trained_on = {json.dumps(prompt) for seed in p.seeds for prompt in p.pairs.train_pairs(seed).rows()["prompt"]}
    prompts = p.prompts().messages()
    assert len(prompts) == 8 and not trained_on & {json.dumps(prompt) for prompt in prompts}
    answers = p.answers_stage(training(p, "dpo")).load()
    assert len(answers.final) == len(answers.final_texts) == len(answers.sampled_texts) == 8
    assert answers != p.answers_stage(None).load()


def test_halves_of_an_odd_number_of_finals_are_of_equal_size():
    """The seventh answer is left out: else the mean of the halves would not be that of the whole."""
    p = parameters(measurement={"finals": 7})
    nll = measured_of(p, "dpo").nll[-1]
    run, pad = training(p, "dpo"), p.base_model.tokenizer().pad_token_id
    final = p.answers_stage(run).load().final
    with run.final_policy() as policy, torch.no_grad():
        sums = -token_log_probs(policy, collate_responses(final, pad, policy.device)).sum(1)
    assert len(final) == 7 and nll == pytest.approx(float(sums[:6].mean()), rel=1e-9)
    assert nll != pytest.approx(float(sums.mean()), rel=1e-6)


def test_held_out_prompts_come_once_and_must_be_enough(monkeypatch):
    p = parameters()
    test = p.pairs.test_pairs.rows()
    repeated = replace(p.pairs.load(0), test=test.select([0, 0, 1, 0, 2]))
    monkeypatch.setattr(data_module, "_load", lambda *_: repeated)
    assert p.prompts(range(1, 3)).messages() == test["prompt"][1:3]
    with pytest.raises(BadInput, match="world:conflict, helpful: 3 held-out prompts, expected at least 4"):
        p.prompts(range(2, 4)).messages()


def test_the_probe_is_of_training_pairs_and_fixed_and_another_for_another_seed():
    p = parameters()
    train = {json.dumps(row) for row in p.pairs.train_pairs(0).rows()}
    probe = [json.dumps(row) for row in probe_pairs(p)]
    assert len(set(probe)) == 10 and set(probe) <= train
    assert probe == [json.dumps(row) for row in probe_pairs(p)]
    zero, one = (probe_rows(training(p, "dpo", seed), 10) for seed in (0, 1))
    assert zero != one and zero == sorted(zero)
    assert zero == probe_rows(training(p, "ppo"), 10)


class Interrupted(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_snapshots(monkeypatch, tmp_path):
    loops = {"pair_training": {"checkpoint_every": 2}, "sample_training": {"checkpoint_every": 2}}
    p = parameters(**loops)
    whole = {method: states(p, method) for method in ("dpo", "ppo")}
    keep_in(Cache(tmp_path / "cache"))
    for method, note, at in (("dpo", "_note_step", 5), ("ppo", "_note_iteration", 3)):
        snapshots, calls = p.alignment(training(p, method)).snapshots, []

        def interrupt(step, steps, log, calls=calls, at=at):
            calls.append(step)
            if len(calls) == at:
                raise Interrupted

        with monkeypatch.context() as patched:
            patched.setattr(f"preflab.stages.training.{note}", interrupt)
            with pytest.raises(Interrupted):
                _ = snapshots.folder
        assert not store().holds(snapshots) and not store().holds(training(p, method))
        assert list(tmp_path.glob("cache/Snapshots-*.partial/checkpoint.safetensors"))
        again = states(p, method)
        assert again.keys() == whole[method].keys()
        for step, weights in again.items():
            assert all(torch.equal(t, whole[method][step][n]) for n, t in weights.items()), step
        assert not list(tmp_path.glob("cache/*/checkpoint.safetensors"))


def test_an_interrupted_training_whose_run_is_deposited_later_leaves_no_checkpoint(monkeypatch, tmp_path):
    p = parameters(pair_training={"checkpoint_every": 2})
    keep_in(Cache(tmp_path / "cache"))
    run = training(p, "dpo")

    def interrupt(step, steps, log):
        if step == 5:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr("preflab.stages.training._note_step", interrupt)
        with pytest.raises(Interrupted):
            _ = run.folder
    assert list(tmp_path.glob("cache/TrainingFromPairs-*.partial/checkpoint.safetensors"))
    states(p, "dpo")
    assert store().holds(run) and not list(tmp_path.glob("cache/**/checkpoint.safetensors"))


def test_the_oracle_can_be_the_reward():
    p = parameters(reward={"kind": "oracle"})
    prompts = p.prompts().messages()
    samples = p.answers_stage(None).load().final
    stage = p.reward_stage()
    scale = json.loads((stage.folder / "scale.json").read_text())
    raw = oracle_reward(p.utility, p.base_model.tokenizer())(prompts, samples)
    assert torch.allclose(stage.load()(prompts, samples), (raw - scale["mean"]) / scale["deviation"])
    for method, differs in (("ppo", True), ("dpo", False)):
        assert (identity(training(p, method)) != identity(training(parameters(), method))) == differs


def test_flipped_labels_make_another_reward_model():
    clean, noisy = (
        p.reward_stage().margins(p.pairs.test_pairs)
        for p in (parameters(reward={"label_flips": rate}) for rate in (0.0, 0.5))
    )
    assert (clean != noisy).any()


def test_the_reward_model_and_the_judge_have_pairs_of_their_own(tmp_path):
    rows = preference_pairs(get_world("conflict"), "helpful", "train", 160, np.random.default_rng(0)).to_list()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"source": "files:rows.jsonl", "objective": "helpful", "data": str(tmp_path), "base": {"context": 200}}
    p = parameters(**given, reward={"own_share": 0.2, "judge_share": 0.3})
    learnt_from = [training(p, "dpo", seed).pairs for seed in (0, 1)]
    reward, judge = p.reward_stage(), p.judge_stage()
    assert learnt_from[0].fingerprint() != learnt_from[1].fingerprint()
    prompts = [{json.dumps(x) for x in some.rows()["prompt"]} for some in (*learnt_from, reward.pairs, judge.pairs)]
    assert not (prompts[0] | prompts[1]) & (prompts[2] | prompts[3]) and not prompts[2] & prompts[3]
    assert len(prompts[3]) > len(prompts[2]) > 0

    asked, answers, later = p.prompts().messages(), p.answers_stage(None).load(), p.answers_stage(training(p, "dpo"))
    raw = judge.load()
    gained = raw(asked, later.load().sampled) - raw(asked, answers.sampled)
    assert p.judge_is_apart and p.gain(answers, later.load()).value == pytest.approx(gained.mean().item())

    alone = parameters(**given)
    assert alone.judge_stage() == alone.reward_stage() and not alone.judge_is_apart
    assert alone.reward_stage().pairs == training(alone, "dpo").pairs
    implicit = parameters(**given, reward={"kind": "implicit", "own_share": 0.2}).reward_stage()
    assert {json.dumps(x) for x in implicit.implicit.pairs.rows()["prompt"]} == prompts[2]


@pytest.mark.parametrize("rank", [0, 2])
def test_the_reference_stays_the_sft_model_while_the_policy_moves(rank):
    history = training(parameters(lora={"rank": rank}, sample_training={"learning_rate": 1e-2}), "ppo").load()
    assert history[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert abs(history[-1]["kl"]) > 1e-4


def test_a_lora_policy_has_a_merged_reward_model():
    folder = parameters(lora={"rank": 2}).reward_stage().folder / "model"
    assert (folder / "model.safetensors").exists() and not (folder / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sample_training": {"minibatch_size": 3}},
            "sample_training.batch_size=8: expected a multiple of sample_training.minibatch_size=3",
        ),
        ({"measurement": {"finals": 20}}, "measurement.finals=20: expected at most test_pairs=16"),
        ({"measurement": {"probe": 40}}, "measurement.probe=40: expected at most train_pairs=32"),
        ({"pair_training": {"batch_size": 40}}, "pair_training.batch_size=40: expected at most train_pairs=32"),
        ({"final_source": "world:safety"}, "final_objective=None: expected one with final_source"),
        ({"reward": {"kind": "oracle"}, "source": "files:x"}, "reward.kind='oracle': only a world has one"),
        ({"reward": {"label_flips": 0.6}}, "reward.label_flips=0.6: input should be less than or equal to 0.5"),
        ({"reward": {"own_share": 0.5, "judge_share": 0.5}}, "expected less than 1 together"),
        ({"reward": {"judge_share": 0.2}}, "reward.judge_share=0.2: expected 0 for a world"),
        ({"source": "conflict"}, "source='conflict'"),
    ],
)
def test_parameters_that_cannot_be(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_worlds_that_do_not_exist_are_refused_before_anything_starts():
    with pytest.raises(BadInput, match=r"^test: world:nowhere: no such world"):
        parameters(source="world:nowhere")
    with pytest.raises(BadInput, match=r"^test: world:conflict: objective 'kind' does not exist"):
        parameters(objective="kind")


def test_prompts_of_d_may_come_from_elsewhere():
    p = parameters(final_source="world:safety", final_objective="better")
    assert p.prompts().messages() != parameters().prompts().messages()
    assert identity(p.answers_stage(training(p, "dpo"))) != identity(parameters().answers_stage(training(p, "dpo")))
    assert p.alignment(training(p, "dpo")).held_out == p.pairs.test_pairs  # what it was trained on, held out


def test_nothing_is_pickled_and_no_checkpoint_stays():
    _ = training(parameters(), "ppo").folder
    cache = store().root
    assert not [f for f in cache.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(cache.rglob("checkpoint.safetensors"))


def test_mean_nll_is_another_number():
    sums, means = (measured_of(parameters(measurement={"nll": nll}), "dpo") for nll in ("sum", "mean"))
    assert (sums.nll > means.nll).all()
    assert sums.g[0, 0] != means.g[0, 0]


def test_layers_are_found_by_name():
    ones = {
        "gpt_neox.embed_in.weight": 1.0, "gpt_neox.layers.0.mlp.weight": 2.0, "gpt_neox.layers.11.mlp.weight": 3.0,
        "gpt_neox.final_layer_norm.weight": 4.0, "embed_out.weight": 5.0, "model.embed_tokens.weight": 6.0,
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": 7.0,
    }  # fmt: skip
    a = {name: torch.tensor([value]) for name, value in ones.items()}
    b = {name: torch.ones(1) for name in ones}
    assert alignment.by_layer(a, b) == {"embedding": 7.0, "layer 0": 9.0, "layer 11": 3.0, "head": 9.0}
