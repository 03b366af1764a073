"""Common mode C = (G+ - G-) / 2 by its sources, on samples of any sampler q.

With |c| = a * f, where a is the size that a method gives a token (|A| of PPO, w of DPO) and f its ratio where the clip
leaves the gradient, else 0 (1 for DPO), and m the mean of a over response tokens:

    C = -1/2 sum |c| s = samples + ratio + weights
    samples = -1/2 m sum s             whose samples they are
    ratio   = -1/2 m sum (f - 1) s     PPO's ratio and clip; 0 on samples that are scored as the policy's own
    weights = -1/2 sum (a - m) f s     how the size goes together with s

Given what came before, a token of q has E_q[grad log pi] = - grad KL(q || pi). So `samples` is expected to be

    1/2 m v . grad KL(q || pi)

summed over tokens: 0 for q = pi, where the KL has its minimum. It is above 0 if a step towards D' (along -v) brings the
policy nearer to the sampler.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preflab.alignment import Gradient, dot
from preflab.decoding import next_tokens, pieces
from preflab.hardware import precise
from preflab.layout import Batch
from preflab.statistics import seed_interval

PARTS = ("positive", "negative", "samples", "ratio")  # the kept rows of contributions
SOURCES = ("samples", "ratio", "weights")  # of C


def parts_of(c: torch.Tensor, size: torch.Tensor, factor: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """PARTS -> its c. All are (rows, seq - 1), 0 off the mask of response tokens; |c| = size * factor."""
    m = mean_size(size, mask)
    return {
        "positive": c.clamp(min=0),
        "negative": c.clamp(max=0),
        "samples": m * mask,
        "ratio": m * (factor - 1) * mask,
    }


def mean_size(size: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """m: the mean size of a response token."""
    return (size * mask).sum() / mask.sum()


def contributions(parts: Mapping[str, torch.Tensor], s: torch.Tensor, n: int) -> torch.Tensor:
    """- sum c s of each of n units (samples, or pairs of two rows) for each of PARTS: (PARTS, n), in float64."""
    of_rows = torch.stack([-(precise(parts[name]) * precise(s)).sum(1) for name in PARTS])
    return of_rows.view(len(PARTS), -1, n).sum(1)


def cross_entropy_gradient(
    model: torch.nn.Module, batch: Batch, log_q: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter], size: int
) -> Gradient:
    """grad of - sum_tokens sum_y q(y) log pi(y), q fixed: that of sum KL(q || pi). `log_q` is (tokens, vocabulary)."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    start = 0
    for part in pieces(batch, size):
        log_probs = next_tokens(model, part)
        q = log_q[start : start + len(log_probs)].exp()
        start += len(log_probs)
        gradient = torch.autograd.grad(-(q * log_probs).sum(), list(parameters.values()))
        total = {name: total[name] + g for name, g in zip(total, gradient, strict=True)}
    return total


def expected_samples(m: float, v: Gradient, gradient: Gradient, n: int) -> float:
    """What `samples` is expected to be: 1/2 m v . grad KL(q || pi), a mean over n units."""
    return 0.5 * m * dot(v, gradient) / n


@dataclass(frozen=True)
class Split:
    """C on one sampler's samples at one policy, in nats per unit of step size."""

    step: int  # updates of the policy so far
    source: str  # whose samples: a name
    final: str  # which D': a name
    kl: float  # KL(q || pi), mean over response tokens, in nats; NaN if nobody knows q
    surprise: float  # -log pi of what was drawn, mean over response tokens, in nats
    expected: float  # what `samples` is expected to be given the prefixes; NaN if nobody knows q
    contributions: np.ndarray  # (2 halves of D', PARTS, n)

    def of(self, name: str) -> np.ndarray:
        """S, C or one of SOURCES, of each unit: (2 halves of D', n)."""
        positive, negative, samples, ratio = self.contributions.transpose(1, 0, 2)
        c = (positive - negative) / 2
        return {
            "S": (positive + negative) / 2,
            "C": c,
            "samples": samples / 2,
            "ratio": ratio / 2,
            "weights": c - samples / 2 - ratio / 2,
        }[name]

    def value(self, name: str) -> float:
        return float(self.of(name).mean())

    def error(self, name: str) -> float:
        """Standard error of `value`: of a mean over units; half the difference of the halves of D' in quadrature."""
        units = self.of(name)
        of_units = units.mean(0).std(ddof=1) / np.sqrt(units.shape[1])
        return float(np.hypot(of_units, (units[0].mean() - units[1].mean()) / 2))


Cell = tuple[int, str, str]  # step, source, final of a Split
Panel = dict[str, np.ndarray]  # what `panel` returns


def panel(runs: Sequence[Iterable[Split]], cells: Sequence[Cell]) -> Panel:
    """What was measured in some cells, of several runs: (runs, cells) each.

    S, C, each of SOURCES and its standard error ("error samples"), kl, surprise and expected. Beside them `low` and
    `high`, (cells,), the ends of Student's interval of C over runs; NaN for fewer than three runs.
    """
    found = [{(x.step, x.source, x.final): x for x in run} for run in runs]
    splits = [[run[cell] for cell in cells] for run in found]

    def each(read: Callable[[Split], float]) -> np.ndarray:
        return np.array([[read(x) for x in row] for row in splits])

    parts = {name: each(lambda x, name=name: x.value(name)) for name in ("S", "C", *SOURCES)}
    errors = {f"error {name}": each(lambda x, name=name: x.error(name)) for name in ("C", *SOURCES)}
    ends = np.full((2, len(cells)), np.nan)
    if len(splits) > 2:
        ends = np.array([[i.low, i.high] for i in map(seed_interval, parts["C"].T)]).T
    told = {"kl": each(lambda x: x.kl), "surprise": each(lambda x: x.surprise), "expected": each(lambda x: x.expected)}
    return parts | errors | told | {"low": ends[0], "high": ends[1]}


def share(split: Split, *names: str) -> float:
    """Of some sources together, as a share of what the sizes of all SOURCES amount to: in [-1, 1]."""
    values = {name: split.value(name) for name in SOURCES}
    return sum(values[name] for name in names) / sum(abs(value) for value in values.values())
