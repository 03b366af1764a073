"""SimPO."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from preflab.methods.method import PairMethod, Weighted, lengths, sides
from preflab.settings import NotNegative, Positive, settings


@settings
class SimPO(PairMethod):
    """SimPO (Eq. 6 of arXiv:2405.14734), which has no reference.

        m = beta * (log pi(y+) / |y+| - log pi(y-) / |y-|) - margin,   loss = -log sigmoid(m)
        c = +-beta * sigmoid(-m) / |y|

    Margins are m.
    """

    reference: ClassVar[bool] = False

    margin: NotNegative
    beta: Positive = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        tokens = lengths(completion_mask)
        chosen, rejected = (log_ratios.detach() / tokens).chunk(2)
        m = self.beta * (chosen - rejected) - self.margin
        c = (self.beta * torch.sigmoid(-m).repeat(2) / tokens)[:, None] * sides(completion_mask)
        return Weighted(c, -F.logsigmoid(m), m)
