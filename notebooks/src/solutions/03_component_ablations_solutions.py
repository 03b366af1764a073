# %% [markdown]
# # 03 · Component ablations: solutions
#
# Solutions of the exercises of [03_component_ablations](../03_component_ablations.ipynb). Everything is small here: the short answers
# of the world *conflict*, a smaller model, half of the pairs, one seed. Intervals are over prompts. Another seed could say something
# else, so read the numbers as sketches.

# %%
import copy

import pandas as pd
import torch

from preflab import rewards
from preflab.claims import win_change
from preflab.generation import decode, sample
from preflab.judging import as_table, chances, described
from preflab.likelihood import pair_log_probs
from preflab.rules import Plain, Rule
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start
from preflab.settings import settings
from preflab.training.from_pairs import train_on_pairs
from preflab.weightings import Weights

NOTEBOOK = find_notebook("03_component_ablations")
SMALL = {
    "source": "world:conflict",
    "base": {"hidden_size": 32, "sft": {"steps": 240}},
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "train_pairs": 320,
    "test_pairs": 96,
    "max_new_tokens": 32,
    "measurement": {"finals": 96},
    "seeds": [0],
}


def with_rows(rows, **given):
    """The parameters of 03 with these rows, and small sizes."""
    return resolve(NOTEBOOK, SMALL | {"variants": rows} | given, "solutions")


def judged(P):
    """Every row, and those that take something away beside their plain row. The runs train first if they have not yet."""
    found = {who: P.judged(runs) for who, runs in P.by_row().items()}
    rows = {}
    for who, own in found.items():
        plain = P.rivals.get(who)
        against = {"against plain − ½": win_change(own.chances(found[plain]))} if plain else {}
        rows[who] = {"score": own.score} | against | {k: v for k, v in described(own.answers).items() if k in COLUMNS}
    return as_table(rows, {"prompts": len(P.prompts().messages()), "seeds": len(P.seeds)})


COLUMNS = ("KL", "entropy")
DPO, PPO = {"DPO": {"method": "dpo"}}, {"PPO": {"method": "ppo"}}
WITHOUT = {"rule": "without_negative"}
P = with_rows(DPO | {"DPO, no negative": {"method": "dpo"} | WITHOUT})
start(P)
model, tokenizer = P.base_model.load(), P.base_model.tokenizer()
judged(P)

# %% [markdown]
# ## 1 · Your own ablation
#
# The exercise writes the rule into the library. Here it stands in the notebook, and the library's loop gets it by hand:


# %%
@settings
class FirstToken(Rule):
    """Learning from the first token of each response alone."""

    def __call__(self, w: Weights) -> torch.Tensor:
        held = w.c != 0
        return w.c * (held & (held.cumsum(1) == 1))


FirstToken()(Weights.of_pairs(torch.tensor([[0.0, 0.05, 0.05, 0.05], [0.0, -0.05, -0.05, 0.0]]), progress=0.0))


# %%
def trained(rule):
    """DPO with a rule, on the pairs of the first seed."""
    policy, rows = copy.deepcopy(model).requires_grad_(True), P.pairs.train_pairs(0).encoded(P.base_model)
    reference = pair_log_probs(model, rows, tokenizer.pad_token_id, batch_size=64)
    train_on_pairs(policy, tokenizer, rows, reference, P.dpo, P.pair_training, seed=0, rule=rule)
    return policy


def margins(policy):
    """log-ratio of chosen less rejected, of held-out pairs, in nats: (pairs,)."""
    rows = P.pairs.test_pairs.encoded(P.base_model)
    now, before = (pair_log_probs(some, rows, tokenizer.pad_token_id, batch_size=64) for some in (policy, model))
    return (now.chosen - before.chosen) - (now.rejected - before.rejected)


def utilities(policy):
    """Of one sampled answer to each held-out prompt: (prompts, 1)."""
    prompts = P.prompts().messages()
    drawn = sample(policy, tokenizer, prompts, max_new_tokens=P.max_new_tokens, temperature=1.0, seed=1)
    return rewards.utilities(P.utility, prompts, decode(tokenizer, drawn))[:, None]


