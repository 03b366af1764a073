"""RLOO."""

import torch

from preflab.methods.group import GroupMethod
from preflab.methods.method import Scored
from preflab.settings import settings


@settings
class RLOO(GroupMethod):
    """RLOO (Eq. 7 of arXiv:2402.14740): the score of a response, less the mean score of the others in its group.

    The KL of the whole response is in its score.
    """

    def advantages(self, scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.penalised(scored) - self.kl_coefficient * scored.log_ratios.sum(1)
        above, _ = self.above_the_group(scores)
        left_out = (above * self.group_size / (self.group_size - 1)).flatten()
        return left_out[:, None] * scored.mask, scored.values
