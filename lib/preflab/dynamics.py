"""Paper D's protocol: train with DPO and with PPO from one SFT model, keep snapshots, let the end point answer.

A `Training` is one run. What it leaves in the cache: snapshots of its weights at the updates where G will be
measured and one update later, its log, and the responses of its final policy to held-out prompts: D'.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import runs, worlds
from preflab.bases import (
    base_folder,
    base_key,
    base_model,
    base_revision,
    base_tokenizer,
    check_sources,
    data_key,
    encoded,
    fresh_policy,
    loaded_pairs,
    lora,
    world_of,
)
from preflab.generation import Sample, decode, sample
from preflab.likelihood import collate_responses, pair_log_probs, token_log_probs
from preflab.models import load_trained, resolve_device, resolve_dtype, save_model, unwrap
from preflab.pairs import LoadedPairs
from preflab.parameters import AblationSettings, DynamicsSettings, Variant
from preflab.rewards import (
    Reward,
    Scale,
    flip_labels,
    load_reward_model,
    model_reward,
    oracle_reward,
)
from preflab.rules import Rule, plain, resolve_rule, rule_key
from preflab.training.dpo import DPOSettings, StepLog, batches, train_dpo
from preflab.training.ppo import Batch, IterationLog, PPOSettings, Values, train_ppo, trained_parameters
from preflab.training.reward import RewardSettings, train_reward

SCALE_RESPONSES = 256  # of the base model, that standardise a reward
SCORING_BATCH = 64
SIDES = ("chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Training:
    """One training run."""

    method: str  # dpo or ppo
    seed: int
    name: str = ""  # of the variant, where the method alone does not say it
    variant: Variant | None = None  # None: the plain method

    def __str__(self) -> str:
        return f"{self.name or self.method.upper()}, seed {self.seed}"

    @property
    def rule(self) -> Rule:
        v = self.variant
        return resolve_rule(v.rule, v.arguments, v.until) if v else plain


def trainings(p: DynamicsSettings) -> list[Training]:
    """Every run that the parameters ask for. Raises BadInput for sources and rules that do not exist."""
    check_sources(p)
    if not isinstance(p, AblationSettings):
        return [Training(method, seed) for seed in p.seeds for method in ("ppo", "dpo")]  # the longer ones first
    runs_ = [Training(v.method, seed, name, v) for name, v in p.variants.items() for seed in p.seeds]
    for training in runs_:
        _ = training.rule
    return sorted(runs_, key=lambda training: training.method != "ppo")


# --- data and reward ----------------------------------------------------------------------------


def pairs_of(p: DynamicsSettings, seed: int) -> LoadedPairs:
    return loaded_pairs(p, p.source, p.objective, seed)


def objective_of(p: DynamicsSettings) -> worlds.Objective | None:
    """The oracle's objective; None where there is no oracle."""
    world = world_of(p.source)
    return world.objective(p.objective) if world else None


def held_out_prompts(p: DynamicsSettings) -> list[list[dict]]:
    """Those that D' answers, the same for every run: of test pairs, so of prompts never trained on."""
    return loaded_pairs(p, *_final_source(p), 0).test["prompt"][: p.finals]


def _final_source(p: DynamicsSettings) -> tuple[str, str]:
    return (p.final_source, p.final_objective) if p.final_source else (p.source, p.objective)


def reward_key(p: DynamicsSettings) -> dict:
    key = {"base": base_key(p), "train": data_key(p, p.source, p.objective, 0), "reward": p.reward}
    sizes = {"pairs": [p.train_pairs, p.test_pairs], "context": p.context, "max_new_tokens": p.max_new_tokens}
    if p.reward == "model":
        key |= {"training": asdict(_reward_settings(p)), "flips": p.label_flips, "lora": asdict(lora(p))}
    return key | sizes


def _reward_settings(p: DynamicsSettings) -> RewardSettings:
    return RewardSettings(p.reward_epochs, p.reward_batch_size, p.reward_learning_rate, p.context)


def prepare_reward(p: DynamicsSettings) -> Path:
    """Train the reward model (one for all seeds) where there is to be one; its scale; its cache entry."""
    return runs.cache().entry("reward", reward_key(p), lambda folder: _build_reward(p, folder))


