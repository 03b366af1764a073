# %% [markdown]
# # 01 · What does a second DPO stage do to the first objective?
#
# Train a model with DPO on one objective, then on another. Is the first one forgotten? Bhandari et al.,
# [*Beyond Uniform Forgetting*](https://arxiv.org/abs/2606.19744), answer: it depends. This notebook asks the
# same question where the answer can be checked: in small **preference worlds** whose objectives have a known
# relation and a known signal strength, and whose responses an oracle can judge.
#
# **Claims tested** (the abstract of the paper; its tables are not available to us, so shapes, not numbers):
#
# | | claim |
# |---|---|
# | S1 | there is no single pattern of forgetting: degradation, stability, redistribution, transfer |
# | S2 | it depends on the relation of the two objectives … |
# | S3 | … and on the order of training |
# | S4 | aggregates hide what happens to single pairs |
# | S5 | high-confidence pairs may degrade or improve |
# | S6 | a strong (safety) signal survives the other stage |
#
# What is the paper's: two stages, both orders, a LoRA adapter, beta 0.3, one epoch a stage, the fixed base model as
# the reference of every evaluation, the length-normalised policy margin, quartiles. What is ours: the worlds,
# the model's size, batch size and learning rate, that one adapter is continued, the base as Stage 2's training
# reference (a parameter), every formula (the paper's are not public), the intervals and the rules of the verdicts.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "01_sequential_settings"
device: str = "auto"  # auto, cpu, cuda or mps
dtype: str = "float32"  # float32, float64 or bfloat16
workers: int = 2  # processes that train at the same time; 1 on a GPU

settings: dict = {  # name: [source, objective A, objective B]
    "conflict": ["world:conflict", "helpful", "harmless"],
    "attributes": ["world:attributes", "helpfulness", "verbosity"],
    "safety": ["world:safety", "safer", "better"],
    "compatible": ["world:compatible", "instruction_following", "truthfulness"],
}
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1040  # per objective and seed
test_pairs: int = 200  # per objective, the same for every seed; prompts never trained on
prompts: int = 16  # held-out prompts per objective that each stage answers
max_new_tokens: int = 32
seeds: list = [0, 1]  # of training pairs, adapter and batch order; the base model is one and fixed

model: str = "tiny"  # "tiny" is built here from the shape below; otherwise a hub name or a folder
model_revision: str | None = None
sft_source: str | None = None  # hub: or files: of dialogues that a model by name is tuned on first
architecture: str = "gpt_neox"  # or llama
hidden_size: int = 64
layers: int = 3
heads: int = 4
context: int = 64  # tokens of prompt and response; longer pairs are left out
vocabulary: int = 2048  # size of the BPE vocabulary trained on files: and hub: sources; worlds bring theirs
base_seed: int = 0
sft_steps: int = 300
sft_batch_size: int = 64
sft_learning_rate: float = 4e-3

beta: float = 0.3  # paper S
learning_rate: float = 2e-3  # choice: a tiny model wants more than the paper's 5e-5
batch_size: int = 16  # pairs an update; choice, not stated
micro_batch_size: int = 16  # pairs a forward pass
epochs: int = 1  # paper S: one a stage
warmup_share: float = 0.1  # choice
lora_rank: int = 8  # paper S: 32; 0 means full fine-tuning
lora_alpha: int = 16  # choice: twice the rank
lora_dropout: float = 0.0  # choice
stage2_reference: str = "base"  # or stage1: what DPO's Stage 2 is trained against
checkpoint_every: int = 200  # updates between resumable checkpoints within a stage

resamples: int = 1000  # draws behind the intervals of S2 and S4
show_texts: bool = True  # print example prompts and responses; off for data that is not fit to print

# %%
from preflab.parameters import SequentialSettings

P = SequentialSettings.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
import torch

from preflab import bases, evaluation, figures, runs, sequential, worlds
from preflab.claims.sequential import Cell, sequential_claims
from preflab.figures import sequential as plots
from preflab.likelihood import collate, encode_pairs, token_log_probs
from preflab.models import Lora, trainable, unwrap
from preflab.weightings import dpo_weighting, surrogate

