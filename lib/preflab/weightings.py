"""The one idea: a preference loss is a token weighting.

    grad L = - sum_{i,t} c[i,t] * grad log pi(y[i,t] | x[i], y[i,<t])        (c detached)

A method is its rule for c. c > 0 is positive learning, c < 0 negative learning, |c| the reweighting.
"""

import torch
import torch.nn.functional as F


def dpo_weighting(
    log_ratios: torch.Tensor, completion_mask: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """DPO (Eq. 7 of arXiv:2305.18290; section 3.1 of paper D): +w on y+, -w on y-.

        w = beta * sigmoid(-beta * Delta),   Delta = log pi(y+)/pi_ref(y+) - log pi(y-)/pi_ref(y-)

    Args:
        log_ratios: log pi/pi_ref summed over the response, (2n,), chosen above rejected (TRL's order).
        completion_mask: 1 on response tokens, (2n, seq - 1).
        beta: strength of the pull to the reference.

    Returns c (2n, seq - 1) detached, the loss -log sigmoid(beta * Delta) (n,), the margins
    beta * Delta (n,).
    """
    chosen, rejected = log_ratios.detach().chunk(2)
    margins = beta * (chosen - rejected)
    w = beta * torch.sigmoid(-margins)
    c = torch.cat([w, -w])[:, None] * completion_mask
    return c, -F.logsigmoid(margins), margins


def ppo_weighting(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    completion_mask: torch.Tensor,
    clip: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PPO (Eq. 7 of arXiv:1707.06347; section 3.2 of paper D): r * A where the clip leaves the gradient, else 0.

        r = pi / pi_old,   loss = -min(r * A, clamp(r, 1 - clip, 1 + clip) * A)

    The clip takes the gradient of a token whose ratio has already gone where its advantage wants it.
    All tensors are (n, seq - 1). Returns c detached, the loss and where the clip was at work.
    """
    ratio = torch.exp(log_probs.detach() - old_log_probs)
    clipped = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
    clipped = clipped & completion_mask.bool()
    c = ratio * advantages * completion_mask * ~clipped
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages) * completion_mask
    return c, loss, clipped


def sft_weighting(completion_mask: torch.Tensor) -> torch.Tensor:
    """SFT: +1 on every response token."""
    return completion_mask.to(torch.get_default_dtype())


def surrogate(c: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """- sum_{i,t} sg(c[i,t]) log pi[i,t]: its gradient is the method's. A scalar."""
    return -(c.detach() * log_probs).sum()