def _build_reward(p: DynamicsSettings, folder: Path) -> None:
    tokenizer = base_tokenizer(p)
    loaded = pairs_of(p, 0)
    if p.reward == "model":
        device, dtype = resolve_device(p.device), resolve_dtype(p.dtype)
        model = load_reward_model(base_folder(p), device, dtype, base_revision(p), initial=True)
        if p.lora_rank:
            model = get_peft_model(model, LoraConfig(r=p.lora_rank, lora_alpha=p.lora_alpha, task_type="SEQ_CLS"))
        pairs = flip_labels(loaded.train, p.label_flips, np.random.default_rng(0))
        losses = train_reward(model, tokenizer, pairs, _reward_settings(p), seed=0)
        model = model.merge_and_unload() if p.lora_rank else model
        model.save_pretrained(folder / "model")
        (folder / "loss.json").write_text(json.dumps(losses))
    prompts = loaded.train["prompt"][:SCALE_RESPONSES]
    drawn = sample(base_model(p), tokenizer, prompts, max_new_tokens=p.max_new_tokens, temperature=1.0, seed=0)
    scale = Scale.of(_raw_reward(p, folder)(prompts, drawn))
    (folder / "scale.json").write_text(json.dumps(asdict(scale)))


def _raw_reward(p: DynamicsSettings, folder: Path) -> Reward:
    if p.reward == "oracle":
        return oracle_reward(objective_of(p), base_tokenizer(p))
    model = load_reward_model(folder / "model", resolve_device(p.device), resolve_dtype(p.dtype))
    return model_reward(model, base_tokenizer(p).pad_token_id)


def reward_of(p: DynamicsSettings) -> Reward:
    """The standardised reward that PPO learns from."""
    folder = prepare_reward(p)
    return Scale(**json.loads((folder / "scale.json").read_text())).apply(_raw_reward(p, folder))


def reward_margins(p: DynamicsSettings) -> np.ndarray:
    """r(y+) - r(y-) of the unscaled reward on the held-out pairs: (pairs,)."""
    pairs = pairs_of(p, 0).test
    reward, rows = _raw_reward(p, prepare_reward(p)), encoded(p, pairs)
    scores = [reward(pairs["prompt"], [(r["prompt_ids"], r[side]) for r in rows]) for side in SIDES]
    return (scores[0] - scores[1]).numpy()


# --- training -----------------------------------------------------------------------------------


def dpo_settings(p: DynamicsSettings) -> DPOSettings:
    return DPOSettings(
        beta=p.beta,
        learning_rate=p.dpo_learning_rate,
        batch_size=p.dpo_batch_size,
        micro_batch_size=p.dpo_micro_batch_size,
        epochs=p.dpo_epochs,
        warmup_share=p.warmup_share,
        weight_decay=p.weight_decay,
        checkpoint_every=p.checkpoint_every,
    )


def ppo_settings(p: DynamicsSettings) -> PPOSettings:
    return PPOSettings(
        iterations=p.ppo_iterations,
        batch_size=p.ppo_batch_size,
        minibatch_size=p.ppo_minibatch_size,
        micro_batch_size=p.ppo_micro_batch_size,
        epochs=p.ppo_epochs,
        learning_rate=p.ppo_learning_rate,
        warmup_share=p.warmup_share,
        clip=p.clip,
        value_clip=p.value_clip,
        value_coefficient=p.value_coefficient,
        gae_lambda=p.gae_lambda,
        kl_coefficient=p.kl_coefficient,
        kl_target=p.kl_target,
        missing_eos_penalty=p.missing_eos_penalty,
        max_new_tokens=p.max_new_tokens,
        checkpoint_every=p.checkpoint_every,
    )


def updates_of(p: DynamicsSettings, training: Training) -> tuple[int, int]:
    """Updates of the optimiser in all, and between two measurements."""
    if training.method == "dpo":
        pairs = len(pairs_of(p, training.seed).train)
        return len(batches(pairs, p.dpo_batch_size, p.dpo_epochs, 0)), p.dpo_measure_every
    per_iteration = p.ppo_epochs * p.ppo_batch_size // p.ppo_minibatch_size
    return p.ppo_iterations * per_iteration, p.ppo_measure_every * per_iteration


def measured_steps(p: DynamicsSettings, training: Training) -> list[int]:
    """The updates after which G is measured: the first is 0, the last the end."""
    total, every = updates_of(p, training)
    return sorted({*range(0, total, every), total})


