"""Notebook 90: what is compared, and in which sizes."""

from typing import Annotated

from pydantic import Field

from preflab.experiments.experiment import Parameters
from preflab.hardware import Hardware
from preflab.models import Lora
from preflab.settings import Count, Source


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
    lora: Lora = Lora()
    hardware: Hardware = Hardware(workers=1)  # a benchmark shares the machine with nothing of ours

    def read_from(self) -> list[tuple[str, str]]:
        return [(self.source, self.objective)]
