"""Attention: torch's fused one to train, sample and score; one that is written out where forward-mode AD needs it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

FUSED = "sdpa"
WRITTEN_OUT = "exact"  # the name under which transformers knows the function below


@contextmanager
def written_out(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model's attention is `exact_attention`."""
    before = model.config._attn_implementation
    model.config._attn_implementation = WRITTEN_OUT
    try:
        yield
    finally:
        model.config._attn_implementation = before


def exact_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling, masked) v, written out: forward-mode AD needs that.

    transformers' "eager" takes the softmax in float32 whatever the model's dtype, which costs float64 half
    its digits and makes NaN of left padding there; this takes it in the model's dtype, or float32 if that
    is less. query is (batch, heads, seq, head size); key and value may have fewer heads. Returns
    (batch, seq, heads, head size) and the attention weights.
    """
    if (groups := query.shape[1] // key.shape[1]) > 1:  # grouped-query attention
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    # `*` would make a tensor of the number, and send forward-mode AD through torch's slow path.
    scores = torch.ops.aten.mul.Scalar(query @ key.transpose(2, 3), scaling)
    weights = _softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), attention_mask).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _softmax(scores: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Over the last axis, where the mask is 0.

    torch's own takes exp of what is masked too, and an exp that underflows costs thirty times as much as another.
    """
    if attention_mask is None:
        return torch.softmax(scores, -1)
    hidden = attention_mask != 0
    largest = scores.detach().masked_fill(hidden, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    powers = (scores - largest).masked_fill(hidden, 0.0).exp().masked_fill(hidden, 0.0)
    return powers / powers.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)  # padding sees nothing


AttentionInterface.register(WRITTEN_OUT, exact_attention)
AttentionMaskInterface.register(WRITTEN_OUT, eager_mask)
