"""Paper D's protocol: train with DPO and with PPO from one SFT model, keep snapshots, let the end point answer.

A `Training` is one run. What it leaves in the cache: snapshots of its weights at the updates where G will be
measured and one update later, its log, and the responses of its final policy to held-out prompts: D'.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from preflab import rewards, runs, weightings, worlds
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
from preflab.errors import BadInput
from preflab.generation import Sample, decode, sample
from preflab.likelihood import PairLogProbs, collate_responses, pair_log_probs, token_log_probs
from preflab.live import Live, live_alignment
from preflab.models import load_trained, resolve_device, resolve_dtype, save_model, unwrap
from preflab.pairs import LoadedPairs
from preflab.parameters import PAIR_METHODS, Arguments, DynamicsSettings, RewardKind, Variant, VariantSettings
from preflab.rewards import (
    Reward,
    Scale,
    flip_labels,
    load_reward_model,
    model_reward,
    oracle_reward,
)
from preflab.rules import Rule, argument_names, plain, resolve_rule, rule_key, try_out
from preflab.training.dpo import DPOSettings, StepLog, Weighting, batches, train_dpo
from preflab.training.ppo import Batch, IterationLog, PPOSettings, Values, train_ppo, trained_parameters
from preflab.training.reward import RewardSettings, train_reward

SCALE_RESPONSES = 256  # of the base model, that standardise a reward
SCORING_BATCH = 64
SIDES = ("chosen_ids", "rejected_ids")
OF_SAMPLES = {"ppo": ["kl_coefficient", "clip", "gae_lambda"]} | {
    method: ["kl_coefficient", "clip", "group_size"] for method in ("grpo", "rloo")
}  # own arguments of methods that learn from samples


@dataclass(frozen=True)
class Training:
    """One training run."""

    method: str  # one of PAIR_METHODS or SAMPLE_METHODS
    seed: int
    name: str = ""  # of the variant, where the method alone does not say it
    variant: Variant | None = None  # None: the plain method

    def __str__(self) -> str:
        return f"{self.name or self.method.upper()}, seed {self.seed}"

    @property
    def from_pairs(self) -> bool:
        return self.method in PAIR_METHODS

    @property
    def family(self) -> str:
        """dpo, what learns from pairs, or ppo, what learns from its own samples."""
        return "dpo" if self.from_pairs else "ppo"

    @property
    def rule(self) -> Rule:
        v = self.variant
        return resolve_rule(v.rule, self._rules_arguments, v.until) if v else plain

    @property
    def _rules_arguments(self) -> Arguments:
        names = argument_names(self.variant.rule)
        return {name: value for name, value in self.variant.arguments.items() if name in names}

    @property
    def own(self) -> Arguments:
        """Arguments of the method: beta and those of its weighting, or some of PPO's settings. Raises BadInput."""
        arguments = self.variant.arguments if self.variant else {}
        own = {name: value for name, value in arguments.items() if name not in self._rules_arguments}
        needed = list(inspect.signature(self._of_pairs).parameters)[3:] if self.from_pairs else []
        known = ["beta", *needed] if self.from_pairs else OF_SAMPLES[self.method]
        if unknown := sorted(set(own) - set(known)):
            taken = argument_names(self.variant.rule) + known
            raise BadInput(f"{unknown[0]}={own[unknown[0]]!r}: no such argument, expected {taken}")
        if missing := sorted(set(needed) - set(own)):
            raise BadInput(f"{missing[0]}: missing, method {self.method} needs it")
        return own

    @property
    def _of_pairs(self) -> Callable:
        return getattr(weightings, f"{self.method}_weighting")

    @property
    def weighting(self) -> Weighting:
        """c of the method, for those that learn from pairs."""
        return partial(self._of_pairs, **{name: value for name, value in self.own.items() if name != "beta"})


