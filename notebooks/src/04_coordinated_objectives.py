# %% [markdown]
# # 04 · Coordinated objectives: does it pay to steer the components?
#
# If positive and negative learning pull in different directions (notebook 02), and taking one away hurts (notebook 03), then perhaps
# *scheduling* them helps: section 4 and appendix E of
# [*What Is Preference Optimization Doing, How and Why?*](https://arxiv.org/abs/2512.00778), and the question it leaves open:
# could the weights follow the live $G$?
#
# **Claims tested** (directions only; the paper's win rates are not available to us):
#
# | | claim |
# |---|---|
# | D10 | cDPO beats DPO in win rate |
# | D11 | hPPO and cPPO differ from PPO by no more than about two points |
# | D12 | fine-grained control improves at least one method |
#
# cDPO is **coordinated** DPO: weight moves from positive to negative learning over training. Elsewhere the name means *conservative*
# DPO (label smoothing), which is a row of the `full` run. What is the paper's: the idea of each method. What is ours, because no source says it: the
# schedules, the thresholds and which of three readings of hPPO one takes, adaptive coordination, every baseline, the world, the judge, and the
# rules of the verdicts.
#
# **Equal budgets.** Every method, the plain ones too, gets as many updates (adaptive ones as much compute, in fewer) and as many values of *its
# own* parameter to choose from. What chooses is a validation split of prompts; what is reported comes from other prompts. Plain methods choose
# first, and what is compared with them starts from their choice: cDPO has the $\beta$ that DPO has chosen, so that the schedule alone sets it apart.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "04_coordinated_objectives"
device: str = "auto"  # auto, cpu, cuda or mps
dtype: str = "float32"  # float32, float64 or bfloat16
workers: int = 2  # processes that train or measure at the same time; 1 on a GPU

source: str = "world:conflict"  # paper D: UltraFeedback
objective: str = "helpful"
final_source: str | None = None  # of the held-out prompts that D' answers; None: those of `source`
final_objective: str | None = None
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1280  # DPO's pairs; PPO and the reward model use the same prompts and pairs
test_pairs: int = 256
max_new_tokens: int = 32
variants: dict = {  # name: method, rule, arguments of both; sweep: the values each may choose from; against: its rival, whose choice it starts from
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
    "PPO": {"method": "ppo", "sweep": [{"kl_coefficient": 0.05}, {"kl_coefficient": 0.02}]},
    "hPPO": {
        "method": "ppo",
        "rule": "thresholded",
        "arguments": {"reading": "keep_negative_above"},
        "against": "PPO",
        "sweep": [{"tau": 0.5}, {"tau": 1.0}],
    },
    "GRPO, correctness": {
        "method": "grpo",
        "reward": "correct",
        "arguments": {"group_size": 4},
        "sweep": [{"kl_coefficient": 0.05}, {"kl_coefficient": 0.02}],
    },
}
sweep_seeds: int = 1  # the first so many seeds choose among the candidates
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

ppo_iterations: int = 16
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

dpo_measure_every: int = 40  # updates between two measurements of G
ppo_measure_every: int = 8  # iterations
snapshots: str = "keep"  # or replay: train again instead of keeping weights; the numbers are the same
probe: int = 64  # training pairs (DPO) or fresh samples (PPO) that G is measured on
finals: int = 64  # held-out prompts whose responses by the final policy are D'
validation: int = 64  # held-out prompts that candidates are chosen on
report: int = 128  # held-out prompts that everything below is reported on
final_temperature: float = 0.0  # decoding of D', and of the answers that win rates compare: greedy
nll: str = "sum"  # over the tokens of a response, as the paper's formula has it; or mean
measure_batch: int = 64  # sequences a pass of the measurement
shown: int = 1  # pairs and samples kept token by token
alpaca_eval: str | None = None  # hub:tatsu-lab/alpaca_eval or files:PATH of its prompts, to answer them for its judge
show_texts: bool = True  # print prompts and responses; off for data that is not fit to print
# %%
from preflab.parameters import CoordinationSettings

P = CoordinationSettings.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import inspect
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from functools import partial

import numpy as np
import pandas as pd
import torch

from preflab import bases, dynamics, evaluation, figures, judging, measurement, rewards, rules, runs, selection, sources
from preflab.claims import corrected, win_change
from preflab.claims.coordination import Contest, coordination_claims
from preflab.figures import coordination as plots
from preflab.figures.ablations import forest
from preflab.weightings import Weights, group_advantages

runs.prepare()
figures.theme()
pd.options.display.max_colwidth = None
run = runs.Run(P)
plain = selection.plain_candidates(P)  # with every seed of the sweep
asked = sources.instructions(P.alpaca_eval, P.revision) if P.alpaca_eval else []
pd.Series(runs.versions() | {"device": runs.device_name(P.device), "seeds": P.seeds}, name="version").to_frame()

