"""What GRPO and RLOO share: a group of samples to each prompt, scored against each other."""

from typing import Annotated

import torch
from pydantic import Field

from preflab.methods.method import SampleMethod
from preflab.settings import Count, settings


@settings
class GroupMethod(SampleMethod):
    """Samples are in the order of their prompts, `group_size` in a row to one prompt."""

    group_size: Annotated[Count, Field(ge=2)] = 4

    @property
    def samples_a_prompt(self) -> int:
        return self.group_size

    def above_the_group(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores less their group's mean, and the scores themselves: each (groups, group_size)."""
        grouped = scores.view(-1, self.group_size)
        return grouped - grouped.mean(1, keepdim=True), grouped
