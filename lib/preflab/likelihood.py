"""Tokens to log-probabilities: encoding, batching, log pi(y_t | x, y_<t), reference log-probs.

A *completion mask* m (batch, seq) is 1 on response tokens. Everything per token below is shifted by
one: entry [i, t] speaks of token t + 1, shape (batch, seq - 1), and is 0 off the response.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preflab.errors import BadInput


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


def collate(rows: list[dict], pad_token_id: int, device: torch.device) -> dict[str, torch.Tensor]:
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


def token_log_probs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log pi(y_t | x, y_<t) on response tokens, 0 elsewhere: (batch, seq - 1), at least float32."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return completion_log_probs(logits, batch)


def completion_log_probs(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`token_log_probs` from the model's logits, (batch, seq, vocab)."""
    chosen = _log_softmax(logits).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return chosen.masked_fill(batch["completion_mask"][:, 1:] == 0, 0.0)


def completion_entropy(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Entropy in nats of the distribution that each response token was drawn from, (batch, seq - 1)."""
    log_probs = _log_softmax(logits)
    return -(log_probs.exp() * log_probs).sum(-1) * batch["completion_mask"][:, 1:]


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


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
    for some in _chunks(rows, batch_size):
        batch = collate(some, pad_token_id, model.device)
        log_probs = token_log_probs(model, batch).sum(1)
        sums.append(torch.stack(log_probs.chunk(2)).cpu().double())  # (2, n)
        counts.append(torch.stack(batch["completion_mask"][:, 1:].sum(1).chunk(2)).cpu().double())
    model.train(was_training)
    (chosen, rejected), (chosen_tokens, rejected_tokens) = torch.cat(sums, 1), torch.cat(counts, 1)
    return PairLogProbs(chosen, rejected, chosen_tokens, rejected_tokens)


def _chunks(rows: list, size: int) -> Iterator[list]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
