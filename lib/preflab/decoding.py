"""How responses are drawn: a sampler q made from the policy pi by temperature and top-p, and how far q lies from pi.

temperature   q ~ pi^(1/T) at every token
top-p         then the likeliest tokens that together have a mass of p, and no other (arXiv:1904.09751)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TopPLogitsWarper

from preflab.generation import Sample, sample
from preflab.layout import Batch
from preflab.likelihood import on_responses, response_states, trunk_of
from preflab.settings import Positive, settings
from preflab.training.rollout import rows_of


@settings
class Decoding:
    """Temperature first, then top-p, as `generate` does it. The default draws from the policy itself."""

    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def sampler(self, log_probs: torch.Tensor) -> torch.Tensor:
        """log q from log pi: (tokens, vocabulary) each; -inf for what is never drawn."""
        tempered = log_probs / self.temperature
        if self.top_p < 1:
            tempered = TopPLogitsWarper(self.top_p)(None, tempered)
        return torch.log_softmax(tempered, -1)

    def draw(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[dict]],
        *,
        max_new_tokens: int,
        seed: int,
        batch_size: int,
    ) -> list[Sample]:
        """One response for each prompt (messages), as token ids."""
        how = {"max_new_tokens": max_new_tokens, "temperature": self.temperature, "seed": seed}
        with _nucleus(model, self.top_p):
            return sample(model, tokenizer, list(prompts), batch_size=batch_size, **how)


@contextmanager
def _nucleus(model: PreTrainedModel, top_p: float) -> Iterator[None]:
    """A context in which `generate` takes this top-p, where its caller names none."""
    config = model.generation_config
    before, config.top_p = config.top_p, top_p
    try:
        yield
    finally:
        config.top_p = before


def next_tokens(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi of every token of the vocabulary before each response token, row by row: (tokens, vocabulary)."""
    logits = model.get_output_embeddings()(response_states(trunk_of(model), batch))
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def next_tokens_of_all(model: PreTrainedModel, batch: Batch, size: int) -> torch.Tensor:
    """`next_tokens`, `size` rows a pass."""
    return torch.cat([next_tokens(model, part) for part in pieces(batch, size)])


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of `size` rows."""
    for start in range(0, len(batch["input_ids"]), size):
        yield rows_of(batch, slice(start, start + size))


def said(log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """log pi of the response tokens themselves from `next_tokens`: (rows, seq - 1), 0 off the response."""
    ids = batch["input_ids"][:, 1:][batch["completion_mask"][:, 1:].bool()]
    return on_responses(log_probs.gather(-1, ids[:, None]).squeeze(-1), batch)


def kl(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """KL(q || p) in nats of each row, (tokens,), from (tokens, vocabulary); what q never draws adds nothing."""
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q - log_p), 0.0).sum(-1)
