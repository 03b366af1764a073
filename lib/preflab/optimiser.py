"""What the optimiser really does to the NLL of D', one update taken apart.

G = v . g says what plain gradient descent on the whole loss would do (Eq. 3 of arXiv 2512.00778; v = grad NLL(D'),
g = grad L). Adam (arXiv:1412.6980) moves by something else. With g_b the gradient of the update's own batch, clipped as
training clips it, and m and u the moments after it has been taken in,

    m = beta1 m + (1 - beta1) g_b,   u = beta2 u + (1 - beta2) g_b^2,   P = sqrt(u / (1 - beta2^t)) + epsilon
    step = - eta P^-1 m / (1 - beta1^t)

Five *rungs* lead from G to what happens, each a change of NLL(D') in nats for one update:

    descent          - eta' v . k g         plain descent on the whole loss; its sign is that of -G
    own batch        - eta' v . g_b         the same on the update's own batch
    preconditioned   - eta  v . P^-1 g_b    Adam without momentum (beta1 = 0)
    real step          v . step
    exact              NLL(theta + step) - NLL(theta)

k <= 1 is what the clip left of the batch's gradient. Plain descent has no learning rate of its own here, so it gets
the one with which its step on the batch is as long as Adam's without momentum: eta' = eta |P^-1 g_b| / |g_b|. The
differences of neighbours, *links*, are batch noise, preconditioner, momentum and second order. They add up to
exact - descent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from preflab.alignment import Gradient, dot

RUNGS = ("descent", "own batch", "preconditioned", "real step", "exact")
LINKS = ("batch noise", "preconditioner", "momentum", "second order")
BETA1, EPSILON = 0.9, 1e-8  # of the loop on pairs (torch's own)


class AdamTwin:
    """Adam's moments, from the gradients that training gives it: what the optimiser itself does not hand out."""

    def __init__(self, beta2: float, beta1: float = BETA1, epsilon: float = EPSILON):
        self.beta1, self.beta2, self.epsilon, self.updates = beta1, beta2, epsilon, 0
        self.mean: Gradient = {}
        self.square: Gradient = {}

    def take(self, gradient: Gradient) -> None:
        """Take in the (clipped) gradient of an update."""
        self.updates += 1
        for name, g in gradient.items():
            self.mean[name] = _moved(self.mean.get(name), g, self.beta1)
            self.square[name] = _moved(self.square.get(name), g**2, self.beta2)

    def preconditioned(self, direction: Gradient) -> Gradient:
        """P^-1 d."""
        correction = 1 - self.beta2**self.updates
        return {name: d / ((self.square[name] / correction).sqrt() + self.epsilon) for name, d in direction.items()}

    def step(self) -> Gradient:
        """Adam's step for a learning rate of 1: - P^-1 m / (1 - beta1^t)."""
        correction = 1 - self.beta1**self.updates
        return {name: -d / correction for name, d in self.preconditioned(self.mean).items()}


class PlainTwin:
    """The same of plain descent: no memory, P = 1."""

    def __init__(self) -> None:
        self.last: Gradient = {}

    def take(self, gradient: Gradient) -> None:
        self.last = gradient

    def preconditioned(self, direction: Gradient) -> Gradient:
        return direction

    def step(self) -> Gradient:
        return {name: -g for name, g in self.last.items()}


def _moved(moment: torch.Tensor | None, new: torch.Tensor, beta: float) -> torch.Tensor:
    return (1 - beta) * new if moment is None else beta * moment + (1 - beta) * new


def directions(
    twin: AdamTwin | PlainTwin, rate: float, full: Gradient, own: Gradient, moved: Gradient, clipped: float
) -> dict[str, Gradient]:
    """Steps of the first four rungs, and of preconditioned descent on the whole loss ("preconditioned whole").

    `full` is g; `own` is g_b as clipped, which the twin has taken in already; `moved` is the real step; `clipped` is k
    and `rate` is eta.
    """
    plain = twin.preconditioned(own)
    rate_of_descent = rate * (dot(plain, plain) / dot(own, own)) ** 0.5
    return {
        "descent": _times(full, -rate_of_descent * clipped),
        "own batch": _times(own, -rate_of_descent),
        "preconditioned": _times(plain, -rate),
        "real step": moved,
        "preconditioned whole": _times(twin.preconditioned(full), -rate * clipped),
    }


def _times(gradient: Gradient, factor: float) -> Gradient:
    return {name: factor * g for name, g in gradient.items()}


def distance(a: Gradient, b: Gradient) -> float:
    """|a - b|."""
    off = {name: a[name] - b[name] for name in a}
    return dot(off, off) ** 0.5


@dataclass(frozen=True)
class Updates:
    """One run, T updates, S of them taken apart; n responses of D'. Changes are of their NLL, in nats."""

    steps: np.ndarray  # (S,) updates before each one that is taken apart
    rungs: np.ndarray  # (S, RUNGS, n)
    whole: np.ndarray  # (S, n) "preconditioned whole": P^-1 g in place of g
    nll: np.ndarray  # (T + 1, n) of every response after every update, the first before any
    factor: np.ndarray  # (T,) of the learning rate, by its schedule
    length: np.ndarray  # (T,) |theta_{t+1} - theta_t|
    twin_error: np.ndarray  # (T,) distance of the twin's step from the real one, over its length
    loss: np.ndarray  # (T,) mean training loss of each update's batch
    repeated: (
        float  # largest difference of a parameter from the run's own final policy: 0 if it was repeated bit for bit
    )

    @property
    def links(self) -> np.ndarray:
        """(S, LINKS, n): differences of neighbouring rungs."""
        return np.diff(self.rungs, axis=1)

    @property
    def changes(self) -> np.ndarray:
        """(T, n) exact change by every update."""
        return np.diff(self.nll, axis=0)

    @property
    def per_rate(self) -> np.ndarray:
        """(T, n) the same for each unit of the schedule's factor: warm-up and decay are no fluctuation."""
        return self.changes / self.factor[:, None]


def chains(runs: list[Updates]) -> dict[str, np.ndarray]:
    """Every rung and link as means over D', with both orders of noise and preconditioner: (seeds, S) each."""
    rungs = np.array([run.rungs.mean(-1) for run in runs])  # (seeds, S, RUNGS)
    links = np.array([run.links.mean(-1) for run in runs])
    whole = np.array([run.whole.mean(-1) for run in runs])
    found = {name: rungs[..., i] for i, name in enumerate(RUNGS)} | {"preconditioned whole": whole}
    found |= {name: links[..., i] for i, name in enumerate(LINKS)}
    return found | {
        "preconditioner, whole loss": whole - found["descent"],
        "batch noise, preconditioned": found["preconditioned"] - whole,
    }


def agreements(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where a rung has the sign of plain descent on the whole loss, which is G's: (seeds, S) of booleans each."""
    sign = np.sign(found["descent"])
    return {name: np.sign(found[name]) == sign for name in (*RUNGS[1:], "preconditioned whole")}
