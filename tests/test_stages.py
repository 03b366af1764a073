"""What each stage builds and loads, against the plain definitions: which pairs, seed, start and reference it has."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel

from preflab.data.pairs import load_pairs
from preflab.data.worlds import get_world, train_and_test_pairs
from preflab.errors import BadInput
from preflab.generation import decode, generate, sample
from preflab.hardware import Hardware
from preflab.likelihood import collate_responses, encode_pairs, pair_log_probs, token_log_probs
from preflab.live import Live
from preflab.methods.dpo import DPO
from preflab.methods.grpo import GRPO
from preflab.methods.orpo import ORPO
from preflab.methods.ppo import PPO
from preflab.models import Lora, unwrap
from preflab.rewards import oracle_reward
from preflab.rules import EqualWeights
from preflab.running.cache import Cache
from preflab.stages import probe as probe_module
from preflab.stages import reward as reward_module
from preflab.stages import training as training_module
from preflab.stages.alignment import Alignment, Learnt
from preflab.stages.answers import AnswersStage, Texts
from preflab.stages.base import Base, BaseSettings
from preflab.stages.data import Pairs, PairSource, Prompts, world_of
from preflab.stages.drawn_answers import AT_ONCE, DrawnAnswers
from preflab.stages.evaluation import Evaluation
from preflab.stages.probe import PairsProbe, SamplesProbe
from preflab.stages.reference import ReferenceLogProbs, no_reference
from preflab.stages.reward import ClosedRewardStage, RewardSection, RewardStage, ending_of
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage, keep_in
from preflab.stages.training import TrainingFromPairs, TrainingFromSamples, TrainingOnTop
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.training.from_samples import SampleTraining, train_on_samples, trained_parameters
from preflab.training.reward import RewardSettings
from preflab.training.rollout import Values, one_seed, reference_of
from preflab.training.sft import SFTSettings

BASE = Base(
    BaseSettings(hidden_size=16, layers=1, heads=2, sft=SFTSettings(steps=40, batch_size=16, learning_rate=1e-2)),
    Hardware("cpu", "float64", 1),
    "answers",
)
PAIRS = PairSource("world:conflict", "helpful", None, 32, 14)
LORA = Lora(rank=2, alpha=4)
LOOP = PairTraining(learning_rate=3e-3, batch_size=8, micro_batch_size=8)
SAMPLE_LOOP = SampleTraining(iterations=2, batch_size=8, minibatch_size=4, micro_batch_size=8)
ORACLE = RewardStage(BASE, "oracle", PAIRS.train_pairs(0), 12)


@pytest.fixture(autouse=True)
def store(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "stages"))


def from_pairs(seed=0, **other):
    given = dict(base=BASE, pairs=PAIRS.train_pairs(seed), seed=seed, lora=LORA, method=DPO(), loop=LOOP, order=seed)
    return TrainingFromPairs(**given | other)


def from_samples(seed=0, **other):
    given = dict(base=BASE, pairs=PAIRS.train_pairs(seed), seed=seed, lora=LORA, method=PPO(), loop=SAMPLE_LOOP)
    return TrainingFromSamples(**given | {"reward": ORACLE, "max_new_tokens": 8} | other)


def weights_of(policy, values=None):
    return {name: t.detach().clone() for name, t in trained_parameters(policy, values).items()}


def final_weights(training):
    with training.final_policy() as policy:
        return weights_of(policy)


@contextmanager
def final(training):
    """The final policy of a run, or the base."""
    with training.final_policy() if training else nullcontext(BASE.load()) as policy:
        yield policy


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- data -----------------------------------------------------------------------------------------


def test_pairs_are_those_of_the_source_and_their_seed():
    train, test = train_and_test_pairs(get_world("conflict"), "helpful", n_train=32, n_test=14, seed=1)
    assert PAIRS.train_pairs(1).rows().to_list() == train.to_list()
    assert PAIRS.test_pairs.rows().to_list() == test.to_list() == PAIRS.load(1).test.to_list()
    assert replace(PAIRS.train_pairs(1), start=3, stop=8).rows().to_list() == train.to_list()[3:8]
    assert replace(PAIRS.train_pairs(1), start=30).rows().to_list() == train.to_list()[30:]
    assert replace(PAIRS.train_pairs(1), stop=2).rows().to_list() == train.to_list()[:2]


def test_encoded_pairs_are_those_of_the_bases_tokenizer_and_context():
    pairs = PAIRS.train_pairs(0)
    assert pairs.encoded(BASE) == encode_pairs(pairs.rows(), BASE.tokenizer(), 64)[0]
    assert pairs.encoded(BASE) is pairs.encoded(BASE)
    assert len(pairs.encoded(BASE)) == 32


def test_prompts_are_different_held_out_ones_in_their_order():
    test = PAIRS.test_pairs.rows()["prompt"]
    assert Prompts(PAIRS, 0, 14).messages() == list(test) and Prompts(PAIRS, 3, 5).messages() == list(test)[3:5]
    with pytest.raises(BadInput, match=r"^world:conflict, helpful: 14 held-out prompts, expected at least 15$"):
        Prompts(PAIRS, 3, 15).messages()


def test_a_source_names_its_world_and_its_oracle(tmp_path):
    assert PAIRS.world == get_world("conflict") and PAIRS.utility.name == "helpful"
    made = PairSource("world:made(-0.5,0.85)", "second", None, 8, 8)
    assert made.utility == get_world("made(-0.5,0.85)").objectives[1] and len(made.train_pairs(0).rows()) == 8
    files = PairSource(f"files:{tmp_path}", "x")
    assert files.world is None and files.utility is None and world_of("hub:a/b") is None
    with pytest.raises(BadInput, match="objective 'kind' does not exist"):
        _ = replace(PAIRS, objective="kind").utility


def test_pairs_that_do_not_fit_the_context_are_left_out(tmp_path):
    """By the fitting model's own tokenizer, prompt and longer reply together."""
    rows = [{"prompt": f"how do i fix {n} ?", "chosen": "sure . " * n, "rejected": "no ."} for n in range(1, 80)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole, fitting = (PairSource(f"files:{tmp_path / 'a.jsonl'}", "default", fitting=f) for f in (None, BASE))
    tokenizer = BASE.tokenizer()

    def longest(pair):
        sides = (pair["prompt"] + pair[side] for side in ("chosen", "rejected"))
        return max(len(tokenizer.apply_chat_template(s, return_dict=True)["input_ids"]) for s in sides)

    expected = [pair for pair in whole.load(0).train if longest(pair) <= 64]
    assert fitting.load(0).train.to_list() == expected and 0 < len(expected) < len(whole.load(0).train)
    assert fitting.load(0).report.dropped["longer than the context"] > 0
    assert load_pairs(whole.source, "default").train.to_list() == whole.load(0).train.to_list()


# --- the reference --------------------------------------------------------------------------------


def test_reference_log_probs_are_the_bases_own():
    pairs = PAIRS.train_pairs(0)
    expected = pair_log_probs(BASE.load(), pairs.encoded(BASE), BASE.tokenizer().pad_token_id, 64)
    found = ReferenceLogProbs(BASE, pairs).load()
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


def test_two_seeds_have_their_own_references():
    """The log-probs of seed 0 for every seed would train, and be wrong."""
    zero, one = (ReferenceLogProbs(BASE, PAIRS.train_pairs(seed)).load() for seed in (0, 1))
    assert len(zero.chosen) == len(one.chosen) == 32 and not torch.equal(zero.chosen, one.chosen)
    for seed in (0, 1):
        first = from_pairs(seed).load()[0]
        assert first["loss"] == pytest.approx(np.log(2), rel=1e-12) and first["margin"] == pytest.approx(0, abs=1e-12)


def test_no_reference_is_zeros():
    assert not any(value.any() for value in vars(no_reference(3)).values()) and len(no_reference(3).chosen) == 3


# --- training from pairs --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("lora", [LORA, Lora(rank=0)], ids=["adapter", "full"])
def test_a_training_from_pairs_is_the_loop_on_its_own_pairs_adapter_order_and_reference(seed, lora):
    stage = from_pairs(seed, lora=lora)
    rows, pad = stage.pairs.encoded(BASE), BASE.tokenizer().pad_token_id
    reference = pair_log_probs(BASE.load(), rows, pad, 64)
    policy = BASE.fresh_policy(lora, seed)
    history = train_on_pairs(policy, BASE.tokenizer(), rows, reference, DPO(), LOOP, seed=seed)
    expected = weights_of(policy)
    unwrap(policy)
    assert stage.load() == [vars(log) for log in history]
    assert same(final_weights(stage), expected)


def test_the_seed_draws_the_adapter_and_the_order_that_of_batches_and_dropout():
    plain = from_pairs()
    other_seed, other_order = replace(plain, seed=1), replace(plain, order=1)
    started, logs = {}, {}
    for stage in (plain, other_seed, other_order):
        Snapshots(stage, (0,)).visit(lambda _, policy, values, stage=stage: started.update({stage: weights_of(policy)}))
        logs[stage] = stage.load()
    assert same(started[plain], started[other_order]) and not same(started[plain], started[other_seed])
    assert logs[plain][0]["loss"] == logs[other_seed][0]["loss"] == pytest.approx(np.log(2))  # B is zero yet
    assert logs[plain][-1] != logs[other_seed][-1] and logs[plain][0]["grad_norm"] != logs[other_order][0]["grad_norm"]
    dropped = replace(plain, lora=replace(LORA, dropout=0.5))
    assert dropped.load() != plain.load() and replace(dropped, order=1).load() != dropped.load()


def test_what_a_training_is_told_reaches_the_loop(monkeypatch):
    seen = {}

    def loop(*positional, **named):
        seen.update(named, method=positional[4], settings=positional[5], rows=positional[2], reference=positional[3])
        return []

    monkeypatch.setattr(training_module, "train_on_pairs", loop)
    stage = from_pairs(1, method=ORPO(0.3), order=7, rule=EqualWeights(), live=Live(2, 3, 4), updates=3)
    with stage.run(lambda *_: None):
        pass
    assert (seen["method"], seen["settings"], seen["seed"], seen["updates"]) == (ORPO(0.3), LOOP, 7, 3)
    assert (seen["rule"], seen["live"], seen["checkpoint"]) == (EqualWeights(), Live(2, 3, 4), None)
    assert seen["rows"] == PAIRS.train_pairs(1).encoded(BASE) and not seen["reference"].chosen.any()


def test_updates_end_a_training_before_its_epochs_do():
    whole, cut = from_pairs(), from_pairs(updates=2)
    assert len(whole.load()) == 4 and len(cut.load()) == 2
    assert whole.logged_at(3) == 3 and whole.inner_epochs(3) == []


# Stage 2 of a sequence

STAGE1 = from_pairs()
STAGE2 = replace(STAGE1, pairs=replace(PAIRS, objective="harmless").train_pairs(0), order=2, start=STAGE1)


def test_stage_2_goes_on_with_the_adapter_of_stage_1():
    started = {}
    with STAGE2.run(lambda step, policy, _: started.setdefault(step, weights_of(policy))):
        pass
    assert same(started[0], final_weights(STAGE1))
    assert not same(started[4], started[0])
    assert not same(final_weights(STAGE2), final_weights(replace(STAGE2, start=None)))


def test_an_adapter_on_top_starts_as_stage_1_and_ends_with_what_both_have_learnt():
    fields = {name: getattr(STAGE2, name) for name in STAGE2.__dataclass_fields__}
    on_top, before = TrainingOnTop(**fields | {"seed": 5}), dict(BASE.load().state_dict())
    rows, pad = PAIRS.test_pairs.encoded(BASE), BASE.tokenizer().pad_token_id

    def chosen(policy):
        return pair_log_probs(policy, rows, pad, 64).chosen

    seen = {}
    with on_top.run(lambda step, policy, _: seen.setdefault(step, chosen(policy))):
        pass
    with STAGE1.final_policy() as policy:
        torch.testing.assert_close(seen[0], chosen(policy))
    with on_top.final_policy() as policy:
        torch.testing.assert_close(seen[4], chosen(policy))
        assert {name.split(".")[-2] for name in weights_of(policy)} == {"default"}  # one adapter, the own
    assert not torch.allclose(seen[0], seen[4]) and not torch.allclose(seen[0], chosen(BASE.load()))
    assert same(before, dict(BASE.load().state_dict()))


@pytest.mark.parametrize("reference", ["base", "start"])
def test_stage_2_is_the_loop_from_stage_1_against_the_reference_that_is_asked_for(reference):
    stage = replace(STAGE2, reference=reference)
    rows, pad = stage.pairs.encoded(BASE), BASE.tokenizer().pad_token_id
    log_probs = pair_log_probs(BASE.load(), rows, pad, 64)
    with STAGE1.final_policy() as policy:
        if reference == "start":
            log_probs = pair_log_probs(policy, rows, pad, 64)
        history = train_on_pairs(policy, BASE.tokenizer(), rows, log_probs, DPO(), LOOP, seed=2)
        expected = weights_of(policy)
    assert stage.load() == [vars(log) for log in history]
    assert same(final_weights(stage), expected)
    assert (stage.load()[0]["loss"] == pytest.approx(np.log(2), rel=1e-12)) == (reference == "start")


def test_stage_2_of_full_fine_tuning_leaves_stage_1_and_the_base_as_they_were():
    stage1 = from_pairs(lora=Lora(rank=0))
    base, before = {n: t.clone() for n, t in BASE.load().state_dict().items()}, final_weights(stage1)
    stage2 = replace(STAGE2, lora=Lora(rank=0), start=stage1)
    assert not same(final_weights(stage2), before)
    assert same(final_weights(stage1), before) and same(base, dict(BASE.load().state_dict()))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("make", [from_pairs, from_samples])
def test_an_adapter_leaves_the_base_when_a_training_is_interrupted(make):
    def interrupt(step, policy, values):
        assert isinstance(policy, PeftModel)
        if step == 1:
            raise Interrupted

    before = {name: t.clone() for name, t in BASE.load().state_dict().items()}
    with pytest.raises(Interrupted), make().run(interrupt):
        pass
    assert same(before, dict(BASE.load().state_dict()))
    with pytest.raises(Interrupted), from_pairs().final_policy():
        raise Interrupted
    assert same(before, dict(BASE.load().state_dict()))


# --- training from samples ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("lora", [LORA, Lora(rank=0)], ids=["adapter", "full"])
def test_a_training_from_samples_is_the_loop_on_its_own_prompts_seed_and_reward(seed, lora):
    stage = from_samples(seed, lora=lora)
    base, tokenizer = BASE.load(), BASE.tokenizer()
    values, policy = Values(base, own_trunk=True), BASE.fresh_policy(lora, seed)  # values of a base without an adapter
    prompts, oracle = stage.pairs.rows()["prompt"], oracle_reward(PAIRS.utility, tokenizer)
    given = (policy, values, tokenizer, prompts, reference_of(policy, base), ORACLE.load(), PPO(), SAMPLE_LOOP)
    history = train_on_samples(*given, max_new_tokens=8, seed=seed, judge=oracle)
    expected = weights_of(policy)
    unwrap(policy)
    timed = ("sampling_seconds", "update_seconds", "samples_per_second")
    for found, log in zip(stage.load(), history, strict=True):
        assert {k: v for k, v in found.items() if k not in timed} == {
            k: v for k, v in vars(log).items() if k not in timed
        }
        assert all(0 < found[name] < 1e5 for name in timed)
        assert np.isfinite(found["oracle"])
    assert same(final_weights(stage), expected)


def test_which_log_and_which_later_epochs_belong_to_an_update():
    """16 samples, 4 an update, 3 epochs: 12 updates an iteration, an epoch every 4."""
    loop = SampleTraining(iterations=3, batch_size=16, minibatch_size=4, epochs=3)
    stage = from_samples(loop=loop)
    assert [stage.logged_at(step) for step in (0, 11, 12, 24)] == [0, 0, 1, 2]
    assert stage.inner_epochs(12) == [16, 20]
    assert from_samples(loop=replace(loop, epochs=1)).inner_epochs(12) == []


def test_values_are_there_for_a_method_with_values_alone():
    assert from_samples().values().trunk is not None
    assert from_samples(method=PPO(own_value_trunk=False)).values().trunk is None
    assert from_samples(method=GRPO()).values() is None and from_pairs().values() is None


# --- rewards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oracle", "model"])
def test_a_reward_has_mean_0_and_deviation_1_on_the_bases_own_responses(kind):
    stage = replace(ORACLE, kind=kind, training=RewardSettings(epochs=1), lora=LORA) if kind == "model" else ORACLE
    prompts = PAIRS.train_pairs(0).rows()["prompt"]
    drawn = sample(BASE.load(), BASE.tokenizer(), prompts, max_new_tokens=12, temperature=1.0, seed=0)
    scores = stage.load()(prompts, drawn)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-9) and float(scores.std()) == pytest.approx(1)


