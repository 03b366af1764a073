"""How long this machine takes: a few seconds of the library's own training, scoring and answering on the real data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from preflab.generation import generate
from preflab.likelihood import by_length, pair_log_probs
from preflab.models import unwrap
from preflab.planning.memory import longest
from preflab.planning.work import Work, tokens
from preflab.running.run import peak_memory
from preflab.stages.data import Pairs
from preflab.stages.evaluation import Evaluation
from preflab.stages.reference import SCORING_BATCH, ReferenceLogProbs, no_reference
from preflab.stages.stage import Stage
from preflab.stages.training import TrainingFromPairs
from preflab.training.from_pairs import train_on_pairs
from preflab.training.schedule import batches

SECONDS = 5.0  # of training; with the longest micro-batch, scoring and answers it takes about ten
SCORED = 16  # pairs of like length, as in a batch of the real scoring
ANSWERED = 5  # tokens


@dataclass(frozen=True)
class Pace:
    """Seconds; None for what was not measured."""

    trained: float | None = None  # a token that training sees
    longest: float | None = None  # the longest micro-batch
    scored: float | None = None  # a token that is scored
    answers: float | None = None  # a round of answers that do not end early
    peak: int = 0  # bytes in this process's memory at most
    took: float = 0.0

    def seconds(self, work: Work) -> float:
        parts = (work.trained, self.trained), (work.scored, self.scored), (work.rounds, self.answers)
        return sum(n * each for n, each in parts if n and each)

    def told(self) -> str:
        """What was measured, in words."""
        parts = {
            "training 1,000 tokens takes": self.trained and 1000 * self.trained,
            "the longest micro-batch": self.longest,
            "scoring 1,000 tokens": self.scored and 1000 * self.scored,
            "answers to the prompts of an objective": self.answers,
        }
        return ", ".join(f"{name} {value:.1f} s" for name, value in parts.items() if value)


def measure(stages: list[Stage]) -> Pace:
    """Of the stages that a run would make. Nothing is kept, and the base model stays as it is."""
    began, found = time.perf_counter(), {}
    training = next((s for s in stages if isinstance(s, TrainingFromPairs)), None)
    if training:
        every = [row for s in stages if isinstance(s, TrainingFromPairs) for row in s.pairs.encoded(s.base)]
        found |= _training(training, longest(every, training.loop.micro_batch_size))
    if evaluation := next((s for s in stages if isinstance(s, Evaluation)), None):
        found |= _scoring(evaluation, evaluation.held_out[0]) | _answering(evaluation)
    elif reference := next((s for s in stages if isinstance(s, ReferenceLogProbs)), None):
        found |= _scoring(reference, reference.pairs)
    peak = peak_memory()["main"] * 2**20
    return Pace(**found, peak=peak, took=time.perf_counter() - began)


def _training(stage: TrainingFromPairs, largest: list[dict]) -> dict[str, float]:
    """The trainer itself, from a fresh start: once on the largest micro-batch, then on batches of the real size.

    Reference log-probs of 0 make other losses, and cost the same.
    """
    base, rows, loop = stage.base, stage.pairs.encoded(stage.base), stage.loop
    policy = base.fresh_policy(stage.lora, stage.seed)

    def seconds(some: list[dict], loop, seed: int) -> float:
        options = {"seed": seed, "rule": stage.rule, "updates": 1}
        reference = no_reference(len(some))
        return timed(lambda: train_on_pairs(policy, base.tokenizer(), some, reference, stage.method, loop, **options))

    try:
        first = seconds(largest, replace(loop, batch_size=len(largest), micro_batch_size=len(largest)), 0)
        spent, seen = 0.0, 0
        for seed in count():
            spent += seconds(rows, loop, seed)
            seen += tokens(rows[i] for i in batches(len(rows), loop.batch_size, loop.epochs, seed)[0])
            if spent >= SECONDS:
                return {"longest": first, "trained": spent / seen}
    finally:
        unwrap(policy)


def _scoring(stage: Evaluation | ReferenceLogProbs, pairs: Pairs) -> dict[str, float]:
    """The pairs of middle length."""
    base, rows = stage.base, pairs.encoded(stage.base)
    start = max(0, (len(rows) - SCORED) // 2)
    some = [rows[i] for i in by_length(rows)[start : start + SCORED]]
    pad = base.tokenizer().pad_token_id
    spent = timed(lambda: pair_log_probs(base.load(scoring=True), some, pad, SCORING_BATCH))
    return {"scored": spent / tokens(some)}


def _answering(stage: Evaluation) -> dict[str, float]:
    """A first token costs a pass of the prompts, every other one a step."""
    base, prompts = stage.base, stage.held_out[0].rows()["prompt"][: stage.prompts]
    model, tokenizer = base.load(scoring=True), base.tokenizer()
    first, few = (timed(lambda n=n: generate(model, tokenizer, prompts, max_new_tokens=n)) for n in (1, ANSWERED))
    return {"answers": first + (few - first) / (ANSWERED - 1) * (stage.max_new_tokens - 1)}


def timed(do: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
