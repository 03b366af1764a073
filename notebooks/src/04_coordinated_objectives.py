# %% [markdown]
# # 04 · Coordinated objectives: does it pay to steer the components?
#
# Positive and negative learning may pull in different directions (notebook 02). Taking one away changes what a policy
# becomes (notebook 03). So perhaps *scheduling* them helps. Section 4 and appendix E of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778) say so. It leaves one question
# open: could the weights follow the live $G$?
#
# **Claims tested** (directions only; the win rates of the paper are not available to us):
#
# | | claim |
# |---|---|
# | D10 | cDPO beats DPO in win rate |
# | D11 | hPPO and cPPO differ from PPO by no more than about two points |
# | D12 | fine-grained control improves at least one method |
#
# cDPO is **coordinated** DPO: weight moves from positive to negative learning while training runs. Elsewhere the name
# means *conservative* DPO (label smoothing), which is another method and a row of the `full` run.
#
# **What is the paper's:** the idea of each method. **What is ours,** because no source says it: the schedules, the
# thresholds, which of three readings of hPPO is meant, adaptive coordination, every baseline, the world, the judge, and
# the rules of the verdicts.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "04_coordinated_objectives"
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
validation: int = 32  # held-out prompts that candidates are chosen on
report: int = 64  # held-out prompts that everything below is reported on
max_new_tokens: int = 88
# A row's name: its method and rule; the arguments of both; `sweep`, the values that it may choose from; and `against`,
# its rival, from whose choice it starts.
variants: dict = {
    "DPO": {"method": "dpo", "sweep": [{"beta": 0.1}, {"beta": 0.3}]},
    "cDPO": {
        "method": "dpo",
        "rule": "coordinated",
        "against": "DPO",
        "sweep": [{"start": 0.4, "end": 0.6}, {"start": 0.25, "end": 0.75}],
    },
    "cDPO, adaptive": {
        "method": "dpo",
        "rule": "adaptive",
        "live_every": 10,
        "budget": 0.83,
        "against": "DPO",
        "sweep": [{"gain": -0.5}, {"gain": 0.5}],
    },
    "PPO": {"method": "ppo", "sweep": [{"kl_coefficient": 0.1}, {"kl_coefficient": 0.03}]},
    "hPPO": {
        "method": "ppo",
        "rule": "thresholded",
        "arguments": {"reading": "keep_negative_above"},
        "against": "PPO",
        "sweep": [{"tau": 0.5}, {"tau": 1.5}],
    },
    "GRPO, correctness": {
        "method": "grpo",
        "reward": "correct",
        "arguments": {"group_size": 4},
        "sweep": [{"kl_coefficient": 0.1}, {"kl_coefficient": 0.03}],
    },
}
sweep_seeds: int = 1  # the first so many seeds choose among the candidates
seeds: list = [0, 1]  # of training pairs, adapter, batch order and samples; base and reward model are one and fixed
alpaca_eval: str | None = None  # hub:tatsu-lab/alpaca_eval or files:PATH of its prompts, to answer them for its judge
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
from preflab.experiments.coordination import Coordination

P = Coordination.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import inspect

import numpy as np
import pandas as pd
import torch

from preflab import alignment, alpaca, rules
from preflab.claims import corrected, win_change, withheld
from preflab.claims import table as table_of
from preflab.claims.coordination import coordination_claims
from preflab.claims.registration import registered
from preflab.data.dialogues import instructions
from preflab.experiments.coordination import course, made_of_one_pair, negative_share
from preflab.figures import coordination as plots
from preflab.figures.ablations import forest
from preflab.generation import respond
from preflab.judging import as_table, counted, decided
from preflab.likelihood import collate, collate_responses
from preflab.live import Live
from preflab.methods.grpo import GRPO
from preflab.methods.method import Scored
from preflab.methods.rloo import RLOO
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.weightings import Weights, sign_components

run = start(P)
asked = instructions(P.alpaca_eval, P.revision) if P.alpaca_eval else []
run.overview()

