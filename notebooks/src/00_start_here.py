# %% [markdown]
# # 00 · Start here: from one pair of answers to forgetting
#
# In fifteen minutes you train a small language model on a preference. You see what one step of training does to every token.
# Then you train it on a second preference, and you watch it forget the first one.
#
# | | you meet | symbol |
# |---|---|---|
# | 1 | a preference pair: one answer is better than another | $x,\ y^+,\ y^-$ |
# | 2 | the log-probability of an answer | $\log\pi(y\mid x)$ |
# | 3 | the weight of a token: how strongly a step pushes it, and in which direction | $c$ |
# | 4 | one step of DPO, and then many | $\theta \leftarrow \theta - \eta\,\nabla L$ |
# | 5 | the gradient alignment: does a step pull towards the answers that the model will give in the end? | $G$ |
# | 6 | two stages, and what the second one does to the first | $m$ |
#
# Each idea comes in three parts: an equation, a few lines that compute it, and what you see. Change a line, run
# its cell again, and see what happens. The ideas are those of two papers, *S*
# ([Beyond Uniform Forgetting](https://arxiv.org/abs/2606.19744)) and *D*
# ([What Is Preference Optimization Doing, How and Why?](https://arxiv.org/abs/2512.00778)). This notebook explains them. The
# others test what the papers claim.

# %% tags=["parameters"]
profile: str = "default"  # results go to results/PROFILE/NAME/
name: str = "00_start_here"
world: str = "conflict"  # also attributes, safety and compatible
objectives: list = ["helpful", "harmless"]  # of that world: Stage 1, Stage 2
train_pairs: int = 640  # of each objective
test_pairs: int = 100  # of each objective; their prompts are never trained on
batch_size: int = 16  # pairs a step
learning_rate: float = 1e-3
seed: int = 0  # of training pairs and their order
# Sections: what is given here is laid over the defaults, which are printed below.
base: dict = {}  # the base model, for example {"hidden_size": 64}
dpo: dict = {}  # {"beta": 0.3}, paper S

# %%
from preflab.experiments.start_here import StartHere

P = StartHere.from_notebook(globals())  # names, types and ranges, before anything trains

# %%
import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call

from preflab import alignment
from preflab.attention import written_out
from preflab.data import worlds
from preflab.figures import start_here as plots
from preflab.generation import decode, sample
from preflab.likelihood import collate, collate_responses, encode_pairs, token_log_probs
from preflab.running.run import start
from preflab.training.schedule import batches

run = start(P)
run.overview()

# %% [markdown]
# ## 1 · A preference pair
#
# Somebody asks a question and gets two answers. A judge prefers one of them. It is called *chosen*, the other one *rejected*:
#
# $$y^+ \succ y^- \mid x.$$
#
# That is all the data that preference optimisation needs. Here is one pair:

# %%
question = [{"role": "user", "content": "how do i fix the old lamp at home ?"}]  # x
chosen = [{"role": "assistant", "content": "use the wire . then test it ."}]  # y+
rejected = [{"role": "assistant", "content": "sorry i can not help ."}]  # y-

# %% [markdown]
# Who says that the first answer is better? It depends on the judge. In this small *world* there are two, and each has a
# number for every answer, its utility $u$:

# %%
asked = worlds.Prompt.parse(question[0]["content"])
judges = {objective: worlds.get_world(P.world).objective(objective) for objective in P.objectives}
utilities = {o: [j.utility(asked, a[0]["content"]) for a in (chosen, rejected)] for o, j in judges.items()}
pd.DataFrame(utilities, [answer[0]["content"] for answer in (chosen, rejected)])

# %% [markdown]
# *Helpful* prefers the answer. *Harmless* prefers the refusal. So on this question the two objectives want opposite things.
# Keep that in mind for the last section.
#
# ## 2 · The log-probability of an answer
#
# A language model gives a probability to every next token. The log-probability of an answer is a sum over its tokens:
#
# $$\log\pi(y\mid x) = \sum_t \log\pi(y_t\mid x, y_{<t}).$$
#
# First a model. It has learnt to speak the language of the world, with right answers and wrong ones, and it has no preference
# yet. It is the *base model*, and it never changes: training works on copies of it.

