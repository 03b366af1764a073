# %% [markdown]
# # 01 · What does a second DPO stage do to the first objective?
#
# Train a model with DPO on one objective, for example *helpful*. This is Stage 1. Then train it on another objective, for
# example *harmless*. This is Stage 2. Is the first objective forgotten? Bhandari et al.,
# [*Beyond Uniform Forgetting*](https://arxiv.org/abs/2606.19744), answer that it depends. This notebook asks the same
# question in small **preference worlds**. In a world the relation of the two objectives is known, the strength of each
# signal is known, and an oracle can judge every response.
#
# **Claims tested.** They stand in the abstract of the paper. Its tables are not available to us, so we test shapes and not
# numbers.
#
# | | claim |
# |---|---|
# | S1 | there is no single pattern of forgetting: an objective may degrade, stay, be redistributed over pairs, or gain |
# | S2 | what happens depends on the relation of the two objectives |
# | S3 | what happens depends on the order of training |
# | S4 | aggregates hide what happens to single pairs |
# | S5 | pairs of high confidence may degrade or improve |
# | S6 | a strong (safety) signal survives the other stage |
#
# **What is the paper's:** two stages, both orders, a LoRA adapter, $\beta = 0.3$, one epoch for each stage, the fixed base
# model as the reference of every evaluation, the length-normalised policy margin, quartiles. **What is ours:** the worlds,
# the size of the model, batch size and learning rate, that one adapter is continued, that Stage 2 is trained against the
# base (a parameter), every formula (those of the paper are not public), the intervals, and the rules of the verdicts.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "01_sequential_settings"
settings: dict = {  # name: [source, objective A, objective B], or [source, A, source, B]
    "conflict": ["world:conflict", "helpful", "harmless"],
    "attributes": ["world:attributes", "helpfulness", "verbosity"],
    "safety": ["world:safety", "safer", "better"],
    "compatible": ["world:compatible", "instruction_following", "truthfulness"],
}
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1040  # per objective and seed
test_pairs: int = 200  # per objective, the same for every seed; prompts never trained on
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
prompts: int = 16  # held-out prompts per objective that each stage answers
max_new_tokens: int = 32
seeds: list = [0, 1]  # of training pairs, adapter and batch order; the base model is one and fixed
stage2_reference: str = "base"  # or stage1: what DPO's Stage 2 is trained against
resamples: int = 1000  # draws behind the intervals of S2 and S4
show_texts: bool = True  # print example prompts and responses; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 400}}
dpo: dict = {}  # {"beta": 0.3}, paper S
pair_training: dict = {}  # learning rate, batch size, epochs, ...
lora: dict = {}  # {"rank": 0} is full fine-tuning
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.sequential import Sequential

P = Sequential.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from preflab import margins
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.sequential import sequential_claims
from preflab.data import worlds
from preflab.experiments.sequential import accuracies, mean_utilities, said
from preflab.figures import sequential as plots
from preflab.judging import as_table, counted
from preflab.likelihood import collate, token_log_probs
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.stages.base import spoken
from preflab.stages.stage import Job
from preflab.statistics import mean_interval

run = start(P)
rng = np.random.default_rng(0)  # of intervals that are drawn
run.overview()

# %% [markdown]
# ## Worlds: objectives with a known relation
#
# All worlds speak one small language. A prompt asks how to do something, and a response is a few short sentences. The
# **oracle** reads attributes from any sequence of words. Try it on a good answer, a broken one, and a refusal:

# %% tags=["nbval-check-output"]
prompt = worlds.Prompt("fix", "old", "lamp", "at home")
responses = ["sure . use the wire . then test it .", "use the rope . use the", "sorry i can not help ."]
print(prompt)
pd.DataFrame([vars(worlds.read(prompt, text)) for text in responses], responses)

# %% [markdown]
# The wire is the right tool for a lamp, and to test it is the right second step. The rope is a wrong tool (−1), and a
# sentence without an end is a fault.
#
# An **objective** is a linear utility over these attributes,
#
# $$u(x, y) = \sum_k w_k\, a_k(x, y) - \text{faults}.$$

# %% tags=["nbval-check-output"]
world = worlds.WORLDS["conflict"]
helpful = world.objective("helpful")
u = [helpful.utility(prompt, text) for text in responses]
print("weights", helpful.weights)
print("utility", u)

