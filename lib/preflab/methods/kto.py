"""KTO on pairs."""

import torch

from preflab.methods.method import PairMethod, Weighted, sides
from preflab.settings import Positive, settings


@settings
class KTO(PairMethod):
    """KTO (Eq. 7 and 8 of arXiv:2402.01306) on pairs: y+ is desirable, y- is not, lambda_D = lambda_U = 1.

        l = log pi/pi_ref(y),   z+ = max(0, mean of l(y-)),   z- = max(0, mean of l(y+))   over the batch
        loss = [1 - sigmoid(beta (l(y+) - z+))] + [1 - sigmoid(beta (z- - l(y-)))]
        c = +-beta * sigmoid'(beta (l - z))

    z is the reference point, an estimate of the KL divergence from the reference. The paper has one z for both sides
    and estimates it from responses to other prompts of the micro-batch. On pairs, each side takes the other side's
    responses, as TRL's former loss `kto_pair` did. No gradient goes through z. It is a mean over a micro-batch, so the
    size of the micro-batch counts. A pair's loss is the sum over its two responses: twice TRL's mean over responses.
    Margins are beta * Delta.
    """

    beta: Positive = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        chosen, rejected = log_ratios.detach().chunk(2)
        value_of_chosen = torch.sigmoid(self.beta * (chosen - reference_point(rejected)))
        value_of_rejected = torch.sigmoid(self.beta * (reference_point(chosen) - rejected))
        values = torch.cat([value_of_chosen, value_of_rejected])
        c = (self.beta * values * (1 - values))[:, None] * sides(completion_mask)
        loss = (1 - value_of_chosen) + (1 - value_of_rejected)
        return Weighted(c, loss, self.beta * (chosen - rejected))


def reference_point(log_ratios: torch.Tensor) -> torch.Tensor:
    """z: the batch's mean log-ratio, at least 0, since a KL divergence is. (n,) to a scalar."""
    return log_ratios.mean().clamp(min=0)
