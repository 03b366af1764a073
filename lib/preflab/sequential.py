"""Paper S's protocol: DPO on one objective, then on another, everything measured after every stage.

A `Stage` is named by the path of objectives trained so far: () is the base model, ("helpful",) Stage 1,
("helpful", "harmless") Stage 2. Its parent is the path without its last objective. Stages are cached,
so both orders, all notebooks and interrupted runs share what is already trained.
"""

import copy
import json
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab import runs, worlds
from preflab.errors import BadInput
from preflab.evaluation import dpo_margin, policy_margin
from preflab.generation import generate
from preflab.likelihood import PairLogProbs, encode_pairs, pair_log_probs
from preflab.models import (
    Lora,
    TinyConfig,
    bpe_tokenizer,
    load_model,
    load_tokenizer,
    load_trained,
    resolve_device,
    resolve_dtype,
    save_model,
    tiny_model,
    trainable,
    unwrap,
    word_tokenizer,
)
from preflab.pairs import LoadedPairs, load_pairs
from preflab.parameters import SequentialSettings
from preflab.training.dpo import DPOSettings, StepLog, train_dpo
from preflab.training.sft import SFTSettings, train_sft

EVALUATION_BATCH = 64  # pairs


@dataclass(frozen=True)
class Setting:
    """Two objectives of one preference source."""

    name: str
    source: str
    objectives: tuple[str, str]

    @property
    def world(self) -> worlds.World | None:
        kind, _, name = self.source.partition(":")
        return worlds.get_world(name) if kind == "world" else None

    @property
    def orders(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return self.objectives, self.objectives[::-1]


@dataclass(frozen=True)
class Stage:
    setting: Setting
    path: tuple[str, ...]
    seed: int

    @property
    def parent(self) -> "Stage":
        return Stage(self.setting, self.path[:-1], self.seed)

    def __str__(self) -> str:
        return f"{self.setting.name}: {' → '.join(self.path) or 'base'}, seed {self.seed}"


def settings_of(p: SequentialSettings) -> list[Setting]:
    """The settings named in the parameters. `files:` paths are relative to the parameter `data`.

    Raises BadInput for a world or world objective that does not exist, and for a mix of worlds and
    other sources under one tiny base model, which could speak only one of their languages.
    """
    settings = []
    for name, (source, first, second) in p.settings.items():
        kind, _, where = source.partition(":")
        if kind == "files":
            source = f"files:{(runs.project_root() / p.data / where).resolve()}"
        setting = Setting(name, source, (first, second))
        if setting.world:
            for objective in setting.objectives:
                setting.world.objective(objective)
        settings.append(setting)
    if p.model == "tiny" and len({s.world is None for s in settings}) > 1:
        raise BadInput("settings: one tiny model cannot carry worlds and other sources, expected one kind")
    return settings


def all_stages(p: SequentialSettings) -> tuple[list[Stage], list[Stage], list[Stage]]:
    """Base, Stage 1 and Stage 2 of every setting, order and seed; each list needs only those before it."""
    settings = settings_of(p)
    return (
        [Stage(s, (), 0) for s in settings],
        [Stage(s, (o,), seed) for s in settings for o in s.objectives for seed in p.seeds],
        [Stage(s, order, seed) for s in settings for order in s.orders for seed in p.seeds],
    )


# --- data ---------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _load(source, objective, revision, n_train=None, n_test=None, seed=0, fits=None) -> LoadedPairs:
    """`load_pairs`, once a process for the same arguments."""
    return load_pairs(source, objective, revision=revision, max_train=n_train, max_test=n_test, seed=seed, fits=fits)


def loaded_pairs(p: SequentialSettings, setting: Setting, objective: str, seed: int) -> LoadedPairs:
    """Pairs of one objective. The seed draws the training pairs; evaluation uses seed 0's test pairs."""
    fits = None if setting.world else _fits(p)
    return _load(setting.source, objective, p.revision, p.train_pairs, p.test_pairs, seed, fits)


@lru_cache(maxsize=32)
def _encode(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, context: int) -> list[dict]:
    return encode_pairs(pairs, tokenizer, context)[0]  # what is too long for the context has gone before


def test_rows(p: SequentialSettings, setting: Setting, objective: str) -> tuple[Dataset, list[dict]]:
    """The held-out pairs, the same for every seed and stage: as text and encoded."""
    pairs = loaded_pairs(p, setting, objective, 0).test
    return pairs, _encode(pairs, base_tokenizer(p), p.context)


def data_key(p: SequentialSettings, setting: Setting, objective: str, seed: int) -> dict:
    """What identifies the pairs in cache keys: a world's definition, or the hash of what was read."""
    if setting.world:
        return {"world": repr(setting.world), "objective": objective, "seed": seed}
    return {"pairs": loaded_pairs(p, setting, objective, seed).report.fingerprint}


# --- the base model -----------------------------------------------------------------------------


def base_key(p: SequentialSettings) -> dict:
    """Everything that decides the base model."""
    place = {"device": resolve_device(p.device).type, "dtype": p.dtype}
    if p.model != "tiny":
        return {"model": p.model, "revision": p.model_revision, **place}
    names = ("architecture", "hidden_size", "layers", "heads", "context", "base_seed")
    names += ("sft_steps", "sft_batch_size", "sft_learning_rate")
    key = {name: getattr(p, name) for name in names} | place
    settings = settings_of(p)
    if settings[0].world is None:
        everything = [_load(s.source, o, p.revision).report for s in settings for o in s.objectives]
        key |= {"vocabulary": p.vocabulary, "pairs": [report.fingerprint for report in everything]}
    return key


def base_folder(p: SequentialSettings) -> str:
    """Where the base model lies, trained first if it is a tiny one; for hub models their name."""
    if p.model != "tiny":
        return p.model
    return str(runs.cache().entry("base", base_key(p), lambda folder: _train_base(p, folder)) / "model")


def _train_base(p: SequentialSettings, folder: Path) -> None:
    settings = settings_of(p)
    rng = np.random.default_rng(p.base_seed)
    if settings[0].world:
        conversations = worlds.sft_conversations(p.sft_steps * p.sft_batch_size, rng)
        tokenizer = word_tokenizer(worlds.vocabulary())
    else:
        conversations = _chosen_dialogues(p, settings)
        texts = (m["content"] for row in conversations["messages"] for m in row)
        tokenizer = bpe_tokenizer(texts, p.vocabulary)
    shape = TinyConfig(p.architecture, p.hidden_size, p.layers, p.heads, p.context)
    model = tiny_model(shape, tokenizer, p.base_seed).to(resolve_device(p.device), resolve_dtype(p.dtype))
    sft = SFTSettings(p.sft_steps, p.sft_batch_size, p.sft_learning_rate, p.context)
    losses = train_sft(model, tokenizer, conversations, sft, p.base_seed)
    save_model(model, tokenizer, folder / "model")
    (folder / "sft.json").write_text(json.dumps({"loss": losses}))


def _chosen_dialogues(p: SequentialSettings, settings: list[Setting]) -> Dataset:
    """Whole dialogues with the chosen reply, of every training pair: what a small model learns to speak from."""
    rows = [
        {"messages": pair["prompt"] + pair["chosen"]}
        for s in settings
        for objective in s.objectives
        for pair in _load(s.source, objective, p.revision).train
    ]
    return Dataset.from_list(rows)


@cache
def _base_model(folder: str, device: torch.device, dtype: torch.dtype, revision: str | None) -> PreTrainedModel:
    return load_model(folder, device, dtype, revision)


@cache
def _tokenizer(folder: str, revision: str | None) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder, revision)


