"""One training run: from pairs, or from the policy's own samples. What is kept is the final policy and the log."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from transformers import PreTrainedModel

from preflab.likelihood import PairLogProbs, pair_log_probs
from preflab.live import Live
from preflab.methods.method import PairMethod, SampleMethod
from preflab.models import Lora, load_trained, merged, save_model, trainable, unwrap
from preflab.progress import Pace, note
from preflab.rewards import oracle_reward
from preflab.rules import Plain, Rule
from preflab.stages.base import Base
from preflab.stages.reference import SCORING_BATCH, ReferenceLogProbs, no_reference
from preflab.stages.stage import Stage, store
from preflab.training.from_pairs import PairTraining, StepLog, train_on_pairs
from preflab.training.from_samples import IterationLog, SampleTraining, train_on_samples
from preflab.training.rollout import Values, reference_of
from preflab.training.schedule import batches

if TYPE_CHECKING:
    from preflab.stages.data import Pairs
    from preflab.stages.reward import RewardStage

CHECKPOINT = "checkpoint.safetensors"  # in the folder of what is being made
Watch = Callable[[int, PreTrainedModel, Values | None], None]  # updates so far, policy, values (PPO's)


class Trained(NamedTuple):
    """What a run ends with."""

    policy: PreTrainedModel
    values: Values | None
    history: list[StepLog] | list[IterationLog]


@dataclass(frozen=True)
class Training(Stage):
    """What both kinds of training share. A `rule` makes of the method's c the c that is trained."""

    base: Base
    pairs: "Pairs"  # learnt from; methods on samples take their prompts
    seed: int  # of an adapter, and of samples
    lora: Lora

    def run(self, watch: Watch, checkpoint: Path | None = None):
        """A context: train, with `watch` called at the start and after every update. Gives `Trained`."""
        raise NotImplementedError

    def values(self) -> Values | None:
        """A value function that has learnt nothing yet; None for a method without one."""
        return None

    def logged_at(self, step: int) -> int:
        """Which entry of the log the update after `step` belongs to."""
        return step

    def inner_epochs(self, step: int) -> list[int]:
        """The updates with which later epochs on the samples of `step` begin; none in training on pairs."""
        return []

    def build(self, folder: Path) -> None:
        with self.run(lambda *_: None, folder / CHECKPOINT) as trained:
            self.keep(trained, folder)

    def keep(self, trained: Trained, folder: Path) -> None:
        """Write the final policy and the log. The state of an interrupted `build`, if there is one, goes."""
        save_model(trained.policy, self.base.tokenizer(), folder / "model")
        (folder / "history.json").write_text(json.dumps([asdict(log) for log in trained.history]))
        (folder / CHECKPOINT).unlink(missing_ok=True)

    def deposit(self, trained: Trained) -> None:
        """Keep what a run outside of `build` has ended with, so that nothing trains twice."""
        store().deposit(self, lambda folder: self.keep(trained, folder))

    def load(self) -> list[dict[str, Any]]:
        """The log: of every update (from pairs) or iteration (from samples)."""
        return json.loads((self.folder / "history.json").read_text())

    @contextmanager
    def final_policy(self, scoring: bool = False) -> Iterator[PreTrainedModel]:
        """The final policy, in evaluation mode; an adapter leaves the base when the context ends."""
        base, folder = self.base.load(scoring), self.folder / "model"
        model = load_trained(folder, base, base.device, base.dtype)
        try:
            yield model
        finally:
            unwrap(model)


def updates_on_pairs(training: "TrainingFromPairs") -> int:
    """Updates of the optimiser in all."""
    pairs, loop = len(training.pairs.rows()), training.loop
    return len(batches(pairs, loop.batch_size, loop.epochs, training.order)[: training.updates])