# %% [markdown]
# ## Coordination is a rule for c
#
# $c^+ \to 2(1 - \lambda_t)\,c^+$ and $c^- \to 2\lambda_t\,c^-$, so that $\lambda = ½$ is the plain method. The static schedule and the
# one that follows live $G$, whole:

# %% tags=["nbval-check-output"]
print(inspect.getsource(rules.shared))
print(inspect.getsource(rules.coordinated))
print(inspect.getsource(rules.adaptive))

# %% [markdown]
# Try them on one pair, $c = \pm 1$:

# %% tags=["nbval-check-output"]
c = torch.tensor([[1.0], [-1.0]])
for t in (0.0, 0.25, 0.5, 0.75):
    w = Weights(c, torch.ones(1), torch.ones(1, dtype=torch.bool), progress=t, live=(0.1, 0.3))
    made = {"linear": rules.coordinated(w), "cosine": rules.coordinated(w, shape="cosine")}
    made |= {"step": rules.coordinated(w, shape="step"), "adaptive": rules.adaptive(w, gain=0.5)}
    print(f"t = {t:.2f}  ", "   ".join(f"{k} {up:+.2f} {down:+.2f}" for k, ((up,), (down,)) in made.items()))

# %% [markdown]
# Live $G$ needs final responses, which training has not reached. The **proxy** (`preflab.live`): greedy responses of the *current* policy to the
# prompts of the batch. Not sampled ones: the mean gradient of what a policy samples is zero, and so would be every $G$. A look costs
# about two updates, so an adaptive run gets fewer of them (`budget`) and the same compute.
#
# ## GRPO and RLOO
#
# Both sample a *group* of responses to each prompt and need no value function; the advantage of a response is its score against the
# group's. The reward here is verifiable: 1 if the response names the right tool, else 0. Four responses, one of them right:

# %% tags=["nbval-check-output"]
scores = torch.tensor([1.0, 0.0, 0.0, 0.0])
for method in ("grpo", "rloo"):
    print(method, [round(a, 3) for a in group_advantages(scores, 4, method).tolist()])

# %% [markdown]
# ## Run
#
# First the plain methods' candidates train and answer the validation prompts, then those of what is compared with them; the best of each method
# trains with every seed, and its $G$ is measured. (The first `sweep_seeds` seeds choose and are reported too, on other prompts.)

# %%
base = bases.base_model(P)
which = selection.report_prompts(P)
prompts = dynamics.held_out_prompts(P, which)  # so many must be there, before anything else trains
for kind in sorted({v.reward or P.reward for v in P.variants.values()} | {P.reward}):
    dynamics.prepare_reward(P, kind)


def tasks(by_row, final):
    return [selection.Task(job, final) for job in dynamics.checked([job for some in by_row.values() for job in some])]


runs.parallel(
    partial(selection.work, P),
    {
        "plain methods tried": tasks(plain, final=False),
        "all methods tried": lambda: tasks(selection.candidates(P), final=False),
        "chosen ones trained and measured": lambda: tasks(selection.chosen(P, selection.candidates(P)), final=True),
    },
    P.workers,
    ready=partial(selection.is_done, P),
)
tried = selection.candidates(P)
jobs = selection.chosen(P, tried)
before = dynamics.load_answers(P, None, which)
answers = {name_: [dynamics.load_answers(P, job, which) for job in some] for name_, some in jobs.items()}
measured = {name_: [measurement.load_measured(P, job) for job in some] for name_, some in jobs.items()}

# %% [markdown]
# What each method chose, with what it took over from its rival. `passes` is the cost of training, in thousands of forward passes of one sequence (a
# backward pass counts two): a controlled method may cost no more than its plain one. GRPO and RLOO, without a value function, take about half.

# %%
merits = {name_: selection.merits(P, some) for name_, some in tried.items()}
pd.DataFrame(
    {
        name_: {
            "candidates": ", ".join(" ".join(f"{k} {v}" for k, v in own.items()) for own in row.sweep),
            "win rate on validation prompts": ", ".join(f"{m:.2f}" for m in merits[name_]),
            "chosen": " ".join(f"{k} {v}" for k, v in jobs[name_][0].variant.arguments.items()),
            "passes": round(dynamics.passes(P, jobs[name_][0]) / 1000),
        }
        for name_, row in P.variants.items()
    }
).T

# %% [markdown]
# ## Who wins
#
# The judge is the world's oracle (for files, the reward model). A win is a higher score on the same prompt, a tie counts half; against SFT, and
# against the rival with the same seed. Verdicts are of **sampled** answers: greedy ones hardly vary in so small a world (notebook 03). Intervals are
# over prompts and seeds; those of win rates against the rival, less one half, are corrected for the number of comparisons here. (Each claim below is
# corrected for its own, which are fewer.) With two seeds, as here, many of them say next to nothing; the `full` run has five.


