# %% [markdown]
# # 07 · Every objective after every other one
#
# Notebook 06 makes worlds to order, so it knows how two objectives relate. Nobody knows that of real preferences. What can be
# measured *before* training, and does it say what a second stage will do? Bhandari et al.,
# [*Beyond Uniform Forgetting*](https://arxiv.org/abs/2606.19744), look at four settings. Here several objectives stand side by
# side, and **each is trained after each other one**. That makes a map with a row and a column for each.
#
# The default takes the objectives of three worlds, which one small model speaks. The profiles `real` and `gpu` take human
# preferences and a pretrained model: nobody made those objectives.
#
# | | claim | asked as |
# |---|---|---|
# | S1 | there is no single pattern of forgetting | outcomes over own objectives, beyond errors |
# | S2 | what happens depends on the relation | Stage 2's change against the cosine of gradients at the base |
# | S3 | what happens depends on the order | last less first, on the same pairs |
#
# **What is the paper's:** two stages, both orders, LoRA, $\beta = 0.3$. **What is ours:** the objectives, every measure of their
# relation, and all rules.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "07_objective_map"
objectives: dict = {  # what a figure calls it: [source, objective]
    "helpful": ["world:conflict", "helpful"],
    "harmless": ["world:conflict", "harmless"],
    "helpfulness": ["world:attributes", "helpfulness"],
    "verbosity": ["world:attributes", "verbosity"],
    "safer": ["world:safety", "safer"],
    "better": ["world:safety", "better"],
}
parts: int = 8  # that an objective's pairs are cut in, to take the noise out of a cosine
batch: int = 64  # pairs a pass of its gradient
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 1040  # per objective and seed
test_pairs: int = 200  # per objective, the same for every seed; prompts never trained on
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 8  # of the one answer that every evaluation gives
seeds: list = [0]  # of training pairs, adapter and batch order
show_texts: bool = True  # part of every notebook; this one prints no texts
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, for example {"model": "models/smollm2", "context": 512}
dpo: dict = {}  # {"beta": 0.3}, paper S
pair_training: dict = {}  # learning rate, batch size, epochs, ...
lora: dict = {}  # {"rank": 8, "alpha": 16}
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.objective_map import ObjectiveMap

P = ObjectiveMap.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd

from preflab import geometry
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.objective_map import better, foretold, learned, map_claims, table_of_successions
from preflab.claims.registration import registered
from preflab.figures import objective_map as plots
from preflab.judging import counted
from preflab.running.parallel import parallel
from preflab.running.run import start

run = start(P)
rng = np.random.default_rng(0)  # of names that are drawn
run.overview()

# %% [markdown]
# ## What is measured of two objectives
#
# Let $m(\cdot)$ be the mean policy margin of an objective's held-out pairs after a run (notebook 01). The own stage is $X$, the
# other one's $Y$. All shares are of the own gain, $m(X) - m(\varnothing)$:
#
# $$\text{share} = \frac{m(XY) - m(X)}{\text{gain}}, \qquad
# \text{order} = \frac{m(YX) - m(XY)}{\text{gain}}, \qquad
# \text{transfer} = \frac{m(Y) - m(\varnothing)}{\text{gain}}.$$
#
# Three measures say beforehand how two objectives relate:
#
# - **agreement**: where both label the same pairs of replies, the share that they label alike (in a world the oracle tells it);
# - **cosine**: that of both losses' gradients at the base, of a fresh adapter's weights. One pass over the pairs of each objective;
# - **transfer**: one stage on each objective, which costs about as much.
#
# ## A cosine without its noise
#
# Gradients of a few hundred pairs are mostly noise, and noise has no direction in common. So a raw cosine is small whatever the
# objectives are. Cut the pairs of each objective in parts. Part $i$ has the gradient $a_i = \mu_a + \text{noise}$. A prompt is in
# one part, the same for every objective, so two parts $i \ne j$ have independent noise: $\langle a_i, b_j\rangle$ is right on average.
# The cosine of the means is
#
# $$\frac{U(a, b)}{\sqrt{U(a, a)\,U(b, b)}}, \qquad U(a, b) = \text{mean of } \langle a_i, b_j\rangle \text{ over } i \ne j.$$
#
# Try it on two directions with the cosine 0.5, under noise that is ten times as long:

