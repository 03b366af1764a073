# %% [markdown]
# # 03 · What does each component do? Take it away
#
# Every loss in this project is a weight $c$ on each response token:
#
# $$\nabla L = -\sum_{i,t} c_{i,t}\, \nabla \log \pi(y_{i,t} \mid x_i, y_{i,<t}).$$
#
# Tokens with $c > 0$ are learnt positively: they become more likely. Tokens with $c < 0$ are learnt negatively: they
# become less likely. How much each of them counts is $|c|$. Notebook 02 asks where each of these parts pulls. This
# notebook takes a part away, trains, and asks what is lost. The question comes from section 4 of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778).
#
# **Claims tested** (directions only; the win rates of the paper are not available to us):
#
# | | claim |
# |---|---|
# | D7 | without negative learning early, DPO performs worse: negative learning regularises |
# | D8 | DPO's weight $w$ is a regulariser: without it the gap between training and held-out pairs widens |
# | D9 | parts whose $G$ is negative can help |
#
# **What is the paper's:** the parts, and DPO without negative learning for the first part of training (its first 3000
# steps; here a share of training). **What is ours:** every other row, the shares, the world, the model, the judge (the
# oracle of the world; the paper asks GPT-4), the controls, intervals over prompts and seeds, and the rules of the verdicts.
# A reviewer of the paper asked for the hard switch from positive to negative learning. It is a row of the `full` run.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "03_component_ablations"
source: str = "world:guide-conflict"  # paper D: UltraFeedback
objective: str = "helpful"
final_source: str | None = None  # of the held-out prompts that D' answers; None: those of `source`
final_objective: str | None = None
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 640  # DPO's pairs; PPO and the reward model use the same prompts and pairs
test_pairs: int = 200
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 88
variants: dict = {  # name: method, rule of preflab.rules, its arguments, until which share of training, ...
    "DPO": {"method": "dpo"},
    "DPO, no negative early": {"method": "dpo", "rule": "without_negative", "until": 0.4},
    "DPO on few pairs": {"method": "dpo", "arguments": {"beta": 1.0}, "repeats": 6},
    "DPO on few pairs, weights that stay": {
        "method": "dpo",
        "rule": "equal_weights",
        "arguments": {"beta": 1.0, "size": 0.5},
        "repeats": 6,
    },
    "PPO": {"method": "ppo"},
    "PPO, no negative": {"method": "ppo", "rule": "without_negative"},
}
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which the table below shows.
base: dict = {}  # the base model, for example {"hidden_size": 96, "sft": {"steps": 400}}
lora: dict = {}  # {"rank": 8} trains an adapter instead of all parameters
dpo: dict = {}  # beta
ppo: dict = {}  # clip, KL coefficient, GAE, values, ...
pair_training: dict = {}  # DPO's loop: learning rate, batch size, epochs, ...
sample_training: dict = {}  # PPO's loop: iterations, batch sizes, learning rate, ...
reward: dict = {}  # {"kind": "oracle"}; the training of a reward model
measurement: dict = {}  # how often, and on what, G is measured
outcome: dict = {}  # samples: K answers a prompt
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.ablations import Ablations

P = Ablations.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from preflab import rules
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.ablations import ablation_claims
from preflab.claims.registration import registered
from preflab.experiments.ablations import ablation_row, change_of, equal_kl, faded
from preflab.figures import ablations as plots
from preflab.judging import as_table, chances, counted, decided, described
from preflab.measured import PARTS, g_of
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.stages.stage import Job
from preflab.weightings import Weights

run = start(P)
run.overview()

# %% [markdown]
# ## A little batch to try things on
#
# Three pairs are enough to see what a rule does. DPO gives both responses of a pair the same weight, with opposite
# signs (Eq. 7 of [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)):
#
# $$c = +w \text{ on } y^+, \qquad c = -w \text{ on } y^-, \qquad w = \beta\,\sigma(-\beta\Delta),$$
#
# where $\Delta$ says how far the policy prefers $y^+$ to $y^-$ by now, compared with the SFT model. Let it not have
# learnt anything of the first pair ($\Delta = 0$), know the second ($\Delta = 20$), and have the third one the wrong
# way round ($\Delta = -20$).