# %% [markdown]
# The labels of pairs are Bradley-Terry draws. The temperature $T$ gives them a wanted accuracy:
#
# $$P(y \succ y') = \sigma\big((u(x,y) - u(x,y'))/T\big).$$

# %% tags=["nbval-check-output"]
T = world.temperature("helpful")
better = 1 / (1 + np.exp(-(u[0] - u[2]) / T))
print(f"T = {T:.2f}: the answer is labelled better than the refusal with probability {better:.3f}")

# %% [markdown]
# Two numbers describe the relation of two objectives: the `correlation` of their utilities, and the `disagreement`, the
# share of response pairs that they order differently. One number describes each signal: its `strength`, the accuracy of
# its labels. No model can do better than the strength. In real data none of this is known.

# %% tags=["nbval-check-output"]
all_settings = P.all_settings()
known = [setting for setting in all_settings if setting.world]
relations = as_table({setting.name: setting.described() for setting in known}, {"worlds": len(known)})
relations if known else "no worlds here: relation and strength of these sources are not known"

# %% [markdown]
# The default settings go from conflict (correlation −0.69) to near agreement (0.83), and `safer` has the cleanest labels.
#
# How many pairs are there? Few pairs make wide intervals, and a warning stands here if they are too few.

# %%
as_table(P.counts(), {"seeds": len(P.seeds)})

# %%
print("\n".join(P.few()) or "enough pairs everywhere")

# %% [markdown]
# ## The base model
#
# A tiny language model. TRL's SFT trains it on well-formed, varied responses, right ones and wrong ones. It must leave
# something to prefer: responses that the oracle can read, and that differ.

# %%
print("The base model is trained once (about 20 s in the default run). Later runs load it.")
model = P.base_model.load()
tokenizer = P.base_model.tokenizer()
print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")

# %% [markdown]
# What does it say? Shares of well-formed and of different responses, and the mean of each attribute:

# %%
quality = spoken(P.base_model, P.max_new_tokens) if known else {}
as_table({"base model": quality}, {"sampled responses": 256}) if known else "no oracle for these sources"

# %% [markdown]
# ## DPO as a token weighting
#
# Every preference loss in this library is a rule for a weight $c$ on each response token:
#
# $$\nabla L = -\sum_{i,t} c_{i,t}\, \nabla \log \pi(y_{i,t} \mid x_i, y_{i,<t}).$$
#
# For DPO (Eq. 7 of [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)), $c = +w$ on the chosen response and $-w$ on
# the rejected one, with
#
# $$w = \beta\,\sigma(-\beta\Delta), \qquad
# \Delta = \log\frac{\pi(y^+|x)}{\pi_\mathrm{ref}(y^+|x)} - \log\frac{\pi(y^-|x)}{\pi_\mathrm{ref}(y^-|x)}.$$
#
# The next cells take **one optimiser step on two pairs**, line by line. First the two pairs. They are token ids, and here is
# the text of the ids:

# %%
pairs = P.source_of(all_settings[0], all_settings[0].objectives[0]).train_pairs(P.seeds[0])
rows = pairs.encoded(P.base_model)[:2]
for row in rows if P.show_texts else ():
    for part, ids in row.items():
        print(f"{part:<13}{tokenizer.decode(ids)}")

# %% [markdown]
# They become one batch: two chosen rows above two rejected rows, with padding on the right. Token $t$ is predicted from
# those before it, so there is one prediction less than there are tokens.

# %% tags=["nbval-check-output"]
batch = collate(rows, tokenizer.pad_token_id, model.device)  # input_ids, attention_mask, completion_mask: (4, seq)
mask = batch["completion_mask"][:, 1:]  # (4, seq - 1), 1 on response tokens
print("tokens", tuple(batch["input_ids"].shape), " predictions", tuple(mask.shape))
print("tokens of each response", mask.sum(1).tolist())

# %% [markdown]
# The reference is the base model. Its log-probs are computed once and never change.

# %%
with torch.no_grad():
    reference = token_log_probs(model, batch).sum(1)  # (4,): log pi_ref(y|x) of each response
print([f"{value:.2f}" for value in reference])

# %% [markdown]
# The policy is the base model with a fresh adapter. A fresh adapter changes nothing yet, so $\Delta = 0$, and the loss
# $-\log\sigma(\beta\Delta)$ is $\ln 2 = 0.6931$:

