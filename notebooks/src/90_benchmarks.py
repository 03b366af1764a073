# %% [markdown]
# # 90 · What does it cost?
#
# Speeds are compared within one run, turn by turn, so that a slow moment of the machine meets both sides; the ratio is
# what to read. Change the parameters to measure real sizes on a GPU: `params/gpu` has some, of random weights too, for a
# step costs the same whatever a model has learnt.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "90_benchmarks"
data: str = ""  # folder that a files: source is relative to
source: str = "world:conflict"  # of the pairs
objective: str = "helpful"
batch_size: int = 16  # pairs a step of DPO, and of the batch that G is measured on
micro_batch_size: int = 16  # pairs a forward pass, for both sides
samples: int = 64  # an iteration of PPO: sampled, then trained on
max_new_tokens: int = 32
steps: int = 20  # timed steps of each turn
turns: int = 5  # of each side, alternating
random_weights: bool = False  # of a model by name: its folder needs a config.json and a tokenizer, no weights
# Sections: what is given here is laid over the defaults, which the table below shows.
base: dict = {}  # {"hidden_size": 96}, or {"model": "models/smollm2", "context": 256}
lora: dict = {}  # {"rank": 8}
hardware: dict = {}  # device, dtype

# %%
from preflab.experiments.benchmarks import Benchmarks

P = Benchmarks.from_notebook(globals())  # names, types and ranges, before anything is timed

# %%
import copy
import tempfile

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from preflab import alignment, claims, weightings
from preflab.data import worlds
from preflab.data.pairs import load_pairs
from preflab.likelihood import collate, encode_pairs, pair_log_probs
from preflab.methods.dpo import DPO
from preflab.methods.ppo import PPO
from preflab.models import tiny_model, trainable
from preflab.rewards import Scale, oracle_reward
from preflab.running.run import peak_memory, start
from preflab.speed import Peaks, clock, matrix_peak, release, seconds
from preflab.tokenizers import word_tokenizer
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.training.from_samples import SampleTraining, train_on_samples
from preflab.training.rollout import Values, reference_of, rows_of
from preflab.training.sft import SFTSettings, train_sft

run = start(P)
run.overview()

# %% [markdown]
# ## A DPO step, ours and TRL's
#
# The same model, adapter, pairs and batch size, and both with reference log-probs computed beforehand. Ours trains on the
# token weighting c; TRL's `DPOTrainer` on its `sigmoid` loss. Before a turn trains, it scores all pairs without gradients.
# Every turn makes its model anew, so that the device never holds two.

# %%
n = P.batch_size * (P.steps + 5)  # the first five steps of a turn warm up and are not timed
device, dtype = P.hardware.torch_device, P.hardware.torch_dtype
tokenizer, peaks = P.tokenizer(), Peaks(device)


def fits(prompt, reply):
    ids = tokenizer.apply_chat_template(prompt + reply, tokenize=True, return_dict=True)["input_ids"]
    return len(ids) <= P.base.context


def fresh_policy():
    release()
    return trainable(P.fresh_model(), P.lora, seed=0)


def scores_of(policy):
    return pair_log_probs(policy, rows, tokenizer.pad_token_id, P.micro_batch_size)


pairs = load_pairs(P.located(P.source), P.objective, max_train=n, fits=fits).train.select(range(n))
rows, _ = encode_pairs(pairs, tokenizer, P.base.context)
lengths = {part: float(np.mean([len(row[f"{part}_ids"]) for row in rows])) for part in ("prompt", "chosen", "rejected")}
policy = fresh_policy()
reference, size = scores_of(policy), policy.num_parameters()
policy = None  # the room is needed
print(f"{size:,} parameters, {n} pairs, tokens", {k: round(v) for k, v in lengths.items()})


def train(policy, on_step):
    loop = PairTraining(batch_size=P.batch_size, micro_batch_size=P.micro_batch_size)
    train_on_pairs(policy, tokenizer, rows, reference, DPO(beta=0.3), loop, seed=0, on_step=on_step)