# %% [markdown]
# ## Coordination is a rule for c
#
# Every loss here is a weight $c$ on each response token; $c^+$ are the positive ones, $c^-$ the negative ones. To
# coordinate is to share the weight out between them. Let $\lambda$ be the share of negative learning:
#
# $$c^+ \;\to\; 2\,(1-\lambda)\,c^+, \qquad c^- \;\to\; 2\,\lambda\,c^-.$$
#
# The 2 makes $\lambda = ½$ the plain method. A pair's two sides have the same weight $w$ in DPO, so together they keep
# $2(1-\lambda)w + 2\lambda w = 2w$ whatever $\lambda$ is.

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.shared))
c = torch.tensor([[1.0], [-1.0]])  # one pair, one token a side: (2, 1)
pd.DataFrame({f"λ = {share}": rules.shared(c, share, total=2.0)[:, 0] for share in (0.25, 0.5, 0.75)}, ["c⁺", "c⁻"])

# %% [markdown]
# ### The schedule of cDPO
#
# With $t$ the share of training that is done, $\lambda$ goes from $\lambda_0$ to $\lambda_1$ along one of three shapes:
#
# $$\lambda_t = \lambda_0 + (\lambda_1 - \lambda_0)\,h(t), \qquad
# h(t) = t \;\text{(linear)}, \quad \tfrac12\big(1 - \cos \pi t\big) \;\text{(cosine)}, \quad
# \mathbb 1[t \ge \tfrac12] \;\text{(step)}.$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.Coordinated))

# %% [markdown]
# Before anything trains, look at what it will do to $c = \pm 1$:

# %%
t = np.linspace(0, 0.999, 200)
made = {shape: made_of_one_pair(rules.Coordinated(shape=shape), t) for shape in ("linear", "cosine", "step")}
lambdas = {shape: negative_share(some) for shape, some in made.items()}
run.figure("shapes", plots.shapes(t, lambdas, made))

# %% [markdown]
# Early in training chosen responses pull three times as hard as rejected ones push; at the end it is the other way
# round. Half-way, linear and cosine are plain DPO for a moment. The step never is.
#
# ### hPPO: three readings
#
# hPPO lets PPO learn from some tokens only, with a threshold $\tau$ on the weight. No source says which. Three readings
# are possible, with $c = rA$:
#
# $$\begin{aligned}
# \text{keep above:} \quad & c' = c\;\mathbb 1\big[|c| \ge \tau\big] \\
# \text{keep negative above:} \quad & c' = c\;\mathbb 1\big[c > 0 \;\text{or}\; |c| \ge \tau\big] \\
# \text{drop above:} \quad & c' = c\;\mathbb 1\big[|c| \le \tau\big]
# \end{aligned}$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.Thresholded))

# %% [markdown]
# Six tokens of one response, $\tau = 0.5$:

# %% tags=["nbval-check-output"]
advantages = torch.tensor([[1.6, 0.3, -0.2, -0.8, 0.7, -1.9]])  # (1 response, 6 tokens), ratio 1
tokens = Weights.of_tokens(advantages, torch.ones(1, 6), progress=0.0)
left = {"c of PPO": tokens.c[0].tolist()}
for reading in ("keep_above", "keep_negative_above", "drop_above"):
    left[reading] = (rules.Thresholded(0.5, reading)(tokens)[0] + 0.0).tolist()
pd.DataFrame(left, range(1, 7)).T.map("{:.1f}".format)

# %% [markdown]
# The first keeps what matters most, of both signs. The second also keeps every positive token. The third drops what
# matters most.
#
# ### Adaptive: follow live G
#
# A schedule is fixed before training. This rule is not (the question is the paper's, the rule is ours). $G^+$ and $G^-$
# are the gradient alignments of positive and negative learning *now*, and $\gamma$ is the parameter `gain`:
#
# $$\lambda = \tfrac12 + \tfrac{\gamma}{2}\;\frac{G^- - G^+}{|G^-| + |G^+|}.$$

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.Adaptive))

