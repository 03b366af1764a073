"""A plan: what a run would make, how long this machine takes, and whether its memory is enough."""

from collections.abc import Iterator
from dataclasses import dataclass

from preflab.experiments.experiment import Experiment
from preflab.planning.fit import gb, not_there, shortage
from preflab.planning.memory import Need, Shape, free_memory, needed, shape_of
from preflab.planning.pace import Pace, measure
from preflab.planning.work import Kind, Work, kinds
from preflab.stages.stage import Stage
from preflab.stages.training import TrainingFromPairs

ROW = "{:<20}{:>7}{:>9}{:>10}{:>11}{:>11}{:>16}"
NO_ESTIMATE = "not estimated"


@dataclass(frozen=True)
class Plan:
    """`pace` is None if nothing has an estimate, or if memory is too small; `need` if nothing is known of it."""

    kinds: list[Kind]
    workers: int
    shape: Shape | None
    need: Need | None
    free: int | None
    shortage: str | None
    pace: Pace | None

    def lines(self) -> Iterator[str]:
        """A table of the stages, then what is known of the model, memory and time."""
        yield ROW.format("stage", "there", "to make", "pairs", "tokens", "passes", "time")
        for kind in self.kinds:
            yield self._row(kind)
        if self.shape:
            yield f"model    {self.shape.parameters:,} parameters, {self.shape.trained:,} trained"
        yield f"memory   {self._memory() if self.need else NO_ESTIMATE}"
        if self.pace:
            yield f"time     {self._time()}"

    def _row(self, kind: Kind) -> str:
        work, there, n = kind.work, str(kind.there), str(len(kind.to_make))
        if not kind.to_make:
            return ROW.format(kind.name, there, n, "", "", "", "").rstrip()
        if work is None:
            return ROW.format(kind.name, there, n, "", "", "", NO_ESTIMATE)
        time = duration(self._seconds(work)) if self.pace else NO_ESTIMATE
        counts = (f"{number:,}" for number in (work.pairs, work.trained + work.scored, work.passes))
        return ROW.format(kind.name, there, n, *counts, time)

    def _seconds(self, work: Work) -> float:
        return self.pace.seconds(work) / self.workers

    def _memory(self) -> str:
        parts = {
            "libraries": self.need.libraries,
            "weights": self.need.weights,
            "gradients and moments": self.need.state,
            "longest micro-batch": self.need.training,
            "scoring": self.need.scoring,
        }
        each = f" for each of {self.workers} processes" if self.workers > 1 else ""
        told = ", ".join(f"{name} {gb(size)}" for name, size in parts.items() if size)
        peak = f"; at its peak the measurement had {gb(self.pace.peak)}" if self.pace else ""
        free = f"; {gb(self.free)} are free" if self.free is not None else ""
        return f"about {gb(self.need.total)} at most{each} ({told}){peak}{free}"

    def _time(self) -> str:
        total = sum(self._seconds(kind.work) for kind in self.kinds if kind.work)
        without = [kind.name for kind in self.kinds if kind.work is None]
        left = f", {', '.join(without)} {NO_ESTIMATE}" if without else ""
        return f"about {duration(total)}{left}; measured in {self.pace.took:.0f} s: {self.pace.told()}"


def plan(parameters: Experiment) -> Plan:
    """Nothing is made. The measurement takes about ten seconds, and the data are read as a run reads them."""
    workers, free = parameters.hardware.workers, free_memory()
    found = _base_alone(parameters) or kinds(parameters.stages())
    stages: list[Stage] = [stage for kind in found for stage in kind.to_make if kind.work]
    on_cpu = parameters.hardware.resolved().device == "cpu"
    need = needed(stages) if on_cpu else None
    problem = shortage(stages, workers) if need else None
    return Plan(found, workers, _shape(stages) if need else None, need, free, problem, _pace(stages, problem))


def _shape(stages: list[Stage]) -> Shape | None:
    training = next((s for s in stages if isinstance(s, TrainingFromPairs)), None)
    return training and shape_of(training.base, training.lora, training.loop.activation_checkpointing)


def _pace(stages: list[Stage], problem: str | None) -> Pace | None:
    return measure(stages) if stages and not problem else None


def _base_alone(parameters: Experiment) -> list[Kind]:
    """What is made from a base model that is not there cannot be counted, because nothing encodes it yet."""
    first = not_there(parameters.base_model)
    return [Kind(type(first).__name__, 0, [first])] if first else []


def duration(seconds: float) -> str:
    """In words of one unit: 42 s, 11 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
