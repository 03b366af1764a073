"""What every training loop shares: which rows an update takes, and how large its step is."""

import numpy as np
import torch

from preflab.errors import BadInput


def batches(n: int, batch_size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Index batches: a fresh permutation each epoch, the ragged end of an epoch left out.

    Raises BadInput if n pairs do not fill one batch.
    """
    if n < batch_size:
        raise BadInput(f"batch_size={batch_size}: only {n} training pairs")
    rng = np.random.default_rng(seed)
    full = n - n % batch_size
    return [b for _ in range(epochs) for b in rng.permutation(n)[:full].reshape(-1, batch_size)]


def lr_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to zero at `steps`."""
    warmup = warmup_share * steps
    return min((step + 1) / warmup if warmup else 1.0, (steps - step) / max(steps - warmup, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
