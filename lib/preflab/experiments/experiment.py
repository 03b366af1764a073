"""Parameters of a notebook: checked before anything trains, and turned into stages.

A notebook's parameters cell has the knobs of its lecture. Everything else stands in *sections*. Each is the settings
dataclass beside the code that uses it, and a section that is given says only what differs from its defaults. papermill
alone checks nothing: it runs on when a name is misspelt and hands 1e-6 over as a string.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from preflab.cells import injected_names, warn_of_near_misses
from preflab.data.pairs import check_there
from preflab.data.sizes import check_sizes
from preflab.data.sources import check_reach, parse_source
from preflab.errors import BadInput, shown
from preflab.experiments.explain import explain, hint
from preflab.hardware import Hardware
from preflab.models import Lora
from preflab.paths import project_root
from preflab.settings import Between, Count, Name, Seed
from preflab.stages.base import TINY, Base, BaseSettings
from preflab.stages.data import PairSource, world_of
from preflab.stages.given import check_model, given_model
from preflab.stages.stage import Stage


class Parameters(BaseModel):
    """What every notebook has."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, arbitrary_types_allowed=True
    )

    profile: Name  # results go to results/PROFILE/NAME/
    name: Name
    data: str  # folder that files: sources are relative to
    hardware: Hardware = Hardware()
    base: BaseSettings = BaseSettings()

    @property
    def tiny(self) -> bool:
        """Whether its models are built here."""
        return self.base.model == TINY

    @property
    def needs_weights(self) -> bool:
        """Whether a model by name must have its weights."""
        return True

    def located(self, source: str) -> str:
        """A source whose `files:` path is absolute; a relative one begins at `data`, and that at the checkout."""
        kind, name = parse_source(source)
        return f"files:{os.path.abspath(project_root() / self.data / name)}" if kind == "files" else source

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> Self:
        """Check a notebook's globals right after its parameters cell: `from_notebook(globals())`.

        A reader's own variables and imports do no harm. A name that papermill has injected must be a parameter.
        Raises BadInput.
        """
        for name in injected_names(names.get("In", [])):
            if name not in cls.model_fields:
                raise BadInput(f"notebook parameters: {cls._unknown(name, names.get(name))}")
        warn_of_near_misses(names, cls.model_fields)
        return cls.checked({k: names[k] for k in cls.model_fields if k in names}, "notebook parameters")

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str) -> Self:
        """Raises BadInput with one line that names the key, its value and what was expected."""
        try:
            return cls.model_validate({k: cls._section(k, v) for k, v in values.items()})
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
                raise BadInput(f"{where}: {cls._unknown(first['loc'][0], first['input'])}") from None
            raise BadInput(f"{where}: {explain(first)}") from None

    @classmethod
    def _section(cls, key: str, value: Any) -> Any:
        default = cls.model_fields[key].default if key in cls.model_fields else None
        return laid_over(default, value, key) if is_dataclass(default) and not is_dataclass(value) else value

    @classmethod
    def _unknown(cls, key: str, value: Any) -> str:
        return f"{key}={shown(value)}: no such parameter, expected one of: {', '.join(sorted(cls.model_fields))}"

    def read_from(self) -> list[tuple[str, str]]:
        """Every (source, objective) that is read: none, unless a notebook says which."""
        return []

    def check_there(self, here_only: bool = False) -> None:
        """Raises BadInput for a file or a folder that is not there.

        Unless `here_only`, also for a device that this machine lacks, and for what is on the hub, without a network.
        """
        if not here_only:
            self.hardware.resolved()
        for source, objective in dict.fromkeys(self.read_from()):
            check_there(self.located(source), objective, getattr(self, "revision", None), here_only)
        if self.base.sft_source:
            try:
                check_reach(source := self.located(self.base.sft_source), here_only=here_only)
                check_sizes(source)
            except BadInput as error:
                raise BadInput(f"base.sft_source: {error}") from None
        if not self.tiny:
            tuned = bool(self.base.sft_source)
            check_model(self.base.model, self.base.revision, here_only, self.needs_weights, plain=tuned)

    def values(self) -> dict[str, Any]:
        """Every value in force, by its name; those of sections as section.name."""
        return dict(_flat({name: getattr(self, name) for name in type(self).model_fields}))

    def changed(self, notebook: Mapping[str, Any]) -> list[str]:
        """The names of `values` that differ from the notebook's own defaults."""
        own = type(self).checked(notebook, "notebook").values()
        return [name for name, value in self.values().items() if own.get(name) != value]


