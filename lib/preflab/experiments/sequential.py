"""Paper S's protocol as parameters and stages: DPO on one objective, then on another; both are measured after each."""

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
from preflab.errors import BadInput, shown
from preflab.experiments.experiment import Experiment
from preflab.margins import STAGES, Outcome, accuracy, dpo_margin, outcome, policy_margin
from preflab.methods.dpo import DPO
from preflab.models import Lora
from preflab.settings import SOURCE, Count
from preflab.stages.data import Pairs, PairSource, world_of
from preflab.stages.evaluation import Evaluated, Evaluation
from preflab.stages.stage import Stage
from preflab.stages.training import TrainingFromPairs
from preflab.training.from_pairs import PairTraining

SOURCE_PATTERN = re.compile(SOURCE)
Path = tuple[str, ...]  # objectives trained so far: () is the base, ("helpful",) Stage 1


@dataclass(frozen=True)
class Setting:
    """Two objectives, of one source or of two. They may be the same one: then Stage 2 has new pairs of it."""

    name: str
    sources: tuple[str, str]
    objectives: tuple[str, str]

    @classmethod
    def of(cls, name: str, row: list[str]) -> "Setting":
        """From [source, A, B], or [source, A, source, B]."""
        source_a, a, *between, b = row
        return cls(name, (source_a, *(between or [source_a])), (a, b))

    def source_of(self, objective: str) -> str:
        return self.sources[self.objectives.index(objective)]

    @property
    def world(self) -> World | None:
        """The world that both objectives are of."""
        return world_of(self.sources[0]) if self.sources[0] == self.sources[1] else None

    @property
    def orders(self) -> list[tuple[str, str]]:
        """Both orders; one if the objectives are the same."""
        return list(dict.fromkeys([self.objectives, self.objectives[::-1]]))

    @property
    def repeats(self) -> bool:
        return self.objectives[0] == self.objectives[1]

    @property
    def relation(self) -> dict[str, float]:
        """Correlation and disagreement of the two objectives; empty if they are not known."""
        if self.repeats:
            return {"correlation": 1.0, "disagreement": 0.0}
        return self.world.compatibility() if self.world else {}

    def described(self) -> dict[str, str | float]:
        """What is known of a world's two objectives beforehand: their relation, and the strength of their labels."""
        row: dict[str, str | float] = dict(self.relation)
        for letter, name in zip("AB", self.objectives, strict=True):
            row |= {letter: name, f"strength {letter}": self.world.objective(name).strength}
        return row


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


class Sequential(Experiment):
    """01_sequential_settings. A setting is [source, A, B] or [source, A, source, B], with objectives A and B."""

    settings: Annotated[dict[str, Annotated[list[str], Field(min_length=3, max_length=4)]], Field(min_length=1)]
    prompts: Count  # held-out prompts per objective that each stage answers
    stage2_reference: Literal["base", "stage1"]
    resamples: Annotated[Count, Field(ge=100)]  # draws behind the intervals of S2 and S4
    dpo: DPO = DPO(beta=0.3)  # paper S
    pair_training: PairTraining = PairTraining(learning_rate=2e-3, warmup_share=0.1, checkpoint_every=200)
    lora: Lora = Lora(rank=8, alpha=16)

    def sources(self) -> list[tuple[str, str]]:
        return [both for s in self.all_settings() for both in zip(s.sources, s.objectives, strict=True)]

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

    def source_of(self, setting: Setting, objective: str) -> PairSource:
        """A setting with one objective draws twice as many pairs, so that Stage 2 finds new ones."""
        return self.pairs_of(setting.source_of(objective), objective, (1 + setting.repeats) * self.train_pairs)

    def trained_on(self, setting: Setting, path: Path, seed: int) -> Pairs:
        """The pairs that the last stage of a path learns from."""
        of = self.source_of(setting, path[-1])
        if not setting.repeats:
            return of.train_pairs(seed)
        start = (len(path) - 1) * self.train_pairs
        if (found := len(of.load(seed).train)) < 2 * self.train_pairs:
            raise BadInput(
                f"settings.{setting.name}: {found} training pairs, expected {2 * self.train_pairs} for both stages"
            )
        return Pairs(of, "train", seed, start, start + self.train_pairs)

    def training(self, setting: Setting, path: Path, seed: int) -> TrainingFromPairs | None:
        """Stage 1 trains a fresh adapter on the base, Stage 2 goes on with Stage 1's; None for the base itself."""
        if not path:
            return None
        return TrainingFromPairs(
            base=self.base_model,
            pairs=self.trained_on(setting, path, seed),
            seed=seed,
            lora=self.lora,
            method=self.dpo,
            loop=self.pair_training,
            order=10 * seed + len(path),  # another order of batches in Stage 2
            start=self.training(setting, path[:-1], seed),
            reference="start" if self.stage2_reference == "stage1" and len(path) > 1 else "base",
        )

    def evaluation(self, setting: Setting, path: Path, seed: int) -> Evaluation:
        """Held-out pairs and prompts of both objectives, after the last stage of a path."""
        held_out = tuple(self.source_of(setting, o).test_pairs for o in dict.fromkeys(setting.objectives))
        training = self.training(setting, path, seed)
        return Evaluation(self.base_model, training, held_out, self.prompts, self.max_new_tokens)

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
