"""What every experiment starts from: the pairs of a source, and the base model that speaks their language.

A tiny base is built and tuned here, once for all notebooks that ask for the same one. A hub model is
taken as it is, or tuned on dialogues first (`sft_source`).
"""

import copy
import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab import runs, worlds
from preflab.errors import BadInput
from preflab.generation import generate
from preflab.likelihood import encode_pairs
from preflab.models import (
    Lora,
    TinyConfig,
    bpe_tokenizer,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    save_model,
    tiny_model,
    trainable,
    word_tokenizer,
)
from preflab.pairs import LoadedPairs, load_pairs
from preflab.parameters import Experiment
from preflab.sources import dialogues, parse_source
from preflab.training.sft import SFTSettings, train_sft

# --- data ---------------------------------------------------------------------------------------


def world_of(source: str) -> worlds.World | None:
    """The world that a source names; None for files and the hub. Raises BadInput for one that does not exist."""
    kind, name = parse_source(source)
    return worlds.get_world(name) if kind == "world" else None


def check_sources(p: Experiment) -> None:
    """Raises BadInput for a world or world objective that does not exist, and for a mix of worlds and
    other sources under one tiny base model, which could speak only one of their languages."""
    found = {source: world_of(source) for source, _ in p.sources()}
    for source, objective in p.sources():
        if found[source]:
            found[source].objective(objective)
    if p.model == "tiny" and len({world is None for world in found.values()}) > 1:
        raise BadInput("one tiny model cannot carry worlds and other sources, expected one kind")


def _located(p: Experiment, source: str) -> str:
    """`files:` paths are relative to the parameter `data`."""
    kind, name = parse_source(source)
    return f"files:{(runs.project_root() / p.data / name).resolve()}" if kind == "files" else source


@lru_cache(maxsize=32)
def _load(source, objective, revision, n_train=None, n_test=None, seed=0, fits=None) -> LoadedPairs:
    """`load_pairs`, once a process for the same arguments."""
    return load_pairs(source, objective, revision=revision, max_train=n_train, max_test=n_test, seed=seed, fits=fits)


def _whole(p: Experiment, source: str, objective: str) -> LoadedPairs:
    return _load(_located(p, source), objective, p.revision)


def loaded_pairs(p: Experiment, source: str, objective: str, seed: int) -> LoadedPairs:
    """Pairs of one objective that fit the context. The seed draws the training pairs; evaluation uses
    seed 0's test pairs."""
    fits = None if world_of(source) else _fits_context(base_folder(p), base_revision(p), p.context)
    return _load(_located(p, source), objective, p.revision, p.train_pairs, p.test_pairs, seed, fits)


@lru_cache(maxsize=32)
def _encode(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, context: int) -> list[dict]:
    return encode_pairs(pairs, tokenizer, context)[0]  # what is too long for the context has gone before


def encoded(p: Experiment, pairs: Dataset) -> list[dict]:
    """Rows of prompt_ids, chosen_ids, rejected_ids, once a process for the same pairs."""
    return _encode(pairs, base_tokenizer(p), p.context)


def data_key(p: Experiment, source: str, objective: str, seed: int) -> dict:
    """What identifies the pairs in cache keys: a world's definition, or the hash of what was read."""
    if world := world_of(source):
        return {"world": repr(world), "objective": objective, "seed": seed}
    return {"pairs": loaded_pairs(p, source, objective, seed).report.fingerprint}


@lru_cache(maxsize=4)
def _fits_context(folder: str, revision: str | None, context: int):
    tokenizer = _tokenizer(folder, revision)

    def fits(prompt: list[dict], reply: list[dict]) -> bool:
        ids = tokenizer.apply_chat_template(prompt + reply, tokenize=True, return_dict=True)["input_ids"]
        return len(ids) <= context

    return fits


# --- the base model -----------------------------------------------------------------------------


def base_key(p: Experiment) -> dict:
    """Everything that decides the base model."""
    key = {"device": resolve_device(p.device).type, "dtype": p.dtype}
    sft = {name: getattr(p, name) for name in ("context", "sft_steps", "sft_batch_size", "sft_learning_rate")}
    if p.model != "tiny":
        key |= {"model": p.model, "revision": p.model_revision}
        return key | sft | {"sft_source": p.sft_source, "seed": p.base_seed} if p.sft_source else key
    key |= sft | {name: getattr(p, name) for name in ("architecture", "hidden_size", "layers", "heads", "base_seed")}
    if not _speaks_world(p):
        fingerprints = [_whole(p, source, objective).report.fingerprint for source, objective in p.sources()]
        key |= {"vocabulary": p.vocabulary, "pairs": fingerprints}
    return key