runs.prepare()
figures.theme()
pd.options.display.max_colwidth = None
run = runs.Run(P)
rng = np.random.default_rng(0)  # of intervals that are drawn
all_settings = sequential.settings_of(P)
pd.Series(runs.versions() | {"device": runs.device_name(P.device), "seeds": P.seeds}, name="version").to_frame()

# %% [markdown]
# ## Worlds: objectives with a known relation
#
# One small language carries all settings, as one Llama does in the paper. A prompt asks how to do something; a
# response is a few short sentences; an **oracle** reads attributes back from any word sequence. An **objective** is a
# linear utility over attributes, and its pairs are Bradley-Terry draws,
#
# $$P(y \succ y') = \sigma\big((u(x,y) - u(x,y'))/T\big),$$
#
# with the temperature $T$ set so that the labels have a wanted Bayes accuracy.

# %% tags=["nbval-check-output"]
if all_settings[0].world:
    prompt = worlds.Prompt("fix", "old", "lamp", "at home")
    for response in (
        "sure . use the wire . then test it .",
        "use the rope . use the",
        "sorry i can not help .",
    ):
        print(f"{prompt}  →  {response}\n    {worlds.read(prompt, response)}")

# %% [markdown]
# Two numbers describe a setting. **Compatibility**: the correlation of the two utilities over responses, and the share
# of response pairs on which they disagree. **Strength**: the Bayes accuracy of each objective's labels, which no model
# can beat. In real data neither is known.

# %% tags=["nbval-check-output"]
known = [s for s in all_settings if s.world]
relations = {s.name: s.world.compatibility() for s in known}
pd.DataFrame(
    [
        {
            "setting": s.name,
            **relations[s.name],
            "A": s.objectives[0],
            "strength A": s.world.objective(s.objectives[0]).strength,
            "B": s.objectives[1],
            "strength B": s.world.objective(s.objectives[1]).strength,
        }
        for s in known
    ]
).round(2) if known else "no worlds here: compatibility and strength of these sources are not known"

# %% [markdown]
# ## The base model
#
# A tiny language model, trained with TRL's SFT on well-formed, varied responses, right and wrong ones. It must leave
# something to prefer: responses that the oracle can read, and that differ.

# %%
base = bases.base_model(P)
tokenizer = bases.base_tokenizer(P)
print(f"{base.config.model_type}, {base.num_parameters():,} parameters, {len(tokenizer):,} tokens")
quality = bases.base_quality(P) if known else {}
pd.Series(quality, name="sampled responses").to_frame().round(3)

# %% [markdown]
# ## DPO as a token weighting
#
# Every preference loss in this library is a rule for a weight $c$ on each response token:
#
# $$\nabla L = -\sum_{i,t} c_{i,t}\, \nabla \log \pi(y_{i,t} \mid x_i, y_{i,<t}).$$
#
# For DPO (Eq. 7 of [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)), $c = +w$ on the chosen and $-w$ on the
# rejected response, with
#
# $$w = \beta\,\sigma(-\beta\Delta), \qquad
# \Delta = \log\frac{\pi(y^+|x)}{\pi_\mathrm{ref}(y^+|x)} - \log\frac{\pi(y^-|x)}{\pi_\mathrm{ref}(y^-|x)}.$$
#
# Try it on two pairs. A fresh adapter is the base model, so every margin is 0, the loss is $\ln 2 = 0.6931$ and $w =
# \beta/2$.

# %% tags=["nbval-check-output"]
pairs = bases.loaded_pairs(P, *P.sources()[0], P.seeds[0]).train
rows, _ = encode_pairs(pairs.select(range(2)), tokenizer, P.context)
batch = collate(rows, tokenizer.pad_token_id, base.device)  # TRL's collator: 2 chosen rows above 2 rejected ones
with torch.no_grad():
    reference = token_log_probs(base, batch).sum(1)  # (4,)
policy = trainable(base, Lora(P.lora_rank, P.lora_alpha), seed=0)
log_probs = token_log_probs(policy, batch)  # (4, seq - 1), zero off the response
c, loss, margins = dpo_weighting(log_probs.sum(1) - reference, batch["completion_mask"][:, 1:], P.beta)
surrogate(c, log_probs).backward()  # the gradient of DPO, from c alone
print(f"log_probs {tuple(log_probs.shape)}, loss {loss.mean():.4f}, margins {margins.tolist()}")
print("c, chosen row  :", c[0][c[0] != 0].unique().tolist())
print("c, rejected row:", c[2][c[2] != 0].unique().tolist())
policy.zero_grad()
base = unwrap(policy)

