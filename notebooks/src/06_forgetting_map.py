# %% [markdown]
# # 06 · A map of forgetting
#
# Notebook 01 trains DPO on one objective and then on another, in four settings. Two referees' questions stay open. Do four
# settings show how the outcome depends on the *relation* of the objectives? And is it the *sequence* that makes a model forget,
# or the adapter, the reference, the method? Bhandari et al.,
# [*Beyond Uniform Forgetting*](https://arxiv.org/abs/2606.19744), vary the settings by taking other data sets. So relation,
# strength of the labels and topic change together.
#
# Here worlds are **drawn at random**, with a wanted compatibility and wanted strengths. One of them changes while the others
# stay. In every world the *same* held-out pairs are scored after every order of training, so order is a contrast within pairs.
#
# **Claims tested.** Those of notebook 01, on a ground that can decide them. Their verdicts are those of this notebook.
#
# | | claim | asked as |
# |---|---|---|
# | S1 | there is no single pattern of forgetting | outcomes over worlds, beyond errors |
# | S2 | what happens depends on the relation | slope over compatibility |
# | S3 | what happens depends on the order | last less first, on the same pairs |
# | S4 | aggregates hide single pairs | what proportional forgetting leaves |
# | S5 | pairs of high confidence may degrade or improve | the top quartile in the most opposed and the most alike worlds |
# | S6 | a strong signal survives | slope over strength at fixed compatibility |
#
# **What is the paper's:** two stages, both orders, LoRA, $\beta = 0.3$. **What is ours:** random worlds, the grid, the mixed
# model, the controls, the forecasts, and all rules.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "06_forgetting_map"
compatibilities: list = [-0.8, 0.0, 0.8]  # of the two utilities of a world
strengths: list = [0.75, 0.95]  # accuracy of the labels; every pair of them is a cell
draws: list = [0]  # each draws a world for every cell
control_compatibilities: list = [-0.8]  # of the worlds that the controls are run in
control_seeds: list = [0]  # seeds of the controls, which have few worlds
full_learning_rate: float | None = 5e-4  # of the control that trains all weights; None: there is none
early: float = 0.1  # the share of Stage 2 after which its end is foretold
data: str = ""  # part of every notebook; worlds need no folder
revision: str | None = None  # likewise
train_pairs: int = 288  # per objective and seed
test_pairs: int = 128  # per objective; scored after every order
pairs_per_prompt: int | None = None  # part of every notebook; worlds have one pair a prompt
max_new_tokens: int = 8  # of the one answer that every evaluation gives
seeds: list = [0]  # of training pairs, adapter and batch order; S4 and S5 need two
show_texts: bool = True  # part of every notebook; this one prints no texts
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, that of notebook 02
dpo: dict = {}  # {"beta": 0.3}, paper S
pair_training: dict = {}  # learning rate, batch size, epochs, ...
lora: dict = {}  # {"rank": 8, "alpha": 16}
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.forgetting import Forgetting

P = Forgetting.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd

from preflab import mixed
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.forgetting import fitted, forgetting_claims, model_of, table_of_fates, turning_point
from preflab.claims.registration import registered
from preflab.data import worlds
from preflab.experiments.forgetting import CONTROLS, foretold, orders
from preflab.figures import forgetting as plots
from preflab.judging import counted
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.statistics import seed_interval

run = start(P)
rng = np.random.default_rng(0)  # of intervals that are drawn
run.overview()

# %% [markdown]
# ## Worlds with a wanted relation
#
# A random world has two objectives. `first` gets random weights on four attributes of an answer. `second` is turned away from it
# by the angle that gives the wanted correlation of utilities. The temperature of the labels gives the wanted strength.

# %% tags=["nbval-check-output"]
made = worlds.get_world("random(seed=0,compatibility=-0.8,strength=0.95,strength2=0.75)")
for objective in made.objectives:
    print(f"{objective.name:<7} { ({k: round(w, 2) for k, w in objective.weights.items()}) }")
print({key: round(value, 2) for key, value in made.compatibility().items()})

# %% [markdown]
# The same seed with another compatibility has the same `first`, so one thing changes. In the map every world has a seed of its
# own: worlds that share an objective share its chance, and would be fewer witnesses than they seem.

# %% tags=["nbval-check-output"]
other = worlds.get_world("random(seed=0,compatibility=0.8,strength=0.95,strength2=0.75)")
print("same first:", other.objective("first").weights == made.objective("first").weights)

# %% [markdown]
# ## What is measured of an objective
#
# Five runs in every world: each objective alone, both orders, and both at once with as many updates. Let $m(\cdot)$ be the mean
# policy margin of an objective's held-out pairs after a run (notebook 01). With its own stage $X$ and the other one's $Y$:
#
# $$\text{gain} = m(X) - m(\varnothing), \qquad
# \text{share} = \frac{m(XY) - m(X)}{\text{gain}}, \qquad
# \text{order} = \frac{m(YX) - m(XY)}{\text{gain}}, \qquad
# \text{transfer} = \frac{m(Y) - m(\varnothing)}{\text{gain}}.$$
#
# A share of −1 says that Stage 2 took what Stage 1 had gained. The order contrast is how much an objective has from coming last.
# Try it on made-up means:

