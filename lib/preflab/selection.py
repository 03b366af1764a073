"""Equal budgets: every method tries as many values of its own parameter, with as many updates, on a validation split.

The held-out prompts are cut in three: the first `finals` are those of D', the next `validation` choose, the next
`report` are reported on. A candidate's merit is the win rate of its sampled answers against the SFT model's, over the
first `sweep_seeds` seeds; the best one then trains with all seeds.
"""

from dataclasses import dataclass, replace

import numpy as np

from preflab import dynamics, judging, measurement, runs
from preflab.bases import check_sources
from preflab.dynamics import Training
from preflab.parameters import CoordinationSettings, Variant


def candidates(p: CoordinationSettings) -> dict[str, list[Training]]:
    """By row: every candidate with every seed of the sweep, candidates in order. Raises BadInput for rules, arguments
    and sources that do not exist."""
    check_sources(p)
    seeds = p.seeds[: p.sweep_seeds]
    found = {
        name: [Training(v.method, seed, _label(name, v), v) for v in row.candidates() for seed in seeds]
        for name, row in p.variants.items()
    }
    dynamics.checked([training for some in found.values() for training in some])
    return found


def _label(name: str, variant: Variant) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in variant.arguments.items())])


def validation_prompts(p: CoordinationSettings) -> range:
    return range(p.finals, p.finals + p.validation)


def report_prompts(p: CoordinationSettings) -> range:
    start = p.finals + p.validation
    return range(start, start + p.report)


@dataclass(frozen=True)
class Task:
    """Work on one run: try a candidate out on the validation prompts, or measure a chosen one and let it answer the
    prompts that are reported on."""

    training: Training
    final: bool

    def __str__(self) -> str:
        return str(self.training)


def work(p: CoordinationSettings, task: Task) -> None:
    """Do it, training first where that is not done yet; what it makes is in the cache."""
    if task.final:
        measurement.measure(p, task.training)
    dynamics.load_answers(p, task.training, _prompts(p, task))


def is_done(p: CoordinationSettings, task: Task) -> bool:
    answers = runs.cache().folder("answers", dynamics.answers_key(p, task.training, _prompts(p, task)))
    return answers.exists() and (not task.final or measurement.is_measured(p, task.training))


def _prompts(p: CoordinationSettings, task: Task) -> range:
    return report_prompts(p) if task.final else validation_prompts(p)


def merits(p: CoordinationSettings, tried: list[Training]) -> np.ndarray:
    """Win rate of each candidate of one row against the SFT model on the validation prompts: (candidates,)."""
    which = validation_prompts(p)

    def scored(training: Training | None) -> np.ndarray:
        return judging.judged(p, dynamics.load_answers(p, training, which), False, which)

    sft = scored(None)
    rates = [judging.wins(scored(training), sft).mean() for training in tried]
    return np.array(rates).reshape(-1, p.sweep_seeds).mean(1)


def chosen(p: CoordinationSettings, tried: dict[str, list[Training]]) -> dict[str, list[Training]]:
    """By row: the best candidate, with every seed; of equals the first."""
    best = {name: some[int(merits(p, some).argmax()) * p.sweep_seeds] for name, some in tried.items()}
    return {name: [replace(training, seed=seed) for seed in p.seeds] for name, training in best.items()}
