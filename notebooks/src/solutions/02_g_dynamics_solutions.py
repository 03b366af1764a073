# %% [markdown]
# # 02 · G dynamics: solutions
#
# Solutions of the exercises of [02_g_dynamics](../02_g_dynamics.ipynb). Everything is small here: the short answers of the world
# *conflict*, a smaller model, half of the pairs, two seeds. So read the numbers as sketches. Verdicts that count are those of the
# `full` profile.

# %%
import numpy as np
import pandas as pd

from preflab import alignment, measured
from preflab.claims.dynamics import Curves, dynamics_claims
from preflab.likelihood import collate, collate_responses
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start

NOTEBOOK = find_notebook("02_g_dynamics")
MEASUREMENT = {"checkpoints": 6, "probe": 64, "finals": 64}
SMALL = {
    "source": "world:conflict",
    "base": {"hidden_size": 32, "sft": {"steps": 240}},
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "train_pairs": 320,
    "test_pairs": 96,
    "max_new_tokens": 32,
    "measurement": MEASUREMENT,
}


def with_values(**given):
    """The parameters of 02 with these values, and small sizes."""
    return resolve(NOTEBOOK, SMALL | given, "solutions")


def along(P, method):
    """What was measured along the runs of a method, a seed each; they train first if they have not yet."""
    return [P.alignment(run.training).load() for run in P.by_method()[method]]


def mean_g(P, method, part):
    """G of a part, the mean over checkpoints, of each seed."""
    return ", ".join(f"{g:+.2f}" for g in measured.g_of(along(P, method), part).mean(1))


plain = with_values()
start(plain)
both = {method: along(plain, method) for method in ("dpo", "ppo")}
g = {method: measured.g_by_component(some) for method, some in both.items()}  # part: (seeds, checkpoints)

# %% [markdown]
# ## 1 · Is "near zero" a property of PPO?
#
# First $G$ of the whole loss along training, with greedy and with sampled $D'$, means over seeds:

# %%
sampled = with_values(measurement=MEASUREMENT | {"final_temperature": 1.0})
whole = {
    f"{method}, {name}": measured.g_of(along(P, method), "whole").mean(0)
    for method in ("dpo", "ppo")
    for name, P in {"greedy": plain, "sampled": sampled}.items()
}
pd.DataFrame(whole, [f"checkpoint {i}" for i in range(len(whole["dpo, greedy"]))]).round(2)

# %%
ends = {
    f"{method}, {name}": [x.nll[-1] for x in along(P, method)]
    for method in ("dpo", "ppo")
    for name, P in {"greedy": plain, "sampled": sampled}.items()
}
pd.DataFrame(ends, ["seed 0", "seed 1"]).T.rename_axis(columns="NLL of D' at the end").round(2)

# %% [markdown]
# Then the verdicts:


# %%
def verdicts(P):
    """Of every claim of 02."""
    curves = {}
    for method in ("dpo", "ppo"):
        runs = along(P, method)
        signs, units = measured.g_by_component(runs), measured.per_weight(runs)
        parts = {part: (signs if part in measured.SIGNS else units)[part] for part in measured.COMPONENTS}
        curves[method] = Curves(**parts, weight=measured.mean_weights(runs))
    return {claim.id: claim.verdict for claim in dynamics_claims(curves["dpo"], curves["ppo"])}


pd.DataFrame({"greedy": verdicts(plain), "sampled": verdicts(sampled)})

# %% [markdown]
# No verdict changes: with two seeds the intervals are too long for most of them. The curves do say something. With sampled $D'$
# every $G$ of DPO is much smaller, and at the end it is −0.06 beside 0.23. DPO has no samples of its own, and still its $G$ ends
# near zero. So a $G$ near zero can come from how $D'$ is drawn, and says nothing of PPO then.
#
# $v$ vanishes only at the end. Before it, $D'$ are samples of a *later* policy, and $G$ of PPO is far above zero there. Its last
# value has another sign with each $D'$: look at the noise (the grey bands of 02) before you read a sign off it.
#
# The second table says how likely $D'$ is at the end: a greedy answer costs about 4 nats, a sampled one 7 to 9.
#
# ## 2 · Sum or mean?

# %%
by_mean = with_values(measurement=MEASUREMENT | {"nll": "mean"})
parts = [(method, part) for method in ("dpo", "ppo") for part in measured.SIGNS]
nll = {f"NLL as a {name}": [mean_g(P, *at) for at in parts] for name, P in {"sum": plain, "mean": by_mean}.items()}
pd.DataFrame(nll, [f"{method}, {part}" for method, part in parts])

# %%
turned = {
    f"{method}, {part}": (measured.g_of(along(by_mean, method), part) * g[method][part] < 0).mean()
    for method, part in parts
}
pd.DataFrame({"share of measurements with another sign": turned}).round(2)

# %% [markdown]
# No sign changes here. $G$ of PPO is smaller by a factor of 15 to 19, because the tokens of an answer are now averaged. All
# answers of this world are short. A sign can change if long and short answers pull in opposite directions: with the sum the long
# ones decide, with the mean all count the same. So in your own data look at the lengths first.
#
# ## 3 · A better teacher, a worse teacher
#
# `label_flips` belongs to a reward model that is trained on pairs, so its kind is `model`. For comparison there is one without
# flips. From here on PPO is trained with the first seed alone.

