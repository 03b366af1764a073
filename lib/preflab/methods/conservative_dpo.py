"""Conservative DPO, which is called cDPO elsewhere."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from preflab.methods.dpo import DPO
from preflab.methods.method import PairMethod, Weighted, sides
from preflab.settings import Positive, settings


@settings
class ConservativeDPO(PairMethod):
    """Conservative DPO (E. Mitchell, A note on DPO with noisy preferences, 2023); `smoothing`: rate of wrong labels.

        loss = -(1 - smoothing) log sigmoid(beta * Delta) - smoothing log sigmoid(-beta * Delta)
        w = beta * (sigmoid(-beta * Delta) - smoothing)

    The weight turns round where the model is surer than 1 - smoothing.
    """

    smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    beta: Positive = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        c, _, margins = DPO(self.beta).weigh(log_ratios, completion_mask)
        loss = -(1 - self.smoothing) * F.logsigmoid(margins) - self.smoothing * F.logsigmoid(-margins)
        return Weighted(c - self.beta * self.smoothing * sides(completion_mask).to(c), loss, margins)
