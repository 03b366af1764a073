"""Training on pairs, whatever the method: explicit reference log-probs, an interruptible deterministic loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.errors import BadInput
from preflab.likelihood import PairLogProbs, by_length, collate, token_log_probs
from preflab.live import Live, smoothed
from preflab.methods.method import PairMethod
from preflab.rules import Plain, Rule
from preflab.settings import Count, NotNegative, Positive, Share, incidental, settings
from preflab.training.checkpoints import load_checkpoint, save_checkpoint
from preflab.training.processes import sum_gradients, zero_gradients
from preflab.training.schedule import batches, lr_factor, set_learning_rate
from preflab.weightings import Weights, surrogate


@settings
class PairTraining:
    """Section `pair_training`: the loop, which is the same for every method on pairs."""

    learning_rate: Positive = 3e-4
    batch_size: Count = 16  # pairs an update, over all processes
    micro_batch_size: Count = 16  # pairs a forward pass; pairs of like length go together
    activation_checkpointing: bool = incidental(False)  # less memory, a third more time, the same numbers
    epochs: Count = 1
    warmup_share: Share = 0.05  # of the updates; then linear to zero
    weight_decay: NotNegative = 0.0
    adam_beta2: Share = 0.999  # how much of the mean of squared gradients each update keeps
    max_grad_norm: Positive = 1.0
    checkpoint_every: Count = incidental(100)  # updates


@dataclass(frozen=True)
class StepLog:
    """One update, over its whole batch."""

    loss: float  # mean; DPO's is -log sigmoid(beta * Delta)
    margin: float  # mean; DPO's is beta * Delta
    accuracy: float  # share of margins > 0
    grad_norm: float  # before clipping
    live: Sequence[float] | None = None  # G of positive and negative learning as the rule saw it


def train_on_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    reference: PairLogProbs,
    method: PairMethod,
    settings: PairTraining,
    *,
    seed: int,
    rule: Rule = Plain(),  # noqa: B008  a frozen value
    live: Live | None = None,
    updates: int | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, StepLog], None] = lambda step, steps, log: None,
) -> list[StepLog]:
    """Train in place on n encoded pairs against fixed reference log-probs, of n pairs too.

    `method` says c. `rule` makes of it the c that is trained; what it takes from a batch (means, tertiles) is of a
    micro-batch. `live` tells the rule G. `updates` ends training before the epochs do.
    With `checkpoint`, the state is kept there and an interrupted call goes on from it to the same numbers. Several
    accelerate processes share each batch and, without dropout, end with the same weights as one.
    Raises BadInput if the loss or a gradient stops being finite.
    """
    if len(rows) != len(reference.chosen):
        raise BadInput(f"reference log-probs for {len(reference.chosen)} pairs, expected {len(rows)}")
    accelerator = Accelerator()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    betas, decay = (0.9, settings.adam_beta2), settings.weight_decay
    optimizer = torch.optim.AdamW(parameters.values(), settings.learning_rate, betas, weight_decay=decay)
    schedule = batches(len(rows), settings.batch_size, settings.epochs, seed)[:updates]
    history = _resumed(checkpoint, parameters, optimizer)
    seen = history[-1].live if history else None
    job = _Job(model, tokenizer, rows, reference, method, settings, rule)
    model.train()
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for step in range(len(history), len(schedule)):
        set_learning_rate(optimizer, settings.learning_rate * lr_factor(step, len(schedule), settings.warmup_share))
        with torch.random.fork_rng():
            torch.manual_seed((seed << 32) + step)  # dropout; a resumed run draws the same masks
            if live and step % live.every == 0:
                seen = smoothed(seen, live.look(model, tokenizer, *job.weighed(schedule[step])))
            log = job.gradient(schedule[step], accelerator, step / len(schedule), seen)
        _check(log, step, settings)
        optimizer.step()
        history.append(log)
        on_step(step + 1, len(schedule), log)
        due = (step + 1) % settings.checkpoint_every == 0 and step + 1 < len(schedule)
        if checkpoint and due and accelerator.is_main_process:
            save_checkpoint(checkpoint, parameters, optimizer, {"history": [vars(entry) for entry in history]})
    if settings.activation_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return history


def _resumed(checkpoint: Path | None, parameters: dict, optimizer: torch.optim.Optimizer) -> list[StepLog]:
    """The log of an interrupted call, its weights and moments put back; empty if there is none."""
    if not checkpoint or not checkpoint.exists():
        return []
    return [StepLog(**entry) for entry in load_checkpoint(checkpoint, parameters, optimizer)["history"]]


def _check(log: StepLog, step: int, settings: PairTraining) -> None:
    if not (math.isfinite(log.loss) and math.isfinite(log.grad_norm)):
        raise BadInput(
            f"training on pairs, update {step + 1}: loss {log.loss}, gradient norm {log.grad_norm}: "
            f"expected finite numbers; lower learning_rate={settings.learning_rate}"
        )


@dataclass(frozen=True)
class _Job:
    """What every update of a run shares."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: list[dict]
    reference: PairLogProbs
    method: PairMethod
    settings: PairTraining
    rule: Rule

    def gradient(
        self, indices: np.ndarray, accelerator: Accelerator, progress: float, live: Sequence[float] | None
    ) -> StepLog:
        """Gradient of the mean loss over one batch, left in .grad, clipped; micro-batches go round the processes."""
        size = self.settings.micro_batch_size
        sorted_ = indices[by_length([self.rows[i] for i in indices])] if size < len(indices) else indices
        micro = [sorted_[i : i + size] for i in range(0, len(indices), size)]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        totals = torch.zeros(3, device=self.model.device, dtype=torch.promote_types(self.model.dtype, torch.float32))
        zero_gradients(parameters)
        for some in micro[accelerator.process_index :: accelerator.num_processes]:
            _, log_probs, (c, loss, margins) = self._weigh(some)
            (surrogate(self.rule(Weights.of_pairs(c, progress, live)), log_probs) / len(indices)).backward()
            totals += torch.stack([loss.sum(), margins.sum(), (margins > 0).sum()]).to(totals)
        totals = sum_gradients(accelerator, parameters, totals)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        loss, margin, accuracy = (totals / len(indices)).tolist()
        return StepLog(loss, margin, accuracy, float(norm), live)

    @torch.no_grad()
    def weighed(self, indices: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor, int]:
        """The batch, its c and how many pairs it has: what live G is measured on."""
        batch, _, weighted = self._weigh(indices)
        return batch, weighted.c, len(indices)

    def _weigh(self, some: np.ndarray):
        """Of some pairs: the batch, token log-probs, and what the method makes of them."""
        batch = collate([self.rows[i] for i in some], self.tokenizer.pad_token_id, self.model.device)
        log_probs = token_log_probs(self.model, batch)
        reference = torch.cat([self.reference.chosen[some], self.reference.rejected[some]]).to(log_probs)
        ratios, mask = log_probs.sum(1) - reference, batch["completion_mask"][:, 1:]
        return batch, log_probs, self.method.weigh(ratios, mask)
