"""What a method is: a small frozen value of its own arguments that says c.

A method on pairs says c from log-ratios. A method on samples turns scores into advantages, and says c from them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field

from preflab.settings import NotNegative, Positive, settings


class Weighted(NamedTuple):
    """What a method makes of n pairs."""

    c: torch.Tensor  # (2n, seq - 1), detached; chosen rows above rejected ones (TRL's order)
    loss: torch.Tensor  # (n,)
    margins: torch.Tensor  # (n,), above 0 if the pair is ordered right


class PairMethod:
    """A method that learns from pairs."""

    reference: ClassVar[bool] = True  # False: `weigh` takes log-probs in the place of log-ratios

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        """c, loss and margins of n pairs.

        Args:
            log_ratios: log pi/pi_ref summed over a response, (2n,), chosen above rejected.
            completion_mask: 1 on response tokens, (2n, seq - 1).
        """
        raise NotImplementedError


def sides(completion_mask: torch.Tensor) -> torch.Tensor:
    """+1 on the tokens of y+, -1 on those of y-: (2n, seq - 1)."""
    chosen, rejected = completion_mask.chunk(2)
    return torch.cat([chosen, -rejected])


def lengths(completion_mask: torch.Tensor) -> torch.Tensor:
    """Tokens of each response, (2n,)."""
    return completion_mask.sum(1)


@dataclass(frozen=True)
class Scored:
    """n samples with everything that advantages are made of; tensors are (n, seq - 1) if not said otherwise."""

    scores: torch.Tensor  # (n,), the reward before KL and penalty
    finished: torch.Tensor  # (n,), whether a response ended in <eos>
    log_ratios: torch.Tensor  # log pi/pi_ref of every response token
    values: torch.Tensor  # zeros for a method without values
    mask: torch.Tensor  # 1 on response tokens


@settings
class SampleMethod:
    """A method that learns from its own samples: what PPO, GRPO and RLOO share."""

    has_values: ClassVar[bool] = False

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    kl_coefficient: NotNegative = 0.05  # of the KL to the SFT model
    kl_target: Positive | None = None  # nats a response: the coefficient adapts to it; None: it stays
    missing_eos_penalty: NotNegative = 1.0

    @property
    def samples_a_prompt(self) -> int:
        return 1

    def advantages(self, scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and, for the values, returns: each (n, seq - 1)."""
        raise NotImplementedError

    def kl_in_loss(
        self, log_probs: torch.Tensor, reference_log_probs: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """What a KL penalty in the loss adds to c, (n, seq - 1): zeros if the penalty is in the reward."""
        return torch.zeros_like(log_probs)

    def clipped_weighting(
        self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """PPO's clipped surrogate (Eq. 7 of arXiv:1707.06347; section 3.2 of paper D):

            r = pi / pi_old,   loss = -min(r * A, clamp(r, 1 - clip, 1 + clip) * A)
            c = r * A where the clip leaves the gradient, else 0

        The clip takes the gradient of a token whose ratio has already gone where its advantage wants it.
        All tensors are (n, seq - 1). Returns c, detached, the loss and where the clip was at work.
        """
        ratio = torch.exp(log_probs.detach() - old_log_probs)
        clipped = ((advantages > 0) & (ratio > 1 + self.clip)) | ((advantages < 0) & (ratio < 1 - self.clip))
        clipped = clipped & mask.bool()
        c = ratio * advantages * mask * ~clipped
        bounded = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = -torch.minimum(ratio * advantages, bounded * advantages) * mask
        return c, loss, clipped

    def penalised(self, scored: Scored) -> torch.Tensor:
        """Scores, less the penalty of a response that has no end: (n,)."""
        return scored.scores - self.missing_eos_penalty * (~scored.finished).to(scored.scores)
