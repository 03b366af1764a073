"""DPO with an SFT term."""

import torch

from preflab.methods.dpo import DPO
from preflab.methods.method import PairMethod, Weighted, lengths, sides
from preflab.settings import NotNegative, Positive, settings


@settings
class DPOWithSFT(PairMethod):
    """DPO with an SFT term on chosen responses (Eq. 3 of arXiv:2404.19733).

        c = c of DPO,   and sft / |y+| more on every token of y+

    The loss is DPO's own: the added -sft * log pi(y+) / |y+| needs log-probs, not their ratios.
    """

    sft: NotNegative
    beta: Positive = 0.1

    def weigh(self, log_ratios: torch.Tensor, completion_mask: torch.Tensor) -> Weighted:
        c, loss, margins = DPO(self.beta).weigh(log_ratios, completion_mask)
        chosen = sides(completion_mask).clamp(min=0).to(c)
        return Weighted(c + self.sft * chosen / lengths(completion_mask)[:, None], loss, margins)
