# %% [markdown]
# # 03 · What does each component do? Take it away
#
# Notebook 02 splits an update into positive learning (tokens with a weight $c > 0$), negative learning ($c < 0$) and their reweighting ($|c|$, DPO's
# $w$), and asks where each part pulls: $G > 0$ is towards $D'$, the responses of the final policy. This one takes parts away, for all of training or its first share, and asks what is lost: section 4 of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778).
#
# **Claims tested** (directions only; the paper's win rates are not available to us):
#
# | | claim |
# |---|---|
# | D7 | without negative learning early, DPO performs worse: negative learning regularises |
# | D8 | DPO's weight $w$ is a regulariser: without it the gap between training and held-out pairs widens |
# | D9 | parts whose $G$ is negative can help |
#
# What is the paper's: the components, and negative learning switched off for the first part of DPO's training (its first
# 3000 steps; here a share). What is ours: every other row, the shares, the world, the model, the judge (the world's
# oracle; the paper asks GPT-4), intervals over prompts and seeds, and the rules of the verdicts. The hard switch from
# positive to negative learning (in the `full` run) is what a reviewer of the paper asked for.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "03_component_ablations"
device: str = "auto"  # auto, cpu, cuda or mps
dtype: str = "float32"  # float32, float64 or bfloat16
workers: int = 2  # processes that train or measure at the same time; 1 on a GPU

source: str = "world:conflict"  # paper D: UltraFeedback
objective: str = "helpful"
final_source: str | None = None  # of the held-out prompts that D' answers; None: those of `source`
final_objective: str | None = None
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1600  # DPO's pairs; PPO and the reward model use the same prompts and pairs
test_pairs: int = 256
max_new_tokens: int = 32
variants: dict = {  # name: method, rule of preflab.rules, its arguments, until which share of training
    "DPO": {"method": "dpo"},
    "DPO, no negative early": {"method": "dpo", "rule": "without_negative", "until": 0.4},
    "DPO, no negative": {"method": "dpo", "rule": "without_negative"},
    "DPO, equal weights": {"method": "dpo", "rule": "equal_weights"},
    "PPO": {"method": "ppo"},
    "PPO, no negative": {"method": "ppo", "rule": "without_negative"},
    "PPO, sign only": {"method": "ppo", "rule": "equal_weights"},
}
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed

model: str = "tiny"  # "tiny" is built here from the shape below; otherwise a hub name or a folder
model_revision: str | None = None
sft_source: str | None = None  # hub: or files: of dialogues that a model by name is tuned on first
architecture: str = "gpt_neox"  # or llama
hidden_size: int = 64
layers: int = 3
heads: int = 4
context: int = 64  # tokens of prompt and response
vocabulary: int = 2048  # size of the BPE vocabulary trained on files: and hub: sources; worlds bring theirs
base_seed: int = 0
sft_steps: int = 300
sft_batch_size: int = 64
sft_learning_rate: float = 4e-3
lora_rank: int = 0  # 0 means full fine-tuning
lora_alpha: int = 16
lora_dropout: float = 0.0

beta: float = 0.1  # the Qwen3 recipe attributed to paper D
dpo_learning_rate: float = 3e-4  # choice: a tiny model wants more than 5e-5
dpo_batch_size: int = 16  # pairs an update; choice
dpo_micro_batch_size: int = 16  # pairs a forward pass
dpo_epochs: int = 1
warmup_share: float = 0.05  # the same recipe; then linear to zero
weight_decay: float = 0.0

reward: str = "model"  # or oracle: what PPO is rewarded by
reward_epochs: int = 2
reward_batch_size: int = 16  # pairs an update
reward_learning_rate: float = 2e-3
label_flips: float = 0.0  # share of the reward model's training labels that are turned round

ppo_iterations: int = 20
ppo_batch_size: int = 64  # samples an iteration
ppo_minibatch_size: int = 32  # samples an update
ppo_micro_batch_size: int = 64  # samples a forward pass
ppo_epochs: int = 2  # passes over an iteration's samples
ppo_learning_rate: float = 1e-3
clip: float = 0.2
value_clip: float = 0.2
value_coefficient: float = 0.1
own_value_trunk: bool = True  # False: the value head sits on the policy's hidden states
gae_lambda: float = 0.95
kl_coefficient: float = 0.05  # of the KL to the SFT model, in the reward
kl_target: float | None = None  # nats a response: the coefficient adapts to it; None: it stays
missing_eos_penalty: float = 1.0
checkpoint_every: int = 100  # updates (DPO) or iterations (PPO) between resumable checkpoints

