# %% [markdown]
# # 05 · Mechanism: solutions
#
# Solutions of the exercises of [05_mechanism](../05_mechanism.ipynb). The model is small here, and there is one seed. So read the
# numbers as sketches. The error of a cosine is over parts of the pairs. It says nothing about other seeds.

# %%
import pandas as pd

from preflab import adapters
from preflab.geometry import known_mean
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start

NOTEBOOK = find_notebook("05_mechanism")
SMALL = {
    "base": {"hidden_size": 32, "layers": 2, "sft": {"steps": 240, "batch_size": 32}},  # the model of notebook 00
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "settings": {"conflict": ["world:conflict", "helpful", "harmless"]},
    "seeds": [0],
    "full_learning_rate": None,
    "course": {"points": 5},
    "max_new_tokens": 4,
}


def with_values(**given):
    """The parameters of 05 with these values, and small sizes."""
    return resolve(NOTEBOOK, SMALL | given, "solutions")


def cosines(P):
    """Means over the points of Stage 2, a row for each setting and order."""
    rows = {}
    for name, (course,) in P.by_sequence().items():
        rows[name] = {
            "true gradients": float(known_mean(course.cosine())),
            "its error": float(known_mean(course.error())),
            "as they stand": float(known_mean(course.raw())),
            "single batches": float(known_mean(course.single())),
            "ceiling of two halves": float(known_mean(course.ceiling("first"))),
        }
    return pd.DataFrame(rows).T.round(2)


def fates(P):
    """What the weights did, and what happened to the first objective's held-out loss."""
    rows = {}
    for run, (course,) in zip(P.runs(), P.by_sequence().values(), strict=True):
        moves = P.moves(run)
        rows[run.sequence] = {
            "cos(ΔW₁, ΔW₂)": adapters.cosine(moves.stage1, moves.stage2),
            "added to the loss": course.lost,
            "foretold at Stage 1's end": course.foretold,
        }
    return pd.DataFrame(rows).T.round(3)


conflict = with_values()
start(conflict)
cosines(conflict)

# %%
fates(conflict)

# %% [markdown]
# This is the setting *conflict* of 05 in small. The exercises change one thing each.
#
# ## 1 · The same objective again

# %%
twice = with_values(settings={"twice": ["world:conflict", "helpful", "helpful"]})
cosines(twice)

# %%
fates(twice)

# %% [markdown]
# The two stages of *conflict* undo each other: cosines of $\Delta W$ of −0.62 and −0.75. With the same objective twice it is
# +0.44, and the loss of held-out pairs falls in Stage 2, by 0.10. The gradients as they stand have +0.37. The estimate for the
# true gradients is 1.56, which no cosine can be, and its error cannot be told: after Stage 1 little of this objective's gradient
# is more than noise (ceiling 0.18). So read its sign, and not its size.
#
# ## 2 · Noise on purpose

# %%
few = with_values(train_pairs=64)
cosines(few)

# %% [markdown]
# Single batches move towards zero, from −0.25 and −0.23 to −0.08 and −0.12, and the ceiling falls. So does one of the two cosines
# as they stand. A logger of training would see orthogonal gradients. The estimate for the true gradients stays far below zero. It
# gets wide: −1.2 with an error of 0.6, and −1.3 with an error that cannot be told. So noise looks like orthogonality, unless one
# takes it out.
#
# ## 3 · From conflict to agreement

# %%
worlds = {"against": -0.5, "apart": 0.0, "along": 0.5}
made = with_values(settings={name: [f"world:made({x}, 0.85)", "first", "second"] for name, x in worlds.items()})
pd.concat([cosines(made), fates(made)], axis=1)

# %% [markdown]
# In each order every cosine rises from *against* over *apart* to *along*, and so does that of $\Delta W$: from −0.47 and −0.53 to
# −0.15 and +0.02. But it is not the compatibility itself. At a compatibility of 0 the cosine of $\Delta W$ is −0.36 and −0.40.
# For the true gradients the errors are 0.4 to 0.8, so neighbours cannot be told apart.
#
# The loss follows in both orders: less is added the more the objectives agree. What is foretold at the end of Stage 1 does not:
# it has the wrong sign in five of the six rows. One gradient at one point is not enough for the whole way here.
#
# ## 4 · A shorter memory

# %%
longer = with_values(pair_training={"epochs": 6})
shares = {}
for epochs, P in {"3 epochs": conflict, "6 epochs": longer}.items():
    for name, (course,) in P.by_sequence().items():
        shares[f"{name}, {epochs}"] = {
            "length of ΔW₂": adapters.norm(P.moves(next(r for r in P.runs() if r.sequence == name)).stage2),
            "added to the loss": course.lost,
            "foretold": course.foretold,
            "share": course.foretold / course.lost,
        }
pd.DataFrame(shares).T.round(3)

# %% [markdown]
# The share falls: from 44 % to 3 %, and from 30 % to 12 %. Stage 2 goes nearly twice as far (2.8 for 1.6) and adds about three
# times the loss, and the gradient at its beginning foretells no more than before. So a gradient is a forecast for near places
# alone. Note that the parameter makes both stages longer: Stage 2 also begins at another place.
#
# ## 5 · Real preferences
#
# It needs a model and data that are not part of the project: `make model` gets SmolLM2, and FOLDER holds HH-RLHF and TruthfulQA.
#
# ```
# preflab run 05_mechanism --profile real -p data=FOLDER
# ```
#
# **We have not run it**, so there is no number to show. Look at three things. Is the ceiling of two halves high enough that a
# cosine near zero means something? Does the cosine without noise differ from that of single batches? And do forecasts along the
# path agree with what happened? If they do not, the instrument is wrong, and the rest says nothing. What two stages do to the
# margins of this model is in [the run of TruthfulQA](../../figures/real/01_sequential_settings_truthfulqa) for notebook 01.
