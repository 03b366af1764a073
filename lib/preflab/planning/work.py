"""What a run would make: its stages, what of them is there already, and how much there is to train and to score."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from preflab.stages.alignment import Alignment, Learnt
from preflab.stages.base import Base
from preflab.stages.data import Pairs, Prompts
from preflab.stages.evaluation import Evaluation
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.stage import Stage, store
from preflab.stages.training import TrainingFromPairs, updates_on_pairs


@dataclass(frozen=True)
class Work:
    """How much a stage, or several, trains and scores.

    A token of a prompt counts once for both replies of a pair. A pass is one of one sequence, a prompt and a reply; a
    backward pass counts two.
    """

    pairs: int = 0
    trained: int = 0  # tokens that training sees
    scored: int = 0  # tokens that are scored
    passes: int = 0
    rounds: int = 0  # of answers: the prompts of one objective, in one batch

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Kind:
    """All stages of one class. What is neither there nor to make is not needed, because its heirs are there."""

    name: str
    there: int
    to_make: list[Stage]

    @property
    def work(self) -> Work | None:
        """Of what is to make; None if this kind has no estimate."""
        found = [work_of(stage) for stage in self.to_make]
        return None if None in found else sum(found, Work())


def everything(asked: Iterable[Stage]) -> list[Stage]:
    """The stages that are asked for and all that they are made from, these first; a model that is taken as it is not.

    Nothing is made.
    """
    found: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage not in found and not (isinstance(stage, Base) and stage.taken_as_it_is):
            for parent in parents(stage):
                visit(parent)
            found[stage] = None

    for stage in asked:
        visit(stage)
    return list(found)


def to_make(asked: Iterable[Stage]) -> list[Stage]:
    """Those of `everything` that a run would make: not there, and asked for or needed by another that is to make."""
    asked = list(asked)
    needed = set(asked)
    missing = []
    for stage in reversed(everything(asked)):
        if stage in needed and not store().holds(stage):
            missing.append(stage)
            needed |= set(parents(stage))
    return missing[::-1]


def kinds(asked: Iterable[Stage]) -> list[Kind]:
    """`everything` by class, in the order in which a run gets to it."""
    stages, missing = everything(asked), to_make(asked)
    return [
        Kind(
            kind.__name__,
            sum(type(stage) is kind and store().holds(stage) for stage in stages),
            [stage for stage in missing if type(stage) is kind],
        )
        for kind in dict.fromkeys(map(type, stages))
    ]


def parents(stage: Stage) -> list[Stage]:
    """The stages that this one is made from: those in its fields, and those that its `build` asks for."""
    found = [parent for f in fields(stage) for parent in _stages_in(getattr(stage, f.name))]
    if isinstance(stage, TrainingFromPairs) and stage.method.reference:
        found.append(ReferenceLogProbs(stage.base, stage.pairs))
    if isinstance(stage, Learnt):
        found.append(ReferenceLogProbs(stage.training.base, stage.training.pairs))
    if isinstance(stage, Alignment) and not stage.replay:
        found.append(stage.snapshots)
    return found


def _stages_in(value: Any) -> Iterator[Stage]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, tuple):
        for inner in value:
            yield from _stages_in(inner)
    elif isinstance(value, Pairs | Prompts):
        yield from _stages_in(value.of.fitting)


def work_of(stage: Stage) -> Work | None:
    """What a stage trains and scores; None if its kind has no estimate."""
    if isinstance(stage, TrainingFromPairs) and not stage.live:
        return _training(stage)
    if isinstance(stage, ReferenceLogProbs):
        return _scoring(stage.pairs, stage.base)
    if isinstance(stage, Evaluation):
        scoring = sum((_scoring(pairs, stage.base) for pairs in stage.held_out), Work())
        answers = stage.prompts * len(stage.held_out)
        return scoring + Work(passes=answers, rounds=len(stage.held_out))
    return None


def _training(stage: TrainingFromPairs) -> Work:
    rows = stage.pairs.encoded(stage.base)
    seen = updates_on_pairs(stage) * stage.loop.batch_size
    work = Work(pairs=seen, trained=round(tokens(rows) * seen / len(rows)), passes=seen * 2 * 3)
    against_start = stage.start and stage.reference == "start" and stage.method.reference
    return work + _scoring(stage.pairs, stage.base) if against_start else work


def _scoring(pairs: Pairs, base: Base) -> Work:
    rows = pairs.encoded(base)
    return Work(pairs=len(rows), scored=tokens(rows), passes=2 * len(rows))


def tokens(rows: Iterable[dict]) -> int:
    """Of encoded pairs: of each prompt and both replies to it."""
    return sum(len(ids) for row in rows for ids in row.values())