def test_a_reward_model_learns_from_the_pairs_it_is_given_and_from_turned_labels_otherwise():
    section = RewardSection(kind="model", epochs=3, learning_rate=1e-2, label_flips=0.25)
    assert section.training() == RewardSettings(epochs=3, learning_rate=1e-2, label_flips=0.25)
    train = PAIRS.train_pairs(0)
    stage = RewardStage(BASE, "model", train, 12, RewardSettings(epochs=20, learning_rate=1e-2), Lora(rank=0))
    margins = stage.margins(train)
    assert margins.shape == (32,) and (margins > 0).mean() > 0.6
    turned = Dataset.from_list([row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in train.rows()])

    class Turned(Pairs):
        def rows(self):
            return turned

    other = replace(stage, pairs=Turned(PAIRS, "train", 0))
    assert (other.margins(train) > 0).mean() < 0.4
    assert stage.margins(PAIRS.test_pairs).shape == (14,)


def test_a_reward_model_that_is_trained_knows_its_settings(monkeypatch):
    seen = {}

    def train(model, tokenizer, pairs, settings, **named):
        seen.update(named, settings=settings, pairs=pairs.to_list())
        return []

    monkeypatch.setattr(reward_module, "train_reward", train)
    settings = RewardSettings(epochs=3, label_flips=0.25)
    replace(ORACLE, kind="model", training=settings, lora=LORA)._train(BASE.folder.parent)
    assert (seen["settings"], seen["max_length"], seen["seed"]) == (settings, 64, 0)
    differ = [a["chosen"] != b["chosen"] for a, b in zip(seen["pairs"], PAIRS.train_pairs(0).rows(), strict=True)]
    assert sum(differ) == 8  # a quarter of 32


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("training", [None, from_pairs(1)], ids=["base", "trained"])
def test_answers_are_drawn_at_the_temperature_that_is_asked_for_and_at_1(training, temperature):
    prompts = Prompts(PAIRS, 2, 8)
    found = AnswersStage(BASE, training, prompts, 10, temperature, 4).load()
    how = {"max_new_tokens": 10, "seed": 1}
    with final(training) as policy:
        for kept, texts, t in (
            (found.final, found.final_texts, temperature),
            (found.sampled, found.sampled_texts, 1.0),
        ):
            drawn = sample(policy, BASE.tokenizer(), prompts.messages(), temperature=t, **how)
            assert kept == drawn and texts == decode(BASE.tokenizer(), drawn)
        batch = collate_responses(found.sampled, BASE.tokenizer().pad_token_id, torch.device("cpu"))
        with torch.no_grad():
            own = token_log_probs(policy, batch).sum(1).numpy()
    with torch.no_grad():
        reference = token_log_probs(BASE.load(), batch).sum(1).numpy()
    assert found.log_probs == pytest.approx(own) and found.reference_log_probs == pytest.approx(reference)
    assert found.kl == pytest.approx((own - reference).mean())
    assert found.entropy == pytest.approx(-own.sum() / sum(len(response) for _, response in found.sampled))
    assert (found.kl == 0) == (training is None)