# %% [markdown]
# With $\gamma > 0$ the part that pulls harder gets more weight, with $\gamma < 0$ the other one. Say that negative
# learning pulls three times as hard:

# %% tags=["nbval-check-output"]
for gain in (-0.5, 0.5):
    pair = made_of_one_pair(rules.Adaptive(gain=gain), [0.0], live=[(0.1, 0.3)])
    print(f"gain {gain:+.1f}: λ = {negative_share(pair)[0]:.3f}, c = ±1 becomes {pair[0].round(2)}")

# %% [markdown]
# ### One look at live G
#
# $G$ needs the final responses $D'$, and training has not reached them. A stand-in is needed. Ours is the **greedy**
# answers of the *current* policy to the prompts of the batch. (Not sampled ones: the mean gradient of what a policy samples
# is zero, and so would be every $G$.) Then, as in notebook 02,
#
# $$v = \nabla\,\mathrm{NLL}(\text{answers}), \qquad s_{i,t} = \nabla\log\pi(y_{i,t}\mid x_i, y_{i,<t})\cdot v, \qquad
# G^{\pm} = -\frac1n\sum_{c_{i,t} \gtrless 0} c_{i,t}\,s_{i,t}.$$
#
# Here is one look, on $n = 4$ pairs of the SFT model:

# %%
encoded = P.pairs.train_pairs(P.seeds[0]).encoded(P.base_model)[:4]
policy, tokenizer = P.base_model.fresh_policy(P.lora, seed=0), P.base_model.tokenizer()
batch = collate(encoded, tokenizer.pad_token_id, policy.device)  # 4 chosen rows above 4 rejected ones
c, _, _ = P.dpo.weigh(torch.zeros(8, device=policy.device), batch["completion_mask"][:, 1:])  # nothing learnt yet

greedy = respond(policy, tokenizer, [pair["prompt_ids"] for pair in encoded], P.max_new_tokens)
stand_in = collate_responses(greedy, tokenizer.pad_token_id, policy.device)
v = alignment.nll_gradient(policy, [stand_in], alignment.parameters_of(policy))  # one backward pass
s = alignment.token_alignment(policy, batch, v)  # one forward-mode pass: s of every token, (8, seq - 1)
parts = alignment.alignment(c, s, sign_components(c), n=4)
print(f"by hand:  G⁺ {parts['positive']:+.4f}   G⁻ {parts['negative']:+.4f}")

# %% [markdown]
# The library does the same in one call. Training calls it every `live_every` updates. A batch alone is mostly noise, so
# what the rule sees goes half-way from its old value to the new look.

# %%
live = Live(every=10, max_new_tokens=P.max_new_tokens, size=P.measurement.batch)
seen = live.look(policy, tokenizer, batch, c, units=4)
print("library:  G⁺ {:+.4f}   G⁻ {:+.4f}".format(*seen))
for gain in (-0.5, 0.5):
    (share,) = negative_share(made_of_one_pair(rules.Adaptive(gain=gain), [0.0], live=[seen]))
    print(f"gain {gain:+.1f}: λ = {share:.3f}")
policy = unwrap(policy)

# %% [markdown]
# ## GRPO and RLOO
#
# Both sample a *group* of $K$ responses to each prompt and need no value function. The advantage of a response is its
# score $R_j$ against the group's:
#
# $$A_j^\text{GRPO} = \frac{R_j - \operatorname{mean}(R)}{\operatorname{std}(R) + 10^{-4}}, \qquad
# A_j^\text{RLOO} = R_j - \frac{1}{K-1}\sum_{k \ne j} R_k.$$
#
# GRPO also divides by the length of the response. The score here can be verified: 1 if the response names the right tool
# and no wrong one, else 0. Take a group of four, one of them right. First by hand:

