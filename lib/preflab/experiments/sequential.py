"""Paper S's protocol: DPO on one objective, then on another, in named settings; both are measured after each stage."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from preflab import rewards
from preflab.claims.sequential import Cell
from preflab.data.worlds import World
from preflab.errors import shown
from preflab.experiments.two_stages import Path, Setting, TwoStages
from preflab.margins import STAGES, Outcome, accuracy, dpo_margin, outcome, policy_margin
from preflab.settings import SOURCE, Count
from preflab.stages.evaluation import Evaluated, Evaluation
from preflab.stages.stage import Stage

SOURCE_PATTERN = re.compile(SOURCE)


@dataclass(frozen=True)
class Sequence:
    """One setting and order, all seeds.

    Margins are {objective: (3, seeds, pairs)}: of the base, after Stage 1, after Stage 2. The base's rows repeat.
    """

    setting: Setting
    path: tuple[str, str]
    policy_margins: dict[str, np.ndarray]  # length-normalised, nats per token
    dpo_margins: dict[str, np.ndarray]  # against the base, nats
    prompts: dict[str, np.ndarray]  # of each objective's held-out pairs, as numbers: (pairs,)
    results: list[list[Evaluated]]  # [base, Stage 1, Stage 2][seed]

    @property
    def name(self) -> str:
        return f"{self.setting.name}: {' → '.join(self.path)}"

    @property
    def order(self) -> str:
        """A → B, as the setting names its objectives, or B → A."""
        return "A → B" if self.path == self.setting.objectives else "B → A"

    @property
    def first(self) -> np.ndarray:
        """Policy margins of the objective that was trained first: (3, seeds, pairs)."""
        return self.policy_margins[self.path[0]]

    @property
    def held_out(self) -> dict[str, int]:
        """How many held-out pairs that objective has, and with how many different prompts."""
        return {"held-out pairs": self.first.shape[2], "held-out prompts": len(set(self.clusters))}

    @property
    def clusters(self) -> np.ndarray:
        """The prompt of each of these pairs: (pairs,)."""
        return self.prompts[self.path[0]]

    @property
    def change(self) -> np.ndarray:
        """What Stage 2 did to them: (seeds, pairs)."""
        return self.first[2] - self.first[1]

    @property
    def outcome(self) -> Outcome:
        return outcome(*self.first, self.dpo_margins[self.path[0]][1], self.clusters)

    def told(self) -> dict[str, Any]:
        """The outcome as a row of a table, with the pairs that it rests on. Nothing relates to a gain of nothing."""
        row = {**vars(self.outcome), **self.held_out}
        return row | ({"relative": None} if row["verdict"] == "not learned" else {})

    @property
    def cell(self) -> Cell:
        """What the claims ask of it."""
        relation = self.setting.relation.get("correlation", np.nan)
        return Cell(self.setting.name, *self.path, *self.first, relation, self.clusters)


class Sequential(TwoStages):
    """01_sequential_settings. A setting is [source, A, B] or [source, A, source, B], with objectives A and B."""

    settings: Annotated[dict[str, Annotated[list[str], Field(min_length=3, max_length=4)]], Field(min_length=1)]
    prompts: Count  # held-out prompts per objective that each stage answers
    stage2_reference: Literal["base", "stage1"]
    resamples: Annotated[Count, Field(ge=100)]  # draws behind the intervals of S2 and S4

    @model_validator(mode="before")
    @classmethod
    def _sources_named(cls, values: dict) -> dict:
        rows = values.get("settings")
        for name, row in rows.items() if isinstance(rows, dict) else ():
            for source in [*row[:1], *row[2:-1]] if isinstance(row, list) else ():
                if not (isinstance(source, str) and SOURCE_PATTERN.match(source)):
                    raise ValueError(f"settings.{name}={shown(source)}: expected world:NAME, hub:REPO or files:PATH")
        return values

    @model_validator(mode="after")
    def _settings_possible(self) -> Self:
        size = self.pair_training.batch_size
        if size > self.train_pairs:
            raise ValueError(f"pair_training.batch_size={size}: expected at most train_pairs={self.train_pairs}")
        for setting in self.all_settings():
            if setting.repeats and len(set(setting.sources)) > 1:
                raise ValueError(f"settings.{setting.name}: two sources, expected objectives of different names")
            if setting.repeats:  # Stage 2 has new pairs
                self.check_enough(
                    setting.sources[0], setting.objectives[0], {"train_pairs": self.train_pairs}, stages=2
                )
        return self

    # --- stages

    def all_settings(self) -> list[Setting]:
        return [Setting.of(name, row) for name, row in self.settings.items()]

    @property
    def stage2_against(self) -> Literal["base", "start"]:
        return "start" if self.stage2_reference == "stage1" else "base"

    @property
    def answered(self) -> int:
        return self.prompts

    def phases(self) -> dict[str, dict[str, Evaluation]]:
        """Everything to train and measure, by what a reader may call it; each phase needs only those before it."""
        settings = self.all_settings()
        return {
            "base model scored": {f"{s.name}: base": self.evaluation(s, (), 0) for s in settings},
            "Stage 1": self._phase([(s, (o,)) for s in settings for o in dict.fromkeys(s.objectives)]),
            "Stage 2": self._phase([(s, order) for s in settings for order in s.orders]),
        }

    def stages(self) -> list[Stage]:
        return [stage for phase in self.phases().values() for stage in phase.values()]

    def _phase(self, paths: list[tuple[Setting, Path]]) -> dict[str, Evaluation]:
        return {
            f"{setting.name}: {' → '.join(path)}, seed {seed}": self.evaluation(setting, path, seed)
            for setting, path in paths
            for seed in self.seeds
        }

    # --- results

    def sequences(self) -> list[Sequence]:
        """Margins of every setting and order after every stage."""
        return [self._sequence(setting, order) for setting in self.all_settings() for order in setting.orders]

    def _sequence(self, setting: Setting, path: tuple[str, str]) -> Sequence:
        base = self.evaluation(setting, (), 0).load()
        results = [[base] * len(self.seeds)]
        results += [[self.evaluation(setting, path[:n], seed).load() for seed in self.seeds] for n in (1, 2)]

        def stacked(margin, objective: str) -> np.ndarray:
            logs = [[result.log_probs[objective] for result in row] for row in results]
            return np.array([[margin(log, base.log_probs[objective]) for log in row] for row in logs])

        return Sequence(
            setting,
            path,
            {o: stacked(lambda log, _: policy_margin(log), o) for o in path},
            {o: stacked(lambda log, ref: dpo_margin(log, ref, self.dpo.beta), o) for o in path},
            {o: numbered(self.source_of(setting, o).test_pairs.rows()["prompt"]) for o in path},
            results,
        )

    def loss(self, sequence: Sequence) -> list[list[float]]:
        """Of every update of Stage 2, by seed."""
        trainings = [self.training(sequence.setting, sequence.path, seed) for seed in self.seeds]
        return [[log["loss"] for log in training.load()] for training in trainings]

    def _objectives(self) -> list[tuple[Setting, str]]:
        return [(s, o) for s in self.all_settings() for o in dict.fromkeys(s.objectives)]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many pairs each objective has: those of one stage and seed, and the held-out ones."""
        return {
            f"{s.name}, {o}": {
                "training pairs": len(self.trained_on(s, (o,), self.seeds[0]).rows()),
                "held-out pairs": len(self.source_of(s, o).test_pairs.rows()),
            }
            for s, o in self._objectives()
        }

    def few(self) -> list[str]:
        """A warning for every objective that has too few pairs to say much."""
        found = {f"{s.name}, {o}": self.source_of(s, o).load(self.seeds[0]).report.few for s, o in self._objectives()}
        return [f"{where}: {text}" for where, text in found.items() if text]

    def reports(self) -> dict[str, dict]:
        """What was read, by setting, objective and seed."""
        return {
            f"{s.name}/{o}/seed {seed}": self.read_report(self.source_of(s, o), s.source_of(o), seed)
            for s in self.all_settings()
            for o in dict.fromkeys(s.objectives)
            for seed in self.seeds
        }


