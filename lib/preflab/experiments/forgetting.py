"""06_forgetting_map: one objective after another in many worlds, the controls, and what can be foretold.

A world has the objectives `first` and `second`. Five runs in each: one objective alone, the other alone, both orders,
and both at once. So the *same* held-out pairs are scored after every order, and order is a contrast within pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from preflab.claims import nothing
from preflab.claims.forgetting import Fate
from preflab.experiments.dynamics import Dynamics
from preflab.experiments.two_stages import Setting, TwoStages
from preflab.margins import dpo_margin, policy_margin
from preflab.methods.dpo import DPO
from preflab.methods.ipo import IPO
from preflab.methods.method import PairMethod
from preflab.methods.simpo import SimPO
from preflab.models import Lora
from preflab.settings import Between, Positive, Seed
from preflab.stages.base import BaseSettings
from preflab.stages.data import Joined, Pairs, Relabelled
from preflab.stages.evaluation import Evaluated, Evaluation, ScoredAlong
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Job, Stage
from preflab.stages.training import TrainingFromPairs, TrainingOnTop, updates_on_pairs
from preflab.statistics import Interval, mean_interval, ratio
from preflab.training.from_pairs import PairTraining

OBJECTIVES = ("first", "second")
ARMS = ("first", "second", "first → second", "second → first", "both at once")
SPEARMAN = "correlation with the share"
AGAIN = 10_000  # added to a seed: new pairs of an objective, or another adapter


@dataclass(frozen=True)
class Control:
    """How Stage 2 differs from the plain one."""

    replay: float = 0.0  # so many pairs of the first objective for each of the second
    relabelled: bool = False  # the second objective's pairs, labelled by the toss of a coin
    again: bool = False  # new pairs of the first objective
    reference: Literal["base", "start"] = "base"
    on_top: bool = False  # an adapter of its own, on top of Stage 1's
    method: PairMethod | None = None  # None: DPO as in Stage 1

    def __str__(self) -> str:
        """What differs."""
        plain = Control()
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(plain, k)) or "—"


PLAIN = "plain"
CONTROLS: dict[str, Control] = {
    PLAIN: Control(),
    "5 % replayed": Control(replay=0.05),
    "20 % replayed": Control(replay=0.2),
    "labels by a coin": Control(relabelled=True),
    "the first objective again": Control(again=True),
    "against Stage 1": Control(reference="start"),
    "an adapter of its own": Control(on_top=True),
    "β = 0.1": Control(method=DPO(beta=0.1)),
    "β = 1": Control(method=DPO(beta=1.0)),
    "IPO": Control(method=IPO(beta=1.0)),
    "SimPO": Control(method=SimPO(beta=2.0, margin=0.6)),
}
BOTH, ALL_WEIGHTS = "both at once", "all weights"  # no adapter, in both stages


@dataclass(frozen=True)
class Kept:
    """What a control leaves of the first objective, and what it teaches of the second, as shares of what each gains
    alone; then both less what plain Stage 2 does, on the same pairs and seeds."""

    first: Interval
    second: Interval
    first_beyond: Interval
    second_beyond: Interval


class Forgetting(TwoStages):
    """06_forgetting_map. A cell is a compatibility with two strengths; every draw is a world of each cell."""

    compatibilities: Annotated[list[Annotated[float, Field(gt=-1, lt=1)]], Field(min_length=2)]
    strengths: Annotated[list[Annotated[float, Field(gt=0.5, lt=1)]], Field(min_length=1)]  # of both objectives
    draws: Annotated[list[Seed], Field(min_length=1)]  # seeds of worlds
    control_compatibilities: list[Annotated[float, Field(gt=-1, lt=1)]]  # of the worlds that the controls are run in
    control_seeds: Annotated[list[Seed], Field(min_length=1)]  # theirs; few worlds, so more seeds
    full_learning_rate: Positive | None  # of the control that trains all weights; None: there is none
    early: Between  # the share of Stage 2 after which the end is foretold
    pair_training: PairTraining = PairTraining(
        learning_rate=1e-2, batch_size=8, micro_batch_size=8, warmup_share=0.1, checkpoint_every=200
    )
    base: BaseSettings = Dynamics.model_fields["base"].default  # which speaks the language of random worlds

    @model_validator(mode="after")
    def _settings_differ(self) -> Self:
        for name in ("compatibilities", "strengths", "draws", "control_compatibilities", "control_seeds"):
            if len(set(values := getattr(self, name))) < len(values):
                raise ValueError(f"{name}={values}: expected different numbers")
        if odd := set(self.control_compatibilities) - set(self.compatibilities):
            raise ValueError(f"control_compatibilities={sorted(odd)}: expected some of {self.compatibilities}")
        if (size := self.pair_training.batch_size) > self.train_pairs:
            raise ValueError(f"pair_training.batch_size={size}: expected at most train_pairs={self.train_pairs}")
        return self

    # --- worlds

    def all_settings(self) -> list[Setting]:
        return self.worlds() + self.control_worlds()

    def worlds(self) -> list[Setting]:
        """Of the map: every cell, every draw. Each has a seed of its own, so no two share an objective or a run."""
        cells = list(product(self.compatibilities, self.strengths, self.strengths))
        return [_setting(draw * len(cells) + i, *cell) for i, cell in enumerate(cells) for draw in self.draws]

    def control_worlds(self) -> list[Setting]:
        """Those of the map with the clearest labels, of the first draw."""
        cells, clearest = product(self.compatibilities, self.strengths, self.strengths), max(self.strengths)
        return [
            world
            for (compatibility, *strengths), world in zip(cells, self.worlds()[:: len(self.draws)], strict=True)
            if compatibility in self.control_compatibilities and strengths == [clearest, clearest]
        ]

    # --- stages

    def arm(self, setting: Setting, name: str, seed: int) -> TrainingFromPairs:
        """One of ARMS. Both at once take as many updates as one after the other."""
        if name != BOTH:
            return self.training(setting, tuple(name.split(" → ")), seed)
        parts = tuple(self.trained_on(setting, (objective,), seed) for objective in OBJECTIVES)
        how = {"lora": self.lora, "method": self.dpo, "loop": self.pair_training}
        return TrainingFromPairs(self.base_model, Joined(parts), seed, **how, order=10 * seed + 3)

    def controlled(self, setting: Setting, control: Control, seed: int) -> TrainingFromPairs:
        """Stage 2 of first → second under a control."""
        plain = self.training(setting, OBJECTIVES, seed)
        changed = {"pairs": self._pairs_of(setting, control, seed), "reference": control.reference}
        if control.method:
            changed["method"] = control.method
        if not control.on_top:
            return replace(plain, **changed)
        fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
        return TrainingOnTop(**fields | changed | {"seed": seed + AGAIN})

    def _pairs_of(self, setting: Setting, control: Control, seed: int) -> Pairs | Joined | Relabelled:
        first, second = (self.trained_on(setting, (objective,), seed) for objective in OBJECTIVES)
        if control.again:
            return self.trained_on(setting, OBJECTIVES[:1], seed + AGAIN)
        if control.relabelled:
            return Relabelled(second, seed)
        if control.replay:
            return Joined((second, replace(first, stop=round(control.replay * self.train_pairs))))
        return second

    def without_adapter(self) -> "Forgetting":
        """The same with all weights trained."""
        loop = replace(self.pair_training, learning_rate=self.full_learning_rate)
        return self.model_copy(update={"lora": Lora(rank=0), "pair_training": loop})

    def controls(self, setting: Setting, seed: int) -> dict[str, TrainingFromPairs]:
        """By name: the run that ends each control."""
        found = {name: self.controlled(setting, control, seed) for name, control in CONTROLS.items()}
        found[BOTH] = self.arm(setting, BOTH, seed)
        if self.full_learning_rate:
            found[ALL_WEIGHTS] = self.without_adapter().training(setting, OBJECTIVES, seed)
        return found

    def evaluated(self, setting: Setting, training: TrainingFromPairs | None) -> Evaluation:
        """Held-out pairs of both objectives."""
        held_out = tuple(self.source_of(setting, o).test_pairs for o in OBJECTIVES)
        return Evaluation(self.base_model, training, held_out, self.answered, self.max_new_tokens)

    def warned(self, setting: Setting, own: str, seed: int) -> ScoredAlong:
        """An objective's held-out pairs where Stage 2 begins, and after its first part."""
        training = self.training(setting, (own, other_of(own)), seed)
        soon = max(1, round(self.early * updates_on_pairs(training)))
        return ScoredAlong(Snapshots(training, (0, soon)), self.source_of(setting, own).test_pairs)

    def phases(self) -> dict[str, list[Job]]:
        """Everything to train and to measure; each phase needs only those before it. Snapshots come first: what trains
        for them leaves the run's own entry."""
        runs = [(setting, seed) for setting in self.worlds() for seed in self.seeds]
        controls = [(setting, seed) for setting in self.control_worlds() for seed in self.control_seeds]
        stage1 = [(setting, seed, ARMS[:2]) for setting, seed in dict.fromkeys(runs + controls)]
        return {
            "base model scored": [Job(s.name, (self.evaluated(s, None),)) for s in dict.fromkeys(self.all_settings())],
            "Stage 1": [self._job(setting, name, seed) for setting, seed, names in stage1 for name in names],
            "Stage 2": [self._job(setting, name, seed) for setting, seed in runs for name in ARMS[2:]],
            "controls": [
                Job(f"{setting.name}, {name}, seed {seed}", (self.evaluated(setting, training),))
                for setting, seed in controls
                for name, training in self.controls(setting, seed).items()
            ],
        }

    def _job(self, setting: Setting, name: str, seed: int) -> Job:
        first = (self.warned(setting, name.split(" → ")[0], seed),) if "→" in name else ()
        stages = (*first, self.evaluated(setting, self.arm(setting, name, seed)))
        return Job(f"{setting.name}, {name}, seed {seed}", stages)

    def stages(self) -> list[Stage]:
        return [stage for jobs in self.phases().values() for job in jobs for stage in job.stages]

    # --- results

    def fates(self) -> list[Fate]:
        """Of both objectives of every world of the map."""
        return [self._fate(setting, own) for setting in self.worlds() for own in OBJECTIVES]

    def _fate(self, setting: Setting, own: str) -> Fate:
        other = other_of(own)
        base = self.evaluated(setting, None).load().log_probs[own]

        def after(arm: str) -> list[Evaluated]:
            return [self.evaluated(setting, self.arm(setting, arm, seed)).load() for seed in self.seeds]

        def margins(arm: str) -> np.ndarray:
            return np.array([policy_margin(found.log_probs[own]) for found in after(arm)])

        early = [[policy_margin(lp) for lp in self.warned(setting, own, seed).load()] for seed in self.seeds]
        return Fate(
            world=setting.name,
            own=own,
            compatibility=setting.world.compatibility()["correlation"],
            strength=setting.world.objective(own).strength,
            other_strength=setting.world.objective(other).strength,
            base=np.broadcast_to(policy_margin(base), (len(self.seeds), len(base.chosen))),
            alone=margins(own),
            alone_dpo=np.array([dpo_margin(x.log_probs[own], base, self.dpo.beta) for x in after(own)]),
            other_alone=margins(other),
            then_other=margins(f"{own} → {other}"),
            last=margins(f"{other} → {own}"),
            both=margins(BOTH),
            early=np.array([soon for _, soon in early]),
        )

    def kept(self, setting: Setting) -> dict[str, Kept]:
        """By control: what it leaves and what it teaches, in one world."""
        seeds = self.control_seeds
        alone = [self._gained(setting, o, [self.training(setting, (o,), s) for s in seeds]) for o in OBJECTIVES]
        runs: dict[str, list[TrainingFromPairs]] = {}
        for seed in seeds:
            for name, training in self.controls(setting, seed).items():
                runs.setdefault(name, []).append(training)
        gained = {name: [self._gained(setting, o, some) for o in OBJECTIVES] for name, some in runs.items()}

        def shares(found: list[np.ndarray]) -> list[Interval]:
            return [mean_interval(ratio(x, gain)) for x, gain in zip(found, alone, strict=True)]

        def beyond(found: list[np.ndarray]) -> list[np.ndarray]:
            return [x - plain for x, plain in zip(found, gained[PLAIN], strict=True)]

        return {name: Kept(*shares(found), *shares(beyond(found))) for name, found in gained.items()}

    def _gained(self, setting: Setting, objective: str, trainings: Sequence[TrainingFromPairs]) -> np.ndarray:
        """What an objective's held-out margins gained over the base, a seed a run: (seeds, pairs)."""
        base, *ends = (
            policy_margin(self.evaluated(setting, training).load().log_probs[objective])
            for training in (None, *trainings)
        )
        return np.array(ends) - base


