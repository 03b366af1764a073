"""Notebook 03: rows that take a component away, beside the plain methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from preflab.claims import win_change
from preflab.claims.ablations import Ablation
from preflab.experiments.dynamics import Dynamics, Planned
from preflab.experiments.variants import Variant
from preflab.judging import Judged, described
from preflab.measured import Measured, ordered
from preflab.stages.alignment import Measurement
from preflab.stages.answers import Answers
from preflab.stages.stage import Stage
from preflab.training.from_samples import SampleTraining

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs with a DPO margin above 0 at the end of training, a seed each: (seeds,)."""

    training: np.ndarray  # all the pairs of the run, whether it learnt from them or took their prompts
    held_out: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """What is lost on the way from training pairs to held-out ones."""
        return self.training - self.held_out


class Variants(Dynamics):
    """What notebooks that compare rows share."""

    variants: Annotated[dict[str, Variant], Field(min_length=1)]

    def rows(self) -> dict[str, Variant]:
        return self.variants

    @model_validator(mode="after")
    def _rows_possible(self) -> Self:
        if temperature := self.measurement.final_temperature:
            raise ValueError(
                f"measurement.final_temperature={temperature}: expected 0.0, win rates are of greedy answers too"
            )
        for name, row in self.variants.items():
            self._check_reward(f"variants.{name}.reward", row.reward)
        return self

    def judged(self, runs: Sequence[Planned], which: range | None = None) -> Judged:
        """What runs answer to some of the held-out prompts (by default those of D'), and the judge's scores."""
        return self._judged([self.answers_stage(run.training, which).load() for run in runs], which)

    def judged_sft(self, which: range | None = None) -> Judged:
        """The same of the SFT model, which is one run for all seeds."""
        return self._judged([self.answers_stage(None, which).load()], which)

    def _judged(self, answers: list[Answers], which: range | None) -> Judged:
        greedy, sampled = (np.array([self.scores(a, kind, which) for a in answers]) for kind in (True, False))
        return Judged(answers, greedy, sampled)

    def measured(self, runs: Sequence[Planned]) -> list[Measured]:
        """G along each of the runs."""
        return [self.alignment(run.training).load() for run in runs]


class Ablations(Variants):
    """03_component_ablations."""

    sample_training: SampleTraining = SampleTraining(iterations=20)
    measurement: Measurement = Measurement(checkpoints=4, probe=64, shown=1, detail=False)

    @model_validator(mode="after")
    def _variants_possible(self) -> Self:
        rows = list(self.variants.values())
        for method in {row.method for row in rows}:
            if sum(row.method == method and row.rule == "plain" for row in rows) != 1:
                raise ValueError(f"variants: expected one of method {method!r} with rule 'plain' to compare with")
        if all(row.rule == "plain" for row in rows):
            raise ValueError("variants: expected one with another rule than 'plain'")
        for name, row in self.variants.items():
            self.check_row(name, row)
        return self

    def asked_of(self, run: Planned) -> tuple[Stage, ...]:
        return *super().asked_of(run), self.learnt(run.training)

    @property
    def plain_of(self) -> dict[str, str]:
        """By method: the name of its plain row."""
        return {row.method: name for name, row in self.variants.items() if row.rule == "plain"}

    def by_row(self) -> dict[str, list[Planned]]:
        """By row: its runs, a seed each."""
        runs = self.planned()
        return {name: [run for run in runs if run.name == name] for name in self.variants}

    @property
    def rivals(self) -> dict[str, str]:
        """By row that takes something away: the plain row of its method."""
        return {name: self.plain_of[row.method] for name, row in self.variants.items() if row.rule != "plain"}

    def accuracy(self, runs: Sequence[Planned]) -> Accuracy:
        """Of the runs of one row."""
        on_training = [ordered(self.learnt(run.training).load()) for run in runs]
        on_held_out = [ordered(x.held_out[-1] - x.held_out[0]) for x in self.measured(runs)]
        return Accuracy(np.array(on_training), np.array(on_held_out))

    def ablations(self, judged: Mapping[str, Judged], accuracy: Mapping[str, Accuracy]) -> list[Ablation]:
        """What the claims ask of every row that takes something away."""
        rows = self.variants
        return [
            Ablation(
                rows[name].method,
                rows[name].rule,
                rows[name].until,
                judged[name].wins(judged[plain], greedy=True),
                accuracy[name].gap,
            )
            for name, plain in self.rivals.items()
        ]


def change_of(measured: Sequence[Measured], side: str) -> np.ndarray:
    """Mean change of the held-out pairs' log-probs since the SFT model, along runs: (runs, steps)."""
    i = SIDES.index(side)
    return np.array([(x.held_out[:, i] - x.held_out[0, i]).mean(-1) for x in measured])


def ablation_row(
    own: Judged, plain: Judged, sft: Judged, measured: Sequence[Measured], accuracy: Accuracy
) -> dict[str, Any]:
    """All that notebook 03 tells of one row, beside the plain row of its method and the SFT model."""
    return {
        "score": own.score,
        "greedy, against SFT − ½": win_change(own.wins(sft, greedy=True)),
        "greedy, against plain − ½": win_change(own.wins(plain, greedy=True)),
        "sampled, against plain − ½": win_change(own.wins(plain)),
        **described(own.answers),
        **{side: change_of(measured, side)[:, -1].mean() for side in SIDES},
        "held-out accuracy": accuracy.held_out.mean(),
        "gap": accuracy.gap.mean(),
    }
