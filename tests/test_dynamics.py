"""Paper D's protocol: snapshots, D', and G along a run against the plain definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from preflab import alignment, bases, dynamics, measurement, runs
from preflab.dynamics import Training
from preflab.errors import BadInput
from preflab.likelihood import collate, collate_responses, pair_log_probs, token_log_probs
from preflab.measurement import COMPONENTS
from preflab.parameters import defaults, resolve
from preflab.paths import project_root
from preflab.training.ppo import trained_parameters

NOTEBOOK = project_root() / "notebooks" / "src" / "02_g_dynamics.py"
TINY = {
    "device": "cpu", "dtype": "float64", "workers": 1, "train_pairs": 32, "test_pairs": 16, "max_new_tokens": 8,
    "seeds": [0, 1], "hidden_size": 16, "layers": 2, "heads": 2, "sft_steps": 10, "sft_batch_size": 16,
    "dpo_batch_size": 8, "dpo_micro_batch_size": 8, "dpo_epochs": 2, "dpo_learning_rate": 3e-3, "reward_epochs": 1,
    "ppo_iterations": 3, "ppo_batch_size": 8, "ppo_minibatch_size": 4, "dpo_measure_every": 3, "ppo_measure_every": 2,
    "probe": 10, "finals": 8, "measure_batch": 5, "shown": 2,
}  # fmt: skip
DPO, PPO = Training("dpo", 0), Training("ppo", 0)


@pytest.fixture(autouse=True)
def results(tmp_path_factory, monkeypatch):
    """One cache for the module: what one test trained the next may load."""
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path_factory.getbasetemp() / "dynamics"))


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **given}, "test")


def states(p, training):
    """Every kept state: step -> weights."""
    found = {}

    def keep(step, policy, values):
        found[step] = {n: t.detach().clone() for n, t in trained_parameters(policy, values).items()}

    dynamics.snapshots(p, training, keep)
    return found


def test_defaults_are_the_notebooks():
    assert set(defaults(NOTEBOOK)) == set(type(parameters()).model_fields)


@pytest.mark.parametrize(("training", "steps"), [(DPO, [0, 3, 6, 8]), (PPO, [0, 8, 12])])
def test_snapshots_are_the_measured_steps_and_the_update_after_each(training, steps):
    p = parameters()
    assert dynamics.measured_steps(p, training) == steps
    assert sorted(states(p, training)) == sorted({*steps, *(s + 1 for s in steps[:-1])})


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("training", [DPO, PPO], ids=str)
def test_training_starts_at_the_base_and_the_last_snapshot_is_the_final_model(training, rank):
    p = parameters(lora_rank=rank)
    base = {n: t.clone() for n, t in bases.base_model(p).state_dict().items()}
    kept = states(p, training)
    first, last = kept[0], kept[max(kept)]
    if rank == 0:
        assert all(torch.equal(base[n.removeprefix("policy.")], t) for n, t in first.items() if n.startswith("policy."))
    assert any(not torch.equal(first[n], last[n]) for n in first)
    folder = dynamics.run_training(p, training) / "model"
    final = dynamics.load_trained(folder, bases.base_model(p), torch.device("cpu"), torch.float64)
    for name, t in trained_parameters(final, None).items():
        assert torch.equal(t, last[name]), name
    dynamics.unwrap(final)
    after = bases.base_model(p).state_dict()
    assert all(torch.equal(t, after[n]) for n, t in base.items())  # the base is nobody's to change


@pytest.mark.parametrize("training", [DPO, PPO], ids=str)
def test_replayed_and_kept_snapshots_measure_the_same(training):
    kept, replayed = (measurement.load_measured(parameters(snapshots=how), training) for how in ("keep", "replay"))
    assert not list(dynamics.run_training(parameters(snapshots="replay"), training).glob("snapshots/*"))
    assert kept.steps.tolist() == replayed.steps.tolist()
    for name in ("contributions", "cosine", "nll", "predicted", "changed", "step_cosine"):
        assert getattr(kept, name).tobytes() == getattr(replayed, name).tobytes(), name


def plain_dpo_g(p, step):
    """G of the whole loss and of its positive part at a kept step, by one backward pass of DPO's own loss."""
    base, tokenizer = bases.base_model(p), bases.base_tokenizer(p)
    rows = bases.encoded(p, dynamics.probe_pairs(p, 0))
    reference = pair_log_probs(base, rows, tokenizer.pad_token_id, 64)
    policy = bases.fresh_policy(p, 0).eval()
    with torch.no_grad():
        for name, t in trained_parameters(policy, None).items():
            t.copy_(states(p, DPO)[step][name])
    weights = list(policy.parameters())
    chosen, rejected = token_log_probs(policy, collate(rows, tokenizer.pad_token_id, base.device)).sum(1).chunk(2)
    delta = (chosen - reference.chosen) - (rejected - reference.rejected)
    whole = torch.autograd.grad(-torch.nn.functional.logsigmoid(p.beta * delta).mean(), weights, retain_graph=True)
    w = (p.beta * torch.sigmoid(-p.beta * delta)).detach()
    positive = torch.autograd.grad(-(w * chosen).mean(), weights)
    final = collate_responses(dynamics.load_answers(p, DPO).final, tokenizer.pad_token_id, base.device)
    v = torch.autograd.grad(-token_log_probs(policy, final).sum(1).mean(), weights)
    return [float(sum((a * b).sum() for a, b in zip(v, g, strict=True))) for g in (whole, positive)]


