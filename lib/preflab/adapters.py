"""What adapters have moved: updates of weight matrices as products of thin factors, never multiplied out.

LoRA changes W by dW = (alpha / r) B A, with B (out, r) and A (r, in). The product counts and the factors do not: with
any invertible R, B R^-1 and R A give the same dW (a change of gauge). So angles are taken between products:

    <B1 A1, B2 A2> = tr(A1^T B1^T B2 A2) = sum of (B1^T B2) * (A1 A2^T), entry by entry

which are two r x r matrices. A difference of products is a product too: B2 A2 - B1 A1 = [B2, -B1] [A2; A1].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from preflab.geometry import place
from preflab.hardware import precise


@dataclass(frozen=True)
class Update:
    """up @ down, the change of one weight matrix: (out, k) and (k, in), in float64 on the CPU."""

    up: torch.Tensor
    down: torch.Tensor

    def __sub__(self, other: "Update") -> "Update":
        return Update(torch.cat([self.up, -other.up], 1), torch.cat([self.down, other.down]))

    def regauged(self, r: torch.Tensor) -> "Update":
        """The same product of other factors: up r^-1 and r down, with an invertible r (k, k)."""
        return Update(torch.linalg.solve(r, self.up, left=False), r @ self.down)


Updates = dict[tuple[str, str], Update]  # by layer and projection


def lora_updates(parameters: Mapping[str, torch.Tensor], alpha: float, rank: int) -> Updates:
    """dW = (alpha / r) B A of every projection, from a PEFT model's parameters by name."""
    ups = {n: t for n, t in parameters.items() if ".lora_B." in n}
    return {
        place(name): Update(_kept(up) * alpha / rank, _kept(parameters[_down_of(name)])) for name, up in ups.items()
    }


def _down_of(name: str) -> str:
    return name.replace(".lora_B.", ".lora_A.")


def _kept(weights: torch.Tensor) -> torch.Tensor:
    """On the CPU: a gauge and an identity are made there."""
    return precise(weights.detach()).cpu()


def full_updates(parameters: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> Updates:
    """dW of every projection of a model whose weights themselves were trained: a product with the identity."""
    moved = {place(name): _kept(t) - _kept(before[name]) for name, t in parameters.items() if place(name)[0]}
    return {where: Update(change, torch.eye(change.shape[1], dtype=change.dtype)) for where, change in moved.items()}


def difference(after: Updates, before: Updates) -> Updates:
    """What came between."""
    return {where: after[where] - before[where] for where in after}


def inner(a: Update, b: Update) -> float:
    """<dW_a, dW_b>, from k x k matrices."""
    return float(((a.up.T @ b.up) * (a.down @ b.down.T)).sum())


def by_place(a: Updates, b: Updates) -> dict[tuple[str, str], float]:
    """Cosine of the two changes of every matrix; NaN where one has not changed."""
    return {
        where: _cosine(inner(a[where], b[where]), inner(a[where], a[where]), inner(b[where], b[where])) for where in a
    }


def cosine(a: Updates, b: Updates) -> float:
    """Of the changes of all matrices together."""
    return _cosine(*(sum(inner(x[w], y[w]) for w in a) for x, y in ((a, b), (a, a), (b, b))))


def norm(a: Updates) -> float:
    """Of the changes of all matrices together (Frobenius)."""
    return max(sum(inner(x, x) for x in a.values()), 0.0) ** 0.5


def factor_cosine(one: tuple[Updates, Updates], other: tuple[Updates, Updates]) -> float:
    """Cosine of two moves of the *factors*, each from a state to another of the same shapes. The gauge matters."""

    def moved(a: Updates, b: Updates) -> torch.Tensor:
        both = [(b[w].up - a[w].up, b[w].down - a[w].down) for w in a]
        return torch.cat([t.flatten() for pair in both for t in pair])

    one, other = moved(*one), moved(*other)
    return _cosine(float(one @ other), float(one @ one), float(other @ other))


def _cosine(product: float, square: float, other: float) -> float:
    return product / (square * other) ** 0.5 if square > 0 and other > 0 else float("nan")


# --- update spaces --------------------------------------------------------------------------------


def directions(update: Update, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k strongest output and input directions of a change, (out, k) and (in, k), each orthonormal.

    Its singular vectors, by QR of the thin factors and a singular value decomposition of a small matrix. Fewer than k
    if its rank is less.
    """
    left, up = torch.linalg.qr(update.up)
    right, down = torch.linalg.qr(update.down.T)
    u, s, vh = torch.linalg.svd(up @ down.T)
    held = min(k, int((s > 1e-9 * s.max()).sum())) if len(s) and s.max() > 0 else 0
    return left @ u[:, :held], right @ vh[:held].T


def principal_cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosines of the principal angles between the spans of two orthonormal bases (n, k) and (n, l), largest first.

    The singular values of a^T b: min(k, l) of them. 1 is a direction in common, 0 a right angle.
    """
    return torch.linalg.svdvals(a.T @ b).clamp(max=1.0)


def overlap(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Mean squared cosine of the principal angles, and what random spaces of these dimensions have: max(k, l) / n."""
    found = principal_cosines(a, b)
    n, k, l = len(a), a.shape[1], b.shape[1]  # noqa: E741
    return (float((found**2).mean()), max(k, l) / n) if min(k, l) else (float("nan"), float("nan"))
