"""Live G: what a rule can coordinate by while training runs (the open question of paper D, section 5.2).

G needs D', the final responses, which training has not reached. The proxy, declared here and ours: *greedy* responses
of the *current* policy to the prompts it is learning from. Greedy, because the mean gradient of responses that a
policy samples is zero (the score function's), and with it G of any loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.alignment import alignment, nll_gradient, parameters_of, token_alignment
from preflab.generation import respond
from preflab.likelihood import collate_responses
from preflab.weightings import sign_components

SMOOTHING = 0.5  # weight of the newest look: one batch alone is mostly noise


@dataclass(frozen=True)
class Live:
    """How training looks at G."""

    every: int  # updates (of pairs) or iterations (of samples) between two looks
    max_new_tokens: int  # of the proxy's responses
    size: int  # rows a pass

    def look(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: dict[str, torch.Tensor],
        c: torch.Tensor,
        units: int,
    ) -> tuple[float, float]:
        """G of positive and of negative learning on a batch, with the proxy for D'.

        Args:
            batch: input_ids, attention_mask, completion_mask, each (rows, seq); `units` pairs (chosen rows above
                rejected ones) or samples. The prompts of the first `units` rows are answered.
            c: (rows, seq - 1).
        """
        training = policy.training
        policy.eval()
        parameters = parameters_of(policy)
        prompts = [_prompt(batch, row) for row in range(units)]
        parts = [prompts[i : i + self.size] for i in range(0, units, self.size)]
        answers = [respond(policy, tokenizer, part, self.max_new_tokens) for part in parts]
        v = nll_gradient(
            policy, [collate_responses(some, tokenizer.pad_token_id, c.device) for some in answers], parameters
        )
        rows = torch.arange(len(c), device=c.device).split(self.size)
        s = torch.cat([token_alignment(policy, {k: t[some] for k, t in batch.items()}, v) for some in rows])
        g = alignment(c, s, sign_components(c), units)
        policy.train(training)
        return g["positive"], g["negative"]


def _prompt(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    """What stands before the response in a right-padded row."""
    length = int(batch["completion_mask"][row].argmax())
    return batch["input_ids"][row, :length].tolist()


def smoothed(before: Sequence[float] | None, now: Sequence[float]) -> list[float]:
    """The exponential average of looks; it starts at the first one."""
    return [SMOOTHING * new + (1 - SMOOTHING) * old for old, new in zip(before or now, now, strict=True)]
