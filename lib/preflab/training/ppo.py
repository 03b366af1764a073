"""PPO as a token weighting: sample, score, estimate advantages, update; interruptible and deterministic.

GRPO and RLOO are the same loop with other advantages, of groups of samples to one prompt, and no values.

The known details of RLHF's PPO (Huang et al., The N+ Implementation Details of RLHF with PPO, 2024) that
decide whether it works are numbered where they are:

 1 sampling at temperature 1, untruncated      8 clipped ratio
 2 left padding to sample, right to score      9 clipped value loss
 3 no dropout                                 10 value head starts at 0
 4 <eos> is part of the response, its lack    11 minibatches from a fresh permutation each epoch
   is penalised                               12 gradients of policy and values clipped apart
 5 KL per token in the reward                 13 Adam's epsilon 1e-5, warm-up, linear decay
 6 GAE, no discount, nothing after the end    14 adaptive or fixed KL coefficient
 7 advantages whitened over the batch's tokens
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput
from preflab.generation import Sample, sample
from preflab.likelihood import collate_responses, completion_entropy, completion_log_probs
from preflab.live import Live, smoothed
from preflab.models import precise
from preflab.rewards import Reward
from preflab.rules import Rule, plain
from preflab.training.checkpoints import load_checkpoint, save_checkpoint
from preflab.training.dpo import batches, lr_factor
from preflab.training.processes import spread, sum_gradients, zero_gradients
from preflab.weightings import Weights, group_advantages, kl_weighting, ppo_weighting, surrogate

Batch = dict[str, torch.Tensor]
Prompts = list[list[dict]]  # one list of messages each


@dataclass(frozen=True)
class PPOSettings:
    method: str = "ppo"  # or grpo or rloo
    group_size: int = 1  # samples to a prompt; grpo and rloo want more
    iterations: int = 60
    batch_size: int = 64  # samples an iteration
    minibatch_size: int = 32  # samples an update
    micro_batch_size: int = 64  # samples a forward pass
    epochs: int = 2  # passes over the samples of an iteration
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    gamma: float = 1.0
    gae_lambda: float = 0.95
    kl_coefficient: float = 0.05
    kl_target: float | None = None  # nats a response; None keeps the coefficient
    missing_eos_penalty: float = 1.0
    max_new_tokens: int = 32
    max_grad_norm: float = 1.0
    checkpoint_every: int = 20  # iterations
    live_every: int | None = None  # iterations between two looks at live G

    @property
    def prompts(self) -> int:
        """An iteration's."""
        return self.batch_size // self.group_size

    @property
    def updates(self) -> int:
        """An iteration's."""
        return self.epochs * self.batch_size // self.minibatch_size


@dataclass(frozen=True)
class IterationLog:
    """One iteration, over all its samples; what is timed does not count when logs are compared."""

    score: float  # mean reward, before KL and penalty
    oracle: float  # mean of the judge's score, NaN without one
    kl: float  # nats a response, sum over tokens of log pi/pi_ref
    kl_coefficient: float
    entropy: float  # nats a token
    length: float  # tokens a response
    finished: float  # share of responses that ended in <eos>
    distinct: float  # share of different responses
    first_ratio: float  # largest |ratio - 1| in the first minibatch: 0 but for rounding
    clip_share: float  # of tokens whose gradient the clip took away
    policy_loss: float
    value_loss: float
    explained_variance: float  # of returns by values, before the update; NaN without values
    grad_norm: float  # the policy's, before clipping, mean over updates
    live: Sequence[float] | None  # G of positive and negative learning as the rule saw it
    sampling_seconds: float = field(compare=False)
    update_seconds: float = field(compare=False)
    samples_per_second: float = field(compare=False)