# %%
print("The base model is trained once (about 15 s in the default run). Later runs load it.")
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()
print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")

# %% [markdown]
# The pair becomes a batch of two rows: the chosen answer above the rejected one. The mask is 1 on the tokens of an answer.

# %% tags=["nbval-check-output"]
encoded, _ = encode_pairs([{"prompt": question, "chosen": chosen, "rejected": rejected}], tokenizer, P.base.context)
batch = collate(encoded, tokenizer.pad_token_id, model.device)  # input_ids, attention_mask, completion_mask: (2, seq)
mask = batch["completion_mask"][:, 1:]  # (2, seq - 1): token t is predicted from those before it
print("rows, predictions:", tuple(mask.shape), " tokens of each answer:", mask.sum(1).tolist())


# %% [markdown]
# And here is the equation, for all rows and all tokens at once:


# %%
def log_probs_of(model, batch):
    """log pi(y_t | x, y_<t) of every token of an answer, 0 elsewhere: (rows, seq - 1)."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    logits = model(**inputs).logits[:, :-1]  # (rows, seq - 1, vocabulary)
    log_probs = torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return log_probs * batch["completion_mask"][:, 1:]


with torch.no_grad():
    reference = log_probs_of(model, batch).sum(1)  # (2,): log pi(y|x) of both answers
print([f"{value:.2f}" for value in reference])

# %% [markdown]
# The library has the same function under the name `token_log_probs`. It is faster, and it says the same:

# %% tags=["nbval-check-output"]
with torch.no_grad():
    print("same as the library's:", torch.allclose(log_probs_of(model, batch), token_log_probs(model, batch)))

# %% [markdown]
# ## 3 · The weight of a token
#
# Training changes the parameters $\theta$ of a copy of the model, the *policy* $\pi$. Nearly every method of preference
# optimisation does it in the same way. It gives a weight $c$ to each token of each answer, and it follows the gradient
#
# $$\nabla L = -\sum_{i,t} c_{i,t}\,\nabla\log\pi(y_{i,t}\mid x_i, y_{i,<t}).$$
#
# $c>0$ makes a token more likely: *positive learning*. $c<0$ makes it less likely: *negative learning*. The size of $c$ says
# how strongly. **A method is its rule for $c$.** In supervised learning $c=1$ on every token. In DPO ([Eq. 7 of
# arXiv:2305.18290](https://arxiv.org/abs/2305.18290)) $c=+w$ on the chosen answer and $c=-w$ on the rejected one, with
#
# $$w = \beta\,\sigma(-\beta\Delta), \qquad \Delta = \log\frac{\pi(y^+\mid x)}{\pi_\mathrm{ref}(y^+\mid x)}
# - \log\frac{\pi(y^-\mid x)}{\pi_\mathrm{ref}(y^-\mid x)}.$$
#
# $\Delta$ says how far the policy has moved towards the chosen answer, compared with the *reference* $\pi_\mathrm{ref}$. Here
# the reference is the base model.


# %%
def dpo_weights(log_probs, reference, mask):
    """c of every token: (rows, seq - 1); +w on chosen rows, which stand above, -w on rejected ones."""
    up, down = (log_probs.detach().sum(1) - reference).chunk(2)  # log pi/pi_ref of both sides, (pairs,) each
    w = P.dpo.beta * torch.sigmoid(-P.dpo.beta * (up - down))  # (pairs,)
    return torch.cat([w, -w])[:, None] * mask


policy = copy.deepcopy(model).requires_grad_(True)
log_probs = log_probs_of(policy, batch)
c = dpo_weights(log_probs, reference, mask)
tokens = [tokenizer.convert_ids_to_tokens(ids[1:][m]) for ids, m in zip(batch["input_ids"], mask.bool(), strict=True)]
first_row = mask[0].bool()  # the tokens of the chosen answer
pd.DataFrame({"log π": log_probs[0, first_row].tolist(), "c": c[0, first_row].tolist()}, tokens[0]).round(3)

# %% [markdown]
# The log-probs show where the model decides. It is nearly sure of *the*, and it hesitates at *use*, *test* and the end. $c$ does
# not care: the policy is still the base model. So $\Delta=0$ and $w=\beta/2$, the same for every token of this answer. Later $\Delta$
# grows, $w$ falls, and a pair that is learnt already counts less. Try `torch.sigmoid(-P.dpo.beta * torch.tensor(20.0))`.
#
# Is this $c$ really DPO? DPO's loss is $-\log\sigma(\beta\Delta)$. Its gradient must be that of the weighted sum:

# %% tags=["nbval-check-output"]
up, down = (log_probs.sum(1) - reference).chunk(2)
loss = -F.logsigmoid(P.dpo.beta * (up - down)).sum()
weighted = -(c * log_probs).sum()
weights = list(policy.parameters())
theirs, ours = (torch.autograd.grad(some, weights, retain_graph=True) for some in (loss, weighted))
print(f"DPO's loss {loss:.4f}: ln 2, since nothing is learnt yet")
print("same gradient:", all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, theirs, strict=True)))

# %% [markdown]
# ## 4 · One step of DPO, and then many
#
# A step of gradient descent moves every parameter a little way against the gradient:
#
# $$\theta \leftarrow \theta - \eta\,\nabla L.$$


# %%
def step(policy, loss, eta):
    """theta <- theta - eta * grad L, in place."""
    parameters = list(policy.parameters())
    gradient = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for p, g in zip(parameters, gradient, strict=True):
            p -= eta * g


stepped = copy.deepcopy(model).requires_grad_(True)
step(stepped, -(c * log_probs_of(stepped, batch)).sum(), eta=0.02)
with torch.no_grad():
    moved = log_probs_of(stepped, batch).sum(1)
change = {"before": reference, "after": moved, "change": moved - reference}
pd.DataFrame(change, ["log π(y⁺|x)", "log π(y⁻|x)"]).round(2)

# %% [markdown]
# One step has made the chosen answer more likely and the rejected one less likely. Try a larger $\eta$. That is one pair. Training repeats it on
# hundreds of pairs of other questions, a few of them at a time. Two things are new: Adam chooses the size of a step for every
# parameter, and the sum becomes a mean over the pairs of a batch.
#
# What shall we watch? The **margin** of pairs that were held out. It compares the two answers per token:
#
# $$m = \frac{\log\pi(y^+\mid x)}{|y^+|} - \frac{\log\pi(y^-\mid x)}{|y^-|}.$$
#
# If $m>0$, the model gives the better answer more probability for each token.


# %%
def batch_of(rows):
    return collate(rows, tokenizer.pad_token_id, model.device)


held_out = {o: batch_of(P.pairs_of(o).test_pairs.encoded(P.base_model)) for o in P.objectives}


@torch.no_grad()
def margins(policy):
    """m of all held-out pairs of both objectives: (2, pairs)."""
    found = []
    for some in held_out.values():
        up, down = (token_log_probs(policy, some).sum(1) / some["completion_mask"][:, 1:].sum(1)).chunk(2)
        found.append(up - down)
    return torch.stack(found).cpu().numpy()


# %%
def train(policy, objective):
    """One pass of DPO over the pairs of an objective, in place. Returns margins after every fourth step: (S, 2, pairs)."""
    rows = P.pairs_of(objective).train_pairs(P.seed).encoded(P.base_model)
    optimizer = torch.optim.Adam(policy.parameters(), lr=P.learning_rate)
    seen = []
    for number, some in enumerate(batches(len(rows), P.batch_size, 1, P.seed), start=1):
        batch = batch_of([rows[i] for i in some])
        with torch.no_grad():
            reference = token_log_probs(model, batch).sum(1)
        log_probs = token_log_probs(policy, batch)
        c = dpo_weights(log_probs, reference, batch["completion_mask"][:, 1:])
        optimizer.zero_grad()
        (-(c * log_probs).sum() / len(some)).backward()
        optimizer.step()
        if number % 4 == 0 or number == len(rows) // P.batch_size:
            seen.append(margins(policy))
    return np.stack(seen)


# %% [markdown]
# Now train a fresh copy of the base model on the first objective. This is **Stage 1**. It takes a few seconds.

# %%
policy = copy.deepcopy(model).requires_grad_(True)
at_base = margins(policy)  # (2, pairs)
stage1 = train(policy, P.objectives[0])  # (S, 2, pairs)
after_stage1 = copy.deepcopy(policy)


def shares(*moments):
    """The share of pairs with m > 0, in percent: a row for each objective, a column for each moment."""
    found = {name_: 100 * (m > 0).mean(1) for name_, m in zip(["base", "Stage 1", "Stage 2"], moments, strict=False)}
    return pd.DataFrame(found, P.objectives).round(0).astype(int)


shares(at_base, stage1[-1])

# %% [markdown]
# **Read it.** The table has the percentage of held-out pairs that the model orders right. Training on *helpful* has raised the
# first row. Nobody has trained on *harmless*, and its row has fallen all the same. Here is what the model says now:


# %%
def says(policy):
    return decode(tokenizer, sample(policy, tokenizer, [question], max_new_tokens=32))[0]


print("base     ", says(model))
print("Stage 1  ", says(after_stage1))

# %% [markdown]
# ## 5 · G: does a step pull towards the final answers?
#
# We know now where Stage 1 ends. Paper D asks of every earlier step: did it pull towards this end? Let $D'$ be the answers that
# the *trained* model gives to held-out questions.

# %%
questions = P.pairs_of(P.objectives[0]).test_pairs.rows()["prompt"][:32]
final = collate_responses(
    sample(after_stage1, tokenizer, questions, max_new_tokens=32), tokenizer.pad_token_id, model.device
)
print(f"D' has {len(final['input_ids'])} answers with {final['completion_mask'].sum()} tokens")

# %% [markdown]
# Go back to the base model, before the first step. How unlikely is $D'$ there? This is its *negative log-likelihood* (NLL), the
# mean over the answers. Its gradient is $v$:
#
# $$v = \nabla_\theta\,\mathrm{NLL}(D'), \qquad \mathrm{NLL}(D') = -\frac{1}{|D'|}\sum_{(x',y')\in D'}\log\pi(y'\mid x').$$

# %%
policy = copy.deepcopy(model).requires_grad_(True)
parameters = dict(policy.named_parameters())
nll = -log_probs_of(policy, final).sum(1).mean()
v = dict(zip(parameters, torch.autograd.grad(nll, list(parameters.values())), strict=True))
print(f"NLL(D') = {nll:.3f} nats an answer")

# %% [markdown]
# Now take one token of our pair. Its gradient points where the token becomes more likely. The inner product with $v$ is
#
# $$s_{i,t} = \nabla\log\pi(y_{i,t}\mid x_i, y_{i,<t})\cdot v, \qquad G_{i,t} = -\,c_{i,t}\,s_{i,t}.$$
#
# A step of size $\eta$ on this token alone lowers the NLL of $D'$ by $\eta\,G_{i,t}$, if $\eta$ is small. So $G>0$ means: this
# token pulls towards the end of training. Take the token *wire*:

# %%
wire = int((mask[0].cumsum(0) == 3).int().argmax())  # the third token of the chosen answer
log_prob = log_probs_of(policy, batch)[0, wire]
gradient = torch.autograd.grad(log_prob, list(parameters.values()))
s_wire = sum((g * v[name_]).sum() for name_, g in zip(parameters, gradient, strict=True))
G_wire = float(-c[0, wire] * s_wire)
print(f"c = {c[0, wire]:+.3f}   s = {s_wire:+.3f}   G = {G_wire:+.3f}")

# %% [markdown]
# Is it true? Take a tiny step on *wire* alone, and compute the NLL again. (This notebook computes in float64. In float32 the
# effect of such a step would be lost in rounding.)


# %%
def fall(c, eta):
    """By how much a step of size eta on these weights lowers the NLL of D', for each unit of eta."""
    moved = copy.deepcopy(model).requires_grad_(True)
    step(moved, -(c * log_probs_of(moved, batch)).sum(), eta)
    with torch.no_grad():
        return float(nll + log_probs_of(moved, final).sum(1).mean()) / eta


