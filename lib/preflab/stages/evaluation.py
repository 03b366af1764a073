"""What a policy makes of held-out pairs and prompts: what paper S measures after every stage."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from preflab.generation import generate
from preflab.likelihood import PairLogProbs, pair_log_probs
from preflab.stages.answers import policy_of
from preflab.stages.base import Base
from preflab.stages.reference import SCORING_BATCH, load_log_probs, save_log_probs
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage
from preflab.stages.training import TrainingFromPairs
from preflab.training.rollout import Values

if TYPE_CHECKING:
    from preflab.stages.data import Pairs


@dataclass(frozen=True)
class Evaluated:
    """What `Evaluation` keeps."""

    log_probs: dict[str, PairLogProbs]  # of the held-out pairs of each objective
    samples: list[dict]  # objective, prompt (messages), response: greedy, to held-out prompts


@dataclass(frozen=True)
class ScoredAlong(Stage):
    """Log-probs of held-out pairs at every snapshot of a run."""

    snapshots: Snapshots
    pairs: "Pairs"

    def build(self, folder: Path) -> None:
        base = self.snapshots.training.base
        rows, pad = self.pairs.encoded(base), base.tokenizer().pad_token_id
        found: dict[str, PairLogProbs] = {}

        def score(step: int, policy: PreTrainedModel, values: Values | None) -> None:
            found[f"{step:06d}"] = pair_log_probs(policy, rows, pad, SCORING_BATCH)

        self.snapshots.visit(score)
        save_log_probs(found, folder)

    def load(self) -> list[PairLogProbs]:
        """One for each snapshot, in their order."""
        found = load_log_probs(self.folder)
        return [found[step] for step in sorted(found)]


@dataclass(frozen=True)
class Evaluation(Stage):
    """Log-probs of the held-out pairs of every objective, and greedy responses to the first prompts of each."""

    base: Base
    training: TrainingFromPairs | None  # None: the base model
    held_out: "tuple[Pairs, ...]"
    prompts: int  # of each objective
    max_new_tokens: int

    def build(self, folder: Path) -> None:
        tokenizer = self.base.tokenizer()
        log_probs, samples = {}, []
        with policy_of(self.training, self.base, scoring=True) as model:
            for pairs in self.held_out:
                objective, rows = pairs.of.objective, pairs.encoded(self.base)
                log_probs[objective] = pair_log_probs(model, rows, tokenizer.pad_token_id, SCORING_BATCH)
                prompts = pairs.rows()["prompt"][: self.prompts]
                responses = generate(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens)
                for prompt, response in zip(prompts, responses, strict=True):
                    samples.append({"objective": objective, "prompt": prompt, "response": response})
        save_log_probs(log_probs, folder)
        (folder / "samples.json").write_text(json.dumps(samples))

    def load(self) -> Evaluated:
        folder = self.folder
        return Evaluated(load_log_probs(folder), json.loads((folder / "samples.json").read_text()))
