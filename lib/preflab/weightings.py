"""The one idea: a preference loss is a token weighting.

    grad L = - sum_{i,t} c[i,t] * grad log pi(y[i,t] | x[i], y[i,<t])        (c detached)

A method is its rule for c (`preflab.methods`). c > 0 is positive learning, c < 0 negative learning, |c| the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def sft_weighting(completion_mask: torch.Tensor) -> torch.Tensor:
    """SFT: +1 on every response token."""
    return completion_mask.to(torch.get_default_dtype())


def surrogate(c: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """- sum_{i,t} sg(c[i,t]) log pi[i,t]: its gradient is the method's. A scalar."""
    return -(c.detach() * log_probs).sum()


def sign_components(c: torch.Tensor) -> dict[str, torch.Tensor]:
    """The whole, positive learning (c > 0) and negative learning (c < 0), as masks."""
    return {"whole": torch.ones_like(c, dtype=torch.bool), "positive": c > 0, "negative": c < 0}


def tertile_components(weight: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Bottom, middle and top third by weight of what the mask holds: masks of equal sizes up to one.

    `weight` and `mask` have one shape: DPO's w and which pairs there are, or PPO's |A| and which tokens.
    Ties go by position.
    """
    order = torch.where(mask, weight, torch.inf).flatten().argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    third = (rank * 3 // mask.sum().clamp(min=1)).view_as(mask)
    return {name: mask & (third == i) for i, name in enumerate(("bottom", "middle", "top"))}


@dataclass(frozen=True)
class Weights:
    """The weighting of one batch, as a rule that changes it sees it."""

    c: torch.Tensor  # (rows, seq - 1); of n pairs, chosen rows above rejected ones
    weight: torch.Tensor  # |c| of each unit: of a pair, (n,); of a sample's token, (rows, seq - 1)
    held: torch.Tensor  # bool, like weight: which units there are
    progress: float  # share of training done, 0 <= progress < 1
    live: Sequence[float] | None = None  # G of positive and negative learning now, where training looks at it

    @classmethod
    def of_pairs(cls, c: torch.Tensor, progress: float, live: Sequence[float] | None = None) -> "Weights":
        """The weight of a pair is the mean of its rows' |c|: in DPO both are w."""
        w = torch.stack(c.abs().amax(1).chunk(2)).mean(0)
        return cls(c, w, torch.ones_like(w, dtype=torch.bool), progress, live)

    @classmethod
    def of_tokens(
        cls, c: torch.Tensor, mask: torch.Tensor, progress: float, live: Sequence[float] | None = None
    ) -> "Weights":
        """Of samples."""
        return cls(c, c.abs(), mask.bool(), progress, live)

    def tertile(self, which: str) -> torch.Tensor:
        """The bottom, middle or top third of the units by weight, as a mask of tokens, (rows, seq - 1)."""
        unit = tertile_components(self.weight, self.held)[which]
        return unit if unit.dim() == 2 else unit.repeat(2)[:, None].expand_as(self.c)

    @property
    def mean(self) -> torch.Tensor:
        """Mean weight of a unit."""
        return self.weight[self.held].mean()