def test_answers_at_other_temperatures_are_others():
    stages = [AnswersStage(BASE, None, Prompts(PAIRS, 0, 8), 10, t, 4) for t in (0.0, 0.5, 1.0)]
    texts = [tuple(stage.load().final_texts) for stage in stages]
    assert len(set(texts)) == 3 and stages[2].load().final == stages[2].load().sampled


def test_texts_are_greedy_answers_to_questions():
    asked = ("how do i fix the old lamp at home ?", "how do i open the new door at work ?")
    prompts = [[{"role": "user", "content": text}] for text in asked]
    found = Texts(BASE, None, asked, 6, 4).load()
    assert found == generate(BASE.load(), BASE.tokenizer(), prompts, max_new_tokens=6)
    with from_pairs().final_policy() as policy:
        expected = generate(policy, BASE.tokenizer(), prompts, max_new_tokens=6)
    assert Texts(BASE, from_pairs(), asked, 6, 4).load() == expected


def test_answers_that_are_judged_are_drawn_from_the_policy_as_it_is():
    """At temperature 1, several a prompt, in the order of prompts."""
    (drawn,) = DrawnAnswers(BASE, None, Prompts(PAIRS, 2, 6), 3, 8, 4).load()
    asked = [prompt for prompt in Prompts(PAIRS, 2, 6).messages() for _ in range(3)]
    tokenizer, model = BASE.tokenizer(), BASE.load()
    assert drawn.samples == sample(
        model, tokenizer, asked, max_new_tokens=8, temperature=1.0, seed=1, batch_size=AT_ONCE
    )
    assert drawn.texts == decode(tokenizer, drawn.samples)
    batch = collate_responses(drawn.samples, tokenizer.pad_token_id, torch.device("cpu"))
    with torch.no_grad():
        expected = token_log_probs(model, batch).sum(1).numpy()
    assert drawn.log_probs == pytest.approx(expected) and drawn.kl == pytest.approx(0)


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [None, STAGE2], ids=["base", "stage 2"])
def test_an_evaluation_is_of_the_held_out_pairs_and_first_prompts_of_every_objective(training):
    held_out = tuple(replace(PAIRS, objective=o).test_pairs for o in ("helpful", "harmless"))
    found = Evaluation(BASE, training, held_out, 2, 6).load()
    assert set(found.log_probs) == {"helpful", "harmless"} and len(found.samples) == 4
    with final(training) as policy:
        for pairs in held_out:
            expected = pair_log_probs(policy, pairs.encoded(BASE), BASE.tokenizer().pad_token_id, 64)
            for name, value in vars(expected).items():
                assert torch.equal(getattr(found.log_probs[pairs.of.objective], name), value), name
            prompts = pairs.rows()["prompt"][:2]
            texts = generate(policy, BASE.tokenizer(), prompts, max_new_tokens=6)
            own = [s for s in found.samples if s["objective"] == pairs.of.objective]
            assert [(s["prompt"], s["response"]) for s in own] == list(zip(prompts, texts, strict=True))


