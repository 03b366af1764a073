"""DPO, or any other weighting of pairs: explicit reference log-probs, an interruptible deterministic loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs, collate, token_log_probs
from preflab.live import Live, smoothed
from preflab.rules import Rule, plain
from preflab.training.checkpoints import load_checkpoint, save_checkpoint
from preflab.training.processes import sum_gradients, zero_gradients
from preflab.weightings import Weights, dpo_weighting, surrogate

Weighting = Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class DPOSettings:
    beta: float = 0.3
    learning_rate: float = 1e-3
    batch_size: int = 16  # pairs per update, over all processes
    micro_batch_size: int = 16  # pairs per forward pass
    epochs: int = 1
    warmup_share: float = 0.1  # of the updates; then linear to zero
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    checkpoint_every: int = 200  # updates
    max_updates: int | None = None  # fewer than the epochs have
    live_every: int | None = None  # updates between two looks at live G


@dataclass(frozen=True)
class StepLog:
    """One update, over its whole batch."""

    loss: float  # mean; DPO's is -log sigmoid(beta * Delta)
    margin: float  # mean; DPO's is beta * Delta
    accuracy: float  # share of margins > 0
    grad_norm: float  # before clipping
    live: Sequence[float] | None = None  # G of positive and negative learning as the rule saw it


def train_dpo(
    model: PreTrainedModel,
    rows: list[dict],
    reference: PairLogProbs,
    settings: DPOSettings,
    *,
    pad_token_id: int,
    seed: int,
    weighting: Weighting = dpo_weighting,
    rule: Rule = plain,
    live: Live | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, StepLog], None] = lambda step, steps, log: None,
) -> list[StepLog]:
    """Train in place on encoded pairs against fixed reference log-probs (n pairs each).

    `weighting` gives the method's c. `rule` makes of it what is trained; what it takes from a batch (means, tertiles)
    is of a micro-batch; `live` tells it G every `live_every` updates.
    With `checkpoint`, the state is kept there every `checkpoint_every` updates and an interrupted call
    goes on from it to the same numbers. Several accelerate processes share each batch and, without
    dropout, end with the same weights as one. Raises BadInput when the loss or gradient stops being finite.
    """
    if len(rows) != len(reference.chosen):
        raise BadInput(f"reference log-probs for {len(reference.chosen)} pairs, expected {len(rows)}")
    accelerator = Accelerator()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = batches(len(rows), settings.batch_size, settings.epochs, seed)[: settings.max_updates]
    history = []
    if checkpoint and checkpoint.exists():
        history = [StepLog(**entry) for entry in load_checkpoint(checkpoint, parameters, optimizer)["history"]]
    model.train()
    seen = history[-1].live if history else None
    job = _Job(model, rows, reference, settings, pad_token_id, weighting, rule)
    for step in range(len(history), len(schedule)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * lr_factor(step, len(schedule), settings.warmup_share)
        with torch.random.fork_rng():
            torch.manual_seed((seed << 32) + step)  # dropout; a resumed run draws the same masks
            if live and step % settings.live_every == 0:
                seen = smoothed(seen, live(*job.look(schedule[step])))
            log = job.update(schedule[step], accelerator, step / len(schedule), seen)
        if not (math.isfinite(log.loss) and math.isfinite(log.grad_norm)):
            raise BadInput(
                f"DPO step {step + 1}: loss {log.loss}, gradient norm {log.grad_norm}: "
                f"expected finite numbers; lower learning_rate={settings.learning_rate}"
            )
        optimizer.step()
        history.append(log)
        on_step(step + 1, len(schedule), log)
        due = (step + 1) % settings.checkpoint_every == 0 and step + 1 < len(schedule)
        if checkpoint and due and accelerator.is_main_process:
            save_checkpoint(checkpoint, parameters, optimizer, {"history": [vars(entry) for entry in history]})
    model.eval()
    return history


def batches(n: int, batch_size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Index batches: a fresh permutation each epoch, the ragged end of an epoch left out.

    Raises BadInput when n pairs do not fill one batch.
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


@dataclass(frozen=True)
class _Job:
    """What every update of a run shares."""

    model: PreTrainedModel
    rows: list[dict]
    reference: PairLogProbs
    settings: DPOSettings
    pad_token_id: int
    weighting: Weighting
    rule: Rule

    def update(
        self, indices: np.ndarray, accelerator: Accelerator, progress: float, live: Sequence[float] | None
    ) -> StepLog:
        """Gradient of the mean loss over one batch, left in .grad, clipped; micro-batches go round the processes."""
        size = self.settings.micro_batch_size
        micro = [indices[i : i + size] for i in range(0, len(indices), size)]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        totals = torch.zeros(3, device=self.model.device, dtype=torch.promote_types(self.model.dtype, torch.float32))
        zero_gradients(parameters)
        for some in micro[accelerator.process_index :: accelerator.num_processes]:
            _, log_probs, c, loss, margins = self._weigh(some)
            (surrogate(self.rule(Weights.of_pairs(c, progress, live)), log_probs) / len(indices)).backward()
            totals += torch.stack([loss.sum(), margins.sum(), (margins > 0).sum()]).to(totals)  # of them right
        totals = sum_gradients(accelerator, parameters, totals)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        loss, margin, accuracy = (totals / len(indices)).tolist()
        return StepLog(loss, margin, accuracy, float(norm), live)

    @torch.no_grad()
    def look(self, indices: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
        """The batch, its c and how many pairs it has."""
        batch, _, c, *_ = self._weigh(indices)
        return batch, c, len(indices)

    def _weigh(self, some: np.ndarray):
        """Of some pairs: batch, token log-probs, c, losses, margins."""
        batch = collate([self.rows[i] for i in some], self.pad_token_id, self.model.device)
        log_probs = token_log_probs(self.model, batch)
        ref = torch.cat([self.reference.chosen[some], self.reference.rejected[some]]).to(log_probs)
        ratios, mask = log_probs.sum(1) - ref, batch["completion_mask"][:, 1:]
        return batch, log_probs, *self.weighting(ratios, mask, self.settings.beta)
