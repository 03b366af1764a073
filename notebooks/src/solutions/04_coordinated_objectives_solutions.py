# %% [markdown]
# # 04 · Coordinated objectives: solutions
#
# Solutions of the exercises of [04_coordinated_objectives](../04_coordinated_objectives.ipynb). Everything is small here: the short
# answers of the world *conflict*, a smaller model, half of the pairs, one seed. Intervals are over prompts. Another seed could say
# something else, so read the numbers as sketches.

# %%
import copy
import math

import numpy as np
import pandas as pd
import torch

from preflab import rewards, rules
from preflab.claims import win_change
from preflab.experiments.coordination import made_of_one_pair, negative_share
from preflab.generation import decode, sample
from preflab.judging import as_table, chances
from preflab.likelihood import pair_log_probs
from preflab.running.reading import find_notebook, resolve
from preflab.running.run import start
from preflab.settings import settings
from preflab.training.from_pairs import train_on_pairs
from preflab.weightings import Weights

NOTEBOOK = find_notebook("04_coordinated_objectives")
SMALL = {
    "source": "world:conflict",
    "base": {"hidden_size": 32, "sft": {"steps": 240}},
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "train_pairs": 320,
    "test_pairs": 96,
    "max_new_tokens": 32,
    "measurement": {"finals": 8},
    "validation": 24,
    "report": 64,
    "outcome": {"samples": 4},
    "seeds": [0],
}
DPO = {"DPO": {"method": "dpo", "sweep": [{"beta": 0.1}, {"beta": 0.3}]}}
PPO = {"PPO": {"method": "ppo", "sweep": [{"kl_coefficient": 0.1}, {"kl_coefficient": 0.03}]}}
COLUMNS = ("score", "against the rival − ½", "KL", "entropy", "right answer")


def with_rows(rows, **given):
    """The parameters of 04 with these rows, and small sizes."""
    return resolve(NOTEBOOK, SMALL | {"variants": rows} | given, "solutions")


def chosen(P):
    """Every row tries its values; the best one on the validation prompts is reported on others."""
    tried = P.candidates()
    merits = {name: P.merits(some) for name, some in tried.items()}
    best = P.choices(tried, merits)
    judged = {name: P.judged(runs, P.report_prompts) for name, runs in P.chosen(tried).items()}
    rows = P.compared(judged, P.judged_sft(P.report_prompts))
    rows = {name: row | {"chosen": best[name]["chosen, with what the rival chose"]} for name, row in rows.items()}
    return as_table(rows, {"prompts": len(P.report_prompts), "seeds": len(P.seeds)}, ("chosen", *COLUMNS))


# %% [markdown]
# ## 1 · Backwards

# %%
coordinated = {"method": "dpo", "rule": "coordinated", "against": "DPO"}
directions = with_rows(
    DPO
    | {
        "cDPO": coordinated | {"sweep": [{"start": 0.4, "end": 0.6}, {"start": 0.25, "end": 0.75}]},
        "cDPO, backwards": coordinated | {"sweep": [{"start": 0.6, "end": 0.4}, {"start": 0.75, "end": 0.25}]},
    }
)
start(directions)
chosen(directions)

# %% [markdown]
# Nothing to be seen. Both rows hold 0 in their interval against DPO, and their scores are 0.41 and 0.42. So this run does not
# show that the order of positive and negative learning matters. It does show why there must be a row of plain DPO: without it one
# could have told a story about 0.424 and 0.414.
#
# ## 2 · Which sign of gain?

# %%
adaptive = {"method": "dpo", "rule": "adaptive", "live_every": 10, "budget": 0.83, "against": "DPO"}
gains = with_rows(
    DPO
    | {
        "gain > 0": adaptive | {"sweep": [{"gain": 0.5}, {"gain": 0.9}]},
        "gain < 0": adaptive | {"sweep": [{"gain": -0.5}, {"gain": -0.9}]},
    }
)
chosen(gains)

# %% [markdown]
# The rows with a gain below 0 keep the entropy: 0.530, where the SFT model has 0.533. But look at the KL. They have hardly moved
# (0.017, DPO 0.056), and their answers are worse than those of DPO, clearly. With a gain above 0 the entropy is 0.522, and the
# interval against DPO holds 0. An entropy that stays is no merit by itself: a run that learns nothing keeps all of it. (Adaptive
# rows also have a sixth fewer updates, since looking at $G$ costs something.)
#
# ## 3 · Drop the heaviest

