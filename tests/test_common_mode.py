"""Common mode by its sources: closed forms on tabular policies, decodings against plain definitions, the stage."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.special import expit

from preflab import alignment
from preflab.common_mode import (
    PARTS,
    SOURCES,
    Split,
    contributions,
    cross_entropy_gradient,
    expected_samples,
    mean_size,
    panel,
    parts_of,
    share,
)
from preflab.data.worlds import REFUSAL
from preflab.decoding import Decoding, kl, next_tokens, next_tokens_of_all, said
from preflab.errors import BadInput
from preflab.experiments.common_mode import agreement, roles
from preflab.experiments.variants import Variant
from preflab.generation import sample
from preflab.likelihood import collate_responses, token_log_probs
from preflab.measured import common_mode
from preflab.paths import project_root
from preflab.rewards import utilities
from preflab.running.cache import Cache
from preflab.running.reading import parse_yaml, resolve
from preflab.stages.drawn import Earlier, Generator, Own, PairsDrawer, SamplesDrawer
from preflab.stages.probe import PairsProbe
from preflab.stages.stage import keep_in
from preflab.statistics import seed_interval
from preflab.training.rollout import collect, reference_of

LOGITS = torch.tensor([1.0, 0.3, -0.2, 0.9, -2.0], dtype=torch.float64)  # of a policy over five responses


def expected_gradient(logits, q):
    """E_q[grad log pi] by autograd, one response at a time."""
    logits = logits.clone().requires_grad_(True)
    of_each = [torch.autograd.grad(torch.log_softmax(logits, -1)[y], logits)[0] for y in range(len(q))]
    return sum(p * g for p, g in zip(q, of_each, strict=True))


def entropy_gradient(logits):
    logits = logits.clone().requires_grad_(True)
    log_pi = torch.log_softmax(logits, -1)
    return torch.autograd.grad(-(log_pi.exp() * log_pi).sum(), logits)[0]


# --- the identity, on a tabular policy


def test_samples_of_q_push_a_tabular_policy_by_q_minus_pi():
    pi = torch.softmax(LOGITS, -1)
    q = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    torch.testing.assert_close(expected_gradient(LOGITS, q), q - pi)
    torch.testing.assert_close(expected_gradient(LOGITS, pi), torch.zeros(5, dtype=torch.float64))


def test_that_push_is_down_the_kl_to_the_sampler():
    q = Decoding(temperature=0.7).sampler(torch.log_softmax(LOGITS, -1)).exp()
    logits = LOGITS.clone().requires_grad_(True)
    distance = kl(q.log()[None], torch.log_softmax(logits, -1)[None]).sum()
    torch.testing.assert_close(expected_gradient(LOGITS, q), -torch.autograd.grad(distance, logits)[0])


def test_a_little_sharper_is_down_the_entropy_and_a_little_hotter_up():
    """d/d(1/T) E_q[grad log pi] at T = 1 is minus the gradient of the entropy."""
    log_pi, small = torch.log_softmax(LOGITS, -1), 1e-5
    pushes = [
        expected_gradient(LOGITS, Decoding(temperature=1 / (1 + d)).sampler(log_pi).exp()) for d in (small, -small)
    ]
    torch.testing.assert_close((pushes[0] - pushes[1]) / (2 * small), -entropy_gradient(LOGITS), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 0.7, 1.3, 3.0])
def test_the_sign_of_what_a_temperature_does_to_entropy_and_to_the_greedy_response(temperature):
    """Sharper samples lower the entropy and raise the likeliest response; hotter ones do the opposite."""
    q = Decoding(temperature=temperature).sampler(torch.log_softmax(LOGITS, -1)).exp()
    push, sharper = expected_gradient(LOGITS, q), 1 if temperature < 1 else -1
    of_greedy = expected_gradient(LOGITS, torch.nn.functional.one_hot(LOGITS.argmax(), 5).double())
    assert sharper * float(push @ entropy_gradient(LOGITS)) < 0 < sharper * float(push @ of_greedy)


# --- decodings


def test_top_p_keeps_the_likeliest_tokens_that_hold_the_mass():
    log_pi = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    kept = Decoding(top_p=0.7).sampler(log_pi).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0, 0]], dtype=torch.float64))
    assert float(kl(kept.log(), log_pi)) == pytest.approx(-np.log(0.8))
    torch.testing.assert_close(Decoding().sampler(log_pi), log_pi)


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_decodings_that_cannot_be(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Decoding(**given)


@pytest.fixture
def case(make_model, make_rows, tokenizer, exact_norm):
    """A model, prompts and a batch of responses that are not its own."""
    model = make_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)  # far from uniform
    rows = make_rows(4)
    batch = collate_responses([(r["prompt_ids"], r["chosen_ids"]) for r in rows], tokenizer.pad_token_id, model.device)
    return model, batch


def test_next_tokens_hold_the_log_probs_of_what_was_said(case):
    model, batch = case
    with torch.no_grad():
        torch.testing.assert_close(said(next_tokens_of_all(model, batch, 3), batch), token_log_probs(model, batch))


def test_samples_lie_in_the_support_of_the_sampler_and_the_model_forgets_the_top_p(case, make_pairs, tokenizer):
    model, _ = case
    prompts, how = make_pairs(12)["prompt"], {"max_new_tokens": 9, "seed": 3, "batch_size": 5}
    before = model.generation_config.top_p
    narrow = Decoding(top_p=0.5).draw(model, tokenizer, prompts, **how)
    batch = collate_responses(narrow, tokenizer.pad_token_id, model.device)
    with torch.no_grad():
        own = next_tokens(model, batch)
    assert torch.isfinite(said(Decoding(top_p=0.5).sampler(own), batch)).all()
    wide = Decoding().draw(model, tokenizer, prompts, **how)
    assert model.generation_config.top_p == before and wide != narrow
    assert wide == sample(model, tokenizer, list(prompts), temperature=1.0, **how)


# --- C and its sources


def weights_of(generator, rows=6, length=7, equal=False):
    mask = (torch.arange(length) < torch.tensor([[7], [3], [5], [1], [6], [2]])).double()
    advantages = torch.randn(rows, length, generator=generator, dtype=torch.float64) * mask
    advantages = advantages.sign() * mask if equal else advantages
    factor = torch.rand(rows, length, generator=generator, dtype=torch.float64) * 2 * mask
    return advantages, factor, mask


def test_the_sources_add_up_to_c():
    generator = torch.Generator().manual_seed(0)
    advantages, factor, mask = weights_of(generator)
    c, s = advantages * factor, torch.randn(6, 7, generator=generator, dtype=torch.float64) * mask
    found = contributions(parts_of(c, advantages.abs(), factor, mask), s, 6).numpy()
    split = Split(0, "x", "greedy", 0.0, 0.0, 0.0, np.stack([found, found]))
    assert split.value("C") == pytest.approx(float(-(c.abs() * s).sum() / 2 / 6))
    assert split.value("S") == pytest.approx(float(-(c * s).sum() / 2 / 6))
    m = float(advantages.abs().sum() / mask.sum())
    assert split.value("samples") == pytest.approx(float(-m * s.sum() / 2 / 6))
    assert split.value("weights") == pytest.approx(float(-((advantages.abs() - m) * factor * s).sum() / 2 / 6))
    assert sum(split.value(name) for name in SOURCES) == pytest.approx(split.value("C"))
    assert share(split, *SOURCES) == pytest.approx(split.value("C") / sum(abs(split.value(n)) for n in SOURCES))


def test_equal_weights_leave_nothing_to_the_weights():
    generator = torch.Generator().manual_seed(1)
    advantages, _, mask = weights_of(generator, equal=True)
    s = torch.randn(6, 7, generator=generator, dtype=torch.float64) * mask
    found = contributions(parts_of(advantages, advantages.abs(), mask, mask), s, 6).numpy()
    split = Split(0, "x", "greedy", 0.0, 0.0, 0.0, np.stack([found, found]))
    assert split.value("weights") == pytest.approx(0, abs=1e-12) and split.value("ratio") == 0
    assert split.value("C") == pytest.approx(split.value("samples"))


def test_the_two_rows_of_a_pair_are_one_unit():
    mask, s = torch.ones(6, 2, dtype=torch.float64), torch.arange(12, dtype=torch.float64).view(6, 2)
    found = contributions(parts_of(mask, mask, mask, mask), s, 3)
    assert found.shape == (len(PARTS), 3)
    assert found[PARTS.index("positive")].tolist() == [-(0 + 1 + 6 + 7), -(2 + 3 + 8 + 9), -(4 + 5 + 10 + 11)]


def every_token(model, batch, tokenizer):
    """One response of one token for every token of the vocabulary, after the prompt of the batch's first row."""
    start = int(batch["completion_mask"][0].argmax())
    prompt = batch["input_ids"][0, :start].tolist()
    return collate_responses([(prompt, [y]) for y in range(len(tokenizer))], tokenizer.pad_token_id, model.device)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(temperature=0.5), Decoding(top_p=0.8)])