def trainings(p: DynamicsSettings) -> list[Training]:
    """Every run that the parameters ask for. Raises BadInput for sources and rules that do not exist."""
    check_sources(p)
    if not isinstance(p, VariantSettings):
        return [Training(method, seed) for seed in p.seeds for method in ("ppo", "dpo")]  # the longer ones first
    return checked([Training(v.method, seed, name, v) for name, v in p.variants.items() for seed in p.seeds])


def checked(runs_: list[Training]) -> list[Training]:
    """The same, the longer ones first. Raises BadInput for a rule that does not exist or does not run, and for an
    argument that does not exist."""
    for training in runs_:
        try:
            _ = training.own
            try_out(training.rule)
        except BadInput as error:
            raise BadInput(f"{training.name}: {error}" if training.name else str(error)) from None
    return sorted(runs_, key=lambda training: training.from_pairs)


# --- data and reward ----------------------------------------------------------------------------


def pairs_of(p: DynamicsSettings, seed: int) -> LoadedPairs:
    return loaded_pairs(p, p.source, p.objective, seed)


def objective_of(p: DynamicsSettings) -> worlds.Objective | None:
    """The oracle's objective; None where there is no oracle."""
    world = world_of(p.source)
    return world.objective(p.objective) if world else None


def held_out_prompts(p: DynamicsSettings, which: range | None = None) -> list[list[dict]]:
    """Of test pairs, so of prompts never trained on; by default those that D' answers, the same for every run. No
    prompt comes twice. Raises BadInput where there are not so many."""
    which = which or range(p.finals)
    source, objective = _final_source(p)
    different = {json.dumps(prompt): prompt for prompt in loaded_pairs(p, source, objective, 0).test["prompt"]}
    if len(different) < which.stop:
        raise BadInput(f"{source}, {objective}: {len(different)} held-out prompts, expected at least {which.stop}")
    return list(different.values())[which.start : which.stop]


def _final_source(p: DynamicsSettings) -> tuple[str, str]:
    return (p.final_source, p.final_objective) if p.final_source else (p.source, p.objective)


def reward_key(p: DynamicsSettings, kind: RewardKind) -> dict:
    key = {"base": base_key(p), "train": data_key(p, p.source, p.objective, 0), "reward": kind}
    sizes = {"pairs": [p.train_pairs, p.test_pairs], "context": p.context, "max_new_tokens": p.max_new_tokens}
    if kind == "model":
        key |= {"training": asdict(_reward_settings(p)), "flips": p.label_flips, "lora": asdict(lora(p))}
    return key | sizes


def _reward_settings(p: DynamicsSettings) -> RewardSettings:
    return RewardSettings(p.reward_epochs, p.reward_batch_size, p.reward_learning_rate, p.context)


def prepare_reward(p: DynamicsSettings, kind: RewardKind | None = None) -> Path:
    """Train the reward model (one for all seeds) where there is to be one; its scale; its cache entry."""
    kind = kind or p.reward
    return runs.cache().entry("reward", reward_key(p, kind), lambda folder: _build_reward(p, kind, folder))


def _build_reward(p: DynamicsSettings, kind: RewardKind, folder: Path) -> None:
    tokenizer = base_tokenizer(p)
    loaded = pairs_of(p, 0)
    if kind == "model":
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
    scale = Scale.of(_raw_reward(p, kind, folder)(prompts, drawn))
    (folder / "scale.json").write_text(json.dumps(asdict(scale)))


def _raw_reward(p: DynamicsSettings, kind: RewardKind, folder: Path) -> Reward:
    if kind == "oracle":
        return oracle_reward(objective_of(p), base_tokenizer(p))
    if kind == "correct":
        return rewards.correctness_reward(base_tokenizer(p))
    model = load_reward_model(folder / "model", resolve_device(p.device), resolve_dtype(p.dtype))
    return model_reward(model, base_tokenizer(p).pad_token_id)


def reward_of(p: DynamicsSettings, training: Training | None = None) -> Reward:
    """The standardised reward that a run learns from, or the notebook's."""
    kind = _reward_kind(p, training) if training else p.reward
    folder = prepare_reward(p, kind)
    return Scale(**json.loads((folder / "scale.json").read_text())).apply(_raw_reward(p, kind, folder))