class Values(torch.nn.Module):
    """V(x, y_<t), a linear head on the policy's hidden states or, with its own trunk, on those of a copy."""

    def __init__(self, base: PreTrainedModel, own_trunk: bool):
        super().__init__()
        self.trunk = copy.deepcopy(base.base_model).requires_grad_(True) if own_trunk else None
        head = torch.nn.utils.skip_init(torch.nn.Linear, base.config.hidden_size, 1)  # draws nothing at random
        self.head = head.to(base.device, base.dtype)
        for p in self.head.parameters():
            torch.nn.init.zeros_(p)  # detail 10: values start at 0, not at noise

    def forward(self, batch: Batch, hidden: torch.Tensor | None) -> torch.Tensor:
        """Value of the state before each response token: (batch, seq - 1), 0 off the response."""
        if self.trunk is not None:
            hidden = self.trunk(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        v = self.head(hidden).squeeze(-1)[:, :-1]
        return v.to(torch.promote_types(v.dtype, torch.float32)) * batch["completion_mask"][:, 1:]


def evaluate(policy: PreTrainedModel, values: Values | None, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (batch, seq, vocab) and values (batch, seq - 1), in one pass of the policy; zeros without values."""
    shared = values is not None and values.trunk is None
    ids, mask = batch["input_ids"], batch["attention_mask"]
    output = policy(ids, attention_mask=mask, use_cache=False, output_hidden_states=shared)
    if values is None:
        return output.logits, torch.zeros_like(ids[:, 1:], dtype=torch.promote_types(policy.dtype, torch.float32))
    return output.logits, values(batch, output.hidden_states[-1] if shared else None)


@dataclass(frozen=True)
class Rollout:
    """n samples of a policy with everything an update needs; tensors are (n, seq - 1) unless said otherwise."""

    samples: list[Sample]
    batch: Batch
    scores: torch.Tensor  # (n,), reward before KL and penalty
    finished: torch.Tensor  # (n,), ended in <eos>
    log_probs: torch.Tensor
    reference_log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return self.batch["completion_mask"][:, 1:]

    @property
    def kl(self) -> torch.Tensor:
        """log pi/pi_ref of each response, (n,): its mean over samples estimates the KL divergence."""
        return (self.log_probs - self.reference_log_probs).sum(1)


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Generalised advantage estimates (arXiv 1506.02438, Eq. 16), (n, T), 0 off the mask.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1}

    Each row of the mask is one run of ones; after its end value and advantage are 0 (detail 6).
    """
    advantages = torch.zeros_like(rewards)
    after_value = after_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * after_value - values[:, t]
        after_advantage = (delta + gamma * gae_lambda * after_advantage) * mask[:, t]
        after_value = values[:, t] * mask[:, t]
        advantages[:, t] = after_advantage
    return advantages


def whiten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over what the mask holds, 0 elsewhere."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x - mean).square() * mask).sum() / n
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask


def token_rewards(
    scores: torch.Tensor, finished: torch.Tensor, log_ratios: torch.Tensor, mask: torch.Tensor, settings: PPOSettings
) -> torch.Tensor:
    """-kl_coefficient * log pi/pi_ref at every token (detail 5), the score at the last one, less the penalty
    where <eos> is missing (detail 4): (n, seq - 1)."""
    rewards = -settings.kl_coefficient * log_ratios
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(1)
    total = scores.to(rewards) - settings.missing_eos_penalty * (~finished).to(rewards)
    return rewards.index_put((torch.arange(len(last), device=last.device), last), total, accumulate=True) * mask


@torch.no_grad()
def collect(
    policy: PreTrainedModel,
    values: Values | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    reference: Callable[[Batch], torch.Tensor],
    reward: Reward,
    settings: PPOSettings,
    seed: list[int],
    accelerator: Accelerator,
) -> Rollout:
    """Sample a group of responses to every prompt and score them: what an iteration learns from, and what G is
    measured on."""
    size = settings.micro_batch_size
    prompts = [prompt for prompt in prompts for _ in range(settings.group_size)]

    def draw(start: int) -> list[Sample]:
        some = prompts[start : start + size]
        how = {"max_new_tokens": settings.max_new_tokens, "temperature": 1.0, "batch_size": size}  # details 1, 2
        return sample(policy, tokenizer, some, seed=_one_seed(*seed, start), **how)

    starts = range(0, len(prompts), size)
    samples = [s for some in spread(accelerator, starts, draw) for s in some]
    batch = collate_responses(samples, tokenizer.pad_token_id, policy.device)

    def look(start: int) -> torch.Tensor:
        part = rows_of(batch, slice(start, start + size))
        logits, v = evaluate(policy, values, part)
        of_tokens = completion_log_probs(logits, part), reference(part), v, completion_entropy(logits, part)
        return torch.stack(of_tokens).cpu()

    looked = torch.cat(spread(accelerator, starts, look), 1).to(policy.device)
    log_probs, reference_log_probs, v, entropy = looked
    mask = batch["completion_mask"][:, 1:]
    finished = torch.tensor([ids[-1:] == [tokenizer.eos_token_id] for _, ids in samples], device=policy.device)
    scores = reward(prompts, samples).to(log_probs)
    advantages, returns = _advantages(scores, finished, log_probs - reference_log_probs, v, mask, settings)
    return Rollout(
        samples,
        batch,
        scores,
        finished,
        log_probs,
        reference_log_probs,
        v,
        entropy,
        advantages,
        returns,
    )


def _advantages(scores, finished, log_ratios, v, mask, settings: PPOSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and, for the values, returns: each (n, seq - 1)."""
    if settings.method == "ppo":
        rewards = token_rewards(scores, finished, log_ratios, mask, settings)
        raw = gae(rewards, v, mask, settings.gamma, settings.gae_lambda)
        return whiten(raw, mask), raw + v  # detail 7
    scores = scores - settings.missing_eos_penalty * (~finished).to(scores)
    if settings.method == "rloo":  # KL of the whole response, in its reward
        scores = scores - settings.kl_coefficient * log_ratios.sum(1)
        return group_advantages(scores, settings.group_size, "rloo")[:, None] * mask, v
    return group_advantages(scores, settings.group_size, "grpo")[:, None] * mask / mask.sum(1, keepdim=True), v


def kl_in_loss(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, mask: torch.Tensor, settings: PPOSettings
) -> torch.Tensor:
    """What GRPO's loss adds to c, averaged over a response's tokens as all of it is: (n, seq - 1); else zeros."""
    if settings.method != "grpo":
        return torch.zeros_like(log_probs)
    c = kl_weighting(log_probs, reference_log_probs, mask, settings.kl_coefficient)
    return c / mask.sum(1, keepdim=True)


def _one_seed(*numbers: int) -> int:
    """One seed for a generator from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def rows_of(batch: Batch, rows) -> Batch:
    return {name: tensor[rows] for name, tensor in batch.items()}


def train_ppo(
    policy: PreTrainedModel,
    values: Values | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    reference: Callable[[Batch], torch.Tensor],
    reward: Reward,
    settings: PPOSettings,
    *,
    seed: int,
    rule: Rule = plain,
    live: Live | None = None,
    judge: Reward | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, IterationLog], None] = lambda step, steps, log: None,
    on_update: Callable[[int], None] = lambda updates: None,
) -> list[IterationLog]:
    """Train policy and values in place.

    `rule` makes of an iteration's advantages those that are trained on, before the ratio and the clip; `live` tells
    it G every `live_every` iterations. PPO has values, GRPO and RLOO have none.
    `reference` gives token log-probs of the fixed reference for a batch; `judge` is logged and never learned
    from. `on_step` is called after an iteration, `on_update` with the number of updates of the optimiser so far.
    With `checkpoint`, the state is kept there and an interrupted call goes on from it to the same numbers;
    several accelerate processes share the work and end with the weights of one. Raises BadInput when a loss or
    gradient stops being finite.
    """
    if settings.batch_size % settings.minibatch_size:
        raise BadInput(f"batch_size={settings.batch_size}: expected a multiple of {settings.minibatch_size=}")
    if settings.method != "ppo" and (settings.group_size < 2 or settings.batch_size % settings.group_size):
        raise BadInput(f"group_size={settings.group_size}: expected a divisor, above 1, of {settings.batch_size=}")
    accelerator = Accelerator()
    policy.eval()  # detail 3: with dropout the first ratio would not be 1
    if values:
        values.eval()
    parameters = trained_parameters(policy, values)
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0, eps=1e-5)
    history, now = [], settings
    if checkpoint and checkpoint.exists():
        record = load_checkpoint(checkpoint, parameters, optimizer)
        history = [IterationLog(**entry) for entry in record["history"]]
        now = replace(settings, kl_coefficient=record["kl_coefficient"])
    rounds = -(-settings.iterations * settings.prompts // (len(prompts) - len(prompts) % settings.prompts or 1))
    schedule = batches(len(prompts), settings.prompts, rounds, seed)[: settings.iterations]
    seen = history[-1].live if history else None
    for step in range(len(history), settings.iterations):
        for group in optimizer.param_groups:  # detail 13
            group["lr"] = settings.learning_rate * lr_factor(step, settings.iterations, settings.warmup_share)
        began = time.perf_counter()
        asked = [prompts[i] for i in schedule[step]]
        rollout = collect(policy, values, tokenizer, asked, reference, reward, now, [seed, step], accelerator)
        if live and step % settings.live_every == 0:
            seen = smoothed(seen, live(rollout.batch, rollout.advantages, len(rollout.samples)))
        weights = Weights.of_tokens(rollout.advantages, rollout.mask, step / settings.iterations, seen)
        rollout = replace(rollout, advantages=rule(weights))
        sampled = time.perf_counter()
        totals = []
        for update, indices in enumerate(_minibatches(settings, [seed, step]), start=step * settings.updates + 1):
            totals.append(_update(policy, values, optimizer, rollout, indices, settings, accelerator))
            on_update(update)
        seconds = sampled - began, time.perf_counter() - sampled
        everyone = [prompt for prompt in asked for _ in range(settings.group_size)]
        judged = float(precise(judge(everyone, rollout.samples)).mean()) if judge else math.nan
        history.append(_log(rollout, totals, judged, now.kl_coefficient, seen, seconds))
        now = replace(now, kl_coefficient=adapted(now, history[-1].kl))
        on_step(step + 1, settings.iterations, history[-1])
        due = (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.iterations
        if checkpoint and due and accelerator.is_main_process:
            record = {"history": [vars(entry) for entry in history], "kl_coefficient": now.kl_coefficient}
            save_checkpoint(checkpoint, parameters, optimizer, record)
    return history


def trained_parameters(policy: PreTrainedModel, values: Values | None) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name: policy.* and, in PPO, values.*."""
    return {
        f"{which}.{name}": p
        for which, module in (("policy", policy), ("values", values))
        if module
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def adapted(settings: PPOSettings, kl: float) -> float:
    """The next KL coefficient (detail 14; Eq. 9 of arXiv 1909.08593): moved by at most 2 % towards kl_target."""
    if settings.kl_target is None:
        return settings.kl_coefficient
    error = min(max(kl / settings.kl_target - 1, -0.2), 0.2)
    return settings.kl_coefficient * (1 + 0.1 * error)


def _minibatches(settings: PPOSettings, seed: list[int]) -> list[np.ndarray]:
    """Detail 11."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(settings.batch_size) for _ in range(settings.epochs)]
    return [m for order in orders for m in order.reshape(-1, settings.minibatch_size)]


def _update(policy, values, optimizer, rollout: Rollout, indices: np.ndarray, settings, accelerator) -> dict:
    """One step of the optimiser on a minibatch; what is logged of it. Raises BadInput where it is not finite."""
    found = _gradient(policy, values, rollout, indices, settings, accelerator)
    norms = [  # detail 12
        float(
            torch.nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], settings.max_grad_norm)
        )
        for module in (policy, values)
        if module
    ]
    if not all(map(math.isfinite, [*norms, *found.values()])):
        losses = f"policy loss {found['policy_loss']}, value loss {found['value_loss']}, gradient norms {norms}"
        hint = f"expected finite numbers; lower learning_rate={settings.learning_rate}"
        raise BadInput(f"PPO: {losses}: {hint}")
    optimizer.step()
    return found | {"grad_norm": norms[0]}