dpo_measure_every: int = 34  # updates between two measurements of G
ppo_measure_every: int = 5  # iterations
snapshots: str = "keep"  # or replay: train again instead of keeping weights; the numbers are the same
probe: int = 64  # training pairs (DPO) or fresh samples (PPO) that G is measured on
finals: int = 128  # held-out prompts whose responses by the final policy are D'
final_temperature: float = 0.0  # decoding of D', and of the answers that win rates compare: greedy
nll: str = "sum"  # over the tokens of a response, as the paper's formula has it; or mean
measure_batch: int = 64  # sequences a pass of the measurement
shown: int = 1  # pairs and samples kept token by token
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
# %%
from preflab.parameters import AblationSettings

P = AblationSettings.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import inspect
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from functools import partial

import numpy as np
import pandas as pd
import torch

from preflab import bases, dynamics, evaluation, figures, judging, measurement, rules, runs
from preflab.claims import win_change
from preflab.claims.ablations import Ablation, ablation_claims
from preflab.figures import ablations as plots

runs.prepare()
figures.theme()
pd.options.display.max_colwidth = None
run = runs.Run(P)
jobs = dynamics.trainings(P)
pd.Series(runs.versions() | {"device": runs.device_name(P.device), "seeds": P.seeds}, name="version").to_frame()

# %% [markdown]
# ## An ablation is a rule for c
#
# Every method here is a weight $c$ on each response token; so an ablation is a function that returns another $c$, and a row of
# parameters that names it. Here is one, whole:

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.without_negative))
print(inspect.getsource(rules.equal_weights))

# %% [markdown]
# Try them on a DPO batch of three pairs (chosen rows above rejected ones) with different weights; every row is one
# response, every token of it has the same $c$:

# %% tags=["nbval-check-output"]
w = torch.tensor([0.25, 0.125, 0.5625])  # (pairs,)
c = torch.cat([w, -w])[:, None] * torch.ones(6, 4)  # (2 * pairs, tokens)
weights = rules.Weights(c, w, torch.ones(3, dtype=torch.bool), progress=0.0)
for name_, rule in {
    "plain": rules.plain,
    "without_negative": rules.without_negative,
    "equal_weights": rules.equal_weights,
    "only the top tertile": partial(rules.only_tertile, which="top"),
}.items():
    print(f"{name_:<22}", *(f"{value:+.4f}" for value in rule(weights)[:, 0] + 0.0))

# %% [markdown]
# ## Run
#
# Every variant trains with every seed from the same SFT model. $D'$ is each run's own; the plain runs are what win rates and
# curves are compared with, seed by seed.

# %%
base = bases.base_model(P)
prompts = dynamics.held_out_prompts(P)  # so many must be there, before anything else trains
reward = dynamics.prepare_reward(P)
runs.parallel(
    partial(measurement.examine, P),
    {"trained and measured": jobs},
    P.workers,
    ready=partial(measurement.is_examined, P),
)
by_name = {name_: [job for job in jobs if job.name == name_] for name_ in P.variants}
measured = {name_: [measurement.load_measured(P, job) for job in some] for name_, some in by_name.items()}
answers = {name_: [dynamics.load_answers(P, job) for job in some] for name_, some in by_name.items()}
before = dynamics.load_answers(P, None)
plain_of = {v.method: name_ for name_, v in P.variants.items() if v.rule == "plain"}

# %% [markdown]
# ## What is lost
#
# The judge is the world's oracle (for files, the reward model). A win is a higher score on the same prompt, a tie counts
# half; intervals are over prompts and seeds, of a win rate less one half. `gap` is the accuracy of DPO margins on all of a run's training pairs
# less that on held-out pairs; `chosen` and `rejected` are the changes of held-out log-probs since the SFT model: where both fall, likelihood is
# displaced.


# %%
def scored(some, greedy):
    return np.array([judging.judged(P, a, greedy) for a in some])


scores = {g: {name_: scored(some, g) for name_, some in answers.items()} for g in (True, False)}
score_before = {g: judging.judged(P, before, g) for g in (True, False)}
accuracy = {}
rows = {}
for name_, variant in P.variants.items():
    plain = plain_of[variant.method]
    moved = np.mean([x.held_out[-1] - x.held_out[0] for x in measured[name_]], axis=(0, 2))  # chosen, rejected
    on_train = [measurement.load_learnt(P, job) for job in by_name[name_]]
    on_held_out = [x.held_out[-1] - x.held_out[0] for x in measured[name_]]
    accuracy[name_] = [np.array([np.mean(up > down) for up, down in some]) for some in (on_train, on_held_out)]
    rows[name_] = {
        "score": scores[False][name_].mean(),
        "greedy, against SFT − ½": win_change(judging.wins(scores[True][name_], score_before[True])),
        "greedy, against plain − ½": win_change(judging.wins(scores[True][name_], scores[True][plain])),
        "sampled, against plain − ½": win_change(judging.wins(scores[False][name_], scores[False][plain])),
        **judging.described(answers[name_]),
        "chosen": moved[0],
        "rejected": moved[1],
        "held-out accuracy": accuracy[name_][1].mean(),
        "gap": (accuracy[name_][0] - accuracy[name_][1]).mean(),
    }