only_wire = torch.zeros_like(c)
only_wire[0, wire] = c[0, wire]
print(f"G of wire {G_wire:+.4f}, real fall of the NLL / η {fall(only_wire, eta=1e-4):+.4f}")

# %% [markdown]
# One backward pass for each token would be slow. **Forward-mode** differentiation gives $s$ of all tokens in a single pass. Every
# parameter gets a *tangent*, the direction $v$ in which it moves. The model runs once, and each log-probability comes out with
# its own tangent. That tangent is $s$.

# %%
with torch.no_grad(), forward_ad.dual_level(), written_out(policy):  # forward mode needs attention in plain operations
    moving = {name_: forward_ad.make_dual(p.detach(), v[name_]) for name_, p in parameters.items()}
    log_probs = log_probs_of(lambda **inputs: functional_call(policy, moving, kwargs=inputs), batch)
    s = forward_ad.unpack_dual(log_probs).tangent  # (2, seq - 1): the derivative of every log-prob along v
G = -c * s  # (2, seq - 1)

# %% [markdown]
# Three checks. The library's function, autograd's inner product $v\cdot\nabla L$, and the real fall of the NLL must agree with the
# sum of $G$ over all tokens. And *wire* must have the same $G$ as before:

# %% tags=["nbval-check-output"]
parts = {"whole": mask.bool(), "positive": c > 0, "negative": c < 0}
of_library = alignment.alignment(c, alignment.token_alignment(policy, batch, v), parts, 1)
of_loss = torch.autograd.grad(-(c * log_probs_of(policy, batch)).sum(), list(parameters.values()))
of_autograd = sum((g * v[name_]).sum() for name_, g in zip(parameters, of_loss, strict=True))
print("same as the library's:   ", np.isclose(G.sum(), of_library["whole"]))
print("same as autograd's:      ", np.isclose(G.sum(), of_autograd))
print("same as the real fall:   ", np.isclose(G.sum(), fall(c, eta=1e-5), rtol=1e-2))
print("wire, by both ways:      ", np.isclose(G[0, wire], G_wire))