def training_key(p: DynamicsSettings, training: Training) -> dict:
    key = {
        "method": training.method,
        "seed": training.seed,
        "base": base_key(p),
        "train": data_key(p, p.source, p.objective, training.seed),
        "sizes": [p.train_pairs, p.context],
        "lora": asdict(lora(p)),
        "snapshots": [p.snapshots, *updates_of(p, training)],
    }
    if training.variant and training.variant.rule != "plain":
        key |= {"rule": rule_key(training.variant.rule, training.variant.arguments, training.variant.until)}
    if training.method == "dpo":
        return key | {"dpo": asdict(dpo_settings(p))}
    return key | {"ppo": asdict(ppo_settings(p)), "own_value_trunk": p.own_value_trunk, "reward": reward_key(p)}


def run_training(p: DynamicsSettings, training: Training) -> Path:
    """Train (unless cached); returns the cache entry."""
    return runs.cache().entry(
        "training", training_key(p, training), lambda folder: _build_training(p, training, folder)
    )


def is_trained(p: DynamicsSettings, training: Training) -> bool:
    return runs.cache().folder("training", training_key(p, training)).exists()


def _build_training(p: DynamicsSettings, training: Training, folder: Path) -> None:
    checkpoint = folder / "checkpoint.safetensors"
    wanted = {s + later for s in measured_steps(p, training) for later in (0, 1)} if p.snapshots == "keep" else set()

    def keep(step: int, policy: PreTrainedModel, values: Values | None) -> None:
        if step in wanted:
            (folder / "snapshots").mkdir(exist_ok=True)
            tensors = {name: t.detach().contiguous() for name, t in trained_parameters(policy, values).items()}
            save_file(tensors, folder / "snapshots" / f"{step:06d}.safetensors")

    with trained(p, training, keep, checkpoint) as (policy, _, history):
        save_model(policy, base_tokenizer(p), folder / "model")
    checkpoint.unlink(missing_ok=True)
    (folder / "history.json").write_text(json.dumps([asdict(log) for log in history]))
    report = pairs_of(p, training.seed).report.as_dict() | {"source": p.source}  # not where it lies here
    (folder / "data.json").write_text(json.dumps(report))


Watch = Callable[[int, PreTrainedModel, Values | None], None]  # updates so far, policy, values (PPO's)


@contextmanager
def trained(
    p: DynamicsSettings, training: Training, watch: Watch, checkpoint: Path | None = None
) -> Iterator[tuple[PreTrainedModel, Values | None, list]]:
    """Train, with `watch` called at the start and after every update; policy, values and log of the end."""
    base, tokenizer = base_model(p), base_tokenizer(p)
    train = pairs_of(p, training.seed).train
    common = {"seed": training.seed, "checkpoint": checkpoint, "rule": training.rule}
    values = None
    if training.method == "dpo":
        rows = encoded(p, train)
        reference = pair_log_probs(base, rows, tokenizer.pad_token_id, SCORING_BATCH)
    else:
        values = Values(base, p.own_value_trunk)
    policy = fresh_policy(p, training.seed)
    try:
        watch(0, policy, values)
        if training.method == "dpo":
            history = train_dpo(
                policy,
                rows,
                reference,
                dpo_settings(p),
                pad_token_id=tokenizer.pad_token_id,
                on_step=lambda step, steps, log: (watch(step, policy, None), _note(training, step, steps, log)),
                **common,
            )
        else:
            objective = objective_of(p)
            history = train_ppo(
                policy,
                values,
                tokenizer,
                train["prompt"],
                reference_of(policy, base),
                reward_of(p),
                ppo_settings(p),
                judge=oracle_reward(objective, tokenizer) if objective else None,
                on_step=partial(_note, training),
                on_update=lambda step: watch(step, policy, values),
                **common,
            )
        yield policy, values, history
    finally:
        unwrap(policy)


def reference_of(policy: PreTrainedModel, base: PreTrainedModel) -> Callable[[Batch], torch.Tensor]:
    """Token log-probs of the SFT model: the base, or the policy without its adapter, which sits on the base."""

    @torch.no_grad()
    def log_probs(batch: Batch) -> torch.Tensor:
        with policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext():
            return token_log_probs(policy if isinstance(policy, PeftModel) else base, batch)

    return log_probs


