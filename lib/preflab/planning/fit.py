"""Whether what a run would make fits in this machine's memory, and which parameter helps if it does not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from preflab.errors import BadInput
from preflab.experiments.experiment import Experiment, Parameters
from preflab.planning.memory import free_memory, needed, resident
from preflab.planning.work import to_make
from preflab.stages.base import Base
from preflab.stages.given import Dequantised
from preflab.stages.stage import Stage, store
from preflab.stages.training import TrainingFromPairs


def check_memory(parameters: Parameters) -> None:
    """Raises BadInput if a run of a real model does not fit in memory. A tiny one always does; of a GPU's memory there
    is no estimate."""
    if parameters.tiny or not isinstance(parameters, Experiment) or parameters.hardware.resolved().device != "cpu":
        return
    if not_there(parameters.base_model) is None:
        stages = to_make(parameters.stages())
        if problem := shortage(stages, parameters.hardware.workers, here=True):
            raise BadInput(problem)


def not_there(base: Base) -> Stage | None:
    """What a run makes before all else, because the base model is not there; None if it is."""
    if isinstance(base.given, Dequantised) and not store().holds(base.given):
        return base.given
    return None if base.taken_as_it_is or store().holds(base) else base


def shortage(stages: list[Stage], workers: int, here: bool = False) -> str | None:
    """One line if these stages do not fit, None if they do or if nobody knows. `here`: this process makes them."""
    already = resident() if here and workers == 1 else 0
    free, wanted = free_memory(), _wanted(stages, workers)
    if free is None or wanted <= free + already:
        return None
    found = f"memory: about {gb(wanted)} needed, {gb(free + already)} there"
    for change in _lighter(stages):
        if _wanted([_changed(stage, change) for stage in stages], workers) <= free + already:
            words = ", ".join(f"{name}: {str(value).lower()}" for name, value in change.items())
            return f"{found}; it fits with pair_training={{{words}}}"
    return f"{found}; no setting of pair_training helps, expected a smaller model or more memory"


def _wanted(stages: list[Stage], workers: int) -> int:
    """Bytes of all processes; 0 if nothing is known."""
    need = needed(stages)
    return workers * need.total if need else 0


def _lighter(stages: list[Stage]) -> Iterator[dict[str, Any]]:
    """Changes of pair_training that need less memory. The first ones leave the numbers as they are."""
    loops = [stage.loop for stage in stages if isinstance(stage, TrainingFromPairs)]
    size = max([loop.micro_batch_size for loop in loops], default=1)
    if loops and not loops[0].activation_checkpointing:
        yield {"activation_checkpointing": True}
    for checkpointing in ({}, {"activation_checkpointing": True}):
        for power in range(size.bit_length() - 1, -1, -1):
            if (smaller := 2**power) < size:
                yield {"micro_batch_size": smaller, **checkpointing}


def _changed(stage: Stage, change: dict[str, Any]) -> Stage:
    return replace(stage, loop=replace(stage.loop, **change)) if isinstance(stage, TrainingFromPairs) else stage


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