# %% tags=["nbval-check-output"]
delta = torch.tensor([0.0, 20.0, -20.0])
log_ratios = torch.cat([delta, torch.zeros(3)])  # (6,): three chosen responses above three rejected ones
c, _, _ = P.dpo.weigh(log_ratios, torch.ones(6, 2))  # (6, 2): every response has two tokens
batch = Weights.of_pairs(c, progress=0.0)  # what a rule sees: c, w, and the share of training that is done


def shown(weights):
    """One number for each response: all tokens of a response have the same c."""
    columns = ["nothing learnt", "known", "wrong way round"]
    return pd.DataFrame(weights[:, 0].view(2, 3) + 0.0, ["chosen", "rejected"], columns).map("{:.4f}".format)


shown(batch.c)

# %% [markdown]
# ## The rules
#
# An ablation is a rule that turns $c$ into another $c'$. Training then uses $c'$ and nothing else changes. Each rule
# below is shown whole.
#
# ### Without negative learning
#
# $$c'_{i,t} = \max(c_{i,t},\, 0)$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.WithoutNegative))
shown(rules.WithoutNegative()(batch))

# %% [markdown]
# It takes away the push against rejected responses. What is left is SFT on the chosen ones, weighted by $w$.
#
# ### Without positive learning
#
# $$c'_{i,t} = \min(c_{i,t},\, 0)$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.WithoutPositive))
shown(rules.WithoutPositive()(batch))

# %% [markdown]
# It takes away the pull towards chosen responses. What is left says what not to do, and never what to do.
#
# ### A rule for the first part of training
#
# With $t$ the share of training that is done, and $s$ the share that the rule is for:
#
# $$c'_{i,t} = \begin{cases} \text{rule}(c)_{i,t} & t < s \\ c_{i,t} & t \ge s \end{cases}$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.Until))
early = rules.Until(0.4, rules.WithoutNegative())
pd.concat({f"t = {t}": shown(early(replace(batch, progress=t))) for t in (0.3, 0.5)})

# %% [markdown]
# It takes a part away early, and gives it back. A row of parameters asks for it with `until`.
#
# ### A hard switch
#
# $$c'_{i,t} = \begin{cases} \max(c_{i,t}, 0) & t < s \\ \min(c_{i,t}, 0) & t \ge s \end{cases}$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.PositiveThenNegative))
switch = rules.PositiveThenNegative(at=0.4)
pd.concat({f"t = {t}": shown(switch(replace(batch, progress=t))) for t in (0.3, 0.5)})

# %% [markdown]
# It takes away that the two parts work at the same time.
#
# ### While a sign lasts
#
# D9 says that a part with a negative $G$ can help. So a part should go *while its $G$ is negative*, and come back when it is
# positive. With $G^-$ as training sees it now (`live_every` says how often it looks), and a dose $d$:
#
# $$c'_{i,t} = \begin{cases} (1-d)\,c_{i,t} & c_{i,t} < 0 \text{ and } G^- < 0 \\ c_{i,t} & \text{else} \end{cases}$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.WhileSign))
half = rules.WhileSign(part="negative", dose=0.5)
pd.concat({f"G⁻ = {g:+}": shown(half(replace(batch, live=(0.2, g)))) for g in (-0.1, 0.1)})

# %% [markdown]
# ### A control: the same total
#
# Without one part the gradient is smaller. A row could lose for that reason alone. With `same_total`, what is left is scaled
# up until the batch has its old sum of $\lvert c\rvert$.

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.SameTotal))
shown(rules.SameTotal(rules.WithoutNegative())(batch))

# %% [markdown]
# ### Equal weights
#
# $$c'_{i,t} = \operatorname{sign}(c_{i,t})\;\bar w, \qquad \bar w = \text{the mean weight of the batch, or a size that stays}$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.EqualWeights))
pd.concat({"mean": shown(rules.EqualWeights()(batch)), "0.05": shown(rules.EqualWeights(0.05)(batch))})

