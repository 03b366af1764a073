"""Training on samples against plain references: GAE, clipped losses by autograd, invariants, resuming, learning."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState, debug_launcher
from accelerate.state import AcceleratorState

from preflab.data import worlds
from preflab.errors import BadInput
from preflab.likelihood import collate_responses, token_log_probs
from preflab.methods.grpo import GRPO
from preflab.methods.method import Scored
from preflab.methods.ppo import PPO, gae, whiten
from preflab.methods.rloo import RLOO
from preflab.models import unwrap
from preflab.rewards import oracle_reward
from preflab.training import from_samples
from preflab.training import rollout as rollouts
from preflab.training.from_samples import SampleTraining, train_on_samples, trained_parameters
from preflab.training.rollout import Values, collect, evaluate
from preflab.training.schedule import batches
from preflab.weightings import sft_weighting, surrogate

SETTINGS = SampleTraining(
    iterations=3, batch_size=8, minibatch_size=4, micro_batch_size=4, learning_rate=1e-3, warmup_share=0.1,
    checkpoint_every=1,
)  # fmt: skip
METHOD = PPO()


def prompts_of(n, seed=0):
    drawn = worlds.ANSWERS.sample_prompts("train", n, 0.2, np.random.default_rng(seed))
    return [[{"role": "user", "content": str(prompt)}] for prompt in drawn]


@pytest.fixture
def setup(make_model, tokenizer):
    """policy, values, the reference's log-probs, a reward that likes short responses."""

    def build(rank=0, own_trunk=True, architecture="gpt_neox", dtype=torch.float64):
        base = make_model(architecture, dtype=dtype).requires_grad_(False)
        values = Values(base, own_trunk)
        reference = copy.deepcopy(base)
        policy = copy.deepcopy(base).requires_grad_(True)
        if rank:
            policy = make_model(architecture, rank=rank, dtype=dtype)

        def reference_log_probs(batch):
            with torch.no_grad():
                return token_log_probs(reference, batch)

        def short(prompts, samples):
            return torch.tensor([-0.3 * len(set(response)) for _, response in samples])

        return policy, values, reference_log_probs, short

    return build


def roll(setup_result, tokenizer, method=METHOD, n=8, seed=0, max_new_tokens=8):
    policy, values, reference, reward = setup_result
    how = {"max_new_tokens": max_new_tokens, "size": 4, "seed": [seed], "accelerator": Accelerator()}
    return collect(policy, values, tokenizer, prompts_of(n), reference, reward, method, **how)


def train(setup_result, tokenizer, settings=SETTINGS, method=METHOD, **options):
    policy, values, reference, reward = setup_result
    how = {"max_new_tokens": 8, "seed": 0, **options}
    return train_on_samples(policy, values, tokenizer, prompts_of(24), reference, reward, method, settings, **how)


def weights(policy, values):
    return {name: p.detach().clone() for name, p in trained_parameters(policy, values).items()}


# --- the pieces -----------------------------------------------------------------------------------


