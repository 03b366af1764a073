"""09_common_mode: where common mode comes from, against how far the samples are from the policy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from preflab.claims.common_mode import Names
from preflab.common_mode import Panel, Split, panel
from preflab.data.worlds.named import world_objectives
from preflab.decoding import Decoding
from preflab.experiments.dynamics import Dynamics, Planned
from preflab.experiments.g_dynamics import GDynamics
from preflab.settings import Between, Positive
from preflab.stages.alignment import Measurement
from preflab.stages.answers import AnswersStage
from preflab.stages.common_mode import CommonMode as CommonModeStage
from preflab.stages.common_mode import Sampling
from preflab.stages.data import Prompts
from preflab.stages.drawn import Earlier, Generator, Own, Source
from preflab.stages.stage import Job, Stage
from preflab.stages.training import Training, TrainingFromPairs

OWN = str(Own())  # the policy's own samples
GREEDY = "greedy"


class CommonMode(Dynamics):
    """09_common_mode. The runs are those of notebook 02."""

    temperatures: Annotated[list[Positive], Field(min_length=1)]
    top_ps: list[Between]
    shifts: list[float]
    final_temperatures: list[Positive]
    sampling: Sampling = Sampling()
    measurement: Measurement = GDynamics.model_fields["measurement"].default  # so that its snapshots are shared

    @model_validator(mode="after")
    def _samplers_possible(self) -> Self:
        if not self.source.startswith("world:") or "(" in self.source:
            raise ValueError(f"source={self.source!r}: expected a named world, whose generator can be shifted")
        for name in ("samples", "pairs"):
            if (size := getattr(self.sampling, name)) > self.train_pairs:
                raise ValueError(f"sampling.{name}={size}: expected at most train_pairs={self.train_pairs}")
        if not min(self.temperatures) < 1 < max(self.temperatures) or 1.0 not in self.temperatures:
            raise ValueError(f"temperatures={self.temperatures}: expected 1.0, a lower and a higher one")
        if 0.0 not in self.shifts:
            raise ValueError(f"shifts={self.shifts}: expected 0.0 among them, the pairs that DPO learns from")
        return self

    # --- what is measured

    def moments(self, training: Training) -> dict[str, int]:
        """Policies by name: updates so far. PPO's half-way policy has learnt one epoch on the samples of the measured
        step before it, which are the least stale ones."""
        steps = self.measured_steps(training)
        half = min(steps[1:-1], key=lambda step: abs(step / steps[-1] - 0.5))
        half = next(iter(training.inner_epochs(half)), half)
        return {"SFT": 0, "half-way": half, "end": steps[-1]}

    def sources_by_knob(self, training: Training, step: int) -> dict[str, list[Source]]:
        """Whose samples are measured at one policy. The policy's own stand first wherever they belong."""
        found: dict[str, list[Source]] = {
            "temperature": [Own(Decoding(temperature=t)) for t in sorted(self.temperatures)],
            "top-p": [*(Own(Decoding(top_p=p)) for p in sorted(self.top_ps)), Own()],
            "staleness": [*(Earlier(s) for s in self._earlier(training, step)), Own()],
        }
        if isinstance(training, TrainingFromPairs):
            found["generator"] = [*(Generator(self._shifted(s, training)) for s in sorted(self.shifts)), Own()]
        return found

    def _earlier(self, training: Training, step: int) -> list[int]:
        """Measured steps before this one, the first and the last among them."""
        before = [s for s in self.measured_steps(training) if s < step]
        places = np.linspace(0, len(before) - 1, min(self.sampling.earlier, len(before))).round().astype(int)
        return [before[i] for i in dict.fromkeys(places.tolist())]

    def _shifted(self, shift: float, training: Training):
        """Training pairs whose generator is moved; at 0 those that DPO learns from."""
        if not shift:
            return training.pairs
        return self.pairs_of(f"{self.source}(shift={shift})", self.objective).train_pairs(training.pairs.seed)

    def finals(self, training: Training) -> tuple[tuple[str, AnswersStage], ...]:
        """D' by name: greedy answers; sampled ones; greedy ones to the prompts of the world's other objective."""
        m, own = self.measurement, self.prompts()
        (other,) = (name for name in world_objectives(self.source.removeprefix("world:")) if name != self.objective)
        elsewhere = Prompts(self.pairs_of(self.source, other), own.start, own.stop)

        def answers(prompts: Prompts, temperature: float) -> AnswersStage:
            return AnswersStage(self.base_model, training, prompts, self.max_new_tokens, temperature, m.batch)

        sampled = [(f"temperature {t:g}", answers(own, t)) for t in self.final_temperatures]
        return ((GREEDY, answers(own, 0.0)), *sampled, (f"greedy, prompts of {other}", answers(elsewhere, 0.0)))

    def common_mode(self, training: Training) -> CommonModeStage:
        plan = {
            step: tuple(dict.fromkeys(s for some in self.sources_by_knob(training, step).values() for s in some))
            for step in self.moments(training).values()
        }
        pairs = isinstance(training, TrainingFromPairs)
        return CommonModeStage(
            training=training,
            snapshots=self.alignment(training).snapshots,
            finals=self.finals(training),
            plan=tuple(plan.items()),
            apart=(OWN, self.names().sharper),
            n=self.sampling.pairs if pairs else self.sampling.samples,
            max_new_tokens=self.max_new_tokens,
            nll=self.measurement.nll,
            batch=self.measurement.batch,
        )

    def names(self) -> Names:
        """The sources that the rules look at."""
        sharper, hotter = (str(Own(Decoding(temperature=t))) for t in (min(self.temperatures), max(self.temperatures)))
        shift = self.pairs.world.shift
        return Names(OWN, sharper, hotter, sft=str(Earlier(0)), data=f"generator, shift {shift:g}", final=GREEDY)

    # --- what is shown

    def panels(self, training: Training, runs: Sequence[Iterable[Split]]) -> dict[str, dict[str, Panel]]:
        """What was measured of the runs of a method, of which `training` is one: policy -> knob -> panel."""
        return {
            moment: {
                knob: panel(runs, [(step, str(source), GREEDY) for source in sources])
                for knob, sources in self.sources_by_knob(training, step).items()
            }
            for moment, step in self.moments(training).items()
        }

    def bars(self, training: Training, moment: str, panels: Mapping[str, Panel]) -> dict[str, tuple[list[str], Panel]]:
        """The panels of one policy, knob by knob, with what stands below each bar: setting and distance."""
        by_knob = self.sources_by_knob(training, self.moments(training)[moment])
        return {knob: (_labels(by_knob[knob], of), of) for knob, of in panels.items()}

    def bars_of_finals(self, training: Training, moment: str, runs: Sequence[Iterable[Split]]):
        """The same for other D': on the policy's own samples, and on sharper ones."""
        step, names = self.moments(training)[moment], [name for name, _ in self.finals(training)]
        labels = [name.replace("temperature", "T").replace(", ", ",\n").replace("prompts of ", "on ") for name in names]
        return {
            f"samples at {source}": (labels, panel(runs, [(step, source, name) for name in names]))
            for source in (OWN, self.names().sharper)
        }

    def stages(self) -> list[Stage]:
        return [self.common_mode(run.training) for run in self.planned()]

    def jobs(self) -> list[Job]:
        return [Job(str(run), (self.common_mode(run.training),)) for run in self.planned()]

    def by_method(self) -> dict[str, list[Planned]]:
        """The runs of DPO and those of PPO, in the order of seeds."""
        runs = self.planned()
        return {method: [run for run in runs if run.row.method == method] for method in ("dpo", "ppo")}


