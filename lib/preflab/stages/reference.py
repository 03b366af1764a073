"""Log-probs of training pairs under the fixed base model: computed once, whoever needs them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from preflab.likelihood import PairLogProbs, pair_log_probs
from preflab.stages.base import Base
from preflab.stages.stage import Stage

if TYPE_CHECKING:
    from preflab.stages.data import Pairs

SCORING_BATCH = 64  # pairs a forward pass


@dataclass(frozen=True)
class ReferenceLogProbs(Stage):
    """log pi_ref of both sides of every pair."""

    base: Base
    pairs: "Pairs"

    def build(self, folder: Path) -> None:
        rows, pad = self.pairs.encoded(self.base), self.base.tokenizer().pad_token_id
        save_log_probs({"pairs": pair_log_probs(self.base.load(), rows, pad, SCORING_BATCH)}, folder)

    def load(self) -> PairLogProbs:
        return load_log_probs(self.folder)["pairs"]


def save_log_probs(log_probs: dict[str, PairLogProbs], folder: Path) -> None:
    """log_probs.safetensors: of each name, log-probs and token counts of both sides."""
    tensors = {f"{name}/{part}": t.contiguous() for name, lp in log_probs.items() for part, t in vars(lp).items()}
    save_file(tensors, folder / "log_probs.safetensors")


def load_log_probs(folder: Path) -> dict[str, PairLogProbs]:
    """What `save_log_probs` wrote."""
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "log_probs.safetensors").items():
        name, part = key.rsplit("/", 1)
        grouped.setdefault(name, {})[part] = tensor
    return {name: PairLogProbs(**tensors) for name, tensors in grouped.items()}


def no_reference(pairs: int) -> PairLogProbs:
    """Zeros, for a method without a reference: log-ratios become log-probs."""
    zeros = torch.zeros(pairs, dtype=torch.float64)
    return PairLogProbs(zeros, zeros, zeros, zeros)
