# %% [markdown]
# # 05 · Why does Stage 2 change what Stage 1 has learnt?
#
# Notebook 01 trains DPO on one objective and then on another, and some objectives are lost. Why? The natural suspect is
# **opposition**: the gradient of the second objective points against that of the first. Bhandari et al.,
# [*Beyond Uniform Forgetting*](https://arxiv.org/abs/2606.19744), acquit it. They find Stage-2 gradients and adapter updates
# *near-orthogonal* to the previous objective, and little evidence that direct opposition drives the loss.
#
# But a cosine near zero can mean three things. The directions may be orthogonal. Or the gradients are so noisy that anything
# looks orthogonal. Or a small cosine is enough, because many small steps add up. This notebook tells them apart.
#
# **Claims tested**
#
# | | claim |
# |---|---|
# | S7 | gradients and updates of Stage 2 are near-orthogonal to those of the previous objective, in all settings |
# | S8 | direct opposition of gradients does not drive what is lost |
#
# **What is the paper's:** two stages, LoRA, $\beta = 0.3$, cosines of gradients during Stage 2, cosines of adapter updates.
# **What is ours, because no source says it:** full-data gradients at eight points, the correction for noise, the floors and
# ceilings, cosines of $\Delta W$, forecasts of single pairs, the bounds of both rules, and worlds in the place of data sets.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "05_mechanism"
settings: dict = {  # as in notebook 01: [source, objective A, objective B]; `full` has all four of them
    "conflict": ["world:conflict", "helpful", "harmless"],
    "compatible": ["world:compatible", "instruction_following", "truthfulness"],
}
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 160  # per objective and seed; every gradient below is over all of them
test_pairs: int = 80  # per objective, the same for every seed; each one's change is forecast
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 32
seeds: list = [0, 1]  # of training pairs, adapter and batch order; the base model is one and fixed
full_learning_rate: float | None = 5e-4  # of one run that trains all weights; None: there is none
resamples: int = 1000  # random pairings beside a correlation
show_texts: bool = True  # part of every notebook; this one prints no texts
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model
dpo: dict = {}  # {"beta": 0.3}, paper S
pair_training: dict = {}  # learning rate, batch size, epochs, ...: 3 * 160 / 16 = 30 updates for each stage
lora: dict = {}  # {"rank": 8, "alpha": 16}
course: dict = {}  # points, parts, pairs a pass
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.mechanism import Mechanism

P = Mechanism.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd
import torch
from torch.autograd import forward_ad
from torch.func import functional_call

from preflab import adapters, forecast, geometry
from preflab.attention import written_out
from preflab.claims import table as table_of
from preflab.claims import withheld
from preflab.claims.mechanism import goes_with, mechanism_claims
from preflab.claims.registration import registered
from preflab.experiments.mechanism import angles, forecast_scores, losses, opposition
from preflab.figures import mechanism as plots
from preflab.judging import as_table, counted
from preflab.likelihood import collate, token_log_probs
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.stages.course import UNSCALED

run = start(P)
rng = np.random.default_rng(0)  # of gauges and of random pairings
run.overview()

# %% [markdown]
# ## A cosine near zero comes free
#
# A gradient of a batch is the true gradient and noise, $g = \mu + \varepsilon$. In many dimensions two noises are orthogonal. So
# the cosine of two noisy gradients is small *whatever* the angle of the true ones is. Try it on made-up gradients: 2,000
# dimensions, true gradients with a cosine of −0.6, and noise that is three times as long as the signal.

# %% tags=["nbval-check-output"]
made = np.random.default_rng(1)
mu = np.zeros((2, 2000))
mu[0, 0], mu[1, :2] = 1.0, (-0.6, 0.8)  # unit vectors with a cosine of -0.6
noisy = mu[:, None] + 3 / np.sqrt(2000) * made.normal(size=(2, 64, 2000))  # (objectives, batches, dimensions)


def cosine(x, y):
    return x @ y / np.sqrt((x @ x) * (y @ y))


print(f"single batches   {np.mean([cosine(noisy[0, i], noisy[1, i]) for i in range(64)]):+.2f}")
print(f"mean of 8        {cosine(noisy[0, :8].mean(0), noisy[1, :8].mean(0)):+.2f}")
print(f"two halves of one {cosine(noisy[0, :4].mean(0), noisy[0, 4:8].mean(0)):+.2f}  (the ceiling)")