def _labels(sources: Sequence[Source], of: Panel) -> list[str]:
    """Setting and distance of each source; the last is the policy itself."""
    above = of["surprise"] - of["surprise"][:, -1:]
    distances = [
        f"{x:+.2f}" if np.isnan(kl) else f"{abs(kl):.3f}" for x, kl in zip(above.mean(0), of["kl"].mean(0), strict=True)
    ]
    return [f"{_setting(s)}\n{distance}" for s, distance in zip(sources, distances, strict=True)]


def _setting(source: Source) -> str:
    match source:
        case Earlier(step):
            return f"after {step}"
        case Generator(pairs):
            return f"shift {pairs.of.world.shift:g}"
    decoding = source.decoding
    return (
        "own"
        if decoding == Decoding()
        else f"p {decoding.top_p:g}"
        if decoding.top_p < 1
        else f"T {decoding.temperature:g}"
    )


def roles(bars: Mapping[str, tuple[Sequence[str], Panel]]) -> dict[str, dict[str, float]]:
    """G of positive and negative learning by setting, means over seeds; `bars` as those of a method."""
    found = {}
    for labels, of in bars.values():
        s, c = of["S"].mean(0), of["C"].mean(0)
        settings = [label.partition("\n")[0] for label in labels]
        found |= {name: {"G of positive": s[i] + c[i], "G of negative": s[i] - c[i]} for i, name in enumerate(settings)}
    return found


def agreement(panels: Iterable[Panel]) -> dict[str, float]:
    """How well the measured samples part agrees with the expected one, over all settings and seeds whose sampler is
    known: their correlation, and the root mean square of their difference in standard errors, 1 if all is chance."""
    rows = [np.stack([of[k] for k in ("samples", "expected", "error samples")]).reshape(3, -1) for of in panels]
    measured, expected, error = np.concatenate(rows, axis=1)
    known = np.isfinite(expected)
    z = ((measured - expected) / error)[known]
    return {
        "settings": int(known.sum()),
        "correlation": float(np.corrcoef(measured[known], expected[known])[0, 1]),
        "difference in standard errors": float(np.sqrt((z**2).mean())),
    }
