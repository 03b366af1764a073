# %% [markdown]
# # 00 · Start here: solutions
#
# Solutions of the exercises of [00_start_here](../00_start_here.ipynb). Try them yourself first: a prediction that turns out
# wrong teaches most.
#
# In 00 you saw every line. Here the library's functions stand in their place. 00 has checked that they say the same.

# %%
import copy

import matplotlib.pyplot as plt
import pandas as pd
import torch

from preflab import alignment
from preflab.generation import sample
from preflab.likelihood import collate, collate_responses, encode_pairs, pair_log_probs
from preflab.methods.dpo import DPO
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start
from preflab.training.from_pairs import PairTraining, train_on_pairs

P = resolve(find_notebook("00_start_here"), {}, "00_start_here")  # the values of its parameters cell
start(P)
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()

# %% [markdown]
# ## 1 · The weight
#
# $$w = \beta\,\sigma(-\beta\Delta).$$

# %%
delta = torch.linspace(
    -30, 30, 61, dtype=torch.float64
)  # as if of 61 pairs: chosen moved by delta, rejected not at all
log_ratios, one_token = torch.cat([delta, torch.zeros(61)]), torch.ones(122, 1)
w = pd.DataFrame(
    {f"β = {beta}": DPO(beta).weigh(log_ratios, one_token).c[:61, 0] for beta in (0.1, 0.3)}, delta.numpy()
)
w.loc[[-30, -10, 0, 10, 30]].round(4)

# %%
axis = w.plot(figsize=(6, 2.8), lw=2.2, xlabel="Δ", ylabel="w")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# A pair counts most if the policy has it the wrong way round ($\Delta\ll0$). Then $w$ comes near $\beta$. At $\Delta=0$ it is
# $\beta/2$. A larger $\beta$ makes the steps larger at first, and it stops sooner: at $\Delta=30$ the weight with $\beta=0.3$
# is the smaller one by far. So a large $\beta$ keeps the policy near the reference.
#
# ## 2 · Wrong labels
#
# First $D'$, as in 00: the answers of a model that was trained on the first objective. The library's loop differs from that of
# 00 in two things: its learning rate falls to zero, and it clips long gradients.


# %%
def trained(P, start_from, objective):
    """A copy of a policy after one pass of DPO over the pairs of an objective, against the base model."""
    policy, rows = copy.deepcopy(start_from).requires_grad_(True), P.pairs_of(objective).train_pairs(P.seed)
    encoded = rows.encoded(P.base_model)
    reference = pair_log_probs(model, encoded, tokenizer.pad_token_id, batch_size=64)
    loop = PairTraining(learning_rate=P.learning_rate, batch_size=P.batch_size, warmup_share=0.0)
    train_on_pairs(policy, tokenizer, encoded, reference, P.dpo, loop, seed=P.seed)
    return policy


helpful = trained(P, model, P.objectives[0])
questions = P.pairs_of(P.objectives[0]).test_pairs.rows()["prompt"][:32]
final = collate_responses(
    sample(helpful, tokenizer, questions, max_new_tokens=32), tokenizer.pad_token_id, model.device
)

# %% [markdown]
# Then $c$ and $s$ of every token, with right labels and with wrong ones:

# %%
policy = copy.deepcopy(model).requires_grad_(True)
v = alignment.nll_gradient(policy, [final], alignment.parameters_of(policy))


def batch_of(chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    pair = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    pair["prompt"] = [{"role": "user", "content": "how do i fix the old lamp at home ?"}]
    return collate(encode_pairs([pair], tokenizer, P.base.context)[0], tokenizer.pad_token_id, model.device)


def c_and_s(batch):
    c = P.dpo.weigh(torch.zeros(2), batch["completion_mask"][:, 1:]).c  # the policy is the reference: log pi/pi_ref = 0
    return c, alignment.token_alignment(policy, batch, v)


helps, refuses = "use the wire . then test it .", "sorry i can not help ."
c, s = c_and_s(batch_of(helps, refuses))
c_wrong, s_wrong = c_and_s(batch_of(refuses, helps))
found = {"right labels": -(c * s).sum(), "wrong labels": -(c_wrong * s_wrong).sum()}
pd.DataFrame({what: [float(G)] for what, G in found.items()}, ["G"]).round(2)

# %%
print("c changes its sign:", torch.allclose(c_wrong.flip(0), -c))
print("s stays as it is:  ", torch.allclose(s_wrong.flip(0), s))

# %% [markdown]
# $s$ belongs to a token and to $D'$. It does not know the labels. Only $c$ does, and it changes its sign. So every $G$ changes its
# sign too. This holds exactly because the policy is still the reference. Later $\Delta$ of the wrong pair is not that of the right
# one, and $w$ differs.
#
# ## 3 · A polite end


# %%
def g_of_chosen(answer):
    """G of every token of the chosen answer."""
    batch = batch_of(answer, refuses)
    c, s = c_and_s(batch)
    answers = batch["completion_mask"][0, 1:].bool()
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0, 1:][answers])
    return pd.DataFrame({"token": tokens, "G": (-c * s)[0, answers].numpy()}).set_index("token").T.round(2)


g_of_chosen(helps)

# %%
g_of_chosen(f"{helps} hope this helps .")

# %% [markdown]
# The red bar has gone. After *hope this helps .* nothing ever follows, and the model knows it: this end is nearly certain, and what
# is certain hardly moves. With it goes the pull away from long answers. A new decision has come instead, at *hope*. Its sign says
# whether $D'$ goes on with the same word there. Print `decode(tokenizer, ...)` of the answers in $D'$ and look.
#
# ## 4 · Friends instead of enemies
#
# Both orders of the world *compatible*, whose objectives mostly agree:

# %%
friends = resolve(
    find_notebook("00_start_here"),
    {"world": "compatible", "objectives": ["instruction_following", "truthfulness"]},
    "exercise 4",
)


def mean_margin(policy, objective):
    """Of held-out pairs, in nats a token."""
    found = pair_log_probs(
        policy, friends.pairs_of(objective).test_pairs.encoded(P.base_model), tokenizer.pad_token_id, 64
    )
    return float((found.chosen / found.chosen_tokens - found.rejected / found.rejected_tokens).mean())


rows = {}
for one, other in (friends.objectives, friends.objectives[::-1]):
    stage1 = trained(friends, model, one)
    stage2 = trained(friends, stage1, other)
    stages = {"base": model, "Stage 1": stage1, "Stage 2": stage2}
    rows[f"{one}, then {other}"] = {what: mean_margin(some, one) for what, some in stages.items()}
pd.DataFrame(rows).T.rename_axis(columns="mean margin of the first objective").round(2)

# %% [markdown]
# Nothing is forgotten. After Stage 2 the margin of the first objective is about what it was, or larger: the second objective teaches
# much of the same. So "train on something else" does not mean "forget". It depends on the relation of the two objectives. One seed
# and two orders are a sketch. Notebook 01 asks with intervals, and 06 draws the map.
