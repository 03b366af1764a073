"""First-order forecasts: what a move of the parameters does to the margin of every single pair.

    m(theta + d) - m(theta) = grad m(theta + d/2) . d + O(|d|^3)         (midpoint rule)

One forward-mode pass gives grad log pi . d of both sides of all pairs. A path is cut in segments. Their terms add up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from preflab.alignment import Gradient, token_alignment
from preflab.likelihood import PairLogProbs, by_length, collate


def pair_slopes(
    model: PreTrainedModel, rows: list[dict], pad_token_id: int, batch_size: int, direction: Gradient
) -> PairLogProbs:
    """The derivatives of both sides' log-probs along a direction, in the place of the log-probs themselves.

    Margins are linear in log-probs, so a margin of these is the derivative of the margin.
    """
    sums, counts = [], []
    order = by_length(rows)
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[i] for i in order[start : start + batch_size]], pad_token_id, model.device)
        s = token_alignment(model, batch, direction)  # (2n, seq - 1)
        sums.append(torch.stack(s.sum(1).chunk(2)).cpu().double())
        counts.append(torch.stack(batch["completion_mask"][:, 1:].sum(1).chunk(2)).cpu().double())
    back = torch.tensor(order).argsort()
    return PairLogProbs(*torch.cat(sums, 1)[:, back], *torch.cat(counts, 1)[:, back])


Weights = Mapping[str, torch.Tensor]  # by parameter name


@contextmanager
def placed(parameters: Mapping[str, torch.nn.Parameter], weights: Weights) -> Iterator[None]:
    """A context in which the parameters have other values."""
    before = {name: p.detach().clone() for name, p in parameters.items()}
    put(parameters, weights)
    try:
        yield
    finally:
        put(parameters, before)


@torch.no_grad()
def put(parameters: Mapping[str, torch.nn.Parameter], weights: Weights) -> None:
    """Give the parameters these values."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def along(
    model: PreTrainedModel,
    parameters: Mapping[str, torch.nn.Parameter],
    rows: list[dict],
    pad_token_id: int,
    batch_size: int,
    start: Weights,
    end: Weights,
    at: float = 0.5,
) -> PairLogProbs:
    """First-order change of both sides' log-probs from start to end, with the derivative at a share `at` of the way."""
    direction = {name: (end[name] - start[name]).to(p.device) for name, p in parameters.items()}
    here = {name: start[name].to(p.device) + at * direction[name] for name, p in parameters.items()}
    with placed(parameters, here):
        return pair_slopes(model, rows, pad_token_id, batch_size, direction)


# --- how good a forecast is ------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """A forecast of what every pair's margin will do, against what it did; all over pairs."""

    slope: float  # of the regression of what happened on the forecast: 1 if the forecast has the right size
    r2: float  # of that regression: the squared correlation
    explained: float  # 1 - (squared error of the forecast as it stands) / (variance): below 0 for a useless one
    signs: float  # share of pairs whose change has the sign that was forecast
    commonest: float  # share of pairs with the commoner sign: what a forecast of one sign for all would reach


def quality(forecast: np.ndarray, happened: np.ndarray) -> Quality:
    """Of one run: (pairs,) each."""
    x, y = forecast - forecast.mean(), happened - happened.mean()
    known = bool((x @ x) * (y @ y) > 0)
    rose = float(np.mean(happened > 0))
    return Quality(
        slope=float(x @ y / (x @ x)) if known else float("nan"),
        r2=float((x @ y) ** 2 / ((x @ x) * (y @ y))) if known else float("nan"),
        explained=float(1 - np.sum((happened - forecast) ** 2) / (y @ y)) if known else float("nan"),
        signs=float(np.mean(np.sign(forecast) == np.sign(happened))),
        commonest=max(rose, 1 - rose),
    )


def mean_quality(
    forecasts: Sequence[np.ndarray], happened: Sequence[np.ndarray], scaled: bool = True
) -> dict[str, float]:
    """The mean over runs. A forecast without a scale of its own has no slope and explains nothing as it stands."""
    found = [vars(quality(f, h)) for f, h in zip(forecasts, happened, strict=True)]
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return means if scaled else means | {"slope": float("nan"), "explained": float("nan")}
