"""What a measurement of G along a run holds, and what can be read off it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPONENTS = ("whole", "positive", "negative", "bottom", "middle", "top")
# `trained`: what the run's rule makes of the whole, the whole itself for a plain method. `uniform`: the mean of |c| on
# every response token, chosen or not: what is left of common mode if all weights are alike.
PARTS = (*COMPONENTS, "trained", "uniform")
SIGNS = COMPONENTS[:3]


@dataclass(frozen=True)
class Measured:
    """G of one run at S steps, in nats per unit of step size. Component axes are in the order of PARTS.

    Log-probs are summed over a response, of n held-out pairs: (S, 2 sides, n). Tertiles are NaN where all weights are
    equal, as DPO's are before its first update. What only a measurement in detail has is NaN or empty without it:
    layers, cosines, the optimiser's step, inner epochs.
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
        """Standard error of G, (S, PARTS): that of a mean over the probe, and half the difference of the two halves of
        D', in quadrature. Two halves give a rough number: average its square."""
        units = self.contributions.mean(1)  # (S, PARTS, n)
        of_probe = units.std(-1, ddof=1) / np.sqrt(units.shape[-1])
        of_finals = (self.contributions[:, 0] - self.contributions[:, 1]).mean(-1) / 2
        return np.hypot(of_probe, of_finals)


@dataclass(frozen=True)
class Course:
    """A row over training; arrays are (seeds, steps)."""

    progress: np.ndarray  # (steps,)
    g: Mapping[str, np.ndarray]  # positive, negative, trained
    share_progress: np.ndarray  # (updates,)
    share: np.ndarray  # (seeds, updates) lambda, the share of the weight that negative learning has


def ordered(change: np.ndarray) -> float:
    """Share of pairs whose chosen response has gained more log-prob than the rejected one, of changes (2, pairs).

    That is a DPO margin above 0.
    """
    return float(np.mean(change[0] > change[1]))


# --- read off several runs of one method, with the same steps: one a seed ------------------------


def g_of(runs: Sequence[Measured], part: str) -> np.ndarray:
    """G of one part along runs: (runs, S)."""
    return np.array([x.g[:, PARTS.index(part)] for x in runs])


def g_by_component(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """G of every component: (runs, S) each."""
    return {part: g_of(runs, part) for part in COMPONENTS}


def noise_by_component(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """The standard error of each measurement: (runs, S) each."""
    return {part: np.array([x.noise()[:, i] for x in runs]) for i, part in enumerate(COMPONENTS)}


def common_mode(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """C = (G+ - G-) / 2 and its two sources, (runs, S) each, in nats per unit of step size:

        C = -1/2 sum |c| s,   samples = -1/2 mean|c| sum s,   weights = C - samples

    On the policy's own samples E[grad log pi] = 0, so E[s] = 0 and `samples` is noise: then C is the covariance of |c|
    with s, and what makes positive and negative learning differ is the weight.
    """
    whole = (g_of(runs, "positive") - g_of(runs, "negative")) / 2
    samples = g_of(runs, "uniform") / 2
    return {"C": whole, "samples": samples, "weights": whole - samples}


def per_weight(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """G of every component for each unit of its weight, sum |c| / n: (runs, S) each; NaN where a part has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {part: np.array([x.g[:, i] / x.total_weight[:, i] for x in runs]) for i, part in enumerate(COMPONENTS)}


def g_by_epoch(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """G of the whole, positive and negative learning as each epoch on a step's samples begins: (epochs, runs, S - 1).

    The first epoch is the step's own measurement. Nothing follows the last step, so it is left out.
    """
    first = np.array([x.g[:-1, None, : len(SIGNS)] for x in runs])  # (runs, S - 1, 1, SIGNS)
    later = np.array([x.inner[:-1] for x in runs])  # (runs, S - 1, epochs - 1, SIGNS)
    epochs = np.concatenate([first, later], axis=2)
    return {part: epochs[..., i].transpose(2, 0, 1) for i, part in enumerate(SIGNS)}


def g_by_layer(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """G of the whole, positive and negative learning in each place of the network: (places, S), the mean over runs.

    Places are in the order of `layers`. Needs a measurement in detail.
    """
    places = runs[0].layers[0]["whole"]
    return {
        part: np.mean([[[step[part][place] for step in x.layers] for place in places] for x in runs], axis=0)
        for part in SIGNS
    }


def half_way(run: Measured) -> int:
    """Which of the measured steps is the nearest to half of training."""
    return int(np.abs(run.progress - 0.5).argmin())


def weights_at(runs: Sequence[Measured]) -> dict[str, np.ndarray]:
    """The weights of all runs at the first step, half-way through training and at the last step: (runs * n,) each."""
    moments = {"at the start": 0, "half-way": half_way(runs[0]), "at the end": -1}
    return {moment: np.concatenate([x.weights[i] for x in runs]) for moment, i in moments.items()}


def mean_weights(runs: Sequence[Measured]) -> np.ndarray:
    """The mean weight of a pair, or token, at every step: (runs, S)."""
    return np.array([[weights.mean() for weights in x.weights] for x in runs])


def adams_steps(runs: Sequence[Measured]) -> dict[str, float]:
    """How the optimiser's real steps compare with what v and G foretell, and with plain descent: means over runs and
    steps. Cosines stand beside their ceiling, the cosine of two halves of the same data."""
    predicted, changed = np.array([x.predicted[:-1] for x in runs]), np.array([x.changed[:-1] for x in runs])
    whole = g_by_component(runs)["whole"][:, :-1]
    return {
        "correlation of predicted and real": np.corrcoef(predicted.ravel(), changed.ravel())[0, 1],
        "sign of Adam's step as G foretells": np.mean(np.sign(-predicted) == np.sign(whole)),
        "cosine of Adam's step and descent": np.mean([x.step_cosine[:-1] for x in runs]),
        "cosine of v and the gradient": np.mean([x.cosine for x in runs]),
        "ceiling: halves of D'": np.mean([x.ceilings[:, 0] for x in runs]),
        "ceiling: halves of the probe": np.mean([x.ceilings[:, 1] for x in runs]),
    }


def pulls(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Rows that are shown token by token, each with the next of the labels in turn, and pulls as shares of the largest.

    Every row has its `prompt`, `tokens`, and the `pull` of each token.
    """
    largest = max(abs(pull) for row in rows for pull in row["pull"]) or 1.0
    return [
        {**row, "label": labels[i % len(labels)], "pull": np.array(row["pull"]) / largest} for i, row in enumerate(rows)
    ]