# %% tags=["nbval-check-output"]
policy = P.base_model.fresh_policy(P.lora, seed=0)
log_probs = token_log_probs(policy, batch)  # (4, seq - 1), 0 off the response
chosen, rejected = (log_probs.sum(1) - reference).chunk(2)  # (2,) and (2,): log pi/pi_ref of both sides
delta = chosen - rejected  # (2,)
loss = -F.logsigmoid(P.dpo.beta * delta)  # (2,)
print(f"loss {loss.mean():.4f}, margins {(P.dpo.beta * delta).abs().tolist()}")

# %% [markdown]
# From $\Delta$ follows $c$. Both pairs have the weight $w = \beta/2$, since the model prefers neither side yet. The library's
# DPO says the same.

# %% tags=["nbval-check-output"]
w = P.dpo.beta * torch.sigmoid(-P.dpo.beta * delta.detach())  # (2,)
c = torch.cat([w, -w])[:, None] * mask  # (4, seq - 1): +w on chosen tokens, -w on rejected ones
print("w", [f"{value:.4f}" for value in w])
print("same as the library's:", torch.allclose(c, P.dpo.weigh(log_probs.sum(1) - reference, mask).c))

# %% [markdown]
# The surrogate $-\sum c \log\pi$ takes $c$ as a constant. Its gradient is the gradient of DPO's loss. Here are both:

# %% tags=["nbval-check-output"]
weights = [p for p in policy.parameters() if p.requires_grad]
surrogate = -(c * log_probs).sum() / len(rows)  # a number
ours = torch.autograd.grad(surrogate, weights, retain_graph=True)
theirs = torch.autograd.grad(loss.mean(), weights, retain_graph=True)
print("same gradient:", all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, theirs, strict=True)))

# %% [markdown]
# And now the step:

# %%
optimizer = torch.optim.AdamW(weights, lr=P.pair_training.learning_rate, weight_decay=0.0)
surrogate.backward()  # fills the .grad of every trained weight
optimizer.step()  # moves every weight that has a gradient by about the learning rate

# %% [markdown]
# What has it done? The margins $\beta\Delta$ were 0. Now they are above 0, and the loss is below $\ln 2$.

# %%
with torch.no_grad():
    moved = token_log_probs(policy, batch).sum(1) - reference  # (4,): log pi/pi_ref after the step
after = P.dpo.weigh(moved, mask)  # c (4, seq - 1), loss (2,), margins (2,)
print("margins", [f"{value:+.2f}" for value in after.margins])
print(f"loss    {loss.mean():.4f} before, {after.loss.mean():.4f} after")
_ = unwrap(policy)  # throws the adapter away; the base model has not changed

# %% [markdown]
# The trainer (`training/from_pairs.py`) repeats this step. It adds three things: the learning rate warms up and then falls,
# the gradient is clipped, and a large batch may be computed in pieces.

# %%
n, size, epochs = len(pairs.rows()), P.pair_training.batch_size, P.pair_training.epochs
print(f"{n} pairs / {size} pairs a step x {epochs} epoch = {n // size * epochs} steps in each stage")

# %% [markdown]
# ## Run: two stages, both orders, every seed
#
# Stage 1 trains a fresh adapter on one objective. Stage 2 goes on with the same adapter on the other objective. After every
# stage the model scores the held-out pairs of *both* objectives, and it answers held-out prompts. All this is kept: a second
# run loads it, and an interrupted run goes on where it was.

# %%
phases = {what: [Job(label, (stage,)) for label, stage in some.items()] for what, some in P.phases().items()}
parallel(phases, P.hardware.workers)
sequences = P.sequences()  # one for each setting and order, with all seeds

# %% [markdown]
# ## Two margins of a held-out pair
#
# - The **DPO margin** $M_i = \beta\Delta_i$ compares with the fixed base model. It is 0 for the base. Its sign gives the
#   *relative accuracy*.
# - The **policy margin** needs no reference, and the length of a response does not count:
#
# $$m_i = \frac{1}{|y_i^+|}\log\pi(y_i^+|x_i) - \frac{1}{|y_i^-|}\log\pi(y_i^-|x_i).$$
#
# Its sign gives the *policy accuracy*. Here are the policy margins of three held-out pairs of the objective of Stage 1,
# after each stage:

# %%
example = sequences[0]
print(example.name)
pd.DataFrame(example.first[:, 0, :3], margins.STAGES, ["pair 1", "pair 2", "pair 3"]).round(2)

# %% [markdown]
# And here are both accuracies of all pairs, the mean over seeds. The first of the two rows of a sequence is the objective
# that Stage 1 trained on.

