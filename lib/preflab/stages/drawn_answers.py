"""What a policy answers to held-out prompts if it is asked several times: what outcomes are judged by."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from preflab.generation import Sample, decode, sample
from preflab.settings import Count, settings
from preflab.stages.answers import policy_of, response_log_probs
from preflab.stages.base import Base
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.stages.training import Training

if TYPE_CHECKING:
    from preflab.stages.data import Prompts

AT_ONCE = 256  # responses that are generated in one batch


@settings
class Outcome:
    """Section `outcome`: what runs are judged by."""

    samples: Count = 8  # responses a prompt, at temperature 1
    path_prompts: Count = 8  # of the prompts of D', for outcomes along training


@dataclass(frozen=True)
class Drawn:
    """Responses of one policy to n prompts, K each, in the order of prompts."""

    samples: list[Sample]  # n * K
    texts: list[str]
    log_probs: np.ndarray  # (n * K,) under the policy they are from
    reference_log_probs: np.ndarray  # (n * K,) under the SFT model

    @property
    def kl(self) -> float:
        """KL divergence from the SFT model in nats a response, estimated on the responses."""
        return float(np.mean(self.log_probs - self.reference_log_probs))

    @property
    def entropy(self) -> float:
        """Nats a token, estimated on the responses."""
        return float(-self.log_probs.sum() / sum(len(response) for _, response in self.samples))


@dataclass(frozen=True)
class DrawnAnswers(Stage):
    """Of a run's final policy, of each of its snapshots, or (None) of the base model."""

    base: Base
    of: Snapshots | Training | None
    prompts: "Prompts"
    samples: int
    max_new_tokens: int
    batch: int  # responses a forward pass of the log-probs

    def build(self, folder: Path) -> None:
        found: list[dict[str, torch.Tensor]] = []
        self._each(lambda policy: found.append(self._draw(policy)))
        tensors = {f"{i}.{name}": t for i, state in enumerate(found) for name, t in state.items()}
        save_file(tensors, folder / "drawn.safetensors")

    def _each(self, watch: Callable[[PreTrainedModel], None]) -> None:
        if isinstance(self.of, Snapshots):
            self.of.visit(lambda step, policy, values: watch(policy))
            return
        with policy_of(self.of, self.base) as policy:
            watch(policy)

    def _draw(self, policy: PreTrainedModel) -> dict[str, torch.Tensor]:
        asked = [prompt for prompt in self.prompts.messages() for _ in range(self.samples)]
        how = {"max_new_tokens": self.max_new_tokens, "temperature": 1.0, "seed": 1, "batch_size": AT_ONCE}
        drawn = sample(policy, self.base.tokenizer(), asked, **how)
        ids = [torch.tensor(response, dtype=torch.int32) for _, response in drawn]
        return {
            "responses": pad_sequence(ids, batch_first=True),
            "lengths": torch.tensor([len(response) for response in ids], dtype=torch.int32),
            "log_probs": response_log_probs(policy, drawn, self.base, self.batch),
            "reference_log_probs": response_log_probs(self.base.load(), drawn, self.base, self.batch),
        }

    def load(self) -> list[Drawn]:
        """One for each policy, in the order of training."""
        tensors, tokenizer = load_file(self.folder / "drawn.safetensors"), self.base.tokenizer()
        asked = tokenizer.apply_chat_template(self.prompts.messages(), add_generation_prompt=True, return_dict=True)
        prompts = [ids for ids in asked["input_ids"] for _ in range(self.samples)]
        states = []
        for i in range(len(tensors) // 4):
            rows, lengths = (tensors[f"{i}.{name}"].tolist() for name in ("responses", "lengths"))
            samples = [(p, row[:n]) for p, row, n in zip(prompts, rows, lengths, strict=True)]
            log_probs = [tensors[f"{i}.{name}"].numpy() for name in ("log_probs", "reference_log_probs")]
            states.append(Drawn(samples, decode(tokenizer, samples), *log_probs))
        return states