def _gradient(policy, values, rollout: Rollout, indices: np.ndarray, settings: PPOSettings, accelerator) -> dict:
    """Gradient of policy loss + value_coefficient * value loss, summed over tokens and averaged over the
    minibatch's samples, left in .grad; what is logged of it."""
    parameters = trained_parameters(policy, values).values()
    zero_gradients(parameters)
    sums = torch.zeros(4, device=policy.device)
    first_ratio = 0.0
    micro = [indices[i : i + settings.micro_batch_size] for i in range(0, len(indices), settings.micro_batch_size)]
    for rows in micro[accelerator.process_index :: accelerator.num_processes]:
        rows = torch.as_tensor(rows, device=policy.device)
        batch, mask = rows_of(rollout.batch, rows), rollout.mask[rows]
        logits, v = evaluate(policy, values, batch)
        log_probs = completion_log_probs(logits, batch)
        c, loss, clipped = ppo_weighting(
            log_probs, rollout.log_probs[rows], rollout.advantages[rows], mask, settings.clip
        )  # detail 8
        value_loss = clipped_value_loss(v, rollout.values[rows], rollout.returns[rows], mask, settings.value_clip)
        c = c + kl_in_loss(log_probs, rollout.reference_log_probs[rows], mask, settings)
        total = surrogate(c, log_probs) + settings.value_coefficient * value_loss.sum()
        (total / len(indices)).backward()
        sums += torch.stack([loss.sum(), value_loss.sum(), clipped.sum(), mask.sum()]).detach().to(sums)
        first_ratio = max(first_ratio, float(((log_probs - rollout.log_probs[rows]).exp() - 1).abs().max()))
    policy_loss, value_loss, clipped, tokens = sum_gradients(accelerator, parameters, sums).tolist()
    return {
        "policy_loss": policy_loss / len(indices),
        "value_loss": value_loss / len(indices),
        "clip_share": clipped / tokens,
        "ratio": first_ratio,
    }