# %% [markdown]
# The **ceiling** is the cosine that a gradient has with itself, measured on two halves of its pairs. If it is 0.3, no cosine
# can be large. The library cuts the pairs of an objective in $K$ parts and takes unbiased estimates from different parts,
#
# $$U(a, b) = \frac{1}{K(K-1)}\sum_{i \ne j} a_i \cdot b_j, \qquad
# \cos_\mathrm{true} \approx \frac{U(a,b)}{\sqrt{U(a,a)\,U(b,b)}},$$
#
# the **disattenuated** cosine. Noise is in none of the three sums, since it is a product of different parts only. And all
# of them come from one pass over the pairs: parts add up to the full-data gradient.

# %% tags=["nbval-check-output"]
parts = np.concatenate([noisy[0, :8], noisy[1, :8]])  # 8 parts of each objective
products = parts @ parts.T  # (16, 16)
K, a, b = 8, products[:8, :8], products[8:, 8:]
off = ~np.eye(K, dtype=bool)
by_hand = products[:8, 8:][off].mean() / np.sqrt(a[off].mean() * b[off].mean())
theirs = geometry.disattenuated(products, slice(0, 8), slice(8, 16))
print(f"disattenuated    {by_hand:+.2f}, same as the library's: {np.isclose(by_hand, theirs)}")

# %% [markdown]
# ## The product counts, and its factors do not
#
# LoRA changes a matrix by $\Delta W = \frac{\alpha}{r} B A$. For any invertible $R$, the factors $B R^{-1}$ and $R A$ make the *same*
# model. A cosine of the raw $(A, B)$ depends on which of them training happened to take. It has a **gauge**, and says
# little. The cosine of $\Delta W$ has none. It needs no large matrix, because
#
# $$\langle B_1 A_1, B_2 A_2\rangle = \mathrm{tr}(A_1^\top B_1^\top B_2 A_2) = \sum_{ij} (B_1^\top B_2)_{ij}\,(A_1 A_2^\top)_{ij}$$
#
# is a sum over two $r\times r$ matrices. Try it on two random updates of a 64 × 32 matrix:

# %% tags=["nbval-check-output"]
g = torch.Generator().manual_seed(0)
one, other = (
    adapters.Update(*(torch.randn(s, generator=g, dtype=torch.float64) for s in ((64, 4), (4, 32)))) for _ in range(2)
)
small = ((one.up.T @ other.up) * (one.down @ other.down.T)).sum()  # from 4 x 4 matrices
large = ((one.up @ one.down) * (other.up @ other.down)).sum()  # the same from 64 x 32 matrices
R = torch.randn(4, 4, generator=g, dtype=torch.float64)
turned = one.regauged(R)  # up R^-1, R down
print("by small traces as multiplied out:", torch.allclose(small, large, rtol=0, atol=1e-10))
print("the gauge leaves the product:     ", torch.allclose(turned.up @ turned.down, one.up @ one.down, atol=1e-10))
print("and moves its factors:            ", not torch.allclose(turned.up, one.up))

# %% [markdown]
# ## A forecast for every single pair
#
# A small angle is one thing. Does the direction *matter*? Let $m_i(\theta)$ be the policy margin of a held-out pair. If the
# weights move by $d$, the first order says that it changes by $\nabla m_i \cdot d$. One forward-mode pass gives this number
# for all pairs: every weight carries the tangent $d$, and each log-prob comes out with its own. Here it is on two pairs of
# the first objective, for a random move of a fresh adapter, beside the real change:

# %%
print("The base model is trained once (about 20 s in the default run). Later runs load it.")
tokenizer, setting = P.base_model.tokenizer(), P.all_settings()[0]
rows = P.source_of(setting, setting.objectives[0]).test_pairs.encoded(P.base_model)[:2]
policy = P.base_model.fresh_policy(P.lora, seed=0)
batch = collate(rows, tokenizer.pad_token_id, policy.device)  # (4, seq): 2 chosen rows above 2 rejected ones
lengths = batch["completion_mask"][:, 1:].sum(1)  # (4,)


def margin(log_probs):
    chosen, rejected = (log_probs.sum(1) / lengths).chunk(2)
    return chosen - rejected  # (2,)


weights = {n: p for n, p in policy.named_parameters() if p.requires_grad}
generator = torch.Generator().manual_seed(0)
d = {n: 0.05 * torch.randn(p.shape, generator=generator).to(p) for n, p in weights.items()}
inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
following = batch["input_ids"][:, 1:, None]
with torch.no_grad(), forward_ad.dual_level(), written_out(policy):
    middle = {n: forward_ad.make_dual(p + d[n] / 2, d[n]) for n, p in weights.items()}  # half-way, with tangent d
    logits = functional_call(policy, middle, kwargs=inputs).logits
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, following).squeeze(-1)
    slopes = forward_ad.unpack_dual(log_probs).tangent * batch["completion_mask"][:, 1:]  # (4, seq - 1)
