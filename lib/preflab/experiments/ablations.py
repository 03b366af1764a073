"""Notebook 03: rows that take a component away, beside the plain methods."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from preflab.claims import win_change
from preflab.claims.ablations import Ablation
from preflab.experiments.dynamics import Dynamics, Planned
from preflab.experiments.variants import Variant
from preflab.judging import Judged, Path, at_equal_kl, described
from preflab.measured import SIGNS, Measured, mean_weights, ordered
from preflab.methods.method import PairMethod, SampleMethod
from preflab.rules import WhileSign
from preflab.stages.alignment import Measurement
from preflab.stages.drawn_answers import Drawn, DrawnAnswers, Outcome
from preflab.stages.reward import label_temperature
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.stages.training import Training
from preflab.statistics import Interval, seed_interval
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

    outcome: Outcome = Outcome()

    def rows(self) -> dict[str, Variant]:
        return self.variants

    @model_validator(mode="after")
    def _rows_possible(self) -> Self:
        for name, row in self.variants.items():
            self._check_reward(f"variants.{name}.reward", row.reward)
        return self

    def drawn_stage(self, of: Snapshots | Training | None, which: range | None = None) -> DrawnAnswers:
        """K answers to some of the held-out prompts (by default those of D')."""
        prompts, m = self.prompts(which), self.measurement
        return DrawnAnswers(self.base_model, of, prompts, self.outcome.samples, self.max_new_tokens, m.batch)

    def judged(self, runs: Sequence[Planned], which: range | None = None) -> Judged:
        """What runs answer to some of the held-out prompts (by default those of D'), and the judge's scores."""
        return self._judged([self.drawn_stage(run.training, which).load()[0] for run in runs], which)

    def judged_sft(self, which: range | None = None) -> Judged:
        """The same of the SFT model, which is one run for all seeds."""
        return self._judged(self.drawn_stage(None, which).load(), which)

    def _judged(self, answers: list[Drawn], which: range | None) -> Judged:
        prompts = self.prompts(which).messages()
        scores = np.array([self.scores(drawn, prompts) for drawn in answers])
        return Judged(answers, scores, self.label_temperature)

    def scores(self, drawn: Drawn, prompts: list[list[dict]]) -> np.ndarray:
        """The judge's score of each response, (prompts, K)."""
        return self.scored(self.asked(prompts), drawn.samples, drawn.texts).reshape(len(prompts), -1)

    def asked(self, prompts: list[list[dict]]) -> list[list[dict]]:
        """Every prompt, once for each of its K answers."""
        return [prompt for prompt in prompts for _ in range(self.outcome.samples)]

    @property
    def label_temperature(self) -> float:
        """T of the judge's labels, sigma(difference of scores / T)."""
        if self.utility:
            return self.pairs.world.temperature(self.objective)
        return label_temperature(self.judge_stage())

    def measured(self, runs: Sequence[Planned]) -> list[Measured]:
        """G along each of the runs."""
        return [self.alignment(run.training).load() for run in runs]


class Ablations(Variants):
    """03_component_ablations."""

    sample_training: SampleTraining = SampleTraining(iterations=10, learning_rate=3e-4)
    measurement: Measurement = Measurement(checkpoints=4, probe=32, finals=50, shown=1, detail=False)

    @model_validator(mode="after")
    def _variants_possible(self) -> Self:
        rows = list(self.variants.values())
        for name, row in self.variants.items():
            self.check_row(name, row)
        plain = Counter(self.kind_of(row) for row in rows if row.rule == "plain")
        for row in rows:
            if plain[self.kind_of(row)] != 1:
                wanted = f"method {row.method!r} with rule 'plain', repeats {row.repeats} and the same arguments"
                raise ValueError(f"variants: expected one of {wanted}, to compare with")
        if (asked := self.outcome.path_prompts) > (finals := self.measurement.finals):
            raise ValueError(f"outcome.path_prompts={asked}: expected at most measurement.finals={finals}")
        if all(row.rule == "plain" for row in rows):
            raise ValueError("variants: expected one with another rule than 'plain'")
        return self

    def path_stage(self, run: Planned) -> DrawnAnswers:
        """Answers along a run, to the first prompts of D'."""
        return self.drawn_stage(self.alignment(run.training).snapshots, range(self.outcome.path_prompts))

    def asked_of(self, run: Planned) -> tuple[Stage, ...]:
        drawn = self.path_stage(run), self.drawn_stage(run.training)
        return *super().asked_of(run), *drawn, self.learnt(run.training)

    def paths(self, runs: Sequence[Planned]) -> list[Path]:
        """Where each run passes: KL and score at its snapshots."""
        prompts = self.prompts(range(self.outcome.path_prompts)).messages()
        along = [self.path_stage(run).load() for run in runs]
        return [
            Path(np.array([d.kl for d in states]), np.array([self.scores(d, prompts).mean() for d in states]))
            for states in along
        ]

    def kind_of(self, row: Variant) -> tuple[PairMethod | SampleMethod, int]:
        """What a row shares with the plain one: its method, arguments included, and how often a pair is seen."""
        return self.method_of(row), row.repeats

    def by_row(self) -> dict[str, list[Planned]]:
        """By row: its runs, a seed each."""
        runs = self.planned()
        return {name: [run for run in runs if run.name == name] for name in self.variants}

    @property
    def rivals(self) -> dict[str, str]:
        """By row that takes something away: the plain row of its kind."""
        rows = self.variants.items()
        plain = {self.kind_of(row): name for name, row in rows if row.rule == "plain"}
        return {name: plain[self.kind_of(row)] for name, row in rows if row.rule != "plain"}

    def accuracy(self, runs: Sequence[Planned]) -> Accuracy:
        """Of the runs of one row."""
        on_training = [ordered(self.learnt(run.training).load()) for run in runs]
        on_held_out = [ordered(x.held_out[-1] - x.held_out[0]) for x in self.measured(runs)]
        return Accuracy(np.array(on_training), np.array(on_held_out))

    def acted(self, runs: Sequence[Planned]) -> np.ndarray:
        """The share of updates at which the rule of each run took something away: (runs,). 1 for most rules; for one
        that follows live G, what its log says."""
        rule = runs[0].row.resolved_rule()
        if not isinstance(rule, WhileSign):
            return np.ones(len(runs))
        part = SIGNS[1:].index(rule.part)
        seen = [np.array([log["live"][part] for log in run.training.load()]) for run in runs]
        return np.array([np.mean((g < 0) == (rule.sign == "negative")) for g in seen])

    def ablations(
        self,
        runs: Mapping[str, Sequence[Planned]],
        judged: Mapping[str, Judged],
        accuracy: Mapping[str, Accuracy],
        measured: Mapping[str, Sequence[Measured]],
    ) -> list[Ablation]:
        """What the claims ask of every row that takes something away."""
        return [
            Ablation(
                self.variants[name].method,
                self.variants[name].resolved_rule(),
                self.variants[name].repeats,
                judged[name].chances(judged[plain]),
                gap=accuracy[name].gap - accuracy[plain].gap,
                faded=faded(measured[plain]),
                acted=self.acted(runs[name]),
            )
            for name, plain in self.rivals.items()
        ]


def faded(measured: Sequence[Measured]) -> np.ndarray:
    """What is left of the mean weight at the end of runs, a share of that at the start: (runs,)."""
    weights = mean_weights(measured)
    return weights[:, -1] / weights[:, 0]


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
        "against SFT − ½": win_change(own.chances(sft)),
        "against plain − ½": win_change(own.chances(plain)),
        **described(own.answers),
        **{side: change_of(measured, side)[:, -1].mean() for side in SIDES},
        "held-out accuracy": accuracy.held_out.mean(),
        "gap": accuracy.gap.mean(),
    }


def equal_kl(own: Sequence[Path], plain: Sequence[Path]) -> Interval:
    """What runs gain in score over the plain ones at equal KL, seed by seed."""
    return seed_interval(np.array([at_equal_kl(one, other) for one, other in zip(own, plain, strict=True)]))