@dataclass(frozen=True)
class TrainingFromPairs(Training):
    """DPO and other methods on pairs. Stage 2 of a sequence starts from Stage 1."""

    method: PairMethod
    loop: PairTraining
    order: int  # seed of the order of batches
    rule: Rule = Plain()  # noqa: RUF009  a frozen value
    live: Live | None = None  # how training looks at G, for a rule that follows it
    updates: int | None = None  # fewer than the epochs have
    start: "TrainingFromPairs | None" = None  # None: a fresh adapter on the base, or a copy of it
    reference: Literal["base", "start"] = "base"

    @contextmanager
    def run(self, watch: Watch, checkpoint: Path | None = None) -> Iterator[Trained]:
        tokenizer, rows = self.base.tokenizer(), self.pairs.encoded(self.base)
        base_log_probs = self._base_log_probs(rows)  # before an adapter is on the base
        with self._starting_policy() as policy:
            reference = base_log_probs
            if self.method.reference and self.reference == "start" and self.start:
                reference = pair_log_probs(policy, rows, tokenizer.pad_token_id, SCORING_BATCH)
            watch(0, policy, None)
            history = train_on_pairs(
                policy,
                tokenizer,
                rows,
                reference,
                self.method,
                self.loop,
                seed=self.order,
                rule=self.rule,
                live=self.live,
                updates=self.updates,
                checkpoint=checkpoint,
                on_step=lambda step, steps, log: (watch(step, policy, None), _note_step(step, steps, log)),
            )
            yield Trained(policy, None, history)

    def _base_log_probs(self, rows: list[dict]) -> PairLogProbs:
        return ReferenceLogProbs(self.base, self.pairs).load() if self.method.reference else no_reference(len(rows))

    @contextmanager
    def _starting_policy(self) -> Iterator[PreTrainedModel]:
        if self.start:
            with self.start.final_policy() as policy:
                yield policy
            return
        policy = self.base.fresh_policy(self.lora, self.seed)
        try:
            yield policy
        finally:
            unwrap(policy)


@dataclass(frozen=True)
class TrainingOnTop(TrainingFromPairs):
    """Stage 2 with an adapter of its own. What Stage 1 has learnt becomes part of a copy of the base, and stays.

    To keep the first adapter frozen beside the second is the same: W + dW1 + dW2, and the gradient goes to dW2 alone.
    """

    @contextmanager
    def _starting_policy(self) -> Iterator[PreTrainedModel]:
        yield trainable(self._merged(), self.lora, self.seed)

    def _merged(self, scoring: bool = False) -> PreTrainedModel:
        """The policy that Stage 1 ended with, as one plain model."""
        base, folder = copy.deepcopy(self.base.load(scoring)), self.start.folder / "model"
        return merged(load_trained(folder, base, base.device, base.dtype))

    @contextmanager
    def final_policy(self, scoring: bool = False) -> Iterator[PreTrainedModel]:
        base, folder = self._merged(scoring), self.folder / "model"
        yield load_trained(folder, base, base.device, base.dtype)


@dataclass(frozen=True)
class TrainingFromSamples(Training):
    """PPO, GRPO and RLOO. The oracle, if there is one, is logged and never learned from."""

    method: SampleMethod
    loop: SampleTraining
    reward: "RewardStage"
    max_new_tokens: int
    rule: Rule = Plain()  # noqa: RUF009  a frozen value
    live: Live | None = None

    def values(self) -> Values | None:
        return Values(self.base.load(), self.method.own_value_trunk) if self.method.has_values else None

    def logged_at(self, step: int) -> int:
        return step // self.loop.updates

    def inner_epochs(self, step: int) -> list[int]:
        an_epoch = self.loop.updates // self.loop.epochs
        return [step + epoch * an_epoch for epoch in range(1, self.loop.epochs)]

    @contextmanager
    def run(self, watch: Watch, checkpoint: Path | None = None) -> Iterator[Trained]:
        base, tokenizer, utility = self.base.load(), self.base.tokenizer(), self.pairs.of.utility
        reward = self.reward.load()  # before an adapter is on the base: it may have to train one there itself
        values, policy = self.values(), self.base.fresh_policy(self.lora, self.seed)
        try:
            watch(0, policy, values)
            history = train_on_samples(
                policy,
                values,
                tokenizer,
                self.pairs.rows()["prompt"],
                reference_of(policy, base),
                reward,
                self.method,
                self.loop,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                rule=self.rule,
                live=self.live,
                judge=oracle_reward(utility, tokenizer) if utility else None,
                checkpoint=checkpoint,
                on_step=_note_iteration,
                on_update=lambda update: watch(update, policy, values),
            )
            yield Trained(policy, values, history)
        finally:
            unwrap(policy)


_pace = Pace()


def _note_step(step: int, steps: int, log: StepLog) -> None:
    if left := _pace.left(step, steps):
        note(f"    update {step} of {steps}, loss {log.loss:.3f}, accuracy {log.accuracy:.2f}, {left}")


def _note_iteration(step: int, steps: int, log: IterationLog) -> None:
    if left := _pace.left(step, steps):
        note(f"    iteration {step} of {steps}, reward {log.score:.2f}, KL {log.kl:.2f}, {left}")
