"""Training on pairs by plain gradient descent, as a control of Adam. Everything else is as in `from_pairs`."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.likelihood import PairLogProbs
from preflab.methods.method import PairMethod
from preflab.rules import Plain
from preflab.training.from_pairs import PairTraining, StepLog, _check, _Job
from preflab.training.schedule import batches, lr_factor, set_learning_rate


def train_with_sgd(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    reference: PairLogProbs,
    method: PairMethod,
    settings: PairTraining,
    *,
    seed: int,
    on_step: Callable[[int, int, StepLog], None] = lambda step, steps, log: None,
) -> list[StepLog]:
    """Train in place, theta <- theta - eta_t g, with the batches, the clip and the schedule of `train_on_pairs`.

    g is the clipped gradient of the mean loss over a batch. There is no momentum, no preconditioner and no decay, so
    `adam_beta2` counts for nothing. Raises BadInput if the loss or a gradient stops being finite.
    """
    job = _Job(model, tokenizer, rows, reference, method, settings, Plain())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], settings.learning_rate)
    schedule = batches(len(rows), settings.batch_size, settings.epochs, seed)
    history, accelerator = [], Accelerator()
    model.train()
    for step, batch in enumerate(schedule):
        set_learning_rate(optimizer, settings.learning_rate * lr_factor(step, len(schedule), settings.warmup_share))
        with torch.random.fork_rng():
            torch.manual_seed((seed << 32) + step)  # dropout, as Adam's run draws it
            log = job.gradient(batch, accelerator, step / len(schedule), None)
        _check(log, step, settings)
        optimizer.step()
        history.append(log)
        on_step(step + 1, len(schedule), log)
    model.eval()
    return history
