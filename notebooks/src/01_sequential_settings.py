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
stage2_reference: str = "base"  # or stage1: what DPO's Stage 2 is trained against
resamples: int = 1000  # draws behind the intervals of S2 and S4
show_texts: bool = True  # print example prompts and responses; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which the table below shows.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 400}}
dpo: dict = {}  # {"beta": 0.3}, paper S
pair_training: dict = {}  # learning rate, batch size, epochs, ...
lora: dict = {}  # {"rank": 0} is full fine-tuning
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.sequential import Sequential

P = Sequential.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
from itertools import chain

import numpy as np
import pandas as pd
import torch

from preflab import margins
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.sequential import Cell, sequential_claims
from preflab.data import worlds
from preflab.experiments.sequential import utilities
from preflab.figures import sequential as plots
from preflab.likelihood import collate, token_log_probs
from preflab.models import unwrap
from preflab.running.parallel import Job, parallel
from preflab.running.run import start
from preflab.stages.base import spoken
from preflab.statistics import mean_interval
from preflab.weightings import surrogate

run = start(P)
rng = np.random.default_rng(0)  # of intervals that are drawn
all_settings = P.all_settings()
run.overview()

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
# something to prefer: responses that the oracle can read, and that differ. It trains once, in about 20 seconds; later
# runs load it.

# %%
model = P.base_model.load()
tokenizer = P.base_model.tokenizer()
print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
quality = spoken(P.base_model, P.max_new_tokens) if known else {}
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
rows = P.pairs_of(*P.sources()[0]).train_pairs(P.seeds[0]).encoded(P.base_model)[:2]
batch = collate(rows, tokenizer.pad_token_id, model.device)  # TRL's collator: 2 chosen rows above 2 rejected ones
with torch.no_grad():
    reference = token_log_probs(model, batch).sum(1)  # (4,)
policy = P.base_model.fresh_policy(P.lora, seed=0)  # a fresh adapter: the same model still
log_probs = token_log_probs(policy, batch)  # (4, seq - 1), zero off the response
mask = batch["completion_mask"][:, 1:]  # (4, seq - 1), 1 on response tokens
c, loss, m = P.dpo.weigh(log_probs.sum(1) - reference, mask)  # (4, seq - 1), (2,), (2,)
print(f"log_probs {tuple(log_probs.shape)}, loss {loss.mean():.4f}, margins {m.tolist()}")
print("c, chosen row  :", c[0][c[0] != 0].unique().tolist())
print("c, rejected row:", c[2][c[2] != 0].unique().tolist())

# %% [markdown]
# **One step of the optimiser**, in full view. The surrogate $-\sum c\log\pi$ has DPO's gradient. Adam takes one step
# along it. After the step the chosen responses are more likely than before, relative to the rejected ones: both margins
# have left 0, and the loss lies below $\ln 2$.

# %%
optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=P.pair_training.learning_rate)
loss_to_differentiate = surrogate(c, log_probs) / len(rows)  # a scalar; c is a constant in it
optimizer.zero_grad()
loss_to_differentiate.backward()  # the gradient of DPO, from c alone
optimizer.step()

with torch.no_grad():
    ratios = token_log_probs(policy, batch).sum(1) - reference  # (4,): log pi/pi_ref after the step
_, loss_after, m_after = P.dpo.weigh(ratios, mask)
print(f"loss {loss.mean():.4f} → {loss_after.mean():.4f}")
print("margins", [f"{before:+.4f} → {after:+.4f}" for before, after in zip(m, m_after, strict=True)])
model = unwrap(policy)  # the adapter is thrown away; the base was never touched

# %% [markdown]
# ## Run: two stages, both orders, every seed
#
# The trainer (`preflab.training.from_pairs`) does this step for every batch, with a learning rate that warms up and falls,
# and with clipped gradients.
#
# Stage 1 trains a fresh adapter on one objective; Stage 2 goes on with the same adapter on the other. After every stage
# the held-out pairs of *both* objectives are scored, and held-out prompts answered. Stages are cached by content: a
# second run loads them, an interrupted one goes on.

