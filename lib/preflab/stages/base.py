"""The base model: what every experiment starts from.

A tiny base is built and tuned here, once for all notebooks that ask for the same one. A model by name is taken as it
is, or tuned on dialogues first.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab.data import worlds
from preflab.data.dialogues import dialogues
from preflab.generation import generate
from preflab.hardware import Hardware
from preflab.models import Lora, Shape, load_model, save_model, tiny_model, trainable
from preflab.progress import note
from preflab.settings import Count, Seed, TextSource, settings
from preflab.stages.given import Dequantised
from preflab.stages.stage import Stage
from preflab.tokenizers import bpe_tokenizer, load_tokenizer, word_tokenizer
from preflab.training.sft import SFTSettings, train_sft
from preflab.weights import Weights

if TYPE_CHECKING:
    from preflab.stages.data import Pairs

TINY = "tiny"


@settings
class BaseSettings(Shape):
    """Section `base`. The shape is that of a tiny model; `context` holds for every model."""

    model: str = TINY  # "tiny" is built here from the shape; otherwise a hub name, a folder or a GGUF file
    revision: str | None = None  # the hub's
    sft_source: TextSource | None = None  # hub: or files: of dialogues that a model by name is tuned on first
    vocabulary: Annotated[Count, Field(ge=512)] = (
        2048  # of the BPE trained on files: and hub: sources; worlds bring theirs
    )
    seed: Seed = 0
    sft: SFTSettings = SFTSettings()


@dataclass(frozen=True)
class Base(Stage):
    """What a tiny model learns to speak: the `language` of its worlds, or the chosen dialogues of the pairs in
    `corpus`. `given`: the weights of a model by name, where they lie on this disk; they count by their content,
    whatever `settings.model` calls them. With `taken_as_it_is` there is nothing to train."""

    settings: BaseSettings
    hardware: Hardware
    language: str | None = None
    corpus: "tuple[Pairs, ...]" = ()
    given: Weights | Dequantised | None = None

    @property
    def taken_as_it_is(self) -> bool:
        return self.settings.model != TINY and not self.settings.sft_source

    @property
    def location(self) -> str:
        """The folder of the model, or its name on the hub."""
        return self._untuned if self.taken_as_it_is else str(self.folder / "model")

    @property
    def _untuned(self) -> str:
        return self.given.location if self.given else self.settings.model

    @property
    def revision(self) -> str | None:
        return self.settings.revision if self.taken_as_it_is else None

    def load(self, scoring: bool = False) -> PreTrainedModel:
        """The fixed model, loaded once a process. Nobody may change it. `scoring`: in the precision of what is
        measured, which may be finer than what trains."""
        dtype = self.hardware.scoring_dtype if scoring else self.hardware.torch_dtype
        return _model(self.location, self.hardware.torch_device, dtype, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return _tokenizer(self.location, self.revision)

    def fresh_policy(self, lora: Lora, seed: int, scoring: bool = False) -> PreTrainedModel | PeftModel:
        """What training starts from: a fresh adapter on the base itself (`unwrap` it in the end), or a copy of it."""
        model = self.load(scoring)
        return trainable(model if lora.rank else copy.deepcopy(model), lora, seed)

    def fits(self, prompt: list[dict], reply: list[dict]) -> bool:
        """Whether the context holds a prompt with a reply, both as messages."""
        ids = self.tokenizer().apply_chat_template(prompt + reply, tokenize=True, return_dict=True)["input_ids"]
        return len(ids) <= self.settings.context

    def build(self, folder: Path) -> None:
        s, h = self.settings, self.hardware
        note(f"base model: SFT, {s.sft.steps} steps; later runs load it")
        rng = np.random.default_rng(s.seed)
        if s.model != TINY:
            conversations = dialogues(s.sft_source, s.sft.steps * s.sft.batch_size, rng)
            tokenizer = load_tokenizer(self._untuned, s.revision, plain=True)
            model = load_model(self._untuned, h.torch_device, h.torch_dtype, s.revision)
        else:
            conversations, tokenizer = self._language(rng)
            model = tiny_model(s, tokenizer, s.seed).to(h.torch_device, h.torch_dtype)
        losses = train_sft(model, tokenizer, conversations, s.sft, max_length=s.context, seed=s.seed)
        save_model(model, tokenizer, folder / "model")
        (folder / "sft.json").write_text(json.dumps({"loss": losses}))

    def _language(self, rng: np.random.Generator) -> tuple[Dataset, PreTrainedTokenizerBase]:
        """What a tiny model learns to speak from, and its tokenizer."""
        s = self.settings
        if self.language:
            conversations = worlds.sft_conversations(self.language, s.sft.steps * s.sft.batch_size, rng)
            return conversations, word_tokenizer(worlds.LANGUAGES[self.language].vocabulary())
        rows = [{"messages": p["prompt"] + p["chosen"]} for pairs in self.corpus for p in pairs.rows()]
        texts: Iterable[str] = (m["content"] for row in rows for m in row["messages"])
        return Dataset.from_list(rows), bpe_tokenizer(texts, s.vocabulary)


@lru_cache(maxsize=4)
def _model(location: str, device: torch.device, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    return load_model(location, device, dtype, revision)


@lru_cache(maxsize=4)
def _tokenizer(location: str, revision: str | None) -> PreTrainedTokenizerBase:
    return load_tokenizer(location, revision)


def spoken(base: Base, max_new_tokens: int, n: int = 256) -> dict[str, float]:
    """How well a world's base model speaks: n sampled responses to held-out prompts, read by the oracle.

    Returns the shares of well-formed and of different responses, and the mean of every attribute.
    """
    language, oracle = worlds.LANGUAGES[base.language], worlds.ORACLES[base.language]
    prompts = language.sample_prompts("test", n, 0.4, np.random.default_rng(base.settings.seed))
    messages = [[{"role": "user", "content": str(prompt)}] for prompt in prompts]
    how = {"max_new_tokens": max_new_tokens, "temperature": 1.0, "seed": 0}
    responses = generate(base.load(), base.tokenizer(), messages, **how)
    read = [oracle.read(prompt, r) for prompt, r in zip(prompts, responses, strict=True)]
    means = {k: float(np.mean([getattr(a, k) for a in read])) for k in oracle.attributes}
    return {
        "well-formed": float(np.mean([a.faults == 0 for a in read])),
        "distinct": len(set(responses)) / n,
        **means,
    }
