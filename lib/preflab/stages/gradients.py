"""Where training begins: how the gradients of several objectives lie to each other, before anything has trained."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from preflab import geometry
from preflab.alignment import parameters_of
from preflab.geometry import Labelled
from preflab.hardware import precise
from preflab.methods.method import PairMethod
from preflab.models import Lora, unwrap
from preflab.stages.base import Base
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.stage import Stage


@dataclass(frozen=True)
class FirstGradients(Stage):
    """Inner products of the gradients of a method's loss on several objectives' pairs, at the base with the fresh
    adapter of a seed. The pairs of every objective are cut in `parts`; `batch` pairs go through a pass."""

    base: Base
    lora: Lora
    seed: int
    method: PairMethod
    pairs: tuple[ReferenceLogProbs, ...]
    parts: int
    batch: int

    def build(self, folder: Path) -> None:
        policy = self.base.fresh_policy(self.lora, self.seed, scoring=True).eval()
        parameters, how = parameters_of(policy), {"parts": self.parts, "batch": self.batch, "size": self.batch}
        pad = self.base.tokenizer().pad_token_id
        found = []
        for of in self.pairs:
            labelled = Labelled(of.pairs.encoded(self.base), of.load(), self.method, pad)
            found.append(geometry.part_gradients(labelled, policy, parameters, **how)[0])
        unwrap(policy)
        vectors = precise(torch.cat(found))
        save_file({"products": (vectors @ vectors.T).cpu()}, folder / "products.safetensors")

    def load(self) -> np.ndarray:
        """The parts of each objective in turn: (objectives * parts, objectives * parts)."""
        return load_file(self.folder / "products.safetensors")["products"].numpy()
