"""Notebook 04: equal budgets. Every method tries as many values of its own parameter, with as many updates.

The held-out prompts are cut in three: the first `finals` are those of D', the next `validation` choose, the next
`report` are reported on. A candidate's merit is the label probability of its answers against the SFT model's, over the
first `sweep_seeds` seeds; the best one then trains with all seeds, those that chose it among them.

Methods that others are compared with choose first. A row with a rival (`against`) starts from the arguments that its
rival has chosen, beta for one, so that the row's own words alone set the two apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from preflab import rewards
from preflab.claims import corrected, win_change
from preflab.claims.coordination import Contest
from preflab.data.dialogues import instructions
from preflab.experiments.ablations import Variants
from preflab.experiments.dynamics import Planned
from preflab.experiments.variants import Contender, Variant
from preflab.judging import Judged, Place, described
from preflab.measured import Course, Measured, g_of
from preflab.rules import Rule
from preflab.settings import Count, TextSource
from preflab.stages.alignment import Measurement
from preflab.stages.reward import RewardStage
from preflab.stages.stage import Job, Phases, Stage
from preflab.training.from_samples import SampleTraining
from preflab.weightings import Weights

CONTROLLED = {("coordinated", "dpo"): "cDPO", ("coordinated", "ppo"): "cPPO", ("thresholded", "ppo"): "hPPO"}
DRAWN = ("positive", "negative", "trained")  # the parts of G that are drawn


@dataclass(frozen=True)
class Candidates:
    """Of one row: every candidate with every seed of the sweep, candidates in order."""

    runs: list[Planned]
    seeds: int

    def of(self, number: int) -> list[Planned]:
        """One candidate, all seeds of the sweep."""
        return self.runs[number * self.seeds : (number + 1) * self.seeds]

    def __len__(self) -> int:
        return len(self.runs) // self.seeds


class Coordination(Variants):
    """04_coordinated_objectives."""

    variants: Annotated[dict[str, Contender], Field(min_length=1)]
    validation: Annotated[Count, Field(ge=2)]  # held-out prompts that candidates are chosen on
    report: Annotated[Count, Field(ge=2)]  # held-out prompts that everything is reported on
    sweep_seeds: Count  # the first so many seeds choose
    alpaca_eval: TextSource | None
    sample_training: SampleTraining = SampleTraining(iterations=10, learning_rate=3e-4)
    measurement: Measurement = Measurement(checkpoints=4, probe=32, finals=32, shown=1, detail=False)

    @model_validator(mode="after")
    def _contenders_possible(self) -> Self:
        sizes = {name: len(row.sweep) for name, row in self.variants.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"variants: sweeps of sizes {sizes}, expected one size: equal budgets")
        if "SFT" in self.variants:
            raise ValueError("variants.SFT: expected another name, this is the SFT model's")
        for name, row in self.variants.items():
            rival = self.variants.get(row.against) if row.against else None
            if row.against and (rival is None or rival.against):
                known = ", ".join(n for n, other in self.variants.items() if other.against is None)
                raise ValueError(f"variants.{name}.against={row.against!r}: expected one of: {known}")
        needed = self.report_prompts.stop
        if needed > self.test_pairs:
            raise ValueError(f"test_pairs={self.test_pairs}: expected at least finals + validation + report = {needed}")
        if self.sweep_seeds > len(self.seeds):
            raise ValueError(f"sweep_seeds={self.sweep_seeds}: expected at most the {len(self.seeds)} seeds")
        for name, row in self.variants.items():
            rival = self.variants[row.against].candidates({})[0].arguments if row.against else {}
            for candidate in row.candidates(rival):
                self.check_row(name, candidate)
        return self

    def check_there(self, here_only: bool = False) -> None:
        super().check_there(here_only)
        if self.alpaca_eval and not (here_only and self.alpaca_eval.startswith("hub:")):
            instructions(self.alpaca_eval, self.revision)

    @property
    def validation_prompts(self) -> range:
        return range(self.measurement.finals, self.measurement.finals + self.validation)

    @property
    def report_prompts(self) -> range:
        start = self.measurement.finals + self.validation
        return range(start, start + self.report)

    # --- candidates

    def plain_candidates(self) -> dict[str, Candidates]:
        """Of the rows that others are compared with."""
        return {name: self._tried(name, row.candidates({})) for name, row in self.variants.items() if not row.against}

    def candidates(self) -> dict[str, Candidates]:
        """Of every row, those with a rival on top of what it has chosen."""
        return self.on_top({name: self.chosen_of(some)[0].row for name, some in self.plain_candidates().items()})

    def on_top(self, rivals: dict[str, Variant]) -> dict[str, Candidates]:
        """Of every row: candidates, on top of their rival's arguments."""
        return {
            name: self._tried(name, row.candidates(rivals[row.against].arguments if row.against else {}))
            for name, row in self.variants.items()
        }

    def _tried(self, name: str, rows: list[Variant]) -> Candidates:
        seeds = self.seeds[: self.sweep_seeds]
        runs = [self.plan(_label(name, row), row, seed) for row in rows for seed in seeds]
        return Candidates(runs, self.sweep_seeds)

    def merits(self, tried: Candidates) -> np.ndarray:
        """Label probability of each candidate against the SFT model on the validation prompts: (candidates,)."""
        which = self.validation_prompts
        found = self.judged(tried.runs, which).chances(self.judged_sft(which)).mean(1)
        return found.reshape(-1, tried.seeds).mean(1)

    def chosen_of(self, tried: Candidates) -> list[Planned]:
        """The best candidate of one row, with every seed; of equals the first."""
        best = tried.of(int(self.merits(tried).argmax()))[0]
        return [self.plan(best.name, best.row, seed) for seed in self.seeds]

    def chosen(self, tried: dict[str, Candidates]) -> dict[str, list[Planned]]:
        """By row: the best candidate, with every seed."""
        return {name: self.chosen_of(some) for name, some in tried.items()}

    # --- work

    def reward_stages(self) -> list[RewardStage]:
        """One of every kind that some row, or the judge, needs."""
        kinds = {self.reward.kind} | {row.reward or self.reward.kind for row in self.variants.values()}
        judge = [self.judge_stage()] if self.reward.judge_share else []
        return [self.reward_stage(kind) for kind in sorted(kinds)] + judge

    def phases(self) -> Phases:
        """What trains, in order. Who chooses later needs what was tried before."""
        return {
            "plain methods tried": _jobs(self.plain_candidates(), self.tried_stages),
            "all methods tried": lambda: _jobs(self.candidates(), self.tried_stages),
            "chosen ones trained and measured": lambda: _jobs(self.chosen(self.candidates()), self.final_stages),
        }

    def stages(self) -> list[Stage]:
        """The plain methods alone: what they choose decides the rest."""
        return [s for tried in self.plain_candidates().values() for run in tried.runs for s in self.tried_stages(run)]

    def tried_stages(self, run: Planned) -> tuple[Stage, ...]:
        """What a candidate is chosen by. Snapshots come first: a candidate that is chosen need not train again."""
        return self.alignment(run.training).snapshots, self.drawn_stage(run.training, self.validation_prompts)

    def final_stages(self, run: Planned) -> tuple[Stage, ...]:
        """What is reported of a chosen one."""
        return self.alignment(run.training), self.drawn_stage(run.training, self.report_prompts)

    # --- what came out

    def budgets(self) -> dict[str, dict[str, Any]]:
        """By row: what it may spend. All of it is known before anything trains."""
        first = {name: row.candidates({})[0] for name, row in self.variants.items() if not row.against}
        rows = {}
        for name, some in self.on_top(first).items():  # whatever a rival chooses, the cost is the same
            training = some.runs[0].training
            rows[name] = {
                "updates": self.updates_of(training),
                "thousand passes": round(self.passes(training) / 1000),
                "values to choose from": len(some),
                "starts from the choice of": self.variants[name].against or "—",
            }
        return rows

    def choices(self, tried: Mapping[str, Candidates], merits: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
        """By row: what was tried, how it did, and what was chosen."""
        return {
            name: {
                "values": ", ".join(_words(own) for own in self.variants[name].sweep),
                "against SFT, on validation prompts": ", ".join(f"{merit:.2f}" for merit in merits[name]),
                "chosen, with what the rival chose": _words(some.of(int(merits[name].argmax()))[0].row.arguments),
            }
            for name, some in tried.items()
        }

    @property
    def rivals(self) -> dict[str, str]:
        """By row that has one: its rival."""
        return {name: row.against for name, row in self.variants.items() if row.against}

    @property
    def scheduled(self) -> list[str]:
        """Rows that share one question: plain DPO and PPO, and their schedules, all with the notebook's own reward."""
        rules, methods = ("plain", "coordinated", "adaptive"), ("dpo", "ppo")
        rows = self.variants.items()
        return [name for name, row in rows if row.rule in rules and row.method in methods and not row.reward]

    @property
    def verified(self) -> list[str]:
        """Rows that are rewarded for a correct answer."""
        return [name for name, row in self.variants.items() if row.reward == "correct"]

    def described(self, own: Judged, sft: Judged) -> dict[str, Any]:
        """One row beside the SFT model; in a world also the share of answers that do what is asked."""
        found = {
            "score": own.score,
            "against SFT − ½": win_change(own.chances(sft)),
            "against the rival − ½": None,
            **described(own.answers),
        }
        prompts = self.prompts(self.report_prompts).messages()
        if not self.utility:
            return found
        language = self.pairs.world.language.name
        asked = self.asked(prompts)
        right = [rewards.correct(language, asked, a.texts) for a in own.answers]
        return found | {"right answer": np.mean(right)}

    def compared(self, judged: Mapping[str, Judged], sft: Judged) -> dict[str, dict[str, Any]]:
        """All rows, those with a rival beside it. Intervals against rivals hold together (Bonferroni)."""
        rows = {name: self.described(own, sft) for name, own in judged.items()}
        level = corrected(len(self.rivals))
        for name, rival in self.rivals.items():
            rows[name]["against the rival − ½"] = win_change(judged[name].chances(judged[rival]), level)
        return rows

    def place(self, own: Judged, tried: Candidates, merits: np.ndarray) -> Place:
        """Of one row, means over seeds: of the chosen candidate (`own`) on the reported prompts, of the others on the
        validation prompts."""
        others = [i for i in range(len(tried)) if i != merits.argmax()]
        judged = [own, *(self.judged(tried.of(i), self.validation_prompts) for i in others)]
        kl, entropy = (
            [np.mean([getattr(a, what) for a in some.answers]) for some in judged] for what in ("kl", "entropy")
        )
        score = [some.score for some in judged]
        return Place(tried.runs[0].row.family, np.array(score), np.array(kl), np.array(entropy))

    def by_threshold(self, tried: Mapping[str, Candidates]) -> dict[str, dict[str, float]]:
        """hPPO at every threshold, and the values of its rival: what the reward that it trains on says, what the judge
        says, and how answers vary, on the validation prompts. The paper warns of reward hacking at high thresholds."""
        own = [name for name, row in self.variants.items() if controlled_kind(row) == "hPPO"]
        which = self.validation_prompts
        asked = self.asked(self.prompts(which).messages())
        rows = {}
        for name in dict.fromkeys([*(self.variants[name].against for name in own), *own]):
            reward = self.reward_stage(self.variants[name].reward).load()
            for number in range(len(tried[name])):
                runs = tried[name].of(number)
                judged = self.judged(runs, which)
                trained_on = np.mean([reward(asked, drawn.samples).mean().item() for drawn in judged.answers])
                rows[runs[0].name] = {"its reward": trained_on, "score": judged.score, **described(judged.answers)}
        return rows

    def adaptive_against_static(self, judged: Mapping[str, Judged]) -> dict[str, np.ndarray]:
        """Label probability of every adaptive row against every static schedule of its method: (seeds, prompts)."""
        rows = self.variants
        return {
            f"{name} / {static}": judged[name].chances(judged[static])
            for name in rows
            for static in rows
            if (rows[name].rule, rows[static].rule) == ("adaptive", "coordinated")
            and rows[name].method == rows[static].method
        }

    def contests(self, judged: Mapping[str, Judged], sft: Judged) -> dict[str, Contest]:
        """What the claims ask of every row that is one of the paper's controlled methods."""
        return {
            name: Contest(kind, judged[name].chances(judged[rival]), *(judged[n].chances(sft) for n in (name, rival)))
            for name, rival in self.rivals.items()
            if (kind := controlled_kind(self.variants[name]))
        }


def controlled_kind(row: Variant) -> str | None:
    """The paper's name of a controlled method; None for everything else. Adaptive coordination is not the paper's."""
    return CONTROLLED.get((row.rule, row.method))


def made_of_one_pair(
    rule: Rule, progress: Sequence[float], live: Sequence[Sequence[float] | None] | None = None
) -> np.ndarray:
    """What a rule makes of c = +1 and c = -1 at shares of training: (steps, 2). `live` is what it sees of G there."""
    c, unit = torch.tensor([[1.0], [-1.0]]), torch.ones(1)
    seen = live or [None] * len(progress)
    made = [rule(Weights(c, unit, unit.bool(), t, g)) for t, g in zip(progress, seen, strict=True)]
    return np.array([m[:, 0].tolist() for m in made])


def negative_share(made: np.ndarray) -> np.ndarray:
    """lambda, the share of the weight that negative learning has, of what a rule makes of one pair, (steps, 2)."""
    size = np.abs(made)
    return size[:, 1] / size.sum(1)


def course(runs: Sequence[Planned], measured: Sequence[Measured]) -> Course:
    """The runs of one row over training."""
    live = [[log["live"] for log in run.training.load()] for run in runs]  # what each update, or iteration, saw of G
    progress = np.arange(len(live[0])) / len(live[0])
    made = [made_of_one_pair(run.training.rule, progress, seen) for run, seen in zip(runs, live, strict=True)]
    g = {part: g_of(measured, part) for part in DRAWN}
    return Course(measured[0].progress, g, progress, np.array([negative_share(some) for some in made]))


def _jobs(by_row: Mapping[str, Candidates | list[Planned]], stages_of) -> list[Job]:
    runs = [run for some in by_row.values() for run in (some.runs if isinstance(some, Candidates) else some)]
    return [Job(str(run), stages_of(run)) for run in runs]


def _words(arguments: Mapping[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in arguments.items())


def _label(name: str, row: Variant) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in row.arguments.items())])