# %% tags=["nbval-check-output"]
R = torch.tensor([1.0, 0.0, 0.0, 0.0])
of_grpo = (R - R.mean()) / (R.std() + 1e-4)
of_rloo = R - (R.sum() - R) / 3
pd.DataFrame({"GRPO": of_grpo, "RLOO": of_rloo}, [f"response {j}" for j in range(1, 5)]).T.map("{:+.4f}".format)

# %% [markdown]
# Then with the methods that will train (responses of one token, all of them ended, no KL yet):

# %% tags=["nbval-check-output"]
one_token = torch.ones(4, 1)
group = Scored(R, torch.ones(4, dtype=torch.bool), 0 * one_token, 0 * one_token, one_token)
for method in (GRPO(group_size=4), RLOO(group_size=4)):
    A, _ = method.advantages(group)
    print(type(method).__name__, " ".join(f"{a:+.4f}" for a in A[:, 0]))

# %% [markdown]
# Only the right response is learnt positively. If all four score the same, every advantage is 0, and nothing is learnt.
#
# ## Equal budgets
#
# A contest is fair if everybody may spend the same. Here that means:
#
# - **Updates.** Plain and controlled methods make the same number. An adaptive run pays for its looks (each costs about
#   two updates) with fewer updates: `budget`.
# - **Tuning.** Every row may choose among as many values of *its own* parameter. The choice is made on validation
#   prompts; what is reported comes from other prompts.
# - **Start.** Plain methods choose first. A row with a rival starts from its rival's choice: cDPO has the $\beta$ that DPO
#   has chosen, so the schedule alone sets the two apart.
#
# Cost is counted in forward passes of one sequence; a backward pass counts two.

# %%
as_table(P.budgets(), {"training pairs": P.train_pairs})

# %% [markdown]
# ## The contest
#
# The first `sweep_seeds` seeds choose. They are reported too, on other prompts, together with the remaining seeds.

# %%
print("\n".join(P.few()) or "enough pairs")

# %%
which = P.report_prompts
prompts = P.prompts(which).messages()  # so many must be there, before anything trains
for stage in P.reward_stages():
    _ = stage.load()
parallel(P.phases(), P.hardware.workers)

# %%
tried = P.candidates()
merits = {who: P.merits(some) for who, some in tried.items()}  # against the SFT model, on validation prompts
as_table(P.choices(tried, merits), {"validation prompts": P.validation, "seeds": P.sweep_seeds})

# %%
chosen = P.chosen(tried)
judged = {who: P.judged(some, which) for who, some in chosen.items()}  # answers, and the judge's scores of them
measured = {who: P.measured(some) for who, some in chosen.items()}  # G along training
sft = P.judged_sft(which)
rows = P.compared(judged, sft)
on_prompts = {"prompts": len(prompts), "seeds": len(P.seeds)}  # what the numbers below rest on

# %% [markdown]
# ## Who answers better
#
# The outcome is that of notebook 03: $K$ answers a prompt at temperature 1, and the judge's own **label probability**,
#
# $$p = \frac{1}{K^2}\sum_{i,j}\sigma\!\left(\frac{u_i - u'_j}{T}\right),$$
#
# less one half. The judge is the oracle of the world (for files, the reward model). A row with a rival is compared with it seed
# by seed. Intervals are over prompts and seeds.

# %%
who_wins = ["score", "against SFT − ½", "against the rival − ½"]
as_table(rows | {"SFT": {"score": sft.score}}, on_prompts, who_wins)

# %%
label = (
    f"label probability against the rival − ½\nintervals that hold together with 95 % (comparisons: {len(P.rivals)})"
)
lines = {
    f"{who} / {rival}": (P.variants[who].family, rows[who]["against the rival − ½"]) for who, rival in P.rivals.items()
}
run.figure("forest", forest(lines, [label])) if lines else "no row has a rival"

# %%
print("intervals that leave out 0:", "; ".join(decided({who: line[1] for who, line in lines.items()})) or "none")

