"""Ablations and schedules of a weighting: what becomes of c if a part is taken away, replaced or scheduled.

A rule is a small frozen value of its own arguments. Called with `Weights`, it returns a new c of the same shape. Its
name in a row of parameters (`variants` of notebook 03) is its name in the table RULES at the end. To add an ablation,
write a class and a line of the table. No trainer knows of either.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from preflab.errors import BadInput
from preflab.settings import Between, NotNegative, Positive, Proportion, settings
from preflab.weightings import Weights

Tertile = Literal["bottom", "middle", "top"]
Part = Literal["positive", "negative"]
Share = Annotated[float, Field(gt=0, le=1)]


class Rule:
    """What a trainer calls."""

    looks: ClassVar[bool] = False  # at live G

    def __call__(self, w: Weights) -> torch.Tensor:
        """The new c, (rows, seq - 1)."""
        raise NotImplementedError


@settings
class Plain(Rule):
    """The method as it is."""

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c


@settings
class WithoutNegative(Rule):
    """Positive learning alone."""

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c.clamp(min=0)


@settings
class WithoutPositive(Rule):
    """Negative learning alone."""

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c.clamp(max=0)


@settings
class WhileSign(Rule):
    """A dose of one part goes for as long as the live G of that part has a sign: c of the part becomes (1 - dose) c.

    It needs `live_every`: see `preflab.live`.
    """

    looks: ClassVar[bool] = True
    part: Part
    sign: Part = "negative"  # of G
    dose: Share = 1.0

    def __call__(self, w: Weights) -> torch.Tensor:
        g = dict(zip(("positive", "negative"), seen(w, "while_sign"), strict=True))[self.part]
        if (g < 0) != (self.sign == "negative"):
            return w.c
        gone = w.c > 0 if self.part == "positive" else w.c < 0
        return torch.where(gone, (1 - self.dose) * w.c, w.c)


@settings
class EqualWeights(Rule):
    """No reweighting: the sign stays, |c| becomes one size.

    Without a size, it is the mean weight of the batch, which changes in training as the real weights do. DPO's shrinks.
    """

    size: Positive | None = None

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c.sign() * (w.mean if self.size is None else self.size)


@settings
class OnlyTertile(Rule):
    """One third of the pairs (or tokens) by weight."""

    which: Tertile

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c * w.tertile(self.which)


@settings
class WithoutTertile(Rule):
    """All but one third of the pairs (or tokens) by weight."""

    which: Tertile

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c * ~w.tertile(self.which)


@settings
class PositiveThenNegative(Rule):
    """A hard switch: positive learning alone, then negative learning alone."""

    at: Between = 0.5  # share of training

    def __call__(self, w: Weights) -> torch.Tensor:
        return w.c.clamp(min=0) if w.progress < self.at else w.c.clamp(max=0)


@settings
class Coordinated(Rule):
    """cDPO and cPPO (paper D, App. E; the schedule is ours): weight moves from positive to negative learning.

    lambda, the share of negative learning, goes from start to end: "linear", "cosine", or by a "step" half-way. This is
    not conservative DPO.
    """

    start: Proportion = 0.25
    end: Proportion = 0.75
    shape: Literal["linear", "cosine", "step"] = "linear"
    total: Positive = 2.0

    def __call__(self, w: Weights) -> torch.Tensor:
        t = w.progress
        along = {"linear": t, "cosine": (1 - math.cos(math.pi * t)) / 2, "step": float(t >= 0.5)}
        return shared(w.c, self.start + (self.end - self.start) * along[self.shape], self.total)


@settings
class Adaptive(Rule):
    """Coordination by live G (the question that paper D leaves open; the rule is ours):

        lambda = 1/2 + gain/2 * (G- - G+) / (|G-| + |G+|)

    With gain > 0 the part that pulls harder towards the (proxy of the) final responses gets more weight, with gain < 0
    the other part. It needs `live_every`: see `preflab.live`.
    """

    looks: ClassVar[bool] = True
    gain: Annotated[float, Field(ge=-1, le=1)]
    total: Positive = 2.0

    def __call__(self, w: Weights) -> torch.Tensor:
        up, down = seen(w, "adaptive")
        size = abs(up) + abs(down)
        return shared(w.c, 0.5 + 0.5 * self.gain * (down - up) / size if size else 0.5, self.total)


@settings
class Thresholded(Rule):
    """hPPO (paper D, section 4) with threshold tau on |c|. No source says which of three it is:

    "keep_above"           keeps every token with |A| >= tau
    "keep_negative_above"  keeps every positive token, and negative ones with |A| >= tau
    "drop_above"           keeps every token with |A| <= tau: the heaviest go
    """

    tau: NotNegative
    reading: Literal["keep_above", "keep_negative_above", "drop_above"]

    def __call__(self, w: Weights) -> torch.Tensor:
        size = w.c.abs()
        kept = {
            "keep_above": size >= self.tau,
            "keep_negative_above": (w.c > 0) | (size >= self.tau),
            "drop_above": size <= self.tau,
        }
        return w.c * kept[self.reading]


@dataclass(frozen=True)
class Until(Rule):
    """A rule for the first share of training; the plain method after it."""

    share: float
    rule: Rule

    def __call__(self, w: Weights) -> torch.Tensor:
        return self.rule(w) if w.progress < self.share else w.c


@dataclass(frozen=True)
class SameTotal(Rule):
    """What a rule leaves, scaled so that the sum of |c| in each batch is the plain method's (a control of size)."""

    rule: Rule

    def __call__(self, w: Weights) -> torch.Tensor:
        c = self.rule(w)
        left = c.abs().sum()
        return c * (w.c.abs().sum() / left) if left else c


def seen(w: Weights, rule: str) -> Sequence[float]:
    """Live G of positive and negative learning. Raises BadInput where training does not look at it."""
    if w.live is None:
        raise BadInput(f"rule {rule}: expected live_every beside it, the updates between two looks at G")
    return w.live


def shared(c: torch.Tensor, share: float, total: float) -> torch.Tensor:
    """c+ * total * (1 - share) and c- * total * share: at share = 1/2 and total = 2 the plain method."""
    return total * torch.where(c > 0, (1 - share) * c, share * c)


RULES: dict[str, type[Rule]] = {
    "plain": Plain,
    "without_negative": WithoutNegative,
    "without_positive": WithoutPositive,
    "while_sign": WhileSign,
    "equal_weights": EqualWeights,
    "only_tertile": OnlyTertile,
    "without_tertile": WithoutTertile,
    "positive_then_negative": PositiveThenNegative,
    "coordinated": Coordinated,
    "adaptive": Adaptive,
    "thresholded": Thresholded,
}


def try_out(rule: Rule) -> None:
    """Call a rule on one pair, early and late in training.

    Raises BadInput if it fails, or returns a c of another shape: better now than after an hour of training.
    """
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