with torch.no_grad():
    before = margin(token_log_probs(policy, batch))
    with forecast.placed(weights, {n: p + d[n] for n, p in weights.items()}):
        after = margin(token_log_probs(policy, batch))
print("forecast", [f"{x:+.4f}" for x in margin(slopes)])
print("measured", [f"{x:+.4f}" for x in after - before])
_ = unwrap(policy)

# %% [markdown]
# The derivative is taken in the *middle* of the move (the midpoint rule), so its error is of the third order. A long way is cut in
# segments, and their terms add up.
#
# ## Run: Stage 2 with both gradients at its side
#
# Both stages train as in notebook 01. At points of Stage 2 that lie evenly in the logarithm of updates, the gradients of DPO's
# loss are taken over **all** training pairs of both objectives, and over the held-out pairs of the first one. For each point and
# objective this is one backward pass a pair.

# %%
parallel(P.jobs(), P.hardware.workers)
courses = P.by_sequence()  # setting and order: a course for each seed
full_courses = P.by_sequence(full=True)  # the same where all weights are trained
steps = next(iter(courses.values()))[0].steps
print("measured after", steps.tolist(), "updates of Stage 2")

# %% [markdown]
# What happened to the first objective? The rule is notebook 01's, on the same held-out pairs.

# %%
outcomes = {s.name: s.told() for s in P.sequences()}
shown_outcomes = {k: {w: v[w] for w in ("verdict", "held-out pairs")} | {"gain of Stage 1": v["gain"].value,
                  "change in Stage 2": v["change"].value} for k, v in outcomes.items()}  # fmt: skip
pd.DataFrame(shown_outcomes).T.rename_axis(columns=counted({"seeds": len(P.seeds)}))

# %% [markdown]
# ## Are the gradients orthogonal?

# %%
labels = list(plots.LINES)
lines = {
    title: dict(zip(labels, map(np.array, zip(*[
        (c.cosine(), c.raw(), c.single(), c.cosine("first", "shuffled"), c.cosine("first", "held out"),
         c.ceiling("first")) for c in some], strict=True)), strict=True))
    for title, some in {**courses, **{f"{k}, all weights": v for k, v in full_courses.items()}}.items()
}  # fmt: skip
run.figure("cosines", plots.cosines(steps, lines))

# %%
means = {
    title: {line: float(geometry.known_mean(values)) for line, values in some.items()} for title, some in lines.items()
}
error = {t: float(geometry.known_mean(np.array([c.error() for c in some]))) for t, some in courses.items()}
pd.DataFrame(means).T.assign(**{"error of the first": pd.Series(error)}).round(2)

# %% [markdown]
# **Read it.** The thick blue line is the cosine of the true gradients, and each thin one is a seed. The orange one is what a
# logger of training would see: one batch against another. It is nearer to zero for no other reason than noise. The dotted lines
# are what a cosine could be at most: two halves of the same pairs as they stand, and the same objective on new pairs, which is
# free of noise. An estimate that is free of noise can leave [−1, 1], and then the panel: its error is large there.
#
# In the default run single batches of `conflict` have a mean cosine of −0.29 and −0.27, and the true gradients one of −0.95 and
# −0.81: these objectives stand against each other, and batches hide two thirds of it. On `compatible` all is positive, and the
# signal is so weak that 160 pairs are too few: the estimate leaves the range of a cosine, so its error is large.
#
# The floor is not zero. **Shuffled labels** say nothing, and still their gradient has a direction. With either labelling
# equally likely, DPO's weight of a pair is $\frac{\beta}{2}\tanh\frac{\beta\Delta}{2}$: it pulls every margin back to the
# reference. At first this is against what Stage 1 has learnt, so the grey line begins below zero. On `conflict` it ends above: by
# then the pull is against what Stage 2 has learnt.
#
# ## Where in the network?
#
# Inner products add up over places, so each projection of each layer has a cosine of its own. Here inner products are added up over
# all points first, so that points with longer gradients count for more. That gives other numbers than a mean of cosines:
# compare places with each other, not with the figure above. Blue is one direction, red the opposite one.

# %%
found_places = courses[next(iter(courses))][0].places
by_place = {title: geometry.known_mean(np.array([c.by_place() for c in some]), 0) for title, some in courses.items()}
run.figure("places", plots.place_map(found_places, by_place))

# %% [markdown]
# ## What did the adapters do?
#
# $\Delta W_1$ is what Stage 1 has added to the weights, and $\Delta W_2$ what Stage 2 has added to that. The first row of the figure
# is the demonstration: **200 random gauges** of the very same three models.