table = pd.DataFrame({**rows, "SFT": {"score": score_before[False].mean(), **judging.described([before])}}).T
table.iloc[:, :4].map(lambda x: x if isinstance(x, evaluation.Interval) else round(x, 2) if pd.notna(x) else "")

# %%
table.iloc[:, 4:].astype(float).round(2)

# %%
lines = {
    name_: (by_name[name_][0].family, *(rows[name_][f"{how}, against plain − ½"] for how in ("greedy", "sampled")))
    for name_, v in P.variants.items()
    if v.rule != "plain"
}
label = "win rate against the plain method − ½, 95 % interval over prompts and seeds"
run.figure("forest", plots.forest(lines, label))

# %% [markdown]
# **Read it.** Greedy answers in so small a world hardly vary: one habit, such as a closing wish, can decide nearly every prompt at
# once, so the longer training is, the more greedy win rates run to their ends, and a variant may lose prompt after prompt by next to nothing. Sampled
# answers and the mean `score` say by how much. Two seeds, as here, leave most intervals as wide as can be; the `full` run has five. Where the KL explodes, as it does for some variants of the `full` run, the language is broken.
#
# ## G without the part
#
# $G$ of the loss that is really trained, with the run's own final responses; the plain run's behind it in grey.


# %%
def progress_of(name_):
    return measured[name_][0].steps / measured[name_][0].steps[-1]


def g_of(name_, part):
    return np.array([x.g[:, measurement.PARTS.index(part)] for x in measured[name_]])


panels = {
    name_: (progress_of(name_), g_of(name_, "trained"), g_of(plain_of[v.method], "trained"))
    for name_, v in P.variants.items()
    if v.rule != "plain"
}
run.figure("g", plots.g_multiples(panels))

# %% [markdown]
# ## Likelihoods, and what is learnt by heart


# %%
def change_of(name_, side):
    return np.array([(x.held_out[:, side] - x.held_out[0, side]).mean(-1) for x in measured[name_]])


paths = {name_: (progress_of(name_), change_of(name_, 0), change_of(name_, 1)) for name_ in P.variants}
run.figure("log_probs", plots.log_prob_paths(paths))

# %%
run.figure("gap", plots.gaps({name_: tuple(both) for name_, both in accuracy.items()}))

# %%
if P.show_texts:
    for i in range(2):
        print(prompts[i][-1]["content"])
        for name_, some in {"SFT": [before], **answers}.items():
            print(f"   {name_:<24} {some[0].final_texts[i]}")

# %% [markdown]
# ## Claims
#
# Each rule was written before its run; `claims/ablations.py` holds them. The verdicts that count are those of `full`.

# %%
ablations = [
    Ablation(
        v.method,
        v.rule,
        v.until,
        judging.wins(scores[True][name_], scores[True][plain_of[v.method]]),
        accuracy[name_][0] - accuracy[name_][1],
    )
    for name_, v in P.variants.items()
    if v.rule != "plain"
]
parts = {m: {part: g_of(plain, part) for part in ("positive", "negative")} for m, plain in plain_of.items()}
gap_plain = np.subtract(*accuracy[plain_of["dpo"]]) if "dpo" in plain_of else np.array([np.nan])
verdicts = ablation_claims(ablations, gap_plain, parts)
pd.DataFrame(verdicts).set_index("id")[["statement", "statistic", "value", "interval", "verdict"]]

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": {name_: row["greedy, against SFT − ½"] for name_, row in rows.items()},
        "variants": rows,
        "sft": {"score": score_before[False].mean()},
    },
    series={
        "g": {name_: {part: g_of(name_, part) for part in measurement.PARTS} for name_ in P.variants},
        "progress": {name_: progress_of(name_) for name_ in P.variants},
        "log_probs": {name_: {"chosen": c, "rejected": r} for name_, (_, c, r) in paths.items()},
        "accuracy": {name_: dict(zip(("train", "held out"), both, strict=True)) for name_, both in accuracy.items()},
    },
    data={f"seed {seed}": dynamics.pairs_of(P, seed).report.as_dict() | {"source": P.source} for seed in P.seeds},
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. Write your own ablation: a function in `rules.py`, such as
#
#    ```python
#    def first_token_only(w: Weights) -> torch.Tensor:
#        """Everything else is left alone: where a response begins, most is decided."""
#        held = w.c != 0
#        return w.c * (held & (held.cumsum(1) == 1))
#    ```
#
#    and a row `"DPO, first token": {"method": "dpo", "rule": "first_token_only"}` in `variants` of the parameters cell, or of a copy of
#    `params/default/03_component_ablations.yaml`. Restart the kernel and run all cells: nothing that is trained already trains again.
# 2. Up to which `until` does DPO without negative learning recover?
# 3. Which variants win more greedy than sampled? What does their entropy say?
# 4. Set `reward` to `"oracle"`. Is the harm of PPO's ablations in the reward model?