# %%
dropped = {
    "method": "ppo",
    "rule": "thresholded",
    "arguments": {"reading": "drop_above"},
    "against": "PPO",
    "sweep": [{"tau": 1.5}, {"tau": 2.0}],
}
heaviest = with_rows(PPO | {"hPPO, drop the heaviest": dropped})
chosen(heaviest)

# %% [markdown]
# Its score is 0.57, that of PPO 0.48, and its entropy 0.518 and 0.495. The interval against PPO holds 0, so a better score is not
# shown. Its KL is smaller, 0.44 and 0.75: without the heaviest tokens the policy moves less far, and so it keeps more entropy.
#
# ## 4 · Another reward

# %%
group = {
    "method": "grpo",
    "arguments": {"group_size": 4},
    "sweep": [{"kl_coefficient": 0.1}, {"kl_coefficient": 0.03}],
}
rewarded = with_rows({"GRPO, correctness": group | {"reward": "correct"}, "GRPO, oracle": group | {"reward": "oracle"}})
chosen(rewarded)

# %%
sft = rewarded.described(*[rewarded.judged_sft(rewarded.report_prompts)] * 2)
as_table({"SFT": sft}, {"prompts": len(rewarded.report_prompts)}, COLUMNS)

# %% [markdown]
# Yes. 63 % of its answers name the right tool, 65 % with the reward for correctness, and 46 % of those of the SFT model. The
# difference of the first two is 5 of 256 answers, too few to count. The score is higher with the oracle, 0.64 and 0.53: the
# oracle also rewards what correctness does not see, such as a right second step, and not to refuse.
#
# ## 5 · Other methods

# %%
others = with_rows(
    DPO
    | {
        "KTO": {"method": "kto", "against": "DPO", "sweep": [{"beta": 0.1}, {"beta": 0.3}]},
        "ORPO": {"method": "orpo", "against": "DPO", "sweep": [{"weight": 0.1}, {"weight": 1.0}]},
    }
)
chosen(others)

# %% [markdown]
# KTO ends where DPO does: scores and KL agree in all digits, and the interval against DPO is shorter than a thousandth. So short
# a training leaves the policy near the reference, and there both methods weigh pairs alike. ORPO goes further from the SFT model
# (0.088) and has a lower score. On a frontier of score against KL it lies below DPO here. Its interval against DPO holds 0, so
# the run does not decide it.
#
# ## 6 · A schedule of your own
#
# The exercise writes a shape into the library. Here it stands in the notebook as a rule of its own: negative learning has its
# largest share half-way.


# %%
@settings
class Bump(rules.Rule):
    """lambda goes from start to end, and back again."""

    start: float = 0.25
    end: float = 0.75

    def __call__(self, w: Weights) -> torch.Tensor:
        return rules.shared(w.c, self.start + (self.end - self.start) * math.sin(math.pi * w.progress), total=2.0)


t = np.linspace(0, 1, 51)
shapes = {"linear": rules.Coordinated(), "bump": Bump()}
lambdas = pd.DataFrame({name: negative_share(made_of_one_pair(rule, t)) for name, rule in shapes.items()}, t)
_ = lambdas.plot(figsize=(6, 2.4), lw=2.2, xlabel="share of training", ylabel="λ").legend(frameon=False)

# %% [markdown]
# And it trains, by the library's loop:

# %%
P = directions
model, tokenizer, prompts = P.base_model.load(), P.base_model.tokenizer(), P.prompts(P.report_prompts).messages()


def trained(rule):
    """DPO with a rule, on the pairs of the first seed."""
    policy, rows = copy.deepcopy(model).requires_grad_(True), P.pairs.train_pairs(0).encoded(P.base_model)
    reference = pair_log_probs(model, rows, tokenizer.pad_token_id, batch_size=64)
    train_on_pairs(policy, tokenizer, rows, reference, P.dpo, P.pair_training, seed=0, rule=rule)
    return policy


def utilities(policy):
    """Of one sampled answer to each reported prompt: (prompts, 1)."""
    drawn = sample(policy, tokenizer, prompts, max_new_tokens=P.max_new_tokens, temperature=1.0, seed=1)
    return rewards.utilities(P.utility, prompts, decode(tokenizer, drawn))[:, None]


u = {name: utilities(trained(rule)) for name, rule in ({"plain": rules.Plain()} | shapes).items()}
against = {name: str(win_change(chances(u[name], u["plain"], P.label_temperature)[None])) for name in shapes}
pd.DataFrame({"against plain DPO − ½": against})

# %% [markdown]
# Both intervals hold 0: neither shape beats plain DPO here, and neither loses. Draw a shape first, as above. A rule is one
# function of the share of training, so a wrong sign is seen at once.
