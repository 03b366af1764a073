"""PPO: advantages from values. The details' numbers are those of `preflab.training.from_samples`."""

from typing import ClassVar

import torch

from preflab.methods.method import SampleMethod, Scored
from preflab.settings import Positive, Proportion, settings


@settings
class PPO(SampleMethod):
    """PPO (arXiv:1707.06347) with a KL penalty at every token (arXiv:1909.08593).

    r_t = -kl_coefficient * log pi/pi_ref,   plus the score at the last token
    A = whitened GAE of r,   c = ratio * A where the clip leaves the gradient
    """

    has_values: ClassVar[bool] = True

    value_clip: Positive = 0.2
    value_coefficient: Positive = 0.1
    own_value_trunk: bool = True  # False: the value head sits on the policy's hidden states
    gamma: Proportion = 1.0
    gae_lambda: Proportion = 0.95

    def advantages(self, scored: Scored) -> tuple[torch.Tensor, torch.Tensor]:
        raw = gae(self.token_rewards(scored), scored.values, scored.mask, self.gamma, self.gae_lambda)
        return whiten(raw, scored.mask), raw + scored.values  # detail 7

    def token_rewards(self, scored: Scored) -> torch.Tensor:
        """-kl_coefficient * log pi/pi_ref at every token (detail 5), the score at the last one, less the penalty
        if <eos> is missing (detail 4): (n, seq - 1)."""
        mask = scored.mask
        rewards = -self.kl_coefficient * scored.log_ratios
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(1)
        total = scored.scores.to(rewards) - self.missing_eos_penalty * (~scored.finished).to(rewards)
        rows = torch.arange(len(last), device=last.device)
        return rewards.index_put((rows, last), total, accumulate=True) * mask


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """Generalised advantage estimates (Eq. 16 of arXiv:1506.02438), (n, T), 0 off the mask.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1}

    Each row of the mask is one run of ones; after its end value and advantage are 0 (detail 6).
    """
    advantages = torch.zeros_like(rewards)
    after_value = after_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * after_value - values[:, t]
        after_advantage = (delta + gamma * gae_lambda * after_advantage) * mask[:, t]
        after_value = values[:, t] * mask[:, t]
        advantages[:, t] = after_advantage
    return advantages


def whiten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the tokens in the mask, 0 elsewhere."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    variance = ((x - mean).square() * mask).sum() / n
    return (x - mean) * torch.rsqrt(variance + 1e-8) * mask