# %%
phases = {what: [Job(label, (stage,)) for label, stage in some.items()] for what, some in P.phases().items()}
parallel(phases, P.hardware.workers)
sequences = P.sequences()
for text in P.few():
    print(text)
print(f"every number below rests on {P.held_out_pairs()} held-out pairs an objective, {len(P.seeds)} seeds")

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
        relative = margins.accuracy(sequence.dpo_margins[objective]).mean(1)
        policy = margins.accuracy(sequence.policy_margins[objective]).mean(1)
        yield {
            "sequence": sequence.name,
            "measured on": objective,
            "relative, Stage 1": relative[1],
            "relative, Stage 2": relative[2],
            "policy, base": policy[0],
            "policy, Stage 1": policy[1],
            "policy, Stage 2": policy[2],
        }


table = pd.DataFrame(chain.from_iterable(map(accuracies, sequences)))
table.set_index(["sequence", "measured on"]).round(2)


# %%
paths = {s.name: {o: [mean_interval(m) for m in s.policy_margins[o]] for o in s.path} for s in sequences}
run.figure("margin_paths", plots.margin_paths({n.replace(": ", "\n"): v for n, v in paths.items()}))
# %% [markdown]
# **Read it.** Each panel follows both objectives from the base model over Stage 1 to Stage 2. The circles were trained
# first: what happens to them on the way from Stage 1 to Stage 2 is the question of this notebook. Bars are 95 %
# intervals over pairs and seeds.
#
# ## The outcome of each setting and order
#
# The rule, fixed before any run (`margins.outcome`). Let $g$ be what Stage 1 gained in mean policy margin and
# $d = 0.1\,g$. **Degraded**: the interval of Stage 2's change lies below $-d$. **Transferred**: above $+d$. Within
# $\pm d$: **redistributed** if clearly more than 10 % of the pairs changed sides, else **stable**. Otherwise
# **inconclusive**; **not learned** if $g$ is not above zero.

# %%
outcomes = {s.name: margins.outcome(*s.policy_margins[s.path[0]]) for s in sequences}
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
changes = {s.name: s.change for s in sequences}
run.figure("change_distributions", plots.change_distributions(changes))
# %%
tables = {s.name: margins.transitions(*s.policy_margins[s.path[0]][1:]) for s in sequences}
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
        scores["independent"] = margins.independent_score(stage1)
    quartile_curves[s.name] = {k: margins.quartile_changes(changes[s.name], score) for k, score in scores.items()}
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
            np.mean([utilities(sequence.setting.world, objective, r.samples).mean() for r in stage])
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
found = sequential_claims(measured, outcomes, rng, P.resamples)
verdicts = withheld(found, P.held_out_pairs(), "held-out pairs")
table_of(verdicts)

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
        "loss": {s.name: P.loss(s) for s in sequences},
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Change the parameters cell, then choose *Run → Run All Cells*. What is trained already does not train again.
#
# 1. Set `stage2_reference` to `"stage1"`. Which outcomes change? What does the loss of the first Stage-2 step tell you?
# 2. A source can name a world with a wanted compatibility and strength: add the setting
#    `"made": ["world:made(0.5,0.85)", "first", "second"]`. At which correlation does forgetting turn into transfer?
# 3. Set `lora` to `{"rank": 0}` for full fine-tuning, and `pair_training` to `{"learning_rate": 3e-4}`. Is forgetting a
#    matter of the adapter?
# 4. Train Stage 2 on the *same* objective: add `"again": ["world:conflict", "helpful", "helpful"]`. Stage 2 gets new
#    pairs. What remains of "forgetting" is the noise of training.
# 5. Run it on real human preferences: `preflab run 01_sequential_settings_hh --profile files -p data=FOLDER`.
