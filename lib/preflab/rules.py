"""Ablations of a weighting: what becomes of c when a part is taken away, replaced or scheduled.

A rule is one short function from `Weights` to a new c, and its name in a YAML row (`variants` of notebook 03)
is its function's name here. To add an ablation, add a function and a row; no trainer knows of either. What a
rule's arguments are, its signature says.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from preflab.alignment import tertile_components
from preflab.errors import BadInput


@dataclass(frozen=True)
class Weights:
    """The weighting of one batch of updates, as a rule sees it."""

    c: torch.Tensor  # (rows, seq - 1); DPO has n chosen rows above n rejected ones
    weight: torch.Tensor  # |c| of each unit: of a pair, (n,), in DPO; of a token, (rows, seq - 1), in PPO
    held: torch.Tensor  # bool, like weight: which units there are
    progress: float  # share of training done, 0 <= progress < 1

    @classmethod
    def of_pairs(cls, c: torch.Tensor, progress: float) -> "Weights":
        """DPO's: the weight of a pair is its chosen row's c."""
        w = c.amax(1)[: len(c) // 2]
        return cls(c, w, torch.ones_like(w, dtype=torch.bool), progress)

    @classmethod
    def of_tokens(cls, c: torch.Tensor, mask: torch.Tensor, progress: float) -> "Weights":
        """PPO's."""
        return cls(c, c.abs(), mask.bool(), progress)

    def tertile(self, which: str) -> torch.Tensor:
        """The bottom, middle or top third of the units by weight, as a mask of tokens, (rows, seq - 1)."""
        unit = tertile_components(self.weight, self.held)[which]
        return unit if unit.dim() == 2 else unit.repeat(2)[:, None].expand_as(self.c)

    @property
    def mean(self) -> torch.Tensor:
        """Mean weight of a unit."""
        return self.weight[self.held].mean()


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

    c+ is scaled by total * (1 - lambda) and c- by total * lambda, with lambda going from start to end: "linear",
    "cosine", or by a "step" half-way. At lambda = 1/2 and total = 2 it is the plain method. Not conservative DPO.
    """
    t = w.progress
    along = {"linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2, "step": float(t >= 0.5)}
    if shape not in along:
        raise BadInput(f"rule coordinated: shape={shape!r}, expected one of: {', '.join(along)}")
    share = start + (end - start) * along[shape]
    return total * torch.where(w.c > 0, (1 - share) * w.c, share * w.c)


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


def resolve_rule(name: str, arguments: dict, until: float) -> Rule:
    """The rule of a YAML row; after a share `until` of training it is `plain`. Raises BadInput."""
    offered = [n for n, f in globals().items() if _is_rule(f)]
    if name not in offered:
        raise BadInput(f"rule={name!r}: no such rule, expected one of: {', '.join(sorted(offered))}")
    function = globals()[name]
    names = list(inspect.signature(function).parameters)[1:]
    if unknown := sorted(set(arguments) - set(names)):
        raise BadInput(
            f"rule {name}: {unknown[0]}={arguments[unknown[0]]!r}: no such argument, expected {names or 'none'}"
        )
    try:
        inspect.signature(function).bind(None, **arguments)
    except TypeError as error:
        raise BadInput(f"rule {name}: {error}") from None
    return lambda w: function(w, **arguments) if w.progress < until else w.c


def _is_rule(thing: object) -> bool:
    if not inspect.isfunction(thing):
        return False
    first = next(iter(inspect.signature(thing).parameters.values()), None)
    return first is not None and first.annotation is Weights


def rule_key(name: str, arguments: dict, until: float) -> dict:
    """What identifies a rule in cache keys: its own source, so that a new rule retrains nothing but itself."""
    return {"rule": inspect.getsource(globals()[name]), "arguments": arguments, "until": until}