# %% tags=["nbval-check-output"]
drawn, parts_, size = np.random.default_rng(1), 64, 100
mu = np.eye(2, size)
mu[1] = 0.5 * mu[0] + np.sqrt(0.75) * mu[1]
vectors = np.concatenate([m + drawn.normal(size=(parts_, size)) for m in mu])  # noise of length 10 in each part
at = geometry.slices(("one", "other"), parts_)
products = vectors @ vectors.T
print(f"raw {geometry.raw_cosine(products, at['one'], at['other']):.2f}")
print(f"without noise {geometry.disattenuated(products, at['one'], at['other']):.2f}")

# %% [markdown]
# ## Run
#
# The base, each objective alone, and every one after every other.

# %%
print(counted({"objectives": len(P.objectives), "ordered pairs": len(P.objectives) * (len(P.objectives) - 1)}))
parallel(P.phases(), P.hardware.workers)

# %%
successions = P.successions()
taught = learned(successions)
rows = table_of_successions(successions)  # of objectives that their own stage teaches
on = {"objectives": len(taught), "held-out pairs": P.test_pairs, "seeds": len(P.seeds)}
print("learnt:", ", ".join(taught) or "none")

# %% [markdown]
# ## What is learnt at all?

# %%
gains = {s.own: s.outcome.gain for s in successions}
run.figure("gains", plots.gains(gains, taught))

# %%
pd.Series(P.ceilings(), name="cosine of two halves of its pairs").to_frame().round(2)

# %% [markdown]
# **Read it.** A hollow mark is an objective that its own stage does not teach: too few of its held-out pairs are ordered, or the
# gain is not clearly above zero. It takes no part in what follows. The table says how much of an objective's gradient is more than
# noise: two halves of its pairs would have the cosine 1 without any.
#
# ## The map

# %%
columns = {
    "Stage 2: share of the gain": ("share", 1.5),
    "transfer": ("transfer", 1.5),
    "cosine at the base": ("cosine", 1.0),
}
run.figure("map", plots.matrices(rows, columns)) if len(rows) else "nothing was learnt"

# %% [markdown]
# **Read it.** A row is an objective, a column what came after it (left) or what was trained instead (middle). Red is a loss. The
# cosine is the same in both directions. What is asymmetric on the left cannot come from it. Objectives with a high cosine stand
# side by side.

# %%
errors = list(P.cosine_errors().values())  # by a jackknife over the parts
print(f"standard error of a cosine: median {np.median(errors):.2f}, largest {np.max(errors):.2f}")

# %% [markdown]
# ## Which measure knows it before?

# %%
measures = {"agreement of labels": "agreement", "cosine at the base": "cosine", "transfer": "transfer"}
known = foretold(rows, measures, rng, draws=1000)
correlations = known["correlation with the share"].to_dict()
run.figure("forecasts", plots.forecasts(rows, measures, correlations)) if len(rows) else "nothing was learnt"

# %%
known.astype(str).rename_axis(columns=counted(on))

# %%
gap = better(rows, "transfer", "cosine")
print("correlation of transfer less that of the cosine:", gap)

# %% [markdown]
# **Read it.** A mark is an ordered pair. On the dotted line a model ends as if its first stage had never been:
# $m(XY) = m(Y)$, so share = transfer − 1. What lies above it is what the first stage leaves behind.
# Below it the first stage made things worse than none. Transfer and share are divided by the same gain and measured on the same
# pairs, which helps transfer.
#
# Objectives are in many pairs, so pairs are not independent witnesses. The intervals are
# therefore jackknives over objectives, each left out once. `as large by renaming` gives the objectives of a measure each other's names
# and asks how often its correlation is as large: the null of a map.
#
# ## The order

# %%
run.figure("orders", plots.orders(rows)) if len(rows) else "nothing was learnt"

# %% [markdown]
# **Read it.** How much more an objective ends with if it comes last. A grey mark is one other objective.
#
# ## Claims
#
# Each rule was written before its run (`claims/objective_map.py`).

# %%
registration = registered("07_objective_map")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
verdicts = withheld(map_claims(rows), P.test_pairs, "held-out pairs")  # too few: no verdict
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted(on))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "gains": gains,
        "ceilings": P.ceilings(),
        "standard error of a cosine": {"median": np.median(errors), "largest": np.max(errors)},
        "forecasts": {title: row.to_dict() for title, row in known.iterrows()},
        "transfer beyond cosine": gap,
        "registration": registration.sha256,
    },
    series={"successions": rows.to_dict("list")},
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. **A fourth world.** Add `"instructions": ["world:compatible", "instruction_following"]` to `objectives`. Where in the map does it
#    belong, and did the cosine say so?
# 2. **More noise.** Set `train_pairs: int = 208`. Which of the three measures suffers most?
# 3. **Another start.** Set `seeds: list = [0, 1]`. Which cells of the map change their colour?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
