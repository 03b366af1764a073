"""Paper S's protocol: DPO on one objective, then on another, everything measured after every stage.

A `Stage` is named by the path of objectives trained so far: () is the base model, ("helpful",) Stage 1,
("helpful", "harmless") Stage 2. Its parent is the path without its last objective. Stages are cached,
so both orders, all notebooks and interrupted runs share what is already trained.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preflab import rewards, runs, worlds
from preflab.bases import (
    base_key,
    base_model,
    base_tokenizer,
    check_sources,
    data_key,
    encoded,
    fresh_policy,
    loaded_pairs,
    lora,
    world_of,
)
from preflab.evaluation import dpo_margin, policy_margin
from preflab.generation import generate
from preflab.likelihood import PairLogProbs, pair_log_probs
from preflab.models import load_trained, resolve_device, resolve_dtype, save_model, unwrap
from preflab.pairs import LoadedPairs
from preflab.parameters import SequentialSettings
from preflab.training.dpo import DPOSettings, StepLog, train_dpo

EVALUATION_BATCH = 64  # pairs


@dataclass(frozen=True)
class Setting:
    """Two objectives of one preference source."""

    name: str
    source: str
    objectives: tuple[str, str]

    @property
    def world(self) -> worlds.World | None:
        return world_of(self.source)

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
    """The settings named in the parameters. Raises BadInput as `check_sources` does."""
    check_sources(p)
    return [Setting(name, source, (first, second)) for name, (source, first, second) in p.settings.items()]


def all_stages(p: SequentialSettings) -> tuple[list[Stage], list[Stage], list[Stage]]:
    """Base, Stage 1 and Stage 2 of every setting, order and seed; each list needs only those before it."""
    settings = settings_of(p)
    return (
        [Stage(s, (), 0) for s in settings],
        [Stage(s, (o,), seed) for s in settings for o in s.objectives for seed in p.seeds],
        [Stage(s, order, seed) for s in settings for order in s.orders for seed in p.seeds],
    )


def stage_pairs(p: SequentialSettings, stage: Stage) -> LoadedPairs:
    """The pairs that a stage trains on."""
    return loaded_pairs(p, stage.setting.source, stage.path[-1], stage.seed)


def test_rows(p: SequentialSettings, setting: Setting, objective: str) -> tuple[Dataset, list[dict]]:
    """The held-out pairs, the same for every seed and stage: as text and encoded."""
    pairs = loaded_pairs(p, setting.source, objective, 0).test
    return pairs, encoded(p, pairs)


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
        "test": [data_key(p, stage.setting.source, o, 0) for o in stage.setting.objectives],
        "sizes": [p.test_pairs, p.prompts, p.max_new_tokens],
    }
    if stage.path:
        key |= {
            "train": [data_key(p, stage.setting.source, o, stage.seed) for o in stage.path],
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
            loaded = stage_pairs(p, stage)
            data = loaded.report.as_dict() | {"source": stage.setting.source}  # not where it lies here
            rows = encoded(p, loaded.train)
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
        return fresh_policy(p, stage.seed)
    folder = run_stage(p, stage.parent) / "model"
    return load_trained(folder, base, resolve_device(p.device), resolve_dtype(p.dtype))


def _base_log_probs(p: SequentialSettings, stage: Stage, base: PreTrainedModel, rows: list[dict]) -> PairLogProbs:
    """The base's log-probs of a stage's training pairs, cached: both orders need them."""
    objective = stage.path[-1]
    key = {
        "base": base_key(p),
        "train": data_key(p, stage.setting.source, objective, stage.seed),
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
    own = [s for s in samples if s["objective"] == objective]
    return rewards.utilities(world.objective(objective), [s["prompt"] for s in own], [s["response"] for s in own])
