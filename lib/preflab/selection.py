"""Equal budgets: every method tries as many values of its own parameter, with as many updates, on a validation split.

The held-out prompts are cut in three: the first `finals` are those of D', the next `validation` choose, the next
`report` are reported on. A candidate's merit is the win rate of its sampled answers against the SFT model's, over the
first `sweep_seeds` seeds; the best one then trains with all seeds, those that chose it among them.

Methods that others are compared with choose first. A row with a rival (`against`) starts from the arguments that its
rival has chosen, beta for one, so that what sets it apart from it is what the row says and nothing else.
"""

from dataclasses import dataclass, replace

import numpy as np

from preflab import dynamics, judging, measurement, runs
from preflab.bases import check_sources
from preflab.dynamics import Training
from preflab.parameters import CoordinationSettings, Variant


def plain_candidates(p: CoordinationSettings) -> dict[str, list[Training]]:
    """By row that others are compared with: every candidate with every seed of the sweep, candidates in order. Raises
    BadInput for rules, arguments and sources of any row that do not exist."""
    check_sources(p)
    plain = {name: _trainings(p, name, row.candidates({})) for name, row in p.variants.items() if not row.against}
    dynamics.checked([training for some in on_top(p, plain).values() for training in some])
    return plain


def candidates(p: CoordinationSettings) -> dict[str, list[Training]]:
    """The same of every row, those with a rival on top of what it has chosen."""
    plain = plain_candidates(p)
    return on_top(p, {name: chosen_of(p, some) for name, some in plain.items()})


def on_top(p: CoordinationSettings, rivals: dict[str, list[Training]]) -> dict[str, list[Training]]:
    """By row: candidates, on top of the arguments of the first of their rival's."""
    given = {name: some[0].variant.arguments for name, some in rivals.items()}
    return {
        name: _trainings(p, name, row.candidates(given[row.against] if row.against else {}))
        for name, row in p.variants.items()
    }


def _trainings(p: CoordinationSettings, name: str, variants: list[Variant]) -> list[Training]:
    seeds = p.seeds[: p.sweep_seeds]
    return [Training(v.method, seed, _label(name, v), v) for v in variants for seed in seeds]


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


def chosen_of(p: CoordinationSettings, tried: list[Training]) -> list[Training]:
    """The best candidate of one row, with every seed; of equals the first."""
    best = tried[int(merits(p, tried).argmax()) * p.sweep_seeds]
    return [replace(best, seed=seed) for seed in p.seeds]


def chosen(p: CoordinationSettings, tried: dict[str, list[Training]]) -> dict[str, list[Training]]:
    """By row: the best candidate, with every seed."""
    return {name: chosen_of(p, some) for name, some in tried.items()}