def numbered(prompts: Iterable[Any]) -> np.ndarray:
    """A number for each different prompt, in the order of the pairs: (pairs,)."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(json.dumps(prompt), len(known)) for prompt in prompts])


def accuracies(sequence: Sequence) -> list[dict[str, str | float]]:
    """Accuracy on the held-out pairs of each objective after each stage, the mean over seeds: a row an objective.

    The relative accuracy says nothing of the base, all of whose DPO margins are 0.
    """
    rows = []
    for objective in dict.fromkeys(sequence.path):
        relative = accuracy(sequence.dpo_margins[objective]).mean(1)  # (3,)
        policy = accuracy(sequence.policy_margins[objective]).mean(1)
        row = {"sequence": sequence.name, "measured on": objective}
        row |= {f"relative, {stage}": relative[i] for i, stage in enumerate(STAGES) if i}
        row |= {f"policy, {stage}": policy[i] for i, stage in enumerate(STAGES)}
        rows.append(row | {"held-out pairs": sequence.policy_margins[objective].shape[2]})
    return rows


def mean_utilities(sequence: Sequence) -> list[dict[str, str | float]]:
    """The oracle's mean utility of what each stage answers, for each objective on its own held-out prompts.

    Mean over prompts and seeds. A row an objective; none if there is no oracle.
    """
    world, rows = sequence.setting.world, []
    for objective in dict.fromkeys(sequence.path) if world else ():
        found = [[utilities(world, objective, seed.samples) for seed in stage] for stage in sequence.results]
        means = np.mean(found, axis=(1, 2)).tolist()
        row = {"sequence": sequence.name, "utility of": objective} | dict(zip(STAGES, means, strict=True))
        rows.append(row | {"held-out prompts": len(found[0][0])})
    return rows


def said(sequence: Sequence, n: int) -> dict[str, dict[str, str]]:
    """What the first seed's stages answer to the first n held-out prompts of the objective that was trained first:
    prompt: stage: answer."""
    stages = [results[0].samples for results in sequence.results]
    own = [i for i, sample in enumerate(stages[0]) if sample["objective"] == sequence.path[0]][:n]
    return {
        stages[0][i]["prompt"][-1]["content"]: {
            stage: samples[i]["response"] for stage, samples in zip(STAGES, stages, strict=True)
        }
        for i in own
    }


def utilities(world: World, objective: str, samples: list[dict]) -> np.ndarray:
    """The oracle's utility of each response to this objective's own held-out prompts: (prompts,)."""
    own = [s for s in samples if s["objective"] == objective]
    return rewards.utilities(world.objective(objective), [s["prompt"] for s in own], [s["response"] for s in own])