def test_what_samples_are_expected_to_bring_is_the_mean_over_all_that_could_be_drawn(case, tokenizer, decoding):
    """Every one-token response, weighted by the sampler's probability of it."""
    model, batch = case
    parameters = alignment.parameters_of(model)
    v, m = alignment.nll_gradient(model, [batch], parameters), 0.3
    all_, first = every_token(model, batch, tokenizer), {name: t[:1] for name, t in batch.items()}
    s = alignment.token_alignment(model, all_, v)
    with torch.no_grad():
        log_q = decoding.sampler(next_tokens(model, {name: t[:1] for name, t in all_.items()}))
    one = {name: t[:1] for name, t in all_.items()}
    gradient = cross_entropy_gradient(model, one, log_q, parameters, 4)
    found = expected_samples(m, v, gradient, 1)
    assert found == pytest.approx(float(-0.5 * m * (log_q.exp()[0] * s.sum(1)).sum()), rel=1e-6, abs=1e-8)
    assert (abs(found) < 1e-8) == (decoding == Decoding()) and len(first["input_ids"]) == 1


def test_the_ratio_takes_back_what_stale_samples_bring(case, make_model, tokenizer):
    """With equal |A| and no clip the two sum to zero over all responses, each weighted by the older policy."""
    model, batch = case
    older = make_model(seed=5)
    v = alignment.nll_gradient(model, [batch], alignment.parameters_of(model))
    all_ = every_token(model, batch, tokenizer)
    s, mask = alignment.token_alignment(model, all_, v), all_["completion_mask"][:, 1:].double()
    with torch.no_grad():
        now, old = token_log_probs(model, all_), token_log_probs(older, all_)
    factor = torch.exp(now - old) * mask
    of_each = contributions(parts_of(factor, mask, factor, mask), s, len(mask)) * old.sum(1).exp()
    samples, ratio = (float(of_each[PARTS.index(name)].sum()) for name in ("samples", "ratio"))
    assert samples == pytest.approx(-ratio, rel=1e-6) and abs(samples) > 1e-3


