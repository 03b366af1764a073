"""Paper D's instrument: the gradient alignment G of a loss with the model's own final responses.

    v      = grad of the NLL of D', at the current parameters
    s[i,t] = grad log pi(y[i,t] | x[i], y[i,<t]) . v
    G(component) = v . grad L(component) = - sum_{(i,t) in component} c[i,t] * s[i,t]

(Eq. 3 of arXiv 2512.00778.) G > 0: a step of gradient descent on the component makes the final responses
more likely. One backward pass gives v and one forward-mode pass gives s for every token, so that G of any
component of any weighting, down to single pairs and tokens, is a masked sum. The obvious way needs a
backward pass per component. Forward-mode AD needs attention that is written out (`attention.exact_attention`).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from transformers import PreTrainedModel

from preflab.attention import written_out
from preflab.errors import BadInput
from preflab.hardware import precise
from preflab.likelihood import token_log_probs
from preflab.weightings import surrogate

Gradient = dict[str, torch.Tensor]  # by parameter name, each of its parameter's shape


def parameters_of(model: PreTrainedModel, containing: str = "") -> dict[str, torch.nn.Parameter]:
    """The trainable parameters: all, an adapter's, or those whose name contains a text (one layer's).

    Raises BadInput where there are none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad and containing in name}
    if not found:
        raise BadInput(f"parameters containing {containing!r}: none is trainable")
    return found


def nll_gradient(
    model: PreTrainedModel,
    batches: Iterable[dict[str, torch.Tensor]],
    parameters: Mapping[str, torch.nn.Parameter],
    reduction: str = "sum",
) -> Gradient:
    """v: gradient of the NLL of responses, averaged over them, accumulated in float32 or better.

    Args:
        batches: input_ids, attention_mask, completion_mask, each (n, seq); their responses are D'.
        reduction: "sum" takes -log pi(y'|x') of a response, as the paper's formula prints it; "mean"
            divides by its number of tokens, as the group's earlier code does.
    """
    total: Gradient = {}
    responses = 0
    for batch in batches:
        nll = _nll(model, batch, reduction)
        _accumulate(total, nll.sum(), parameters)
        responses += len(nll)
    if not responses:
        raise BadInput("final responses: none given, expected at least one")
    return {name: g / responses for name, g in total.items()}


def _nll(model: PreTrainedModel, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    if reduction not in ("sum", "mean"):
        raise BadInput(f"reduction={reduction!r}: expected sum or mean")
    nll = -token_log_probs(model, batch).sum(1)
    return nll / batch["completion_mask"][:, 1:].sum(1) if reduction == "mean" else nll


def _accumulate(total: Gradient, loss: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    for name, g in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        total[name] = total[name] + g if name in total else g


def loss_gradient(
    model: PreTrainedModel,
    batches: Iterable[tuple[dict[str, torch.Tensor], torch.Tensor]],
    parameters: Mapping[str, torch.nn.Parameter],
    n: int,
) -> Gradient:
    """Gradient of the mean loss over n pairs (or samples), from (batch, its c) in pieces; c is (rows, seq - 1).

    Zero for no pieces: of a component that no token is in."""
    total = {k: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for k, p in parameters.items()}
    for batch, c in batches:
        _accumulate(total, surrogate(c, token_log_probs(model, batch)) / n, parameters)
    return total


@torch.no_grad()
def token_alignment(model: PreTrainedModel, batch: dict[str, torch.Tensor], v: Gradient) -> torch.Tensor:
    """s: the derivative of every response token's log-prob along v, in one forward-mode pass.

    (n, seq - 1), zero off the response. Its memory is that of a forward pass: give it as many sequences
    at once as fit, and s of all is the concatenation.
    """
    parameters = dict(model.named_parameters())
    # A tensor without a tangent meets one with it on torch's slow path; rotary frequencies would, in every layer.
    frequencies = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    with forward_ad.dual_level(), written_out(model):
        moving = {n: forward_ad.make_dual(parameters[n].detach(), g.to(parameters[n].dtype)) for n, g in v.items()}
        moving |= {n: forward_ad.make_dual(b, torch.zeros_like(b)) for n, b in frequencies.items()}
        moving = {f"model.{name}": dual for name, dual in moving.items()}
        return forward_ad.unpack_dual(functional_call(_Scored(model), moving, (batch,))).tangent


class _Scored(torch.nn.Module):
    """`token_log_probs` as a module, so that `functional_call` can replace the parameters of its model."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return token_log_probs(self.model, batch)


def alignment(c: torch.Tensor, s: torch.Tensor, components: Mapping[str, torch.Tensor], n: int) -> dict[str, float]:
    """G of each component of the mean loss over n pairs (or samples): - sum(mask * c * s) / n, in float64.

    c and s are (rows, seq - 1), as is each component's mask. Components that split the tokens add up.
    """
    product = -(precise(c) * precise(s)) / n
    return {name: float((product * mask.to(product.device)).sum()) for name, mask in components.items()}


def dot(a: Gradient, b: Gradient) -> float:
    """Inner product over all parameters, in float64."""
    return float(sum((precise(a[name]) * precise(b[name])).sum() for name in a))


def by_layer(a: Gradient, b: Gradient) -> dict[str, float]:
    """`dot`, split by where the parameters are: embedding, each layer, head (with the last norm). Adds up to it."""
    parts: dict[str, list[str]] = {}
    for name in a:
        number = re.search(r"\.layers\.(\d+)\.", name)
        place = (
            f"layer {number[1]}" if number else "embedding" if "embed_" in name and "embed_out" not in name else "head"
        )
        parts.setdefault(place, []).append(name)
    return {place: dot({n: a[n] for n in names}, b) for place, names in parts.items()}


def cosine(a: Gradient, b: Gradient) -> float:
    """dot / (|a| |b|); NaN where one is zero. In many dimensions near zero by default: compare it with
    the cosine of two halves of the same data."""
    norm = (dot(a, a) * dot(b, b)) ** 0.5
    return dot(a, b) / norm if norm else float("nan")


@torch.no_grad()
def mean_nll(model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], reduction: str = "sum") -> float:
    """NLL of responses, averaged over them in float64: what G predicts the change of."""
    nll = torch.cat([precise(_nll(model, batch, reduction)) for batch in batches])
    return float(nll.mean())
