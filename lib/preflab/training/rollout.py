"""Samples of a policy with everything that an update needs. Numbers of details: `preflab.training.from_samples`."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.generation import Sample, sample
from preflab.layout import Batch
from preflab.likelihood import (
    collate_responses,
    on_responses,
    response_states,
    states_log_probs,
    states_log_probs_and_entropy,
    token_log_probs,
    trunk_of,
)
from preflab.methods.method import SampleMethod, Scored
from preflab.rewards import Reward
from preflab.training.processes import spread

Prompts = list[list[dict]]  # one list of messages each
Reference = Callable[[Batch], torch.Tensor]  # token log-probs of the fixed reference, (n, seq - 1)


class Values(torch.nn.Module):
    """V(x, y_<t), a linear head on the policy's hidden states or, with its own trunk, on those of a copy."""

    def __init__(self, base: PreTrainedModel, own_trunk: bool):
        super().__init__()
        self.trunk = copy.deepcopy(base.base_model).requires_grad_(True) if own_trunk else None
        head = torch.nn.utils.skip_init(torch.nn.Linear, base.config.hidden_size, 1)  # draws nothing at random
        self.head = head.to(base.device, base.dtype)
        for p in self.head.parameters():
            torch.nn.init.zeros_(p)  # detail 10: values start at 0, not at noise

    def forward(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        """Value of the state before each response token: (batch, seq - 1), 0 off the response.

        `states` are the policy's, (tokens, width).
        """
        if self.trunk is not None:
            states = response_states(self.trunk, batch)
        v = self.head(states).squeeze(-1)
        return on_responses(v.to(torch.promote_types(v.dtype, torch.float32)), batch)


def evaluate(policy: PreTrainedModel, values: Values | None, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token log-probs and values, (batch, seq - 1) each, in one pass of the policy; zeros without values."""
    states = response_states(trunk_of(policy), batch)
    log_probs = on_responses(states_log_probs(policy, states, batch), batch)
    return log_probs, values(batch, states) if values else torch.zeros_like(log_probs)


def reference_of(policy: PreTrainedModel, base: PreTrainedModel) -> Reference:
    """Token log-probs of the SFT model: the base, or the policy without its adapter, which sits on the base."""

    @torch.no_grad()
    def log_probs(batch: Batch) -> torch.Tensor:
        with policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext():
            return token_log_probs(policy if isinstance(policy, PeftModel) else base, batch)

    return log_probs


@dataclass(frozen=True)
class Rollout:
    """n samples of a policy with everything an update needs; tensors are (n, seq - 1) if not said otherwise."""

    samples: list[Sample]
    batch: Batch
    scored: Scored
    log_probs: torch.Tensor
    reference_log_probs: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        return self.scored.mask

    @property
    def kl(self) -> torch.Tensor:
        """log pi/pi_ref of each response, (n,): its mean over samples estimates the KL divergence."""
        return self.scored.log_ratios.sum(1)


@torch.no_grad()
def collect(
    policy: PreTrainedModel,
    values: Values | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    reference: Reference,
    reward: Reward,
    method: SampleMethod,
    *,
    max_new_tokens: int,
    size: int,
    seed: list[int],
    accelerator: Accelerator,
) -> Rollout:
    """Sample `method.samples_a_prompt` responses to every prompt and score them, `size` in a forward pass.

    This is what an iteration learns from, and what G is measured on.
    """
    prompts = [prompt for prompt in prompts for _ in range(method.samples_a_prompt)]

    def draw(start: int) -> list[Sample]:
        some = prompts[start : start + size]
        how = {"max_new_tokens": max_new_tokens, "temperature": 1.0, "batch_size": size}  # details 1, 2
        return sample(policy, tokenizer, some, seed=one_seed(*seed, start), **how)

    starts = range(0, len(prompts), size)
    samples = [s for some in spread(accelerator, starts, draw) for s in some]
    batch = collate_responses(samples, tokenizer.pad_token_id, policy.device)

    def look(start: int) -> torch.Tensor:
        part = rows_of(batch, slice(start, start + size))
        states = response_states(trunk_of(policy), part)
        own, entropy = (on_responses(x, part) for x in states_log_probs_and_entropy(policy, states, part))
        v = values(part, states) if values else torch.zeros_like(own)
        return torch.stack([own, reference(part), v, entropy]).cpu()

    looked = torch.cat(spread(accelerator, starts, look), 1).to(policy.device)
    log_probs, reference_log_probs, v, entropy = looked
    finished = torch.tensor([ids[-1:] == [tokenizer.eos_token_id] for _, ids in samples], device=policy.device)
    scores = reward(prompts, samples).to(log_probs)
    scored = Scored(scores, finished, log_probs - reference_log_probs, v, batch["completion_mask"][:, 1:])
    advantages, returns = method.advantages(scored)
    return Rollout(samples, batch, scored, log_probs, reference_log_probs, entropy, advantages, returns)


def one_seed(*numbers: int) -> int:
    """One seed for a generator from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def rows_of(batch: Batch, rows) -> Batch:
    """Some rows of every tensor; `rows` is an index, a slice or a mask."""
    return {name: tensor[rows] for name, tensor in batch.items()}