# %% [markdown]
# **Read it.** Right of 0 the controlled method wins, left of 0 its plain rival. A line that crosses 0 decides nothing. More
# comparisons make longer lines: all of them together are to hold with 95 % (Bonferroni).
#
# Did a row win by saying one thing everywhere? `KL` from the SFT model is in nats a response, `entropy` in nats a token.
# `unique` is the share of different answers, `distinct-2` that of different pairs of words, `length` is in tokens. In a
# world, `right answer` is the share of answers that do what is asked: here, that name the right tool and no wrong one.

# %%
of_sft = P.described(sft, sft)
variety = ["KL", "entropy", "unique", "distinct-2", "length", *(["right answer"] if P.utility else [])]
as_table(rows | {"SFT": of_sft}, on_prompts, variety)

# %% [markdown]
# ## What it costs: the frontier
#
# A policy can buy score with distance from the SFT model, or with diversity. So look at both.

# %%
places = {who: P.place(judged[who], tried[who], merits[who]) for who in P.variants}
run.figure("pareto", plots.pareto(places, (sft.score, sft.answers[0].entropy)))

# %% [markdown]
# **Read it.** Better is up and to the left in the first panel, up and to the right in the second. Grey joins what no other
# beats in both. Small dots are candidates that were not chosen (on the validation prompts). What scores far below the
# SFT model, its language broken, is a triangle on the lower edge if it was chosen, and else left out.
#
# ## A high threshold: reward hacking?
#
# The paper warns of a high $\tau$: less exploration, and so a loss of diversity, or answers that please the reward and nobody
# else. `its reward` is what a run is trained on, in deviations of the SFT model's answers. `score` is the judge's. If the first
# rises and the second does not, the reward is hacked.

# %%
hacked = P.by_threshold(tried)
columns = ["its reward", "score", "KL", "entropy", "unique", "distinct-2"]
as_table(hacked, {"validation prompts": P.validation, "seeds": P.sweep_seeds}, columns) if hacked else "no hPPO row"

# %% [markdown]
# **Read it.** In the default run the hacked row is PPO with the small KL penalty, and none with a high threshold: its reward is the
# highest, and its score the lowest.
#
# ## Schedules and the G they produce
#
# Above, $\lambda_t$ as it was in training. Below, $G$ of positive and negative learning without $\lambda$, and of the loss
# that is trained, with $\lambda$ in it:
#
# $$G^\text{trained} = 2(1-\lambda_t)\,G^+ + 2\lambda_t\,G^-.$$

# %%
shared_out = {who: row for who, row in P.variants.items() if row.rule != "thresholded"}  # else there is no lambda
courses = {who: course(chosen[who], measured[who]) for who in shared_out}
run.figure("schedules", plots.schedules({who: courses[who] for who in P.scheduled})) if P.scheduled else "no schedule"

# %% [markdown]
# **Read it.** Thin lines are seeds. Each lower panel has its own scale, and is measured with its own final responses.
# The adaptive run changes $\lambda$ at every look, and goes on with it until the next.
#
# ## The same lens on rewards that can be verified
#
# What does $G$ look like for methods that are rewarded for a correct answer, and how many answers are correct?

# %%
run.figure("verified", plots.parts({who: courses[who] for who in P.verified})) if P.verified else "no such row"

# %%
named = {who: rows[who] for who in P.verified} | {"SFT": of_sft}
as_table(named, on_prompts, ["right answer"]) if P.verified else None

# %% [markdown]
# **Read it.** An answer is right only if all of it is, every step and every tool. In the default run few are.
#
# ## Adaptive against static, at equal compute
#
# The adaptive run against the static schedule of the same method, on the same prompts and seeds.

# %%
won = P.adaptive_against_static(judged)
versus = {pair: win_change(some, corrected(len(won))) for pair, some in won.items()}
of_pairs = {pair: {"label probability − ½": interval} for pair, interval in versus.items()}
as_table(of_pairs, on_prompts) if versus else "no adaptive row"

# %% [markdown]
# **Read it.** An interval from −0.5 to 0.5 is all that can be: two seeds say nothing.
#
# ## What the policies say
#
# Sampled answers of the first seed to two of the reported prompts.

