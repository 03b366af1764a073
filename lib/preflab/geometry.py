"""Angles between the gradients of two objectives, with what noise alone would make of them.

The pairs of an objective are cut in K parts. Part i has the gradient a_i = mu_a + noise, and b_i that of another one.
All that is said below follows from the inner products of parts (their Gram matrix). So a pass over the pairs is enough
for the gradient, for its ceiling and for its error:

    <mu_a, mu_b>  is estimated by  U(a, b) = mean of <a_i, b_j> over i != j
    |mu_a|^2      is estimated by  U(a, a)
    disattenuated cosine           U(a, b) / sqrt(U(a, a) U(b, b))

Parts i and i are left out, because part i of both objectives may hold the same pairs, which share their noise.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from preflab.errors import BadInput
from preflab.hardware import precise
from preflab.likelihood import PairLogProbs, collate, token_log_probs
from preflab.methods.method import PairMethod
from preflab.weightings import surrogate


@dataclass(frozen=True)
class Labelled:
    """n encoded pairs with a method's fixed reference log-probs: what a loss is the mean over."""

    rows: list[dict]
    reference: PairLogProbs
    method: PairMethod
    pad_token_id: int
    shuffled: bool = False  # the mean of the loss over both labellings of every pair

    def gradient(
        self, model: PreTrainedModel, parameters: Mapping[str, torch.nn.Parameter], rows: range, size: int
    ) -> tuple[torch.Tensor, float]:
        """Gradient of the mean loss over some rows, `size` pairs a pass, flat: (parameters,); and the mean loss."""
        total, loss = None, 0.0
        for start in range(rows.start, rows.stop, size):
            some = range(start, min(start + size, rows.stop))
            batch = collate([self.rows[i] for i in some], self.pad_token_id, model.device)
            log_probs = token_log_probs(model, batch)
            c, losses = self._weighed(log_probs, batch["completion_mask"][:, 1:], some)
            found = torch.autograd.grad(surrogate(c, log_probs) / len(rows), list(parameters.values()))
            flat = torch.cat([g.flatten() for g in found]).to(log_probs.dtype)
            total = flat if total is None else total + flat
            loss += float(losses.sum()) / len(rows)
        return total, loss

    def _weighed(self, log_probs: torch.Tensor, mask: torch.Tensor, some: range) -> tuple[torch.Tensor, torch.Tensor]:
        """c, (2n, seq - 1), and the loss of each pair, (n,)."""
        at = slice(some.start, some.stop)
        reference = torch.cat([self.reference.chosen[at], self.reference.rejected[at]]).to(log_probs)
        ratios = log_probs.detach().sum(1) - reference
        c, loss, _ = self.method.weigh(ratios, mask)
        if not self.shuffled:
            return c, loss
        turned, other, _ = self.method.weigh(_swapped(ratios), _swapped(mask))
        return (c + _swapped(turned)) / 2, (loss + other) / 2


def _swapped(rows: torch.Tensor) -> torch.Tensor:
    """Rejected rows above chosen ones."""
    return torch.cat(rows.chunk(2)[::-1])


def cut(n: int, parts: int) -> list[range]:
    """n pairs in so many parts of equal size, a rest left out. Raises BadInput if a part would be empty."""
    if n < parts:
        raise BadInput(f"parts={parts}: only {n} pairs, expected one for each part at least")
    size = n // parts
    return [range(i * size, (i + 1) * size) for i in range(parts)]