def ours():
    policy, ticks = fresh_policy(), []
    with peaks.of("scoring, ours"):
        scoring = seconds(lambda: scores_of(policy), device)
    with peaks.of("a DPO step, ours"):
        train(policy, lambda *_: ticks.append(clock(device)))
    return np.diff(ticks)[4:], scoring


class Ticks(TrainerCallback):
    def __init__(self):
        self.ticks = []

    def on_step_end(self, *_, **__):
        self.ticks.append(clock(device))


def trls():
    policy, watch = fresh_policy(), Ticks()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=0.3,
            per_device_train_batch_size=P.micro_batch_size,
            gradient_accumulation_steps=P.batch_size // P.micro_batch_size,
            num_train_epochs=1,
            precompute_ref_log_probs=True,  # in the constructor, not in the steps
            max_length=P.base.context,
            gradient_checkpointing=False,
            bf16=dtype == torch.bfloat16,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(policy, args=config, train_dataset=pairs, processing_class=tokenizer, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)

        def score():
            for inputs in trainer.get_train_dataloader():
                trainer.compute_ref_log_probs(trainer.model, inputs)

        with peaks.of("scoring, TRL"):
            scoring = seconds(score, device)
        with peaks.of("a DPO step, TRL"):
            trainer.train()
    return np.diff(watch.ticks)[4:], scoring


# %%
both = [(ours(), trls()) for _ in range(P.turns)]
speed = pd.DataFrame([[np.median(s) for s, _ in turn] for turn in both], columns=["ours, s a step", "TRL, s a step"])
speed["ours / TRL"] = speed.iloc[:, 0] / speed.iloc[:, 1]
speed.describe().loc[["min", "50%", "max"]].round(4)

# %%
scoring = pd.DataFrame([[s / n for _, s in turn] for turn in both], columns=["ours, s a pair", "TRL, s a pair"])
scoring["ours / TRL"] = scoring.iloc[:, 0] / scoring.iloc[:, 1]
scoring.describe().loc[["min", "50%", "max"]].round(4)

# %% [markdown]
# How much of the machine does our step use? A product of two large matrices, in the same dtype, reaches the *matrix peak*
# (in operations a second; a multiplication with its addition counts two). The share of it is what the matrix products of
# the very steps that were timed, counted by torch, would take at that peak.


# %%
def operations():
    counts, counter = [], FlopCounterMode(display=False)
    with counter:
        train(fresh_policy(), lambda *_: counts.append(counter.get_total_flops()))
    return np.diff(counts)[4:]


counted, peak = operations(), matrix_peak(device, dtype)
reached = float(np.median([counted.sum() / took.sum() for (took, _), _ in both]))
matrices = {
    "operations a step": float(counted.mean()),
    "matrix peak, operations a second": peak,
    "share": reached / peak,
}
pd.Series(matrices, name="measured").to_frame()

# %% [markdown]
# ## G of nine components
#
# The gradient alignment $G = v^\top \nabla L$ of the whole loss and eight of its parts (signs, tertiles of w, all weights
# equal, two random halves of the tokens) on one batch: one backward pass for v and one forward-mode pass, against one
# backward pass for v and one for each component. The unit is one forward and backward pass of that batch. All of them go
# through the batch in the micro-batches of training.

