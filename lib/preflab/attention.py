"""Attention that is written out: forward-mode AD needs that."""

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

ATTENTION = "exact"  # the name under which transformers knows the function below


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
    if attention_mask is not None:  # 0 where attention is allowed
        scores = scores.masked_fill(attention_mask != 0, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, exact_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