def _speaks_world(p: Experiment) -> bool:
    return world_of(p.sources()[0][0]) is not None


def base_folder(p: Experiment) -> str:
    """Where the base model lies, trained first where it has to be; for hub models as they are, their name."""
    if p.model != "tiny" and not p.sft_source:
        return p.model
    return str(runs.cache().entry("base", base_key(p), lambda folder: _train_base(p, folder)) / "model")


def _train_base(p: Experiment, folder: Path) -> None:
    check_sources(p)
    rng = np.random.default_rng(p.base_seed)
    device, dtype = resolve_device(p.device), resolve_dtype(p.dtype)
    if p.model != "tiny":
        conversations = dialogues(_located(p, p.sft_source), p.sft_steps * p.sft_batch_size, rng)
        tokenizer = load_tokenizer(p.model, p.model_revision, plain=True)
        model = load_model(p.model, device, dtype, p.model_revision)
    else:
        if _speaks_world(p):
            conversations = worlds.sft_conversations(p.sft_steps * p.sft_batch_size, rng)
            tokenizer = word_tokenizer(worlds.vocabulary())
        else:
            conversations = _chosen_dialogues(p)
            texts = (m["content"] for row in conversations["messages"] for m in row)
            tokenizer = bpe_tokenizer(texts, p.vocabulary)
        shape = TinyConfig(p.architecture, p.hidden_size, p.layers, p.heads, p.context)
        model = tiny_model(shape, tokenizer, p.base_seed).to(device, dtype)
    sft = SFTSettings(p.sft_steps, p.sft_batch_size, p.sft_learning_rate, p.context)
    losses = train_sft(model, tokenizer, conversations, sft, p.base_seed)
    save_model(model, tokenizer, folder / "model")
    (folder / "sft.json").write_text(json.dumps({"loss": losses}))


def _chosen_dialogues(p: Experiment) -> Dataset:
    """Whole dialogues with the chosen reply, of every training pair: what a small model learns to speak from."""
    rows = [
        {"messages": pair["prompt"] + pair["chosen"]}
        for source, objective in p.sources()
        for pair in _whole(p, source, objective).train
    ]
    return Dataset.from_list(rows)


@cache
def _base_model(folder: str, device: torch.device, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    return load_model(folder, device, dtype, revision)


@cache
def _tokenizer(folder: str, revision: str | None) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, revision)


def base_revision(p: Experiment) -> str | None:
    """The hub's, where the base model is the hub's."""
    return p.model_revision if base_folder(p) == p.model else None


def base_model(p: Experiment) -> PreTrainedModel:
    """The fixed base model, loaded once a process."""
    return _base_model(base_folder(p), resolve_device(p.device), resolve_dtype(p.dtype), base_revision(p))


def base_tokenizer(p: Experiment) -> PreTrainedTokenizerBase:
    return _tokenizer(base_folder(p), base_revision(p))


def lora(p: Experiment) -> Lora:
    return Lora(p.lora_rank, p.lora_alpha, p.lora_dropout)


def fresh_policy(p: Experiment, seed: int) -> PreTrainedModel | PeftModel:
    """What training starts from: a fresh adapter on the base itself (`unwrap` it in the end), or a copy of it."""
    base = base_model(p)
    return trainable(base if p.lora_rank else copy.deepcopy(base), lora(p), seed)


def base_quality(p: Experiment, n: int = 256) -> dict[str, float]:
    """How well a world's base model speaks: sampled responses to held-out prompts, read by the oracle.

    Shares of well-formed and of distinct responses, and the mean of every attribute.
    """
    prompts = worlds.sample_prompts("test", n, 0.4, np.random.default_rng(p.base_seed))
    messages = [[{"role": "user", "content": str(prompt)}] for prompt in prompts]
    responses = generate(
        base_model(p), base_tokenizer(p), messages, max_new_tokens=p.max_new_tokens, temperature=1.0, seed=0
    )
    read = [worlds.read(prompt, r) for prompt, r in zip(prompts, responses, strict=True)]
    means = {k: float(np.mean([getattr(a, k) for a in read])) for k in worlds.ATTRIBUTES}
    return {
        "well-formed": float(np.mean([a.faults == 0 for a in read])),
        "distinct": len(set(responses)) / n,
        **means,
    }