# %% [markdown]
# The parts of the loss, each with its own $G$:

# %%
pd.Series(of_library, name="G").to_frame().round(2)

# %% [markdown]
# And now all tokens in one picture. A bar is the $G$ of a token. A point is what really happened to the NLL after a tiny step on
# this token alone.

# %%
panels = {}
for row, title in enumerate(("chosen answer, c > 0", "rejected answer, c < 0")):
    places = mask[row].nonzero().flatten().tolist()
    alone = [torch.zeros_like(c).index_put((torch.tensor(row), torch.tensor(t)), c[row, t]) for t in places]
    panels[title] = (tokens[row], G[row, places].numpy(), np.array([fall(one, eta=1e-4) for one in alone]))
run.figure("g_of_tokens", plots.pulls(panels))

# %% [markdown]
# **Read it.** Every point lies at the end of its bar: $G$ foretells what a small step does. Most tokens have no bar. The model was
# sure of them already, and what is sure hardly moves. What counts is where the model decides:
#
# - *then* and *test* pull towards $D'$, and so does *sorry*: the step makes a refusal less likely.
# - `<eos>` is the end of an answer. The step makes the end after *test it .* more likely. But the trained model goes on talking there,
#   as you saw above. So this token of the *better* answer pulls away from $D'$.
# - The step also makes the end of the refusal less likely. Then longer answers become more likely, and $D'$ has them.
#
# So with this pair positive learning pulls away, and negative learning pulls towards the end. It is one pair and one step. Notebook
# 02 asks the same of many pairs all through training, and 09 asks for the reason.
#
# ## 6 · Two stages: forgetting
#
# Go on with the model of Stage 1, and train it on the second objective. This is **Stage 2**. Nothing else changes: the same
# loop, the same reference. Then look at the margins of the *first* objective, before and after:
#
# $$\text{forgetting} = \bar m_{\text{Stage 1}} - \bar m_{\text{Stage 2}}\quad\text{on held-out pairs of the first objective.}$$