# %% [markdown]
# DPO's weight does two things. It tells pairs apart: one that is known counts less. And it shrinks as training goes on, because
# more and more pairs are known. The mean of the batch takes the first away and keeps the second. A size that stays takes both
# away. DPO begins with $\beta/2$, which is 0.05 here.
#
# ### A third of the pairs
#
# Sort the pairs by weight and cut them in three parts of equal size, the tertiles $B$ (bottom, middle, top):
#
# $$c'_{i,t} = c_{i,t}\,\mathbb 1[i \in B] \qquad\text{or}\qquad c'_{i,t} = c_{i,t}\,\mathbb 1[i \notin B]$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.OnlyTertile))
shown(rules.OnlyTertile(which="top")(batch))

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.WithoutTertile))
shown(rules.WithoutTertile(which="top")(batch))

# %% [markdown]
# The first takes two thirds of the pairs away, the second takes one third away.
#
# ### The same rules in PPO
#
# A rule sees $c$, and does not know where it comes from. In PPO $c = rA$, the advantage times the ratio of the new to the
# old policy, so a weight belongs to a token and not to a pair. Here is one response of six tokens ($r = 1$):

# %% tags=["nbval-check-output"]
advantages = torch.tensor([[1.5, -0.2, 0.6, -0.9, 0.4, -1.2]])  # (1 response, 6 tokens)
tokens = Weights.of_tokens(advantages, torch.ones(1, 6), progress=0.0)
made = {"PPO": rules.Plain(), "PPO, no negative": rules.WithoutNegative(), "PPO, sign only": rules.EqualWeights()}
made |= {"PPO, no top tertile": rules.WithoutTertile(which="top")}
pd.DataFrame([(rule(tokens)[0] + 0.0).tolist() for rule in made.values()], list(made), range(1, 7)).map("{:.2f}".format)

# %% [markdown]
# ## Run
#
# Every row of `variants` trains with every seed. All runs start from one SFT model, and PPO has one reward model for all
# rows. When a run has ended, its final policy answers held-out prompts; these answers are its $D'$, and they are
# judged. Plain DPO and plain PPO are what the other rows are compared with, seed by seed.

# %%
print("\n".join(P.few()) or "enough pairs")

# %%
prompts = P.prompts().messages()  # so many must be there, before anything trains
_ = P.reward_stage().load()  # one reward model for all
jobs = [Job(str(planned), P.asked_of(planned)) for planned in P.planned()]
parallel({"trained and measured": jobs}, P.hardware.workers)

# %%
runs = P.by_row()
judged = {who: P.judged(some) for who, some in runs.items()}  # answers, and the judge's scores of them
measured = {who: P.measured(some) for who, some in runs.items()}  # G along training
accuracy = {who: P.accuracy(some) for who, some in runs.items()}  # of DPO margins
sft = P.judged_sft()
rows = {
    who: ablation_row(judged[who], judged[P.rivals.get(who, who)], sft, measured[who], accuracy[who])
    for who in P.variants
}
on_prompts = {"prompts": len(prompts), "seeds": len(P.seeds)}  # what the numbers below rest on
on_pairs = {"held-out pairs": len(P.pairs.test_pairs.rows()), "seeds": len(P.seeds)}

# %% [markdown]
# ## Who answers better?
#
# Every policy gives $K$ answers to every prompt, at temperature 1. The judge gives each answer a score $u$: the utility of the
# oracle in a world, the score of the reward model elsewhere. The labels of a world are drawn with probability
# $\sigma(\Delta u/T)$, and this **label probability** is the outcome, over all $K^2$ couples of answers:
#
# $$p = \frac{1}{K^2}\sum_{i,j}\sigma\!\left(\frac{u_i - u'_j}{T}\right).$$
#
# Try it on one prompt, with two answers each:

# %% tags=["nbval-check-output"]
ours, theirs = np.array([1.2, 0.4]), np.array([0.7, 0.4])
print(f"label probability − ½ = {chances(ours, theirs, temperature=0.5) - 0.5:+.3f}")

# %% [markdown]
# It is 0 for two equal rivals, and at most ½. Its interval is over prompts *and* seeds: another seed is another sample of
# training pairs, another order of batches, and another initial adapter if there is one.
#
# A row may lose because it has learnt badly, or because it has not moved as far. So the right panel compares scores at **equal
# KL**: the largest distance from the SFT model that both runs reach.

# %%
paths = {who: P.paths(some) for who, some in runs.items()}  # KL and score at every snapshot
for who, plain in P.rivals.items():
    rows[who]["score at equal KL, less plain"] = equal_kl(paths[who], paths[plain])
