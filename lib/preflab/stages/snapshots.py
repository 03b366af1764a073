"""A run's weights at chosen updates. How often G is measured is a matter of these, not of how a run was trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab.models import unwrap
from preflab.stages.stage import Stage
from preflab.stages.training import CHECKPOINT, Training, Watch
from preflab.training.from_samples import trained_parameters
from preflab.training.rollout import Values


@dataclass(frozen=True)
class Snapshots(Stage):
    """`steps`: numbers of updates. What trains to make them also leaves the run's own entry."""

    training: Training
    steps: tuple[int, ...]

    def build(self, folder: Path) -> None:
        wanted = set(self.steps)

        def keep(step: int, policy: PreTrainedModel, values: Values | None) -> None:
            if step in wanted:
                tensors = {name: t.detach().contiguous() for name, t in trained_parameters(policy, values).items()}
                save_file(tensors, folder / f"{step:06d}.safetensors")

        checkpoint = folder / CHECKPOINT
        with self.training.run(keep, checkpoint) as trained:
            self.training.deposit(trained)
        checkpoint.unlink(missing_ok=True)

    def load(self) -> list[int]:
        """The steps that are kept."""
        return [int(file.stem) for file in sorted(self.folder.glob("*.safetensors"))]

    def visit(self, watch: Watch) -> None:
        """`watch` every kept state, in order; the policy is one object and changes."""
        folder, steps = self.folder, self.load()  # first: training needs the base without this policy's adapter
        values = self.training.values()
        policy = self.training.base.fresh_policy(self.training.lora, self.training.seed, scoring=True).eval()
        try:
            for step in steps:
                kept = load_file(folder / f"{step:06d}.safetensors")
                with torch.no_grad():
                    for name, parameter in trained_parameters(policy, values).items():
                        parameter.copy_(kept[name])
                watch(step, policy, values)
        finally:
            unwrap(policy)