def part_gradients(
    labelled: Labelled,
    model: PreTrainedModel,
    parameters: Mapping[str, torch.nn.Parameter],
    parts: int,
    batch: int,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Gradients of the parts of the pairs, and beside them that of the first `batch` pairs of each part.

    Every pair is in one backward pass only: the first `batch` pairs of a part are its first piece, the rest its second.
    Returns both as (parts, parameters), and the mean loss.
    """
    whole, single, loss = [], [], 0.0
    for rows in cut(len(labelled.rows), parts):
        middle = min(rows.start + batch, rows.stop)
        g, of_batch = labelled.gradient(model, parameters, range(rows.start, middle), size)
        single.append(g)
        share = (middle - rows.start) / len(rows)
        if middle < rows.stop:
            rest, of_rest = labelled.gradient(model, parameters, range(middle, rows.stop), size)
            g, of_batch = share * g + (1 - share) * rest, share * of_batch + (1 - share) * of_rest
        whole.append(g)
        loss += of_batch / parts
    return torch.stack(whole), torch.stack(single), loss


# --- where parameters are -------------------------------------------------------------------------


def place(name: str) -> tuple[str, str]:
    """Layer and projection of a parameter: ("0", "q_proj"); ("", "elsewhere") off the blocks' projections."""
    found = re.search(r"\.layers\.(\d+)\.(?:\w+\.)*?(\w+)\.(?:lora_[AB]\.\w+\.)?weight$", name)
    inner = found and "norm" not in found[2]
    return (found[1], found[2]) if inner else ("", "elsewhere")


def places(parameters: Mapping[str, torch.nn.Parameter]) -> dict[tuple[str, str], torch.Tensor]:
    """Which entries of a flat gradient are of which place: indices, in the order of the parameters."""
    found: dict[tuple[str, str], list[torch.Tensor]] = {}
    start = 0
    for name, parameter in parameters.items():
        found.setdefault(place(name), []).append(torch.arange(start, start + parameter.numel()))
        start += parameter.numel()
    return {where: torch.cat(some) for where, some in found.items()}


def gram(vectors: torch.Tensor, where: Mapping[tuple[str, str], torch.Tensor]) -> torch.Tensor:
    """Inner products of vectors (n, parameters), a matrix for each place, in float64: (places, n, n). They add up."""
    return torch.stack([(part := precise(vectors[:, some.to(vectors.device)])) @ part.T for some in where.values()])


# --- what the inner products say. Arrays end in (n, n); rows are the parts of an objective -----------------


def inner(products: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """<g_one, g_other> of the full-data gradients, which are the means of their parts."""
    return products[..., one, other].mean((-1, -2))


def raw_cosine(products: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """Cosine of two full-data gradients. Noise makes it smaller than that of the true gradients."""
    sizes = inner(products, one, one) * inner(products, other, other)
    return _over(inner(products, one, other), sizes)


def ceiling(products: np.ndarray, one: slice) -> np.ndarray:
    """Cosine of the gradients of two halves of an objective's pairs: every other part against the rest."""
    parts = np.arange(one.start, one.stop)
    a, b = np.ix_(parts[::2], parts[::2]), np.ix_(parts[1::2], parts[1::2])
    between = products[(..., *np.ix_(parts[::2], parts[1::2]))].mean((-1, -2))
    return _over(between, products[(..., *a)].mean((-1, -2)) * products[(..., *b)].mean((-1, -2)))


def single_cosine(products: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """Mean cosine of a batch of one objective with a batch of the other. For one and the same objective its ceiling."""
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    cosines = products[..., one, other] / (lengths[..., one, None] * lengths[..., None, other])
    return _apart(cosines)


def disattenuated(products: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """Cosine of the true gradients, U(a, b) / sqrt(U(a, a) U(b, b)). NaN where a square is estimated as 0 or less."""
    a, b = (_apart(products[..., some, some]) for some in (one, other))
    return _over(_apart(products[..., one, other]), np.where((a > 0) & (b > 0), a * b, 0))


def jackknife_error(products: np.ndarray, one: slice, other: slice) -> np.ndarray:
    """Standard error of `disattenuated` for other pairs: part i of both is left out, each i in turn."""
    parts = one.stop - one.start
    found = np.stack([disattenuated(*_without(products, one, other, i)) for i in range(parts)])
    return np.sqrt((parts - 1) * np.var(found, axis=0))


def _without(products: np.ndarray, one: slice, other: slice, i: int) -> tuple[np.ndarray, slice, slice]:
    """The parts of both but the i-th, in a matrix of their own."""
    rows = [k for some in (one, other) for k in range(some.start, some.stop) if k != some.start + i]
    half = len(rows) // 2
    return products[(..., *np.ix_(rows, rows))], slice(0, half), slice(half, 2 * half)


def _apart(block: np.ndarray) -> np.ndarray:
    """Mean of a square block off its diagonal."""
    return block[..., ~np.eye(block.shape[-1], dtype=bool)].mean(-1)


def _over(product: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """product / sqrt(squares); NaN where that is 0."""
    return np.divide(product, np.sqrt(squares), out=np.full_like(product, np.nan), where=squares > 0)


def known_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    n = np.asarray(known.sum(axis))
    return np.divide(np.where(known, values, 0).sum(axis), n, out=np.full(n.shape, np.nan), where=n > 0)


def slices(names: Sequence[str], parts: int) -> dict[str, slice]:
    """Where the parts of each set of pairs stand in a Gram matrix, set by set."""
    return {name: slice(i * parts, (i + 1) * parts) for i, name in enumerate(names)}