def test_what_is_learnt_is_the_change_of_the_log_probs_of_all_training_pairs():
    training = from_pairs(1)
    rows, pad = training.pairs.encoded(BASE), BASE.tokenizer().pad_token_id
    before = pair_log_probs(BASE.load(), rows, pad, 64)
    with training.final_policy() as policy:
        after = pair_log_probs(policy, rows, pad, 64)
    expected = torch.stack([after.chosen - before.chosen, after.rejected - before.rejected]).numpy()
    assert Learnt(training).load() == pytest.approx(expected) and expected.shape == (2, 32) and expected.all()


# --- the probe ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The seed and prompts of everything that is sampled in training and by probes."""
    from preflab.training import from_samples as loop_module

    seen = {"training": [], "probe": []}
    for name, module in (("training", loop_module), ("probe", probe_module)):
        real = module.collect

        def collect(*positional, real=real, name=name, **named):
            found = real(*positional, **named)
            seen[name].append((tuple(named["seed"]), json.dumps(positional[3]), found.samples))
            return found

        monkeypatch.setattr(module, "collect", collect)
    return seen


def test_samples_of_seeds_iterations_and_probes_are_all_drawn_apart(drawn, tmp_path):
    """A probe is not what training draws, nor that of another step or seed."""
    keep_in(Cache(tmp_path / "cache"))
    for seed in (0, 1):
        training = from_samples(seed)
        answers = AnswersStage(BASE, training, Prompts(PAIRS, 0, 4), 8, 0.0, 4)
        given = (training, answers, PAIRS.test_pairs, (0, 4, 8), SamplesProbe(6), "sum", 8, 1, False)
        Alignment(*given).load()
    assert len(drawn["training"]) == 2 * 2 and len(drawn["probe"]) == 2 * 3
    seeds = [seed for seed, *_ in drawn["training"] + drawn["probe"]]
    assert len(set(seeds)) == len(seeds)
    assert len({one_seed(*seed, 0) for seed in seeds}) == len(seeds)
    prompts = {seed[0]: asked for seed, asked, _ in drawn["probe"]}
    assert len({asked for _, asked, _ in drawn["probe"]}) == 2 == len(set(prompts.values()))  # fixed for a run
    own = {seed: json.dumps([PAIRS.train_pairs(seed).rows()["prompt"][i] for i in rows(seed)]) for seed in (0, 1)}
    assert prompts == own


