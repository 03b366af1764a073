"""07_objective_map: every objective after every other one, and what could be known of it before."""

from collections.abc import Iterable
from functools import cached_property
from itertools import combinations, permutations, product
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from preflab import geometry
from preflab.claims.objective_map import Succession
from preflab.data.agreement import agreements
from preflab.experiments.sequential import numbered
from preflab.experiments.two_stages import Path, Setting, TwoStages
from preflab.margins import dpo_margin, policy_margin
from preflab.settings import Count
from preflab.stages.data import PairSource, world_of
from preflab.stages.evaluation import Evaluated, Evaluation
from preflab.stages.gradients import FirstGradients
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.stage import Job, Stage


class ObjectiveMap(TwoStages):
    """07_objective_map. `objectives` maps what a figure calls them to [source, objective]."""

    objectives: Annotated[
        dict[str, Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=2, max_length=20)
    ]
    parts: Annotated[Count, Field(ge=4, multiple_of=2)]  # that an objective's pairs are cut in for its gradient
    batch: Count  # pairs a pass of it

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if len(set(self.names.values())) < len(self.names):
            raise ValueError(f"objectives: {', '.join(self.names.values())}: expected objectives of different names")
        for name in ("pair_training.batch_size", "parts"):
            least = self.parts if name == "parts" else self.pair_training.batch_size
            if least > self.train_pairs:
                raise ValueError(f"{name}={least}: expected at most train_pairs={self.train_pairs}")
        return self

    @property
    def names(self) -> dict[str, str]:
        """Title: the objective as its source calls it."""
        return {title: objective for title, (_, objective) in self.objectives.items()}

    # --- stages

    def all_settings(self) -> list[Setting]:
        return [self.setting(one, other) for one, other in combinations(self.objectives, 2)]

    def setting(self, one: str, other: str) -> Setting:
        """Of two titles."""
        (source, a), (source_, b) = self.objectives[one], self.objectives[other]
        return Setting(f"{one}, {other}", (source, source_), (a, b))

    def source(self, title: str) -> PairSource:
        return self.pairs_of(*self.objectives[title])

    def evaluated(self, path: Path, seed: int) -> Evaluation:
        """After stages on the titles of a path. The base and Stage 1 are asked for every objective, Stage 2 for two."""
        asked = path if len(path) > 1 else tuple(self.objectives)
        training = None
        if path:
            beside = next(title for title in (path[-1], *self.objectives) if title != path[0])
            setting = self.setting(path[0], beside)  # Stage 1 is the same, whatever stands beside it
            training = self.training(setting, tuple(self.names[title] for title in path), seed)
        held_out = tuple(self.source(title).test_pairs for title in asked)
        return Evaluation(self.base_model, training, held_out, self.answered, self.max_new_tokens)

    def gradients(self, seed: int) -> FirstGradients:
        """Of every objective, on the pairs that Stage 1 learns from."""
        pairs = (ReferenceLogProbs(self.base_model, self.source(t).train_pairs(seed)) for t in self.objectives)
        return FirstGradients(self.base_model, self.lora, seed, self.dpo, tuple(pairs), self.parts, self.batch)

    def phases(self) -> dict[str, list[Job]]:
        """Everything to train and to measure; each phase needs only those before it."""
        return {
            "base model scored": [Job("base", (self.evaluated((), 0),))],
            "gradients at the base": [Job(f"seed {seed}", (self.gradients(seed),)) for seed in self.seeds],
            "Stage 1": self._jobs((title,) for title in self.objectives),
            "Stage 2": self._jobs(permutations(self.objectives, 2)),
        }

    def _jobs(self, paths: Iterable[Path]) -> list[Job]:
        """One seed after the other: what a first seed needs is there early."""
        return [
            Job(f"{' → '.join(path)}, seed {seed}", (self.evaluated(path, seed),))
            for seed, path in product(self.seeds, paths)
        ]

    def stages(self) -> list[Stage]:
        return [stage for jobs in self.phases().values() for job in jobs for stage in job.stages]

    # --- results

    def successions(self) -> list[Succession]:
        """Every ordered pair of objectives."""
        agreed = self.agreement()
        return [self._succession(own, other, agreed) for own, other in permutations(self.objectives, 2)]

    def _succession(self, own: str, other: str, agreed: dict[frozenset[str], float]) -> Succession:
        name, base = self.names[own], self.evaluated((), 0).load().log_probs[self.names[own]]

        def after(*path: str) -> list[Evaluated]:
            return [self.evaluated(path, seed).load() for seed in self.seeds]

        def margins(*path: str) -> np.ndarray:
            return np.array([policy_margin(found.log_probs[name]) for found in after(*path)])

        alone = margins(own)
        return Succession(
            own=own,
            other=other,
            base=np.broadcast_to(policy_margin(base), alone.shape),
            alone=alone,
            alone_dpo=np.array([dpo_margin(found.log_probs[name], base, self.dpo.beta) for found in after(own)]),
            other_alone=margins(other),
            then_other=margins(own, other),
            last=margins(other, own),
            clusters=numbered(self.source(own).test_pairs.rows()["prompt"]),
            cosine=self.cosines[own, other],
            agreement=agreed.get(frozenset((own, other)), float("nan")),
        )

    @cached_property
    def products(self) -> np.ndarray:
        """Inner products of `gradients`, added up over seeds, because a sum is steadier than a mean of ratios."""
        return np.sum([self.gradients(seed).load() for seed in self.seeds], 0)

    @cached_property
    def cosines(self) -> dict[tuple[str, str], float]:
        """Disattenuated, of both objectives' gradients at the base."""
        at = geometry.slices(tuple(self.objectives), self.parts)
        return {
            (one, other): float(geometry.disattenuated(self.products, at[one], at[other]))
            for one, other in permutations(self.objectives, 2)
        }

    def cosine_errors(self) -> dict[frozenset[str], float]:
        """Standard errors of `cosines`, by jackknife over the parts of the pairs."""
        at = geometry.slices(tuple(self.objectives), self.parts)
        return {
            frozenset((one, other)): float(geometry.jackknife_error(self.products, at[one], at[other]))
            for one, other in combinations(self.objectives, 2)
        }

    def ceilings(self) -> dict[str, float]:
        """Cosine of two halves of an objective's pairs, by title: how far noise lets a raw cosine rise."""
        at = geometry.slices(tuple(self.objectives), self.parts)
        return {title: float(geometry.ceiling(self.products, at[title])) for title in self.objectives}

    def agreement(self) -> dict[frozenset[str], float]:
        """Of every two titles that order the same pairs of replies: the share that they order alike. A world tells it;
        elsewhere all pairs of a source are compared."""
        found = {}
        for one, other in combinations(self.objectives, 2):
            world = self.setting(one, other).world
            if world:
                found[frozenset((one, other))] = 1 - self.setting(one, other).relation["disagreement"]
        return found | self._agreement_of_files()

    def _agreement_of_files(self) -> dict[frozenset[str], float]:
        found = {}
        for source in dict.fromkeys(source for source, _ in self.objectives.values() if not world_of(source)):
            titles = {objective: title for title, (of, objective) in self.objectives.items() if of == source}
            whole = [PairSource(self.located(source), objective, self.revision).load(0) for objective in titles]
            for a in agreements(whole):
                if a.both:
                    found[frozenset((titles[a.one], titles[a.other]))] = a.agree / a.both
        return found

    def reports(self) -> dict[str, dict[str, Any]]:
        """What was read, by title and seed."""
        return {
            f"{title}/seed {seed}": self.read_report(self.source(title), source, seed)
            for title, (source, _) in self.objectives.items()
            for seed in self.seeds
        }
