"""The two-stage protocol: which model starts, which is the reference, what is measured on what."""

import json

import numpy as np
import pytest
import torch

from preflab.errors import BadInput
from preflab.experiments.sequential import utilities
from preflab.likelihood import pair_log_probs
from preflab.margins import dpo_margin
from preflab.paths import project_root
from preflab.running.cache import Cache
from preflab.running.identity import identity
from preflab.running.parallel import parallel
from preflab.running.reading import defaults, resolve
from preflab.stages.stage import Job, keep_in
from preflab.training.schedule import batches

NOTEBOOK = project_root() / "notebooks" / "src" / "01_sequential_settings.py"
TINY = {
    "train_pairs": 32, "test_pairs": 16, "prompts": 3, "max_new_tokens": 8, "seeds": [0, 1], "resamples": 100,
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "base": {"hidden_size": 16, "layers": 1, "heads": 2, "sft": {"steps": 10, "batch_size": 16}},
    "pair_training": {"batch_size": 8, "micro_batch_size": 8}, "lora": {"rank": 2, "alpha": 4},
    "settings": {"conflict": ["world:conflict", "helpful", "harmless"]},
}  # fmt: skip
BOTH = ("helpful", "harmless")
BPE = {**TINY["base"], "vocabulary": 512}
pytestmark = pytest.mark.usefixtures("module_cache")


def parameters(**given):
    return resolve(NOTEBOOK, {**TINY, **given}, "test")


def trained(p, *path, seed=0, setting=0):
    return p.training(p.all_settings()[setting], path, seed)


def margins_of_training_pairs(training, under):
    """DPO margins, under the final policy of another run, of the pairs that a run learns from."""
    base, pad = training.base, training.base.tokenizer().pad_token_id
    rows = training.pairs.encoded(base)
    reference = pair_log_probs(base.load(), rows, pad, 64)
    with under.final_policy() as policy:
        return dpo_margin(pair_log_probs(policy, rows, pad, 64), reference, training.method.beta)


def first_batch(training, seed):
    """Of Stage 2, whose order of batches is not Stage 1's."""
    loop = training.loop
    return batches(len(training.pairs.rows()), loop.batch_size, loop.epochs, 10 * seed + 2)[0]


