"""Training on a policy's own samples: sample, score, say advantages, update; interruptible and deterministic.

PPO, GRPO and RLOO share this loop. The known details of RLHF's PPO (Huang et al., The N+ Implementation Details of RLHF
with PPO, 2024) that decide whether it works are numbered where they are:

 1 sampling at temperature 1, untruncated      8 clipped ratio
 2 left padding to sample, right to score      9 clipped value loss
 3 no dropout                                 10 value head starts at 0
 4 <eos> is part of the response, its lack    11 minibatches from a fresh permutation each epoch
   is penalised                               12 gradients of policy and values clipped apart
 5 KL per token in the reward                 13 Adam's epsilon 1e-5, warm-up, linear decay
 6 GAE, no discount, nothing after the end    14 adaptive or fixed KL coefficient
 7 advantages whitened over the batch's tokens
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput
from preflab.hardware import precise
from preflab.live import Live, smoothed
from preflab.methods.method import SampleMethod
from preflab.rewards import Reward
from preflab.rules import Plain, Rule
from preflab.settings import Count, Positive, Share, incidental, settings
from preflab.training.checkpoints import load_checkpoint, save_checkpoint
from preflab.training.processes import sum_gradients, zero_gradients
from preflab.training.rollout import Prompts, Reference, Rollout, Values, collect, evaluate, rows_of
from preflab.training.schedule import batches, lr_factor, set_learning_rate
from preflab.weightings import Weights, surrogate


@settings
class SampleTraining:
    """Section `sample_training`: the loop, which is the same for every method on samples."""

    iterations: Count = 60
    batch_size: Annotated[Count, Field(ge=2)] = 64  # samples an iteration
    minibatch_size: Count = 32  # samples an update
    micro_batch_size: Count = 64  # samples a forward pass
    epochs: Count = 2  # passes over the samples of an iteration
    learning_rate: Positive = 1e-3
    warmup_share: Share = 0.05
    max_grad_norm: Positive = 1.0
    checkpoint_every: Count = incidental(100)  # iterations

    @property
    def updates(self) -> int:
        """Updates of the optimiser in an iteration."""
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


def train_on_samples(
    policy: PreTrainedModel,
    values: Values | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    reference: Reference,
    reward: Reward,
    method: SampleMethod,
    settings: SampleTraining,
    *,
    max_new_tokens: int,
    seed: int,
    rule: Rule = Plain(),  # noqa: B008  a frozen value
    live: Live | None = None,
    judge: Reward | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, IterationLog], None] = lambda step, steps, log: None,
    on_update: Callable[[int], None] = lambda updates: None,
) -> list[IterationLog]:
    """Train policy and values in place.

    `rule` makes of an iteration's advantages those that are trained on, before the ratio and the clip; `live` tells
    the rule G. PPO has values, GRPO and RLOO have none. `reference` gives token log-probs of the fixed reference for a
    batch; `judge` is logged and never learned from. `on_step` is called after an iteration, `on_update` with the
    number of updates of the optimiser so far. With `checkpoint`, the state is kept there and an interrupted call
    goes on from it to the same numbers; several accelerate processes share the work and end with the weights of one.
    Raises BadInput if sizes do not fit each other, and if a loss or gradient stops being finite.
    """
    prompts_an_iteration = _check_sizes(method, settings)
    accelerator = Accelerator()
    policy.eval()  # detail 3: with dropout the first ratio would not be 1
    if values:
        values.eval()
    parameters = trained_parameters(policy, values)
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0, eps=1e-5)
    history, now = _resumed(checkpoint, parameters, optimizer, method)
    schedule = _schedule(len(prompts), prompts_an_iteration, settings.iterations, seed)
    seen = history[-1].live if history else None
    how = {"max_new_tokens": max_new_tokens, "size": settings.micro_batch_size, "accelerator": accelerator}
    for step in range(len(history), settings.iterations):
        warmth = lr_factor(step, settings.iterations, settings.warmup_share)  # detail 13
        set_learning_rate(optimizer, settings.learning_rate * warmth)
        began = time.perf_counter()
        asked = [prompts[i] for i in schedule[step]]
        rollout = collect(policy, values, tokenizer, asked, reference, reward, now, seed=[seed, step], **how)
        if live and step % live.every == 0:
            seen = smoothed(seen, live.look(policy, tokenizer, rollout.batch, rollout.advantages, len(rollout.samples)))
        weights = Weights.of_tokens(rollout.advantages, rollout.mask, step / settings.iterations, seen)
        rollout = replace(rollout, advantages=rule(weights))
        sampled = time.perf_counter()
        totals = []
        for update, indices in enumerate(minibatches(settings, [seed, step]), start=step * settings.updates + 1):
            totals.append(_update(policy, values, optimizer, rollout, indices, now, settings, accelerator))
            on_update(update)
        seconds = sampled - began, time.perf_counter() - sampled
        history.append(_log(rollout, totals, _judged(judge, asked, rollout, method), now.kl_coefficient, seen, seconds))
        now = adapted(now, history[-1].kl)
        on_step(step + 1, settings.iterations, history[-1])
        due = (step + 1) % settings.checkpoint_every == 0 and step + 1 < settings.iterations
        if checkpoint and due and accelerator.is_main_process:
            record = {"history": [vars(entry) for entry in history], "kl_coefficient": now.kl_coefficient}
            save_checkpoint(checkpoint, parameters, optimizer, record)
    return history


def _schedule(prompts: int, an_iteration: int, iterations: int, seed: int) -> list[np.ndarray]:
    """Which prompts every iteration asks: as many passes over all of them as it takes."""
    rounds = -(-iterations // (prompts // an_iteration or 1))
    return batches(prompts, an_iteration, rounds, seed)[:iterations]


def _check_sizes(method: SampleMethod, settings: SampleTraining) -> int:
    """Prompts an iteration. Raises BadInput."""
    if settings.batch_size % settings.minibatch_size:
        raise BadInput(f"batch_size={settings.batch_size}: expected a multiple of {settings.minibatch_size=}")
    if settings.batch_size % method.samples_a_prompt:
        raise BadInput(f"group_size={method.samples_a_prompt}: expected a divisor of {settings.batch_size=}")
    return settings.batch_size // method.samples_a_prompt


def _resumed(
    checkpoint: Path | None, parameters: dict, optimizer: torch.optim.Optimizer, method: SampleMethod
) -> tuple[list[IterationLog], SampleMethod]:
    """The log of an interrupted call and the method with its KL coefficient, weights and moments put back."""
    if not checkpoint or not checkpoint.exists():
        return [], method
    record = load_checkpoint(checkpoint, parameters, optimizer)
    history = [IterationLog(**entry) for entry in record["history"]]
    return history, replace(method, kl_coefficient=record["kl_coefficient"])


def trained_parameters(policy: PreTrainedModel, values: Values | None) -> dict[str, torch.nn.Parameter]:
    """What is trained, by name: policy.* and, in PPO, values.*."""
    return {
        f"{which}.{name}": p
        for which, module in (("policy", policy), ("values", values))
        if module
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def adapted(method: SampleMethod, kl: float) -> SampleMethod:
    """The next KL coefficient (detail 14; Eq. 9 of arXiv 1909.08593): moved by at most 2 % towards kl_target."""
    if method.kl_target is None:
        return method
    error = min(max(kl / method.kl_target - 1, -0.2), 0.2)
    return replace(method, kl_coefficient=method.kl_coefficient * (1 + 0.1 * error))


def minibatches(settings: SampleTraining, seed: list[int]) -> list[np.ndarray]:
    """Rows of every update of an iteration (detail 11)."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(settings.batch_size) for _ in range(settings.epochs)]
    return [m for order in orders for m in order.reshape(-1, settings.minibatch_size)]