# %%
if P.show_texts:
    for i in range(2):
        print(prompts[i][-1]["content"])
        for who, some in {"SFT": sft, **judged}.items():
            print(f"   {who:<24} {some.answers[0].texts[i * P.outcome.samples]}")

# %% [markdown]
# ## AlpacaEval
#
# For models from the hub. The paper's protocol (its App. B.3, as a replication tells it) asks GPT-4 whom it prefers on the
# 805 prompts of AlpacaEval: greedy answers of up to 512 tokens, against those of the SFT model. With `alpaca_eval` set, the
# answers of the first seed are written to `alpaca_eval/` beside the results. The commands below, run there, judge
# them. They need an installation and an account of their own.

# %%
if asked:
    first = {who: some[0].training for who, some in chosen.items()}
    commands = alpaca.export(P.base_model, first, asked, run.staging / "alpaca_eval", P.measurement.batch)
    print("\n".join(commands))

# %% [markdown]
# ## Claims
#
# Each rule was written before its run; `claims/coordination.py` holds them, and the registration says what they can see. The
# intervals of a claim are corrected for its own comparisons. Only static schedules count, because adaptive coordination is not
# the paper's. The verdicts that count are those of `full`.

# %%
registration = registered("04_coordinated_objectives")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
verdicts = withheld(coordination_claims(P.contests(judged, sft)), len(prompts), "prompts")
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted(on_prompts))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": {who: row["against SFT − ½"] for who, row in rows.items()},
        "variants": rows,
        "chosen": {who: some[0].row.arguments for who, some in chosen.items()},
        "adaptive against static": versus,
        "thresholds": hacked,
        "registration": registration.sha256,
        "passes": {who: P.passes(some[0].training) for who, some in chosen.items()},
        "sft": {"score": sft.score, "entropy": sft.answers[0].entropy},
    },
    series={
        "validation": merits,
        "candidates": {who: {"score": x.score, "kl": x.kl, "entropy": x.diversity} for who, x in places.items()},
        "g": {who: some.g for who, some in courses.items()},
        "progress": {who: some.progress for who, some in courses.items()},
        "share": {who: courses[who].share for who in P.scheduled},
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Their solutions are in [solutions/04_coordinated_objectives_solutions](solutions/04_coordinated_objectives_solutions.ipynb).
#
# All sweeps must be of one size, so that budgets are equal. The default has two values a row.
#
# 1. **Backwards.** Give cDPO `"sweep": [{"start": 0.6, "end": 0.4}, {"start": 0.75, "end": 0.25}]`. Does the *order* of
#    positive and negative learning matter, or only that both are there?
# 2. **Which sign of gain?** Adaptive coordination with `gain` > 0 feeds what already pulls towards the current answers.
#    Give its row `"sweep": [{"gain": 0.5}, {"gain": 0.9}]`, then the same with negative signs. Which one keeps entropy?
# 3. **Drop the heaviest.** Give hPPO `"arguments": {"reading": "drop_above"}` and `"sweep": [{"tau": 1.5}, {"tau": 2.0}]`.
#    What happens to its score and its entropy?
# 4. **Another reward.** Give GRPO `"reward": "oracle"` in the place of `"correct"`. Does it still name the right tool?
# 5. **Other methods.** Add `"KTO": {"method": "kto", "against": "DPO", "sweep": [{"beta": 0.1}, {"beta": 0.3}]}` and
#    `"ORPO": {"method": "orpo", "against": "DPO", "sweep": [{"weight": 0.1}, {"weight": 1.0}]}`. (ORPO has no $\beta$, and
#    takes nothing over from DPO.) Where do they stand on the frontier?
# 6. **A schedule of your own.** Add a shape to the class `Coordinated` in `lib/preflab/rules.py`: its name to the type of
#    `shape`, and a function of $t$ to the table `along`. Restart the kernel once, since it has read the file already, and
#    draw your shape with the cell above before it trains.
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again. (After
# exercise 6 the rows of a changed rule train again, and no others.)