def test_error_is_that_of_a_mean_over_units_and_half_the_difference_of_the_halves():
    units = np.zeros((2, len(PARTS), 4))
    units[0, 2], units[1, 2] = [2, 4, 6, 8], [0, 2, 4, 6]
    split = Split(0, "x", "greedy", 0.0, 0.0, 0.0, units)
    assert split.value("samples") == 2
    assert split.error("samples") == pytest.approx(np.hypot(np.std([0.5, 1.5, 2.5, 3.5], ddof=1) / 2, 0.5))


def test_a_panel_has_the_interval_of_c_over_runs():
    def run(size):
        units = np.zeros((2, 4, 3))
        units[:, :2] = [[size], [-size / 2]]  # of positive and negative learning, the same in every unit
        return [Split(0, "x", "greedy", 0.0, 0.0, 0.0, units)]

    runs = [run(size) for size in (1.0, 2.0, 4.0)]
    found = panel(runs, [(0, "x", "greedy")])
    expected = seed_interval(found["C"][:, 0])
    assert found["C"][:, 0].tolist() == [run[0].value("C") for run in runs]
    assert [found["low"][0], found["high"][0]] == [expected.low, expected.high] and expected.low < expected.high


# --- the stage

NOTEBOOK = project_root() / "notebooks" / "src" / "09_common_mode.py"
VALUES = parse_yaml((project_root() / "params" / "smoke" / "09_common_mode.yaml").read_text(), "smoke")


