"""What a measurement of G along a run holds, and what can be read off it."""

from dataclasses import dataclass

import numpy as np

COMPONENTS = ("whole", "positive", "negative", "bottom", "middle", "top")
PARTS = (*COMPONENTS, "trained")  # what the run's rule makes of the whole; the whole itself for a plain method
SIGNS = COMPONENTS[:3]


@dataclass(frozen=True)
class Measured:
    """G of one run at S steps, in nats per unit of step size. Component axes are in the order of PARTS.

    Log-probs are summed over a response, of n held-out pairs: (S, 2 sides, n). Tertiles are NaN where all weights are
    equal, as DPO's are before its first update. What only a measurement in detail has is NaN or empty without it:
    layers, cosines, the NLL, the optimiser's step, inner epochs.
    """

    steps: np.ndarray  # (S,) updates so far
    contributions: np.ndarray  # (S, 2 halves of D', PARTS, n of the probe)
    layers: list[dict[str, dict[str, float]]]  # a step: component (whole, positive, negative) -> place -> G
    cosine: np.ndarray  # (S,) of v and the gradient of the whole loss
    ceilings: np.ndarray  # (S, 2) cosines of the two halves: of D' and of the probe
    weights: list[np.ndarray]  # a step: w of each pair, or |A| of each response token
    total_weight: np.ndarray  # (S, PARTS) sum of |c| / n
    margins: np.ndarray | None  # (S, n) DPO's beta * Delta
    nll: np.ndarray  # (S,) of D'
    predicted: np.ndarray  # (S,) v . (theta_{t+1} - theta_t), the optimiser's real step; NaN at the last
    changed: np.ndarray  # (S,) NLL(theta_{t+1}) - NLL(theta_t)
    step_cosine: np.ndarray  # (S,) of that step and descent on the probe's loss
    tokens: list[list[dict]]  # a step: rows shown token by token
    held_out: np.ndarray
    inner: np.ndarray  # (S, epochs - 1, SIGNS) G on the step's own samples as later inner epochs begin; NaN at the last

    @property
    def g(self) -> np.ndarray:
        """(S, PARTS)."""
        return self.contributions.mean((1, 3))

    @property
    def progress(self) -> np.ndarray:
        """(S,) share of training done."""
        return self.steps / self.steps[-1]

    def noise(self) -> np.ndarray:
        """Standard error of G from split halves, (S, PARTS): half the difference of the two halves of the
        probe, and of the two halves of D', in quadrature. Two halves give a rough number: average its square."""
        halves = np.array_split(self.contributions, 2, axis=3)
        of_probe = np.subtract(*(h.mean((1, 3)) for h in halves)) / 2
        of_finals = (self.contributions[:, 0] - self.contributions[:, 1]).mean(-1) / 2
        return np.hypot(of_probe, of_finals)