@pytest.mark.parametrize("step", [0, 6])
def test_g_of_a_dpo_run_is_that_of_its_own_loss(step):
    p = parameters()
    measured = measurement.load_measured(p, DPO)
    g = measured.g[measured.steps.tolist().index(step)]
    whole, positive = plain_dpo_g(p, step)
    assert g[COMPONENTS.index("whole")] == pytest.approx(whole, rel=1e-5)
    assert g[COMPONENTS.index("positive")] == pytest.approx(positive, rel=1e-5)


@pytest.mark.parametrize("training", [DPO, PPO], ids=str)
def test_components_and_layers_add_up(training):
    measured = measurement.load_measured(parameters(), training)
    whole, positive, negative, *thirds, trained = measured.g.T
    assert trained == pytest.approx(whole, rel=1e-6)
    assert positive + negative == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert sum(thirds) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    for g, step in zip(measured.g, measured.layers, strict=True):
        for i, part in enumerate(("whole", "positive", "negative")):
            assert sum(step[part].values()) == pytest.approx(g[i], rel=1e-4, abs=1e-6)
        assert list(step["whole"]) == ["embedding", "layer 0", "layer 1", "head"]


def test_weights_and_margins_of_dpo_are_those_of_the_formula():
    p = parameters()
    measured = measurement.load_measured(p, DPO)
    assert measured.weights[0] == pytest.approx(np.full(10, p.beta / 2))
    assert measured.margins[0] == pytest.approx(0, abs=1e-12)
    assert measured.margins[-1].mean() > 0
    assert measured.weights[-1] == pytest.approx(p.beta / (1 + np.exp(measured.margins[-1])), rel=1e-5)


def test_ppo_is_measured_on_whitened_advantages_of_its_own_samples():
    measured = measurement.load_measured(parameters(), PPO)
    for weights in measured.weights:
        assert np.mean(weights**2) == pytest.approx(1, rel=1e-3)
    tokens = measured.tokens[0]
    assert len(tokens) == 2 and all(len(row["tokens"]) == len(row["c"]) == len(row["pull"]) for row in tokens)


def test_predictions_are_of_the_real_step():
    """First order holds for a small enough step, and both ends come from kept weights."""
    p = parameters(dpo_learning_rate=1e-5, ppo_learning_rate=1e-5)
    for training in (DPO, PPO):
        measured = measurement.load_measured(p, training)
        assert np.isnan(measured.predicted[-1]) and np.isnan(measured.changed[-1])
        assert measured.predicted[:-1] == pytest.approx(measured.changed[:-1], rel=0.02, abs=1e-7)
        assert (measured.changed[:-1] != 0).all()
        assert (np.abs(measured.step_cosine[:-1]) <= 1).all()


def test_noise_is_half_the_difference_of_halves():
    contributions = np.zeros((1, 2, 6, 4))
    contributions[0, :, 0] = [[1, 3, 5, 7], [2, 2, 2, 2]]
    nothing = measurement.load_measured(parameters(), DPO)
    measured = replace(nothing, contributions=contributions)
    assert measured.g[0, 0] == 3
    halves, finals = ((1.5 + 0.5) - (3.5 + 0.5)) / 2, (4 - 2) / 2  # (2 + 2) / 2 against (6 + 2) / 2; 4 against 2
    assert measured.noise()[0, 0] == pytest.approx(np.hypot((2 - 4) / 2, finals))
    assert halves == -1


def test_finals_are_answers_to_prompts_never_trained_on():
    p = parameters()
    trained_on = {json.dumps(prompt) for seed in p.seeds for prompt in dynamics.pairs_of(p, seed).train["prompt"]}
    prompts = dynamics.held_out_prompts(p)
    assert len(prompts) == 8 and not trained_on & {json.dumps(prompt) for prompt in prompts}
    answers = dynamics.load_answers(p, DPO)
    assert len(answers.final) == len(answers.final_texts) == len(answers.sampled_texts) == 8
    assert answers != dynamics.load_answers(p, None)


