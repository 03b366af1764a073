"""The two-stage protocol: which model starts, which is the reference, what is measured on what."""

import json

import numpy as np
import pytest
import torch

from preflab import bases, runs, sequential
from preflab.errors import BadInput
from preflab.evaluation import dpo_margin
from preflab.likelihood import encode_pairs, pair_log_probs
from preflab.parameters import defaults, resolve
from preflab.paths import project_root

NOTEBOOK = project_root() / "notebooks" / "src" / "01_sequential_settings.py"
TINY = {
    "device": "cpu", "dtype": "float64", "workers": 1, "train_pairs": 32, "test_pairs": 16, "prompts": 3,
    "max_new_tokens": 8, "seeds": [0, 1], "hidden_size": 16, "layers": 1, "heads": 2, "sft_steps": 10,
    "sft_batch_size": 16, "batch_size": 8, "micro_batch_size": 8, "lora_rank": 2, "lora_alpha": 4,
    "resamples": 100, "settings": {"conflict": ["world:conflict", "helpful", "harmless"]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def results(tmp_path_factory, monkeypatch):
    """One cache for the module: what one test trained the next may load."""
    monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path_factory.getbasetemp() / "sequential"))


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **given}, "test")


def only_setting(p):
    return sequential.settings_of(p)[0]


def margins_of_training_pairs(p, stage, model_stage):
    """DPO margins, under the weights of `model_stage`, of the pairs that `stage` trains on."""
    base, tokenizer = bases.base_model(p), bases.base_tokenizer(p)
    pairs = sequential.stage_pairs(p, stage).train
    rows, _ = encode_pairs(pairs, tokenizer, p.context)
    reference = pair_log_probs(base, rows, tokenizer.pad_token_id, 64)
    folder = sequential.run_stage(p, model_stage) / "model"
    policy = sequential.load_trained(folder, base, torch.device("cpu"), torch.float64)
    margins = dpo_margin(pair_log_probs(policy, rows, tokenizer.pad_token_id, 64), reference, p.beta)
    sequential.unwrap(policy)
    return margins


def first_batch(p, stage):
    from preflab.training.dpo import batches

    seed = 10 * stage.seed + len(stage.path)
    return batches(p.train_pairs, p.batch_size, p.epochs, seed)[0]


def test_stage_1_starts_from_the_base():
    p = parameters()
    stage = sequential.Stage(only_setting(p), ("helpful",), 0)
    first = sequential.load_stage(p, stage).history[0]
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-12)
    assert first["margin"] == pytest.approx(0, abs=1e-12)


def test_stage_2_starts_where_stage_1_ended_against_the_base():
    p = parameters()
    stage = sequential.Stage(only_setting(p), ("helpful", "harmless"), 0)
    margins = margins_of_training_pairs(p, stage, stage.parent)
    first = sequential.load_stage(p, stage).history[0]
    assert first["margin"] == pytest.approx(margins[first_batch(p, stage)].mean(), rel=1e-9)
    assert abs(first["margin"]) > 1e-6


def test_stage_2_against_stage_1_starts_at_ln_2():
    p = parameters(stage2_reference="stage1")
    setting = only_setting(p)
    first = sequential.load_stage(p, sequential.Stage(setting, ("helpful", "harmless"), 0)).history[0]
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-9)
    other = sequential.Stage(setting, ("helpful",), 0)
    assert sequential.stage_key(p, other) == sequential.stage_key(parameters(), other)  # Stage 1 is shared


def test_full_fine_tuning_leaves_the_base_alone():
    p = parameters(lora_rank=0, learning_rate=1e-3)
    before = {k: v.clone() for k, v in bases.base_model(p).state_dict().items()}
    stage = sequential.Stage(only_setting(p), ("helpful", "harmless"), 0)
    folder = sequential.run_stage(p, stage) / "model"
    assert (folder / "model.safetensors").exists()
    assert all(torch.equal(v, before[k]) for k, v in bases.base_model(p).state_dict().items())
    margins = margins_of_training_pairs(p, stage, stage.parent)
    first = sequential.load_stage(p, stage).history[0]
    assert first["margin"] == pytest.approx(margins[first_batch(p, stage)].mean(), rel=1e-9)


def test_base_margins_are_zero_and_pairs_are_shared_by_seeds():
    p = parameters()
    setting = only_setting(p)
    sequence = sequential.load_sequence(p, setting, setting.orders[0])
    for objective in setting.objectives:
        assert sequence.dpo_margins[objective].shape == (3, 2, 16)
        assert not sequence.dpo_margins[objective][0].any()
        assert sequence.dpo_margins[objective][1:].all()
        base = sequence.policy_margins[objective][0]
        assert (base[0] == base[1]).all()
    seeds = [bases.loaded_pairs(p, setting.source, "helpful", seed) for seed in p.seeds]
    assert seeds[0].test.to_list() == seeds[1].test.to_list()
    assert seeds[0].train.to_list() != seeds[1].train.to_list()


def test_stages_do_not_depend_on_the_number_of_processes(monkeypatch, tmp_path):
    """One process after the other, or two side by side: the same bits."""
    from functools import partial

    found = []
    for workers in (1, 2):
        monkeypatch.setenv("PREFLAB_RESULTS", str(tmp_path / str(workers)))
        p = parameters(workers=workers, seeds=[0])
        bases.base_folder(p)
        stages = sequential.all_stages(p)[1]
        runs.parallel(partial(sequential.run_stage, p), {"Stage 1": stages}, workers)
        for folder in (sequential.run_stage(p, stage) for stage in stages):  # loads them
            found.append((folder.name, (folder / "history.json").read_bytes()))
    assert sorted(found[:2]) == sorted(found[2:])


def test_the_adapter_is_in_pefts_format_and_nothing_is_pickled():
    p = parameters()
    folder = sequential.run_stage(p, sequential.Stage(only_setting(p), ("helpful",), 0))
    assert {f.name for f in (folder / "model").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    cache = runs.cache().root
    assert not [f for f in cache.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(cache.rglob("checkpoint.safetensors"))


def test_greedy_samples_come_from_held_out_prompts_and_are_judged():
    p = parameters()
    setting = only_setting(p)
    result = sequential.load_stage(p, sequential.Stage(setting, (), 0))
    held_out = {json.dumps(r) for o in setting.objectives for r in sequential.test_rows(p, setting, o)[0]["prompt"]}
    assert len(result.samples) == 6
    assert all(json.dumps(s["prompt"]) in held_out for s in result.samples)
    assert sequential.utilities(setting.world, "helpful", result.samples).shape == (3,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": ["world:nowhere", "a", "b"]}, "world:nowhere: no such world"),
        ({"x": ["world:safety", "safer", "kind"]}, "objective 'kind' does not exist"),
        ({"x": ["world:safety", "safer", "better"], "y": ["files:/tmp", "a", "b"]}, "cannot carry"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(BadInput, match=message):
        sequential.settings_of(parameters(settings=settings))


def test_defaults_are_the_notebooks():
    assert set(defaults(NOTEBOOK)) == set(type(parameters()).model_fields)


def test_a_model_by_name_goes_the_same_way():
    """Hub models have no other code path than a folder in Hugging Face's format."""
    p = parameters()
    named = parameters(model=bases.base_folder(p))
    stage = sequential.Stage(only_setting(p), ("helpful",), 0)
    assert sequential.stage_key(named, stage) != sequential.stage_key(p, stage)
    assert sequential.load_stage(named, stage).history == sequential.load_stage(p, stage).history
