"""A stage: a frozen value that knows how to build its content in a folder, and how to load it.

Where entries are kept is not a stage's business. A run says so, once in each process, with `keep_in`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Stage:
    """The base class of stages; each is a frozen dataclass of hashable fields."""

    def build(self, folder: Path) -> None:
        """Make the content in `folder`. A file that is there already was left by an interrupted call."""
        raise NotImplementedError

    def load(self) -> Any:
        """The content; built first if it is not there yet."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """Where the content lies; built first if it is not there yet."""
        return store().folder(self)


class Store(Protocol):
    """What keeps the content of stages."""

    def folder(self, stage: Stage) -> Path:
        """Where the content lies; built first if it is not there yet."""

    def holds(self, stage: Stage) -> bool:
        """Whether the content is there."""

    def deposit(self, stage: Stage, write: Callable[[Path], None]) -> None:
        """Let `write(folder)` make the content, unless it is there already."""


_stores: list[Store] = []


def keep_in(store: Store) -> None:
    """From now on this process keeps what stages make in `store`."""
    _stores[:] = [store]


def store() -> Store:
    """Where this process keeps what stages make. Raises RuntimeError before `keep_in`."""
    if not _stores:
        raise RuntimeError("no store: call keep_in(Cache(folder)) first; a notebook's start does")
    return _stores[0]


@dataclass(frozen=True)
class Job:
    """Stages to make in one process, in their order."""

    label: str
    stages: tuple[Stage, ...]

    def done(self) -> bool:
        return all(store().holds(stage) for stage in self.stages)

    def run(self) -> None:
        for stage in self.stages:
            _ = stage.folder


Phases = Mapping[str, list[Job] | Callable[[], list[Job]]]
