"""Notebook 90: what is compared, and in which sizes."""

from typing import Annotated

from pydantic import Field

from preflab.experiments.experiment import Parameters
from preflab.hardware import Hardware
from preflab.models import Lora, Shape
from preflab.settings import Count


class Benchmarks(Parameters):
    """90_benchmarks."""

    batch_size: Count  # pairs a step of DPO, and of the batch that G is measured on
    samples: Annotated[Count, Field(ge=4, multiple_of=2)]  # an iteration of PPO: sampled, then trained on
    max_new_tokens: Count
    steps: Count  # timed steps of each turn
    turns: Count  # of each side, alternating
    shape: Shape = Shape()
    lora: Lora = Lora()
    hardware: Hardware = Hardware(workers=1)  # a benchmark shares the machine with nothing of ours