# %%
def scored(some, greedy):
    return np.array([judging.judged(P, a, greedy, which) for a in some])


def described(some):
    right = [rewards.correct(prompts, a.sampled_texts) for a in some] if dynamics.objective_of(P) else None
    return judging.described(some) | ({"right tool": np.mean(right)} if right else {})


rivals = {name_: row.against for name_, row in P.variants.items() if row.against}
level = corrected(len(rivals))
score = {g: {name_: scored(some, g) for name_, some in answers.items()} for g in (True, False)}
score_before = {g: judging.judged(P, before, g, which) for g in (True, False)}
against_sft = {name_: judging.wins(score[False][name_], score_before[False]) for name_ in P.variants}
contests = {
    g: {name_: judging.wins(score[g][name_], score[g][rival]) for name_, rival in rivals.items()} for g in (True, False)
}
gains = {g: {name_: win_change(w, level) for name_, w in some.items()} for g, some in contests.items()}
rows = {
    name_: {
        "score": score[False][name_].mean(),
        "against SFT − ½": win_change(against_sft[name_]),
        "against the rival − ½": gains[False].get(name_),
        "the same, greedy": gains[True].get(name_),
        **described(some),
    }
    for name_, some in answers.items()
}
table = pd.DataFrame({**rows, "SFT": {"score": score_before[False].mean(), **described([before])}}).T
table.iloc[:, :4].map(lambda x: x if isinstance(x, evaluation.Interval) else round(x, 2) if pd.notna(x) else "")

# %%
table.iloc[:, 4:].astype(float).round(2)

# %%
family = {name_: jobs[name_][0].family for name_ in P.variants}
label = f"win rate against the rival − ½, intervals that hold together with 95 % ({len(rivals)} comparisons)"
lines = {f"{name_} / {rivals[name_]}": (family[name_], gains[True][name_], gains[False][name_]) for name_ in rivals}
run.figure("forest", forest(lines, label))

# %% [markdown]
# ## What it costs: the frontier
#
# Score against the distance from the SFT model, and against diversity; the star is the SFT model. A numbered disc stands beside its cross where
# there is no room on it. Small dots are the candidates that were not chosen (on the validation prompts). What scores far below the SFT model, its
# language broken, is a triangle on the lower edge (the table has its numbers) if chosen, and else left out; grey joins what no other beats in both.


# %%
def places_of(name_):
    """Mean over seeds: the chosen candidate on the reported prompts, the others on the validation prompts."""
    validation, n = selection.validation_prompts(P), P.sweep_seeds
    best = int(merits[name_].argmax())
    others = [tried[name_][i * n : (i + 1) * n] for i in range(len(merits[name_])) if i != best]
    found = [(np.mean(score[False][name_]), answers[name_])]
    for some in others:
        theirs = [dynamics.load_answers(P, job, validation) for job in some]
        found.append((np.mean([judging.judged(P, a, False, validation) for a in theirs]), theirs))
    numbers = [(s, np.mean([a.kl for a in some]), np.mean([a.entropy for a in some])) for s, some in found]
    return plots.Place(family[name_], *np.array(numbers).T)


places = {name_: places_of(name_) for name_ in P.variants}
run.figure("pareto", plots.pareto(places, (score_before[False].mean(), before.entropy)))

# %% [markdown]
# ## Schedules and the G they produce
#
# Above, $\lambda$: the share of the weight that goes to negative learning, per seed. Below, $G$ of the whole loss's two parts, and of the loss that
# is trained (with $\lambda$ in it).


# %%
def share_of(job):
    """lambda after each update, read off what the rule makes of c = +-1."""
    history = dynamics.load_history(P, job)
    c, unit = torch.tensor([[1.0], [-1.0]]), torch.ones(1)
    made = [
        job.rule(Weights(c, unit, unit.bool(), progress=i / len(history), live=log["live"])).abs()
        for i, log in enumerate(history)
    ]
    return np.array([float(m[1, 0] / m.sum()) for m in made])


def course_of(name_):
    steps = measured[name_][0].steps
    g = {
        part: np.array([x.g[:, measurement.PARTS.index(part)] for x in measured[name_]]) for part in plots.PART_COLOURS
    }
    share = np.array([share_of(job) for job in jobs[name_]])
    return plots.Course(steps / steps[-1], g, np.arange(share.shape[1]) / share.shape[1], share)


scheduled = [name_ for name_, row in P.variants.items() if row.rule in ("plain", "coordinated", "adaptive")]
scheduled = [
    name_ for name_ in scheduled if P.variants[name_].method in ("dpo", "ppo") and not P.variants[name_].reward
]
courses = {name_: course_of(name_) for name_ in P.variants if P.variants[name_].rule != "thresholded"}
run.figure("schedules", plots.schedules({name_: courses[name_] for name_ in scheduled})) if scheduled else None

