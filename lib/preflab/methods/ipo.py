"""IPO."""

import torch

from preflab.methods.method import PairMethod, Weighted, lengths, sides
from preflab.settings import Positive, settings


@settings
class IPO(PairMethod):
    """IPO (Eq. 17 of arXiv:2310.12036), its log-ratios averaged over tokens as in TRL.

        h = log pi/pi_ref(y+) / |y+| - log pi/pi_ref(y-) / |y-|,   loss = (h - 1 / (2 beta))^2
        c = +-2 (1 / (2 beta) - h) / |y|

    It asks for a margin and no more: past it the signs of c turn round. Margins are h.
    """

    beta: Positive = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        tokens = lengths(completion_mask)
        chosen, rejected = (log_ratios.detach() / tokens).chunk(2)
        h = chosen - rejected
        missing = 1 / (2 * self.beta) - h
        c = (2 * missing.repeat(2) / tokens)[:, None] * sides(completion_mask)
        return Weighted(c, missing.square(), h)