def test_held_out_prompts_come_once_and_must_be_enough(monkeypatch):
    p = parameters()
    test = dynamics.pairs_of(p, 0).test
    repeated = replace(dynamics.pairs_of(p, 0), test=test.select([0, 0, 1, 0, 2]))
    monkeypatch.setattr(dynamics, "loaded_pairs", lambda *_: repeated)
    assert dynamics.held_out_prompts(p, range(1, 3)) == test["prompt"][1:3]
    with pytest.raises(BadInput, match="world:conflict, helpful: 3 held-out prompts, expected at least 4"):
        dynamics.held_out_prompts(p, range(2, 4))


def test_the_probe_is_of_training_pairs_and_fixed():
    p = parameters()
    train = {json.dumps(row) for row in dynamics.pairs_of(p, 0).train}
    probe = [json.dumps(row) for row in dynamics.probe_pairs(p, 0)]
    assert len(set(probe)) == 10 and set(probe) <= train
    assert probe == [json.dumps(row) for row in dynamics.probe_pairs(p, 0)]


def test_an_interrupted_training_goes_on_to_the_same_snapshots(monkeypatch, tmp_path):
    p = parameters(checkpoint_every=2)
    whole = {t: states(p, t) for t in (DPO, PPO)}
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path))
    for training, at in ((DPO, 5), (PPO, 3)):
        calls = []

        def note(training, step, steps, log, calls=calls, at=at):
            calls.append(step)
            if len(calls) == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(dynamics, "_note", note)
            with pytest.raises(KeyboardInterrupt):
                dynamics.run_training(p, training)
        assert not dynamics.is_trained(p, training)
        assert list(tmp_path.glob("cache/training-*.partial/checkpoint.safetensors"))
        again = states(p, training)
        assert again.keys() == whole[training].keys()
        for step, weights in again.items():
            assert all(torch.equal(t, whole[training][step][n]) for n, t in weights.items()), step


def test_the_oracle_can_be_the_reward():
    p = parameters(reward="oracle")
    prompts = dynamics.held_out_prompts(p)
    samples = dynamics.load_answers(p, None).final
    scale = json.loads((dynamics.prepare_reward(p) / "scale.json").read_text())
    raw = dynamics.oracle_reward(dynamics.objective_of(p), bases.base_tokenizer(p))(prompts, samples)
    assert torch.allclose(dynamics.reward_of(p)(prompts, samples), (raw - scale["mean"]) / scale["deviation"])
    assert dynamics.training_key(p, PPO) != dynamics.training_key(parameters(), PPO)
    assert dynamics.training_key(p, DPO) == dynamics.training_key(parameters(), DPO)


def test_flipped_labels_make_another_reward_model():
    clean, noisy = (dynamics.reward_margins(parameters(label_flips=rate)) for rate in (0.0, 0.5))
    assert (clean != noisy).any()


@pytest.mark.parametrize("rank", [0, 2])
def test_the_reference_stays_the_sft_model_while_the_policy_moves(rank):
    history = dynamics.load_history(parameters(lora_rank=rank, ppo_learning_rate=1e-2), PPO)
    assert history[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert abs(history[-1]["kl"]) > 1e-4


def test_a_lora_policy_has_a_merged_reward_model():
    folder = dynamics.prepare_reward(parameters(lora_rank=2)) / "model"
    assert (folder / "model.safetensors").exists() and not (folder / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ppo_minibatch_size": 3}, "ppo_batch_size=8: expected a multiple of ppo_minibatch_size=3"),
        ({"finals": 20}, "finals=20: expected at most test_pairs=16"),
        ({"probe": 40}, "probe=40: expected at most train_pairs=32"),
        ({"final_source": "world:safety"}, "final_objective=None: expected one with final_source"),
        ({"reward": "oracle", "source": "files:x"}, "only a world has one"),
        ({"label_flips": 0.6}, "label_flips=0.6"),
        ({"source": "conflict"}, "source='conflict'"),
    ],
)
def test_parameters_that_cannot_be(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value)


def test_worlds_that_do_not_exist():
    with pytest.raises(BadInput, match="world:nowhere: no such world"):
        dynamics.trainings(parameters(source="world:nowhere"))
    with pytest.raises(BadInput, match="objective 'kind' does not exist"):
        dynamics.trainings(parameters(objective="kind"))


def test_prompts_of_d_may_come_from_elsewhere():
    p = parameters(final_source="world:safety", final_objective="better")
    assert dynamics.held_out_prompts(p) != dynamics.held_out_prompts(parameters())
    assert dynamics.answers_key(p, DPO) != dynamics.answers_key(parameters(), DPO)


def test_nothing_is_pickled_and_no_checkpoint_stays():
    dynamics.run_training(parameters(), PPO)
    cache = runs.cache().root
    assert not [f for f in cache.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(cache.rglob("checkpoint.safetensors"))


def test_mean_nll_is_another_number():
    sums, means = (measurement.load_measured(parameters(nll=nll), DPO) for nll in ("sum", "mean"))
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