# %% [markdown]
# ## The same lens on rewards that can be verified
#
# $G$ of methods that are rewarded for a correct answer, and the share of sampled answers that name the right tool and no wrong one.

# %%
verified = [name_ for name_, row in P.variants.items() if row.reward == "correct"]
run.figure("verified", plots.parts({name_: courses[name_] for name_ in verified})) if verified else None

# %%
table.loc[[*verified, "SFT"], ["right tool"]].astype(float).round(2) if verified else None

# %% [markdown]
# ## Adaptive against static, at equal compute
#
# The adaptive run against the static schedule of the same method, sampled answers, same prompts and seeds.

# %%
versus = {}
for name_, row in P.variants.items():
    if row.rule == "adaptive":
        for static in (n for n, r in P.variants.items() if r.rule == "coordinated" and r.method == row.method):
            versus[f"{name_} / {static}"] = judging.wins(score[False][name_], score[False][static])
level_versus = corrected(len(versus))
versus = {pair: win_change(w, level_versus) for pair, w in versus.items()}
pd.Series({pair: str(interval) for pair, interval in versus.items()}, name="win rate − ½").to_frame()

# %%
if P.show_texts:
    for i in range(2):
        print(prompts[i][-1]["content"])
        for name_, some in {"SFT": [before], **answers}.items():
            print(f"   {name_:<24} {some[0].sampled_texts[i]}")

# %% [markdown]
# ## AlpacaEval
#
# For models from the hub: the paper's protocol (its App. B.3, as a replication tells it) asks GPT-4 whom it prefers on AlpacaEval's 805 prompts, greedy answers
# of up to 512 tokens, against the SFT model's. With `alpaca_eval` set, the answers of the first seed are written in AlpacaEval's format to `alpaca_eval/` beside the
# results; the commands below, run there, judge them (they need their own installation and account).

# %%
if asked:
    first = {name_: some[0] for name_, some in jobs.items()}
    print("\n".join(judging.export_for_alpaca_eval(P, first, asked, run.staging / "alpaca_eval")))

# %% [markdown]
# ## Claims
#
# Each rule was written before its run; `claims/coordination.py` holds them. Intervals are corrected for each claim's own comparisons. Static schedules only: adaptive coordination is not the paper's. The verdicts
# that count are those of `full`.


# %%
def kind_of(row):
    """The paper's name of a controlled method; None for everything else."""
    of_rule = {"coordinated": {"dpo": "cDPO", "ppo": "cPPO"}, "thresholded": {"ppo": "hPPO"}}
    return of_rule.get(row.rule, {}).get(row.method)


controlled = {
    name_: Contest(kind_of(row), contests[False][name_], against_sft[name_], against_sft[row.against])
    for name_, row in P.variants.items()
    if row.against and kind_of(row)
}
verdicts = coordination_claims(controlled)
pd.DataFrame(verdicts).set_index("id")[["statement", "statistic", "value", "interval", "verdict"]]

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": {name_: row["against SFT − ½"] for name_, row in rows.items()},
        "variants": rows,
        "chosen": {name_: some[0].variant.arguments for name_, some in jobs.items()},
        "adaptive against static": versus,
        "passes": {name_: dynamics.passes(P, some[0]) for name_, some in jobs.items()},
        "sft": {"score": score_before[False].mean(), "entropy": before.entropy},
    },
    series={
        "validation": merits,
        "candidates": {name_: {"score": x.score, "kl": x.kl, "entropy": x.diversity} for name_, x in places.items()},
        "g": {name_: course.g for name_, course in courses.items()},
        "progress": {name_: course.progress for name_, course in courses.items()},
        "share": {name_: courses[name_].share for name_ in scheduled},
    },
    data={f"seed {seed}": dynamics.pairs_of(P, seed).report.as_dict() | {"source": P.source} for seed in P.seeds},
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. Run cDPO backwards: `{"start": 0.75, "end": 0.25}`. Is the *order* of positive and negative learning what matters, or that both are there?
# 2. Adaptive coordination with `gain` > 0 feeds what already pulls towards the current answers, with `gain` < 0 what pulls away. Which one keeps
#    entropy? Why?
# 3. Set hPPO's `reading` to `"drop_above"` and its sweep to `[{"tau": 1.5}, {"tau": 2.0}]`: the heaviest tokens go. What becomes of $G$, of diversity?
# 4. Reward GRPO with the `"oracle"` instead: `"reward": "oracle"`. Does it still name the right tool? What do its answers do for their score?
# 5. Give cDPO a sweep of five values, and every other row one of its own five times. How much of a gain can a larger sweep alone make?
#
# After a change of parameters restart the kernel and run all cells; what is trained already is not trained again.
