"""What updates really do to the NLL of D': a run is repeated, and every update is looked at."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import alignment
from preflab.alignment import Gradient
from preflab.errors import BadInput
from preflab.hardware import precise
from preflab.layout import Batch
from preflab.likelihood import collate_responses, token_log_probs
from preflab.optimiser import RUNGS, AdamTwin, PlainTwin, Updates, directions, distance
from preflab.rules import Plain
from preflab.settings import Count, NotNegative, settings
from preflab.stages.answers import AnswersStage
from preflab.stages.probe import PairsProbe
from preflab.stages.stage import Stage
from preflab.stages.training import Trained, TrainingFromPairs, Watch, _note_step
from preflab.training.rollout import Values
from preflab.training.schedule import lr_factor
from preflab.training.sgd import train_with_sgd


@settings
class StepMeasurement:
    """Section `measurement`: which updates are taken apart, and what D' is."""

    checkpoints: Annotated[Count, Field(ge=3)] = 6  # at most, evenly in the logarithm of updates
    finals: Annotated[Count, Field(ge=2)] = 96  # held-out prompts whose responses by the final policy are D'
    final_temperature: NotNegative = 0.0  # decoding of D': 0 is greedy; choice, not stated
    nll: Literal["sum", "mean"] = "sum"  # over a response's tokens: the sum, as the paper's formula has it, or the mean
    batch: Count = 64  # sequences a pass


@dataclass(frozen=True)
class TrainingWithSGD(TrainingFromPairs):
    """The same run by plain descent: a method without a rule, to the end of the epochs. Raises BadInput otherwise."""

    def __post_init__(self) -> None:
        if self.rule != Plain() or self.live or self.updates:
            raise BadInput("training with SGD: expected no rule, no live G and no limit of updates")

    @contextmanager
    def run(self, watch: Watch, checkpoint: Path | None = None) -> Iterator[Trained]:
        """An interrupted run begins anew."""
        rows = self.pairs.encoded(self.base)
        reference = self._base_log_probs(rows)  # before an adapter is on the base
        with self._starting_policy() as policy:
            watch(0, policy, None)
            history = train_with_sgd(
                policy,
                self.base.tokenizer(),
                rows,
                reference,
                self.method,
                self.loop,
                seed=self.order,
                on_step=lambda step, steps, log: (watch(step, policy, None), _note_step(step, steps, log)),
            )
            yield Trained(policy, None, history)


@dataclass(frozen=True)
class OptimiserSteps(Stage):
    """`steps`: the updates before those that are taken apart. `answers` are D'. The whole loss is that of all training
    pairs. The exact change of NLL(D') is measured at every update."""

    training: TrainingFromPairs
    answers: AnswersStage
    steps: tuple[int, ...]
    nll: str
    batch: int

    def build(self, folder: Path) -> None:
        watcher = _Watcher(self)  # trains, and lets the final policy answer
        with self.training.run(watcher) as trained:
            end = _copied(alignment.parameters_of(trained.policy))
            losses = [log.loss for log in trained.history]
        with self.training.final_policy() as policy:
            kept = alignment.parameters_of(policy)
            repeated = max(float((end[name] - p.detach()).abs().max()) for name, p in kept.items())
        record = watcher.record | {"steps": list(self.steps), "loss": losses, "repeated": repeated}
        save_file(
            {name: torch.stack(rows).contiguous() for name, rows in watcher.arrays.items()},
            folder / "arrays.safetensors",
        )
        (folder / "record.json").write_text(json.dumps(record))

    def load(self) -> Updates:
        arrays = {name: t.numpy() for name, t in load_file(self.folder / "arrays.safetensors").items()}
        record = json.loads((self.folder / "record.json").read_text())
        numbers = {name: np.array(record[name]) for name in ("steps", "factor", "length", "twin_error", "loss")}
        return Updates(**arrays, **numbers, repeated=record["repeated"])