# %%
policy = copy.deepcopy(after_stage1)
stage2 = train(policy, P.objectives[1])
pd.DataFrame(
    {"base": at_base.mean(1), "Stage 1": stage1[-1].mean(1), "Stage 2": stage2[-1].mean(1)},
    [f"mean margin, {objective}" for objective in P.objectives],
).round(2)

# %%
shares(at_base, stage1[-1], stage2[-1])

# %%
both = np.concatenate([at_base[None], stage1, stage2])  # (S, 2, pairs)
per_stage = P.train_pairs // P.batch_size
seen_at = [*range(4, per_stage, 4), per_stage]  # steps of a stage
steps = np.array([0, *seen_at, *(per_stage + n for n in seen_at)])
run.figure("forgetting", plots.forgetting(steps, dict(zip(P.objectives, both.swapaxes(0, 1), strict=True)), per_stage))

# %% [markdown]
# **Read it.** A line is the mean of 100 held-out pairs, and a band holds the middle half of them. Stage 1 raises *helpful* and lowers
# *harmless*, although it never saw a pair of *harmless*. Stage 2 turns both around. In the end *helpful* lies below the base model:
# 75 % of its pairs were right after Stage 1, and 43 % are right now. This is forgetting. But look at the band: part of the *helpful*
# pairs stay above zero. A mean does not tell what happens to single pairs.
#
# What does the model say after each stage?