def test_stage_1_starts_from_the_base():
    first = trained(parameters(), "helpful").load()[0]
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-12)
    assert first["margin"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_stage_2_starts_where_stage_1_ended_against_the_base(seed):
    p = parameters()
    stage2 = trained(p, *BOTH, seed=seed)
    margins = margins_of_training_pairs(stage2, trained(p, "helpful", seed=seed))
    first = stage2.load()[0]
    assert first["margin"] == pytest.approx(margins[first_batch(stage2, seed)].mean(), rel=1e-9)
    assert abs(first["margin"]) > 1e-6


def test_stage_2_against_stage_1_starts_at_ln_2():
    p = parameters(stage2_reference="stage1")
    assert trained(p, *BOTH).load()[0]["loss"] == pytest.approx(np.log(2), rel=1e-9)
    assert trained(p, "helpful") == trained(parameters(), "helpful")  # Stage 1 is shared
    assert identity(trained(p, *BOTH)) != identity(trained(parameters(), *BOTH))


def test_full_fine_tuning_leaves_the_base_alone():
    p = parameters(lora={"rank": 0}, pair_training={**TINY["pair_training"], "learning_rate": 1e-3})
    before = {k: v.clone() for k, v in p.base_model.load().state_dict().items()}
    stage2 = trained(p, *BOTH)
    assert (stage2.folder / "model" / "model.safetensors").exists()
    assert all(torch.equal(v, before[k]) for k, v in p.base_model.load().state_dict().items())
    margins = margins_of_training_pairs(stage2, trained(p, "helpful"))
    assert stage2.load()[0]["margin"] == pytest.approx(margins[first_batch(stage2, 0)].mean(), rel=1e-9)


def test_base_margins_are_zero_and_held_out_pairs_are_shared_by_seeds():
    p = parameters()
    sequence = p.sequences()[0]
    for objective in sequence.path:
        assert sequence.dpo_margins[objective].shape == (3, 2, 16)
        assert not sequence.dpo_margins[objective][0].any()
        assert sequence.dpo_margins[objective][1:].all()
        base = sequence.policy_margins[objective][0]
        assert (base[0] == base[1]).all()
        assert (sequence.policy_margins[objective][1, 0] != sequence.policy_margins[objective][1, 1]).any()
    source = p.source_of(sequence.setting, "helpful")
    assert source.load(0).test.to_list() == source.load(1).test.to_list()
    assert source.load(0).train.to_list() != source.load(1).train.to_list()


def test_margins_of_a_sequence_are_those_of_its_own_stages():
    """Stage 1 of the first objective alone, then Stage 2 of this order and no other."""
    p = parameters()
    for sequence in p.sequences():
        for n, path in ((1, sequence.path[:1]), (2, sequence.path)):
            for i, seed in enumerate(p.seeds):
                kept = p.evaluation(sequence.setting, path, seed).load().log_probs["helpful"]
                own = kept.chosen / kept.chosen_tokens - kept.rejected / kept.rejected_tokens
                assert sequence.policy_margins["helpful"][n, i] == pytest.approx(own.numpy())
    one, other = (sequence.policy_margins["helpful"][2] for sequence in p.sequences())
    assert (one != other).any()


def test_stages_do_not_depend_on_the_number_of_processes(tmp_path):
    """One process after the other, or two side by side: the same bits."""
    found = []
    for workers in (1, 2):
        keep_in(Cache(tmp_path / str(workers)))
        p = parameters(seeds=[0])
        _ = p.base_model.folder
        stages = [trained(p, objective) for objective in BOTH]
        parallel({"Stage 1": [Job(str(i), (stage,)) for i, stage in enumerate(stages)]}, workers)
        found.append([(stage.folder.name, (stage.folder / "history.json").read_bytes()) for stage in stages])
    assert found[0] == found[1]


def test_the_adapter_is_in_pefts_format_and_nothing_is_pickled(tmp_path):
    cache = Cache(tmp_path)
    keep_in(cache)
    folder = trained(parameters(), *BOTH).folder / "model"
    assert {f.name for f in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [f for f in cache.root.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(cache.root.rglob("checkpoint.safetensors"))


def test_greedy_samples_come_from_held_out_prompts_and_are_judged(module_cache):
    keep_in(module_cache)
    p = parameters()
    setting = p.all_settings()[0]
    samples = p.evaluation(setting, (), 0).load().samples
    held_out = {json.dumps(q) for o in BOTH for q in p.source_of(setting, o).test_pairs.rows()["prompt"]}
    assert len(samples) == 6
    assert all(json.dumps(s["prompt"]) in held_out for s in samples)
    assert utilities(setting.world, "helpful", samples).shape == (3,)
    own = [s for s in samples if s["objective"] == "helpful"]
    assert 0 < len(own) < len(samples)
    assert utilities(setting.world, "helpful", samples).tolist() == utilities(setting.world, "helpful", own).tolist()


def test_the_same_objective_twice_trains_on_new_pairs_in_one_order(module_cache):
    keep_in(module_cache)
    p = parameters(settings={"again": ["world:conflict", "helpful", "helpful"]})
    stage1, stage2 = trained(p, "helpful"), trained(p, "helpful", "helpful")
    texts = [{json.dumps(row) for row in stage.pairs.rows()} for stage in (stage1, stage2)]
    assert len(texts[0]) == len(texts[1]) == 32 and not texts[0] & texts[1]
    assert stage2.start == stage1 and stage2.order != stage1.order
    (sequence,) = p.sequences()
    assert sequence.path == ("helpful", "helpful") and sequence.change.shape == (2, 16)


def test_a_setting_with_the_same_objective_twice_is_trained_once_a_stage_and_needs_pairs_for_both(tmp_path):
    p = parameters(settings={"again": ["world:conflict", "helpful", "helpful"]})
    (setting,) = p.all_settings()
    assert setting.repeats and setting.orders == [("helpful", "helpful")]
    assert {what: list(some) for what, some in p.phases().items()} == {
        "base model scored": ["again: base"],
        "Stage 1": ["again: helpful, seed 0", "again: helpful, seed 1"],
        "Stage 2": ["again: helpful → helpful, seed 0", "again: helpful → helpful, seed 1"],
    }
    stage2 = p.evaluation(setting, ("helpful", "helpful"), 1)
    assert stage2.held_out == (p.source_of(setting, "helpful").test_pairs,)
    assert (stage2.training.pairs.start, stage2.training.pairs.stop, stage2.training.pairs.seed) == (32, 64, 1)
    assert (stage2.training.start.pairs.start, stage2.training.start.pairs.stop) == (0, 32)
    rows = [{"prompt": f"question {i} ?", "chosen": "yes .", "rejected": "no ."} for i in range(60)]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = parameters(settings={"few": [f"files:{tmp_path / 'few.jsonl'}", "default", "default"]}, base=BPE)
    with pytest.raises(BadInput, match=r"^settings\.few: 5\d training pairs, expected 64 for both stages$"):
        few.training(few.all_settings()[0], ("default",), 0)


@pytest.mark.parametrize("reference", ["base", "stage1"])
def test_every_stage_has_the_pairs_order_start_and_reference_of_its_own_seed_and_path(reference):
    p = parameters(stage2_reference=reference, seeds=[0, 3])
    for order in (BOTH, BOTH[::-1]):
        for seed in p.seeds:
            stage1, stage2 = trained(p, order[0], seed=seed), trained(p, *order, seed=seed)
            assert (stage1.start, stage1.reference, stage1.order) == (None, "base", 10 * seed + 1)
            assert (stage2.start, stage2.order) == (stage1, 10 * seed + 2)
            assert stage2.reference == {"base": "base", "stage1": "start"}[reference]
            for stage, objective in ((stage1, order[0]), (stage2, order[1])):
                assert (stage.seed, stage.pairs.seed, stage.pairs.split) == (seed, seed, "train")
                assert stage.pairs.of.objective == objective and stage.pairs.of.train == 32
                assert (stage.method, stage.loop, stage.lora, stage.base) == (
                    p.dpo,
                    p.pair_training,
                    p.lora,
                    p.base_model,
                )
            held_out = [pairs.of.objective for pairs in p.evaluation(p.all_settings()[0], order, seed).held_out]
            assert held_out == ["helpful", "harmless"]  # in the setting's order, whichever was trained first


def test_orders_and_seeds_of_all_stages_are_told_apart():
    p = parameters(seeds=[0, 1, 2])
    stages = [trained(p, *path, seed=seed) for path in (BOTH[:1], BOTH[1:], BOTH, BOTH[::-1]) for seed in p.seeds]
    assert len({identity(stage) for stage in stages}) == len(stages) == 12
    of_one_seed = [trained(p, *path, seed=1).order for path in (BOTH[:1], BOTH)]
    assert of_one_seed[0] != of_one_seed[1]


def test_two_settings_have_their_own_stages_phases_sequences_and_reports(module_cache):
    keep_in(module_cache)
    settings = TINY["settings"] | {"compatible": ["world:compatible", "instruction_following", "truthfulness"]}
    p = parameters(settings=settings, seeds=[0])
    assert [s.name for s in p.sequences()] == [
        "conflict: helpful → harmless",
        "conflict: harmless → helpful",
        "compatible: instruction_following → truthfulness",
        "compatible: truthfulness → instruction_following",
    ]
    assert {what: len(some) for what, some in p.phases().items()} == {
        "base model scored": 2,
        "Stage 1": 4,
        "Stage 2": 4,
    }
    assert list(p.phases()["Stage 2"]) == [f"{s.name}, seed 0" for s in p.sequences()]
    assert list(p.reports())[:2] == ["conflict/helpful/seed 0", "conflict/harmless/seed 0"]
    assert {r["source"] for r in p.reports().values()} == {"world:conflict", "world:compatible"}


def test_the_loss_of_stage_2_is_that_of_its_own_runs_by_seed():
    p = parameters()
    for sequence in p.sequences():
        expected = [[log["loss"] for log in trained(p, *sequence.path, seed=seed).load()] for seed in p.seeds]
        assert p.loss(sequence) == expected and expected[0] != expected[1] and len(expected[0]) == 4


def test_a_made_world_is_a_setting_that_worker_processes_know_too(tmp_path):
    keep_in(Cache(tmp_path))
    settings = {"apart": ["world:made(-0.5,0.85)", "first", "second"]}
    p = parameters(settings=settings, seeds=[0])
    (setting,) = p.all_settings()
    assert setting.world.compatibility()["correlation"] == pytest.approx(-0.5, abs=1e-9)
    assert [o.strength for o in setting.world.objectives] == [0.85, 0.85]
    _ = p.base_model.folder
    jobs = [Job(label, (stage,)) for label, stage in p.phases()["Stage 2"].items()]  # with Stage 1 below them
    parallel({"Stage 2": jobs}, 2)
    assert all(job.done() for job in jobs)
    one, other = p.sequences()
    assert one.path == ("first", "second") and other.path == ("second", "first")
    samples = p.evaluation(setting, ("first",), 0).load().samples
    assert np.isfinite(utilities(setting.world, "second", samples)).all()
    assert identity(trained(p, "first")) == identity(
        trained(parameters(settings={"apart": ["world:made(-0.5, 0.85)", "first", "second"]}), "first")
    )  # the same world, with a space in its name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"x": ["world:made(-0.5)", "first", "second"]},
            r"world:made\(-0\.5\): expected made\(COMPATIBILITY,STRENGTH\)",
        ),
        (
            {"x": ["world:made(2,0.8)", "first", "second"]},
            r"world:made\(2,0\.8\): compatibility=2\.0: expected a number",
        ),
        (
            {"x": ["world:made(0,0.8)", "first", "third"]},
            r"objective 'third' does not exist, expected one of: first, sec",
        ),
        ({"x": ["world:nowhere", "a", "b"]}, "world:nowhere: no such world"),
        ({"x": ["world:safety", "safer", "kind"]}, "objective 'kind' does not exist"),
        (
            {"x": ["world:safety", "safer", "better"], "y": ["files:/tmp", "a", "b"]},
            "cannot speak answers, other sources",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(BadInput, match=message):
        parameters(settings=settings)


def test_defaults_are_the_notebooks():
    assert set(defaults(NOTEBOOK)) == set(type(parameters()).model_fields)


def test_a_model_by_name_goes_the_same_way(module_cache):
    """Hub models have no other code path than a folder in Hugging Face's format."""
    keep_in(module_cache)
    p = parameters()
    named = parameters(base={**TINY["base"], "model": p.base_model.location})
    assert named.base_model.taken_as_it_is
    assert identity(trained(named, "helpful")) != identity(trained(p, "helpful"))
    assert trained(named, "helpful").load() == trained(p, "helpful").load()