against_plain = ["against plain − ½", "score at equal KL, less plain"]
as_table({who: rows[who] for who in P.rivals}, on_prompts, against_plain)

# %%
lines = {who: (P.variants[who].family, *(rows[who][how] for how in against_plain)) for who in P.rivals}
labels = ["label probability against the plain method − ½", "score at equal KL, less the plain method's"]
run.figure("forest", plots.forest(lines, labels))

# %%
print("intervals that leave out 0:", "; ".join(decided({who: lines[who][1] for who in lines})) or "none")

# %% [markdown]
# **Read it.** Bars are 95 % intervals. One that crosses 0 decides nothing. Two seeds leave long ones: where seeds differ more
# than prompts do, the standard error is multiplied by up to 12.7. The verdicts that count come from the `full` run.

# %%
of_sft = {"score": sft.score, "against SFT − ½": None}
as_table(rows | {"SFT": of_sft}, on_prompts, of_sft)

# %% [markdown]
# How often did a rule that follows $G$ take something away?

# %%
follow = {who: P.acted(some).mean() for who, some in runs.items() if P.variants[who].rule == "while_sign"}
print("\n".join(f"{who}: in {share:.0%} of the updates" for who, share in follow.items()) or "no rule here follows G")

# %% [markdown]
# Did a row win by saying one thing everywhere? `KL` from the SFT model is in nats a response, `entropy` in nats a token.
# `unique` is the share of different answers, `distinct-2` that of different pairs of words, `length` is in tokens.

# %%
variety = ["KL", "entropy", "unique", "distinct-2", "length"]
as_table(rows | {"SFT": described(sft.answers)}, on_prompts, variety)

# %% [markdown]
# ## Which log-probs fall?
#
# For each held-out pair, the change since the SFT model,
#
# $$\log\pi_\theta(y\mid x) - \log\pi_\text{SFT}(y\mid x),$$
#
# of the chosen and of the rejected response. A DPO margin only needs the rejected one to fall further. If both fall,
# probability goes to responses that are in neither place: likelihood is *displaced*.

# %%
falls = {
    who: (some[0].progress, change_of(some, "chosen"), change_of(some, "rejected")) for who, some in measured.items()
}
run.figure("log_probs", plots.log_prob_paths(falls))

# %%
as_table(rows, on_pairs, ["chosen", "rejected"])

# %% [markdown]
# **Read it.** Compare plain DPO with DPO without negative learning. In the second, nothing pushes the rejected responses
# down, and they fall less. They still fall a little, since probability that the chosen ones gain must come from somewhere. PPO
# learns from its own samples and never from these responses. Both of its lines fall, with every rule.
#
# ## G of what is left
#
# A rule changes $c$, so it changes the gradient alignment of what is trained, with the run's own final responses:
#
# $$G = -\sum_{i,t} c'_{i,t}\, s_{i,t}, \qquad s_{i,t} = \nabla \log\pi_{i,t} \cdot v, \qquad
# v = \nabla\,\mathrm{NLL}(D').$$
#
# $G > 0$ is a step towards the responses of the final policy (notebook 02). Every panel has its own scale.

# %%
panels = {
    who: (P.variants[who].family, some[0].progress, g_of(some, "trained"), g_of(measured[P.rivals[who]], "trained"))
    for who, some in measured.items()
    if who in P.rivals
}
run.figure("g", plots.g_multiples(panels))

# %% [markdown]
# **Read it.** Thick grey is the plain method with *its* final responses, colour is what is left with *its own*. So the two
# lines differ for two reasons: another $c$, and another end. Thin lines are seeds. Where they lie on both sides of zero,
# the sign of $G$ is not known.
#
# ## Is more learnt by heart?
#
# $$\text{gap} = \text{accuracy on training pairs} - \text{accuracy on held-out pairs},$$
#
# where accuracy is the share of pairs with a DPO margin above 0 at the end. D8 says that the gap widens without $w$.

# %%
run.figure("gap", plots.gaps({who: (found.training, found.held_out) for who, found in accuracy.items()}))

# %%
as_table(rows, {"training pairs": P.train_pairs, **on_pairs}, ["held-out accuracy", "gap"])