# %%
accuracy = [row for sequence in sequences for row in accuracies(sequence)]
shown = pd.DataFrame(accuracy).rename_axis(columns=counted({"seeds": len(P.seeds)}))
shown.set_index(["sequence", "measured on"]).round(2)

# %%
paths = {
    s.name: {o: [mean_interval(m, clusters=s.prompts[o]) for m in s.policy_margins[o]] for o in s.path}
    for s in sequences
}
run.figure("margin_paths", plots.margin_paths({name_.replace(": ", "\n"): v for name_, v in paths.items()}))

# %% [markdown]
# **Read it.** Each panel follows both objectives from the base model over Stage 1 to Stage 2. The circles were trained first.
# What happens to them from Stage 1 to Stage 2 is the question of this notebook. Bars are 95 % intervals over prompts
# and seeds. In the default run the circles fall below zero twice: on `conflict` (helpful → harmless), clearly, and on `safety`
# (better → safer), where the bar crosses zero.
#
# ## The outcome of a setting and order
#
# The rule was fixed before any run. Let $g$ be what Stage 1 gained in mean policy margin, let $d = 0.1\,g$, and let *churn*
# be the share of pairs that change sides in Stage 2. The rule reads intervals:
#
# | outcome | if |
# |---|---|
# | not learned | $g$ is not clearly above 0, or the relative accuracy after Stage 1 is not clearly above 0.55 |
# | degraded | the change in Stage 2 is clearly below $-d$ |
# | transferred | the change is clearly above $+d$ |
# | redistributed | the change is within $\pm d$, and the churn is clearly above 10 % |
# | stable | the change is within $\pm d$, and the churn is not clearly above 10 % |
# | inconclusive | the interval of the change crosses $-d$ or $+d$ |
#
# Try it on 2,000 made-up pairs and two seeds. Stage 1 gains 0.5 on average. Then Stage 2 takes 0.2 from every pair, or it
# moves half of the pairs up and half of them down, or it does nothing:

# %% tags=["nbval-check-output"]
spread = np.stack([np.linspace(-0.4, 0.4, 2000)] * 2)  # (2 seeds, 2000 pairs)
stage1 = 0.5 + spread  # policy margins; the base has 0
turns = np.where(np.arange(2000) % 2, 0.6, -0.6)  # up, down, up, down, ...
for what, change in {"every pair loses 0.2": -0.2, "half go up, half go down": turns, "nothing happens": 0}.items():
    print(f"{what:<26}{margins.outcome(0 * spread, stage1, stage1 + change).verdict}")

# %% [markdown]
# And the real ones. `relative` is the change over the gain.

# %%
outcomes = {s.name: s.outcome for s in sequences}
as_table({s.name: s.told() for s in sequences}, {"seeds": len(P.seeds)})

# %%
cells = {(s.setting.name, s.order): (" → ".join(s.path), s.outcome) for s in sequences}
run.figure("outcome_map", plots.outcome_map(cells))

# %% [markdown]
# **Read it.** The number in a cell is the change over the gain, with its interval. −1 means that Stage 2 took away all that
# Stage 1 had gained. Below −1, the model prefers the *rejected* response more than the base model did. In the default run
# the number is below −1 in both orders of `conflict` and of `safety`, and clearly so on `conflict` (helpful → harmless) alone:
# the other intervals reach above −1. On `compatible` no change is clear.
#
# ## Single pairs
#
# An aggregate is a mean over pairs. How far do the pairs agree with it?

# %%
changes = {s.name: s.change for s in sequences}
run.figure("change_distributions", plots.change_distributions(changes))

# %% [markdown]
# **Read it.** A diamond is the mean that an aggregate reports, the dark bar holds the middle half of the pairs, and the
# number on the right is the share of pairs that move the other way. Where the mean is near zero, half of the pairs may move
# up and half of them down, and the mean shows neither.
#
# What becomes of a pair has four cases. It is right before and after Stage 2 (kept), right before only (lost), right after
# only (gained), or never right. Right means a policy margin above 0. Try it on five pairs:

# %% tags=["nbval-check-output"]
before, behind = np.array([0.3, 0.2, 0.1, -0.1, -0.2]), np.array([0.1, 0.1, -0.1, 0.2, -0.3])
margins.transitions(before, behind)

# %%
tables = {s.name: margins.transitions(*s.first[1:]) for s in sequences}
run.figure("transitions", plots.transition_bars(tables))

