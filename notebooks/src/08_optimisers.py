# %% [markdown]
# # 08 · What does the optimiser really do?
#
# $G = v\cdot g$ says what plain gradient descent would do to the final responses $D'$: with $v=\nabla\,\mathrm{NLL}(D')$ and
# $g=\nabla L$, a step of size $\eta$ on the whole loss changes $\mathrm{NLL}(D')$ by $-\eta\,v\cdot g$
# ([arXiv 2512.00778](https://arxiv.org/abs/2512.00778), Eq. 3). But nobody trains so. An update sees one *batch*. Adam divides
# each coordinate by a *preconditioner*, and moves along a *momentum*. And the change of the NLL is not quite linear in the step.
# The paper leaves all of this open. Here one update is taken apart, link by link, and DPO is trained by plain descent too (SGD in
# the figures).
#
# | question | where the answer stands |
# |---|---|
# | Which of the four makes an update differ from what $G$ foretells? | the figure of links |
# | How often does an update have the sign that $G$ foretells, and up to which link? | the table of agreements |
# | Is $G$'s picture another one if plain descent trains the model? | Adam beside SGD |
# | Is the pull towards $D'$ stable, or does it fluctuate? | the exact change by every update, with a null |
#
# These are measurements. No claim of the paper gets a verdict here.
#
# **What is the paper's:** $G$, and $D'$ as responses of the final model. **What is ours:** the world and the model (those of 02),
# the order of the links, the learning rate of each link, how plain descent gets its learning rate, and every statistic. The
# method is DPO.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "08_optimisers"
source: str = "world:guide-conflict"  # as in 02, which trains the same runs of Adam
objective: str = "helpful"
data: str = ""  # folder that files: sources are relative to
revision: str | None = None  # of hub: sources; recorded
train_pairs: int = 640
test_pairs: int = 200
test_share: float = 0.1  # of the prompts, held out where files: and hub: sources have no test split
pairs_per_prompt: int | None = None  # a limit where one prompt has many replies; None: all
max_new_tokens: int = 88
seeds: list = [0]  # of training pairs, adapter and batch order
tuning_seeds: list = [100]  # on which plain descent gets its learning rate
sgd_rates: list = [0.01, 0.03, 0.1, 0.3]  # of which it gets one
show_texts: bool = True  # print a response of D'; off for data that is not fit to print
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model
lora: dict = {}  # {"rank": 8} trains an adapter instead of all parameters
dpo: dict = {}  # beta
pair_training: dict = {}  # the loop: Adam's learning rate and beta2, batch size, epochs, ...
measurement: dict = {}  # how many updates are taken apart, and what D' is
hardware: dict = {}  # device, dtype, workers

# %%
from preflab.experiments.optimisers import Optimisers, final_loss

P = Optimisers.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import numpy as np
import pandas as pd
import torch

from preflab import alignment, optimiser, weightings
from preflab.figures import optimisers as plots
from preflab.fluctuation import fluctuations, noise_of, share_interval
from preflab.judging import as_table, counted
from preflab.likelihood import collate, collate_responses, token_log_probs
from preflab.models import unwrap
from preflab.running.parallel import parallel
from preflab.running.run import start
from preflab.statistics import seed_interval

run = start(P)
run.overview()

# %%
print("The SFT model is trained once (about 50 s in the default run). Later runs load it.")
asked = P.prompts().messages()  # so many prompts must be there, before anything trains
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()
print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")

# %% [markdown]
# ## Two updates of Adam by hand
#
# Take two batches of four pairs. Two other responses stand for $D'$.