# %% [markdown]
# **Read it.** A gap above 0 has the filled mark on the right of the open one. If each pair is seen once, there is little to
# learn by heart, and little that a regulariser could prevent. So rows *on few pairs* have the same number of updates on a
# sixth of the pairs: every pair is seen six times as often.
#
# The weight can only regularise where it falls. It falls when $\beta\Delta$ is well above 0, and policies move by few nats
# here. So these rows have a larger $\beta$ than the others. What is left of the plain methods' mean weight at the end?

# %%
left = {who: faded(measured[who]).mean() for who, row in P.variants.items() if row.rule == "plain"}
print("\n".join(f"{who}: {share:.0%}" for who, share in left.items()))

# %% [markdown]
# ## What the policies say
#
# One sampled answer of the first seed to each of two held-out prompts.

# %%
if P.show_texts:
    for i in range(2):
        print(prompts[i][-1]["content"])
        for who, some in {"SFT": sft, **judged}.items():
            print(f"   {who:<36} {some.answers[0].texts[i * P.outcome.samples]}")

# %% [markdown]
# ## Claims
#
# Each rule was written before its run; `claims/ablations.py` holds them, and the registration says what they can see. The
# verdicts that count are those of `full`. A rule may find that an effect is there *and* that it is less than what counts: then
# the verdict is "smaller than counts".
#
# D9 has a control in `full`: rows that lose the same part while its $G$ is *positive*. Where both cost the same, the sign of
# $G$ says nothing about what a part is good for.

# %%
registration = registered("03_component_ablations")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
verdicts = withheld(ablation_claims(P.ablations(runs, judged, accuracy, measured)), len(prompts), "prompts")
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted({"prompts": len(prompts), **on_pairs}))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": {who: row["against SFT − ½"] for who, row in rows.items()},
        "variants": rows,
        "sft": {"score": sft.score},
        "acted": follow,
        "weight left": left,
        "registration": registration.sha256,
    },
    series={
        "g": {who: {part: g_of(some, part) for part in PARTS} for who, some in measured.items()},
        "progress": {who: some[0].progress for who, some in measured.items()},
        "paths": {who: {"kl": [x.kl for x in some], "score": [x.score for x in some]} for who, some in paths.items()},
        "log_probs": {who: {"chosen": up, "rejected": down} for who, (_, up, down) in falls.items()},
        "accuracy": {who: {"train": found.training, "held out": found.held_out} for who, found in accuracy.items()},
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Their solutions are in [solutions/03_component_ablations_solutions](solutions/03_component_ablations_solutions.ipynb).
#
# 1. **Your own ablation.** How much of a response is decided where it begins? Train on the first token alone. Write this
#    class into `lib/preflab/rules.py`:
#
#    ```python
#    @settings
#    class FirstToken(Rule):
#        """Learning from the first token of each response alone."""
#
#        def __call__(self, w: Weights) -> torch.Tensor:
#            held = w.c != 0
#            return w.c * (held & (held.cumsum(1) == 1))
#    ```
#
#    and this line into the table `RULES` at its end:
#
#    ```python
#        "first_token": FirstToken,
#    ```
#
#    Add the row `"DPO, first token": {"method": "dpo", "rule": "first_token"}` to `variants`. Restart the kernel once,
#    since it has read `rules.py` already.
# 2. **Until when?** Add the rows `"DPO, no negative until 0.2": {"method": "dpo", "rule": "without_negative", "until": 0.2}`
#    and the same with 0.8. Up to which share does DPO recover?
# 3. **While a sign lasts.** Add the row `"PPO, no negative while G⁻ > 0": {"method": "ppo", "rule": "while_sign", "arguments":
#    {"part": "negative", "sign": "positive"}, "live_every": 2}`. Is it worse to lose a part while it pulls *towards* the end? Then
#    with `"dose": 0.5`: is half a loss half as bad?
# 4. **A perfect reward.** Set `reward: dict = {"kind": "oracle"}`, so that PPO learns from the judge itself. Which of its
#    rows change places?
# 5. **Another method.** KTO gives each response of a pair a weight of its own. Add the rows `"KTO": {"method": "kto"}` and
#    `"KTO, no negative": {"method": "kto", "rule": "without_negative"}`. (A method with a rule needs its plain row.) Does
#    negative learning matter as much as in DPO?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