def _note(training: Training, step: int, steps: int, log: StepLog | IterationLog) -> None:
    every = 50 if isinstance(log, StepLog) else 10
    if step % every == 0:
        seen = f"loss {log.loss:.3f}" if isinstance(log, StepLog) else f"reward {log.score:.2f}, KL {log.kl:.2f}"
        runs.note(f"    {training}: {step} of {steps}, {seen}")


def snapshots(p: DynamicsSettings, training: Training, watch: Watch) -> None:
    """`watch` every kept state of a run, in order, without training again; the policy is one and changes."""
    folder = run_training(p, training)
    base = base_model(p)
    values = Values(base, p.own_value_trunk) if training.method == "ppo" else None
    policy = fresh_policy(p, training.seed).eval()
    try:
        for file in sorted((folder / "snapshots").glob("*.safetensors")):
            kept = load_file(file)
            with torch.no_grad():
                for name, parameter in trained_parameters(policy, values).items():
                    parameter.copy_(kept[name])
            watch(int(file.stem), policy, values)
    finally:
        unwrap(policy)


def load_history(p: DynamicsSettings, training: Training) -> list[dict]:
    return json.loads((run_training(p, training) / "history.json").read_text())


def load_data(p: DynamicsSettings, training: Training) -> dict:
    return json.loads((run_training(p, training) / "data.json").read_text())


# --- what the end point says --------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Responses to the held-out prompts, n of each kind."""

    final: list[Sample]  # at final_temperature: D' of a run
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


def answers_key(p: DynamicsSettings, training: Training | None) -> dict:
    return {
        "of": training_key(p, training) if training else {"base": base_key(p)},
        "prompts": [data_key(p, *_final_source(p), 0), p.train_pairs, p.test_pairs, p.finals, p.context],
        "decoding": [p.final_temperature, p.max_new_tokens],
    }


def load_answers(p: DynamicsSettings, training: Training | None) -> Answers:
    """Of a run's final policy, or of the SFT model; generated where they are not there yet."""
    entry = runs.cache().entry("answers", answers_key(p, training), lambda folder: _build_answers(p, training, folder))
    kept = json.loads((entry / "answers.json").read_text())
    samples = {name: [tuple(s) for s in kept.pop(name)] for name in ("final", "sampled")}
    numbers = {name: np.array(kept.pop(name)) for name in ("log_probs", "reference_log_probs")}
    return Answers(**samples, **numbers, **kept)


def _build_answers(p: DynamicsSettings, training: Training | None, folder: Path) -> None:
    model, tokenizer, prompts = base_model(p), base_tokenizer(p), held_out_prompts(p)
    if training:
        where = run_training(p, training) / "model"
        model = load_trained(where, model, resolve_device(p.device), resolve_dtype(p.dtype))
    try:
        final, sampled = (
            sample(model, tokenizer, prompts, max_new_tokens=p.max_new_tokens, temperature=t, seed=1)
            for t in (p.final_temperature, 1.0)
        )
        log_probs = _response_log_probs(p, model, sampled)
    finally:
        model = unwrap(model)
    kept = {
        "final": final,
        "final_texts": decode(tokenizer, final),
        "sampled": sampled,
        "sampled_texts": decode(tokenizer, sampled),
        "log_probs": log_probs,
        "reference_log_probs": _response_log_probs(p, base_model(p), sampled),
    }
    (folder / "answers.json").write_text(json.dumps(kept))


@torch.no_grad()
def _response_log_probs(p: DynamicsSettings, model: PreTrainedModel, samples: list[Sample]) -> list[float]:
    found: list[float] = []
    for start in range(0, len(samples), p.measure_batch):
        some = samples[start : start + p.measure_batch]
        batch = collate_responses(some, base_tokenizer(p).pad_token_id, model.device)
        found += token_log_probs(model, batch).sum(1).tolist()
    return found


def probe_pairs(p: DynamicsSettings, seed: int) -> Dataset:
    """The training pairs (for PPO: their prompts) that G is measured on, the same for all snapshots of a run."""
    train = pairs_of(p, seed).train
    order = np.random.default_rng([seed, 7]).permutation(len(train))
    return train.select(sorted(order[: p.probe].tolist()))