@pytest.fixture(autouse=True)
def results(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "common_mode"))


def parameters(**given):
    return resolve(NOTEBOOK, {**VALUES, "seeds": [0], **given}, "test")


def run_of(p, method):
    return p.training(Variant(method=method), 0)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_every_source_is_measured_at_every_moment_and_own_samples_are_expected_to_bring_nothing(method):
    p = parameters()
    training = run_of(p, method)
    splits = p.common_mode(training).load()
    for step in p.moments(training).values():
        names = {str(s) for some in p.sources_by_knob(training, step).values() for s in some}
        assert {x.source for x in splits if (x.step, x.final) == (step, "greedy")} == names
        others = {x.source for x in splits if x.step == step and x.final != "greedy"}
        assert others == ({"temperature 1", "temperature 0.5"} if step == p.moments(training)["end"] else set())
    for x in splits:
        if x.source == "temperature 1":
            assert x.kl == pytest.approx(0, abs=1e-9) and x.expected == pytest.approx(0, abs=1e-9)
        assert np.isnan(x.kl) == x.source.startswith("generator")
        assert (x.value("ratio") == 0) == (method == "dpo" or not x.source.startswith("policy"))
    found = panel([splits] * 3, [(0, "temperature 0.5", "greedy"), (0, "temperature 1", "greedy")])
    assert found["C"].shape == found["error ratio"].shape == (3, 2) and found["low"].shape == (2,)
    assert found["kl"][0, 0] > 0 and (found["error C"] > 0).all()
    np.testing.assert_allclose(found["low"], found["C"].mean(0))  # three equal runs
    assert np.isnan(panel([splits] * 2, [(0, "temperature 1", "greedy")])["high"]).all()


def test_pairs_that_dpo_learns_from_have_the_c_that_notebook_02_measures():
    p = parameters()
    training = run_of(p, "dpo")
    stage = p.common_mode(training)
    theirs = replace(p.alignment(training), probe=PairsProbe(stage.n)).load()
    of_step = dict(zip(theirs.steps.tolist(), range(len(theirs.steps)), strict=True))
    for x in stage.load():
        if (x.source, x.final) == ("generator, shift 0", "greedy"):
            whole = common_mode([theirs])
            for name in ("C", "samples", "weights"):
                assert x.value(name) == pytest.approx(whole[name][0, of_step[x.step]], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("target", [None, 0.01])
def test_advantages_are_those_of_an_iteration(target):
    """With the KL coefficient of that iteration, if it adapts; at the end of a run with that of the last one."""
    p = parameters(ppo={"kl_target": target})
    training = run_of(p, "ppo")
    stage, found, log = p.common_mode(training), [], training.load()
    coefficients = [entry["kl_coefficient"] for entry in log]
    assert (len(set(coefficients)) == 1) == (target is None)

    def look(step, policy, values):
        drawer = SamplesDrawer(training, 6, 8, 5)
        reference = reference_of(policy, training.base.load(scoring=True))
        how = {"max_new_tokens": 8, "size": 5, "seed": [0, step], "accelerator": Accelerator()}
        tokenizer = training.base.tokenizer()
        ran = min(step // training.loop.updates, len(log) - 1)
        method = replace(training.method, kl_coefficient=coefficients[ran])
        args = (policy, values, tokenizer, drawer.prompts, reference, training.reward.load(), method)
        rollout = collect(*args, **how)
        found.append((drawer._advantages(policy, values, step, rollout.samples, rollout.batch), rollout.advantages))

    stage.snapshots.visit(look)
    assert len(found) > 3
    for ours, theirs in found:
        torch.testing.assert_close(ours, theirs)


def test_pairs_of_own_samples_are_labelled_like_those_of_the_world():
    """The same two responses many times: the first is preferred as often as the world's temperature says."""
    p = parameters()
    drawer, n = PairsDrawer(run_of(p, "dpo"), 4, 8, 5), 4000
    world, tokenizer = drawer.training.pairs.of.world, drawer.training.base.tokenizer()
    drawer.prompts = drawer.prompts[:1] * n
    texts = (REFUSAL, "")
    sides = [[([0], tokenizer(text, add_special_tokens=False)["input_ids"])] * n for text in texts]
    u, v = (utilities(world.objective("helpful"), drawer.prompts[:1], [text])[0] for text in texts)
    first = drawer._first_preferred(sides, np.random.default_rng(0))
    probability = expit((u - v) / world.temperature("helpful"))
    assert 0.02 < probability < 0.98 and first.mean() == pytest.approx(probability, abs=0.03)


def test_policies_and_samplers_are_those_of_the_plan():
    p = parameters()
    for method in ("dpo", "ppo"):
        training = run_of(p, method)
        moments = p.moments(training)
        assert moments["SFT"] == 0 and moments["end"] == p.updates_of(training)
        assert set(moments.values()) <= set(p.alignment(training).snapshots.steps)
        by_knob = p.sources_by_knob(training, moments["end"])
        assert by_knob["staleness"][0] == Earlier(0) and by_knob["staleness"][-1] == Own()
        assert [type(s) for s in by_knob.get("generator", [])[:1]] == [Generator] * (method == "dpo")
        by_moment = [p.sources_by_knob(training, moment).values() for moment in moments.values()]
        measured = {str(s) for knobs in by_moment for some in knobs for s in some}
        names = p.names()
        asked = {names.sft} if method == "ppo" else {names.data}
        assert {names.own, names.sharper, names.hotter, *asked} <= measured
    assert json.dumps(p.values(), default=str)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "world:conflict(shift=0.5)"}, "(shift=0.5)': expected a named world"),
        ({"temperatures": [0.5, 1.3]}, "temperatures=[0.5, 1.3]: expected 1.0, a lower and a higher one"),
        ({"temperatures": [0.5, 1.0]}, "expected 1.0, a lower and a higher one"),
        ({"top_ps": [1.0]}, "top_ps"),
        ({"shifts": [1.0]}, "shifts=[1.0]: expected 0.0 among them"),
        ({"temperatures": [1.0, 0.0]}, "temperatures"),
        ({"sampling": {"samples": 8, "pairs": 999}}, "sampling.pairs=999: expected at most train_pairs="),
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(given, message):
    with pytest.raises(BadInput) as error:
        parameters(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_mean_size_is_of_response_tokens():
    assert float(mean_size(torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))) == 3