# %%
moves = {title: [P.moves(r) for r in P.runs() if r.sequence == title] for title in courses}
example = next(iter(moves.values()))[0]
rank = P.lora.rank
gauge = []
for _ in range(200):
    R = torch.as_tensor(np.eye(rank) + rng.normal(size=(rank, rank)) / np.sqrt(rank))
    same = [{w: u.regauged(R) for w, u in some.items()} for some in (example.fresh, example.stage1, example.end)]
    gauge.append(adapters.factor_cosine(same[:2], same[1:]))
product = adapters.cosine(example.stage1, example.stage2)
again = adapters.cosine(same[1], adapters.difference(same[2], same[1]))  # in the last of these gauges
print(
    f"cosine of ΔW {product:+.4f}, in another gauge {again:+.4f}; of (A, B) from {min(gauge):+.2f} to {max(gauge):+.2f}"
)
run.figure("gauges", plots.gauges(product, np.array(gauge)))

# %% [markdown]
# The table has both cosines, the norms, and how far the spaces overlap: the mean squared cosine of the principal angles of
# the $r$ strongest directions, beside what random spaces of this size have. A floor stands below: two **seeds** of Stage 1 on one
# objective. Their gauges differ from the start, and the models do nearly the same thing.

# %%
updates = {title: angles(some, rank) for title, some in moves.items()}
if full_courses:
    full_moves = [P.without_adapter().moves(r) for r in P.full_runs()]
    updates |= {f"{title}, all weights": angles(full_moves, rank) for title in full_courses}
for title, some in moves.items():
    if len(some) > 1:  # two seeds of Stage 1
        updates[f"two seeds of {title.split(': ')[1].split(' → ')[0]}"] = {
            "cos(ΔW₁, ΔW₂)": adapters.cosine(some[0].stage1, some[1].stage1),
            "cos of (A, B)": adapters.factor_cosine(*((move.fresh, move.stage1) for move in some[:2])),
        }
run.figure("updates", plots.updates(updates, ("cos(ΔW₁, ΔW₂)", "cos of (A, B)")))

# %%
as_table(updates, {"seeds": len(P.seeds)})

# %% [markdown]
# **Read it.** For `two seeds` the columns compare the two runs' Stage 1. The adapter of Stage 2 goes on with that of Stage 1, so its
# inputs hardly turn: their spaces overlap by construction, far more than random ones. With all weights trained there are no
# factors to turn, and the raw cosine *is* that of $\Delta W$.
#
# In the default run the two stages of `conflict` undo each other (−0.52 and −0.72), and those of `compatible` add up (0.17 and
# 0.22). Two seeds of *one* objective have no more than 0.19 to 0.31, and about 0 in raw $(A, B)$. So a cosine of 0.2 between two
# updates is no sign that they have little to do with each other.
#
# ## Does the first order forecast what happens to each pair?
#
# Three forecasts of the change of every held-out pair of the first objective, none of them fitted:
#
# 1. **along the path**: a forward-mode pass in the middle of every segment between two points;
# 2. **in one shot**, at the end of Stage 1, for the way on which training then went;
# 3. **without training**: at the end of Stage 1, along $-g_2$. It needs one gradient. It has a direction and no size.

# %%
panels = {t: {k: (some[0].forecasts[k], some[0].happened) for k in some[0].forecasts} for t, some in courses.items()}
scaled = [kind for kind in next(iter(panels.values())) if kind != UNSCALED]
run.figure("forecasts", plots.forecasts(panels, scaled))

# %%
scores = forecast_scores({**courses, **{f"{k}, all weights": v for k, v in full_courses.items()}})
pd.DataFrame(scores).T.round(2).rename_axis(columns=counted({"held-out pairs": P.test_pairs, "seeds": len(P.seeds)}))

# %% [markdown]
# **Read it.** `r2` is the squared correlation over pairs, `slope` the regression of what happened on its forecast, `explained` the
# share of variance that the forecast explains as it stands (below zero if it is worse than the mean). `signs` is the share
# of pairs that move in the direction that was forecast, and `commonest` what one sign for all pairs would reach.
#
# The first forecast must be good: it is calculus, and it checks the instrument. The second asks whether the directions at the
# end of Stage 1 still hold later. The third is the question of the paper turned round: *before Stage 2 has begun*, does its
# gradient know which pairs will be lost? In the default run it does: $-g_2$ has the right sign for 80 to 91 % of the pairs, where
# one sign for all would reach 60 to 74 %.
#
# ## Does opposition go with loss?
#
# The loss of the first objective's held-out pairs, and what the gradient of that loss says of it. `summed along the path` is the
# same sum as above for the loss, and must agree with what is measured. `foretold` stops at Stage 1's end: if opposition is
# there from the start and drives the loss, this one number has most of it.