# %% [markdown]
# ## Run: two stages, both orders, every seed
#
# Stage 1 trains a fresh adapter on one objective; Stage 2 goes on with the same adapter on the other. After every stage
# the held-out pairs of *both* objectives are scored, and held-out prompts answered. Stages are cached by content: a
# second run loads them, an interrupted one goes on.

# %%
phases = dict(zip(("base model scored", "Stage 1", "Stage 2"), sequential.all_stages(P), strict=True))
runs.parallel(partial(sequential.run_stage, P), phases, P.workers, ready=partial(sequential.is_cached, P))
sequences = [sequential.load_sequence(P, s, order) for s in all_settings for order in s.orders]

# %% [markdown]
# Two margins are measured on each held-out pair, and nothing is averaged yet:
#
# - the **DPO margin** against the fixed base, $M_i = \beta\Delta_i$, whose sign gives the relative accuracy. It is 0 for
#   the base;
# - the **policy margin**, free of any reference and of length,
#   $m_i = \frac{1}{|y^+|}\log\pi(y^+|x) - \frac{1}{|y^-|}\log\pi(y^-|x)$, whose sign gives the policy accuracy.


# %%
def accuracies(sequence):
    for objective in sequence.path:
        relative = evaluation.accuracy(sequence.dpo_margins[objective]).mean(1)
        policy = evaluation.accuracy(sequence.policy_margins[objective]).mean(1)
        yield {
            "sequence": sequence.name,
            "measured on": objective,
            "relative S1": relative[1],
            "relative S2": relative[2],
            "policy base": policy[0],
            "policy S1": policy[1],
            "policy S2": policy[2],
        }


table = pd.DataFrame(chain.from_iterable(map(accuracies, sequences)))
table.set_index(["sequence", "measured on"]).round(2)


# %%
paths = {s.name: {o: [evaluation.mean_interval(m) for m in s.policy_margins[o]] for o in s.path} for s in sequences}
run.figure("margin_paths", plots.margin_paths({n.replace(": ", "\n"): v for n, v in paths.items()}))
# %% [markdown]
# **Read it.** Each panel follows both objectives from the base model over Stage 1 to Stage 2. The circles were trained
# first: what happens to them on the way from Stage 1 to Stage 2 is the question of this notebook. Bars are 95 %
# intervals over pairs and seeds.
#
# ## The outcome of each setting and order
#
# The rule, fixed before any run (`evaluation.outcome`). Let $g$ be what Stage 1 gained in mean policy margin and
# $d = 0.1\,g$. **Degraded**: the interval of Stage 2's change lies below $-d$. **Transferred**: above $+d$. Within
# $\pm d$: **redistributed** if clearly more than 10 % of the pairs changed sides, else **stable**. Otherwise
# **inconclusive**; **not learned** if $g$ is not above zero.

# %%
outcomes = {s.name: evaluation.outcome(*s.policy_margins[s.path[0]]) for s in sequences}
pd.DataFrame(
    {
        n: {
            "verdict": o.verdict,
            "gain": o.gain,
            "change": o.change,
            "change / gain": o.relative,
            "churn": o.churn,
        }
        for n, o in outcomes.items()
    }
).T

# %%
cells = {}
for s in sequences:
    order = "A → B" if s.path == s.setting.objectives else "B → A"
    cells[s.setting.name, order] = (" → ".join(s.path), outcomes[s.name])
run.figure("outcome_map", plots.outcome_map(cells))
# %% [markdown]
# −1 means that Stage 2 took away all that Stage 1 had gained; below −1, the model ends up preferring the *rejected*
# response more than the base model did.
#
# ## Single pairs
#
# An aggregate is a mean over pairs. How far do the pairs agree with it?

# %%
changes = {s.name: np.subtract(*s.policy_margins[s.path[0]][[2, 1]]) for s in sequences}
run.figure("change_distributions", plots.change_distributions(changes))
# %%
tables = {s.name: evaluation.transitions(*s.policy_margins[s.path[0]][1:]) for s in sequences}
run.figure("transitions", plots.transition_bars(tables))