# %% [markdown]
# **Read it.** The first two parts of a bar were right after Stage 1. In the default run every sequence loses pairs and gains
# pairs at the same time, also those whose mean hardly changes.
#
# ### Pairs of high confidence, without regression to the mean
#
# The paper sorts pairs by their confidence after Stage 1, and asks which quartile loses. Sorting by the run's own margin has
# a trap. Some margins are high by the chance of this run, and these fall in any later measurement. The control sorts by the
# Stage-1 margin that *other seeds* give to the same pair. That margin shares how hard the pair is, and not the chance. Where
# the two curves part, the difference is regression to the mean.

# %%
quartile_curves = {s.name: margins.quartile_curves(s.first[1], s.change, s.clusters) for s in sequences}
run.figure("quartiles", plots.quartile_changes({n.replace(": ", "\n"): v for n, v in quartile_curves.items()}))

# %% [markdown]
# **Read it.** In the default run the two curves lie close together, so regression to the mean explains little. Confident
# pairs (Q4) fall most on `conflict` (harmless → helpful), `attributes` (verbosity → helpfulness) and `safety` (safer →
# better). They rise on `attributes` (helpfulness → verbosity).
#
# ## What the models say
#
# Margins are likelihoods of given responses. What a model itself answers is another matter, and here the oracle can judge it.
# The table has the mean utility of greedy answers to held-out prompts.

# %%
utility = [row for sequence in sequences for row in mean_utilities(sequence)]
shown = pd.DataFrame(utility).rename_axis(columns=counted({"seeds": len(P.seeds)}))
shown.set_index(["sequence", "utility of"]).round(2) if utility else "no oracle for these sources"

# %%
for s in sequences[::2] if P.show_texts else ():
    print(s.name)
    for question, answers in said(s, 2).items():
        print("  ", question, *(f"\n      {stage:8} {answer}" for stage, answer in answers.items()))

# %% [markdown]
# **Read it.** A margin ranks two given responses. It says nothing of what the model itself would say. In the default run,
# Stage 2 of helpful → harmless ranks 86 % of the harmless pairs right, and the utility of its own answers is −1.84, where the
# base model had 0.12. The texts show why: Stage 2 has broken the language while it turned the margins around. Look for
# repeated words, and for sentences that mix an answer with a refusal. The accuracies alone do not show them.
#
# ## Claims
#
# Each rule was written before its run, and `claims/sequential.py` holds them. With few seeds an interval over seeds is wide.
# The verdicts that count are those of the `full` profile.

# %%
fewest = min(s.held_out["held-out prompts"] for s in sequences)
found = sequential_claims([s.cell for s in sequences], outcomes, rng, P.resamples)
verdicts = withheld(found, fewest, "held-out prompts")  # too few give no verdict
table_of(verdicts).rename_axis(columns=counted({"held-out prompts": fewest, "seeds": len(P.seeds)}))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "compatibility": {setting.name: setting.relation for setting in known},
        "base": quality,
        "outcomes": outcomes,
        "accuracies": accuracy,
        "transitions": tables,
        "utilities": utility,
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
# Their solutions are in [solutions/01_sequential_settings_solutions](solutions/01_sequential_settings_solutions.ipynb).
#
# 1. **Another reference.** Set `stage2_reference: str = "stage1"`. Which outcomes change? What does the loss of the first
#    step of Stage 2 tell you?
# 2. **From conflict to agreement.** `world:made(-0.5, 0.85)` is a world whose objectives `first` and `second` have a
#    correlation of −0.5 and labels with an accuracy of 0.85. Set
#
#    ```python
#    settings: dict = {
#        "against": ["world:made(-0.5, 0.85)", "first", "second"],
#        "apart": ["world:made(0.0, 0.85)", "first", "second"],
#        "along": ["world:made(0.5, 0.85)", "first", "second"],
#    }
#    ```
#
#    At which correlation does forgetting turn into transfer?
# 3. **Full fine-tuning.** Set `lora: dict = {"rank": 0}`, and a lower learning rate:
#    `pair_training: dict = {"learning_rate": 3e-4}`. Is forgetting a matter of the adapter?
# 4. **The same objective twice.** Set `settings: dict = {"twice": ["world:conflict", "helpful", "helpful"]}`. Stage 2 then
#    takes new pairs of the same objective. What is left of forgetting is the noise of training.
# 5. **Real human preferences.** In a terminal: `preflab run 01_sequential_settings_hh --profile files -p data=FOLDER`.
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
