"""The one idea: a preference loss is a token weighting.

    grad L = - sum_{i,t} c[i,t] * grad log pi(y[i,t] | x[i], y[i,<t])        (c detached)

A method is its rule for c. c > 0 is positive learning, c < 0 negative learning, |c| the reweighting.

Weightings of pairs share a signature: log pi/pi_ref summed over a response, (2n,), chosen above rejected (TRL's
order), a mask of response tokens, (2n, seq - 1), and beta. They return c (2n, seq - 1) detached, the loss (n,) and the
margins (n,), above 0 where the pair is ordered right. Weightings of samples start from advantages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# --- of pairs -----------------------------------------------------------------------------------


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


def conservative_dpo_weighting(
    log_ratios: torch.Tensor, completion_mask: torch.Tensor, beta: float, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Conservative DPO (E. Mitchell, A note on DPO with noisy preferences, 2023): labels wrong at a rate `smoothing`.

        loss = -(1 - smoothing) log sigmoid(beta * Delta) - smoothing log sigmoid(-beta * Delta)
        w = beta * (sigmoid(-beta * Delta) - smoothing)

    The weight turns round where the model is surer than 1 - smoothing. Elsewhere this is called cDPO.
    """
    c, _, margins = dpo_weighting(log_ratios, completion_mask, beta)
    loss = -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)
    return c - beta * smoothing * _sides(completion_mask).to(c), loss, margins