# %% tags=["nbval-check-output"]
m = {"base": 0.1, "X": 0.5, "XY": 0.2, "YX": 0.4, "Y": -0.1}
gain = m["X"] - m["base"]
print(f"gain {gain:.2f}, share {(m['XY'] - m['X']) / gain:+.2f}, order {(m['YX'] - m['XY']) / gain:+.2f}")

# %% [markdown]
# ## A model for many worlds
#
# Both objectives of a world share its chance, so they are not two witnesses. A **mixed model** gives each world $w$ an effect $b_w$
# of its own. With compatibility $\rho$ and the centred strengths $s$ (own) and $s'$ (the other's):
#
# $$\text{share}_{w,o} = \beta_0 + \beta_1\rho_w + \beta_2 s'_{w,o} + \beta_3\,\rho_w s'_{w,o} + \beta_4 s_{w,o} + b_w + \varepsilon_{w,o}.$$
#
# Forgetting turns into transfer where the fitted mean crosses zero, at $\rho^* = -\beta_0/\beta_1$. Try it on made-up rows, with
# $\beta_0 = -0.3$, $\beta_1 = 0.6$ and worlds that differ by 0.2:

# %% tags=["nbval-check-output"]
made_up = np.random.default_rng(3)
rho, b = np.repeat(np.linspace(-0.8, 0.8, 20), 2), np.repeat(0.2 * made_up.normal(size=20), 2)
rows = pd.DataFrame({"rho": rho, "world": np.repeat(range(20), 2)})
rows["share"] = -0.3 + 0.6 * rho + b + 0.05 * made_up.normal(size=40)
found = mixed.fit(rows, "share ~ rho", "world")
print("slope   ", found.interval("rho"))
print("crossing", found.crossing("rho"))

# %% [markdown]
# ## Run
#
# All runs of all worlds. What a control shares with the map is trained once.

# %%
print(counted({"worlds": len(P.worlds()), "seeds": len(P.seeds)}), end="; ")
print(counted({"control worlds": len(P.control_worlds()), "seeds": len(P.control_seeds)}))
parallel(P.phases(), P.hardware.workers)

# %%
fates = P.fates()  # of both objectives of every world
rows = table_of_fates(fates)  # those that Stage 1 has taught something
on = {"worlds": len(P.worlds()), "held-out pairs": P.test_pairs, "seeds": len(P.seeds)}
print(f"{len(rows)} of {len(fates)} objectives were learnt by their own stage")

# %% [markdown]
# ## The map

# %%
columns = {"own, then other: change": "share", "last less first": "order", "both at once: change": "both"}
run.figure("map", plots.maps(rows, columns)) if len(rows) else "nothing was learnt"

# %% [markdown]
# **Read it.** Every cell is a mean over worlds and objectives, as a share of what the objective gains alone. Left: what Stage 2
# did. Middle: what an objective has from coming last. Right: training on both at once, compared with training alone. Red is a
# loss. From left to right the objectives agree more and more; rows differ in how clean the labels are.
#
# ## Where does forgetting turn?

# %%
model = model_of(rows)  # None for fewer than nine worlds
effects = {term: str(model.interval(term)) for term in model.effects.index} if model else {}
pd.Series(effects, name="fixed effects", dtype=str).to_frame().rename_axis(columns=counted(on))

# %%
x = np.linspace(min(P.compatibilities), max(P.compatibilities), 50)
turns = turning_point(model)
run.figure("slopes", plots.slopes(rows, fitted(model, rows, x), x, turns))

# %% [markdown]
# **Read it.** A dot is an objective of a world, a line the fitted mean with its band. Where a line is below zero, Stage 2 costs
# the first objective something; where it is above, it helps. The green band holds the point where the line of mean strengths
# crosses zero. `compatibility:other_c` asks whether the relation counts more if the other's labels are clean.
#
# ## Is it the sequence?
#
# A referee may say: it is the adapter, or the reference, or DPO. So Stage 2 is changed in one thing at a time, in worlds with
# clean labels.

# %%
pd.Series({name: str(control) for name, control in CONTROLS.items()}, name="what differs from plain Stage 2").to_frame()

# %%
kept = {setting.name: P.kept(setting) for setting in P.control_worlds()}
panels = {world: {name: (k.first, k.second) for name, k in found.items()} for world, found in kept.items()}
run.figure("controls", plots.kept(panels)) if panels else "no controls here"

# %% [markdown]
# **Read it.** Left: what is kept of the first objective, 1 being all that it gained. Right: what the second one learns. The dotted
# lines are plain Stage 2. Beyond ±1 the axes are logarithmic: methods with another scale of margins, such as SimPO, move them
# further. A control that keeps more *and* teaches as much has lost nothing. One that keeps more and teaches less
# has only moved less. `labels by a coin` and `the first objective again` show what training does without a second preference.
# If the first objective again adds much, then its Stage 1 was not over.
#
# The same as contrasts: each control less plain Stage 2, on the same held-out pairs and seeds.

