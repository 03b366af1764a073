"""What a policy answers to held-out prompts. The answers of a run's final policy are D'."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from preflab.generation import Sample, decode, generate, sample
from preflab.hardware import precise
from preflab.likelihood import collate_responses, token_log_probs
from preflab.stages.base import Base
from preflab.stages.stage import Stage
from preflab.stages.training import Training

if TYPE_CHECKING:
    from preflab.stages.data import Prompts


@dataclass(frozen=True)
class Answers:
    """Responses to n held-out prompts, at two temperatures."""

    final: list[Sample]  # at the temperature that was asked for: D' of a run
    final_texts: list[str]
    sampled: list[Sample]  # at temperature 1
    sampled_texts: list[str]
    log_probs: np.ndarray  # (n,) of the sampled responses under the policy they are from
    reference_log_probs: np.ndarray  # (n,) under the SFT model

    @property
    def kl(self) -> float:
        """KL divergence from the SFT model in nats a response, estimated on the samples."""
        return float(np.mean(self.log_probs - self.reference_log_probs))

    @property
    def entropy(self) -> float:
        """Nats a token, estimated on the samples."""
        return float(-self.log_probs.sum() / sum(len(response) for _, response in self.sampled))


@dataclass(frozen=True)
class AnswersStage(Stage):
    """Of a run's final policy, or of the base model."""

    base: Base
    training: Training | None
    prompts: "Prompts"
    max_new_tokens: int
    temperature: float
    batch: int  # responses a forward pass of the log-probs

    def build(self, folder: Path) -> None:
        base, tokenizer, prompts = self.base.load(), self.base.tokenizer(), self.prompts.messages()
        with policy_of(self.training, self.base) as model:
            final, sampled = (
                sample(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, temperature=t, seed=1)
                for t in (self.temperature, 1.0)
            )
            log_probs = response_log_probs(model, sampled, self.base, self.batch).tolist()
        kept = {
            "final": final,
            "final_texts": decode(tokenizer, final),
            "sampled": sampled,
            "sampled_texts": decode(tokenizer, sampled),
            "log_probs": log_probs,
            "reference_log_probs": response_log_probs(base, sampled, self.base, self.batch).tolist(),
        }
        (folder / "answers.json").write_text(json.dumps(kept))

    def load(self) -> Answers:
        kept = json.loads((self.folder / "answers.json").read_text())
        samples = {name: [tuple(s) for s in kept.pop(name)] for name in ("final", "sampled")}
        numbers = {name: np.array(kept.pop(name)) for name in ("log_probs", "reference_log_probs")}
        return Answers(**samples, **numbers, **kept)


@dataclass(frozen=True)
class Texts(Stage):
    """Greedy answers to questions that are given as text (AlpacaEval's)."""

    base: Base
    training: Training | None
    asked: tuple[str, ...]
    max_new_tokens: int
    batch: int

    def build(self, folder: Path) -> None:
        prompts = [[{"role": "user", "content": text}] for text in self.asked]
        how = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch}
        with policy_of(self.training, self.base) as model:
            texts = generate(model, self.base.tokenizer(), prompts, **how)
        (folder / "texts.json").write_text(json.dumps(texts))

    def load(self) -> list[str]:
        return json.loads((self.folder / "texts.json").read_text())


@torch.no_grad()
def response_log_probs(model: PreTrainedModel, samples: list[Sample], base: Base, size: int) -> torch.Tensor:
    """log pi(y|x) of each response under a model that speaks as `base`, `size` of them a pass: (n,), in float64 on the
    CPU."""
    pad_token_id = base.tokenizer().pad_token_id
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    found = [token_log_probs(model, collate_responses(part, pad_token_id, model.device)).sum(1) for part in parts]
    return precise(torch.cat(found)).cpu()


@contextmanager
def policy_of(training: Training | None, base: Base, scoring: bool = False) -> Iterator[PreTrainedModel]:
    """The final policy of a run, or the base model where there is none."""
    if training is None:
        yield base.load(scoring)
        return
    with training.final_policy(scoring) as policy:
        yield policy
