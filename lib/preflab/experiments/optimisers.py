"""08_optimisers: DPO trained by Adam and by plain descent, each run repeated and its updates taken apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from preflab.experiments.dynamics import Dynamics
from preflab.experiments.experiment import Experiment
from preflab.methods.dpo import DPO
from preflab.models import Lora
from preflab.settings import Positive, Seed, Source
from preflab.stages.answers import AnswersStage
from preflab.stages.base import BaseSettings
from preflab.stages.data import PairSource, Prompts
from preflab.stages.optimised import OptimiserSteps, StepMeasurement, TrainingWithSGD
from preflab.stages.stage import Job, Stage
from preflab.stages.training import TrainingFromPairs, updates_on_pairs
from preflab.training.from_pairs import PairTraining

LAST = 0.25  # of training: what its final loss is the mean of
OF_DYNAMICS = Dynamics.model_fields  # notebooks 02 and 08 train the same runs of Adam, once


class Optimisers(Experiment):
    """08_optimisers. On `tuning_seeds` plain descent gets its learning rate, and nothing else is read off them."""

    source: Source
    objective: str
    tuning_seeds: Annotated[list[Seed], Field(min_length=1)]
    sgd_rates: Annotated[list[Positive], Field(min_length=1)]
    base: BaseSettings = OF_DYNAMICS["base"].default
    lora: Lora = OF_DYNAMICS["lora"].default
    dpo: DPO = DPO()
    pair_training: PairTraining = OF_DYNAMICS["pair_training"].default
    measurement: StepMeasurement = StepMeasurement()

    def sources(self) -> list[tuple[str, str]]:
        return [(self.source, self.objective)]

    @model_validator(mode="after")
    def _optimisers_possible(self) -> Self:
        if both := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"tuning_seeds={self.tuning_seeds}: expected none of the seeds that are measured, {both}")
        if self.pair_training.weight_decay:
            raise ValueError(
                f"pair_training.weight_decay={self.pair_training.weight_decay}: expected 0.0, decay is no part of G"
            )
        if (size := self.pair_training.batch_size) > self.train_pairs:
            raise ValueError(f"pair_training.batch_size={size}: expected at most train_pairs={self.train_pairs}")
        if (finals := self.measurement.finals) > self.test_pairs:
            raise ValueError(f"measurement.finals={finals}: expected at most test_pairs={self.test_pairs}")
        return self

    @property
    def pairs(self) -> PairSource:
        return self.pairs_of(self.source, self.objective)

    def prompts(self) -> Prompts:
        """Held-out prompts that D' answers, the same for every run."""
        return Prompts(self.pairs, 0, self.measurement.finals)

    # --- runs

    def adam(self, seed: int) -> TrainingFromPairs:
        pairs, how = self.pairs.train_pairs(seed), {"method": self.dpo, "loop": self.pair_training}
        return TrainingFromPairs(self.base_model, pairs, seed, self.lora, **how, order=seed)

    def sgd(self, seed: int, rate: float) -> TrainingWithSGD:
        """The same run by plain descent with this learning rate."""
        pairs, loop = self.pairs.train_pairs(seed), replace(self.pair_training, learning_rate=rate)
        return TrainingWithSGD(self.base_model, pairs, seed, self.lora, method=self.dpo, loop=loop, order=seed)

    def tuning_jobs(self) -> list[Job]:
        """Adam's runs of the tuning seeds, and those of plain descent at every rate."""
        jobs = [Job(f"Adam, seed {seed}", (self.adam(seed),)) for seed in self.tuning_seeds]
        rates = [(seed, rate) for seed in self.tuning_seeds for rate in self.sgd_rates]
        return jobs + [Job(f"SGD at {rate:g}, seed {seed}", (self.sgd(seed, rate),)) for seed, rate in rates]

    def final_losses(self) -> dict[str, float]:
        """Final loss on the tuning seeds, of Adam and of plain descent at every rate."""
        found = {"Adam": self._final_loss(self.adam)}
        return found | {f"SGD at {r:g}": self._final_loss(lambda seed, r=r: self.sgd(seed, r)) for r in self.sgd_rates}

    def _final_loss(self, run: Callable[[int], TrainingFromPairs]) -> float:
        return float(np.mean([final_loss([log["loss"] for log in run(seed).load()]) for seed in self.tuning_seeds]))

    def sgd_rate(self) -> float:
        """The rule: of `sgd_rates`, that whose final loss on the tuning seeds is nearest to Adam's; of two, the lower.

        It was written before any run. So both optimisers end about equally far, and what differs is the way.
        """
        losses = self.final_losses()
        return min(self.sgd_rates, key=lambda rate: (abs(losses[f"SGD at {rate:g}"] - losses["Adam"]), rate))

    def trainings(self) -> dict[str, list[TrainingFromPairs]]:
        """By optimiser, a run for each seed. Runs of the tuning seeds are made first if they are not there."""
        rate = self.sgd_rate()
        return {
            "Adam": [self.adam(seed) for seed in self.seeds],
            "SGD": [self.sgd(seed, rate) for seed in self.seeds],
        }

    # --- what is measured

    def taken_apart(self, training: TrainingFromPairs) -> OptimiserSteps:
        m = self.measurement
        how = (self.max_new_tokens, m.final_temperature, m.batch)
        answers = AnswersStage(self.base_model, training, self.prompts(), *how)
        return OptimiserSteps(training, answers, self.steps_of(training), m.nll, m.batch)

    def steps_of(self, training: TrainingFromPairs) -> tuple[int, ...]:
        """The first update and others evenly in the logarithm of updates, counted by what was before them."""
        later = np.geomspace(1, updates_on_pairs(training) - 1, self.measurement.checkpoints - 1)
        return tuple(sorted({0, *later.round().astype(int).tolist()}))

    def jobs(self) -> list[Job]:
        return [
            Job(f"{name}, seed {seed}", (self.taken_apart(training),))
            for name, trainings in self.trainings().items()
            for seed, training in zip(self.seeds, trainings, strict=True)
        ]

    def stages(self) -> list[Stage]:
        """As far as they are known before plain descent has its rate."""
        tuned = [stage for job in self.tuning_jobs() for stage in job.stages]
        return tuned + [self.taken_apart(self.adam(seed)) for seed in self.seeds]

    def reports(self) -> dict[str, dict[str, Any]]:
        """What was read, by seed."""
        return {f"seed {seed}": self.read_report(self.pairs, self.source, seed) for seed in self.seeds}


def final_loss(losses: Sequence[float]) -> float:
    """The mean over the last quarter of updates: that of one batch is noise."""
    return float(np.mean(losses[-max(1, round(LAST * len(losses))) :]))