def other_of(objective: str) -> str:
    """The other objective of a random world."""
    return OBJECTIVES[1 - OBJECTIVES.index(objective)]


def _setting(seed: int, compatibility: float, first: float, second: float) -> Setting:
    given = {"seed": seed, "compatibility": float(compatibility), "strength": first, "strength2": second}
    world = f"world:random({','.join(f'{name}={value}' for name, value in given.items())})"
    return Setting(f"{compatibility:+.1f}, {first:.2f}/{second:.2f}, world {seed}", (world, world), OBJECTIVES)


# --- what can be foretold -------------------------------------------------------------------------


def orders(fates: Sequence[Fate], pairs: int) -> pd.DataFrame:
    """For each world: what either order ends with, the mean over both objectives as a share of what each gains alone,
    and the order that is chosen: last comes the objective whose own Stage 1 harms the other one least.

    The choice rests on the first `pairs` held-out pairs of each objective, the outcome on the others. A world takes
    part if both objectives were learnt: without a gain there is no share of it.
    """
    names = ARMS[2:4]
    rows = {}
    for one, other in zip(fates[::2], fates[1::2], strict=True):  # first and second of one world
        if not (one.learned and other.learned):
            continue
        ends = [("then_other", "last"), ("last", "then_other")]  # of one and of the other
        scores = [(one.end(mine, pairs) + other.end(its, pairs)) / 2 for mine, its in ends]
        first_comes_first = one.transfer(pairs) >= other.transfer(pairs)
        rows[one.world] = [*scores, names[not first_comes_first], scores[not first_comes_first] - np.mean(scores)]
    return pd.DataFrame.from_dict(rows, "index", columns=[*names, "chosen", "gained"])


def foretold(rows: pd.DataFrame, measures: Mapping[str, str], rng: np.random.Generator, draws: int) -> pd.DataFrame:
    """How well each cheap measure (title: column of `rows`) orders what Stage 2 did: Spearman correlation with the
    share, and an interval of a bootstrap over worlds."""
    rows = rows.round(6)  # worlds of one cell have one compatibility but for rounding, and a rank must see that
    members = [found.index.to_numpy() for _, found in rows.groupby("world")]
    if len(members) < 2:
        return pd.DataFrame({SPEARMAN: [nothing()] * len(measures)}, list(measures))

    def correlations(some: pd.DataFrame) -> list[float]:
        return [some[column].corr(some["share"], method="spearman") for column in measures.values()]

    picked = ([members[i] for i in rng.integers(len(members), size=len(members))] for _ in range(draws))
    drawn = [correlations(rows.loc[np.concatenate(some)]) for some in picked]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    found = [Interval(*ends) for ends in zip(correlations(rows), low, high, strict=True)]
    return pd.DataFrame({SPEARMAN: found}, list(measures))
