"""GRPO."""

import torch

from preflab.methods.group import GroupMethod
from preflab.methods.method import Scored
from preflab.settings import settings


@settings
class GRPO(GroupMethod):
    """GRPO (Eq. 3 and 4 of arXiv:2402.03300): PPO without values, its KL penalty in the loss.

    A = (score - mean of the group) / its standard deviation      0 if all of a group score the same
    c = r * A / |y| (clipped) + kl_coefficient * (q - 1) / |y|,   q = pi_ref / pi
    """

    def advantages(self, scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
        above, grouped = self.above_the_group(self.penalised(scored))
        normed = (above / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
        return normed[:, None] * scored.mask / scored.mask.sum(1, keepdim=True), scored.values

    def kl_in_loss(
        self, log_probs: torch.Tensor, reference_log_probs: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of kl_coefficient * (q - 1 - log q): up if the reference finds the token likelier, else down."""
        q = torch.exp(reference_log_probs - log_probs.detach())
        return self.kl_coefficient * (q - 1) * mask / mask.sum(1, keepdim=True)
