"""DPOP."""

import torch
import torch.nn.functional as F

from preflab.methods.method import PairMethod, Weighted
from preflab.settings import NotNegative, Positive, settings


@settings
class DPOP(PairMethod):
    """DPO-positive (arXiv:2402.13228): DPO with a price on a y+ that is less likely than under pi_ref.

        r = log pi(y)/pi_ref(y),   m = beta * [r(y+) - r(y-) - penalty * max(0, -r(y+))],   loss = -log sigmoid(m)
        w = beta * sigmoid(-m),   c(y+) = w * (1 + penalty) if r(y+) < 0 else w,   c(y-) = -w

    Margins are m. `penalty` is the paper's lambda. Where r(y+) is exactly 0, as in the first update, c(y+) = w.
    """

    beta: Positive = 0.1
    penalty: NotNegative = 5.0

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        chosen, rejected = log_ratios.detach().chunk(2)
        m = self.beta * (chosen - rejected - self.penalty * (-chosen).clamp(min=0))
        w = self.beta * torch.sigmoid(-m)
        c = torch.cat([w * (1 + self.penalty * (chosen < 0).to(w)), -w])[:, None] * completion_mask
        return Weighted(c, -F.logsigmoid(m), m)
