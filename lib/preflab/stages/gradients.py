"""Where training begins: how the gradients of several objectives lie to each other, before anything has trained."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from preflab.alignment import parameters_of
from preflab.data.keeping import hashed
from preflab.errors import BadInput
from preflab.geometry import Labelled
from preflab.hardware import precise
from preflab.likelihood import PairLogProbs
from preflab.methods.method import PairMethod
from preflab.models import Lora, unwrap
from preflab.stages.base import Base
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.stage import Stage


@dataclass(frozen=True)
class FirstGradients(Stage):
    """Inner products of the gradients of a method's loss on several objectives' pairs, at the base with the fresh
    adapter of a seed. The pairs of every objective are cut in `parts`; `batch` pairs go through a pass.

    A prompt is in one part, the same for every objective. So parts of different numbers share no prompt, and have
    independent noise.
    """

    base: Base
    lora: Lora
    seed: int
    method: PairMethod
    pairs: tuple[ReferenceLogProbs, ...]
    parts: int
    batch: int

    def build(self, folder: Path) -> None:
        policy = self.base.fresh_policy(self.lora, self.seed, scoring=True).eval()
        parameters = parameters_of(policy)
        found = [
            labelled.gradient(policy, parameters, part, self.batch)[0]
            for labelled, parts in map(self._in_parts, self.pairs)
            for part in parts
        ]
        unwrap(policy)
        vectors = precise(torch.stack(found))
        save_file({"products": (vectors @ vectors.T).cpu()}, folder / "products.safetensors")

    def _in_parts(self, of: ReferenceLogProbs) -> tuple[Labelled, list[range]]:
        """The pairs in the order of their parts, and where each part stands. Raises BadInput if one has no pair."""
        numbers = np.array([int(self.parts * hashed(["gradient", prompt])) for prompt in of.pairs.rows()["prompt"]])
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], range(self.parts + 1))
        if (np.diff(ends) == 0).any():
            raise BadInput(
                f"parts={self.parts}: too few prompts, expected one for each part of {of.pairs.of.objective}"
            )
        rows, log_probs = of.pairs.encoded(self.base), of.load()
        sorted_ = PairLogProbs(*(t[torch.from_numpy(order)] for t in vars(log_probs).values()))
        labelled = Labelled([rows[i] for i in order], sorted_, self.method, self.base.tokenizer().pad_token_id)
        return labelled, [range(*two) for two in pairwise(ends.tolist())]

    def load(self) -> np.ndarray:
        """The parts of each objective in turn: (objectives * parts, objectives * parts)."""
        return load_file(self.folder / "products.safetensors")["products"].numpy()
