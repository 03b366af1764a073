"""Notebook 00: a tiny model of a world's language, and pairs of two objectives."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from preflab.data.worlds import ANSWERS, get_world
from preflab.errors import BadInput
from preflab.experiments.experiment import Parameters
from preflab.hardware import Hardware
from preflab.methods.dpo import DPO
from preflab.settings import Count, Positive, Seed
from preflab.stages.base import Base, BaseSettings
from preflab.stages.data import PairSource
from preflab.training.sft import SFTSettings


class StartHere(Parameters):
    """00_start_here. It computes in float64, so that every machine shows the same digits."""

    data: str = ""  # worlds have no files
    world: str
    objectives: Annotated[list[str], Field(min_length=2, max_length=2)]
    train_pairs: Count
    test_pairs: Count
    batch_size: Count
    learning_rate: Positive
    seed: Seed
    dpo: DPO = DPO(beta=0.3)  # paper S
    base: BaseSettings = BaseSettings(hidden_size=32, layers=2, sft=SFTSettings(steps=240, batch_size=32))
    hardware: Hardware = Hardware(device="cpu", dtype="float64", workers=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.tiny:
            raise ValueError(f"base.model={self.base.model!r}: expected 'tiny', which speaks the language of the world")
        found = get_world(self.world)
        if found.language is not ANSWERS:  # the notebook's own pair is in that language
            raise BadInput(f"world={self.world!r}: expected a world of short answers, such as 'conflict'")
        for objective in self.objectives:
            found.objective(objective)
        return self

    @property
    def base_model(self) -> Base:
        return Base(self.base, self.hardware.resolved(), ANSWERS.name)

    def pairs_of(self, objective: str) -> PairSource:
        return PairSource(f"world:{self.world}", objective, None, self.train_pairs, self.test_pairs)
