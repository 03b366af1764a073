"""Ablations of a weighting: what becomes of c when a part is taken away, replaced or scheduled.

A rule is one short function from `Weights` to a new c, and its name in a YAML row (`variants` of notebook 03)
is its function's name here. To add an ablation, add a function and a row; no trainer knows of either. What a
rule's arguments are, its signature says.
"""

import inspect
import math
from collections.abc import Callable

import torch

from preflab.errors import BadInput
from preflab.weightings import Weights

Rule = Callable[[Weights], torch.Tensor]


def plain(w: Weights) -> torch.Tensor:
    return w.c


def without_negative(w: Weights) -> torch.Tensor:
    return w.c.clamp(min=0)


def without_positive(w: Weights) -> torch.Tensor:
    return w.c.clamp(max=0)


def equal_weights(w: Weights) -> torch.Tensor:
    """No reweighting: the sign stays, |c| becomes the mean weight of the batch."""
    return w.c.sign() * w.mean


def only_tertile(w: Weights, which: str) -> torch.Tensor:
    return w.c * w.tertile(which)


def without_tertile(w: Weights, which: str) -> torch.Tensor:
    return w.c * ~w.tertile(which)


def positive_then_negative(w: Weights, at: float = 0.5) -> torch.Tensor:
    """Hard switch: positive learning alone, then negative learning alone."""
    return w.c.clamp(min=0) if w.progress < at else w.c.clamp(max=0)


def coordinated(
    w: Weights, start: float = 0.25, end: float = 0.75, shape: str = "linear", total: float = 2.0
) -> torch.Tensor:
    """cDPO and cPPO (paper D, App. E; the schedule is ours): weight moves from positive to negative learning.

    lambda, the share of negative learning, goes from start to end: "linear", "cosine", or by a "step" half-way. Not
    conservative DPO.
    """
    t = w.progress
    along = {"linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2, "step": float(t >= 0.5)}
    if shape not in along:
        raise BadInput(f"rule coordinated: shape={shape!r}, expected one of: {', '.join(along)}")
    return shared(w.c, start + (end - start) * along[shape], total)


def adaptive(w: Weights, gain: float, total: float = 2.0) -> torch.Tensor:
    """Coordination by live G (the question that paper D leaves open; the rule is ours):

        lambda = 1/2 + gain/2 * (G- - G+) / (|G-| + |G+|)

    With gain > 0 the part that pulls harder towards the (proxy of the) final responses gets more weight, with gain < 0
    the other. Needs `live_every`: see `preflab.live`.
    """
    if w.live is None:
        raise BadInput("rule adaptive: expected live_every beside it, after how many updates to look at G again")
    up, down = w.live
    size = abs(up) + abs(down)
    return shared(w.c, 0.5 + 0.5 * gain * (down - up) / size if size else 0.5, total)


def shared(c: torch.Tensor, share: float, total: float) -> torch.Tensor:
    """c+ * total * (1 - share) and c- * total * share: at share = 1/2 and total = 2 the plain method."""
    return total * torch.where(c > 0, (1 - share) * c, share * c)


def thresholded(w: Weights, tau: float, reading: str) -> torch.Tensor:
    """hPPO (paper D, section 4) with threshold tau on |c|. No source says which of three it is:

    "keep_above"           every token with |A| >= tau
    "keep_negative_above"  every positive token, and negative ones with |A| >= tau
    "drop_above"           every token with |A| <= tau: the heaviest go
    """
    size = w.c.abs()
    kept = {
        "keep_above": size >= tau,
        "keep_negative_above": (w.c > 0) | (size >= tau),
        "drop_above": size <= tau,
    }
    if reading not in kept:
        raise BadInput(f"rule thresholded: reading={reading!r}, expected one of: {', '.join(kept)}")
    return w.c * kept[reading]


def argument_names(name: str) -> list[str]:
    """What a rule takes. Raises BadInput for one that does not exist."""
    offered = [n for n, f in globals().items() if _is_rule(f)]
    if name not in offered:
        raise BadInput(f"rule={name!r}: no such rule, expected one of: {', '.join(sorted(offered))}")
    return list(inspect.signature(globals()[name]).parameters)[1:]


def resolve_rule(name: str, arguments: dict, until: float) -> Rule:
    """The rule of a YAML row; after a share `until` of training it is `plain`. Raises BadInput."""
    names, function = argument_names(name), globals()[name]
    if unknown := sorted(set(arguments) - set(names)):
        raise BadInput(
            f"rule {name}: {unknown[0]}={arguments[unknown[0]]!r}: no such argument, expected {names or 'none'}"
        )
    try:
        inspect.signature(function).bind(None, **arguments)
    except TypeError as error:
        raise BadInput(f"rule {name}: {error}") from None
    return lambda w: function(w, **arguments) if w.progress < until else w.c


def try_out(rule: Rule) -> None:
    """One pair, early and late in training. Raises BadInput where the rule fails, which its arguments may be why."""
    c = torch.tensor([[0.5, 0.5], [-0.5, -0.5]])
    for progress in (0.0, 0.9):
        try:
            made = rule(Weights(c, c[:1, 0], torch.ones(1, dtype=torch.bool), progress, live=(0.1, 0.3)))
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"the rule fails on an example: {type(error).__name__}: {error}") from None
        if made.shape != c.shape:
            raise BadInput(f"the rule makes c {tuple(made.shape)} of c {tuple(c.shape)}, expected the same shape")


def _is_rule(thing: object) -> bool:
    if not inspect.isfunction(thing):
        return False
    first = next(iter(inspect.signature(thing).parameters.values()), None)
    return first is not None and first.annotation is Weights


def rule_key(name: str, arguments: dict, until: float) -> dict:
    """What identifies a rule in cache keys: its own source, so that a new rule retrains nothing but itself."""
    source = inspect.getsource(globals()[name]) + inspect.getsource(shared)
    return {"rule": source, "arguments": arguments, "until": until}