# %%
of_loss = losses({**courses, **{f"{k}, all weights": v for k, v in full_courses.items()}})
as_table(of_loss, {"held-out pairs": P.test_pairs, "seeds": len(P.seeds)})

# %%
judged = [opposition(title, courses[title], moves[title]) for title in P.judged()]
run.figure("opposition", plots.opposition_and_loss({o.name: (o.cosines[:, 0], o.lost) for o in judged}))

# %%
means_of = np.array([[o.cosines[:, 0].mean(), o.lost.mean()] for o in judged])
together = goes_with(*means_of.T, rng, P.resamples)
print(
    f"Spearman {together.value:+.2f}; random pairings {together.low:+.2f} to {together.high:+.2f}; {len(judged)} sequences"
)

# %% [markdown]
# **Read it.** In the default run the sum along the path is within 0.006 of what is measured. The one number from the end of
# Stage 1 has 39 % and 49 % of what `conflict` loses: opposition is there from the start, and it grows while Stage 2 moves. Four
# sequences cannot show a correlation: random pairings reach ±1.
#
# **What the one number cannot say.** The log-loss bends. If all pairs fell alike, from a loss of 0.41 to one of 1.63 as in a setting
# of the `full` run, the gradient at the start would foretell 58 % of that. So one half is near to what full opposition gives. And a
# small share does not say that nothing was opposed later: the sum along the path is the whole loss.
#
# ## What a referee would ask
#
# | question | answered by |
# |---|---|
# | Is the cosine small because of noise? | `cosines`: single batches, full data, disattenuated, ceiling |
# | Compared with what? | `cosines`: shuffled labels, the same objective on new pairs; `updates`: two seeds |
# | Does the angle depend on how LoRA writes its product? | `gauges`, and the row `all weights` |
# | Is it hidden in one layer? | `places` |
# | Does a small cosine mean that the direction does not matter? | `forecasts` |
# | Does opposition go with loss over settings? | `opposition` |
# | Was it opposed later, if not at the start? | the table above: `measured` against `summed along the path` |
#
# ## Claims
#
# Each rule was written before its run (`claims/mechanism.py`), with the effect that counts and the probability to see it. Intervals
# are Student's, over seeds, so two seeds decide next to nothing. The verdicts that count are those of the `full` profile.

# %%
registration = registered("05_mechanism")
print(f"registered on {registration.date} for the profile {registration.profile}, seeds {list(registration.seeds)}")
registration.table()

# %%
verdicts = withheld(mechanism_claims(judged), P.test_pairs, "held-out pairs")  # too few: no verdict
verdicts = registration.judged(verdicts, P.profile, P.seeds)
table_of(verdicts).rename_axis(columns=counted({"held-out pairs": P.test_pairs, "seeds": len(P.seeds)}))

# %%
folder = run.finish(
    claims=verdicts,
    metrics={
        "outcomes": outcomes,
        "cosines": means,
        "updates": updates,
        "gauges": {"product": product, "least": min(gauge), "most": max(gauge)},
        "forecasts": {f"{title}: {what}": row for (title, what), row in scores.items()},
        "losses": of_loss,
        "opposition goes with loss": together,
        "registration": registration.sha256,
    },
    series={
        "steps": steps,
        "cosines": lines,
        "places": by_place,
        "losses": {title: [c.losses for c in some] for title, some in courses.items()},
    },
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Their solutions are in [solutions/05_mechanism_solutions](solutions/05_mechanism_solutions.ipynb).
#
# 1. **The same objective again.** Add `"twice": ["world:conflict", "helpful", "helpful"]` to `settings`. Stage 2 then learns the
#    first objective from new pairs. Where are its cosines, and its $\Delta W$?
# 2. **Noise on purpose.** Set `train_pairs: int = 64`. Which lines move towards zero, and which one stays and gets wide?
# 3. **From conflict to agreement.** Put the worlds `made(-0.5, 0.85)`, `made(0.0, 0.85)` and `made(0.5, 0.85)` into `settings`, with
#    objectives `first` and `second`. Does the cosine follow the compatibility? Does the loss?
# 4. **A shorter memory.** Set `pair_training: dict = {"epochs": 6}`. How does the share that is foretold at Stage 1's end change
#    when Stage 2 goes further away from it?
# 5. **Real preferences.** `base: dict = {"model": "models/smollm2"}` with a `files:` source of notebook 01 runs the same cells.
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