def _update(policy, values, optimizer, rollout: Rollout, indices: np.ndarray, method, settings, accelerator) -> dict:
    """One step of the optimiser on a minibatch; what is logged of it. Raises BadInput if a number is not finite."""
    found = _gradient(policy, values, rollout, indices, method, settings, accelerator)
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
        raise BadInput(f"training on samples: {losses}: {hint}")
    optimizer.step()
    return found | {"grad_norm": norms[0]}


def _gradient(policy, values, rollout: Rollout, indices, method: SampleMethod, settings, accelerator) -> dict:
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
        log_probs, v = evaluate(policy, values, batch)
        old = rollout.log_probs[rows]
        c, loss, clipped = method.clipped_weighting(log_probs, old, rollout.advantages[rows], mask)  # detail 8
        c = c + method.kl_in_loss(log_probs, rollout.reference_log_probs[rows], mask)
        total, value_loss = surrogate(c, log_probs), torch.zeros_like(loss)
        if values:
            value_loss = clipped_value_loss(
                v, rollout.scored.values[rows], rollout.returns[rows], mask, method.value_clip
            )
            total = total + method.value_coefficient * value_loss.sum()
        (total / len(indices)).backward()
        sums += torch.stack([loss.sum(), value_loss.sum(), clipped.sum(), mask.sum()]).detach().to(sums)
        first_ratio = max(first_ratio, float(((log_probs - old).exp() - 1).abs().max()))
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


def _judged(judge: Reward | None, asked: Prompts, rollout: Rollout, method: SampleMethod) -> float:
    if judge is None:
        return math.nan
    everyone = [prompt for prompt in asked for _ in range(method.samples_a_prompt)]
    return float(precise(judge(everyone, rollout.samples)).mean())


def _log(rollout: Rollout, totals: list[dict], judged: float, kl_coefficient: float, live, seconds) -> IterationLog:
    mask, n = rollout.mask.bool(), len(rollout.samples)
    returns, v = precise(rollout.returns[mask]), precise(rollout.scored.values[mask])
    mean = {name: float(np.mean([t[name] for t in totals])) for name in totals[0]}
    return IterationLog(
        score=float(precise(rollout.scored.scores).mean()),
        oracle=judged,
        kl=float(precise(rollout.kl).mean()),
        kl_coefficient=kl_coefficient,
        entropy=float(precise(rollout.entropy[mask]).mean()),
        length=float(mask.sum() / n),
        finished=float(precise(rollout.scored.finished).mean()),
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