def _reward_kind(p: DynamicsSettings, training: Training) -> RewardKind:
    return (training.variant.reward if training.variant else None) or p.reward


def reward_margins(p: DynamicsSettings) -> np.ndarray:
    """r(y+) - r(y-) of the unscaled reward on the held-out pairs: (pairs,)."""
    pairs = pairs_of(p, 0).test
    reward, rows = _raw_reward(p, p.reward, prepare_reward(p)), encoded(p, pairs)
    scores = [reward(pairs["prompt"], [(r["prompt_ids"], r[side]) for r in rows]) for side in SIDES]
    return (scores[0] - scores[1]).numpy()


# --- training -----------------------------------------------------------------------------------


def dpo_settings(p: DynamicsSettings, training: Training) -> DPOSettings:
    v, all_of_them = training.variant, len(pairs_of(p, training.seed).train) // p.dpo_batch_size * p.dpo_epochs
    return DPOSettings(
        beta=training.own.get("beta", p.beta),
        learning_rate=p.dpo_learning_rate,
        batch_size=p.dpo_batch_size,
        micro_batch_size=p.dpo_micro_batch_size,
        epochs=p.dpo_epochs,
        warmup_share=p.warmup_share,
        weight_decay=p.weight_decay,
        checkpoint_every=p.checkpoint_every,
        max_updates=round(v.budget * all_of_them) if v and v.budget < 1 else None,
        live_every=v.live_every if v else None,
    )


def ppo_settings(p: DynamicsSettings, training: Training) -> PPOSettings:
    v = training.variant
    settings = PPOSettings(
        method=training.method,
        iterations=round(p.ppo_iterations * (v.budget if v else 1)),
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
        live_every=v.live_every if v else None,
    )
    return replace(settings, **training.own)


def updates_of(p: DynamicsSettings, training: Training) -> tuple[int, int]:
    """Updates of the optimiser in all, and between two measurements."""
    if training.from_pairs:
        pairs, settings = len(pairs_of(p, training.seed).train), dpo_settings(p, training)
        schedule = batches(pairs, p.dpo_batch_size, p.dpo_epochs, 0)
        return len(schedule[: settings.max_updates]), p.dpo_measure_every
    settings = ppo_settings(p, training)
    return settings.iterations * settings.updates, p.ppo_measure_every * settings.updates


def passes(p: DynamicsSettings, training: Training) -> int:
    """What training costs, in forward passes of one sequence: a backward pass and a forward-mode one count two, a
    generated response one. Without the reference's and the reward model's, which are the same for all of a kind."""
    total, _ = updates_of(p, training)
    if training.from_pairs:
        settings, pairs = dpo_settings(p, training), p.dpo_batch_size
        look = pairs * (1 + 3) + 2 * pairs * (1 + 3)  # D' and its gradient; c and s of both sides
        return total * 2 * pairs * 3 + _looks(total, settings.live_every) * look
    settings, n = ppo_settings(p, training), p.ppo_batch_size
    values = int(training.method == "ppo" and p.own_value_trunk)
    iteration = n * (2 + values) + settings.epochs * n * 3 * (1 + values)
    look = n * (1 + 3) + n * 3  # c is there
    return settings.iterations * iteration + _looks(settings.iterations, settings.live_every) * look