# %%
rewards = {
    "implicit (02)": {},
    "oracle": {"kind": "oracle"},
    "model": {"kind": "model"},
    "model, 30 % flipped": {"kind": "model", "label_flips": 0.3},
}
taught = {name: with_values(reward=given, seeds=[0]) for name, given in rewards.items()}
pd.DataFrame(
    {name: [mean_g(P, "ppo", part) for part in measured.SIGNS] for name, P in taught.items()}, measured.SIGNS
).T


# %%
def gained(P):
    """Utility that the answers of PPO have gained, prompt by prompt."""
    (run,) = P.by_method()["ppo"]
    return str(P.gain(P.answers_stage(None).load(), P.answers_stage(run.training).load()))


pd.DataFrame({name: [gained(P)] for name, P in taught.items()}, ["gain in utility"]).T

# %% [markdown]
# A better teacher makes better answers: the oracle's gain is 0.80, that of the reward model 0.35. With 30 % of the labels flipped
# it is 0.30, and the two intervals overlap, so this run does not show that the flips did harm. The implicit reward even makes
# answers worse: PPO finds what is wrong with it.
#
# The roles do not follow the teacher. Positive and negative learning are above zero with all four. $G$ asks whether updates pull
# towards the place where the run *ends*. It does not ask whether this is a good place: $G$ is largest with the reward that makes
# answers worse. One seed is a sketch.
#
# ## 4 · A unit of weight

# %%
total = np.array([x.total_weight for x in both["ppo"]])  # (seeds, steps, parts): sum of |c| / n
thirds = ("bottom", "middle", "top")
unit = {part: g["ppo"][part] / total[:, :, measured.PARTS.index(part)] for part in thirds}
pd.DataFrame(
    {
        "G": {part: g["ppo"][part].mean() for part in thirds},
        "G for a unit of weight": {k: x.mean() for k, x in unit.items()},
    }
).round(3)

# %%
pd.DataFrame({part: x.mean(1) for part, x in unit.items()}, ["seed 0", "seed 1"]).T.round(3)

# %% [markdown]
# The order stays. The top third pulls hardest also for each unit of its weight: 3.9, 1.7 and 0.5, and in the same order with both
# seeds. So D6 is not only a matter of larger weights here: tokens with a large $\lvert A\rvert$ also lie where $D'$ is decided.
# Two seeds are too few for a verdict.
#
# ## 5 · Parts of your own
#
# Here on 64 training pairs at the SFT model, with the $D'$ of the first run of DPO:

# %%
run = plain.by_method()["dpo"][0]
policy, tokenizer = plain.base_model.fresh_policy(plain.lora, seed=0), plain.base_model.tokenizer()
final = collate_responses(plain.answers_stage(run.training).load().final, tokenizer.pad_token_id, policy.device)
rows = plain.pairs.train_pairs(0).encoded(plain.base_model)[:64]
batch = collate(rows, tokenizer.pad_token_id, policy.device)  # (128, seq)
v = alignment.nll_gradient(policy, [final], alignment.parameters_of(policy))
mask = batch["completion_mask"][:, 1:]
c = plain.dpo.weigh(mask.new_zeros(128, dtype=v["lm_head.weight"].dtype), mask).c  # the policy is the reference
pull = -c * alignment.token_alignment(policy, batch, v) / 64  # (128, seq - 1): what each token adds to G

# %%
words = np.array(tokenizer.convert_ids_to_tokens(batch["input_ids"][:, 1:].flatten())).reshape(mask.shape)
held = (c != 0).numpy()
is_first = (mask.cumsum(1) == 1).numpy() & held
before = np.roll(words, 2, axis=1)  # the word two places earlier: "use the wire"
is_tool = (before == "use") & held
refuses = held & (words == "sorry").any(1)[:, None]
masks = {
    "whole": held,
    "first token": is_first,
    "the rest": held & ~is_first,
    "tool's name": is_tool,
    "refusals": refuses,
}
pd.DataFrame(
    {what: {"G": pull.numpy()[m].sum(), "share of tokens": m.sum() / held.sum()} for what, m in masks.items()}
).T.round(3)

# %% [markdown]
# The first token has 7 % of the tokens and 27 % of $G$: it does count more than others, and it is not all. The tool's name has
# 5 % of the tokens and 8 % of $G$. Whether to refuse counts most: responses with *sorry* have a quarter of the tokens and two
# thirds of $G$. At first most of what pulls towards the end is about refusing.
#
# ## 6 · More inner epochs

# %%
longer = with_values(sample_training={"epochs": 4}, seeds=[0])
epochs = {name: measured.g_by_epoch(along(P, "ppo")) for name, P in {"02's": plain, "4 epochs": longer}.items()}
pd.DataFrame(
    {
        f"{name}, epoch {i}": {part: some[part][i - 1].mean() for part in some}
        for name, some in epochs.items()
        for i in range(1, len(some["whole"]) + 1)
    }
).T.round(2)

# %% [markdown]
# Compare epochs within a run: each run has a $D'$ of its own. With four epochs $G$ halves from the first to the last one, from 63
# to 30. Positive learning loses most. By then an older policy has drawn the samples, and the clip has taken away the tokens that
# have moved far already. So the last passes over the same samples pull less towards the end.