def base_model(p: SequentialSettings) -> PreTrainedModel:
    """The fixed base model, loaded once a process."""
    return _base_model(base_folder(p), resolve_device(p.device), resolve_dtype(p.dtype), p.model_revision)


def base_tokenizer(p: SequentialSettings) -> PreTrainedTokenizerBase:
    return _tokenizer(base_folder(p), p.model_revision)


@lru_cache(maxsize=4)
def _fits_context(folder: str, revision: str | None, context: int):
    tokenizer = _tokenizer(folder, revision)

    def fits(prompt: list[dict], reply: list[dict]) -> bool:
        ids = tokenizer.apply_chat_template(prompt + reply, tokenize=True, return_dict=True)["input_ids"]
        return len(ids) <= context

    return fits


def _fits(p: SequentialSettings):
    return _fits_context(base_folder(p), p.model_revision, p.context)


# --- stages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageResult:
    """What is kept of a stage, beside its weights."""

    log_probs: dict[str, PairLogProbs]  # held-out pairs of each objective of the setting
    samples: list[dict]  # objective, prompt (messages), response: greedy, to held-out prompts
    history: list[dict]  # one StepLog an update
    data: dict  # report of the training pairs


def stage_key(p: SequentialSettings, stage: Stage) -> dict:
    key = {
        "base": base_key(p),
        "context": p.context,
        "test": [data_key(p, stage.setting, o, 0) for o in stage.setting.objectives],
        "sizes": [p.test_pairs, p.prompts, p.max_new_tokens],
    }
    if stage.path:
        key |= {
            "train": [data_key(p, stage.setting, o, stage.seed) for o in stage.path],
            "train_pairs": p.train_pairs,
            "dpo": asdict(dpo_settings(p)),
            "lora": asdict(lora(p)),
            "reference": p.stage2_reference if len(stage.path) > 1 else "base",
            "seed": stage.seed,
        }
    return key