def _looks(steps: int, every: int | None) -> int:
    return -(-steps // every) if every else 0


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
        key |= {"rule": rule_key(training.variant.rule, training._rules_arguments, training.variant.until)}
    if training.from_pairs:
        key |= {"dpo": asdict(dpo_settings(p, training)), "own": training.weighting.keywords}
        return key | {"answers": p.max_new_tokens} if training.variant and training.variant.live_every else key
    reward = reward_key(p, _reward_kind(p, training))
    return key | {"ppo": asdict(ppo_settings(p, training)), "own_value_trunk": p.own_value_trunk, "reward": reward}


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
    values = Values(base, p.own_value_trunk) if training.method == "ppo" else None
    if training.from_pairs:
        rows = encoded(p, train)
        reference = reference_log_probs(p, training, rows)
    policy = fresh_policy(p, training.seed)
    if training.variant and training.variant.live_every:
        common |= {"live": _live(p, policy)}
    try:
        watch(0, policy, values)
        if training.from_pairs:
            history = train_dpo(
                policy,
                rows,
                reference,
                dpo_settings(p, training),
                pad_token_id=tokenizer.pad_token_id,
                weighting=training.weighting,
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
                reward_of(p, training),
                ppo_settings(p, training),
                judge=oracle_reward(objective, tokenizer) if objective else None,
                on_step=partial(_note, training),
                on_update=lambda step: watch(step, policy, values),
                **common,
            )
        yield policy, values, history
    finally:
        unwrap(policy)


def reference_log_probs(p: DynamicsSettings, training: Training, rows: list[dict]) -> PairLogProbs:
    """Of the SFT model; zeros for SimPO, which has no reference and takes log-probs where others take log-ratios."""
    found = pair_log_probs(base_model(p), rows, base_tokenizer(p).pad_token_id, SCORING_BATCH)
    if training.method != "simpo":
        return found
    return replace(found, chosen=torch.zeros_like(found.chosen), rejected=torch.zeros_like(found.rejected))


def _live(p: DynamicsSettings, policy: PreTrainedModel) -> Live:
    how = {"max_new_tokens": p.max_new_tokens, "size": p.measure_batch}
    return partial(live_alignment, policy, base_tokenizer(p), **how)


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


def answers_key(p: DynamicsSettings, training: Training | None, which: range | None = None) -> dict:
    key = {
        "of": training_key(p, training) if training else {"base": base_key(p)},
        "prompts": [data_key(p, *_final_source(p), 0), p.train_pairs, p.test_pairs, p.finals, p.context],
        "decoding": [p.final_temperature, p.max_new_tokens],
    }
    return key | {"which": [which.start, which.stop]} if which else key


def load_answers(p: DynamicsSettings, training: Training | None, which: range | None = None) -> Answers:
    """Of a run's final policy, or of the SFT model, to some of the held-out prompts (by default those of D');
    generated where they are not there yet."""
    key = answers_key(p, training, which)
    entry = runs.cache().entry("answers", key, lambda folder: _build_answers(p, training, which, folder))
    kept = json.loads((entry / "answers.json").read_text())
    samples = {name: [tuple(s) for s in kept.pop(name)] for name in ("final", "sampled")}
    numbers = {name: np.array(kept.pop(name)) for name in ("log_probs", "reference_log_probs")}
    return Answers(**samples, **numbers, **kept)


def _build_answers(p: DynamicsSettings, training: Training | None, which: range | None, folder: Path) -> None:
    tokenizer, prompts = base_tokenizer(p), held_out_prompts(p, which)
    with final_model(p, training) as model:
        final, sampled = (
            sample(model, tokenizer, prompts, max_new_tokens=p.max_new_tokens, temperature=t, seed=1)
            for t in (p.final_temperature, 1.0)
        )
        log_probs = _response_log_probs(p, model, sampled)
    kept = {
        "final": final,
        "final_texts": decode(tokenizer, final),
        "sampled": sampled,
        "sampled_texts": decode(tokenizer, sampled),
        "log_probs": log_probs,
        "reference_log_probs": _response_log_probs(p, base_model(p), sampled),
    }
    (folder / "answers.json").write_text(json.dumps(kept))


@contextmanager
def final_model(p: DynamicsSettings, training: Training | None) -> Iterator[PreTrainedModel]:
    """A run's final policy, or the SFT model."""
    model = base_model(p)
    if training:
        where = run_training(p, training) / "model"
        model = load_trained(where, model, resolve_device(p.device), resolve_dtype(p.dtype))
    try:
        yield model
    finally:
        unwrap(model)


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
