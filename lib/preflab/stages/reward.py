"""What methods on samples are rewarded by, standardised.

A reward model, the implicit reward of a DPO model, the oracle, or verifiable correctness.
"""

import copy
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase

from preflab.generation import sample
from preflab.models import Lora, load_model, save_model
from preflab.rewards import (
    Reward,
    Scale,
    correctness_reward,
    flip_labels,
    implicit_reward,
    load_reward_model,
    model_reward,
    oracle_reward,
)
from preflab.settings import Share, settings
from preflab.stages.base import Base
from preflab.stages.stage import Stage
from preflab.training.reward import RewardSettings, train_reward

if TYPE_CHECKING:
    from preflab.stages.data import Pairs
    from preflab.stages.training import TrainingFromPairs

SCALE_RESPONSES = 256  # of the base model, that standardise a reward
RewardKind = Literal["model", "implicit", "oracle", "correct"]


@settings
class RewardSection(RewardSettings):
    """Section `reward`: the kind, and the training of a reward model."""

    kind: RewardKind = "model"  # what is below trains a model; `implicit` trains as section `pair_training` says
    own_share: Share = 0.0  # of the training prompts: for a trained reward alone; 0: it learns from the policies' pairs
    judge_share: Share = 0.0  # likewise of another reward model, the judge; 0: an oracle judges, or else the reward

    def __post_init__(self):
        if self.own_share + self.judge_share >= 1:
            raise ValueError(
                f"own_share={self.own_share} and judge_share={self.judge_share}: expected less than 1 together"
            )

    def training(self) -> RewardSettings:
        return RewardSettings(**{field.name: getattr(self, field.name) for field in fields(RewardSettings)})


@dataclass(frozen=True)
class RewardStage(Stage):
    """One reward for all seeds, and its scale on the base model's own responses."""

    base: Base
    kind: RewardKind
    pairs: "Pairs"  # that a reward model learns from; their prompts set the scale
    max_new_tokens: int
    training: RewardSettings | None = None  # None for what is not trained
    lora: Lora | None = None  # likewise
    implicit: "TrainingFromPairs | None" = None  # the DPO run whose reward it is

    def build(self, folder: Path) -> None:
        if self.kind == "model":
            self._train(folder)
        if self.kind == "implicit":
            with self.implicit.final_policy() as policy:
                model = copy.deepcopy(policy)  # whole, with no adapter on a base that others train on
            model = model.merge_and_unload() if isinstance(model, PeftModel) else model
            save_model(model, self.base.tokenizer(), folder / "model")
        prompts = self.pairs.rows()["prompt"][:SCALE_RESPONSES]
        how = {"max_new_tokens": self.max_new_tokens, "temperature": 1.0, "seed": 0}
        drawn = sample(self.base.load(), self.base.tokenizer(), prompts, **how)
        scale = Scale.of(self._raw(folder)(prompts, drawn))
        (folder / "scale.json").write_text(json.dumps(asdict(scale)))

    def _train(self, folder: Path) -> None:
        base, hardware, lora = self.base, self.base.hardware, self.lora
        device, dtype = hardware.torch_device, hardware.torch_dtype
        model = load_reward_model(base.location, device, dtype, base.revision, initial=True)
        if lora.rank:
            model = get_peft_model(model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, task_type="SEQ_CLS"))
        pairs = flip_labels(self.pairs.rows(), self.training.label_flips, np.random.default_rng(0))
        context = base.settings.context
        losses = train_reward(model, base.tokenizer(), pairs, self.training, max_length=context, seed=0)
        model = model.merge_and_unload() if lora.rank else model
        model.save_pretrained(folder / "model")
        (folder / "loss.json").write_text(json.dumps(losses))

    def _raw(self, folder: Path) -> Reward:
        tokenizer = self.base.tokenizer()
        if self.kind == "oracle":
            return oracle_reward(self.pairs.of.utility, tokenizer)
        if self.kind == "correct":
            return correctness_reward(self.pairs.of.world.language.name, tokenizer)
        device, dtype = self.base.hardware.torch_device, self.base.hardware.torch_dtype
        if self.kind == "implicit":
            model = load_model(str(folder / "model"), device, dtype)
            reference = load_model(self.base.location, device, dtype, self.base.revision)
            return implicit_reward(model, reference, tokenizer.pad_token_id, self.implicit.method.beta)
        return model_reward(load_reward_model(folder / "model", device, dtype), tokenizer.pad_token_id)

    def load(self) -> Reward:
        """The standardised reward: mean 0 and deviation 1 on the base model's responses."""
        folder = self.folder
        return Scale(**json.loads((folder / "scale.json").read_text())).apply(self._raw(folder))

    def margins(self, pairs: "Pairs") -> np.ndarray:
        """r(y+) - r(y-) of the unscaled reward on some pairs: (pairs,)."""
        reward, rows, prompts = self._raw(self.folder), pairs.encoded(self.base), pairs.rows()["prompt"]
        chosen, rejected = (
            reward(prompts, [(row["prompt_ids"], row[side]) for row in rows]) for side in ("chosen_ids", "rejected_ids")
        )
        return (chosen - rejected).numpy()


@dataclass(frozen=True)
class ClosedRewardStage(RewardStage):
    """A reward model on a base by name. Every response is scored as a training row ends.

    A template may go on after <eos>, and a row is read at its last token that is no padding: at that newline, say. A
    sample stops with <eos>, which may be the padding too, or is cut before it. It would be read at another token."""

    def _raw(self, folder: Path) -> Reward:
        score, tokenizer = super()._raw(folder), self.base.tokenizer()
        ending = ending_of(tokenizer)

        def closed(ids: list[int]) -> list[int]:
            there = ids[-len(ending) :] == ending
            return ids if there else ids[: -1 if ids[-1:] == [tokenizer.eos_token_id] else None] + ending

        return lambda prompts, samples: score(prompts, [(prompt, closed(response)) for prompt, response in samples])


def ending_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a chat template writes after a response's own words: <eos>, and whatever follows it."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return ids[len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id) :]


def label_temperature(stage: RewardStage) -> float:
    """T in sigma((r - r') / T), the probability of a label by a standardised reward. The unscaled one has T = 1."""
    return 1 / json.loads((stage.folder / "scale.json").read_text())["deviation"]