def clipped_value_loss(
    v: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Detail 9: max((V - R)^2, (V_old + clamp(V - V_old, +-clip) - R)^2) / 2 a token, (n, seq - 1)."""
    near = old + (v - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((v - returns).square(), (near - returns).square()) * mask


def _log(rollout: Rollout, totals: list[dict], judged: float, kl_coefficient: float, live, seconds) -> IterationLog:
    mask, n = rollout.mask.bool(), len(rollout.samples)
    returns, v = precise(rollout.returns[mask]), precise(rollout.values[mask])
    mean = {name: float(np.mean([t[name] for t in totals])) for name in totals[0]}
    return IterationLog(
        score=float(precise(rollout.scores).mean()),
        oracle=judged,
        kl=float(precise(rollout.kl).mean()),
        kl_coefficient=kl_coefficient,
        entropy=float(precise(rollout.entropy[mask]).mean()),
        length=float(mask.sum() / n),
        finished=float(precise(rollout.finished).mean()),
        distinct=len({tuple(response) for _, response in rollout.samples}) / n,
        first_ratio=totals[0]["ratio"],
        clip_share=mean["clip_share"],
        policy_loss=mean["policy_loss"],
        value_loss=mean["value_loss"],
        explained_variance=float(1 - (returns - v).var() / returns.var()),
        grad_norm=mean["grad_norm"],
        live=live,
        sampling_seconds=seconds[0],
        update_seconds=seconds[1],
        samples_per_second=n / sum(seconds),
    )