# %% tags=["nbval-check-output"]
rows = P.pairs.train_pairs(P.seeds[0]).encoded(P.base_model)[:10]  # token ids of ten pairs
both = [collate(rows[i : i + 4], tokenizer.pad_token_id, model.device) for i in (0, 4)]  # (8, seq) each
two = [(row["prompt_ids"], row["chosen_ids"]) for row in rows[8:]]
final = collate_responses(two, tokenizer.pad_token_id, model.device)  # (2, seq)
policy = P.base_model.fresh_policy(P.lora, seed=0)
parameters = alignment.parameters_of(policy)  # name: tensor, all that is trained
references = [token_log_probs(policy, batch).sum(1).detach() for batch in both]  # (8,): log pi_ref(y|x)
print("batches", [len(batch["input_ids"]) // 2 for batch in both], " D'", len(final["input_ids"]))


# %% [markdown]
# The gradient of DPO on a batch is that of the surrogate $-\sum c\log\pi$ of 02:


# %%
def gradient_of(batch, reference):
    log_probs = token_log_probs(policy, batch)  # (8, seq - 1)
    c, *_ = P.dpo.weigh(log_probs.sum(1) - reference, batch["completion_mask"][:, 1:])
    found = torch.autograd.grad(weightings.surrogate(c, log_probs) / 4, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


# %% [markdown]
# Adam keeps two averages of every coordinate, of the gradient and of its square:
#
# $$m\leftarrow\beta_1 m+(1-\beta_1)\,g_b,\qquad u\leftarrow\beta_2 u+(1-\beta_2)\,g_b^2,\qquad
# P=\sqrt{u/(1-\beta_2^t)}+\epsilon,\qquad \Delta\theta=-\eta\,P^{-1}\,\frac{m}{1-\beta_1^t}.$$

# %%
eta, beta1, beta2, epsilon = 1e-3, 0.9, P.pair_training.adam_beta2, 1e-8
m, u = ({n: torch.zeros_like(p) for n, p in parameters.items()} for _ in range(2))
twin = optimiser.AdamTwin(beta2)  # the library's
for t, (batch, reference) in enumerate(zip(both, references, strict=True), 1):
    v = alignment.nll_gradient(policy, [final], parameters)  # where the update begins
    before = alignment.mean_nll(policy, [final])
    g_whole = [gradient_of(*each) for each in zip(both, references, strict=True)]
    g_whole = {n: (g_whole[0][n] + g_whole[1][n]) / 2 for n in parameters}  # of all eight pairs
    g_batch, step = gradient_of(batch, reference), {}
    for n, g in g_batch.items():
        m[n] = beta1 * m[n] + (1 - beta1) * g
        u[n] = beta2 * u[n] + (1 - beta2) * g**2
        scale = (u[n] / (1 - beta2**t)).sqrt() + epsilon  # P
        step[n] = -eta * m[n] / (1 - beta1**t) / scale
    twin.take(g_batch)
    with torch.no_grad():
        for n, p in parameters.items():
            p.add_(step[n])
after = alignment.mean_nll(policy, [final])

# %% tags=["nbval-check-output"]
same = all(torch.allclose(step[n], eta * d, rtol=1e-3, atol=1e-7) for n, d in twin.step().items())
print("same as the library's:", same)

# %% [markdown]
# ## Five rungs and four links
#
# Now go from $G$ to what has happened to $D'$ in the second update, one change at a time. Each *rung* is a change of
# $\mathrm{NLL}(D')$ in nats, for one update:
#
# | rung | change of NLL(D') | what is new |
# |---|---|---|
# | descent | $-\eta'\,v\cdot g$ | plain descent on the whole loss: the sign of $-G$ |
# | own batch | $-\eta'\,v\cdot g_b$ | the update's own batch (**batch noise**) |
# | preconditioned | $-\eta\,v\cdot P^{-1}g_b$ | Adam without momentum on the same batch (**preconditioner**) |
# | real step | $v\cdot\Delta\theta$ | what the optimiser has done (**momentum**) |
# | exact | $\mathrm{NLL}(\theta+\Delta\theta)-\mathrm{NLL}(\theta)$ | forward passes before and after (**second order**) |
#
# Adam and plain descent have no learning rate in common. So plain descent gets the one with which its step on the batch is as
# long as Adam's without momentum, $\eta'=\eta\,|P^{-1}g_b|/|g_b|$: the preconditioner turns the step and does not stretch it. If
# training clips the gradient of the batch, the whole gradient is shortened by the same factor. Between neighbours stand the
# four *links*, and they add up to exact − descent.

# %%
found = optimiser.directions(twin, eta, g_whole, g_batch, step, clipped=1.0)
example = {rung: alignment.dot(v, found[rung]) for rung in optimiser.RUNGS[:-1]} | {"exact": after - before}
links = dict(zip(optimiser.LINKS, np.diff(list(example.values())), strict=True))
print({rung: f"{change:+.4f}" for rung, change in example.items()})
print({link: f"{change:+.4f}" for link, change in links.items()})

# %% tags=["nbval-check-output"]
print("links add up:", np.isclose(sum(links.values()), example["exact"] - example["descent"]))
_ = unwrap(policy)  # an adapter, if there is one, leaves the SFT model

# %% [markdown]
# In the run below a derivative along a step is not taken with $v$. One forward-mode pass over $D'$ with the step as tangent gives
# the derivative of *every response* of $D'$. Their mean is $v\cdot\Delta\theta$, and their spread says how sure it is.
#
# ## Plain descent gets its learning rate
#
# Only the step differs: the pairs, the order of batches, the clip, warm-up and decay are Adam's. The learning rate follows a rule
# that was written before any run: *of `sgd_rates`, that whose final loss on the tuning seeds is nearest to Adam's; of two, the
# lower*. The final loss is the mean over the last quarter of updates. The seeds that are measured play no part.

# %%
parallel({"tuning runs": P.tuning_jobs()}, P.hardware.workers)
final_losses = P.final_losses()
sgd_rate = P.sgd_rate()
print(f"plain descent gets {sgd_rate:g}")
pd.Series(final_losses, name="final training loss").round(4).to_frame()

# %% [markdown]
# ## Run
#
# A run is trained, and its final policy answers held-out prompts: this is its own $D'$. Then the same run is **trained again**.
# The second time every update is looked at: the NLL of every response of $D'$ before and after, and at some updates, evenly in
# the logarithm of their number, all five rungs. The whole loss is that of all training pairs.

# %%
parallel({"trained twice": P.jobs()}, P.hardware.workers)
runs = {o: [P.taken_apart(t).load() for t in some] for o, some in P.trainings().items()}  # a run a seed

# %%
its_own = P.taken_apart(P.adam(P.seeds[0])).answers.load().final_texts  # D' of Adam's first run
print(its_own[0] if P.show_texts else "texts are not shown")

# %% [markdown]
# **Was it the same run?** `parameters` is the largest difference of a parameter from the first training's final policy; 0 means
# bit for bit. `twin` is the largest distance of a step by the formulas above from the real step, as a share of its length.

# %%
repeats = {
    o: {"parameters": max(r.repeated for r in some), "twin": max(r.twin_error.max() for r in some)}
    for o, some in runs.items()
}
pd.DataFrame(repeats).T.map("{:.1e}".format).rename_axis(columns=counted({"seeds": len(P.seeds)}))

# %% [markdown]
# ### How far did they come?

# %%
travelled = {o: np.array([r.length.cumsum() for r in some]) for o, some in runs.items()}  # (seeds, updates)
nll = {o: np.array([r.nll.mean(1) for r in some]) for o, some in runs.items()}  # (seeds, updates + 1)
losses = {o: np.array([r.loss for r in some]) for o, some in runs.items()}
run.figure(
    "training", plots.training({"training loss": losses, "NLL of D′, nats": nll, "length of the way": travelled})
)

# %%
reached = {
    o: {
        "final training loss": seed_interval(np.array([final_loss(run_losses) for run_losses in losses[o]])),
        "change of NLL(D')": seed_interval(nll[o][:, -1] - nll[o][:, 0]),
        "length of the way": seed_interval(travelled[o][:, -1]),
    }
    for o in runs
}
as_table(reached, {"seeds": len(P.seeds), "responses of D'": len(asked)})

# %% [markdown]
# **Read it.** Each run has a $D'$ of its own. In the default run training is short: the loss falls by little, and what is taken
# apart is the beginning of learning. The rates stand far apart, so that plain descent ends a little behind Adam. Adam's way is the
# longer one, most of all at first, when its steps have the size of signs.
#
# ## The rungs

# %%
taken = runs["Adam"][0].steps + 1  # (S,): number of the update, counted from 1
chains = {o: optimiser.chains(some) for o, some in runs.items()}  # rung or link: (seeds, S)
run.figure("rungs", plots.rungs(taken, chains))

# %% [markdown]
# **Read it.** Thin lines are seeds. Below zero an update goes towards $D'$. Where two curves lie on each other, the link between
# them does nothing. For plain descent the last four rungs can only differ by second order, because its preconditioner is 1 and it
# has no momentum.
#
# In the default run the black curve, what $G$ foretells, is far below zero for both optimisers until the learning rate has decayed,
# and no batch that was looked at points away from $D'$. Adam's real step gains far less than a plain step of the same length would.
#
# ## The links

# %%
means = {o: {link: some[link].mean(1) for link in optimiser.LINKS} for o, some in chains.items()}  # (seeds,)
run.figure("links", plots.links(means))

# %%
other_way = ("preconditioned whole", "preconditioner, whole loss", "batch noise, preconditioned")
told = {
    "Adam": (*optimiser.RUNGS, *optimiser.LINKS, *other_way),
    "SGD": ("descent", "exact", "batch noise", "second order"),
}
chosen = {
    f"{o}: {what}": 1000 * chains[o][what] for o in runs for what in told[o]
}  # (seeds, S), in thousandths of a nat
mean = {row: seed_interval(changes.mean(1)) for row, changes in chosen.items()}
size = {row: np.sqrt((changes**2).mean()) for row, changes in chosen.items()}
sizes = {row: {"mean, nats/1000": mean[row], "root mean square": size[row]} for row in chosen}
as_table(sizes, {"seeds": len(P.seeds), "updates taken apart": len(taken)})

# %% [markdown]
# **Read it.** The mean says whether a link helps (below zero) or holds back. The root mean square says how much it moves single
# updates. Intervals are Student's, over seeds; one seed has none, and the `full` profile has five. *preconditioned whole* is
# $-\eta\,v\cdot P^{-1}g$: with it, two rows go from descent to Adam without momentum in the other order, first the preconditioner and
# then the batch. $P$ holds the square of the batch's own gradient too, so the two are not independent, least of all in the first
# updates.
#
# In the default run second order does little. Of what a plain step of the same length would gain, Adam gets about two fifths, and the
# preconditioner takes the most. Six batches of one seed do not say on which side batch noise lies: the average over all batches of a
# moment is zero for a plain step with a fixed learning rate. The rows of the other order are far too large here: a word that no response of
# the batch has gets next to nothing in $P$, and something in the whole gradient, so the quotient explodes. With all weights trained that
# order says nothing.
#
# ## Does an update have the sign that G foretells?

# %%
agree = {
    o: {rung: share_interval(hits) for rung, hits in optimiser.agreements(some).items()} for o, some in chains.items()
}
towards = {o: share_interval(np.diff(nll[o], axis=1) < 0) for o in runs}
table = {o: some | {"any update goes towards D'": towards[o]} for o, some in agree.items()}
as_table(table, {"seeds": len(P.seeds), "updates taken apart": len(taken)}).T

# %% [markdown]
# **Read it.** A share of 0.5 is what a coin would do, but $G$ is above zero nearly always, and one sign for all would do as well.
# Each row takes one more link along. The interval is Wilson's, within $[0, 1]$,
# and seeds are its unit: one seed has no interval. The last row is over *all* updates of the run.
#
# In the default run every real step of Adam has the sign that $G$ foretells, and every one of all its updates goes towards $D'$. Of
# plain descent's, about a fifth go away from it.
#
# ## Stable or fluctuating?
#
# The exact change by every update needs no gradient, so $G$'s noise plays no part. Its noise is that of $D'$: another set of
# prompts would give another mean. Warm-up and decay are divided out. Bands are two standard errors.

# %%
exact = {o: np.array([r.per_rate.mean(1) for r in some]) for o, some in runs.items()}  # (seeds, updates)
noise = {o: np.array([noise_of(r.per_rate) for r in some]) for o, some in runs.items()}
run.figure("every_update", plots.every_update(exact, noise))

# %% [markdown]
# Three statistics, each with the share of constant curves that reach it (p). The *null* is a curve that stays at its mean, and whose
# errors go together from update to update as the measured ones do.
#
# - *sign changes*: beyond two standard errors, as a share of those that are possible;
# - *deviation*: temporal deviation over its standard error; a trend counts;
# - *roughness*: the same of differences of neighbours; a trend does not count.

# %%
generator = np.random.default_rng(0)
stability = {
    f"{o}, seed {seed}": fluctuations(r.per_rate, generator)
    for o, some in runs.items()
    for seed, r in zip(P.seeds, some, strict=True)
}
shown = {who: {k: f"{f.value:.2f} (p = {f.p:.3f})" for k, f in of.items()} for who, of in stability.items()}
as_table(shown, {"updates": exact["Adam"].shape[1], "responses of D'": len(asked)})

# %% [markdown]
# **Read it.** A deviation near 1 is what noise alone does. A large roughness says that single updates really differ, batch by
# batch. Sign changes say that some go towards $D'$ and others away from it, each clearly. In the default run the pull is stable in
# sign with Adam and fluctuates with plain descent, on the same batches: "fluctuates" is also a property of the optimiser.

# %%
folder = run.finish(
    claims=[],
    metrics={
        "sgd": {"rate": sgd_rate, "final_losses": final_losses},
        "repeats": repeats,
        "reached": reached,
        "sizes": sizes,
        "agreement": agree,
        "towards": towards,
        "stability": stability,
    },
    series={"updates": taken, "chains": chains, "nll": nll, "loss": losses, "length": travelled, "noise": noise},
    data=P.reports(),
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# 1. **No momentum, no noise.** Set `pair_training: dict = {"batch_size": 640, "epochs": 40}`: every update sees all pairs. Which links
#    are left?
# 2. **A short memory.** Set `pair_training: dict = {"adam_beta2": 0.9}`. Is the preconditioner's link larger?
# 3. **Larger steps.** Triple `learning_rate`. Second order should grow about nine times, and the other links three times. Do they?
# 4. **Signs alone.** What does a step of $-\eta\,\mathrm{sign}(g)$ do? In the by-hand section:
#
#    ```python
#    alignment.dot(v, {n: -eta * g.sign() for n, g in g_whole.items()})
#    ```
#
# 5. **Another rate.** Give `sgd_rates` a single value. How does the length of the way change at the same number of updates?
#
# To rerun, change the parameters cell, then *Run > Run All Cells*. What is trained already does not train again.
