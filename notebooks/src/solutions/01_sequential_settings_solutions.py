# %% [markdown]
# # 01 · Sequential settings: solutions
#
# Solutions of the exercises of [01_sequential_settings](../01_sequential_settings.ipynb). Everything is small here, so that it
# takes a minute: a smaller model, a third of the pairs, one seed. So read the numbers as sketches. Numbers that count
# need the sizes of 01, and several seeds.

# %%
import pandas as pd

from preflab.margins import STAGES
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start

NOTEBOOK = find_notebook("01_sequential_settings")
SMALL = {
    "base": {"hidden_size": 32, "layers": 2, "sft": {"steps": 240, "batch_size": 32}},  # the model of notebook 00
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "train_pairs": 320,
    "test_pairs": 60,
    "seeds": [0],
    "prompts": 1,
    "max_new_tokens": 8,
}


def with_values(**given):
    """The parameters of 01 with these values, and small sizes."""
    return resolve(NOTEBOOK, SMALL | given, "solutions")


def paths(P):
    """The mean margin of the objective that was trained first, after each stage: a row for each setting and order."""
    rows = {}
    for s in P.sequences():
        means = dict(zip(STAGES, s.first.mean((1, 2)).round(3), strict=True))
        rows[s.name] = means | {"change / gain": str(s.outcome.relative), "outcome": s.outcome.verdict}
    return pd.DataFrame(rows).T


conflict = with_values(settings={"conflict": ["world:conflict", "helpful", "harmless"]})
start(conflict)
paths(conflict)

# %% [markdown]
# This is the setting *conflict* of 01 in small. The exercises change one thing each.
#
# ## 1 · Another reference
#
# Train Stage 2 against the model of Stage 1:

# %%
against_stage1 = conflict.model_copy(update={"stage2_reference": "stage1"})
paths(against_stage1)

# %%
losses = {ref: P.loss(P.sequences()[0])[0] for ref, P in {"base": conflict, "stage1": against_stage1}.items()}
pd.DataFrame({f"reference: {ref}": loss[:3] for ref, loss in losses.items()}, ["step 1", "step 2", "step 3"]).round(4)

# %% [markdown]
# No outcome changes. Both changes are a little smaller, by less than their intervals are wide, so this run cannot tell them apart.
# The first loss does tell something. Against Stage 1 it is $\ln 2 = 0.6931$: the policy *is* the reference, so $\Delta=0$ for every
# pair. Against the base it is 0.83, above $\ln 2$. Stage 1 on *helpful* has moved the policy, and on pairs of *harmless* it has moved
# it the wrong way. The base is a fixed post, so Stage 2 must first undo this. Against Stage 1 it starts from zero.
#
# ## 2 · From conflict to agreement

# %%
made = with_values(
    settings={
        "against": ["world:made(-0.5, 0.85)", "first", "second"],
        "apart": ["world:made(0.0, 0.85)", "first", "second"],
        "along": ["world:made(0.5, 0.85)", "first", "second"],
    }
)
paths(made)

# %% [markdown]
# In both orders the change rises with the correlation, from about −0.7 over −0.4 to −0.1 and +0.3. At −0.5 and at 0 the order
# *second → first* is degraded: its whole interval lies below zero. At +0.5 both intervals cross zero. So in this small run forgetting
# ends somewhere above a correlation of 0, and it shows no transfer yet. A correlation of 0 does not mean that nothing
# is lost. Notebook 06 asks this with many worlds.
#
# ## 3 · Full fine-tuning

# %%
full = with_values(settings=conflict.settings, lora={"rank": 0}, pair_training={"learning_rate": 3e-4})
paths(full)

# %% [markdown]
# With all weights trained the changes are −0.88 and −0.92, with an adapter −0.97 and −1.02. The intervals lie on each other. So
# forgetting is no matter of the adapter here. Full fine-tuning learns a little less in Stage 1, since its learning rate is lower: compare
# shares of the gain, and not margins.
#
# ## 4 · The same objective twice

# %%
twice = with_values(settings={"twice": ["world:conflict", "helpful", "helpful"]})
paths(twice)

# %% [markdown]
# Nothing is forgotten. New pairs of the same objective add more than Stage 1 had taught: +2.6 of its gain, and the outcome is
# *transferred*. Stage 1 has seen 320 pairs only, so there is much left to learn. The change of a single pair still goes both ways:

# %%
(again,) = twice.sequences()
print(f"pairs whose margin falls in Stage 2: {(again.change < 0).mean():.0%}")

# %% [markdown]
# About a quarter falls. This is the noise of training: new pairs, another order of batches. A loss counts only if it is larger than
# this. So compare forgetting with such a row, and not with zero.
#
# ## 5 · Real human preferences
#
# This one needs data that are not part of the project. Get HH-RLHF, and give its folder:
#
# ```
# preflab run 01_sequential_settings_hh --profile files -p data=FOLDER
# ```
#
# We ran it: [its figures and numbers](../../figures/files/01_sequential_settings_hh) are committed. Look first at the relative accuracy
# after Stage 1. It is 0.55 for *helpful* and 0.56 for *harmless*: such a small model learns little of human preferences. So one order is
# *not learned*, and the other is *inconclusive*. A larger model and labels that are clearer show the conflict:
# [TruthfulQA with SmolLM2](../../figures/real/01_sequential_settings_truthfulqa).