def laid_over(default: Any, given: Any, where: str) -> Any:
    """A settings dataclass like `default` with the given values. Raises BadInput."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}={shown(given)}: expected a section, which maps names to values{hint(given)}")
    values = {f.name: getattr(default, f.name) for f in fields(default)}
    for key, value in given.items():
        if key not in values:
            known = ", ".join(values)
            raise BadInput(f"{where}.{key}={shown(value)}: no such parameter, expected one of: {known}")
        values[key] = laid_over(values[key], value, f"{where}.{key}") if is_dataclass(values[key]) else value
    try:
        return type(default)(**values)
    except ValidationError as error:
        raise BadInput(explain(error.errors()[0], where)) from None


def _flat(values: Mapping[str, Any], before: str = ""):
    for name, value in values.items():
        if is_dataclass(value):
            yield from _flat({f.name: getattr(value, f.name) for f in fields(value)}, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


class Experiment(Parameters):
    """What every notebook that trains has: pairs, seeds, an adapter."""

    revision: str | None  # of hub: sources; recorded
    train_pairs: Count
    test_pairs: Annotated[Count, Field(ge=8)]
    pairs_per_prompt: Count | None  # a limit where one prompt has many replies; None: all
    test_share: Between = 0.1  # of the prompts of files: and hub: sources without a test split, which are held out
    max_new_tokens: Count
    seeds: Annotated[list[Seed], Field(min_length=1)]
    show_texts: bool
    lora: Lora = Lora()

    def sources(self) -> list[tuple[str, str]]:
        """Every (source, objective) that pairs are taken from."""
        raise NotImplementedError

    def stages(self) -> list[Stage]:
        """What the notebook asks for, as far as it is known before anything is made."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={shown(self.seeds)}: expected different numbers")
        if self.base.sft_source and self.tiny:
            raise ValueError(
                f"base.sft_source={self.base.sft_source!r}: expected none for base.model='tiny', "
                "which speaks its own data"
            )
        self._check_sources()
        return self

    def _check_sources(self) -> None:
        """Worlds must exist and have enough, and one tiny base model speaks one kind of source only."""
        found = {source: world_of(source) for source, _ in self.sources()}
        for source, objective in self.sources():
            self.check_enough(source, objective, {"train_pairs": self.train_pairs, "test_pairs": self.test_pairs})
        languages = {world and world.language.name for world in found.values()}
        if self.tiny and len(languages) > 1:
            kinds = ", ".join(sorted(language or "other sources" for language in languages))
            raise BadInput(f"one tiny model cannot speak {kinds}, expected worlds of one language, or none")

    def check_enough(self, source: str, objective: str, wanted: dict[str, int], stages: int = 1) -> None:
        """Raises BadInput if a world lacks the objective, or prompts for these `train_pairs` or `test_pairs`."""
        if world := world_of(source):
            share = world.objective(objective).hazard_share
            for key, n in wanted.items():
                try:
                    world.language.pools(key.removesuffix("_pairs"), n * stages, share)
                except BadInput as error:
                    each = " for each stage" if stages > 1 else ""
                    raise BadInput(f"{key}={n}{each}: {source}, {objective}: {error}") from None

    def read_from(self) -> list[tuple[str, str]]:
        return self.sources()

    @property
    def base_model(self) -> Base:
        """The stage that every other one begins with."""
        corpus, world = (), world_of(self.sources()[0][0])
        if self.tiny and world is None:
            corpus = tuple(self._source(source, objective).train_pairs(0) for source, objective in self.sources())
        settings = self.base
        if settings.sft_source:
            settings = laid_over(settings, {"sft_source": self.located(settings.sft_source)}, "base")
        given = None if settings.model == TINY else given_model(settings.model)
        if given:  # what it is called here decides nothing
            settings = laid_over(settings, {"model": "given"}, "base")
        language = world.language.name if self.tiny and world else None
        return Base(settings, self.hardware.resolved(), language, corpus, given)

    def pairs_of(self, source: str, objective: str, train: int | None = None) -> PairSource:
        """Pairs that fit the model's context. Worlds' always do."""
        fitting = None if world_of(source) else self.base_model
        sizes = {"train": train or self.train_pairs, "test": self.test_pairs}
        return self._source(source, objective, **sizes, fitting=fitting)

    def _source(self, source: str, objective: str, **given: Any) -> PairSource:
        split = {"pairs_per_prompt": self.pairs_per_prompt, "test_share": self.test_share}
        return PairSource(self.located(source), objective, self.revision, **split, **given)

    def read_report(self, pairs: PairSource, source: str, seed: int) -> dict[str, Any]:
        """What was read, kept and dropped; under the source's own name, not where it lies here."""
        return asdict(pairs.load(seed).report) | {"source": source}
