"""Notebook 90: what is compared, and in which sizes."""

from typing import Annotated, Self

from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.data import worlds
from preflab.experiments.experiment import Parameters
from preflab.hardware import Hardware
from preflab.models import Lora, load_model, random_model, tiny_model
from preflab.settings import Count, Source
from preflab.stages.base import Base
from preflab.stages.given import given_model
from preflab.tokenizers import word_tokenizer


class Benchmarks(Parameters):
    """90_benchmarks. A tiny model is one that has learnt nothing."""

    source: Source  # of the pairs of DPO, and of the batch that G is measured on
    objective: str
    batch_size: Count  # pairs a step of DPO, and of the batch that G is measured on
    micro_batch_size: Count  # pairs a forward pass
    samples: Annotated[Count, Field(ge=4, multiple_of=2)]  # an iteration of PPO: sampled, then trained on
    max_new_tokens: Count
    steps: Count  # timed steps of each turn
    turns: Count  # of each side, alternating
    random_weights: bool  # of a model by name; its folder then needs no weights
    lora: Lora = Lora()
    hardware: Hardware = Hardware(workers=1)  # a benchmark shares the machine with nothing of ours

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.random_weights and self.tiny:
            raise ValueError("random_weights=True: expected a folder in base.model; a tiny model's are random anyway")
        return self

    def read_from(self) -> list[tuple[str, str]]:
        return [(self.source, self.objective)]

    @property
    def needs_weights(self) -> bool:
        return not self.random_weights

    @property
    def base_model(self) -> Base:
        """The model by name. Of a tiny one it says the shape."""
        return Base(self.base, self.hardware.resolved(), given=None if self.tiny else given_model(self.base.model))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return word_tokenizer(worlds.ANSWERS.vocabulary()) if self.tiny else self.base_model.tokenizer()

    def fresh_model(self) -> PreTrainedModel:
        """What every measurement begins with, made anew: nothing of an earlier one is left in it, nor kept for it."""
        base, device, dtype = self.base_model, self.hardware.torch_device, self.hardware.torch_dtype
        if self.tiny:
            return tiny_model(self.base, self.tokenizer(), self.base.seed).to(device, dtype)
        if self.random_weights:
            return random_model(base.location, device, dtype, self.base.seed, base.revision)
        return load_model(base.location, device, dtype, base.revision)