# %%
beyond = {
    (w, name): (str(k.first_beyond), str(k.second_beyond)) for w, found in kept.items() for name, k in found.items()
}
pd.DataFrame(beyond, index=["first: kept", "second: learnt"]).T.rename_axis(
    columns=counted({"less plain Stage 2, seeds": len(P.control_seeds)})
)

# %% [markdown]
# ## What can be foretold?
#
# Four cheap measures of what Stage 2 will do to an objective:
#
# - the **compatibility** of the utilities, which only a world knows;
# - the **transfer**: what a stage on the other objective alone does to the own margins;
# - the **early change**: what the first part of Stage 2 does to the own margins, of all pairs;
# - the same of the **top quartile**, the pairs that Stage 1 was surest of.

# %%
measures = {
    "compatibility": "compatibility",
    "transfer": "transfer",
    f"after {P.early:.0%} of Stage 2": "early",
    f"after {P.early:.0%}, top quartile": "early_top",
}
run.figure("forecasts", plots.forecasts(rows, measures)) if len(rows) else "nothing was learnt"

# %%
warned = foretold(rows, measures, rng, draws=1000)
warned.astype(str).rename_axis(columns=counted(on))

# %% [markdown]
# **Read it.** In the figure red worlds have opposed objectives, and blue ones objectives that agree. The table has the Spearman
# correlation over objectives and worlds, with an interval of a bootstrap over worlds. A measure that needs no Stage 2, and orders the
# outcomes as well as one that has seen a part of it, is the one to use.
#
# ## Which order?
#
# Transfer is known before Stage 2 begins. A rule that uses it: **last comes the objective whose own stage harms the other one
# least**. The choice is made on 64 held-out pairs of each objective, and judged on the others.

# %%
chosen = orders(fates, pairs=min(64, P.test_pairs // 2))
gained = seed_interval(chosen.gained.to_numpy(float))  # over worlds
names = ["first → second", "second → first"]
run.figure("orders", plots.chosen_orders(chosen, names)) if len(chosen) else "no world with both objectives learnt"

# %% [markdown]
# **Read it.** Both orders of every world; the filled mark is the chosen one. A mark that is not filled and lies to the left shows what
# the choice has gained.

# %%
print("the chosen order, less a random one (share of the gain, over worlds):", gained)

# %% [markdown]
# ## What a referee would ask
#
# | question | answered by |
# |---|---|
# | Do four settings sample the space of relations? | `map`, `slopes` |
# | Is it the order, or are the pairs of one order harder? | `map`, middle: the same pairs |
# | Is it the sequence, or the adapter, the reference, the method? | `controls` |
# | Would it happen without a second preference? | `controls`: labels by a coin, the first objective again |
# | Would joint training or replay do better? | `map`, right; `controls` |
# | Can one know before? | `forecasts`, `orders` |
#
# ## Claims
#
# The rules stand in `claims/forgetting.py`. What counts was set after the tuning worlds, to what the worlds of `full` can see. So
# *not reproduced* says: not as large as 0.55 (S2), 0.5 (S3) or 0.6 over both strengths (S6) of the gain. It does not say that there is
# no effect. Intervals are Student's, over worlds. S1 counts an outcome once in a world, because its two objectives are not
# independent.

# %%
registration = registered("06_forgetting_map")
print(f"registered on {registration.date} for the profile {registration.profile}, worlds {list(registration.seeds)}")
registration.table()

# %%
verdicts = withheld(forgetting_claims(fates), P.test_pairs, "held-out pairs")  # too few: no verdict
verdicts = registration.judged(verdicts, P.profile, P.draws, {"worlds": len(P.worlds())})
table_of(verdicts).rename_axis(columns=counted(on))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "effects": {term: model.interval(term) for term in model.effects.index} if model else {},
        "turning point": turns,
        "controls": {w: {name: vars(k) for name, k in found.items()} for w, found in kept.items()},
        "forecasts": warned.iloc[:, 0].to_dict(),
        "chosen order": gained,
        "registration": registration.sha256,
    },
    series={"fates": rows.to_dict("list"), "orders": chosen.to_dict("list")},
    data={},
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. **Halfway.** Set `compatibilities: list = [-0.4, 0.0, 0.4]`. Is the turning point the same?
# 2. **Another adapter.** Set `lora: dict = {"rank": 2, "alpha": 4}`. Which numbers of the map move?
# 3. **More worlds.** Set `draws: list = [0, 1]`. How much shorter do the intervals get?
# 4. **Two seeds.** Set `seeds: list = [0, 1]`. S4 and S5 get a verdict. What do they say?
# 5. **A longer Stage 2.** Set `pair_training: dict = {"epochs": 2}`. Both stages get longer. Does the share stay?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