def rows(seed):
    return probe_module.probe_rows(from_samples(seed), 6)


def test_a_probe_of_pairs_asks_the_reference_of_its_own_pairs():
    """At the first step every weight is beta / 2: policy and reference agree on these pairs, with either seed."""
    for seed in (0, 1):
        training = from_pairs(seed)
        look = PairsProbe(6).prepared(training, 8)
        probe = look(0, BASE.load(), None, 0.0, training.load()[0])
        assert probe.margins == pytest.approx(torch.zeros(6, dtype=torch.float64), abs=1e-12) and probe.n == 6
        chosen = [training.pairs.encoded(BASE)[i]["chosen_ids"] for i in probe_module.probe_rows(training, 6)]
        mask = probe.batch["completion_mask"][:6].bool()
        assert [ids[m].tolist() for ids, m in zip(probe.batch["input_ids"], mask, strict=False)] == chosen


# --- what a stage is ------------------------------------------------------------------------------


def test_a_stage_has_to_say_how_it_is_built_and_loaded(tmp_path):
    for call in (lambda: Stage().build(tmp_path), Stage().load):
        with pytest.raises(NotImplementedError):
            call()
    with pytest.raises(NotImplementedError):
        training_module.Training(BASE, PAIRS.train_pairs(0), 0, LORA).run(lambda *_: None)


