"""Paper D's protocol as parameters and stages: train from one SFT model, let the end point answer, measure G."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from pydantic import model_validator

from preflab import rewards
from preflab.data.worlds import Objective
from preflab.errors import BadInput
from preflab.experiments.experiment import Experiment
from preflab.experiments.variants import Variant
from preflab.generation import Sample
from preflab.live import Live
from preflab.methods.dpo import DPO
from preflab.methods.method import PairMethod, SampleMethod
from preflab.methods.ppo import PPO
from preflab.models import Lora
from preflab.settings import Source
from preflab.stages.alignment import Alignment, Learnt, Measurement
from preflab.stages.answers import AnswersStage
from preflab.stages.base import BaseSettings
from preflab.stages.data import Pairs, PairSource, Prompts
from preflab.stages.probe import PairsProbe, SamplesProbe
from preflab.stages.reward import ClosedRewardStage, RewardKind, RewardSection, RewardStage
from preflab.stages.stage import Stage
from preflab.stages.training import Training, TrainingFromPairs, TrainingFromSamples, updates_on_pairs
from preflab.training.from_pairs import PairTraining
from preflab.training.from_samples import SampleTraining
from preflab.training.sft import SFTSettings

IMPLICIT_SEED = 1000  # of the DPO run whose implicit reward PPO gets: no run that is measured has it


@dataclass(frozen=True)
class Planned:
    """One training run of an experiment."""

    name: str  # of its row
    row: Variant
    seed: int
    training: Training

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


class Dynamics(Experiment):
    """What notebooks 02 to 04 share."""

    source: Source
    objective: str
    final_source: Source | None  # of the held-out prompts that D' answers; None: those of `source`
    final_objective: str | None
    base: BaseSettings = BaseSettings(  # of two layers, which have to speak a language of longer answers
        architecture="llama", layers=2, context=112, sft=SFTSettings(steps=400, batch_size=32, learning_rate=1e-2)
    )
    lora: Lora = Lora(rank=0)
    dpo: DPO = DPO()
    ppo: PPO = PPO(kl_coefficient=0.1)
    pair_training: PairTraining = PairTraining(learning_rate=3e-4)
    sample_training: SampleTraining = SampleTraining(iterations=20, learning_rate=2e-4)
    reward: RewardSection = RewardSection(kind="implicit")
    measurement: Measurement = Measurement()

    def sources(self) -> list[tuple[str, str]]:
        return [(self.source, self.objective)]

    def read_from(self) -> list[tuple[str, str]]:
        final = [(self.final_source, self.final_objective)] if self.final_source else []
        return self.sources() + final

    @model_validator(mode="after")
    def _dynamics_possible(self) -> Self:
        loop = self.sample_training
        sizes = {
            "pair_training.batch_size": self.pair_training.batch_size,
            "sample_training.batch_size": loop.batch_size,
            "measurement.probe": self.measurement.probe,
        }
        for name, size in sizes.items():
            if size > self.train_pairs:
                raise ValueError(f"{name}={size}: expected at most train_pairs={self.train_pairs}")
        if loop.batch_size % loop.minibatch_size:
            raise ValueError(
                f"sample_training.batch_size={loop.batch_size}: expected a multiple of "
                f"sample_training.minibatch_size={loop.minibatch_size}"
            )
        if (finals := self.measurement.finals) > self.test_pairs:
            raise ValueError(
                f"measurement.finals={finals}: expected at most test_pairs={self.test_pairs}, whose prompts they answer"
            )
        if (self.final_source is None) != (self.final_objective is None):
            raise ValueError(
                f"final_objective={self.final_objective!r}: expected one with final_source and none without"
            )
        if self.final_source:
            self.check_enough(self.final_source, self.final_objective, {"test_pairs": self.test_pairs})
        self._check_reward("reward.kind", self.reward.kind)
        for name in ("own_share", "judge_share"):
            if (share := getattr(self.reward, name)) and self.source.startswith("world:"):
                raise ValueError(f"reward.{name}={share}: expected 0 for a world, which draws other pairs for a reward")
        return self

    def _check_reward(self, key: str, kind: RewardKind | None) -> None:
        if kind in ("oracle", "correct") and not self.source.startswith("world:"):
            raise ValueError(f"{key}={kind!r}: only a world has one, expected 'model' for source={self.source!r}")

    # --- data and reward

    def _source(self, source: str, objective: str, **given: Any) -> PairSource:
        """Policies learn from the prompts that neither the reward nor the judge has for itself."""
        taken = self.reward.own_share + self.reward.judge_share
        return super()._source(source, objective, **given, part=(taken, 1.0))

    @property
    def pairs(self) -> PairSource:
        return self.pairs_of(self.source, self.objective)

    @property
    def utility(self) -> Objective | None:
        """The oracle's objective; None if there is no oracle."""
        return self.pairs.utility

    def prompts(self, which: range | None = None) -> Prompts:
        """Held-out prompts, which nothing is trained on; by default those that D' answers, the same for every run."""
        which = which or range(self.measurement.finals)
        of = self.pairs_of(self.final_source, self.final_objective) if self.final_source else self.pairs
        return Prompts(of, which.start, which.stop)

    def reward_stage(self, kind: RewardKind | None = None) -> RewardStage:
        """One reward for all seeds: the notebook's kind, or another."""
        kind, pairs = kind or self.reward.kind, self._reward_pairs(0)
        if kind == "implicit":
            pairs = self._reward_pairs(IMPLICIT_SEED)
            how = {"lora": self.lora, "method": self.dpo, "loop": self.pair_training}
            learned = TrainingFromPairs(self.base_model, pairs, IMPLICIT_SEED, **how, order=IMPLICIT_SEED)
            return RewardStage(self.base_model, kind, pairs, self.max_new_tokens, implicit=learned)
        if kind != "model":
            return RewardStage(self.base_model, kind, pairs, self.max_new_tokens)
        return self._reward_model(pairs)

    def _reward_pairs(self, seed: int) -> Pairs:
        own = self.reward.own_share
        return self._part(0.0, own) if own else self.pairs.train_pairs(seed)

    def _reward_model(self, pairs: Pairs) -> RewardStage:
        kind = RewardStage if self.tiny else ClosedRewardStage
        return kind(self.base_model, "model", pairs, self.max_new_tokens, self.reward.training(), self.lora)

    def judge_stage(self) -> RewardStage:
        """Who judges where there is no oracle: a reward model of pairs of its own, or else the notebook's reward, which
        is no independent judge of what was trained on it."""
        own = self.reward.own_share
        judge = self.reward.judge_share
        return self._reward_model(self._part(own, own + judge)) if judge else self.reward_stage()

    def _part(self, start: float, stop: float) -> Pairs:
        """All training pairs of a part of the prompts."""
        return replace(self.pairs, train=None, part=(start, stop)).train_pairs(0)

    @property
    def judge_is_apart(self) -> bool:
        """Whether what judges is not what was trained on."""
        return bool(self.utility or self.reward.judge_share)

    def scored(self, prompts: list[list[dict]], samples: list[Sample], texts: list[str]) -> np.ndarray:
        """The judge's score of each response, (n,): the oracle's utility in a world, else a reward model's score."""
        if self.utility:
            return rewards.utilities(self.utility, prompts, texts)
        return self.judge_stage().load()(prompts, samples).double().numpy()

    # --- runs

    def rows(self) -> dict[str, Variant]:
        """The ways to train, by name."""
        return {"DPO": Variant(method="dpo"), "PPO": Variant(method="ppo")}

    def planned(self) -> list[Planned]:
        """Every run, the longer ones first."""
        return self.planned_on(self.seeds)

    def planned_on(self, seeds: Sequence[int]) -> list[Planned]:
        """Every run of these seeds, the longer ones first."""
        runs = [self.plan(name, row, seed) for name, row in self.rows().items() for seed in seeds]
        return sorted(runs, key=lambda run: run.row.from_pairs)

    def plan(self, name: str, row: Variant, seed: int) -> Planned:
        return Planned(name, row, seed, self.training(row, seed))

    def method_of(self, row: Variant) -> PairMethod | SampleMethod:
        """A row's arguments go before those of section `dpo` or `ppo`. Raises BadInput."""
        return row.resolved_method({DPO: self.dpo, PPO: self.ppo})

    def check_row(self, name: str, row: Variant) -> None:
        """Raises BadInput for a rule, an argument, a group or a budget that cannot be."""
        try:
            row.resolved_rule()
            method, size = self.method_of(row), self.sample_training.batch_size
            if isinstance(method, SampleMethod) and size % method.samples_a_prompt:
                raise BadInput(
                    f"group_size={method.samples_a_prompt}: expected a divisor of sample_training.batch_size={size}"
                )
            _check_repeats(row, self.train_pairs, max(self.pair_training.batch_size, self.measurement.probe))
            most = self._updates_of(self.train_pairs) if row.from_pairs else self.sample_training.iterations
            _share_of(most, row.budget)
        except BadInput as error:
            raise BadInput(f"variants.{name}: {error}") from None

    def training(self, row: Variant, seed: int) -> Training:
        """The stage of one run."""
        size = self.measurement.batch
        common: dict[str, Any] = {
            "base": self.base_model,
            "pairs": self.pairs_of(self.source, self.objective, self.train_pairs // row.repeats).train_pairs(seed),
            "seed": seed,
            "lora": self.lora,
            "method": self.method_of(row),
            "rule": row.resolved_rule(),
            "live": Live(row.live_every, self.max_new_tokens, size) if row.live_every else None,
        }
        if row.from_pairs:
            updates = _share_of(self._updates_from_pairs(seed), row.budget) if row.budget < 1 else None
            loop = replace(self.pair_training, epochs=self.pair_training.epochs * row.repeats)
            return TrainingFromPairs(**common, loop=loop, order=seed, updates=updates)
        loop = replace(self.sample_training, iterations=_share_of(self.sample_training.iterations, row.budget))
        reward = self.reward_stage(row.reward)
        return TrainingFromSamples(**common, loop=loop, reward=reward, max_new_tokens=self.max_new_tokens)

    def _updates_from_pairs(self, seed: int) -> int:
        return self._updates_of(len(self.pairs.load(seed).train))

    def _updates_of(self, pairs: int) -> int:
        return pairs // self.pair_training.batch_size * self.pair_training.epochs

    def updates_of(self, training: Training) -> int:
        """Updates of the optimiser in all."""
        if isinstance(training, TrainingFromPairs):
            return updates_on_pairs(training)
        return training.loop.iterations * training.loop.updates

    def measured_steps(self, training: Training) -> tuple[int, ...]:
        """The updates after which G is measured: 0, and then evenly in the logarithm of updates (on samples: of
        iterations) up to the end. Early, when most is learned, they lie close; later, far apart."""
        unit = 1 if isinstance(training, TrainingFromPairs) else training.loop.updates
        last = self.updates_of(training) // unit
        later = np.geomspace(1, last, self.measurement.checkpoints - 1).round().astype(int)
        return tuple(sorted({0, *(later * unit).tolist()}))

    # --- what comes after training

    def answers_stage(self, training: Training | None, which: range | None = None) -> AnswersStage:
        """Of a run's final policy, or of the SFT model, to some of the held-out prompts (by default those of D')."""
        m = self.measurement
        return AnswersStage(
            self.base_model, training, self.prompts(which), self.max_new_tokens, m.final_temperature, m.batch
        )

    def alignment(self, training: Training) -> Alignment:
        m = self.measurement
        return Alignment(
            training=training,
            answers=self.answers_stage(training),
            held_out=self.pairs.test_pairs,
            steps=self.measured_steps(training),
            probe=PairsProbe(m.probe) if isinstance(training, TrainingFromPairs) else SamplesProbe(m.probe),
            nll=m.nll,
            batch=m.batch,
            shown=m.shown,
            detail=m.detail,
            replay=m.snapshots == "replay",
        )

    def stages(self) -> list[Stage]:
        return [stage for run in self.planned() for stage in self.asked_of(run)]

    def asked_of(self, run: Planned) -> tuple[Stage, ...]:
        """What is measured of a run."""
        return self.alignment(run.training), self.answers_stage(run.training)

    def reports(self) -> dict[str, dict[str, Any]]:
        """What was read, by seed."""
        return {f"seed {seed}": self.read_report(self.pairs, self.source, seed) for seed in self.seeds}

    def few(self) -> list[str]:
        """A warning if there are too few pairs to say much."""
        return [text for text in [self.pairs.load(self.seeds[0]).report.few] if text]

    def learnt(self, training: Training) -> Learnt:
        return Learnt(training)

    def passes(self, training: Training) -> int:
        """What training costs, in forward passes of one sequence: a backward pass and a forward-mode one count two, a
        generated response one. Without the reference's and the reward model's, which are the same for all of a kind."""
        total = self.updates_of(training)
        every = training.live.every if training.live else None
        if isinstance(training, TrainingFromPairs):
            pairs = training.loop.batch_size
            look = pairs * (1 + 3) + 2 * pairs * (1 + 3)  # D' and its gradient; c and s of both sides
            return total * 2 * pairs * 3 + _looks(total, every) * look
        loop, n = training.loop, training.loop.batch_size
        values = int(training.method.has_values and training.method.own_value_trunk)
        iteration = n * (2 + values) + loop.epochs * n * 3 * (1 + values)
        look = n * (1 + 3) + n * 3  # c is there
        return loop.iterations * iteration + _looks(loop.iterations, every) * look


def _share_of(updates: int, budget: float) -> int:
    """So many of the updates. Raises BadInput if they are none."""
    if not (share := round(updates * budget)):
        raise BadInput(f"budget={budget}: no update of {updates}, expected one at least")
    return share


def _check_repeats(row: Variant, pairs: int, needed: int) -> None:
    """Raises BadInput if fewer pairs are left than a batch or a probe takes."""
    if row.repeats > 1 and not row.from_pairs:
        raise BadInput(f"repeats={row.repeats}: expected 1, method {row.method} learns from new samples all the time")
    if (left := pairs // row.repeats) < needed:
        raise BadInput(f"repeats={row.repeats}: leaves {left} pairs of {pairs}, expected {needed} for batch and probe")


def _looks(steps: int, every: int | None) -> int:
    return -(-steps // every) if every else 0
