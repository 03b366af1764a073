"""How responses are laid out for a forward pass: replies to one prompt may share it.

A plain row is a prompt and one response, so a pair computes its prompt twice. A shared row is a prompt followed by all
the responses to it. Each response token sees the prompt and what comes before it in its own response, at the position
that it would have in a row of its own. So both layouts give the same log-probs. What costs less is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]  # input_ids, attention_mask, completion_mask: (rows, seq), right-padded


@dataclass(frozen=True)
class Layout:
    """What the trunk of a model takes, and where in it each response token is predicted."""

    inputs: dict[str, torch.Tensor]  # arguments of the forward pass
    predicts: torch.Tensor  # (tokens,) places in the flattened hidden states, in the order of the batch's own mask


def layout(batch: Batch, model: PreTrainedModel) -> Layout:
    """The cheaper layout of a batch for this model."""
    plain = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    mask = batch["completion_mask"][:, 1:].bool()
    prompts = _by_prompt(batch)
    longest = max(len(prompt) + sum(map(len, replies.values())) for prompt, replies in prompts.items())
    width = model.config.hidden_size
    if _operations(len(prompts), longest, width) < _operations(*batch["input_ids"].shape, width):
        return _shared(prompts, longest, len(mask), model)
    places = torch.arange(mask.numel() + len(mask), device=mask.device).view(len(mask), -1)
    return Layout(plain, places[:, :-1][mask])


def _operations(rows: int, length: int, width: int) -> int:
    """Of a transformer's forward pass, up to a factor: its matrices cost 6 * width times what one attended key does.

    That is 24 width^2 a token (a block has 12 width^2 weights) over 4 width a key.
    """
    return rows * length * (6 * width + length)


def _by_prompt(batch: Batch) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """The different prompts of a batch; for each, by row, the response."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = {}
    lengths, responses = batch["attention_mask"].sum(1).tolist(), batch["completion_mask"].sum(1).tolist()
    for row, (ids, n, response) in enumerate(zip(batch["input_ids"].tolist(), lengths, responses, strict=True)):
        found.setdefault(tuple(ids[: n - response]), {})[row] = ids[n - response : n]
    return found


def _shared(
    prompts: dict[tuple[int, ...], dict[int, list[int]]], longest: int, rows: int, model: PreTrainedModel
) -> Layout:
    """One row for each prompt: the prompt, then every response to it."""
    ids, positions, owners = (torch.zeros(len(prompts), longest, dtype=torch.long) for _ in range(3))
    owners -= 1  # whose token it is: -1 nobody's (padding), 0 the prompt's, k the k-th response's
    predicts: list[Sequence[int]] = [[]] * rows
    for place, (prompt, replies) in enumerate(prompts.items()):
        end = start = len(prompt)
        for k, (row, reply) in enumerate(replies.items(), start=1):
            here, end = slice(end, end + len(reply)), end + len(reply)
            ids[place, here] = torch.tensor(reply, dtype=torch.long)
            positions[place, here] = torch.arange(start, start + len(reply))
            owners[place, here] = k
            first = place * longest
            predicts[row] = [first + start - 1, *range(first + here.start, first + end - 1)] if reply else []
        ids[place, :start] = torch.tensor(prompt, dtype=torch.long)
        positions[place, :start] = torch.arange(start)
        owners[place, :start] = 0
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": _seen(owners, model.dtype)}
    where = torch.tensor([place for some in predicts for place in some], dtype=torch.long)
    return Layout({name: t.to(model.device) for name, t in inputs.items()}, where.to(model.device))


def _seen(owners: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The attention mask, (rows, 1, length, length): 0 where a token sees another, else the dtype's least number.

    A token of the padding sees itself, so that no softmax is over nothing.
    """
    asking, asked = owners[:, :, None], owners[:, None, :]
    before = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
    seen = before & ((asked == 0) | (asked == asking)) & (asked >= 0) | torch.eye(owners.shape[1], dtype=torch.bool)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