def test_stages_are_values():
    assert from_pairs() == from_pairs() and len({from_pairs(), from_pairs(), from_pairs(1)}) == 2
    with pytest.raises(AttributeError):
        from_pairs().seed = 1


# --- the reward that a DPO run stands for -----------------------------------------------------------


@pytest.mark.parametrize("lora", [LORA, Lora(rank=0)])
def test_an_implicit_reward_is_beta_times_the_log_ratio_and_leaves_the_base_alone(lora):
    learned = from_pairs(1, lora=lora, method=DPO(beta=0.4))
    reward = RewardStage(BASE, "implicit", PAIRS.train_pairs(1), 12, implicit=learned)
    before = {name: value.clone() for name, value in BASE.load().state_dict().items()}
    rows, pad = PAIRS.test_pairs.encoded(BASE), BASE.tokenizer().pad_token_id
    with learned.final_policy() as policy:
        after = pair_log_probs(policy, rows, pad, 64)
    base = pair_log_probs(BASE.load(), rows, pad, 64)
    expected = 0.4 * ((after.chosen - base.chosen) - (after.rejected - base.rejected))
    assert reward.margins(PAIRS.test_pairs) == pytest.approx(expected.numpy(), abs=1e-9)
    assert expected.abs().max() > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in BASE.load().state_dict().items())
    ppo = from_samples(reward=reward, lora=lora)  # trains while another adapter than the reward's is on the base
    assert all(np.isfinite(entry["score"]) for entry in ppo.load())