# %%
batch = collate(rows[: P.batch_size], tokenizer.pad_token_id, device)
final = collate(rows[P.batch_size : 2 * P.batch_size], tokenizer.pad_token_id, device)  # stands for D': as large
everyone = torch.arange(2 * P.batch_size, device=device)  # the rows: chosen above rejected
micro = [torch.cat(two) for two in zip(*(side.split(P.micro_batch_size) for side in everyone.chunk(2)), strict=True)]
policy = fresh_policy()
weights = alignment.parameters_of(policy)
mask = batch["completion_mask"][:, 1:]
ratios = torch.linspace(-2, 2, len(mask), device=device)  # as if the policy had moved: weights that differ
c, *_ = DPO(beta=0.3).weigh(ratios, mask)
w = c.abs().amax(1).chunk(2)[0]  # (pairs,)
thirds = weightings.tertile_components(w, torch.ones_like(w, dtype=torch.bool))
half = torch.rand(c.shape, generator=torch.Generator().manual_seed(0)).to(device) < 0.5
masks = {
    **weightings.sign_components(c),
    **{name: torch.cat([m, m])[:, None].expand_as(c) for name, m in thirds.items()},
    "mask": half,
    "other tokens": ~half,
}
parts = {name: c * mask for name, mask in masks.items()} | {"unweighted": c.sign()}


def gradient_of(c):
    return alignment.loss_gradient(policy, ((rows_of(batch, i), c[i]) for i in micro), weights, P.batch_size)


def direction():
    return alignment.nll_gradient(policy, (rows_of(final, i) for i in micro), weights)


def one_jvp():
    v = direction()
    s = torch.cat([alignment.token_alignment(policy, rows_of(batch, i), v) for i in micro])[torch.cat(micro).argsort()]
    unweighted = alignment.alignment(c.sign(), s, {"unweighted": masks["whole"]}, P.batch_size)
    return alignment.alignment(c, s, masks, P.batch_size) | unweighted


def one_backward_each():
    v = direction()
    return {name: alignment.dot(gradient_of(part), v) for name, part in parts.items()}


with peaks.of("G, one forward-mode pass"):  # also the warm-up
    fast = one_jvp()
with peaks.of("G, one backward pass each"):
    slow = one_backward_each()
pd.DataFrame({"one forward-mode pass": fast, "one backward pass each": slow})

# %%
sides = {"unit": lambda: gradient_of(c), "one forward-mode pass": one_jvp, "one backward pass each": one_backward_each}
rounds = pd.DataFrame([{name: seconds(side, device) for name, side in sides.items()} for _ in range(4 * P.turns)])
in_units = rounds.drop(columns="unit").div(rounds["unit"], axis=0)
in_units["times faster"] = rounds["one backward pass each"] / rounds["one forward-mode pass"]
policy, weights = None, {}  # what follows needs the room
in_units.describe().loc[["min", "50%", "max"]].round(2)

# %% [markdown]
# ## PPO: sampling against updating
#
# One iteration samples a batch (with a KV cache), scores it, and trains on it for two epochs in two minibatches. Sampling
# should take no longer than the update on the same batch. A model that has learnt nothing never ends a response, so a
# short SFT comes first; the oracle is the reward. This part is always of a tiny model in a world.

# %%
words = word_tokenizer(worlds.ANSWERS.vocabulary())
speaker = tiny_model(P.base, words, seed=0).to(device, dtype)
shortly, few = (
    SFTSettings(steps=60, batch_size=64),
    worlds.sft_conversations("answers", 60 * 64, np.random.default_rng(0)),
)
train_sft(speaker, words, few, shortly, max_length=64, seed=0)
asked = worlds.ANSWERS.sample_prompts("train", 2 * P.samples, 0.4, np.random.default_rng(0))
prompts = [[{"role": "user", "content": str(prompt)}] for prompt in asked]
helpful = worlds.WORLDS["conflict"].objective("helpful")


def iterations():
    values = Values(speaker, own_trunk=True)
    policy = trainable(copy.deepcopy(speaker), P.lora, seed=0)
    loop = SampleTraining(
        iterations=P.turns + 1,
        batch_size=P.samples,
        minibatch_size=P.samples // 2,
        micro_batch_size=P.samples,
    )
    reward = Scale(0.0, 1.5).apply(oracle_reward(helpful, words))
    how = {"max_new_tokens": P.max_new_tokens, "seed": 0}
    reference = reference_of(policy, speaker)
    log = train_on_samples(policy, values, words, prompts, reference, reward, PPO(), loop, **how)
    return log[1:]  # the first one warms up