def plain_gae(rewards, values, gamma, gae_lambda):
    """Of one response, from the definition: A_t = sum_l (gamma lambda)^l delta_{t+l}."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_sum_of_the_definition(gamma, gae_lambda):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0]])
    found = gae(rewards, values, mask, gamma, gae_lambda)  # what is off the mask does not count
    for row in range(3):
        on = mask[row].bool()
        expected = plain_gae(rewards[row][on].tolist(), values[row][on].tolist(), gamma, gae_lambda)
        assert found[row][on].tolist() == pytest.approx(expected)
        assert not found[row][~on].any()


def test_with_lambda_1_advantage_plus_value_is_what_is_yet_to_come():
    rewards, mask = torch.tensor([[0.0, 1.0, 2.0, 4.0]]), torch.tensor([[0, 1, 1, 1]])
    values = torch.tensor([[0.0, 5.0, -3.0, 0.5]])
    returns = (gae(rewards, values, mask, 1.0, 1.0) + values)[0, 1:]
    assert returns.tolist() == pytest.approx([7.0, 6.0, 4.0])


def test_whitening_is_by_what_the_mask_holds():
    x, mask = torch.tensor([[1.0, 2.0, 99.0], [3.0, -50.0, 6.0]]), torch.tensor([[1, 1, 0], [1, 0, 1]])
    on = mask.bool()
    white = whiten(x, mask)
    held = np.array([1.0, 2.0, 3.0, 6.0])
    assert white[on].tolist() == pytest.approx(((held - held.mean()) / held.std()).tolist(), rel=1e-4)
    assert not white[~on].any()


def test_rewards_are_kl_at_every_token_and_the_score_at_the_last():
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]])
    log_ratios = torch.tensor([[0.0, 1.0, -2.0, 0.5], [0.0, 3.0, 1.0, 0.0]])
    method = PPO(kl_coefficient=0.1, missing_eos_penalty=2.0)
    scored = Scored(torch.tensor([5.0, 7.0]), torch.tensor([True, False]), log_ratios, 0 * log_ratios, mask)
    found = method.token_rewards(scored)
    assert found[0].tolist() == pytest.approx([0, -0.1, 0.2, -0.05 + 5])
    assert found[1].tolist() == pytest.approx([0, -0.3, -0.1 + 7 - 2, 0])


def test_clipped_value_loss_by_hand():
    """From V_old = 0 with clip 0.2: the worse of the moved and the clipped value counts."""
    v, old, returns = torch.tensor([[1.0, 0.1, -1.0]]), torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0]])
    found = from_samples.clipped_value_loss(v, old, returns, torch.ones(1, 3), 0.2)
    assert found[0].tolist() == pytest.approx([0.8**2 / 2, 0.9**2 / 2, 2**2 / 2])


@pytest.mark.parametrize("kl", [0.0, 5.0, 7.0, 100.0])
def test_kl_coefficient_moves_towards_the_target_by_two_percent_at_most(kl):
    method = PPO(kl_coefficient=0.5, kl_target=6.0)
    change = from_samples.adapted(method, kl).kl_coefficient / 0.5 - 1
    assert change == pytest.approx(0.1 * np.clip(kl / 6 - 1, -0.2, 0.2))
    assert from_samples.adapted(replace(method, kl_target=None), kl).kl_coefficient == 0.5


# --- the weighting --------------------------------------------------------------------------------


def clipped_loss(log_probs, old, advantages, clip):
    """Eq. 7 of PPO, from the formula, a loop over tokens."""
    total = 0.0
    for new, before, a in zip(log_probs.flatten(), old.flatten(), advantages.flatten(), strict=True):
        ratio = (new - before).exp()
        bounded = ratio if 1 - clip <= ratio <= 1 + clip else ratio.detach().clamp(1 - clip, 1 + clip)
        total = total - (ratio * a if ratio * a <= bounded * a else bounded * a)
    return total


def test_gradient_is_that_of_the_clipped_loss(setup, tokenizer):
    """Off-policy, so that some ratios are beyond the clip on either side."""
    policy, values, *rest = setup()
    rollout = roll((policy, values, *rest), tokenizer)
    mask = rollout.mask
    generator = torch.Generator().manual_seed(1)
    old = rollout.log_probs + 0.4 * torch.randn(mask.shape, generator=generator, dtype=torch.float64) * mask
    parameters = list(policy.parameters())
    log_probs = token_log_probs(policy, rollout.batch)
    c, loss, clipped = METHOD.clipped_weighting(log_probs, old, rollout.advantages, mask)
    on = mask.bool()
    assert 0 < clipped.sum() < on.sum()
    ours = torch.autograd.grad(surrogate(c, log_probs), parameters, retain_graph=True)
    expected = clipped_loss(log_probs[on], old[on], rollout.advantages[on], 0.2)
    assert float(loss.sum()) == pytest.approx(float(expected), rel=1e-9)
    for a, b in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_clip_takes_only_what_has_gone_where_it_should():
    log_ratio = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]])
    c, _, clipped = METHOD.clipped_weighting(log_ratio, torch.zeros(1, 5), advantages, torch.ones(1, 5))
    assert clipped.tolist() == [[True, False, False, True, False]]
    up, down = math.exp(0.5), math.exp(-0.5)
    assert c[0].tolist() == pytest.approx([0, -up, down, 0, 2])


def test_with_advantage_1_on_its_own_samples_it_is_sft_on_them(setup, tokenizer):
    policy, *rest = setup()
    rollout = roll((policy, *rest), tokenizer)
    log_probs = token_log_probs(policy, rollout.batch)
    c, *_ = METHOD.clipped_weighting(log_probs, rollout.log_probs, torch.ones_like(log_probs), rollout.mask)
    parameters = list(policy.parameters())
    ours = torch.autograd.grad(surrogate(c, log_probs), parameters, retain_graph=True)
    sft = torch.autograd.grad(surrogate(sft_weighting(rollout.mask), log_probs), parameters)
    for a, b in zip(ours, sft, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# --- rollouts -------------------------------------------------------------------------------------


def test_a_rollout_is_what_the_policy_says_scored_by_whole_sequences(setup, tokenizer):
    policy, values, reference, reward = setup(rank=2)
    values.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rollout = roll((policy, values, reference, reward), tokenizer)
    whole = collate_responses(rollout.samples, tokenizer.pad_token_id, torch.device("cpu"))
    assert torch.equal(whole["input_ids"], rollout.batch["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(rollout.log_probs, token_log_probs(policy, whole))
        hidden = values.trunk(whole["input_ids"], attention_mask=whole["attention_mask"]).last_hidden_state
        expected = (hidden @ values.head.weight[0] + values.head.bias)[:, :-1] * rollout.mask
    torch.testing.assert_close(rollout.scored.values, expected)
    torch.testing.assert_close(rollout.reference_log_probs, reference(whole))
    assert (rollout.reference_log_probs != rollout.log_probs).any()
    assert torch.equal(rollout.scored.scores, reward(None, rollout.samples).double())
    on = rollout.mask.bool()
    assert float(rollout.advantages[on].mean()) == pytest.approx(0, abs=1e-9)
    raw = rollout.returns - rollout.scored.values
    torch.testing.assert_close(whiten(raw, rollout.mask), rollout.advantages)
    assert rollout.scored.finished.tolist() == [ids[-1] == tokenizer.eos_token_id for _, ids in rollout.samples]


def test_two_chunks_of_one_sampling_differ(setup, tokenizer):
    """One prompt, asked again in its chunk and in the next: four samples, and other ones with another seed."""
    policy, values, reference, reward = setup()
    asked = prompts_of(1) * 4
    how = {"max_new_tokens": 8, "size": 2, "accelerator": Accelerator()}

    def drawn(*seed):
        rollout = collect(policy, values, tokenizer, asked, reference, reward, METHOD, seed=list(seed), **how)
        return [tuple(response) for _, response in rollout.samples]

    one = drawn(0, 1)
    assert len(set(one)) == 4 and drawn(0, 1) == one
    assert not set(one) & {*drawn(0, 2), *drawn(1, 1)}


def test_minibatches_differ_by_epoch_iteration_and_seed_and_take_every_sample_once_an_epoch(
    setup, tokenizer, monkeypatch
):
    taken, real = [], from_samples._update
    monkeypatch.setattr(
        from_samples, "_update", lambda *a: taken.append(tuple(map(int, a[4]))) or real(*a)
    )  # fmt: skip
    for seed in (0, 1):
        train(setup(), tokenizer, replace(SETTINGS, epochs=2, micro_batch_size=8), seed=seed)
    epochs = [one + other for one, other in zip(taken[::2], taken[1::2], strict=True)]
    assert len(epochs) == 2 * 3 * 2 == len(set(epochs))
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)


def test_padding_changes_nothing_that_is_logged(setup, tokenizer):
    """Responses of unequal lengths, and five columns more: the log of an iteration and of each update stay."""
    policy, values, reference, reward = setup()
    values.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rollout = roll((policy, values, reference, reward), tokenizer, n=16, max_new_tokens=30)
    assert len({len(response) for _, response in rollout.samples}) > 2

    def wider(tensor):
        return torch.nn.functional.pad(tensor, (0, 5))

    batch = {name: wider(tensor) for name, tensor in rollout.batch.items()}
    own, entropy = (rollouts.on_responses(x, batch) for x in rollouts.states_log_probs_and_entropy(
        policy, rollouts.response_states(rollouts.trunk_of(policy), batch), batch
    ))  # fmt: skip
    scored = replace(
        rollout.scored,
        **{name: wider(getattr(rollout.scored, name)) for name in ("log_ratios", "values", "mask")},
    )
    advantages, returns = METHOD.advantages(scored)
    padded = replace(
        rollout, batch=batch, scored=scored, log_probs=own, entropy=entropy, advantages=advantages, returns=returns,
        reference_log_probs=reference(batch),
    )  # fmt: skip
    logs = []
    for one in (rollout, padded):
        moved = copy.deepcopy(policy)
        with torch.no_grad():
            for p in moved.parameters():
                p *= 1.5  # ratios are not 1, and the clip is at work
        rows = np.arange(16)
        found = from_samples._gradient(moved, values, one, rows, METHOD, SETTINGS, Accelerator())
        logs.append((found, from_samples._log(one, [found | {"grad_norm": 1.0}], 0.5, 0.05, None, (1.0, 1.0))))
    assert logs[0][0] == pytest.approx(logs[1][0]) and 0 < logs[0][0]["clip_share"] < 1
    one, other = (asdict(log) | {"live": 0.0} for _, log in logs)
    assert one == pytest.approx(other)
    assert one["length"] == sum(len(response) for _, response in rollout.samples) / 16


def test_a_response_ends_with_its_first_eos(setup, tokenizer):
    rollout = roll(setup(), tokenizer, n=16, max_new_tokens=40)
    eos = tokenizer.eos_token_id
    assert rollout.scored.finished.any()
    for _, response in rollout.samples:
        assert response.count(eos) == (response[-1] == eos)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_head_on_the_shared_trunk_reads_the_policys_last_hidden_states(architecture, setup, tokenizer):
    policy, values, *rest = setup(own_trunk=False, architecture=architecture)
    values.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rollout = roll((policy, values, *rest), tokenizer)
    batch = rollout.batch
    with torch.no_grad():
        hidden = policy.base_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        torch.testing.assert_close(rollout.scored.values, values.head(hidden).squeeze(-1)[:, :-1] * rollout.mask)
    values.zero_grad(), policy.zero_grad()
    _, v = evaluate(policy, values, batch)
    v.sum().backward()
    assert all(p.grad is not None for p in values.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "own_trunk"), [(0, True), (2, True), (0, False)])
def test_the_first_ratio_is_1_and_the_first_values_are_0(rank, own_trunk, setup, tokenizer):
    policy, values, *rest = setup(rank, own_trunk)
    assert not roll((policy, values, *rest), tokenizer).scored.values.any()
    log = train((policy, values, *rest), tokenizer)
    assert all(entry.first_ratio < 1e-12 for entry in log)
    assert log[0].kl == pytest.approx(0, abs=1e-12) or rank  # a fixture's adapter is not at its start
    assert log[0].policy_loss != 0 and log[-1].grad_norm > 0


def test_one_update_is_adam_on_both_losses(setup, tokenizer):
    """A minibatch's gradient written again from the definitions, clipped apart, one step of Adam."""
    settings = replace(SETTINGS, iterations=1, epochs=1, minibatch_size=8, warmup_share=0.0)
    method = PPO(value_coefficient=0.7)
    policy, values, *rest = setup()
    expected_policy, expected_values = copy.deepcopy(policy), copy.deepcopy(values)
    asked = [prompts_of(24)[i] for i in batches(24, 8, 1, 0)[0]]
    reference, reward = rest
    how = {"max_new_tokens": 8, "size": 4, "seed": [0, 0], "accelerator": Accelerator()}
    rollout = collect(expected_policy, expected_values, tokenizer, asked, reference, reward, method, **how)
    mask = rollout.mask
    log_probs = token_log_probs(expected_policy, rollout.batch)
    hidden = expected_values.trunk(rollout.batch["input_ids"], attention_mask=rollout.batch["attention_mask"])
    v = expected_values.head(hidden.last_hidden_state).squeeze(-1)[:, :-1] * mask
    loss = -(rollout.advantages * (log_probs - log_probs.detach()).exp() * mask).sum() / 8
    loss = loss + 0.7 * 0.5 * ((v - rollout.returns).square() * mask).sum() / 8
    parameters = trained_parameters(expected_policy, expected_values)
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0, eps=1e-5)
    loss.backward()
    for module in (expected_policy, expected_values):
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    train((policy, values, *rest), tokenizer, settings, method)
    for name, p in trained_parameters(policy, values).items():
        torch.testing.assert_close(p, parameters[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_micro_batches_agree(size, setup, tokenizer, monkeypatch):
    """How many sequences go through the network at once decides nothing; samples are held fixed."""
    fixed = {}

    def keep(model, tokenizer, prompts, *, seed, **how):
        key = tuple(prompt[0]["content"] for prompt in prompts)
        for text in key:
            rng = np.random.default_rng(len(text))
            fixed.setdefault(text, ([3, 10, 11, 4], [*rng.integers(5, 60, 4).tolist(), 2]))
        return [fixed[text] for text in key]

    monkeypatch.setattr(rollouts, "sample", keep)
    ends = []
    for micro in (8, size):
        policy, values, *rest = setup()
        log = train((policy, values, *rest), tokenizer, replace(SETTINGS, micro_batch_size=micro))
        ends.append((log, weights(policy, values)))
    for name, end in ends[0][1].items():
        torch.testing.assert_close(end, ends[1][1][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("own_trunk", [True, False])
def test_stopped_and_started_again_it_ends_with_the_same_bits(own_trunk, setup, tokenizer, tmp_path):
    settings, method = replace(SETTINGS, iterations=4), PPO(kl_target=0.5)
    through = setup(own_trunk=own_trunk)
    whole = train(through, tokenizer, settings, method)

    class Stop(Exception):
        pass

    def stop(step, steps, log):
        if step == 3:
            raise Stop

    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        train(setup(own_trunk=own_trunk), tokenizer, settings, method, checkpoint=path, on_step=stop)
    again = setup(own_trunk=own_trunk)
    resumed = train(again, tokenizer, settings, method, checkpoint=path)
    assert [replace(e, oracle=0) for e in resumed] == [replace(e, oracle=0) for e in whole]  # NaN is not NaN
    for name, p in trained_parameters(*again[:2]).items():
        assert torch.equal(p, trained_parameters(*through[:2])[name]), name


def test_every_iteration_is_told_and_a_state_is_kept_between_two_of_them(setup, tokenizer, tmp_path, monkeypatch):
    told, kept = [], []
    monkeypatch.setattr(from_samples, "save_checkpoint", lambda *given: kept.append(len(told)))
    settings = replace(SETTINGS, iterations=5, checkpoint_every=2)
    options = {"checkpoint": tmp_path / "state.safetensors", "on_step": lambda *given: told.append(given)}
    history = train(setup(), tokenizer, settings, **options)
    assert [(step, log) for step, _, log in told] == [*enumerate(history, 1)]
    assert kept == [2, 4]
    told.clear(), kept.clear()
    train(setup(), tokenizer, replace(settings, iterations=4), **options)
    assert kept == [2]  # none at the end, which is kept anyway


def _train_and_save(setup, tokenizer, path):
    torch.set_num_threads(1)
    policy, values, *rest = setup()
    log = train((policy, values, *rest), tokenizer, replace(SETTINGS, micro_batch_size=3))
    torch.save(([asdict(e) for e in log], weights(policy, values)), f"{path}.{PartialState().process_index}")


@pytest.mark.timeout(120)
def test_two_processes_agree_with_one(setup, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _train_and_save(setup, tokenizer, tmp_path / "one")
    before = dict(PartialState._shared_state)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        debug_launcher(_train_and_save, (setup, tokenizer, tmp_path / "two"))
    finally:
        PartialState._shared_state.update(before)
    one, *two = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    timed = ("live", "oracle", "first_ratio", "sampling_seconds", "update_seconds", "samples_per_second")
    for log, end in two:
        for entry, expected in zip(log, one[0], strict=True):
            assert {k: v for k, v in entry.items() if k not in timed} == pytest.approx(
                {k: v for k, v in expected.items() if k not in timed}, rel=1e-9
            )
        for name, p in end.items():
            torch.testing.assert_close(p, one[1][name], rtol=1e-9, atol=1e-12)


def test_updates_are_counted_and_the_schedule_warms_up_and_ends(setup, tokenizer, monkeypatch):
    seen = []
    factors = []
    monkeypatch.setattr(from_samples, "lr_factor", lambda *asked: factors.append(asked) or 1.0)
    train(setup(), tokenizer, on_update=seen.append)
    assert seen == list(range(1, 3 * 2 * 2 + 1))
    assert factors == [(step, 3, SETTINGS.warmup_share) for step in range(3)]


def test_it_learns_what_it_is_rewarded_for(setup, tokenizer):
    """Fewer different tokens a response: nothing but the reward says so."""
    result = setup(dtype=torch.float32)
    settings = replace(SETTINGS, iterations=30, batch_size=24, minibatch_size=12, learning_rate=1e-2)
    log = train(result, tokenizer, settings, PPO(kl_coefficient=0.0))
    first, last = (np.mean([e.score for e in part]) for part in (log[:3], log[-3:]))
    assert last > first + 0.5


def test_dropout_is_off_and_the_global_generator_is_left_alone(setup, make_model, tokenizer):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    _, *rest = setup()
    policy = make_model(rank=2, dropout=0.5).train()
    log = train((policy, *rest), tokenizer, replace(SETTINGS, iterations=1))
    assert log[0].first_ratio < 1e-12  # with dropout it could not be
    assert torch.equal(torch.get_rng_state(), state)
    unwrap(policy)


def test_bad_input_is_one_line(setup, tokenizer):
    with pytest.raises(BadInput, match="batch_size=8: expected a multiple of"):
        train(setup(), tokenizer, replace(SETTINGS, minibatch_size=3))
    with pytest.raises(BadInput, match=r"training on samples: policy loss .*lower learning_rate="):
        train(setup(), tokenizer, replace(SETTINGS, learning_rate=1e30))
    with pytest.raises(BadInput, match=r"batch_size=32: only 24"):
        train(setup(), tokenizer, replace(SETTINGS, batch_size=32, minibatch_size=32))


def test_the_judge_is_logged_and_never_learnt_from(setup, tokenizer):
    ends = []
    for judge in (None, oracle_reward(worlds.get_world("conflict").objective("helpful"), tokenizer)):
        policy, values, *rest = setup()
        log = train((policy, values, *rest), tokenizer, judge=judge)
        ends.append(weights(policy, values))
    assert math.isfinite(log[0].oracle)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_rule_decides_what_is_trained_and_the_values_learn_all_the_same(setup, tokenizer):
    seen = []

    def nothing(w):
        seen.append((w.progress, float(w.c.abs().sum()), bool((w.weight == w.c.abs()).all()), int(w.held.sum())))
        return torch.zeros_like(w.c)

    policy, values, *rest = setup()
    before = weights(policy, values)
    train((policy, values, *rest), tokenizer, rule=nothing)
    after = weights(policy, values)
    assert all(torch.equal(after[n], before[n]) for n in after if n.startswith("policy."))
    assert any(not torch.equal(after[n], before[n]) for n in after if n.startswith("values."))
    assert [progress for progress, *_ in seen] == pytest.approx([0, 1 / 3, 2 / 3])
    assert all(total > 0 and same and held > 8 for _, total, same, held in seen)


# --- GRPO and RLOO ----------------------------------------------------------------------------------

GROUPS = {"grpo": GRPO(group_size=4, kl_coefficient=0.3), "rloo": RLOO(group_size=4, kl_coefficient=0.3)}


def without_values(result):
    policy, _, reference, reward = result
    return policy, None, reference, reward


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_group_is_samples_to_one_prompt_and_its_advantages_are_of_its_scores(method, setup, tokenizer):
    rollout = roll(without_values(setup(rank=2)), tokenizer, GROUPS[method], n=2)  # away from the reference
    asked = [tuple(prompt) for prompt, _ in rollout.samples]
    assert len(asked) == 8 and len(set(asked[:4])) == len(set(asked[4:])) == 1 and asked[0] != asked[4]
    assert len({tuple(response) for _, response in rollout.samples[:4]}) > 1
    scores = rollout.scored.scores - GROUPS[method].missing_eos_penalty * ~rollout.scored.finished
    if method == "rloo":
        scores = scores - 0.3 * rollout.kl
        others = torch.stack([(g.sum() - g) / 3 for g in scores.view(2, 4)]).flatten()
        expected = (scores - others)[:, None] * rollout.mask
    else:
        groups = scores.view(2, 4)
        whitened = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        expected = whitened.flatten()[:, None] * rollout.mask / rollout.mask.sum(1, keepdim=True)
    torch.testing.assert_close(rollout.advantages, expected)
    assert not rollout.scored.values.any() and not rollout.returns.any()


def test_grpos_gradient_is_that_of_its_printed_loss(setup, tokenizer):
    """Mean over samples of the mean over tokens of  min(rA, clip(r)A) - beta (q - 1 - log q)."""
    result = without_values(setup(rank=2))  # a policy away from its reference: the KL term is at work
    policy = result[0]
    method = GROUPS["grpo"]
    rollout = roll(result, tokenizer, method, n=2)
    rows = np.arange(8)
    from_samples._gradient(policy, None, rollout, rows, method, SETTINGS, Accelerator())
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}
    policy.zero_grad()
    log_probs = token_log_probs(policy, rollout.batch)
    ratio = (log_probs - rollout.log_probs).exp()
    scores = (rollout.scored.scores - method.missing_eos_penalty * ~rollout.scored.finished).view(2, 4)
    a = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).flatten()[:, None]
    q = (rollout.reference_log_probs - log_probs).exp()
    token = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) - 0.3 * (q - 1 - q.log())
    (-(token * rollout.mask).sum(1) / rollout.mask.sum(1)).mean().backward()
    for name, p in policy.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_groups_learn_without_values_and_resume(method, setup, tokenizer, tmp_path):
    settings, method = SETTINGS, GROUPS[method]
    result = without_values(setup())
    log = train(result, tokenizer, settings, method)
    assert [math.isnan(entry.explained_variance) for entry in log] == [True] * 3
    assert all(entry.value_loss == 0 and entry.first_ratio < 1e-9 for entry in log)

    def stop(step, steps, entry):
        if step == 2:
            raise KeyboardInterrupt

    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(without_values(setup()), tokenizer, settings, method, checkpoint=path, on_step=stop)
    again = without_values(setup())
    train(again, tokenizer, settings, method, checkpoint=path)
    for a, b in zip(result[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [GRPO, RLOO])
@pytest.mark.parametrize("size", [3, 16])
def test_a_group_that_does_not_fit_is_refused(kind, size, setup, tokenizer):
    with pytest.raises(BadInput, match=rf"^group_size={size}: expected a divisor of settings\.batch_size=8$"):
        train(without_values(setup()), tokenizer, method=kind(group_size=size))


@pytest.mark.parametrize("size", [2, 8])
def test_a_group_may_fill_the_batch_and_prompts_are_asked_as_often_as_groups_need(size, setup, tokenizer):
    result, asked = without_values(setup()), []
    watched = (*result[:3], lambda prompts, samples: asked.append(prompts) or result[3](prompts, samples))
    train(watched, tokenizer, replace(SETTINGS, iterations=1), GRPO(group_size=size))
    texts = [prompt[0]["content"] for prompt in asked[0]]
    assert len(texts) == 8 and all(len(set(texts[i : i + size])) == 1 for i in range(0, 8, size))


def test_grpo_learns_what_it_is_rewarded_for(setup, tokenizer):
    result = without_values(setup(dtype=torch.float32))
    settings = replace(
        SETTINGS, iterations=15, batch_size=32, minibatch_size=16, micro_batch_size=32, learning_rate=3e-3
    )
    log = train(result, tokenizer, settings, GRPO(group_size=4, kl_coefficient=0.0, missing_eos_penalty=0.0))
    assert np.mean([entry.score for entry in log[-3:]]) > np.mean([entry.score for entry in log[:3]]) + 0.2
