"""ORPO."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from preflab.methods.method import PairMethod, Weighted, lengths, sides
from preflab.settings import NotNegative, settings


@settings
class ORPO(PairMethod):
    """ORPO (Eq. 6 and 7 of arXiv:2403.07691), which has no reference: SFT on y+, and the odds of y+ over y-.

        p = log pi(y) / |y|,   odds = p - log(1 - e^p)   (a logarithm),   m = odds(y+) - odds(y-)
        loss = -p(y+) - weight * log sigmoid(m)
        c(y+) = [1 + weight * sigmoid(-m) / (1 - e^p(y+))] / |y+|
        c(y-) =    - weight * sigmoid(-m) / (1 - e^p(y-))  / |y-|

    The SFT term is the mean over the tokens of one response y+, then over pairs. TRL's is the mean over all tokens of a
    batch, those of prompts too. Margins are m. `weight` is the paper's lambda.
    """

    reference: ClassVar[bool] = False

    weight: NotNegative = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        tokens = lengths(completion_mask)
        p = log_ratios.detach() / tokens
        rest = -torch.expm1(p)  # 1 - e^p, exact for p near 0
        odds_chosen, odds_rejected = (p - torch.log(rest)).chunk(2)
        m = odds_chosen - odds_rejected
        pull = self.weight * torch.sigmoid(-m).repeat(2) / rest
        towards = sides(completion_mask).to(p)
        c = (pull[:, None] * towards + towards.clamp(min=0)) / tokens[:, None]
        return Weighted(c, -p.chunk(2)[0] - self.weight * F.logsigmoid(m), m)