# %%
for what, some in {"base": model, "Stage 1": after_stage1, "Stage 2": policy}.items():
    print(f"{what:<9}{says(some)}")

# %% [markdown]
# The model of Stage 2 mixes an answer with a warning, and its sentences break. No margin shows this. A margin ranks two given answers.
# It says nothing about the answer that the model itself would give. So look at both.

# %%
folder = run.finish(
    claims=[],
    metrics={"nll": nll.item(), "G": of_library},
    series={"margins": {o: both[:, i].mean(1).tolist() for i, o in enumerate(P.objectives)}},
)
print("results in", "/".join(folder.parts[-3:]))

# %% [markdown]
# ## Exercises
#
# Their solutions are in [solutions/00_start_here_solutions](solutions/00_start_here_solutions.ipynb).
#
# 1. **The weight.** Draw $w$ for $\Delta$ from −30 to 30, with $\beta=0.1$ and with $\beta=0.3$. Which pair counts most? What
#    does a larger $\beta$ do to pairs that are learnt already?
# 2. **Wrong labels.** Swap `chosen` and `rejected` in section 1. Before you run it: what happens to $c$, to $s$, and to the sign
#    of $G$?
# 3. **A polite end.** Append `hope this helps .` to the chosen answer. What becomes of the red bar, and why?
# 4. **Friends instead of enemies.** Set `world: str = "compatible"` and
#    `objectives: list = ["instruction_following", "truthfulness"]`. Is anything forgotten? Then try the other order.
#
# To rerun, change the parameters cell, then *Run > Run All Cells*.
#
# ## Where to go next
#
# - **Paper S, forgetting:** [01](01_sequential_settings.ipynb) runs four settings in both orders. [05](05_mechanism.ipynb) asks
#   whether gradients foretell what is forgotten. [06](06_forgetting_map.ipynb) maps random worlds, and
#   [07](07_objective_map.ipynb) many objectives.
# - **Paper D, gradient alignment:** [02](02_g_dynamics.ipynb) follows $G$ through all of training, for DPO and PPO.
#   [09](09_common_mode.ipynb) asks why positive and negative learning differ, and [08](08_optimisers.ipynb) what Adam makes of a
#   gradient. [03](03_component_ablations.ipynb) takes parts of the loss away, and [04](04_coordinated_objectives.ipynb) steers them.
# - **The library:** [weightings.py](../lib/preflab/weightings.py) holds the one idea, and the
#   [methods](../lib/preflab/methods) are its rules for $c$, a page each.