with peaks.of("PPO of a tiny model"):
    log = iterations()
ppo = pd.DataFrame(
    {
        "sampling, s": [entry.sampling_seconds for entry in log],
        "updates, s": [entry.update_seconds for entry in log],
        "samples a second": [entry.samples_per_second for entry in log],
        "tokens a response": [entry.length for entry in log],
    }
)
ppo["sampling / updates"] = ppo["sampling, s"] / ppo["updates, s"]
ppo.describe().loc[["min", "50%", "max"]].round(3)

# %% [markdown]
# ## Throughput and memory
#
# These numbers depend on the machine. Read them as an order of magnitude.

# %%
memory = peak_memory() | {f"GPU, {work}": amount for work, amount in peaks.found.items()}
throughput = {
    "DPO, pairs a second": P.batch_size / speed.iloc[:, 0].median(),
    "scoring, pairs a second": 1 / scoring.iloc[:, 0].median(),
    "PPO, samples a second": ppo["samples a second"].median(),
    **{f"peak memory, {where}, MB": amount for where, amount in memory.items()},
}
pd.Series(throughput, name="measured").to_frame().round(1)

# %% [markdown]
# ## What the measurements say
#
# Each statement has a rule that was fixed before the run. The square brackets hold the smallest and the largest of what was
# measured, and no confidence interval. A statement is *inconclusive* if its median misses the bound, but some of what was
# measured does not.

# %%
ratio, faster = speed["ours / TRL"], in_units["times faster"]
units, sampling = in_units["one forward-mode pass"], ppo["sampling / updates"]
verdicts = [
    claims.Claim(
        "B1",
        "A DPO step is no slower than TRL's with precomputed reference.",
        "Median over turns of the ratio of median step times; range of the turns. Reproduced: at most 1.",
        float(ratio.median()),
        (float(ratio.min()), float(ratio.max())),
        claims.decide(ratio.median() <= 1, ratio.min() > 1),
    ),
    claims.Claim(
        "B2",
        "G of nine components takes a quarter of the time of one backward pass for each.",
        "Median over rounds of the ratio of times; range of the rounds. Reproduced: at least 4.",
        float(faster.median()),
        (float(faster.min()), float(faster.max())),
        claims.decide(faster.median() >= 4, faster.max() < 4),
    ),
    claims.Claim(
        "B3",
        "G of nine components takes 2.5 times one forward and backward pass of the batch.",
        "Median over rounds of the ratio of times; range of the rounds. Reproduced: at most 2.5.",
        float(units.median()),
        (float(units.min()), float(units.max())),
        claims.decide(units.median() <= 2.5, units.min() > 2.5),
    ),
    claims.Claim(
        "B4",
        "PPO samples a batch in no more time than it takes to update on it.",
        "Median over iterations of the ratio of times; range of the iterations. Reproduced: at most 1.",
        float(sampling.median()),
        (float(sampling.min()), float(sampling.max())),
        claims.decide(sampling.median() <= 1, sampling.min() > 1),
    ),
]
claims.table(verdicts)

# %%
run.finish(
    claims=verdicts,
    metrics={
        "dpo_step_seconds": {"ours": speed.iloc[:, 0].median(), "trl": speed.iloc[:, 1].median()},
        "scoring_seconds_a_pair": {"ours": scoring.iloc[:, 0].median(), "trl": scoring.iloc[:, 1].median()},
        "matrix_products": matrices,
        "g_seconds": rounds.median().to_dict(),
        "g_in_forward_backward_units": in_units.median().to_dict(),
        "g": {"one forward-mode pass": fast, "one backward pass each": slow},
        "throughput": throughput,
        "tokens_a_pair": lengths,
        "ppo": ppo.median().to_dict(),
    },
    series={"ratio": ratio.tolist()},
)
print("compared in", len(ratio), "turns and", len(rounds), "rounds")