# --- what is shown


def test_roles_are_the_sum_and_the_difference_of_s_and_c():
    of = {"S": np.array([[1.0, 0.0], [3.0, 0.0]]), "C": np.array([[5.0, -1.0], [5.0, -3.0]])}
    assert roles({"temperature": (["T 0.5\n0.07", "own\n0.000"], of)}) == {
        "T 0.5": {"G of positive": 7, "G of negative": -3},
        "own": {"G of positive": -2, "G of negative": 2},
    }


def test_agreement_is_in_standard_errors_and_leaves_out_samplers_that_nobody_knows():
    panels = {
        "samples": np.array([[1.0, 4.0, 9.0]]),
        "expected": np.array([[3.0, 4.0, np.nan]]),
        "error samples": np.array([[1.0, 1.0, 1.0]]),
    }
    found = agreement([panels, {**panels, "samples": np.array([[1.0, 6.0, 9.0]])}])
    assert found["settings"] == 4
    assert found["difference in standard errors"] == pytest.approx(np.sqrt((4 + 0 + 4 + 4) / 4))
    assert found["correlation"] == pytest.approx(np.corrcoef([1, 4, 1, 6], [3, 4, 3, 4])[0, 1])


def test_below_each_bar_stand_its_setting_and_its_distance():
    p = parameters()
    training = run_of(p, "dpo")
    bars = p.bars(training, "end", p.panels(training, [p.common_mode(training).load()])["end"])
    settings = {knob: [label.split("\n")[0] for label in labels] for knob, (labels, _) in bars.items()}
    assert settings["temperature"] == ["T 0.5", "own", "T 2"] and settings["top-p"] == ["p 0.8", "own"]
    assert settings["generator"] == ["shift 0", "shift 1", "own"]
    assert bars["temperature"][0][1] == "own\n0.000" and bars["generator"][0][0].split("\n")[1][0] in "+-"
