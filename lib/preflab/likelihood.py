"""Tokens to log-probabilities: encoding, batching, log pi(y_t | x, y_<t), reference log-probs.

A *completion mask* m (batch, seq) is 1 on response tokens. Everything per token below is shifted by
one: entry [i, t] speaks of token t + 1, shape (batch, seq - 1), and is 0 off the response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preflab.errors import BadInput
from preflab.layout import Batch, layout


def encode_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[dict], int]:
    """TRL's tokenization of preference pairs: rows with prompt_ids, chosen_ids, rejected_ids.

    The response starts where prompt and prompt+response diverge, as in TRL's DPOTrainer. A pair with
    a side over `max_length` tokens is left out rather than truncated: a cut response has another
    likelihood. Returns the rows and how many were left out. Raises BadInput when none is left.
    """

    def ids(messages: list[dict], **options) -> list[int]:
        return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]

    rows = []
    for pair in pairs:
        prompt = ids(pair["prompt"], add_generation_prompt=True)
        chosen, rejected = ids(pair["prompt"] + pair["chosen"]), ids(pair["prompt"] + pair["rejected"])
        if max(len(chosen), len(rejected)) > max_length:
            continue
        start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
        rows.append({"prompt_ids": prompt[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]})
    if not rows:
        raise BadInput(f"no pairs left: each of {len(pairs)} is longer than max_length={max_length} tokens")
    return rows, len(pairs) - len(rows)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def collate(rows: list[dict], pad_token_id: int, device: torch.device) -> Batch:
    """TRL's batch: n chosen rows above n rejected rows, right-padded. (2n, seq) input_ids,
    attention_mask, completion_mask."""
    batch = DataCollatorForPreference(pad_token_id)(rows)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def collate_responses(
    samples: Sequence[tuple[list[int], list[int]]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """(prompt ids, response ids) of n samples as a right-padded batch like that of `collate`: (n, seq)."""
    rows = [{"prompt_ids": prompt, "chosen_ids": response, "rejected_ids": []} for prompt, response in samples]
    batch = collate(rows, pad_token_id, device)
    return {name: tensor[: len(samples)] for name, tensor in batch.items()}


def token_log_probs(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi(y_t | x, y_<t) on response tokens, 0 elsewhere: (batch, seq - 1), at least float32."""
    return on_responses(states_log_probs(model, response_states(trunk_of(model), batch), batch), batch)


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head, adapters included."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


def response_states(trunk: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The last hidden states that predict response tokens: (tokens, width), row by row."""
    laid = layout(batch, trunk)
    hidden = trunk(**laid.inputs, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[laid.predicts]


def states_log_probs(model: PreTrainedModel, states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """log pi of every response token from the states that predict it, (tokens,)."""
    (log_probs,) = _from_logits(model, states, batch, _chosen)
    return log_probs


def states_log_probs_and_entropy(
    model: PreTrainedModel, states: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Beside it the entropy in nats of the distribution that each response token was drawn from: (tokens,) each."""
    return _from_logits(model, states, batch, _chosen, _entropy)


def on_responses(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A number for each response token, (tokens,), at its place in (batch, seq - 1); 0 elsewhere."""
    mask = batch["completion_mask"][:, 1:].bool()
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


LOGITS_AT_ONCE = 2**24  # 64 MB in float32; a real model's vocabulary makes of every token as many logits


def _from_logits(model: PreTrainedModel, states: torch.Tensor, batch: Batch, *read) -> tuple[torch.Tensor, ...]:
    """What some functions read off the log-softmax of the logits, chunk by chunk.

    More logits than LOGITS_AT_ONCE never exist at the same time: a backward pass computes those of a chunk again.
    """
    head = model.get_output_embeddings()
    chosen = batch["input_ids"][:, 1:][batch["completion_mask"][:, 1:].bool()]

    def of(some: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = head(some)
        log_probs = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return tuple(function(log_probs, tokens) for function in read)

    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(states) <= size:
        return of(states, chosen)
    again = torch.is_grad_enabled()
    parts = [
        checkpoint(of, some, tokens, use_reentrant=False) if again else of(some, tokens)
        for some, tokens in zip(states.split(size), chosen.split(size), strict=True)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _chosen(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def _entropy(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probs and token counts of both sides of n pairs, each (n,), on the CPU in float64."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor


@torch.no_grad()
def pair_log_probs(model: PreTrainedModel, rows: list[dict], pad_token_id: int, batch_size: int) -> PairLogProbs:
    """log pi(y+|x) and log pi(y-|x) for every pair: the reference's, or any checkpoint's."""
    was_training = model.training
    model.eval()
    sums, counts = [], []
    order = by_length(rows)
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[i] for i in order[start : start + batch_size]], pad_token_id, model.device)
        log_probs = token_log_probs(model, batch).sum(1)
        sums.append(torch.stack(log_probs.chunk(2)).cpu().double())  # (2, n)
        counts.append(torch.stack(batch["completion_mask"][:, 1:].sum(1).chunk(2)).cpu().double())
    model.train(was_training)
    back = torch.tensor(order).argsort()
    (chosen, rejected), (chosen_tokens, rejected_tokens) = torch.cat(sums, 1)[:, back], torch.cat(counts, 1)[:, back]
    return PairLogProbs(chosen, rejected, chosen_tokens, rejected_tokens)


def by_length(rows: Sequence[dict]) -> list[int]:
    """The order of encoded pairs from the shortest to the longest: batches of neighbours have little padding."""
    return sorted(range(len(rows)), key=lambda i: sum(len(ids) for ids in rows[i].values()))
