"""Live G: what a rule can coordinate by while training runs (the open question of paper D, section 5.2).

G needs D', the final responses, which training has not reached. The proxy, declared here and ours: *greedy* responses
of the *current* policy to the prompts it is learning from. Greedy, because the mean gradient of responses that a
policy samples is zero (the score function's), and with it G of any loss.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.alignment import alignment, nll_gradient, parameters_of, token_alignment
from preflab.generation import respond
from preflab.likelihood import collate_responses
from preflab.weightings import sign_components

SMOOTHING = 0.5  # weight of the newest look: one batch alone is mostly noise

Live = Callable[[dict[str, torch.Tensor], torch.Tensor, int], tuple[float, float]]  # batch, its c, units


def live_alignment(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, torch.Tensor],
    c: torch.Tensor,
    units: int,
    *,
    max_new_tokens: int,
    size: int,
) -> tuple[float, float]:
    """G of positive and of negative learning on a batch, with the proxy for D'.

    Args:
        batch: input_ids, attention_mask, completion_mask, each (rows, seq); `units` pairs (chosen rows above rejected
            ones) or samples. The prompts of the first `units` rows are answered.
        c: (rows, seq - 1).
        size: rows a pass.
    """
    training = policy.training
    policy.eval()
    parameters = parameters_of(policy)
    prompts = [_prompt(batch, row) for row in range(units)]
    answers = [respond(policy, tokenizer, prompts[i : i + size], max_new_tokens) for i in range(0, units, size)]
    v = nll_gradient(
        policy, [collate_responses(some, tokenizer.pad_token_id, c.device) for some in answers], parameters
    )
    rows = torch.arange(len(c), device=c.device).split(size)
    s = torch.cat([token_alignment(policy, {k: t[some] for k, t in batch.items()}, v) for some in rows])
    g = alignment(c, s, sign_components(c), units)
    policy.train(training)
    return g["positive"], g["negative"]


def _prompt(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    """Of a right-padded row: what stands before its response."""
    length = int(batch["completion_mask"][row].argmax())
    return batch["input_ids"][row, :length].tolist()


def smoothed(before: Sequence[float] | None, now: Sequence[float]) -> list[float]:
    """An exponential average, started at the first look."""
    return [SMOOTHING * new + (1 - SMOOTHING) * old for old, new in zip(before or now, now, strict=True)]