policies = {"SFT": model, "DPO": trained(Plain()), "DPO, first token": trained(FirstToken())}
u = {who: utilities(policy) for who, policy in policies.items()}
rows = {
    who: {
        "held-out accuracy": (margins(policies[who]) > 0).double().mean().item(),
        "mean margin": margins(policies[who]).mean().item(),
        "against SFT − ½": win_change(chances(u[who], u["SFT"], P.label_temperature)[None]),
    }
    for who in ("DPO", "DPO, first token")
}
as_table(rows, {"held-out pairs": len(margins(model)), "prompts": len(u["SFT"])})

# %% [markdown]
# With the first token alone DPO orders 59 % of the held-out pairs rightly, and with all tokens 68 %. Its mean margin is a third
# of that of DPO. So the beginning decides something: in this world an answer begins unlike a refusal. Most is learnt elsewhere.
# Whether the answers got better than those of the SFT model is open: the interval holds 0.
#
# The comparison has a weakness. One token gives a smaller gradient than ten do. `SameTotal(FirstToken())` from `preflab.rules`
# takes that out: try it.
#
# ## 2 · Until when?

# %%
early = {f"DPO, no negative until {t}": {"method": "dpo", "until": t} | WITHOUT for t in (0.2, 0.4, 0.8)}
until = with_rows(DPO | early | {"DPO, no negative": {"method": "dpo"} | WITHOUT})
judged(until)

# %%
accuracy = {who: until.accuracy(runs).held_out.mean() for who, runs in until.by_row().items()}
pd.DataFrame({"held-out accuracy": accuracy}).round(3)

# %% [markdown]
# Up to 0.2 nothing is lost that this run can see: the interval holds 0. From 0.4 on the rows are below DPO, and as far below as
# the row that never has negative learning. So what is lost in the first two fifths does not come back. This training is short,
# and its learning rate falls: what comes late counts less. A long run may say something else, and so 03 asks it in the `full`
# profile.
#
# The second table shows a trap. The accuracies hardly differ: 0.66 to 0.70, of 96 pairs. So rows that answer worse rank given
# pairs as well as DPO does.
#
# ## 3 · While a sign lasts

# %%
follow = {"method": "ppo", "rule": "while_sign", "live_every": 2}
part = {"part": "negative", "sign": "positive"}
signs = with_rows(
    PPO
    | {
        "PPO, no negative while G⁻ > 0": follow | {"arguments": part},
        "PPO, half of it while G⁻ > 0": follow | {"arguments": part | {"dose": 0.5}},
    }
)
judged(signs)

# %%
acted = {who: signs.acted(runs).mean() for who, runs in signs.by_row().items() if who != "PPO"}
pd.DataFrame({"share of updates in which the rule acted": acted}).round(2)

# %% [markdown]
# Nothing to be seen. The rule acted in 60 % of the updates, and both intervals hold 0, with half a dose and with the whole. So
# this run does not say that it is worse to lose a part while it pulls towards the end. It moves little: ten iterations, and a KL
# below one nat. The `full` profile has six seeds and longer runs.
#
# ## 4 · A perfect reward

# %%
reduced = PPO | {"PPO, no negative": {"method": "ppo"} | WITHOUT}
judged(with_rows(reduced))

# %%
judged(with_rows(reduced, reward={"kind": "oracle"}))

# %% [markdown]
# With the implicit reward PPO ends at 0.37, with the oracle at 0.81. The reward matters far more than negative learning does.
# Without negative learning the score is 0.47 and 0.80. The first looks like a gain. But its interval holds 0, as the other one
# does, so no row changes its place that we can tell.
#
# ## 5 · Another method

# %%
judged(with_rows({"KTO": {"method": "kto"}, "KTO, no negative": {"method": "kto"} | WITHOUT}))

# %% [markdown]
# As much as in DPO. KTO without negative learning loses 0.015 of label probability, DPO without it 0.013 (first table above), and
# the two intervals lie on each other. Its score and its KL are nearly those of DPO, too. Training is short here, and the two
# methods differ little before a policy has moved.
