"""05_mechanism: why Stage 2 does what it does to the objective of Stage 1. Gradients, adapters, forecasts of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import model_validator

from preflab import adapters
from preflab.adapters import Updates
from preflab.alignment import parameters_of
from preflab.claims.mechanism import Opposition
from preflab.experiments.sequential import Sequential
from preflab.experiments.two_stages import Path, Setting
from preflab.forecast import mean_quality
from preflab.geometry import known_mean
from preflab.models import Lora, unwrap
from preflab.settings import Count, Positive
from preflab.stages.course import UNSCALED, Course, CourseSettings, GradientCourse
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Job, Stage
from preflab.stages.training import Training, updates_on_pairs
from preflab.training.from_pairs import PairTraining


@dataclass(frozen=True)
class Moves:
    """What the weights of one run did: (W at the end of a stage) less (W of the base), as products."""

    fresh: Updates  # before Stage 1: a product of 0 in an adapter
    stage1: Updates
    end: Updates  # after Stage 2

    @property
    def stage2(self) -> Updates:
        """What Stage 2 added."""
        return adapters.difference(self.end, self.stage1)


@dataclass(frozen=True)
class Run:
    """One setting, order and seed."""

    setting: Setting
    path: tuple[str, str]
    seed: int

    @property
    def sequence(self) -> str:
        return f"{self.setting.name}: {' → '.join(self.path)}"


class Mechanism(Sequential):
    """05_mechanism. `full_learning_rate`: of one run that trains all weights, which have no gauge: the first setting,
    order and seed; None: there is none."""

    prompts: Count = 1  # that each stage answers: notebook 01 looks at answers
    stage2_reference: Literal["base"] = "base"  # both gradients are of losses against the base
    full_learning_rate: Positive | None
    pair_training: PairTraining = PairTraining(learning_rate=2e-3, warmup_share=0.1, epochs=3, checkpoint_every=200)
    course: CourseSettings = CourseSettings()

    @model_validator(mode="after")
    def _parts_filled(self) -> Self:
        for name in ("train_pairs", "test_pairs"):
            if (n := getattr(self, name)) < self.course.parts:
                raise ValueError(f"course.parts={self.course.parts}: expected at most {name}={n}")
        if self.lora.rank == 0:
            raise ValueError("lora.rank=0: expected an adapter; full_learning_rate trains all weights beside it")
        return self

    # --- stages

    def runs(self) -> list[Run]:
        """Every setting, order and seed."""
        return [Run(s, order, seed) for s in self.all_settings() for order in s.orders for seed in self.seeds]

    def measured_steps(self, training: Training) -> tuple[int, ...]:
        """The updates of Stage 2 after which gradients are measured: 0, then evenly in their logarithm to the last."""
        later = np.geomspace(1, updates_on_pairs(training), self.course.points - 1).round().astype(int)
        return tuple(sorted({0, *later.tolist()}))

    def gradient_course(self, run: Run) -> GradientCourse:
        first, second = (self.trained_on(run.setting, run.path[:n], run.seed) for n in (1, 2))
        training = self.training(run.setting, run.path, run.seed)
        held_out = self.source_of(run.setting, run.path[0]).test_pairs
        pairs = (ReferenceLogProbs(self.base_model, some) for some in (first, second, held_out))
        snapshots = Snapshots(training, self.measured_steps(training))
        return GradientCourse(snapshots, *pairs, self.course.parts, self.course.batch)

    def without_adapter(self) -> "Mechanism | None":
        """The same with all weights trained; None if that is not asked for. Its runs: those of `full_runs`."""
        if self.full_learning_rate is None:
            return None
        loop = replace(self.pair_training, learning_rate=self.full_learning_rate)
        return self.model_copy(update={"lora": Lora(rank=0), "pair_training": loop})

    def full_runs(self) -> list[Run]:
        """Of the first setting, order and seed."""
        return self.runs()[:1] if self.full_learning_rate else []

    def courses(self) -> dict[str, GradientCourse]:
        """Of every run, by a name that a reader knows; those that train all weights last."""
        found = {f"{run.sequence}, seed {run.seed}": self.gradient_course(run) for run in self.runs()}
        full = self.without_adapter()
        return found | {f"{r.sequence}, all weights, seed {r.seed}": full.gradient_course(r) for r in self.full_runs()}

    def jobs(self) -> dict[str, list[Job]]:
        """What is to train and to measure, in phases."""
        phases = {what: [Job(name, (stage,)) for name, stage in some.items()] for what, some in self.phases().items()}
        evaluated = self.phases()["Stage 2"]
        courses = [  # the course first: what trains for its snapshots leaves the run's own entry
            Job(name, (course, *(stage for stage in [evaluated.get(name)] if stage)))
            for name, course in self.courses().items()
        ]
        return phases | {"Stage 2": courses}

    def stages(self) -> list[Stage]:
        return [*super().stages(), *self.courses().values()]

    # --- results

    def judged(self) -> list[str]:
        """The sequences that claims speak of: those of two objectives."""
        return list(dict.fromkeys(run.sequence for run in self.runs() if not run.setting.repeats))

    def by_sequence(self, full: bool = False) -> dict[str, list[Course]]:
        """What was measured, seed by seed."""
        of, runs = (self.without_adapter(), self.full_runs()) if full else (self, self.runs())
        found: dict[str, list[Course]] = {}
        for run in runs:
            found.setdefault(run.sequence, []).append(of.gradient_course(run).load())
        return found

    def moves(self, run: Run) -> Moves:
        """What the weights of a run did."""
        states = [self._weights(run, run.path[:n]) for n in range(3)]
        if self.lora.rank:
            return Moves(*(adapters.lora_updates(state, self.lora.alpha, self.lora.rank) for state in states))
        return Moves(*(adapters.full_updates(state, states[0]) for state in states))

    def _weights(self, run: Run, path: Path) -> dict:
        training = self.training(run.setting, path, run.seed)
        if training is None:
            policy = self.base_model.fresh_policy(self.lora, run.seed)
            found = {name: p.detach().clone() for name, p in parameters_of(policy).items()}
            unwrap(policy)
            return found
        with training.final_policy() as policy:
            return {name: p.detach().clone() for name, p in parameters_of(policy).items()}


def opposition(name: str, courses: Sequence[Course], moves: Sequence[Moves]) -> Opposition:
    """What the claims ask of one setting and order, seed by seed."""
    return Opposition(
        name,
        cosines=np.array([course.halves() for course in courses]),
        updates=np.array([adapters.cosine(move.stage1, move.stage2) for move in moves]),
        lost=np.array([course.lost for course in courses]),
        foretold=np.array([course.foretold for course in courses]),
    )


def angles(moves: Sequence[Moves], rank: int) -> dict[str, float]:
    """What a run's adapter did in both stages, the mean over seeds: cosines, norms, and how far the spaces of both
    stages' `rank` strongest directions overlap, beside what random spaces would."""
    rows = []
    for move in moves:
        one, other = move.stage1, move.stage2
        row = {
            "cos(ΔW₁, ΔW₂)": adapters.cosine(one, other),
            "cos of (A, B)": adapters.factor_cosine((move.fresh, move.stage1), (move.stage1, move.end)),
            "|ΔW₁|": adapters.norm(one),
            "|ΔW₂|": adapters.norm(other),
        }
        for i, side in enumerate(("outputs", "inputs")):
            spaces = [[adapters.directions(u, rank)[i] for u in some.values()] for some in (one, other)]
            found = known_mean(np.array([adapters.overlap(a, b) for a, b in zip(*spaces, strict=True)]), 0)
            row |= {f"overlap of {side}": found[0], f"of random {side}": found[1]}
        rows.append(row)
    return pd.DataFrame(rows).mean().to_dict()


def forecast_scores(courses: Mapping[str, Sequence[Course]]) -> dict[tuple[str, str], dict[str, float]]:
    """How good each forecast of single held-out pairs is, the mean over seeds: (sequence, forecast): scores."""
    found = {}
    for name, some in courses.items():
        happened = [course.happened for course in some]
        for what in some[0].forecasts:
            forecasts = [course.forecasts[what] for course in some]
            found[name, what] = mean_quality(forecasts, happened, scaled=what != UNSCALED)
    return found


def losses(courses: Mapping[str, Sequence[Course]]) -> dict[str, dict[str, float]]:
    """What Stage 2 added to the held-out loss of the first objective, and what first-order terms say of it."""
    return {
        name: {
            "measured": float(np.mean([c.lost for c in some])),
            "summed along the path": float(np.mean([c.summed for c in some])),
            "foretold at Stage 1's end": float(np.mean([c.foretold for c in some])),
            "disattenuated cosine, early": float(np.mean([c.halves()[0] for c in some])),
        }
        for name, some in courses.items()
    }