# %% [markdown]
# ### High-confidence pairs, without regression to the mean
#
# The paper bins pairs by confidence after Stage 1 and asks which quartile loses. Binning on the run's own margin has a
# trap: a margin that is high by this run's chance falls in any later measurement. The control bins on the *other
# seeds'* Stage-1 margin of the same pair, which shares the pair's difficulty but not the chance. Where the two curves
# part, the difference is regression to the mean.


# %%
quartile_curves = {}
for s in sequences:
    stage1 = s.policy_margins[s.path[0]][1]
    scores = {"own": stage1}
    if len(P.seeds) > 1:
        scores["independent"] = evaluation.independent_score(stage1)
    quartile_curves[s.name] = {k: evaluation.quartile_changes(changes[s.name], score) for k, score in scores.items()}
run.figure("quartiles", plots.quartile_changes({n.replace(": ", "\n"): v for n, v in quartile_curves.items()}))

# %% [markdown]
# ## What the models say
#
# Margins are likelihoods of given responses. What the model itself answers is another matter; the oracle can judge it
# here: mean utility of greedy responses to held-out prompts, for the objective trained first and the one trained second.


# %%
def spoken(sequence):
    for objective in sequence.path:
        means = [
            np.mean([sequential.utilities(sequence.setting.world, objective, r.samples).mean() for r in stage])
            for stage in sequence.results
        ]
        yield {"sequence": sequence.name, "utility of": objective} | dict(zip(plots.STAGES, means, strict=True))


utility = pd.DataFrame(chain.from_iterable(spoken(s) for s in sequences if s.setting.world))
utility.set_index(["sequence", "utility of"]).round(2) if len(utility) else "no oracle for these sources"

# %%
if P.show_texts:
    for s in sequences[::2]:
        print(s.name)
        picked = [i for i, x in enumerate(s.results[0][0].samples) if x["objective"] == s.path[0]][:2]
        for i in picked:
            print(f"   {s.results[0][0].samples[i]['prompt'][-1]['content']}")
            for stage, results in zip(plots.STAGES, s.results, strict=True):
                print(f"      {stage:8} {results[0].samples[i]['response']}")

# %% [markdown]
# **Read it.** A margin ranks two given responses and says nothing of what the model would say itself. Where the objectives
# conflict, a second stage can break the language as it turns the margins around: look for repeated words and for sentences
# that mix an answer with a refusal. Preference accuracy alone would not have shown it.
#
# ## Claims
#
# Each rule was written before its run; the library's `claims/sequential.py` holds them. With few seeds an interval over seeds is
# rough: the verdicts that count are those of the `full` profile.

# %%
measured = [
    Cell(
        s.setting.name,
        *s.path,
        *s.policy_margins[s.path[0]],
        compatibility=relations.get(s.setting.name, {}).get("correlation", np.nan),
    )
    for s in sequences
]
verdicts = sequential_claims(measured, outcomes, rng, P.resamples)
pd.DataFrame(verdicts).set_index("id")[["statement", "statistic", "value", "interval", "verdict"]]

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "compatibility": relations,
        "base": quality,
        "outcomes": outcomes,
        "accuracies": table.to_dict("records"),
        "transitions": tables,
        "utilities": utility.to_dict("records"),
    },
    series={
        "margin_paths": paths,
        "quartiles": quartile_curves,
        "loss": {s.name: [[log["loss"] for log in r.history] for r in s.results[2]] for s in sequences},
    },
    data={
        f"{stage.setting.name}/{stage.path[0]}/seed {stage.seed}": sequential.load_stage(P, stage).data
        for stage in phases["Stage 1"]
    },
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. Set `stage2_reference` to `"stage1"`. Which outcomes change? What does the loss of the first Stage-2 step tell you?
# 2. `worlds.make_world(compatibility, strength)` makes a world with a wanted relation. At which correlation does
#    forgetting turn into transfer?
# 3. Set `lora_rank` to 0 for full fine-tuning (and lower `learning_rate`). Is forgetting a matter of the adapter?
# 4. Train Stage 2 on the *same* objective with new pairs. What remains of "forgetting" is the noise of training.
# 5. Run it on real human preferences: `preflab run 01_sequential_settings_hh --profile files -p data=FOLDER`.