def dpo_settings(p: SequentialSettings) -> DPOSettings:
    names = (
        "beta",
        "learning_rate",
        "batch_size",
        "micro_batch_size",
        "epochs",
        "warmup_share",
        "checkpoint_every",
    )
    return DPOSettings(**{name: getattr(p, name) for name in names})


def lora(p: SequentialSettings) -> Lora:
    return Lora(p.lora_rank, p.lora_alpha, p.lora_dropout)


def run_stage(p: SequentialSettings, stage: Stage) -> Path:
    """Train (unless cached) and measure one stage; returns its cache entry."""
    return runs.cache().entry("stage", stage_key(p, stage), lambda folder: _build_stage(p, stage, folder))


def is_cached(p: SequentialSettings, stage: Stage) -> bool:
    return runs.cache().folder("stage", stage_key(p, stage)).exists()


def _build_stage(p: SequentialSettings, stage: Stage, folder: Path) -> None:
    model, tokenizer = base_model(p), base_tokenizer(p)
    history: list = []
    data: dict = {}
    try:
        if stage.path:
            loaded = loaded_pairs(p, stage.setting, stage.path[-1], stage.seed)
            source, *_ = p.settings[stage.setting.name]  # as the parameters name it, not where it lies here
            data = loaded.report.as_dict() | {"source": source}
            rows = _encode(loaded.train, tokenizer, p.context)
            reference = _base_log_probs(p, stage, model, rows)  # before an adapter is on the base
            model = _starting_policy(p, stage, model)
            if p.stage2_reference == "stage1" and len(stage.path) > 1:
                reference = pair_log_probs(model, rows, tokenizer.pad_token_id, EVALUATION_BATCH)
            checkpoint = folder / "checkpoint.safetensors"
            history = train_dpo(
                model,
                rows,
                reference,
                dpo_settings(p),
                pad_token_id=tokenizer.pad_token_id,
                seed=10 * stage.seed + len(stage.path),  # another batch order in Stage 2
                checkpoint=checkpoint,
                on_step=lambda step, steps, log: _note(stage, step, steps, log),
            )
            save_model(model, tokenizer, folder / "model")
            checkpoint.unlink(missing_ok=True)
        _measure(p, stage.setting, model, tokenizer, folder)
    finally:
        unwrap(model)
    (folder / "history.json").write_text(json.dumps([asdict(log) for log in history]))
    (folder / "data.json").write_text(json.dumps(data))


def _note(stage: Stage, step: int, steps: int, log: StepLog) -> None:
    if step % 50 == 0:
        runs.note(f"    {stage}: update {step} of {steps}, loss {log.loss:.3f}, accuracy {log.accuracy:.2f}")


def _starting_policy(p: SequentialSettings, stage: Stage, base: PreTrainedModel) -> PreTrainedModel:
    """Stage 1 starts with a fresh adapter on the base, Stage 2 goes on with Stage 1's."""
    if not stage.parent.path:
        return trainable(base if p.lora_rank else copy.deepcopy(base), lora(p), stage.seed)
    folder = run_stage(p, stage.parent) / "model"
    return load_trained(folder, base, resolve_device(p.device), resolve_dtype(p.dtype))