def test_an_implicit_reward_is_against_the_bases_own_revision(monkeypatch):
    """A model of the hub is loaded at the revision that was asked for, as its reference too."""
    reward = RewardStage(BASE, "implicit", PAIRS.train_pairs(1), 12, implicit=from_pairs(1))
    folder, loaded = reward.folder, []
    monkeypatch.setattr(type(BASE), "revision", "abc")
    monkeypatch.setattr(reward_module, "load_model", lambda name, *how: loaded.append((name, *how[2:])))
    reward._raw(folder)
    assert loaded == [(str(folder / "model"),), (BASE.location, "abc")]


def test_a_response_is_scored_as_a_training_row_ends(monkeypatch, tokenizer):
    """Like SmolLM2's: the template goes on after <eos>, which is the padding too."""
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<eos> .")
    tokenizer.pad_token = tokenizer.eos_token
    eos, stop = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(".")
    assert ending_of(tokenizer) == [eos, stop]
    stage = ClosedRewardStage(BASE, "model", PAIRS.train_pairs(0), 12, RewardSettings(), Lora(rank=0))
    monkeypatch.setattr(Base, "tokenizer", lambda base: tokenizer)
    monkeypatch.setattr(RewardStage, "_raw", lambda stage, folder: lambda prompts, samples: samples)
    samples = [([1], ids) for ids in ([7, 8, eos], [7, 8], [7, 8, eos, stop], [eos], [])]
    scored = stage._raw(None)(None, samples)
    assert [ids for _, ids in scored] == [[7, 8, eos, stop]] * 3 + [[eos, stop]] * 2