class _Watcher:
    """Called with the policy at the start and after every update, while `.grad` still holds the update's gradient."""

    def __init__(self, stage: OptimiserSteps):
        self.stage, training = stage, stage.training
        final, size = stage.answers.load().final, stage.batch
        device, pad = training.base.load().device, training.base.tokenizer().pad_token_id
        self.finals = [collate_responses(final[i : i + size], pad, device) for i in range(0, len(final), size)]
        self.history = training.load()
        n = len(training.pairs.rows())
        self.look = PairsProbe(n).prepared(training, size)
        self.twin = PlainTwin() if isinstance(training, TrainingWithSGD) else AdamTwin(training.loop.adam_beta2)
        self.before: Gradient = {}
        self.full: Gradient | None = None
        self.arrays: dict[str, list[torch.Tensor]] = {"rungs": [], "whole": [], "nll": []}
        self.record: dict[str, list[float]] = {"factor": [], "length": [], "twin_error": []}

    def __call__(self, step: int, policy: PreTrainedModel, values: Values | None) -> None:
        parameters = alignment.parameters_of(policy)
        mode = policy.training
        policy.eval()
        nll = torch.cat([response_nll(policy, batch, self.stage.nll) for batch in self.finals])
        self.arrays["nll"].append(nll)
        if step:
            self._after_update(step - 1, policy, parameters)
        self.before = _copied(parameters)
        self.full = self._full_gradient(step, policy, parameters) if step in self.stage.steps else None
        policy.train(mode)

    def _full_gradient(self, step: int, policy: PreTrainedModel, parameters) -> Gradient:
        probe = self.look(step, policy, None, step / len(self.history), self.history[step])
        return alignment.loss_gradient(policy, probe.pieces(self.stage.batch), parameters, probe.n)

    def _after_update(self, step: int, policy: PreTrainedModel, parameters) -> None:
        """Update number `step` has just been made."""
        own = {name: precise(p.grad) for name, p in parameters.items()}
        self.twin.take(own)
        moved = {name: precise(p.detach()) - precise(self.before[name]) for name, p in parameters.items()}
        loop = self.stage.training.loop
        factor = lr_factor(step, len(self.history), loop.warmup_share)
        rate, length = loop.learning_rate * factor, alignment.dot(moved, moved) ** 0.5
        foretold = {name: rate * d for name, d in self.twin.step().items()}
        self.record["factor"].append(factor)
        self.record["length"].append(length)
        self.record["twin_error"].append(distance(foretold, moved) / length)
        if self.full is not None:
            full = {name: precise(g) for name, g in self.full.items()}
            clipped = alignment.dot(own, own) ** 0.5 / self.history[step]["grad_norm"]
            self._take_apart(policy, parameters, directions(self.twin, rate, full, own, moved, clipped))

    def _take_apart(self, policy: PreTrainedModel, parameters, steps: dict[str, Gradient]) -> None:
        """Derivatives are taken where the update began."""
        here = _copied(parameters)
        _put(parameters, self.before)
        found = {part: self._derivative(policy, direction) for part, direction in steps.items()}
        _put(parameters, here)
        exact = self.arrays["nll"][-1] - self.arrays["nll"][-2]
        self.arrays["rungs"].append(torch.stack([*(found[part] for part in RUNGS[:-1]), exact]))
        self.arrays["whole"].append(found["preconditioned whole"])

    def _derivative(self, policy: PreTrainedModel, direction: Gradient) -> torch.Tensor:
        """Derivative of every response's NLL along a direction, (n,), by one forward-mode pass."""
        along = {name: d.to(policy.device) for name, d in direction.items()}
        slopes = [(batch, alignment.token_alignment(policy, batch, along)) for batch in self.finals]
        return torch.cat([-_reduced(s, batch, self.stage.nll) for batch, s in slopes])


@torch.no_grad()
def response_nll(policy: PreTrainedModel, batch: Batch, reduction: str) -> torch.Tensor:
    """NLL of every response, its sum or mean over tokens, in float64: (n,)."""
    return -_reduced(token_log_probs(policy, batch), batch, reduction)


def _reduced(of_tokens: torch.Tensor, batch: Batch, reduction: str) -> torch.Tensor:
    total = precise(of_tokens).sum(1).cpu()
    return total / batch["completion_mask"][:, 1:].sum(1).cpu() if reduction == "mean" else total


def _copied(parameters) -> Gradient:
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def _put(parameters, values: Gradient) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])