def dpo_sft_weighting(
    log_ratios: torch.Tensor, completion_mask: torch.Tensor, beta: float, sft: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """DPO with an SFT term on chosen responses (Eq. 3 of arXiv:2404.19733): sft / |y+| more on every token of y+.

    The loss is DPO's own: the added -sft * log pi(y+) / |y+| needs log-probs, not their ratios.
    """
    c, loss, margins = dpo_weighting(log_ratios, completion_mask, beta)
    chosen = _sides(completion_mask).clamp(min=0).to(c)
    return c + sft * chosen / _lengths(completion_mask)[:, None], loss, margins


def ipo_weighting(
    log_ratios: torch.Tensor, completion_mask: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """IPO (Eq. 17 of arXiv:2310.12036), its log-ratios averaged over tokens as in TRL.

        h = log pi/pi_ref(y+) / |y+| - log pi/pi_ref(y-) / |y-|,   loss = (h - 1 / (2 beta))^2
        c = +-2 (1 / (2 beta) - h) / |y|

    It asks for a margin and no more: past it the signs of c turn round. Margins are h.
    """
    lengths = _lengths(completion_mask)
    chosen, rejected = (log_ratios.detach() / lengths).chunk(2)
    h = chosen - rejected
    missing = 1 / (2 * beta) - h
    return (2 * missing.repeat(2) / lengths)[:, None] * _sides(completion_mask), missing.square(), h


def simpo_weighting(
    log_probs: torch.Tensor, completion_mask: torch.Tensor, beta: float, margin: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SimPO (Eq. 6 of arXiv:2405.14734): without a reference, so it takes log-probs where others take ratios.

        m = beta * (log pi(y+) / |y+| - log pi(y-) / |y-|) - margin,   loss = -log sigmoid(m)
        c = +-beta * sigmoid(-m) / |y|

    Margins are m.
    """
    lengths = _lengths(completion_mask)
    chosen, rejected = (log_probs.detach() / lengths).chunk(2)
    m = beta * (chosen - rejected) - margin
    return (beta * torch.sigmoid(-m).repeat(2) / lengths)[:, None] * _sides(completion_mask), -F.logsigmoid(m), m


def _sides(completion_mask: torch.Tensor) -> torch.Tensor:
    """+1 on the tokens of y+, -1 on those of y-."""
    chosen, rejected = completion_mask.chunk(2)
    return torch.cat([chosen, -rejected])


def _lengths(completion_mask: torch.Tensor) -> torch.Tensor:
    return completion_mask.sum(1)


# --- of samples ---------------------------------------------------------------------------------


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


def group_advantages(scores: torch.Tensor, group: int, method: str) -> torch.Tensor:
    """Advantages of n samples, `group` in a row to one prompt, from their scores alone: (n,).

    "grpo"  (score - mean of the group) / its deviation  (Eq. 3 of arXiv:2402.03300); 0 where all score the same
    "rloo"  score - mean of the group's others           (Eq. 7 of arXiv:2402.14740)
    """
    scores = scores.view(-1, group)
    above = scores - scores.mean(1, keepdim=True)
    if method == "rloo":
        return (above * group / (group - 1)).flatten()
    return (above / (scores.std(1, keepdim=True) + 1e-4)).flatten()


def kl_weighting(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, completion_mask: torch.Tensor, coefficient: float
) -> torch.Tensor:
    """The KL penalty that GRPO has in its loss (Eq. 4 of arXiv:2402.03300): coefficient * (q - 1 - log q) a token,

    q = pi_ref / pi,   c = coefficient * (q - 1):  up where the reference is the likelier one, else down.
    """
    q = torch.exp(reference_log_probs - log_probs.detach())
    return coefficient * (q - 1) * completion_mask


# --- of any kind --------------------------------------------------------------------------------


def sft_weighting(completion_mask: torch.Tensor) -> torch.Tensor:
    """SFT: +1 on every response token."""
    return completion_mask.to(torch.get_default_dtype())


def surrogate(c: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """- sum_{i,t} sg(c[i,t]) log pi[i,t]: its gradient is the method's. A scalar."""
    return -(c.detach() * log_probs).sum()


def sign_components(c: torch.Tensor) -> dict[str, torch.Tensor]:
    """The whole, positive learning (c > 0) and negative learning (c < 0), as masks."""
    return {"whole": torch.ones_like(c, dtype=torch.bool), "positive": c > 0, "negative": c < 0}


def tertile_components(weight: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Bottom, middle and top third by weight of what the mask holds: masks of equal sizes up to one.

    `weight` and `mask` have one shape: DPO's w and which pairs there are, or PPO's |A| and which tokens.
    Ties go by position.
    """
    order = torch.where(mask, weight, torch.inf).flatten().argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    third = (rank * 3 // mask.sum().clamp(min=1)).view_as(mask)
    return {name: mask & (third == i) for i, name in enumerate(("bottom", "middle", "top"))}


@dataclass(frozen=True)
class Weights:
    """The weighting of one batch of updates, as a rule that changes it sees it."""

    c: torch.Tensor  # (rows, seq - 1); of n pairs, chosen rows above rejected ones
    weight: torch.Tensor  # |c| of each unit: of a pair, (n,); of a sample's token, (rows, seq - 1)
    held: torch.Tensor  # bool, like weight: which units there are
    progress: float  # share of training done, 0 <= progress < 1
    live: Sequence[float] | None = None  # G of positive and negative learning now, where training looks at it

    @classmethod
    def of_pairs(cls, c: torch.Tensor, progress: float, live: Sequence[float] | None = None) -> "Weights":
        """The weight of a pair is the mean of its rows' |c|: in DPO both are w."""
        w = torch.stack(c.abs().amax(1).chunk(2)).mean(0)
        return cls(c, w, torch.ones_like(w, dtype=torch.bool), progress, live)

    @classmethod
    def of_tokens(
        cls, c: torch.Tensor, mask: torch.Tensor, progress: float, live: Sequence[float] | None = None
    ) -> "Weights":
        """Of samples."""
        return cls(c, c.abs(), mask.bool(), progress, live)

    def tertile(self, which: str) -> torch.Tensor:
        """The bottom, middle or top third of the units by weight, as a mask of tokens, (rows, seq - 1)."""
        unit = tertile_components(self.weight, self.held)[which]
        return unit if unit.dim() == 2 else unit.repeat(2)[:, None].expand_as(self.c)

    @property
    def mean(self) -> torch.Tensor:
        """Mean weight of a unit."""
        return self.weight[self.held].mean()
