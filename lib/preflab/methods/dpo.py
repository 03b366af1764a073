"""DPO."""

import torch
import torch.nn.functional as F

from preflab.methods.method import PairMethod, Weighted
from preflab.settings import Positive, settings


@settings
class DPO(PairMethod):
    """DPO (Eq. 7 of arXiv:2305.18290; section 3.1 of paper D): +w on y+, -w on y-.

        Delta = log pi(y+)/pi_ref(y+) - log pi(y-)/pi_ref(y-),   loss = -log sigmoid(beta * Delta)
        w = beta * sigmoid(-beta * Delta)

    Margins are beta * Delta.
    """

    beta: Positive = 0.1  # strength of the pull to the reference

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        chosen, rejected = log_ratios.detach().chunk(2)
        margins = self.beta * (chosen - rejected)
        w = self.beta * torch.sigmoid(-margins)
        c = torch.cat([w, -w])[:, None] * completion_mask
        return Weighted(c, -F.logsigmoid(margins), margins)