def _base_log_probs(p: SequentialSettings, stage: Stage, base: PreTrainedModel, rows: list[dict]) -> PairLogProbs:
    """The base's log-probs of a stage's training pairs, cached: both orders need them."""
    objective = stage.path[-1]
    key = {
        "base": base_key(p),
        "train": data_key(p, stage.setting, objective, stage.seed),
        "sizes": [p.train_pairs, p.context],
    }

    def build(folder: Path) -> None:
        log_probs = pair_log_probs(base, rows, base_tokenizer(p).pad_token_id, EVALUATION_BATCH)
        _save_log_probs({objective: log_probs}, folder)

    return _load_log_probs(runs.cache().entry("reference", key, build))[objective]


def _measure(
    p: SequentialSettings,
    setting: Setting,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Held-out log-probs under both objectives, and greedy responses to held-out prompts of both."""
    log_probs, samples = {}, []
    for objective in setting.objectives:
        pairs, rows = test_rows(p, setting, objective)
        log_probs[objective] = pair_log_probs(model, rows, tokenizer.pad_token_id, EVALUATION_BATCH)
        prompts = pairs["prompt"][: p.prompts]
        responses = generate(model, tokenizer, prompts, max_new_tokens=p.max_new_tokens)
        for prompt, response in zip(prompts, responses, strict=True):
            samples.append({"objective": objective, "prompt": prompt, "response": response})
    _save_log_probs(log_probs, folder)
    (folder / "samples.json").write_text(json.dumps(samples))


def _save_log_probs(log_probs: dict[str, PairLogProbs], folder: Path) -> None:
    tensors = {f"{o}/{name}": t.contiguous() for o, lp in log_probs.items() for name, t in vars(lp).items()}
    save_file(tensors, folder / "log_probs.safetensors")


def _load_log_probs(folder: Path) -> dict[str, PairLogProbs]:
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "log_probs.safetensors").items():
        objective, name = key.rsplit("/", 1)
        grouped.setdefault(objective, {})[name] = tensor
    return {objective: PairLogProbs(**tensors) for objective, tensors in grouped.items()}


def load_stage(p: SequentialSettings, stage: Stage) -> StageResult:
    """What `run_stage` kept; runs it where it has not been run."""
    folder = run_stage(p, stage)
    samples, history, data = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("samples", "history", "data")
    )
    return StageResult(_load_log_probs(folder), samples, history, data)


# --- results ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequence:
    """One setting and order, all seeds. Margins are {objective: (3 stages, seeds, pairs)}; the stages
    are base, Stage 1, Stage 2; the base's rows repeat over seeds."""

    setting: Setting
    path: tuple[str, str]
    policy_margins: dict[str, np.ndarray]  # length-normalised, nats per token
    dpo_margins: dict[str, np.ndarray]  # against the base, nats
    results: list[list[StageResult]]  # [stage][seed]

    @property
    def name(self) -> str:
        return f"{self.setting.name}: {' → '.join(self.path)}"


def load_sequence(p: SequentialSettings, setting: Setting, path: tuple[str, str]) -> Sequence:
    """Margins of every objective after every stage of one order."""
    base = load_stage(p, Stage(setting, (), 0))
    results = [
        [base] * len(p.seeds),
        [load_stage(p, Stage(setting, path[:1], seed)) for seed in p.seeds],
        [load_stage(p, Stage(setting, path, seed)) for seed in p.seeds],
    ]

    def stacked(margin, objective: str) -> np.ndarray:
        return np.array([[margin(r.log_probs[objective], base.log_probs[objective]) for r in row] for row in results])

    return Sequence(
        setting,
        path,
        {o: stacked(lambda lp, _: policy_margin(lp), o) for o in path},
        {o: stacked(lambda lp, ref: dpo_margin(lp, ref, p.beta), o) for o in path},
        results,
    )


def utilities(world: worlds.World, objective: str, samples: list[dict]) -> np.ndarray:
    """The oracle's utility of each response to this objective's own held-out prompts: (prompts,)."""
    spec = world.objective(objective)
    return np.array(
        [
            spec.utility(worlds.Prompt.parse(s["prompt"][-1]["content"]), s["response"])
            for s in samples
            if s["objective"] == objective
        ]
    )


def base_quality(p: SequentialSettings, n: int = 256) -> dict[str, float]:
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
